//! The schedules' part of checkpoints.

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, put_varint};
use flowmesh_model::group::Name;
use flowmesh_model::replay::fact::{put_time, time};
use flowmesh_model::schedule::ScheduleSpec;
use flowmesh_model::{IndexWrite, JobId, Millis, Space};

use super::{Schedule, Schedules};
use crate::changes::{Change, Mark, Seals, Touch, image, removal};
use crate::keys::{self, Home};

impl Schedules {
    /// Takes a schedule out of the index.
    pub fn restore(&mut self, name: &[u8], value: &[u8]) -> Result<(), Malformed> {
        let name = std::str::from_utf8(name).map_err(|_| Malformed("a schedule's name is not UTF-8"))?;
        let name = Name::from(name);
        if self.by_name.contains_key(&name) {
            return Err(Malformed("the same schedule twice"));
        }
        self.put(name, decode(value)?);
        Ok(())
    }

    /// Takes the changes into the sealed state.
    pub fn seal(&mut self) {
        self.changes.seal();
    }

    /// Writes at most `items_max` sealed changes. Returns how many it looked at: fewer means that is all.
    pub fn collect(
        &mut self,
        home: &Home,
        seals: &Seals,
        items_max: usize,
        out: &mut Vec<IndexWrite>,
    ) -> usize {
        for count in 0..items_max {
            match self.changes.next() {
                None => return count,
                Some(Change::Gone(name)) => out.push(removal(Space::Jobs, home.schedule_key(&name))),
                Some(Change::Listed(name)) => {
                    let schedule = self.by_name.get_mut(&name);
                    if let Some(schedule) = schedule.filter(|schedule| seals.is_sealed(schedule.mark)) {
                        Seals::written(&mut schedule.mark);
                        out.push(image(Space::Jobs, home.schedule_key(&name), encode(schedule)));
                    }
                }
            }
        }
        items_max
    }

    /// The sealed state is in the index.
    pub fn sealed_written(&mut self) {
        self.changes.sealed_written();
    }

    /// The sealed state did not get into the index.
    pub fn unseal(&mut self, seals: &Seals) {
        let (changed, gone) = self.changes.unseal();
        for name in changed {
            let schedule = self.by_name.get_mut(&name);
            if schedule.is_some_and(|schedule| seals.touch(&mut schedule.mark) != Touch::Known) {
                self.changes.list(name);
            }
        }
        for name in gone {
            match self.by_name.get_mut(&name) {
                Some(schedule) => schedule.mark.set_in_index(),
                None => self.changes.list_gone(name),
            }
        }
    }

    /// Takes at most `items_max` schedules of a dropped queue out of memory and appends the keys the index has of them
    /// to `gone`. Returns how many it took: fewer means that is all.
    pub fn bury(&mut self, home: &Home, items_max: usize, gone: &mut Vec<(Space, Bytes)>) -> usize {
        for count in 0..items_max {
            let (name, in_index) = if let Some((name, schedule)) = self.by_name.pop_first() {
                (name, schedule.mark.in_index())
            } else if let Some(Change::Gone(name)) = self.changes.next() {
                (name, true)
            } else {
                return count;
            };
            if in_index {
                gone.push((Space::Jobs, home.schedule_key(&name)));
            }
        }
        items_max
    }
}

/// The schedule in the index.
///
/// | field | size | meaning |
/// |---|---|---|
/// | format | 1 | 1 |
/// | paused | 1 | 1 paused, 0 not |
/// | next, finished at | varint each | ms + 1; 0: none |
/// | created at | varint | ms |
/// | fired total, skipped total | varint each | |
/// | last job | varint | 0: it has not fired |
/// | last time | varint | ms, that the last job was for |
/// | spec | the rest | as [`flowmesh_model::schedule::fact`] says |
pub(super) fn encode(schedule: &Schedule) -> Bytes {
    let (last_job, last_time) = schedule.last_fired.unwrap_or_default();
    let mut out = BytesMut::with_capacity(64 + schedule.spec.encoded_len_max());
    out.put_u8(keys::FORMAT);
    out.put_u8(u8::from(schedule.paused));
    put_time(&mut out, schedule.next_at);
    put_time(&mut out, schedule.finished_at);
    for number in
        [schedule.created_at.0, schedule.fired_total, schedule.skipped_total, last_job.0, last_time.0]
    {
        put_varint(&mut out, number);
    }
    schedule.spec.encode(&mut out);
    out.freeze()
}

/// Reads what [`encode`] wrote.
fn decode(value: &[u8]) -> Result<Schedule, Malformed> {
    // What is kept would keep the piece of the index alive that it was read with.
    let mut reader = keys::open(Bytes::copy_from_slice(value))?;
    let paused = reader.byte()? != 0;
    let (next_at, finished_at) = (time(&mut reader)?, time(&mut reader)?);
    let created_at = Millis(reader.varint()?);
    let (fired_total, skipped_total) = (reader.varint()?, reader.varint()?);
    let last_fired = (JobId(reader.varint()?), Millis(reader.varint()?));
    let spec = ScheduleSpec::decode(&mut reader)?;
    keys::close(&reader)?;
    Ok(Schedule {
        finished_at,
        fired_total,
        skipped_total,
        last_fired: Some(last_fired).filter(|(job, _)| job.0 > 0),
        mark: Mark::IN_INDEX,
        ..Schedule::new(spec, paused, next_at, created_at)
    })
}

//! The schedules' part of checkpoints.

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, put_varint};
use flowmesh_model::group::Name;
use flowmesh_model::replay::fact::{put_time, time};
use flowmesh_model::schedule::ScheduleSpec;
use flowmesh_model::{JobId, Millis, Space};

use super::{Schedule, Schedules};
use crate::items::{Indexed, Item, Key};
use crate::keys::{self, Home};

impl Key for Name {
    type Home = Home;

    const SPACE: Space = Space::Jobs;

    fn in_index(&self, home: &Home) -> Bytes {
        home.schedule_key(self)
    }
}

impl Schedules {
    /// Takes a schedule out of the index.
    pub fn restore(&mut self, name: &[u8], value: &[u8]) -> Result<(), Malformed> {
        let name = std::str::from_utf8(name).map_err(|_| Malformed("a schedule's name is not UTF-8"))?;
        let (name, schedule) = (Name::from(name), decode(value)?);
        self.added(&name, &schedule);
        if !self.by_name.restore(name, Box::new(schedule)) {
            return Err(Malformed("the same schedule twice"));
        }
        Ok(())
    }

    /// What checkpoints take of it.
    pub fn indexed(&mut self) -> &mut dyn Indexed<Home> {
        &mut self.by_name
    }
}

impl Item for Box<Schedule> {
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
    fn encode(&self) -> Bytes {
        let (last_job, last_time) = self.last_fired.unwrap_or_default();
        let mut out = BytesMut::with_capacity(64 + self.spec.encoded_len_max());
        out.put_u8(keys::FORMAT);
        out.put_u8(u8::from(self.paused));
        put_time(&mut out, self.next_at);
        put_time(&mut out, self.finished_at);
        for number in [self.created_at.0, self.fired_total, self.skipped_total, last_job.0, last_time.0] {
            put_varint(&mut out, number);
        }
        self.spec.encode(&mut out);
        out.freeze()
    }
}

/// Reads what [`Item::encode`] wrote.
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
        ..Schedule::new(spec, paused, next_at, created_at)
    })
}

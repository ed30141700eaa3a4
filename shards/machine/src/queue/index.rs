//! A queue's part of checkpoints.

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, Reader, put_varint};
use flowmesh_model::{IndexWrite, JobId, LeaseToken, Lsn, Millis, Space};

use super::job;
use super::{JOB_BYTES, Queue};
use crate::changes::{Change, Seals, Touch, image, removal};
use crate::keys::Home;

impl Queue {
    /// Appends the queue's counters in their form in the index.
    ///
    /// | field | size |
    /// |---|---|
    /// | last job, last token, done total, enqueued total, last LSN | varint each |
    pub fn encode_counters(&self, out: &mut BytesMut) {
        let c = &self.counters;
        for number in [c.last_job.0, c.last_token.0, c.done_total, c.enqueued_total, c.last_lsn.0] {
            put_varint(out, number);
        }
        debug_assert!(out.has_remaining_mut());
    }

    /// Reads what [`Queue::encode_counters`] wrote.
    pub fn restore_counters(&mut self, reader: &mut Reader) -> Result<(), Malformed> {
        let c = &mut self.counters;
        c.last_job = JobId(reader.varint()?);
        c.last_token = LeaseToken(reader.varint()?);
        c.done_total = reader.varint()?;
        c.enqueued_total = reader.varint()?;
        c.last_lsn = Lsn(reader.varint()?);
        Ok(())
    }

    /// Takes a job out of the index.
    pub fn restore_job(&mut self, id: JobId, value: Bytes, now: Millis) -> Result<(), Malformed> {
        let job = job::decode(value, now)?;
        if id > self.counters.last_job || job.token > self.counters.last_token {
            return Err(Malformed("a job beyond its queue's last"));
        }
        self.memory_bytes += JOB_BYTES + job.extra_bytes();
        self.arrange(id, job.priority, job.state);
        match self.jobs.insert(id, Box::new(job)) {
            None => Ok(()),
            Some(_) => Err(Malformed("the same job twice")),
        }
    }

    /// Takes the changes into the sealed state.
    pub fn seal(&mut self) {
        self.changes.seal();
        self.schedules.seal();
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
                None => return count + self.schedules.collect(home, seals, items_max - count, out),
                Some(Change::Gone(id)) => out.push(removal(Space::Jobs, home.job_key(id))),
                Some(Change::Listed(id)) => {
                    if let Some(job) = self.jobs.get_mut(&id).filter(|job| seals.is_sealed(job.mark)) {
                        Seals::written(&mut job.mark);
                        out.push(image(Space::Jobs, home.job_key(id), job::encode(job)));
                    }
                }
            }
        }
        items_max
    }

    /// The sealed state is in the index.
    pub fn sealed_written(&mut self) {
        self.changes.sealed_written();
        self.schedules.sealed_written();
    }

    /// The sealed state did not get into the index.
    pub fn unseal(&mut self, seals: &Seals) {
        let (changed, gone) = self.changes.unseal();
        for id in changed {
            if let Some(job) = self.jobs.get_mut(&id)
                && seals.touch(&mut job.mark) != Touch::Known
            {
                self.changes.list(id);
            }
        }
        for id in gone {
            self.changes.list_gone(id);
        }
        self.schedules.unseal(seals);
    }

    /// Takes at most `items_max` jobs of a dropped queue out of memory and appends the keys the index has of them to
    /// `gone`. Returns how many jobs it took: fewer means that is all.
    pub fn bury(&mut self, home: &Home, items_max: usize, gone: &mut Vec<(Space, Bytes)>) -> usize {
        for count in 0..items_max {
            let Some(id) = self.pop_any() else {
                let Some(id) = self.pop_gone() else {
                    return count + self.schedules.bury(home, items_max - count, gone);
                };
                gone.push((Space::Jobs, home.job_key(id)));
                continue;
            };
            if let Some(job) = self.jobs.remove(&id)
                && job.mark.in_index()
            {
                gone.push((Space::Jobs, home.job_key(id)));
            }
        }
        items_max
    }

    fn pop_gone(&mut self) -> Option<JobId> {
        match self.changes.next() {
            Some(Change::Gone(id)) => Some(id),
            Some(Change::Listed(_)) | None => None,
        }
    }

    fn pop_any(&mut self) -> Option<JobId> {
        let delayed = || self.delayed.pop_first().map(|(_, id)| id);
        self.ready
            .pop_first()
            .map(|(_, id)| id)
            .or_else(delayed)
            .or_else(|| self.leases.pop_first().map(|(_, id)| id))
            .or_else(|| self.dead.pop_first())
    }
}

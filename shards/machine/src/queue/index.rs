//! A queue's part of checkpoints.

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, Reader, put_varint};
use flowmesh_model::{IndexWrite, JobId, LeaseToken, Lsn, Millis, Space};

use super::job::{self, JobState, ReadJob};
use super::{Facets, Queue};
use crate::changes::{Change, Seals, Touch, image, removal};
use crate::items::Indexed;
use crate::keys::{Home, QueueKey};

/// Jobs that are looked at ahead of those that are asked for, and about how many bytes of them are fetched.
const AHEAD_JOBS: usize = 4096;
const AHEAD_BYTES: usize = 2 * 1024 * 1024;

/// Jobs that wait for their time are looked at so long before it.
const AHEAD_MS: u64 = 1_000;

/// So many leases are given out, at least, from one look ahead to the next.
const LOOK_EVERY_MIN: usize = 64;

/// When a queue is to be looked at for jobs that should come into memory. Not part of the state.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Leases since the last look.
    leases: usize,
    /// Jobs that the last look went over.
    looked: usize,
}

impl Queue {
    /// Appends the queue's counters in their form in the index.
    ///
    /// | field | size |
    /// |---|---|
    /// | last job, last token, done total, enqueued total, last LSN | varint each |
    /// | retried, died, expired, cancelled, dropped, purged total | varint each; may be absent |
    /// | paused | 1; may be absent |
    pub fn encode_counters(&self, out: &mut BytesMut) {
        let c = &self.counters;
        let first = [c.last_job.0, c.last_token.0, c.done_total, c.enqueued_total, c.last_lsn.0];
        let more = [
            c.retried_total,
            c.died_total,
            c.expired_total,
            c.cancelled_total,
            c.dropped_total,
            c.purged_total,
        ];
        first.into_iter().chain(more).for_each(|number| put_varint(out, number));
        out.put_u8(u8::from(c.paused));
    }

    /// Reads what [`Queue::encode_counters`] wrote.
    pub fn restore_counters(&mut self, reader: &mut Reader) -> Result<(), Malformed> {
        let c = &mut self.counters;
        c.last_job = JobId(reader.varint()?);
        c.last_token = LeaseToken(reader.varint()?);
        c.done_total = reader.varint()?;
        c.enqueued_total = reader.varint()?;
        c.last_lsn = Lsn(reader.varint()?);
        if reader.is_empty() {
            return Ok(());
        }
        for total in [
            &mut c.retried_total,
            &mut c.died_total,
            &mut c.expired_total,
            &mut c.cancelled_total,
            &mut c.dropped_total,
            &mut c.purged_total,
        ] {
            *total = reader.varint()?;
        }
        c.paused = reader.byte()? != 0;
        Ok(())
    }

    /// Takes an item out of the index: a job, a key, or a schedule.
    pub fn restore_item(&mut self, key: &[u8], value: Bytes, now: Millis) -> Result<(), Malformed> {
        match QueueKey::read(key)? {
            QueueKey::Job(id) => self.restore_job(id, value, now),
            QueueKey::Dedup(key) => self.keys.restore(key, value),
            QueueKey::Schedule(name) => self.schedules.restore(name, &value),
            QueueKey::Work(name) => self.work.restore(name, value),
            QueueKey::Outbox(number) => {
                let job = self.outbox_mut().restore_entry(number, value)?;
                self.jobs.get(job).map(|_| ()).ok_or(Malformed("a job on its way that is not there"))
            }
            QueueKey::OutboxTotals => self.outbox_mut().restore_totals(value),
        }
    }

    fn restore_job(&mut self, id: JobId, value: Bytes, now: Millis) -> Result<(), Malformed> {
        let ReadJob { mut job, names, body } = job::decode(value, now)?;
        if id > self.counters.last_job || job.token > self.counters.last_token {
            return Err(Malformed("a job beyond its queue's last"));
        }
        job.group = self.ready.join(&names.group);
        job.worker = self.workers.take(&names.worker);
        let facets = Facets::of(&job);
        if !self.jobs.insert(id, job) {
            return Err(Malformed("the same job twice"));
        }
        self.arrange(id, now, facets);
        if let Some(body) = body {
            self.jobs.warm(id, body);
        }
        Ok(())
    }

    /// All jobs are there: builds what is derived from them.
    pub fn finish_restore(&mut self) {
        for id in &self.blocked {
            let after = self.jobs.get(*id).and_then(|job| Some(&job.extra()?.after));
            for other in after.into_iter().flatten() {
                self.waiters.entry(*other).or_default().push(*id);
            }
        }
    }

    /// What checkpoints take of it besides jobs.
    fn indexed(&mut self) -> impl Iterator<Item = &mut dyn Indexed<Home>> {
        let outbox = self.outbox.as_mut().into_iter().flat_map(|outbox| outbox.indexed());
        let received = self.received.as_mut().map(|received| received.indexed());
        let every = [self.keys.indexed(), self.schedules.indexed(), self.work.indexed()];
        every.into_iter().chain(outbox).chain(received)
    }

    /// Takes the changes into the sealed state.
    pub fn seal(&mut self) {
        self.changes.seal();
        for items in self.indexed() {
            items.seal();
        }
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
                None => {
                    return self.indexed().fold(count, |count, items| {
                        count + items.collect(home, seals, items_max - count, out)
                    });
                }
                Some(Change::Gone(id)) => {
                    out.extend([Space::Jobs, Space::Bodies].map(|space| removal(space, home.job_key(id))));
                }
                Some(Change::Listed(id)) => self.collect_job(home, seals, id, out),
            }
        }
        items_max
    }

    fn collect_job(&mut self, home: &Home, seals: &Seals, id: JobId, out: &mut Vec<IndexWrite>) {
        let Some(job) = self.jobs.get_mut(id).filter(|job| seals.is_sealed(job.mark)) else { return };
        Seals::written(&mut job.mark);
        if let Some(job) = self.jobs.get(id) {
            let names = self.names_of(job);
            out.push(image(Space::Jobs, home.job_key(id), job::encode(job, &names)));
        }
        let body = self.jobs.store_body(id, seals.sealed_epoch());
        out.extend(body.map(|body| image(Space::Bodies, home.job_key(id), body)));
    }

    /// The sealed state is in the index.
    pub fn sealed_written(&mut self, seals: &Seals) {
        self.jobs.stored(seals.sealed_epoch());
        self.changes.sealed_written();
        for items in self.indexed() {
            items.sealed_written();
        }
    }

    /// The sealed state did not get into the index.
    pub fn unseal(&mut self, seals: &Seals) {
        let (changed, gone) = self.changes.unseal();
        for id in changed {
            self.jobs.not_stored(id, seals.sealed_epoch());
            if let Some(job) = self.jobs.get_mut(id)
                && seals.touch(&mut job.mark) != Touch::Known
            {
                self.changes.list(id);
            }
        }
        for id in gone {
            self.changes.list_gone(id);
        }
        for items in self.indexed() {
            items.unseal(seals);
        }
    }

    /// Takes at most `items_max` jobs of a dropped queue out of memory and appends the keys the index has of them to
    /// `gone`. Returns how many jobs it took: fewer means that is all.
    pub fn bury(&mut self, home: &Home, items_max: usize, gone: &mut Vec<(Space, Bytes)>) -> usize {
        for count in 0..items_max {
            let id = match self.jobs.first() {
                Some(id) => match self.jobs.remove(id) {
                    Some(job) if job.mark.in_index() => id,
                    _ => continue,
                },
                None => match self.changes.next() {
                    Some(Change::Gone(id)) => id,
                    Some(Change::Listed(_)) => continue,
                    None => {
                        return self
                            .indexed()
                            .fold(count, |count, items| count + items.bury(home, items_max - count, gone));
                    }
                },
            };
            gone.extend([Space::Jobs, Space::Bodies].map(|space| (space, home.job_key(id))));
        }
        items_max
    }

    /// The key under which the index has what a job is about.
    pub fn body_key(home: &Home, id: JobId) -> Bytes {
        home.job_key(id)
    }

    /// Whether a job is there and its body is not.
    pub fn is_cold(&self, id: JobId) -> bool {
        self.jobs.get(id).is_some() && self.jobs.body(id).is_none()
    }

    /// Those of some jobs whose bodies are only in the index, and if there are any, the same of jobs that are wanted next.
    pub fn cold(&self, jobs: &[JobId], now: Millis) -> Vec<JobId> {
        let mut cold: Vec<JobId> = jobs.iter().copied().filter(|id| self.is_cold(*id)).collect();
        if cold.is_empty() {
            return cold;
        }
        self.add_ahead(now, &mut cold);
        cold
    }

    /// Adds jobs that are wanted next and whose bodies are only in the index; returns how many jobs it went over.
    fn add_ahead(&self, now: Millis, cold: &mut Vec<JobId>) -> usize {
        let (mut looked, mut bytes) = (0, 0);
        let mut look = |id| {
            looked += 1;
            if self.is_cold(id) {
                bytes += self.jobs.get(id).map_or(0, |job| job.body_bytes as usize);
                cold.push(id);
            }
            looked < AHEAD_JOBS && bytes < AHEAD_BYTES
        };
        let mut more = true;
        self.ready.each(now, |id| {
            more = look(id);
            more
        });
        let soon = (now.plus(AHEAD_MS), JobId(u64::MAX));
        for (_, id) in self.delayed.range(..=soon) {
            more = more && look(*id);
            if !more {
                break;
            }
        }
        cold.sort_unstable();
        cold.dedup();
        looked
    }

    /// Notes a lease; whether the queue is to be looked at for what comes next.
    pub(super) fn note_lease(&mut self) -> bool {
        self.ahead.leases += 1;
        if self.ahead.leases < LOOK_EVERY_MIN.max(self.ahead.looked / 4) {
            return false;
        }
        self.ahead.leases = 0;
        self.jobs.has_cold()
    }

    /// Jobs that are wanted next and whose bodies are only in the index.
    pub fn look_ahead(&mut self, now: Millis) -> Vec<JobId> {
        let mut cold = Vec::new();
        self.ahead.looked = self.add_ahead(now, &mut cold);
        cold
    }
}

impl JobState {
    /// The same on paper, whether or not a tick has seen that its time has come.
    pub fn text(self) -> String {
        match self {
            Self::Delayed { ready_at } | Self::Ready { since: ready_at } => format!("waiting {ready_at}"),
            Self::Blocked { ready_at } => format!("blocked until {ready_at}"),
            Self::Leased { until } => format!("leased until {until}"),
            Self::Dead { since } => format!("dead since {since}"),
            Self::Done { until } => format!("done, kept until {until}"),
        }
    }
}

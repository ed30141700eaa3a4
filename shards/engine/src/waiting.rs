//! Long polls: commands that found nothing and wait for something to arrive, first come first served.

use std::collections::{BTreeMap, VecDeque};

use flowmesh_machine::WaitKey;
use flowmesh_model::{Command, JobId, Millis, PartitionRef, ResourceId};

use crate::sink::ReplySink;

/// A command that waits.
pub struct Waiter {
    /// What to decide again.
    pub command: Command,
    /// Who gets the reply.
    pub sink: Box<dyn ReplySink>,
    /// When it is answered at the latest.
    pub until: Millis,
    /// When it arrived, for its latency.
    pub started_ns: u64,
    id: u64,
}

/// All commands that wait, by what they wait for and by when their wait is over.
#[derive(Default)]
pub struct Waiting {
    by_key: BTreeMap<WaitKey, VecDeque<Waiter>>,
    by_time: BTreeMap<(Millis, u64), WaitKey>,
    next_id: u64,
}

impl Waiting {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.by_time.len()
    }

    /// When the next wait is over.
    pub fn next_due(&self) -> Option<Millis> {
        self.by_time.keys().next().map(|(until, _)| *until)
    }

    /// Adds a command behind those that wait for the same.
    pub fn push(
        &mut self,
        key: WaitKey,
        command: Command,
        sink: Box<dyn ReplySink>,
        until: Millis,
        started_ns: u64,
    ) {
        let id = self.next_id;
        self.next_id += 1;
        self.by_time.insert((until, id), key);
        self.by_key.entry(key).or_default().push_back(Waiter { command, sink, until, started_ns, id });
    }

    /// What commands wait for, in order.
    pub fn keys(&self) -> Vec<WaitKey> {
        self.by_key.keys().copied().collect()
    }

    /// What commands wait for of one resource.
    pub fn keys_of(&self, resource: ResourceId) -> impl Iterator<Item = WaitKey> {
        let at = |partition| WaitKey::Stream(PartitionRef { resource, partition });
        let partitions = self.by_key.range(at(0)..=at(u32::MAX)).map(|(key, _)| *key);
        let job = |job| WaitKey::Job(resource, JobId(job));
        let jobs = self.by_key.range(job(0)..=job(u64::MAX)).map(|(key, _)| *key);
        let whole = [WaitKey::Queue(resource), WaitKey::Room(resource), WaitKey::Group(resource)];
        let whole = whole.into_iter().filter(|key| self.by_key.contains_key(key));
        partitions.chain(jobs).chain(whole)
    }

    /// Takes all that wait for `key`, in order. Those that must wait on are put back with [`Waiting::put_back`].
    pub fn take(&mut self, key: WaitKey) -> VecDeque<Waiter> {
        let waiters = self.by_key.remove(&key).unwrap_or_default();
        for waiter in &waiters {
            self.by_time.remove(&(waiter.until, waiter.id));
        }
        waiters
    }

    /// Puts back what [`Waiting::take`] took, in its old order, before those that came since.
    pub fn put_back(&mut self, key: WaitKey, mut waiters: VecDeque<Waiter>) {
        if waiters.is_empty() {
            return;
        }
        for waiter in &waiters {
            self.by_time.insert((waiter.until, waiter.id), key);
        }
        let queue = self.by_key.entry(key).or_default();
        waiters.append(queue);
        *queue = waiters;
    }

    /// Takes one command whose wait is over at `now`.
    pub fn take_due(&mut self, now: Millis) -> Option<Waiter> {
        let (&(until, id), &key) = self.by_time.first_key_value()?;
        if until > now {
            return None;
        }
        self.by_time.pop_first();
        let queue = self.by_key.get_mut(&key)?;
        let place = queue.iter().position(|waiter| waiter.id == id)?;
        let waiter = queue.remove(place);
        if queue.is_empty() {
            self.by_key.remove(&key);
        }
        waiter
    }

    /// Takes everyone, at shutdown.
    pub fn take_all(&mut self) -> Vec<Waiter> {
        self.by_time.clear();
        std::mem::take(&mut self.by_key).into_values().flatten().collect()
    }

    /// Drops those whose client has gone; returns how many.
    pub fn drop_closed(&mut self) -> usize {
        let before = self.by_time.len();
        self.by_key.retain(|_, waiters| {
            waiters.retain(|waiter| {
                let open = !waiter.sink.is_closed();
                if !open {
                    self.by_time.remove(&(waiter.until, waiter.id));
                }
                open
            });
            !waiters.is_empty()
        });
        before - self.by_time.len()
    }
}

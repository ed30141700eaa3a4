//! Queues: jobs by number, and the orders in which they are wanted.
//!
//! [`job`] is one job and its life, [`decide`] what can be asked of a queue, [`apply`] how facts change it, [`due`] what
//! time brings, [`index`] its part of checkpoints, [`schedule`] what enqueues jobs by itself.
//!
//! Each job that is there is in exactly one of the four orders:
//!
//! | order | by | for |
//! |---|---|---|
//! | `ready` | priority (highest first), then number | reserving |
//! | `delayed` | moment it is ready, then number | promoting |
//! | `leases` | moment the lease ends, then number | expiring |
//! | `dead` | number | keeping |

mod apply;
mod check;
pub(crate) mod decide;
mod due;
mod index;
pub(crate) mod job;
pub(crate) mod schedule;

use std::cmp::Reverse;
use std::collections::BTreeSet;

use bytes::Bytes;
use flowmesh_model::{JobId, LeaseToken, Lsn, Millis};
use rustc_hash::FxBuildHasher;

use crate::changes::Changes;
pub(crate) use apply::Enqueued;
use job::{Job, JobState};
use schedule::Schedules;

/// What a job takes in memory besides its body: itself, its place in the map and in one order, and what the allocator
/// adds to each.
const JOB_BYTES: u64 = (size_of::<Job>() + 24 + 32 + 48) as u64;

type ReadyKey = (Reverse<u8>, JobId);

/// One queue.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// Never iterated. Numbers are ours, so no client can choose them to collide.
    jobs: hashbrown::HashMap<JobId, Box<Job>, FxBuildHasher>,
    ready: BTreeSet<ReadyKey>,
    delayed: BTreeSet<(Millis, JobId)>,
    leases: BTreeSet<(Millis, JobId)>,
    dead: BTreeSet<JobId>,
    counters: Counters,
    /// The last worker's name: usually also the next one's, and then not copied again.
    worker: Bytes,
    changes: Changes<JobId>,
    memory_bytes: u64,
    pub schedules: Schedules,
    /// When it was last put on the list of what woke (see [`crate::woken`]).
    pub woken: u64,
}

/// What a queue counts. Part of its state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    /// The last job's number.
    last_job: JobId,
    /// The last lease's token. Only grows.
    last_token: LeaseToken,
    done_total: u64,
    enqueued_total: u64,
    /// The entry that changed the queue last.
    last_lsn: Lsn,
}

impl Queue {
    fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id).map(Box::as_ref)
    }

    /// An estimate of what it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes + self.schedules.memory_bytes()
    }

    /// Jobs by state: ready, delayed, leased, dead.
    pub fn counts(&self) -> [u64; 4] {
        [self.ready.len(), self.delayed.len(), self.leases.len(), self.dead.len()].map(|n| n as u64)
    }

    /// Puts a job into the order of its state.
    fn arrange(&mut self, id: JobId, priority: u8, state: JobState) {
        let new = match state {
            JobState::Delayed { ready_at } => self.delayed.insert((ready_at, id)),
            JobState::Ready { .. } => self.ready.insert((Reverse(priority), id)),
            JobState::Leased { until } => self.leases.insert((until, id)),
            JobState::Dead { .. } => self.dead.insert(id),
        };
        debug_assert!(new, "a job is in one order once");
    }

    /// Takes a job out of the order of its state.
    fn disarrange(&mut self, id: JobId, priority: u8, state: JobState) {
        let found = match state {
            JobState::Delayed { ready_at } => self.delayed.remove(&(ready_at, id)),
            JobState::Ready { .. } => self.ready.remove(&(Reverse(priority), id)),
            JobState::Leased { until } => self.leases.remove(&(until, id)),
            JobState::Dead { .. } => self.dead.remove(&id),
        };
        debug_assert!(found, "a job is in the order of its state");
    }
}

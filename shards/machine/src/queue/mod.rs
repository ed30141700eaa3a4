//! Queues: jobs by number, and the orders in which they are wanted.
//!
//! [`job`] is one job and its life, [`jobs`] all of them with what they are about, [`ready`] who is next, [`dedup`] the
//! keys by which jobs are recognised, [`schedule`] what enqueues jobs by itself, [`outbox`] those that are on their way to
//! other queues and streams; [`decide`] what can be asked of a queue, [`apply`] how facts change it, [`activity`] how much
//! it does, [`tally`] what of that metrics have and [`work`] how much each worker does of it, [`due`] what time brings,
//! [`index`] its part of checkpoints.
//!
//! Each job that is there is in exactly one of these orders:
//!
//! | order | by | for |
//! |---|---|---|
//! | `ready` | see [`ready`] | reserving |
//! | `delayed` | moment it is ready, then number | promoting |
//! | `blocked` | number | waiting for others |
//! | `leases` | moment the lease ends, then number | expiring |
//! | `dead` | moment it died, then number | keeping |
//! | `done` | moment up to which it is kept, then number | keeping |

mod activity;
mod apply;
mod check;
pub(crate) mod decide;
mod dedup;
mod due;
mod index;
pub(crate) mod job;
pub(crate) mod jobs;
mod names;
mod outbox;
mod ready;
pub(crate) mod schedule;
mod tally;
mod work;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flowmesh_model::settings::{Rate, WhenFull};
use flowmesh_model::{JobId, LeaseToken, Lsn, Millis, QueueSettings};

use crate::changes::Changes;
use crate::received::Received;
use activity::Activity;
pub(crate) use apply::Enqueued;
use dedup::Keys;
use job::{Job, JobNames, JobState};
use jobs::Jobs;
use names::Names;
use outbox::Outbox;
use ready::{Bucket, Ready, Rules};
use schedule::Schedules;
pub use tally::{QueueTally, Spread};
use work::Work;

/// What a job takes in memory beside itself: its place in one order, half of which is room for others.
const ORDER_BYTES: u64 = 32;

/// One queue.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    jobs: Jobs,
    ready: Ready,
    delayed: BTreeSet<(Millis, JobId)>,
    blocked: BTreeSet<JobId>,
    leases: BTreeSet<(Millis, JobId)>,
    dead: BTreeSet<(Millis, JobId)>,
    done: BTreeSet<(Millis, JobId)>,
    /// Waiting jobs with a time to live, by its end.
    expiring: BTreeSet<(Millis, JobId)>,
    /// Jobs that wait for this one.
    waiters: BTreeMap<JobId, Vec<JobId>>,
    /// With a policy that drops: waiting jobs, who goes first first.
    victims: Option<BTreeSet<Victim>>,
    keys: Keys,
    workers: Names,
    work: Work,
    pub schedules: Schedules,
    /// `None`: it never sent a job elsewhere.
    outbox: Option<Box<Outbox>>,
    /// `None`: it never got a job from elsewhere.
    pub received: Option<Box<Received>>,
    counters: Counters,
    waiting_bytes: u64,
    limits: Limits,
    bucket: Bucket,
    /// The last tick's time: a bucket that has a token since then needs no other.
    looked_at: Millis,
    activity: Activity,
    ahead: index::Ahead,
    changes: Changes<JobId>,
    /// When it was last put on the list of what woke, for reservers and for those who wait for room (see
    /// [`crate::woken`]).
    pub woken: u64,
    pub room_woken: u64,
}

/// Who is dropped first: by priority if that counts, then by number.
type Victim = (u8, Reverse<JobId>);

/// What settings say that facts and time go by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Limits {
    concurrency: Option<u32>,
    rate: Option<Rate>,
    dead_retention_ms: Option<u64>,
    quarantine_after: Option<u32>,
    when_full: WhenFull,
    /// Dead letters go somewhere.
    forwards: bool,
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
    retried_total: u64,
    died_total: u64,
    expired_total: u64,
    cancelled_total: u64,
    dropped_total: u64,
    purged_total: u64,
    paused: bool,
}

/// Where a job is kept, and what hangs on that.
#[derive(Clone, Copy, Debug)]
struct Facets {
    state: JobState,
    priority: u8,
    group: u32,
    attempted: bool,
    body_bytes: u32,
    expires_at: Option<Millis>,
}

impl Facets {
    fn of(job: &Job) -> Self {
        Self {
            state: job.state(),
            priority: job.priority,
            group: job.group,
            attempted: job.attempts > 0,
            body_bytes: job.body_bytes,
            expires_at: job.expires_at(),
        }
    }
}

impl Queue {
    /// An estimate of what it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.jobs.memory_bytes()
            + self.jobs.len() * ORDER_BYTES
            + self.ready.memory_bytes()
            + self.keys.memory_bytes()
            + self.workers.memory_bytes()
            + self.work.memory_bytes()
            + self.schedules.memory_bytes()
            + self.outbox_bytes()
            + self.received.as_ref().map_or(0, |received| received.memory_bytes())
    }

    /// Bytes of bodies in memory.
    pub fn hot_bytes(&self) -> u64 {
        self.jobs.hot_bytes()
    }

    /// Drops bodies from memory that the index has; see [`Jobs::evict_bodies`].
    pub fn evict_bodies(&mut self, bytes_max: u64, pages_max: usize, below: u64) -> Option<u64> {
        self.jobs.evict_bodies(bytes_max, pages_max, below)
    }

    /// Takes a body into memory that the index has.
    pub fn warm(&mut self, id: JobId, value: Bytes) -> Result<(), flowmesh_model::codec::Malformed> {
        self.jobs.warm_stored(id, jobs::Body::decode(value)?);
        Ok(())
    }

    /// Somebody waits for the end of a job.
    pub fn watch(&mut self, id: JobId) {
        if let Some(job) = self.jobs.get_mut(id) {
            job.watch();
        }
    }

    /// Jobs by state: ready, delayed, blocked, leased, dead, done.
    pub fn counts(&self) -> [u64; 6] {
        let (ready, held_back) = self.ready.counts();
        let lens = [&self.delayed, &self.leases, &self.dead, &self.done].map(|order| order.len() as u64);
        let [delayed, leased, dead, done] = lens;
        [ready - held_back, delayed, held_back + self.blocked.len() as u64, leased, dead, done]
    }

    /// What it has done since this was last taken, if it has done anything.
    pub fn take_tally(&mut self) -> Option<Box<QueueTally>> {
        self.activity.take_tally()
    }

    /// How many jobs wait for a worker, their time or others.
    pub fn waiting(&self) -> u64 {
        self.ready.counts().0 + (self.delayed.len() + self.blocked.len()) as u64
    }

    /// How many jobs may be leased at `now`, if there are any.
    fn room(&self, now: Millis) -> u64 {
        if self.counters.paused {
            return 0;
        }
        let limit = self.limits.concurrency.map_or(u64::MAX, u64::from);
        let room = limit.saturating_sub(self.leases.len() as u64);
        room.min(self.limits.rate.map_or(u64::MAX, |rate| self.bucket.allows(rate, now)))
    }

    /// Whether a job can be leased at `now`.
    pub fn is_leasable(&self, now: Millis) -> bool {
        self.ready.any() && self.room(now) > 0
    }

    /// Takes over what settings say.
    pub fn configure(&mut self, settings: &QueueSettings, now: Millis) {
        let (aging_ms, group_rate) = (settings.priority_aging_ms.unwrap_or(0), settings.group_rate);
        let rules = Rules { aging_ms, group_concurrency: settings.group_concurrency, group_rate };
        let when_full = self.limits.when_full;
        self.limits = Limits {
            concurrency: settings.concurrency,
            rate: settings.rate,
            dead_retention_ms: settings.dead_retention_ms,
            quarantine_after: settings.quarantine_after,
            when_full: settings.when_full,
            forwards: settings.dead_letters_to.is_some(),
        };
        if rules.aging_ms == self.ready.rules().aging_ms {
            self.ready.configure(rules, now);
        } else {
            self.rank_anew(rules, now);
        }
        if when_full != settings.when_full {
            let drops = matches!(settings.when_full, WhenFull::DropOldest | WhenFull::DropLowestPriority);
            let waiting = || self.jobs.iter().filter(|(_, job)| job.state().is_waiting());
            self.victims = drops.then(|| waiting().map(|(id, job)| self.victim(id, job.priority)).collect());
        }
    }

    /// Puts what is ready in another order.
    fn rank_anew(&mut self, rules: Rules, now: Millis) {
        let ready: Vec<_> = self
            .jobs
            .iter()
            .filter_map(|(id, job)| match job.state() {
                JobState::Ready { since } => Some((id, job.group, job.priority, since)),
                _ => None,
            })
            .collect();
        for (id, group, priority, since) in &ready {
            let rank = self.ready.rules().rank(*priority, *since);
            self.ready.remove(*id, *group, rank, now);
        }
        self.ready.configure(rules, now);
        for (id, group, priority, since) in ready {
            self.ready.insert(id, group, rules.rank(priority, since), now);
        }
    }

    fn victim(&self, id: JobId, priority: u8) -> Victim {
        match self.limits.when_full {
            WhenFull::DropLowestPriority => (priority, Reverse(id)),
            // The oldest first: the smallest number is the greatest of these.
            _ => (0, Reverse(JobId(u64::MAX - id.0))),
        }
    }

    /// Which job that is.
    fn victim_id(&self, (_, Reverse(id)): Victim) -> JobId {
        match self.limits.when_full {
            WhenFull::DropLowestPriority => id,
            _ => JobId(u64::MAX - id.0),
        }
    }

    /// What the job names that the queue keeps once for all.
    fn names_of(&self, job: &Job) -> JobNames {
        JobNames { group: self.ready.key(job.group), worker: self.workers.text(job.worker) }
    }

    /// Puts a job into the order of its state.
    fn arrange(&mut self, id: JobId, now: Millis, of: Facets) {
        let Facets { state, priority, group, attempted, body_bytes, expires_at } = of;
        let new = match state {
            JobState::Delayed { ready_at } => {
                self.ready.retrying(group, i32::from(attempted), now);
                self.delayed.insert((ready_at, id))
            }
            JobState::Ready { since } => {
                let rank = self.ready.rules().rank(priority, since);
                self.ready.insert(id, group, rank, now)
            }
            JobState::Blocked { .. } => self.blocked.insert(id),
            JobState::Leased { until } => {
                self.ready.leased(group, 1, now);
                self.leases.insert((until, id))
            }
            JobState::Dead { since } => self.dead.insert((since, id)),
            JobState::Done { until } => self.done.insert((until, id)),
        };
        debug_assert!(new, "a job is in one order once");
        if state.is_waiting() {
            self.waiting_bytes += u64::from(body_bytes);
            self.expiring.extend(expires_at.map(|at| (at, id)));
            let victim = self.victim(id, priority);
            self.victims.as_mut().into_iter().for_each(|victims| {
                victims.insert(victim);
            });
        }
    }

    /// Takes a job out of the order of its state.
    fn disarrange(&mut self, id: JobId, now: Millis, of: Facets) {
        let Facets { state, priority, group, attempted, body_bytes, expires_at } = of;
        let found = match state {
            JobState::Delayed { ready_at } => {
                self.ready.retrying(group, -i32::from(attempted), now);
                self.delayed.remove(&(ready_at, id))
            }
            JobState::Ready { since } => {
                let rank = self.ready.rules().rank(priority, since);
                self.ready.remove(id, group, rank, now)
            }
            JobState::Blocked { .. } => self.blocked.remove(&id),
            JobState::Leased { until } => {
                self.ready.leased(group, -1, now);
                self.leases.remove(&(until, id))
            }
            JobState::Dead { since } => self.dead.remove(&(since, id)),
            JobState::Done { until } => self.done.remove(&(until, id)),
        };
        debug_assert!(found, "a job is in the order of its state");
        if state.is_waiting() {
            self.waiting_bytes -= u64::from(body_bytes);
            if let Some(at) = expires_at {
                self.expiring.remove(&(at, id));
            }
            let victim = self.victim(id, priority);
            if let Some(victims) = &mut self.victims {
                victims.remove(&victim);
            }
        }
    }
}

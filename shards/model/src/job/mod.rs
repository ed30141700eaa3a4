//! Jobs: what can be asked of one beyond being worked on, and what is told about one.
//!
//! [`fact`] is what becomes true of a queue beside the facts every job has.

pub mod fact;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::ids::{JobId, LeaseToken, Millis};
use crate::reject::Reject;

/// How the wait between attempts grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backoff {
    /// Always the first wait.
    Fixed,
    /// The first wait more with each attempt.
    Linear,
    /// Twice as long with each attempt.
    #[default]
    Exponential,
}

impl Backoff {
    /// All of them, by their byte on disk.
    pub const ALL: [Self; 3] = [Self::Fixed, Self::Linear, Self::Exponential];

    /// The word in settings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Linear => "linear",
            Self::Exponential => "exponential",
        }
    }
}

/// When a job that failed is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How the wait grows.
    pub backoff: Backoff,
    /// The wait before the second attempt.
    pub initial_ms: u64,
    /// The longest wait.
    pub max_ms: u64,
    /// By so much a wait may be shorter, so that jobs that failed together do not all come back together.
    pub jitter_percent: u8,
}

impl RetryPolicy {
    /// The wait after the `attempts`-th failed delivery of a job. The jitter depends on both and on nothing else.
    #[must_use]
    pub fn delay_ms(&self, job: JobId, attempts: u32) -> u64 {
        let steps = attempts.max(1);
        let factor = match self.backoff {
            Backoff::Fixed => 1,
            Backoff::Linear => u64::from(steps),
            Backoff::Exponential => 1 << (steps - 1).min(63),
        };
        let delay_ms = self.initial_ms.saturating_mul(factor).min(self.max_ms);
        let mut seed = [0; 12];
        seed[..8].copy_from_slice(&job.0.to_le_bytes());
        seed[8..].copy_from_slice(&attempts.to_le_bytes());
        let share = u128::from(self.jitter_percent) * u128::from(xxh3_64(&seed) >> 32);
        let off = u128::from(delay_ms) * share / (100 << 32);
        delay_ms - u64::try_from(off).unwrap_or(delay_ms)
    }
}

/// By which a job is recognised that is enqueued again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobKey {
    /// The key.
    pub key: Bytes,
    /// For so long from the first time on, whatever becomes of the job; `None`: until the job has ended.
    pub window_ms: Option<u64>,
}

/// A job that another one waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobRef {
    /// By its place in the same batch, from 0.
    InBatch(u32),
    /// By its number.
    Job(JobId),
}

/// What a job has that most have not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobOptions {
    /// Ready at this time; not with a delay.
    pub run_at: Option<Millis>,
    /// Removed if no worker has it so many milliseconds after it was enqueued.
    pub ttl_ms: Option<u64>,
    /// Its own retries; `None`: the queue's.
    pub retry: Option<RetryPolicy>,
    /// Enqueued once, however often it comes.
    pub key: Option<JobKey>,
    /// Jobs of a group are worked on in order, so many at a time as the queue's `group_concurrency`. Empty: no group.
    pub group: Bytes,
    /// Waits for these to be done.
    pub after: Vec<JobRef>,
    /// Goes on however those it waits for end, not only once they are done.
    pub after_any_end: bool,
}

/// How a worker gives a job back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NackKind {
    /// The attempt failed: another one follows, unless it was the last.
    #[default]
    Failed,
    /// Another attempt would be of no use: the job is dead.
    Final,
    /// The worker cannot go on with it: the attempt does not count.
    Released,
}

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JobPhase {
    /// To be had.
    Ready,
    /// Waiting for its time.
    Delayed,
    /// With a worker.
    Leased,
    /// Waiting for other jobs.
    Blocked,
    /// Given up, kept.
    Dead,
    /// Done, kept.
    Done,
}

impl JobPhase {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Ready, Self::Delayed, Self::Leased, Self::Blocked, Self::Dead, Self::Done];

    /// The word for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Delayed => "delayed",
            Self::Leased => "leased",
            Self::Blocked => "blocked",
            Self::Dead => "dead",
            Self::Done => "done",
        }
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptEnd {
    /// The worker said that it failed.
    Nacked,
    /// The lease's time was up without an answer.
    Expired,
    /// The worker gave the job back without having tried.
    Released,
    /// As `Expired`, once too often: the job was set aside.
    Quarantined,
    /// The worker said that no other attempt is of use.
    Final,
    /// The job is done.
    Acked,
}

impl AttemptEnd {
    /// All of them, by their byte on disk.
    pub const ALL: [Self; 6] =
        [Self::Nacked, Self::Expired, Self::Released, Self::Quarantined, Self::Final, Self::Acked];

    /// The word for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nacked => "nacked",
            Self::Expired => "expired",
            Self::Released => "released",
            Self::Quarantined => "quarantined",
            Self::Final => "final",
            Self::Acked => "acked",
        }
    }
}

/// An attempt that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// When the job was leased.
    pub began_at: Millis,
    /// When the lease ended.
    pub ended_at: Millis,
    /// How.
    pub end: AttemptEnd,
    /// Who had it.
    pub worker: Bytes,
    /// What the worker said.
    pub error: Bytes,
}

/// What became of a job that another one waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// Which.
    pub job: JobId,
    /// Whether it was done.
    pub done: bool,
    /// What its worker said with the acknowledgement.
    pub result: Bytes,
}

/// All that is known of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobView {
    /// Its number.
    pub job: JobId,
    /// Where it is in its life.
    pub phase: JobPhase,
    /// Ready since; delayed until; leased until; dead or done since. Of a blocked job: not ready before.
    pub moment: Millis,
    /// Higher is sooner.
    pub priority: u8,
    /// Deliveries so far.
    pub attempts: u32,
    /// Deliveries before it is dead.
    pub max_attempts: u32,
    /// When it was enqueued.
    pub enqueued_at: Millis,
    /// Removed then if no worker has it.
    pub expires_at: Option<Millis>,
    /// The token of its last lease, 0 before the first.
    pub token: LeaseToken,
    /// Who has it; empty unless it is leased.
    pub worker: Bytes,
    /// When its lease began, if it is leased.
    pub leased_at: Option<Millis>,
    /// Its group; empty: none.
    pub group: Bytes,
    /// By which it is recognised, if it is.
    pub key: Option<Bytes>,
    /// What its worker said last of how far it is.
    pub progress: Bytes,
    /// What its worker said with the acknowledgement.
    pub result: Bytes,
    /// Whether its worker is asked to stop.
    pub cancel_requested: bool,
    /// Jobs that it still waits for.
    pub waits_for: Vec<JobId>,
    /// Attempts that are over, oldest first; the last [`crate::limits::ATTEMPTS_KEPT_MAX`].
    pub history: Vec<Attempt>,
    /// Packed headers.
    pub headers: Bytes,
    /// What the worker gets.
    pub payload: Bytes,
}

/// Which jobs are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// The error of the last attempt contains this, letter for letter. Empty: any.
    pub error: Bytes,
    /// Has a header of this name and value.
    pub header: Option<(Bytes, Bytes)>,
    /// In its phase since this time or later.
    pub since: Option<Millis>,
    /// In its phase since before this time.
    pub before: Option<Millis>,
    /// Of this group. Empty: any.
    pub group: Bytes,
}

impl JobFilter {
    /// Whether a job's headers must be known.
    #[must_use]
    pub fn looks_at_headers(&self) -> bool {
        self.header.is_some()
    }

    /// Refuses one that can match nothing.
    ///
    /// # Errors
    /// [`Reject::InvalidArgument`].
    pub fn check(&self) -> Result<(), Reject> {
        match (self.since, self.before) {
            (Some(since), Some(before)) if since >= before => Err(Reject::invalid(
                "before_ms",
                format!("is {before}; allowed: after since_ms, which is {since}"),
            )),
            _ => Ok(()),
        }
    }
}

/// Jobs of a command that works on many.
#[derive(Clone, Debug)]
pub enum Which {
    /// These.
    Jobs(crate::Batch<JobId>),
    /// All that match, behind a place: as many as one call looks at.
    Matching(JobFilter, JobCursor),
}

/// How far a walk over jobs has come: by number, of dead and done ones by the moment and then the number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobCursor {
    /// Since when it is dead, or up to when it is kept; 0 for others.
    pub moment: Millis,
    /// The last one looked at.
    pub job: JobId,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(backoff: Backoff, jitter_percent: u8) -> RetryPolicy {
        RetryPolicy { backoff, initial_ms: 100, max_ms: 1_000, jitter_percent }
    }

    #[test]
    fn waits_grow_as_they_are_called() {
        let waits =
            |backoff| [1, 2, 3, 9, 99].map(|attempts| policy(backoff, 0).delay_ms(JobId(1), attempts));
        assert_eq!(waits(Backoff::Fixed), [100; 5]);
        assert_eq!(waits(Backoff::Linear), [100, 200, 300, 900, 1_000]);
        assert_eq!(waits(Backoff::Exponential), [100, 200, 400, 1_000, 1_000]);
    }

    proptest! {
        #[test]
        fn jitter_only_shortens_and_not_by_more_than_it_says(job: u64, attempts in 1u32..50, jitter in 0u8..=100) {
            let wait = policy(Backoff::Linear, jitter).delay_ms(JobId(job), attempts);
            let full = policy(Backoff::Linear, 0).delay_ms(JobId(job), attempts);
            prop_assert!(wait <= full);
            prop_assert!(wait >= full - full * u64::from(jitter) / 100);
        }
    }

    #[test]
    fn jitter_spreads() {
        let waits: std::collections::BTreeSet<u64> =
            (0..100).map(|job| policy(Backoff::Fixed, 50).delay_ms(JobId(job), 1)).collect();
        assert!(waits.len() > 30, "{waits:?}");
    }
}

//! A queue's invariants, and its state as text.

use std::fmt::Write;

use flowmesh_model::JobId;

use super::job::{Job, JobState};
use super::{JOB_BYTES, Queue};
use crate::changes::Seals;

impl Queue {
    fn jobs_in_order(&self) -> Vec<(JobId, &Job)> {
        let mut jobs: Vec<_> = self.jobs.iter().map(|(id, job)| (*id, job.as_ref())).collect();
        jobs.sort_unstable_by_key(|(id, _)| *id);
        jobs
    }

    /// Checks every invariant.
    pub fn check(&self, seals: &Seals) {
        let mut memory_bytes = 0;
        for (id, job) in self.jobs_in_order() {
            assert!(id.0 > 0 && id <= self.counters.last_job);
            assert!(job.token <= self.counters.last_token);
            assert!(job.attempts <= job.max_attempts.max(1), "no delivery beyond the last attempt");
            assert_eq!(job.attempts == 0, job.token.0 == 0);
            let found = match job.state {
                JobState::Delayed { ready_at } => self.delayed.contains(&(ready_at, id)),
                JobState::Ready { .. } => self.ready.contains(&(std::cmp::Reverse(job.priority), id)),
                JobState::Leased { until } => job.attempts > 0 && self.leases.contains(&(until, id)),
                JobState::Dead { .. } => job.last_end.is_some() && self.dead.contains(&id),
            };
            assert!(found, "job {id} is not in the order of its state");
            memory_bytes += JOB_BYTES + job.extra_bytes();
            if seals.is_listed(job.mark) && seals.are_made() {
                assert!(self.changes.has_listed(&id), "job {id} is marked but not listed");
            }
        }
        let in_orders: u64 = self.counts().iter().sum();
        assert_eq!(in_orders, self.jobs.len() as u64, "each job is in one order");
        assert_eq!(self.memory_bytes, memory_bytes);
        self.schedules.check(self.counters.last_job, seals);
        assert!(self.counters.done_total + in_orders <= self.counters.enqueued_total);
    }

    /// The state as text. Delayed and ready are one: only the time tells them apart.
    pub fn dump(&self, out: &mut String) {
        let _ = writeln!(out, "  {:?}", self.counters);
        for (id, job) in self.jobs_in_order() {
            let state = match job.state {
                JobState::Delayed { ready_at } | JobState::Ready { since: ready_at } => {
                    format!("waiting {ready_at}")
                }
                JobState::Leased { until } => format!("leased until {until}"),
                JobState::Dead { since } => format!("dead since {since}"),
            };
            let _ = writeln!(
                out,
                "  job {id} {state} priority {} attempts {}/{} enqueued {} token {} end {:?} worker {:?} error {:?} \
                 headers {:?} payload {:?}",
                job.priority,
                job.attempts,
                job.max_attempts,
                job.enqueued_at,
                job.token,
                job.last_end,
                job.worker,
                bytes::Bytes::copy_from_slice(job.error()),
                job.headers(),
                job.payload(),
            );
        }
        self.schedules.dump(out);
    }
}

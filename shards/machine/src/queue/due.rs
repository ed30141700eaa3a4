//! What time brings: delayed jobs become ready, leases expire.

use bytes::Bytes;
use flowmesh_model::fact::ReturnCause;
use flowmesh_model::{Fact, JobId, Millis, ResourceId};

use super::Queue;
use super::job::JobState;

impl Queue {
    /// When something is due next.
    #[inline]
    pub fn next_due(&self) -> Option<Millis> {
        let (delayed, lease) = (self.delayed.first(), self.leases.first());
        let jobs = match (delayed, lease) {
            (Some((a, _)), Some((b, _))) => Some(*a.min(b)),
            (Some((at, _)), None) | (None, Some((at, _))) => Some(*at),
            (None, None) => None,
        };
        match (jobs, self.schedules.next_due()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Moves at most `jobs_max` jobs whose time has come from `delayed` to `ready`: no change of the state, which job is
    /// to be had only depends on the time. Returns how many.
    pub fn promote(&mut self, now: Millis, jobs_max: usize) -> usize {
        for count in 0..jobs_max {
            let Some(&(ready_at, id)) = self.delayed.first().filter(|(ready_at, _)| *ready_at <= now) else {
                return count;
            };
            self.delayed.pop_first();
            if let Some(job) = self.jobs.get_mut(&id) {
                job.state = JobState::Ready { since: ready_at };
                let (priority, state) = (job.priority, job.state);
                self.arrange(id, priority, state);
            }
        }
        jobs_max
    }

    /// Appends what becomes of schedules that are due.
    pub fn fire(&self, queue: ResourceId, now: Millis, facts_max: usize, facts: &mut Vec<Fact>) {
        self.schedules.tick(queue, self.counters.last_job, now, facts_max, facts);
    }

    /// Appends what becomes of leases that are over: ready at once, or dead after the last attempt.
    pub fn expire(&self, queue: ResourceId, now: Millis, facts_max: usize, facts: &mut Vec<Fact>) {
        let over = self.leases.range(..=(now, JobId(u64::MAX)));
        facts.extend(over.take(facts_max).filter_map(|&(_, id)| {
            let job = self.job(id)?;
            let (cause, error) = (ReturnCause::Expired, Bytes::new());
            Some(if job.attempts >= job.max_attempts {
                Fact::JobDied { queue, job: id, cause, error }
            } else {
                Fact::JobReturned { queue, job: id, ready_at: now, cause, error }
            })
        }));
    }
}

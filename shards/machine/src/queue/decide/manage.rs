//! What is done to jobs from outside.

use flowmesh_model::job::fact::{QueueFact, RemovalCause};
use flowmesh_model::job::{JobPhase, Which};
use flowmesh_model::limits::DELAY_MS_MAX;
use flowmesh_model::reply::Cancelled;
use flowmesh_model::settings::within;
use flowmesh_model::{Batch, Fact, JobId, Millis, Reject, Reply};

use super::look::Found;
use super::{Asked, Once};
use crate::decision::Decision;
use crate::limit::items;
use crate::queue::job::JobState;

impl Asked<'_> {
    pub(super) fn cancel(&self, jobs: &[JobId]) -> Result<Decision, Reject> {
        items("jobs", jobs.len())?;
        let mut facts = Batch::new();
        let mut once = Once::of(jobs.iter().copied());
        let outcomes = jobs
            .iter()
            .map(|&job| {
                let found = self.job(job)?;
                let state = found.state();
                match state {
                    JobState::Leased { .. } => {
                        if !found.cancel_requested() && !once.has(job) {
                            facts.push(Fact::Queue(self.id, QueueFact::CancelRequested { job }));
                        }
                        once.note(job);
                        Ok(Cancelled::Requested)
                    }
                    state if !state.is_waiting() => {
                        Err(Reject::WrongPhase { job, phase: state.phase(), wanted: "waiting or leased" })
                    }
                    _ if once.has(job) => Err(Reject::JobNotFound { job }),
                    _ => {
                        once.note(job);
                        facts.push(self.removed(job, RemovalCause::Cancelled));
                        Ok(Cancelled::Removed)
                    }
                }
            })
            .collect();
        Ok(self.change_or_answer(facts, Reply::Cancelled(outcomes)))
    }

    fn removed(&self, job: JobId, cause: RemovalCause) -> Fact {
        Fact::Queue(self.id, QueueFact::Removed { job, cause })
    }

    pub(super) fn change(
        &self,
        job: JobId,
        priority: Option<u8>,
        ready_at: Option<Millis>,
    ) -> Result<Decision, Reject> {
        if let Some(at) = ready_at {
            within("run_at_ms", at.0, 1, self.now.plus(DELAY_MS_MAX).0)?;
        }
        let found = self.job(job)?;
        let state = found.state();
        if !state.is_waiting() {
            return Err(Reject::WrongPhase { job, phase: state.phase(), wanted: "waiting" });
        }
        let (is, is_at) = (found.priority, found.moment());
        let (priority, ready_at) = (priority.unwrap_or(is), ready_at.unwrap_or(is_at));
        let settled = Reply::Settled(Batch::from_elem(Ok(()), 1));
        if (priority, ready_at) == (is, is_at) {
            return Ok(self.answer(settled));
        }
        let fact = Fact::Queue(self.id, QueueFact::Changed { job, priority, ready_at });
        Ok(Decision::Change { facts: Batch::from_elem(fact, 1), reply: settled })
    }

    pub(super) fn redrive(
        &self,
        which: &Which,
        per_second: Option<u32>,
        delay_ms: u64,
    ) -> Result<Decision, Reject> {
        within("delay_ms", delay_ms, 0, DELAY_MS_MAX)?;
        per_second.map_or(Ok(()), |rate| within("per_second", u64::from(rate), 1, u64::from(u32::MAX)))?;
        let (jobs, next) = match self.swept(which, JobPhase::Dead, usize::MAX)? {
            Found::Cold(jobs) => return Ok(Decision::Warm(self.id, jobs)),
            Found::Jobs { jobs, next } => (jobs, next),
        };
        let count = jobs.len() as u64;
        let facts = (0u64..)
            .zip(jobs)
            .map(|(place, job)| {
                let later_ms = per_second.map_or(0, |rate| place * 1_000 / u64::from(rate));
                let ready_at = self.now.plus(delay_ms + later_ms);
                Fact::Queue(self.id, QueueFact::Redriven { job, ready_at })
            })
            .collect();
        Ok(self.change_or_answer(facts, Reply::Swept { count, next }))
    }

    pub(super) fn purge(&self, which: &Which, phase: JobPhase) -> Result<Decision, Reject> {
        if !matches!(phase, JobPhase::Dead | JobPhase::Done) {
            let reason = format!("is {}; allowed: dead, done (cancel removes what waits)", phase.as_str());
            return Err(Reject::invalid("phase", reason));
        }
        let (jobs, next) = match self.swept(which, phase, usize::MAX)? {
            Found::Cold(jobs) => return Ok(Decision::Warm(self.id, jobs)),
            Found::Jobs { jobs, next } => (jobs, next),
        };
        let count = jobs.len() as u64;
        let facts = jobs.into_iter().map(|job| self.removed(job, RemovalCause::Purged)).collect();
        Ok(self.change_or_answer(facts, Reply::Swept { count, next }))
    }

    /// The jobs that are meant, all of them in this phase; of those that match at most so many. Jobs on their way elsewhere
    /// match nothing.
    pub(super) fn swept(&self, which: &Which, phase: JobPhase, jobs_max: usize) -> Result<Found, Reject> {
        match which {
            Which::Matching(filter, after) => {
                filter.check()?;
                Ok(self.find(Some(phase), filter, *after, jobs_max, &|id| !self.queue.is_in_transit(id)))
            }
            Which::Jobs(jobs) => {
                items("jobs", jobs.len())?;
                let mut once = Once::of(jobs.iter().copied());
                let mut found = Vec::with_capacity(jobs.len());
                for &job in jobs {
                    let is = self.job(job)?.phase();
                    if is != phase {
                        return Err(Reject::WrongPhase { job, phase: is, wanted: phase.as_str() });
                    }
                    if self.queue.is_in_transit(job) {
                        return Err(Reject::JobInTransit { job });
                    }
                    if !once.has(job) {
                        found.push(job);
                    }
                    once.note(job);
                }
                Ok(Found::Jobs { jobs: found, next: None })
            }
        }
    }

    pub(super) fn pause(&self, paused: bool) -> Decision {
        let settled = Reply::Settled(Batch::from_elem(Ok(()), 1));
        if self.queue.counters.paused == paused {
            return self.answer(settled);
        }
        let fact = Fact::Queue(self.id, QueueFact::Paused(paused));
        Decision::Change { facts: Batch::from_elem(fact, 1), reply: settled }
    }
}

//! What can be asked of a queue.
//!
//! [`enqueue`] is how jobs come, [`lease`] how workers get them and give them back, [`manage`] what is done to them from
//! outside, [`look`] what can be seen, [`transfer`] how they go to other queues and streams.

pub(super) mod enqueue;
mod lease;
mod look;
mod manage;
pub(crate) mod transfer;

use flowmesh_model::command::LeaseRef;
use flowmesh_model::job::JobPhase;
use flowmesh_model::limits::{BATCH_ITEMS_MAX, RESULT_BYTES_MAX, TEXT_BYTES_MAX, WORKER_JOBS_SHOWN_MAX};
use flowmesh_model::reject::LeaseLost;
use flowmesh_model::reply::QueueActivity;
use flowmesh_model::settings::within;
use flowmesh_model::{Batch, Fact, JobId, Millis, QueueCommand, QueueSettings, Reject, Reply, ResourceId};

use super::Queue;
use super::job::Job;
use crate::decision::Decision;
use crate::limit::{items, size, wait};

/// The queue, its number, its settings, and the time it is.
pub(crate) struct Asked<'a> {
    pub queue: &'a Queue,
    pub id: ResourceId,
    pub settings: &'a QueueSettings,
    pub now: Millis,
}

impl Asked<'_> {
    pub fn decide(&self, command: &QueueCommand) -> Result<Decision, Reject> {
        match command {
            QueueCommand::Enqueue { jobs, wait_until } => {
                wait(*wait_until, self.now)?;
                self.enqueue(jobs, *wait_until)
            }
            QueueCommand::Reserve { jobs_max, visibility_timeout_ms, worker, wait_until } => {
                within("jobs_max", u64::from(*jobs_max), 1, BATCH_ITEMS_MAX as u64)?;
                size("worker", worker, TEXT_BYTES_MAX)?;
                wait(*wait_until, self.now)?;
                let until = self.visible_at(*visibility_timeout_ms)?;
                Ok(self.reserve(*jobs_max, until, worker, *wait_until))
            }
            QueueCommand::Ack { acks } => self.ack(acks),
            QueueCommand::Nack { nacks } => self.nack(nacks),
            QueueCommand::Extend { leases, visibility_timeout_ms } => {
                items("leases", leases.len())?;
                let until = self.visible_at(*visibility_timeout_ms)?;
                Ok(self.extend(leases, until))
            }
            QueueCommand::Progress { lease, progress } => {
                size("progress", progress, RESULT_BYTES_MAX)?;
                Ok(self.progress(*lease, progress))
            }
            QueueCommand::Cancel { jobs } => self.cancel(jobs),
            QueueCommand::Change { job, priority, ready_at } => self.change(*job, *priority, *ready_at),
            QueueCommand::Redrive { which, per_second, delay_ms } => {
                self.redrive(which, *per_second, *delay_ms)
            }
            QueueCommand::Purge { which, phase } => self.purge(which, *phase),
            QueueCommand::Pause(paused) => Ok(self.pause(*paused)),
            QueueCommand::Get { job, wait_until } => {
                wait(*wait_until, self.now)?;
                self.get(*job, *wait_until)
            }
            QueueCommand::Peek { jobs_max } => self.peek(*jobs_max),
            QueueCommand::List { phase, filter, after, jobs_max, with_bodies } => {
                self.list(*phase, filter, *after, *jobs_max, *with_bodies)
            }
            QueueCommand::Worker { worker, after, jobs_max } => {
                size("worker", worker, TEXT_BYTES_MAX)?;
                within("jobs_max", u64::from(*jobs_max), 0, u64::from(WORKER_JOBS_SHOWN_MAX))?;
                Ok(self.worker(worker, *after, *jobs_max as usize))
            }
            QueueCommand::Schedule(command) => self.schedule(command),
            QueueCommand::Transfer(_) => Err(Reject::Internal("a transfer without a catalog")),
            QueueCommand::Status => {
                let (wait_ms, run_ms) = self.queue.activity.percentiles();
                let last_minute = self.queue.activity.last_minute(self.now);
                let activity = QueueActivity { last_minute, wait_ms, run_ms };
                Ok(self.answer(Reply::QueueStatus(self.status(), Box::new(activity))))
            }
        }
    }

    pub(super) fn answer(&self, reply: Reply) -> Decision {
        Decision::Answer { reply, seen: self.queue.counters.last_lsn }
    }

    fn change_or_answer(&self, facts: Batch<Fact>, reply: Reply) -> Decision {
        if facts.is_empty() { self.answer(reply) } else { Decision::Change { facts, reply } }
    }

    /// The job, if it is there.
    fn job(&self, id: JobId) -> Result<&Job, Reject> {
        self.queue.jobs.get(id).ok_or(Reject::JobNotFound { job: id })
    }

    /// The job, if the lease on it still counts.
    fn check_lease(&self, lease: LeaseRef) -> Result<&Job, Reject> {
        use flowmesh_model::job::AttemptEnd::{Acked, Expired, Final, Nacked, Quarantined, Released};
        let LeaseRef { job: id, token } = lease;
        let lost = |reason| Err(Reject::LeaseLost { job: id, reason });
        let Some(job) = self.queue.jobs.get(id) else {
            let never = id.0 == 0 || id > self.queue.counters.last_job;
            return if never { Err(Reject::JobNotFound { job: id }) } else { lost(LeaseLost::Settled) };
        };
        if token > job.token || token.0 == 0 {
            return Err(Reject::invalid("token", format!("{token} was never given out for job {id}")));
        }
        // What is done is done, kept or not.
        if token < job.token && job.phase() != JobPhase::Done {
            return lost(LeaseLost::Superseded);
        }
        match job.state() {
            super::job::JobState::Leased { until } if until > self.now => Ok(job),
            super::job::JobState::Leased { .. } => lost(LeaseLost::Expired),
            _ => match job.last_attempt().map(|attempt| attempt.end) {
                Some(Expired | Quarantined) => lost(LeaseLost::Expired),
                Some(Nacked | Released | Final | Acked) | None => lost(LeaseLost::Settled),
            },
        }
    }

    /// What must be fetched before these jobs can be handed out.
    fn cold(&self, jobs: impl Iterator<Item = JobId>) -> Option<Decision> {
        let cold: Vec<JobId> = jobs.filter(|id| self.queue.jobs.body(*id).is_none()).collect();
        (!cold.is_empty()).then_some(Decision::Warm(self.id, cold))
    }
}

/// Works on each job of a batch once.
enum Once {
    /// The batch is in ascending order, as reserving gives jobs out: nothing needs to be remembered.
    Ascending,
    /// Jobs worked on so far. Never iterated.
    Seen(hashbrown::HashSet<JobId, rustc_hash::FxBuildHasher>),
}

impl Once {
    fn of(jobs: impl Iterator<Item = JobId>) -> Self {
        if jobs.is_sorted_by(|a, b| a < b) {
            Self::Ascending
        } else {
            Self::Seen(hashbrown::HashSet::default())
        }
    }

    /// Whether the job was worked on before in this batch.
    fn has(&self, job: JobId) -> bool {
        matches!(self, Self::Seen(seen) if seen.contains(&job))
    }

    /// Refuses a job that was settled before in this batch.
    fn check(&self, job: JobId) -> Result<(), Reject> {
        if self.has(job) { Err(Reject::LeaseLost { job, reason: LeaseLost::Settled }) } else { Ok(()) }
    }

    fn note(&mut self, job: JobId) {
        if let Self::Seen(seen) = self {
            seen.insert(job);
        }
    }
}

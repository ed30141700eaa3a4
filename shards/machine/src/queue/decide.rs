//! What can be asked of a queue.

use std::cmp::Reverse;

use bytes::Bytes;
use flowmesh_model::command::{LeaseRef, Nack, NewJob};
use flowmesh_model::fact::ReturnCause;
use flowmesh_model::limits::{
    ATTEMPTS_MAX, BATCH_ITEMS_MAX, DELAY_MS_MAX, ENTRY_BYTES_MAX, REPLY_BYTES_MAX, TEXT_BYTES_MAX,
    VALUE_BYTES_MAX, VISIBILITY_MS_MAX, VISIBILITY_MS_MIN,
};
use flowmesh_model::record::check_headers;
use flowmesh_model::reject::LeaseLost;
use flowmesh_model::reply::{LeasedJob, QueueStatus};
use flowmesh_model::settings::within;
use flowmesh_model::{
    Batch, Fact, JobId, LeaseToken, Millis, QueueCommand, QueueSettings, Reject, Reply, ResourceId,
};
use smallvec::SmallVec;

use super::job::{Job, JobState};
use super::{Queue, ReadyKey};
use crate::decision::{Decision, WaitKey};
use crate::limit::{items, size, wait};

/// A `JobLeased` fact without its worker, at most.
const LEASE_FACT_BYTES: usize = 80;

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
            QueueCommand::Enqueue { jobs } => self.enqueue(jobs),
            QueueCommand::Reserve { jobs_max, visibility_timeout_ms, worker, wait_until } => {
                within("jobs_max", u64::from(*jobs_max), 1, BATCH_ITEMS_MAX as u64)?;
                size("worker", worker, TEXT_BYTES_MAX)?;
                wait(*wait_until, self.now)?;
                let until = self.visible_at(*visibility_timeout_ms)?;
                Ok(self.reserve(*jobs_max, until, worker, *wait_until))
            }
            QueueCommand::Ack { leases } => self.ack(leases),
            QueueCommand::Nack { nacks } => self.nack(nacks),
            QueueCommand::Extend { leases, visibility_timeout_ms } => {
                items("leases", leases.len())?;
                let until = self.visible_at(*visibility_timeout_ms)?;
                Ok(self.extend(leases, until))
            }
            QueueCommand::Status => Ok(self.answer(Reply::QueueStatus(self.status()))),
            QueueCommand::Schedule(command) => self.schedule(command),
        }
    }

    pub(super) fn answer(&self, reply: Reply) -> Decision {
        Decision::Answer { reply, seen: self.queue.counters.last_lsn }
    }

    fn visible_at(&self, timeout_ms: Option<u64>) -> Result<Millis, Reject> {
        let timeout_ms = timeout_ms.unwrap_or(self.settings.visibility_timeout_ms);
        within("visibility_timeout_ms", timeout_ms, VISIBILITY_MS_MIN, VISIBILITY_MS_MAX)?;
        Ok(self.now.plus(timeout_ms))
    }

    fn enqueue(&self, jobs: &[NewJob]) -> Result<Decision, Reject> {
        items("jobs", jobs.len())?;
        let (mut facts, mut ids) = (Batch::with_capacity(jobs.len()), Batch::with_capacity(jobs.len()));
        let mut job = self.queue.counters.last_job;
        for new in jobs {
            check_new(new)?;
            job = JobId(job.0 + 1);
            ids.push(job);
            facts.push(enqueued(self.id, job, new, self.settings, self.now));
        }
        Ok(Decision::Change { facts, reply: Reply::Enqueued(ids) })
    }

    fn reserve(&self, jobs_max: u32, until: Millis, worker: &Bytes, wait_until: Option<Millis>) -> Decision {
        let fit = ENTRY_BYTES_MAX / (LEASE_FACT_BYTES + worker.len());
        let wanted = (jobs_max as usize).min(fit);
        let (mut facts, mut leased, mut bytes) = (Batch::new(), Vec::new(), 0);
        let mut token = self.queue.counters.last_token;
        self.for_each_ready(|id, job| {
            bytes += job.body_bytes();
            if leased.len() == wanted || (bytes > REPLY_BYTES_MAX && !leased.is_empty()) {
                return false;
            }
            if leased.is_empty() {
                let expected = wanted.min(self.queue.ready.len() + 1);
                facts.reserve(expected);
                leased.reserve(expected);
            }
            token = LeaseToken(token.0 + 1);
            facts.push(Fact::JobLeased { queue: self.id, job: id, token, until, worker: worker.clone() });
            leased.push(leased_job(id, job, token, until));
            true
        });
        if !facts.is_empty() {
            return Decision::Change { facts, reply: Reply::Reserved(leased) };
        }
        match wait_until {
            Some(until) if until > self.now => Decision::Wait(WaitKey::Queue(self.id)),
            _ => self.answer(Reply::Reserved(leased)),
        }
    }

    /// Calls `take` with each job that is to be had now, in order, until it says no: those that are ready, merged with
    /// those whose time has come since the last tick.
    fn for_each_ready(&self, mut take: impl FnMut(JobId, &Job) -> bool) {
        let mut come = self.come_due();
        come.sort_unstable();
        let mut come = come.into_iter().peekable();
        let mut ready = self.queue.ready.iter().copied().peekable();
        loop {
            let from_ready = match (ready.peek(), come.peek()) {
                (Some(a), Some(b)) => a < b,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => return,
            };
            let next = if from_ready { ready.next() } else { come.next() };
            let Some((id, job)) = next.and_then(|(_, id)| Some((id, self.queue.job(id)?))) else { return };
            if !take(id, job) {
                return;
            }
        }
    }

    /// Delayed jobs whose time has come: none, except between that time and the next tick.
    fn come_due(&self) -> SmallVec<[ReadyKey; 8]> {
        let due = self.queue.delayed.range(..=(self.now, JobId(u64::MAX)));
        due.filter_map(|&(_, id)| Some((Reverse(self.queue.job(id)?.priority), id))).collect()
    }

    fn ack(&self, leases: &[LeaseRef]) -> Result<Decision, Reject> {
        items("leases", leases.len())?;
        let mut facts = Batch::with_capacity(leases.len());
        let mut once = Once::of(leases.iter().map(|lease| lease.job));
        let outcomes = leases
            .iter()
            .map(|&lease| {
                // A job that is done has no lease any more, whatever the token.
                once.check(lease.job)?;
                self.check_lease(lease)?;
                once.settled(lease.job);
                facts.push(Fact::JobDone { queue: self.id, job: lease.job });
                Ok(())
            })
            .collect();
        Ok(self.change_or_answer(facts, Reply::Settled(outcomes)))
    }

    fn nack(&self, nacks: &[Nack]) -> Result<Decision, Reject> {
        items("nacks", nacks.len())?;
        for nack in nacks {
            size("error", &nack.error, TEXT_BYTES_MAX)?;
            within("delay_ms", nack.delay_ms.unwrap_or(0), 0, DELAY_MS_MAX)?;
        }
        let mut facts = Batch::with_capacity(nacks.len());
        let mut once = Once::of(nacks.iter().map(|nack| nack.lease.job));
        let outcomes = nacks
            .iter()
            .map(|nack| {
                let job = self.check_lease(nack.lease)?;
                once.check(nack.lease.job)?;
                once.settled(nack.lease.job);
                facts.push(self.failed(nack, job));
                Ok(())
            })
            .collect();
        Ok(self.change_or_answer(facts, Reply::Settled(outcomes)))
    }

    fn failed(&self, nack: &Nack, job: &Job) -> Fact {
        let (queue, id, cause, error) = (self.id, nack.lease.job, ReturnCause::Nacked, nack.error.clone());
        if job.attempts >= job.max_attempts {
            return Fact::JobDied { queue, job: id, cause, error };
        }
        let delay_ms = nack.delay_ms.unwrap_or_else(|| self.settings.backoff_ms(job.attempts));
        Fact::JobReturned { queue, job: id, ready_at: self.now.plus(delay_ms), cause, error }
    }

    fn extend(&self, leases: &[LeaseRef], until: Millis) -> Decision {
        let mut facts = Batch::with_capacity(leases.len());
        let outcomes = leases
            .iter()
            .map(|&lease| {
                self.check_lease(lease)?;
                facts.push(Fact::LeaseExtended { queue: self.id, job: lease.job, until });
                Ok(until)
            })
            .collect();
        self.change_or_answer(facts, Reply::Extended(outcomes))
    }

    fn change_or_answer(&self, facts: Batch<Fact>, reply: Reply) -> Decision {
        if facts.is_empty() { self.answer(reply) } else { Decision::Change { facts, reply } }
    }

    /// The job, if the lease on it still counts.
    fn check_lease(&self, lease: LeaseRef) -> Result<&Job, Reject> {
        let LeaseRef { job: id, token } = lease;
        let lost = |reason| Err(Reject::LeaseLost { job: id, reason });
        let Some(job) = self.queue.job(id) else {
            let never = id.0 == 0 || id > self.queue.counters.last_job;
            return if never { Err(Reject::JobNotFound { job: id }) } else { lost(LeaseLost::Settled) };
        };
        if token > job.token || token.0 == 0 {
            return Err(Reject::invalid("token", format!("{token} was never given out for job {id}")));
        }
        if token < job.token {
            return lost(LeaseLost::Superseded);
        }
        match job.state {
            JobState::Leased { until } if until > self.now => Ok(job),
            JobState::Leased { .. } => lost(LeaseLost::Expired),
            JobState::Delayed { .. } | JobState::Ready { .. } | JobState::Dead { .. } => match job.last_end {
                Some(ReturnCause::Expired) => lost(LeaseLost::Expired),
                Some(ReturnCause::Nacked) | None => lost(LeaseLost::Settled),
            },
        }
    }

    pub fn status(&self) -> QueueStatus {
        let come_due = self.queue.delayed.range(..=(self.now, JobId(u64::MAX))).count() as u64;
        let [ready, delayed, leased, dead] = self.queue.counts();
        QueueStatus {
            ready: ready + come_due,
            delayed: delayed - come_due,
            leased,
            dead,
            done_total: self.queue.counters.done_total,
            enqueued_total: self.queue.counters.enqueued_total,
            oldest_ready_ms: self.oldest_ready_ms(),
        }
    }

    /// How long the job has been ready that is next in its priority, the longest over all priorities: without an order
    /// of its own, and exact unless older jobs of the same priority were delayed or came back.
    fn oldest_ready_ms(&self) -> u64 {
        let mut oldest = self.queue.delayed.first().map_or(0, |(ready_at, _)| self.now.since(*ready_at));
        let mut next = self.queue.ready.first();
        while let Some(&(Reverse(priority), id)) = next {
            if let Some(JobState::Ready { since }) = self.queue.job(id).map(|job| job.state) {
                oldest = oldest.max(self.now.since(since));
            }
            let Some(lower) = priority.checked_sub(1) else { break };
            next = self.queue.ready.range((Reverse(lower), JobId(0))..).next();
        }
        oldest
    }
}

/// The fact of a new job.
pub(super) fn enqueued(
    queue: ResourceId,
    job: JobId,
    new: &NewJob,
    settings: &QueueSettings,
    now: Millis,
) -> Fact {
    Fact::JobEnqueued {
        queue,
        job,
        ready_at: now.plus(new.delay_ms),
        max_attempts: new.max_attempts.unwrap_or(settings.max_attempts),
        priority: new.priority,
        headers: new.headers.clone(),
        payload: new.payload.clone(),
    }
}

pub(super) fn check_new(new: &NewJob) -> Result<(), Reject> {
    size("job payload", &new.payload, VALUE_BYTES_MAX)?;
    if !new.headers.is_empty() {
        check_headers(&new.headers)?;
    }
    if new.delay_ms > 0 {
        within("delay_ms", new.delay_ms, 0, DELAY_MS_MAX)?;
    }
    match new.max_attempts {
        None => Ok(()),
        Some(attempts) => within("max_attempts", u64::from(attempts), 1, u64::from(ATTEMPTS_MAX)),
    }
}

fn leased_job(id: JobId, job: &Job, token: LeaseToken, until: Millis) -> LeasedJob {
    LeasedJob {
        job: id,
        token,
        attempt: job.attempts + 1,
        priority: job.priority,
        leased_until: until,
        enqueued_at: job.enqueued_at,
        payload: job.payload(),
        headers: job.headers(),
    }
}

/// Settles each job of a batch once.
enum Once {
    /// The batch is in ascending order, as reserving gives jobs out: nothing needs to be remembered.
    Ascending,
    /// Jobs settled so far. Never iterated.
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

    /// Refuses a job that was settled before in this batch.
    fn check(&self, job: JobId) -> Result<(), Reject> {
        match self {
            Self::Seen(seen) if seen.contains(&job) => {
                Err(Reject::LeaseLost { job, reason: LeaseLost::Settled })
            }
            Self::Seen(_) | Self::Ascending => Ok(()),
        }
    }

    fn settled(&mut self, job: JobId) {
        match self {
            Self::Ascending => {}
            Self::Seen(seen) => {
                seen.insert(job);
            }
        }
    }
}

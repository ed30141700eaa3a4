//! How workers get jobs and give them back.

use bytes::Bytes;
use flowmesh_model::command::{Ack, LeaseRef, Nack};
use flowmesh_model::job::fact::{QueueFact, RemovalCause};
use flowmesh_model::job::{AttemptEnd, NackKind};
use flowmesh_model::limits::{
    DELAY_MS_MAX, ENTRY_BYTES_MAX, REPLY_BYTES_MAX, RESULT_BYTES_MAX, TEXT_BYTES_MAX, VISIBILITY_MS_MAX,
    VISIBILITY_MS_MIN,
};
use flowmesh_model::reply::{Extended, LeasedJob};
use flowmesh_model::settings::within;
use flowmesh_model::{Batch, Fact, JobId, LeaseToken, Millis, Mutation, Reject, Reply};
use smallvec::SmallVec;

use super::{Asked, Once};
use crate::decision::{Decision, WaitKey};
use crate::limit::{items, size};
use crate::queue::job::Job;
use crate::queue::jobs::Body;

/// A `JobLeased` fact without its worker, at most.
const LEASE_FACT_BYTES: usize = 80;

impl Asked<'_> {
    pub(super) fn visible_at(&self, timeout_ms: Option<u64>) -> Result<Millis, Reject> {
        let timeout_ms = timeout_ms.unwrap_or(self.settings.visibility_timeout_ms);
        within("visibility_timeout_ms", timeout_ms, VISIBILITY_MS_MIN, VISIBILITY_MS_MAX)?;
        Ok(self.now.plus(timeout_ms))
    }

    pub(super) fn reserve(
        &self,
        jobs_max: u32,
        until: Millis,
        worker: &Bytes,
        wait_until: Option<Millis>,
    ) -> Decision {
        let fit = ENTRY_BYTES_MAX / (LEASE_FACT_BYTES + worker.len());
        let room = usize::try_from(self.queue.room(self.now)).unwrap_or(usize::MAX);
        let next = self.next_jobs((jobs_max as usize).min(fit).min(room));
        if next.is_empty() {
            return match wait_until {
                Some(until) if until > self.now => Decision::Wait(WaitKey::Queue(self.id)),
                _ => self.answer(Reply::Reserved(Vec::new())),
            };
        }
        let mut leased = Vec::with_capacity(next.len());
        let mut facts = Batch::with_capacity(next.len());
        let mut token = self.queue.counters.last_token;
        if let Some(cold) = self.cold(next.iter().copied()) {
            return cold;
        }
        for id in &next {
            let (Some(job), Some(body)) = (self.queue.jobs.get(*id), self.queue.jobs.body(*id)) else {
                continue;
            };
            token = LeaseToken(token.0 + u64::from(!Mutation::ReuseToken.is_made() || token.0 == 0));
            facts.push(Fact::JobLeased { queue: self.id, job: *id, token, until, worker: worker.clone() });
            leased.push(self.leased_job(*id, job, body, token, until));
        }
        Decision::Change { facts, reply: Reply::Reserved(leased) }
    }

    /// At most so many jobs that are to be had now, in order, as many as fit a reply.
    fn next_jobs(&self, jobs_max: usize) -> SmallVec<[JobId; 8]> {
        let (mut next, mut bytes) = (SmallVec::new(), 0);
        if jobs_max == 0 {
            return next;
        }
        self.queue.ready.each(self.now, |id| {
            let Some(job) = self.queue.jobs.get(id) else { return true };
            // Its time to live is over; the next tick removes it.
            if job.expires_at().is_some_and(|at| at <= self.now) && !Mutation::IgnoreTimeToLive.is_made() {
                return true;
            }
            bytes += job.body_bytes as usize;
            if bytes > REPLY_BYTES_MAX && !next.is_empty() {
                return false;
            }
            next.push(id);
            next.len() < jobs_max
        });
        next
    }

    fn leased_job(&self, id: JobId, job: &Job, body: &Body, token: LeaseToken, until: Millis) -> LeasedJob {
        LeasedJob {
            job: id,
            token,
            attempt: u32::from(job.attempts) + 1,
            priority: job.priority,
            leased_until: until,
            enqueued_at: body.enqueued_at,
            payload: body.payload(),
            headers: body.headers(),
            group: self.queue.ready.key(job.group),
            awaited: job.extra().map_or_else(Vec::new, |extra| extra.awaited.clone()),
        }
    }

    pub(super) fn ack(&self, acks: &[Ack]) -> Result<Decision, Reject> {
        items("leases", acks.len())?;
        for ack in acks {
            size("result", &ack.result, RESULT_BYTES_MAX)?;
        }
        let mut facts = Batch::with_capacity(acks.len());
        let mut once = Once::of(acks.iter().map(|ack| ack.lease.job));
        let outcomes = acks
            .iter()
            .map(|Ack { lease, result }| {
                // A job that is done has no lease any more, whatever the token.
                once.check(lease.job)?;
                self.check_lease(*lease)?;
                once.note(lease.job);
                facts.push(self.done(lease.job, result));
                Ok(())
            })
            .collect();
        Ok(self.change_or_answer(facts, Reply::Settled(outcomes)))
    }

    fn done(&self, job: JobId, result: &Bytes) -> Fact {
        let keep_ms = self.settings.done_retention_ms.unwrap_or(0);
        let keep_ms =
            if result.is_empty() { keep_ms } else { keep_ms.max(self.settings.result_retention_ms) };
        if keep_ms == 0 {
            return Fact::JobDone { queue: self.id, job };
        }
        let (keep_until, result) = (Some(self.now.plus(keep_ms)), result.clone());
        Fact::Queue(self.id, QueueFact::Finished { job, keep_until, result })
    }

    pub(super) fn nack(&self, nacks: &[Nack]) -> Result<Decision, Reject> {
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
                once.note(nack.lease.job);
                facts.push(self.given_back(nack, job));
                Ok(())
            })
            .collect();
        Ok(self.change_or_answer(facts, Reply::Settled(outcomes)))
    }

    fn given_back(&self, nack: &Nack, job: &Job) -> Fact {
        let (queue, id, error) = (self.id, nack.lease.job, nack.error.clone());
        if job.cancel_requested() {
            return Fact::Queue(queue, QueueFact::Removed { job: id, cause: RemovalCause::Cancelled });
        }
        let attempts = u32::from(job.attempts);
        let (cause, delay_ms) = match nack.kind {
            NackKind::Final => return Fact::JobDied { queue, job: id, cause: AttemptEnd::Final, error },
            NackKind::Failed if job.attempts >= job.max_attempts => {
                return Fact::JobDied { queue, job: id, cause: AttemptEnd::Nacked, error };
            }
            NackKind::Failed => {
                let own = job.extra().and_then(|extra| extra.retry);
                let retry = own.unwrap_or_else(|| self.settings.retry());
                (AttemptEnd::Nacked, nack.delay_ms.unwrap_or_else(|| retry.delay_ms(id, attempts)))
            }
            NackKind::Released => (AttemptEnd::Released, nack.delay_ms.unwrap_or(0)),
        };
        Fact::JobReturned { queue, job: id, ready_at: self.now.plus(delay_ms), cause, error }
    }

    pub(super) fn extend(&self, leases: &[LeaseRef], until: Millis) -> Decision {
        let mut facts = Batch::with_capacity(leases.len());
        let outcomes = leases
            .iter()
            .map(|&lease| {
                let cancel_requested = self.check_lease(lease)?.cancel_requested();
                facts.push(Fact::LeaseExtended { queue: self.id, job: lease.job, until });
                Ok(Extended { until, cancel_requested })
            })
            .collect();
        self.change_or_answer(facts, Reply::Extended(outcomes))
    }

    pub(super) fn progress(&self, lease: LeaseRef, progress: &Bytes) -> Decision {
        let outcome = self.check_lease(lease).map(|_| ());
        let fact = QueueFact::Progressed { job: lease.job, progress: progress.clone() };
        let facts = outcome.iter().map(|()| Fact::Queue(self.id, fact.clone())).collect();
        self.change_or_answer(facts, Reply::Settled(Batch::from_elem(outcome, 1)))
    }
}

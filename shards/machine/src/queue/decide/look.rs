//! What can be seen of a queue.

use bytes::Bytes;
use flowmesh_model::job::{JobCursor, JobFilter, JobPhase, JobView};
use flowmesh_model::limits::{BATCH_ITEMS_MAX, JOBS_LOOKED_MAX, REPLY_BYTES_MAX};
use flowmesh_model::record::has_header;
use flowmesh_model::reply::QueueStatus;
use flowmesh_model::settings::within;
use flowmesh_model::worker::{RunningJob, WorkerOnQueue};
use flowmesh_model::{JobId, Millis, Reject, Reply};

use super::Asked;
use crate::decision::{Decision, WaitKey};
use crate::queue::job::{Job, JobState};
use crate::queue::jobs::Body;
use crate::queue::outbox::Outbox;

/// What stands around a job in a reply, about.
const VIEW_BYTES: usize = 256;

/// Jobs that were looked for.
pub(super) enum Found {
    /// What some of them are about must be fetched first.
    Cold(Vec<JobId>),
    /// These, and where to go on.
    Jobs { jobs: Vec<JobId>, next: Option<JobCursor> },
}

impl Asked<'_> {
    pub(super) fn get(&self, id: JobId, wait_until: Option<Millis>) -> Result<Decision, Reject> {
        let job = self.job(id)?;
        let ended = matches!(job.phase(), JobPhase::Done | JobPhase::Dead);
        if !ended && wait_until.is_some_and(|until| until > self.now) {
            return Ok(Decision::Wait(WaitKey::Job(self.id, id)));
        }
        if let Some(cold) = self.cold([id].into_iter()) {
            return Ok(cold);
        }
        Ok(self.answer(Reply::Job(Box::new(self.view(id, job, true)))))
    }

    pub(super) fn peek(&self, jobs_max: u32) -> Result<Decision, Reject> {
        within("jobs_max", u64::from(jobs_max), 1, BATCH_ITEMS_MAX as u64)?;
        let (mut jobs, mut bytes) = (Vec::new(), 0);
        self.queue.ready.each(self.now, |id| {
            bytes += VIEW_BYTES + self.queue.jobs.get(id).map_or(0, |job| job.body_bytes as usize);
            let fits = bytes <= REPLY_BYTES_MAX || jobs.is_empty();
            jobs.extend(fits.then_some(id));
            fits && jobs.len() < jobs_max as usize
        });
        Ok(self.views(&jobs, None, true))
    }

    pub(super) fn list(
        &self,
        phase: Option<JobPhase>,
        filter: &JobFilter,
        after: JobCursor,
        jobs_max: u32,
        with_bodies: bool,
    ) -> Result<Decision, Reject> {
        within("jobs_max", u64::from(jobs_max), 1, BATCH_ITEMS_MAX as u64)?;
        filter.check()?;
        Ok(match self.find(phase, filter, after, jobs_max as usize, &|_| true) {
            Found::Cold(jobs) => Decision::Warm(self.id, jobs),
            Found::Jobs { jobs, next } => self.views(&jobs, next, with_bodies),
        })
    }

    fn views(&self, jobs: &[JobId], next: Option<JobCursor>, with_bodies: bool) -> Decision {
        if let Some(cold) = self.cold(jobs.iter().copied()) {
            return cold;
        }
        let views = jobs.iter().filter_map(|id| Some(self.view(*id, self.queue.jobs.get(*id)?, with_bodies)));
        self.answer(Reply::Jobs { jobs: views.collect(), next })
    }

    /// At most so many jobs that match and are wanted, in order behind a place, as many as fit a reply.
    pub(super) fn find(
        &self,
        phase: Option<JobPhase>,
        filter: &JobFilter,
        after: JobCursor,
        jobs_max: usize,
        wanted: &dyn Fn(JobId) -> bool,
    ) -> Found {
        let from = (after.moment, JobId(after.job.0 + 1));
        let queue = self.queue;
        let in_order: Box<dyn Iterator<Item = (Millis, JobId)>> = match phase {
            Some(JobPhase::Dead) => Box::new(queue.dead.range(from..).copied()),
            Some(JobPhase::Done) => Box::new(queue.done.range(from..).copied()),
            _ => Box::new(queue.jobs.after(after.job).map(|(id, _)| (Millis(0), id))),
        };
        let (mut jobs, mut cold, mut last, mut bytes) = (Vec::new(), Vec::new(), None, 0);
        for (looked, (moment, id)) in in_order.enumerate() {
            if looked == JOBS_LOOKED_MAX || jobs.len() == jobs_max || bytes > REPLY_BYTES_MAX {
                return found(jobs, cold, last);
            }
            last = Some(JobCursor { moment, job: id });
            let Some(job) = queue.jobs.get(id) else { continue };
            if phase.is_some_and(|phase| phase != job.phase()) || !self.matches(job, filter) || !wanted(id) {
                continue;
            }
            let size = VIEW_BYTES + job.body_bytes as usize;
            match (&filter.header, queue.jobs.body(id)) {
                (Some(_), None) => {
                    bytes += size;
                    cold.push(id);
                    continue;
                }
                (Some((name, value)), Some(body)) if !has_header(&body.headers(), name, value) => continue,
                _ => {}
            }
            bytes += size;
            jobs.push(id);
        }
        found(jobs, cold, None)
    }

    fn matches(&self, job: &Job, filter: &JobFilter) -> bool {
        let JobFilter { error, header: _, since, before, group } = filter;
        let contains = |text: &Bytes| text.windows(error.len()).any(|part| part == error);
        (error.is_empty() || job.last_attempt().is_some_and(|attempt| contains(&attempt.error)))
            && (group.is_empty() || self.queue.ready.key(job.group) == group)
            && since.is_none_or(|since| since_when(job) >= since)
            && before.is_none_or(|before| since_when(job) < before)
    }

    /// All that is known of a job.
    fn view(&self, id: JobId, job: &Job, with_bodies: bool) -> JobView {
        let body = self.queue.jobs.body(id);
        let extra = job.extra().cloned().unwrap_or_default();
        let names = self.queue.names_of(job);
        let leased = job.phase() == JobPhase::Leased;
        let shown = body.filter(|_| with_bodies);
        JobView {
            job: id,
            phase: job.phase(),
            moment: job.moment(),
            priority: job.priority,
            attempts: u32::from(job.attempts),
            max_attempts: u32::from(job.max_attempts),
            enqueued_at: body.map_or(Millis(0), |body| body.enqueued_at),
            expires_at: extra.expires_at,
            token: job.token,
            worker: names.worker,
            leased_at: leased.then_some(job.began_at),
            group: names.group,
            key: extra.key,
            progress: extra.progress,
            result: extra.result,
            cancel_requested: job.cancel_requested(),
            waits_for: extra.after,
            history: extra.history,
            headers: shown.map_or_else(Bytes::new, Body::headers),
            payload: shown.map_or_else(Bytes::new, Body::payload),
        }
    }

    /// What is known of whoever reserves jobs under a name.
    pub(super) fn worker(&self, name: &Bytes, after: JobCursor, jobs_max: usize) -> Decision {
        let queue = self.queue;
        let number = queue.workers.number(name);
        let running = number.map_or(0, |number| queue.workers.uses(number));
        let (mut jobs, mut next, mut last) = (Vec::new(), None, after);
        let from = (after.moment, JobId(after.job.0 + 1));
        let leases = queue.leases.range(from..).take(if running == 0 { 0 } else { usize::MAX });
        for (looked, (until, id)) in leases.enumerate() {
            if looked == JOBS_LOOKED_MAX || jobs.len() == jobs_max {
                next = Some(last);
                break;
            }
            last = JobCursor { moment: *until, job: *id };
            let Some(job) = queue.jobs.get(*id).filter(|job| Some(job.worker) == number) else { continue };
            let (since, attempt) = (job.began_at, u32::from(job.attempts));
            jobs.push(RunningJob { job: *id, since, attempt, until: *until });
        }
        let (paused, counts, running) = (queue.counters.paused, queue.work.counts(name), u64::from(running));
        self.answer(Reply::WorkerOnQueue(Box::new(WorkerOnQueue { paused, counts, running, jobs, next })))
    }

    pub fn status(&self) -> QueueStatus {
        let queue = self.queue;
        let (ready, held_back) = queue.ready.counts();
        let c = &queue.counters;
        let outbox = queue.outbox();
        let sent = outbox.map_or_else(Default::default, Outbox::totals);
        QueueStatus {
            ready: ready - held_back,
            delayed: queue.delayed.len() as u64,
            leased: queue.leases.len() as u64,
            blocked: held_back + queue.blocked.len() as u64,
            dead: queue.dead.len() as u64,
            done: queue.done.len() as u64,
            enqueued_total: c.enqueued_total,
            done_total: c.done_total,
            retried_total: c.retried_total,
            died_total: c.died_total,
            expired_total: c.expired_total,
            cancelled_total: c.cancelled_total,
            dropped_total: c.dropped_total,
            purged_total: c.purged_total,
            moved_total: sent.moved,
            copied_total: sent.copied,
            send_failed_total: sent.failed,
            outbox: outbox.map_or(0, |outbox| outbox.len() as u64),
            oldest_ready_ms: self.oldest_ready_ms(),
            waiting_bytes: queue.waiting_bytes,
            paused: c.paused,
        }
    }

    /// How long the job has been ready that is next of its priority or group, the longest of all: without an order of its
    /// own, and exact unless older jobs of the same priority were delayed or came back.
    fn oldest_ready_ms(&self) -> u64 {
        let heads = self.queue.ready.heads().filter_map(|id| self.queue.jobs.get(id));
        let since = heads.filter_map(|job| match job.state() {
            JobState::Ready { since } => Some(since),
            _ => None,
        });
        since.min().map_or(0, |since| self.now.since(since))
    }
}

/// Since when a job is what it is; of one that waits for its time, up to when.
fn since_when(job: &Job) -> Millis {
    match job.phase() {
        JobPhase::Leased => job.began_at,
        JobPhase::Done => job.last_attempt().map_or(Millis(0), |attempt| attempt.ended_at),
        _ => job.moment(),
    }
}

fn found(jobs: Vec<JobId>, cold: Vec<JobId>, next: Option<JobCursor>) -> Found {
    if cold.is_empty() { Found::Jobs { jobs, next } } else { Found::Cold(cold) }
}

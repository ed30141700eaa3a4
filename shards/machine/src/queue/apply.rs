//! How facts change a queue. Whatever contradicts the state is a bug, or another machine's log.

use bytes::Bytes;
use flowmesh_model::fact::ReturnCause;
use flowmesh_model::schedule::fact::ScheduleFact;
use flowmesh_model::{JobId, LeaseToken, Millis};

use super::job::{self, Job, JobState};
use super::{JOB_BYTES, Queue};
use crate::changes::{Touch, image};
use crate::held::Apply;
use flowmesh_model::Space;

/// A new job, as its fact says.
pub(crate) struct Enqueued {
    pub job: JobId,
    pub ready_at: Millis,
    pub max_attempts: u32,
    pub priority: u8,
    pub headers: Bytes,
    pub payload: Bytes,
}

impl Queue {
    /// `JobEnqueued`. Returns whether the job is ready.
    pub fn enqueued(&mut self, cx: &mut Apply<'_>, new: &Enqueued) -> bool {
        assert!(new.job > self.counters.last_job, "job numbers only grow");
        let now = cx.at.time;
        let state = JobState::waiting(new.ready_at, now);
        let mut job =
            Box::new(Job::new(&new.headers, &new.payload, new.priority, new.max_attempts, now, state));
        let touch = cx.seals.touch(&mut job.mark);
        self.memory_bytes += JOB_BYTES + job.extra_bytes();
        self.counters.last_job = new.job;
        self.counters.enqueued_total += 1;
        self.counters.last_lsn = cx.at.lsn;
        self.arrange(new.job, new.priority, state);
        self.jobs.insert(new.job, job);
        if touch != Touch::Known {
            self.list(new.job);
        }
        matches!(state, JobState::Ready { .. })
    }

    /// `JobLeased`.
    pub fn leased(
        &mut self,
        cx: &mut Apply<'_>,
        id: JobId,
        token: LeaseToken,
        until: Millis,
        worker: &Bytes,
    ) {
        assert!(token > self.counters.last_token, "tokens only grow");
        self.counters.last_token = token;
        if self.worker != worker {
            self.worker = Bytes::copy_from_slice(worker);
        }
        let (now, worker) = (cx.at.time, self.worker.clone());
        self.change(cx, id, |job| job.lease(token, until, now, worker));
    }

    /// `LeaseExtended`.
    pub fn extended(&mut self, cx: &mut Apply<'_>, id: JobId, until: Millis) {
        self.change(cx, id, |job| job.extend(until));
    }

    /// `JobReturned`. Returns whether the job is ready.
    pub fn returned(
        &mut self,
        cx: &mut Apply<'_>,
        id: JobId,
        ready_at: Millis,
        cause: ReturnCause,
        error: &Bytes,
    ) -> bool {
        let now = cx.at.time;
        self.change(cx, id, |job| job.give_back(ready_at, now, cause, error));
        ready_at <= now
    }

    /// `JobDied`.
    pub fn died(&mut self, cx: &mut Apply<'_>, id: JobId, cause: ReturnCause, error: &Bytes) {
        let now = cx.at.time;
        self.change(cx, id, |job| job.die(now, cause, error));
    }

    /// `JobDone`.
    pub fn done(&mut self, cx: &mut Apply<'_>, id: JobId) {
        let mut job = self.jobs.remove(&id).unwrap_or_else(|| panic!("no such job: {id}"));
        job.assert_leased();
        if cx.seals.touch(&mut job.mark) == Touch::CaptureAndList {
            cx.seals.capture(image(Space::Jobs, cx.home.job_key(id), job::encode(&job)));
        }
        if job.mark.in_index() {
            self.changes.list_gone(id);
        }
        self.disarrange(id, job.priority, job.state);
        self.memory_bytes -= JOB_BYTES + job.extra_bytes();
        self.counters.done_total += 1;
        self.counters.last_lsn = cx.at.lsn;
    }

    /// What became true of a schedule.
    pub fn schedule(&mut self, cx: &mut Apply<'_>, fact: ScheduleFact) {
        self.schedules.apply(cx, fact);
        self.counters.last_lsn = cx.at.lsn;
    }

    /// Changes a job and its place in the orders.
    fn change(&mut self, cx: &mut Apply<'_>, id: JobId, change: impl FnOnce(&mut Job)) {
        let job = self.jobs.get_mut(&id).unwrap_or_else(|| panic!("no such job: {id}"));
        let touch = cx.seals.touch(&mut job.mark);
        if touch == Touch::CaptureAndList {
            cx.seals.capture(image(Space::Jobs, cx.home.job_key(id), job::encode(job)));
        }
        let (priority, before, extra) = (job.priority, job.state, job.extra_bytes());
        change(job);
        let (after, extra_after) = (job.state, job.extra_bytes());
        self.memory_bytes = self.memory_bytes + extra_after - extra;
        self.disarrange(id, priority, before);
        self.arrange(id, priority, after);
        self.counters.last_lsn = cx.at.lsn;
        if touch != Touch::Known {
            self.list(id);
        }
    }

    /// Lists a change of a job that is there: of one that is not, thinning out would forget it.
    fn list(&mut self, id: JobId) {
        self.changes.list(id);
        if self.changes.is_stale(self.jobs.len()) {
            self.changes.thin(|id| self.jobs.contains_key(id));
        }
    }
}

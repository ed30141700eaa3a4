//! How facts change a queue. Whatever contradicts the state is a bug, or another machine's log.

use bytes::Bytes;
use flowmesh_model::job::fact::{EnqueuedOptions, QueueFact, RemovalCause};
use flowmesh_model::job::{AttemptEnd, JobPhase};
use flowmesh_model::schedule::fact::ScheduleFact;
use flowmesh_model::{JobId, LeaseToken, Millis, Mutation, ResourceId, Space};

use super::activity::Event;
use super::job::{self, Extra, Job, JobState};
use super::jobs::Body;
use super::{Facets, Queue, dedup};
use crate::changes::{Touch, image};
use crate::decision::WaitKey;
use crate::held::Apply;

/// A new job, as its fact says.
pub(crate) struct Enqueued {
    pub job: JobId,
    pub ready_at: Millis,
    pub max_attempts: u32,
    pub priority: u8,
    pub headers: Bytes,
    pub payload: Bytes,
    pub options: Option<Box<EnqueuedOptions>>,
}

impl Queue {
    /// `JobEnqueued`.
    pub fn enqueued(&mut self, cx: &mut Apply<'_>, new: &Enqueued) {
        assert!(new.job > self.counters.last_job, "job numbers only grow");
        let now = cx.at.time;
        let body = Body::new(&new.headers, &new.payload, now);
        let state = JobState::waiting(new.ready_at, now);
        let mut job = Job::new(new.priority, new.max_attempts, body.len(), state);
        if let Some(options) = new.options.as_deref() {
            self.set_options(cx, new, options, &mut job);
        }
        let listed = cx.seals.touch(&mut job.mark) != Touch::Known;
        self.counters.last_job = new.job;
        self.counters.enqueued_total += 1;
        self.activity.count(Event::Enqueued, now);
        self.counters.last_lsn = cx.at.lsn;
        let facets = Facets::of(&job);
        self.jobs.insert(new.job, job);
        self.jobs.warm(new.job, body);
        self.arrange(new.job, now, facets);
        if listed {
            self.list(new.job);
        }
    }

    fn set_options(&mut self, cx: &mut Apply<'_>, new: &Enqueued, options: &EnqueuedOptions, job: &mut Job) {
        job.group = self.ready.join(&options.group);
        if let Some((key, until)) = &options.key {
            self.keys.add(cx, key, new.job, *until, dedup::digest(&new.payload));
        }
        let key = options.key.as_ref().map(|(key, _)| Bytes::copy_from_slice(key));
        if options.expires_at.is_some() || options.retry.is_some() || key.is_some() {
            let extra = job.extra_mut();
            (extra.expires_at, extra.retry, extra.key) = (options.expires_at, options.retry, key);
        }
        if options.after.is_empty() {
            return;
        }
        if options.after_any_end {
            job.set_after_any_end();
        }
        job.extra_mut().after.clone_from(&options.after);
        let mut waits = false;
        for other in &options.after {
            let (phase, result) = match self.jobs.get(*other) {
                Some(other) => {
                    (Some(other.phase()), other.extra().map_or_else(Bytes::new, |extra| extra.result.clone()))
                }
                None => (None, Bytes::new()),
            };
            match phase {
                Some(JobPhase::Done) => drop(job.awaited(*other, true, &result)),
                Some(JobPhase::Dead) if options.after_any_end => drop(job.awaited(*other, false, &result)),
                _ => {
                    waits = true;
                    self.waiters.entry(*other).or_default().push(new.job);
                }
            }
        }
        if waits {
            job.set_state(JobState::Blocked { ready_at: new.ready_at });
        }
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
        assert!(token > self.counters.last_token || Mutation::ReuseToken.is_made(), "tokens only grow");
        self.counters.last_token = token;
        let (now, worker) = (cx.at.time, self.workers.take(worker));
        if let Some(job) = self.jobs.get(id) {
            self.activity.waited(now.since(job.moment()), now);
        }
        self.change(cx, id, |job| job.lease(token, until, now, worker));
        if let Some(rate) = self.limits.rate {
            self.bucket.take(rate, now);
        }
        let group = self.jobs.get(id).map_or(0, |job| job.group);
        self.ready.served(group, now);
        if self.note_lease() {
            cx.woken.look_ahead(cx.home.id);
        }
    }

    /// `LeaseExtended`.
    pub fn extended(&mut self, cx: &mut Apply<'_>, id: JobId, until: Millis) {
        self.change(cx, id, |job| {
            job.assert_leased();
            job.set_state(JobState::Leased { until });
        });
    }

    /// `JobReturned`.
    pub fn returned(
        &mut self,
        cx: &mut Apply<'_>,
        id: JobId,
        ready_at: Millis,
        cause: AttemptEnd,
        error: &Bytes,
    ) {
        self.note_lost_lease(cause);
        if cause != AttemptEnd::Released {
            self.counters.retried_total += 1;
            self.activity.count(Event::Retried, cx.at.time);
        }
        self.end_lease(cx, id, JobState::waiting(ready_at, cx.at.time), cause, error);
    }

    /// `JobDied`.
    pub fn died(&mut self, cx: &mut Apply<'_>, id: JobId, cause: AttemptEnd, error: &Bytes) {
        let since = cx.at.time;
        self.note_lost_lease(cause);
        self.counters.died_total += 1;
        self.activity.count(Event::Died, since);
        self.end_lease(cx, id, JobState::Dead { since }, cause, error);
        self.ended(cx, id, End::Dead, &Bytes::new());
    }

    /// A lease has ended: for metrics, if nobody said a word.
    fn note_lost_lease(&mut self, cause: AttemptEnd) {
        if matches!(cause, AttemptEnd::Expired | AttemptEnd::Quarantined) {
            self.activity.tally().leases_expired += 1;
        }
    }

    /// Ends a lease: the worker has one job less.
    fn end_lease(
        &mut self,
        cx: &mut Apply<'_>,
        id: JobId,
        state: JobState,
        cause: AttemptEnd,
        error: &Bytes,
    ) {
        let (now, number) = (cx.at.time, self.jobs.get(id).map_or(0, |job| job.worker));
        let worker = self.workers.text(number);
        let of_attempt = worker.clone();
        self.change(cx, id, |job| {
            job.end_lease(now, cause, of_attempt, error);
            job.set_state(state);
        });
        // Not before: the index may have got the job as it was.
        self.workers.give_back(number);
        self.count_end(cx, worker, cause);
    }

    /// A lease ended that was given to this worker.
    fn count_end(&mut self, cx: &mut Apply<'_>, worker: Bytes, end: AttemptEnd) {
        if !worker.is_empty() {
            self.work.ended(cx, &self.workers, worker, end);
        }
    }

    /// `JobDone`.
    pub fn done(&mut self, cx: &mut Apply<'_>, id: JobId) {
        self.finished(cx, id, None, &Bytes::new());
    }

    /// `JobDone` and `Finished`.
    fn finished(&mut self, cx: &mut Apply<'_>, id: JobId, keep_until: Option<Millis>, result: &Bytes) {
        let now = cx.at.time;
        self.counters.done_total += 1;
        self.activity.count(Event::Done, now);
        if let Some(job) = self.jobs.get(id) {
            self.activity.ran(now.since(job.began_at), now);
        }
        if let Some(until) = keep_until {
            self.end_lease(cx, id, JobState::Done { until }, AttemptEnd::Acked, &Bytes::new());
            self.set_extra(id, |extra| extra.result = flowmesh_model::codec::detached(result));
        } else {
            let job = self.jobs.get(id).unwrap_or_else(|| no_such(id));
            job.assert_leased();
            let worker = self.workers.text(job.worker);
            self.remove(cx, id);
            self.count_end(cx, worker, AttemptEnd::Acked);
        }
        self.ended(cx, id, End::Done, result);
    }

    /// What became true beside the life that every job has.
    pub fn apply(&mut self, cx: &mut Apply<'_>, queue: ResourceId, fact: QueueFact) {
        match fact {
            QueueFact::Finished { job, keep_until, result } => {
                self.wake_watchers(cx, queue, job);
                self.finished(cx, job, keep_until, &result);
            }
            QueueFact::Removed { job, cause } => {
                self.wake_watchers(cx, queue, job);
                self.removed(cx, job, cause);
            }
            QueueFact::Progressed { job, progress } => self.change(cx, job, |job| {
                job.assert_leased();
                job.extra_mut().progress = flowmesh_model::codec::detached(&progress);
            }),
            QueueFact::CancelRequested { job } => self.change(cx, job, |job| {
                job.assert_leased();
                job.request_cancel();
            }),
            QueueFact::Changed { job, priority, ready_at } => {
                let now = cx.at.time;
                self.change(cx, job, |job| {
                    job.priority = priority;
                    job.set_state(match job.state() {
                        JobState::Blocked { .. } => JobState::Blocked { ready_at },
                        JobState::Delayed { .. } | JobState::Ready { .. } => JobState::waiting(ready_at, now),
                        other => panic!("a job was changed that does not wait: {other:?}"),
                    });
                });
            }
            QueueFact::Redriven { job, ready_at } => {
                let now = cx.at.time;
                assert!(
                    !self.outbox().is_some_and(|outbox| outbox.has(job)),
                    "a job is redriven that is on its way"
                );
                self.change(cx, job, |job| job.redrive(ready_at, now));
            }
            QueueFact::Paused(paused) => {
                self.counters.paused = paused;
                self.counters.last_lsn = cx.at.lsn;
            }
            QueueFact::KeysForgotten(upto) => {
                self.keys.forgotten(cx, upto);
                self.counters.last_lsn = cx.at.lsn;
            }
        }
    }

    /// What became true of a schedule.
    pub fn apply_schedule(&mut self, cx: &mut Apply<'_>, fact: ScheduleFact) {
        match &fact {
            ScheduleFact::Fired { name, scheduled_for, .. } => {
                let planned = self.schedules.is_time_of(name, *scheduled_for);
                let tally = self.activity.tally();
                tally.firings += 1;
                if planned {
                    tally.lateness.record(cx.at.time.since(*scheduled_for));
                }
            }
            ScheduleFact::Skipped { count, .. } => self.activity.tally().missed += count,
            _ => {}
        }
        self.schedules.apply(cx, fact);
        self.counters.last_lsn = cx.at.lsn;
    }

    /// Whoever waits for the end of a job looks again.
    pub fn wake_watchers(&self, cx: &mut Apply<'_>, queue: ResourceId, id: JobId) {
        if self.jobs.get(id).is_some_and(Job::is_watched) {
            cx.woken.wake(&mut 0, WaitKey::Job(queue, id));
        }
    }

    /// `Removed`.
    fn removed(&mut self, cx: &mut Apply<'_>, id: JobId, cause: RemovalCause) {
        let phase = self.jobs.get(id).unwrap_or_else(|| no_such(id)).phase();
        // Of the same entry: one that it waited for is gone, and it died of that.
        if phase == JobPhase::Dead && matches!(cause, RemovalCause::Expired | RemovalCause::Dropped) {
            return;
        }
        let (counters, tally) = (&mut self.counters, self.activity.tally());
        let (total, noted) = match cause {
            RemovalCause::Cancelled => (&mut counters.cancelled_total, &mut tally.cancelled),
            RemovalCause::Expired => (&mut counters.expired_total, &mut tally.expired),
            RemovalCause::Dropped => (&mut counters.dropped_total, &mut tally.dropped),
            RemovalCause::Purged => (&mut counters.purged_total, &mut tally.purged),
        };
        // What is done was counted when it was.
        let count = u64::from(phase != JobPhase::Done);
        *total += count;
        *noted += count;
        self.remove(cx, id);
        if phase != JobPhase::Done {
            self.ended(cx, id, End::Gone, &Bytes::new());
        }
    }

    /// Takes a job out of everything.
    pub(super) fn remove(&mut self, cx: &mut Apply<'_>, id: JobId) {
        assert!(!self.outbox().is_some_and(|outbox| outbox.has(id)), "a job is gone that is on its way");
        self.touch(cx, id);
        let now = cx.at.time;
        let job = self.jobs.remove(id).unwrap_or_else(|| no_such(id));
        if job.mark.in_index() {
            self.changes.list_gone(id);
        }
        self.disarrange(id, now, Facets::of(&job));
        self.ready.leave(job.group);
        self.workers.give_back(job.worker);
        self.counters.last_lsn = cx.at.lsn;
        let Some(extra) = job.extra() else { return };
        if let Some(key) = &extra.key {
            self.keys.ended(cx, key, id);
        }
        self.wait_no_more(id, &extra.after);
    }

    /// A job does not wait for these any more.
    fn wait_no_more(&mut self, id: JobId, after: &[JobId]) {
        for other in after {
            if let Some(waiters) = self.waiters.get_mut(other) {
                waiters.retain(|waiter| *waiter != id);
                if waiters.is_empty() {
                    self.waiters.remove(other);
                }
            }
        }
    }

    /// A job has come to its end, or to one from which it may come back: those that wait for it go on, wait on, or die.
    pub(super) fn ended(&mut self, cx: &mut Apply<'_>, id: JobId, end: End, result: &Bytes) {
        if end == End::Done
            && let Some(key) = self.jobs.get(id).and_then(|job| job.extra()?.key.clone())
        {
            self.keys.ended(cx, &key, id);
        }
        let now = cx.at.time;
        let mut ends = vec![(id, end)];
        while let Some((ended, end)) = ends.pop() {
            let Some(waiters) = self.waiters.remove(&ended) else { continue };
            let mut still = Vec::new();
            for waiter in waiters {
                let any_end = self.jobs.get(waiter).is_some_and(Job::after_any_end);
                match end {
                    _ if end == End::Done || any_end => self.change(cx, waiter, |job| {
                        if job.awaited(ended, end == End::Done, result)
                            && let JobState::Blocked { ready_at } = job.state()
                        {
                            job.set_state(JobState::waiting(ready_at, now));
                        }
                    }),
                    End::Gone => {
                        self.counters.died_total += 1;
                        self.activity.count(Event::Died, now);
                        let mut after = Vec::new();
                        self.change(cx, waiter, |job| {
                            job.awaited(ended, false, &Bytes::new());
                            after = std::mem::take(&mut job.extra_mut().after);
                            job.give_up(now, format!("job {ended}, which it waits for, is gone"));
                        });
                        self.wait_no_more(waiter, &after);
                        ends.push((waiter, End::Dead));
                    }
                    _ => still.push(waiter),
                }
            }
            if !still.is_empty() {
                self.waiters.insert(ended, still);
            }
        }
    }

    /// Before a job changes: the index gets it as it is, if it must.
    fn touch(&mut self, cx: &mut Apply<'_>, id: JobId) -> Touch {
        let job = self.jobs.get_mut(id).unwrap_or_else(|| no_such(id));
        let touch = cx.seals.touch(&mut job.mark);
        if touch == Touch::CaptureAndList
            && let Some(job) = self.jobs.get(id)
        {
            let names = self.names_of(job);
            cx.seals.capture(image(Space::Jobs, cx.home.job_key(id), job::encode(job, &names)));
            if let Some(body) = self.jobs.store_body(id, cx.seals.sealed_epoch()) {
                cx.seals.capture(image(Space::Bodies, cx.home.job_key(id), body));
            }
        }
        touch
    }

    /// Changes a job and its place in the orders.
    fn change(&mut self, cx: &mut Apply<'_>, id: JobId, change: impl FnOnce(&mut Job)) {
        let (touch, now) = (self.touch(cx, id), cx.at.time);
        let job = self.jobs.get_mut(id).unwrap_or_else(|| no_such(id));
        let (before, bytes_before) = (Facets::of(job), job.extra_bytes());
        change(job);
        let (after, bytes_after) = (Facets::of(job), job.extra_bytes());
        self.jobs.resized(bytes_before, bytes_after);
        self.disarrange(id, now, before);
        self.arrange(id, now, after);
        self.counters.last_lsn = cx.at.lsn;
        if touch != Touch::Known {
            self.list(id);
        }
    }

    /// Changes what a job has that most have not; after its other changes, which have put it on the list.
    fn set_extra(&mut self, id: JobId, set: impl FnOnce(&mut Extra)) {
        let job = self.jobs.get_mut(id).unwrap_or_else(|| no_such(id));
        let before = job.extra_bytes();
        set(job.extra_mut());
        let after = job.extra_bytes();
        self.jobs.resized(before, after);
    }

    /// Lists a change of a job that is there: of one that is not, thinning out would forget it.
    fn list(&mut self, id: JobId) {
        self.changes.list(id);
        if self.changes.is_stale(self.jobs.len() as usize) {
            let jobs = &self.jobs;
            self.changes.thin(|id| jobs.get(*id).is_some());
        }
    }
}

/// How a job ended, for those that wait for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Done,
    /// It may be redriven.
    Dead,
    /// It is never going to be done.
    Gone,
}

fn no_such(id: JobId) -> ! {
    panic!("no such job: {id}")
}

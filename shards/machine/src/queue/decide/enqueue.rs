//! How jobs come.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::Flatten;
use std::option;

use bytes::Bytes;
use flowmesh_model::command::NewJob;
use flowmesh_model::job::fact::{EnqueuedOptions, QueueFact, RemovalCause};
use flowmesh_model::job::{JobKey, JobOptions, JobRef};
use flowmesh_model::limits::{
    ATTEMPTS_MAX, BATCH_ITEMS_MAX, DELAY_MS_MAX, JOB_AFTER_MAX, JOB_KEY_BYTES_MAX, VALUE_BYTES_MAX,
};
use flowmesh_model::record::check_headers;
use flowmesh_model::reply::EnqueuedJob;
use flowmesh_model::settings::{WhenFull, check_retry, within};
use flowmesh_model::{Batch, Fact, JobId, Millis, Reject, Reply};

use super::Asked;
use crate::decision::{Decision, WaitKey};
use crate::limit::{items, size};
use crate::queue::Victim;
use crate::queue::dedup::digest;
use crate::queue::job::Job;

/// When a full queue is worth another try.
const RETRY_AFTER_MS: u64 = 1_000;

/// What the queue has too much of.
pub(in crate::queue) struct Over {
    what: &'static str,
    waiting: u64,
    max: u64,
}

/// Jobs for which room is wanted.
#[derive(Clone, Copy, Debug)]
pub(in crate::queue) struct Wanted {
    jobs: u64,
    bytes: u64,
    /// The lowest priority of them.
    priority: u8,
}

impl Wanted {
    pub fn of<'a>(new: impl Iterator<Item = &'a NewJob>) -> Self {
        let wanted = Self { jobs: 0, bytes: 0, priority: u8::MAX };
        new.fold(wanted, |wanted, job| Self {
            jobs: wanted.jobs + 1,
            bytes: wanted.bytes + body_bytes(job),
            priority: wanted.priority.min(job.priority),
        })
    }
}

/// The room that is left in a queue while new jobs take it.
#[derive(Clone)]
pub(in crate::queue) struct Room<'a> {
    asked: &'a Asked<'a>,
    waiting: u64,
    bytes: u64,
    victims: Flatten<option::Iter<'a, BTreeSet<Victim>>>,
    /// Jobs whose time to live is over are no victims: the same entry may have that they go for that.
    spares_expired: bool,
}

impl<'a> Room<'a> {
    pub fn of(asked: &'a Asked<'a>) -> Self {
        Self {
            asked,
            waiting: asked.queue.waiting(),
            bytes: asked.queue.waiting_bytes,
            victims: asked.queue.victims.iter().flatten(),
            spares_expired: false,
        }
    }

    /// The same, where what has expired goes in the same entry.
    pub fn sparing_expired(self) -> Self {
        Self { spares_expired: true, ..self }
    }

    /// Takes room for new jobs. Returns which jobs are dropped for them, or what there is too much of; then nothing has
    /// changed.
    pub fn take(&mut self, wanted: Wanted) -> Result<Batch<Fact>, Over> {
        let settings = self.asked.settings;
        if wanted.jobs == 0 || (settings.jobs_max.is_none() && settings.bytes_max.is_none()) {
            return Ok(Batch::new());
        }
        let mut left = self.clone();
        let mut facts = Batch::new();
        while let Some(over) = left.over(wanted) {
            let victim = left.next_victim().filter(|(priority, _)| {
                settings.when_full == WhenFull::DropOldest || *priority < wanted.priority
            });
            let Some(victim) = victim.filter(|_| facts.len() < BATCH_ITEMS_MAX) else { return Err(over) };
            let job = self.asked.queue.victim_id(victim);
            left.waiting -= 1;
            left.bytes -= self.asked.queue.jobs.get(job).map_or(0, |job| u64::from(job.body_bytes));
            let dropped = QueueFact::Removed { job, cause: RemovalCause::Dropped };
            facts.push(Fact::Queue(self.asked.id, dropped));
        }
        left.waiting += wanted.jobs;
        left.bytes += wanted.bytes;
        *self = left;
        Ok(facts)
    }

    fn over(&self, wanted: Wanted) -> Option<Over> {
        let settings = self.asked.settings;
        let jobs = settings.jobs_max.filter(|max| self.waiting + wanted.jobs > *max);
        let bytes = settings.bytes_max.filter(|max| self.bytes + wanted.bytes > *max);
        let of_jobs = jobs.map(|max| Over { what: "jobs", waiting: self.waiting, max });
        of_jobs.or_else(|| bytes.map(|max| Over { what: "bytes", waiting: self.bytes, max }))
    }

    fn next_victim(&mut self) -> Option<Victim> {
        let Asked { queue, now, .. } = self.asked;
        let expired = |victim: &Victim| {
            let job = queue.jobs.get(queue.victim_id(*victim));
            job.and_then(Job::expires_at).is_some_and(|at| at <= *now)
        };
        let spares_expired = self.spares_expired;
        self.victims.find(|victim| !(spares_expired && expired(victim))).copied()
    }
}

impl Asked<'_> {
    pub(super) fn enqueue(&self, jobs: &[NewJob], wait_until: Option<Millis>) -> Result<Decision, Reject> {
        items("jobs", jobs.len())?;
        let mut plain = true;
        for job in jobs {
            check_new(job, self.now)?;
            plain &= job.options.is_none();
        }
        let ids = if plain { self.new_numbers(jobs) } else { self.numbers(jobs)? };
        if !plain {
            check_flow(jobs)?;
        }
        let new = jobs.iter().zip(&ids).filter(|(_, id)| !id.existing).map(|(job, _)| job);
        let mut facts = match Room::of(self).take(Wanted::of(new)) {
            Ok(facts) => facts,
            Err(over)
                if self.settings.when_full == WhenFull::Wait
                    && wait_until.is_some_and(|at| at > self.now) =>
            {
                let waiting = self.queue.waiting() > 0;
                return if waiting { Ok(Decision::Wait(WaitKey::Room(self.id))) } else { Err(full(&over)) };
            }
            Err(over) => return Err(full(&over)),
        };
        let dropped: BTreeSet<JobId> = facts.iter().filter_map(dropped).collect();
        facts.reserve(jobs.len());
        for (place, (new, enqueued)) in jobs.iter().zip(&ids).enumerate() {
            if !enqueued.existing {
                let fact = self.enqueued(place, new, enqueued.job, &ids)?;
                check_awaited(place, &fact, &dropped)?;
                facts.push(fact);
            }
        }
        Ok(self.change_or_answer(facts, Reply::Enqueued(ids)))
    }

    pub(super) fn new_numbers(&self, jobs: &[NewJob]) -> Batch<EnqueuedJob> {
        let last = self.queue.counters.last_job.0;
        (last + 1..).take(jobs.len()).map(|job| EnqueuedJob { job: JobId(job), existing: false }).collect()
    }

    /// The jobs' numbers: new ones, or those of jobs with the same keys.
    fn numbers(&self, jobs: &[NewJob]) -> Result<Batch<EnqueuedJob>, Reject> {
        let mut last = self.queue.counters.last_job;
        let mut here: BTreeMap<&Bytes, (JobId, u64)> = BTreeMap::new();
        let mut ids = Batch::with_capacity(jobs.len());
        for new in jobs {
            let key = new.options.as_ref().and_then(|options| options.key.as_ref());
            let known = key.and_then(|JobKey { key, .. }| {
                let digest = digest(&new.payload);
                let here = here.get(key).map(|(job, of)| (*job, *of == digest));
                here.or_else(|| self.queue.keys.find(key, self.now, digest))
            });
            match known {
                Some((job, false)) => return Err(Reject::KeyConflict { job }),
                Some((job, true)) => ids.push(EnqueuedJob { job, existing: true }),
                None => {
                    last = JobId(last.0 + 1);
                    ids.push(EnqueuedJob { job: last, existing: false });
                    if let Some(JobKey { key, .. }) = key {
                        here.insert(key, (last, digest(&new.payload)));
                    }
                }
            }
        }
        Ok(ids)
    }

    /// The fact of a new job, which is the `place`-th of those with these numbers.
    ///
    /// # Errors
    /// `FLOW_MISSING`: it waits for one that is not there.
    pub(in crate::queue) fn enqueued(
        &self,
        place: usize,
        new: &NewJob,
        job: JobId,
        ids: &[EnqueuedJob],
    ) -> Result<Fact, Reject> {
        let run_at = new.options.as_ref().and_then(|options| options.run_at);
        Ok(Fact::JobEnqueued {
            queue: self.id,
            job,
            ready_at: run_at.unwrap_or_else(|| self.now.plus(new.delay_ms)),
            max_attempts: new.max_attempts.unwrap_or(self.settings.max_attempts),
            priority: new.priority,
            headers: new.headers.clone(),
            payload: new.payload.clone(),
            options: match &new.options {
                None => None,
                Some(options) => Some(Box::new(self.options(place, options, ids)?)),
            },
        })
    }

    fn options(
        &self,
        place: usize,
        options: &JobOptions,
        ids: &[EnqueuedJob],
    ) -> Result<EnqueuedOptions, Reject> {
        let missing = |missing: String| Reject::FlowMissing { job: place as u32, missing };
        let mut after = Vec::with_capacity(options.after.len());
        for other in &options.after {
            let (job, existing) = match other {
                JobRef::Job(job) => (*job, true),
                JobRef::InBatch(place) => ids
                    .get(*place as usize)
                    .map(|id| (id.job, id.existing))
                    .ok_or_else(|| missing(format!("job {place} of the batch")))?,
            };
            if existing && self.queue.jobs.get(job).is_none() {
                return Err(missing(format!("job number {job}")));
            }
            if !after.contains(&job) {
                after.push(job);
            }
        }
        let until = |key: &JobKey| key.window_ms.map(|ms| self.now.plus(ms));
        Ok(EnqueuedOptions {
            group: options.group.clone(),
            expires_at: options.ttl_ms.map(|ms| self.now.plus(ms)),
            retry: options.retry,
            key: options.key.as_ref().map(|key| (key.key.clone(), until(key))),
            after,
            after_any_end: options.after_any_end,
        })
    }
}

/// The job that goes to make room.
fn dropped(fact: &Fact) -> Option<JobId> {
    match fact {
        Fact::Queue(_, QueueFact::Removed { job, .. }) => Some(*job),
        _ => None,
    }
}

/// Refuses a job that is to wait for one which is dropped for it: it would wait for ever.
fn check_awaited(place: usize, new: &Fact, dropped: &BTreeSet<JobId>) -> Result<(), Reject> {
    let Fact::JobEnqueued { options: Some(options), .. } = new else { return Ok(()) };
    options.after.iter().find(|job| dropped.contains(job)).map_or(Ok(()), |job| {
        let missing = format!("job number {job}, which is dropped to make room");
        Err(Reject::FlowMissing { job: place as u32, missing })
    })
}

pub(in crate::queue) fn full(over: &Over) -> Reject {
    let Over { what, waiting, max } = *over;
    Reject::QueueFull { what, waiting, max, retry_after_ms: RETRY_AFTER_MS }
}

fn body_bytes(job: &NewJob) -> u64 {
    (job.headers.len() + job.payload.len()) as u64
}

pub(in crate::queue) fn check_new(new: &NewJob, now: Millis) -> Result<(), Reject> {
    size("job payload", &new.payload, VALUE_BYTES_MAX)?;
    if !new.headers.is_empty() {
        check_headers(&new.headers)?;
    }
    if new.delay_ms > 0 {
        within("delay_ms", new.delay_ms, 0, DELAY_MS_MAX)?;
    }
    if let Some(attempts) = new.max_attempts {
        within("max_attempts", u64::from(attempts), 1, u64::from(ATTEMPTS_MAX))?;
    }
    match new.options.as_deref() {
        None => Ok(()),
        Some(options) => check_options(new, options, now),
    }
}

fn check_options(new: &NewJob, options: &JobOptions, now: Millis) -> Result<(), Reject> {
    if let Some(at) = options.run_at {
        if new.delay_ms > 0 {
            return Err(Reject::invalid("run_at_ms", "goes without delay_ms; give one of them"));
        }
        within("run_at_ms", at.0, 1, now.plus(DELAY_MS_MAX).0)?;
    }
    if let Some(ms) = options.ttl_ms {
        within("ttl_ms", ms, 1, DELAY_MS_MAX)?;
    }
    if let Some(retry) = &options.retry {
        check_retry(retry)?;
    }
    size("group", &options.group, JOB_KEY_BYTES_MAX)?;
    if let Some(JobKey { key, window_ms }) = &options.key {
        within("key", key.len() as u64, 1, JOB_KEY_BYTES_MAX as u64)?;
        window_ms.map_or(Ok(()), |ms| within("key_window_ms", ms, 1, DELAY_MS_MAX))?;
    }
    within("after", options.after.len() as u64, 0, JOB_AFTER_MAX as u64)
}

/// Refuses jobs that wait for each other in a circle: takes away, again and again, those that wait for none of the batch.
fn check_flow(jobs: &[NewJob]) -> Result<(), Reject> {
    let after = |job: &NewJob| -> Vec<u32> {
        let refs = job.options.as_ref().map_or(&[][..], |options| &options.after);
        refs.iter()
            .filter_map(|of| if let JobRef::InBatch(place) = of { Some(*place) } else { None })
            .collect()
    };
    let mut waits: Vec<usize> = Vec::with_capacity(jobs.len());
    let mut waited_by: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (place, job) in (0u32..).zip(jobs) {
        let after = after(job);
        waits.push(after.len());
        for of in after {
            waited_by.entry(of).or_default().push(place);
        }
    }
    let mut free: Vec<u32> =
        (0u32..).zip(&waits).filter(|(_, waits)| **waits == 0).map(|(place, _)| place).collect();
    let mut left = jobs.len();
    while let Some(place) = free.pop() {
        left -= 1;
        for waiter in waited_by.remove(&place).into_iter().flatten() {
            if let Some(waits) = waits.get_mut(waiter as usize) {
                *waits -= 1;
                if *waits == 0 {
                    free.push(waiter);
                }
            }
        }
    }
    // A place beyond the batch is missing, which is said later.
    let beyond = waited_by.keys().any(|place| *place as usize >= jobs.len());
    match (0u32..).zip(&waits).find(|(_, waits)| **waits > 0) {
        Some((job, _)) if left > 0 && !beyond => Err(Reject::FlowCycle { job }),
        _ => Ok(()),
    }
}

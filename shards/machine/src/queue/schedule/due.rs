//! What time brings: schedules fire, what was missed is left out, what is finished is forgotten.
//!
//! A firing is the job and `Fired`, in one entry. A time that has come fires once for all of these: it is noticed in time,
//! up to [`SCHEDULE_MISSED_AFTER_MS`] late; or it was missed, and the schedule's policy wants it all the same:
//!
//! | policy | of the times that have come, if the first was missed |
//! |---|---|
//! | `skip` | those fire that were not missed |
//! | `once` | the last fires |
//! | `all` | the last [`SCHEDULE_CATCH_UP_MAX`] fire |
//!
//! A firing obeys the queue's limits as who enqueues does: it drops what the queue says is to be dropped, and where the queue
//! refuses it, nothing becomes of the schedule: it is **held back**, stays due, and is looked at again after
//! [`SCHEDULE_RETRY_MS`]. Whether its times were missed counts once there is room.

use bytes::{Bytes, BytesMut};
use flowmesh_model::command::NewJob;
use flowmesh_model::group::Name;
use flowmesh_model::limits::{
    BATCH_ITEMS_MAX, SCHEDULE_CATCH_UP_MAX, SCHEDULE_MISSED_AFTER_MS, SCHEDULE_RETRY_MS,
    SCHEDULE_SKIPPED_COUNTED_MAX,
};
use flowmesh_model::record::put_header;
use flowmesh_model::schedule::fact::ScheduleFact;
use flowmesh_model::schedule::{MissedPolicy, SCHEDULE_HEADER, SCHEDULED_AT_HEADER, ScheduleSpec};
use flowmesh_model::{Fact, JobId, Millis};

use super::{Schedule, Schedules, Times};
use crate::queue::decide::Asked;
use crate::queue::decide::enqueue::{Room, Wanted};

/// Schedules that one tick looks at: computing the times of one takes some 20 µs, or 1 ms where many were missed.
const SCHEDULES_PER_TICK: usize = 64;

/// Bytes of jobs that one tick enqueues in a queue, give or take one: they are one entry.
const JOB_BYTES_PER_TICK: usize = 1024 * 1024;

/// The facts of a firing.
const FACTS_PER_FIRING: usize = 2;

impl Schedules {
    /// When something is due next.
    #[inline]
    pub fn next_due(&self) -> Option<Millis> {
        self.due.first().filter(|_| self.awake).map(|(due, _)| *due)
    }
}

impl Schedules {
    /// The queue has no room for the jobs of these: another look follows later.
    pub fn hold_back(&mut self, names: Vec<Name>, now: Millis) {
        for name in names {
            let Some(schedule) = self.by_name.get_mut(&name) else { continue };
            self.held_back += usize::from(schedule.retry_at.is_none());
            let before = schedule.due();
            schedule.retry_at = Some(now.plus(SCHEDULE_RETRY_MS));
            let after = schedule.due();
            self.is_due(&name, before, after);
        }
    }
}

impl Asked<'_> {
    /// Appends what becomes of schedules that are due, at most `facts_max` facts, and what a firing drops comes on top.
    /// With less than two facts nothing fires. Returns those that are held back.
    pub fn tick_schedules(&self, facts_max: usize, facts: &mut Vec<Fact>) -> Vec<Name> {
        let (schedules, last_job) = (&self.queue.schedules, self.queue.counters.last_job);
        let due = schedules.due.iter().take_while(|(due, _)| *due <= self.now).take(SCHEDULES_PER_TICK);
        let mut due: Vec<_> =
            due.filter_map(|(_, name)| Some((name, schedules.by_name.get(name)?))).collect();
        if due.is_empty() {
            return Vec::new();
        }
        // Who has been held back for longer comes first.
        due.sort_by_key(|(_, schedule)| schedule.next_at);
        let mut firing = Firing {
            asked: self,
            room: Room::of(self).sparing_expired(),
            last_job,
            job_bytes: 0,
            left_out: 0,
            dropped: 0,
            facts_max: facts.len() + facts_max,
            facts,
            held_back: Vec::new(),
        };
        for (name, schedule) in due {
            if !firing.has_room() {
                break;
            }
            match schedule.next_at {
                Some(next_at) => firing.come(name, schedule, next_at),
                None => firing.add(ScheduleFact::Deleted { name: name.clone() }),
            }
        }
        firing.held_back
    }
}

/// A tick.
struct Firing<'a> {
    asked: &'a Asked<'a>,
    room: Room<'a>,
    last_job: JobId,
    job_bytes: usize,
    left_out: u64,
    dropped: usize,
    facts_max: usize,
    facts: &'a mut Vec<Fact>,
    held_back: Vec<Name>,
}

impl Firing<'_> {
    fn has_room(&self) -> bool {
        self.facts.len() - self.dropped + FACTS_PER_FIRING <= self.facts_max
            && self.job_bytes < JOB_BYTES_PER_TICK
            && self.left_out < SCHEDULE_SKIPPED_COUNTED_MAX
            && self.dropped < BATCH_ITEMS_MAX
    }

    fn add(&mut self, fact: ScheduleFact) {
        self.facts.push(Fact::Schedule(self.asked.id, fact));
    }

    /// The schedule's next time has come.
    fn come(&mut self, name: &Name, schedule: &Schedule, next_at: Millis) {
        // Whatever time it is for, the job is as large.
        if self.room.clone().take(wanted(&job(name, &schedule.spec, next_at))).is_err() {
            // What has fired in this tick may be dropped by the next.
            if self.last_job == self.asked.queue.counters.last_job {
                self.held_back.push(name.clone());
            }
            return;
        }
        // Without times any more, because this version does not know its time zone, it is finished.
        let times = Times::of(&schedule.spec, next_at).ok();
        let mut next =
            times.as_ref().and_then(|times| first_to_fire(times, &schedule.spec, next_at, self.asked.now));
        if next != Some(next_at) {
            let count =
                times.as_ref().map_or(0, |times| missed(times, next_at, next.unwrap_or(self.asked.now)));
            self.left_out += count;
            self.add(ScheduleFact::Skipped { name: name.clone(), count, next_at: next });
        }
        while let (Some(times), Some(at)) =
            (&times, next.filter(|at| *at <= self.asked.now && self.has_room()))
        {
            next = times.after(at);
            if !self.fire(name, &schedule.spec, at, next) {
                return;
            }
        }
    }

    /// Fires, if there is room.
    fn fire(
        &mut self,
        name: &Name,
        spec: &ScheduleSpec,
        scheduled_for: Millis,
        next_at: Option<Millis>,
    ) -> bool {
        let new = job(name, spec, scheduled_for);
        let Ok(dropped) = self.room.take(wanted(&new)) else { return false };
        self.dropped += dropped.len();
        self.facts.extend(dropped);
        self.last_job = JobId(self.last_job.0 + 1);
        self.job_bytes += new.headers.len() + new.payload.len();
        // Refused are only jobs that wait for others, which none of a schedule does.
        self.facts.extend(self.asked.enqueued(0, &new, self.last_job, &[]));
        self.add(ScheduleFact::Fired { name: name.clone(), job: self.last_job, scheduled_for, next_at });
        true
    }
}

/// The room that one job wants.
pub(super) fn wanted(job: &NewJob) -> Wanted {
    Wanted::of(std::iter::once(job))
}

/// The job of a firing.
pub(super) fn job(name: &Name, spec: &ScheduleSpec, scheduled_for: Millis) -> NewJob {
    NewJob { headers: with_origin(&spec.job.headers, name, scheduled_for), ..spec.job.clone() }
}

/// Headers, and behind them which schedule and which of its times a job comes from.
fn with_origin(headers: &Bytes, name: &Name, scheduled_for: Millis) -> Bytes {
    let mut out = BytesMut::with_capacity(headers.len() + name.len() + 80);
    out.extend_from_slice(headers);
    put_header(&mut out, SCHEDULE_HEADER.as_bytes(), name.as_bytes());
    put_header(&mut out, SCHEDULED_AT_HEADER.as_bytes(), scheduled_for.to_string().as_bytes());
    out.freeze()
}

/// The first time from `next_at` on, which has come, that fires; it may be one to come.
fn first_to_fire(times: &Times, spec: &ScheduleSpec, next_at: Millis, now: Millis) -> Option<Millis> {
    if now.since(next_at) <= SCHEDULE_MISSED_AFTER_MS {
        return Some(next_at);
    }
    match spec.missed {
        MissedPolicy::Skip => times.after(Millis(now.0 - SCHEDULE_MISSED_AFTER_MS - 1)),
        MissedPolicy::Once => times.last(now).max(Some(next_at)),
        MissedPolicy::All => {
            let mut first = times.last(now)?;
            for _ in 1..SCHEDULE_CATCH_UP_MAX {
                match times.last(Millis(first.0.saturating_sub(1))) {
                    Some(earlier) if earlier >= next_at => first = earlier,
                    _ => break,
                }
            }
            Some(first.max(next_at))
        }
    }
}

/// How many times there are from `next_at` on, which is one, and before `first`; as far as they are counted.
fn missed(times: &Times, next_at: Millis, first: Millis) -> u64 {
    let times = std::iter::successors(Some(next_at), |at| times.after(*at));
    let left_out = times.take_while(|at| *at < first).take(SCHEDULE_SKIPPED_COUNTED_MAX as usize);
    left_out.count() as u64
}

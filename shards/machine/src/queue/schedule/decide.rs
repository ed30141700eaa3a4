//! What can be asked of schedules.

use bytes::BytesMut;
use flowmesh_model::group::Name;
use flowmesh_model::job::JobOptions;
use flowmesh_model::limits::{
    BATCH_ITEMS_MAX, HEADERS_MAX, SCHEDULE_AHEAD_MS_MAX, SCHEDULE_LIST_BYTES_MAX, SCHEDULE_MISSED_AFTER_MS,
    SCHEDULE_NEXT_MAX, SCHEDULE_PAYLOAD_BYTES_MAX, SCHEDULES_MAX,
};
use flowmesh_model::path::check_scope;
use flowmesh_model::record::{RecordSlices, put_header, split_header};
use flowmesh_model::schedule::fact::ScheduleFact;
use flowmesh_model::schedule::{
    SCHEDULE_HEADER, SCHEDULED_AT_HEADER, ScheduleChanges, ScheduleReply, ScheduleSpec, ScheduleState,
    TRIGGER_HEADER, TRIGGERED_BY_HAND, Timing,
};
use flowmesh_model::settings::within;
use flowmesh_model::{Batch, Fact, JobId, Millis, Reject, Reply, ScheduleCommand};

use super::cron::zone;
use super::due::{job, wanted};
use super::{Schedule, Schedules, Times};
use crate::decision::Decision;
use crate::limit::size;
use crate::queue::decide::Asked;
use crate::queue::decide::enqueue::{Room, check_new, full};

/// Headers that the server sets.
const OWN_HEADERS: [&str; 3] = [SCHEDULE_HEADER, SCHEDULED_AT_HEADER, TRIGGER_HEADER];

/// The zone of an expression that comes without one.
const TIME_ZONE: &str = "UTC";

impl Asked<'_> {
    /// Decides on a command for schedules.
    pub fn schedule(&self, command: &ScheduleCommand) -> Result<Decision, Reject> {
        let schedules = &self.queue.schedules;
        match command {
            ScheduleCommand::Create { name, spec, paused } => self.create(name, spec.clone(), *paused),
            ScheduleCommand::Update { name, changes } => self.update(name, schedules.find(name)?, changes),
            ScheduleCommand::Delete(name) => {
                let status = schedules.find(name)?.clone();
                Ok(self.becomes(name, &status, ScheduleFact::Deleted { name: name.clone() }))
            }
            ScheduleCommand::Pause(name) => {
                let mut schedule = schedules.find(name)?.clone();
                if schedule.state() != ScheduleState::Active {
                    return Ok(self.stays(name, &schedule));
                }
                schedule.pause();
                Ok(self.becomes(name, &schedule, ScheduleFact::Paused { name: name.clone() }))
            }
            ScheduleCommand::Resume(name) => {
                let mut schedule = schedules.find(name)?.clone();
                if schedule.state() != ScheduleState::Paused {
                    return Ok(self.stays(name, &schedule));
                }
                let next_at = Times::of(&schedule.spec, self.now)?.after(self.now);
                schedule.resume(next_at, self.now);
                Ok(self.becomes(name, &schedule, ScheduleFact::Resumed { name: name.clone(), next_at }))
            }
            ScheduleCommand::RunNow(name) => self.run_now(name, schedules.find(name)?),
            ScheduleCommand::Describe(name) => Ok(self.stays(name, schedules.find(name)?)),
            ScheduleCommand::Next { name, times_max } => {
                within("times_max", u64::from(*times_max), 1, SCHEDULE_NEXT_MAX.into())?;
                let times = next_times(schedules.find(name)?, *times_max as usize)?;
                Ok(self.tell(ScheduleReply::Times(times)))
            }
            ScheduleCommand::List { after, schedules_max } => {
                within("schedules_max", u64::from(*schedules_max), 1, BATCH_ITEMS_MAX as u64)?;
                Ok(self.tell(schedules.page(after.as_ref(), *schedules_max as usize)))
            }
        }
    }

    fn create(&self, name: &Name, mut spec: ScheduleSpec, paused: bool) -> Result<Decision, Reject> {
        check_scope("name", name)?;
        check_job(&spec, self.now)?;
        name_zone(&mut spec)?;
        spec.job.options.take_if(|options| **options == JobOptions::default());
        let schedules = &self.queue.schedules;
        match schedules.by_name.get(name) {
            Some(schedule) if schedule.spec == spec => return Ok(self.stays(name, schedule)),
            Some(_) => return Err(Reject::ScheduleExists { name: name.to_string() }),
            None => {}
        }
        if schedules.len() >= SCHEDULES_MAX {
            let (size, max) = (schedules.len() as u64 + 1, SCHEDULES_MAX as u64);
            return Err(Reject::TooLarge { what: "schedules of the queue", size, max });
        }
        let next_at = first_time(&spec, self.now)?.filter(|_| !paused);
        let schedule = Schedule::new(spec.clone(), paused, next_at, self.now);
        let spec = Box::new(spec);
        Ok(self.becomes(name, &schedule, ScheduleFact::Created { name: name.clone(), paused, next_at, spec }))
    }

    fn update(
        &self,
        name: &Name,
        schedule: &Schedule,
        changes: &ScheduleChanges,
    ) -> Result<Decision, Reject> {
        let mut spec = changed(&schedule.spec, changes)?;
        check_job(&spec, self.now)?;
        name_zone(&mut spec)?;
        spec.job.options.take_if(|options| **options == JobOptions::default());
        if spec == schedule.spec {
            return Ok(self.stays(name, schedule));
        }
        let next_at = next_of_changed(schedule, &spec, self.now)?.filter(|_| !schedule.paused);
        let mut schedule = schedule.clone();
        schedule.update(spec.clone(), next_at, self.now);
        let spec = Box::new(spec);
        Ok(self.becomes(name, &schedule, ScheduleFact::Updated { name: name.clone(), next_at, spec }))
    }

    fn run_now(&self, name: &Name, schedule: &Schedule) -> Result<Decision, Reject> {
        let id = JobId(self.queue.counters.last_job.0 + 1);
        let mut new = job(name, &schedule.spec, self.now);
        let mut headers = BytesMut::from(&new.headers[..]);
        put_header(&mut headers, TRIGGER_HEADER.as_bytes(), TRIGGERED_BY_HAND.as_bytes());
        new.headers = headers.freeze();
        let mut facts = Room::of(self).take(wanted(&new)).map_err(|over| full(&over))?;
        facts.push(self.enqueued(0, &new, id, &[])?);
        let (name, scheduled_for, next_at) = (name.clone(), self.now, schedule.next_at);
        facts.push(Fact::Schedule(self.id, ScheduleFact::Fired { name, job: id, scheduled_for, next_at }));
        Ok(Decision::Change { facts, reply: Reply::Schedule(ScheduleReply::Fired(id)) })
    }

    fn becomes(&self, name: &Name, schedule: &Schedule, fact: ScheduleFact) -> Decision {
        let reply = Reply::Schedule(ScheduleReply::Status(Box::new(schedule.status(name)), true));
        Decision::Change { facts: Batch::from_iter([Fact::Schedule(self.id, fact)]), reply }
    }

    fn stays(&self, name: &Name, schedule: &Schedule) -> Decision {
        self.tell(ScheduleReply::Status(Box::new(schedule.status(name)), false))
    }

    fn tell(&self, reply: ScheduleReply) -> Decision {
        self.answer(Reply::Schedule(reply))
    }
}

impl Schedules {
    fn page(&self, after: Option<&Name>, schedules_max: usize) -> ScheduleReply {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, |after| Excluded(after.clone()));
        let mut rest = self.by_name.range((from, Unbounded)).peekable();
        let (mut schedules, mut bytes) = (Vec::new(), 0);
        while let Some((name, schedule)) = rest.peek() {
            bytes += schedule.memory_bytes(name) as usize;
            if schedules.len() == schedules_max || (bytes > SCHEDULE_LIST_BYTES_MAX && !schedules.is_empty())
            {
                break;
            }
            schedules.push(schedule.status(name));
            rest.next();
        }
        ScheduleReply::List { schedules, more: rest.peek().is_some() }
    }
}

/// Times to come.
fn next_times(schedule: &Schedule, times_max: usize) -> Result<Vec<Millis>, Reject> {
    let Some(next_at) = schedule.next_at else { return Ok(Vec::new()) };
    let times = Times::of(&schedule.spec, next_at)?;
    Ok(std::iter::successors(Some(next_at), |at| times.after(*at)).take(times_max).collect())
}

fn check_job(spec: &ScheduleSpec, now: Millis) -> Result<(), Reject> {
    check_new(&spec.job, now)?;
    if let Some(options) = &spec.job.options {
        let of_one_time = [
            ("run_at_ms", options.run_at.is_some()),
            ("key", options.key.is_some()),
            ("after", !options.after.is_empty()),
            ("after_any_end", options.after_any_end),
        ];
        if let Some((field, _)) = of_one_time.into_iter().find(|(_, given)| *given) {
            return Err(Reject::invalid(field, "is for a job that comes once, not for those of a schedule"));
        }
    }
    size("payload of a schedule's job", &spec.job.payload, SCHEDULE_PAYLOAD_BYTES_MAX)?;
    let mut headers = 0;
    for header in RecordSlices::new(&spec.job.headers) {
        let name = header.and_then(split_header).map_or(&[][..], |(name, _)| name);
        if OWN_HEADERS.map(str::as_bytes).contains(&name) {
            let reason = format!("`{}` are set by the server", OWN_HEADERS.join("`, `"));
            return Err(Reject::invalid("headers", reason));
        }
        headers += 1;
    }
    let max = (HEADERS_MAX - OWN_HEADERS.len()) as u64;
    if headers > max {
        return Err(Reject::TooLarge { what: "headers of a schedule's job", size: headers, max });
    }
    Ok(())
}

/// What a schedule is to do once it is changed.
fn changed(spec: &ScheduleSpec, changes: &ScheduleChanges) -> Result<ScheduleSpec, Reject> {
    let ScheduleChanges { cron, at, time_zone, end, missed, job } = changes.clone();
    let not_once = || Reject::invalid("time_zone", "is for a cron expression, and the schedule fires once");
    let timing = match (cron, at, &spec.timing) {
        (Some(_), Some(_), _) => return Err(Reject::invalid("at_ms", "goes without cron; give one of them")),
        (None, Some(_), _) | (None, None, Timing::Once(_)) if time_zone.is_some() => return Err(not_once()),
        (Some(expression), None, Timing::Cron { time_zone: is, .. }) => {
            Timing::Cron { expression, time_zone: time_zone.unwrap_or_else(|| is.clone()) }
        }
        (Some(expression), None, Timing::Once(_)) => {
            Timing::Cron { expression, time_zone: time_zone.unwrap_or_else(|| TIME_ZONE.into()) }
        }
        (None, Some(at), _) => Timing::Once(at),
        (None, None, Timing::Once(at)) => Timing::Once(*at),
        (None, None, Timing::Cron { expression, time_zone: is }) => Timing::Cron {
            expression: expression.clone(),
            time_zone: time_zone.unwrap_or_else(|| is.clone()),
        },
    };
    Ok(ScheduleSpec {
        timing,
        end: end.unwrap_or(spec.end),
        missed: missed.unwrap_or(spec.missed),
        job: job.unwrap_or_else(|| spec.job.clone()),
    })
}

/// When a schedule fires next that does something else from now on: as before, unless when it fires changes. A time that
/// has passed never counts: it may have fired.
fn next_of_changed(schedule: &Schedule, spec: &ScheduleSpec, now: Millis) -> Result<Option<Millis>, Reject> {
    let same_timing = schedule.spec.timing == spec.timing;
    if same_timing && schedule.spec.end == spec.end {
        return Ok(schedule.next_at);
    }
    within_reach("end_ms", spec.end, now)?;
    if let Some(next_at) = schedule.next_at.filter(|_| same_timing) {
        return ends_after(spec, next_at).map(Some);
    }
    match spec.timing {
        Timing::Once(_) if same_timing => Ok(Times::of(spec, now)?.after(now)),
        Timing::Once(at) if at <= now => {
            Err(Reject::ScheduleInPast { at, late_ms: now.since(at), allowed_ms: 0 })
        }
        _ => first_time(spec, now),
    }
}

/// Refuses an end before the next time.
fn ends_after(spec: &ScheduleSpec, next: Millis) -> Result<Millis, Reject> {
    match spec.end {
        Some(end) if end < next => {
            Err(Reject::invalid("end_ms", format!("is {end}; allowed: from the first time on, {next}")))
        }
        _ => Ok(next),
    }
}

/// Puts the zone's own name in place of the one given.
fn name_zone(spec: &mut ScheduleSpec) -> Result<(), Reject> {
    if let Timing::Cron { time_zone, .. } = &mut spec.timing {
        let given = if time_zone.is_empty() { TIME_ZONE } else { &**time_zone };
        *time_zone = Name::from(zone(given)?.iana_name().unwrap_or(given));
    }
    Ok(())
}

/// Refuses a time that is too far ahead.
fn within_reach(field: &'static str, at: Option<Millis>, now: Millis) -> Result<(), Reject> {
    match at {
        Some(at) if at.since(now) > SCHEDULE_AHEAD_MS_MAX => {
            Err(Reject::invalid(field, format!("is {at}; allowed: up to 50 years ahead")))
        }
        _ => Ok(()),
    }
}

/// When a new schedule fires first: a time that has just passed counts, if it is the only one.
fn first_time(spec: &ScheduleSpec, now: Millis) -> Result<Option<Millis>, Reject> {
    within_reach("end_ms", spec.end, now)?;
    let first = match &spec.timing {
        Timing::Once(at) if now.since(*at) > SCHEDULE_MISSED_AFTER_MS => {
            let late_ms = now.since(*at);
            return Err(Reject::ScheduleInPast { at: *at, late_ms, allowed_ms: SCHEDULE_MISSED_AFTER_MS });
        }
        Timing::Once(at) => {
            within_reach("at_ms", Some(*at), now)?;
            Some(*at)
        }
        Timing::Cron { .. } => Times::of(&ScheduleSpec { end: None, ..spec.clone() }, now)?.after(now),
    };
    match first {
        None => Err(Reject::IllegalCron {
            part: "expression",
            at: 0,
            problem: "never comes: there is no such day; allowed: one that comes within 50 years".to_owned(),
        }),
        Some(first) => ends_after(spec, first).map(Some),
    }
}

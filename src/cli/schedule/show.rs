//! Schedules as columns and as JSON.

use flowmesh_proto::v1;
use flowmesh_proto::v1::schedule_info::Timing;
use serde::Serialize;

use crate::cli::args::Format;
use crate::cli::failure::Failure;
use crate::cli::group::short_name;
use crate::cli::output::{Headers, Out, base64_text, readable, text, time};
use crate::cli::queue::backoff_text;

/// A schedule as one JSON object.
#[derive(Serialize)]
pub struct ScheduleJson<'a> {
    queue: &'a str,
    name: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cron: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    time_zone: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_ms: Option<u64>,
    missed: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_at_ms: Option<u64>,
    created_at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at_ms: Option<u64>,
    fired_total: u64,
    skipped_total: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_job_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_scheduled_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    held_back: bool,
    job: Option<JobJson<'a>>,
}

#[derive(Serialize)]
struct JobJson<'a> {
    priority: u32,
    delay_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    #[serde(skip_serializing_if = "str::is_empty")]
    group: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backoff: Option<String>,
    headers: Headers<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

impl<'a> From<&'a v1::ScheduleInfo> for ScheduleJson<'a> {
    fn from(schedule: &'a v1::ScheduleInfo) -> Self {
        let (cron, at_ms) = match &schedule.timing {
            Some(Timing::Cron(cron)) => (Some(cron.as_str()), None),
            Some(Timing::AtMs(at_ms)) => (None, Some(*at_ms)),
            None => (None, None),
        };
        Self {
            queue: &schedule.queue,
            name: &schedule.name,
            state: state_word(schedule.state()),
            cron,
            time_zone: &schedule.time_zone,
            at_ms,
            end_ms: schedule.end_ms,
            missed: missed_word(schedule.missed()),
            next_at_ms: schedule.next_at_ms,
            created_at_ms: schedule.created_at_ms,
            finished_at_ms: schedule.finished_at_ms,
            fired_total: schedule.fired_total,
            skipped_total: schedule.skipped_total,
            last_job_id: schedule.last_job_id,
            last_scheduled_at_ms: schedule.last_scheduled_at_ms,
            held_back: schedule.held_back,
            job: schedule.job.as_ref().map(job),
        }
    }
}

fn job(job: &v1::NewJob) -> JobJson<'_> {
    JobJson {
        priority: job.priority,
        delay_ms: job.delay_ms,
        max_attempts: job.max_attempts,
        group: &job.group,
        ttl_ms: Some(job.ttl_ms).filter(|ms| *ms > 0),
        backoff: job.retry.as_ref().map(backoff_text),
        headers: Headers(&job.headers),
        payload: text(&job.payload),
        payload_base64: base64_text(&job.payload),
    }
}

fn state_word(state: v1::ScheduleState) -> &'static str {
    match state {
        v1::ScheduleState::Unspecified => "unknown",
        v1::ScheduleState::Active => "active",
        v1::ScheduleState::Paused => "paused",
        v1::ScheduleState::Finished => "finished",
    }
}

fn missed_word(missed: v1::MissedPolicy) -> &'static str {
    match missed {
        v1::MissedPolicy::Skip => "skip",
        v1::MissedPolicy::Unspecified | v1::MissedPolicy::Once => "once",
        v1::MissedPolicy::All => "all",
    }
}

fn timing(schedule: &v1::ScheduleInfo) -> String {
    match &schedule.timing {
        Some(Timing::Cron(cron)) => format!("{cron} {}", schedule.time_zone),
        Some(Timing::AtMs(at_ms)) => format!("once at {}", time(*at_ms)),
        None => String::new(),
    }
}

fn or_dash(at_ms: Option<u64>) -> String {
    at_ms.map_or_else(|| "-".to_owned(), time)
}

/// The columns of [`row`].
pub const NAMES: [&str; 7] = ["QUEUE", "SCHEDULE", "STATE", "NEXT", "FIRED", "SKIPPED", "WHEN"];

/// A schedule as a row.
pub fn row(schedule: &v1::ScheduleInfo) -> Vec<String> {
    vec![
        short_name("queue", &schedule.queue).to_owned(),
        schedule.name.clone(),
        if schedule.held_back { "held back" } else { state_word(schedule.state()) }.to_owned(),
        or_dash(schedule.next_at_ms),
        schedule.fired_total.to_string(),
        schedule.skipped_total.to_string(),
        timing(schedule),
    ]
}

/// A schedule in one sentence.
pub fn sentence(schedule: &v1::ScheduleInfo) -> String {
    let (name, queue) = (&schedule.name, short_name("queue", &schedule.queue));
    let next = match schedule.next_at_ms.map(time) {
        None => String::new(),
        Some(at) if schedule.held_back => format!(", due since {at}: the queue has no room"),
        Some(at) => format!(", next at {at}"),
    };
    format!("{name} of {queue} is {}{next}", state_word(schedule.state()))
}

/// Writes a schedule: all of it, or what it is doing.
pub fn write(schedule: &v1::ScheduleInfo, format: Format, all: bool) -> Result<(), Failure> {
    let mut out = Out::new();
    match format {
        Format::Json => out.json(&ScheduleJson::from(schedule))?,
        Format::Table => {
            out.line(sentence(schedule).as_bytes())?;
            if all {
                write_rest(schedule, &mut out)?;
            }
        }
    }
    out.flush()
}

fn write_rest(schedule: &v1::ScheduleInfo, out: &mut Out) -> Result<(), Failure> {
    let end = schedule.end_ms.map_or_else(String::new, |at| format!(", not after {}", time(at)));
    let (when, missed) = (timing(schedule), missed_word(schedule.missed()));
    out.line(format!("{when}{end}, missed: {missed}").as_bytes())?;
    let (fired, skipped) = (schedule.fired_total, schedule.skipped_total);
    let created = time(schedule.created_at_ms);
    out.line(format!("fired {fired}, skipped {skipped}, created at {created}").as_bytes())?;
    if let (Some(job), Some(at)) = (schedule.last_job_id, schedule.last_scheduled_at_ms) {
        out.line(format!("last job {job}, for {}", time(at)).as_bytes())?;
    }
    if let Some(job) = &schedule.job {
        let payload = readable(&job.payload);
        out.line(format!("job: priority {}, delay {} ms, {payload}", job.priority, job.delay_ms).as_bytes())?;
    }
    Ok(())
}

//! `flowmesh queue job`, `result`, `list` and `peek`: jobs as columns and as JSON.

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use flowmesh_model::limits::WAIT_MS_MAX;
use flowmesh_proto::v1::{self, queue_client::QueueClient};
use serde::Serialize;
use tonic::transport::Channel;

use crate::cli::args::{Format, Output, Server, ValueFormat, duration, header, millis, moment};
use crate::cli::connection::client;
use crate::cli::failure::Failure;
use crate::cli::output::{Headers, Out, base64_text, readable, text, time};

/// Arguments of `queue job`.
#[derive(Args, Debug)]
pub struct JobArgs {
    /// The queue
    queue: String,
    /// The job's number
    job: u64,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `queue result`.
#[derive(Args, Debug)]
pub struct ResultArgs {
    /// The queue
    queue: String,
    /// The job's number
    job: u64,
    /// Wait so long for the job to end
    #[arg(short, long, value_name = "TIME", value_parser = duration, default_value = "0")]
    wait: Duration,
    /// How it is written
    #[arg(short = 'o', long = "output", default_value = "value", value_name = "FORMAT")]
    format: ValueFormat,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `queue list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// The queue
    queue: String,
    /// Only jobs in this phase
    #[arg(short, long)]
    phase: Option<Phase>,
    #[command(flatten)]
    filter: Filter,
    /// At most so many
    #[arg(short = 'n', long, default_value_t = 100, value_name = "N")]
    limit: usize,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `queue peek`.
#[derive(Args, Debug)]
pub struct PeekArgs {
    /// The queue
    queue: String,
    /// At most so many jobs
    #[arg(short = 'n', long, default_value_t = 1, value_name = "N")]
    max: u32,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Phase {
    /// To be had, or behind others of their group
    Ready,
    /// Waiting for their time
    Delayed,
    /// With a worker
    Leased,
    /// Waiting for other jobs
    Blocked,
    /// Given up, kept
    Dead,
    /// Done, kept
    Done,
}

impl Phase {
    fn number(self) -> i32 {
        match self {
            Self::Ready => v1::JobPhase::Ready.into(),
            Self::Delayed => v1::JobPhase::Delayed.into(),
            Self::Leased => v1::JobPhase::Leased.into(),
            Self::Blocked => v1::JobPhase::Blocked.into(),
            Self::Dead => v1::JobPhase::Dead.into(),
            Self::Done => v1::JobPhase::Done.into(),
        }
    }
}

/// The word of a phase.
fn phase_word(phase: v1::JobPhase) -> &'static str {
    match phase {
        v1::JobPhase::Unspecified => "unknown",
        v1::JobPhase::Ready => "ready",
        v1::JobPhase::Delayed => "delayed",
        v1::JobPhase::Leased => "leased",
        v1::JobPhase::Blocked => "blocked",
        v1::JobPhase::Dead => "dead",
        v1::JobPhase::Done => "done",
    }
}

/// Which jobs are meant.
#[derive(Args, Clone, Debug)]
pub struct Filter {
    /// Only those whose last error contains this, letter for letter
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// Only those with this header
    #[arg(short = 'H', long, value_name = "NAME=VALUE", value_parser = header)]
    header: Option<v1::Header>,
    /// Only those of this group
    #[arg(short, long)]
    group: Option<String>,
    /// Only those in their phase since a time (2026-11-21T12:00:00Z, @MS, -1h) or later
    #[arg(long, visible_alias = "from", value_name = "TIME", value_parser = moment, allow_hyphen_values = true)]
    since: Option<u64>,
    /// Only those in their phase since before a time
    #[arg(long, visible_alias = "to-time", value_name = "TIME", value_parser = moment, allow_hyphen_values = true)]
    before: Option<u64>,
}

impl Filter {
    /// Whether it lets everything pass.
    pub fn is_empty(&self) -> bool {
        self.message() == v1::JobFilter::default()
    }

    /// As the API takes it.
    pub fn message(&self) -> v1::JobFilter {
        v1::JobFilter {
            error: self.error.clone().unwrap_or_default(),
            header: self.header.clone(),
            since_ms: self.since.unwrap_or(0),
            before_ms: self.before.unwrap_or(0),
            group: self.group.clone().unwrap_or_default(),
        }
    }
}

#[derive(Serialize)]
struct ViewJson<'a> {
    job_id: u64,
    phase: &'static str,
    moment_ms: u64,
    priority: u32,
    attempts: u32,
    max_attempts: u32,
    enqueued_at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<u64>,
    #[serde(skip_serializing_if = "str::is_empty")]
    worker: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    leased_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "str::is_empty")]
    group: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result_base64: Option<String>,
    cancel_requested: bool,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    waits_for: &'a [u64],
    history: Vec<AttemptJson<'a>>,
    headers: Headers<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

#[derive(Serialize)]
struct AttemptJson<'a> {
    began_at_ms: u64,
    ended_at_ms: u64,
    end: &'a str,
    worker: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

impl<'a> From<&'a v1::Job> for ViewJson<'a> {
    fn from(job: &'a v1::Job) -> Self {
        let some = |number: u64| Some(number).filter(|number| *number > 0);
        let said = |bytes: &'a [u8]| text(bytes).filter(|text| !text.is_empty());
        Self {
            job_id: job.job_id,
            phase: phase_word(job.phase()),
            moment_ms: job.moment_ms,
            priority: job.priority,
            attempts: job.attempts,
            max_attempts: job.max_attempts,
            enqueued_at_ms: job.enqueued_at_ms,
            expires_at_ms: some(job.expires_at_ms),
            token: some(job.token),
            worker: &job.worker,
            leased_at_ms: some(job.leased_at_ms),
            group: &job.group,
            key: &job.key,
            progress: said(&job.progress),
            progress_base64: base64_text(&job.progress),
            result: said(&job.result),
            result_base64: base64_text(&job.result),
            cancel_requested: job.cancel_requested,
            waits_for: &job.waits_for,
            history: job.history.iter().map(AttemptJson::from).collect(),
            headers: Headers(&job.headers),
            payload: text(&job.payload),
            payload_base64: base64_text(&job.payload),
        }
    }
}

impl<'a> From<&'a v1::JobAttempt> for AttemptJson<'a> {
    fn from(attempt: &'a v1::JobAttempt) -> Self {
        Self {
            began_at_ms: attempt.began_at_ms,
            ended_at_ms: attempt.ended_at_ms,
            end: &attempt.end,
            worker: &attempt.worker,
            error: &attempt.error,
        }
    }
}

const COLUMNS: [&str; 8] = ["JOB", "PHASE", "AT", "PRIORITY", "ATTEMPTS", "GROUP", "LAST ERROR", "PAYLOAD"];

/// Characters of a payload or an error in a row; `queue job` shows all of it.
const SHOWN_CHARS: usize = 60;

fn shortened(bytes: &[u8]) -> String {
    let whole = readable(bytes.get(..4 * SHOWN_CHARS).unwrap_or(bytes));
    let mut shown: String = whole.chars().take(SHOWN_CHARS).collect();
    if shown.len() < bytes.len() {
        shown.push('…');
    }
    shown
}

fn row(job: &v1::Job) -> Vec<String> {
    let error = job.history.last().map_or("", |attempt| attempt.error.as_str());
    vec![
        job.job_id.to_string(),
        phase_word(job.phase()).to_owned(),
        time(job.moment_ms),
        job.priority.to_string(),
        format!("{}/{}", job.attempts, job.max_attempts),
        job.group.clone(),
        shortened(error.as_bytes()),
        shortened(&job.payload),
    ]
}

fn write_jobs(out: &mut Out, format: Format, jobs: &[v1::Job]) -> Result<(), Failure> {
    match format {
        Format::Json => jobs.iter().try_for_each(|job| out.json(&ViewJson::from(job))),
        Format::Table => out.table(&COLUMNS, jobs.iter().map(row).collect()),
    }
}

impl JobArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let mut client = client!(queue_client::QueueClient, self.server.connect().await?);
        let request = v1::GetJobRequest { queue: self.queue, job_id: self.job, wait_ms: 0 };
        let job = client.get(self.server.request(request)).await?.into_inner();
        let mut out = Out::new();
        match self.output.format {
            Format::Json => out.json(&ViewJson::from(&job))?,
            Format::Table => write_whole(&mut out, &job)?,
        }
        out.flush()
    }
}

/// What [`v1::Job::moment_ms`] says of a job in this phase.
fn moment_words(phase: v1::JobPhase) -> &'static str {
    match phase {
        v1::JobPhase::Done => "kept until",
        v1::JobPhase::Leased | v1::JobPhase::Delayed => "until",
        v1::JobPhase::Blocked => "and not ready before",
        v1::JobPhase::Ready | v1::JobPhase::Dead | v1::JobPhase::Unspecified => "since",
    }
}

fn write_whole(out: &mut Out, job: &v1::Job) -> Result<(), Failure> {
    let (phase, words) = (phase_word(job.phase()), moment_words(job.phase()));
    out.line(format!("job {} is {phase}, {words} {}", job.job_id, time(job.moment_ms)).as_bytes())?;
    let (attempts, most) = (job.attempts, job.max_attempts);
    let enqueued = time(job.enqueued_at_ms);
    out.line(
        format!("priority {}, attempts {attempts} of {most}, enqueued at {enqueued}", job.priority)
            .as_bytes(),
    )?;
    let waits_for: Vec<String> = job.waits_for.iter().map(u64::to_string).collect();
    let expires = if job.expires_at_ms > 0 { time(job.expires_at_ms) } else { String::new() };
    let cancelled = if job.cancel_requested { "yes" } else { "" };
    let said = [
        ("group", job.group.clone()),
        ("key", job.key.clone()),
        ("expires at", expires),
        ("worker", job.worker.clone()),
        ("asked to stop", cancelled.to_owned()),
        ("waits for jobs", waits_for.join(", ")),
        ("progress", readable(&job.progress)),
        ("result", readable(&job.result)),
    ];
    let headers =
        job.headers.iter().map(|header| ("header", format!("{}={}", header.name, readable(&header.value))));
    for (name, value) in said.into_iter().chain(headers).filter(|(_, value)| !value.is_empty()) {
        out.line(format!("{name}: {value}").as_bytes())?;
    }
    out.line(format!("payload: {}", readable(&job.payload)).as_bytes())?;
    let attempt = |it: &v1::JobAttempt| {
        vec![time(it.began_at_ms), time(it.ended_at_ms), it.end.clone(), it.worker.clone(), it.error.clone()]
    };
    out.table(&["BEGAN", "ENDED", "END", "WORKER", "ERROR"], job.history.iter().map(attempt).collect())
}

impl ResultArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let client = client!(queue_client::QueueClient, self.server.connect().await?);
        let job = self.ended(client).await?;
        let phase = job.phase();
        let mut out = Out::new();
        match self.format {
            ValueFormat::Json => out.json(&ViewJson::from(&job))?,
            ValueFormat::Table => out.table(&COLUMNS, vec![row(&job)])?,
            ValueFormat::Value if phase == v1::JobPhase::Done => out.line(&job.result)?,
            ValueFormat::Value => {}
        }
        out.flush()?;
        let error = job.history.last().map_or("", |attempt| attempt.error.as_str());
        match phase {
            v1::JobPhase::Done => Ok(()),
            v1::JobPhase::Dead => {
                Err(Failure::Partly { report: format!("job {} is dead: {error}", job.job_id), code: 1 })
            }
            other => {
                let report = format!("job {} has not ended: it is {}", job.job_id, phase_word(other));
                Err(Failure::Partly { report, code: 4 })
            }
        }
    }

    /// The job once it is done or dead, or as it is when the wait is over.
    async fn ended(&self, mut client: QueueClient<Channel>) -> Result<v1::Job, Failure> {
        let until = Instant::now() + self.wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let wait = left.min(Duration::from_millis(WAIT_MS_MAX));
            let request =
                v1::GetJobRequest { queue: self.queue.clone(), job_id: self.job, wait_ms: millis(wait) };
            let job = client.get(self.server.waiting_request(request, wait)).await?.into_inner();
            if left <= wait || matches!(job.phase(), v1::JobPhase::Done | v1::JobPhase::Dead) {
                return Ok(job);
            }
        }
    }
}

impl ListArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let mut client = client!(queue_client::QueueClient, self.server.connect().await?);
        let (mut out, mut jobs, mut left, mut after) = (Out::new(), Vec::new(), self.limit, None);
        while left > 0 {
            let request = v1::ListJobsRequest {
                queue: self.queue.clone(),
                phase: self.phase.map_or(0, Phase::number),
                filter: Some(self.filter.message()),
                after,
                max_jobs: u32::try_from(left.min(1_000)).unwrap_or(1_000),
                without_bodies: false,
            };
            let page = client.list(self.server.request(request)).await?.into_inner();
            left -= page.jobs.len().min(left);
            match self.output.format {
                Format::Json => write_jobs(&mut out, Format::Json, &page.jobs)?,
                Format::Table => jobs.extend(page.jobs),
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        write_jobs(&mut out, self.output.format, &jobs)?;
        out.flush()
    }
}

impl PeekArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let mut client = client!(queue_client::QueueClient, self.server.connect().await?);
        let request = v1::PeekRequest { queue: self.queue, max_jobs: self.max };
        let jobs = client.peek(self.server.request(request)).await?.into_inner().jobs;
        let mut out = Out::new();
        write_jobs(&mut out, self.output.format, &jobs)?;
        out.flush()?;
        if jobs.is_empty() { Err(Failure::Absent) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_the_beginning_of_what_is_long() {
        assert_eq!(shortened(b"short"), "short");
        let long = shortened("ä".repeat(500).as_bytes());
        assert_eq!((long.chars().count(), long.ends_with('…')), (SHOWN_CHARS + 1, true));
    }
}

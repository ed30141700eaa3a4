//! Workers as columns and as JSON.

use std::collections::BTreeMap;

use flowmesh_proto::v1;
use serde::Serialize;

use crate::cli::args::Format;
use crate::cli::failure::{Failure, Refusal};
use crate::cli::group::short_name;
use crate::cli::output::{Out, readable, time};

/// A worker as one JSON object.
#[derive(Serialize)]
pub struct WorkerJson<'a> {
    worker: &'a str,
    state: &'static str,
    since_ms: u64,
    epoch: u64,
    queues: &'a [String],
    concurrency: u32,
    host: &'a str,
    process_id: u32,
    labels: BTreeMap<&'a str, &'a str>,
    registered_at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    heard_at_ms: Option<u64>,
    session_timeout_ms: u64,
    retention_ms: u64,
    deaths: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    until_ms: Option<u64>,
    #[serde(flatten)]
    totals: Option<TotalsJson>,
}

#[derive(Serialize)]
struct TotalsJson {
    running: u64,
    acked: u64,
    failed: u64,
    lost: u64,
}

/// A worker with its work as one JSON object.
#[derive(Serialize)]
struct DetailsJson<'a> {
    #[serde(flatten)]
    worker: WorkerJson<'a>,
    work: Vec<WorkJson<'a>>,
}

#[derive(Serialize)]
struct WorkJson<'a> {
    queue: &'a str,
    state: &'static str,
    #[serde(flatten)]
    totals: Option<TotalsJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen_ms: Option<u64>,
    jobs: Vec<RunningJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct RunningJson {
    job_id: u64,
    since_ms: u64,
    attempt: u32,
    leased_until_ms: u64,
}

impl<'a> From<&'a v1::WorkerInfo> for WorkerJson<'a> {
    fn from(worker: &'a v1::WorkerInfo) -> Self {
        Self {
            worker: &worker.worker,
            state: state_word(worker.state()),
            since_ms: worker.since_ms,
            epoch: worker.epoch,
            queues: &worker.queues,
            concurrency: worker.concurrency,
            host: &worker.host,
            process_id: worker.process_id,
            labels: worker.labels.iter().map(|label| (&*label.name, &*label.value)).collect(),
            registered_at_ms: worker.registered_at_ms,
            heard_at_ms: worker.heard_at_ms,
            session_timeout_ms: worker.session_timeout_ms,
            retention_ms: worker.retention_ms,
            deaths: worker.deaths,
            until_ms: worker.until_ms,
            totals: worker.totals.as_ref().map(TotalsJson::from),
        }
    }
}

impl From<&v1::WorkerTotals> for TotalsJson {
    fn from(totals: &v1::WorkerTotals) -> Self {
        let v1::WorkerTotals { running, acked, failed, lost } = *totals;
        Self { running, acked, failed, lost }
    }
}

impl<'a> From<&'a v1::WorkerOnQueue> for WorkJson<'a> {
    fn from(work: &'a v1::WorkerOnQueue) -> Self {
        let running = |job: &v1::RunningJob| RunningJson {
            job_id: job.job_id,
            since_ms: job.since_ms,
            attempt: job.attempt,
            leased_until_ms: job.leased_until_ms,
        };
        Self {
            queue: &work.queue,
            state: queue_word(work.state()),
            totals: work.totals.as_ref().map(TotalsJson::from),
            last_seen_ms: work.last_seen_ms,
            jobs: work.jobs.iter().map(running).collect(),
            error: work.error.as_ref().map(|error| Refusal::of_item(error).to_string()),
        }
    }
}

fn state_word(state: v1::WorkerState) -> &'static str {
    match state {
        v1::WorkerState::Unspecified => "unknown",
        v1::WorkerState::Alive => "alive",
        v1::WorkerState::Stopping => "stopping",
        v1::WorkerState::Left => "left",
        v1::WorkerState::Dead => "dead",
    }
}

fn queue_word(state: v1::WorkerQueueState) -> &'static str {
    match state {
        v1::WorkerQueueState::Unspecified => "unknown",
        v1::WorkerQueueState::Open => "open",
        v1::WorkerQueueState::Paused => "paused",
        v1::WorkerQueueState::Missing => "missing",
    }
}

fn or_dash(at_ms: Option<u64>) -> String {
    at_ms.map_or_else(|| "-".to_owned(), time)
}

fn short(worker: &v1::WorkerInfo) -> &str {
    short_name("worker", &worker.worker)
}

/// A host or label as it may be shown.
fn shown(text: &str) -> String {
    readable(text.as_bytes())
}

/// The columns of [`row`].
pub const NAMES: [&str; 10] =
    ["WORKER", "STATE", "SINCE", "HEARD", "HOST", "RUNNING", "ACKED", "FAILED", "LOST", "QUEUES"];

/// A worker as a row.
pub fn row(worker: &v1::WorkerInfo) -> Vec<String> {
    let v1::WorkerTotals { running, acked, failed, lost } = worker.totals.unwrap_or_default();
    let queues: Vec<&str> = worker.queues.iter().map(|queue| short_name("queue", queue)).collect();
    vec![
        short(worker).to_owned(),
        state_word(worker.state()).to_owned(),
        time(worker.since_ms),
        or_dash(worker.heard_at_ms),
        shown(&worker.host),
        format!("{running}/{}", worker.concurrency),
        acked.to_string(),
        failed.to_string(),
        lost.to_string(),
        queues.join(" "),
    ]
}

/// Says what became of a worker.
pub fn write_sentence(worker: &v1::WorkerInfo, format: Format, words: &str) -> Result<(), Failure> {
    let mut out = Out::new();
    match format {
        Format::Json => out.json(&WorkerJson::from(worker))?,
        Format::Table => out.line(format!("{} {words}", short(worker)).as_bytes())?,
    }
    out.flush()
}

/// Writes all that is known of a worker.
pub fn write_details(described: &v1::DescribeWorkerResponse, format: Format) -> Result<(), Failure> {
    let worker = described.worker.clone().unwrap_or_default();
    let mut out = Out::new();
    match format {
        Format::Json => {
            let work = described.queues.iter().map(WorkJson::from).collect();
            out.json(&DetailsJson { worker: WorkerJson::from(&worker), work })?;
        }
        Format::Table => {
            write_head(&mut out, &worker)?;
            write_work(&mut out, &described.queues)?;
        }
    }
    out.flush()
}

fn write_head(out: &mut Out, worker: &v1::WorkerInfo) -> Result<(), Failure> {
    let state = state_word(worker.state());
    out.line(format!("{} is {state} since {}", short(worker), time(worker.since_ms)).as_bytes())?;
    let (host, process) = (shown(&worker.host), worker.process_id);
    let registered = time(worker.registered_at_ms);
    out.line(
        format!("process {process} on {host}, registered at {registered}, epoch {}", worker.epoch).as_bytes(),
    )?;
    let (heard, deaths) = (or_dash(worker.heard_at_ms), worker.deaths);
    let session = worker.session_timeout_ms;
    out.line(format!("last heard of at {heard}, session {session} ms, was dead {deaths} times").as_bytes())?;
    if !worker.labels.is_empty() {
        let labels: Vec<String> =
            worker.labels.iter().map(|label| shown(&format!("{}={}", label.name, label.value))).collect();
        out.line(format!("labels: {}", labels.join(" ")).as_bytes())?;
    }
    Ok(())
}

fn write_work(out: &mut Out, queues: &[v1::WorkerOnQueue]) -> Result<(), Failure> {
    let work = queues.iter().map(|work| {
        let v1::WorkerTotals { running, acked, failed, lost } = work.totals.unwrap_or_default();
        let state = match &work.error {
            Some(error) => Refusal::of_item(error).to_string(),
            None => queue_word(work.state()).to_owned(),
        };
        let mut row = vec![short_name("queue", &work.queue).to_owned(), state];
        row.extend([running, acked, failed, lost].map(|count| count.to_string()));
        row.push(or_dash(work.last_seen_ms));
        row
    });
    out.table(&["QUEUE", "STATE", "RUNNING", "ACKED", "FAILED", "LOST", "LAST"], work.collect())?;
    let running = queues.iter().flat_map(|work| {
        let queue = short_name("queue", &work.queue);
        work.jobs.iter().map(move |job| {
            let (job_id, attempt) = (job.job_id.to_string(), job.attempt.to_string());
            vec![queue.to_owned(), job_id, attempt, time(job.since_ms), time(job.leased_until_ms)]
        })
    });
    out.table(&["QUEUE", "JOB", "ATTEMPT", "SINCE", "LEASED UNTIL"], running.collect())
}

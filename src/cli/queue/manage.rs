//! `flowmesh queue cancel`, `change`, `progress`, `redrive`, `purge`, `pause` and `resume`: what is done to jobs from
//! outside.

use std::time::Duration;

use clap::Args;
use flowmesh_proto::v1::{self, queue_client::QueueClient};
use serde::Serialize;
use tonic::transport::Channel;

use super::show::Filter;
use super::transfer::unless_full;
use crate::cli::args::{Format, Output, Server, duration, lease, millis, moment};
use crate::cli::confirm::Confirm;
use crate::cli::connection::client;
use crate::cli::failure::{Failure, Refusal};
use crate::cli::output::{Out, note};

/// Arguments of `queue cancel`.
#[derive(Args, Debug)]
pub struct CancelArgs {
    /// The queue
    queue: String,
    /// Jobs' numbers
    #[arg(required = true, value_name = "JOB")]
    jobs: Vec<u64>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `queue change`.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["priority", "run_at"])))]
pub struct ChangeArgs {
    /// The queue
    queue: String,
    /// The job's number
    job: u64,
    /// 0 to 255; higher is sooner
    #[arg(short, long)]
    priority: Option<u8>,
    /// Ready at a time (2026-11-21T12:00:00Z, @MS), or in so long (+10m); +0s is now
    #[arg(long, value_name = "TIME", value_parser = moment)]
    run_at: Option<u64>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `queue progress`.
#[derive(Args, Debug)]
pub struct ProgressArgs {
    /// The queue
    queue: String,
    /// The lease, as `queue reserve` prints it
    #[arg(value_name = "JOB:TOKEN", value_parser = lease)]
    lease: v1::Lease,
    /// How far it is
    progress: String,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `queue redrive`.
#[derive(Args, Debug)]
pub struct RedriveArgs {
    #[command(flatten)]
    which: Which,
    /// So many become ready a second; else all at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    per_second: Option<u32>,
    /// The first becomes ready after so long
    #[arg(short, long, value_name = "TIME", value_parser = duration, default_value = "0")]
    delay: Duration,
    /// They go to this queue instead, and are gone from the other; each arrives once
    #[arg(long, value_name = "QUEUE")]
    to: Option<String>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `queue purge`.
#[derive(Args, Debug)]
pub struct PurgeArgs {
    #[command(flatten)]
    which: Which,
    /// Kept jobs that are done, instead of dead ones
    #[arg(long)]
    done: bool,
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `queue pause` and `queue resume`.
#[derive(Args, Debug)]
pub struct PauseArgs {
    /// The queue
    queue: String,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Jobs by number, by what they have in common, or all of them.
#[derive(Args, Debug)]
pub(super) struct Which {
    /// The queue
    pub queue: String,
    /// Jobs' numbers; all of them or, if one is in another phase, none
    #[arg(value_name = "JOB", conflicts_with_all = ["all", "error", "header", "group", "since", "before"])]
    pub jobs: Vec<u64>,
    /// All there are
    #[arg(long, conflicts_with_all = ["error", "header", "group", "since", "before"])]
    all: bool,
    #[command(flatten)]
    filter: Filter,
}

impl Which {
    pub fn check(&self) -> Result<(), Failure> {
        if self.jobs.is_empty() && !self.all && self.filter.is_empty() {
            let allowed = "allowed: JOB…, --all, or what they have in common (--error, --header, --group, --since, --before)";
            return Err(Failure::Usage(format!("which jobs? {allowed}")));
        }
        Ok(())
    }

    pub fn filter(&self) -> Option<v1::JobFilter> {
        self.jobs.is_empty().then(|| self.filter.message())
    }
}

#[derive(Serialize)]
struct CancelJson {
    job_id: u64,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    requested: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

#[derive(Serialize)]
struct ChangeJson {
    job_id: u64,
}

#[derive(Serialize)]
struct SweepJson {
    jobs: u64,
}

#[derive(Serialize)]
struct PausedJson<'a> {
    queue: &'a str,
    paused: bool,
}

pub(super) async fn connect(server: &Server) -> Result<QueueClient<Channel>, Failure> {
    Ok(client!(queue_client::QueueClient, server.connect().await?))
}

impl CancelArgs {
    /// Runs it. The failure is that of the first job that was not cancelled.
    pub async fn run(self) -> Result<(), Failure> {
        let mut client = connect(&self.server).await?;
        let request = v1::CancelJobsRequest { queue: self.queue, job_ids: self.jobs.clone() };
        let outcomes = client.cancel(self.server.request(request)).await?.into_inner().outcomes;
        let (mut out, mut failure) = (Out::new(), None);
        for (job_id, outcome) in self.jobs.into_iter().zip(outcomes) {
            let refusal = outcome.error.as_ref().map(Refusal::of_item);
            match (self.output.format, &refusal) {
                (Format::Json, _) => out.json(&CancelJson {
                    job_id,
                    ok: refusal.is_none(),
                    requested: refusal.is_none().then_some(outcome.requested),
                    reason: refusal.as_ref().map(|refusal| refusal.reason.clone()),
                    message: refusal.as_ref().map(|refusal| refusal.message.clone()),
                })?,
                (Format::Table, Some(refusal)) => note(format_args!("flowmesh: {job_id}: {refusal}")),
                (Format::Table, None) => {
                    let fate = if outcome.requested { "is asked to stop" } else { "is cancelled" };
                    out.line(format!("{job_id} {fate}").as_bytes())?;
                }
            }
            if let (None, Some(refusal)) = (&failure, refusal) {
                let report = format!("not every job was cancelled: {refusal}");
                failure = Some(Failure::Partly { report, code: refusal.exit_code() });
            }
        }
        out.flush()?;
        failure.map_or(Ok(()), Err)
    }
}

impl ChangeArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let request = v1::ChangeJobRequest {
            queue: self.queue,
            job_id: self.job,
            priority: self.priority.map(u32::from),
            run_at_ms: self.run_at,
        };
        connect(&self.server).await?.change(self.server.request(request)).await?;
        let mut out = Out::new();
        match self.output.format {
            Format::Json => out.json(&ChangeJson { job_id: self.job })?,
            Format::Table => out.line(format!("{} is changed", self.job).as_bytes())?,
        }
        out.flush()
    }
}

impl ProgressArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let request = v1::ProgressRequest {
            queue: self.queue,
            job_id: self.lease.job_id,
            token: self.lease.token,
            progress: self.progress.into(),
        };
        connect(&self.server).await?.progress(self.server.request(request)).await?;
        Ok(())
    }
}

impl RedriveArgs {
    /// Runs it, in as many calls as it takes.
    pub async fn run(self) -> Result<(), Failure> {
        self.which.check()?;
        let mut client = connect(&self.server).await?;
        let (mut jobs, mut after) = (0, None);
        loop {
            // The rate holds over all calls.
            let later_ms = self.per_second.map_or(0, |rate| jobs * 1_000 / u64::from(rate));
            let request = v1::RedriveRequest {
                queue: self.which.queue.clone(),
                job_ids: self.which.jobs.clone(),
                filter: self.which.filter(),
                after,
                per_second: self.per_second.unwrap_or(0),
                delay_ms: millis(self.delay) + later_ms,
                to_queue: self.to.clone().unwrap_or_default(),
            };
            let sent = client.redrive(self.server.request(request)).await;
            let Some(swept) = unless_full(sent).await? else { continue };
            jobs += swept.jobs;
            after = swept.next;
            if after.is_none() {
                let fate =
                    self.to.map_or_else(|| "wait again".to_owned(), |to| format!("are on their way to {to}"));
                return write_sweep(self.output.format, jobs, &fate, &self.which.queue);
            }
        }
    }
}

impl PurgeArgs {
    /// Runs it, in as many calls as it takes.
    pub async fn run(self) -> Result<(), Failure> {
        self.which.check()?;
        let queue = &self.which.queue;
        self.confirm.ask(&format!("Forget these jobs of {queue} for good?"), "not purged")?;
        let mut client = connect(&self.server).await?;
        let phase = if self.done { v1::JobPhase::Done } else { v1::JobPhase::Dead };
        let (mut jobs, mut after) = (0, None);
        loop {
            let request = v1::PurgeRequest {
                queue: queue.clone(),
                job_ids: self.which.jobs.clone(),
                filter: self.which.filter(),
                after,
                phase: phase.into(),
            };
            let swept = client.purge(self.server.request(request)).await?.into_inner();
            jobs += swept.jobs;
            after = swept.next;
            if after.is_none() {
                return write_sweep(self.output.format, jobs, "are purged", queue);
            }
        }
    }
}

pub(super) fn write_sweep(format: Format, jobs: u64, fate: &str, queue: &str) -> Result<(), Failure> {
    let mut out = Out::new();
    match format {
        Format::Json => out.json(&SweepJson { jobs })?,
        Format::Table => out.line(format!("{jobs} jobs of {queue} {fate}").as_bytes())?,
    }
    out.flush()
}

impl PauseArgs {
    /// Runs `queue pause`.
    pub async fn pause(self) -> Result<(), Failure> {
        connect(&self.server).await?.pause(self.request()).await?;
        self.write(true)
    }

    /// Runs `queue resume`.
    pub async fn resume(self) -> Result<(), Failure> {
        connect(&self.server).await?.resume(self.request()).await?;
        self.write(false)
    }

    fn request(&self) -> tonic::Request<v1::PauseQueueRequest> {
        self.server.request(v1::PauseQueueRequest { queue: self.queue.clone() })
    }

    fn write(&self, paused: bool) -> Result<(), Failure> {
        let mut out = Out::new();
        match self.output.format {
            Format::Json => out.json(&PausedJson { queue: &self.queue, paused })?,
            Format::Table => {
                let words = if paused { "is paused" } else { "gives out jobs" };
                out.line(format!("{} {words}", self.queue).as_bytes())?;
            }
        }
        out.flush()
    }
}

//! `flowmesh queue replay` and `outbox`: how jobs go to other queues and streams.

use std::time::Duration;

use clap::{Args, ValueEnum};
use flowmesh_proto::v1;
use serde::Serialize;

use super::manage::{Which, connect, write_sweep};
use crate::cli::args::{Format, Output, Server};
use crate::cli::failure::{Failure, Refusal};
use crate::cli::output::{Out, time};

/// How long a command waits for room on the way before it goes on.
const ROOM_WAIT: Duration = Duration::from_millis(100);

/// Arguments of `queue replay`.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    #[command(flatten)]
    which: Which,
    /// Which jobs
    #[arg(long, value_enum, default_value_t = Phase::Done)]
    phase: Phase,
    /// The queue that gets them, created with --set sandbox=true
    #[arg(long, value_name = "SANDBOX")]
    into: String,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Which jobs are replayed.
#[derive(ValueEnum, Clone, Copy, Debug)]
enum Phase {
    /// Those that are done and kept
    Done,
    /// Dead letters
    Dead,
}

/// Arguments of `queue outbox`.
#[derive(Args, Debug)]
pub struct OutboxArgs {
    /// The queue
    queue: String,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

#[derive(Serialize)]
struct LaneJson<'a> {
    to: &'a str,
    partition: u32,
    jobs: u64,
    since_ms: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

#[derive(Serialize)]
struct FailedJson<'a> {
    failed_job_id: u64,
    at_ms: u64,
    error: &'a str,
}

/// The answer; nothing if too many jobs are on their way, after a while in which some arrive.
pub async fn unless_full(
    sent: Result<tonic::Response<v1::SweepResponse>, tonic::Status>,
) -> Result<Option<v1::SweepResponse>, Failure> {
    match sent {
        Ok(swept) => Ok(Some(swept.into_inner())),
        Err(status) if is_full(&status) => {
            tokio::time::sleep(ROOM_WAIT).await;
            Ok(None)
        }
        Err(status) => Err(status.into()),
    }
}

fn is_full(status: &tonic::Status) -> bool {
    let refusal = Refusal::of_status(status);
    refusal.reason == "OVERLOADED" && refusal.message.starts_with("outbox")
}

impl ReplayArgs {
    /// Runs it, in as many calls as it takes.
    pub async fn run(self) -> Result<(), Failure> {
        self.which.check()?;
        let mut client = connect(&self.server).await?;
        let phase = match self.phase {
            Phase::Done => v1::JobPhase::Done,
            Phase::Dead => v1::JobPhase::Dead,
        };
        let (mut jobs, mut after) = (0, None);
        loop {
            let request = v1::ReplayJobsRequest {
                queue: self.which.queue.clone(),
                job_ids: self.which.jobs.clone(),
                filter: self.which.filter(),
                after,
                phase: phase.into(),
                sandbox: self.into.clone(),
            };
            let sent = client.replay(self.server.request(request)).await;
            let Some(swept) = unless_full(sent).await? else { continue };
            jobs += swept.jobs;
            after = swept.next;
            if after.is_none() {
                let fate = format!("are on their way to {}", self.into);
                return write_sweep(self.output.format, jobs, &fate, &self.which.queue);
            }
        }
    }
}

impl OutboxArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let mut client = connect(&self.server).await?;
        let request = v1::OutboxRequest { queue: self.queue };
        let outbox = client.outbox(self.server.request(request)).await?.into_inner();
        let mut out = Out::new();
        match self.output.format {
            Format::Json => {
                outbox.lanes.iter().try_for_each(|lane| out.json(&lane_json(lane)))?;
                if let Some(v1::FailedTransfer { job_id, at_ms, error }) = &outbox.failed {
                    out.json(&FailedJson { failed_job_id: *job_id, at_ms: *at_ms, error })?;
                }
            }
            Format::Table => {
                let names = ["TO", "PARTITION", "JOBS", "SINCE", "ERROR"];
                out.table(&names, outbox.lanes.iter().map(lane_row).collect())?;
                if let Some(v1::FailedTransfer { job_id, at_ms, error }) = &outbox.failed {
                    let words = format!("the last that failed: job {job_id}, {}: {error}", time(*at_ms));
                    out.line(words.as_bytes())?;
                }
            }
        }
        out.flush()
    }
}

fn lane_json(lane: &v1::OutboxLane) -> LaneJson<'_> {
    let v1::OutboxLane { to, partition, jobs, since_ms, error } = lane;
    LaneJson { to, partition: *partition, jobs: *jobs, since_ms: *since_ms, error }
}

fn lane_row(lane: &v1::OutboxLane) -> Vec<String> {
    vec![
        lane.to.clone(),
        lane.partition.to_string(),
        lane.jobs.to_string(),
        time(lane.since_ms),
        lane.error.clone(),
    ]
}

//! `flowmesh queue`: [`enqueue`] with all [`options`] of a job; reserve, ack, nack and extend one by one, or [`work`], which
//! does all four around a command and is seen as a worker by its [`registration`]; what can be seen, of jobs in [`show`] and
//! of the queue in [`status`]; what is done to jobs from outside in [`manage`], how they go to other queues in [`transfer`].

mod enqueue;
mod job;
mod manage;
mod options;
mod registration;
mod settle;
mod show;
mod status;
mod transfer;
mod work;

use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Subcommand};
use flowmesh_proto::v1;
use serde::Serialize;

use super::args::{Format, Output, Server, duration, lease, millis};
use super::connection::client;
use super::failure::{Failure, Refusal};
use super::output::{Headers, Out, base64_text, note, readable, text, time};
pub use options::{LifeArgs, backoff, backoff_kind, backoff_text, backoff_word};

/// Commands on queues.
#[derive(Subcommand, Debug)]
pub enum QueueCommand {
    /// Enqueue jobs: payloads, or one job a line of a file or of standard input
    Enqueue(enqueue::EnqueueArgs),
    /// Lease ready jobs; exit 3 if there is none
    Reserve(ReserveArgs),
    /// Say that leased jobs are done
    Ack(AckArgs),
    /// Give leased jobs back
    Nack(NackArgs),
    /// Make leases last longer
    Extend(ExtendArgs),
    /// Run a command for each job: ack on exit 0, nack otherwise
    Work(work::WorkArgs),
    /// Say how far a leased job is; kept with the job
    Progress(manage::ProgressArgs),
    /// Show all that is known of one job
    Job(show::JobArgs),
    /// Print what came of a job; can wait for it. Exit 1 if it is dead, 4 if it has not ended
    Result(show::ResultArgs),
    /// List jobs, by phase and by what they have in common; dead letters with --phase dead
    List(show::ListArgs),
    /// Show the jobs that would be leased next; exit 3 if there is none
    Peek(show::PeekArgs),
    /// Cancel jobs that are not done; workers that have them are asked to stop
    Cancel(manage::CancelArgs),
    /// Give a waiting job another priority or time
    Change(manage::ChangeArgs),
    /// Let dead jobs wait again, with all their attempts to come
    Redrive(manage::RedriveArgs),
    /// Forget dead jobs, or kept ones that are done
    Purge(manage::PurgeArgs),
    /// Send copies of finished or dead jobs to a sandbox
    Replay(transfer::ReplayArgs),
    /// Show what is on its way to other queues and streams
    Outbox(transfer::OutboxArgs),
    /// Give no job out until `resume`
    Pause(manage::PauseArgs),
    /// Give jobs out again
    Resume(manage::PauseArgs),
    /// Count the jobs by state
    Status(status::StatusArgs),
    /// Count the jobs by state, again and again
    Watch(status::WatchArgs),
}

/// Arguments of `queue reserve`.
#[derive(Args, Debug)]
pub struct ReserveArgs {
    /// The queue
    queue: String,
    /// At most so many jobs
    #[arg(short = 'n', long, default_value_t = 1, value_name = "N")]
    max: u32,
    /// How long the leases last; else as the queue is set
    #[arg(long, value_name = "TIME", value_parser = duration)]
    visibility: Option<Duration>,
    /// Wait so long for a job if none is ready; at most 60s
    #[arg(short, long, value_name = "TIME", value_parser = duration, default_value = "0")]
    wait: Duration,
    /// A name for whoever works on it
    #[arg(long, default_value = "")]
    worker: String,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `queue ack`.
#[derive(Args, Debug)]
pub struct AckArgs {
    /// The queue
    queue: String,
    /// Leases, as `queue reserve` prints them
    #[arg(required = true, value_name = "JOB:TOKEN", value_parser = lease)]
    leases: Vec<v1::Lease>,
    /// What came of it, kept with the job; see `queue result`
    #[arg(long, default_value = "")]
    result: String,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `queue nack`.
#[derive(Args, Debug)]
pub struct NackArgs {
    /// The queue
    queue: String,
    /// Leases, as `queue reserve` prints them
    #[arg(required = true, value_name = "JOB:TOKEN", value_parser = lease)]
    leases: Vec<v1::Lease>,
    /// Ready again after so long; else by the queue's backoff
    #[arg(long, value_name = "TIME", value_parser = duration)]
    delay: Option<Duration>,
    /// What went wrong, kept with the job
    #[arg(long, default_value = "")]
    error: String,
    /// Another attempt would be of no use: the job is dead
    #[arg(long = "final", conflicts_with_all = ["release", "delay"])]
    is_final: bool,
    /// The attempt does not count, and the job is ready at once
    #[arg(long)]
    release: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `queue extend`.
#[derive(Args, Debug)]
pub struct ExtendArgs {
    /// The queue
    queue: String,
    /// Leases, as `queue reserve` prints them
    #[arg(required = true, value_name = "JOB:TOKEN", value_parser = lease)]
    leases: Vec<v1::Lease>,
    /// How long from now; else as the queue is set
    #[arg(long, value_name = "TIME", value_parser = duration)]
    visibility: Option<Duration>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

#[derive(Serialize)]
struct JobJson<'a> {
    lease: String,
    job_id: u64,
    token: u64,
    attempt: u32,
    priority: u32,
    leased_until_ms: u64,
    enqueued_at_ms: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    group: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    awaited: Vec<AwaitedJson<'a>>,
    headers: Headers<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

#[derive(Serialize)]
struct AwaitedJson<'a> {
    job_id: u64,
    done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result_base64: Option<String>,
}

impl<'a> From<&'a v1::AwaitedJob> for AwaitedJson<'a> {
    fn from(job: &'a v1::AwaitedJob) -> Self {
        Self {
            job_id: job.job_id,
            done: job.done,
            result: text(&job.result),
            result_base64: base64_text(&job.result),
        }
    }
}

impl QueueCommand {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Enqueue(args) => args.run().await,
            Self::Reserve(args) => args.run().await,
            Self::Ack(args) => args.run().await,
            Self::Nack(args) => args.run().await,
            Self::Extend(args) => args.run().await,
            Self::Work(args) => args.run().await,
            Self::Progress(args) => args.run().await,
            Self::Job(args) => args.run().await,
            Self::Result(args) => args.run().await,
            Self::List(args) => args.run().await,
            Self::Peek(args) => args.run().await,
            Self::Cancel(args) => args.run().await,
            Self::Change(args) => args.run().await,
            Self::Redrive(args) => args.run().await,
            Self::Purge(args) => args.run().await,
            Self::Replay(args) => args.run().await,
            Self::Outbox(args) => args.run().await,
            Self::Pause(args) => args.pause().await,
            Self::Resume(args) => args.resume().await,
            Self::Status(args) => args.run().await,
            Self::Watch(args) => args.run().await,
        }
    }
}

impl ReserveArgs {
    async fn run(self) -> Result<(), Failure> {
        let mut queue = client!(queue_client::QueueClient, self.server.connect().await?);
        let request = v1::ReserveRequest {
            queue: self.queue,
            max_jobs: self.max,
            visibility_timeout_ms: self.visibility.map(millis),
            wait_ms: millis(self.wait),
            worker: self.worker,
        };
        let request = self.server.waiting_request(request, self.wait);
        let jobs = queue.reserve(request).await?.into_inner().jobs;
        let mut out = Out::new();
        match self.output.format {
            Format::Json => jobs.iter().try_for_each(|job| out.json(&job_json(job)))?,
            Format::Table => {
                let names = ["LEASE", "ATTEMPT", "PRIORITY", "UNTIL", "PAYLOAD"];
                out.table(&names, jobs.iter().map(job_row).collect())?;
            }
        }
        out.flush()?;
        if jobs.is_empty() { Err(Failure::Absent) } else { Ok(()) }
    }
}

fn lease_text(job_id: u64, token: u64) -> String {
    format!("{job_id}:{token}")
}

fn job_row(job: &v1::LeasedJob) -> Vec<String> {
    vec![
        lease_text(job.job_id, job.token),
        job.attempt.to_string(),
        job.priority.to_string(),
        time(job.leased_until_ms),
        readable(&job.payload),
    ]
}

fn job_json(job: &v1::LeasedJob) -> JobJson<'_> {
    JobJson {
        lease: lease_text(job.job_id, job.token),
        job_id: job.job_id,
        token: job.token,
        attempt: job.attempt,
        priority: job.priority,
        leased_until_ms: job.leased_until_ms,
        enqueued_at_ms: job.enqueued_at_ms,
        group: &job.group,
        awaited: job.awaited.iter().map(AwaitedJson::from).collect(),
        headers: Headers(&job.headers),
        payload: text(&job.payload),
        payload_base64: base64_text(&job.payload),
    }
}

impl AckArgs {
    async fn run(self) -> Result<(), Failure> {
        let mut queue = client!(queue_client::QueueClient, self.server.connect().await?);
        let result = Bytes::from(self.result);
        let item = |lease: &v1::Lease| v1::AckItem {
            job_id: lease.job_id,
            token: lease.token,
            result: result.clone(),
        };
        let request = v1::AckRequest { queue: self.queue, leases: self.leases.iter().map(item).collect() };
        let outcomes = queue.ack(self.server.request(request)).await?.into_inner().outcomes;
        let errors = outcomes.into_iter().map(|outcome| outcome.error);
        write_outcomes(self.output.format, "done", &self.leases, errors, |_| None)
    }
}

impl NackArgs {
    async fn run(self) -> Result<(), Failure> {
        let mut queue = client!(queue_client::QueueClient, self.server.connect().await?);
        let kind = match (self.is_final, self.release) {
            (true, _) => v1::NackKind::NackFinal,
            (_, true) => v1::NackKind::NackReleased,
            _ => v1::NackKind::NackFailed,
        };
        let item = |lease: &v1::Lease| v1::NackItem {
            job_id: lease.job_id,
            token: lease.token,
            delay_ms: self.delay.map(millis),
            error: self.error.clone(),
            kind: kind.into(),
        };
        let request =
            v1::NackRequest { queue: self.queue.clone(), nacks: self.leases.iter().map(item).collect() };
        let outcomes = queue.nack(self.server.request(request)).await?.into_inner().outcomes;
        let errors = outcomes.into_iter().map(|outcome| outcome.error);
        write_outcomes(self.output.format, "given back", &self.leases, errors, |_| None)
    }
}

impl ExtendArgs {
    async fn run(self) -> Result<(), Failure> {
        let mut queue = client!(queue_client::QueueClient, self.server.connect().await?);
        let request = v1::ExtendRequest {
            queue: self.queue,
            leases: self.leases.clone(),
            visibility_timeout_ms: self.visibility.map(millis),
        };
        let outcomes = queue.extend(self.server.request(request)).await?.into_inner().outcomes;
        let ends: Vec<(u64, bool)> =
            outcomes.iter().map(|outcome| (outcome.leased_until_ms, outcome.cancel_requested)).collect();
        let errors = outcomes.into_iter().map(|outcome| outcome.error);
        write_outcomes(self.output.format, "extended", &self.leases, errors, |index| ends.get(index).copied())
    }
}

#[derive(Serialize)]
struct OutcomeJson {
    lease: String,
    job_id: u64,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    leased_until_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cancel_requested: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// One line a lease; of those that were extended up to when, and whether the worker is to stop. The failure is that of the first lease that was refused.
fn write_outcomes(
    format: Format,
    done: &str,
    leases: &[v1::Lease],
    errors: impl Iterator<Item = Option<v1::Error>>,
    extended: impl Fn(usize) -> Option<(u64, bool)>,
) -> Result<(), Failure> {
    let (mut out, mut failure) = (Out::new(), None);
    for (index, (lease, error)) in leases.iter().zip(errors).enumerate() {
        let refusal = error.as_ref().map(Refusal::of_item);
        let name = lease_text(lease.job_id, lease.token);
        let end = extended(index).filter(|_| refusal.is_none());
        match format {
            Format::Json => out.json(&OutcomeJson {
                lease: name,
                job_id: lease.job_id,
                ok: refusal.is_none(),
                leased_until_ms: end.map(|(until, _)| until),
                cancel_requested: end.map(|(_, cancel_requested)| cancel_requested),
                reason: refusal.as_ref().map(|refusal| refusal.reason.clone()),
                message: refusal.as_ref().map(|refusal| refusal.message.clone()),
            })?,
            Format::Table => match (&refusal, end) {
                (Some(refusal), _) => note(format_args!("flowmesh: {name}: {refusal}")),
                (None, Some((until, cancel_requested))) => {
                    let stop = if cancel_requested { "; its job is cancelled, stop" } else { "" };
                    out.line(format!("{name} {done} until {}{stop}", time(until)).as_bytes())?;
                }
                (None, None) => out.line(format!("{name} {done}").as_bytes())?,
            },
        }
        if let (None, Some(refusal)) = (&failure, refusal) {
            let report = format!("not every lease could be settled: {refusal}");
            failure = Some(Failure::Partly { report, code: refusal.exit_code() });
        }
    }
    out.flush()?;
    failure.map_or(Ok(()), Err)
}

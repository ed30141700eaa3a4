//! `flowmesh queue enqueue`: payloads or lines in, job numbers or a report out.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use flowmesh_model::limits::BATCH_ITEMS_MAX;
use flowmesh_proto::v1::{self, queue_client::QueueClient};
use serde::Serialize;
use tokio::sync::mpsc;
use tonic::transport::Channel;

use super::options::OptionArgs;
use crate::cli::args::{Format, Output, Server, duration, header, millis};
use crate::cli::connection::{Backoff, client};
use crate::cli::failure::{Failure, Refusal};
use crate::cli::input::{self, Batch, Source};
use crate::cli::json_lines;
use crate::cli::output::{Out, progress};

/// Arguments of `queue enqueue`.
#[derive(Args, Debug)]
pub struct EnqueueArgs {
    /// The queue
    queue: String,

    /// Payloads, one job each; - or none reads standard input, one job a line
    #[arg(allow_negative_numbers = true, conflicts_with = "file", value_name = "PAYLOAD")]
    payloads: Vec<String>,

    /// Read jobs from a file, one a line; - is standard input
    #[arg(short, long, value_name = "PATH")]
    file: Option<PathBuf>,

    /// Lines (or payloads) are JSON objects with payload, headers, priority, delay, max_attempts, key, key_window, group,
    /// run_at, ttl, backoff, after (places in the same call, from 0), after_jobs, after_any_end, traceparent and tracestate
    #[arg(short, long)]
    json_lines: bool,

    /// 0 to 255; higher is sooner
    #[arg(short, long, default_value_t = 0)]
    priority: u8,

    /// Ready only after so long
    #[arg(short, long, value_name = "TIME", value_parser = duration, default_value = "0")]
    delay: Duration,

    /// Deliveries before a job is dead; else as the queue is set
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,

    /// A header of every job; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<v1::Header>,

    #[command(flatten)]
    options: OptionArgs,

    /// If the queue is full, and set to let callers wait, wait so long for room; at most 60s
    #[arg(short, long, value_name = "TIME", value_parser = duration, default_value = "0")]
    wait: Duration,

    /// Jobs in one call at most; 1 to 10000
    #[arg(short, long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=BATCH_ITEMS_MAX as i64))]
    batch: u16,

    /// When the connection is lost, send again what was not acknowledged: nothing is lost, but such jobs may then be
    /// enqueued twice, unless they have keys
    #[arg(long)]
    retry: bool,

    /// With --retry: how long to look for the server
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = duration)]
    give_up_after: Duration,

    #[command(flatten)]
    output: Output,

    #[command(flatten)]
    server: Server,
}

/// What was enqueued.
#[derive(Default, Serialize)]
struct Tally {
    enqueued: u64,
    /// Were there before, under the same keys.
    existing: u64,
    first_job_id: Option<u64>,
    last_job_id: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    job_ids: Vec<u64>,
}

/// Numbers are listed one by one up to so many jobs.
const LISTED_MAX: u64 = 100;

impl EnqueueArgs {
    /// Runs it. Whatever happens, what was acknowledged is reported.
    pub async fn run(self) -> Result<(), Failure> {
        let jobs = self.jobs()?;
        let client = client!(queue_client::QueueClient, self.server.connect().await?);
        let mut tally = Tally::default();
        let outcome = self.enqueue_all(client, jobs, &mut tally).await;
        if outcome.is_ok() || tally.jobs() > 0 {
            self.report(&tally)?;
        }
        outcome
    }

    fn jobs(&self) -> Result<mpsc::Receiver<Result<Batch<v1::NewJob>, Failure>>, Failure> {
        let base = self.options.put(v1::NewJob {
            payload: Bytes::new(),
            priority: u32::from(self.priority),
            headers: self.headers.clone(),
            delay_ms: millis(self.delay),
            max_attempts: self.max_attempts,
            ..v1::NewJob::default()
        });
        let json_lines = self.json_lines;
        let parse = move |line: Bytes| -> Result<Option<v1::NewJob>, String> {
            if !json_lines {
                return Ok(Some(v1::NewJob { payload: line, ..base.clone() }));
            }
            if line.trim_ascii().is_empty() { Ok(None) } else { json_lines::job(&line, &base).map(Some) }
        };
        let batch = usize::from(self.batch);
        let source = match (&self.file, self.payloads.as_slice()) {
            (Some(path), _) => Source::of_path(path),
            (None, []) => Source::Stdin,
            (None, [only]) if only == "-" => Source::Stdin,
            (None, payloads) => {
                let job = |payload: &String| parse(Bytes::copy_from_slice(payload.as_bytes()));
                let jobs: Result<Vec<_>, String> = payloads.iter().map(job).collect();
                let jobs = jobs.map_err(|problem| Failure::Input(format!("a payload {problem}")))?;
                return Ok(input::ready(jobs.into_iter().flatten(), batch, |job| job.payload.len()));
            }
        };
        input::batches(&source, batch, parse)
    }

    /// One call after the other: jobs of one priority leave the queue in the order in which they came.
    async fn enqueue_all(
        &self,
        client: QueueClient<Channel>,
        mut jobs: mpsc::Receiver<Result<Batch<v1::NewJob>, Failure>>,
        tally: &mut Tally,
    ) -> Result<(), Failure> {
        let bar = progress("jobs");
        while let Some(batch) = jobs.recv().await {
            let batch = batch?;
            let lines = (batch.first_line, batch.last_line);
            let answer = self.enqueue(client.clone(), batch.items, lines, tally.jobs()).await?;
            tally.add(&answer.job_ids, answer.existing.len() as u64);
            bar.inc(answer.job_ids.len() as u64);
        }
        bar.finish_and_clear();
        Ok(())
    }

    async fn enqueue(
        &self,
        mut client: QueueClient<Channel>,
        jobs: Vec<v1::NewJob>,
        (first, last): (u64, u64),
        before: u64,
    ) -> Result<v1::EnqueueResponse, Failure> {
        let mut backoff = Backoff::new(Some(self.give_up_after));
        let mut request = v1::EnqueueRequest { queue: self.queue.clone(), jobs, wait_ms: millis(self.wait) };
        loop {
            let message = if self.retry { request.clone() } else { std::mem::take(&mut request) };
            let status = match client.enqueue(self.server.waiting_request(message, self.wait)).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            let refusal = Refusal::of_status(&status);
            let words = refusal.clone();
            if self.retry && backoff.wait(refusal).await.is_ok() {
                continue;
            }
            let fate = if words.leaves_writes_open() {
                "may or may not have been enqueued"
            } else {
                "were not enqueued"
            };
            return Err(Failure::Partly {
                report: format!(
                    "{words}\n{before} jobs were acknowledged; those of lines {first} to {last} {fate}"
                ),
                code: words.exit_code(),
            });
        }
    }

    fn report(&self, tally: &Tally) -> Result<(), Failure> {
        let mut out = Out::new();
        match self.output.format {
            Format::Json => out.json(tally)?,
            Format::Table => out.line(sentence(&self.queue, tally).as_bytes())?,
        }
        out.flush()
    }
}

impl Tally {
    /// Jobs that were acknowledged, new or not.
    fn jobs(&self) -> u64 {
        self.enqueued + self.existing
    }

    fn add(&mut self, ids: &[u64], existing: u64) {
        self.enqueued += ids.len() as u64 - existing;
        self.existing += existing;
        self.first_job_id = self.first_job_id.or(ids.first().copied());
        self.last_job_id = ids.last().copied().or(self.last_job_id);
        if self.jobs() <= LISTED_MAX {
            self.job_ids.extend_from_slice(ids);
        } else {
            self.job_ids.clear();
        }
    }
}

fn sentence(queue: &str, tally: &Tally) -> String {
    let existing = match tally.existing {
        0 => String::new(),
        n => format!(", {n} of which there were before"),
    };
    match (tally.jobs(), tally.first_job_id, tally.last_job_id) {
        (1, Some(only), _) if tally.existing == 1 => format!("1 job was in {queue} before: {only}"),
        (1, Some(only), _) => format!("1 job enqueued in {queue}: {only}"),
        (n, Some(first), Some(last)) => format!("{n} jobs enqueued in {queue}: {first} to {last}{existing}"),
        _ => format!("0 jobs enqueued in {queue}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_jobs_are_listed_many_are_counted() {
        let mut tally = Tally::default();
        tally.add(&[7], 0);
        assert_eq!(sentence("mail", &tally), "1 job enqueued in mail: 7");
        tally.add(&[8, 9], 0);
        assert_eq!(sentence("mail", &tally), "3 jobs enqueued in mail: 7 to 9");
        assert_eq!(tally.job_ids, [7, 8, 9]);
        tally.add(&(10..200).collect::<Vec<_>>(), 2);
        assert!(tally.job_ids.is_empty());
        assert_eq!((tally.enqueued, tally.existing, tally.last_job_id), (191, 2, Some(199)));
        assert_eq!(
            sentence("mail", &tally),
            "193 jobs enqueued in mail: 7 to 199, 2 of which there were before"
        );
        let known = Tally { existing: 1, first_job_id: Some(7), ..Tally::default() };
        assert_eq!(sentence("mail", &known), "1 job was in mail before: 7");
    }
}

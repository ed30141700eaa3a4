//! `flowmesh queue status`: all counts of a queue; `queue watch`: the same again and again.

use clap::Args;
use flowmesh_proto::v1::{self, queue_client::QueueClient};
use serde::Serialize;
use tonic::transport::Channel;

use crate::cli::args::{Format, Output, Server};
use crate::cli::connection::client;
use crate::cli::failure::Failure;
use crate::cli::output::Out;
use crate::cli::watch::Watch;

/// Arguments of `queue status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// The queue
    queue: String,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `queue watch`.
#[derive(Args, Debug)]
pub struct WatchArgs {
    /// The queue
    queue: String,
    #[command(flatten)]
    watch: Watch,
    #[command(flatten)]
    server: Server,
}

#[derive(Serialize)]
struct StatusJson {
    ready: u64,
    delayed: u64,
    blocked: u64,
    leased: u64,
    dead: u64,
    done: u64,
    enqueued_total: u64,
    done_total: u64,
    retried_total: u64,
    died_total: u64,
    expired_total: u64,
    cancelled_total: u64,
    dropped_total: u64,
    purged_total: u64,
    moved_total: u64,
    copied_total: u64,
    send_failed_total: u64,
    outbox: u64,
    oldest_ready_ms: u64,
    waiting_bytes: u64,
    paused: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    rates: Option<RatesJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_ms: Option<PercentilesJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_ms: Option<PercentilesJson>,
}

#[derive(Serialize)]
struct RatesJson {
    enqueued: f64,
    done: f64,
    retried: f64,
    died: f64,
}

#[derive(Serialize)]
struct PercentilesJson {
    count: u64,
    p50: u64,
    p95: u64,
    p99: u64,
    max: u64,
}

impl From<&v1::QueueStatusResponse> for StatusJson {
    fn from(status: &v1::QueueStatusResponse) -> Self {
        Self {
            ready: status.ready,
            delayed: status.delayed,
            blocked: status.blocked,
            leased: status.leased,
            dead: status.dead,
            done: status.done,
            enqueued_total: status.enqueued_total,
            done_total: status.done_total,
            retried_total: status.retried_total,
            died_total: status.died_total,
            expired_total: status.expired_total,
            cancelled_total: status.cancelled_total,
            dropped_total: status.dropped_total,
            purged_total: status.purged_total,
            moved_total: status.moved_total,
            copied_total: status.copied_total,
            send_failed_total: status.send_failed_total,
            outbox: status.outbox,
            oldest_ready_ms: status.oldest_ready_ms,
            waiting_bytes: status.waiting_bytes,
            paused: status.paused,
            rates: status.rates.as_ref().map(RatesJson::from),
            wait_ms: status.wait_ms.as_ref().map(PercentilesJson::from),
            run_ms: status.run_ms.as_ref().map(PercentilesJson::from),
        }
    }
}

impl From<&v1::JobRates> for RatesJson {
    fn from(rates: &v1::JobRates) -> Self {
        Self { enqueued: rates.enqueued, done: rates.done, retried: rates.retried, died: rates.died }
    }
}

impl From<&v1::Percentiles> for PercentilesJson {
    fn from(of: &v1::Percentiles) -> Self {
        Self { count: of.count, p50: of.p50, p95: of.p95, p99: of.p99, max: of.max }
    }
}

async fn ask(
    client: &mut QueueClient<Channel>,
    server: &Server,
    queue: &str,
) -> Result<v1::QueueStatusResponse, tonic::Status> {
    let request = v1::QueueStatusRequest { queue: queue.to_owned() };
    client.status(server.request(request)).await.map(tonic::Response::into_inner)
}

impl StatusArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let mut client = client!(queue_client::QueueClient, self.server.connect().await?);
        let status = ask(&mut client, &self.server, &self.queue).await?;
        let mut out = Out::new();
        write(&mut out, self.output.format, &self.queue, &status)?;
        out.flush()
    }
}

impl WatchArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let mut client = client!(queue_client::QueueClient, self.server.connect().await?);
        let show = |out: &mut Out, format, status: &_| write(out, format, &self.queue, status);
        self.watch.run(async || ask(&mut client, &self.server, &self.queue).await, show).await
    }
}

const NOW: [&str; 6] = ["READY", "DELAYED", "BLOCKED", "LEASED", "DEAD", "DONE"];
const EVER: [&str; 8] = ["ENQUEUED", "DONE", "RETRIED", "DIED", "EXPIRED", "CANCELLED", "DROPPED", "PURGED"];

fn write(out: &mut Out, format: Format, queue: &str, s: &v1::QueueStatusResponse) -> Result<(), Failure> {
    if format == Format::Json {
        return out.json(&StatusJson::from(s));
    }
    out.line(headline(queue, s).as_bytes())?;
    let now = [s.ready, s.delayed, s.blocked, s.leased, s.dead, s.done];
    out.table(&NOW, vec![now.iter().map(u64::to_string).collect()])?;
    out.line(b"since it was created:")?;
    let ever = [
        s.enqueued_total,
        s.done_total,
        s.retried_total,
        s.died_total,
        s.expired_total,
        s.cancelled_total,
        s.dropped_total,
        s.purged_total,
    ];
    out.table(&EVER, vec![ever.iter().map(u64::to_string).collect()])?;
    if s.outbox + s.moved_total + s.copied_total + s.send_failed_total > 0 {
        let (outbox, moved, copied, failed) = (s.outbox, s.moved_total, s.copied_total, s.send_failed_total);
        let words = format!(
            "to other queues and streams: {outbox} on their way, {moved} moved, {copied} copied, {failed} failed"
        );
        out.line(words.as_bytes())?;
    }
    if let Some(rates) = &s.rates {
        let (enqueued, done, retried, died) = (rates.enqueued, rates.done, rates.retried, rates.died);
        let words =
            format!("a second: {enqueued:.1} enqueued, {done:.1} done, {retried:.1} retried, {died:.1} dead");
        out.line(words.as_bytes())?;
    }
    for (what, times) in [("wait", &s.wait_ms), ("run", &s.run_ms)] {
        if let Some(v1::Percentiles { p50, p95, p99, max, .. }) = times {
            out.line(
                format!("{what}: p50 {p50} ms, p95 {p95} ms, p99 {p99} ms, longest {max} ms").as_bytes(),
            )?;
        }
    }
    Ok(())
}

fn headline(queue: &str, s: &v1::QueueStatusResponse) -> String {
    let paused = if s.paused { ", paused" } else { "" };
    format!("{queue}: oldest ready {} ms, {} bytes wait{paused}", s.oldest_ready_ms, s.waiting_bytes)
}

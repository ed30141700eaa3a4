//! `flowmesh stream consume`: one member of a consumer group, on one Group.Consume call; on the next after a loss.

use std::pin::Pin;
use std::time::Duration;

use clap::{Args, ValueEnum};
use flowmesh_proto::v1;
use futures::{Stream, StreamExt, TryFutureExt, TryStreamExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tonic::Status;
use tonic::transport::Channel;

use super::compression::accepted;
use super::consumer::{Consumer, Record};
use super::filter::Filters;
use crate::cli::args::{Server, ValueFormat, duration};
use crate::cli::connection::{Backoff, client};
use crate::cli::exec;
use crate::cli::failure::{Failure, Refusal};
use crate::cli::output::note;
use crate::cli::signals::Signals;

/// Arguments of `stream consume`.
#[derive(Args, Debug)]
pub struct ConsumeArgs {
    /// The streams
    #[arg(required = true, value_name = "STREAM")]
    pub streams: Vec<String>,

    /// The consumer group; made if there is none and the server allows it
    #[arg(short, long)]
    pub group: String,

    /// A name for people, shown by `group describe`; else HOST:PID
    #[arg(long, value_name = "NAME")]
    member_name: Option<String>,

    /// A name that outlives this process: who comes back with it within the session timeout has its partitions again
    #[arg(long, value_name = "ID")]
    instance_id: Option<String>,

    /// Where to start in partitions of which the group has committed nothing
    #[arg(long, default_value = "earliest", value_name = "WHERE")]
    from: From,

    #[command(flatten)]
    filters: Filters,

    /// When offsets are committed, always after the records before them were written, or their command has ended
    #[arg(long, default_value = "every-batch", value_name = "WHEN")]
    pub commit: Commit,

    /// How often, with --commit interval
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = duration)]
    commit_interval: Duration,

    /// Run this for each record instead of writing it, with /bin/sh: value on standard input, FLOWMESH_STREAM,
    /// FLOWMESH_PARTITION, FLOWMESH_OFFSET, FLOWMESH_KEY, FLOWMESH_GROUP and headers as FLOWMESH_HEADER_NAME in the
    /// environment. If it fails, this ends, and the record is for the next member
    #[arg(short, long, value_name = "COMMAND")]
    pub exec: Option<String>,

    /// End after so many records
    #[arg(short = 'n', long, value_name = "N")]
    pub max: Option<u64>,

    /// How long to look for a server that went away; for ever unless given
    #[arg(long, value_name = "TIME", value_parser = duration)]
    give_up_after: Option<Duration>,

    /// How records are written; value: the value alone, one a line
    #[arg(short, long, default_value = "value", value_name = "FORMAT")]
    pub output: ValueFormat,

    #[command(flatten)]
    pub server: Server,

    /// Whether `group` is a replay session, whose stream need not be named.
    #[arg(skip)]
    replay: bool,
}

/// Where a member starts if its group has not been there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum From {
    /// The first record there is
    Earliest,
    /// The next one to come
    Latest,
}

/// When offsets are committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Commit {
    /// After each batch
    EveryBatch,
    /// Every --commit-interval, when a partition goes to another member, and at the end
    Interval,
    /// Never
    None,
}

/// At the end, the answers to the last commits are waited for so long.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

type Pushed = Pin<Box<dyn Stream<Item = Result<v1::ConsumeResponse, Status>>>>;
type Running = Pin<Box<dyn Future<Output = Result<(), String>>>>;

/// How a call ended.
enum CallEnd {
    /// This side wants no more.
    Finished,
    /// It broke off.
    Lost(Refusal),
}

impl ConsumeArgs {
    /// A consumer of a replay session.
    pub fn of_replay(
        session: String,
        member_name: Option<String>,
        exec: Option<String>,
        max: Option<u64>,
        give_up_after: Option<Duration>,
        output: ValueFormat,
        server: Server,
    ) -> Self {
        Self {
            streams: Vec::new(),
            group: session,
            member_name,
            instance_id: None,
            from: From::Earliest,
            filters: Filters::default(),
            commit: Commit::EveryBatch,
            commit_interval: Duration::from_secs(5),
            exec,
            max,
            give_up_after,
            output,
            server,
            replay: true,
        }
    }

    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let mut signals = Signals::new()?;
        let channel = self.server.connect().await?;
        let mut backoff = Backoff::new(self.give_up_after);
        let mut consumer = Consumer::new(&self);
        while !consumer.is_done() {
            match self.call(channel.clone(), &mut consumer, &mut signals, &mut backoff).await? {
                CallEnd::Finished => return consumer.flush(),
                CallEnd::Lost(refusal) => {
                    consumer.lost();
                    let refusal = joining_helps(refusal);
                    tokio::select! {
                        waited = backoff.wait(refusal) => waited?,
                        () = signals.next() => return consumer.flush(),
                    }
                }
            }
        }
        consumer.flush()
    }

    fn hello(&self, consumer: &Consumer) -> v1::ConsumeHello {
        v1::ConsumeHello {
            group: self.group.clone(),
            streams: self.streams.clone(),
            name: self.member_name.clone().unwrap_or_else(process_name),
            instance_id: self.instance_id.clone().unwrap_or_default(),
            start_at: match self.from {
                From::Earliest => v1::StartAt::Earliest.into(),
                From::Latest => v1::StartAt::Latest.into(),
            },
            member_id: consumer.member_id().to_owned(),
            max_batch_bytes: 0,
            accept_compression: accepted(),
            filter: self.filters.message(),
        }
    }

    /// One Consume call.
    async fn call(
        &self,
        channel: Channel,
        consumer: &mut Consumer,
        signals: &mut Signals,
        backoff: &mut Backoff,
    ) -> Result<CallEnd, Failure> {
        // Not more than this side's commits and credit: bounded by the credit.
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut pushed = self.open(channel, receiver);
        let credit = consumer.first_credit();
        let _ = sender.send(v1::ConsumeRequest {
            hello: Some(self.hello(consumer)),
            credit,
            ..Default::default()
        });
        let mut commit_tick = self.commit_tick();
        let mut running: Option<Running> = None;
        loop {
            if running.is_none() {
                running = consumer.next()?.map(|record| self.run_command(&record));
            }
            if let Some(request) = consumer.request() {
                let _ = sender.send(request);
            }
            if consumer.is_done() {
                break;
            }
            tokio::select! {
                message = pushed.next() => match message {
                    Some(Ok(message)) => { backoff.succeeded(); consumer.take(message)?; }
                    Some(Err(status)) => return Ok(CallEnd::Lost(Refusal::of_status(&status))),
                    None if consumer.is_over() => break,
                    None => {
                        let status = Status::unavailable("the server ended the call");
                        return Ok(CallEnd::Lost(Refusal::of_status(&status)));
                    }
                },
                outcome = finished(&mut running) => {
                    running = None;
                    if let Err(why) = consumer.ran(outcome) {
                        close(consumer, sender, pushed).await?;
                        return Err(why);
                    }
                }
                _ = commit_tick.tick(), if self.commit == Commit::Interval => consumer.commit_all(),
                () = signals.next() => break,
            }
        }
        close(consumer, sender, pushed).await?;
        Ok(CallEnd::Finished)
    }

    fn open(&self, channel: Channel, receiver: mpsc::UnboundedReceiver<v1::ConsumeRequest>) -> Pushed {
        let outgoing = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|message| (message, receiver))
        });
        if self.replay {
            let mut client = client!(replay_client::ReplayClient, channel);
            let call = async move { client.consume(outgoing).await };
            return Box::pin(call.map_ok(tonic::Response::into_inner).try_flatten_stream().into_stream());
        }
        let mut client = client!(group_client::GroupClient, channel);
        let call = async move { client.consume(outgoing).await };
        Box::pin(call.map_ok(tonic::Response::into_inner).try_flatten_stream().into_stream())
    }

    fn commit_tick(&self) -> Interval {
        let every = self.commit_interval.max(Duration::from_millis(10));
        let mut tick = interval_at(Instant::now() + every, every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick
    }

    fn run_command(&self, record: &Record) -> Running {
        let mut environment: Vec<(String, String)> = [
            ("FLOWMESH_GROUP", self.group.clone()),
            ("FLOWMESH_ADDR", self.server.url().unwrap_or_default()),
            ("FLOWMESH_STREAM", record.at.0.clone()),
            ("FLOWMESH_PARTITION", record.at.1.to_string()),
            ("FLOWMESH_OFFSET", record.offset.to_string()),
            ("FLOWMESH_APPENDED_AT_MS", record.appended_at_ms.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec();
        let key = record.body.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
        if let Some(key) = key.filter(|key| !key.contains('\0')) {
            environment.push(("FLOWMESH_KEY".to_owned(), key.to_owned()));
        }
        environment.extend(record.body.headers.iter().filter_map(exec::header_variable));
        let (command, input) = (self.exec.clone().unwrap_or_default(), record.body.value.clone());
        Box::pin(async move { exec::run(&command, &environment, input, None).await })
    }
}

/// A member that was thrown out joins anew, as after a lost connection.
fn joining_helps(mut refusal: Refusal) -> Refusal {
    if matches!(refusal.reason.as_str(), "UNKNOWN_MEMBER" | "STALE_MEMBER_EPOCH") {
        refusal.retry_after_ms.get_or_insert(0);
    }
    refusal
}

/// Half-closed: the server answers the last commits and ends the call, and with it the membership.
async fn close(
    consumer: &mut Consumer,
    sender: mpsc::UnboundedSender<v1::ConsumeRequest>,
    mut pushed: Pushed,
) -> Result<(), Failure> {
    consumer.end();
    if let Some(request) = consumer.request() {
        let _ = sender.send(request);
    }
    drop(sender);
    let drain = async {
        while let Some(message) = pushed.next().await {
            match message {
                Ok(message) => consumer.settle(&message.outcomes),
                Err(status) => return note(format_args!("flowmesh: {}", Refusal::of_status(&status))),
            }
        }
    };
    let _ = tokio::time::timeout(LAST_PATIENCE, drain).await;
    consumer.flush()
}

async fn finished(running: &mut Option<Running>) -> Result<(), String> {
    match running {
        Some(running) => running.await,
        None => std::future::pending().await,
    }
}

fn process_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}:{}", host.trim(), std::process::id())
}

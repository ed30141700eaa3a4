//! `flowmesh queue work`: a worker that keeps up to `--concurrency` jobs running.
//!
//! It goes through calls of Queue.Work: the server pushes jobs as far as this side has given credit; verdicts and
//! heartbeats (extended leases) go the other way; a job that turns out to be cancelled is killed. Jobs run on across a lost connection; their verdicts are sent in the
//! next call. At the end (a signal, somebody who told the worker to stop, or an empty queue with `--until-empty`) the call is half-closed, what was pushed
//! until then still runs, and its verdicts go out in single calls.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use flowmesh_proto::v1::{self, admin_client::AdminClient, queue_client::QueueClient, settings};
use futures::{Stream, StreamExt, TryFutureExt, TryStreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tonic::Status;
use tonic::transport::Channel;

use super::job::{Handler, Verdict};
use super::registration::{Notice, Registration};
use super::settle::{Book, LeaseKey};
use crate::cli::args::{Server, duration, millis};
use crate::cli::connection::{Backoff, client};
use crate::cli::failure::{Failure, Refusal};
use crate::cli::output::note;
use crate::cli::signals::Signals;

/// Arguments of `queue work`.
#[derive(Args, Debug)]
pub struct WorkArgs {
    /// The queue
    queue: String,

    /// The command, for /bin/sh: payload on standard input, FLOWMESH_JOB_ID, FLOWMESH_JOB_ATTEMPT, FLOWMESH_JOB_TOKEN,
    /// FLOWMESH_QUEUE and headers as FLOWMESH_HEADER_NAME in the environment. Exit 0 acknowledges, anything else gives
    /// the job back with the last line of standard error
    #[arg(short, long, value_name = "COMMAND")]
    exec: String,

    /// Jobs that run at a time
    #[arg(short, long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    concurrency: u32,

    /// How long a lease lasts; renewed while the job runs. Else as the queue is set
    #[arg(long, value_name = "TIME", value_parser = duration)]
    visibility: Option<Duration>,

    /// Kill a job's command after so long, and give the job back
    #[arg(long, value_name = "TIME", value_parser = duration)]
    job_timeout: Option<Duration>,

    /// End once no job is ready, delayed or leased
    #[arg(long)]
    until_empty: bool,

    /// How long to look for a server that went away; for ever unless given
    #[arg(long, value_name = "TIME", value_parser = duration)]
    give_up_after: Option<Duration>,

    /// The worker that this is: its name is kept with the jobs, and `worker list` shows it; else HOST-PID
    #[arg(long)]
    worker: Option<String>,

    /// Something to find the worker by; may be given several times
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label, conflicts_with = "no_register")]
    labels: Vec<v1::WorkerLabel>,

    /// Without a heartbeat for so long the worker is dead
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s", conflicts_with = "no_register")]
    session: Duration,

    /// Do not register: no `worker list` shows this worker, and its name may be any text
    #[arg(long)]
    no_register: bool,

    #[command(flatten)]
    server: Server,
}

/// Where nothing else says how long a lease lasts.
const VISIBILITY: Duration = Duration::from_secs(30);

/// An idle worker that is to end with the queue asks so often.
const EMPTY_CHECK: Duration = Duration::from_millis(100);

/// At the end, verdicts are tried for so long if the server is away.
const LAST_PATIENCE: Duration = Duration::from_secs(30);

type Pushed = Pin<Box<dyn Stream<Item = Result<v1::WorkResponse, Status>>>>;

struct Worker {
    args: WorkArgs,
    queue: QueueClient<Channel>,
    handler: Arc<Handler>,
    visibility: Duration,
    name: String,
    running: JoinSet<(LeaseKey, Verdict)>,
    /// How each of them is told that its job was cancelled.
    stops: BTreeMap<LeaseKey, oneshot::Sender<()>>,
    book: Book,
    heartbeat: Interval,
    registration: Registration,
    signals: Signals,
}

/// How a Work call ended.
enum CallEnd {
    /// This side wants no more.
    Finished,
    /// It broke off.
    Lost(Refusal),
}

impl WorkArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let signals = Signals::new()?;
        let channel = self.server.connect().await?;
        let visibility = match self.visibility {
            Some(visibility) => visibility,
            None => self.queue_visibility(channel.clone()).await?,
        };
        let name = self.worker.clone().unwrap_or_else(worker_name);
        let registration = self.register(channel.clone(), &name).await?;
        let third = (visibility / 3).max(Duration::from_millis(10));
        let mut heartbeat = interval_at(Instant::now() + third, third);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let handler = Handler {
            command: self.exec.clone(),
            queue: self.queue.clone(),
            addr: self.server.url()?,
            time_limit: self.job_timeout,
        };
        let mut worker = Worker {
            queue: client!(queue_client::QueueClient, channel),
            handler: Arc::new(handler),
            visibility,
            // What its queues know it by: the last part of its path.
            name: if self.no_register {
                name
            } else {
                name.rsplit('/').next().unwrap_or_default().to_owned()
            },
            running: JoinSet::new(),
            stops: BTreeMap::new(),
            book: Book::default(),
            heartbeat,
            registration,
            signals,
            args: self,
        };
        let outcome = worker.work().await;
        let counts = worker.book.counts;
        note(format_args!(
            "flowmesh: {} jobs done, {} failed, {} leases lost",
            counts.done, counts.failed, counts.lost
        ));
        outcome.and(worker.registration.leave().await)
    }

    /// Others see the worker from now on.
    async fn register(&self, channel: Channel, name: &str) -> Result<Registration, Failure> {
        if self.no_register {
            return Ok(Registration::none());
        }
        let request = v1::RegisterWorkerRequest {
            worker: name.to_owned(),
            queues: vec![self.queue.clone()],
            concurrency: self.concurrency,
            host: host_name(),
            process_id: std::process::id(),
            labels: self.labels.clone(),
            session_timeout_ms: Some(millis(self.session)),
            retention_ms: None,
        };
        Registration::new(channel, self.server.clone(), request, self.give_up_after).await
    }

    /// The queue's own visibility timeout; a queue that is not there yet will have the default.
    async fn queue_visibility(&self, channel: Channel) -> Result<Duration, Failure> {
        let mut admin: AdminClient<Channel> = client!(admin_client::AdminClient, channel);
        let request = v1::DescribeResourceRequest { kind: v1::Kind::Queue.into(), name: self.queue.clone() };
        let resource = match admin.describe_resource(self.server.request(request)).await {
            Ok(response) => response.into_inner().resource,
            Err(status) if status.code() == tonic::Code::NotFound => None,
            Err(status) => return Err(status.into()),
        };
        let kind = resource.and_then(|resource| resource.settings).and_then(|settings| settings.kind);
        Ok(match kind {
            Some(settings::Kind::Queue(queue)) => {
                queue.visibility_timeout_ms.map_or(VISIBILITY, Duration::from_millis)
            }
            _ => VISIBILITY,
        })
    }
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// `HOST-PID`, which is a legal name whatever the host is called.
fn worker_name() -> String {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let host: String = host_name().chars().map(|c| if legal(c) { c } else { '-' }).take(200).collect();
    format!("{host}-{}", std::process::id())
}

/// A label: `NAME=VALUE`.
fn label(text: &str) -> Result<v1::WorkerLabel, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => {
            Ok(v1::WorkerLabel { name: name.to_owned(), value: value.to_owned() })
        }
        _ => Err("allowed: NAME=VALUE".to_owned()),
    }
}

impl Worker {
    async fn work(&mut self) -> Result<(), Failure> {
        let mut backoff = Backoff::new(self.args.give_up_after);
        loop {
            match self.call(&mut backoff).await? {
                CallEnd::Finished => return self.finish().await,
                CallEnd::Lost(refusal) => {
                    tokio::select! {
                        waited = backoff.wait(refusal) => waited?,
                        () = self.signals.next() => return self.finish().await,
                        _ = self.registration.notice() => return self.finish().await,
                    }
                }
            }
        }
    }

    /// One Work call.
    async fn call(&mut self, backoff: &mut Backoff) -> Result<CallEnd, Failure> {
        // Not more than this side's own verdicts and heartbeats: bounded by the concurrency.
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut pushed = self.open(receiver);
        let _ = sender.send(self.hello());
        let mut empty_check = interval_at(Instant::now() + EMPTY_CHECK, EMPTY_CHECK);
        empty_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = pushed.next() => {
                    let message = message.unwrap_or_else(|| Err(Status::unavailable("the server ended the call")));
                    match message {
                        Ok(message) => { backoff.succeeded(); self.take(message); }
                        Err(status) => return Ok(CallEnd::Lost(Refusal::of_status(&status))),
                    }
                }
                Some(finished) = self.running.join_next() => {
                    if let Some(key) = self.ran(finished) {
                        let (acks, nacks) = self.book.verdict(key);
                        let _ = sender.send(v1::WorkRequest { credit: 1, acks, nacks, ..Default::default() });
                    }
                }
                _ = self.heartbeat.tick() => {
                    let extends = self.book.held();
                    if !extends.is_empty() {
                        let extend_ms = Some(millis(self.visibility));
                        let _ = sender.send(v1::WorkRequest { extends, extend_ms, ..Default::default() });
                    }
                }
                _ = empty_check.tick(), if self.args.until_empty && self.book.is_empty() => {
                    if self.is_queue_empty().await? {
                        break;
                    }
                }
                notice = self.registration.notice() => {
                    let why = match notice {
                        Notice::Stop => "told to stop",
                        Notice::Fenced(_) => "another process has taken this worker's name",
                    };
                    note(format_args!("flowmesh: {why}; finishing {} jobs", self.running.len()));
                    break;
                }
                () = self.signals.next() => {
                    note(format_args!("flowmesh: finishing {} jobs; interrupt again to abandon them", self.running.len()));
                    break;
                }
            }
        }
        // Half-closed: the server answers what it got and ends the call; jobs it pushed before are ours to run.
        drop(sender);
        let drain = async {
            while let Some(Ok(message)) = pushed.next().await {
                self.take(message);
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), drain).await;
        Ok(CallEnd::Finished)
    }

    fn open(&self, receiver: mpsc::UnboundedReceiver<v1::WorkRequest>) -> Pushed {
        let outgoing = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|message| (message, receiver))
        });
        let mut queue = self.queue.clone();
        let call = async move { queue.work(outgoing).await };
        Box::pin(call.map_ok(tonic::Response::into_inner).try_flatten_stream().into_stream())
    }

    fn hello(&mut self) -> v1::WorkRequest {
        let (acks, nacks) = self.book.all_again();
        let running = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        v1::WorkRequest {
            hello: Some(v1::WorkHello {
                queue: self.args.queue.clone(),
                worker: self.name.clone(),
                visibility_timeout_ms: Some(millis(self.visibility)),
                release_on_disconnect: false,
            }),
            credit: self.args.concurrency.saturating_sub(running),
            acks,
            nacks,
            extends: self.book.held(),
            extend_ms: Some(millis(self.visibility)),
            ..v1::WorkRequest::default()
        }
    }

    /// Jobs start, outcomes settle.
    fn take(&mut self, message: v1::WorkResponse) {
        for job in message.jobs {
            self.book.hold(&job);
            let (handler, key) = (Arc::clone(&self.handler), (job.job_id, job.token));
            let (stop, stopped) = oneshot::channel();
            self.stops.insert(key, stop);
            self.running.spawn(async move {
                tokio::select! {
                    verdict = handler.run(job) => (key, verdict),
                    Ok(()) = stopped => (key, Verdict::Failed("it was cancelled".to_owned())),
                }
            });
        }
        for outcome in message.outcomes {
            if outcome.cancel_requested
                && let Some(stop) = self.stops.remove(&(outcome.job_id, outcome.token))
            {
                // One that has just run does not listen any more.
                let _ = stop.send(());
            }
            self.settle((outcome.job_id, outcome.token), outcome.error.as_ref());
        }
    }

    fn settle(&mut self, key: LeaseKey, error: Option<&v1::Error>) {
        if let Some(words) = self.book.settle(key, error) {
            note(format_args!("flowmesh: {words}"));
        }
    }

    fn ran(&mut self, finished: Result<(LeaseKey, Verdict), tokio::task::JoinError>) -> Option<LeaseKey> {
        let (key, verdict) = finished.ok()?;
        self.stops.remove(&key);
        self.book.finish(key, verdict);
        Some(key)
    }

    async fn is_queue_empty(&mut self) -> Result<bool, Failure> {
        let request = v1::QueueStatusRequest { queue: self.args.queue.clone() };
        let mut queue = self.queue.clone();
        let asked =
            tokio::time::timeout(Duration::from_secs(1), queue.status(self.args.server.request(request)));
        match asked.await {
            Ok(Ok(status)) => {
                let status = status.into_inner();
                Ok(status.ready + status.delayed + status.leased == 0)
            }
            Ok(Err(status)) => {
                let refusal = Refusal::of_status(&status);
                if refusal.is_temporary() { Ok(false) } else { Err(Failure::Refused(refusal)) }
            }
            Err(_) => Ok(false),
        }
    }

    /// Current jobs run to their end; their verdicts and heartbeats go out in single calls. A second signal abandons them: they
    /// are killed and given back.
    async fn finish(&mut self) -> Result<(), Failure> {
        let mut backoff = Backoff::new(Some(self.args.give_up_after.unwrap_or(LAST_PATIENCE)));
        while !self.running.is_empty() {
            tokio::select! {
                Some(finished) = self.running.join_next() => { self.ran(finished); }
                _ = self.heartbeat.tick() => self.extend_held().await,
                () = self.signals.next() => {
                    self.running.shutdown().await;
                    tokio::select! {
                        () = self.release_held() => {}
                        () = self.signals.next() => {}
                    }
                    return Err(Failure::Interrupted);
                }
            }
        }
        loop {
            let (acks, nacks) = self.book.all_again();
            if acks.is_empty() && nacks.is_empty() {
                return Ok(());
            }
            let refusal = match self.settle_in_calls(acks, nacks).await {
                Ok(()) if self.book.is_empty() => return Ok(()),
                Ok(()) => Refusal::of_status(&Status::unavailable("the server asked to try later")),
                Err(status) => Refusal::of_status(&status),
            };
            tokio::select! {
                waited = backoff.wait(refusal) => waited?,
                () = self.signals.next() => return Err(Failure::Interrupted),
            }
        }
    }

    /// Jobs that were abandoned are ready again at once, and those attempts do not count.
    fn release_held(&self) -> impl Future<Output = ()> + use<> {
        let item = |lease: v1::Lease| v1::NackItem {
            job_id: lease.job_id,
            token: lease.token,
            error: "the worker was stopped".to_owned(),
            kind: v1::NackKind::NackReleased.into(),
            ..v1::NackItem::default()
        };
        let nacks = self.book.held().into_iter().map(item).collect();
        let request = v1::NackRequest { queue: self.args.queue.clone(), nacks };
        let (request, mut queue) = (self.args.server.request(request), self.queue.clone());
        async move {
            // Where that fails, the leases run out.
            let _ = queue.nack(request).await;
        }
    }

    async fn extend_held(&self) {
        let request = v1::ExtendRequest {
            queue: self.args.queue.clone(),
            leases: self.book.held(),
            visibility_timeout_ms: Some(millis(self.visibility)),
        };
        // A heartbeat that fails is made up for by the next, or the job runs again.
        let _ = self.queue.clone().extend(self.args.server.request(request)).await;
    }

    async fn settle_in_calls(
        &mut self,
        acks: Vec<v1::AckItem>,
        nacks: Vec<v1::NackItem>,
    ) -> Result<(), Status> {
        let mut queue = self.queue.clone();
        if !acks.is_empty() {
            let keys: Vec<LeaseKey> = acks.iter().map(|lease| (lease.job_id, lease.token)).collect();
            let request = v1::AckRequest { queue: self.args.queue.clone(), leases: acks };
            let outcomes = queue.ack(self.args.server.request(request)).await?.into_inner().outcomes;
            keys.iter().zip(outcomes).for_each(|(key, outcome)| self.settle(*key, outcome.error.as_ref()));
        }
        if !nacks.is_empty() {
            let keys: Vec<LeaseKey> = nacks.iter().map(|nack| (nack.job_id, nack.token)).collect();
            let request = v1::NackRequest { queue: self.args.queue.clone(), nacks };
            let outcomes = queue.nack(self.args.server.request(request)).await?.into_inner().outcomes;
            keys.iter().zip(outcomes).for_each(|(key, outcome)| self.settle(*key, outcome.error.as_ref()));
        }
        Ok(())
    }
}

//! A backend that is a small model of the server: right for what the tests do, without a log or a disk.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use flowmesh_engine::{ReplySink, SinkFn};
use flowmesh_model::command::{NewJob, ReadFrom, SetIf};
use flowmesh_model::kv::{KvOutcome, KvResult, KvType};
use flowmesh_model::placement::SlotMap;
use flowmesh_model::reject::LeaseLost;
use flowmesh_model::reply::{
    EnqueuedJob, EntryValue, Extended, LeasedJob, QueueStatus, RecordRun, RecordRuns,
};
use flowmesh_model::schedule::{MissedPolicy, ScheduleSpec, ScheduleState, ScheduleStatus, Timing};
use flowmesh_model::{
    Catalog, CatalogCommand, CatalogVersion, Command, Durability, JobId, Kind, KvCommand, LeaseToken, Lsn,
    Millis, Offset, PartitionRef, ProducerId, QueueCommand, Reject, Reply, ResourceId, ResourceInfo,
    ResourcePath, ScheduleCommand, ScheduleReply, Settings, ShardId, StreamCommand, StreamSettings,
    WorkerPath,
};
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::LocalBoxFuture;

use crate::edge::backend::{Backend, ServerFacts};

/// The backend.
#[derive(Clone)]
pub struct Fake(Rc<State>);

type Held = (Box<dyn ReplySink>, Result<Reply, Reject>);

struct Waiter {
    to: ShardId,
    command: Command,
    sink: Box<dyn ReplySink>,
}

#[derive(Default)]
struct Queue {
    ready: VecDeque<(JobId, NewJob)>,
    leased: BTreeMap<JobId, LeaseToken>,
    last: u64,
}

struct State {
    shards: u16,
    catalog: RefCell<Arc<Catalog>>,
    streams: RefCell<BTreeMap<PartitionRef, Vec<RecordRun>>>,
    queues: RefCell<BTreeMap<ResourceId, Queue>>,
    keys: RefCell<BTreeMap<(ResourceId, Bytes), EntryValue>>,
    lsn: Cell<u64>,
    waiting: RefCell<Vec<Waiter>>,
    /// Replies are kept until they are let go.
    hold: Cell<bool>,
    held: RefCell<Vec<Held>>,
    serving: Cell<bool>,
    commands: Cell<usize>,
    fail_shard: Cell<Option<ShardId>>,
    /// A resource that the catalog has and no shard.
    gone: Cell<Option<ResourceId>>,
}

impl Fake {
    /// Of so many shards, with the stores `s`, the queue `q`, the streams `one` and `many` (8 partitions).
    pub fn new(shards: u16) -> Self {
        let fake = Self(Rc::new(State {
            shards,
            catalog: RefCell::default(),
            streams: RefCell::default(),
            queues: RefCell::default(),
            keys: RefCell::default(),
            lsn: Cell::new(0),
            waiting: RefCell::default(),
            hold: Cell::new(false),
            held: RefCell::default(),
            serving: Cell::new(true),
            commands: Cell::new(0),
            fail_shard: Cell::new(None),
            gone: Cell::new(None),
        }));
        fake.create(ResourcePath::parse(Kind::Kv, "s").unwrap(), Settings::default_for(Kind::Kv));
        fake.create(ResourcePath::parse(Kind::Queue, "q").unwrap(), Settings::default_for(Kind::Queue));
        fake.create(ResourcePath::parse(Kind::Stream, "one").unwrap(), Settings::default_for(Kind::Stream));
        let many = StreamSettings { partitions: 8, ..StreamSettings::default() };
        fake.create(ResourcePath::parse(Kind::Stream, "many").unwrap(), Settings::Stream(many));
        fake
    }

    pub fn facts(&self) -> ServerFacts {
        ServerFacts {
            version: "1.2.3",
            started_at: self.now(),
            durability: Durability::Always,
            auto_create: true,
            shared_address: ":50051".into(),
            shard_addresses: (0..self.0.shards).map(|shard| format!(":{}", 50060 + shard)).collect(),
            slots: Arc::new(SlotMap::new(self.0.shards)),
            slot_map_version: 1,
        }
    }

    /// Keeps replies from now on, until [`Fake::let_go`].
    pub fn hold(&self) {
        self.0.hold.set(true);
    }

    /// Delivers the replies kept, last first.
    pub fn let_go(&self) {
        self.0.hold.set(false);
        let held = self.0.held.take();
        held.into_iter().rev().for_each(|(sink, outcome)| sink.deliver(outcome));
    }

    pub fn held(&self) -> usize {
        self.0.held.borrow().len()
    }

    /// Waiting commands whose client still wants the reply.
    pub fn waiting(&self) -> usize {
        self.0.waiting.borrow_mut().retain(|waiter| !waiter.sink.is_closed());
        self.0.waiting.borrow().len()
    }

    /// A resource is deleted, and the catalog of this core does not know it yet.
    pub fn set_gone(&self, kind: Kind, name: &str) {
        self.0.gone.set(self.find(kind, name).map(|info| info.id));
    }

    pub fn commands(&self) -> usize {
        self.0.commands.get()
    }

    pub fn set_serving(&self, serving: bool) {
        self.0.serving.set(serving);
    }

    /// Commands to that shard fail from now on.
    pub fn fail_shard(&self, shard: u16) {
        self.0.fail_shard.set(Some(ShardId(shard)));
    }

    pub fn create(&self, path: ResourcePath, settings: Settings) -> Arc<ResourceInfo> {
        let catalog = self.catalog();
        let id = ResourceId(catalog.len() as u64 + 1);
        let info = Arc::new(ResourceInfo::new(id, path, settings, self.now()));
        self.replace(catalog.iter().cloned().chain([Arc::clone(&info)]));
        info
    }

    fn replace(&self, resources: impl Iterator<Item = Arc<ResourceInfo>>) {
        let version = CatalogVersion(self.catalog().version().get() + 1);
        let catalog = Arc::new(Catalog::new(version, resources));
        *self.0.catalog.borrow_mut() = catalog;
    }

    fn next_lsn(&self) -> Lsn {
        self.0.lsn.set(self.0.lsn.get() + 1);
        Lsn(self.0.lsn.get())
    }

    /// `None`: it waits.
    fn decide(&self, command: &Command) -> Option<Result<Reply, Reject>> {
        match command {
            Command::Stream(target, command) => self.stream(*target, command),
            Command::Queue(queue, command) => self.queue(*queue, command),
            Command::Kv(store, command) => Some(Ok(self.kv(*store, command))),
            Command::Group(..) | Command::Replay(..) => {
                Some(Err(Reject::Internal("there are no groups here")))
            }
            Command::Worker(_) => Some(Err(Reject::Internal("there are no workers here"))),
            Command::Catalog(command) => Some(self.change(command)),
        }
    }

    fn stream(&self, target: PartitionRef, command: &StreamCommand) -> Option<Result<Reply, Reject>> {
        let mut streams = self.0.streams.borrow_mut();
        let runs = streams.entry(target).or_default();
        let next = runs.last().map_or(Offset(0), |run| run.base.plus(run.count.into()));
        Some(match command {
            StreamCommand::Append { records, .. } => {
                let (count, appended_at) = (records.count(), self.now());
                runs.push(RecordRun { base: next, count, appended_at, records: records.bytes().clone() });
                Ok(Reply::Appended { base: next, count, appended_at, duplicate: false })
            }
            StreamCommand::InitProducer { .. } => {
                Ok(Reply::Producer { id: ProducerId::of_entry(self.next_lsn(), ShardId(0)), epoch: 0 })
            }
            StreamCommand::FenceProducer { id, epoch } => Ok(Reply::Producer { id: *id, epoch: *epoch }),
            StreamCommand::FindOffset { from } => {
                let offset = start(runs, next, *from);
                let run = runs.iter().find(|run| run.base.plus(run.count.into()) > offset);
                Ok(Reply::OffsetFound { offset, appended_at: run.map(|run| run.appended_at) })
            }
            StreamCommand::Trim { upto } => Ok(Reply::Trimmed { earliest: *upto, next }),
            StreamCommand::Read { from, records_max, bytes_max, wait_until, .. } => {
                let from = start(runs, next, *from);
                if from > next {
                    return Some(Err(Reject::OffsetOutOfRange {
                        requested: from,
                        earliest: Offset(0),
                        next,
                    }));
                }
                let (mut bytes, mut count) = (0, 0);
                let found: Vec<_> = runs
                    .iter()
                    .filter(|run| run.base >= from)
                    .take_while(|run| {
                        let first = bytes == 0;
                        bytes += run.records.len();
                        count += run.count;
                        first || (bytes <= *bytes_max as usize && count <= *records_max)
                    })
                    .cloned()
                    .collect();
                if found.is_empty() && wait_until.is_some_and(|until| until > self.now()) {
                    return None;
                }
                let end = found.last().map_or(from, |run| run.base.plus(run.count.into()));
                Ok(Reply::Records(RecordRuns {
                    runs: found,
                    next: end,
                    earliest: Offset(0),
                    high_watermark: next,
                }))
            }
            StreamCommand::Receive(_) => Err(Reject::Internal("jobs do not come over an edge")),
            StreamCommand::Status => {
                let bytes = runs.iter().map(|run| run.records.len() as u64).sum();
                let (oldest, newest) = (runs.first(), runs.last());
                Ok(Reply::StreamStatus {
                    earliest: Offset(0),
                    next,
                    bytes,
                    segments: u64::from(!runs.is_empty()),
                    oldest: oldest.map(|run| run.appended_at),
                    newest: newest.map(|run| run.appended_at),
                    clean_upto: None,
                    dirty_bytes: 0,
                })
            }
        })
    }

    fn queue(&self, id: ResourceId, command: &QueueCommand) -> Option<Result<Reply, Reject>> {
        if self.0.gone.get() == Some(id) {
            let path = self.0.catalog.borrow().get(id)?.path.clone();
            return Some(Err(Reject::ResourceNotFound { path: path.to_string() }));
        }
        let mut queues = self.0.queues.borrow_mut();
        let queue = queues.entry(id).or_default();
        let mut next = || {
            queue.last += 1;
            queue.last
        };
        Some(Ok(match command {
            QueueCommand::Enqueue { jobs, .. } => {
                let ids: flowmesh_model::Batch<EnqueuedJob> =
                    jobs.iter().map(|_| EnqueuedJob { job: JobId(next()), existing: false }).collect();
                queue.ready.extend(ids.iter().map(|id| id.job).zip(jobs.iter().cloned()));
                Reply::Enqueued(ids)
            }
            QueueCommand::Reserve { jobs_max, wait_until, .. } => {
                if queue.ready.is_empty() && wait_until.is_some_and(|until| until > self.now()) {
                    return None;
                }
                let jobs = queue.ready.len().min(*jobs_max as usize);
                let leased: Vec<_> = queue.ready.drain(..jobs).collect();
                Reply::Reserved(leased.into_iter().map(|(job, new)| self.lease(queue, job, new)).collect())
            }
            QueueCommand::Ack { acks } => {
                Reply::Settled(acks.iter().map(|ack| settle(queue, ack.lease.job, ack.lease.token)).collect())
            }
            QueueCommand::Nack { nacks } => Reply::Settled(
                nacks.iter().map(|nack| settle(queue, nack.lease.job, nack.lease.token)).collect(),
            ),
            QueueCommand::Extend { leases, .. } => Reply::Extended(
                leases
                    .iter()
                    .map(|lease| match queue.leased.get(&lease.job) {
                        Some(token) if *token == lease.token => {
                            Ok(Extended { until: self.now(), cancel_requested: false })
                        }
                        _ => Err(Reject::JobNotFound { job: lease.job }),
                    })
                    .collect(),
            ),
            QueueCommand::Schedule(ScheduleCommand::List { .. }) => {
                let timing = Timing::Once(self.now());
                let status = ScheduleStatus {
                    name: "s".into(),
                    spec: ScheduleSpec {
                        timing,
                        end: None,
                        missed: MissedPolicy::Once,
                        job: NewJob::default(),
                    },
                    state: ScheduleState::Finished,
                    next_at: None,
                    created_at: self.now(),
                    finished_at: None,
                    fired_total: 0,
                    skipped_total: 0,
                    last_fired: None,
                    held_back: false,
                };
                Reply::Schedule(ScheduleReply::List { schedules: vec![status], more: false })
            }
            QueueCommand::Schedule(_) => return Some(Err(Reject::Internal("the fake has no schedules"))),
            _ => Reply::QueueStatus(
                QueueStatus {
                    ready: queue.ready.len() as u64,
                    leased: queue.leased.len() as u64,
                    enqueued_total: queue.last,
                    ..QueueStatus::default()
                },
                Box::default(),
            ),
        }))
    }

    fn lease(&self, queue: &mut Queue, job: JobId, new: NewJob) -> LeasedJob {
        queue.last += 1;
        let token = LeaseToken(queue.last);
        queue.leased.insert(job, token);
        LeasedJob {
            job,
            token,
            attempt: 1,
            priority: new.priority,
            leased_until: self.now().plus(30_000),
            enqueued_at: self.now(),
            payload: new.payload,
            headers: new.headers,
            group: Bytes::new(),
            awaited: Vec::new(),
        }
    }

    fn kv(&self, store: ResourceId, command: &KvCommand) -> Reply {
        let mut keys = self.0.keys.borrow_mut();
        match command {
            KvCommand::Set { entries } => Reply::Written(
                entries
                    .iter()
                    .map(|entry| {
                        let at = (store, entry.key.clone());
                        let actual = keys.get(&at).map(|value| value.version);
                        if entry.condition == SetIf::Absent && actual.is_some() {
                            return Err(Reject::ConditionFailed { actual });
                        }
                        let version = self.next_lsn();
                        let (holds, value) = (KvType::Bytes, entry.value.clone());
                        keys.insert(at, EntryValue { holds, value, version, expires_at: None });
                        Ok(version)
                    })
                    .collect(),
            ),
            KvCommand::Get { keys: wanted } => {
                assert!(wanted.iter().all(|key| key != "panic"), "asked to");
                Reply::Values(wanted.iter().map(|key| keys.get(&(store, key.clone())).cloned()).collect())
            }
            KvCommand::Delete { keys: wanted, .. } => {
                Reply::Flags(wanted.iter().map(|key| keys.remove(&(store, key.clone())).is_some()).collect())
            }
            KvCommand::Exists { keys: wanted } => {
                Reply::Flags(wanted.iter().map(|key| keys.contains_key(&(store, key.clone()))).collect())
            }
            // Each operation is answered with its own key; what the key `hash` holds is one.
            KvCommand::Run { ops, .. } => Reply::Kv(
                ops.iter()
                    .map(|op| match &op.key[..] {
                        b"hash" => Err(Reject::WrongType { expected: KvType::Bytes, actual: KvType::Hash }),
                        _ => Ok(KvOutcome {
                            version: self.next_lsn(),
                            result: KvResult::Value(Some(op.key.clone())),
                        }),
                    })
                    .collect(),
            ),
            _ => Reply::Scanned { entries: Vec::new(), next: None },
        }
    }

    fn change(&self, command: &CatalogCommand) -> Result<Reply, Reject> {
        let (CatalogCommand::Create { path, .. }
        | CatalogCommand::Update { path, .. }
        | CatalogCommand::Delete { path }) = command;
        let known = self.find(path.kind(), &path.to_string());
        let not_found = || Reject::ResourceNotFound { path: path.to_string() };
        let others = self.catalog();
        let others = others.iter().filter(|info| info.path != *path).cloned();
        let (info, changed) = match (command, known) {
            (CatalogCommand::Create { or_existing: true, .. }, Some(info)) => (info, false),
            (CatalogCommand::Create { .. }, Some(_)) => {
                return Err(Reject::ResourceExists { path: path.to_string() });
            }
            (CatalogCommand::Create { settings, .. }, None) => {
                (self.create(path.clone(), settings.clone()), true)
            }
            (CatalogCommand::Update { settings, .. }, Some(old)) => {
                let info = Arc::new(ResourceInfo { settings: settings.clone(), ..(*old).clone() });
                self.replace(others.chain([Arc::clone(&info)]));
                (info, true)
            }
            (CatalogCommand::Delete { .. }, Some(info)) => {
                self.replace(others);
                (info, true)
            }
            (_, None) => return Err(not_found()),
        };
        Ok(Reply::Resource { info, changed, version: self.catalog().version() })
    }

    fn deliver(&self, sink: Box<dyn ReplySink>, outcome: Result<Reply, Reject>) {
        if self.0.hold.get() {
            self.0.held.borrow_mut().push((sink, outcome));
        } else {
            sink.deliver(outcome);
        }
    }

    /// Looks again at all that waits.
    fn wake(&self) {
        for Waiter { to, command, sink } in self.0.waiting.take() {
            if !sink.is_closed() {
                self.submit(to, command, sink);
            }
        }
    }

    fn submit(&self, to: ShardId, command: Command, sink: Box<dyn ReplySink>) {
        if self.0.fail_shard.get() == Some(to) {
            return self.deliver(sink, Err(Reject::Fenced { reason: "a test".into() }));
        }
        match self.decide(&command) {
            Some(outcome) => self.deliver(sink, outcome),
            None => self.wait(to, command, sink),
        }
    }

    fn wait(&self, to: ShardId, mut command: Command, sink: Box<dyn ReplySink>) {
        let until = command.wait_until_mut().and_then(|until| *until).unwrap();
        let span = Duration::from_millis(until.since(self.now()) + 1);
        self.0.waiting.borrow_mut().push(Waiter { to, command, sink });
        let fake = self.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(span).await;
            fake.wake();
        });
    }
}

/// The offset that a start stands for.
fn start(runs: &[RecordRun], next: Offset, from: ReadFrom) -> Offset {
    match from {
        ReadFrom::Earliest => Offset(0),
        ReadFrom::Latest => next,
        ReadFrom::Offset(offset) => offset,
        ReadFrom::Timestamp(time) => {
            runs.iter().find(|run| run.appended_at >= time).map_or(next, |run| run.base)
        }
    }
}

fn settle(queue: &mut Queue, job: JobId, token: LeaseToken) -> Result<(), Reject> {
    match queue.leased.get(&job) {
        Some(known) if *known == token => {
            queue.leased.remove(&job);
            Ok(())
        }
        Some(_) => Err(Reject::LeaseLost { job, reason: LeaseLost::Superseded }),
        None => Err(Reject::JobNotFound { job }),
    }
}

struct Sink(oneshot::Sender<Result<Reply, Reject>>);

impl ReplySink for Sink {
    fn deliver(self: Box<Self>, outcome: Result<Reply, Reject>) {
        let _ = self.0.send(outcome);
    }

    fn is_closed(&self) -> bool {
        self.0.is_canceled()
    }
}

impl Backend for Fake {
    fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.0.catalog.borrow())
    }

    fn find(&self, kind: Kind, name: &str) -> Option<Arc<ResourceInfo>> {
        self.0.catalog.borrow().find(kind, name).cloned()
    }

    async fn resolve(&self, kind: Kind, name: &str, _: bool) -> Result<Arc<ResourceInfo>, Reject> {
        if let Some(info) = self.find(kind, name) {
            return Ok(info);
        }
        let path = ResourcePath::parse(kind, name)?;
        tokio::task::yield_now().await;
        Ok(self.create(path, Settings::default_for(kind)))
    }

    fn shard_of_partition(&self, info: &ResourceInfo, partition: u32) -> ShardId {
        ShardId(info.placement.partition_slot(partition).get() % self.0.shards)
    }

    fn shard_of_key(&self, info: &ResourceInfo, key: &[u8]) -> ShardId {
        ShardId(info.placement.key_slot(key).get() % self.0.shards)
    }

    fn shard_of_worker(&self, _path: &WorkerPath) -> ShardId {
        ShardId(0)
    }

    fn shards(&self) -> u16 {
        self.0.shards
    }

    fn local_shard(&self) -> ShardId {
        ShardId(0)
    }

    fn dispatch(&self, to: ShardId, command: Command, sink: Box<dyn ReplySink>) {
        assert!(to.get() < self.0.shards);
        self.0.commands.set(self.0.commands.get() + 1);
        let wakes = command.is_write();
        self.submit(to, command, sink);
        if wakes {
            self.wake();
        }
    }

    fn call(&self, to: ShardId, command: Command) -> impl Future<Output = Result<Reply, Reject>> + 'static {
        let (sender, receiver) = oneshot::channel();
        self.dispatch(to, command, Box::new(Sink(sender)));
        receiver.map(|outcome| outcome.unwrap_or(Err(Reject::ShuttingDown)))
    }

    fn now(&self) -> Millis {
        Millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64)
    }

    fn sleep(&self, span: Duration) -> LocalBoxFuture<'static, ()> {
        tokio::time::sleep(span).boxed_local()
    }

    async fn yield_if_needed(&self) {
        tokio::task::yield_now().await;
    }

    fn is_serving(&self) -> bool {
        self.0.serving.get()
    }
}

/// A command whose reply nobody looks at.
pub fn ignore() -> Box<dyn ReplySink> {
    Box::new(SinkFn(|_| {}))
}

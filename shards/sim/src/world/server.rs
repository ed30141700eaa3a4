//! One process: shards with their tasks, and the ways between their cores.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use flowmesh_engine::{Health, OpenError, ReplySink, Shard, ShardConfig, Timer, Transport};
use flowmesh_model::placement::SlotMap;
use flowmesh_model::transfer::Arrival;
use flowmesh_model::{
    CatalogCommand, Command, Durability, Kind, PartitionRef, QueueCommand, Reject, Reply, ResourceInfo,
    ShardId, SlotId, StreamCommand, TransferCommand,
};
use futures::channel::oneshot;

use super::clock::Clock;
use super::tasks::{Group, Tasks};
use super::trace::Trace;
use crate::disk::SimDisk;
use crate::happened::{Happened, Happening};
use crate::random::Random;

/// A shard on simulated hardware.
pub(crate) type SimShard = Shard<SimDisk, Clock>;

/// The connection broke before the answer came: the command was carried out, or it was not.
#[derive(Debug)]
pub(crate) struct Lost;

/// What all parts of a world share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub tasks: Tasks,
    pub clock: Clock,
    pub trace: Trace,
    pub random: Rc<RefCell<Random>>,
    pub happened: Happened,
    /// What it counts as if a command is refused for what cannot be read. None: it must not be.
    pub loss: Rc<Cell<Option<Happening>>>,
}

impl Shared {
    /// A number below a bound.
    pub fn below(&self, bound: u64) -> u64 {
        self.random.borrow_mut().below(bound)
    }

    /// Waits up to so many microseconds.
    pub async fn delay(&self, us_max: u64) {
        let us = self.below(us_max) + 1;
        self.clock.sleep(Duration::from_micros(us)).await;
    }
}

/// What runs between a start and a crash.
#[derive(Default)]
struct Process {
    /// Those that are open, until all are.
    opening: Vec<(u16, SimShard)>,
    /// All of them, in order; none before.
    shards: Vec<SimShard>,
    /// Why one could not be opened.
    failed: Option<OpenError>,
    disk: Option<SimDisk>,
    /// How many there were before.
    number: u64,
}

/// A process, or the want of one. Clones are the same.
#[derive(Clone)]
pub(crate) struct Server {
    shared: Shared,
    slots: Rc<SlotMap>,
    count: u16,
    process: Rc<RefCell<Process>>,
}

/// The directory of a shard.
fn dir_of(shard: u16) -> PathBuf {
    Path::new("/sim").join(format!("shard-{shard:03}"))
}

/// The longest way of a message, in microseconds.
const WAY_US: u64 = 40;

impl Server {
    /// None is running yet.
    pub fn new(shared: Shared, count: u16) -> Self {
        Self { shared, slots: Rc::new(SlotMap::new(count)), count, process: Rc::default() }
    }

    /// Starts a process on a disk. Its tasks open the shards.
    pub fn start(&self, disk: &SimDisk) {
        let number = self.process.borrow().number + 1;
        *self.process.borrow_mut() = Process { disk: Some(disk.clone()), number, ..Process::default() };
        self.shared.tasks.spawn(Group::Device, disk.clone().serve_indexes());
        for number in 0..self.count {
            disk.put_dir(&dir_of(number));
            let (server, disk, clock) = (self.clone(), disk.clone(), self.shared.clock.clone());
            self.shared.tasks.spawn(Group::Core(number), async move {
                let outcome = Shard::open(config(number, server.count), disk, clock).await;
                server.opened(number, outcome);
            });
        }
    }

    fn opened(&self, number: u16, outcome: Result<SimShard, OpenError>) {
        let mut process = self.process.borrow_mut();
        match outcome {
            Ok(shard) => process.opening.push((number, shard)),
            Err(error) => process.failed = Some(error),
        }
        if process.opening.len() == usize::from(self.count) {
            let mut opened = std::mem::take(&mut process.opening);
            opened.sort_by_key(|(number, _)| *number);
            process.shards = opened.into_iter().map(|(_, shard)| shard).collect();
            let shards = process.shards.clone();
            drop(process);
            self.publish_catalog();
            for (number, shard) in (0..).zip(shards) {
                self.run(number, &shard);
            }
        }
    }

    fn run(&self, number: u16, shard: &SimShard) {
        let (tasks, group) = (&self.shared.tasks, Group::Core(number));
        tasks.spawn(group, shard.clone().run_ticks());
        tasks.spawn(group, shard.clone().run_commits());
        tasks.spawn(group, shard.clone().run_segments());
        tasks.spawn(group, shard.clone().run_fetches());
        tasks.spawn(group, shard.clone().run_checkpoints());
        tasks.spawn(group, shard.clone().run_compactions());
        tasks.spawn(group, shard.clone().run_chills());
        tasks.spawn(group, shard.clone().run_transfers(self.clone()));
    }

    /// The process is gone, with all that it had in memory.
    pub fn end(&self) {
        self.shared.tasks.end_process();
        let number = self.process.borrow().number;
        let ended = self.process.replace(Process { number, ..Process::default() });
        drop(ended);
    }

    /// Whether it takes commands.
    pub fn is_up(&self) -> bool {
        !self.process.borrow().shards.is_empty()
    }

    /// Why it cannot be started.
    pub fn take_failure(&self) -> Option<OpenError> {
        self.process.borrow_mut().failed.take()
    }

    /// Whether a shard takes no more writes until a restart.
    pub fn is_fenced(&self) -> bool {
        self.shards().iter().any(|shard| matches!(shard.health(), Health::Fenced(_)))
    }

    fn shards(&self) -> Vec<SimShard> {
        self.process.borrow().shards.clone()
    }

    /// Checks what must hold at any time.
    pub fn check_all(&self) {
        self.shards().iter().for_each(Shard::check_all);
    }

    /// The shard of a slot.
    pub fn shard_of(&self, slot: SlotId) -> ShardId {
        self.slots.shard(slot)
    }

    /// Shard 0's catalog becomes that of all.
    fn publish_catalog(&self) {
        let shards = self.shards();
        if let Some(first) = shards.first() {
            let catalog = first.catalog_snapshot();
            for shard in &shards {
                shard.set_catalog(catalog.clone());
            }
        }
    }

    /// Makes a resource, known to all shards.
    pub async fn create(&self, command: CatalogCommand) -> Result<std::sync::Arc<ResourceInfo>, Reject> {
        loop {
            let outcome = self.call(ShardId(0), Command::Catalog(command.clone())).await;
            match outcome {
                Ok(Ok(Reply::Resource { info, .. })) => {
                    self.publish_catalog();
                    return Ok(info);
                }
                Ok(Ok(other)) => panic!("no resource: {other:?}"),
                Ok(Err(reject)) => return Err(reject),
                Err(Lost) => self.shared.delay(1_000).await,
            }
        }
    }

    /// Sends a command to a shard, and waits for what comes back.
    pub async fn call(&self, to: ShardId, command: Command) -> Result<Result<Reply, Reject>, Lost> {
        self.shared.delay(WAY_US).await;
        let (number, shard) = {
            let process = self.process.borrow();
            (process.number, process.shards.get(usize::from(to.0)).cloned())
        };
        let Some(shard) = shard else { return Err(Lost) };
        let (answer, answered) = oneshot::channel();
        shard.submit(command, Box::new(Connection(answer)));
        drop(shard);
        let outcome = answered.await.map_err(|_| Lost)?;
        // A process that is gone, or has no power, sends nothing.
        self.shared.delay(WAY_US).await;
        let process = self.process.borrow();
        let is_off = process.disk.as_ref().is_none_or(SimDisk::is_off);
        if is_off || process.number != number { Err(Lost) } else { Ok(outcome) }
    }
}

/// Who waits on the other side.
struct Connection(oneshot::Sender<Result<Reply, Reject>>);

impl ReplySink for Connection {
    fn deliver(self: Box<Self>, outcome: Result<Reply, Reject>) {
        drop(self.0.send(outcome));
    }

    fn is_closed(&self) -> bool {
        self.0.is_canceled()
    }
}

impl Transport for Server {
    fn deliver(&self, to: PartitionRef, arrival: Arrival, sink: Box<dyn ReplySink>) {
        let server = self.clone();
        let Some(first) = self.shards().first().cloned() else { return };
        let Some(info) = first.catalog_snapshot().get(to.resource).cloned() else {
            let path = format!("number {}", to.resource);
            return sink.deliver(Err(Reject::ResourceNotFound { path }));
        };
        let command = match info.path.kind() {
            Kind::Stream => Command::Stream(to, StreamCommand::Receive(arrival)),
            _ => Command::Queue(to.resource, QueueCommand::Transfer(TransferCommand::Receive(arrival))),
        };
        let shard = self.shard_of(info.placement.partition_slot(to.partition));
        // It goes from core to core, and dies with the process.
        self.shared.tasks.spawn(Group::Device, async move {
            if let Ok(outcome) = server.call(shard, command).await {
                sink.deliver(outcome);
            }
        });
    }
}

/// Small, so that everything happens often.
fn config(number: u16, shards: u16) -> ShardConfig {
    ShardConfig {
        shards,
        shares: shards,
        shard: ShardId(number),
        dir: dir_of(number),
        durability: Durability::Always,
        sync_interval_ms: 10,
        memory_bytes: 64 << 20,
        tail_bytes: 16 << 10,
        body_bytes: 16 << 10,
        log_segment_bytes: 1 << 20,
        log_bytes_max: 8 << 20,
        checkpoint_log_bytes: 64 << 10,
        checkpoint_interval_ms: 50,
        compaction_bytes_per_second: 1 << 30,
        compaction_memory_bytes: 1 << 20,
        metric_resources_max: 4,
        hash_seed: 7,
        on_thread_start: None,
    }
}

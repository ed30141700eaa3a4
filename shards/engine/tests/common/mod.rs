//! A shard on a simulated disk, with a clock to turn.

#![allow(dead_code)] // each test binary uses a part of it

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::path::Path;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use flowmesh_engine::{OpenError, Shard, ShardConfig, SinkFn, Timer};
use flowmesh_model::command::ReadFrom;
use flowmesh_model::record::{PackedRecords, RecordPacker, RecordSlices, RecordView};
use flowmesh_model::{
    CatalogCommand, Command, Durability, Kind, Millis, Offset, PartitionRef, Reject, Reply, ResourceId,
    ResourcePath, Settings, ShardId, StreamCommand,
};
use flowmesh_sim::{Random, SimDisk};
use flowmesh_store::index::IndexError;
use futures::executor::LocalPool;
use futures::task::LocalSpawnExt;

/// Where the answer to a command appears.
pub type Answer = Rc<RefCell<Option<Result<Reply, Reject>>>>;

/// A clock that stands until it is moved.
#[derive(Clone, Default)]
pub struct SimTimer {
    now: Rc<Cell<u64>>,
    sleepers: Rc<RefCell<Vec<Waker>>>,
}

impl SimTimer {
    pub fn advance(&self, ms: u64) {
        self.now.set(self.now.get() + ms);
        self.sleepers.borrow_mut().drain(..).for_each(Waker::wake);
    }
}

/// How many runs by chance: what the environment says, else so many.
pub fn seeds(default: u64) -> u64 {
    std::env::var("FLOWMESH_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(default)
}

impl Timer for SimTimer {
    fn now(&self) -> Millis {
        Millis(1_000_000 + self.now.get())
    }

    fn monotonic_ns(&self) -> u64 {
        self.now.get() * 1_000_000
    }

    async fn sleep(&self, span: Duration) {
        let until = self.now.get() + span.as_millis().max(1) as u64;
        poll_fn(|cx| {
            if self.now.get() >= until {
                return Poll::Ready(());
            }
            self.sleepers.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    async fn yield_now(&self) {
        let mut yielded = false;
        poll_fn(|cx| {
            if yielded {
                return Poll::Ready(());
            }
            yielded = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

pub struct Rig {
    pub pool: LocalPool,
    pub timer: SimTimer,
    pub disk: SimDisk,
    pub shard: Shard<SimDisk, SimTimer>,
}

impl Rig {
    pub fn open(dir: &Path, disk: SimDisk, timer: SimTimer) -> Self {
        Self::open_with(dir, disk, timer, |_| {})
    }

    /// With other settings.
    pub fn open_with(
        dir: &Path,
        disk: SimDisk,
        timer: SimTimer,
        change: impl FnOnce(&mut ShardConfig),
    ) -> Self {
        let rig = Self::open_among(dir, disk, timer, change);
        rig.shard.set_catalog(rig.shard.catalog_snapshot());
        rig
    }

    /// Lets the shard run, or some time pass, or neither.
    pub fn go_on(&mut self, random: &mut Random) {
        if random.below(3) == 0 {
            self.run();
        }
        if random.below(5) == 0 {
            self.timer.advance(random.below(30));
        }
    }

    /// One that makes a checkpoint only when it is told to; with other settings.
    pub fn open_quiet(
        dir: &Path,
        disk: &SimDisk,
        timer: &SimTimer,
        change: impl FnOnce(&mut ShardConfig),
    ) -> Self {
        disk.put_dir(dir);
        Self::open_with(dir, disk.clone(), timer.clone(), |config| {
            config.checkpoint_interval_ms = 3_600_000;
            config.checkpoint_log_bytes = u64::MAX;
            change(config);
        })
    }

    /// One of several shards: which resources there are it has still to be told.
    pub fn open_among(
        dir: &Path,
        disk: SimDisk,
        timer: SimTimer,
        change: impl FnOnce(&mut ShardConfig),
    ) -> Self {
        let mut config = ShardConfig {
            shards: 1,
            shares: 1,
            shard: ShardId(0),
            dir: dir.to_owned(),
            durability: Durability::Always,
            sync_interval_ms: 10,
            memory_bytes: 64 << 20,
            tail_bytes: 16 << 10,
            body_bytes: 16 << 10,
            log_segment_bytes: 1 << 20,
            log_bytes_max: 64 << 20,
            checkpoint_log_bytes: 256 << 10,
            checkpoint_interval_ms: 50,
            compaction_bytes_per_second: 1 << 30,
            compaction_memory_bytes: 1 << 20,
            metric_resources_max: 4,
            hash_seed: 7,
            on_thread_start: None,
        };
        change(&mut config);
        let mut pool = LocalPool::new();
        let shard = loop {
            match pool.run_until(Shard::open(config.clone(), disk.clone(), timer.clone())) {
                Ok(shard) => break shard,
                // The index's thread of the life before is about to end.
                Err(OpenError::Index(IndexError::Locked { .. })) => std::thread::yield_now(),
                Err(error) => panic!("cannot open: {error}"),
            }
        };
        let spawner = pool.spawner();
        spawner.spawn_local(shard.clone().run_commits()).unwrap();
        spawner.spawn_local(shard.clone().run_ticks()).unwrap();
        spawner.spawn_local(shard.clone().run_segments()).unwrap();
        spawner.spawn_local(shard.clone().run_fetches()).unwrap();
        spawner.spawn_local(shard.clone().run_checkpoints()).unwrap();
        spawner.spawn_local(shard.clone().run_compactions()).unwrap();
        spawner.spawn_local(shard.clone().run_chills()).unwrap();
        Self { pool, timer, disk, shard }
    }

    /// Hands a command over; the answer appears in the cell.
    pub fn submit(&self, command: Command) -> Answer {
        let answer = Rc::new(RefCell::new(None));
        let cell = Rc::clone(&answer);
        self.shard.submit(command, Box::new(SinkFn(move |outcome| *cell.borrow_mut() = Some(outcome))));
        answer
    }

    pub fn run(&mut self) {
        self.pool.run_until_stalled();
    }

    /// Runs until the command is answered.
    pub fn ask(&mut self, command: Command) -> Result<Reply, Reject> {
        let answer = self.submit(command);
        for _ in 0..10_000 {
            self.run();
            if let Some(outcome) = answer.borrow_mut().take() {
                return outcome;
            }
            self.timer.advance(1);
            std::thread::sleep(Duration::from_micros(50));
        }
        panic!("no answer");
    }

    /// Runs until the command is answered, and not until nothing is left to do.
    pub fn ask_stepwise(&mut self, command: Command) -> Result<Reply, Reject> {
        let answer = self.submit(command);
        self.pool.run_until(poll_fn(|cx| {
            if let Some(outcome) = answer.borrow_mut().take() {
                return Poll::Ready(outcome);
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        }))
    }

    pub fn create(&mut self, kind: Kind, name: &str) -> ResourceId {
        self.create_with(name, Settings::default_for(kind))
    }

    /// With settings of its own.
    pub fn create_with(&mut self, name: &str, settings: Settings) -> ResourceId {
        let path = ResourcePath::parse(settings.kind(), name).unwrap();
        let command = CatalogCommand::Create { path, settings, or_existing: true };
        let Ok(Reply::Resource { info, .. }) = self.ask(Command::Catalog(command)) else {
            panic!("not created")
        };
        self.shard.set_catalog(self.shard.catalog_snapshot());
        info.id
    }

    /// Deletes a resource, and lets the shard drop what it holds of it.
    pub fn delete(&mut self, kind: Kind, name: &str) {
        let path = ResourcePath::parse(kind, name).unwrap();
        let answer = self.ask(Command::Catalog(CatalogCommand::Delete { path }));
        assert!(answer.is_ok(), "{answer:?}");
        self.shard.set_catalog(self.shard.catalog_snapshot());
        self.run();
    }
}

/// One record.
pub fn record(value: &[u8]) -> PackedRecords {
    let mut packer = RecordPacker::default();
    packer.push(&RecordView { value, ..RecordView::default() });
    PackedRecords::check(packer.finish()).unwrap()
}

/// Appends one record.
pub fn append(at: PartitionRef, value: &[u8]) -> Command {
    Command::Stream(at, StreamCommand::append(record(value)))
}

/// The values of all records of a partition that has all it ever had.
pub fn read_all(rig: &mut Rig, at: PartitionRef) -> Vec<Vec<u8>> {
    let (earliest, values) = read_what_is_left(rig, at);
    assert_eq!(earliest, 0);
    values
}

/// The first offset of a partition, and the values of its records.
pub fn read_what_is_left(rig: &mut Rig, at: PartitionRef) -> (u64, Vec<Vec<u8>>) {
    let mut values = Vec::new();
    let mut earliest = 0;
    let mut from = ReadFrom::Earliest;
    loop {
        let read = StreamCommand::Read {
            from,
            records_max: 1000,
            bytes_max: 64 << 10,
            bytes_min: 0,
            wait_until: None,
        };
        let answer = rig.ask(Command::Stream(at, read));
        let Ok(Reply::Records(records)) = answer else { panic!("not read: {answer:?}") };
        if values.is_empty() {
            earliest = records.earliest.0;
        }
        if records.runs.is_empty() {
            assert_eq!(records.next, records.high_watermark);
            return (earliest, values);
        }
        for run in &records.runs {
            assert_eq!(run.base, Offset(earliest + values.len() as u64), "offsets are dense");
            values.extend(
                RecordSlices::new(&run.records).map(|r| RecordView::read(r.unwrap()).unwrap().value.to_vec()),
            );
        }
        from = ReadFrom::Offset(records.next);
    }
}

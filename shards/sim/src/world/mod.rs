//! A whole server on simulated hardware: shards, their cores and disks, clients and what they must find, one seed for
//! everything. The same seed gives the same run, byte for byte.
//!
//! | module | what |
//! |---|---|
//! | [`tasks`], [`clock`] | who goes on next, and when |
//! | `server` | a process: shards, the ways between them |
//! | `clients` | streams, queues and keys in use, with a model of each |
//! | [`plan`] | what a seed decides: how many of everything, and which faults |
//! | [`trace`] | what happened |
//!
//! ```text
//! plan ─► start ─► clients at work, faults ─► the process ends ─► start ─► … ─► quiet ─► everything is checked
//! ```

mod clients;
pub mod clock;
pub mod plan;
mod server;
pub mod tasks;
pub mod trace;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use flowmesh_engine::{OpenError, Timer};
use flowmesh_model::{
    CatalogCommand, FeedSettings, GroupSettings, Kind, KvMode, KvSettings, PartitionRef, QueueSettings,
    ResourceInfo, ResourcePath, Settings, StreamSettings,
};
use flowmesh_store::index::IndexError;
use flowmesh_store::log::LogError;
use flowmesh_store::segments::SegmentError;
use futures::channel::oneshot;

use crate::disk::{Operation, SimDisk};
use crate::happened::{Counts, Happened, Happening};
use crate::random::Random;
use clients::fading::Fading;
use clients::groups::Readers;
use clients::keys::Keys;
use clients::letters::{Letters, Target};
use clients::queue::Queue;
use clients::schedules::Schedules;
use clients::stream::Partition;
use clients::{Site, Workload, keys, queue, stream};
use clock::Clock;
use plan::{End, Fault, Odds, Plan, Use};
use server::{Server, Shared};
use tasks::{Group, Tasks};
use trace::Trace;

/// What came of a run that found nothing wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// CRC-32C of the trace.
    pub sum: u32,
    /// Calls, and what happened to the server.
    pub events: u64,
    /// Steps of tasks.
    pub steps: u64,
    /// Operations of disks.
    pub operations: u64,
    /// What went wrong.
    pub happened: Counts,
}

/// Steps of tasks between two looks at what must always hold.
const CHECK_EVERY: u64 = 256;

/// An operation of a slow disk takes up to so many polls or more.
const SLOW_POLLS: u64 = 16;

/// Without an end after so many steps something waits for ever.
const STEPS_MAX: u64 = 3_000_000;

struct World {
    plan: Plan,
    shared: Shared,
    server: Server,
    disk: SimDisk,
    lives: Rc<RefCell<u64>>,
    steps: u64,
    operations: u64,
}

/// Runs a plan to its end.
///
/// # Panics
/// If anything is found that must not be: a promise broken, an invariant that does not hold, or no answer.
pub fn run(plan: &Plan, trace: &Trace) -> Summary {
    let shared = Shared {
        tasks: Tasks::default(),
        clock: Clock::default(),
        trace: trace.clone(),
        random: Rc::new(RefCell::new(Random::new(plan.seed))),
        happened: Happened::default(),
        loss: Rc::default(),
    };
    let disk_seed = shared.random.borrow_mut().next_u64();
    let mut world = World {
        server: Server::new(shared.clone(), plan.shards),
        disk: SimDisk::new(disk_seed)
            .with_polls_max(plan.disk_polls)
            .with_indexes()
            .with_happened(&shared.happened),
        plan: plan.clone(),
        shared,
        lives: Rc::default(),
        steps: 0,
        operations: 0,
    };
    world.live();
    let (sum, events) = trace.sum();
    Summary {
        sum,
        events,
        steps: world.steps,
        operations: world.operations + world.disk.operations(),
        happened: world.shared.happened.counts(),
    }
}

impl World {
    fn note(&self, what: std::fmt::Arguments<'_>) {
        self.shared.trace.line(self.shared.clock.monotonic_ns(), what);
    }

    fn live(&mut self) {
        self.start();
        let used = self.set_up();
        self.begin_clients(&used);
        for life in 0..self.plan.lives {
            self.work(life);
            self.end(life);
            self.start();
        }
        self.finish(used);
        self.server.end();
    }

    /// One step of whatever can go on; time passes if nothing can.
    fn step(&mut self) {
        self.steps += 1;
        assert!(self.steps < STEPS_MAX, "{STEPS_MAX} steps, and no end");
        let chance = self.shared.random.borrow_mut().next_u64();
        let did = self.shared.tasks.step(chance);
        if did {
            // Work takes time, too.
            let ns = self.shared.below(2_000 << self.plan.pace);
            self.shared.clock.pass(ns);
        } else if !self.shared.clock.pass_to_next() {
            // All that could go on stands still.
            self.shared.clock.pass(1_000_000);
        }
        if self.steps.is_multiple_of(CHECK_EVERY) {
            self.server.check_all();
        }
    }

    /// Starts a process, however often that takes.
    fn start(&mut self) {
        for hard in [self.plan.has(Fault::HardStarts), false, false] {
            if self.try_to_start(hard) {
                self.note(format_args!("up"));
                return;
            }
        }
        panic!("no start");
    }

    /// One try. What goes wrong is a thing of the past at the next one, and so is damage, once it was named.
    fn try_to_start(&mut self, is_hard: bool) -> bool {
        let ends = if is_hard { self.make_hard() } else { u64::MAX };
        self.server.start(&self.disk);
        let mut steps = 0;
        let failure = loop {
            self.step();
            steps += 1;
            let failure = self.server.take_failure();
            if failure.is_some() || self.disk.is_off() || steps >= ends {
                break failure;
            }
            if self.server.is_up() {
                self.disk.forget_faults();
                return true;
            }
        };
        let is_off = self.disk.is_off();
        self.look_at_failed_start(failure.filter(|_| !is_off).as_ref(), is_hard);
        let end = if is_off || self.shared.below(2) == 0 { End::Crash } else { End::Kill };
        self.end_process(end);
        false
    }

    /// A start failed for a reason that there is, or was ended.
    fn look_at_failed_start(&self, failure: Option<&OpenError>, is_hard: bool) {
        let Some(error) = failure else { return self.shared.happened.note(Happening::EndedStart) };
        self.note(format_args!("refused: {error}"));
        let why = why_refused(error);
        self.shared.happened.note(why);
        if why == Happening::RefusedStart {
            assert!(self.disk.is_decayed(), "damage where there is none: {error}");
            self.disk.heal();
        } else {
            assert!(is_hard, "no start: {error}");
        }
    }

    /// From now on commands may be refused for what cannot be read.
    fn lose(&self, refused: Happening) {
        let before = self.shared.loss.get();
        self.shared.loss.set(before.filter(|before| *before == Happening::NamedDamage).or(Some(refused)));
    }

    /// Plans something to go wrong during a start. Returns after how many steps it ends in any case.
    fn make_hard(&mut self) -> u64 {
        let soon = 1 + self.shared.below(60);
        let fails = |operation| self.disk.fail(operation, soon, io::ErrorKind::Other);
        match self.shared.below(8) {
            0 => fails(Operation::Read),
            1 => fails(Operation::Sync),
            2 => fails(Operation::Write),
            3 => fails(Operation::Index),
            4 => self.disk.power_cut_after(soon),
            5 => return self.shared.below(400),
            _ => {}
        }
        u64::MAX
    }

    /// Lets a future run to its end, whatever else happens.
    fn wait_for<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        let (done, mut over) = oneshot::channel();
        self.shared.tasks.spawn(Group::Client, async move {
            drop(done.send(future.await));
        });
        loop {
            self.step();
            if let Some(outcome) = over.try_recv().expect("a client does not end without a word") {
                return outcome;
            }
        }
    }

    fn create(&mut self, kind: Kind, name: &str, settings: Settings) -> std::sync::Arc<ResourceInfo> {
        let path = ResourcePath::parse(kind, name).expect("a name");
        let server = self.server.clone();
        let create = CatalogCommand::Create { path, settings, or_existing: true };
        let outcome = self.wait_for(async move { server.create(create).await });
        outcome.unwrap_or_else(|reject| panic!("not created: {reject}"))
    }

    fn set_up(&mut self) -> Used {
        let site = Site {
            shared: self.shared.clone(),
            server: self.server.clone(),
            impatient: if self.plan.has(Fault::Disconnects) { 20 } else { 0 },
        };
        let stream = StreamSettings { partitions: 2, segment_bytes: 64 << 10, ..StreamSettings::default() };
        let stream = self.create(Kind::Stream, "events", Settings::Stream(stream));
        let partitions = (0..2).map(|partition| Partition {
            site: site.clone(),
            at: PartitionRef { resource: stream.id, partition },
            shard: self.server.shard_of(stream.placement.partition_slot(partition)),
            model: Rc::<RefCell<stream::Model>>::default(),
        });
        let partitions = partitions.collect();
        let queue = self.create(Kind::Queue, "jobs", Settings::Queue(patient()));
        let queue = Queue {
            shard: self.server.shard_of(queue.placement.partition_slot(0)),
            id: queue.id,
            site: site.clone(),
            model: Rc::<RefCell<queue::Model>>::default(),
        };
        // One that keeps nothing else, one with a feed and a past.
        let feed =
            FeedSettings { stream: "default/default/stream/changes".to_owned(), ..FeedSettings::default() };
        let kept = KvSettings {
            feed: Some(FeedSettings { old_values: true, ..feed }),
            history_ms: Some(1_000),
            ..KvSettings::default()
        };
        let stores = [("plain", KvSettings::default()), ("kept", kept)].map(|(name, settings)| {
            let store = self.create(Kind::Kv, name, Settings::Kv(settings));
            Keys {
                site: site.clone(),
                store: store.id,
                placement: store.placement.clone(),
                shared: Rc::<RefCell<keys::Together>>::default(),
            }
        });
        let others = self.plan.uses.clone().into_iter().map(|used| self.set_up_other(used, &site)).collect();
        Used { partitions, queue, stores: stores.into(), others }
    }

    fn set_up_other(&mut self, used: Use, site: &Site) -> Box<dyn Workload> {
        match used {
            Use::Ending => self.set_up_fading("ending", KvSettings::default(), site),
            Use::Cache => {
                let settings =
                    KvSettings { mode: KvMode::Cache, entries_max: Some(24), ..KvSettings::default() };
                self.set_up_fading("cache", settings, site)
            }
            Use::LettersToQueue => {
                let target = self.create(Kind::Queue, "letters", Settings::Queue(patient()));
                self.set_up_letters("dying", Target::Queue(target.id), &target, site)
            }
            Use::LettersToStream => {
                let target =
                    self.create(Kind::Stream, "letters", Settings::Stream(StreamSettings::default()));
                let at = PartitionRef { resource: target.id, partition: 0 };
                self.set_up_letters("dying-too", Target::Stream(at), &target, site)
            }
            Use::Schedules => {
                let queue = self.create(Kind::Queue, "ticking", Settings::Queue(patient()));
                let shard = self.server.shard_of(queue.placement.partition_slot(0));
                Box::new(Schedules { site: site.clone(), queue: queue.id, shard, model: Rc::default() })
            }
            Use::Group => {
                let stream = StreamSettings { partitions: 5, ..StreamSettings::default() };
                let stream = self.create(Kind::Stream, "shared", Settings::Stream(stream));
                let settings = GroupSettings {
                    session_timeout_ms: 1_000,
                    rebalance_timeout_ms: 1_000,
                    ..GroupSettings::default()
                };
                let group = self.create(Kind::Group, "readers", Settings::Group(settings));
                Box::new(Readers {
                    site: site.clone(),
                    group: group.id,
                    shard: self.server.shard_of(group.placement.partition_slot(0)),
                    stream: stream.id,
                    partitions: 5,
                    model: Rc::default(),
                })
            }
        }
    }

    fn set_up_letters(
        &mut self,
        name: &str,
        target: Target,
        info: &ResourceInfo,
        site: &Site,
    ) -> Box<dyn Workload> {
        let dead_letters_to = Some(info.path.as_str().to_owned());
        let settings = QueueSettings { dead_letters_to, ..patient() };
        let source = self.create(Kind::Queue, name, Settings::Queue(settings));
        Box::new(Letters {
            site: site.clone(),
            source: source.id,
            source_shard: self.server.shard_of(source.placement.partition_slot(0)),
            target,
            target_shard: self.server.shard_of(info.placement.partition_slot(0)),
            model: Rc::default(),
        })
    }

    fn set_up_fading(&mut self, name: &str, settings: KvSettings, site: &Site) -> Box<dyn Workload> {
        let entries_max = settings.entries_max;
        let store = self.create(Kind::Kv, name, Settings::Kv(settings));
        Box::new(Fading {
            site: site.clone(),
            store: store.id,
            placement: store.placement.clone(),
            entries_max,
            shards: self.plan.shards,
            held: Rc::default(),
        })
    }

    fn begin_clients(&self, used: &Used) {
        let tasks = &self.shared.tasks;
        for client in 0..self.plan.clients {
            for partition in &used.partitions {
                tasks.spawn(Group::Client, partition.clone().use_it());
            }
            tasks.spawn(Group::Client, used.queue.clone().use_it());
            for keys in &used.stores {
                let (keys, lives) = (keys.clone(), Rc::clone(&self.lives));
                tasks.spawn(Group::Client, async move { keys.use_it(client, lives).await });
            }
            for other in &used.others {
                tasks.spawn(Group::Client, other.use_it(client));
            }
        }
    }

    /// Clients work, and things go wrong.
    fn work(&mut self, life: u64) {
        let steps = self.plan.steps / 2 + self.shared.below(self.plan.steps);
        if self.plan.end_of(life) == End::PowerCut {
            let operations = 1 + self.shared.below(self.plan.steps / 4);
            self.note(format_args!("power fails after {operations} operations"));
            self.disk.power_cut_after(operations);
        }
        for _ in 0..steps {
            self.go_wrong();
            self.step();
            // A machine without power does nothing more; a server that takes no writes is started again by somebody, some day.
            let is_useless =
                self.steps.is_multiple_of(64) && self.shared.below(8) == 0 && self.server.is_fenced();
            if self.disk.is_off() || is_useless {
                break;
            }
        }
        for core in 0..self.plan.shards {
            self.shared.tasks.stall(Group::Core(core), false);
        }
    }

    /// Those of the plan's faults happen that are due, or one that lasts is over.
    fn go_wrong(&mut self) {
        for place in 0..self.plan.faults.len() {
            let Odds { fault, once_in } = self.plan.faults[place];
            if self.shared.below(once_in) == 0 {
                self.go_wrong_by(fault);
            }
        }
    }

    fn go_wrong_by(&mut self, fault: Fault) {
        let soon = 1 + self.shared.below(30);
        self.note(format_args!("{fault:?} {soon}"));
        let happened = |happening| self.shared.happened.note(happening);
        match fault {
            Fault::FailedWrite => self.disk.fail(Operation::Write, soon, io::ErrorKind::Other),
            Fault::FailedRead => {
                self.lose(Happening::NamedFailure);
                self.disk.fail(Operation::Read, 1 + soon / 8, io::ErrorKind::Other);
            }
            Fault::FailedSync => self.disk.fail(Operation::Sync, soon, io::ErrorKind::Other),
            Fault::FailedCreate => self.disk.fail(Operation::Create, 1 + soon / 8, io::ErrorKind::Other),
            Fault::NoSpace => {
                let space = if self.shared.below(2) == 0 { None } else { Some(self.disk.used_bytes()) };
                self.disk.set_space(space);
            }
            Fault::FullIndex => self.disk.fail(Operation::Index, soon, io::ErrorKind::StorageFull),
            Fault::FailedIndex => {
                self.lose(Happening::NamedFailure);
                self.disk.fail(Operation::Index, soon, io::ErrorKind::Other);
            }
            Fault::DecayedBits => {
                if let Some((file, byte)) = self.disk.decay() {
                    self.lose(Happening::NamedDamage);
                    self.note(format_args!("a bit decays in {} at byte {byte}", file.display()));
                }
            }
            Fault::StalledCore => {
                let core = Group::Core(self.shared.below(self.plan.shards.into()) as u16);
                let stands = self.shared.below(2) == 0;
                if stands {
                    happened(Happening::StalledCore);
                }
                self.shared.tasks.stall(core, stands);
            }
            Fault::ClockJumps => {
                let ms = self.shared.below(400).cast_signed() - 200;
                happened(if ms < 0 { Happening::ClockBack } else { Happening::ClockForward });
                self.shared.clock.jump(ms);
            }
            Fault::SlowDisk => {
                let polls = self.shared.below(60);
                if polls >= SLOW_POLLS {
                    happened(Happening::SlowDisk);
                }
                self.disk.set_polls_max(polls);
            }
            // Clients do that by themselves, and starts are another matter.
            Fault::Disconnects | Fault::HardStarts => {}
        }
    }

    /// The process ends.
    fn end(&mut self, life: u64) {
        let end = self.plan.end_of(life);
        self.note(format_args!("{end:?}"));
        *self.lives.borrow_mut() += 1;
        self.end_process(end);
    }

    fn end_process(&mut self, end: End) {
        self.server.end();
        match end {
            End::Kill => {
                self.shared.happened.note(Happening::Kill);
                self.disk.restart();
            }
            End::PowerCut | End::Crash => {
                if !self.disk.is_off() {
                    self.shared.happened.note(Happening::Crash);
                }
                self.operations += self.disk.operations();
                self.disk = self.disk.crash();
            }
        }
        self.disk.set_space(None);
        self.disk.set_polls_max(self.plan.disk_polls);
        self.shared.loss.set(self.disk.is_decayed().then_some(Happening::NamedDamage));
    }

    /// What is not damaged is as it should be, and what is damaged is not shown. Then the disk is what it was.
    fn look_at_damage(&mut self, used: &Used) {
        self.note(format_args!("damage"));
        for partition in used.partitions.clone() {
            self.wait_for(async move {
                for _ in 0..8 {
                    partition.read_some().await;
                }
                partition.check().await
            });
        }
        self.end_process(End::Kill);
        self.disk.heal();
        self.shared.loss.set(None);
        self.start();
    }

    /// Nothing goes wrong any more; everything is looked at.
    fn finish(&mut self, used: Used) {
        self.shared.tasks.end_clients();
        if self.disk.is_decayed() {
            self.look_at_damage(&used);
        }
        self.note(format_args!("quiet"));
        let quiet = |site: &Site| Site { impatient: 0, ..site.clone() };
        for mut partition in used.partitions {
            partition.site = quiet(&partition.site);
            assert!(self.wait_for(async move { partition.check().await }), "a stream does not answer");
        }
        for mut keys in used.stores {
            keys.site = quiet(&keys.site);
            assert!(self.wait_for(async move { keys.check().await }), "a store does not answer");
        }
        for other in used.others {
            let checked = other.check(quiet(&used.queue.site));
            assert!(self.wait_for(checked), "{:?} do not answer", self.plan.uses);
        }
        let mut queue = used.queue;
        queue.site = quiet(&queue.site);
        assert!(self.wait_for(async move { queue.drain().await }), "a queue does not answer");
        self.server.check_all();
    }
}

/// A queue whose jobs have attempts enough, soon after each other.
fn patient() -> QueueSettings {
    QueueSettings {
        max_attempts: 10_000,
        backoff_initial_ms: 1,
        backoff_max_ms: 10,
        ..QueueSettings::default()
    }
}

/// What a start that was refused counts as. What passed its checksum is not damaged.
fn why_refused(error: &OpenError) -> Happening {
    match error {
        OpenError::Log(LogError::Io { .. })
        | OpenError::Segments(SegmentError::Io { .. })
        | OpenError::Index(IndexError::Closed { .. }) => Happening::FailedStart,
        OpenError::Log(
            LogError::Damaged { .. } | LogError::EndsEarly { .. } | LogError::StartsLate { .. },
        )
        | OpenError::Segments(SegmentError::Damaged { .. } | SegmentError::Missing { .. }) => {
            Happening::RefusedStart
        }
        other => panic!("no start: {other}"),
    }
}

/// What clients use.
struct Used {
    partitions: Vec<Partition>,
    queue: Queue,
    stores: Vec<Keys>,
    others: Vec<Box<dyn Workload>>,
}

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

use flowmesh_engine::Timer;
use flowmesh_model::{
    CatalogCommand, Kind, PartitionRef, QueueSettings, ResourceInfo, ResourcePath, Settings, StreamSettings,
};
use futures::channel::oneshot;

use crate::disk::{Operation, SimDisk};
use crate::random::Random;
use clients::keys::Keys;
use clients::queue::Queue;
use clients::stream::Partition;
use clients::{Site, keys, queue, stream};
use clock::Clock;
use plan::{End, Fault, Plan};
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
}

/// Steps of tasks between two looks at what must always hold.
const CHECK_EVERY: u64 = 256;

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
    };
    let disk_seed = shared.random.borrow_mut().next_u64();
    let mut world = World {
        server: Server::new(shared.clone(), plan.shards),
        disk: SimDisk::new(disk_seed).with_polls_max(plan.disk_polls).with_indexes(),
        plan: plan.clone(),
        shared,
        lives: Rc::default(),
        steps: 0,
        operations: 0,
    };
    world.live();
    let (sum, events) = trace.sum();
    Summary { sum, events, steps: world.steps, operations: world.operations + world.disk.operations() }
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
            let ns = self.shared.below(2_000);
            self.shared.clock.pass(ns);
        } else if !self.shared.clock.pass_to_next() {
            // All that could go on stands still.
            self.shared.clock.pass(1_000_000);
        }
        if self.steps.is_multiple_of(CHECK_EVERY) {
            self.server.check_all();
        }
    }

    /// Starts a process; a disk that still fails is a thing of the past after some tries.
    fn start(&mut self) {
        self.server.start(&self.disk);
        while !self.server.is_up() {
            self.step();
            assert!(self.server.failure().is_none(), "no start: {:?}", self.server.failure());
        }
        self.note(format_args!("up"));
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
        let settings = QueueSettings {
            max_attempts: 10_000,
            backoff_initial_ms: 1,
            backoff_max_ms: 10,
            ..QueueSettings::default()
        };
        let queue = self.create(Kind::Queue, "jobs", Settings::Queue(settings));
        let queue = Queue {
            shard: self.server.shard_of(queue.placement.partition_slot(0)),
            id: queue.id,
            site: site.clone(),
            model: Rc::<RefCell<queue::Model>>::default(),
        };
        let store = self.create(Kind::Kv, "store", Settings::default_for(Kind::Kv));
        let keys = Keys {
            site,
            store: store.id,
            placement: store.placement.clone(),
            shared: Rc::<RefCell<keys::Together>>::default(),
        };
        Used { partitions, queue, keys }
    }

    fn begin_clients(&self, used: &Used) {
        let tasks = &self.shared.tasks;
        for client in 0..self.plan.clients {
            for partition in &used.partitions {
                tasks.spawn(Group::Client, partition.clone().use_it());
            }
            tasks.spawn(Group::Client, used.queue.clone().use_it());
            let (keys, lives) = (used.keys.clone(), Rc::clone(&self.lives));
            tasks.spawn(Group::Client, async move { keys.use_it(client, lives).await });
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
            if self.shared.below(400) == 0 {
                self.go_wrong();
            }
            self.step();
            // A machine without power does nothing more.
            if self.disk.is_off() {
                break;
            }
        }
        for core in 0..self.plan.shards {
            self.shared.tasks.stall(Group::Core(core), false);
        }
    }

    /// One of the plan's faults happens, or one that lasts is over.
    fn go_wrong(&mut self) {
        let faults = &self.plan.faults;
        if faults.is_empty() {
            return;
        }
        let fault = faults[self.shared.below(faults.len() as u64) as usize];
        let soon = 1 + self.shared.below(30);
        self.note(format_args!("{fault:?} {soon}"));
        match fault {
            Fault::FailedWrite => self.disk.fail(Operation::Write, soon, io::ErrorKind::Other),
            Fault::FailedSync => self.disk.fail(Operation::Sync, soon, io::ErrorKind::Other),
            Fault::FailedCreate => self.disk.fail(Operation::Create, soon, io::ErrorKind::Other),
            Fault::NoSpace => {
                let space = if self.shared.below(2) == 0 { None } else { Some(self.disk.used_bytes()) };
                self.disk.set_space(space);
            }
            Fault::FullIndex => self.disk.fail(Operation::Index, soon, io::ErrorKind::StorageFull),
            Fault::StalledCore => {
                let core = Group::Core(self.shared.below(self.plan.shards.into()) as u16);
                let stands = self.shared.below(2) == 0;
                self.shared.tasks.stall(core, stands);
            }
            Fault::ClockJumps => {
                let ms = self.shared.below(400).cast_signed() - 200;
                self.shared.clock.jump(ms);
            }
            Fault::SlowDisk => {
                let polls = self.shared.below(60);
                self.disk.set_polls_max(polls);
            }
            // Clients do that by themselves.
            Fault::Disconnects => {}
        }
    }

    /// The process ends.
    fn end(&mut self, life: u64) {
        let end = self.plan.end_of(life);
        self.note(format_args!("{end:?}"));
        self.server.end();
        *self.lives.borrow_mut() += 1;
        self.operations += self.disk.operations();
        match end {
            End::Kill => self.disk.restart(),
            End::PowerCut | End::Crash => self.disk = self.disk.crash(),
        }
        self.disk.set_space(None);
        self.disk.set_polls_max(self.plan.disk_polls);
    }

    /// Nothing goes wrong any more; everything is looked at.
    fn finish(&mut self, used: Used) {
        self.shared.tasks.end_clients();
        self.note(format_args!("quiet"));
        let quiet = |site: &Site| Site { impatient: 0, ..site.clone() };
        for mut partition in used.partitions {
            partition.site = quiet(&partition.site);
            assert!(self.wait_for(async move { partition.check().await }), "a stream does not answer");
        }
        let mut keys = used.keys;
        keys.site = quiet(&keys.site);
        assert!(self.wait_for(async move { keys.check().await }), "a store does not answer");
        let mut queue = used.queue;
        queue.site = quiet(&queue.site);
        assert!(self.wait_for(async move { queue.drain().await }), "a queue does not answer");
        self.server.check_all();
    }
}

/// What clients use.
struct Used {
    partitions: Vec<Partition>,
    queue: Queue,
    keys: Keys,
}

//! Jobs on their way between two whole shards, each on a simulated disk whose power fails at any operation, over a way that
//! loses, repeats and forgets to answer: in the end what moved is in one place, and of every copy there is one.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "a test")]

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use common::{Answer, Rig, SimTimer, seeds};
use flowmesh_engine::{Health, ReplySink, Shard, SinkFn, Transport};
use flowmesh_model::command::{LeaseRef, Nack, NewJob};
use flowmesh_model::job::{JobCursor, JobFilter, JobPhase, NackKind, Which};
use flowmesh_model::reply::QueueStatus;
use flowmesh_model::transfer::Arrival;
use flowmesh_model::{
    Command, Kind, PartitionRef, QueueCommand, QueueSettings, Reject, Reply, ResourceId, Settings,
    TransferCommand,
};
use flowmesh_sim::{Random, SimDisk};
use futures::task::LocalSpawnExt;

/// Longer than the longest wait between two tries.
const LONG_MS: u64 = 6_000;

/// The way to the target: whichever shard is up now, if the way is open.
#[derive(Clone)]
struct Way {
    target: Rc<RefCell<Option<Shard<SimDisk, SimTimer>>>>,
    random: Rc<RefCell<Random>>,
    /// Of a hundred deliveries so many go wrong.
    wrong: Rc<RefCell<u64>>,
}

impl Transport for Way {
    fn deliver(&self, to: PartitionRef, arrival: Arrival, sink: Box<dyn ReplySink>) {
        let target = self.target.borrow().clone();
        let Some(target) = target else { return sink.deliver(Err(Reject::ShuttingDown)) };
        let nobody = || Box::new(SinkFn(|_| {}));
        let send = |arrival, sink| {
            let receive = QueueCommand::Transfer(TransferCommand::Receive(arrival));
            target.submit(Command::Queue(to.resource, receive), sink);
        };
        let fate = self.random.borrow_mut().below(100);
        match fate.checked_sub(100 - *self.wrong.borrow()) {
            None => send(arrival, sink),
            // It is lost; it arrives and the answer is lost; it arrives twice.
            Some(fate) if fate % 3 == 0 => drop(sink),
            Some(fate) if fate % 3 == 1 => send(arrival, nobody()),
            Some(_) => {
                send(arrival.clone(), nobody());
                send(arrival, sink);
            }
        }
    }
}

/// A shard with its directory, which outlives it.
struct Node {
    dir: tempfile::TempDir,
    rig: Option<Rig>,
}

impl Node {
    fn rig(&mut self) -> &mut Rig {
        self.rig.as_mut().unwrap()
    }

    /// Ends it; what is left on its disk.
    fn end(&mut self) -> (PathBuf, SimDisk) {
        let rig = self.rig.take().unwrap();
        let disk = rig.disk.crash();
        drop(rig);
        (self.dir.path().to_owned(), disk)
    }

    fn is_down(&self) -> bool {
        matches!(self.rig.as_ref().unwrap().shard.health(), Health::Fenced(_))
    }
}

struct Test {
    seed: u64,
    random: Random,
    timer: SimTimer,
    source: Node,
    target: Node,
    way: Way,
    mail: ResourceId,
    other: ResourceId,
    bin: ResourceId,
    sandbox: ResourceId,
    /// Payloads that were to be enqueued, and whether that was acknowledged.
    enqueued: Vec<Answer>,
}

fn settings(settings: QueueSettings) -> Settings {
    Settings::Queue(settings)
}

fn all() -> Which {
    Which::Matching(JobFilter::default(), JobCursor::default())
}

impl Test {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let timer = SimTimer::default();
        let mut node = |seed| {
            let dir = tempfile::tempdir().unwrap();
            let disk = SimDisk::new(seed).with_polls_max(random.below(4));
            disk.put_dir(dir.path());
            let rig = Rig::open_among(dir.path(), disk, timer.clone(), |_| {});
            Node { dir, rig: Some(rig) }
        };
        let (mut source, target) = (node(seed), node(seed + 1_000_000));
        let rig = source.rig();
        rig.shard.set_catalog(rig.shard.catalog_snapshot());
        let [bin, other] = ["bin", "other"].map(|name| rig.create(Kind::Queue, name));
        let sandbox =
            rig.create_with("play", settings(QueueSettings { sandbox: true, ..QueueSettings::default() }));
        let mail = QueueSettings {
            max_attempts: 1,
            visibility_timeout_ms: 500,
            dead_letters_to: Some("default/default/queue/bin".to_owned()),
            ..QueueSettings::default()
        };
        let mail = rig.create_with("mail", settings(mail));
        let way = Way {
            target: Rc::default(),
            random: Rc::new(RefCell::new(Random::new(seed + 7))),
            wrong: Rc::new(RefCell::new(30)),
        };
        let enqueued = Vec::new();
        let mut test = Self { seed, random, timer, source, target, way, mail, other, bin, sandbox, enqueued };
        test.begin_target();
        test.begin_source();
        test
    }

    fn begin_source(&mut self) {
        let (rig, way) = (self.source.rig(), self.way.clone());
        rig.shard.set_catalog(rig.shard.catalog_snapshot());
        let transfers = rig.shard.clone().run_transfers(way);
        rig.pool.spawner().spawn_local(transfers).unwrap();
    }

    fn begin_target(&mut self) {
        let catalog = self.source.rig().shard.catalog_snapshot();
        let rig = self.target.rig();
        rig.shard.set_catalog(catalog);
        *self.way.target.borrow_mut() = Some(rig.shard.clone());
    }

    fn restart_source(&mut self) {
        let (dir, disk) = self.source.end();
        self.source.rig = Some(Rig::open_among(&dir, disk, self.timer.clone(), |_| {}));
        self.begin_source();
    }

    fn restart_target(&mut self) {
        *self.way.target.borrow_mut() = None;
        let (dir, disk) = self.target.end();
        // What is sent meanwhile finds nobody.
        for _ in 0..self.random.below(3) {
            self.source.rig().run();
            self.timer.advance(50);
        }
        self.target.rig = Some(Rig::open_among(&dir, disk, self.timer.clone(), |_| {}));
        self.begin_target();
    }

    fn run(&mut self) {
        for _ in 0..4 {
            self.source.rig().run();
            self.target.rig().run();
        }
    }

    fn submit(&mut self, command: QueueCommand) -> Answer {
        let command = Command::Queue(self.mail, command);
        self.source.rig().submit(command)
    }

    fn enqueue(&mut self) {
        for _ in 0..=self.random.below(6) {
            let mut payload = self.enqueued.len().to_string().into_bytes();
            payload.resize(payload.len() + self.random.below(400) as usize, b'.');
            let job = NewJob { payload: payload.into(), ..NewJob::default() };
            let answer = self.submit(QueueCommand::enqueue([job].into_iter().collect()));
            self.enqueued.push(answer);
        }
    }

    /// Lets some jobs die, if they can be had.
    fn fail_jobs(&mut self) {
        let reserve = QueueCommand::Reserve {
            jobs_max: 1 + self.random.below(8) as u32,
            visibility_timeout_ms: None,
            worker: Bytes::from_static(b"w"),
            wait_until: None,
        };
        let answer = self.submit(reserve);
        self.run();
        let Some(Ok(Reply::Reserved(jobs))) = answer.borrow_mut().take() else { return };
        let nack = |job: &flowmesh_model::reply::LeasedJob| Nack {
            lease: LeaseRef { job: job.job, token: job.token },
            kind: NackKind::Final,
            delay_ms: None,
            error: Bytes::from_static(b"no"),
        };
        if !jobs.is_empty() {
            self.submit(QueueCommand::Nack { nacks: jobs.iter().map(nack).collect() });
        }
    }

    fn step(&mut self) {
        match self.random.below(24) {
            0..=5 => self.enqueue(),
            6..=10 => self.fail_jobs(),
            11..=13 => {
                let (which, to) = (all(), self.other);
                let send = TransferCommand::Move { which, to, per_second: None, delay_ms: 0 };
                self.submit(QueueCommand::Transfer(send));
            }
            14 => {
                let (which, to) = (all(), self.sandbox);
                let replay = TransferCommand::Replay { which, phase: JobPhase::Dead, to };
                self.submit(QueueCommand::Transfer(replay));
            }
            15 => self.restart_source(),
            16 => self.restart_target(),
            17 | 18 => {
                let operations = 1 + self.random.below(60);
                let source = self.random.below(2) == 0;
                let node = if source { &mut self.source } else { &mut self.target };
                node.rig().disk.power_cut_after(operations);
            }
            _ => self.timer.advance(self.random.below(300)),
        }
        match self.random.below(4) {
            0 => self.run(),
            1 => self.source.rig().run(),
            2 => self.target.rig().run(),
            _ => {}
        }
        if self.source.is_down() {
            self.restart_source();
        }
        if self.target.is_down() {
            self.restart_target();
        }
    }

    fn status(&mut self) -> QueueStatus {
        let command = Command::Queue(self.mail, QueueCommand::Status);
        match self.source.rig().ask(command) {
            Ok(Reply::QueueStatus(status, _)) => status,
            other => panic!("no status: {other:?}"),
        }
    }

    /// Without another failure: all jobs die, and all that is dead moves.
    fn settle(&mut self) -> QueueStatus {
        self.restart_source();
        self.restart_target();
        *self.way.wrong.borrow_mut() = 0;
        for _ in 0..20_000 {
            self.fail_jobs();
            let (which, to) = (all(), self.other);
            let send = TransferCommand::Move { which, to, per_second: None, delay_ms: 0 };
            self.submit(QueueCommand::Transfer(send));
            self.run();
            self.timer.advance(LONG_MS / 20);
            self.run();
            let status = self.status();
            if status.ready + status.delayed + status.leased + status.dead + status.outbox == 0 {
                return status;
            }
            // Payloads that left memory come from another thread.
            std::thread::sleep(Duration::from_millis(1));
        }
        let (status, outbox) = (self.status(), QueueCommand::Transfer(TransferCommand::Outbox));
        let outbox = self.source.rig().ask(Command::Queue(self.mail, outbox));
        panic!("seed {}: it never settles: {status:?}, {outbox:?}", self.seed);
    }

    /// How often each payload, by its number, came to a queue of the target.
    fn arrived(&mut self, queue: ResourceId) -> BTreeMap<usize, u64> {
        let mut arrived = BTreeMap::new();
        loop {
            let reserve = QueueCommand::Reserve {
                jobs_max: 100,
                visibility_timeout_ms: Some(10_000_000),
                worker: Bytes::new(),
                wait_until: None,
            };
            let jobs = match self.target.rig().ask(Command::Queue(queue, reserve)) {
                Ok(Reply::Reserved(jobs)) => jobs,
                // Nothing ever came here.
                Err(Reject::ResourceNotFound { .. }) => return arrived,
                other => panic!("not reserved: {other:?}"),
            };
            if jobs.is_empty() {
                return arrived;
            }
            for job in &jobs {
                let digits: Vec<u8> = job.payload.iter().copied().take_while(u8::is_ascii_digit).collect();
                let number = String::from_utf8(digits).unwrap().parse().unwrap();
                *arrived.entry(number).or_default() += 1;
            }
        }
    }

    fn check(&mut self) {
        let seed = self.seed;
        let status = self.settle();
        let [moved, dead, replayed] = [self.other, self.bin, self.sandbox].map(|queue| self.arrived(queue));
        assert!(moved.values().all(|times| *times == 1), "seed {seed}: a job moves once: {moved:?}");
        assert_eq!(dead, moved, "seed {seed}: each died once, so there is one copy of each");
        for (number, answer) in self.enqueued.iter().enumerate() {
            let acknowledged = matches!(&*answer.borrow(), Some(Ok(_)));
            assert!(!acknowledged || moved.contains_key(&number), "seed {seed}: job {number} is lost");
        }
        let copies = dead.values().sum::<u64>() + replayed.values().sum::<u64>();
        assert_eq!(status.moved_total, moved.len() as u64, "seed {seed}");
        assert_eq!(status.copied_total, copies, "seed {seed}: as many copies as were sent");
        assert_eq!(status.send_failed_total, 0, "seed {seed}");
        for node in [&mut self.source, &mut self.target] {
            node.rig().shard.check_all();
        }
    }
}

#[test]
fn what_is_sent_arrives_once_though_the_power_of_either_shard_fails_at_any_operation() {
    let count = seeds(8);
    let mut moved = 0;
    for seed in 0..count {
        let mut test = Test::new(seed);
        for _ in 0..150 {
            test.step();
        }
        test.check();
        moved += test.status().moved_total;
    }
    assert!(moved > 100 * count, "much was sent: {moved}");
}

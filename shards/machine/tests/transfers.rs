//! Jobs between two shards, each of which may crash at any moment and lose what is not durable, over a network that loses,
//! repeats and reorders: in the end every job that moved is in one place, and of every copy there is one.

// A test fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::{Outcome, World, cases, values};
use flowmesh_model::command::{Ack, LeaseRef, Nack, NewJob, ReadFrom};
use flowmesh_model::job::{JobCursor, JobFilter, JobPhase, NackKind, Which};
use flowmesh_model::transfer::fact::TransferFact;
use flowmesh_model::transfer::{Arrival, TransferMode};
use flowmesh_model::{
    Command, Fact, Kind, Lsn, PartitionRef, QueueCommand, QueueSettings, Reject, Reply, ResourceId, Settings,
    StreamCommand, StreamSettings, TransferCommand, TransferReply,
};
use proptest::prelude::*;

/// What one shard tells the other.
#[derive(Clone, Debug)]
enum Message {
    Jobs(PartitionRef, Arrival),
    Has(PartitionRef, u64),
    Refused(PartitionRef, u64, Bytes),
}

/// A shard whose log is on disk up to some entry, and what it says only once that is.
struct Node {
    world: World,
    durable: Lsn,
    parked: Vec<(Lsn, Message)>,
}

impl Node {
    fn new(world: World) -> Self {
        Self { world, durable: Lsn(0), parked: Vec::new() }
    }

    fn say(&mut self, message: Message) {
        self.parked.push((self.world.lsn, message));
    }

    fn sync(&mut self, out: &mut Vec<Message>) {
        self.durable = self.world.lsn;
        out.extend(std::mem::take(&mut self.parked).into_iter().map(|(_, message)| message));
    }

    fn checkpoint(&mut self) {
        if self.durable == self.world.lsn {
            self.world.seal();
            self.world.write();
            self.world.evict_bodies(1);
        }
    }

    /// What is not durable is gone.
    fn crash(&mut self) {
        self.parked.clear();
        self.world.log.retain(|(at, _)| at.lsn <= self.durable);
        self.world.lsn = self.durable;
        self.world.crash();
    }
}

const MAIL: &str = "mail";

struct Test {
    source: Node,
    target: Node,
    mail: ResourceId,
    /// A queue that jobs move to, a sandbox, and where dead letters go.
    other: ResourceId,
    sandbox: ResourceId,
    dead_letters: Vec<PartitionRef>,
    network: Vec<Message>,
    next_payload: u64,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Enqueue(u8),
    /// Reserves so many and ends them: dead, done or back.
    Work(u8, u8),
    Redrive,
    Purge,
    Move(u8),
    Replay(bool),
    Pass(u64),
    Tick,
    Send(u8),
    Deliver {
        which: usize,
        keep: bool,
    },
    Lose(usize),
    Drain(u8),
    Sync(bool),
    Checkpoint(bool),
    Crash(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u8..5).prop_map(Step::Enqueue),
        5 => (1u8..5, 0u8..6).prop_map(|(jobs, end)| Step::Work(jobs, end)),
        1 => Just(Step::Redrive),
        1 => Just(Step::Purge),
        3 => (0u8..4).prop_map(Step::Move),
        2 => any::<bool>().prop_map(Step::Replay),
        3 => (0u64..40).prop_map(Step::Pass),
        4 => Just(Step::Tick),
        7 => (0u8..4).prop_map(Step::Send),
        9 => (0usize..100, any::<bool>()).prop_map(|(which, keep)| Step::Deliver { which, keep }),
        1 => (0usize..100).prop_map(Step::Lose),
        1 => (1u8..5).prop_map(Step::Drain),
        8 => any::<bool>().prop_map(Step::Sync),
        2 => any::<bool>().prop_map(Step::Checkpoint),
        2 => any::<bool>().prop_map(Step::Crash),
    ]
}

impl Test {
    fn new(to_stream: bool, jobs_max: Option<u64>, dead_retention_ms: Option<u64>) -> Self {
        let mut world = World::default();
        let settings = QueueSettings { jobs_max, ..QueueSettings::default() };
        let other = world.create_with("other", Settings::Queue(settings));
        let settings = QueueSettings { sandbox: true, ..QueueSettings::default() };
        let sandbox = world.create_with("play", Settings::Queue(settings));
        let (dead_letters, dead_letters_to) = if to_stream {
            let stream = StreamSettings { partitions: 2, ..StreamSettings::default() };
            let resource = world.create_with("feed", Settings::Stream(stream));
            let at = |partition| PartitionRef { resource, partition };
            (vec![at(0), at(1)], "default/default/stream/feed")
        } else {
            let resource = world.create(Kind::Queue, "bin");
            (vec![PartitionRef { resource, partition: 0 }], "default/default/queue/bin")
        };
        let settings = QueueSettings {
            max_attempts: 1,
            done_retention_ms: Some(60),
            dead_retention_ms,
            dead_letters_to: Some(dead_letters_to.to_owned()),
            ..QueueSettings::default()
        };
        let mail = world.create_with(MAIL, Settings::Queue(settings));
        let mut target = World::default();
        target.machine.set_catalog(world.machine.catalog_snapshot());
        let (mut source, target) = (Node::new(world), Node::new(target));
        source.durable = source.world.lsn;
        Self { source, target, mail, other, sandbox, dead_letters, network: Vec::new(), next_payload: 0 }
    }

    fn ask(&mut self, command: QueueCommand) -> Outcome {
        self.source.world.run(&Command::Queue(self.mail, command))
    }

    fn transfer(&mut self, command: TransferCommand) -> Outcome {
        self.ask(QueueCommand::Transfer(command))
    }

    fn lanes(&self) -> Vec<PartitionRef> {
        let at = |resource| PartitionRef { resource, partition: 0 };
        [at(self.other), at(self.sandbox)].into_iter().chain(self.dead_letters.iter().copied()).collect()
    }

    fn reserve(world: &mut World, queue: ResourceId, jobs_max: u32) -> Vec<LeaseRef> {
        let reserve = QueueCommand::Reserve {
            jobs_max,
            visibility_timeout_ms: None,
            worker: Bytes::new(),
            wait_until: None,
        };
        match world.run(&Command::Queue(queue, reserve)) {
            Outcome::Changed(Reply::Reserved(jobs), _) | Outcome::Answered(Reply::Reserved(jobs), _) => {
                jobs.iter().map(|job| LeaseRef { job: job.job, token: job.token }).collect()
            }
            // Nothing came here yet.
            Outcome::Rejected(_) => Vec::new(),
            other => panic!("{other:?}"),
        }
    }

    fn work(&mut self, jobs: u8, end: u8) {
        let leases = Self::reserve(&mut self.source.world, self.mail, jobs.into());
        if leases.is_empty() {
            return;
        }
        let kind = if end < 4 { NackKind::Final } else { NackKind::Released };
        let command = if end == 5 {
            let ack = |lease| Ack { lease, result: Bytes::new() };
            QueueCommand::Ack { acks: leases.into_iter().map(ack).collect() }
        } else {
            let nack = |lease| Nack { lease, kind, delay_ms: None, error: Bytes::from_static(b"no") };
            QueueCommand::Nack { nacks: leases.into_iter().map(nack).collect() }
        };
        self.ask(command).reply();
    }

    fn all() -> Which {
        Which::Matching(JobFilter::default(), JobCursor::default())
    }

    /// Sends the oldest of a lane, as the source has it now.
    fn send(&mut self, to: PartitionRef) -> bool {
        let next = self.transfer(TransferCommand::Next { to }).reply();
        let Reply::Transfer(TransferReply::Next(jobs)) = next else { panic!("{next:?}") };
        if jobs.is_empty() {
            return false;
        }
        let arrival = Arrival { source: self.mail, jobs };
        self.source.say(Message::Jobs(to, arrival));
        true
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Jobs(to, arrival) => {
                let last = arrival.jobs.last().unwrap().sequence;
                let is_stream = self.dead_letters.contains(&to) && self.dead_letters.len() > 1;
                let command = if is_stream {
                    Command::Stream(to, StreamCommand::Receive(arrival))
                } else {
                    Command::Queue(to.resource, QueueCommand::Transfer(TransferCommand::Receive(arrival)))
                };
                match self.target.world.run(&command) {
                    Outcome::Changed(Reply::Transfer(TransferReply::Received { upto }), _)
                    | Outcome::Answered(Reply::Transfer(TransferReply::Received { upto }), _) => {
                        self.target.say(Message::Has(to, upto));
                    }
                    Outcome::Rejected(Reject::QueueFull { .. }) => {}
                    Outcome::Rejected(reject) => {
                        self.target.say(Message::Refused(to, last, reject.to_string().into()));
                    }
                    other => panic!("{other:?}"),
                }
            }
            Message::Has(to, upto) => drop(self.transfer(TransferCommand::Sent { to, upto }).reply()),
            Message::Refused(to, upto, error) => panic!("{to} refuses up to {upto}: {error:?}"),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Enqueue(jobs) => {
                let new = (0..jobs).map(|_| {
                    self.next_payload += 1;
                    NewJob { payload: self.next_payload.to_string().into(), ..NewJob::default() }
                });
                let jobs = new.collect();
                self.ask(QueueCommand::enqueue(jobs)).reply();
            }
            Step::Work(jobs, end) => self.work(jobs, end),
            Step::Redrive => {
                let redrive = QueueCommand::Redrive { which: Self::all(), per_second: None, delay_ms: 0 };
                self.ask(redrive).reply();
            }
            Step::Purge => {
                self.ask(QueueCommand::Purge { which: Self::all(), phase: JobPhase::Dead }).reply();
            }
            Step::Move(delay) => {
                let (to, delay_ms) = (self.other, u64::from(delay));
                let which = Self::all();
                self.transfer(TransferCommand::Move { which, to, per_second: Some(100), delay_ms }).reply();
            }
            Step::Replay(done) => {
                let phase = if done { JobPhase::Done } else { JobPhase::Dead };
                let (which, to) = (Self::all(), self.sandbox);
                self.transfer(TransferCommand::Replay { which, phase, to }).reply();
            }
            Step::Pass(ms) => {
                self.source.world.now = self.source.world.now.plus(ms);
                self.target.world.now = self.target.world.now.plus(ms);
            }
            Step::Tick => {
                self.source.world.tick(3);
                self.target.world.tick(3);
            }
            Step::Send(lane) => {
                let lanes = self.lanes();
                self.send(lanes[usize::from(lane) % lanes.len()]);
            }
            Step::Deliver { which, keep } => {
                if !self.network.is_empty() {
                    let which = which % self.network.len();
                    let message = if keep { self.network[which].clone() } else { self.network.remove(which) };
                    self.deliver(message);
                }
            }
            Step::Lose(which) => {
                if !self.network.is_empty() {
                    self.network.remove(which % self.network.len());
                }
            }
            Step::Drain(jobs) => self.drain(jobs),
            Step::Sync(source) => {
                let node = if source { &mut self.source } else { &mut self.target };
                node.sync(&mut self.network);
            }
            Step::Checkpoint(source) => {
                let node = if source { &mut self.source } else { &mut self.target };
                node.checkpoint();
            }
            Step::Crash(source) => {
                if source {
                    self.source.crash();
                } else {
                    self.target.crash();
                    self.target.world.machine.set_catalog(self.source.world.machine.catalog_snapshot());
                }
            }
        }
        self.source.world.machine.check_all();
        self.target.world.machine.check_all();
    }

    /// Jobs that moved are done where they are now.
    fn drain(&mut self, jobs: u8) {
        let leases = Self::reserve(&mut self.target.world, self.other, jobs.into());
        if !leases.is_empty() {
            let acks = QueueCommand::ack(leases);
            self.target.world.run(&Command::Queue(self.other, acks)).reply();
        }
    }

    /// Lets everything arrive.
    fn settle(&mut self) {
        for _ in 0..500 {
            self.step(Step::Pass(2));
            self.step(Step::Tick);
            let sent = self.lanes().into_iter().filter(|to| self.send(*to)).count();
            self.drain(10);
            self.source.sync(&mut self.network);
            for message in std::mem::take(&mut self.network) {
                self.deliver(message);
            }
            self.target.sync(&mut self.network);
            for message in std::mem::take(&mut self.network) {
                self.deliver(message);
            }
            if sent == 0 {
                return;
            }
        }
        panic!("it never settles");
    }

    /// How often each payload came to a queue or stream of the target, by its log.
    fn arrived(&mut self, at: ResourceId) -> BTreeMap<String, u64> {
        let mut arrived = BTreeMap::new();
        let mut count = |payload: &[u8]| {
            *arrived.entry(String::from_utf8_lossy(payload).into_owned()).or_default() += 1;
        };
        for (_, facts) in &self.target.world.log {
            for fact in facts {
                match fact {
                    Fact::JobEnqueued { queue, payload, .. } if *queue == at => count(payload),
                    Fact::RecordsAppended { at: place, .. } if place.resource == at => {}
                    _ => {}
                }
            }
        }
        for partition in 0..2 {
            let place = PartitionRef { resource: at, partition };
            let read = StreamCommand::Read {
                from: ReadFrom::Earliest,
                records_max: 10_000,
                bytes_max: u32::MAX,
                bytes_min: 0,
                wait_until: None,
            };
            match self.target.world.run(&Command::Stream(place, read)) {
                Outcome::Answered(Reply::Records(records), _) => {
                    for value in values(&records.runs) {
                        count(&value);
                    }
                }
                Outcome::Cold(_) => {
                    let runs = self.target.world.files.get(&place).cloned().unwrap_or_default();
                    let end = runs
                        .last()
                        .map_or(flowmesh_model::Offset(0), |run| run.base.plus(u64::from(run.count)));
                    for value in values(&runs) {
                        count(&value);
                    }
                    let read = StreamCommand::Read {
                        from: ReadFrom::Offset(end),
                        records_max: 10_000,
                        bytes_max: u32::MAX,
                        bytes_min: 0,
                        wait_until: None,
                    };
                    if let Outcome::Answered(Reply::Records(records), _) =
                        self.target.world.run(&Command::Stream(place, read))
                    {
                        for value in values(&records.runs) {
                            count(&value);
                        }
                    }
                }
                _ => {}
            }
        }
        arrived
    }

    fn check_settled(&mut self) {
        let mut payloads = BTreeMap::new();
        let mut expected: [BTreeMap<String, u64>; 3] = Default::default();
        let (mut modes, mut sent) = (BTreeMap::new(), 0);
        let mut deaths: BTreeMap<String, u64> = BTreeMap::new();
        for (_, facts) in &self.source.world.log {
            for fact in facts {
                match fact {
                    Fact::JobEnqueued { job, payload, .. } => {
                        payloads.insert(*job, String::from_utf8_lossy(payload).into_owned());
                    }
                    Fact::JobDied { job, .. } => *deaths.entry(payloads[job].clone()).or_default() += 1,
                    Fact::Transfer(_, TransferFact::Sending { sequence, job, mode, .. }) => {
                        modes.insert(*sequence, *mode);
                        *expected[*mode as usize].entry(payloads[job].clone()).or_default() += 1;
                    }
                    Fact::Transfer(_, TransferFact::Sent { sequence }) => {
                        assert!(modes.remove(sequence).is_some(), "an entry leaves once");
                        sent += 1;
                    }
                    Fact::Transfer(_, other) => panic!("{other:?}"),
                    _ => {}
                }
            }
        }
        assert!(modes.is_empty(), "everything has left: {modes:?}");
        let bin = self.dead_letters[0].resource;
        let [moved, dead, replayed] = [self.other, bin, self.sandbox].map(|at| self.arrived(at));
        assert_eq!(moved, expected[TransferMode::Move as usize], "each job that moved arrived once");
        assert!(moved.values().all(|times| *times == 1), "a job moves once: {moved:?}");
        assert_eq!(replayed, expected[TransferMode::Replay as usize], "each replay arrived once");
        assert_eq!(dead, deaths, "each death has one copy");
        let status = match self.ask(QueueCommand::Status).reply() {
            Reply::QueueStatus(status, _) => status,
            other => panic!("{other:?}"),
        };
        assert_eq!(status.moved_total + status.copied_total, sent);
        assert_eq!(status.moved_total, moved.len() as u64);
        assert_eq!((status.outbox, status.send_failed_total), (0, 0));
        // What moved is gone from here.
        let list = QueueCommand::List {
            phase: None,
            filter: JobFilter::default(),
            after: JobCursor::default(),
            jobs_max: 10_000,
            with_bodies: true,
        };
        let Reply::Jobs { jobs, .. } = self.ask(list).reply() else { panic!("no list") };
        for job in jobs {
            assert!(!moved.contains_key(&String::from_utf8_lossy(&job.payload).into_owned()));
        }
    }
}

proptest! {
    #![proptest_config(cases(400))]
    #[test]
    fn whatever_is_sent_arrives_once(
        to_stream: bool,
        jobs_max in prop::option::of(1u64..6),
        dead_retention_ms in prop::option::of(5u64..80),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut test = Test::new(to_stream, jobs_max, dead_retention_ms);
        for step in steps {
            test.step(step);
        }
        test.settle();
        test.check_settled();
        for node in [&test.source, &test.target] {
            let known = node.world.machine.dump();
            prop_assert_eq!(node.world.recovered().dump(), known, "a start knows what was known");
        }
    }
}

#[test]
fn an_outbox_takes_what_it_has_room_for_and_says_where_to_go_on() {
    use flowmesh_model::limits::OUTBOX_JOBS_MAX;
    let mut test = Test::new(false, None, None);
    let plain = Settings::Queue(QueueSettings { max_attempts: 1, ..QueueSettings::default() });
    let queue = test.source.world.create_with("plain", plain);
    test.target.world.machine.set_catalog(test.source.world.machine.catalog_snapshot());
    test.mail = queue;
    for _ in 0..=OUTBOX_JOBS_MAX / 100 {
        for _ in 0..25 {
            test.step(Step::Enqueue(4));
        }
        test.work(100, 0);
    }
    let more = OUTBOX_JOBS_MAX as u64 + 100;
    let send = |after| TransferCommand::Move {
        which: Which::Matching(JobFilter::default(), after),
        to: test.other,
        per_second: None,
        delay_ms: 0,
    };
    let (first, again) = (send(JobCursor::default()), send(JobCursor::default()));
    let Reply::Swept { count, next } = test.transfer(first).reply() else { panic!() };
    assert_eq!(count, OUTBOX_JOBS_MAX as u64);
    let after = next.expect("there are more");
    let full = test.transfer(again);
    assert!(
        matches!(full, Outcome::Rejected(Reject::Overloaded { what: "outbox", .. })),
        "a full outbox takes none: {full:?}"
    );
    while test.lanes().into_iter().any(|to| test.send(to)) {
        test.source.sync(&mut test.network);
        for message in std::mem::take(&mut test.network) {
            test.deliver(message);
        }
        test.target.sync(&mut test.network);
        for message in std::mem::take(&mut test.network) {
            test.deliver(message);
        }
    }
    let rest = TransferCommand::Move {
        which: Which::Matching(JobFilter::default(), after),
        to: test.other,
        per_second: None,
        delay_ms: 0,
    };
    let Reply::Swept { count, next } = test.transfer(rest).reply() else { panic!() };
    assert_eq!((count + OUTBOX_JOBS_MAX as u64, next), (more, None));
}

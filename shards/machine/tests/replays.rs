//! Replay sessions against a simple model of one, through checkpoints and crashes; and that sandboxes and other groups
//! never meet.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test")]

mod common;

use common::{Outcome, World, cases, written_afresh};
use flowmesh_model::group::{GroupReply, Heartbeat, MemberRef, Name, NewOffset};
use flowmesh_model::replay::{
    Pace, ReplayAction, ReplayRange, ReplayRef, ReplayState, ReplayStatus, Speed, StepMove,
};
use flowmesh_model::{
    Batch, CatalogCommand, Command, GroupCommand, GroupEpoch, GroupSettings, Kind, Lsn, Millis, Offset,
    PartitionRef, Reject, ReplayCommand, ReplaySettings, Reply, ResourceId, ResourcePath, Settings,
    StreamSettings,
};
use proptest::prelude::*;

const SANDBOX: &str = "default/default/group/replay.r";

struct Rig {
    world: World,
    stream: ResourceId,
    at: ReplayRef,
    member: MemberRef,
}

fn settings(stream: ResourceId, ranges: &[(u64, Option<u64>)]) -> ReplaySettings {
    let range = |(partition, (from, until)): (u32, &(u64, Option<u64>))| ReplayRange {
        partition,
        from: Offset(*from),
        until: until.map(Offset),
    };
    let partitions = (0..).zip(ranges).map(range).collect();
    ReplaySettings { stream, group: SANDBOX.into(), partitions, ..ReplaySettings::default() }
}

impl Rig {
    fn new(ranges: &[(u64, Option<u64>)]) -> Self {
        let mut world = World::default();
        let streams = StreamSettings { partitions: ranges.len() as u32, ..StreamSettings::default() };
        let stream = world.create_with("s", Settings::Stream(streams));
        let session = world.create_with("r", Settings::Replay(settings(stream, ranges)));
        let group = world.machine.catalog_snapshot().find(Kind::Group, SANDBOX).unwrap().id;
        let member = MemberRef { id: "m".into(), epoch: GroupEpoch(0), instance: None };
        Self { world, stream, at: ReplayRef { session, group }, member }
    }

    fn at(&self, partition: u32) -> PartitionRef {
        PartitionRef { resource: self.stream, partition }
    }

    fn run(&mut self, command: ReplayCommand) -> Result<Reply, Reject> {
        match self.world.run(&Command::Replay(self.at, command)) {
            Outcome::Changed(reply, _) | Outcome::Answered(reply, _) => Ok(reply),
            Outcome::Rejected(reject) => Err(reject),
            other => panic!("{other:?}"),
        }
    }

    fn ask(&mut self, command: ReplayCommand) -> Result<ReplayStatus, Reject> {
        match self.run(command)? {
            Reply::Replay(status) => Ok(*status),
            other => panic!("{other:?}"),
        }
    }

    fn status(&mut self) -> ReplayStatus {
        self.ask(ReplayCommand::Status { known: None, wait_until: None }).unwrap()
    }

    /// The member says that it is there, twice, so that it has what it is given.
    fn join(&mut self) {
        for _ in 0..2 {
            let heartbeat = Heartbeat {
                member: self.member.clone(),
                client: "test".into(),
                host: "here".into(),
                known: Lsn(0),
                subscribed: Some(vec![self.stream]),
                owned: None,
                wait_until: None,
            };
            let beat = ReplayCommand::Member(GroupCommand::Heartbeat(Box::new(heartbeat)));
            let Reply::Group(reply) = self.run(beat).unwrap() else { panic!("another answer") };
            let GroupReply::Heartbeat(reply) = *reply else { panic!("another answer") };
            self.member.epoch = reply.epoch;
            self.world.tick(4);
        }
    }

    fn commit(&mut self, generation: u64, partition: u32, offset: u64) -> Result<(), Reject> {
        let new = NewOffset { at: self.at(partition), offset: Offset(offset), metadata: bytes::Bytes::new() };
        let (member, offsets) = (self.member.clone(), Batch::from_iter([new]));
        let Reply::Group(reply) = self.run(ReplayCommand::Commit { generation, member, offsets })? else {
            panic!("another answer")
        };
        let GroupReply::Committed(outcomes) = *reply else { panic!("another answer") };
        outcomes[0].clone().map(|_| ())
    }
}

/// What a session is, in the plainest form.
#[derive(Clone, Debug, PartialEq)]
struct Model {
    state: ReplayState,
    error: Option<Name>,
    generation: u64,
    pace: Pace,
    passed: u64,
    at: Vec<u64>,
}

const RANGES: [(u64, Option<u64>); 2] = [(2, Some(6)), (0, Some(3))];

fn check_within(partition: u32, offset: u64) -> Result<(), Reject> {
    let (from, until) = RANGES[partition as usize];
    if offset < from || Some(offset) > until {
        let (earliest, next) = (Offset(from), Offset(until.unwrap()));
        return Err(Reject::OffsetOutOfRange { requested: Offset(offset), earliest, next });
    }
    Ok(())
}

impl Model {
    fn of(status: &ReplayStatus) -> Self {
        Self {
            state: status.state,
            error: status.error.clone(),
            generation: status.generation,
            pace: status.pace,
            passed: status.records_total,
            at: status.partitions.iter().map(|partition| partition.position.get()).collect(),
        }
    }

    fn anchor(&mut self, now: Millis, record: Option<u64>) {
        (self.pace.wall, self.pace.record) = (now, record.map_or(now, Millis));
    }

    fn complete(&mut self) {
        if self.at.iter().zip(RANGES).all(|(at, (_, until))| Some(*at) >= until) {
            self.state = ReplayState::Completed;
        }
    }

    fn go(&mut self, now: Millis, step: &Step) -> Result<(), Reject> {
        let allow = |action| self.state.check(action);
        match step {
            Step::Start(record) => {
                allow(ReplayAction::Start)?;
                self.state = ReplayState::Active;
                self.anchor(now, *record);
                self.complete();
            }
            Step::Pause => {
                allow(ReplayAction::Pause)?;
                self.state = ReplayState::Paused;
            }
            Step::Resume(record) => {
                allow(ReplayAction::Resume)?;
                (self.state, self.error) = (ReplayState::Active, None);
                self.anchor(now, *record);
                self.complete();
            }
            Step::Seek(partition, offset) => {
                allow(ReplayAction::Seek)?;
                check_within(*partition, *offset)?;
                self.at[*partition as usize] = *offset;
                self.generation += 1;
                self.anchor(now, None);
                match self.state {
                    ReplayState::Completed => self.state = ReplayState::Paused,
                    ReplayState::Active => self.complete(),
                    _ => {}
                }
            }
            Step::SetSpeed(speed) => {
                allow(ReplayAction::SetSpeed)?;
                self.pace.speed = Speed(*speed);
                self.anchor(now, Some(7));
            }
            Step::Stop => {
                allow(ReplayAction::Stop)?;
                (self.state, self.error) = (ReplayState::Stopped, None);
            }
            Step::Fail => {
                allow(ReplayAction::Fail)?;
                (self.state, self.error) = (ReplayState::Error, Some("why".into()));
            }
            Step::Next { partition, count, stale } => {
                allow(ReplayAction::Step)?;
                let place = *partition as usize;
                let to = (self.at[place] + count).min(RANGES[place].1.unwrap());
                if *stale {
                    return Err(Reject::ReplayMoved { generation: self.generation });
                }
                self.passed += to - self.at[place];
                self.at[place] = to;
                self.generation += 1;
                self.complete();
            }
            Step::Commit { partition, offset, stale } => {
                allow(ReplayAction::Commit)?;
                if *stale {
                    return Err(Reject::ReplayMoved { generation: self.generation });
                }
                check_within(*partition, *offset)?;
                let at = &mut self.at[*partition as usize];
                self.passed += offset.saturating_sub(*at);
                *at = *offset;
                self.complete();
            }
            _ => {}
        }
        if self.state != ReplayState::Error {
            self.error = None;
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Step {
    Start(Option<u64>),
    Pause,
    Resume(Option<u64>),
    Seek(u32, u64),
    SetSpeed(u64),
    Stop,
    Fail,
    /// Records of a partition are shown; somebody else was faster.
    Next {
        partition: u32,
        count: u64,
        stale: bool,
    },
    Commit {
        partition: u32,
        offset: u64,
        stale: bool,
    },
    Seal,
    Collect,
    Write,
    Unseal,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let time = || prop::option::of(0u64..9);
    prop_oneof![
        6 => time().prop_map(Step::Start),
        4 => Just(Step::Pause),
        6 => time().prop_map(Step::Resume),
        3 => (0u32..2, 0u64..8).prop_map(|(partition, offset)| Step::Seek(partition, offset)),
        2 => (0u64..3000).prop_map(Step::SetSpeed),
        1 => prop::bool::weighted(0.1).prop_map(|stop| if stop { Step::Stop } else { Step::Pause }),
        1 => Just(Step::Fail),
        4 => (0u32..2, 1u64..4, prop::bool::weighted(0.2))
            .prop_map(|(partition, count, stale)| Step::Next { partition, count, stale }),
        8 => (0u32..2, 2u64..7, prop::bool::weighted(0.1))
            .prop_map(|(partition, offset, stale)| Step::Commit { partition, offset, stale }),
        2 => Just(Step::Seal),
        2 => Just(Step::Collect),
        2 => Just(Step::Write),
        1 => Just(Step::Unseal),
        2 => Just(Step::Crash),
    ]
}

fn carry_out(rig: &mut Rig, model: &Model, step: &Step) -> Option<Result<(), Reject>> {
    let millis = |time: &Option<u64>| time.map(Millis);
    let command = match step {
        Step::Start(time) => ReplayCommand::Start { record_time: millis(time) },
        Step::Pause => ReplayCommand::Pause,
        Step::Resume(time) => ReplayCommand::Resume { record_time: millis(time) },
        Step::Seek(partition, offset) => {
            ReplayCommand::Seek { to: vec![(*partition, Offset(*offset))], record_time: None }
        }
        Step::SetSpeed(speed) => {
            ReplayCommand::SetSpeed { speed: Speed(*speed), record_time: Some(Millis(7)) }
        }
        Step::Stop => ReplayCommand::Stop,
        Step::Fail => ReplayCommand::Fail { error: "why".into() },
        Step::Next { partition, count, stale } => {
            let place = *partition as usize;
            let at = model.at[place];
            let to = (at + count).min(RANGES[place].1.unwrap());
            let from = if *stale { at + 1 } else { at };
            let moves = vec![StepMove { partition: *partition, from: Offset(from), to: Offset(to) }];
            ReplayCommand::Step { moves }
        }
        Step::Commit { partition, offset, stale } => {
            let generation = model.generation - u64::from(*stale);
            return Some(rig.commit(generation, *partition, *offset));
        }
        Step::Seal => {
            if rig.world.sealed.is_none() {
                rig.world.seal();
            }
            return None;
        }
        Step::Collect => {
            rig.world.collect(1);
            return None;
        }
        Step::Write => {
            rig.world.write();
            return None;
        }
        Step::Unseal => {
            rig.world.unseal();
            return None;
        }
        Step::Crash => {
            rig.world.crash();
            return None;
        }
    };
    Some(rig.ask(command).map(|status| {
        assert_eq!(status, rig.status(), "the answer is how it is then");
    }))
}

proptest! {
    #![proptest_config(cases(400))]
    #[test]
    fn a_session_is_what_a_simple_model_of_it_is(steps in prop::collection::vec(step(), 1..60)) {
        let mut rig = Rig::new(&RANGES);
        let begun = rig.ask(ReplayCommand::Begin).unwrap();
        prop_assert_eq!(rig.ask(ReplayCommand::Begin).unwrap(), begun.clone());
        rig.join();
        let mut model = Model::of(&begun);
        let mut completed = 0;
        for step in steps {
            rig.world.now = rig.world.now.plus(1);
            let now = rig.world.machine.clamp(rig.world.now);
            let before = model.state;
            if let Some(outcome) = carry_out(&mut rig, &model, &step) {
                prop_assert_eq!(outcome, model.go(now, &step), "{:?}", step);
            }
            completed += u64::from(model.state == ReplayState::Completed && before != model.state);
            prop_assert_eq!(Model::of(&rig.status()), model.clone(), "after {:?}", step);
            rig.world.machine.check_all();
        }
        let facts = rig.world.log.iter().flat_map(|(_, facts)| facts);
        let ends = facts.filter(|fact| format!("{fact:?}").contains("Completed"));
        prop_assert_eq!(ends.count() as u64, completed, "a session completes once each time");
        let recovered = rig.world.recovered();
        prop_assert_eq!(recovered.dump(), rig.world.machine.dump());
        rig.world.write();
        rig.world.seal();
        rig.world.write();
        prop_assert_eq!(&rig.world.index, &written_afresh(rig.world.replayed(rig.world.lsn)));
    }
}

#[test]
fn a_session_is_completed_with_the_last_commit_and_only_once() {
    let mut rig = Rig::new(&[(0, Some(2)), (5, Some(5))]);
    rig.join();
    rig.ask(ReplayCommand::Start { record_time: None }).unwrap();
    rig.commit(1, 0, 1).unwrap();
    assert_eq!(rig.status().state, ReplayState::Active);
    rig.commit(1, 0, 2).unwrap();
    let status = rig.status();
    assert_eq!((status.state, status.records_total), (ReplayState::Completed, 2));
    rig.world.crash();
    assert_eq!(rig.status(), status);
    let refused = rig.commit(1, 0, 2).unwrap_err();
    assert_eq!(refused, Reject::ReplayState { action: ReplayAction::Commit, state: ReplayState::Completed });
    // Back again: it waits to be resumed, and completes once more.
    let to = vec![(0, Offset(1))];
    let sought = rig.ask(ReplayCommand::Seek { to, record_time: None }).unwrap();
    assert_eq!((sought.state, sought.generation), (ReplayState::Paused, 2));
    rig.ask(ReplayCommand::Resume { record_time: None }).unwrap();
    rig.commit(2, 0, 2).unwrap();
    assert_eq!(rig.status().state, ReplayState::Completed);
}

#[test]
fn a_session_with_nothing_to_replay_is_completed_when_it_starts() {
    let mut rig = Rig::new(&[(4, Some(4))]);
    let status = rig.ask(ReplayCommand::Start { record_time: None }).unwrap();
    assert_eq!(status.state, ReplayState::Completed);
}

#[test]
fn a_session_without_an_end_follows_and_is_never_completed() {
    let mut rig = Rig::new(&[(0, None)]);
    rig.join();
    rig.ask(ReplayCommand::Start { record_time: None }).unwrap();
    rig.commit(1, 0, 1_000_000).unwrap();
    assert_eq!(rig.status().state, ReplayState::Active);
}

#[test]
fn who_watches_a_session_hears_of_changes_and_not_of_commits() {
    let mut rig = Rig::new(&[(0, Some(9))]);
    rig.join();
    let known = rig.ask(ReplayCommand::Start { record_time: None }).unwrap().version;
    let watch =
        |rig: &Rig| ReplayCommand::Status { known: Some(known), wait_until: Some(rig.world.now.plus(10)) };
    let waits = |rig: &mut Rig| {
        let watch = watch(rig);
        rig.world.run(&Command::Replay(rig.at, watch)) == Outcome::Waits
    };
    assert!(waits(&mut rig));
    rig.commit(1, 0, 3).unwrap();
    assert!(waits(&mut rig));
    rig.ask(ReplayCommand::Pause).unwrap();
    let mut woken = std::iter::from_fn(|| rig.world.machine.take_woken());
    assert!(woken.any(|key| key == flowmesh_machine::WaitKey::Group(rig.at.group)));
    assert!(!waits(&mut rig));
}

#[test]
fn how_far_a_session_is_is_never_forgotten() {
    let mut rig = Rig::new(&[(0, Some(9))]);
    rig.join();
    rig.ask(ReplayCommand::Start { record_time: None }).unwrap();
    rig.commit(1, 0, 3).unwrap();
    rig.world.now = rig.world.now.plus(400 * 24 * 3600 * 1000);
    rig.world.tick(4);
    let status = rig.status();
    assert_eq!((status.members, status.partitions[0].position), (0, Offset(3)));
}

#[test]
fn a_production_group_is_never_a_sandbox() {
    let mut rig = Rig::new(&[(0, Some(9))]);
    let orders = rig.world.create_with("orders", Settings::Group(GroupSettings::default()));
    let create = |group: &str, stream| {
        let settings = ReplaySettings { group: group.into(), ..settings(stream, &[(0, None)]) };
        let path = ResourcePath::parse(Kind::Replay, "other").unwrap();
        Command::Catalog(CatalogCommand::Create {
            path,
            settings: Settings::Replay(settings),
            or_existing: false,
        })
    };
    let group = "default/default/group/orders";
    let refused = rig.world.run(&create(group, rig.stream));
    assert_eq!(refused, Outcome::Rejected(Reject::GroupNotSandbox { path: group.into() }));
    // Another session's is taken.
    let refused = rig.world.run(&create(SANDBOX, rig.stream));
    assert_eq!(refused, Outcome::Rejected(Reject::ResourceExists { path: SANDBOX.into() }));
    // Nor is one used as such whatever an edge says.
    let wrong = ReplayRef { group: orders, ..rig.at };
    let refused = rig.world.run(&Command::Replay(wrong, ReplayCommand::Begin));
    assert_eq!(refused, Outcome::Rejected(Reject::GroupNotSandbox { path: group.into() }));
}

#[test]
fn a_sandbox_is_no_group_for_consumers() {
    let mut rig = Rig::new(&[(0, Some(9))]);
    rig.join();
    let member = || Some(rig.member.clone());
    let new = NewOffset { at: rig.at(0), offset: Offset(1), metadata: bytes::Bytes::new() };
    let commands = [
        GroupCommand::Commit { member: None, offsets: Batch::from_iter([new.clone()]) },
        GroupCommand::Commit { member: member(), offsets: Batch::from_iter([new]) },
        GroupCommand::Leave { member: rig.member.clone(), keep_place: false },
        GroupCommand::FetchOffsets { member: member(), of: None },
        GroupCommand::ForgetOffsets { of: Batch::from_iter([rig.at(0)]) },
    ];
    for command in commands {
        let refused = rig.world.run(&Command::Group(rig.at.group, command));
        assert_eq!(refused, Outcome::Rejected(Reject::SandboxGroup { path: SANDBOX.into() }));
    }
    for look in [GroupCommand::Status, GroupCommand::Describe] {
        assert!(matches!(rig.world.run(&Command::Group(rig.at.group, look)), Outcome::Answered(..)));
    }
    let refused = rig.world.delete(Kind::Group, SANDBOX);
    assert_eq!(refused, Outcome::Rejected(Reject::SandboxGroup { path: SANDBOX.into() }));
    // None is made by hand, either.
    let settings = Settings::Group(GroupSettings { sandbox: true, ..GroupSettings::default() });
    let path = ResourcePath::parse(Kind::Group, "mine").unwrap();
    let create = CatalogCommand::Create { path, settings, or_existing: true };
    let refused = rig.world.run(&Command::Catalog(create));
    assert!(matches!(refused, Outcome::Rejected(Reject::InvalidArgument { field: "sandbox", .. })));
}

#[test]
fn a_session_and_its_sandbox_come_and_go_together() {
    let mut rig = Rig::new(&[(0, Some(9))]);
    rig.join();
    let catalog = rig.world.machine.catalog_snapshot();
    assert_eq!(catalog.version().0, 3);
    let deleted = rig.world.delete(Kind::Replay, "r");
    let Outcome::Changed(Reply::Resource { version, .. }, facts) = deleted else { panic!("{deleted:?}") };
    assert_eq!((version.0, facts.len()), (5, 2));
    let catalog = rig.world.machine.catalog_snapshot();
    assert_eq!(catalog.version(), version);
    assert!(catalog.find(Kind::Group, SANDBOX).is_none() && catalog.find(Kind::Replay, "r").is_none());
    rig.world.tick(4);
    rig.world.machine.check_all();
    // The same again begins where it is told to, not where the other was.
    let settings = settings(rig.stream, &[(2, Some(9))]);
    let session = rig.world.create_with("r", Settings::Replay(settings));
    let group = rig.world.machine.catalog_snapshot().find(Kind::Group, SANDBOX).unwrap().id;
    rig.at = ReplayRef { session, group };
    assert_eq!(rig.status().partitions[0].position, Offset(2));
}

#[test]
fn what_lies_outside_of_a_session_is_refused() {
    let mut rig = Rig::new(&[(2, Some(6))]);
    let to =
        |partition, offset| ReplayCommand::Seek { to: vec![(partition, Offset(offset))], record_time: None };
    for outside in [1, 7] {
        let refused = rig.ask(to(0, outside)).unwrap_err();
        assert!(matches!(refused, Reject::OffsetOutOfRange { .. }), "{refused:?}");
    }
    assert!(matches!(rig.ask(to(1, 3)).unwrap_err(), Reject::NoSuchPartition { partition: 1, .. }));
    let nothing = ReplayCommand::Seek { to: vec![], record_time: None };
    assert!(matches!(rig.ask(nothing).unwrap_err(), Reject::InvalidArgument { field: "to", .. }));
    let moves = vec![StepMove { partition: 0, from: Offset(2), to: Offset(7) }];
    assert!(matches!(rig.ask(ReplayCommand::Step { moves }).unwrap_err(), Reject::OffsetOutOfRange { .. }));
    let speed = flowmesh_model::limits::REPLAY_SPEED_MAX;
    let fast = |speed| ReplayCommand::SetSpeed { speed: Speed(speed), record_time: None };
    assert!(rig.ask(fast(speed)).is_ok());
    assert!(matches!(rig.ask(fast(speed + 1)).unwrap_err(), Reject::InvalidArgument { field: "speed", .. }));
    rig.ask(ReplayCommand::Start { record_time: None }).unwrap();
    let fail = |bytes: usize| ReplayCommand::Fail { error: "x".repeat(bytes).into() };
    let max = flowmesh_model::limits::REPLAY_ERROR_BYTES_MAX;
    assert!(matches!(rig.ask(fail(max + 1)).unwrap_err(), Reject::TooLarge { what: "error", .. }));
    assert!(matches!(rig.ask(fail(0)).unwrap_err(), Reject::InvalidArgument { field: "error", .. }));
    assert_eq!(rig.ask(fail(max)).unwrap().state, ReplayState::Error);
}

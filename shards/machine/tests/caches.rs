//! What a store may have: a cache is within its limits behind each change, a durable store never goes beyond them, and a start
//! after a crash finds what was there.

// A test fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use bytes::Bytes;
use common::generated::op;
use common::{Outcome, World, cases};
use flowmesh_machine::Decision;
use flowmesh_model::command::{SetEntry, SetIf, SetTtl};
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::kv::{KvAction, KvOp, ListOp, Side};
use flowmesh_model::{
    CatalogCommand, Command, Fact, Kind, KvCommand, KvMode, KvSettings, Reject, Reply, ResourceId,
    ResourcePath, Settings,
};
use proptest::prelude::*;

const STORE: &str = "cart";
const MIB: u64 = 1024 * 1024;

struct Rig {
    world: World,
    store: ResourceId,
    settings: KvSettings,
}

fn cache(entries_max: Option<u64>, bytes_max: Option<u64>) -> KvSettings {
    KvSettings { mode: KvMode::Cache, entries_max, bytes_max, ..KvSettings::default() }
}

impl Rig {
    fn new(settings: KvSettings) -> Self {
        let mut world = World::default();
        let store = world.create_with(STORE, Settings::Kv(settings.clone()));
        Self { world, store, settings }
    }

    fn run(&mut self, command: KvCommand) -> Outcome {
        self.world.run(&Command::Kv(self.store, command))
    }

    fn set_all(&mut self, entries: impl IntoIterator<Item = (Bytes, Bytes)>) -> Outcome {
        let entries = entries.into_iter().map(|(key, value)| SetEntry {
            key,
            value,
            ttl: SetTtl::Default,
            condition: SetIf::Always,
        });
        self.run(KvCommand::Set { entries: entries.collect() })
    }

    fn set(&mut self, key: &str, bytes: usize) -> Outcome {
        self.set_all([(Bytes::copy_from_slice(key.as_bytes()), Bytes::from(vec![b'v'; bytes]))])
    }

    fn has(&mut self, key: &str) -> bool {
        let keys = [Bytes::copy_from_slice(key.as_bytes())].into_iter().collect();
        let Reply::Values(values) = self.run(KvCommand::Get { keys }).reply() else { panic!("no values") };
        values[0].is_some()
    }

    fn update(&mut self, settings: KvSettings) {
        let path = ResourcePath::parse(Kind::Kv, STORE).unwrap();
        let changed = Settings::Kv(settings.clone());
        let update = CatalogCommand::Update { path, settings: changed };
        assert!(matches!(
            self.world.run(&Command::Catalog(update)),
            Outcome::Changed(..) | Outcome::Answered(..)
        ));
        self.settings = settings;
    }

    /// Keys, and what they take.
    fn held(&mut self) -> (u64, u64) {
        let Reply::KvStatus(status) = self.run(KvCommand::Status).reply() else { panic!("no status") };
        (status.keys, status.bytes)
    }

    fn is_within(&mut self) -> bool {
        let (keys, bytes) = self.held();
        keys <= self.settings.entries_max.unwrap_or(u64::MAX)
            && bytes <= self.settings.bytes_max.unwrap_or(u64::MAX)
    }

    fn evicted(&self) -> usize {
        let facts = self.world.log.iter().flat_map(|(_, facts)| facts);
        facts.filter(|fact| matches!(fact, Fact::Kv(_, KvFact::Evicted { .. }))).count()
    }

    fn check(&mut self) {
        self.world.machine.check_all();
        assert_eq!(self.world.dump_of(&self.world.recovered()), self.world.dump(), "a start finds the same");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Run(Vec<KvOp>, bool),
    Set(u8, usize),
    Get(u8),
    Limit(KvSettings),
    Pass(u64),
    Tick(usize),
    Seal,
    Collect(usize),
    Write,
    Fail,
    Chill,
    Crash,
}

fn settings() -> impl Strategy<Value = KvSettings> {
    let limits = prop_oneof![
        (1..9_u64).prop_map(|entries| (Some(entries), None)),
        (1..4_u64).prop_map(|mib| (None, Some(mib * MIB))),
        (2..9_u64, 1..4_u64).prop_map(|(entries, mib)| (Some(entries), Some(mib * MIB))),
    ];
    let mode = prop_oneof![4 => Just(KvMode::Cache), 1 => Just(KvMode::Durable)];
    (limits, mode).prop_map(|((entries_max, bytes_max), mode)| KvSettings {
        mode,
        entries_max,
        bytes_max,
        ..KvSettings::default()
    })
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![0..2_000_usize, Just(300_000), Just(1_000_000)];
    prop_oneof![
        10 => (prop::collection::vec(op(), 1..5), any::<bool>()).prop_map(|(ops, atomic)| Step::Run(ops, atomic)),
        14 => (0..20_u8, size).prop_map(|(key, size)| Step::Set(key, size)),
        6 => (0..20_u8).prop_map(Step::Get),
        2 => settings().prop_map(Step::Limit),
        2 => (1..60_u64).prop_map(Step::Pass),
        3 => (2..9_usize).prop_map(Step::Tick),
        2 => Just(Step::Seal),
        3 => (1..9_usize).prop_map(Step::Collect),
        2 => Just(Step::Write),
        1 => Just(Step::Fail),
        3 => Just(Step::Chill),
        2 => Just(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(cases(200))]
    #[test]
    fn a_cache_is_within_its_limits_and_a_durable_store_never_beyond(
        first in settings(), steps in prop::collection::vec(step(), 1..80)
    ) {
        let mut rig = Rig::new(first);
        for step in steps {
            let (was_within, before) = (rig.is_within(), rig.held());
            let is_cache = rig.settings.mode == KvMode::Cache;
            // Pages of what goes count until ticks free them, be it that they came with the same call.
            let (mut grows, mut leaves) = (true, false);
            match step {
                Step::Run(ops, atomic) => {
                    leaves = ops.len() > 1 && ops.iter().any(|op| !op.action.adds());
                    drop(rig.run(KvCommand::Run { ops: ops.into(), atomic, seed: 3 }));
                }
                Step::Set(key, size) => drop(rig.set(&format!("k{key}"), size)),
                Step::Get(key) => drop(rig.has(&format!("k{key}"))),
                Step::Limit(settings) => {
                    rig.update(settings);
                    grows = false;
                }
                Step::Pass(ms) => rig.world.now = rig.world.now.plus(ms),
                Step::Tick(facts_max) => {
                    rig.world.tick(facts_max);
                    prop_assert!(!is_cache || rig.is_within(), "ticks make room: {:?}", rig.held());
                }
                Step::Seal => if rig.world.sealed.is_none() { rig.world.seal() },
                Step::Collect(items) => rig.world.collect(items),
                Step::Write => drop(rig.world.write()),
                Step::Chill => {
                    rig.world.checkpoint();
                    rig.world.chill(2);
                }
                Step::Fail => if rig.world.sealed.is_some() { rig.world.unseal() },
                Step::Crash => {
                    rig.check();
                    rig.world.crash();
                    // Pages of collections that come from the index may take a little more, or less.
                    grows = false;
                }
            }
            if grows {
                let now = rig.held();
                prop_assert!(!was_within || rig.is_within(), "{before:?} to {now:?} of {:?}", rig.settings);
                let KvSettings { entries_max, bytes_max, .. } = rig.settings;
                if before.0 > entries_max.unwrap_or(u64::MAX) {
                    prop_assert!(now.0 <= before.0, "{before:?} to {now:?}");
                }
                if before.1 > bytes_max.unwrap_or(u64::MAX) && !leaves {
                    prop_assert!(now.1 <= before.1, "{before:?} to {now:?}");
                }
            }
            rig.world.machine.check_all();
        }
        rig.check();
    }
}

#[test]
fn what_is_asked_for_stays() {
    let mut rig = Rig::new(cache(Some(100), None));
    for round in 0..2_000 {
        assert!(matches!(rig.set(&format!("once-{round}"), 10), Outcome::Changed(..)));
        for hot in 0..20 {
            let key = format!("hot-{hot}");
            if !rig.has(&key) {
                rig.set(&key, 10);
            }
        }
    }
    assert_eq!(rig.held().0, 100);
    assert!((0..20).all(|hot| rig.has(&format!("hot-{hot}"))), "what is asked for all the time is there");
    // All but what is there at the end, and hot keys that went before they were asked for twice.
    assert!((1_920..1_960).contains(&rig.evicted()), "{}", rig.evicted());
    rig.check();
}

#[test]
fn a_batch_larger_than_the_cache_leaves_it_full_and_no_more() {
    let mut rig = Rig::new(cache(Some(1_000), None));
    let entry = |n: usize| (Bytes::from(format!("key-{n:05}")), Bytes::from_static(b"value"));
    let Outcome::Changed(Reply::Written(written), _) = rig.set_all((0..5_000).map(entry)) else { panic!() };
    assert!(written.iter().all(Result::is_ok), "all were there");
    assert_eq!((rig.held().0, rig.evicted()), (1_000, 4_000));
    assert!(
        rig.world.log.iter().all(|(_, facts)| facts.len() <= 5_001
            && facts.iter().filter(|fact| matches!(fact, Fact::Kv(..))).count() <= 512),
        "in entries of bounded size"
    );
    rig.check();
}

#[test]
fn a_collection_goes_whole_and_its_pages_make_the_room() {
    let mut rig = Rig::new(cache(None, Some(4 * MIB)));
    let push = |key: &'static str| KvOp {
        key: Bytes::from_static(key.as_bytes()),
        condition: SetIf::Always,
        action: KvAction::List(ListOp::Push {
            side: Side::Back,
            values: vec![Bytes::from(vec![b'v'; 1000]); 1500],
            if_present: false,
        }),
    };
    // Made, and asked for once.
    for _ in 0..2 {
        rig.run(KvCommand::Run { ops: [push("list")].into_iter().collect(), atomic: false, seed: 1 });
    }
    let before = rig.held();
    assert!(before.1 > 3_000_000 && rig.evicted() == 0, "{before:?}");
    (0..900).for_each(|n| drop(rig.set(&format!("key-{n}"), 1_000)));
    assert!(rig.is_within());
    rig.world.tick(64);
    let (keys, bytes) = rig.held();
    assert_eq!((keys, rig.evicted()), (900, 1), "for one that is large no others go");
    assert!(bytes < 1_100_000, "its pages are gone: {bytes}");
    rig.check();
}

#[test]
fn a_smaller_limit_is_reached_bit_by_bit() {
    let mut rig = Rig::new(cache(Some(10_000), None));
    let entry = |n: usize| (Bytes::from(format!("key-{n:05}")), Bytes::from_static(b"value"));
    rig.set_all((0..8_000).map(entry));
    rig.update(cache(Some(100), None));
    assert_eq!(rig.held().0, 8_000);
    // What comes meanwhile costs twice as much.
    rig.set("another", 5);
    assert_eq!(rig.held().0, 7_999);
    let facts = rig.world.tick(64);
    assert_eq!((rig.held().0, facts.len()), (100, 7_899));
    assert_eq!(rig.world.machine.next_due(), None, "then nothing is due");
    rig.check();
}

#[test]
fn a_store_that_becomes_a_cache_makes_room_among_what_it_has() {
    let mut rig = Rig::new(KvSettings::default());
    let entry = |n: usize| (Bytes::from(format!("key-{n:05}")), Bytes::from_static(b"value"));
    rig.set_all((0..3_000).map(entry));
    rig.world.seal();
    rig.world.write();
    rig.world.crash();
    rig.update(cache(Some(50), None));
    rig.world.tick(512);
    assert_eq!(rig.held().0, 50);
    rig.check();
}

#[test]
fn with_little_memory_a_cache_loses_what_it_gets() {
    let mut rig = Rig::new(cache(None, Some(64 * MIB)));
    (0..100).for_each(|n| drop(rig.set(&format!("key-{n}"), 1_000)));
    assert_eq!((rig.held().0, rig.evicted()), (100, 0));
    assert!(rig.world.machine.can_make_room(rig.store));
    rig.world.machine.set_tight(true);
    (100..200).for_each(|n| drop(rig.set(&format!("key-{n}"), 1_000)));
    let (keys, _) = rig.held();
    assert!(keys <= 3, "twice as much went as came: {keys} keys");
    rig.world.machine.set_tight(false);
    (200..300).for_each(|n| drop(rig.set(&format!("key-{n}"), 1_000)));
    assert_eq!(rig.held().0, keys + 100);
    let durable = rig.world.create_with("durable", Settings::Kv(KvSettings::default()));
    assert!(!rig.world.machine.can_make_room(durable));
}

/// What chose entries to go is forgotten with the log's refusal: they are chosen again.
#[test]
fn what_could_not_be_logged_goes_the_next_time() {
    let mut rig = Rig::new(cache(Some(10), None));
    (0..10).for_each(|n| drop(rig.set(&format!("key-{n}"), 10)));
    rig.update(cache(Some(4), None));
    let refused = rig.world.machine.tick(rig.world.now, rig.world.lsn.next(), 512).facts;
    assert_eq!(refused.len(), 6);
    rig.check();
    let mut again = rig.world.tick(512);
    assert_eq!(rig.held().0, 4);
    again.reverse();
    assert_eq!(again, refused, "the same entries");
    rig.check();
}

#[test]
fn what_could_not_be_logged_behind_a_change_is_left_to_ticks() {
    let mut rig = Rig::new(cache(Some(5), None));
    (0..5).for_each(|n| drop(rig.set(&format!("key-{n}"), 10)));
    let entry = SetEntry {
        key: Bytes::from_static(b"one more"),
        value: Bytes::new(),
        ttl: SetTtl::Default,
        condition: SetIf::Always,
    };
    let set = Command::Kv(rig.store, KvCommand::Set { entries: [entry].into_iter().collect() });
    let Ok(Decision::Change { facts, .. }) = rig.world.decide(&set) else {
        panic!("a cache refuses nothing")
    };
    rig.world.commit(facts);
    assert!(rig.world.machine.is_crowded());
    let chosen = rig.world.machine.make_room(rig.world.now, rig.world.lsn.next());
    assert_eq!((chosen.len(), rig.world.machine.next_due()), (1, None), "not while it can be logged");
    rig.world.machine.leave_room_to_ticks();
    assert!(!rig.world.machine.is_crowded() && rig.world.machine.next_due().is_some());
    assert_eq!(rig.world.tick(2), chosen);
    assert_eq!(rig.held().0, 5);
    rig.check();
}

#[test]
fn a_full_store_refuses_what_makes_it_larger_and_nothing_else() {
    let mut rig = Rig::new(KvSettings { entries_max: Some(3), ..KvSettings::default() });
    for key in ["a", "b", "c"] {
        rig.set(key, 100);
    }
    let full = Reject::StoreFull { what: "entries", setting: "entries_max", held: 3, wanted: 4, max: 3 };
    assert_eq!(rig.set("d", 1), Outcome::Rejected(full.clone()));
    assert!(full.to_string().contains("3, it has 3 and would have 4"), "{full}");
    assert!(matches!(rig.set("a", 900_000), Outcome::Changed(..)), "no entry more");
    let keys = [Bytes::from_static(b"b")].into_iter().collect();
    assert!(matches!(rig.run(KvCommand::Delete { keys, if_version: None }), Outcome::Changed(..)));
    assert!(matches!(rig.set("d", 1), Outcome::Changed(..)));
    let both = [("e", 1), ("f", 1)].map(|(key, n)| (Bytes::from(key), Bytes::from(vec![b'v'; n])));
    assert!(matches!(rig.set_all(both), Outcome::Rejected(Reject::StoreFull { wanted: 5, .. })));

    rig.update(KvSettings { bytes_max: Some(MIB), ..KvSettings::default() });
    let outcome = rig.set("big", 200_000);
    let Outcome::Rejected(Reject::StoreFull { what: "bytes", setting: "bytes_max", held, wanted, max }) =
        outcome
    else {
        panic!("{outcome:?}")
    };
    assert_eq!(max, MIB);
    assert!(held > 900_000 && held < max && wanted > max && wanted < held + 200_200, "{held} {wanted}");
    assert!(matches!(rig.set("a", 850_000), Outcome::Changed(..)), "what shrinks passes");
    assert!(matches!(rig.set("big", 150_000), Outcome::Changed(..)));
    rig.update(KvSettings { bytes_max: Some(MIB), entries_max: Some(1), ..KvSettings::default() });
    assert!(!rig.is_within());
    assert!(matches!(rig.set("a", 10), Outcome::Changed(..)), "what shrinks passes beyond the limits, too");
    assert!(matches!(rig.set("a", 20), Outcome::Changed(..)));
    rig.check();
}

#[test]
fn each_shard_has_an_equal_share() {
    let mut rig = Rig::new(cache(Some(10), None));
    rig.world.machine =
        flowmesh_machine::Machine::new(flowmesh_machine::MachineConfig { shares: 4, ..common::CONFIG });
    rig.world.log.clear();
    rig.store = rig.world.create_with(STORE, Settings::Kv(cache(Some(10), None)));
    (0..20).for_each(|n| drop(rig.set(&format!("key-{n}"), 10)));
    assert_eq!(rig.held().0, 3, "a quarter of ten, rounded up");
}

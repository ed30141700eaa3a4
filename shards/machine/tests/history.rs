//! What reads say of the past is what reads said then, whatever came since: operations on all types, ends, checkpoints that
//! fail and crashes.

// A test fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use common::generated::{KEYS, op};
use common::{Outcome, World, cases};
use flowmesh_model::command::{KeyScan, SetEntry, SetIf, SetTtl};
use flowmesh_model::kv::past::{KeyDiff, KeyVersion, PastAsk, PastAt};
use flowmesh_model::kv::{
    BytesOp, HashOp, KeyOp, KvAction, KvOp, KvResult, ListOp, SetOp, Side, SortedOp, SortedRange,
};
use flowmesh_model::reply::EntryValue;
use flowmesh_model::{
    Batch, CatalogCommand, Command, Kind, KvCommand, KvSettings, Lsn, Millis, Reject, Reply, ResourceId,
    ResourcePath, Settings, Space,
};
use proptest::prelude::*;

const HISTORY_MS: u64 = 1_000;

fn keeping(history_ms: Option<u64>) -> Settings {
    Settings::Kv(KvSettings { history_ms, ..KvSettings::default() })
}

fn b(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// What can be read of a key, whatever it holds.
fn reads_of(key: &Bytes) -> Vec<KvOp> {
    let range = SortedRange::Rank(0, -1);
    let actions = [
        KvAction::Bytes(BytesOp::Get),
        KvAction::Hash(HashOp::All),
        KvAction::Hash(HashOp::Len),
        KvAction::Hash(HashOp::Ends(
            (0..80).map(|n: usize| b(&format!("{n:02}{}", "x".repeat(n % 5 * 90)))).collect(),
        )),
        KvAction::Set(SetOp::All),
        KvAction::Sorted(SortedOp::Range { range, reverse: false, skip: 0, limit: None, into: None }),
        KvAction::List(ListOp::Range(0, -1)),
    ];
    let op = |action| KvOp { key: key.clone(), condition: SetIf::Always, action };
    actions.into_iter().map(op).collect()
}

fn reads() -> Batch<KvOp> {
    KEYS.iter().flat_map(|key| reads_of(&b(key))).collect()
}

fn scan() -> KeyScan {
    KeyScan { keys_max: 100, with_values: true, ..KeyScan::default() }
}

/// What the store holds, as far as it can be read.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    entries: Vec<(Bytes, EntryValue)>,
    outcomes: Reply,
}

impl Seen {
    fn of(&self, key: &Bytes) -> Option<&EntryValue> {
        self.entries.iter().find(|(of, _)| of == key).map(|(_, value)| value)
    }

    /// All that can be seen of a key, but for versions.
    fn content(&self, key: &Bytes) -> (Option<EntryValue>, Vec<Result<KvResult, Reject>>) {
        let place = KEYS.iter().position(|of| of.as_bytes() == key).unwrap();
        let Reply::Kv(outcomes) = &self.outcomes else { panic!() };
        let reads = reads_of(key).len();
        let outcomes = outcomes[place * reads..][..reads].iter().cloned();
        let value = self.of(key).cloned().map(|value| EntryValue { version: Lsn(0), ..value });
        (value, outcomes.map(|outcome| outcome.map(|outcome| outcome.result)).collect())
    }
}

struct Rig {
    world: World,
    store: ResourceId,
    /// What was seen after which entry, when, and whether all that had ended was removed.
    seen: Vec<(Lsn, Millis, bool, Seen)>,
}

impl Rig {
    fn new(history_ms: Option<u64>) -> Self {
        let mut world = World::default();
        let store = world.create_with("cart", keeping(history_ms));
        Self { world, store, seen: Vec::new() }
    }

    fn ask(&mut self, command: KvCommand) -> Outcome {
        self.world.run(&Command::Kv(self.store, command))
    }

    fn past(&mut self, ask: PastAsk) -> Outcome {
        self.ask(KvCommand::Past(ask))
    }

    fn do_all(&mut self, ops: Vec<KvOp>) -> Reply {
        self.ask(KvCommand::Run { ops: ops.into_iter().collect(), atomic: false, seed: 7 }).reply()
    }

    fn set(&mut self, key: &str, value: &str) -> Lsn {
        let entry = SetEntry { key: b(key), value: b(value), ttl: SetTtl::Default, condition: SetIf::Always };
        self.ask(KvCommand::Set { entries: [entry].into_iter().collect() }).reply();
        self.world.lsn
    }

    fn get_at(&mut self, at: PastAt, key: &str) -> Result<Option<EntryValue>, Reject> {
        match self.past(PastAsk::Get { at, keys: [b(key)].into_iter().collect() }) {
            Outcome::Answered(Reply::Values(values), _) => Ok(values[0].clone()),
            Outcome::Rejected(reject) => Err(reject),
            other => panic!("{other:?}"),
        }
    }

    fn text_at(&mut self, at: PastAt, key: &str) -> Option<String> {
        let value = self.get_at(at, key).unwrap();
        value.map(|value| String::from_utf8(value.value.to_vec()).unwrap())
    }

    fn look(&mut self) -> Seen {
        let outcomes = self.ask(KvCommand::Run { ops: reads(), atomic: false, seed: 7 }).reply();
        match self.ask(KvCommand::Scan(scan())).reply() {
            Reply::Scanned { entries, next: None } => Seen { entries, outcomes },
            other => panic!("{other:?}"),
        }
    }

    fn look_at(&mut self, at: PastAt) -> Result<Seen, Reject> {
        let outcomes = match self.past(PastAsk::Run { at, ops: reads(), seed: 7 }) {
            Outcome::Answered(reply, _) => reply,
            Outcome::Rejected(reject) => return Err(reject),
            other => panic!("{other:?}"),
        };
        Ok(Seen { entries: self.scan_at(at, scan()), outcomes })
    }

    fn scan_at(&mut self, at: PastAt, mut scan: KeyScan) -> Vec<(Bytes, EntryValue)> {
        let mut entries = Vec::new();
        loop {
            let ask = PastAsk::Scan { at, scan: scan.clone() };
            let Reply::Scanned { entries: page, next } = self.past(ask).reply() else { panic!("a scan") };
            entries.extend(page);
            let Some(next) = next else { return entries };
            assert!(scan.after.is_none_or(|after| after < next), "a page goes on");
            scan.after = Some(next);
        }
    }

    fn diff(&mut self, from: PastAt, to: PastAt) -> Vec<KeyDiff> {
        let (mut scan, mut all) = (scan(), Vec::new());
        loop {
            let diff = PastAsk::Diff { from, to, scan: scan.clone() };
            let Reply::KvDiff { keys, next } = self.past(diff).reply() else { panic!("a difference") };
            all.extend(keys);
            let Some(next) = next else { return all };
            scan.after = Some(next);
        }
    }

    fn versions(&mut self, key: &Bytes, limit: u32) -> Vec<KeyVersion> {
        let (mut after, mut all) = (Lsn(0), Vec::new());
        loop {
            let ask = PastAsk::Versions { key: key.clone(), after, limit };
            let Reply::KvVersions { versions, next } = self.past(ask).reply() else { panic!("versions") };
            all.extend(versions);
            let Some(next) = next else { return all };
            assert!(next > after);
            after = next;
        }
    }

    fn note(&mut self, is_ticked: bool) {
        let seen = self.look();
        let now = self.world.machine.clamp(self.world.now);
        self.seen.push((self.world.lsn, now, is_ticked, seen));
    }

    /// Compares what is said of the past with what was seen.
    fn compare(&mut self) {
        let now = self.world.machine.clamp(self.world.now);
        let seen = std::mem::take(&mut self.seen);
        let mut known = Vec::new();
        for (index, (lsn, time, is_ticked, then)) in seen.iter().enumerate() {
            // A time shows all that was made true in its millisecond.
            let is_last = seen.get(index + 1).is_none_or(|(_, next, ..)| next > time);
            let is_kept = time.0 + HISTORY_MS >= now.0;
            if is_last {
                match self.look_at(PastAt::Time(*time)) {
                    Ok(said) => {
                        assert_eq!(said, *then, "as of time {time}");
                        known.push((*time, then));
                    }
                    Err(Reject::HistoryNotKept { requested, .. }) => {
                        assert!(!is_kept && requested == time.0, "{time} is kept at {now}");
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            let is_alone = seen.get(index + 1).is_none_or(|(next, ..)| next > lsn);
            if *is_ticked && is_alone {
                match self.look_at(PastAt::Version(*lsn)) {
                    Ok(said) => assert_eq!(said, *then, "as of version {lsn}"),
                    Err(Reject::HistoryNotKept { .. }) => assert!(!is_kept, "{time} is kept at {now}"),
                    Err(other) => panic!("{other}"),
                }
            }
        }
        for window in known.windows(3) {
            let [(from, before), _, (to, after)] = window else { panic!() };
            self.compare_diff((*from, before), (*to, after));
        }
        if let (Some((from, before)), Some((to, after))) = (known.first(), known.last()) {
            self.compare_diff((*from, before), (*to, after));
        }
        let since = known.first().map(|(time, _)| *time);
        for key in KEYS.map(b) {
            self.compare_versions(&key, &seen, since);
        }
        self.seen = seen;
    }

    fn compare_diff(&mut self, (from, before): (Millis, &Seen), (to, after): (Millis, &Seen)) {
        let diff = self.diff(PastAt::Time(from), PastAt::Time(to));
        let differs = |key: &Bytes| before.content(key) != after.content(key);
        let expected: Vec<Bytes> = KEYS.map(b).into_iter().filter(differs).collect();
        assert_eq!(
            diff.iter().map(|key| key.key.clone()).collect::<Vec<_>>(),
            expected,
            "from {from} to {to}"
        );
        for key in diff {
            assert_eq!((key.before.as_ref(), key.after.as_ref()), (before.of(&key.key), after.of(&key.key)));
            assert!(key.items.iter().all(|item| item.before != item.after));
        }
    }

    fn compare_versions(&mut self, key: &Bytes, seen: &[(Lsn, Millis, bool, Seen)], since: Option<Millis>) {
        let versions = self.versions(key, 3);
        assert_eq!(versions, self.versions(key, 1_000), "pages make one list");
        assert!(versions.windows(2).all(|pair| pair[0].version < pair[1].version));
        for version in &versions {
            if version.at.is_some() {
                let said = self.get_at(PastAt::Version(version.version), std::str::from_utf8(key).unwrap());
                assert_eq!(said.as_ref(), Ok(&version.value));
            }
        }
        // What was seen in the time that is kept is among them; of its first millisecond a part may be gone.
        let listed: BTreeMap<Lsn, &KeyVersion> = versions.iter().map(|v| (v.version, v)).collect();
        for (_, time, _, then) in seen {
            if since.is_some_and(|since| *time > since)
                && let Some(value) = then.of(key)
            {
                assert_eq!(listed[&value.version].value.as_ref(), Some(value));
            }
        }
        let removed: BTreeSet<Lsn> =
            versions.iter().filter(|v| v.value.is_none()).map(|v| v.version).collect();
        assert!(removed.iter().all(|lsn| listed[lsn].at.is_some()));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Run(Vec<KvOp>, bool),
    Clear,
    Pass(u64, bool),
    Seal,
    Collect(usize),
    Write,
    Unseal,
    Chill,
    Crash,
    Compare,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (prop::collection::vec(op(), 1..5), any::<bool>()).prop_map(|(ops, atomic)| Step::Run(ops, atomic)),
        1 => Just(Step::Clear),
        4 => (0u64..60, any::<bool>()).prop_map(|(ms, ticks)| Step::Pass(ms, ticks)),
        1 => (100u64..500).prop_map(|ms| Step::Pass(ms, true)),
        2 => Just(Step::Seal),
        2 => (1usize..20).prop_map(Step::Collect),
        2 => Just(Step::Write),
        1 => Just(Step::Unseal),
        3 => Just(Step::Chill),
        1 => Just(Step::Crash),
        1 => Just(Step::Compare),
    ]
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn reads_of_the_past_say_what_reads_said_then(
        steps in prop::collection::vec(step(), 1..70),
        rows_max in 1usize..20,
    ) {
        let mut rig = Rig::new(Some(HISTORY_MS));
        rig.world.history_rows_max = rows_max;
        for step in steps {
            match step {
                Step::Run(ops, atomic) => {
                    let ops = ops.into_iter().collect();
                    rig.ask(KvCommand::Run { ops, atomic, seed: 7 });
                    rig.note(false);
                }
                Step::Clear => {
                    rig.ask(KvCommand::Clear { keys_max: 3 });
                    rig.note(false);
                }
                Step::Pass(ms, ticks) => {
                    rig.note(false);
                    rig.world.now = rig.world.now.plus(ms);
                    // What was looked at is in memory, or is not when it ends.
                    if ms % 2 == 1 {
                        rig.world.chill(2);
                    }
                    if ticks {
                        rig.world.tick(50);
                        rig.note(true);
                    }
                }
                Step::Seal => if rig.world.sealed.is_none() { rig.world.seal() },
                Step::Collect(items) => rig.world.collect(items),
                Step::Write => drop(rig.world.write()),
                Step::Unseal => if rig.world.sealed.is_some() { rig.world.unseal() },
                Step::Chill => {
                    rig.world.checkpoint();
                    rig.world.chill(2);
                }
                Step::Crash => rig.world.crash(),
                Step::Compare => rig.compare(),
            }
            rig.world.machine.check_all();
        }
        rig.compare();
    }
}

fn op_on(key: &str, action: KvAction) -> KvOp {
    KvOp { key: b(key), condition: SetIf::Always, action }
}

fn add(key: &str, members: impl Iterator<Item = u32>) -> KvOp {
    op_on(key, KvAction::Set(SetOp::Add(members.map(|n| b(&format!("{n:06}"))).collect())))
}

fn delete(key: &str) -> KvOp {
    op_on(key, KvAction::Key(KeyOp::Delete))
}

fn rename(key: &str, to: &str) -> KvOp {
    op_on(key, KvAction::Key(KeyOp::Rename { to: b(to), if_absent: false }))
}

impl Rig {
    fn members_at(&mut self, at: PastAt, key: &str) -> Vec<Bytes> {
        let ops = [op_on(key, KvAction::Set(SetOp::All))].into_iter().collect();
        let Reply::Kv(outcomes) = self.past(PastAsk::Run { at, ops, seed: 7 }).reply() else { panic!() };
        match &outcomes[0].as_ref().unwrap().result {
            KvResult::Members(members) => members.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn update(&mut self, history_ms: Option<u64>) {
        let path = ResourcePath::parse(Kind::Kv, "cart").unwrap();
        let update = CatalogCommand::Update { path, settings: keeping(history_ms) };
        self.world.run(&Command::Catalog(update)).reply();
        self.world.tick(50);
    }

    fn checkpoint(&mut self) {
        self.world.seal();
        assert!(self.world.write());
        self.world.machine.check_all();
    }

    fn rows(&self, space: Space) -> usize {
        self.world.index.keys().filter(|(of, _)| *of == space).count()
    }

    fn pass(&mut self, ms: u64) -> Millis {
        self.world.now = self.world.now.plus(ms);
        self.world.tick(50);
        self.world.now
    }
}

#[test]
fn what_cannot_be_read_of_the_past_is_refused_by_name() {
    let mut plain = Rig::new(None);
    plain.set("k", "v");
    let path = "default/default/kv/cart".to_owned();
    assert_eq!(plain.get_at(PastAt::Time(Millis(1)), "k"), Err(Reject::NoHistory { path }));

    let mut rig = Rig::new(Some(HISTORY_MS));
    let first = rig.set("k", "one");
    let now = rig.world.now;
    let future = rig.get_at(PastAt::Time(now.plus(1)), "k").unwrap_err();
    assert!(matches!(&future, Reject::InvalidArgument { field: "as_of_ms", .. }), "{future}");
    let future = rig.get_at(PastAt::Version(first.next()), "k").unwrap_err();
    assert!(matches!(&future, Reject::InvalidArgument { field: "at_version", .. }), "{future}");
    // Before the store had its first key there was none: that is known.
    assert_eq!(rig.get_at(PastAt::Time(Millis(0)), "k"), Ok(None));
    assert_eq!(rig.get_at(PastAt::Version(Lsn(0)), "k"), Ok(None));
    rig.pass(10);
    rig.set("k", "two");
    rig.pass(HISTORY_MS);
    // The part that has the first write has the second, too.
    assert_eq!(rig.get_at(PastAt::Time(now), "k").unwrap_err().reason(), "HISTORY_NOT_KEPT");
    let refused = rig.get_at(PastAt::Version(first), "k").unwrap_err();
    let oldest = Reject::HistoryNotKept {
        requested: first.0,
        is_version: true,
        oldest_ms: now.0 + 10,
        oldest_version: Lsn(first.0 + 1),
    };
    assert_eq!(refused, oldest);
    assert_eq!(rig.text_at(PastAt::Time(now.plus(10)), "k").unwrap(), "two");

    let at = PastAt::Time(rig.world.now);
    let ops = [op_on("k", KvAction::Bytes(BytesOp::Get)), delete("k")].into_iter().collect();
    let refused = rig.past(PastAsk::Run { at, ops, seed: 7 });
    assert_eq!(refused, Outcome::Rejected(Reject::PastChange { index: 1 }));
    let refused = rig.past(PastAsk::Scan { at, scan: KeyScan { reverse: true, ..scan() } });
    assert!(matches!(refused, Outcome::Rejected(Reject::InvalidArgument { field: "reverse", .. })));
    let foreign = KeyScan { prefix: b("p"), after: Some(b("k")), ..scan() };
    assert_eq!(rig.past(PastAsk::Scan { at, scan: foreign }), Outcome::Rejected(Reject::ForeignCursor));
    for (from, to) in [(at, PastAt::Time(now.plus(10))), (at, PastAt::Version(rig.world.lsn))] {
        let refused = rig.past(PastAsk::Diff { from, to, scan: scan() });
        assert!(matches!(refused, Outcome::Rejected(Reject::InvalidArgument { field: "to", .. })));
    }
    for limit in [0, 1_001] {
        let refused = rig.past(PastAsk::Versions { key: b("k"), after: Lsn(0), limit });
        assert!(matches!(refused, Outcome::Rejected(Reject::InvalidArgument { field: "limit", .. })));
    }
}

#[test]
fn a_history_begins_when_it_is_switched_on_and_goes_when_it_is_switched_off() {
    let mut rig = Rig::new(None);
    rig.set("k", "before");
    let before = rig.pass(5);
    rig.pass(5);
    rig.update(Some(HISTORY_MS));
    let since = rig.world.now;
    let refused = rig.get_at(PastAt::Time(before), "k").unwrap_err();
    let oldest_version = rig.world.lsn;
    let expected =
        Reject::HistoryNotKept { requested: before.0, is_version: false, oldest_ms: since.0, oldest_version };
    assert_eq!(refused, expected);
    assert_eq!(rig.text_at(PastAt::Time(since), "k").unwrap(), "before");
    rig.pass(5);
    rig.set("k", "after");
    rig.do_all(vec![add("s", 0..2_000)]);
    rig.pass(1);
    rig.do_all(vec![delete("s")]);
    assert_eq!(rig.text_at(PastAt::Time(since), "k").unwrap(), "before");
    assert_eq!(rig.versions(&b("k"), 10).len(), 2);
    rig.checkpoint();
    assert!(rig.rows(Space::History) > 0 && rig.rows(Space::Pages) > 2);

    rig.update(None);
    assert_eq!(rig.get_at(PastAt::Time(rig.world.now), "k").unwrap_err().reason(), "NO_HISTORY");
    rig.pass(1);
    rig.checkpoint();
    assert_eq!((rig.rows(Space::History), rig.rows(Space::Pages)), (0, 0), "nothing of it is left");
    rig.world.crash();
    assert_eq!(rig.world.machine.stats().history_records, 0);

    rig.update(Some(HISTORY_MS));
    assert_eq!(rig.get_at(PastAt::Time(since), "k").unwrap_err().reason(), "HISTORY_NOT_KEPT");
    assert_eq!(rig.text_at(PastAt::Time(rig.world.now), "k").unwrap(), "after");
}

#[test]
fn a_large_collection_that_was_deleted_is_there_as_of_before_and_its_pages_go_with_its_record() {
    let mut rig = Rig::new(Some(HISTORY_MS));
    rig.do_all(vec![add("s", 0..5_000)]);
    let full = rig.world.now;
    rig.pass(1);
    rig.do_all(vec![add("s", 5_000..5_010), op_on("s", KvAction::Set(SetOp::Remove(vec![b("000007")])))]);
    let changed = rig.world.now;
    rig.pass(1);
    rig.checkpoint();
    let memory = rig.world.machine.memory_bytes();
    rig.do_all(vec![delete("s")]);
    assert!(rig.world.machine.memory_bytes() + 1_000 > memory, "its pages are kept");
    rig.set("s", "bytes now");
    rig.checkpoint();
    rig.world.crash();
    rig.world.machine.check_all();
    let all = |numbers: std::ops::Range<u32>| numbers.map(|n| b(&format!("{n:06}"))).collect::<Vec<_>>();
    assert_eq!(rig.members_at(PastAt::Time(full), "s"), all(0..5_000));
    let mut later = all(0..5_010);
    later.retain(|member| member != "000007");
    assert_eq!(rig.members_at(PastAt::Time(changed), "s"), later);

    rig.pass(HISTORY_MS + 1);
    rig.checkpoint();
    assert_eq!(rig.rows(Space::Pages), 0);
    assert_eq!(rig.rows(Space::History), 0);
    let (records, bytes) =
        (rig.world.machine.stats().history_records, rig.world.machine.stats().history_bytes);
    assert_eq!((records, bytes), (0, 0));
    assert!(rig.world.machine.memory_bytes() < memory / 4, "and is given back");
    assert_eq!(rig.world.machine.memory_bytes(), rig.world.recovered().memory_bytes());
}

#[test]
fn a_collection_is_followed_through_its_names() {
    let mut rig = Rig::new(Some(HISTORY_MS));
    rig.do_all(vec![add("a{t}", 0..100)]);
    let (first, begun) = (rig.world.lsn, rig.world.now);
    rig.pass(1);
    // Within one command: renamed, changed, renamed on, and another takes the first name.
    rig.do_all(vec![
        rename("a{t}", "b{t}"),
        add("b{t}", 100..200),
        rename("b{t}", "c{t}"),
        add("a{t}", 500..501),
        delete("c{t}"),
    ]);
    rig.checkpoint();
    let all: Vec<Bytes> = (0..100).map(|n| b(&format!("{n:06}"))).collect();
    assert_eq!(rig.members_at(PastAt::Version(first), "a{t}"), all);
    assert_eq!(rig.members_at(PastAt::Time(begun), "a{t}"), all);
    assert_eq!(rig.members_at(PastAt::Version(first), "b{t}"), Vec::<Bytes>::new());
    let last = PastAt::Version(rig.world.lsn);
    assert_eq!(rig.members_at(last, "a{t}"), [b("000500")]);
    assert_eq!(rig.members_at(last, "c{t}"), Vec::<Bytes>::new());
    // Too many names.
    rig.do_all(vec![add("x0{t}", 0..2)]);
    let then = rig.world.lsn;
    for n in 0..70 {
        rig.do_all(vec![rename(&format!("x{n}{{t}}"), &format!("x{}{{t}}", n + 1))]);
    }
    let refused = rig.get_at(PastAt::Version(then), "x0{t}").unwrap_err();
    assert!(matches!(refused, Reject::TooLarge { max: 64, .. }), "{refused}");
    assert!(rig.get_at(PastAt::Version(Lsn(then.0 + 10)), "x10{t}").unwrap().is_some());
}

#[test]
fn what_has_ended_is_not_there_whenever_it_is_removed() {
    let mut rig = Rig::new(Some(HISTORY_MS));
    let begun = rig.world.now;
    let entry = SetEntry { key: b("k"), value: b("v"), ttl: SetTtl::Millis(100), condition: SetIf::Always };
    rig.ask(KvCommand::Set { entries: [entry].into_iter().collect() });
    let version = rig.world.lsn;
    rig.world.now = begun.plus(500);
    let look = |rig: &mut Rig| {
        assert_eq!(rig.text_at(PastAt::Time(begun.plus(99)), "k").as_deref(), Some("v"));
        assert_eq!(rig.text_at(PastAt::Time(begun.plus(100)), "k"), None);
        assert_eq!(rig.text_at(PastAt::Version(version), "k").as_deref(), Some("v"));
        let diff = rig.diff(PastAt::Time(begun.plus(50)), PastAt::Time(begun.plus(150)));
        assert_eq!(diff.len(), 1);
        assert!(diff[0].before.is_some() && diff[0].after.is_none());
    };
    look(&mut rig);
    assert_eq!(rig.versions(&b("k"), 10).len(), 1);
    rig.world.tick(50);
    look(&mut rig);
    let versions = rig.versions(&b("k"), 10);
    assert_eq!((versions.len(), &versions[1].value), (2, &None));
}

#[test]
fn a_difference_names_what_of_a_collection_is_another() {
    let mut rig = Rig::new(Some(HISTORY_MS));
    let push = |values: &[&str]| {
        let values = values.iter().map(|value| b(value)).collect();
        op_on("l", KvAction::List(ListOp::Push { side: Side::Back, values, if_present: false }))
    };
    rig.do_all(vec![push(&["a", "b", "c", "d"]), add("s", 0..3)]);
    rig.set("same", "v");
    rig.set("gone", "v");
    let from = rig.world.now;
    rig.pass(10);
    rig.checkpoint();
    rig.do_all(vec![
        op_on("l", KvAction::List(ListOp::SetAt(1, b("B")))),
        op_on("l", KvAction::List(ListOp::Insert { before: true, pivot: b("c"), value: b("x") })),
        op_on("s", KvAction::Set(SetOp::Remove(vec![b("000001")]))),
        add("s", 7..8),
        delete("gone"),
        op_on("same", KvAction::Bytes(BytesOp::Append(b("w")))),
    ]);
    rig.set("same", "v");
    rig.set("new", "v");
    let to = rig.world.now;
    let diff = rig.diff(PastAt::Time(from), PastAt::Time(to));
    let keys: Vec<&[u8]> = diff.iter().map(|key| &key.key[..]).collect();
    assert_eq!(keys, [&b"gone"[..], b"l", b"new", b"s"]);
    let items = |key: &KeyDiff| -> Vec<String> {
        let text = |item: &flowmesh_model::kv::change::ChangeItem| {
            String::from_utf8([&item.member[..], &item.value[..]].concat()).unwrap()
        };
        let show = |item: &flowmesh_model::kv::past::ItemDiff| {
            let (before, after) = (item.before.as_ref().map(text), item.after.as_ref().map(text));
            format!("{:?} {} {}", item.index, before.unwrap_or_default(), after.unwrap_or_default())
        };
        key.items.iter().map(show).collect()
    };
    assert_eq!(items(&diff[1]), ["Some(1) b ", "Some(1)  B", "Some(2)  x"]);
    assert_eq!(items(&diff[3]), ["None 000001 ", "None  000007"]);
}

#[test]
fn many_keys_are_scanned_as_of_a_time_page_by_page() {
    let mut rig = Rig::new(Some(HISTORY_MS));
    rig.world.history_rows_max = 64;
    let name = |n: u32| format!("{:03}\0{n}", n % 700);
    for n in 0..1_500 {
        rig.set(&name(n), &n.to_string());
    }
    let then = rig.world.now;
    let expected = match rig.ask(KvCommand::Scan(KeyScan { keys_max: 10_000, ..scan() })).reply() {
        Reply::Scanned { entries, .. } => entries,
        other => panic!("{other:?}"),
    };
    assert_eq!(expected.len(), 1_500);
    rig.pass(100);
    rig.checkpoint();
    for n in (0..1_500).step_by(3) {
        rig.do_all(vec![delete(&name(n))]);
        rig.set(&format!("{n}new"), "x");
        rig.set(&name(n + 1), "other");
    }
    rig.pass(50);
    rig.world.seal();
    rig.world.collect(700);
    for n in 0..100 {
        rig.set(&name(n), "again");
    }
    let at = PastAt::Time(then);
    let all = rig.look_at(at).unwrap().entries;
    assert_eq!(all, expected);
    let part = KeyScan { prefix: b("12"), glob: Some(b("*\0*5")), ..scan() };
    let entries = rig.scan_at(at, part);
    let wanted = |key: &Bytes| key.starts_with(b"12") && key.ends_with(b"5");
    let wanted: Vec<_> = expected.into_iter().filter(|(key, _)| wanted(key)).collect();
    assert_eq!(wanted.len(), 2);
    assert_eq!(entries, wanted);
}

#[test]
fn records_that_leave_memory_while_they_are_read_are_not_missed() {
    let mut rig = Rig::new(Some(HISTORY_MS));
    let first = rig.set("k", "one");
    rig.set("k", "two");
    let ask = PastAsk::Get { at: PastAt::Version(first), keys: [b("k")].into_iter().collect() };
    let command = Command::Kv(rig.store, KvCommand::Past(ask));
    let decision = rig.world.decide(&command).unwrap();
    let flowmesh_machine::Decision::Past(read) = decision else { panic!("{decision:?}") };
    // The index was read before the checkpoint, the state is asked after it.
    rig.checkpoint();
    let mut rows = flowmesh_machine::PastRows::default();
    for range in &read.ranges {
        rows.add(read.generation, range, Vec::new(), true);
    }
    let again = rig.world.machine.past(rig.world.now, rig.world.lsn.next(), &command, &rows).unwrap();
    assert!(matches!(again, flowmesh_machine::Decision::Past(more) if more.generation != read.generation));
    assert_eq!(rig.text_at(PastAt::Version(first), "k").unwrap(), "one");
}

#[test]
fn the_history_of_a_store_that_is_dropped_leaves_the_index() {
    let mut rig = Rig::new(Some(HISTORY_MS));
    rig.set("k", "one");
    rig.set("k", "two");
    rig.checkpoint();
    assert!(rig.rows(Space::History) > 0);
    rig.world.delete(Kind::Kv, "cart");
    rig.world.tick(50);
    rig.checkpoint();
    assert_eq!(rig.rows(Space::History), 0);
    assert_eq!(rig.rows(Space::Keys), 0);
    rig.world.crash();
    assert_eq!(rig.world.machine.stats().history_records, 0);
}

#[test]
fn a_list_that_loses_many_values_has_them_as_of_before() {
    let mut rig = Rig::new(Some(HISTORY_MS));
    let values: Vec<Bytes> = (0..3_000).map(|n| b(&format!("{n:04}{}", "v".repeat(100)))).collect();
    let push = ListOp::Push { side: Side::Back, values: values.clone(), if_present: false };
    rig.do_all(vec![op_on("l", KvAction::List(push))]);
    let full = rig.world.lsn;
    rig.do_all(vec![op_on("l", KvAction::List(ListOp::Trim(100, 199)))]);
    rig.checkpoint();
    let ops = [op_on("l", KvAction::List(ListOp::Range(0, -1)))].into_iter().collect();
    let Reply::Kv(outcomes) = rig.past(PastAsk::Run { at: PastAt::Version(full), ops, seed: 7 }).reply()
    else {
        panic!()
    };
    assert_eq!(outcomes[0].as_ref().unwrap().result, KvResult::Members(values));
}

#[test]
fn a_list_loses_no_more_at_once_than_one_call_may_look_at() {
    let mut rig = Rig::new(Some(HISTORY_MS));
    for _ in 0..21 {
        let values = (0..5_000).map(|n| b(&n.to_string())).collect();
        rig.do_all(vec![op_on(
            "l",
            KvAction::List(ListOp::Push { side: Side::Back, values, if_present: false }),
        )]);
    }
    let trim = |from| op_on("l", KvAction::List(ListOp::Trim(from, -1)));
    let refused =
        rig.ask(KvCommand::Run { ops: [trim(100_001)].into_iter().collect(), atomic: false, seed: 7 });
    assert!(matches!(refused, Outcome::Rejected(Reject::TooLarge { size: 100_001, .. })), "{refused:?}");
    rig.do_all(vec![trim(100_000)]);
    // As a whole it may go, however much there is.
    rig.do_all(vec![delete("l")]);
}

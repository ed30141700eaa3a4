//! Collections of keys on a simulated disk whose power fails at any operation: what was acknowledged is there afterwards,
//! and all keys together are as they were after some of the operations in their order, and none of those behind.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "a test")]
// Lengths and counts here are small.
#![allow(clippy::cast_possible_wrap, clippy::cast_sign_loss)]

mod common;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use common::{Answer, Rig, SimTimer, seeds};
use flowmesh_engine::Timer;
use flowmesh_model::command::SetIf;
use flowmesh_model::kv::{
    AddIf, BytesOp, End, EndIf, FieldTtl, HashOp, KeyOp, KvAction, KvOp, KvResult, ListOp, Real, SetOp, Side,
    SortedOp, SortedRange,
};
use flowmesh_model::{Batch, Command, Durability, Kind, KvCommand, Millis, Reply, ResourceId};
use flowmesh_sim::{Random, SimDisk};

/// What a key holds.
#[derive(Clone, Debug, PartialEq)]
enum Held {
    Number(i64),
    Hash(BTreeMap<Bytes, (Bytes, Option<Millis>)>),
    Set(BTreeSet<Bytes>),
    Sorted(BTreeMap<Bytes, Real>),
    List(Vec<Bytes>),
}

/// Keys of a type only ever take names of their type.
const NAMES: [&str; 9] = ["n{t}", "h1{t}", "h2{t}", "s1{t}", "s2{t}", "z1{t}", "z2{t}", "l1{t}", "l2{t}"];

type Keys = BTreeMap<&'static str, Held>;

/// A change, as a simple collection makes it.
#[derive(Clone, Debug)]
enum Change {
    Count(i64),
    Fields(&'static str, Vec<Bytes>, Bytes, Option<Millis>),
    FieldsEnd(&'static str, Vec<Bytes>, Millis),
    FieldsGone(&'static str, Vec<Bytes>),
    Members(&'static str, Vec<Bytes>),
    MembersGone(&'static str, Vec<Bytes>),
    Scores(&'static str, Vec<Bytes>, Real),
    LowestGone(&'static str, i64),
    Pushed(&'static str, Side, Vec<Bytes>),
    Trimmed(&'static str, i64),
    Renamed(&'static str, &'static str),
    Deleted(&'static str),
}

macro_rules! open {
    ($keys:expr, $key:expr, $kind:ident) => {
        match $keys.entry($key).or_insert_with(|| Held::$kind(Default::default())) {
            Held::$kind(held) => held,
            other => panic!("{other:?} at {}", $key),
        }
    };
}

/// Without fields that have ended, and without collections that are empty.
fn tidy(keys: &mut Keys, now: Millis) {
    keys.retain(|_, held| match held {
        Held::Number(_) => true,
        Held::Hash(fields) => {
            fields.retain(|_, (_, end)| end.is_none_or(|end| end > now));
            !fields.is_empty()
        }
        Held::Set(members) => !members.is_empty(),
        Held::Sorted(members) => !members.is_empty(),
        Held::List(values) => !values.is_empty(),
    });
}

impl Change {
    /// False: it is refused.
    fn make(&self, keys: &mut Keys, now: Millis) -> bool {
        tidy(keys, now);
        match self {
            Self::Count(by) => *open!(keys, "n{t}", Number) += by,
            Self::Fields(key, names, value, end) => {
                let fields = open!(keys, *key, Hash);
                fields.extend(names.iter().map(|name| (name.clone(), (value.clone(), *end))));
            }
            Self::FieldsEnd(key, names, end) => {
                let fields = open!(keys, *key, Hash);
                for name in names {
                    if let Some(field) = fields.get_mut(name) {
                        field.1 = Some(*end);
                    }
                }
            }
            Self::FieldsGone(key, names) => {
                open!(keys, *key, Hash).retain(|name, _| !names.contains(name));
            }
            Self::Members(key, names) => open!(keys, *key, Set).extend(names.iter().cloned()),
            Self::MembersGone(key, names) => {
                open!(keys, *key, Set).retain(|name| !names.contains(name));
            }
            Self::Scores(key, names, score) => {
                open!(keys, *key, Sorted).extend(names.iter().map(|name| (name.clone(), *score)));
            }
            Self::LowestGone(key, many) => {
                let members = open!(keys, *key, Sorted);
                let mut order: Vec<_> = members.iter().map(|(name, score)| (*score, name.clone())).collect();
                order.sort();
                order.iter().take(*many as usize).for_each(|(_, name)| {
                    members.remove(name);
                });
            }
            Self::Pushed(key, Side::Back, values) => open!(keys, *key, List).extend(values.iter().cloned()),
            Self::Pushed(key, Side::Front, values) => {
                let list = open!(keys, *key, List);
                for value in values {
                    list.insert(0, value.clone());
                }
            }
            Self::Trimmed(key, first) => {
                let list = open!(keys, *key, List);
                list.drain(..list.len().min(*first as usize));
            }
            Self::Renamed(from, to) => {
                let Some(held) = keys.remove(from) else { return false };
                keys.insert(to, held);
            }
            Self::Deleted(key) => drop(keys.remove(key)),
        }
        tidy(keys, now);
        true
    }

    fn op(&self) -> KvOp {
        let (key, action) = match self.clone() {
            Self::Count(by) => ("n{t}", KvAction::Bytes(BytesOp::Increment(by))),
            Self::Fields(key, names, value, end) => {
                let fields = names.into_iter().map(|name| (name, value.clone())).collect();
                let ttl = end.map_or(FieldTtl::Never, |end| FieldTtl::Until(End::At(end)));
                (key, KvAction::Hash(HashOp::Set { fields, if_absent: false, ttl }))
            }
            Self::FieldsEnd(key, fields, end) => {
                (key, KvAction::Hash(HashOp::Expire { fields, end: End::At(end), only: EndIf::Always }))
            }
            Self::FieldsGone(key, names) => (key, KvAction::Hash(HashOp::Delete(names))),
            Self::Members(key, names) => (key, KvAction::Set(SetOp::Add(names))),
            Self::MembersGone(key, names) => (key, KvAction::Set(SetOp::Remove(names))),
            Self::Scores(key, names, score) => {
                let members = names.into_iter().map(|name| (score, name)).collect();
                (key, KvAction::Sorted(SortedOp::Add { members, only: AddIf::default(), changed: false }))
            }
            Self::LowestGone(key, many) => {
                (key, KvAction::Sorted(SortedOp::RemoveRange(SortedRange::Rank(0, many - 1))))
            }
            Self::Pushed(key, side, values) => {
                (key, KvAction::List(ListOp::Push { side, values, if_present: false }))
            }
            Self::Trimmed(key, first) => (key, KvAction::List(ListOp::Trim(first, -1))),
            Self::Renamed(key, to) => (key, KvAction::Key(KeyOp::Rename { to: to.into(), if_absent: false })),
            Self::Deleted(key) => (key, KvAction::Key(KeyOp::Delete)),
        };
        KvOp { key: key.into(), condition: SetIf::Always, action }
    }
}

/// Changes that are made together, when, and what was said of it. None: all keys are deleted.
struct Sent {
    changes: Vec<Change>,
    now: Millis,
    answer: Answer,
}

impl Sent {
    fn make(&self, keys: &mut Keys) {
        if self.changes.is_empty() {
            return keys.clear();
        }
        let before = keys.clone();
        if !self.changes.iter().all(|change| change.make(keys, self.now)) {
            *keys = before;
        }
    }

    fn is_acknowledged(&self) -> bool {
        matches!(&*self.answer.borrow(), Some(Ok(_)))
    }
}

fn name(number: u64) -> Bytes {
    Bytes::from(format!("{number:04}{}", "x".repeat(number as usize % 7 * 15)))
}

/// Up to several pages of names that lie side by side.
fn names(random: &mut Random) -> Vec<Bytes> {
    let most = if random.coin() { 200 } else { 5 };
    let (first, many) = (random.below(400), 1 + random.below(most));
    (first..first + many).map(name).collect()
}

fn change(random: &mut Random, now: Millis) -> Change {
    let two = random.coin();
    let name = |one, other| if two { one } else { other };
    let (h, s, z, l) =
        (name("h1{t}", "h2{t}"), name("s1{t}", "s2{t}"), name("z1{t}", "z2{t}"), name("l1{t}", "l2{t}"));
    let end = now.plus(1 + random.below(60));
    match random.below(34) {
        0..=3 => Change::Count(1 + random.below(9) as i64),
        4..=8 => {
            let value = Bytes::from(random.next_u64().to_string());
            Change::Fields(h, names(random), value, (random.below(3) == 0).then_some(end))
        }
        9..=10 => Change::FieldsEnd(h, names(random), end),
        11 => Change::FieldsGone(h, names(random)),
        12..=15 => Change::Members(s, names(random)),
        16..=17 => Change::MembersGone(s, names(random)),
        18..=21 => {
            let score = Real::new(random.below(50) as f64 / 4.0).unwrap();
            Change::Scores(z, names(random), score)
        }
        22..=23 => Change::LowestGone(z, 1 + random.below(150) as i64),
        24..=27 => Change::Pushed(l, if random.coin() { Side::Front } else { Side::Back }, names(random)),
        28..=29 => Change::Trimmed(l, random.below(120) as i64),
        30..=32 => {
            let kinds = [("h1{t}", "h2{t}"), ("s1{t}", "s2{t}"), ("z1{t}", "z2{t}"), ("l1{t}", "l2{t}")];
            let (one, other) = kinds[random.below(4) as usize];
            if two { Change::Renamed(one, other) } else { Change::Renamed(other, one) }
        }
        _ => Change::Deleted(NAMES[random.below(NAMES.len() as u64) as usize]),
    }
}

fn run(ops: impl IntoIterator<Item = KvOp>) -> KvCommand {
    KvCommand::Run { ops: ops.into_iter().collect(), atomic: true, seed: 0 }
}

/// What a key holds, and when it was asked for.
fn read(rig: &mut Rig, store: ResourceId, key: &'static str) -> (Millis, Option<Held>) {
    let names: Vec<Bytes> = (0..600).map(name).collect();
    let range = SortedRange::Rank(0, -1);
    let actions = match &key[..1] {
        "n" => vec![KvAction::Bytes(BytesOp::Get)],
        "h" => vec![KvAction::Hash(HashOp::All), KvAction::Hash(HashOp::Ends(names.clone()))],
        "s" => vec![KvAction::Set(SetOp::All)],
        "z" => {
            let all = SortedOp::Range { range, reverse: false, skip: 0, limit: None, into: None };
            vec![KvAction::Sorted(all)]
        }
        _ => vec![KvAction::List(ListOp::Range(0, -1))],
    };
    let op = |action| KvOp { key: key.into(), condition: SetIf::Always, action };
    let now = rig.timer.now();
    let answer = rig.ask(Command::Kv(store, run(actions.into_iter().map(op))));
    let Ok(Reply::Kv(outcomes)) = answer else { panic!("{key} is not read: {answer:?}") };
    let mut results = outcomes.into_iter().map(|outcome| outcome.unwrap().result);
    let held = match results.next().unwrap() {
        KvResult::Value(text) => {
            text.map(|text| Held::Number(std::str::from_utf8(&text).unwrap().parse().unwrap()))
        }
        KvResult::Pairs(pairs) => {
            let Some(KvResult::Ends(ends)) = results.next() else { panic!("no ends") };
            let ends: BTreeMap<Bytes, Option<Option<Millis>>> = names.into_iter().zip(ends).collect();
            assert_eq!(
                ends.values().flatten().count(),
                pairs.len(),
                "fields that are there have ends or none"
            );
            let field = |(name, value): (Bytes, Bytes)| (name.clone(), (value, ends[&name].unwrap()));
            Some(Held::Hash(pairs.into_iter().map(field).collect()))
        }
        KvResult::Scored(members) => Some(Held::Sorted(members.into_iter().collect())),
        KvResult::Members(members) if key.starts_with('s') => Some(Held::Set(members.into_iter().collect())),
        KvResult::Members(values) => Some(Held::List(values)),
        other => panic!("{key}: {other:?}"),
    };
    let mut keys: Keys = held.map(|held| (key, held)).into_iter().collect();
    tidy(&mut keys, Millis(0));
    (now, keys.remove(key))
}

fn is_what_was_read(keys: &Keys, found: &[(&'static str, Millis, Option<Held>)]) -> bool {
    found.iter().all(|(key, now, found)| {
        let mut alone: Keys = keys.get(key).map(|held| (*key, held.clone())).into_iter().collect();
        tidy(&mut alone, *now);
        alone.get(key) == found.as_ref()
    })
}

/// Finds after which of the operations the keys are as they are, and makes that the beginning. Or says what is wrong.
fn check(
    rig: &mut Rig,
    store: ResourceId,
    keys: &mut Keys,
    sent: &mut Vec<Sent>,
    seed: u64,
) -> Result<(), String> {
    let found: Vec<_> = NAMES
        .into_iter()
        .map(|key| {
            let (now, held) = read(rig, store, key);
            (key, now, held)
        })
        .collect();
    let mut states = vec![keys.clone()];
    let mut acknowledged = 0;
    for sent in sent.drain(..) {
        let mut after = states[states.len() - 1].clone();
        tidy(&mut after, sent.now);
        let before = after.clone();
        sent.make(&mut after);
        states.push(after);
        // What changed nothing waits only for what it saw, not for all that came before it.
        if sent.is_acknowledged() && states.last() != Some(&before) {
            acknowledged = states.len() - 1;
        }
    }
    let legal = states[acknowledged..].iter().find(|keys| is_what_was_read(keys, &found));
    let Some(legal) = legal else {
        let last = &states[acknowledged];
        let wrong = found.iter().find(|one| !is_what_was_read(last, std::slice::from_ref(one)));
        let len = states.len() - 1;
        return Err(format!(
            "seed {seed}: {acknowledged} of {len} are acknowledged, and no state from there on is this: {wrong:?}"
        ));
    };
    keys.clone_from(legal);
    Ok(())
}

/// What a shard could do wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wrong {
    Nothing,
    /// Changes are acknowledged that are not on the disk.
    Unsynced,
    /// A change is acknowledged and not made.
    Lost,
    /// A change is made twice.
    Doubled,
}

/// A counter is the only thing that shows each change alone.
fn is_count(changes: &[Change]) -> bool {
    matches!(changes, [Change::Count(_)])
}

/// How many changes were acknowledged, or what was wrong afterwards.
fn crash_run(seed: u64, wrong: Wrong) -> Result<u64, String> {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(seed);
    let mut disk = SimDisk::new(seed).with_polls_max(random.below(4));
    disk.put_dir(dir.path());
    let timer = SimTimer::default();
    let (mut keys, mut sent, mut acknowledged) = (Keys::new(), Vec::<Sent>::new(), 0);
    let store = {
        let mut rig = Rig::open(dir.path(), disk.clone(), timer.clone());
        let store = rig.create(Kind::Kv, "k");
        disk = rig.disk.crash();
        store
    };
    for life in 0..4 {
        let mut rig = Rig::open_with(dir.path(), disk.clone(), timer.clone(), |config| {
            if wrong == Wrong::Unsynced {
                config.durability = Durability::Never;
            }
        });
        check(&mut rig, store, &mut keys, &mut sent, seed)?;
        rig.shard.check_all();
        if life == 3 {
            break;
        }
        rig.disk.power_cut_after(1 + random.below(300));
        for _ in 0..random.below(120) {
            let now = rig.timer.now();
            let many = if random.below(4) == 0 { 3 } else { 1 };
            let changes: Vec<Change> = if random.below(60) == 0 {
                Vec::new()
            } else {
                (0..many).map(|_| change(&mut random, now)).collect()
            };
            let command = match changes.as_slice() {
                [] => KvCommand::Clear { keys_max: 1000 },
                changes => run(changes.iter().map(Change::op)),
            };
            let command = Command::Kv(store, command);
            if wrong == Wrong::Lost && is_count(&changes) {
                sent.push(Sent { changes, now, answer: acknowledged_count() });
                continue;
            }
            if wrong == Wrong::Doubled && is_count(&changes) {
                rig.submit(command.clone());
            }
            let answer = rig.submit(command);
            // What was refused at once is not done.
            if !matches!(&*answer.borrow(), Some(Err(_))) {
                sent.push(Sent { changes, now, answer });
            }
            rig.go_on(&mut random);
        }
        rig.run();
        rig.shard.check_all();
        acknowledged += sent.iter().filter(|sent| sent.is_acknowledged()).count() as u64;
        disk = rig.disk.crash();
    }
    Ok(acknowledged)
}

fn acknowledged_count() -> Answer {
    Rc::new(RefCell::new(Some(Ok(Reply::Kv(Batch::new())))))
}

#[test]
fn collections_survive_a_power_cut_at_any_operation() {
    let count = seeds(12);
    let run = |seed| crash_run(seed, Wrong::Nothing).unwrap_or_else(|wrong| panic!("{wrong}"));
    let acknowledged: u64 = (0..count).map(run).sum();
    assert!(acknowledged > 10 * count, "only {acknowledged} changes in {count} runs");
}

#[test]
fn a_change_that_is_lost_or_made_twice_is_noticed() {
    const SEEDS: u64 = 12;
    for wrong in [Wrong::Unsynced, Wrong::Lost, Wrong::Doubled] {
        let noticed: Vec<String> = (0..SEEDS).filter_map(|seed| crash_run(seed, wrong).err()).collect();
        // The counter may be deleted afterwards, and the power may fail when all is written.
        assert!(
            noticed.len() as u64 > SEEDS / 2,
            "{wrong:?} was noticed in {} of {SEEDS} runs",
            noticed.len()
        );
        if wrong != Wrong::Unsynced {
            assert!(noticed.iter().all(|said| said.contains("(\"n{t}\"")), "{wrong:?}: {noticed:?}");
        }
    }
}

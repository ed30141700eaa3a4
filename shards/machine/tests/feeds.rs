//! The feed of a store, applied to nothing, gives what the store holds: whatever operations, ends, ticks, checkpoints and
//! crashes came. Each record says what was before, and under which version.

// A test fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use common::generated::{KEYS, key, op, value};
use common::{Outcome, World, cases, pack};
use flowmesh_model::command::{SetEntry, SetIf, SetTtl};
use flowmesh_model::kv::change::{CHANGE_HEADER, ChangeKind, SnapshotFrom, version_of};
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::kv::snapshot::SnapshotBounds;
use flowmesh_model::kv::{
    AddIf, End, FieldTtl, HashOp, KeyOp, KvAction, KvOp, KvResult, ListOp, Real, SetOp, Side, SortedOp,
    SortedRange,
};
use flowmesh_model::placement::PlacementHash;
use flowmesh_model::record::{RecordSlices, RecordView};
use flowmesh_model::settings::FeedSettings;
use flowmesh_model::{
    CatalogCommand, Command, Fact, Kind, KvCommand, KvMode, KvSettings, Lsn, Millis, PartitionRef,
    QueueSettings, Reject, Reply, ResourceId, ResourcePath, Settings, StreamCommand, StreamSettings,
};
use flowmesh_proto::v1::{self, KvChange, KvChangeKind as Change, KvOld};
use proptest::prelude::*;
use prost::Message;

/// What a key holds.
#[derive(Clone, Debug, PartialEq)]
enum Held {
    Bytes(Bytes),
    Whole(i64),
    Decimal(f64),
    Hash(BTreeMap<Bytes, (Bytes, Option<u64>)>),
    Set(BTreeSet<Bytes>),
    Sorted(BTreeMap<Bytes, f64>),
    List(Vec<Bytes>),
}

impl Held {
    fn empty(holds: v1::KeyType) -> Self {
        match holds {
            v1::KeyType::Hash => Self::Hash(BTreeMap::new()),
            v1::KeyType::Set => Self::Set(BTreeSet::new()),
            v1::KeyType::SortedSet => Self::Sorted(BTreeMap::new()),
            v1::KeyType::List => Self::List(Vec::new()),
            other => panic!("no collection: {other:?}"),
        }
    }

    fn holds(&self) -> v1::KeyType {
        match self {
            Self::Bytes(_) => v1::KeyType::Bytes,
            Self::Whole(_) | Self::Decimal(_) => v1::KeyType::Counter,
            Self::Hash(_) => v1::KeyType::Hash,
            Self::Set(_) => v1::KeyType::Set,
            Self::Sorted(_) => v1::KeyType::SortedSet,
            Self::List(_) => v1::KeyType::List,
        }
    }

    fn items(&self) -> Option<u64> {
        match self {
            Self::Hash(fields) => Some(fields.len() as u64),
            Self::Set(members) => Some(members.len() as u64),
            Self::Sorted(members) => Some(members.len() as u64),
            Self::List(values) => Some(values.len() as u64),
            Self::Bytes(_) | Self::Whole(_) | Self::Decimal(_) => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    held: Held,
    ends: Option<u64>,
    version: u64,
    /// The text of bytes and counters.
    text: Bytes,
}

impl Entry {
    fn is_live(&self, now: u64) -> bool {
        let lasts = |end: Option<u64>| end.is_none_or(|end| end > now);
        let fields = match &self.held {
            Held::Hash(fields) => fields.is_empty() || fields.values().any(|(_, end)| lasts(*end)),
            _ => true,
        };
        lasts(self.ends) && fields
    }

    fn as_old(&self) -> KvOld {
        KvOld {
            holds: Some(self.held.holds().into()),
            value: self.held.items().is_none().then(|| self.text.clone()),
            expires_at_ms: self.ends,
            items: self.held.items(),
            ..KvOld::default()
        }
    }
}

/// What a reader of the feed has.
#[derive(Clone, Default)]
struct Copy {
    /// What goes need not have been there: a snapshot leaves out what has ended, and has some changes already.
    is_of_snapshot: bool,
    keys: BTreeMap<Bytes, Entry>,
    /// Keys whose collection goes on in their next record.
    unfinished: BTreeSet<Bytes>,
}

impl Copy {
    fn collection(&mut self, key: &Bytes, holds: v1::KeyType) -> &mut Held {
        let new = || Entry { held: Held::empty(holds), ends: None, version: 0, text: Bytes::new() };
        let held = &mut self.keys.entry(key.clone()).or_insert_with(new).held;
        assert_eq!(held.holds(), holds);
        held
    }

    fn fields(&mut self, key: &Bytes) -> &mut BTreeMap<Bytes, (Bytes, Option<u64>)> {
        let Held::Hash(fields) = self.collection(key, v1::KeyType::Hash) else { unreachable!() };
        fields
    }

    fn members(&mut self, key: &Bytes) -> &mut BTreeSet<Bytes> {
        let Held::Set(members) = self.collection(key, v1::KeyType::Set) else { unreachable!() };
        members
    }

    fn scores(&mut self, key: &Bytes) -> &mut BTreeMap<Bytes, f64> {
        let Held::Sorted(scores) = self.collection(key, v1::KeyType::SortedSet) else { unreachable!() };
        scores
    }

    fn list(&mut self, key: &Bytes) -> &mut Vec<Bytes> {
        let Held::List(values) = self.collection(key, v1::KeyType::List) else { unreachable!() };
        values
    }

    fn add_items(&mut self, key: &Bytes, change: &KvChange) {
        for item in &change.items {
            match change.holds() {
                v1::KeyType::Hash => {
                    let field = (item.value.clone(), item.expires_at_ms);
                    self.fields(key).insert(item.member.clone(), field);
                }
                v1::KeyType::Set => drop(self.members(key).insert(item.member.clone())),
                v1::KeyType::SortedSet => {
                    self.scores(key).insert(item.member.clone(), item.score.unwrap());
                }
                _ => self.list(key).push(item.value.clone()),
            }
        }
        if change.more {
            self.unfinished.insert(key.clone());
        }
    }

    fn put_whole(&mut self, key: &Bytes, change: &KvChange) {
        let held = match (change.holds(), change.integer, change.decimal) {
            (v1::KeyType::Bytes, None, None) => Held::Bytes(change.value.clone()),
            (v1::KeyType::Counter, Some(number), None) => Held::Whole(number),
            (v1::KeyType::Counter, None, Some(number)) => Held::Decimal(number),
            (holds, None, None) => Held::empty(holds),
            other => panic!("{other:?}"),
        };
        let (ends, text) = (change.expires_at_ms, change.value.clone());
        self.keys.insert(key.clone(), Entry { held, ends, version: 0, text });
        self.add_items(key, change);
    }

    /// Applies a change.
    fn apply(&mut self, key: &Bytes, change: &KvChange) {
        let goes_on = self.unfinished.remove(key);
        let at_once = goes_on == (change.kind() == Change::Items);
        assert!(at_once || self.is_of_snapshot, "a collection that goes on goes on at once");
        let (member, value, ends) = (change.member.clone(), change.value.clone(), change.expires_at_ms);
        let index = change.index.unwrap_or(u64::MAX) as usize;
        match change.kind() {
            Change::Present if self.is_of_snapshot => self.put_whole(key, change),
            Change::Delete
            | Change::Expire
            | Change::Evict
            | Change::End
            | Change::FieldDelete
            | Change::FieldExpire
            | Change::FieldEnd
            | Change::MemberRemove
            | Change::ScoreRemove
                if self.is_of_snapshot =>
            {
                self.apply_if_there(key, change);
            }
            Change::Set | Change::Rename | Change::Copy => self.put_whole(key, change),
            Change::Items => self.add_items(key, change),
            Change::Delete | Change::Expire | Change::Evict => {
                drop(self.keys.remove(key).expect("what goes was there"));
            }
            Change::End => self.keys.get_mut(key).unwrap().ends = ends,
            Change::FieldSet => drop(self.fields(key).insert(member, (value, ends))),
            Change::FieldDelete | Change::FieldExpire => drop(self.fields(key).remove(&member).unwrap()),
            Change::FieldEnd => self.fields(key).get_mut(&member).unwrap().1 = ends,
            Change::MemberAdd => drop(self.members(key).insert(member)),
            Change::MemberRemove => assert!(self.members(key).remove(&member)),
            Change::ScoreSet => {
                self.scores(key).insert(member, change.score.unwrap());
            }
            Change::ScoreRemove => {
                self.scores(key).remove(&member).unwrap();
            }
            Change::PushFront => self.list(key).insert(0, value),
            Change::PushBack => self.list(key).push(value),
            Change::ItemsRemove => {
                let upto = index + change.count.unwrap() as usize;
                drop(self.list(key).drain(index..upto));
            }
            Change::ItemSet => self.list(key)[index] = value,
            Change::ItemInsert => self.list(key).insert(index, value),
            Change::Unspecified | Change::Present => panic!("no change: {change:?}"),
        }
        if let Some(entry) = self.keys.get_mut(key) {
            entry.version = change.version;
        }
    }

    fn apply_if_there(&mut self, key: &Bytes, change: &KvChange) {
        let Some(entry) = self.keys.get_mut(key) else { return };
        let member = &change.member;
        match (change.kind(), &mut entry.held) {
            (Change::Delete | Change::Expire | Change::Evict, _) => drop(self.keys.remove(key)),
            (Change::End, _) => entry.ends = change.expires_at_ms,
            (Change::FieldDelete | Change::FieldExpire, Held::Hash(fields)) => drop(fields.remove(member)),
            (Change::FieldEnd, Held::Hash(fields)) => {
                if let Some(field) = fields.get_mut(member) {
                    field.1 = change.expires_at_ms;
                }
            }
            (Change::MemberRemove, Held::Set(members)) => drop(members.remove(member)),
            (Change::ScoreRemove, Held::Sorted(scores)) => {
                scores.remove(member);
            }
            _ => panic!("{change:?}"),
        }
    }

    /// What a record must say of what was before.
    fn old(&self, key: &Bytes, change: &KvChange, now: u64) -> Option<KvOld> {
        let entry = self.keys.get(key);
        let live = entry.filter(|entry| entry.is_live(now));
        let held = entry.map(|entry| &entry.held);
        let of_field = |of_ended: bool| match held {
            Some(Held::Hash(fields)) => {
                let (value, end) = fields.get(&change.member)?;
                let old = KvOld { value: Some(value.clone()), expires_at_ms: *end, ..KvOld::default() };
                Some(old).filter(|_| of_ended || end.is_none_or(|end| end > now))
            }
            _ => None,
        };
        match change.kind() {
            Change::Expire => entry.map(Entry::as_old),
            Change::Evict => Some(live.expect("what has ended is not evicted").as_old()),
            Change::Delete if change.other.is_some() => None,
            Change::Set | Change::Rename | Change::Copy | Change::Delete | Change::End => {
                live.map(Entry::as_old)
            }
            Change::FieldSet => of_field(false),
            Change::FieldDelete | Change::FieldExpire | Change::FieldEnd => of_field(true),
            Change::ScoreSet | Change::ScoreRemove => match held {
                Some(Held::Sorted(scores)) => {
                    scores.get(&change.member).map(|score| KvOld { score: Some(*score), ..KvOld::default() })
                }
                _ => None,
            },
            Change::ItemSet => match held {
                Some(Held::List(values)) => {
                    let value = Some(values[change.index.unwrap() as usize].clone());
                    Some(KvOld { value, ..KvOld::default() })
                }
                _ => None,
            },
            Change::ItemsRemove => match held {
                Some(Held::List(values)) => {
                    let from = change.index.unwrap() as usize;
                    let values = values[from..from + change.count.unwrap() as usize].to_vec();
                    Some(KvOld { values, ..KvOld::default() })
                }
                _ => None,
            },
            _ => None,
        }
    }
}

/// Reads a snapshot part by part while the store changes, then the feed from where it ended when the snapshot began.
struct Watcher {
    from: Option<SnapshotFrom>,
    bounds: SnapshotBounds,
    copy: Copy,
    /// The entry of the log at which it began.
    begun: usize,
}

impl Watcher {
    fn part(&mut self, rig: &mut Rig) {
        let Some(from) = self.from.take() else { return };
        let snapshot = KvCommand::Snapshot { prefix: Bytes::new(), key: None, from: from.clone() };
        let outcome = rig.world.run(&Command::Kv(rig.store, snapshot));
        let Outcome::Answered(Reply::KvSnapshot(part), seen) = outcome else { panic!("{outcome:?}") };
        assert_eq!((part.upto, seen), (rig.world.lsn, rig.world.lsn));
        for (key, message) in &part.changes {
            let change = KvChange::decode(message.clone()).unwrap();
            assert!(matches!(change.kind(), Change::Present | Change::Items));
            assert!(change.version <= part.upto.0);
            self.copy.apply(key, &change);
        }
        self.bounds.note(&from, &part);
        self.from = part.next;
    }

    /// What it has at the end: the rest of the snapshot, and all of the feed.
    fn finish(mut self, rig: &mut Rig) -> Copy {
        while self.from.is_some() {
            self.part(rig);
        }
        for (at, facts) in &rig.world.log[self.begun..] {
            for fact in facts {
                let Fact::RecordsAppended { records, .. } = fact else { continue };
                for record in RecordSlices::new(records) {
                    let record = RecordView::read(record.unwrap()).unwrap();
                    let key = Bytes::copy_from_slice(record.key.unwrap());
                    if self.bounds.has(&key, at.lsn) {
                        assert!(at.lsn <= self.bounds.last());
                    } else {
                        self.copy.apply(&key, &KvChange::decode(record.value).unwrap());
                    }
                }
            }
        }
        self.copy
    }
}

/// A store with a feed, and a reader of it.
struct Rig {
    world: World,
    store: ResourceId,
    feed: ResourceId,
    settings: FeedSettings,
    copy: Copy,
    /// Entries of the log that the reader has seen.
    seen: usize,
    /// By partition: how many records, and the version of the last.
    ends: BTreeMap<u32, (u64, u64)>,
}

const STORE: &str = "cart";
const FEED: &str = "default/default/stream/cart-changes";

fn with_feed(old_values: bool) -> Settings {
    let feed = FeedSettings { stream: FEED.to_owned(), partitions: 0, old_values, late: false };
    Settings::Kv(KvSettings { feed: Some(feed), ..KvSettings::default() })
}

/// A cache that has room for some of the keys.
fn cache_with_feed(old_values: bool) -> Settings {
    let Settings::Kv(durable) = with_feed(old_values) else { unreachable!() };
    Settings::Kv(KvSettings { mode: KvMode::Cache, entries_max: Some(CACHE_ENTRIES), ..durable })
}

const CACHE_ENTRIES: u64 = 3;

fn settings_of(world: &World, id: ResourceId) -> Settings {
    world.machine.catalog_snapshot().get(id).unwrap().settings.clone()
}

impl Rig {
    fn new(old_values: bool) -> Self {
        Self::of(with_feed(old_values))
    }

    fn of(settings: Settings) -> Self {
        let mut world = World::default();
        let store = world.create_with(STORE, settings);
        let Settings::Kv(KvSettings { feed: Some(settings), .. }) = settings_of(&world, store) else {
            panic!("no feed")
        };
        assert_eq!((settings.partitions, settings.late), (4, false));
        let feed = world.machine.catalog_snapshot().find(Kind::Stream, FEED).unwrap().id;
        let (copy, seen, ends) = (Copy::default(), world.log.len(), BTreeMap::new());
        Self { world, store, feed, settings, copy, seen, ends }
    }

    fn run(&mut self, command: KvCommand) -> Outcome {
        let outcome = self.world.run(&Command::Kv(self.store, command));
        self.follow();
        outcome
    }

    fn ops(&mut self, ops: Vec<KvOp>) -> Outcome {
        self.run(KvCommand::Run { ops: ops.into(), atomic: false, seed: 7 })
    }

    /// Reads the records that were appended meanwhile.
    fn follow(&mut self) {
        let hash = PlacementHash::of(&ResourcePath::parse(Kind::Kv, STORE).unwrap());
        for index in self.seen..self.world.log.len() {
            let (at, facts) = self.world.log[index].clone();
            let mut records = 0;
            for fact in &facts {
                let Fact::RecordsAppended { at: place, base, count, records: packed } = fact else {
                    continue;
                };
                assert_eq!(place.resource, self.feed);
                let (next, last) = self.ends.entry(place.partition).or_insert((0, 0));
                assert_eq!(base.0, *next, "records leave no gap");
                *next += u64::from(*count);
                assert!(*last <= at.lsn.0, "versions never go back");
                *last = at.lsn.0;
                for record in RecordSlices::new(packed) {
                    records += 1;
                    let record = RecordView::read(record.unwrap()).unwrap();
                    let key = Bytes::copy_from_slice(record.key.unwrap());
                    let partition = self.settings.partition(hash.key_slot(&key));
                    assert_eq!(place.partition, partition, "changes of a key are in its partition");
                    let change = KvChange::decode(record.value).unwrap();
                    assert_eq!(version_of(record.value), Ok(at.lsn));
                    assert_eq!(change.version, at.lsn.0);
                    let name = ChangeKind::ALL[usize::try_from(change.kind).unwrap() - 1].as_str();
                    assert_eq!(record.headers, [(CHANGE_HEADER.as_bytes(), name.as_bytes())]);
                    let old = self.copy.old(&key, &change, at.time.0);
                    let old = old.filter(|_| self.settings.old_values);
                    assert_eq!(change.old, old, "{change:?} {:?}", self.copy.keys.get(&key));
                    self.copy.apply(&key, &change);
                }
            }
            let changes = |fact: &&Fact| match fact {
                Fact::KeySet { .. } | Fact::KeyDeleted { .. } | Fact::KeyExpired { .. } => true,
                Fact::Kv(_, fact) => !matches!(fact, KvFact::PagesFreed { .. }),
                _ => false,
            };
            assert!(records >= facts.iter().filter(changes).count(), "each fact has its record");
        }
        self.seen = self.world.log.len();
        assert!(self.copy.unfinished.is_empty(), "one entry has all of a collection");
    }

    fn watch(&self) -> Watcher {
        let copy = Copy { is_of_snapshot: true, ..Copy::default() };
        let (from, begun) = (Some(SnapshotFrom::Start), self.world.log.len());
        Watcher { from, bounds: SnapshotBounds::default(), copy, begun }
    }

    /// Another copy is what this one is, but for what has ended.
    fn check_watched(&self, copy: &Copy) {
        let now = self.world.machine.clamp(self.world.now).0;
        let live = |copy: &Copy| {
            let mut keys = copy.keys.clone();
            keys.retain(|_, entry| entry.is_live(now));
            for entry in keys.values_mut() {
                if let Held::Hash(fields) = &mut entry.held {
                    fields.retain(|_, (_, end)| end.is_none_or(|end| end > now));
                }
            }
            keys
        };
        assert_eq!(live(copy), live(&self.copy));
    }

    /// The copy is what the store holds, and the feed has as many records as were read.
    fn check(&mut self) {
        let now = self.world.machine.clamp(self.world.now).0;
        for name in KEYS {
            let key = Bytes::from_static(name.as_bytes());
            let entry = self.copy.keys.get(&key).filter(|entry| entry.is_live(now)).cloned();
            let expected = entry.map(|mut entry| {
                if let Held::Hash(fields) = &mut entry.held {
                    fields.retain(|_, (_, end)| end.is_none_or(|end| end > now));
                }
                entry.text = Bytes::new();
                entry
            });
            assert_eq!(self.read(&key), expected, "{name}");
        }
        for (partition, (next, _)) in self.ends.clone() {
            let at = PartitionRef { resource: self.feed, partition };
            let status = self.world.run(&Command::Stream(at, StreamCommand::Status)).reply();
            let Reply::StreamStatus { next: is, .. } = status else { panic!("{status:?}") };
            assert_eq!(is.0, next);
        }
    }

    fn ask(&mut self, key: &Bytes, action: KvAction) -> KvResult {
        let op = KvOp { key: key.clone(), condition: SetIf::Always, action };
        let Reply::Kv(outcomes) = self.ops(vec![op]).reply() else { panic!("no outcome") };
        outcomes.into_iter().next().unwrap().unwrap().result
    }

    /// What the store says that a key holds.
    fn read(&mut self, key: &Bytes) -> Option<Entry> {
        let KvResult::Info(info) = self.ask(key, KvAction::Key(KeyOp::Inspect)) else { panic!("no info") };
        let info = info?;
        let held = match v1::KeyType::try_from(info.holds as i32 + 1).unwrap() {
            v1::KeyType::Hash => {
                let KvResult::Pairs(pairs) = self.ask(key, KvAction::Hash(HashOp::All)) else { panic!() };
                let names = pairs.iter().map(|(field, _)| field.clone()).collect();
                let KvResult::Ends(ends) = self.ask(key, KvAction::Hash(HashOp::Ends(names))) else {
                    panic!()
                };
                let ends = ends.into_iter().map(|end| end.unwrap().map(Millis::get));
                Held::Hash(pairs.into_iter().zip(ends).map(|((f, v), end)| (f, (v, end))).collect())
            }
            v1::KeyType::Set => {
                let KvResult::Members(members) = self.ask(key, KvAction::Set(SetOp::All)) else { panic!() };
                Held::Set(members.into_iter().collect())
            }
            v1::KeyType::SortedSet => {
                let range = SortedRange::Rank(0, -1);
                let all = SortedOp::Range { range, reverse: false, skip: 0, limit: None, into: None };
                let KvResult::Scored(scored) = self.ask(key, KvAction::Sorted(all)) else { panic!() };
                Held::Sorted(scored.into_iter().map(|(member, score)| (member, score.get())).collect())
            }
            v1::KeyType::List => {
                let KvResult::Members(values) = self.ask(key, KvAction::List(ListOp::Range(0, -1))) else {
                    panic!()
                };
                Held::List(values)
            }
            holds => {
                let get = KvAction::Bytes(flowmesh_model::kv::BytesOp::Get);
                let KvResult::Value(Some(text)) = self.ask(key, get) else { panic!() };
                let text_of = || std::str::from_utf8(&text).unwrap();
                match self.copy.keys.get(key).map(|entry| &entry.held) {
                    Some(Held::Whole(_)) if holds == v1::KeyType::Counter => {
                        Held::Whole(text_of().parse().unwrap())
                    }
                    _ if holds == v1::KeyType::Counter => Held::Decimal(text_of().parse().unwrap()),
                    _ => Held::Bytes(text),
                }
            }
        };
        let (ends, version) = (info.expires_at.map(Millis::get), info.version.0);
        Some(Entry { held, ends, version, text: Bytes::new() })
    }
}

#[derive(Clone, Debug)]
enum Step {
    Run(Vec<KvOp>, bool, u64),
    Set(Vec<(Bytes, Bytes, u8)>),
    Delete(Vec<Bytes>),
    Clear(u32),
    Pass(u64),
    Tick(usize),
    Seal,
    Collect(usize),
    Write,
    Fail,
    Chill,
    Crash,
    Watch,
    Part,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => op().prop_map(|op| Step::Run(vec![op], false, 0)),
        12 => (prop::collection::vec(op(), 2..7), any::<bool>(), any::<u64>())
            .prop_map(|(ops, atomic, seed)| Step::Run(ops, atomic, seed)),
        4 => prop::collection::vec((key(), value(), 0u8..4), 1..6).prop_map(Step::Set),
        2 => prop::collection::vec(key(), 1..4).prop_map(Step::Delete),
        1 => (1u32..3).prop_map(Step::Clear),
        4 => (0u64..60).prop_map(Step::Pass),
        3 => (2usize..9).prop_map(Step::Tick),
        2 => Just(Step::Seal),
        4 => (1usize..6).prop_map(Step::Collect),
        2 => Just(Step::Write),
        1 => Just(Step::Fail),
        4 => Just(Step::Chill),
        2 => Just(Step::Crash),
        2 => Just(Step::Watch),
        6 => Just(Step::Part),
    ]
}

proptest! {
    #![proptest_config(cases(200))]
    #[test]
    fn a_feed_applied_to_nothing_gives_the_store(
        old_values in prop::bool::weighted(0.7), is_cache in prop::bool::weighted(0.3), steps in prop::collection::vec(step(), 1..90)
    ) {
        let mut rig = Rig::of(if is_cache { cache_with_feed(old_values) } else { with_feed(old_values) });
        let mut watchers: Vec<Watcher> = Vec::new();
        for step in steps {
            match step {
                Step::Run(ops, atomic, seed) => drop(rig.run(KvCommand::Run { ops: ops.into(), atomic, seed })),
                Step::Set(entries) => {
                    let entries = entries.into_iter().map(|(key, value, ttl)| SetEntry {
                        key,
                        value,
                        ttl: if ttl == 0 { SetTtl::Millis(40) } else { SetTtl::Keep },
                        condition: if ttl == 1 { SetIf::Present } else { SetIf::Always },
                    });
                    rig.run(KvCommand::Set { entries: entries.collect() });
                }
                Step::Delete(keys) => drop(rig.run(KvCommand::Delete { keys: keys.into(), if_version: None })),
                Step::Clear(keys_max) => drop(rig.run(KvCommand::Clear { keys_max })),
                Step::Pass(ms) => rig.world.now = rig.world.now.plus(ms),
                Step::Tick(facts_max) => drop(rig.world.tick(facts_max)),
                Step::Seal => if rig.world.sealed.is_none() { rig.world.seal() },
                Step::Collect(items) => rig.world.collect(items),
                Step::Write => drop(rig.world.write()),
                Step::Chill => rig.world.chill(2),
                Step::Fail => if rig.world.sealed.is_some() { rig.world.unseal() },
                Step::Crash => rig.world.crash(),
                Step::Watch => if watchers.len() < 4 { watchers.push(rig.watch()) },
                Step::Part => watchers.iter_mut().for_each(|watcher| watcher.part(&mut rig)),
            }
            rig.follow();
            rig.world.machine.check_all();
            prop_assert!(!is_cache || rig.copy.keys.len() as u64 <= CACHE_ENTRIES);
        }
        rig.check();
        rig.world.crash();
        rig.check();
        for watcher in watchers {
            let copy = watcher.finish(&mut rig);
            rig.check_watched(&copy);
        }
    }
}

fn b(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn on(key: &str, action: KvAction) -> KvOp {
    KvOp { key: b(key), condition: SetIf::Always, action }
}

fn stream_command(rig: &mut Rig, partition: u32, command: StreamCommand) -> Outcome {
    rig.world.run(&Command::Stream(PartitionRef { resource: rig.feed, partition }, command))
}

#[test]
fn a_large_collection_that_gets_another_name_comes_in_pieces() {
    let mut rig = Rig::new(true);
    let members: Vec<Bytes> = (0..2_500).map(|n| Bytes::from(format!("{n:05}"))).collect();
    for part in members.chunks(1_000) {
        rig.ops(vec![on("a{t}", KvAction::Set(SetOp::Add(part.to_vec())))]);
    }
    rig.ops(vec![on(
        "b{t}",
        KvAction::List(ListOp::Push {
            side: Side::Back,
            values: vec![Bytes::from(vec![7; 200_000]); 5],
            if_present: false,
        }),
    )]);
    let before = rig.ends.clone();
    rig.ops(vec![
        on("a{t}", KvAction::Key(KeyOp::Rename { to: b("c{t}"), if_absent: false })),
        on("b{t}", KvAction::Key(KeyOp::Copy { to: b("d{t}"), replace: false })),
    ]);
    let more: u64 = rig.ends.iter().map(|(at, (next, _))| next - before.get(at).map_or(0, |end| end.0)).sum();
    assert_eq!(more, 1 + 3 + 3, "one for what goes, three pieces, and two values of the list a piece");
    rig.check();
}

/// Collections too large for one part change between the parts that have them.
#[test]
fn a_snapshot_of_large_collections_that_change_meanwhile_ends_as_the_store() {
    let long = |n: usize| Bytes::from(format!("{n:05}{}", "x".repeat(900)));
    let add = |rig: &mut Rig, n: usize| {
        let score = Real::new(n as f64).unwrap();
        rig.ops(vec![
            on(
                "a{t}",
                KvAction::Hash(HashOp::Set {
                    fields: vec![(long(n), long(n + 1))],
                    if_absent: false,
                    ttl: FieldTtl::Never,
                }),
            ),
            on("b{t}", KvAction::Set(SetOp::Add(vec![long(n)]))),
            on(
                "c{t}",
                KvAction::Sorted(SortedOp::Add {
                    members: vec![(score, long(n))],
                    only: AddIf::default(),
                    changed: false,
                }),
            ),
            on(
                "d{t}",
                KvAction::List(ListOp::Push { side: Side::Front, values: vec![long(n)], if_present: false }),
            ),
        ]);
    };
    let take = |rig: &mut Rig, n: usize| {
        rig.ops(vec![
            on("a{t}", KvAction::Hash(HashOp::Delete(vec![long(n)]))),
            on("b{t}", KvAction::Set(SetOp::Remove(vec![long(n)]))),
            on("c{t}", KvAction::Sorted(SortedOp::Remove(vec![long(n)]))),
            on("d{t}", KvAction::List(ListOp::Pop(Side::Back, 1))),
        ]);
    };
    for replaced in [false, true] {
        let mut rig = Rig::new(false);
        (0..3_000).step_by(2).for_each(|n| add(&mut rig, n));
        let mut watcher = rig.watch();
        let (mut parts, mut within, mut again) = (0, 0, 0);
        while let Some(from) = watcher.from.clone() {
            within += usize::from(matches!(from, SnapshotFrom::Within { .. }));
            let before = watcher.bounds.clone();
            watcher.part(&mut rig);
            let is_within = matches!(from, SnapshotFrom::Within { .. });
            again += usize::from(is_within && watcher.bounds != before);
            parts += 1;
            // As long as it changes between its parts, a list is begun anew.
            if parts < 30 {
                (0..40).for_each(|n| add(&mut rig, n * 31 % 3_000));
                (0..40).for_each(|n| take(&mut rig, n * 17 % 3_000));
            }
            if replaced && parts == 2 {
                let other = on("a{t}", KvAction::Set(SetOp::Add(vec![b("y")])));
                rig.ops(vec![on("a{t}", KvAction::Key(KeyOp::Delete)), other]);
                let to = KeyOp::Rename { to: b("b{t}"), if_absent: false };
                rig.ops(vec![on("d{t}", KvAction::Key(to))]);
            }
            assert!(parts < 1_000, "it ends");
        }
        let least = if replaced { 1 } else { 4 };
        assert!(within >= least, "{within} of {parts}");
        assert!(again > 0 || replaced, "the list is begun anew");
        let copy = watcher.finish(&mut rig);
        rig.check_watched(&copy);
        rig.check();
    }
}

#[test]
fn what_one_tick_ends_is_bounded_with_old_values_and_nothing_is_left_out() {
    let mut rig = Rig::new(true);
    let value = Bytes::from(vec![1; 900_000]);
    for number in 0..30 {
        let key = Bytes::from(format!("{number}"));
        let entry = SetEntry { key, value: value.clone(), ttl: SetTtl::Millis(10), condition: SetIf::Always };
        rig.run(KvCommand::Set { entries: [entry].into_iter().collect() });
    }
    rig.world.now = rig.world.now.plus(10);
    let entries = rig.world.log.len();
    rig.world.tick(512);
    rig.follow();
    assert!(rig.copy.keys.is_empty());
    assert!(rig.world.log.len() - entries >= 10, "no entry has more than it may");
}

#[test]
fn a_clear_takes_as_much_as_one_entry_has_room_for() {
    let mut rig = Rig::new(true);
    for number in 0..30 {
        let entry = SetEntry {
            key: Bytes::from(format!("{number}")),
            value: Bytes::from(vec![1; 900_000]),
            ttl: SetTtl::Default,
            condition: SetIf::Always,
        };
        rig.run(KvCommand::Set { entries: [entry].into_iter().collect() });
    }
    let mut cleared = 0;
    for _ in 0..30 {
        let Reply::KvCleared { count, more } = rig.run(KvCommand::Clear { keys_max: 10_000 }).reply() else {
            panic!("not cleared")
        };
        cleared += count;
        if !more {
            break;
        }
    }
    assert_eq!((cleared, rig.copy.keys.len()), (30, 0));
}

#[test]
fn only_the_store_appends_to_its_feed() {
    let mut rig = Rig::new(false);
    let refused = Reject::FeedStream { path: FEED.to_owned(), of: "default/default/kv/cart".to_owned() };
    let append = StreamCommand::Append { records: pack(&[b"x"]), producer: None, expected_offset: None };
    let init = StreamCommand::InitProducer { name: Bytes::new() };
    for command in [append, init] {
        assert_eq!(stream_command(&mut rig, 0, command), Outcome::Rejected(refused.clone()));
    }
    assert_eq!(rig.world.delete(Kind::Stream, FEED), Outcome::Rejected(refused.clone()));
    let path = ResourcePath::parse(Kind::Queue, "dead").unwrap();
    let settings = QueueSettings { dead_letters_to: Some(FEED.to_owned()), ..QueueSettings::default() };
    let create = CatalogCommand::Create { path, settings: Settings::Queue(settings), or_existing: false };
    assert_eq!(rig.world.run(&Command::Catalog(create)), Outcome::Rejected(refused));
}

fn update(world: &mut World, kind: Kind, name: &str, settings: Settings) -> Outcome {
    let path = ResourcePath::parse(kind, name).unwrap();
    world.run(&Command::Catalog(CatalogCommand::Update { path, settings }))
}

#[test]
fn a_feed_is_fixed_but_for_old_values_and_what_every_stream_has() {
    let mut rig = Rig::new(false);
    let kv = |feed: FeedSettings| Settings::Kv(KvSettings { feed: Some(feed), ..KvSettings::default() });
    let fixed = Reject::FeedFixed {
        path: "default/default/kv/cart".to_owned(),
        stream: FEED.to_owned(),
        partitions: 4,
    };
    let other = FeedSettings { stream: "default/default/stream/other".to_owned(), ..rig.settings.clone() };
    let wider = FeedSettings { partitions: 8, ..rig.settings.clone() };
    let without = Settings::Kv(KvSettings::default());
    for settings in [kv(other), kv(wider), without] {
        let outcome = update(&mut rig.world, Kind::Kv, STORE, settings);
        assert_eq!(outcome, Outcome::Rejected(fixed.clone()));
    }
    let with_old = FeedSettings { old_values: true, ..rig.settings.clone() };
    assert!(matches!(update(&mut rig.world, Kind::Kv, STORE, kv(with_old.clone())), Outcome::Changed(..)));
    rig.settings = with_old;
    let Settings::Stream(stream) = settings_of(&rig.world, rig.feed) else { panic!("no stream") };
    let kept = StreamSettings { retention_ms: Some(60_000), ..stream.clone() };
    assert!(matches!(
        update(&mut rig.world, Kind::Stream, FEED, Settings::Stream(kept)),
        Outcome::Changed(..)
    ));
    for (wrong, field) in [
        (StreamSettings { compaction: true, ..stream.clone() }, "compaction"),
        (StreamSettings { feed_of: None, ..stream.clone() }, "feed_of"),
    ] {
        let outcome = update(&mut rig.world, Kind::Stream, FEED, Settings::Stream(wrong));
        assert!(
            matches!(&outcome, Outcome::Rejected(Reject::InvalidArgument { field: is, .. }) if *is == field),
            "{outcome:?}"
        );
    }
    let wider = StreamSettings { partitions: 8, ..stream };
    let outcome = update(&mut rig.world, Kind::Stream, FEED, Settings::Stream(wider));
    assert!(matches!(outcome, Outcome::Rejected(Reject::FeedStream { .. })), "{outcome:?}");
    rig.seen = rig.world.log.len();
    rig.ops(vec![on("a{t}", KvAction::Set(SetOp::Add(vec![b("x")])))]);
    rig.check();
}

#[test]
fn a_feed_takes_no_stream_that_is_there_and_goes_with_its_store() {
    let mut world = World::default();
    let stream = world.create(Kind::Stream, "cart-changes");
    let path = ResourcePath::parse(Kind::Kv, STORE).unwrap();
    let create = CatalogCommand::Create { path, settings: with_feed(true), or_existing: false };
    let exists = Outcome::Rejected(Reject::ResourceExists { path: FEED.to_owned() });
    assert_eq!(world.run(&Command::Catalog(create.clone())), exists);
    world.create(Kind::Kv, STORE);
    assert_eq!(update(&mut world, Kind::Kv, STORE, with_feed(true)), exists);
    world.delete(Kind::Stream, "cart-changes");
    assert!(matches!(update(&mut world, Kind::Kv, STORE, with_feed(true)), Outcome::Changed(..)));
    let feed = world.machine.catalog_snapshot().find(Kind::Stream, FEED).unwrap().id;
    assert!(feed > stream);
    world.delete(Kind::Kv, STORE);
    assert!(world.machine.catalog_snapshot().is_empty());
    assert!(matches!(world.run(&Command::Catalog(create)), Outcome::Changed(..)));
}

#[test]
fn a_store_that_gets_a_feed_later_has_its_changes_from_then_on() {
    let mut world = World::default();
    let store = world.create(Kind::Kv, STORE);
    let set = |value: &str| {
        let op = on(
            "a{t}",
            KvAction::Hash(HashOp::Set {
                fields: vec![(b("f"), b(value))],
                if_absent: false,
                ttl: FieldTtl::Until(End::In(50)),
            }),
        );
        Command::Kv(store, KvCommand::Run { ops: vec![op].into(), atomic: false, seed: 0 })
    };
    world.run(&set("1"));
    update(&mut world, Kind::Kv, STORE, with_feed(true));
    world.crash();
    let Outcome::Changed(_, facts) = world.run(&set("2")) else { panic!("nothing changed") };
    let records: Vec<_> = facts
        .iter()
        .filter_map(|fact| match fact {
            Fact::RecordsAppended { records, .. } => Some(records.clone()),
            _ => None,
        })
        .collect();
    let record = RecordSlices::new(&records[0]).next().unwrap().unwrap();
    let change = KvChange::decode(RecordView::read(record).unwrap().value).unwrap();
    assert_eq!(change.old.unwrap().value, Some(b("1")));
    let Settings::Kv(KvSettings { feed: Some(feed), .. }) = settings_of(&world, store) else { panic!() };
    assert!(feed.late, "its first records are not the first changes");
    assert_eq!(records.len(), 1);
    world.crash();
    world.machine.check_all();
}

#[test]
fn partitions_of_a_feed_are_a_multiple_of_the_shards() {
    let mut config = common::CONFIG;
    config.shards = 3;
    let mut world = World { machine: flowmesh_machine::Machine::new(config), ..World::default() };
    let path = ResourcePath::parse(Kind::Kv, STORE).unwrap();
    let asked = |partitions| {
        let feed = FeedSettings { stream: FEED.to_owned(), partitions, old_values: false, late: false };
        let settings = Settings::Kv(KvSettings { feed: Some(feed), ..KvSettings::default() });
        Command::Catalog(CatalogCommand::Create { path: path.clone(), settings, or_existing: false })
    };
    for partitions in [1, 4, 1_024] {
        let Outcome::Rejected(Reject::InvalidArgument { field, reason }) = world.run(&asked(partitions))
        else {
            panic!("not refused")
        };
        assert_eq!(field, "feed.partitions");
        assert!(reason.contains("a multiple of 3"), "{reason}");
    }
    assert!(matches!(world.run(&asked(0)), Outcome::Changed(..)));
    let info = world.machine.catalog_snapshot().find(Kind::Stream, FEED).unwrap().clone();
    assert_eq!((info.settings.partitions(), info.placement.partition_slot(5).get()), (6, 5));
}

#[test]
fn a_store_is_refused_whose_feed_is_for_another_number_of_shards() {
    let mut rig = Rig::new(false);
    let mut config = common::CONFIG;
    config.shards = 3;
    let mut machine = flowmesh_machine::Machine::new(config);
    machine.set_catalog(rig.world.machine.catalog_snapshot());
    let entry = SetEntry { key: b("k"), value: b("v"), ttl: SetTtl::Default, condition: SetIf::Always };
    let set = KvCommand::Set { entries: [entry].into_iter().collect() };
    let refused = machine.decide(Millis(1), Lsn(1), &Command::Kv(rig.store, set.clone())).unwrap_err();
    let path = "default/default/kv/cart".to_owned();
    assert_eq!(refused, Reject::FeedMisplaced { path, partitions: 4, shards: 3 });
    assert!(matches!(rig.run(set), Outcome::Changed(..)));
}

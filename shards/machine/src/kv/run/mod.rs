//! Operations on what keys hold, one after the other.
//!
//! An operation looks at its key and says which facts become true of it. Where a key comes again within a command, facts
//! are tried on a copy of what it holds first ([`tried`]), so that the next operation finds what it would find later. Members put into sets
//! are only noted ([`later`]) as long as nothing but single members is asked for; else the pages of a collection are copied as far
//! as they change.
//!
//! | module | operations on |
//! |---|---|
//! | `keys`, `bytes` | whatever a key holds; bytes and counters |
//! | `hash`, `set`, `sorted`, `list` | collections |
//! | `combine` | several sets at once |
//!
//! `changed` says what facts change, for the feed of the store, and `snapshot` what keys hold in the same words.

mod bytes;
mod chance;
pub(super) mod changed;
mod combine;
mod found;
pub(super) mod glob;
mod hash;
mod keys;
mod later;
mod list;
mod set;
pub(super) mod snapshot;
mod sorted;
mod tried;

use ::bytes::Bytes;
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::kv::{End, EndIf, KvAction, KvOp, KvOutcome, KvResult, KvType};
use flowmesh_model::limits::{
    BATCH_ITEMS_MAX, DELAY_MS_MAX, ENTRY_BYTES_MAX, KV_LOOKED_MAX, MEMBER_BYTES_MAX, VALUE_BYTES_MAX,
};
use flowmesh_model::settings::within;
use flowmesh_model::{Batch, Fact, Lsn, Millis, Reject, Reply};
use smallvec::SmallVec;

use super::decide::{Asked, check_key, check_large, holds};
use super::past::Was;
use super::shown::Shown;
use super::tree::Cold;
use crate::decision::Decision;
use crate::limit::{items, size};
pub(super) use chance::Chance;
use found::Found;
use tried::Tries;

pub(super) use hash::ended_fields;

/// What an operation comes to, if it is not refused.
type Answer = Result<Done, Reject>;

/// Facts, in order, and the result.
struct Done {
    facts: Facts,
    result: KvResult,
}

type Facts = SmallVec<[Fact; 2]>;

#[expect(clippy::unnecessary_wraps, reason = "each operation ends with one of these")]
impl Done {
    fn nothing(result: KvResult) -> Answer {
        Ok(Self { facts: Facts::new(), result })
    }

    fn new(facts: Facts, result: KvResult) -> Answer {
        Ok(Self { facts, result })
    }
}

impl From<Cold> for Reject {
    fn from(_: Cold) -> Self {
        Self::Internal("a page of a collection is not in memory")
    }
}

/// One command with operations.
pub(super) struct Run<'a> {
    asked: &'a Asked<'a>,
    tries: Tries<'a>,
    chance: std::cell::RefCell<Chance>,
}

impl<'a> Asked<'a> {
    pub(super) fn run(&'a self, ops: &[KvOp], atomic: bool, seed: u64) -> Result<Decision, Reject> {
        items("operations", ops.len())?;
        check_places(self, ops, atomic)?;
        self.store.warm(ops.iter().map(|op| &*op.key));
        let mut run = Run {
            asked: self,
            tries: Tries::new(self, ops),
            chance: std::cell::RefCell::new(Chance::new(seed)),
        };
        let (mut facts, mut outcomes) = (Batch::new(), Batch::with_capacity(ops.len()));
        let (mut facts_bytes, mut large_bytes, mut shown) = (0, 0, Shown::default());
        for (index, op) in ops.iter().enumerate() {
            run.tries.prepare(op);
            let done = run.one(op).and_then(|done| {
                facts_bytes += done.facts.iter().map(Fact::entry_len_max).sum::<usize>();
                within_bytes("changes of one call", facts_bytes, ENTRY_BYTES_MAX)?;
                let large = done.facts.iter().filter_map(Fact::large_value);
                for value in large {
                    self.check_kept(value)?;
                    large_bytes += value.len();
                }
                check_large(large_bytes)?;
                shown.add(done.result.bytes());
                shown.check("results of one call")?;
                Ok(done)
            });
            match done {
                Ok(Done { facts: made, result }) => {
                    run.tries.apply(&made);
                    let version = run.version_after(&op.key, &made);
                    facts.extend(made);
                    outcomes.push(Ok(KvOutcome { version, result }));
                }
                // Of no consequence: all is decided on again with what is noted.
                Err(_) if !self.wanted.is_empty() => {}
                Err(cause) if atomic => {
                    return Err(Reject::BatchRefused { index: index as u32, cause: Box::new(cause) });
                }
                Err(reject) => outcomes.push(Err(reject)),
            }
        }
        let reply = Reply::Kv(outcomes);
        Ok(if facts.is_empty() {
            Decision::Answer { reply, seen: run.tries.seen() }
        } else {
            Decision::Change { facts, reply }
        })
    }
}

impl<'a> Asked<'a> {
    /// Operations that change nothing, on keys as they were.
    pub(super) fn run_past(
        &'a self,
        ops: &[KvOp],
        seed: u64,
        keys: Vec<(Bytes, Was<'a>)>,
    ) -> Result<Reply, Reject> {
        items("operations", ops.len())?;
        check_places(self, ops, false)?;
        let run = Run {
            asked: self,
            tries: Tries::of_past(self, keys),
            chance: std::cell::RefCell::new(Chance::new(seed)),
        };
        let (mut outcomes, mut shown) = (Batch::with_capacity(ops.len()), Shown::default());
        for op in ops {
            outcomes.push(run.one(op).and_then(|Done { facts, result }| {
                assert!(facts.is_empty(), "an operation that changes nothing makes nothing true: {op:?}");
                shown.add(result.bytes());
                shown.check("results of one call")?;
                Ok(KvOutcome { version: run.find_version(&op.key), result })
            }));
        }
        Ok(Reply::Kv(outcomes))
    }
}

impl Run<'_> {
    fn one(&self, op: &KvOp) -> Answer {
        check_key(&op.key)?;
        op.action.other_keys().try_for_each(|key| check_key(key))?;
        let found = self.find(&op.key);
        let equals = |value: &Bytes| match &found {
            Some(found) => Ok(found.text()? == *value),
            None => Ok(false),
        };
        holds(&op.condition, found.as_ref().map(|found| found.version), equals)?;
        match &op.action {
            KvAction::Key(key) => self.key_op(&op.key, found, key),
            KvAction::Bytes(bytes) => self.bytes_op(&op.key, found, bytes),
            KvAction::Hash(hash) => self.hash_op(&op.key, found, hash),
            KvAction::Set(set) => self.set_op(&op.key, found, set),
            KvAction::Sorted(sorted) => self.sorted_op(&op.key, found, sorted),
            KvAction::List(list) => self.list_op(&op.key, found, list),
        }
    }

    /// What a key holds now, if it is there.
    fn find(&self, key: &[u8]) -> Option<Found<'_>> {
        self.tries.find(self.asked, key)
    }

    fn now(&self) -> Millis {
        self.asked.now
    }

    fn fact(&self, fact: KvFact) -> Fact {
        Fact::Kv(self.asked.id, fact)
    }

    fn deleted(&self, key: &Bytes) -> Fact {
        Fact::KeyDeleted { store: self.asked.id, key: key.clone() }
    }

    /// Where a collection is to begin: if the store still has something that has ended, that goes first.
    fn begin(&self, key: &Bytes, facts: &mut Facts) {
        if self.tries.has_ended(self.asked, key) {
            facts.push(Fact::KeyExpired { store: self.asked.id, key: key.clone() });
        }
    }

    /// What a new collection or counter without an end of its own gets.
    fn default_end(&self) -> Option<Millis> {
        self.asked.settings.default_ttl_ms.map(|ttl_ms| self.now().plus(ttl_ms))
    }

    /// A collection that was not there before gets the end that the store's settings say.
    fn end_of_new(&self, key: &Bytes, facts: &mut Facts) {
        if let Some(end) = self.default_end() {
            facts.push(self.fact(KvFact::EndSet { key: key.clone(), expires_at: Some(end) }));
        }
    }

    /// Replaces whatever a key holds by members of a new collection.
    fn store_members(&self, to: &Bytes, members: impl Iterator<Item = KvFact>) -> Facts {
        let mut facts = Facts::new();
        if self.find(to).is_some() {
            facts.push(self.deleted(to));
        } else {
            self.begin(to, &mut facts);
        }
        let before = facts.len();
        facts.extend(members.map(|member| self.fact(member)));
        if facts.len() > before {
            self.end_of_new(to, &mut facts);
        }
        facts
    }

    fn version_after(&self, key: &Bytes, made: &[Fact]) -> Lsn {
        let mut version = self.find_version(key);
        for fact in made {
            match fact {
                Fact::KeyDeleted { key: of, .. } | Fact::KeyExpired { key: of, .. } if of == key => {
                    version = Lsn(0);
                }
                Fact::KeySet { key: of, .. } if of == key => version = self.asked.lsn,
                Fact::Kv(_, KvFact::Renamed { key: of, .. }) if of == key => version = Lsn(0),
                Fact::Kv(_, KvFact::Copied { to, .. }) if to == key => version = self.asked.lsn,
                Fact::Kv(_, KvFact::Copied { .. }) => {}
                Fact::Kv(_, fact) if fact.key() == Some(key) => version = self.asked.lsn,
                _ => {}
            }
        }
        version
    }

    fn find_version(&self, key: &[u8]) -> Lsn {
        self.find(key).map_or(Lsn(0), |found| found.version)
    }
}

/// Keys of an operation, or of all operations of an atomic batch, must be on one partition.
fn check_places(asked: &Asked<'_>, ops: &[KvOp], atomic: bool) -> Result<(), Reject> {
    let (mut first, mut place) = (None, 0);
    for op in ops {
        if !atomic {
            first = None;
        }
        for key in std::iter::once(&op.key).chain(op.action.other_keys()) {
            if first.is_some() || atomic || op.action.other_keys().next().is_some() {
                let slot = asked.placement.key_slot(key);
                match first {
                    None => first = Some((slot, place)),
                    Some((slot_of_first, first)) if slot != slot_of_first => {
                        return Err(Reject::KeysApart { first, other: place });
                    }
                    Some(_) => {}
                }
            }
            place += 1;
        }
    }
    Ok(())
}

fn within_bytes(what: &'static str, bytes: usize, max: usize) -> Result<(), Reject> {
    if bytes > max {
        return Err(Reject::TooLarge { what, size: bytes as u64, max: max as u64 });
    }
    Ok(())
}

/// When something ends that is said to end so; `None`: never.
fn end_at(end: End, now: Millis) -> Result<Option<Millis>, Reject> {
    Ok(match end {
        End::In(ms) => {
            within("ttl_ms", ms, 0, DELAY_MS_MAX)?;
            Some(now.plus(ms))
        }
        // 0 stands for never on disk.
        End::At(at) => Some(at.max(Millis(1))),
        End::Never => None,
    })
}

/// Whether an end may be changed to another.
fn may_end(only: EndIf, before: Option<Millis>, after: Option<Millis>) -> bool {
    let never = Millis(u64::MAX);
    let (from, to) = (before.unwrap_or(never), after.unwrap_or(never));
    match only {
        EndIf::Always => true,
        EndIf::None => before.is_none(),
        EndIf::Some => before.is_some(),
        EndIf::Later => to > from,
        EndIf::Earlier => to < from,
    }
}

fn check_member(member: &[u8]) -> Result<(), Reject> {
    size("member", member, MEMBER_BYTES_MAX)
}

fn check_members(field: &'static str, members: &[Bytes]) -> Result<(), Reject> {
    items(field, members.len())?;
    members.iter().try_for_each(|member| check_member(member))
}

/// A value of a field or of a list.
fn check_value(value: &[u8]) -> Result<(), Reject> {
    size("value in a collection", value, VALUE_BYTES_MAX)
}

/// Refuses what looks at more of a collection than one call may.
fn check_looked(members: u64) -> Result<(), Reject> {
    if members > KV_LOOKED_MAX {
        let what = "what one call would look at in collections";
        return Err(Reject::TooLarge { what, size: members, max: KV_LOOKED_MAX });
    }
    Ok(())
}

/// How many a client may ask for at once.
fn check_count(field: &'static str, count: u64) -> Result<(), Reject> {
    within(field, count, 0, BATCH_ITEMS_MAX as u64)
}

/// The part from one index to another, both included, of something of this length; below zero from the end.
fn part(from: i64, to: i64, len: u64) -> std::ops::Range<u64> {
    let at = |index: i64| {
        if index < 0 { i128::from(len) + i128::from(index) } else { i128::from(index) }
    };
    let inside = |at: i128| u64::try_from(at.max(0)).unwrap_or(u64::MAX).min(len);
    let (start, end) = (inside(at(from)), inside(at(to) + 1));
    if start < end { start..end } else { 0..0 }
}

const fn flag(value: bool) -> KvResult {
    KvResult::Flag(value)
}

const fn integer(value: u64) -> KvResult {
    KvResult::Integer(value.cast_signed())
}

/// The types whose members several of are put together.
const fn is_set(holds: KvType) -> bool {
    matches!(holds, KvType::Set | KvType::SortedSet)
}

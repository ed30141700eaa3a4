//! Facts about a store as changes of keys, the way its feed has them: each says all that a reader needs who has what came
//! before.
//!
//! | fact | changes |
//! |---|---|
//! | most | one of the key |
//! | `Renamed` | the key is gone; the other holds all that it did |
//! | `Copied` | the other holds all that the key does |
//! | `PagesFreed`, `HistoryKept`, `HistoryTrimmed` | none |
//!
//! A collection that a key gets as a whole is said in pieces, one record each. What was before, and what is copied, is looked
//! up in the state as it is with the facts before of the same entry ([`super::tried`]).

use bytes::Bytes;
use flowmesh_model::kv::KvType;
use flowmesh_model::kv::change::{ChangeItem, ChangeKind, ChangeOld, ItemsFrom, KvChange};
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::limits::{FEED_ITEMS_BYTES_MAX, FEED_ITEMS_MAX, KV_LOOKED_MAX};
use flowmesh_model::{Fact, Lsn, Millis, Reject};

use super::found::{Found, Members};
use super::tried::Tries;
use crate::kv::change::{read_field, read_score};
use crate::kv::decide::Asked;
use crate::kv::entry::View;
use crate::kv::tree::Cold;
use crate::kv::value::Value;

/// A key and what becomes of it.
pub(in crate::kv) type Changed = (Bytes, KvChange);

/// Says of the facts of one entry, one after the other, what they change.
pub(in crate::kv) struct Changes<'a> {
    asked: &'a Asked<'a>,
    /// `None`: what was before does not matter.
    tries: Option<Tries<'a>>,
    old_values: bool,
}

impl<'a> Changes<'a> {
    pub fn new(asked: &'a Asked<'a>, facts: &[Fact], old_values: bool) -> Self {
        let copies = facts
            .iter()
            .any(|fact| matches!(fact, Fact::Kv(_, KvFact::Renamed { .. } | KvFact::Copied { .. })));
        let tries = (old_values || copies).then(|| Tries::of_facts(asked, facts));
        Self { asked, tries, old_values }
    }

    /// What the next fact changes.
    ///
    /// # Errors
    /// [`Reject::TooLarge`] if a collection that gets another name has more members than one call may look at.
    pub fn of(&mut self, fact: &Fact) -> Result<Vec<Changed>, Reject> {
        if let Some(tries) = &mut self.tries {
            tries.prepare_fact(fact);
        }
        let mut changed = Vec::new();
        if let Some((key, mut change)) = direct(fact) {
            change.old = if self.old_values { self.old(fact, &key)? } else { None };
            changed.push((key, change));
        }
        if let Fact::Kv(_, KvFact::Renamed { key, to } | KvFact::Copied { key, to }) = fact {
            let is_copy = matches!(fact, Fact::Kv(_, KvFact::Copied { .. }));
            let kind = if is_copy { ChangeKind::Copy } else { ChangeKind::Rename };
            let old = if self.old_values { self.old_key(to) } else { None };
            let first = KvChange { kind, other: Some(key.clone()), old, ..KvChange::default() };
            let Some(found) = self.find(key) else { panic!("a key is copied that there is not") };
            changed.extend(whole(&found, to, first)?);
        }
        for (_, change) in &mut changed {
            change.version = self.asked.lsn;
        }
        if let Some(tries) = &mut self.tries {
            tries.apply(std::slice::from_ref(fact));
        }
        Ok(changed)
    }

    fn find(&self, key: &[u8]) -> Option<Found<'_>> {
        self.tries.as_ref()?.find(self.asked, key)
    }

    /// What was where a fact changes something.
    fn old(&self, fact: &Fact, key: &Bytes) -> Result<Option<ChangeOld>, Reject> {
        let fact = match fact {
            Fact::KeyExpired { .. } => {
                let held = self.tries.as_ref().and_then(|tries| tries.held(self.asked, key));
                return Ok(held.map(|found| old_of(&found)));
            }
            Fact::Kv(_, KvFact::Renamed { .. }) => return Ok(None),
            Fact::Kv(_, fact) => fact,
            _ => return Ok(self.old_key(key)),
        };
        // A field that has ended is still held, and it is what ends.
        let held = self.tries.as_ref().and_then(|tries| tries.held(self.asked, key));
        let Some(members) = held.and_then(|found| Members::of(&found)) else {
            return Ok(self.old_key(key).filter(|_| is_about_key(fact)));
        };
        Ok(match fact {
            KvFact::FieldSet { field, .. } => old_field(&members, field)?
                .filter(|old| old.expires_at.is_none_or(|end| end > self.asked.now)),
            KvFact::FieldRemoved { field, .. } | KvFact::FieldEndSet { field, .. } => {
                old_field(&members, field)?
            }
            KvFact::ScoreSet { member, .. } | KvFact::ScoreRemoved { member, .. } => {
                let score = members.score(member)?;
                score.map(|score| ChangeOld { score: Some(score), ..ChangeOld::default() })
            }
            KvFact::ItemSet { index, .. } => {
                let value = members.at(*index)?.map(|(_, value)| Bytes::copy_from_slice(value));
                Some(ChangeOld { value, ..ChangeOld::default() })
            }
            KvFact::ItemsRemoved { index, count, .. } => Some(old_values(&members, *index, *count)?),
            _ => self.old_key(key).filter(|_| is_about_key(fact)),
        })
    }

    /// What a key held that has not ended.
    fn old_key(&self, key: &[u8]) -> Option<ChangeOld> {
        self.find(key).map(|found| old_of(&found))
    }
}

/// Whether a fact is about the key as a whole.
fn is_about_key(fact: &KvFact) -> bool {
    matches!(fact, KvFact::Counted { .. } | KvFact::EndSet { .. } | KvFact::Evicted { .. })
}

/// What a fact says by itself, of the key that it names first.
fn direct(fact: &Fact) -> Option<Changed> {
    use ChangeKind as Kind;
    let new = |kind| KvChange { kind, ..KvChange::default() };
    let fact = match fact {
        Fact::KeySet { key, value, expires_at, .. } => {
            let (holds, value, expires_at) = (Some(KvType::Bytes), value.clone(), *expires_at);
            return Some((key.clone(), KvChange { holds, value, expires_at, ..new(Kind::Set) }));
        }
        Fact::KeyDeleted { key, .. } => return Some((key.clone(), new(Kind::Delete))),
        Fact::KeyExpired { key, .. } => return Some((key.clone(), new(Kind::Expire))),
        Fact::Kv(_, fact) => fact,
        other => panic!("no fact about a store: {other:?}"),
    };
    let change = match fact {
        KvFact::Counted { number, expires_at, .. } => KvChange {
            holds: Some(KvType::Counter),
            value: number.to_string().into(),
            number: Some(*number),
            expires_at: *expires_at,
            ..new(Kind::Set)
        },
        KvFact::EndSet { expires_at, .. } => KvChange { expires_at: *expires_at, ..new(Kind::End) },
        KvFact::Renamed { to, .. } => KvChange { other: Some(to.clone()), ..new(Kind::Delete) },
        KvFact::FieldSet { field, value, expires_at, .. } => KvChange {
            member: field.clone(),
            value: value.clone(),
            expires_at: *expires_at,
            ..new(Kind::FieldSet)
        },
        KvFact::FieldRemoved { field, expired, .. } => {
            let kind = if *expired { Kind::FieldExpire } else { Kind::FieldDelete };
            KvChange { member: field.clone(), ..new(kind) }
        }
        KvFact::FieldEndSet { field, expires_at, .. } => {
            KvChange { member: field.clone(), expires_at: *expires_at, ..new(Kind::FieldEnd) }
        }
        KvFact::MemberAdded { member, .. } => KvChange { member: member.clone(), ..new(Kind::MemberAdd) },
        KvFact::MemberRemoved { member, .. } => {
            KvChange { member: member.clone(), ..new(Kind::MemberRemove) }
        }
        KvFact::ScoreSet { member, score, .. } => {
            KvChange { member: member.clone(), score: Some(*score), ..new(Kind::ScoreSet) }
        }
        KvFact::ScoreRemoved { member, .. } => KvChange { member: member.clone(), ..new(Kind::ScoreRemove) },
        KvFact::Pushed { side, value, .. } => {
            use flowmesh_model::kv::Side;
            let kind = if *side == Side::Front { Kind::PushFront } else { Kind::PushBack };
            KvChange { value: value.clone(), ..new(kind) }
        }
        KvFact::ItemsRemoved { index, count, .. } => {
            KvChange { index: Some(*index), count: Some(*count), ..new(Kind::ItemsRemove) }
        }
        KvFact::ItemSet { index, value, .. } => {
            KvChange { index: Some(*index), value: value.clone(), ..new(Kind::ItemSet) }
        }
        KvFact::ItemInserted { index, value, .. } => {
            KvChange { index: Some(*index), value: value.clone(), ..new(Kind::ItemInsert) }
        }
        KvFact::Evicted { .. } => new(Kind::Evict),
        KvFact::Copied { .. }
        | KvFact::PagesFreed { .. }
        | KvFact::HistoryKept { .. }
        | KvFact::HistoryTrimmed { .. } => return None,
    };
    Some((fact.key()?.clone(), change))
}

fn old_of(found: &Found<'_>) -> ChangeOld {
    ChangeOld {
        holds: Some(found.value.holds()),
        value: found.wanted.text(found.value).ok().flatten(),
        expires_at: found.expires_at,
        items: found.value.collection().map(|collection| collection.items.len()),
        ..ChangeOld::default()
    }
}

fn old_field(members: &Members<'_>, field: &[u8]) -> Result<Option<ChangeOld>, Cold> {
    Ok(members.get(field)?.map(read_field).map(|(end, value)| ChangeOld {
        value: Some(Bytes::copy_from_slice(value)),
        expires_at: some_end(end),
        ..ChangeOld::default()
    }))
}

/// Values that a list loses, if they fit one record.
fn old_values(members: &Members<'_>, index: u64, count: u64) -> Result<ChangeOld, Cold> {
    let too_many = ChangeOld { items: Some(count), ..ChangeOld::default() };
    if count > FEED_ITEMS_MAX as u64 {
        return Ok(too_many);
    }
    let (mut cursor, mut values, mut bytes) = (members.items_from(index)?, Vec::new(), 0);
    while values.len() as u64 != count
        && let Some((_, value)) = cursor.forward()?
    {
        bytes += value.len();
        if bytes > FEED_ITEMS_BYTES_MAX && count > 1 {
            return Ok(too_many);
        }
        values.push(Bytes::copy_from_slice(value));
    }
    Ok(ChangeOld { values, ..ChangeOld::default() })
}

fn some_end(end: Millis) -> Option<Millis> {
    Some(end).filter(|end| end.0 != 0)
}

/// All that a key holds, for `to`: `first`, and, of a collection with many items, more.
fn whole(found: &Found<'_>, to: &Bytes, first: KvChange) -> Result<Vec<Changed>, Reject> {
    let mut change = head(found, first);
    let Some(members) = Members::of(found) else { return Ok(vec![(to.clone(), change)]) };
    if members.len() > KV_LOOKED_MAX {
        let what = "members of a collection that gets another name in a store with a feed";
        return Err(Reject::TooLarge { what, size: members.len(), max: KV_LOOKED_MAX });
    }
    let (mut changed, mut from) = (Vec::new(), ItemsFrom::Start);
    loop {
        let (items, next) = items(&members, &from, true)?;
        change.items = items;
        change.more = next.is_some();
        changed.push((to.clone(), change));
        let Some(next) = next else { return Ok(changed) };
        from = next;
        change = more(&members, Lsn(0));
    }
}

/// More items of a collection, which are still to be filled in.
pub(super) fn more(members: &Members<'_>, version: Lsn) -> KvChange {
    KvChange { kind: ChangeKind::Items, version, holds: Some(members.holds()), ..KvChange::default() }
}

/// What a key holds, but for the items of a collection.
pub(super) fn head(found: &Found<'_>, first: KvChange) -> KvChange {
    let number = if let View::Value(Value::Counter(number)) = found.value { Some(*number) } else { None };
    KvChange {
        holds: Some(found.value.holds()),
        value: found.wanted.text(found.value).ok().flatten().unwrap_or_default(),
        expires_at: found.expires_at,
        number,
        ..first
    }
}

/// As many items as one record has, those that have ended included if `ended`, and where the others begin, if there are any.
pub(super) fn items(
    members: &Members<'_>,
    from: &ItemsFrom,
    ended: bool,
) -> Result<(Vec<ChangeItem>, Option<ItemsFrom>), Cold> {
    let mut cursor = match from {
        ItemsFrom::Start => members.items_from(0)?,
        ItemsFrom::Behind(member) => members.items_behind(member)?,
        ItemsFrom::Place(place) => members.items_from(*place)?,
    };
    let holds = members.holds();
    let (mut items, mut bytes) = (Vec::new(), 0);
    while let Some((member, value)) = cursor.forward()? {
        let full = items.len() == FEED_ITEMS_MAX || bytes > FEED_ITEMS_BYTES_MAX;
        if let Some(last) = items.last().filter(|_| full) {
            let last: &ChangeItem = last;
            let next = match holds {
                KvType::List => ItemsFrom::Place(cursor.rank() - 1),
                _ => ItemsFrom::Behind(last.member.clone()),
            };
            return Ok((items, Some(next)));
        }
        let item = item(holds, member, value);
        if !ended && item.expires_at.is_some_and(|end| members.has_ended(end)) {
            continue;
        }
        bytes += item.bytes();
        items.push(item);
    }
    Ok((items, None))
}

pub(in crate::kv) fn item(holds: KvType, member: &[u8], value: &[u8]) -> ChangeItem {
    let member = Bytes::copy_from_slice(member);
    match holds {
        KvType::Hash => {
            let (end, value) = read_field(value);
            let value = Bytes::copy_from_slice(value);
            ChangeItem { member, value, expires_at: some_end(end), score: None }
        }
        KvType::SortedSet => ChangeItem { member, score: Some(read_score(value)), ..ChangeItem::default() },
        KvType::List => ChangeItem { value: Bytes::copy_from_slice(value), ..ChangeItem::default() },
        KvType::Set | KvType::Bytes | KvType::Counter => ChangeItem { member, ..ChangeItem::default() },
    }
}

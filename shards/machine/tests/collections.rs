//! What keys hold is what simple collections would hold, whatever operations, batches, ticks, checkpoints and crashes came
//! before.

// A test fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
// Lengths and indexes here are small.
#![allow(clippy::cast_possible_wrap, clippy::cast_sign_loss)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use common::generated::{KEYS, op};
use common::{Outcome, World, cases};
use flowmesh_model::command::{SetIf, SetTtl};
use flowmesh_model::kv::{
    AddIf, Aggregate, Bound, BytesOp, Combine, End, EndIf, FieldTtl, HashOp, KeyOp, KvAction, KvOp, KvResult,
    KvType, ListOp, Real, SetOp, Side, SortedOp, SortedRange,
};
use flowmesh_model::{Command, KvCommand, KvSettings, Lsn, Millis, Reject, Reply, ResourceId, Settings};
use proptest::prelude::*;

/// What a key holds.
#[derive(Clone, Debug, PartialEq)]
enum Held {
    Bytes(Bytes),
    Whole(i64),
    Decimal(Real),
    Hash(BTreeMap<Bytes, (Bytes, Option<Millis>)>),
    Set(BTreeSet<Bytes>),
    Sorted(BTreeMap<Bytes, Real>),
    List(Vec<Bytes>),
}

impl Held {
    fn holds(&self) -> KvType {
        match self {
            Self::Bytes(_) => KvType::Bytes,
            Self::Whole(_) | Self::Decimal(_) => KvType::Counter,
            Self::Hash(_) => KvType::Hash,
            Self::Set(_) => KvType::Set,
            Self::Sorted(_) => KvType::SortedSet,
            Self::List(_) => KvType::List,
        }
    }

    fn text(&self) -> Result<Bytes, Reject> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.clone()),
            Self::Whole(number) => Ok(number.to_string().into()),
            Self::Decimal(number) => Ok(number.to_string().into()),
            other => Err(Reject::WrongType { expected: KvType::Bytes, actual: other.holds() }),
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::Hash(fields) => fields.len() as u64,
            Self::Set(members) => members.len() as u64,
            Self::Sorted(members) => members.len() as u64,
            Self::List(values) => values.len() as u64,
            other => other.text().unwrap().len() as u64,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    held: Held,
    ends: Option<Millis>,
}

/// Keys by name; chance is what the store says it was.
#[derive(Clone, Debug, Default)]
struct Model {
    keys: BTreeMap<Bytes, Entry>,
    now: Millis,
}

fn sorted(members: &BTreeMap<Bytes, Real>) -> Vec<(Bytes, Real)> {
    let mut all: Vec<_> = members.iter().map(|(member, score)| (member.clone(), *score)).collect();
    all.sort_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
    all
}

/// From one index to another as Redis counts.
fn slice<T: Clone>(all: &[T], from: i64, to: i64) -> Vec<T> {
    let len = all.len() as i64;
    let from = if from < 0 { (len + from).max(0) } else { from };
    let to = if to < 0 { len + to } else { to.min(len - 1) };
    if from > to { Vec::new() } else { all[from as usize..=to as usize].to_vec() }
}

fn within<T: Ord>(value: &T, min: &Bound<T>, max: &Bound<T>) -> bool {
    (match min {
        Bound::Open => true,
        Bound::Included(min) => value >= min,
        Bound::Excluded(min) => value > min,
    }) && (match max {
        Bound::Open => true,
        Bound::Included(max) => value <= max,
        Bound::Excluded(max) => value < max,
    })
}

fn int(value: usize) -> KvResult {
    KvResult::Integer(value as i64)
}

impl Model {
    /// Takes away what has ended.
    fn at(&mut self, now: Millis) {
        self.now = now;
        for entry in self.keys.values_mut() {
            if let Held::Hash(fields) = &mut entry.held {
                fields.retain(|_, (_, end)| end.is_none_or(|end| end > now));
            }
        }
        self.keys.retain(|_, entry| {
            entry.ends.is_none_or(|end| end > now)
                && !matches!(&entry.held, Held::Hash(fields) if fields.is_empty())
        });
    }

    /// A collection of a key, made if it is not there.
    fn open(&mut self, key: &Bytes, empty: Held) -> Result<&mut Held, Reject> {
        let expected = empty.holds();
        let entry = self.keys.entry(key.clone()).or_insert(Entry { held: empty, ends: None });
        if entry.held.holds() == expected {
            Ok(&mut entry.held)
        } else {
            Err(Reject::WrongType { expected, actual: entry.held.holds() })
        }
    }

    /// Collections without members go.
    fn close(&mut self) {
        self.keys.retain(|_, entry| {
            matches!(entry.held, Held::Bytes(_) | Held::Whole(_) | Held::Decimal(_)) || entry.held.len() > 0
        });
    }

    fn run(&mut self, op: &KvOp, said: Option<&KvResult>) -> Result<KvResult, Reject> {
        let before = self.keys.get(&op.key);
        let holds = match &op.condition {
            SetIf::Always => true,
            SetIf::Absent => before.is_none(),
            SetIf::Present => before.is_some(),
            SetIf::Version(_) => panic!("not by this model"),
            SetIf::Value(value) => before.map(|entry| entry.held.text()).transpose()?.as_ref() == Some(value),
        };
        if !holds {
            return Err(Reject::ConditionFailed { actual: None });
        }
        let before = self.keys.clone();
        let result = match &op.action {
            KvAction::Key(key) => self.key(&op.key, key),
            KvAction::Bytes(bytes) => self.bytes(&op.key, bytes),
            KvAction::Hash(hash) => self.hash(&op.key, hash, said),
            KvAction::Set(set) => self.set(&op.key, set, said),
            KvAction::Sorted(sorted) => self.sorted(&op.key, sorted, said),
            KvAction::List(list) => self.list(&op.key, list),
        };
        if result.is_err() {
            self.keys = before;
        }
        self.close();
        let now = self.now;
        self.at(now);
        result
    }

    fn key(&mut self, key: &Bytes, op: &KeyOp) -> Result<KvResult, Reject> {
        let entry = self.keys.get(key).cloned();
        Ok(match op {
            KeyOp::Inspect => KvResult::Flag(entry.is_some()),
            KeyOp::Check => KvResult::Done,
            KeyOp::Delete => KvResult::Flag(self.keys.remove(key).is_some()),
            KeyOp::Expire(end, only) => {
                let end = self.end(*end);
                let Some(entry) = self.keys.get_mut(key) else { return Ok(KvResult::Flag(false)) };
                let changes = may_end(*only, entry.ends, end) && (end.is_some() || entry.ends.is_some());
                if changes {
                    entry.ends = end;
                }
                KvResult::Flag(changes)
            }
            KeyOp::Rename { to, if_absent } => {
                let Some(entry) = entry else { return Err(Reject::NoSuchKey) };
                if *if_absent && self.keys.contains_key(to) {
                    return Ok(KvResult::Flag(false));
                }
                self.keys.remove(key);
                self.keys.insert(to.clone(), entry);
                KvResult::Flag(true)
            }
            KeyOp::Copy { to, replace } => {
                if key == to {
                    return Err(Reject::invalid("to", "is the key itself; a copy needs another name"));
                }
                let Some(entry) = entry.filter(|_| *replace || !self.keys.contains_key(to)) else {
                    return Ok(KvResult::Flag(false));
                };
                self.keys.insert(to.clone(), entry);
                KvResult::Flag(true)
            }
        })
    }

    fn end(&self, end: End) -> Option<Millis> {
        match end {
            End::In(ms) => Some(self.now.plus(ms)),
            End::At(at) => Some(at),
            End::Never => None,
        }
    }

    fn bytes(&mut self, key: &Bytes, op: &BytesOp) -> Result<KvResult, Reject> {
        let ends = self.keys.get(key).and_then(|entry| entry.ends);
        let held = self.keys.get(key).map(|entry| entry.held.clone());
        let text = || held.as_ref().map(Held::text).transpose();
        let mut put =
            |held: Held, ends: Option<Millis>| drop(self.keys.insert(key.clone(), Entry { held, ends }));
        Ok(match op {
            BytesOp::Get => KvResult::Value(text()?),
            BytesOp::Set { value, ttl, with_old } => {
                let result = if *with_old { KvResult::Value(text()?) } else { KvResult::Done };
                let ends = match ttl {
                    SetTtl::Default => None,
                    SetTtl::Millis(ms) => Some(self.now.plus(*ms)),
                    SetTtl::At(at) => Some(*at),
                    SetTtl::Keep => ends,
                };
                put(Held::Bytes(value.clone()), ends);
                result
            }
            BytesOp::GetDelete => {
                let text = text()?;
                self.keys.remove(key);
                KvResult::Value(text)
            }
            BytesOp::GetExpire(end) => {
                let (text, end) = (text()?, self.end(*end));
                if let Some(entry) = self.keys.get_mut(key) {
                    entry.ends = end;
                }
                KvResult::Value(text)
            }
            BytesOp::Append(more) => {
                let all = [&text()?.unwrap_or_default()[..], more].concat();
                let len = all.len();
                put(Held::Bytes(all.into()), ends);
                int(len)
            }
            BytesOp::GetRange(from, to) => {
                KvResult::Value(Some(slice(&text()?.unwrap_or_default(), *from, *to).into()))
            }
            BytesOp::SetRange(offset, over) => {
                let mut all = text()?.unwrap_or_default().to_vec();
                if over.is_empty() {
                    return Ok(int(all.len()));
                }
                let end = *offset as usize + over.len();
                all.resize(all.len().max(end), 0);
                all[*offset as usize..end].copy_from_slice(over);
                let len = all.len();
                put(Held::Bytes(all.into()), ends);
                int(len)
            }
            BytesOp::Length => int(text()?.map_or(0, |text| text.len())),
            BytesOp::Increment(by) => {
                let wanted = "64-bit integer";
                let before = match text()? {
                    None => 0,
                    Some(text) => std::str::from_utf8(&text)
                        .ok()
                        .and_then(|text| text.parse::<i64>().ok().filter(|number| number.to_string() == text))
                        .ok_or(Reject::NotANumber { what: "the value", wanted })?,
                };
                let sum = before
                    .checked_add(*by)
                    .ok_or(Reject::CounterOverflow { what: "the counter", range: wanted })?;
                put(Held::Whole(sum), ends);
                KvResult::Integer(sum)
            }
            BytesOp::IncrementFloat(by) => {
                let before = match text()? {
                    None => 0.0,
                    Some(text) => {
                        let number =
                            std::str::from_utf8(&text).ok().and_then(|text| text.parse::<f64>().ok());
                        let wanted = "finite decimal";
                        number
                            .filter(|number| number.is_finite())
                            .ok_or(Reject::NotANumber { what: "the value", wanted })?
                    }
                };
                let sum = Real::new(before + by.get()).unwrap();
                put(Held::Decimal(sum), ends);
                KvResult::Float(sum)
            }
        })
    }

    fn hash(&mut self, key: &Bytes, op: &HashOp, said: Option<&KvResult>) -> Result<KvResult, Reject> {
        let now = self.now;
        let end_of = |end: End| match end {
            End::In(ms) => Some(now.plus(ms)),
            End::At(at) => Some(at),
            End::Never => None,
        };
        let Held::Hash(fields) = self.open(key, Held::Hash(BTreeMap::new()))? else { unreachable!() };
        Ok(match op {
            HashOp::Set { fields: set, if_absent, ttl } => {
                let mut new = 0;
                for (field, value) in set {
                    let before = fields.get(field).cloned();
                    if *if_absent && before.is_some() {
                        continue;
                    }
                    new += usize::from(before.is_none());
                    let end = match ttl {
                        FieldTtl::Never => None,
                        FieldTtl::Keep => before.and_then(|(_, end)| end),
                        FieldTtl::Until(end) => end_of(*end),
                    };
                    fields.insert(field.clone(), (value.clone(), end));
                }
                int(new)
            }
            HashOp::Get(asked) => KvResult::Values(
                asked.iter().map(|field| fields.get(field).map(|(value, _)| value.clone())).collect(),
            ),
            HashOp::Lengths(asked) => KvResult::Integers(
                asked.iter().map(|field| fields.get(field).map(|(value, _)| value.len() as i64)).collect(),
            ),
            HashOp::Delete(gone) => int(gone.iter().filter(|field| fields.remove(*field).is_some()).count()),
            HashOp::Len => int(fields.len()),
            HashOp::All => KvResult::Pairs(
                fields.iter().map(|(field, (value, _))| (field.clone(), value.clone())).collect(),
            ),
            HashOp::Scan(page) => {
                // What has ended and is not removed yet may make pages shorter: only what is said is checked.
                let Some(KvResult::Page { items, next }) = said else { return Ok(KvResult::Done) };
                let KvResult::Pairs(pairs) = &**items else { panic!("{items:?}") };
                let upto = |field: &Bytes| next.as_ref().is_none_or(|next| field <= next);
                let expected: Vec<_> = fields
                    .iter()
                    .filter(|(field, _)| {
                        page.after.as_ref().is_none_or(|after| *field > after) && upto(field)
                    })
                    .map(|(field, (value, _))| (field.clone(), value.clone()))
                    .collect();
                assert_eq!(*pairs, expected);
                said.unwrap().clone()
            }
            HashOp::Increment(field, by) => {
                let before = fields.get(field).cloned();
                let wanted = "64-bit integer";
                let number = match &before {
                    None => 0,
                    Some((value, _)) => std::str::from_utf8(value)
                        .ok()
                        .and_then(|text| text.parse::<i64>().ok().filter(|number| number.to_string() == text))
                        .ok_or(Reject::NotANumber { what: "the field", wanted })?,
                };
                let sum = number
                    .checked_add(*by)
                    .ok_or(Reject::CounterOverflow { what: "the field", range: wanted })?;
                let end = before.and_then(|(_, end)| end);
                fields.insert(field.clone(), (sum.to_string().into(), end));
                KvResult::Integer(sum)
            }
            HashOp::IncrementFloat(..) => panic!("not by this model"),
            HashOp::Random(count) => {
                let Some(KvResult::Pairs(pairs)) = said else { return Ok(KvResult::Done) };
                for (field, value) in pairs {
                    assert_eq!(&fields[field].0, value);
                }
                check_drawn(*count, fields.len(), pairs.iter().map(|(field, _)| field));
                said.unwrap().clone()
            }
            HashOp::Expire { fields: of, end, only } => {
                let end = end_of(*end);
                let mut changes = Vec::new();
                for field in of {
                    let before = fields.get(field).cloned();
                    let changes_it =
                        before.as_ref().map(|(_, before)| *before != end && may_end(*only, *before, end));
                    if let (Some(true), Some((value, _))) = (changes_it, before) {
                        if end.is_some_and(|end| end <= now) {
                            fields.remove(field);
                        } else {
                            fields.insert(field.clone(), (value, end));
                        }
                    }
                    changes.push(changes_it);
                }
                KvResult::Changes(changes)
            }
            HashOp::Ends(asked) => {
                KvResult::Ends(asked.iter().map(|field| fields.get(field).map(|(_, end)| *end)).collect())
            }
        })
    }

    fn set(&mut self, key: &Bytes, op: &SetOp, said: Option<&KvResult>) -> Result<KvResult, Reject> {
        if let SetOp::Combine { how, others, into, count_only } = op {
            let mut sets = Vec::new();
            for key in std::iter::once(key).chain(others) {
                sets.push(match self.keys.get(key).map(|entry| &entry.held) {
                    None => BTreeSet::new(),
                    Some(Held::Set(set)) => set.clone(),
                    Some(other) => {
                        return Err(Reject::WrongType { expected: KvType::Set, actual: other.holds() });
                    }
                });
            }
            let (first, others) = sets.split_first().unwrap();
            let combined: BTreeSet<Bytes> = match how {
                Combine::Union => sets.iter().flatten().cloned().collect(),
                Combine::Intersection => {
                    first.iter().filter(|m| others.iter().all(|other| other.contains(*m))).cloned().collect()
                }
                Combine::Difference => {
                    first.iter().filter(|m| !others.iter().any(|other| other.contains(*m))).cloned().collect()
                }
            };
            let most = |most: u64| if most == 0 { combined.len() } else { combined.len().min(most as usize) };
            return Ok(match (into, count_only) {
                (Some(into), _) => {
                    let count = combined.len();
                    self.keys.insert(into.clone(), Entry { held: Held::Set(combined), ends: None });
                    int(count)
                }
                (None, Some(count)) => int(most(*count)),
                (None, None) => KvResult::Members(combined.into_iter().collect()),
            });
        }
        if let SetOp::Move { to, member } = op {
            if !self.keys.contains_key(key) {
                return Ok(KvResult::Flag(false));
            }
            self.open(key, Held::Set(BTreeSet::new()))?;
            self.open(to, Held::Set(BTreeSet::new()))?;
            let Held::Set(set) = self.open(key, Held::Set(BTreeSet::new()))? else { unreachable!() };
            let there = set.remove(member);
            if there {
                let Held::Set(other) = self.open(to, Held::Set(BTreeSet::new()))? else { unreachable!() };
                other.insert(member.clone());
            }
            return Ok(KvResult::Flag(there));
        }
        let Held::Set(set) = self.open(key, Held::Set(BTreeSet::new()))? else { unreachable!() };
        Ok(match op {
            SetOp::Add(members) => int(members.iter().filter(|member| set.insert((*member).clone())).count()),
            SetOp::Remove(members) => int(members.iter().filter(|member| set.remove(*member)).count()),
            SetOp::Contains(asked) => {
                KvResult::Flags(asked.iter().map(|member| set.contains(member)).collect())
            }
            SetOp::Len => int(set.len()),
            SetOp::All => KvResult::Members(set.iter().cloned().collect()),
            SetOp::Scan(page) => {
                let mut rest =
                    set.iter().filter(|member| page.after.as_ref().is_none_or(|after| *member > after));
                let items: Vec<_> = rest.by_ref().take(page.limit as usize).cloned().collect();
                let next = items.last().filter(|_| rest.next().is_some()).cloned();
                KvResult::Page { items: Box::new(KvResult::Members(items)), next }
            }
            SetOp::Pop(count) => {
                let Some(KvResult::Members(popped)) = said else { return Ok(KvResult::Done) };
                check_drawn(*count as i64, set.len(), popped.iter());
                assert!(popped.iter().all(|member| set.remove(member)));
                said.unwrap().clone()
            }
            SetOp::Random(count) => {
                let Some(KvResult::Members(drawn)) = said else { return Ok(KvResult::Done) };
                check_drawn(*count, set.len(), drawn.iter());
                assert!(drawn.iter().all(|member| set.contains(member)));
                said.unwrap().clone()
            }
            SetOp::Move { .. } | SetOp::Combine { .. } => unreachable!(),
        })
    }

    fn sorted(&mut self, key: &Bytes, op: &SortedOp, said: Option<&KvResult>) -> Result<KvResult, Reject> {
        if let SortedOp::Combine { how, others, weights, aggregate, into, count_only } = op {
            let mut sets: Vec<BTreeMap<Bytes, Real>> = Vec::new();
            for key in std::iter::once(key).chain(others) {
                sets.push(match self.keys.get(key).map(|entry| &entry.held) {
                    None => BTreeMap::new(),
                    Some(Held::Sorted(set)) => set.clone(),
                    Some(Held::Set(set)) => set.iter().map(|member| (member.clone(), Real::ONE)).collect(),
                    Some(other) => {
                        return Err(Reject::WrongType { expected: KvType::SortedSet, actual: other.holds() });
                    }
                });
            }
            let mut combined: BTreeMap<Bytes, Real> = BTreeMap::new();
            for (place, set) in sets.iter().enumerate() {
                for (member, score) in set {
                    let weight = weights.get(place).map_or(1.0, |weight| weight.get());
                    let score = Real::new(score.get() * weight).unwrap();
                    let joined = combined.get(member).map_or(score, |before| match aggregate {
                        Aggregate::Sum => Real::new(before.get() + score.get()).unwrap(),
                        Aggregate::Min => score.min(*before),
                        Aggregate::Max => score.max(*before),
                    });
                    combined.insert(member.clone(), joined);
                }
            }
            match how {
                Combine::Union => {}
                Combine::Intersection => {
                    combined.retain(|member, _| sets.iter().all(|set| set.contains_key(member)));
                }
                Combine::Difference => {
                    combined = sets[0].clone();
                    combined.retain(|member, _| !sets[1..].iter().any(|set| set.contains_key(member)));
                }
            }
            return Ok(match (into, count_only) {
                (Some(into), _) => {
                    let count = combined.len();
                    self.keys.insert(into.clone(), Entry { held: Held::Sorted(combined), ends: None });
                    int(count)
                }
                (None, Some(0)) => int(combined.len()),
                (None, Some(most)) => int(combined.len().min(*most as usize)),
                (None, None) => KvResult::Scored(sorted(&combined)),
            });
        }
        let Held::Sorted(set) = self.open(key, Held::Sorted(BTreeMap::new()))? else { unreachable!() };
        let all = sorted(set);
        let range_of = |range: &SortedRange, reverse: bool| -> Vec<(Bytes, Real)> {
            let mut all = all.clone();
            match range {
                SortedRange::Rank(from, to) => {
                    if reverse {
                        all.reverse();
                    }
                    slice(&all, *from, *to)
                }
                SortedRange::Score(min, max) => {
                    all.retain(|(_, score)| within(score, min, max));
                    if reverse {
                        all.reverse();
                    }
                    all
                }
                SortedRange::Lex(..) => panic!("not by this model"),
            }
        };
        Ok(match op {
            SortedOp::Add { members, only, changed } => {
                let (mut new, mut moved) = (0, 0);
                for (score, member) in members {
                    let before = set.get(member).copied();
                    if !takes(*only, before, *score) {
                        continue;
                    }
                    new += usize::from(before.is_none());
                    moved += usize::from(before.is_some_and(|before| before != *score));
                    set.insert(member.clone(), *score);
                }
                int(if *changed { new + moved } else { new })
            }
            SortedOp::Increment { member, by, only } => {
                let before = set.get(member).copied();
                let after = Real::new(before.map_or(0.0, Real::get) + by.get()).unwrap();
                if !takes(*only, before, after) {
                    return Ok(KvResult::MaybeFloat(None));
                }
                set.insert(member.clone(), after);
                KvResult::MaybeFloat(Some(after))
            }
            SortedOp::Remove(members) => {
                int(members.iter().filter(|member| set.remove(*member).is_some()).count())
            }
            SortedOp::Scores(asked) => {
                KvResult::Floats(asked.iter().map(|member| set.get(member).copied()).collect())
            }
            SortedOp::Len => int(set.len()),
            SortedOp::Count(range) => int(range_of(range, false).len()),
            SortedOp::Rank { member, reverse } => {
                let mut all = all.clone();
                if *reverse {
                    all.reverse();
                }
                let at = all.iter().position(|(other, _)| other == member);
                KvResult::Rank(at.map(|at| (at as u64, all[at].1)))
            }
            SortedOp::Range { range, reverse, skip, limit, into } => {
                let found: Vec<_> = range_of(range, *reverse)
                    .into_iter()
                    .skip(*skip as usize)
                    .take(limit.map_or(usize::MAX, |limit| limit as usize))
                    .collect();
                match into {
                    None => KvResult::Scored(found),
                    Some(into) => {
                        let count = found.len();
                        let held = Held::Sorted(found.into_iter().collect());
                        self.keys.insert(into.clone(), Entry { held, ends: None });
                        int(count)
                    }
                }
            }
            SortedOp::RemoveRange(range) => {
                let gone = range_of(range, false);
                for (member, _) in &gone {
                    set.remove(member);
                }
                int(gone.len())
            }
            SortedOp::Pop { max, count } => {
                let mut all = all.clone();
                if *max {
                    all.reverse();
                }
                all.truncate(*count as usize);
                for (member, _) in &all {
                    set.remove(member);
                }
                KvResult::Scored(all)
            }
            SortedOp::Random(count) => {
                let Some(KvResult::Scored(drawn)) = said else { return Ok(KvResult::Done) };
                check_drawn(*count, set.len(), drawn.iter().map(|(member, _)| member));
                assert!(drawn.iter().all(|(member, score)| set.get(member) == Some(score)));
                said.unwrap().clone()
            }
            SortedOp::Scan(page) => {
                let after = |member: &Bytes| page.after.as_ref().is_none_or(|after| member > after);
                let mut rest = set.iter().filter(|(member, _)| after(member));
                let items: Vec<_> = rest
                    .by_ref()
                    .take(page.limit as usize)
                    .map(|(member, score)| (member.clone(), *score))
                    .collect();
                let next = items.last().filter(|_| rest.next().is_some()).map(|(member, _)| member.clone());
                KvResult::Page { items: Box::new(KvResult::Scored(items)), next }
            }
            SortedOp::Combine { .. } => unreachable!(),
        })
    }

    fn list(&mut self, key: &Bytes, op: &ListOp) -> Result<KvResult, Reject> {
        let there = self.keys.contains_key(key);
        if let ListOp::Move { to, from, at } = op {
            if !there {
                return Ok(KvResult::Value(None));
            }
            self.open(key, Held::List(Vec::new()))?;
            self.open(to, Held::List(Vec::new()))?;
            let Held::List(list) = self.open(key, Held::List(Vec::new()))? else { unreachable!() };
            let value = if *from == Side::Front { list.remove(0) } else { list.pop().unwrap() };
            let Held::List(other) = self.open(to, Held::List(Vec::new()))? else { unreachable!() };
            let place = if *at == Side::Front { 0 } else { other.len() };
            other.insert(place, value.clone());
            return Ok(KvResult::Value(Some(value)));
        }
        let Held::List(list) = self.open(key, Held::List(Vec::new()))? else { unreachable!() };
        let place = |index: i64, len: usize| {
            let at = if index < 0 { len as i64 + index } else { index };
            usize::try_from(at).ok().filter(|at| *at < len)
        };
        Ok(match op {
            ListOp::Push { side, values, if_present } => {
                if *if_present && !there {
                    return Ok(int(0));
                }
                for value in values {
                    let at = if *side == Side::Front { 0 } else { list.len() };
                    list.insert(at, value.clone());
                }
                int(list.len())
            }
            ListOp::Pop(side, count) => {
                let mut popped = Vec::new();
                for _ in 0..*count {
                    if list.is_empty() {
                        break;
                    }
                    popped.push(if *side == Side::Front { list.remove(0) } else { list.pop().unwrap() });
                }
                KvResult::Members(popped)
            }
            ListOp::Len => int(list.len()),
            ListOp::At(index) => KvResult::Value(place(*index, list.len()).map(|at| list[at].clone())),
            ListOp::SetAt(index, value) => {
                if !there {
                    return Err(Reject::NoSuchKey);
                }
                let refused = Reject::IndexOutOfRange { index: *index, len: list.len() as u64 };
                let at = place(*index, list.len()).ok_or(refused)?;
                list[at] = value.clone();
                KvResult::Done
            }
            ListOp::Insert { before, pivot, value } => {
                if !there {
                    return Ok(int(0));
                }
                let Some(at) = list.iter().position(|other| other == pivot) else {
                    return Ok(KvResult::Integer(-1));
                };
                list.insert(if *before { at } else { at + 1 }, value.clone());
                int(list.len())
            }
            ListOp::Remove(value, count) => {
                let most = if *count == 0 { usize::MAX } else { count.unsigned_abs() as usize };
                let mut places: Vec<_> = (0..list.len()).filter(|at| list[*at] == *value).collect();
                if *count < 0 {
                    places.reverse();
                }
                places.truncate(most);
                places.sort_unstable();
                places.iter().rev().for_each(|at| drop(list.remove(*at)));
                int(places.len())
            }
            ListOp::Trim(from, to) => {
                *list = slice(list, *from, *to);
                KvResult::Done
            }
            ListOp::Range(from, to) => KvResult::Members(slice(list, *from, *to)),
            ListOp::Find { value, rank, count, look_at } => {
                let mut order: Vec<_> = (0..list.len()).collect();
                if *rank < 0 {
                    order.reverse();
                }
                if *look_at > 0 {
                    order.truncate(*look_at as usize);
                }
                let found = order.into_iter().filter(|at| list[*at] == *value);
                let found = found.skip(rank.unsigned_abs() as usize - 1);
                let most = if *count == 0 { usize::MAX } else { *count as usize };
                KvResult::Integers(found.take(most).map(|at| Some(at as i64)).collect())
            }
            ListOp::Move { .. } => unreachable!(),
        })
    }
}

fn may_end(only: EndIf, before: Option<Millis>, after: Option<Millis>) -> bool {
    match (only, before, after) {
        (EndIf::Always, ..) => true,
        (EndIf::None, before, _) => before.is_none(),
        (EndIf::Some, before, _) => before.is_some(),
        (EndIf::Later, Some(before), Some(after)) => after > before,
        (EndIf::Later, before, after) => before.is_some() && after.is_none(),
        (EndIf::Earlier, Some(before), Some(after)) => after < before,
        (EndIf::Earlier, before, after) => before.is_none() && after.is_some(),
    }
}

fn takes(only: AddIf, before: Option<Real>, after: Real) -> bool {
    match before {
        None => !only.present,
        Some(before) => !only.absent && (!only.greater || after > before) && (!only.less || after < before),
    }
}

fn check_drawn<'a>(count: i64, len: usize, drawn: impl ExactSizeIterator<Item = &'a Bytes>) {
    let many = drawn.len();
    if count >= 0 {
        assert_eq!(many, len.min(count as usize));
        assert_eq!(drawn.collect::<BTreeSet<_>>().len(), many, "each once");
    } else {
        assert_eq!(many, if len == 0 { 0 } else { count.unsigned_abs() as usize });
    }
}

#[derive(Clone, Debug)]
enum Step {
    Run(Vec<KvOp>, bool, u64),
    Clear(u32),
    Random(u64),
    Pass(u64),
    Tick,
    Seal,
    Collect(usize),
    Write,
    Fail,
    Chill,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => op().prop_map(|op| Step::Run(vec![op], false, 0)),
        10 => (prop::collection::vec(op(), 1..6), any::<bool>(), any::<u64>())
            .prop_map(|(ops, atomic, seed)| Step::Run(ops, atomic, seed)),
        1 => (1u32..3).prop_map(Step::Clear),
        1 => any::<u64>().prop_map(Step::Random),
        4 => (0u64..60).prop_map(Step::Pass),
        3 => Just(Step::Tick),
        2 => Just(Step::Seal),
        4 => (1usize..6).prop_map(Step::Collect),
        2 => Just(Step::Write),
        1 => Just(Step::Fail),
        4 => Just(Step::Chill),
        2 => Just(Step::Crash),
    ]
}

/// Versions are not in the model; what is said of a key is compared by itself.
fn comparable(result: Result<KvResult, Reject>) -> Result<KvResult, Reject> {
    match result {
        Ok(KvResult::Info(info)) => Ok(KvResult::Flag(info.is_some())),
        Err(Reject::ConditionFailed { .. }) => Err(Reject::ConditionFailed { actual: None }),
        other => other,
    }
}

fn check_run(world: &mut World, model: &mut Model, store: ResourceId, ops: &[KvOp], atomic: bool, seed: u64) {
    model.at(world.now);
    let lsn = world.lsn.next();
    let run = KvCommand::Run { ops: ops.iter().cloned().collect(), atomic, seed };
    match world.run(&Command::Kv(store, run)) {
        Outcome::Rejected(Reject::BatchRefused { index, cause }) => {
            assert!(atomic);
            let mut tried = model.clone();
            for (at, op) in ops.iter().enumerate() {
                let result = tried.run(op, None);
                if at as u32 == index {
                    return assert_eq!(comparable(result), comparable(Err(*cause)), "{op:?}");
                }
                // Before it nothing was said: what chance chose is not known.
                assert!(result.is_ok(), "refused before: {op:?} {result:?}");
                if matches!(op.action, KvAction::Set(SetOp::Pop(_))) {
                    return;
                }
            }
            panic!("nothing is refused");
        }
        other => {
            let Reply::Kv(outcomes) = other.reply() else { panic!("another reply") };
            for (op, outcome) in ops.iter().zip(outcomes) {
                let said = outcome.as_ref().ok().map(|outcome| &outcome.result);
                let result = model.run(op, said);
                assert_eq!(
                    comparable(outcome.clone().map(|outcome| outcome.result)),
                    comparable(result),
                    "{op:?} {model:?}"
                );
                let Ok(outcome) = outcome else { continue };
                let there = model.keys.get(&op.key);
                assert_eq!(outcome.version != Lsn(0), there.is_some(), "{op:?}");
                assert!(outcome.version <= lsn);
                if let (KvResult::Info(Some(info)), Some(entry)) = (outcome.result, there) {
                    assert_eq!((info.holds, info.expires_at), (entry.held.holds(), entry.ends));
                    assert_eq!(info.len, entry.held.len());
                }
            }
        }
    }
}

/// Everything the store has, read through operations.
fn check_all(world: &mut World, model: &mut Model, store: ResourceId) {
    for name in KEYS {
        let key = Bytes::from_static(name.as_bytes());
        model.at(world.now);
        let read = match model.keys.get(&key).map(|entry| entry.held.holds()) {
            None => KvAction::Key(KeyOp::Inspect),
            Some(KvType::Bytes | KvType::Counter) => KvAction::Bytes(BytesOp::Get),
            Some(KvType::Hash) => KvAction::Hash(HashOp::All),
            Some(KvType::Set) => KvAction::Set(SetOp::All),
            Some(KvType::SortedSet) => {
                let (range, into) = (SortedRange::Rank(0, -1), None);
                KvAction::Sorted(SortedOp::Range { range, reverse: true, skip: 0, limit: None, into })
            }
            Some(KvType::List) => KvAction::List(ListOp::Range(0, -1)),
        };
        for action in [read, KvAction::Key(KeyOp::Inspect)] {
            let op = KvOp { key: key.clone(), condition: SetIf::Always, action };
            check_run(world, model, store, &[op], false, 0);
        }
    }
}

proptest! {
    #![proptest_config(cases(200))]
    #[test]
    fn keys_hold_what_simple_collections_would(steps in prop::collection::vec(step(), 1..90)) {
        let mut world = World::default();
        let store = world.create_with("cart", Settings::Kv(KvSettings::default()));
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Run(ops, atomic, seed) => check_run(&mut world, &mut model, store, &ops, atomic, seed),
                Step::Clear(keys_max) => {
                    model.at(world.now);
                    world.tick(50);
                    let clear = Command::Kv(store, KvCommand::Clear { keys_max });
                    let Reply::KvCleared { count, more } = world.run(&clear).reply() else { panic!("not cleared") };
                    prop_assert_eq!(count as usize, model.keys.len().min(keys_max as usize));
                    (0..count).for_each(|_| drop(model.keys.pop_first()));
                    prop_assert_eq!(more, !model.keys.is_empty());
                }
                Step::Random(seed) => {
                    model.at(world.now);
                    let random = Command::Kv(store, KvCommand::Random { seed });
                    let Reply::Scanned { entries, .. } = world.run(&random).reply() else { panic!("no key") };
                    prop_assert_eq!(entries.len(), usize::from(!model.keys.is_empty()));
                    prop_assert!(entries.iter().all(|(key, _)| model.keys.contains_key(key)));
                }
                Step::Pass(ms) => world.now = world.now.plus(ms),
                Step::Tick => {
                    world.tick(3);
                    model.at(world.now);
                    let status = world.run(&Command::Kv(store, KvCommand::Status)).reply();
                    let Reply::KvStatus(status) = status else { panic!("no status") };
                    prop_assert_eq!(status.keys, model.keys.len() as u64, "a tick leaves nothing whose time is up");
                }
                Step::Seal => if world.sealed.is_none() { world.seal() },
                Step::Collect(items) => world.collect(items),
                Step::Write => drop(world.write()),
                Step::Chill => world.chill(2),
                Step::Fail => if world.sealed.is_some() { world.unseal() },
                Step::Crash => {
                    world.crash();
                    check_all(&mut world, &mut model, store);
                }
            }
            world.machine.check_all();
        }
        check_all(&mut world, &mut model, store);
    }
}

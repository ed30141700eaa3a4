//! Operations on sorted sets.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use flowmesh_model::Reject;
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::kv::{AddIf, Bound, KvResult, KvType, PageOf, Real, SortedOp, SortedRange};
use flowmesh_model::limits::ENTRY_BYTES_MAX;

use super::bytes::add_real;
use super::combine::Weighted;
use super::found::{Found, Members, members};
use super::{
    Answer, Done, Facts, Run, check_count, check_looked, check_member, check_members, integer, items, part,
};
use crate::kv::change::{ordered, read_score, read_scored};

impl Run<'_> {
    pub(super) fn sorted_op(&self, key: &Bytes, found: Option<Found<'_>>, op: &SortedOp) -> Answer {
        if let SortedOp::Combine { how, others, weights, aggregate, into, count_only } = op {
            let weighted = Weighted { weights, aggregate: *aggregate };
            return self.combine_sorted(key, *how, others, &weighted, into.as_ref(), *count_only);
        }
        let set = members(found.as_ref(), KvType::SortedSet)?;
        match op {
            SortedOp::Add { members, only, changed } => self.add_scored(key, set, members, *only, *changed),
            SortedOp::Increment { member, by, only } => self.increment(key, set, member, *by, *only),
            SortedOp::Remove(removed) => {
                check_members("members", removed)?;
                let Some(set) = set else { return Done::nothing(integer(0)) };
                let mut there = std::collections::BTreeSet::new();
                for member in removed {
                    if set.has(member)? {
                        there.insert(member.clone());
                    }
                }
                let count = there.len() as u64;
                Done::new(self.remove_scored(key, &set, there.into_iter()), integer(count))
            }
            SortedOp::Scores(asked) => {
                check_members("members", asked)?;
                let score = |member: &Bytes| match &set {
                    Some(set) => set.score(member),
                    None => Ok(None),
                };
                Done::nothing(KvResult::Floats(asked.iter().map(score).collect::<Result<_, _>>()?))
            }
            SortedOp::Len => Done::nothing(integer(set.map_or(0, |set| set.len()))),
            SortedOp::Count(range) => {
                let ranks = set.map(|set| ranks(&set, range, false)).transpose()?.unwrap_or(0..0);
                Done::nothing(integer(ranks.end - ranks.start))
            }
            SortedOp::Rank { member, reverse } => {
                check_member(member)?;
                let Some(set) = set else { return Done::nothing(KvResult::Rank(None)) };
                let Some(score) = set.score(member)? else { return Done::nothing(KvResult::Rank(None)) };
                let rank = set.rank(score, member)?;
                let rank = if *reverse { set.len() - 1 - rank } else { rank };
                Done::nothing(KvResult::Rank(Some((rank, score))))
            }
            SortedOp::Range { range, reverse, skip, limit, into } => {
                let scored = match &set {
                    Some(set) => scored_in(set, range, *reverse, *skip, *limit)?,
                    None => Vec::new(),
                };
                match into {
                    None => Done::nothing(KvResult::Scored(scored)),
                    Some(into) => self.store_scored(into, scored),
                }
            }
            SortedOp::RemoveRange(range) => {
                let Some(set) = set else { return Done::nothing(integer(0)) };
                let removed = scored_in(&set, range, false, 0, None)?;
                let count = removed.len() as u64;
                let removed = removed.into_iter().map(|(member, _)| member);
                Done::new(self.remove_scored(key, &set, removed), integer(count))
            }
            SortedOp::Pop { max, count } => {
                check_count("count", *count)?;
                let Some(set) = set else { return Done::nothing(KvResult::Scored(Vec::new())) };
                let upto = i64::try_from(*count).unwrap_or(i64::MAX) - 1;
                let popped = if *count == 0 {
                    Vec::new()
                } else {
                    scored_in(&set, &SortedRange::Rank(0, upto), *max, 0, None)?
                };
                let members: Vec<_> = popped.iter().map(|(member, _)| member.clone()).collect();
                Done::new(self.remove_scored(key, &set, members.into_iter()), KvResult::Scored(popped))
            }
            SortedOp::Random(count) => {
                check_count("count", count.unsigned_abs())?;
                let Some(set) = set else { return Done::nothing(KvResult::Scored(Vec::new())) };
                let mut drawn = Vec::new();
                for place in self.chance.borrow_mut().places(*count, set.len()) {
                    drawn.extend(
                        set.at(place)?
                            .map(|(member, score)| (Bytes::copy_from_slice(member), read_score(score))),
                    );
                }
                Done::nothing(KvResult::Scored(drawn))
            }
            SortedOp::Scan(page) => scan(set.as_ref(), page),
            SortedOp::Combine { .. } => Err(Reject::Internal("sorted sets that are put together twice")),
        }
    }

    fn add_scored(
        &self,
        key: &Bytes,
        set: Option<Members<'_>>,
        added: &[(Real, Bytes)],
        only: AddIf,
        count_changed: bool,
    ) -> Answer {
        items("members", added.len())?;
        check_only(only)?;
        let mut facts = Facts::new();
        if set.is_none() {
            self.begin(key, &mut facts);
        }
        let before_any = facts.len();
        let (mut named, mut new, mut changed) = (BTreeMap::new(), 0, 0);
        for (score, member) in added {
            check_member(member)?;
            let before = match named.get(member) {
                Some(score) => Some(*score),
                None => set.as_ref().map(|set| set.score(member)).transpose()?.flatten(),
            };
            if !takes(only, before, *score) {
                continue;
            }
            match before {
                None => new += 1,
                Some(before) if before != *score => changed += 1,
                Some(_) => continue,
            }
            named.insert(member, *score);
            let (key, member) = (key.clone(), member.clone());
            facts.push(self.fact(KvFact::ScoreSet { key, member, score: *score }));
        }
        if facts.len() == before_any {
            return Done::nothing(integer(0));
        }
        if set.is_none() {
            self.end_of_new(key, &mut facts);
        }
        Done::new(facts, integer(if count_changed { new + changed } else { new }))
    }

    fn increment(
        &self,
        key: &Bytes,
        set: Option<Members<'_>>,
        member: &Bytes,
        by: Real,
        only: AddIf,
    ) -> Answer {
        check_member(member)?;
        check_only(only)?;
        let before = set.as_ref().map(|set| set.score(member)).transpose()?.flatten();
        let sum = before.map_or(0.0, Real::get) + by.get();
        let after = match Real::new(sum) {
            // Infinite scores may be added to; what would be no number may not.
            Some(after) => after,
            None => add_real("the score", before.unwrap_or_default(), by)?,
        };
        if !takes(only, before, after) {
            return Done::nothing(KvResult::MaybeFloat(None));
        }
        let result = KvResult::MaybeFloat(Some(after));
        if before == Some(after) {
            return Done::nothing(result);
        }
        let mut facts = Facts::new();
        if set.is_none() {
            self.begin(key, &mut facts);
        }
        let fact = KvFact::ScoreSet { key: key.clone(), member: member.clone(), score: after };
        facts.push(self.fact(fact));
        if set.is_none() {
            self.end_of_new(key, &mut facts);
        }
        Done::new(facts, result)
    }

    /// Takes members away that are there, each once; without any left the set goes.
    fn remove_scored(&self, key: &Bytes, set: &Members<'_>, removed: impl Iterator<Item = Bytes>) -> Facts {
        let mut facts: Facts =
            removed.map(|member| self.fact(KvFact::ScoreRemoved { key: key.clone(), member })).collect();
        if !facts.is_empty() && facts.len() as u64 == set.len() {
            facts.push(self.deleted(key));
        }
        facts
    }

    /// Replaces whatever a key holds by a sorted set. The result is how many members it has.
    pub(super) fn store_scored(&self, into: &Bytes, scored: Vec<(Bytes, Real)>) -> Answer {
        let count = scored.len() as u64;
        let fact = |(member, score)| KvFact::ScoreSet { key: into.clone(), member, score };
        Done::new(self.store_members(into, scored.into_iter().map(fact)), integer(count))
    }
}

fn check_only(only: AddIf) -> Result<(), Reject> {
    let AddIf { absent, present, greater, less } = only;
    if (absent && (present || greater || less)) || (greater && less) {
        let rule = "only one of absent, greater and less, and absent without present";
        return Err(Reject::invalid("only", rule));
    }
    Ok(())
}

fn takes(only: AddIf, before: Option<Real>, after: Real) -> bool {
    match before {
        None => !only.present,
        Some(before) => !only.absent && (!only.greater || after > before) && (!only.less || after < before),
    }
}

/// The ranks of a range, counted from the smallest.
fn ranks(set: &Members<'_>, range: &SortedRange, reverse: bool) -> Result<Range<u64>, Reject> {
    let len = set.len();
    let (start, end) = match range {
        SortedRange::Rank(from, to) => {
            let ranks = part(*from, *to, len);
            return Ok(if reverse { len - ranks.end..len - ranks.start } else { ranks });
        }
        SortedRange::Score(min, max) => {
            let start = match min {
                Bound::Open => 0,
                Bound::Included(score) => set.below(&score.to_ordered())?,
                Bound::Excluded(score) => upto_score(set, *score)?,
            };
            let end = match max {
                Bound::Open => len,
                Bound::Included(score) => upto_score(set, *score)?,
                Bound::Excluded(score) => set.below(&score.to_ordered())?,
            };
            (start, end)
        }
        SortedRange::Lex(min, max) => {
            let mut first = set.order_from(0)?;
            let Some((key, _)) = first.forward()? else { return Ok(0..0) };
            let score = read_scored(key).0.to_ordered();
            let below = |member: &[u8]| set.below(&ordered(&score, member));
            let upto = |member: &[u8]| set.below(&[&score, member, &[0]].concat());
            let start = match min {
                Bound::Open => 0,
                Bound::Included(member) => below(member)?,
                Bound::Excluded(member) => upto(member)?,
            };
            let end = match max {
                Bound::Open => len,
                Bound::Included(member) => upto(member)?,
                Bound::Excluded(member) => below(member)?,
            };
            (start, end)
        }
    };
    Ok(start..end.max(start))
}

/// How many members have this score or a smaller one.
fn upto_score(set: &Members<'_>, score: Real) -> Result<u64, Reject> {
    match u64::from_be_bytes(score.to_ordered()).checked_add(1) {
        Some(next) => Ok(set.below(&next.to_be_bytes())?),
        None => Ok(set.len()),
    }
}

/// Members and scores of a range, in order.
fn scored_in(
    set: &Members<'_>,
    range: &SortedRange,
    reverse: bool,
    skip: u64,
    limit: Option<u64>,
) -> Result<Vec<(Bytes, Real)>, Reject> {
    let mut ranks = ranks(set, range, reverse)?;
    let skip = skip.min(ranks.end - ranks.start);
    let count = limit.unwrap_or(u64::MAX).min(ranks.end - ranks.start - skip);
    if reverse {
        ranks.end -= skip;
        ranks.start = ranks.end - count;
    } else {
        ranks.start += skip;
        ranks.end = ranks.start + count;
    }
    check_looked(count)?;
    let mut scored = Vec::with_capacity(count as usize);
    let mut bytes = 0;
    let mut cursor = set.order_from(if reverse { ranks.end } else { ranks.start })?;
    for _ in 0..count {
        let item = if reverse { cursor.backward()? } else { cursor.forward()? };
        let Some((key, _)) = item else { break };
        let (score, member) = read_scored(key);
        bytes += member.len();
        super::within_bytes("members of one range", bytes, ENTRY_BYTES_MAX)?;
        scored.push((Bytes::copy_from_slice(member), score));
    }
    Ok(scored)
}

fn scan(set: Option<&Members<'_>>, page: &PageOf) -> Answer {
    let (items, next) = match set {
        Some(set) => set.page(page, |score| Some(Bytes::copy_from_slice(score)))?,
        None => (Vec::new(), None),
    };
    let items = items.into_iter().map(|(member, score)| (member, read_score(&score))).collect();
    Done::nothing(KvResult::Page { items: Box::new(KvResult::Scored(items)), next })
}

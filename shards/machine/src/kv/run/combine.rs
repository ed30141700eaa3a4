//! Several sets at once: what is in all, in any, or only in the first.

use std::collections::BTreeMap;

use bytes::Bytes;
use flowmesh_model::Reject;
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::kv::{Aggregate, Combine, KvResult, KvType, Real};
use flowmesh_model::limits::BATCH_ITEMS_MAX;

use super::found::{Found, Members};
use super::{Answer, Done, Run, check_looked, integer, is_set};
use crate::kv::change::read_score;

/// What becomes of scores.
pub(super) struct Weighted<'a> {
    /// The first set's first; empty: 1 for each.
    pub weights: &'a [Real],
    pub aggregate: Aggregate,
}

impl Weighted<'_> {
    /// A score of the set with this place. What would be no number is 0, as in Redis.
    fn score(&self, place: usize, score: Real) -> Real {
        let weight = self.weights.get(place).copied().unwrap_or(Real::ONE);
        Real::new(score.get() * weight.get()).unwrap_or_default()
    }

    fn join(&self, a: Real, b: Real) -> Real {
        match self.aggregate {
            Aggregate::Sum => Real::new(a.get() + b.get()).unwrap_or_default(),
            Aggregate::Min => a.min(b),
            Aggregate::Max => a.max(b),
        }
    }
}

impl Run<'_> {
    pub(super) fn combine_sets(
        &self,
        key: &Bytes,
        how: Combine,
        others: &[Bytes],
        into: Option<&Bytes>,
        count_only: Option<u64>,
    ) -> Answer {
        let founds = self.sets(key, others)?;
        let sets = founds
            .iter()
            .map(|found| found.as_ref().map(|found| found.collection(KvType::Set)).transpose())
            .collect::<Result<Vec<_>, _>>()?;
        let plain = Weighted { weights: &[], aggregate: Aggregate::Max };
        let combined = combine(&sets, how, &plain, count_only.filter(|_| into.is_none()))?;
        let members = combined.into_keys();
        match (into, count_only) {
            (Some(into), _) => {
                let members: Vec<_> = members.collect();
                let count = members.len() as u64;
                let fact = |member| KvFact::MemberAdded { key: into.clone(), member };
                Done::new(self.store_members(into, members.into_iter().map(fact)), integer(count))
            }
            (None, Some(_)) => Done::nothing(integer(members.len() as u64)),
            (None, None) => Done::nothing(KvResult::Members(members.collect())),
        }
    }

    pub(super) fn combine_sorted(
        &self,
        key: &Bytes,
        how: Combine,
        others: &[Bytes],
        weighted: &Weighted<'_>,
        into: Option<&Bytes>,
        count_only: Option<u64>,
    ) -> Answer {
        if !weighted.weights.is_empty() && weighted.weights.len() != others.len() + 1 {
            return Err(Reject::invalid("weights", "needs one for each set, or none"));
        }
        let founds = self.sets(key, others)?;
        let set = |found: &Found<'_>| {
            let holds = found.value.holds();
            found.collection(if is_set(holds) { holds } else { KvType::SortedSet }).map(|_| ())
        };
        founds.iter().flatten().try_for_each(set)?;
        let sets = founds
            .iter()
            .map(|found| found.as_ref().map(|found| found.collection(found.value.holds())).transpose())
            .collect::<Result<Vec<_>, _>>()?;
        let combined = combine(&sets, how, weighted, count_only.filter(|_| into.is_none()))?;
        if into.is_none() && count_only.is_some() {
            return Done::nothing(integer(combined.len() as u64));
        }
        let mut scored: Vec<_> = combined.into_iter().collect();
        scored.sort_by(|(a, a_score), (b, b_score)| (a_score, a).cmp(&(b_score, b)));
        match into {
            Some(into) => self.store_scored(into, scored),
            None => Done::nothing(KvResult::Scored(scored)),
        }
    }

    fn sets(&self, key: &Bytes, others: &[Bytes]) -> Result<Vec<Option<Found<'_>>>, Reject> {
        if others.len() >= BATCH_ITEMS_MAX {
            return Err(Reject::TooLarge {
                what: "others",
                size: others.len() as u64,
                max: BATCH_ITEMS_MAX as u64,
            });
        }
        Ok(std::iter::once(key).chain(others).map(|key| self.find(key)).collect())
    }
}

fn combine(
    sets: &[Option<Members<'_>>],
    how: Combine,
    weighted: &Weighted<'_>,
    count_only: Option<u64>,
) -> Result<BTreeMap<Bytes, Real>, Reject> {
    let most = count_only.filter(|&most| most > 0).unwrap_or(u64::MAX);
    let mut out = BTreeMap::new();
    match how {
        Combine::Union => {
            check_looked(sets.iter().flatten().map(Members::len).sum())?;
            for (place, set) in sets.iter().enumerate() {
                let Some(set) = set else { continue };
                each(set, |member, score| {
                    let score = weighted.score(place, score);
                    match out.get_mut(member) {
                        Some(before) => *before = weighted.join(*before, score),
                        None => drop(out.insert(Bytes::copy_from_slice(member), score)),
                    }
                    Ok((out.len() as u64) < most)
                })?;
                if out.len() as u64 >= most {
                    break;
                }
            }
        }
        Combine::Intersection => {
            // One that is not there has nothing in common with any.
            let all: Option<Vec<&Members<'_>>> = sets.iter().map(Option::as_ref).collect();
            let Some(all) = all else { return Ok(out) };
            let Some((at, smallest)) = all.iter().enumerate().min_by_key(|(_, set)| set.len()) else {
                return Ok(out);
            };
            check_looked(smallest.len())?;
            each(smallest, |member, score| {
                let mut joined: Option<Real> = None;
                for (place, set) in all.iter().enumerate() {
                    let score = if place == at { Some(score) } else { set.score(member)? };
                    let Some(score) = score else { return Ok(true) };
                    let score = weighted.score(place, score);
                    joined = Some(joined.map_or(score, |before| weighted.join(before, score)));
                }
                out.insert(Bytes::copy_from_slice(member), joined.unwrap_or_default());
                Ok((out.len() as u64) < most)
            })?;
        }
        Combine::Difference => {
            let Some((Some(first), others)) = sets.split_first() else { return Ok(out) };
            check_looked(first.len())?;
            each(first, |member, score| {
                for other in others.iter().flatten() {
                    if other.has(member)? {
                        return Ok(true);
                    }
                }
                out.insert(Bytes::copy_from_slice(member), score);
                Ok((out.len() as u64) < most)
            })?;
        }
    }
    Ok(out)
}

/// Calls `see` with members and scores, 1 of a set's, until it returns false.
fn each(set: &Members<'_>, mut see: impl FnMut(&[u8], Real) -> Result<bool, Reject>) -> Result<(), Reject> {
    let is_set = set.holds() == KvType::Set;
    let mut cursor = set.items_from(0)?;
    while let Some((member, item)) = cursor.forward()? {
        if !see(member, if is_set { Real::ONE } else { read_score(item) })? {
            break;
        }
    }
    Ok(())
}

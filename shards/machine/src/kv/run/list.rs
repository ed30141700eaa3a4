//! Operations on lists.

use bytes::Bytes;
use flowmesh_model::Reject;
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::kv::{KvResult, KvType, ListOp, Side};

use super::found::{Found, Members, members};
use super::{
    Answer, Done, Facts, Run, check_count, check_looked, check_value, integer, items, part, within_bytes,
};
use flowmesh_model::limits::{KV_LOOKED_MAX, REPLY_BYTES_MAX};

impl Run<'_> {
    pub(super) fn list_op(&self, key: &Bytes, found: Option<Found<'_>>, op: &ListOp) -> Answer {
        let list = members(found.as_ref(), KvType::List)?;
        let len = list.map_or(0, |list| list.len());
        match op {
            ListOp::Push { side, values, if_present } => {
                items("values", values.len())?;
                values.iter().try_for_each(|value| check_value(value))?;
                if *if_present && list.is_none() {
                    return Done::nothing(integer(0));
                }
                let facts = self.pushed(key, list.is_none(), *side, values);
                Done::new(facts, integer(len + values.len() as u64))
            }
            ListOp::Pop(side, count) => {
                check_count("count", *count)?;
                let Some(list) = list else { return Done::nothing(KvResult::Members(Vec::new())) };
                let count = (*count).min(len);
                let from = if *side == Side::Front { 0 } else { len - count };
                let mut popped = values_in(&list, from..from + count)?;
                if *side == Side::Back {
                    popped.reverse();
                }
                Done::new(self.removed(key, len, &[(from, count)]), KvResult::Members(popped))
            }
            ListOp::Len => Done::nothing(integer(len)),
            ListOp::At(index) => {
                let value = match (list, place(*index, len)) {
                    (Some(list), Some(at)) => list.at(at)?.map(|(_, value)| Bytes::copy_from_slice(value)),
                    _ => None,
                };
                Done::nothing(KvResult::Value(value))
            }
            ListOp::SetAt(index, value) => {
                check_value(value)?;
                if list.is_none() {
                    return Err(Reject::NoSuchKey);
                }
                let refused = Reject::IndexOutOfRange { index: *index, len };
                let index = place(*index, len).ok_or(refused)?;
                let fact = KvFact::ItemSet { key: key.clone(), index, value: value.clone() };
                Done::new([self.fact(fact)].into_iter().collect(), KvResult::Done)
            }
            ListOp::Insert { before, pivot, value } => {
                check_value(value)?;
                let Some(list) = list else { return Done::nothing(integer(0)) };
                let Some(at) = positions(&list, pivot, 1, 1, 0)?.first().copied() else {
                    return Done::nothing(KvResult::Integer(-1));
                };
                let index = if *before { at } else { at + 1 };
                let fact = KvFact::ItemInserted { key: key.clone(), index, value: value.clone() };
                Done::new([self.fact(fact)].into_iter().collect(), integer(len + 1))
            }
            ListOp::Remove(value, count) => {
                let Some(list) = list else { return Done::nothing(integer(0)) };
                let rank = if *count < 0 { -1 } else { 1 };
                let mut found = positions(&list, value, rank, count.unsigned_abs(), 0)?;
                found.sort_unstable();
                let runs = runs(&found);
                Done::new(self.removed(key, len, &runs), integer(found.len() as u64))
            }
            ListOp::Trim(from, to) => {
                let keep = part(*from, *to, len);
                let cut = if keep.is_empty() {
                    vec![(0, len)]
                } else {
                    vec![(0, keep.start), (keep.end, len - keep.end)]
                };
                Done::new(self.removed(key, len, &cut), KvResult::Done)
            }
            ListOp::Range(from, to) => {
                let values = list.map(|list| values_in(&list, part(*from, *to, len))).transpose()?;
                Done::nothing(KvResult::Members(values.unwrap_or_default()))
            }
            ListOp::Find { value, rank, count, look_at } => {
                if *rank == 0 || *rank == i64::MIN {
                    let rule = "is 1 for the first that equals the value, -1 for the last, and so on; not 0";
                    return Err(Reject::invalid("rank", rule));
                }
                let found = match &list {
                    Some(list) => positions(list, value, *rank, *count, *look_at)?,
                    None => Vec::new(),
                };
                Done::nothing(KvResult::Integers(
                    found.into_iter().map(|at| i64::try_from(at).ok()).collect(),
                ))
            }
            ListOp::Move { to, from, at } => self.move_value(key, list, to, *from, *at),
        }
    }

    fn move_value(&self, key: &Bytes, list: Option<Members<'_>>, to: &Bytes, from: Side, at: Side) -> Answer {
        let Some(list) = list else { return Done::nothing(KvResult::Value(None)) };
        let other = self.find(to);
        let target = members(other.as_ref(), KvType::List)?;
        let index = if from == Side::Front { 0 } else { list.len() - 1 };
        let Some((_, value)) = list.at(index)? else { return Done::nothing(KvResult::Value(None)) };
        let value = Bytes::copy_from_slice(value);
        let mut facts = Facts::new();
        if key == to {
            // It never has no values in between.
            if from != at && list.len() > 1 {
                facts.push(self.fact(KvFact::ItemsRemoved { key: key.clone(), index, count: 1 }));
                facts.extend(self.pushed(to, false, at, std::slice::from_ref(&value)));
            }
        } else {
            facts.extend(self.removed(key, list.len(), &[(index, 1)]));
            facts.extend(self.pushed(to, target.is_none(), at, std::slice::from_ref(&value)));
        }
        Done::new(facts, KvResult::Value(Some(value)))
    }

    fn pushed(&self, key: &Bytes, is_new: bool, side: Side, values: &[Bytes]) -> Facts {
        let mut facts = Facts::new();
        if is_new {
            self.begin(key, &mut facts);
        }
        let fact = |value: &Bytes| self.fact(KvFact::Pushed { key: key.clone(), side, value: value.clone() });
        facts.extend(values.iter().map(fact));
        if is_new {
            self.end_of_new(key, &mut facts);
        }
        facts
    }

    /// Takes runs of values away, given in order as index and count; without any left the list goes.
    fn removed(&self, key: &Bytes, len: u64, runs: &[(u64, u64)]) -> Facts {
        // From the back, so that indexes stay what they are.
        let mut facts: Facts = runs
            .iter()
            .rev()
            .filter(|(_, count)| *count > 0)
            .map(|&(index, count)| self.fact(KvFact::ItemsRemoved { key: key.clone(), index, count }))
            .collect();
        if len > 0 && runs.iter().map(|(_, count)| count).sum::<u64>() == len {
            facts.push(self.deleted(key));
        }
        facts
    }
}

/// Where an index points, if there.
fn place(index: i64, len: u64) -> Option<u64> {
    let at = if index < 0 { i128::from(len) + i128::from(index) } else { i128::from(index) };
    u64::try_from(at).ok().filter(|&at| at < len)
}

fn values_in(list: &Members<'_>, range: std::ops::Range<u64>) -> Result<Vec<Bytes>, Reject> {
    check_looked(range.end - range.start)?;
    let mut cursor = list.items_from(range.start)?;
    let (mut values, mut bytes) = (Vec::new(), 0);
    for _ in range {
        let Some((_, value)) = cursor.forward()? else { break };
        bytes += value.len();
        within_bytes("values of one reply", bytes, REPLY_BYTES_MAX)?;
        values.push(Bytes::copy_from_slice(value));
    }
    Ok(values)
}

/// Where values are that equal this one, in the order they are found; from the back if `rank` is below zero.
fn positions(
    list: &Members<'_>,
    wanted: &[u8],
    rank: i64,
    count: u64,
    look_at: u64,
) -> Result<Vec<u64>, Reject> {
    let backward = rank < 0;
    let mut to_skip = rank.unsigned_abs() - 1;
    let most = if count == 0 { u64::MAX } else { count };
    let look_at = if look_at == 0 { list.len() } else { look_at.min(list.len()) };
    let mut cursor = list.items_from(if backward { list.len() } else { 0 })?;
    let mut found = Vec::new();
    for looked in 0..look_at {
        if looked == KV_LOOKED_MAX {
            check_looked(look_at)?;
        }
        let at = if backward { cursor.rank() - 1 } else { cursor.rank() };
        let item = if backward { cursor.backward()? } else { cursor.forward()? };
        let Some((_, value)) = item else { break };
        if value != wanted {
            continue;
        }
        if to_skip > 0 {
            to_skip -= 1;
            continue;
        }
        found.push(at);
        if found.len() as u64 >= most {
            break;
        }
    }
    Ok(found)
}

/// Neighbours among places in order, as place and count.
fn runs(places: &[u64]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &place in places {
        match runs.last_mut() {
            Some((start, count)) if *start + *count == place => *count += 1,
            _ => runs.push((place, 1)),
        }
    }
    runs
}

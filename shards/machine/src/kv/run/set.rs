//! Operations on sets.

use std::collections::BTreeSet;

use bytes::Bytes;
use flowmesh_model::Reject;
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::kv::{KvResult, KvType, SetOp};

use super::found::{Found, Members, members};
use super::{
    Answer, Done, Facts, Run, check_count, check_looked, check_member, check_members, flag, integer,
};

impl Run<'_> {
    pub(super) fn set_op(&self, key: &Bytes, found: Option<Found<'_>>, op: &SetOp) -> Answer {
        if let SetOp::Combine { how, others, into, count_only } = op {
            return self.combine_sets(key, *how, others, into.as_ref(), *count_only);
        }
        let set = members(found.as_ref(), KvType::Set)?;
        match op {
            SetOp::Add(added) => {
                check_members("members", added)?;
                let facts = self.add_members(key, set.as_ref(), added)?;
                let new = facts.iter().filter(|fact| is_added(fact)).count();
                Done::new(facts, integer(new as u64))
            }
            SetOp::Remove(removed) => {
                check_members("members", removed)?;
                let Some(set) = set else { return Done::nothing(integer(0)) };
                let mut there = BTreeSet::new();
                for member in removed {
                    if set.has(member)? {
                        there.insert(member.clone());
                    }
                }
                let count = there.len() as u64;
                Done::new(self.remove_members(key, &set, there), integer(count))
            }
            SetOp::Contains(asked) => {
                check_members("members", asked)?;
                let has = |member: &Bytes| match &set {
                    Some(set) => set.has(member),
                    None => Ok(false),
                };
                Done::nothing(KvResult::Flags(asked.iter().map(has).collect::<Result<_, _>>()?))
            }
            SetOp::Len => Done::nothing(integer(set.map_or(0, |set| set.len()))),
            SetOp::All => Done::nothing(KvResult::Members(
                set.as_ref().map(all_members).transpose()?.unwrap_or_default(),
            )),
            SetOp::Scan(page) => {
                let (items, next) = match &set {
                    Some(set) => set.page(page, |_| Some(Bytes::new()))?,
                    None => (Vec::new(), None),
                };
                let items = items.into_iter().map(|(member, _)| member).collect();
                Done::nothing(KvResult::Page { items: Box::new(KvResult::Members(items)), next })
            }
            SetOp::Pop(count) => {
                check_count("count", *count)?;
                let Some(set) = set else { return Done::nothing(KvResult::Members(Vec::new())) };
                let places = self.chance.borrow_mut().different(*count, set.len());
                let popped = members_at(&set, &places)?;
                let facts = self.remove_members(key, &set, popped.iter().cloned().collect());
                Done::new(facts, KvResult::Members(popped))
            }
            SetOp::Random(count) => {
                check_count("count", count.unsigned_abs())?;
                let Some(set) = set else { return Done::nothing(KvResult::Members(Vec::new())) };
                let places = self.chance.borrow_mut().places(*count, set.len());
                Done::nothing(KvResult::Members(members_at(&set, &places)?))
            }
            SetOp::Move { to, member } => {
                check_member(member)?;
                let Some(set) = set else { return Done::nothing(flag(false)) };
                let other = self.find(to);
                let target = members(other.as_ref(), KvType::Set)?;
                if !set.has(member)? {
                    return Done::nothing(flag(false));
                }
                if key == to {
                    return Done::nothing(flag(true));
                }
                let mut facts = self.remove_members(key, &set, [member.clone()].into());
                facts.extend(self.add_members(to, target.as_ref(), std::slice::from_ref(member))?);
                Done::new(facts, flag(true))
            }
            SetOp::Combine { .. } => Err(Reject::Internal("sets that are put together twice")),
        }
    }

    /// Adds those that are not there.
    fn add_members(&self, key: &Bytes, set: Option<&Members<'_>>, added: &[Bytes]) -> Result<Facts, Reject> {
        let (mut facts, mut named) = (Facts::new(), BTreeSet::new());
        if set.is_none() {
            self.begin(key, &mut facts);
        }
        for member in added {
            let there = set.map(|set| set.has(member)).transpose()?.unwrap_or_default();
            if !there && (added.len() == 1 || named.insert(member)) {
                facts.push(self.fact(KvFact::MemberAdded { key: key.clone(), member: member.clone() }));
            }
        }
        if set.is_none() {
            self.end_of_new(key, &mut facts);
        }
        Ok(facts)
    }

    /// Takes members away that are there; without any left the set goes.
    fn remove_members(&self, key: &Bytes, set: &Members<'_>, removed: BTreeSet<Bytes>) -> Facts {
        let all = removed.len() as u64 == set.len();
        let mut facts: Facts = removed
            .into_iter()
            .map(|member| self.fact(KvFact::MemberRemoved { key: key.clone(), member }))
            .collect();
        if all {
            facts.push(self.deleted(key));
        }
        facts
    }
}

fn is_added(fact: &flowmesh_model::Fact) -> bool {
    matches!(fact, flowmesh_model::Fact::Kv(_, KvFact::MemberAdded { .. }))
}

fn members_at(set: &Members<'_>, places: &[u64]) -> Result<Vec<Bytes>, Reject> {
    let mut found = Vec::with_capacity(places.len());
    for &place in places {
        found.extend(set.at(place)?.map(|(member, _)| Bytes::copy_from_slice(member)));
    }
    Ok(found)
}

fn all_members(set: &Members<'_>) -> Result<Vec<Bytes>, Reject> {
    check_looked(set.len())?;
    let mut cursor = set.items_from(0)?;
    let mut all = Vec::with_capacity(set.len() as usize);
    while let Some((member, _)) = cursor.forward()? {
        all.push(Bytes::copy_from_slice(member));
    }
    Ok(all)
}

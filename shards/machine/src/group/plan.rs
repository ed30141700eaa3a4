//! What a change of members or streams means for everybody: which streams are shared, whose each partition shall be.

use std::collections::{BTreeMap, BTreeSet};

use flowmesh_model::group::PartitionRange;
use flowmesh_model::group::fact::{GroupFact, Move};
use flowmesh_model::settings::Assignor;
use flowmesh_model::{GroupEpoch, MemberNumber, PartitionRef, ResourceId};

use super::assign::{Deal, assign};
use super::{Group, NOBODY};

/// A member's subscription as it is about to be.
pub(super) struct Subscription<'a> {
    pub member: MemberNumber,
    /// Before: what it subscribed to; nothing if it is new.
    pub before: &'a [ResourceId],
    /// The streams with their numbers of partitions, in order.
    pub after: &'a [(ResourceId, u32)],
    /// What decides its place among the members.
    pub name: &'a str,
}

/// What is about to change for everybody.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub facts: Vec<GroupFact>,
    /// The group's epoch then.
    pub epoch: GroupEpoch,
    /// Partitions that are meant for another member then; what is no longer shared is not among them.
    pub moves: BTreeMap<PartitionRef, MemberNumber>,
    /// Streams that nobody shares any more then.
    pub unwatched: BTreeSet<ResourceId>,
}

impl Plan {
    /// No change.
    pub fn none(group: &Group) -> Self {
        Self { epoch: group.epoch, ..Self::default() }
    }
}

impl Group {
    /// What follows from the members, streams and numbers of partitions as the group has them, with one member's
    /// subscription changed, if that is given. The group's epoch grows if anything moves.
    pub(super) fn plan(&self, assignor: Assignor, changed: Option<&Subscription<'_>>) -> Plan {
        let mut plan = Plan::none(self);
        let streams = self.streams_after(changed, &mut plan);
        let order = self.order_after(changed);
        let subscribers = self.subscribers_after(changed, &order);
        let deals: Vec<Deal> = streams
            .iter()
            .map(|(stream, partitions)| {
                let current = (0..*partitions).map(|partition| {
                    let place = self.places.get(&PartitionRef { resource: *stream, partition })?;
                    order.get(&place.target).copied()
                });
                let subscribers = subscribers.get(stream).cloned().unwrap_or_default();
                Deal { subscribers, current: current.collect() }
            })
            .collect();
        let numbers: BTreeMap<u32, MemberNumber> =
            order.iter().map(|(number, rank)| (*rank, *number)).collect();
        for ((stream, _), to) in streams.iter().zip(assign(assignor, order.len(), &deals)) {
            for (partition, to) in (0..).zip(to) {
                let at = PartitionRef { resource: *stream, partition };
                let to = to.and_then(|rank| numbers.get(&rank).copied()).unwrap_or(NOBODY);
                if self.places.get(&at).map_or(NOBODY, |place| place.target) != to {
                    plan.moves.insert(at, to);
                }
            }
        }
        if !plan.moves.is_empty() || !plan.facts.is_empty() || plan.epoch == GroupEpoch(0) {
            plan.epoch = GroupEpoch(self.epoch.0 + 1);
            plan.facts.push(GroupFact::Assigned(plan.epoch, moves(&plan.moves)));
        }
        plan
    }

    /// Shared streams with their numbers of partitions, and the facts about those that are so from now on or no longer.
    fn streams_after(
        &self,
        changed: Option<&Subscription<'_>>,
        plan: &mut Plan,
    ) -> BTreeMap<ResourceId, u32> {
        let mut streams = BTreeMap::new();
        for (stream, watched) in &self.watched {
            let leaves = changed.is_some_and(|changed| {
                changed.before.contains(stream) && !changed.after.iter().any(|(other, _)| other == stream)
            });
            let joins = changed.is_some_and(|changed| {
                !changed.before.contains(stream) && changed.after.iter().any(|(other, _)| other == stream)
            });
            if watched.subscribers + u32::from(joins) == u32::from(leaves) {
                plan.unwatched.insert(*stream);
                plan.facts.push(GroupFact::StreamWatched(*stream, 0));
            } else {
                streams.insert(*stream, watched.partitions);
            }
        }
        for (stream, partitions) in changed.into_iter().flat_map(|changed| changed.after) {
            if streams.get(stream).is_none_or(|known| known < partitions) {
                streams.insert(*stream, *partitions);
                plan.facts.push(GroupFact::StreamWatched(*stream, *partitions));
            }
        }
        streams
    }

    /// Every member's rank: by the name of its instance, which a restart does not change, or else its id.
    fn order_after(&self, changed: Option<&Subscription<'_>>) -> BTreeMap<MemberNumber, u32> {
        let names = self.members.iter().map(|(number, member)| {
            let name: &str = member.instance.as_deref().unwrap_or(&member.id);
            (name, *number)
        });
        let new = changed.filter(|changed| !self.members.contains_key(&changed.member));
        let mut names: Vec<(&str, MemberNumber)> =
            names.chain(new.map(|changed| (changed.name, changed.member))).collect();
        names.sort_unstable();
        (0..).zip(names).map(|(rank, (_, number))| (number, rank)).collect()
    }

    /// Who subscribes to a stream, by rank.
    fn subscribers_after(
        &self,
        changed: Option<&Subscription<'_>>,
        order: &BTreeMap<MemberNumber, u32>,
    ) -> BTreeMap<ResourceId, Vec<u32>> {
        let mut subscribers: BTreeMap<ResourceId, Vec<u32>> = BTreeMap::new();
        for (number, rank) in order {
            let changed = changed.filter(|changed| changed.member == *number);
            let unchanged = self.member(*number).filter(|_| changed.is_none());
            let after = changed.into_iter().flat_map(|changed| changed.after).map(|(stream, _)| stream);
            for stream in after.chain(unchanged.into_iter().flat_map(|member| &member.subscribed)) {
                subscribers.entry(*stream).or_default().push(*rank);
            }
        }
        for ranks in subscribers.values_mut() {
            ranks.sort_unstable();
        }
        subscribers
    }
}

/// Moves in as few ranges as possible.
fn moves(moves: &BTreeMap<PartitionRef, MemberNumber>) -> Vec<Move> {
    let mut out: Vec<Move> = Vec::new();
    for (at, to) in moves {
        match out.last_mut() {
            Some(Move { partitions: last, to: last_to })
                if last_to == to && last.stream == at.resource && last.first + last.count == at.partition =>
            {
                last.count += 1;
            }
            _ => {
                let partitions = PartitionRange { stream: at.resource, first: at.partition, count: 1 };
                out.push(Move { partitions, to: *to });
            }
        }
    }
    out
}

//! What can be asked of a group, besides heartbeats: leaving, offsets.

use std::collections::BTreeSet;

use flowmesh_model::group::fact::{GroupFact, LeaveCause};
use flowmesh_model::group::{
    Committed, GroupReply, MemberName, MemberRef, Name, NewOffset, PartitionRange, ranges,
};
use flowmesh_model::limits::{
    BATCH_ITEMS_MAX, GROUP_METADATA_BYTES_MAX, GROUP_PARTITIONS_MAX, OFFSET_METADATA_BYTES_MAX,
};
use flowmesh_model::{
    Batch, Catalog, Fact, GroupCommand, GroupEpoch, GroupSettings, Lsn, MemberNumber, Millis, Offset,
    PartitionRef, Reject, Reply, ResourceId,
};
use smallvec::smallvec;

use super::place::Place;
use super::{Group, NOBODY};
use crate::decision::Decision;
use crate::limit::{items, size};

/// The group, its number, its settings, the streams there are, the time it is, and the entry that would come.
pub(crate) struct Asked<'a> {
    pub group: &'a Group,
    pub id: ResourceId,
    pub settings: &'a GroupSettings,
    pub catalog: Option<&'a Catalog>,
    pub now: Millis,
    pub lsn: Lsn,
}

/// Who commits: a member in an epoch, or nobody of the group.
type Speaker = Option<(MemberNumber, GroupEpoch)>;

/// What a batch of commits has come to so far.
struct Tally {
    places: usize,
    metadata_bytes: usize,
    new_places: BTreeSet<PartitionRef>,
}

impl Asked<'_> {
    pub fn decide(&self, command: &GroupCommand) -> Result<Decision, Reject> {
        match command {
            GroupCommand::Heartbeat(heartbeat) => self.heartbeat(heartbeat),
            GroupCommand::Leave { member, keep_place } => self.leave(member, *keep_place),
            GroupCommand::Remove { member } => self.remove(member),
            GroupCommand::Commit { member, offsets } => self.commit(member.as_ref(), offsets),
            GroupCommand::FetchOffsets { member, of } => self.fetch(member.as_ref(), of.as_deref()),
            GroupCommand::ForgetOffsets { of } => self.forget(of),
            GroupCommand::Status => Ok(self.answer(GroupReply::Status(self.group.status()))),
            GroupCommand::Describe => {
                Ok(self.answer(GroupReply::Description(self.group.describe(self.settings, self.now))))
            }
        }
    }

    /// The entry that changed the group last.
    pub fn seen(&self) -> Lsn {
        self.group.last_lsn
    }

    fn answer(&self, reply: GroupReply) -> Decision {
        Decision::Answer { reply: Reply::Group(Box::new(reply)), seen: self.group.last_lsn }
    }

    fn change(&self, fact: GroupFact, reply: GroupReply) -> Decision {
        let facts: Batch<Fact> = smallvec![Fact::Group(self.id, fact)];
        Decision::Change { facts, reply: Reply::Group(Box::new(reply)) }
    }

    /// What a leave means for the others is for the next tick, so that many that leave at once move things once.
    fn leave(&self, who: &MemberRef, keep_place: bool) -> Result<Decision, Reject> {
        let (number, member) = self.speaker(who)?;
        if !keep_place {
            return Ok(self.change(GroupFact::MemberLeft(number, LeaveCause::Left), GroupReply::Left));
        }
        if member.instance.is_none() {
            return Err(Reject::invalid("keep_place", "is for members with an instance_id"));
        }
        member.heard.set(Some(self.now));
        Ok(self.change(GroupFact::MemberAway(number), GroupReply::Left))
    }

    fn remove(&self, which: &MemberName) -> Result<Decision, Reject> {
        let (numbers, name): (_, &Name) = match which {
            MemberName::Id(id) => (&self.group.by_id, id),
            MemberName::Instance(instance) => (&self.group.by_instance, instance),
        };
        let number = numbers.get(name).copied();
        let found = number.and_then(|number| Some((number, self.group.member(number)?)));
        let (number, member) = found.ok_or_else(|| Reject::UnknownMember { member: name.to_string() })?;
        let reply = GroupReply::Removed { member: member.id.clone() };
        Ok(self.change(GroupFact::MemberLeft(number, LeaveCause::Removed), reply))
    }

    pub fn commit(&self, who: Option<&MemberRef>, offsets: &[NewOffset]) -> Result<Decision, Reject> {
        items("offsets", offsets.len())?;
        let speaker = who.map(|who| self.fenced(who).map(|(number, _)| (number, who.epoch))).transpose()?;
        let mut tally = Tally {
            places: self.group.places.len(),
            metadata_bytes: self.group.metadata_bytes,
            new_places: BTreeSet::new(),
        };
        let outcomes: Batch<Result<Committed, Reject>> =
            offsets.iter().map(|new| self.commit_one(speaker, new, &mut tally)).collect();
        let good = offsets.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok());
        let good: Vec<NewOffset> = good.map(|(new, _)| new.clone()).collect();
        let reply = GroupReply::Committed(outcomes);
        if good.is_empty() {
            return Ok(self.answer(reply));
        }
        Ok(self.change(GroupFact::OffsetsCommitted(good), reply))
    }

    fn commit_one(&self, speaker: Speaker, new: &NewOffset, tally: &mut Tally) -> Result<Committed, Reject> {
        size("metadata", &new.metadata, OFFSET_METADATA_BYTES_MAX)?;
        let place = self.group.places.get(&new.at);
        match speaker {
            Some((number, epoch)) => {
                if !place.is_some_and(|place| place.owner == number && place.since <= epoch) {
                    return Err(Reject::PartitionNotOwned { partition: new.at.partition });
                }
            }
            None => self.check_unused(new.at)?,
        }
        let places = tally.places + usize::from(place.is_none() && !tally.new_places.contains(&new.at));
        if places > GROUP_PARTITIONS_MAX && places > tally.places {
            let (size, max) = (places as u64, GROUP_PARTITIONS_MAX as u64);
            return Err(Reject::TooLarge { what: "partitions of the group", size, max });
        }
        let before = place.map_or(0, Place::metadata_bytes);
        // What a second commit of the same partition in one batch replaces is not taken off: counting too much is safe.
        let metadata_bytes = tally.metadata_bytes.saturating_sub(before) + new.metadata.len();
        if metadata_bytes > GROUP_METADATA_BYTES_MAX && new.metadata.len() > before {
            let (size, max) = (metadata_bytes as u64, GROUP_METADATA_BYTES_MAX as u64);
            return Err(Reject::TooLarge { what: "metadata of the group", size, max });
        }
        if place.is_none() {
            tally.new_places.insert(new.at);
        }
        (tally.places, tally.metadata_bytes) = (places, metadata_bytes);
        let previous = place.and_then(|place| place.committed.as_ref()).map(|committed| committed.offset);
        Ok(Committed { previous })
    }

    /// Whether somebody who is no member may change what is committed: not while members share the stream.
    fn check_unused(&self, at: PartitionRef) -> Result<(), Reject> {
        let partitions = self.partitions_of(at.resource)?;
        if at.partition >= partitions {
            return Err(Reject::NoSuchPartition { partition: at.partition, partitions });
        }
        self.check_not_in_use(at)
    }

    fn check_not_in_use(&self, at: PartitionRef) -> Result<(), Reject> {
        let shared = self.group.watched.get(&at.resource).is_some_and(|watched| watched.subscribers > 0);
        let owned = self.group.places.get(&at).is_some_and(|place| place.owner != NOBODY);
        if shared || owned {
            return Err(Reject::PartitionInUse { partition: at.partition });
        }
        Ok(())
    }

    fn fetch(&self, who: Option<&MemberRef>, of: Option<&[PartitionRange]>) -> Result<Decision, Reject> {
        if let Some(who) = who {
            self.fenced(who)?;
        }
        let committed =
            |(at, place): (&PartitionRef, &Place)| Some((*at, place.committed.as_deref()?.clone()));
        let Some(of) = of else {
            let offsets = self.group.places.iter().filter_map(committed).collect();
            return Ok(self.answer(GroupReply::Offsets(offsets)));
        };
        if of.len() > BATCH_ITEMS_MAX {
            let (size, max) = (of.len() as u64, BATCH_ITEMS_MAX as u64);
            return Err(Reject::TooLarge { what: "partitions", size, max });
        }
        let mut wanted: BTreeSet<PartitionRef> = BTreeSet::new();
        for range in of.iter().filter(|range| range.count > 0) {
            let at = |partition| PartitionRef { resource: range.stream, partition };
            let last = range.first.saturating_add(range.count - 1);
            wanted.extend(self.group.places.range(at(range.first)..=at(last)).map(|(at, _)| *at));
        }
        let places = wanted.iter().filter_map(|at| self.group.places.get_key_value(at));
        Ok(self.answer(GroupReply::Offsets(places.filter_map(committed).collect())))
    }

    fn forget(&self, of: &[PartitionRef]) -> Result<Decision, Reject> {
        items("partitions", of.len())?;
        let outcomes: Batch<Result<Offset, Reject>> = of.iter().map(|at| self.forget_one(*at)).collect();
        let good = of.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok());
        let good: BTreeSet<PartitionRef> = good.map(|(at, _)| *at).collect();
        let reply = GroupReply::Forgotten(outcomes);
        if good.is_empty() {
            return Ok(self.answer(reply));
        }
        Ok(self.change(GroupFact::OffsetsForgotten(ranges(good)), reply))
    }

    fn forget_one(&self, at: PartitionRef) -> Result<Offset, Reject> {
        self.check_not_in_use(at)?;
        let committed = self.group.places.get(&at).and_then(|place| place.committed.as_ref());
        let committed = committed.ok_or(Reject::OffsetNotCommitted { partition: at.partition })?;
        Ok(committed.offset)
    }
}

//! Consumer groups: members, whose partition is whose, and committed offsets.
//!
//! [`member`] and [`place`] are what a group is made of, [`decide`] is what can be asked of it, with [`heartbeat`] for what
//! members do and [`plan`] for what a change of members or streams means for everybody, [`assign`] deals partitions
//! out, [`describe`] tells all, [`apply`] is how facts change a group, [`due`] what time brings, [`index`] its part of
//! checkpoints.
//!
//! | structure | by | holds |
//! |---|---|---|
//! | `members` | number | members |
//! | `by_id`, `by_instance` | name | their numbers |
//! | `watched` | stream | how many of its partitions the members share |
//! | `places` | stream and partition | whose a partition is, whose it shall be, what is committed |
//!
//! A partition has a place as long as it is watched, owned, or has a committed offset. What a member owns and shall own
//! stands with the places; members have it again as sets, which are no state of their own.

mod apply;
mod assign;
mod check;
pub(crate) mod decide;
mod describe;
mod due;
mod heartbeat;
mod index;
mod member;
mod place;
mod plan;

use std::collections::BTreeMap;

use flowmesh_model::group::{GroupState, GroupStatus, Name};
use flowmesh_model::{GroupEpoch, Lsn, MemberNumber, Millis, Offset, PartitionRef, ResourceId};

use crate::changes::Changes;
use crate::replay::Session;
use member::Member;
use place::Place;

/// No member: nobody's, meant for nobody.
const NOBODY: MemberNumber = MemberNumber(0);

/// What a stream takes in memory that members subscribe to.
const WATCHED_BYTES: u64 = 64;

/// A stream whose partitions the members share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Watched {
    /// How many partitions: those that the stream had when that was last looked at.
    partitions: u32,
    /// How many members subscribe. Follows from the members.
    subscribers: u32,
}

/// A part of the group that checkpoints write by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Member(MemberNumber),
    Place(PartitionRef),
}

/// One group.
#[derive(Debug, Default)]
pub(crate) struct Group {
    epoch: GroupEpoch,
    /// The largest number given out.
    last_member: MemberNumber,
    /// When it lost its last member, if it has none.
    empty_since: Option<Millis>,
    /// The entry that changed the group last.
    last_lsn: Lsn,
    members: BTreeMap<MemberNumber, Box<Member>>,
    by_id: BTreeMap<Name, MemberNumber>,
    by_instance: BTreeMap<Name, MemberNumber>,
    watched: BTreeMap<ResourceId, Watched>,
    places: BTreeMap<PartitionRef, Place>,
    /// What it is for, if it is a sandbox.
    replay: Option<Box<Session>>,
    /// Places with a committed offset, and the bytes of what was committed with them.
    offsets: usize,
    metadata_bytes: usize,
    /// Places that are meant for a member; of those, the ones that it owns; and all that are not where they shall be.
    targeted: usize,
    assigned: usize,
    unsettled: usize,
    /// Members whose epoch is the group's.
    current: usize,
    changes: Changes<Item>,
    memory_bytes: u64,
    /// When something may be due: never later than it is, at times earlier. Not part of the state.
    due: Option<Millis>,
    /// When it was last put on the list of what woke (see [`crate::woken`]).
    pub woken: u64,
}

impl Group {
    /// An estimate of what it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Committed offsets, by stream and partition.
    pub fn committed_offsets(&self) -> impl Iterator<Item = (PartitionRef, Offset)> {
        self.places.iter().filter_map(|(at, place)| Some((*at, place.committed.as_ref()?.offset)))
    }

    /// The replay session that it is the sandbox of, once that has begun.
    pub fn replay(&self) -> Option<&Session> {
        self.replay.as_deref()
    }

    /// What is committed for a partition.
    pub fn committed(&self, at: PartitionRef) -> Option<Offset> {
        self.places.get(&at)?.committed.as_ref().map(|committed| committed.offset)
    }

    /// How many members it has.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    fn member(&self, number: MemberNumber) -> Option<&Member> {
        self.members.get(&number).map(Box::as_ref)
    }

    /// How many partitions the members share.
    fn shared(&self) -> usize {
        self.watched.values().map(|watched| watched.partitions as usize).sum()
    }

    /// Whether some partition is meant for nobody though somebody subscribes to it, or the other way round.
    fn needs_plan(&self) -> bool {
        let orphans = self.shared() != self.targeted;
        orphans || self.watched.values().any(|watched| watched.subscribers == 0)
    }

    fn count(&mut self, place: &Place) {
        self.offsets += usize::from(place.committed.is_some());
        self.metadata_bytes += place.metadata_bytes();
        self.targeted += usize::from(place.target != NOBODY);
        self.assigned += usize::from(place.is_assigned());
        self.unsettled += usize::from(!place.is_settled());
        self.memory_bytes += place.memory_bytes();
    }

    fn uncount(&mut self, place: &Place) {
        self.offsets -= usize::from(place.committed.is_some());
        self.metadata_bytes -= place.metadata_bytes();
        self.targeted -= usize::from(place.target != NOBODY);
        self.assigned -= usize::from(place.is_assigned());
        self.unsettled -= usize::from(!place.is_settled());
        self.memory_bytes -= place.memory_bytes();
    }

    /// Places of a stream, by partition.
    fn places_of(&self, stream: ResourceId) -> impl Iterator<Item = (&PartitionRef, &Place)> {
        let at = |partition| PartitionRef { resource: stream, partition };
        self.places.range(at(0)..=at(u32::MAX))
    }

    /// Whether it knows anything of the stream.
    pub fn knows(&self, stream: ResourceId) -> bool {
        self.watched.contains_key(&stream) || self.places_of(stream).next().is_some()
    }

    /// What it is doing.
    fn state(&self) -> GroupState {
        if self.members.is_empty() {
            GroupState::Empty
        } else if self.unsettled == 0 && !self.needs_plan() && self.current == self.members.len() {
            GroupState::Stable
        } else {
            GroupState::Reconciling
        }
    }

    pub(crate) fn status(&self) -> GroupStatus {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        GroupStatus {
            state: self.state(),
            epoch: self.epoch,
            members: count(self.members.len()),
            partitions: count(self.shared()),
            assigned: count(self.assigned),
            offsets: count(self.offsets),
            empty_since: self.empty_since,
        }
    }
}

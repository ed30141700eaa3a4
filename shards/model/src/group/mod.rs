//! Consumer groups: what can be asked of one, and what it answers. [`fact`] is what becomes true of one.
//!
//! A group is a resource of the kind `group`. Its members share the partitions of the streams they subscribe to; the
//! group keeps, for each partition, the offset of the next record to read. The protocol is that of KIP-848: the server
//! assigns, and one command, [`Heartbeat`], joins, keeps alive, reports and receives.
//!
//! ```text
//! target (whose it shall be)        changes with members, subscriptions, numbers of partitions; each change is a group epoch
//! owner  (who may commit it now)    follows the target:
//!
//!   nobody's ── given ──► owned ── target moves ──► revoking ── let go of, left, timed out ──► nobody's ── given ──► …
//!                           ▲                          │
//!                           └── target moves back ─────┘
//! ```
//!
//! - A partition has one owner or none. It is given to the member it is meant for when that member heartbeats, and only
//!   if nobody owns it. Members keep what they own and are meant to own, whatever happens to the rest.
//! - A member's epoch moves up to the group's at a heartbeat once it has let go of all it must, and only then is it
//!   given more.
//! - An offset is committed by a member for a partition it owns, with an epoch not older than that in which it got the
//!   partition: so what it says late, after the partition was another's in between, does not count.

pub mod fact;

use std::sync::Arc;

use crate::Batch;
use crate::ids::{GroupEpoch, Lsn, Millis, Offset, PartitionRef, ResourceId};
use crate::reject::Reject;

use bytes::Bytes;

/// A text that many places share: a member's id, the name of its instance, its client's name, its host.
/// At most [`crate::limits::NAME_BYTES_MAX`] bytes.
pub type Name = Arc<str>;

/// Consecutive partitions of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionRange {
    /// The stream.
    pub stream: ResourceId,
    /// The first partition.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl PartitionRange {
    /// The partitions, in order.
    pub fn iter(self) -> impl Iterator<Item = PartitionRef> {
        (0..self.count)
            .filter_map(move |n| self.first.checked_add(n))
            .map(move |partition| PartitionRef { resource: self.stream, partition })
    }
}

/// Partitions in order, without a gap where there is none, as few ranges as possible.
pub fn ranges(partitions: impl IntoIterator<Item = PartitionRef>) -> Vec<PartitionRange> {
    let mut out: Vec<PartitionRange> = Vec::new();
    for at in partitions {
        match out.last_mut() {
            Some(last)
                if last.stream == at.resource && last.first.checked_add(last.count) == Some(at.partition) =>
            {
                last.count += 1;
            }
            _ => out.push(PartitionRange { stream: at.resource, first: at.partition, count: 1 }),
        }
    }
    out
}

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRef {
    /// The member's id.
    pub id: Name,
    /// The epoch of the last answer it had.
    pub epoch: GroupEpoch,
    /// The name of its instance, if it gave one when it joined. With it, a member that was replaced is told so
    /// (`FENCED_INSTANCE`); without it, such a member is unknown.
    pub instance: Option<Name>,
}

/// A member joins, says that it is alive, reports what it owns, and learns what it shall own.
///
/// To be sent every `heartbeat_interval_ms` of the answer, and at once when something was let go of.
/// → [`GroupReply::Heartbeat`]
///
/// # Errors
/// `UNKNOWN_MEMBER`: never joined, left, removed, or its session is over: let go of everything and join.
/// `STALE_MEMBER_EPOCH`: the epoch is not one the member can have: let go of everything and join.
/// `FENCED_INSTANCE`: another process has taken over the instance: stop.
/// `RESOURCE_NOT_FOUND`, `WRONG_KIND`: a stream to subscribe to.
/// `TOO_LARGE`: too many members, streams or partitions, or too long a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Who. Epoch 0 joins:
    ///
    /// | id | instance | means |
    /// |---|---|---|
    /// | empty | none | a new member; the server makes an id |
    /// | not there | none | a new member with this id; ids must be chosen so that no two members choose the same |
    /// | there | none | the member lost its memory: it takes its own place, and what it said before no longer counts |
    /// | any | not there | a new member with this instance |
    /// | any | there | takes over the place and the partitions of the instance at once; who had it is fenced |
    ///
    /// Who joins owns nothing: `owned` and `known` do not count.
    pub member: MemberRef,
    /// For people: the client's own name. Counts when joining.
    pub client: Name,
    /// For people: where the client is. Counts when joining.
    pub host: Name,
    /// `version` of the last answer the member had, 0 if none. What an answer asked to let go of counts as let go of only
    /// if the member has seen that answer.
    pub known: Lsn,
    /// Streams it subscribes to, all of them, without order; `None` as before. Needed when joining. How many partitions
    /// they have is known to the group from the catalog.
    pub subscribed: Option<Vec<ResourceId>>,
    /// All that it owns now: it works on nothing else. `None`: no news, nothing was let go of.
    pub owned: Option<Vec<PartitionRange>>,
    /// Wait for something new until then, if there is nothing that `known` does not show. At most half the session timeout
    /// from now: waiting does not make a session longer.
    pub wait_until: Option<Millis>,
}

/// An offset to commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewOffset {
    /// The stream and its partition.
    pub at: PartitionRef,
    /// The next record to read. May lie below the one before it.
    pub offset: Offset,
    /// Whatever the consumer wants to keep with it: at most [`crate::limits::OFFSET_METADATA_BYTES_MAX`].
    pub metadata: Bytes,
}

/// Which member, for somebody who is not that member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberName {
    /// By its id.
    Id(Name),
    /// By the name of its instance.
    Instance(Name),
}

/// On one consumer group. Its shard is that of its partition 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupCommand {
    /// See [`Heartbeat`].
    Heartbeat(Box<Heartbeat>),
    /// The member goes; what it owned is free at once. → [`GroupReply::Left`]
    /// Errors: `UNKNOWN_MEMBER`, `FENCED_INSTANCE`; any epoch is good.
    Leave {
        /// Who.
        member: MemberRef,
        /// Only for a member with an instance: keep its place and its partitions until its session is over, so that
        /// whoever joins with that instance before has them at once.
        keep_place: bool,
    },
    /// Throws a member out, as if its session were over. → [`GroupReply::Removed`]
    /// Errors: `UNKNOWN_MEMBER`.
    Remove {
        /// Which.
        member: MemberName,
    },
    /// Keeps offsets. → [`GroupReply::Committed`], one outcome an item, in order; the good ones become true together.
    ///
    /// With a member, errors of the whole call: `UNKNOWN_MEMBER`, `STALE_MEMBER_EPOCH`, `FENCED_INSTANCE`. Errors of an item:
    /// `PARTITION_NOT_OWNED` if the member does not own the partition, or got it in a later epoch than it speaks in.
    ///
    /// Without a member (a tool that resets offsets, a consumer that does without membership), error of an item:
    /// `PARTITION_IN_USE` if a member subscribes to the stream.
    ///
    /// Errors of an item, with or without: `RESOURCE_NOT_FOUND`, `WRONG_KIND`, `NO_SUCH_PARTITION`, `TOO_LARGE` (metadata, or
    /// the group has offsets of too many partitions). Whether there is such an offset is for the caller to find out:
    /// the stream may be on another shard.
    Commit {
        /// Who.
        member: Option<MemberRef>,
        /// At least one.
        offsets: Batch<NewOffset>,
    },
    /// The offsets that were committed. → [`GroupReply::Offsets`], by stream and partition; where nothing was committed,
    /// nothing. With a member, errors as of `Commit`.
    FetchOffsets {
        /// Who; its epoch must be its present one, or the one before it.
        member: Option<MemberRef>,
        /// Only these; `None`: all.
        of: Option<Vec<PartitionRange>>,
    },
    /// Forgets offsets that were committed. → [`GroupReply::Forgotten`], one outcome an item, in order; the good ones
    /// become true together. Errors of an item: `PARTITION_IN_USE`, `OFFSET_NOT_COMMITTED`.
    ForgetOffsets {
        /// At least one.
        of: Batch<PartitionRef>,
    },
    /// The group in short. → [`GroupReply::Status`]
    Status,
    /// All about the group. → [`GroupReply::Description`]
    Describe,
}

/// What a member is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeartbeatReply {
    /// Its id.
    pub member: Name,
    /// Its epoch from now on.
    pub epoch: GroupEpoch,
    /// Stands for `epoch`, `assigned` and `revoking`: as long as it is the same, they are. To be sent back as `known`.
    pub version: Lsn,
    /// What it owns and keeps: it may work on these now. In order.
    pub assigned: Vec<PartitionRange>,
    /// What it owns and must let go of: finish, commit, and report as owned no more. In order.
    pub revoking: Vec<PartitionRange>,
    /// What is meant for it and is still another's, or must wait until it has let go of `revoking`. In order.
    pub pending: Vec<PartitionRange>,
    /// The group's epoch; the member's follows it.
    pub group_epoch: GroupEpoch,
    /// What the group is doing; reconciling whenever this heartbeat itself changed something.
    pub state: GroupState,
    /// When to heartbeat again, at the latest.
    pub heartbeat_interval_ms: u64,
    /// Without a heartbeat for so long the member is out.
    pub session_timeout_ms: u64,
}

/// What a group is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupState {
    /// It has no members. Its offsets are kept for `offsets_retention_ms`.
    Empty,
    /// Some partition is not yet with the member it is meant for, or some member has an older epoch than the group.
    Reconciling,
    /// Every partition is where it shall be.
    Stable,
}

impl GroupState {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Reconciling => "reconciling",
            Self::Stable => "stable",
        }
    }
}

/// A group in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// What it is doing.
    pub state: GroupState,
    /// Its epoch: how often it was assigned anew.
    pub epoch: GroupEpoch,
    /// Members.
    pub members: u32,
    /// Partitions that members share.
    pub partitions: u32,
    /// Of those, how many have an owner that keeps them.
    pub assigned: u32,
    /// Partitions with a committed offset.
    pub offsets: u32,
    /// Since when it has no members.
    pub empty_since: Option<Millis>,
}

/// An offset that was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The next record to read.
    pub offset: Offset,
    /// When it was committed.
    pub committed_at: Millis,
    /// What was committed with it.
    pub metadata: Bytes,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberDescription {
    /// Its id.
    pub id: Name,
    /// The name of its instance.
    pub instance: Option<Name>,
    /// Its client's own name.
    pub client: Name,
    /// Where it is.
    pub host: Name,
    /// Its epoch; 0 before it was given anything.
    pub epoch: GroupEpoch,
    /// When it joined, or took its place over.
    pub joined_at: Millis,
    /// Streams it subscribes to, in order.
    pub subscribed: Vec<ResourceId>,
    /// What it owns and keeps.
    pub assigned: Vec<PartitionRange>,
    /// What it owns and must let go of.
    pub revoking: Vec<PartitionRange>,
    /// What it shall own.
    pub target: Vec<PartitionRange>,
    /// It left and its place is kept until `expires_at`.
    pub away: bool,
    /// When it was last heard of; after a restart of the server, from then on.
    pub last_heartbeat: Millis,
    /// When it is out unless it is heard of.
    pub expires_at: Millis,
    /// When it is out unless it lets go of `revoking`.
    pub revoke_until: Option<Millis>,
}

/// Why a partition is not with the member it is meant for, or has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldUp {
    /// The group has no members.
    NoMembers,
    /// No member subscribes to the stream.
    NotSubscribed,
    /// Its owner was told to let go of it and has not yet.
    NotReleased,
    /// The member it is meant for must let go of others first.
    TargetReleasing,
    /// The member it is meant for has not heartbeated since.
    NotTaken,
    /// The member it is with, or meant for, has left and its place is kept.
    Away,
}

impl HeldUp {
    /// The reason in words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoMembers => "the group has no members",
            Self::NotSubscribed => "no member subscribes to the stream",
            Self::NotReleased => "its owner was told to let go of it and has not yet",
            Self::TargetReleasing => "the member it is meant for must let go of other partitions first",
            Self::NotTaken => "the member it is meant for has not heartbeated since",
            Self::Away => "its member has left and its place is kept until its session is over",
        }
    }
}

/// A partition as the group sees it: shared by members, or with a committed offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionDescription {
    /// The stream and its partition.
    pub at: PartitionRef,
    /// Who owns it: the only member that may commit it.
    pub owner: Option<Name>,
    /// Whose it shall be.
    pub target: Option<Name>,
    /// Why it is not with a member that works on it; `None` if it is.
    pub held_up: Option<HeldUp>,
    /// What was committed.
    pub committed: Option<CommittedOffset>,
}

/// All about a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescription {
    /// In short.
    pub status: GroupStatus,
    /// By id.
    pub members: Vec<MemberDescription>,
    /// By stream and partition.
    pub partitions: Vec<PartitionDescription>,
}

/// What became of an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// What was committed before. Above the new one: records between them will be read again.
    pub previous: Option<Offset>,
}

/// What a group answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupReply {
    /// To [`Heartbeat`].
    Heartbeat(HeartbeatReply),
    /// The member is gone, or its place is kept.
    Left,
    /// The member was thrown out.
    Removed {
        /// Its id.
        member: Name,
    },
    /// One outcome an offset.
    Committed(Batch<Result<Committed, Reject>>),
    /// Committed offsets by stream and partition.
    Offsets(Vec<(PartitionRef, CommittedOffset)>),
    /// One outcome an item: the offset that was forgotten.
    Forgotten(Batch<Result<Offset, Reject>>),
    /// In short.
    Status(GroupStatus),
    /// All.
    Description(GroupDescription),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_become_as_few_ranges_as_possible() {
        let at = |stream, partition| PartitionRef { resource: ResourceId(stream), partition };
        let partitions = [at(1, 0), at(1, 1), at(1, 3), at(2, 4), at(3, 5), at(3, u32::MAX)];
        let made = ranges(partitions);
        let shape: Vec<_> = made.iter().map(|r| (r.stream.0, r.first, r.count)).collect();
        assert_eq!(shape, [(1, 0, 2), (1, 3, 1), (2, 4, 1), (3, 5, 1), (3, u32::MAX, 1)]);
        assert_eq!(made.into_iter().flat_map(PartitionRange::iter).collect::<Vec<_>>(), partitions);
    }
}

//! What becomes true of a consumer group: facts with the tags 64 to 79 (see [`crate::fact`]).
//!
//! | tag | fact | fields after the group's number |
//! |---|---|---|
//! | 64 | `MemberJoined` | member, id, instance (empty = none), client, host, subscribed |
//! | 65 | `MemberReplaced` | member, id, client, host |
//! | 66 | `MemberLeft` | member, cause |
//! | 67 | `MemberAway` | member |
//! | 68 | `Subscribed` | member, subscribed |
//! | 69 | `StreamWatched` | stream, partitions |
//! | 70 | `StreamForgotten` | stream |
//! | 71 | `Assigned` | epoch, count, count × (range, member; 0 = nobody) |
//! | 72 | `PartitionsGiven` | member, ranges |
//! | 73 | `PartitionsReleased` | member, ranges |
//! | 74 | `MemberEpoch` | member, epoch, oldest |
//! | 75 | `OffsetsCommitted` | count, count × (stream, partition, offset, metadata) |
//! | 76 | `OffsetsForgotten` | ranges |
//!
//! `range`: stream, first partition, count. `ranges`: how many, then each. `subscribed`: how many, then each stream.
//! Members are named by numbers, which a group gives out once. What was computed, an assignment above all, is in the
//! facts in full: reading the log computes nothing again.

use bytes::{BufMut, Bytes};

use super::{Name, NewOffset, PartitionRange};
use crate::codec::{Malformed, Reader, put_bytes, put_varint};
use crate::ids::{GroupEpoch, MemberNumber, Offset, PartitionRef, ResourceId};

/// Why a member is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaveCause {
    /// It said so.
    Left,
    /// It was not heard of for the session timeout.
    Expired,
    /// It did not let go of what it must for the rebalance timeout.
    Unreleased,
    /// Somebody threw it out.
    Removed,
}

impl LeaveCause {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Left => 0,
            Self::Expired => 1,
            Self::Unreleased => 2,
            Self::Removed => 3,
        }
    }

    const fn from_byte(byte: u8) -> Result<Self, Malformed> {
        match byte {
            0 => Ok(Self::Left),
            1 => Ok(Self::Expired),
            2 => Ok(Self::Unreleased),
            3 => Ok(Self::Removed),
            _ => Err(Malformed("unknown cause")),
        }
    }
}

/// A member as it joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMember {
    /// Its id.
    pub id: Name,
    /// The name of its instance.
    pub instance: Option<Name>,
    /// Its client's own name.
    pub client: Name,
    /// Where it is.
    pub host: Name,
    /// Streams it subscribes to, in order.
    pub subscribed: Vec<ResourceId>,
}

/// Partitions that are meant for another member from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which.
    pub partitions: PartitionRange,
    /// Whose they shall be; 0: nobody's.
    pub to: MemberNumber,
}

/// What became true of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupFact {
    /// There is one more member, with epoch 0. Its number is above all before it.
    MemberJoined(MemberNumber, Box<NewMember>),
    /// The member's place is another process's, under this id; it is there.
    MemberReplaced(MemberNumber, Box<NewMember>),
    /// The member is gone; nobody owns what it owned, nothing is meant for it.
    MemberLeft(MemberNumber, LeaveCause),
    /// The member has left, its place is kept.
    MemberAway(MemberNumber),
    /// The member subscribes to these streams, in order.
    Subscribed(MemberNumber, Vec<ResourceId>),
    /// The members share so many partitions of the stream; 0: none subscribes to it any more. What lies beyond is
    /// nobody's and meant for nobody.
    StreamWatched(ResourceId, u32),
    /// The stream was deleted: nothing is known of it, no offset either.
    StreamForgotten(ResourceId),
    /// The group has this epoch, and these partitions are meant for others than before.
    Assigned(GroupEpoch, Vec<Move>),
    /// The member owns these, from its present epoch on.
    PartitionsGiven(MemberNumber, Vec<PartitionRange>),
    /// The member has let go of these: nobody owns them.
    PartitionsReleased(MemberNumber, Vec<PartitionRange>),
    /// The member has this epoch, and may still speak in `oldest` if it missed an answer.
    MemberEpoch {
        /// Which.
        member: MemberNumber,
        /// Its epoch.
        epoch: GroupEpoch,
        /// The last epoch it showed that it knew.
        oldest: GroupEpoch,
    },
    /// These offsets are committed, in place of those before.
    OffsetsCommitted(Vec<NewOffset>),
    /// Nothing is committed for these.
    OffsetsForgotten(Vec<PartitionRange>),
}

const MEMBER_JOINED: u8 = 64;
const MEMBER_REPLACED: u8 = 65;
const MEMBER_LEFT: u8 = 66;
const MEMBER_AWAY: u8 = 67;
const SUBSCRIBED: u8 = 68;
const STREAM_WATCHED: u8 = 69;
const STREAM_FORGOTTEN: u8 = 70;
const ASSIGNED: u8 = 71;
const PARTITIONS_GIVEN: u8 = 72;
const PARTITIONS_RELEASED: u8 = 73;
const MEMBER_EPOCH: u8 = 74;
const OFFSETS_COMMITTED: u8 = 75;
const OFFSETS_FORGOTTEN: u8 = 76;

/// The tags that are a group's.
pub(crate) const TAGS: std::ops::RangeInclusive<u8> = 64..=79;

impl GroupFact {
    /// The fact's tag on disk.
    pub(crate) const fn tag(&self) -> u8 {
        match self {
            Self::MemberJoined(..) => MEMBER_JOINED,
            Self::MemberReplaced(..) => MEMBER_REPLACED,
            Self::MemberLeft(..) => MEMBER_LEFT,
            Self::MemberAway(..) => MEMBER_AWAY,
            Self::Subscribed(..) => SUBSCRIBED,
            Self::StreamWatched(..) => STREAM_WATCHED,
            Self::StreamForgotten(..) => STREAM_FORGOTTEN,
            Self::Assigned(..) => ASSIGNED,
            Self::PartitionsGiven(..) => PARTITIONS_GIVEN,
            Self::PartitionsReleased(..) => PARTITIONS_RELEASED,
            Self::MemberEpoch { .. } => MEMBER_EPOCH,
            Self::OffsetsCommitted(..) => OFFSETS_COMMITTED,
            Self::OffsetsForgotten(..) => OFFSETS_FORGOTTEN,
        }
    }

    /// Appends what follows tag and group.
    pub(crate) fn encode(&self, out: &mut impl BufMut) {
        match self {
            Self::MemberJoined(member, new) => {
                put_varint(out, u64::from(member.0));
                put_bytes(out, new.id.as_bytes());
                put_bytes(out, new.instance.as_deref().unwrap_or_default().as_bytes());
                put_bytes(out, new.client.as_bytes());
                put_bytes(out, new.host.as_bytes());
                put_streams(out, &new.subscribed);
            }
            Self::MemberReplaced(member, new) => {
                put_varint(out, u64::from(member.0));
                for text in [&new.id, &new.client, &new.host] {
                    put_bytes(out, text.as_bytes());
                }
            }
            Self::MemberLeft(member, cause) => {
                put_varint(out, u64::from(member.0));
                out.put_u8(cause.to_byte());
            }
            Self::MemberAway(member) => put_varint(out, u64::from(member.0)),
            Self::Subscribed(member, streams) => {
                put_varint(out, u64::from(member.0));
                put_streams(out, streams);
            }
            Self::StreamWatched(stream, partitions) => {
                put_varint(out, stream.0);
                put_varint(out, u64::from(*partitions));
            }
            Self::StreamForgotten(stream) => put_varint(out, stream.0),
            Self::Assigned(epoch, moves) => {
                put_varint(out, epoch.0);
                put_varint(out, moves.len() as u64);
                for step in moves {
                    put_range(out, step.partitions);
                    put_varint(out, u64::from(step.to.0));
                }
            }
            Self::PartitionsGiven(member, ranges) | Self::PartitionsReleased(member, ranges) => {
                put_varint(out, u64::from(member.0));
                put_ranges(out, ranges);
            }
            Self::MemberEpoch { member, epoch, oldest } => {
                put_varint(out, u64::from(member.0));
                put_varint(out, epoch.0);
                put_varint(out, oldest.0);
            }
            Self::OffsetsCommitted(offsets) => {
                put_varint(out, offsets.len() as u64);
                for NewOffset { at, offset, metadata } in offsets {
                    put_varint(out, at.resource.0);
                    put_varint(out, u64::from(at.partition));
                    put_varint(out, offset.0);
                    put_bytes(out, metadata);
                }
            }
            Self::OffsetsForgotten(ranges) => put_ranges(out, ranges),
        }
    }

    /// An upper bound of what [`GroupFact::encode`] appends beyond two dozen bytes.
    pub(crate) fn encoded_len_max(&self) -> usize {
        /// A stream, two 32-bit integers and a member.
        const RANGE: usize = 10 + 3 * 5;
        /// A stream, a partition, an offset and a length.
        const OFFSET: usize = 10 + 5 + 10 + 5;
        match self {
            Self::MemberJoined(_, new) | Self::MemberReplaced(_, new) => {
                let instance = new.instance.as_ref().map_or(0, |name| name.len());
                40 + new.id.len() + instance + new.client.len() + new.host.len() + 10 * new.subscribed.len()
            }
            Self::Subscribed(_, streams) => 10 * streams.len(),
            Self::Assigned(_, moves) => RANGE * moves.len(),
            Self::PartitionsGiven(_, ranges)
            | Self::PartitionsReleased(_, ranges)
            | Self::OffsetsForgotten(ranges) => RANGE * ranges.len(),
            Self::OffsetsCommitted(offsets) => offsets.iter().map(|new| OFFSET + new.metadata.len()).sum(),
            Self::MemberLeft(..)
            | Self::MemberAway(..)
            | Self::StreamWatched(..)
            | Self::StreamForgotten(..)
            | Self::MemberEpoch { .. } => 0,
        }
    }

    /// Reads what [`GroupFact::encode`] wrote.
    pub(crate) fn decode(tag: u8, reader: &mut Reader) -> Result<Self, Malformed> {
        Ok(match tag {
            MEMBER_JOINED => {
                let member = member(reader)?;
                let (id, instance) = (name(reader)?, name(reader)?);
                let instance = Some(instance).filter(|name| !name.is_empty());
                let (client, host, subscribed) = (name(reader)?, name(reader)?, streams(reader)?);
                Self::MemberJoined(member, Box::new(NewMember { id, instance, client, host, subscribed }))
            }
            MEMBER_REPLACED => {
                let member = member(reader)?;
                let (id, client, host) = (name(reader)?, name(reader)?, name(reader)?);
                let (instance, subscribed) = (None, Vec::new());
                Self::MemberReplaced(member, Box::new(NewMember { id, instance, client, host, subscribed }))
            }
            MEMBER_LEFT => Self::MemberLeft(member(reader)?, LeaveCause::from_byte(reader.byte()?)?),
            MEMBER_AWAY => Self::MemberAway(member(reader)?),
            SUBSCRIBED => Self::Subscribed(member(reader)?, streams(reader)?),
            STREAM_WATCHED => Self::StreamWatched(ResourceId(reader.varint()?), reader.varint_u32()?),
            STREAM_FORGOTTEN => Self::StreamForgotten(ResourceId(reader.varint()?)),
            ASSIGNED => {
                let epoch = GroupEpoch(reader.varint()?);
                let step = |reader: &mut Reader| Ok(Move { partitions: range(reader)?, to: member(reader)? });
                Self::Assigned(epoch, list(reader, step)?)
            }
            PARTITIONS_GIVEN => Self::PartitionsGiven(member(reader)?, list(reader, range)?),
            PARTITIONS_RELEASED => Self::PartitionsReleased(member(reader)?, list(reader, range)?),
            MEMBER_EPOCH => Self::MemberEpoch {
                member: member(reader)?,
                epoch: GroupEpoch(reader.varint()?),
                oldest: GroupEpoch(reader.varint()?),
            },
            OFFSETS_COMMITTED => Self::OffsetsCommitted(list(reader, |reader| {
                let at =
                    PartitionRef { resource: ResourceId(reader.varint()?), partition: reader.varint_u32()? };
                let (offset, metadata): (_, Bytes) = (Offset(reader.varint()?), reader.bytes()?);
                Ok(NewOffset { at, offset, metadata })
            })?),
            OFFSETS_FORGOTTEN => Self::OffsetsForgotten(list(reader, range)?),
            _ => return Err(Malformed("unknown fact; a newer version wrote it")),
        })
    }
}

fn put_range(out: &mut impl BufMut, range: PartitionRange) {
    put_varint(out, range.stream.0);
    put_varint(out, u64::from(range.first));
    put_varint(out, u64::from(range.count));
}

fn put_ranges(out: &mut impl BufMut, ranges: &[PartitionRange]) {
    put_varint(out, ranges.len() as u64);
    for range in ranges {
        put_range(out, *range);
    }
}

/// Appends streams: how many, then each.
pub fn put_streams(out: &mut impl BufMut, streams: &[ResourceId]) {
    put_varint(out, streams.len() as u64);
    for stream in streams {
        put_varint(out, stream.0);
    }
}

fn range(reader: &mut Reader) -> Result<PartitionRange, Malformed> {
    let (stream, first) = (ResourceId(reader.varint()?), reader.varint_u32()?);
    Ok(PartitionRange { stream, first, count: reader.varint_u32()? })
}

/// Reads what [`put_streams`] wrote.
pub fn streams(reader: &mut Reader) -> Result<Vec<ResourceId>, Malformed> {
    list(reader, |reader| reader.varint().map(ResourceId))
}

/// Reads a name: length-prefixed UTF-8.
pub fn name(reader: &mut Reader) -> Result<Name, Malformed> {
    reader.text().map(Name::from)
}

fn member(reader: &mut Reader) -> Result<MemberNumber, Malformed> {
    reader.varint_u32().map(MemberNumber)
}

fn list<T>(
    reader: &mut Reader,
    mut item: impl FnMut(&mut Reader) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let count = reader.varint()?;
    // Each item takes at least a byte: no count makes this reserve more than there is.
    let mut items = Vec::with_capacity(usize::try_from(count).unwrap_or(usize::MAX).min(reader.remaining()));
    for _ in 0..count {
        items.push(item(reader)?);
    }
    Ok(items)
}

//! A partition as a group sees it.
//!
//! | owner | target | means |
//! |---|---|---|
//! | nobody | nobody | only an offset is kept, or no member subscribes |
//! | nobody | a member | free: the member gets it with its next heartbeat |
//! | a member | the same | owned: the member works on it |
//! | a member | another, or nobody | being revoked: the member must let go of it |

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, detached, put_bytes, put_varint};
use flowmesh_model::group::CommittedOffset;
use flowmesh_model::{GroupEpoch, Lsn, MemberNumber, Millis, Offset};

use super::NOBODY;
use crate::changes::Mark;
use crate::keys;

/// What a place takes in memory: itself, its key, and its places in the sets of owner and target.
const PLACE_BYTES: u64 = (size_of::<Place>() + 3 * (16 + 16)) as u64;

/// What a committed offset takes besides its metadata.
const COMMITTED_BYTES: u64 = (size_of::<CommittedOffset>() + 16) as u64;

/// One partition.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// Whose it shall be.
    pub target: MemberNumber,
    /// Who owns it.
    pub owner: MemberNumber,
    /// The epoch of the owner when it got it.
    pub since: GroupEpoch,
    /// The entry with which the owner was asked to let go of it; 0 if it keeps it.
    pub asked: Lsn,
    pub committed: Option<Box<CommittedOffset>>,
    pub mark: Mark,
}

impl Place {
    /// Whether it is with the member that it is meant for, or with nobody and meant for nobody.
    pub fn is_settled(&self) -> bool {
        self.owner == self.target
    }

    /// Whether it has an owner that keeps it.
    pub fn is_assigned(&self) -> bool {
        self.owner != NOBODY && self.owner == self.target
    }

    pub fn memory_bytes(&self) -> u64 {
        let committed = self.committed.as_ref();
        PLACE_BYTES + committed.map_or(0, |committed| COMMITTED_BYTES + committed.metadata.len() as u64)
    }

    pub fn metadata_bytes(&self) -> usize {
        self.committed.as_ref().map_or(0, |committed| committed.metadata.len())
    }
}

/// A place in the index.
///
/// | field | size | meaning |
/// |---|---|---|
/// | format | 1 | 1 |
/// | target, owner | varint each | member, 0 = nobody |
/// | since | varint | epoch |
/// | asked | varint | LSN, 0 = not revoked |
/// | committed | 1 | 0: nothing, and nothing follows |
/// | offset, committed at | varint each | |
/// | metadata | varint length + bytes | |
pub(super) fn encode(place: &Place) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    out.put_u8(keys::FORMAT);
    for number in [place.target, place.owner] {
        put_varint(&mut out, u64::from(number.0));
    }
    put_varint(&mut out, place.since.0);
    put_varint(&mut out, place.asked.0);
    out.put_u8(u8::from(place.committed.is_some()));
    if let Some(committed) = &place.committed {
        put_varint(&mut out, committed.offset.0);
        put_varint(&mut out, committed.committed_at.0);
        put_bytes(&mut out, &committed.metadata);
    }
    out.freeze()
}

/// Reads what [`encode`] wrote.
pub(super) fn decode(value: Bytes) -> Result<Place, Malformed> {
    let mut reader = keys::open(value)?;
    let mut place = Place {
        target: MemberNumber(reader.varint_u32()?),
        owner: MemberNumber(reader.varint_u32()?),
        since: GroupEpoch(reader.varint()?),
        asked: Lsn(reader.varint()?),
        committed: None,
        mark: Mark::IN_INDEX,
    };
    if reader.byte()? == 1 {
        let (offset, committed_at) = (Offset(reader.varint()?), Millis(reader.varint()?));
        let metadata = detached(&reader.bytes()?);
        place.committed = Some(Box::new(CommittedOffset { offset, committed_at, metadata }));
    }
    keys::close(&reader)?;
    Ok(place)
}

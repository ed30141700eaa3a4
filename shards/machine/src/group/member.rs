//! A member of a group.
//!
//! ```text
//!            MemberJoined                MemberAway (its place is kept)
//! (no member) ─────────► there ───────────────────────► away
//!      ▲                  │  ▲                           │ │
//!      └── MemberLeft ────┘  └────── MemberReplaced ─────┘ │
//!      ▲                        (there may be replaced too) │
//!      └──────────────────── MemberLeft ────────────────────┘
//! ```

use std::cell::Cell;
use std::collections::BTreeSet;

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, put_bytes, put_varint};
use flowmesh_model::group::Name;
use flowmesh_model::group::fact::{self, NewMember, put_streams};
use flowmesh_model::{GroupEpoch, Lsn, Millis, PartitionRef, ResourceId};

use crate::changes::Mark;
use crate::keys;

/// What a member takes in memory besides its texts and subscriptions.
const MEMBER_BYTES: u64 = (size_of::<Member>() + 24 + 3 * 64) as u64;

/// One member.
#[derive(Debug)]
pub(super) struct Member {
    pub id: Name,
    pub instance: Option<Name>,
    pub client: Name,
    pub host: Name,
    /// When it joined, or took its place over.
    pub joined_at: Millis,
    /// Streams it subscribes to, in order.
    pub subscribed: Vec<ResourceId>,
    /// Its epoch; 0 before its first heartbeat after joining came to something.
    pub epoch: GroupEpoch,
    /// The last epoch it showed that it knew.
    pub oldest: GroupEpoch,
    /// The entry that last changed its epoch, what it owns, or what it must let go of.
    pub version: Lsn,
    /// It left and its place is kept.
    pub away: bool,
    pub mark: Mark,
    /// Follow from the places: what it owns, what it shall own, how many of what it owns it must let go of.
    pub owned: BTreeSet<PartitionRef>,
    pub target: BTreeSet<PartitionRef>,
    pub revoking: usize,
    /// When it was last heard of, once that is known. Not part of the state: a command that changes nothing says so too,
    /// and after a restart nobody has missed a heartbeat yet.
    pub heard: Cell<Option<Millis>>,
    /// Since when there is something that it must let go of and has not. Not part of the state.
    pub revoking_since: Option<Millis>,
}

impl Member {
    pub fn new(new: NewMember, joined_at: Millis) -> Self {
        Self {
            id: new.id,
            instance: new.instance,
            client: new.client,
            host: new.host,
            joined_at,
            subscribed: new.subscribed,
            epoch: GroupEpoch(0),
            oldest: GroupEpoch(0),
            version: Lsn(0),
            away: false,
            mark: Mark::NEW,
            owned: BTreeSet::new(),
            target: BTreeSet::new(),
            revoking: 0,
            heard: Cell::new(Some(joined_at)),
            revoking_since: None,
        }
    }

    pub fn memory_bytes(&self) -> u64 {
        let instance = self.instance.as_ref().map_or(0, |name| name.len());
        let texts = self.id.len() + instance + self.client.len() + self.host.len();
        MEMBER_BYTES + (texts + 8 * self.subscribed.len()) as u64
    }

    /// Whether it subscribes to the stream.
    pub fn subscribes(&self, stream: ResourceId) -> bool {
        self.subscribed.binary_search(&stream).is_ok()
    }

    /// When its session is over: never known before it was heard of since the start.
    pub fn expires_at(&self, session_timeout_ms: u64) -> Option<Millis> {
        self.heard.get().map(|heard| heard.plus(session_timeout_ms))
    }
}

/// A member in the index.
///
/// | field | size | meaning |
/// |---|---|---|
/// | format | 1 | 1 |
/// | id, instance, client, host | varint length + bytes each | instance empty: none |
/// | joined at | varint | ms |
/// | epoch, oldest | varint each | |
/// | version | varint | LSN |
/// | away | 1 | 0 or 1 |
/// | subscribed | varint count, then varint each | streams |
pub(super) fn encode(member: &Member) -> Bytes {
    let mut out = BytesMut::with_capacity(128);
    out.put_u8(keys::FORMAT);
    put_bytes(&mut out, member.id.as_bytes());
    put_bytes(&mut out, member.instance.as_deref().unwrap_or_default().as_bytes());
    put_bytes(&mut out, member.client.as_bytes());
    put_bytes(&mut out, member.host.as_bytes());
    for number in [member.joined_at.0, member.epoch.0, member.oldest.0, member.version.0] {
        put_varint(&mut out, number);
    }
    out.put_u8(u8::from(member.away));
    put_streams(&mut out, &member.subscribed);
    out.freeze()
}

/// Reads what [`encode`] wrote.
pub(super) fn decode(value: Bytes) -> Result<Member, Malformed> {
    let mut reader = keys::open(value)?;
    let (id, instance) = (fact::name(&mut reader)?, fact::name(&mut reader)?);
    let instance = Some(instance).filter(|name| !name.is_empty());
    let (client, host) = (fact::name(&mut reader)?, fact::name(&mut reader)?);
    let joined_at = Millis(reader.varint()?);
    let new = NewMember { id, instance, client, host, subscribed: Vec::new() };
    let mut member = Member {
        epoch: GroupEpoch(reader.varint()?),
        oldest: GroupEpoch(reader.varint()?),
        version: Lsn(reader.varint()?),
        away: reader.byte()? == 1,
        mark: Mark::IN_INDEX,
        heard: Cell::new(None),
        ..Member::new(new, joined_at)
    };
    member.subscribed = fact::streams(&mut reader)?;
    keys::close(&reader)?;
    Ok(member)
}

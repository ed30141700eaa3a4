//! A change of one key, as the feed of its store has it: the value of a record, a protobuf message `KvChange`
//! (proto/flowmesh/v1/kv_change.proto), written by hand because the machine writes it.
//!
//! | field | number | of kinds |
//! |---|---|---|
//! | kind | 1 | all |
//! | version | 2 | all |
//! | holds | 3 | `Set`, `Rename`, `Copy`, `Items`, `Present` |
//! | value | 4 | `Set`, `FieldSet`, `PushFront`, `PushBack`, `ItemSet`, `ItemInsert`; of bytes `Rename`, `Copy`, `Present` |
//! | expires_at_ms | 5 | `Set`, `Rename`, `Copy`, `Present`, `End`, `FieldSet`, `FieldEnd` |
//! | member | 6 | those of fields, members and scores |
//! | score | 7 | `ScoreSet` |
//! | index | 8 | `ItemsRemove`, `ItemSet`, `ItemInsert` |
//! | count | 9 | `ItemsRemove` |
//! | other | 10 | `Rename`, `Copy`: from where; `Delete`: the new name, if it was renamed |
//! | integer, decimal | 11, 12 | of counters, beside their text |
//! | items | 13 | of collections, `Rename`, `Copy`, `Items`, `Present` |
//! | more | 14 | the collection goes on in the next record of the key |
//! | old | 15 | what was before |
//! | value_bytes | 16 | in place of a value above [`FEED_VALUE_BYTES_MAX`]: how many bytes it has |

use bytes::{BufMut, Bytes, BytesMut};

use super::fact::zigzag;
use super::{KvType, Number, Real};
use crate::codec::{Malformed, put_bytes, put_varint, read_varint};
use crate::ids::{Lsn, Millis};
use crate::limits::FEED_VALUE_BYTES_MAX;

/// The header of a feed's records that names what changed: the name of the kind.
pub const CHANGE_HEADER: &str = "change";

/// What changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum ChangeKind {
    /// The key holds these bytes or this counter, and nothing else.
    #[default]
    Set = 1,
    /// The key is gone.
    Delete = 2,
    /// The key is gone because its time was up.
    Expire = 3,
    /// The key holds what another did, which is gone, and nothing else.
    Rename = 4,
    /// The key holds what another does, and nothing else.
    Copy = 5,
    /// More items of the collection that the record of the key before began.
    Items = 6,
    /// The key has another end.
    End = 7,
    /// A field has this value and end.
    FieldSet = 8,
    /// A field is gone.
    FieldDelete = 9,
    /// A field is gone because its time was up.
    FieldExpire = 10,
    /// A field has another end.
    FieldEnd = 11,
    /// A set has the member.
    MemberAdd = 12,
    /// A set has the member no more.
    MemberRemove = 13,
    /// A member has this score.
    ScoreSet = 14,
    /// A sorted set has the member no more.
    ScoreRemove = 15,
    /// A list has one more value in front.
    PushFront = 16,
    /// A list has one more value behind.
    PushBack = 17,
    /// A list lost values from an index on.
    ItemsRemove = 18,
    /// A list has another value at an index.
    ItemSet = 19,
    /// A list has one more value, in front of what had the index.
    ItemInsert = 20,
    /// What the key holds: no change, but a part of the state that a watch begins with.
    Present = 21,
    /// The key is gone: there was no room for all.
    Evict = 22,
}

impl ChangeKind {
    /// All of them, by number from 1.
    pub const ALL: [Self; 22] = [
        Self::Set,
        Self::Delete,
        Self::Expire,
        Self::Rename,
        Self::Copy,
        Self::Items,
        Self::End,
        Self::FieldSet,
        Self::FieldDelete,
        Self::FieldExpire,
        Self::FieldEnd,
        Self::MemberAdd,
        Self::MemberRemove,
        Self::ScoreSet,
        Self::ScoreRemove,
        Self::PushFront,
        Self::PushBack,
        Self::ItemsRemove,
        Self::ItemSet,
        Self::ItemInsert,
        Self::Present,
        Self::Evict,
    ];

    /// Its name, in headers and in the CLI.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Delete => "delete",
            Self::Expire => "expire",
            Self::Rename => "rename",
            Self::Copy => "copy",
            Self::Items => "items",
            Self::End => "end",
            Self::FieldSet => "field_set",
            Self::FieldDelete => "field_delete",
            Self::FieldExpire => "field_expire",
            Self::FieldEnd => "field_end",
            Self::MemberAdd => "member_add",
            Self::MemberRemove => "member_remove",
            Self::ScoreSet => "score_set",
            Self::ScoreRemove => "score_remove",
            Self::PushFront => "push_front",
            Self::PushBack => "push_back",
            Self::ItemsRemove => "items_remove",
            Self::ItemSet => "item_set",
            Self::ItemInsert => "item_insert",
            Self::Present => "present",
            Self::Evict => "evict",
        }
    }
}

/// One item of a collection: a field with value and end, a member, a member with its score, or a value of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeItem {
    /// The field or member; empty of a list.
    pub member: Bytes,
    /// Of a field, or of a list.
    pub value: Bytes,
    /// Of a member of a sorted set.
    pub score: Option<Real>,
    /// When the field ends, if it does.
    pub expires_at: Option<Millis>,
}

impl ChangeItem {
    /// What it takes in a message, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.member.len() + self.value.len() + 24
    }

    fn encode(&self, out: &mut BytesMut) {
        put_field(out, 1, &self.member);
        put_field(out, 2, &self.value);
        put_real(out, 3, self.score);
        put_integer(out, 4, self.expires_at.map(Millis::get));
    }
}

/// What was before a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeOld {
    /// What the key held, if the change is one of the key as a whole.
    pub holds: Option<KvType>,
    /// The value of the key, field or index. The message has only the length of one above [`FEED_VALUE_BYTES_MAX`].
    pub value: Option<Bytes>,
    /// When the key or field ended.
    pub expires_at: Option<Millis>,
    /// The score of the member.
    pub score: Option<Real>,
    /// How many items the collection had that is gone, whose items are not listed.
    pub items: Option<u64>,
    /// The values that a list lost, unless they are too many for one record.
    pub values: Vec<Bytes>,
}

impl ChangeOld {
    fn encode(&self, out: &mut BytesMut) {
        put_integer(out, 1, self.holds.map(type_number));
        match &self.value {
            Some(value) if value.len() > FEED_VALUE_BYTES_MAX => {
                put_integer(out, 7, Some(value.len() as u64));
            }
            Some(value) => put_present(out, 2, value),
            None => {}
        }
        put_integer(out, 3, self.expires_at.map(Millis::get));
        put_real(out, 4, self.score);
        put_integer(out, 5, self.items);
        self.values.iter().for_each(|value| put_present(out, 6, value));
    }
}

/// A change of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvChange {
    /// What changed. Which of the other fields count follows from it.
    pub kind: ChangeKind,
    /// The key's version since.
    pub version: Lsn,
    /// What the key holds.
    pub holds: Option<KvType>,
    /// The value. The message has only the length of one above [`FEED_VALUE_BYTES_MAX`].
    pub value: Bytes,
    /// When key or field end, if they do.
    pub expires_at: Option<Millis>,
    /// The field or member.
    pub member: Bytes,
    /// The member's score.
    pub score: Option<Real>,
    /// The first of the values.
    pub index: Option<u64>,
    /// How many values.
    pub count: Option<u64>,
    /// Another key that has to do with it.
    pub other: Option<Bytes>,
    /// The counter.
    pub number: Option<Number>,
    /// Items of the collection.
    pub items: Vec<ChangeItem>,
    /// Whether the collection goes on in the next record of the key.
    pub more: bool,
    /// What was before.
    pub old: Option<ChangeOld>,
}

impl KvChange {
    /// The message.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let items: usize = self.items.iter().map(ChangeItem::bytes).sum();
        let large = Some(self.value.len()).filter(|&bytes| bytes > FEED_VALUE_BYTES_MAX);
        let value = if large.is_some() { &[] } else { &self.value[..] };
        let mut out = BytesMut::with_capacity(64 + value.len() + self.member.len() + items);
        put_integer(&mut out, 1, Some(self.kind as u64));
        put_integer(&mut out, 2, Some(self.version.0));
        put_integer(&mut out, 3, self.holds.map(type_number));
        put_field(&mut out, 4, value);
        put_integer(&mut out, 5, self.expires_at.map(Millis::get));
        put_field(&mut out, 6, &self.member);
        put_real(&mut out, 7, self.score);
        put_integer(&mut out, 8, self.index);
        put_integer(&mut out, 9, self.count);
        if let Some(other) = &self.other {
            put_present(&mut out, 10, other);
        }
        match self.number {
            Some(Number::Integer(value)) => put_integer(&mut out, 11, Some(zigzag(value))),
            Some(Number::Float(value)) => put_real(&mut out, 12, Some(value)),
            None => {}
        }
        let mut nested = BytesMut::new();
        for item in &self.items {
            nested.clear();
            item.encode(&mut nested);
            put_present(&mut out, 13, &nested);
        }
        put_integer(&mut out, 14, self.more.then_some(1));
        if let Some(old) = &self.old {
            nested.clear();
            old.encode(&mut nested);
            put_present(&mut out, 15, &nested);
        }
        put_integer(&mut out, 16, large.map(|bytes| bytes as u64));
        out.freeze()
    }
}

/// Where the items of a collection go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ItemsFrom {
    /// With the first.
    Start,
    /// Behind this field or member.
    Behind(Bytes),
    /// At this place of a list.
    Place(u64),
}

/// Where a snapshot of a store goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotFrom {
    /// With the first key.
    Start,
    /// Behind this key.
    Behind(Bytes),
    /// Within the collection of a key that is too large for one part.
    Within {
        /// The key.
        key: Bytes,
        /// The collection's number.
        collection: u64,
        /// The key's version when its first part was read.
        version: Lsn,
        /// Where.
        items: ItemsFrom,
    },
}

/// A part of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotPart {
    /// Keys, each with an encoded [`KvChange`] of the kind `Present` or `Items`.
    pub changes: Vec<(Bytes, Bytes)>,
    /// Where the next part begins, if there is one.
    pub next: Option<SnapshotFrom>,
    /// All entries of the shard's log up to here are in it, and none behind.
    pub upto: Lsn,
    /// Of a part within a list: it had changed, and begins anew.
    pub again: bool,
}

/// The version of a message that [`KvChange::encode`] wrote, without reading the rest.
///
/// # Errors
/// [`Malformed`] if it is none.
pub fn version_of(message: &[u8]) -> Result<Lsn, Malformed> {
    const NONE: Malformed = Malformed("no record of a change");
    let rest = message.strip_prefix(&[1 << 3]).ok_or(NONE)?;
    let (_, used) = read_varint(rest)?;
    let rest = rest.get(used..).and_then(|rest| rest.strip_prefix(&[2 << 3])).ok_or(NONE)?;
    Ok(Lsn(read_varint(rest)?.0))
}

/// A type's number in the API.
const fn type_number(holds: KvType) -> u64 {
    holds as u64 + 1
}

fn put_integer(out: &mut BytesMut, field: u32, value: Option<u64>) {
    if let Some(value) = value {
        put_varint(out, u64::from(field << 3));
        put_varint(out, value);
    }
}

fn put_real(out: &mut BytesMut, field: u32, value: Option<Real>) {
    if let Some(value) = value {
        put_varint(out, u64::from(field << 3 | 1));
        out.put_f64_le(value.get());
    }
}

fn put_present(out: &mut BytesMut, field: u32, value: &[u8]) {
    put_varint(out, u64::from(field << 3 | 2));
    put_bytes(out, value);
}

/// Bytes of which none are the same as empty ones.
fn put_field(out: &mut BytesMut, field: u32, value: &[u8]) {
    if !value.is_empty() {
        put_present(out, field, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_their_numbers_and_names() {
        for (number, kind) in (1u8..).zip(ChangeKind::ALL) {
            assert_eq!(kind as u8, number);
        }
        let mut names = ChangeKind::ALL.map(ChangeKind::as_str).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ChangeKind::ALL.len());
    }

    #[test]
    fn of_a_value_that_is_too_large_a_change_has_the_length() {
        let bytes = |len| Bytes::from(vec![b'v'; len]);
        let of = |len| {
            let old = Some(ChangeOld { value: Some(bytes(len)), ..ChangeOld::default() });
            KvChange { version: Lsn(1), value: bytes(len), old, ..KvChange::default() }.encode()
        };
        assert!(of(FEED_VALUE_BYTES_MAX).len() > 2 * FEED_VALUE_BYTES_MAX);
        // 1 MiB and a byte.
        let len = [0x81, 0x80, 0x40];
        let expected = [&[8, 1, 16, 1, 0x7A, 4, 0x38], &len[..], &[0x80, 1], &len[..]].concat();
        assert_eq!(of(FEED_VALUE_BYTES_MAX + 1), expected);
    }

    #[test]
    fn a_change_has_these_bytes() {
        let change = KvChange {
            kind: ChangeKind::ScoreSet,
            version: Lsn(300),
            member: Bytes::from_static(b"m"),
            score: Some(Real::ONE),
            old: Some(ChangeOld { score: Some(Real::ONE), ..ChangeOld::default() }),
            ..KvChange::default()
        };
        let one = [0, 0, 0, 0, 0, 0, 0xF0, 0x3F];
        let head: &[u8] = &[8, 14, 16, 0xAC, 2, 0x32, 1, b'm', 0x39];
        let expected = [head, &one[..], &[0x7A, 9, 0x21], &one[..]].concat();
        assert_eq!(change.encode(), expected);
        assert_eq!(version_of(&expected), Ok(Lsn(300)));
        assert!(version_of(b"").is_err() && version_of(&[8, 14, 8]).is_err());
    }
}

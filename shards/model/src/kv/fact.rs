//! What becomes true of a key-value store beside keys that are set to bytes, deleted and expired (see [`crate::fact`]).
//!
//! | tag | fact | fields after the store |
//! |---|---|---|
//! | 136 | `Counted`, whole | key, value (zigzag), expires at (0 = never) |
//! | 137 | `Counted`, decimal | key, value (eight bytes, IEEE 754, little-endian), expires at (0 = never) |
//! | 138 | `EndSet` | key, expires at (0 = never) |
//! | 139 | `Renamed` | key, new key |
//! | 140 | `Copied` | key, key of the copy |
//! | 141 | `FieldSet` | key, field, value, expires at (0 = never) |
//! | 142 | `FieldRemoved` | key, field, 1 its time was up, 0 not |
//! | 143 | `FieldEndSet` | key, field, expires at (0 = never) |
//! | 144 | `MemberAdded` | key, member |
//! | 145 | `MemberRemoved` | key, member |
//! | 146 | `ScoreSet` | key, member, score (eight bytes) |
//! | 147 | `ScoreRemoved` | key, member |
//! | 148 | `Pushed` | key, side (0 front, 1 back), value |
//! | 149 | `ItemsRemoved` | key, index, count |
//! | 150 | `ItemSet` | key, index, value |
//! | 151 | `ItemInserted` | key, index, value |
//! | 152 | `PagesFreed` | collection, page |
//! | 157 | `HistoryKept` | ms (0 = no more) |
//! | 162 | `HistoryTrimmed` | LSN, time |
//!
//! A fact about a field, member, score or item of a key that is not there makes the collection first. One that lost its
//! last member is followed by `KeyDeleted`.

use bytes::{Buf, BufMut, Bytes};

use super::{Number, Real, Side};
use crate::codec::{Malformed, Reader, put_bytes, put_varint};
use crate::ids::{Lsn, Millis};

/// What became true of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvFact {
    /// The key holds this number.
    Counted {
        /// Which.
        key: Bytes,
        /// What it holds.
        number: Number,
        /// When it ends, if it does.
        expires_at: Option<Millis>,
    },
    /// The key ends then.
    EndSet {
        /// Which.
        key: Bytes,
        /// When, if it does.
        expires_at: Option<Millis>,
    },
    /// The key has another name; what had that before is gone.
    Renamed {
        /// Which.
        key: Bytes,
        /// Its name now.
        to: Bytes,
    },
    /// Another key holds the same and ends as this one; what it held before is gone.
    Copied {
        /// Which.
        key: Bytes,
        /// The other.
        to: Bytes,
    },
    /// The field has this value.
    FieldSet {
        /// The hash.
        key: Bytes,
        /// Which.
        field: Bytes,
        /// What it holds.
        value: Bytes,
        /// When it ends, if it does.
        expires_at: Option<Millis>,
    },
    /// The field is gone.
    FieldRemoved {
        /// The hash.
        key: Bytes,
        /// Which.
        field: Bytes,
        /// Because its time was up.
        expired: bool,
    },
    /// The field ends then.
    FieldEndSet {
        /// The hash.
        key: Bytes,
        /// Which.
        field: Bytes,
        /// When, if it does.
        expires_at: Option<Millis>,
    },
    /// The set has the member.
    MemberAdded {
        /// The set.
        key: Bytes,
        /// Which.
        member: Bytes,
    },
    /// The set has the member no more.
    MemberRemoved {
        /// The set.
        key: Bytes,
        /// Which.
        member: Bytes,
    },
    /// The member has this score.
    ScoreSet {
        /// The sorted set.
        key: Bytes,
        /// Which.
        member: Bytes,
        /// What it has.
        score: Real,
    },
    /// The sorted set has the member no more.
    ScoreRemoved {
        /// The sorted set.
        key: Bytes,
        /// Which.
        member: Bytes,
    },
    /// The list has one more value at its end.
    Pushed {
        /// The list.
        key: Bytes,
        /// Which end.
        side: Side,
        /// What.
        value: Bytes,
    },
    /// The list lost so many values from an index on.
    ItemsRemoved {
        /// The list.
        key: Bytes,
        /// The first of them.
        index: u64,
        /// How many.
        count: u64,
    },
    /// The list has another value at an index.
    ItemSet {
        /// The list.
        key: Bytes,
        /// Where.
        index: u64,
        /// What.
        value: Bytes,
    },
    /// The list has one more value, in front of what had this index.
    ItemInserted {
        /// The list.
        key: Bytes,
        /// Where it is now.
        index: u64,
        /// What.
        value: Bytes,
    },
    /// The key is gone: there was no room for all, and it was asked for least.
    Evicted {
        /// Which.
        key: Bytes,
    },
    /// Pages of a collection that is gone are gone, before this one.
    PagesFreed {
        /// The collection's number.
        collection: u64,
        /// The first page that is still there.
        upto: u32,
    },
    /// From now on what changes is kept for so long.
    HistoryKept {
        /// For how long at least, ms; 0: no more.
        ms: u64,
    },
    /// What was before changes up to this entry is kept no more.
    HistoryTrimmed {
        /// The entry.
        upto: Lsn,
        /// No state before this time can be read.
        time: Millis,
    },
}

/// Tags of facts about stores.
pub const TAGS: std::ops::RangeInclusive<u8> = 136..=167;

const COUNTED_INTEGER: u8 = 136;
const COUNTED_FLOAT: u8 = 137;
const END_SET: u8 = 138;
const RENAMED: u8 = 139;
const COPIED: u8 = 140;
const FIELD_SET: u8 = 141;
const FIELD_REMOVED: u8 = 142;
const FIELD_END_SET: u8 = 143;
const MEMBER_ADDED: u8 = 144;
const MEMBER_REMOVED: u8 = 145;
const SCORE_SET: u8 = 146;
const SCORE_REMOVED: u8 = 147;
const PUSHED: u8 = 148;
const ITEMS_REMOVED: u8 = 149;
const ITEM_SET: u8 = 150;
const ITEM_INSERTED: u8 = 151;
const PAGES_FREED: u8 = 152;
const HISTORY_KEPT: u8 = 157;
const HISTORY_TRIMMED: u8 = 162;
const EVICTED: u8 = 158;

impl KvFact {
    /// The tag on disk.
    #[must_use]
    pub const fn tag(&self) -> u8 {
        match self {
            Self::Counted { number: Number::Integer(_), .. } => COUNTED_INTEGER,
            Self::Counted { number: Number::Float(_), .. } => COUNTED_FLOAT,
            Self::EndSet { .. } => END_SET,
            Self::Renamed { .. } => RENAMED,
            Self::Copied { .. } => COPIED,
            Self::FieldSet { .. } => FIELD_SET,
            Self::FieldRemoved { .. } => FIELD_REMOVED,
            Self::FieldEndSet { .. } => FIELD_END_SET,
            Self::MemberAdded { .. } => MEMBER_ADDED,
            Self::MemberRemoved { .. } => MEMBER_REMOVED,
            Self::ScoreSet { .. } => SCORE_SET,
            Self::ScoreRemoved { .. } => SCORE_REMOVED,
            Self::Pushed { .. } => PUSHED,
            Self::ItemsRemoved { .. } => ITEMS_REMOVED,
            Self::ItemSet { .. } => ITEM_SET,
            Self::ItemInserted { .. } => ITEM_INSERTED,
            Self::PagesFreed { .. } => PAGES_FREED,
            Self::HistoryKept { .. } => HISTORY_KEPT,
            Self::HistoryTrimmed { .. } => HISTORY_TRIMMED,
            Self::Evicted { .. } => EVICTED,
        }
    }

    /// The key it is about, if it is about one.
    #[must_use]
    pub fn key(&self) -> Option<&Bytes> {
        match self {
            Self::Counted { key, .. }
            | Self::EndSet { key, .. }
            | Self::Renamed { key, .. }
            | Self::Copied { key, .. }
            | Self::FieldSet { key, .. }
            | Self::FieldRemoved { key, .. }
            | Self::FieldEndSet { key, .. }
            | Self::MemberAdded { key, .. }
            | Self::MemberRemoved { key, .. }
            | Self::ScoreSet { key, .. }
            | Self::ScoreRemoved { key, .. }
            | Self::Pushed { key, .. }
            | Self::ItemsRemoved { key, .. }
            | Self::ItemSet { key, .. }
            | Self::ItemInserted { key, .. }
            | Self::Evicted { key } => Some(key),
            Self::PagesFreed { .. } | Self::HistoryKept { .. } | Self::HistoryTrimmed { .. } => None,
        }
    }

    /// Appends what follows tag and store.
    pub fn encode(&self, out: &mut impl BufMut) {
        if let Some(key) = self.key() {
            put_bytes(out, key);
        }
        match self {
            Self::Counted { number, expires_at, .. } => {
                match number {
                    Number::Integer(value) => put_varint(out, zigzag(*value)),
                    Number::Float(value) => out.put_f64_le(value.get()),
                }
                put_end(out, *expires_at);
            }
            Self::EndSet { expires_at, .. } => put_end(out, *expires_at),
            Self::Evicted { .. } => {}
            Self::Renamed { to, .. } | Self::Copied { to, .. } => put_bytes(out, to),
            Self::FieldSet { field, value, expires_at, .. } => {
                put_bytes(out, field);
                put_bytes(out, value);
                put_end(out, *expires_at);
            }
            Self::FieldRemoved { field, expired, .. } => {
                put_bytes(out, field);
                out.put_u8(u8::from(*expired));
            }
            Self::FieldEndSet { field, expires_at, .. } => {
                put_bytes(out, field);
                put_end(out, *expires_at);
            }
            Self::MemberAdded { member, .. }
            | Self::MemberRemoved { member, .. }
            | Self::ScoreRemoved { member, .. } => put_bytes(out, member),
            Self::ScoreSet { member, score, .. } => {
                put_bytes(out, member);
                out.put_f64_le(score.get());
            }
            Self::Pushed { side, value, .. } => {
                out.put_u8(*side as u8);
                put_bytes(out, value);
            }
            Self::ItemsRemoved { index, count, .. } => {
                put_varint(out, *index);
                put_varint(out, *count);
            }
            Self::ItemSet { index, value, .. } | Self::ItemInserted { index, value, .. } => {
                put_varint(out, *index);
                put_bytes(out, value);
            }
            Self::PagesFreed { collection, upto } => {
                put_varint(out, *collection);
                put_varint(out, u64::from(*upto));
            }
            Self::HistoryKept { ms } => put_varint(out, *ms),
            Self::HistoryTrimmed { upto, time } => {
                put_varint(out, upto.0);
                put_varint(out, time.0);
            }
        }
    }

    /// An upper bound of what [`KvFact::encode`] appends beyond two integers, a byte and two lengths.
    #[must_use]
    pub fn encoded_len_max(&self) -> usize {
        self.key().map_or(0, Bytes::len)
            + match self {
                Self::Renamed { to, .. } | Self::Copied { to, .. } => to.len(),
                Self::FieldSet { field, value, .. } => field.len() + value.len() + 10,
                Self::FieldRemoved { field, .. } | Self::FieldEndSet { field, .. } => field.len(),
                Self::MemberAdded { member, .. }
                | Self::MemberRemoved { member, .. }
                | Self::ScoreRemoved { member, .. }
                | Self::ScoreSet { member, .. } => member.len(),
                Self::Pushed { value, .. }
                | Self::ItemSet { value, .. }
                | Self::ItemInserted { value, .. } => value.len(),
                Self::Counted { .. }
                | Self::EndSet { .. }
                | Self::ItemsRemoved { .. }
                | Self::Evicted { .. }
                | Self::PagesFreed { .. }
                | Self::HistoryKept { .. }
                | Self::HistoryTrimmed { .. } => 0,
            }
    }

    /// Reads what [`KvFact::encode`] wrote.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(tag: u8, reader: &mut Reader) -> Result<Self, Malformed> {
        match tag {
            PAGES_FREED => {
                return Ok(Self::PagesFreed { collection: reader.varint()?, upto: reader.varint_u32()? });
            }
            HISTORY_KEPT => return Ok(Self::HistoryKept { ms: reader.varint()? }),
            HISTORY_TRIMMED => {
                return Ok(Self::HistoryTrimmed {
                    upto: Lsn(reader.varint()?),
                    time: Millis(reader.varint()?),
                });
            }
            _ => {}
        }
        let key = reader.bytes()?;
        Ok(match tag {
            COUNTED_INTEGER => {
                let number = Number::Integer(unzigzag(reader.varint()?));
                Self::Counted { key, number, expires_at: read_end(reader)? }
            }
            COUNTED_FLOAT => {
                let number = Number::Float(read_real(reader)?);
                Self::Counted { key, number, expires_at: read_end(reader)? }
            }
            END_SET => Self::EndSet { key, expires_at: read_end(reader)? },
            RENAMED => Self::Renamed { key, to: reader.bytes()? },
            COPIED => Self::Copied { key, to: reader.bytes()? },
            FIELD_SET => {
                let (field, value) = (reader.bytes()?, reader.bytes()?);
                Self::FieldSet { key, field, value, expires_at: read_end(reader)? }
            }
            FIELD_REMOVED => Self::FieldRemoved { key, field: reader.bytes()?, expired: reader.byte()? != 0 },
            FIELD_END_SET => Self::FieldEndSet { key, field: reader.bytes()?, expires_at: read_end(reader)? },
            MEMBER_ADDED => Self::MemberAdded { key, member: reader.bytes()? },
            MEMBER_REMOVED => Self::MemberRemoved { key, member: reader.bytes()? },
            SCORE_SET => Self::ScoreSet { key, member: reader.bytes()?, score: read_real(reader)? },
            SCORE_REMOVED => Self::ScoreRemoved { key, member: reader.bytes()? },
            PUSHED => {
                let side = if reader.byte()? == 0 { Side::Front } else { Side::Back };
                Self::Pushed { key, side, value: reader.bytes()? }
            }
            ITEMS_REMOVED => Self::ItemsRemoved { key, index: reader.varint()?, count: reader.varint()? },
            ITEM_SET => Self::ItemSet { key, index: reader.varint()?, value: reader.bytes()? },
            ITEM_INSERTED => Self::ItemInserted { key, index: reader.varint()?, value: reader.bytes()? },
            EVICTED => Self::Evicted { key },
            _ => return Err(Malformed("unknown fact about a store")),
        })
    }
}

/// Appends a time, 0 for never.
fn put_end(out: &mut impl BufMut, at: Option<Millis>) {
    put_varint(out, at.map_or(0, Millis::get));
}

fn read_end(reader: &mut Reader) -> Result<Option<Millis>, Malformed> {
    Ok(Some(Millis(reader.varint()?)).filter(|at| at.0 > 0))
}

fn read_real(reader: &mut Reader) -> Result<Real, Malformed> {
    Real::new(reader.take(8)?.get_f64_le()).ok_or(Malformed("a number that is none"))
}

/// An integer as one without a sign, small for small ones.
#[must_use]
pub const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// What [`zigzag`] was made of.
#[must_use]
pub const fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_about_stores_have_these_bytes_for_ever() {
        let b = |text: &'static str| Bytes::from_static(text.as_bytes());
        let (key, field, value) = (b("k"), b("f"), b("v"));
        let one = [0, 0, 0, 0, 0, 0, 0xF0, 0x3F];
        let rows: Vec<(KvFact, Vec<u8>)> = vec![
            (
                KvFact::Counted { key: b("k"), number: Number::Integer(-2), expires_at: Some(Millis(5)) },
                vec![136, 1, b'k', 3, 5],
            ),
            (
                KvFact::Counted { key: b("k"), number: Number::Float(Real::ONE), expires_at: None },
                [&[137, 1, b'k'][..], &one, &[0]].concat(),
            ),
            (KvFact::EndSet { key: b("k"), expires_at: Some(Millis(300)) }, vec![138, 1, b'k', 0xAC, 2]),
            (KvFact::Renamed { key: b("k"), to: b("l") }, vec![139, 1, b'k', 1, b'l']),
            (KvFact::Copied { key: b("k"), to: b("l") }, vec![140, 1, b'k', 1, b'l']),
            (
                KvFact::FieldSet {
                    key: key.clone(),
                    field: field.clone(),
                    value: value.clone(),
                    expires_at: None,
                },
                vec![141, 1, b'k', 1, b'f', 1, b'v', 0],
            ),
            (
                KvFact::FieldRemoved { key: key.clone(), field: field.clone(), expired: true },
                vec![142, 1, b'k', 1, b'f', 1],
            ),
            (
                KvFact::FieldEndSet { key: key.clone(), field, expires_at: Some(Millis(6)) },
                vec![143, 1, b'k', 1, b'f', 6],
            ),
            (KvFact::MemberAdded { key: b("k"), member: b("m") }, vec![144, 1, b'k', 1, b'm']),
            (KvFact::MemberRemoved { key: b("k"), member: b("m") }, vec![145, 1, b'k', 1, b'm']),
            (
                KvFact::ScoreSet { key: b("k"), member: b("m"), score: Real::ONE },
                [&[146, 1, b'k', 1, b'm'][..], &one].concat(),
            ),
            (KvFact::ScoreRemoved { key: b("k"), member: b("m") }, vec![147, 1, b'k', 1, b'm']),
            (
                KvFact::Pushed { key: b("k"), side: Side::Back, value: value.clone() },
                vec![148, 1, b'k', 1, 1, b'v'],
            ),
            (KvFact::ItemsRemoved { key: b("k"), index: 2, count: 300 }, vec![149, 1, b'k', 2, 0xAC, 2]),
            (KvFact::ItemSet { key: b("k"), index: 2, value: value.clone() }, vec![150, 1, b'k', 2, 1, b'v']),
            (KvFact::ItemInserted { key, index: 2, value }, vec![151, 1, b'k', 2, 1, b'v']),
            (KvFact::Evicted { key: b("k") }, vec![158, 1, b'k']),
            (KvFact::PagesFreed { collection: 7, upto: 300 }, vec![152, 7, 0xAC, 2]),
            (KvFact::HistoryKept { ms: 300 }, vec![157, 0xAC, 2]),
            (KvFact::HistoryTrimmed { upto: Lsn(9), time: Millis(300) }, vec![162, 9, 0xAC, 2]),
        ];
        for (fact, bytes) in rows {
            let mut out = vec![fact.tag()];
            fact.encode(&mut out);
            assert_eq!(out, bytes, "{fact:?}");
            assert!(out.len() <= fact.encoded_len_max() + 2 * 10 + 1 + 10);
            let mut reader = Reader::new(Bytes::copy_from_slice(&out[1..]));
            assert_eq!(KvFact::decode(out[0], &mut reader), Ok(fact));
            assert!(reader.is_empty());
        }
        let nan = [&[1, b'k', 1, b'm'][..], &f64::NAN.to_le_bytes()].concat();
        assert!(KvFact::decode(146, &mut Reader::new(nan.into())).is_err());
    }

    #[test]
    fn zigzag_goes_there_and_back() {
        for value in [0, 1, -1, i64::MAX, i64::MIN] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
    }
}

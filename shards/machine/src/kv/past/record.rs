//! What was before a change of a key, as it stands in the index, in the space `history`.
//!
//! | key | size | meaning |
//! |---|---|---|
//! | slot, store | 2, 8 | of the store itself, not of the key: records are read in the order of keys, whatever their slots |
//! | part | 8 | the time of the first record of this part of the history, big-endian |
//! | key | | with `00 FF` for `00`, then `00 00`: in the order of keys |
//! | time, LSN | 8 each | of the entry that made the change, big-endian |
//! | number | 4 | of the record within the entry, big-endian |
//!
//! | value | size | meaning |
//! |---|---|---|
//! | format | 1 | 1 |
//! | what | 1 | 0 the key was not there, 1 it held this, 2 it held the same but for some items, 3 it had another name later |
//! | version, end | varint each | of the key before; 0 none |
//! | 1: value | the rest | as [`Value::encode`] says, of bytes the type 0 and the bytes |
//! | 2: facts | the rest | tag and fact each, without key, that make of what is there what was, the last one first |
//! | 3: key | the rest | the other name, under which it goes on |
//!
//! The pages of a collection that a record names are there as long as the record is.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, Reader, put_varint};
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::{Lsn, Millis, SlotId};

use crate::keys;
use crate::kv::Entry;
use crate::kv::entry::View;
use crate::kv::value::Value;

const ABSENT: u8 = 0;
const WHOLE: u8 = 1;
const PART: u8 = 2;
const MOVED: u8 = 3;

/// Where a record stands among those of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub time: Millis,
    pub lsn: Lsn,
    pub number: u32,
}

const PLACE_BYTES: usize = 20;

/// What was before.
#[derive(Debug)]
pub(super) enum Before {
    Absent,
    Whole(Value),
    /// Facts that undo, in the order of what they undo.
    Part(Vec<KvFact>),
    Moved(Bytes),
}

/// A record.
#[derive(Debug)]
pub(super) struct Record {
    pub before: Before,
    pub version: Lsn,
    pub end: Millis,
}

/// What follows slot and store in the key of a record.
pub(super) fn row(part: Millis, key: &[u8], place: Place) -> Bytes {
    let mut out = BytesMut::with_capacity(8 + key.len() + 8 + PLACE_BYTES);
    out.put_u64(part.0);
    put_escaped(&mut out, key);
    out.put_slice(&[0, 0]);
    out.put_u64(place.time.0);
    out.put_u64(place.lsn.0);
    out.put_u32(place.number);
    out.freeze()
}

/// Rows of a key in a part, from a time on.
pub(super) fn rows_of(part: Millis, key: &[u8], from: Millis) -> Range<Bytes> {
    let start = row(part, key, Place { time: from, lsn: Lsn(0), number: 0 });
    start..behind(part, key)
}

/// The first row behind all rows of a key in a part.
pub(super) fn behind(part: Millis, key: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(10 + key.len());
    out.put_u64(part.0);
    put_escaped(&mut out, key);
    out.put_slice(&[0, 1]);
    out.freeze()
}

/// The first row of a key, or of those behind it, in a part.
pub(super) fn at(part: Millis, key: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(8 + key.len());
    out.put_u64(part.0);
    put_escaped(&mut out, key);
    out.freeze()
}

/// The first row behind a part.
pub(super) fn behind_part(part: Millis) -> Bytes {
    Bytes::copy_from_slice(&(part.0 + 1).to_be_bytes())
}

/// A zero is followed by 255, so that it is above the end of a key that ends there.
fn put_escaped(out: &mut BytesMut, key: &[u8]) {
    for &byte in key {
        out.put_u8(byte);
        if byte == 0 {
            out.put_u8(u8::MAX);
        }
    }
}

/// The part of a row.
pub(crate) fn part_of(row: &[u8]) -> Result<Millis, Malformed> {
    let part = row.first_chunk().ok_or(Malformed("a record of no part"))?;
    Ok(Millis(u64::from_be_bytes(*part)))
}

/// Key and place of a row.
pub(super) fn read_row(row: &[u8]) -> Result<(Bytes, Place), Malformed> {
    const SHORT: Malformed = Malformed("a record's key is too short");
    let (_, rest) = row.split_first_chunk::<8>().ok_or(SHORT)?;
    let (escaped, place) = rest.split_last_chunk::<PLACE_BYTES>().ok_or(SHORT)?;
    let escaped = escaped.strip_suffix(&[0, 0]).ok_or(Malformed("a record's key without its end"))?;
    let mut key = BytesMut::with_capacity(escaped.len());
    let mut bytes = escaped.iter();
    while let Some(&byte) = bytes.next() {
        key.put_u8(byte);
        if byte == 0 && bytes.next() != Some(&u8::MAX) {
            return Err(Malformed("a record's key with an end within"));
        }
    }
    let (time, rest) = place.split_first_chunk::<8>().ok_or(SHORT)?;
    let (lsn, number) = rest.split_first_chunk::<8>().ok_or(SHORT)?;
    let number = number.try_into().map_err(|_| SHORT)?;
    let place = Place {
        time: Millis(u64::from_be_bytes(*time)),
        lsn: Lsn(u64::from_be_bytes(*lsn)),
        number: u32::from_be_bytes(number),
    };
    Ok((key.freeze(), place))
}

fn head(what: u8, version: Lsn, end: Millis, room: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(22 + room);
    out.put_u8(keys::FORMAT);
    out.put_u8(what);
    put_varint(&mut out, version.0);
    put_varint(&mut out, end.0);
    out
}

/// What a key holds, before it holds something else. Of all that is noted, this alone looks at values as such.
pub(super) fn of_entry(entry: Option<&Entry>) -> Vec<u8> {
    let Some(entry) = entry else { return head(ABSENT, Lsn(0), Millis(0), 0) };
    let bytes = match entry.view() {
        View::Bytes(bytes) => bytes,
        View::Value(Value::Bytes(bytes)) => bytes,
        View::Cold(_) => panic!("what was is noted that is not in memory"),
        View::Value(other) => {
            let mut encoded = BytesMut::new();
            other.encode(&mut encoded);
            let mut out = head(WHOLE, entry.version(), entry.end(), encoded.len());
            out.put_slice(&encoded);
            return out;
        }
    };
    let mut out = head(WHOLE, entry.version(), entry.end(), 1 + bytes.len());
    out.put_u8(flowmesh_model::kv::KvType::Bytes as u8);
    out.put_slice(bytes);
    out
}

/// What a key holds, before it gets another name.
pub(super) fn of_moved(entry: &Entry, to: &[u8]) -> Vec<u8> {
    let mut out = head(MOVED, entry.version(), entry.end(), to.len());
    out.put_slice(to);
    out
}

/// What a key holds, before some items of it change; facts that undo it are to follow.
pub(super) fn of_part(entry: &Entry) -> Vec<u8> {
    head(PART, entry.version(), entry.end(), 48)
}

/// Whether facts that undo can follow.
pub(super) fn is_part(value: &[u8]) -> bool {
    value.get(1) == Some(&PART)
}

/// Adds a fact that undoes.
pub(super) fn add_undo(out: &mut Vec<u8>, undo: &KvFact) {
    out.put_u8(undo.tag());
    undo.encode(out);
}

impl Record {
    /// Reads a record's value; `slot` is that of its key.
    pub fn read(value: &Bytes, slot: SlotId) -> Result<Self, Malformed> {
        let mut reader = keys::open(value.clone())?;
        let what = reader.byte()?;
        let (version, end) = (Lsn(reader.varint()?), Millis(reader.varint()?));
        let before = match what {
            ABSENT => Before::Absent,
            WHOLE => Before::Whole(Value::decode(&mut reader, slot)?),
            PART => Before::Part(read_facts(&mut reader)?),
            MOVED => Before::Moved(reader.take(reader.remaining())?),
            _ => return Err(Malformed("a record of an unknown sort")),
        };
        keys::close(&reader)?;
        Ok(Self { before, version, end })
    }
}

fn read_facts(reader: &mut Reader) -> Result<Vec<KvFact>, Malformed> {
    let mut facts = Vec::new();
    while !reader.is_empty() {
        let tag = reader.byte()?;
        facts.push(KvFact::decode(tag, reader)?);
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_are_in_the_order_of_keys_and_places_and_are_read_back(
            one in (prop::collection::vec(prop_oneof![Just(0), Just(1), Just(255), any::<u8>()], 0..5), any::<[u8; 3]>()),
            other in (prop::collection::vec(prop_oneof![Just(0), Just(1), Just(255), any::<u8>()], 0..5), any::<[u8; 3]>()),
        ) {
            let place = |[time, lsn, number]: [u8; 3]| Place {
                time: Millis(time.into()),
                lsn: Lsn(lsn.into()),
                number: number.into(),
            };
            let part = Millis(7);
            let rows = [&one, &other].map(|(key, of)| row(part, key, place(*of)));
            let order = (&one.0, place(one.1)).cmp(&(&other.0, place(other.1)));
            prop_assert_eq!(rows[0].cmp(&rows[1]), order);
            for (row, (key, of)) in rows.iter().zip([&one, &other]) {
                prop_assert_eq!(read_row(row), Ok((Bytes::from(key.clone()), place(*of))));
                prop_assert_eq!(part_of(row), Ok(part));
                prop_assert!(rows_of(part, key, Millis(0)).contains(row));
                prop_assert!(at(part, key) < *row && *row < behind(part, key) && *row < behind_part(part));
            }
            if one.0 < other.0 {
                prop_assert!(behind(part, &one.0) < at(part, &other.0));
            }
        }
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let good = row(Millis(1), b"k", Place { time: Millis(2), lsn: Lsn(3), number: 4 });
        assert!(read_row(&good[..good.len() - 1]).is_err() && read_row(&good[..5]).is_err());
        let read = |bytes: &'static [u8]| Record::read(&Bytes::from_static(bytes), SlotId(0));
        assert!(matches!(read(&[1, 0, 0, 0]), Ok(Record { before: Before::Absent, .. })));
        for bad in
            [&[2, 0, 0, 0][..], &[1, 9, 0, 0], &[1, 0, 0, 0, 0], &[1, 2, 0, 0, 250], &[1, 1, 0, 0], &[1]]
        {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}

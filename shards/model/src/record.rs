//! How stream records are packed: as they travel, so they rest.
//!
//! A packed batch is the records one after the other, each behind a tag byte and its length. This is also the
//! protobuf encoding of a field `repeated Record records = 3`, so the gRPC edge hands batches through in both
//! directions without touching a record, and the log and the segments hold the same bytes:
//!
//! | part | bytes | meaning |
//! |---|---|---|
//! | batch | (0x1A, length, record)* | one or more records |
//! | record | [0x0A, length, key]  | the key, if there is one |
//! | | [0x12, length, value] | the value; absent = empty |
//! | | (0x1A, length, header)* | headers in order |
//! | | [0x20, integer] | the producer's time, ms since the epoch, if it gave one |
//! | header | [0x0A, length, name] [0x12, length, value] | either may be absent = empty |
//!
//! Lengths and integers are LEB128. Fields may come in any order (the last of a single field counts); a batch has no
//! unknown fields: [`PackedRecords::check`] refuses them, so that what is stored can be read by every later version.
//! In the place of the records may be the same in compressed form, see [`crate::compression`].

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{Malformed, bytes_len, put_bytes, put_varint, read_varint, varint_len};
use crate::compression::{Codec, compress, is_compressed, plain};
use crate::limits::{
    BATCH_ITEMS_MAX, COMPRESS_FROM_BYTES, HEADER_NAME_BYTES_MAX, HEADER_VALUE_BYTES_MAX, HEADERS_MAX,
    KEY_BYTES_MAX, VALUE_BYTES_MAX,
};
use crate::reject::Reject;
use crate::settings::StreamSettings;

/// The tag before each record of a batch, and before each header of a record.
pub const ITEM_TAG: u8 = 0x1A;
const KEY_TAG: u8 = 0x0A;
const VALUE_TAG: u8 = 0x12;
const TIME_TAG: u8 = 0x20;

/// A batch of records that has been checked: shape, and every limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedRecords {
    bytes: Bytes,
    count: u32,
    /// The first record without a key.
    keyless: Option<u32>,
}

impl PackedRecords {
    /// Checks a batch from outside.
    ///
    /// # Errors
    /// [`Reject::InvalidArgument`] on a malformed or empty batch, [`Reject::TooLarge`] on a breach of a limit.
    pub fn check(bytes: Bytes) -> Result<Self, Reject> {
        let (mut count, mut keyless) = (0u32, None);
        let plain = plain(&bytes).map_err(malformed)?;
        for record in RecordSlices::new(&plain) {
            if !check_record(record.map_err(malformed)?)? {
                keyless.get_or_insert(count);
            }
            count += 1;
        }
        if count == 0 {
            return Err(Reject::invalid("records", "is empty; send at least one record"));
        }
        if count as usize > BATCH_ITEMS_MAX {
            return Err(Reject::TooLarge {
                what: "records",
                size: u64::from(count),
                max: BATCH_ITEMS_MAX as u64,
            });
        }
        Ok(Self { bytes, count, keyless })
    }

    /// Records that were packed here, each with a key: jobs, which were checked as such.
    #[must_use]
    pub fn of_jobs(packer: RecordPacker) -> Self {
        let count = packer.count();
        debug_assert!(count > 0, "a batch has records");
        Self { bytes: packer.finish(), count, keyless: None }
    }

    /// The packed bytes, perhaps compressed.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The packed records as they are, decoded if they are compressed.
    ///
    /// # Errors
    /// None: they were decoded before.
    pub fn plain(&self) -> Result<Bytes, Reject> {
        plain(&self.bytes).map_err(malformed)
    }

    /// The same records, compressed if that makes them smaller and they are not yet.
    #[must_use]
    pub fn compressed(self, codec: Codec) -> Self {
        if self.bytes.len() < COMPRESS_FROM_BYTES || is_compressed(&self.bytes) {
            return self;
        }
        let bytes = compress(&self.bytes, codec).unwrap_or(self.bytes);
        Self { bytes, ..self }
    }

    /// How many records there are, at least one.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Checks that the records have what the stream's settings ask of them.
    ///
    /// # Errors
    /// [`Reject::KeyMissing`] if the stream is compacted.
    pub fn check_for(&self, settings: &StreamSettings) -> Result<(), Reject> {
        match self.keyless {
            Some(record) if settings.compaction => Err(Reject::KeyMissing { record }),
            _ => Ok(()),
        }
    }
}

fn malformed(error: Malformed) -> Reject {
    Reject::invalid("records", error.0)
}

/// Whether it has a key.
fn check_record(record: &[u8]) -> Result<bool, Reject> {
    let (mut headers, mut has_key) = (0, false);
    for field in Fields::new(record) {
        match field.map_err(malformed)? {
            Field::Key(key) => {
                has_key = true;
                check_size("record key", key, KEY_BYTES_MAX)?;
            }
            Field::Value(value) => check_size("record value", value, VALUE_BYTES_MAX)?,
            Field::Header(header) => {
                headers += 1;
                check_header(header)?;
            }
            Field::Time(_) => {}
        }
    }
    check_header_count("headers of a record", headers)?;
    Ok(has_key)
}

fn check_header_count(what: &'static str, headers: usize) -> Result<(), Reject> {
    if headers > HEADERS_MAX {
        return Err(Reject::TooLarge { what, size: headers as u64, max: HEADERS_MAX as u64 });
    }
    Ok(())
}

/// Checks packed headers that stand alone, as jobs have them: (0x1A, length, header)*.
///
/// # Errors
/// [`Reject::InvalidArgument`] if malformed, [`Reject::TooLarge`] on a breach of a limit.
pub fn check_headers(packed: &[u8]) -> Result<(), Reject> {
    let mut headers = 0;
    for header in RecordSlices::new(packed) {
        header.map_err(malformed).and_then(check_header).map_err(|reject| match reject {
            Reject::InvalidArgument { reason, .. } => Reject::InvalidArgument { field: "headers", reason },
            other => other,
        })?;
        headers += 1;
    }
    check_header_count("headers of a job", headers)
}

/// Whether packed headers have one of this name and value.
#[must_use]
pub fn has_header(packed: &[u8], name: &[u8], value: &[u8]) -> bool {
    RecordSlices::new(packed)
        .any(|header| header.and_then(split_header).is_ok_and(|found| found == (name, value)))
}

fn check_header(header: &[u8]) -> Result<(), Reject> {
    let (name, value) = split_header(header).map_err(malformed)?;
    check_size("header name", name, HEADER_NAME_BYTES_MAX)?;
    check_size("header value", value, HEADER_VALUE_BYTES_MAX)?;
    std::str::from_utf8(name)
        .map(|_| ())
        .map_err(|_| Reject::invalid("headers", "a header's name is not UTF-8"))
}

#[inline]
fn check_size(what: &'static str, bytes: &[u8], max: usize) -> Result<(), Reject> {
    if bytes.len() > max {
        Err(Reject::TooLarge { what, size: bytes.len() as u64, max: max as u64 })
    } else {
        Ok(())
    }
}

/// Takes a tagged, length-prefixed item off the front.
#[inline]
pub(crate) fn take_item(bytes: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (len, used) = read_varint(bytes)?;
    let len = usize::try_from(len).map_err(|_| Malformed("length above memory"))?;
    let rest = bytes.get(used..).unwrap_or_default();
    if len > rest.len() {
        return Err(Malformed("length beyond the end"));
    }
    Ok(rest.split_at(len))
}

/// The records of a packed batch, each without its tag and length.
#[derive(Clone, Debug)]
pub struct RecordSlices<'a> {
    rest: &'a [u8],
}

impl<'a> RecordSlices<'a> {
    /// All records of `batch`.
    pub fn new(batch: &'a [u8]) -> Self {
        Self { rest: batch }
    }

    /// The bytes not yet walked over.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for RecordSlices<'a> {
    type Item = Result<&'a [u8], Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (&tag, after) = self.rest.split_first()?;
        let taken = if tag == ITEM_TAG {
            take_item(after)
        } else {
            Err(Malformed("a record starts with another tag"))
        };
        match taken {
            Ok((record, rest)) => {
                self.rest = rest;
                Some(Ok(record))
            }
            Err(error) => {
                self.rest = &[];
                Some(Err(error))
            }
        }
    }
}

/// One field of a record.
pub(crate) enum Field<'a> {
    Key(&'a [u8]),
    Value(&'a [u8]),
    Header(&'a [u8]),
    Time(u64),
}

/// The fields of a record, without copying. After an error it gives the same error again.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub fn new(record: &'a [u8]) -> Self {
        Self { rest: record }
    }

    #[inline]
    fn read(&mut self, tag: u8, after: &'a [u8]) -> Result<Field<'a>, Malformed> {
        if tag == TIME_TAG {
            let (value, used) = read_varint(after)?;
            self.rest = after.get(used..).unwrap_or_default();
            return Ok(Field::Time(value));
        }
        let (item, rest) = take_item(after)?;
        self.rest = rest;
        match tag {
            KEY_TAG => Ok(Field::Key(item)),
            VALUE_TAG => Ok(Field::Value(item)),
            ITEM_TAG => Ok(Field::Header(item)),
            _ => Err(Malformed("a record has an unknown field")),
        }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (&tag, after) = self.rest.split_first()?;
        Some(self.read(tag, after))
    }
}

/// Name and value of a packed header.
pub fn split_header(header: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (mut name, mut value, mut rest) = (&[][..], &[][..], header);
    while let Some((&tag, after)) = rest.split_first() {
        let (item, left) = take_item(after)?;
        match tag {
            KEY_TAG => name = item,
            VALUE_TAG => value = item,
            _ => return Err(Malformed("a header has an unknown field")),
        }
        rest = left;
    }
    Ok((name, value))
}

/// What compaction wants to know of a record: its key, and whether it has a value.
#[inline]
pub fn key_and_presence(record: &[u8]) -> Result<(Option<&[u8]>, bool), Malformed> {
    let (mut key, mut has_value) = (None, false);
    for field in Fields::new(record) {
        match field? {
            Field::Key(bytes) => key = Some(bytes),
            Field::Value(value) => has_value = !value.is_empty(),
            Field::Header(_) | Field::Time(_) => {}
        }
    }
    Ok((key, has_value))
}

/// A record, read out of a packed batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordView<'a> {
    /// The key, if there is one.
    pub key: Option<&'a [u8]>,
    /// The value; empty if absent.
    pub value: &'a [u8],
    /// Names and values in order.
    pub headers: Vec<(&'a [u8], &'a [u8])>,
    /// The producer's time, ms since the epoch.
    pub timestamp_ms: Option<u64>,
}

impl<'a> RecordView<'a> {
    /// Reads one record (without its tag and length).
    pub fn read(record: &'a [u8]) -> Result<Self, Malformed> {
        let mut view = Self::default();
        for field in Fields::new(record) {
            match field? {
                Field::Key(key) => view.key = Some(key),
                Field::Value(value) => view.value = value,
                Field::Header(header) => view.headers.push(split_header(header)?),
                Field::Time(time) => view.timestamp_ms = Some(time),
            }
        }
        Ok(view)
    }
}

/// Builds packed batches.
#[derive(Debug, Default)]
pub struct RecordPacker {
    out: BytesMut,
    count: u32,
}

impl RecordPacker {
    /// Packs a record behind those before it.
    pub fn push(&mut self, record: &RecordView<'_>) {
        let headers: usize = record.headers.iter().map(|(n, v)| 1 + bytes_len(header_len(n, v))).sum();
        let len = record.key.map_or(0, |key| 1 + bytes_len(key.len()))
            + 1
            + bytes_len(record.value.len())
            + headers
            + record.timestamp_ms.map_or(0, |time| 1 + varint_len(time));
        self.out.reserve(1 + bytes_len(len));
        self.out.put_u8(ITEM_TAG);
        put_varint(&mut self.out, len as u64);
        if let Some(key) = record.key {
            self.out.put_u8(KEY_TAG);
            put_bytes(&mut self.out, key);
        }
        self.out.put_u8(VALUE_TAG);
        put_bytes(&mut self.out, record.value);
        for (name, value) in &record.headers {
            put_header(&mut self.out, name, value);
        }
        if let Some(time) = record.timestamp_ms {
            self.out.put_u8(TIME_TAG);
            put_varint(&mut self.out, time);
        }
        self.count += 1;
    }

    /// Copies a record that is packed already (without its tag and length).
    pub fn push_packed(&mut self, record: &[u8]) {
        self.out.reserve(1 + bytes_len(record.len()));
        self.out.put_u8(ITEM_TAG);
        put_bytes(&mut self.out, record);
        self.count += 1;
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The packed batch.
    pub fn finish(self) -> Bytes {
        self.out.freeze()
    }
}

fn header_len(name: &[u8], value: &[u8]) -> usize {
    1 + bytes_len(name.len()) + 1 + bytes_len(value.len())
}

/// Appends one packed header, tag and length included. Jobs keep their headers in this form.
pub fn put_header(out: &mut impl BufMut, name: &[u8], value: &[u8]) {
    out.put_u8(ITEM_TAG);
    put_varint(out, header_len(name, value) as u64);
    out.put_u8(KEY_TAG);
    put_bytes(out, name);
    out.put_u8(VALUE_TAG);
    put_bytes(out, value);
}

/// How many bytes the first `records` records of a batch take, at most all of them.
pub fn prefix_len(batch: &[u8], records: u32) -> usize {
    let mut slices = RecordSlices::new(batch);
    for _ in 0..records {
        if !matches!(slices.next(), Some(Ok(_))) {
            break;
        }
    }
    batch.len() - slices.rest().len()
}

/// How many records of a batch come whole within `bytes_max`, and how many bytes they take.
#[must_use]
pub fn records_within(batch: &[u8], bytes_max: usize) -> (u32, usize) {
    let mut slices = RecordSlices::new(batch);
    let (mut count, mut len) = (0, 0);
    while let Some(Ok(_)) = slices.next() {
        let end = batch.len() - slices.rest().len();
        if end > bytes_max {
            break;
        }
        (count, len) = (count + 1, end);
    }
    (count, len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Owned = (Option<Vec<u8>>, Vec<u8>, Vec<(String, Vec<u8>)>, Option<u64>);

    fn pack(records: &[Owned]) -> Bytes {
        let mut packer = RecordPacker::default();
        for (key, value, headers, time) in records {
            packer.push(&RecordView {
                key: key.as_deref(),
                value,
                headers: headers.iter().map(|(n, v)| (n.as_bytes(), v.as_slice())).collect(),
                timestamp_ms: *time,
            });
        }
        packer.finish()
    }

    proptest! {
        #[test]
        fn what_is_packed_is_read_back(records: Vec<Owned>) {
            let batch = pack(&records);
            let read: Vec<Owned> = RecordSlices::new(&batch)
                .map(|record| RecordView::read(record.unwrap()).unwrap())
                .map(|v| (
                    v.key.map(<[u8]>::to_vec),
                    v.value.to_vec(),
                    v.headers.iter().map(|(n, v)| (String::from_utf8(n.to_vec()).unwrap(), v.to_vec())).collect(),
                    v.timestamp_ms,
                ))
                .collect();
            prop_assert_eq!(&read, &records);
            prop_assert_eq!(prefix_len(&batch, records.len() as u32), batch.len());
            prop_assert_eq!(prefix_len(&batch, 0), 0);
        }

        #[test]
        fn noise_is_refused_or_read_but_never_panics(noise: Vec<u8>) {
            if let Ok(packed) = PackedRecords::check(noise.into()) {
                for record in RecordSlices::new(packed.bytes()) {
                    RecordView::read(record.unwrap()).unwrap();
                }
            }
        }
    }

    #[test]
    fn every_limit_of_a_record_is_kept() {
        let check = |record: Owned| PackedRecords::check(pack(&[record]));
        let fits: Owned = (Some(vec![1; KEY_BYTES_MAX]), vec![2; VALUE_BYTES_MAX], vec![], None);
        assert_eq!(check(fits.clone()).unwrap().count(), 1);
        assert!(check((Some(vec![1; KEY_BYTES_MAX + 1]), vec![], vec![], None)).is_err());
        assert!(check((None, vec![1; VALUE_BYTES_MAX + 1], vec![], None)).is_err());
        assert!(check((None, vec![], vec![("n".into(), vec![]); HEADERS_MAX + 1], None)).is_err());
        assert!(check((None, vec![], vec![("n".repeat(256), vec![])], None)).is_err());
        assert!(check((None, vec![], vec![("n".into(), vec![0; 1025])], None)).is_err());
        assert!(PackedRecords::check(Bytes::new()).is_err());
        assert!(
            PackedRecords::check(pack(&vec![(None, vec![], vec![], None); BATCH_ITEMS_MAX + 1])).is_err()
        );
    }

    #[test]
    fn a_record_without_a_key_is_named_where_keys_are_needed() {
        let compacted = StreamSettings { compaction: true, ..StreamSettings::default() };
        let pack = |keys: &[Option<&'static [u8]>]| {
            let mut packer = RecordPacker::default();
            for &key in keys {
                packer.push(&RecordView { key, ..RecordView::default() });
            }
            PackedRecords::check(packer.finish()).unwrap()
        };
        let mixed = pack(&[Some(b"a"), Some(b""), None, Some(b"b"), None]);
        assert_eq!(mixed.check_for(&compacted), Err(Reject::KeyMissing { record: 2 }));
        assert_eq!(mixed.check_for(&StreamSettings::default()), Ok(()));
        assert_eq!(pack(&[Some(b"a"), Some(b"")]).check_for(&compacted), Ok(()));
    }

    #[test]
    fn key_and_presence_of_a_value_are_seen() {
        let all = [(Some(&b"k"[..]), &b"v"[..]), (Some(b"k"), b""), (None, b"v"), (Some(b""), b"v")];
        for (key, value) in all {
            let mut packer = RecordPacker::default();
            let headers = vec![(&b"h"[..], &b"x"[..])];
            packer.push(&RecordView { key, value, headers, timestamp_ms: Some(7) });
            let packed = packer.finish();
            let record = RecordSlices::new(&packed).next().unwrap().unwrap();
            assert_eq!(key_and_presence(record), Ok((key, !value.is_empty())));
        }
    }
}

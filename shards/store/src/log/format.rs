//! The commit log's bytes. All integers are little-endian.
//!
//! A **segment** is a file `<sequence number, 20 digits>.log` of fixed size, written with zeros before its first use,
//! or recycled and then still full of old bytes. A name is given only to a finished file: under it the header is
//! always durable, so a header that does not hold is damage, never an unfinished write.
//!
//! | offset | bytes | segment header | |
//! |---|---|---|---|
//! | 0 | 8 | magic | `FLOWMLOG` |
//! | 8 | 4 | version | [`VERSION`]; where magic, version and checksum are never changes |
//! | 12 | 4 | crc32c | of bytes 0..12 and 16..64 |
//! | 16 | 8 | segment | sequence number, never used twice in a log |
//! | 24 | 8 | previous | sequence number of the segment before it, 0 = none |
//! | 32 | 8 | bytes | the file's size |
//! | 40 | 8 | salt | random, new each time the file is prepared |
//! | 48 | 2 | shard | |
//! | 50 | 4046 | zero | up to 4096, where the first batch starts |
//!
//! A **batch** starts at a multiple of 4096 and is filled up with zeros to the next one. One write is one batch.
//!
//! | offset | bytes | batch header | |
//! |---|---|---|---|
//! | 0 | 4 | magic | `FMB1` |
//! | 4 | 4 | crc32c | of bytes 0..4 and 8..64 |
//! | 8 | 4 | body bytes | of all entries, without this header and the zeros at the end |
//! | 12 | 4 | entries | at least 1 |
//! | 16 | 8 | segment | must be the file's: old bytes of a recycled file are of another |
//! | 24 | 8 | salt | must be the file's: what a client sends can never pass for a batch |
//! | 32 | 8 | run | grows with each opening of the log; never falls from batch to batch |
//! | 40 | 8 | first LSN | the LSNs of the entries are dense |
//! | 48 | 8 | synced LSN | everything up to it was durable when this batch was written |
//! | 56 | 8 | term | 0 until there is replication |
//!
//! An **entry** is one atomic change.
//!
//! | offset | bytes | entry | |
//! |---|---|---|---|
//! | 0 | 4 | crc32c | of the rest of header and body, seeded with the crc32c of the run |
//! | 4 | 4 | body bytes | |
//! | 8 | 8 | LSN | |
//! | 16 | 8 | time | ms since the epoch |
//! | 24 | n | body | facts (see `flowmesh_model::fact`) |
//!
//! **Why a run.** When a torn tail is cut, bytes of lost batches stay behind the cut. Each opening therefore gets a run
//! above all that are found anywhere in the log: (count of openings « 32) + a random number. A lost batch cannot follow
//! a new one (its run is lower), and a lost entry cannot complete a new torn batch (its checksum has another seed).
//!
//! **Version rule.** The version grows with every change after which an older server would misread a log. Older
//! versions stay readable.

use bytes::{Buf, BufMut, Bytes};
use flowmesh_model::{Lsn, Millis, Mutation, ShardId};

use super::error::Damage;
use crate::disk::ALIGN;
use crate::pages::{Fields, crc_around, put_at, round_up};

/// The format this server writes, and the newest it reads.
pub const VERSION: u32 = 1;

/// Bytes before the first batch.
pub const SEGMENT_HEADER_BYTES: usize = ALIGN;
/// Bytes of a batch before its first entry.
pub const BATCH_HEADER_BYTES: usize = 64;
/// Bytes of an entry before its body.
pub const ENTRY_HEADER_BYTES: usize = 24;

const SEGMENT_MAGIC: &[u8; 8] = b"FLOWMLOG";
const SEGMENT_FIELDS_BYTES: usize = 64;
/// What a batch starts with.
pub const BATCH_MAGIC: &[u8; 4] = b"FMB1";

/// The start of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Whose it is.
    pub shard: ShardId,
    /// Its sequence number.
    pub seq: u64,
    /// The sequence number of the one before it, 0 if it is the first.
    pub previous: u64,
    /// The size of the file.
    pub bytes: u64,
    /// What its batches must carry.
    pub salt: u64,
}

/// Why a segment header is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    /// It does not match its checksum.
    Damaged,
    /// It is of a newer format.
    Newer(u32),
}

impl SegmentHeader {
    /// Writes the header's fields to the start of a zeroed page.
    pub fn encode(&self, page: &mut [u8]) {
        let mut fields = Vec::with_capacity(SEGMENT_FIELDS_BYTES);
        fields.put_slice(SEGMENT_MAGIC);
        fields.put_u32_le(VERSION);
        fields.put_u32_le(0);
        fields.put_u64_le(self.seq);
        fields.put_u64_le(self.previous);
        fields.put_u64_le(self.bytes);
        fields.put_u64_le(self.salt);
        fields.put_u16_le(self.shard.0);
        fields.resize(SEGMENT_FIELDS_BYTES, 0);
        let crc = crc_around(&fields, 12);
        put_at(page, 0, &fields);
        put_at(page, 12, &crc.to_le_bytes());
    }

    /// Reads a header.
    pub fn decode(page: &[u8]) -> Result<Self, HeaderFault> {
        let fields = page.get(..SEGMENT_FIELDS_BYTES).ok_or(HeaderFault::Damaged)?;
        let mut read = Fields(fields.get(8..).unwrap_or_default());
        let (version, crc) = (read.u32(), read.u32());
        if !fields.starts_with(SEGMENT_MAGIC) || crc != crc_around(fields, 12) {
            return Err(HeaderFault::Damaged);
        }
        if version != VERSION {
            return Err(HeaderFault::Newer(version));
        }
        let (seq, previous, bytes, salt) = (read.u64(), read.u64(), read.u64(), read.u64());
        Ok(Self { seq, previous, bytes, salt, shard: ShardId(read.u16()) })
    }
}

/// The start of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Bytes of the entries.
    pub body_bytes: u32,
    /// How many entries.
    pub entries: u32,
    /// The segment's sequence number.
    pub seq: u64,
    /// The segment's salt.
    pub salt: u64,
    /// Which opening of the log wrote it.
    pub run: u64,
    /// The LSN of the first entry.
    pub first_lsn: Lsn,
    /// What was durable when it was written.
    pub synced_lsn: Lsn,
    /// For replication.
    pub term: u64,
}

impl BatchHeader {
    /// Writes the header to the first [`BATCH_HEADER_BYTES`] of `out`.
    pub fn encode(&self, out: &mut [u8]) {
        let mut fields = [0u8; BATCH_HEADER_BYTES];
        let mut put = fields.as_mut_slice();
        put.put_slice(BATCH_MAGIC);
        put.put_u32_le(0);
        put.put_u32_le(self.body_bytes);
        put.put_u32_le(self.entries);
        put.put_u64_le(self.seq);
        put.put_u64_le(self.salt);
        put.put_u64_le(self.run);
        put.put_u64_le(self.first_lsn.0);
        put.put_u64_le(self.synced_lsn.0);
        put.put_u64_le(self.term);
        let crc = crc_around(&fields, 4);
        put_at(out, 0, &fields);
        put_at(out, 4, &crc.to_le_bytes());
    }

    /// Reads a header; [`Damage::NoBatch`] if nothing like a batch starts here, [`Damage::BatchHeader`] if one does
    /// whose checksum does not match.
    pub fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        if !bytes.starts_with(BATCH_MAGIC) {
            return Err(Damage::NoBatch);
        }
        let fields = bytes.get(..BATCH_HEADER_BYTES).ok_or(Damage::NoBatch)?;
        let mut read = Fields(fields.get(4..).unwrap_or_default());
        if read.u32() != crc_around(fields, 4) {
            return Err(Damage::BatchHeader);
        }
        let (body_bytes, entries, seq, salt) = (read.u32(), read.u32(), read.u64(), read.u64());
        let (run, first_lsn, synced_lsn) = (read.u64(), Lsn(read.u64()), Lsn(read.u64()));
        Ok(Self { body_bytes, entries, seq, salt, run, first_lsn, synced_lsn, term: read.u64() })
    }

    /// Whether the batch was written into this segment since it was last prepared.
    pub fn belongs_to(&self, segment: &SegmentHeader) -> bool {
        self.seq == segment.seq && self.salt == segment.salt
    }

    /// The bytes the batch takes in the file.
    pub fn disk_bytes(&self) -> usize {
        round_up(BATCH_HEADER_BYTES + self.body_bytes as usize)
    }
}

/// A run, and the seed it gives to the checksums of its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    number: u64,
    seed: u32,
}

impl Run {
    /// The run with this number.
    pub fn new(number: u64) -> Self {
        Self { number, seed: crc32c::crc32c(&number.to_le_bytes()) }
    }

    /// The run of an opening that found no run above `highest`; `nonce` is random.
    pub fn after(highest: u64, nonce: u32) -> Self {
        Self::new((((highest >> 32) + 1) << 32) | u64::from(nonce))
    }

    /// Its number.
    pub fn number(self) -> u64 {
        self.number
    }
}

/// Writes an entry's header before a body of `body_bytes` that lies in `entry` already.
///
/// `entry` starts with room for the header.
pub fn seal_entry(entry: &mut [u8], body_bytes: usize, run: Run, lsn: Lsn, time: Millis) {
    let mut header = [0u8; ENTRY_HEADER_BYTES - 4];
    let mut put = header.as_mut_slice();
    put.put_u32_le(body_bytes as u32);
    put.put_u64_le(lsn.0);
    put.put_u64_le(time.0);
    put_at(entry, 4, &header);
    let covered = entry.get(4..ENTRY_HEADER_BYTES + body_bytes).unwrap_or_default();
    let crc = crc32c::crc32c_append(run.seed, covered);
    put_at(entry, 0, &crc.to_le_bytes());
}

/// An entry that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadEntry {
    /// Where it starts, from the start of the body.
    pub at: usize,
    /// What does not hold.
    pub what: Damage,
}

/// The entries of a batch, every one of which has been checked.
#[derive(Clone, Debug)]
pub struct VerifiedEntries {
    body: Bytes,
}

impl VerifiedEntries {
    /// Checks all entries of a batch: number, LSNs, lengths, checksums.
    pub fn check(header: &BatchHeader, body: Bytes) -> Result<Self, BadEntry> {
        let run = Run::new(header.run);
        let (mut at, mut lsn) = (0, header.first_lsn);
        for _ in 0..header.entries {
            let rest = body.get(at..).unwrap_or_default();
            at += check_entry(rest, run, lsn).map_err(|what| BadEntry { at, what })?;
            lsn = lsn.next();
        }
        if at != body.len() || header.entries == 0 {
            return Err(BadEntry { at, what: Damage::EntryShape });
        }
        Ok(Self { body })
    }

    /// The entries not yet walked over, as they are on disk.
    pub fn body(&self) -> &Bytes {
        &self.body
    }
}

impl Iterator for VerifiedEntries {
    type Item = (Lsn, Millis, Bytes);

    fn next(&mut self) -> Option<Self::Item> {
        if self.body.len() < ENTRY_HEADER_BYTES {
            return None;
        }
        let mut read = Fields(self.body.get(4..ENTRY_HEADER_BYTES).unwrap_or_default());
        let (len, lsn, time) = (read.u32() as usize, Lsn(read.u64()), Millis(read.u64()));
        self.body.advance(ENTRY_HEADER_BYTES);
        let body = self.body.split_to(len.min(self.body.len()));
        Some((lsn, time, body))
    }
}

/// Checks the entry at the start of `bytes`; returns how many bytes it takes.
fn check_entry(bytes: &[u8], run: Run, lsn: Lsn) -> Result<usize, Damage> {
    let mut read = Fields(bytes.get(..ENTRY_HEADER_BYTES).ok_or(Damage::EntryShape)?);
    let (crc, len) = (read.u32(), read.u32() as usize);
    let covered = bytes.get(4..ENTRY_HEADER_BYTES + len).ok_or(Damage::EntryShape)?;
    if crc32c::crc32c_append(run.seed, covered) != crc && !Mutation::TrustLog.is_made() {
        return Err(Damage::EntryChecksum);
    }
    if read.u64() != lsn.0 {
        return Err(Damage::EntryShape);
    }
    Ok(ENTRY_HEADER_BYTES + len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch_of(bodies: &[Vec<u8>], first: Lsn, run: Run) -> (BatchHeader, Vec<u8>) {
        let mut out = Vec::new();
        let mut lsn = first;
        for body in bodies {
            let mut entry = vec![0; ENTRY_HEADER_BYTES];
            entry.extend_from_slice(body);
            seal_entry(&mut entry, body.len(), run, lsn, Millis(lsn.0.wrapping_mul(10)));
            out.extend(entry);
            lsn = lsn.next();
        }
        let header = BatchHeader {
            body_bytes: out.len() as u32,
            entries: bodies.len() as u32,
            seq: 3,
            salt: 4,
            run: run.number(),
            first_lsn: first,
            synced_lsn: Lsn(first.0 - 1),
            term: 0,
        };
        (header, out)
    }

    proptest! {
        #[test]
        fn batches_round_trip(bodies in proptest::collection::vec(any::<Vec<u8>>(), 1..6), first in 1u64.., nonce: u32) {
            let first = Lsn(first >> 1 | 1);
            let (header, body) = batch_of(&bodies, first, Run::after(7, nonce));
            let mut bytes = [0; BATCH_HEADER_BYTES];
            header.encode(&mut bytes);
            prop_assert_eq!(BatchHeader::decode(&bytes), Ok(header));
            let read: Vec<_> = VerifiedEntries::check(&header, body.into()).unwrap().collect();
            prop_assert_eq!(read.len(), bodies.len());
            for (index, (lsn, time, body)) in read.into_iter().enumerate() {
                prop_assert_eq!(lsn.0, first.0 + index as u64);
                prop_assert_eq!(time.0, lsn.0.wrapping_mul(10));
                prop_assert_eq!(&body[..], &bodies[index][..]);
            }
        }

        #[test]
        fn noise_is_never_a_batch_and_never_panics(noise: Vec<u8>, run: u64) {
            prop_assert!(BatchHeader::decode(&noise).is_err());
            prop_assert!(SegmentHeader::decode(&noise).is_err());
            let header = BatchHeader { body_bytes: noise.len() as u32, entries: 1, seq: 0, salt: 0, run,
                first_lsn: Lsn(1), synced_lsn: Lsn(0), term: 0 };
            prop_assert!(VerifiedEntries::check(&header, noise.into()).is_err());
        }
    }

    #[test]
    fn every_flipped_bit_of_a_header_or_entry_is_seen() {
        let segment = SegmentHeader { shard: ShardId(7), seq: 9, previous: 8, bytes: 1 << 20, salt: 77 };
        let mut page = vec![0; SEGMENT_FIELDS_BYTES];
        segment.encode(&mut page);
        assert_eq!(SegmentHeader::decode(&page), Ok(segment));
        for bit in 0..page.len() * 8 {
            page[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&page), Err(HeaderFault::Damaged), "bit {bit}");
            page[bit / 8] ^= 1 << (bit % 8);
        }
        let (header, mut body) = batch_of(&[b"one".to_vec(), b"".to_vec()], Lsn(5), Run::new(1));
        let mut bytes = [0; BATCH_HEADER_BYTES];
        header.encode(&mut bytes);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(BatchHeader::decode(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        for bit in 0..body.len() * 8 {
            body[bit / 8] ^= 1 << (bit % 8);
            assert!(VerifiedEntries::check(&header, body.clone().into()).is_err(), "bit {bit}");
            body[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn an_entry_of_another_run_never_fits() {
        let (header, _) = batch_of(&[b"body".to_vec()], Lsn(5), Run::new(2));
        let (_, stale) = batch_of(&[b"body".to_vec()], Lsn(5), Run::new(1));
        let refused = VerifiedEntries::check(&header, stale.into()).unwrap_err();
        assert_eq!(refused.what, Damage::EntryChecksum);
    }

    #[test]
    fn a_newer_format_is_told_apart_from_damage() {
        let segment = SegmentHeader { shard: ShardId(0), seq: 1, previous: 0, bytes: 1 << 20, salt: 0 };
        let mut page = vec![0; SEGMENT_FIELDS_BYTES];
        segment.encode(&mut page);
        put_at(&mut page, 8, &2u32.to_le_bytes());
        let crc = crc_around(&page, 12);
        put_at(&mut page, 12, &crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&page), Err(HeaderFault::Newer(2)));
    }
}

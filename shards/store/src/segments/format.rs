//! The bytes of a stream segment file. All integers are little-endian.
//!
//! A file is its header and then blocks without a gap. One write is one block; a file grows as it is written.
//!
//! | offset | bytes | file header | |
//! |---|---|---|---|
//! | 0 | 8 | magic | `FLOWMSEG` |
//! | 8 | 4 | version | up to [`VERSION`]; where magic, version and checksum are never changes |
//! | 12 | 4 | crc32c | of bytes 0..12 and 16..64 |
//! | 16 | 8 | resource | the stream |
//! | 24 | 4 | partition | |
//! | 28 | 4 | zero | |
//! | 32 | 8 | base offset | where the file starts; also its name |
//! | 40 | 8 | end offset | of a compacted file: where it ends; else 0 |
//! | 48 | 8 | bytes | of a compacted file: its length; else 0 |
//! | 56 | 4040 | zero | up to 4096, where the first block starts |
//!
//! A **compacted** file has version 2, all others have 1. Its blocks and runs are in order, with gaps between them; there
//! may be none. It gets its name when it is finished and synced, and never changes.
//!
//! A **block** starts at a multiple of 4096 and is filled up with zeros to the next one.
//!
//! | offset | bytes | block header | |
//! |---|---|---|---|
//! | 0 | 4 | magic | `FMK1` |
//! | 4 | 4 | crc32c | of bytes 0..4 and 8..32 |
//! | 8 | 4 | body bytes | of all runs, without this header and the zeros at the end |
//! | 12 | 4 | runs | at least 1 |
//! | 16 | 8 | base offset | of the first record |
//! | 24 | 8 | next offset | behind the last record |
//!
//! A **run** is the records of one append, or, in a compacted file, neighbours that were appended at the same time.
//!
//! | offset | bytes | run | |
//! |---|---|---|---|
//! | 0 | 4 | crc32c | of the rest |
//! | 4 | 4 | record bytes | |
//! | 8 | 8 | base offset | |
//! | 16 | 8 | appended at | ms since the epoch |
//! | 24 | 4 | count | records, at least 1 |
//! | 28 | n | records | packed (see `flowmesh_model::record`) |
//!
//! **Version rule.** The version grows with every change after which an older server would misread a file. Older
//! versions stay readable.

use bytes::{BufMut, Bytes};
use flowmesh_model::reply::RecordRun;
use flowmesh_model::{Millis, Mutation, Offset, PartitionRef, ResourceId};

use super::error::SegmentDamage;
use super::names::file_name;
use crate::disk::ALIGN;
use crate::pages::{Fields, crc_around, put_at, round_up};

/// The newest format that this server reads, and writes for compacted files.
pub const VERSION: u32 = 2;
/// The format of files without gaps.
const VERSION_DENSE: u32 = 1;
/// Bytes before the first block.
pub const FILE_HEADER_BYTES: usize = ALIGN;
/// Bytes of a block before its first run.
pub const BLOCK_HEADER_BYTES: usize = 32;
/// Bytes of a run before its records.
pub const RUN_HEADER_BYTES: usize = 28;

const FILE_MAGIC: &[u8; 8] = b"FLOWMSEG";
const FILE_FIELDS_BYTES: usize = 64;
const BLOCK_MAGIC: &[u8; 4] = b"FMK1";

/// The start of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// Whose records.
    pub at: PartitionRef,
    /// Where it starts: the first record, unless that was compacted away.
    pub base: Offset,
    /// What the header says besides if the file is compacted.
    pub compacted: Option<Compacted>,
}

/// What a compacted file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted {
    /// Where the range ends of which it has what is left.
    pub end: Offset,
    /// The file's length.
    pub bytes: u64,
}

/// Why a file header is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileHeaderFault {
    /// It does not match its checksum.
    Damaged,
    /// It is of a newer format.
    Newer(u32),
}

impl FileHeader {
    /// The name of the file.
    pub fn file_name(&self) -> String {
        file_name(self.base, self.compacted.map(|compacted| compacted.end))
    }

    /// Writes the header to the start of a zeroed page.
    pub fn encode(&self, page: &mut [u8]) {
        let mut fields = Vec::with_capacity(FILE_FIELDS_BYTES);
        fields.put_slice(FILE_MAGIC);
        fields.put_u32_le(if self.compacted.is_some() { VERSION } else { VERSION_DENSE });
        fields.put_u32_le(0);
        fields.put_u64_le(self.at.resource.0);
        fields.put_u32_le(self.at.partition);
        fields.put_u32_le(0);
        fields.put_u64_le(self.base.0);
        if let Some(Compacted { end, bytes }) = self.compacted {
            fields.put_u64_le(end.0);
            fields.put_u64_le(bytes);
        }
        fields.resize(FILE_FIELDS_BYTES, 0);
        let crc = crc_around(&fields, 12);
        put_at(page, 0, &fields);
        put_at(page, 12, &crc.to_le_bytes());
    }

    /// Reads a header.
    pub fn decode(page: &[u8]) -> Result<Self, FileHeaderFault> {
        let fields = page.get(..FILE_FIELDS_BYTES).ok_or(FileHeaderFault::Damaged)?;
        let mut read = Fields(fields.get(8..).unwrap_or_default());
        let (version, crc) = (read.u32(), read.u32());
        if !fields.starts_with(FILE_MAGIC) || crc != crc_around(fields, 12) {
            return Err(FileHeaderFault::Damaged);
        }
        if version != VERSION && version != VERSION_DENSE {
            return Err(FileHeaderFault::Newer(version));
        }
        let (resource, partition) = (ResourceId(read.u64()), read.u32());
        read.u32();
        let (base, end, bytes) = (Offset(read.u64()), Offset(read.u64()), read.u64());
        let compacted = (version == VERSION).then_some(Compacted { end, bytes });
        if compacted.is_some_and(|compacted| compacted.end <= base) {
            return Err(FileHeaderFault::Damaged);
        }
        Ok(Self { at: PartitionRef { resource, partition }, base, compacted })
    }
}

/// The start of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// Bytes of the runs.
    pub body_bytes: u32,
    /// How many runs.
    pub runs: u32,
    /// The first record.
    pub base: Offset,
    /// Behind the last record.
    pub next: Offset,
}

impl BlockHeader {
    /// Writes the header to the first [`BLOCK_HEADER_BYTES`] of `out`.
    pub fn encode(&self, out: &mut [u8]) {
        let mut fields = [0u8; BLOCK_HEADER_BYTES];
        let mut put = fields.as_mut_slice();
        put.put_slice(BLOCK_MAGIC);
        put.put_u32_le(0);
        put.put_u32_le(self.body_bytes);
        put.put_u32_le(self.runs);
        put.put_u64_le(self.base.0);
        put.put_u64_le(self.next.0);
        let crc = crc_around(&fields, 4);
        put_at(out, 0, &fields);
        put_at(out, 4, &crc.to_le_bytes());
    }

    /// Reads a header.
    pub fn decode(bytes: &[u8]) -> Result<Self, SegmentDamage> {
        let fields = bytes.get(..BLOCK_HEADER_BYTES).ok_or(SegmentDamage::BlockLength)?;
        let mut read = Fields(fields.get(4..).unwrap_or_default());
        if !fields.starts_with(BLOCK_MAGIC) || read.u32() != crc_around(fields, 4) {
            return Err(SegmentDamage::BlockHeader);
        }
        let (body_bytes, runs) = (read.u32(), read.u32());
        let header = Self { body_bytes, runs, base: Offset(read.u64()), next: Offset(read.u64()) };
        if header.base >= header.next { Err(SegmentDamage::Shape) } else { Ok(header) }
    }

    /// The bytes the block takes in the file.
    pub fn disk_bytes(&self) -> usize {
        round_up(BLOCK_HEADER_BYTES + self.body_bytes as usize)
    }
}

/// When the first run of a block was appended, by a part of the block that holds its start. Not checked: good to find a
/// place by, not to hand out.
pub fn first_run_time(block: &[u8]) -> Millis {
    Millis(Fields(block.get(BLOCK_HEADER_BYTES + 16..).unwrap_or_default()).u64())
}

/// What a run takes in a block.
pub fn run_bytes(run: &RecordRun) -> usize {
    RUN_HEADER_BYTES + run.records.len()
}

/// Writes a run to the start of `out`; returns how many bytes it takes.
pub fn put_run(out: &mut [u8], run: &RecordRun) -> usize {
    let mut header = [0u8; RUN_HEADER_BYTES - 4];
    let mut put = header.as_mut_slice();
    put.put_u32_le(run.records.len() as u32);
    put.put_u64_le(run.base.0);
    put.put_u64_le(run.appended_at.0);
    put.put_u32_le(run.count);
    put_at(out, 4, &header);
    put_at(out, RUN_HEADER_BYTES, &run.records);
    let crc = crc32c::crc32c(out.get(4..run_bytes(run)).unwrap_or_default());
    put_at(out, 0, &crc.to_le_bytes());
    run_bytes(run)
}

/// A run as it lies in a block; its records are not checked yet.
#[derive(Clone, Debug)]
pub struct UncheckedRun {
    crc: u32,
    /// Everything the checksum covers.
    covered: Bytes,
    /// The first record.
    pub base: Offset,
    /// How many records.
    pub count: u32,
    appended_at: Millis,
}

impl UncheckedRun {
    /// Takes a run off the front of a block's body.
    pub fn take(body: &mut Bytes) -> Result<Self, SegmentDamage> {
        let mut read = Fields(body.get(..RUN_HEADER_BYTES).ok_or(SegmentDamage::Shape)?);
        let (crc, len) = (read.u32(), read.u32() as usize);
        let (base, appended_at, count) = (Offset(read.u64()), Millis(read.u64()), read.u32());
        if body.len() - RUN_HEADER_BYTES < len {
            return Err(SegmentDamage::Shape);
        }
        let covered = body.split_to(RUN_HEADER_BYTES + len).slice(4..);
        Ok(Self { crc, covered, base, count, appended_at })
    }

    /// Checks that the run starts with `expected`, or, with gaps, there or behind.
    pub fn check_follows(&self, expected: Offset, with_gaps: bool) -> Result<(), SegmentDamage> {
        let follows = self.base == expected || (with_gaps && self.base > expected);
        if follows && self.count > 0 { Ok(()) } else { Err(SegmentDamage::Shape) }
    }

    /// Behind the last record.
    pub fn next(&self) -> Offset {
        Offset(self.base.0.saturating_add(u64::from(self.count)))
    }

    /// The run, if it matches its checksum.
    pub fn check(self) -> Result<RecordRun, SegmentDamage> {
        if crc32c::crc32c(&self.covered) != self.crc && !Mutation::TrustSegments.is_made() {
            return Err(SegmentDamage::RunChecksum);
        }
        let records = self.covered.slice(RUN_HEADER_BYTES - 4..);
        Ok(RecordRun { base: self.base, count: self.count, appended_at: self.appended_at, records })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn headers_and_runs_round_trip(resource: u64, partition: u32, base in 0..u64::MAX / 2, records: Vec<u8>) {
            let at = PartitionRef { resource: ResourceId(resource), partition };
            let mut page = vec![0; ALIGN];
            let compacted = Compacted { end: Offset(base + 1 + u64::from(partition)), bytes: resource };
            for compacted in [None, Some(compacted)] {
                let file = FileHeader { at, base: Offset(base), compacted };
                page.fill(0);
                file.encode(&mut page);
                prop_assert_eq!(FileHeader::decode(&page), Ok(file));
            }
            let block = BlockHeader { body_bytes: 7, runs: 1, base: Offset(base), next: Offset(base + 1) };
            block.encode(&mut page);
            prop_assert_eq!(BlockHeader::decode(&page), Ok(block));
            let run = RecordRun { base: Offset(base), count: 3, appended_at: Millis(resource), records: records.into() };
            let mut bytes = vec![0; run_bytes(&run)];
            prop_assert_eq!(put_run(&mut bytes, &run), bytes.len());
            let mut bytes = Bytes::from(bytes);
            prop_assert_eq!(UncheckedRun::take(&mut bytes).unwrap().check().unwrap(), run);
            prop_assert!(bytes.is_empty());
        }

        #[test]
        fn noise_never_panics(noise: Vec<u8>) {
            prop_assert!(FileHeader::decode(&noise).is_err());
            prop_assert!(BlockHeader::decode(&noise).is_err());
            let _ = UncheckedRun::take(&mut noise.into()).map(UncheckedRun::check);
        }
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let at = PartitionRef { resource: ResourceId(3), partition: 1 };
        let mut page = vec![0; FILE_FIELDS_BYTES];
        let compacted = Some(Compacted { end: Offset(12), bytes: 8192 });
        FileHeader { at, base: Offset(9), compacted }.encode(&mut page);
        flip_each(&mut page, |page| FileHeader::decode(page).is_err());
        let mut block = vec![0; BLOCK_HEADER_BYTES];
        BlockHeader { body_bytes: 1, runs: 1, base: Offset(0), next: Offset(5) }.encode(&mut block);
        flip_each(&mut block, |block| BlockHeader::decode(block).is_err());
        let run = RecordRun {
            base: Offset(9),
            count: 2,
            appended_at: Millis(1),
            records: Bytes::from_static(b"abc"),
        };
        let mut bytes = vec![0; run_bytes(&run)];
        put_run(&mut bytes, &run);
        flip_each(&mut bytes, |bytes| {
            UncheckedRun::take(&mut Bytes::copy_from_slice(bytes)).and_then(UncheckedRun::check).is_err()
        });
    }

    fn flip_each(bytes: &mut [u8], refused: impl Fn(&[u8]) -> bool) {
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(refused(bytes), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

//! A partition's segments: what retention deletes, what a file holds, and where a time lies.
//!
//! ```text
//!  closed, oldest first                     active
//!  ├ 0..40 ┤├ 40..97 ┤├ 97..130 ┤           ├ 130..next
//! ```
//!
//! A segment ends where the next one begins. Records go to the **active** one until it is rolled. In the index the closed
//! ones are kept in chunks, so that a checkpoint writes those that came and not all there are.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, put_varint};
use flowmesh_model::{CompactedSegment, Millis, Offset};

use crate::keys;

/// Closed segments in one item of the index: about a KiB.
const CHUNK: u64 = 64;

/// What a closed segment takes in memory.
pub(crate) const SEGMENT_BYTES: u64 = size_of::<Segment>() as u64;

/// Consecutive records of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segment {
    /// The offset of its first record.
    pub base: Offset,
    /// Packed bytes of its records.
    pub bytes: u64,
    /// When its first record was appended; 0 if that is not known.
    pub first_time: Millis,
    /// When its last record was appended.
    pub last_time: Millis,
}

/// All segments of a partition, at least the active one.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    closed: VecDeque<Segment>,
    /// The number of the first closed one; numbers only grow.
    first: u64,
    active: Segment,
    /// The numbers of those that the index has, and will have once the sealed state is written.
    written: Range<u64>,
    sealed: Range<u64>,
    /// From this number on they are others than the index has, and, once the sealed state is written, will have.
    changed_from: u64,
    sealed_changed_from: u64,
    /// Files with records before are gone, or are about to be deleted.
    files_from: Offset,
    sealed_base: Offset,
}

impl Segments {
    pub const fn new() -> Self {
        let zero = Segment { base: Offset(0), bytes: 0, first_time: Millis(0), last_time: Millis(0) };
        Self {
            closed: VecDeque::new(),
            first: 0,
            active: zero,
            written: 0..0,
            sealed: 0..0,
            changed_from: u64::MAX,
            sealed_changed_from: u64::MAX,
            files_from: Offset(0),
            sealed_base: Offset(0),
        }
    }

    pub fn active(&self) -> &Segment {
        &self.active
    }

    /// Closed segments and then the active one.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Segment> {
        self.closed.iter().chain(std::iter::once(&self.active))
    }

    /// Each segment with the offset behind its last record, for a partition that ends at `next`.
    pub fn ranges(&self, next: Offset) -> impl Iterator<Item = (&Segment, Offset)> {
        let ends = self.iter().skip(1).map(|segment| segment.base).chain(std::iter::once(next));
        self.iter().zip(ends)
    }

    /// The oldest segment.
    pub fn oldest(&self) -> &Segment {
        self.closed.front().unwrap_or(&self.active)
    }

    /// How many closed ones there are.
    pub fn closed_count(&self) -> usize {
        self.closed.len()
    }

    /// How many segments have records.
    pub fn count(&self, next: Offset) -> u64 {
        self.closed.len() as u64 + u64::from(self.active.base < next)
    }

    /// The segment that holds a record, which is there.
    pub fn holding(&self, offset: Offset) -> &Segment {
        let behind = self.closed.partition_point(|segment| segment.base <= offset);
        if offset >= self.active.base {
            return &self.active;
        }
        behind.checked_sub(1).and_then(|at| self.closed.get(at)).unwrap_or_else(|| self.oldest())
    }

    /// The first segment whose last record was appended at `time` or later, or the active one.
    pub fn reaching(&self, time: Millis) -> &Segment {
        let at = self.closed.partition_point(|segment| segment.last_time < time);
        self.closed.get(at).unwrap_or(&self.active)
    }

    /// Records were appended.
    #[inline]
    pub fn appended(&mut self, base: Offset, bytes: u64, time: Millis) {
        if self.active.base == base {
            self.active.first_time = time;
        }
        self.active.bytes += bytes;
        self.active.last_time = time;
    }

    /// `SegmentRolled`: the next record, `next`, begins a new segment.
    pub fn rolled(&mut self, next: Offset) {
        assert!(self.active.base < next, "only a segment with records is rolled");
        let fresh = Segment { base: next, ..Segment::default() };
        self.closed.push_back(std::mem::replace(&mut self.active, fresh));
    }

    /// `RecordsTrimmed`: drops segments that lie before `earliest`. Returns how many, and their bytes.
    pub fn trimmed(&mut self, earliest: Offset) -> (u64, u64) {
        let (mut count, mut bytes) = (0, 0);
        while let Some(oldest) = self.closed.front() {
            let end = self.closed.get(1).map_or(self.active.base, |next| next.base);
            if end > earliest {
                break;
            }
            (count, bytes) = (count + 1, bytes + oldest.bytes);
            self.closed.pop_front();
        }
        self.first += count;
        if self.closed.is_empty() {
            self.closed = VecDeque::new();
        }
        (count, bytes)
    }

    /// All closed segments that begin at `base` or behind and end at `end` or before, as one; `None` if none begins or ends
    /// there.
    pub fn between(&self, base: Offset, end: Offset) -> Option<Segment> {
        let (from, upto) = self.places(base, end)?;
        let mut replaced = self.closed.range(from..upto);
        let first = *replaced.next()?;
        let join =
            |a: Segment, b: &Segment| Segment { bytes: a.bytes + b.bytes, last_time: b.last_time, ..a };
        Some(replaced.fold(first, join))
    }

    /// The places of closed segments that make up `base..end`.
    fn places(&self, base: Offset, end: Offset) -> Option<(usize, usize)> {
        let from = self.closed.binary_search_by_key(&base, |segment| segment.base).ok()?;
        let upto = self.closed.partition_point(|segment| segment.base < end);
        let ends = self.closed.get(upto).map_or(self.active.base, |next| next.base);
        (ends == end && from < upto).then_some((from, upto))
    }

    /// `SegmentsCompacted`: one closed segment in place of some. Returns by how many, and by how many bytes, there are fewer.
    pub fn compacted(&mut self, segment: &CompactedSegment) -> (u64, u64) {
        let (places, replaced) =
            (self.places(segment.base, segment.end), self.between(segment.base, segment.end));
        let (Some((from, upto)), Some(replaced)) = (places, replaced) else {
            panic!("segments are compacted that there are not: {segment:?}")
        };
        assert!(segment.bytes <= replaced.bytes, "compaction makes nothing larger");
        let (first_time, last_time) = segment.times.unwrap_or((replaced.last_time, replaced.last_time));
        self.closed.drain(from + 1..upto);
        if let Some(place) = self.closed.get_mut(from) {
            *place = Segment { base: segment.base, bytes: segment.bytes, first_time, last_time };
        }
        self.changed_from = self.changed_from.min(self.first + from as u64);
        ((upto - from - 1) as u64, replaced.bytes - segment.bytes)
    }

    /// Takes a new state into the sealed one: `put` gets each chunk that must be written, or removed.
    pub fn seal(&mut self, mut put: impl FnMut(u64, Option<Bytes>)) {
        self.sealed = self.numbers();
        let changed_from = std::mem::replace(&mut self.changed_from, u64::MAX);
        self.sealed_changed_from = self.sealed_changed_from.min(changed_from);
        self.sealed_base = self.oldest().base;
        let chunks = chunks(&self.sealed);
        self::chunks(&self.written)
            .filter(|chunk| !chunks.contains(chunk))
            .for_each(|chunk| put(chunk, None));
        for chunk in chunks {
            let (before, after) = (part(chunk, &self.written), part(chunk, &self.sealed));
            if before != after || after.end > self.sealed_changed_from {
                put(chunk, Some(self.encode_chunk(chunk)));
            }
        }
    }

    /// The numbers of the closed segments.
    fn numbers(&self) -> Range<u64> {
        self.first..self.first + self.closed.len() as u64
    }

    /// The sealed state is in the index. Returns where the files' first record is now, if files can go.
    pub fn sealed_written(&mut self) -> Option<Offset> {
        self.written = self.sealed.clone();
        self.sealed_changed_from = u64::MAX;
        self.take_files_before(self.sealed_base)
    }

    fn take_files_before(&mut self, base: Offset) -> Option<Offset> {
        let moved = base > self.files_from;
        self.files_from = self.files_from.max(base);
        moved.then_some(base)
    }

    /// Chunks that the index may have.
    pub fn chunks(&self) -> impl Iterator<Item = u64> {
        let (written, sealed) = (chunks(&self.written), chunks(&self.sealed));
        written.clone().chain(sealed.filter(move |chunk| !written.contains(chunk)))
    }

    /// Some closed segments in the index.
    ///
    /// | field | size |
    /// |---|---|
    /// | format | 1 |
    /// | number of the first, how many | varint each |
    /// | of each: base (after the first one: less the one before), bytes, first time, last time less first time | varint each |
    fn encode_chunk(&self, chunk: u64) -> Bytes {
        let numbers = part(chunk, &self.numbers());
        let count = numbers.end - numbers.start;
        let mut out = BytesMut::with_capacity(16 + count as usize * 20);
        out.put_u8(keys::FORMAT);
        put_varint(&mut out, numbers.start);
        put_varint(&mut out, count);
        let mut before = 0;
        for segment in self.closed.range((numbers.start - self.first) as usize..).take(count as usize) {
            put_varint(&mut out, segment.base.0 - before);
            put_varint(&mut out, segment.bytes);
            put_varint(&mut out, segment.first_time.0);
            put_varint(&mut out, segment.last_time.0 - segment.first_time.0);
            before = segment.base.0;
        }
        out.freeze()
    }

    /// Appends how many closed segments there are, and the active one, in their form in the index.
    ///
    /// | field | size |
    /// |---|---|
    /// | number of the first closed one, how many, active base, bytes, first time | varint each |
    pub fn encode_counters(&self, out: &mut BytesMut) {
        let active = &self.active;
        for number in [self.first, self.closed.len() as u64, active.base.0, active.bytes, active.first_time.0]
        {
            put_varint(out, number);
        }
    }

    /// Reads what [`Segments::encode_counters`] wrote; `last_time` is that of the partition. Chunks come after.
    pub fn restore_counters(
        &mut self,
        reader: &mut flowmesh_model::codec::Reader,
        last_time: Millis,
    ) -> Result<(), Malformed> {
        self.first = reader.varint()?;
        let count = reader.varint()?;
        let (base, bytes) = (Offset(reader.varint()?), reader.varint()?);
        let first_time = Millis(reader.varint()?);
        let last_time = if bytes > 0 { last_time } else { Millis(0) };
        self.active = Segment { base, bytes, first_time, last_time };
        self.written = self.first..self.first.checked_add(count).ok_or(Malformed("too many segments"))?;
        self.sealed = self.written.clone();
        Ok(())
    }

    /// A partition of the first format: one segment, begun nobody knows when.
    pub fn restore_one(&mut self, bytes: u64, last_time: Millis) {
        self.active = Segment { base: Offset(0), bytes, first_time: Millis(0), last_time };
    }

    /// Reads a chunk. Chunks come in order, after the counters.
    pub fn restore_chunk(&mut self, value: Bytes) -> Result<(), Malformed> {
        let mut reader = keys::open(value)?;
        let (from, count) = (reader.varint()?, reader.varint()?);
        let mut base = 0u64;
        for number in from..from.checked_add(count).ok_or(Malformed("too many segments"))? {
            base = base.checked_add(reader.varint()?).ok_or(Malformed("a segment beyond all offsets"))?;
            let bytes = reader.varint()?;
            let first_time = Millis(reader.varint()?);
            let last_time = Millis(first_time.0.saturating_add(reader.varint()?));
            if number != self.numbers().end {
                return Err(Malformed("a segment is missing"));
            }
            self.closed.push_back(Segment { base: Offset(base), bytes, first_time, last_time });
        }
        keys::close(&reader)
    }

    /// All chunks were read. Returns where the files' first record is, if files before it may have been left.
    pub fn finish_restore(&mut self) -> Result<Option<Offset>, Malformed> {
        if self.numbers() != self.written {
            return Err(Malformed("segments are missing"));
        }
        if !self.iter().is_sorted_by(|a, b| a.base < b.base) {
            return Err(Malformed("segments are out of order"));
        }
        self.closed.shrink_to_fit();
        self.sealed_base = self.oldest().base;
        Ok(self.take_files_before(self.sealed_base))
    }

    /// Checks what must hold of a partition with these counters.
    pub fn check(&self, earliest: Offset, next: Offset, bytes: u64, last_time: Millis) {
        assert!(self.iter().is_sorted_by(|a, b| a.base < b.base), "segments are in order and not empty");
        assert!(self.closed.iter().is_sorted_by(|a, b| a.last_time <= b.first_time || b.first_time.0 == 0));
        assert!(self.oldest().base <= earliest && self.active.base <= next);
        let end = self.closed.get(1).map_or(self.active.base, |second| second.base);
        assert!(self.closed.is_empty() || end > earliest, "a segment that was trimmed is gone");
        assert_eq!(self.iter().map(|segment| segment.bytes).sum::<u64>(), bytes);
        assert_eq!(self.active.bytes == 0, self.active.base == next);
        if self.active.base < next {
            assert_eq!(self.active.last_time, last_time);
        }
        let is_shorter = self.numbers().end < self.written.end.max(self.sealed.end);
        assert!(!is_shorter || self.changed_from.min(self.sealed_changed_from) < u64::MAX);
    }
}

/// Chunks that hold segments of these numbers.
fn chunks(numbers: &Range<u64>) -> Range<u64> {
    if numbers.is_empty() { 0..0 } else { numbers.start / CHUNK..numbers.end.div_ceil(CHUNK) }
}

/// Those of the numbers that are in a chunk.
fn part(chunk: u64, numbers: &Range<u64>) -> Range<u64> {
    let (from, upto) = (numbers.start.max(chunk * CHUNK), numbers.end.min((chunk + 1) * CHUNK));
    from..upto.max(from)
}

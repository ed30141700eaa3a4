//! What compaction is to do, decided by what the state knows: which segments, and when. Segment files do it, and what came
//! of it comes back as facts.
//!
//! ```text
//!  earliest            clean up to       closed, in files, old enough        next
//!     │ each key once     │ dirty             │ not looked at                  │
//! ```
//!
//! A partition is compacted once enough of its bytes are dirty, or once the time of its first tombstone is up. That time
//! runs from when all before the tombstone became clean: a reader that saw an older record of its key has so long to come
//! to it. Up to where it was clean when is remembered in **horizons**, few, and rather too late than too early.

use bytes::BytesMut;
use flowmesh_model::codec::{Malformed, Reader, put_varint};
use flowmesh_model::{
    Cleaned, CompactedSegment, CompactionJob, Fact, Millis, Offset, PartitionRef, ResourceId, StreamSettings,
};

use super::segments::SEGMENT_BYTES;
use super::{Partition, Stream};
use crate::changes::Touch;
use crate::held::Apply;

/// Horizons of one partition: with 16 a tombstone stays about an eighth longer at most than it must.
const HORIZONS_MAX: usize = 16;

/// What is known of a partition that was compacted takes so much memory.
pub(super) const CLEAN_BYTES: u64 =
    (size_of::<Clean>() + (HORIZONS_MAX + 1) * size_of::<(Offset, Millis)>()) as u64;

/// Settings that compaction needs. Not part of the state: they come with the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CompactionRules {
    tombstone_ms: u64,
    lag_ms: u64,
    dirty_percent: u32,
    segment_bytes: u64,
}

impl CompactionRules {
    /// `None` for a stream that is not compacted.
    pub fn of(settings: &StreamSettings) -> Option<Self> {
        settings.compaction.then(|| Self {
            tombstone_ms: settings.tombstone_retention_ms(),
            lag_ms: settings.min_compaction_lag_ms.unwrap_or(0),
            dirty_percent: settings.min_dirty_percent(),
            segment_bytes: settings.segment_bytes,
        })
    }
}

/// What is known of a partition that was compacted.
#[derive(Debug, Default)]
pub(crate) struct Clean {
    /// Of the records before each key has one.
    pub upto: Offset,
    /// Files have gaps before.
    pub gaps_upto: Offset,
    /// The first tombstone before `upto`.
    tombstone: Option<Offset>,
    /// Up to where it was clean when; those that no tombstone waits for are forgotten.
    horizons: Vec<(Offset, Millis)>,
}

impl Clean {
    /// `PartitionCleaned`.
    fn cleaned(&mut self, Cleaned { upto, tombstone }: Cleaned, now: Millis) {
        if upto > self.upto {
            self.upto = upto;
            self.horizons.push((upto, now));
        }
        self.tombstone = tombstone;
        self.horizons.retain(|(offset, _)| tombstone.is_some_and(|first| first < *offset));
        if self.horizons.len() > HORIZONS_MAX {
            // The one goes without which the gaps stay evenest; its tombstones wait with the next ones.
            let around = self.horizons.windows(3).map(|three| match three {
                [before, _, after] => after.1.since(before.1),
                _ => u64::MAX,
            });
            let places = (1..).zip(around).collect::<Vec<_>>();
            let nearest = places.into_iter().rev().min_by_key(|(_, gap)| *gap).map(|(place, _)| place);
            self.horizons.remove(nearest.unwrap_or(0));
        }
    }

    /// Tombstones before have stayed for so long.
    fn tombstones_before(&self, stay_ms: u64, now: Millis) -> Offset {
        let over = self.horizons.iter().take_while(|(_, since)| since.plus(stay_ms) <= now);
        over.last().map_or(Offset(0), |(offset, _)| *offset)
    }

    /// Appends it in its form in the index.
    ///
    /// | field | size |
    /// |---|---|
    /// | clean up to, gaps up to, first tombstone + 1 (0 = none), horizons | varint each |
    /// | of each horizon: offset, time | varint each |
    pub fn encode(&self, out: &mut BytesMut) {
        let tombstone = self.tombstone.map_or(0, |offset| offset.0 + 1);
        for number in [self.upto.0, self.gaps_upto.0, tombstone, self.horizons.len() as u64] {
            put_varint(out, number);
        }
        for (offset, since) in &self.horizons {
            put_varint(out, offset.0);
            put_varint(out, since.0);
        }
    }

    /// Reads what [`Clean::encode`] wrote.
    pub fn restore(reader: &mut Reader) -> Result<Self, Malformed> {
        let (upto, gaps_upto) = (Offset(reader.varint()?), Offset(reader.varint()?));
        let tombstone = reader.varint()?.checked_sub(1).map(Offset);
        let mut clean = Self { upto, gaps_upto, tombstone, horizons: Vec::new() };
        for _ in 0..reader.varint()?.min(HORIZONS_MAX as u64) {
            clean.horizons.push((Offset(reader.varint()?), Millis(reader.varint()?)));
        }
        Ok(clean)
    }

    /// Checks what must hold.
    pub fn check(&self, next: Offset) {
        assert!(self.upto <= next && self.gaps_upto <= next);
        assert!(self.horizons.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1));
        assert!(self.horizons.len() <= HORIZONS_MAX);
        assert!(self.tombstone.is_none_or(|offset| offset < self.upto));
        assert_eq!(self.tombstone.is_none(), self.horizons.is_empty());
    }

    /// As text, for dumps.
    pub fn dump(&self) -> String {
        let tombstone = self.tombstone.map_or_else(|| "none".to_owned(), |offset| offset.to_string());
        format!("clean to {} gaps to {} first tombstone {tombstone}", self.upto, self.gaps_upto)
    }
}

/// How much there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Urgency(u64);

impl Partition {
    /// Of the records before each key has one.
    pub fn clean_upto(&self) -> Offset {
        self.clean.as_ref().map_or(Offset(0), |clean| clean.upto)
    }

    /// Files may have gaps before: what memory has of that is out of date.
    pub fn gaps_upto(&self) -> Offset {
        self.clean.as_ref().map_or(Offset(0), |clean| clean.gaps_upto)
    }

    /// Packed bytes of closed segments that were not compacted yet.
    pub fn dirty_bytes(&self) -> u64 {
        let upto = self.clean_upto();
        let closed = self.segments.ranges(self.next).take(self.segments.closed_count());
        closed.filter(|(_, end)| *end > upto).map(|(segment, _)| segment.bytes).sum()
    }

    /// What is to be compacted now, if anything is, and how much of it there is to do.
    fn compaction(
        &self,
        at: PartitionRef,
        rules: CompactionRules,
        now: Millis,
    ) -> Option<(Urgency, CompactionJob)> {
        let clean_upto = self.clean_upto();
        let closed = self.segments.ranges(self.next).take(self.segments.closed_count());
        let old_enough = |last_time: Millis| last_time.plus(rules.lag_ms) <= now;
        let ready = closed.take_while(|(segment, end)| *end <= self.flushed && old_enough(segment.last_time));
        let (mut segments, mut end, mut bytes, mut dirty) = (Vec::new(), Offset(0), 0, 0);
        for (segment, segment_end) in ready {
            segments.push((segment.base, segment.bytes));
            end = segment_end;
            bytes += segment.bytes;
            dirty += if segment_end > clean_upto { segment.bytes } else { 0 };
        }
        let first = segments.first()?.0;
        let tombstones_before =
            self.clean.as_ref().map_or(Offset(0), |clean| clean.tombstones_before(rules.tombstone_ms, now));
        let tombstone = self.clean.as_ref().and_then(|clean| clean.tombstone);
        let is_up = tombstone.is_some_and(|offset| offset < tombstones_before);
        let is_dirty =
            dirty > 0 && u128::from(dirty) * 100 >= u128::from(bytes) * u128::from(rules.dirty_percent);
        if end < clean_upto || !(is_up || is_dirty) {
            return None;
        }
        let job = CompactionJob {
            at,
            segments,
            end,
            earliest: self.earliest,
            dirty_from: clean_upto.max(first),
            tombstones_before,
            segment_bytes: rules.segment_bytes,
        };
        Some((Urgency(dirty), job))
    }

    /// The fact that files of a partition were compacted to one segment; `None` if the segments are others by now.
    pub fn compacted_fact(&self, at: PartitionRef, segment: &CompactedSegment) -> Option<Fact> {
        let replaced = self.segments.between(segment.base, segment.end)?;
        let (first_time, last_time) = segment.times.unwrap_or((replaced.last_time, replaced.last_time));
        let CompactedSegment { base, end, bytes, .. } = *segment;
        (bytes <= replaced.bytes).then_some(Fact::SegmentsCompacted {
            at,
            base,
            end,
            bytes,
            first_time,
            last_time,
        })
    }
}

impl Stream {
    /// The partition with most to do, and what.
    pub fn compaction(&self, id: ResourceId, now: Millis) -> Option<(Urgency, CompactionJob)> {
        let rules = **self.compaction.as_ref()?;
        let of = |(partition, held): (u32, &Partition)| {
            held.compaction(PartitionRef { resource: id, partition }, rules, now)
        };
        self.partitions().filter_map(of).max_by_key(|(urgency, _)| *urgency)
    }

    /// `SegmentsCompacted`.
    pub fn compacted(&mut self, cx: &mut Apply<'_>, number: u32, segment: CompactedSegment) {
        let partition = self.make(number);
        let (segments, bytes) = partition.segments.compacted(&segment);
        partition.bytes -= bytes;
        partition.last_lsn = cx.at.lsn;
        let is_new = partition.clean.is_none();
        let clean = partition.clean.get_or_insert_default();
        clean.gaps_upto = clean.gaps_upto.max(segment.end);
        self.memory_bytes -= segments * SEGMENT_BYTES;
        self.cleaned_up(cx, number, is_new);
    }

    /// `PartitionCleaned`.
    pub fn cleaned(&mut self, cx: &mut Apply<'_>, number: u32, cleaned: Cleaned) {
        let partition = self.make(number);
        assert!(cleaned.upto <= partition.next, "what is not there is not clean");
        partition.last_lsn = cx.at.lsn;
        let is_new = partition.clean.is_none();
        partition.clean.get_or_insert_default().cleaned(cleaned, cx.at.time);
        self.cleaned_up(cx, number, is_new);
    }

    fn cleaned_up(&mut self, cx: &mut Apply<'_>, number: u32, is_new: bool) {
        let partition = self.make(number);
        if cx.seals.touch(&mut partition.mark) != Touch::Known {
            self.dirty.push(number);
        }
        self.memory_bytes += if is_new { CLEAN_BYTES } else { 0 };
        self.note_due(number);
    }

    /// Drops a run from memory that segment files have only what is left of. Returns the bytes it took.
    pub fn evict_compacted(&mut self, number: u32) -> Option<u64> {
        let partition = self.partition_mut(number)?;
        let taken = partition.tail.pop_below(partition.gaps_upto().min(partition.flushed))?;
        self.memory_bytes -= taken;
        self.tail_bytes -= taken;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn horizons_are_few_and_never_too_early() {
        let mut clean = Clean::default();
        // Clean a minute after it was appended, each minute, with a tombstone that waits since the beginning.
        for minute in 1..=1_000u64 {
            let tombstone = Some(Offset(5));
            clean.cleaned(Cleaned { upto: Offset(minute * 10), tombstone }, Millis(minute));
            clean.check(Offset(minute * 10));
        }
        for now in 0..2_000u64 {
            let before = clean.tombstones_before(100, Millis(now)).0;
            assert!(before <= now.saturating_sub(100) * 10, "at {now} too early: {before}");
            assert!(now < 1_100 || before == 10_000, "at {now} {before}");
        }
        let mut bytes = BytesMut::new();
        clean.encode(&mut bytes);
        let restored = Clean::restore(&mut Reader::new(bytes.freeze())).unwrap();
        assert_eq!((restored.horizons, restored.upto), (clean.horizons.clone(), clean.upto));
        clean.cleaned(Cleaned { upto: Offset(10_000), tombstone: None }, Millis(2_000));
        assert!(clean.horizons.is_empty(), "without a tombstone there is nothing to wait for");
    }

    #[test]
    fn a_tombstone_goes_an_eighth_late_at_most() {
        // A compaction each minute, a tombstone each minute, which stay a day.
        let (day, mut clean, mut first, mut late) = (1_440u64, Clean::default(), 0u64, 0u64);
        for minute in 1..=10 * day {
            let gone = clean.tombstones_before(day, Millis(minute)).0;
            if gone > first {
                late = late.max(minute - first - 1 - day);
                first = gone;
            }
            let tombstone = (first < minute).then_some(Offset(first));
            clean.cleaned(Cleaned { upto: Offset(minute), tombstone }, Millis(minute));
        }
        assert!(late > 0 && late <= day / 7, "{late} minutes late");
        assert!(first > 8 * day, "{first}");
    }
}

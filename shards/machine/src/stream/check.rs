//! A stream's invariants, and its state as text.

use std::fmt::Write;

use super::compaction::CLEAN_BYTES;
use super::segments::SEGMENT_BYTES;
use super::{PARTITION_BYTES, Stream};
use crate::changes::Seals;

impl Stream {
    /// Checks every invariant.
    pub fn check(&self, seals: &Seals) {
        let (mut memory_bytes, mut tail_bytes) = (self.partitions.len() as u64 * 8, 0);
        for (number, partition) in self.partitions() {
            assert!(partition.earliest <= partition.next);
            assert!(partition.flushed <= partition.next);
            assert!(partition.sealed_next <= partition.next);
            partition.segments.check(
                partition.earliest,
                partition.next,
                partition.bytes,
                partition.last_time,
            );
            let mut end = partition.tail.first().map_or(partition.next, |run| run.base);
            assert!(end <= partition.flushed, "records are neither in memory nor in files");
            for run in partition.tail.runs() {
                assert_eq!(run.base, end, "runs leave no gap");
                assert!(run.count > 0);
                assert!(run.lsn <= partition.last_lsn && run.appended_at <= partition.last_time);
                end = run.end();
                tail_bytes += run.memory_bytes();
            }
            assert_eq!(end, partition.next, "the tail ends where the partition does");
            if let Some(clean) = &partition.clean {
                clean.check(partition.next);
                memory_bytes += CLEAN_BYTES;
            }
            memory_bytes += PARTITION_BYTES + partition.segments.closed_count() as u64 * SEGMENT_BYTES;
            if seals.are_made() {
                assert_eq!(seals.is_listed(partition.mark), self.dirty.contains(&number));
            }
        }
        if let Some(producers) = self.producers() {
            producers.check(seals);
        }
        if let Some(received) = self.received() {
            received.check(seals);
        }
        assert_eq!(self.tail_bytes, tail_bytes);
        assert_eq!(self.memory_bytes, memory_bytes + tail_bytes);
    }

    /// The state as text. Which records are in memory is not part of it.
    pub fn dump(&self, out: &mut String) {
        for (number, p) in self.partitions() {
            let _ = writeln!(
                out,
                "  partition {number} {}..{} bytes {} lsn {} time {}",
                p.earliest, p.next, p.bytes, p.last_lsn, p.last_time
            );
            if let Some(clean) = &p.clean {
                let _ = writeln!(out, "    {}", clean.dump());
            }
            for segment in p.segments.iter() {
                let _ = writeln!(
                    out,
                    "    segment {} bytes {} times {}..{}",
                    segment.base, segment.bytes, segment.first_time, segment.last_time
                );
            }
        }
        if let Some(producers) = self.producers() {
            producers.dump(out);
        }
        if let Some(received) = self.received() {
            received.dump(out);
        }
    }
}

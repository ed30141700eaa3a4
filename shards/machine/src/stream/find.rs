//! Where a read starts: offsets, and the times that segments, runs in memory and, at last, files know.
//!
//! Append times never go back within a partition. So the first record of a time is found by halving: among the runs in
//! memory, else among the segments, and within a segment that is only on disk by its file's index.

use flowmesh_model::command::ReadFrom;
use flowmesh_model::{Millis, Offset, PartitionRef, Reject, Reply};

use super::Partition;
use crate::decision::{ColdFind, Decision};

/// Where a start is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// At this offset, between the first record and the next one to come.
    At(Offset),
    /// At the first record from this one on that was appended at `since` or later; segment files know which.
    Cold { from: Offset, since: Millis },
}

impl Partition {
    /// Where a read starts.
    pub fn start(&self, from: ReadFrom) -> Result<Start, Reject> {
        let Self { earliest, next, .. } = *self;
        match from {
            ReadFrom::Earliest => Ok(Start::At(earliest)),
            ReadFrom::Latest => Ok(Start::At(next)),
            ReadFrom::Offset(offset) if (earliest..=next).contains(&offset) => Ok(Start::At(offset)),
            ReadFrom::Offset(requested) => Err(Reject::OffsetOutOfRange { requested, earliest, next }),
            ReadFrom::Timestamp(since) => Ok(self.since(since)),
        }
    }

    /// The first record that was appended at `since` or later, else the next one to come.
    fn since(&self, since: Millis) -> Start {
        if self.earliest == self.next || self.last_time < since {
            return Start::At(self.next);
        }
        let gaps_upto = self.gaps_upto();
        match self.tail.reaching(since) {
            Some((place, run)) if run.base >= gaps_upto && (place > 0 || run.base <= self.earliest) => {
                return Start::At(run.base.max(self.earliest));
            }
            // What lies before the tail may be as young.
            _ => {}
        }
        let segment = self.segments.reaching(since);
        let from = segment.base.max(self.earliest);
        // Where there may be gaps only files know what is there.
        let all_are = segment.first_time >= since && segment.first_time.0 > 0 && from >= gaps_upto;
        if all_are || (self.tail.has(from) && from >= gaps_upto) {
            Start::At(from)
        } else {
            Start::Cold { from, since }
        }
    }

    /// Which record a start stands for, with its append time.
    pub fn find_offset(&self, at: PartitionRef, from: ReadFrom) -> Result<Decision, Reject> {
        let cold = |from, since| Decision::Find(ColdFind { at, from, since });
        let offset = match self.start(from)? {
            Start::At(offset) => offset,
            Start::Cold { from, since } => return Ok(cold(from, since)),
        };
        let appended_at = if offset == self.next {
            None
        } else {
            match self.time_of(offset) {
                Some(time) => Some(time),
                None => return Ok(cold(offset, Millis(0))),
            }
        };
        Ok(Decision::Answer { reply: Reply::OffsetFound { offset, appended_at }, seen: self.last_lsn })
    }

    /// When a record that there is was appended, if that is known without its file.
    fn time_of(&self, offset: Offset) -> Option<Millis> {
        if offset < self.gaps_upto() {
            return None;
        }
        if let Some(run) = self.tail.holding(offset) {
            return Some(run.appended_at);
        }
        let segment = self.segments.holding(offset);
        (segment.base == offset && segment.first_time.0 > 0).then_some(segment.first_time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::tail::Run;
    use bytes::Bytes;
    use flowmesh_model::Lsn;

    /// Ten records, one a run, appended at 100, 101, …, two a segment; the first `cold` are only in files.
    fn partition(cold: u64, earliest: u64) -> Partition {
        let mut partition = Partition::new();
        for number in 0..10u64 {
            let (base, time) = (Offset(number), Millis(100 + number / 2 * 2));
            if number % 2 == 0 && number > 0 {
                partition.segments.rolled(base);
            }
            partition.segments.appended(base, 4, time);
            partition.next = base.plus(1);
            partition.last_time = time;
            if number >= cold {
                let records = Bytes::from_static(&[0x1A, 2, 0x12, 0]);
                let lsn = Lsn(number);
                partition.tail.push(Run { base, count: 1, appended_at: time, lsn, position: 0, records });
            }
        }
        partition.earliest = Offset(earliest);
        partition.segments.trimmed(Offset(earliest));
        partition
    }

    #[test]
    fn a_time_is_found_wherever_its_record_is() {
        for (cold, earliest) in [(0, 0), (0, 3), (4, 0), (5, 3), (10, 0), (10, 7)] {
            let partition = partition(cold, earliest);
            for since in 95..115u64 {
                let expected = (earliest..10).find(|n| 100 + n / 2 * 2 >= since).unwrap_or(10);
                let found = match partition.since(Millis(since)) {
                    Start::At(offset) => offset.0,
                    // What a file with all of it would say.
                    Start::Cold { from, since } => {
                        assert!(from.0 < cold, "only what is not in memory is looked for in files");
                        (from.0..cold).find(|n| 100 + n / 2 * 2 >= since.0).unwrap_or(cold)
                    }
                };
                assert_eq!(found, expected, "cold {cold} earliest {earliest} since {since}");
            }
        }
    }
}

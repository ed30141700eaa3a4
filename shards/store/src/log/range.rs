//! Reads a range of entries back, for replication.

use bytes::Bytes;
use flowmesh_model::{Lsn, Millis};

use super::batch::Whose;
use super::error::LogError;
use super::format::{SEGMENT_HEADER_BYTES, SegmentHeader};
use super::reader::BatchReader;
use super::recovery::Entry;
use super::segment::log_name;
use crate::disk::{ALIGN, Disk, DiskFile};

use std::rc::Rc;

/// Entries to read back. Take it with [`super::Log::range`].
#[must_use = "nothing is read unless it is run"]
pub struct RangeRead<D: Disk> {
    disk: D,
    whose: Whose,
    /// Number and first LSN of the segments that hold the range.
    segments: Vec<(u64, Lsn)>,
    from: Lsn,
    to: Lsn,
}

impl<D: Disk> RangeRead<D> {
    pub(super) fn new(disk: D, whose: Whose, segments: &[(u64, Lsn)], from: Lsn, to: Lsn) -> Self {
        let start = segments.iter().rposition(|&(_, first)| first <= from).unwrap_or(0);
        let held = segments.iter().skip(start).take_while(|&&(_, first)| first <= to);
        Self { disk, whose, segments: held.copied().collect(), from, to }
    }

    /// Hands the entries to `sink`, in order.
    ///
    /// # Errors
    /// [`LogError::OutOfRange`] if the log gave the entries up meanwhile; then the sink has got a part of them.
    pub async fn run(self, mut sink: impl FnMut(Entry)) -> Result<(), LogError> {
        let mut next = self.from;
        for &(seq, first) in &self.segments {
            next = self.read_segment(seq, first, next, &mut sink).await?;
        }
        if next > self.to { Ok(()) } else { Err(self.gone()) }
    }

    fn gone(&self) -> LogError {
        LogError::OutOfRange { shard: self.whose.shard, from: self.from, to: self.to }
    }

    async fn read_segment(
        &self,
        seq: u64,
        first: Lsn,
        mut next: Lsn,
        sink: &mut impl FnMut(Entry),
    ) -> Result<Lsn, LogError> {
        let failed = |error| self.whose.io("read", seq, error);
        // A segment that was trimmed meanwhile is gone or renamed.
        let path = self.whose.dir.join(log_name(seq));
        let file = self.disk.open(&path).await.map_err(|_| self.gone())?;
        let page = file.read_at(0, ALIGN).await.map_err(failed)?;
        let header = SegmentHeader::decode(page.as_ref()).map_err(|_| self.gone())?;
        let mut reader = BatchReader::<D>::new(Rc::new(file), header);
        let (mut position, mut expected, mut run) = (SEGMENT_HEADER_BYTES as u64, first, 0);
        while next <= self.to {
            let Ok((header, entries)) = reader.batch(position, expected, run).await.map_err(failed)? else {
                break;
            };
            let wanted = |entry: &(Lsn, Millis, Bytes)| (self.from..=self.to).contains(&entry.0);
            for (lsn, time, body) in entries.filter(wanted) {
                sink(Entry { lsn, time, body });
                next = lsn.next();
            }
            position += header.disk_bytes() as u64;
            expected = Lsn(header.first_lsn.0 + u64::from(header.entries));
            run = header.run;
        }
        Ok(next)
    }
}

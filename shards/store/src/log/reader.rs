//! Reads a segment's batches in order, in large aligned reads; and searches the rest of a segment for batches that
//! prove what was durable.

use std::io;
use std::rc::Rc;

use flowmesh_model::Lsn;

use super::error::Damage;
use super::format::{BATCH_HEADER_BYTES, BATCH_MAGIC, BatchHeader, SegmentHeader, VerifiedEntries};
use crate::disk::{ALIGN, Disk, DiskFile};
use crate::pages::PAGE;
use crate::window::{READ_BYTES, Window};

/// Where a log stops being readable, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub offset: u64,
    pub lsn: Lsn,
    pub what: Damage,
}

/// A batch that holds: its header and its entries.
pub(super) type ReadBatch = (BatchHeader, VerifiedEntries);

/// Reads the batches of one segment.
pub(super) struct BatchReader<D: Disk> {
    header: SegmentHeader,
    window: Window<D::File>,
}

impl<D: Disk> BatchReader<D> {
    pub fn new(file: Rc<D::File>, header: SegmentHeader) -> Self {
        Self { window: Window::new(file, header.bytes), header }
    }

    /// The batch at `position`, if it is whole, its first entry is `expected` and its run is at least `run_min`.
    pub async fn batch(
        &mut self,
        position: u64,
        expected: Lsn,
        run_min: u64,
    ) -> io::Result<Result<ReadBatch, Fault>> {
        let fault = |what| Ok(Err(Fault { offset: position, lsn: expected, what }));
        if !self.window.fill(position, ALIGN).await? {
            return fault(Damage::NoBatch);
        }
        let header = match BatchHeader::decode(self.window.bytes()) {
            Ok(header) if !header.belongs_to(&self.header) => return fault(Damage::NoBatch),
            Ok(header) => header,
            Err(what) => return fault(what),
        };
        if header.first_lsn != expected {
            return fault(Damage::LsnGap);
        }
        if header.run < run_min {
            return fault(Damage::StaleRun);
        }
        if !self.window.fill(position, header.disk_bytes()).await? {
            return fault(Damage::BatchLength);
        }
        let batch = self.window.take(header.disk_bytes());
        let body = batch.slice(BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + header.body_bytes as usize);
        Ok(VerifiedEntries::check(&header, body).map(|entries| (header, entries)).map_err(|bad| Fault {
            offset: position + (BATCH_HEADER_BYTES + bad.at) as u64,
            lsn: expected,
            what: bad.what,
        }))
    }
}

/// What batches anywhere in the log say, whether or not they can be reached from its start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Evidence {
    /// The highest LSN that some batch knew to be durable.
    pub synced: Lsn,
    /// The highest run.
    pub run: u64,
    /// Batches seen.
    pub batches: u64,
}

impl Evidence {
    pub fn add(&mut self, header: &BatchHeader) {
        self.synced = self.synced.max(header.synced_lsn);
        self.run = self.run.max(header.run);
        self.batches += 1;
    }

    /// Looks at every 4 KiB of a segment from `position` on.
    pub async fn search<F: DiskFile>(
        &mut self,
        file: &F,
        segment: &SegmentHeader,
        mut position: u64,
    ) -> io::Result<()> {
        while position < segment.bytes {
            let left = usize::try_from(segment.bytes - position).unwrap_or(usize::MAX);
            let read = file.read_at(position, READ_BYTES.min(left)).await?;
            if read.as_ref().is_empty() {
                break;
            }
            for page in read.as_ref().chunks(ALIGN).filter(|page| page.starts_with(BATCH_MAGIC)) {
                if let Ok(header) = BatchHeader::decode(page)
                    && header.belongs_to(segment)
                {
                    self.add(&header);
                }
            }
            position += (read.as_ref().len() as u64).next_multiple_of(PAGE);
        }
        Ok(())
    }
}

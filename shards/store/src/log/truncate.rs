//! Cuts a suffix of valid entries off, for replication: what a follower has to take back.
//!
//! Later segments become spares, the last first. The segment with the cut is copied up to it, and the copy takes the
//! original's name in one step: a crash leaves the log as it was or a longer prefix of it, never a hole, and nothing
//! that was cut can come back.

use std::io;
use std::rc::Rc;

use flowmesh_model::Lsn;

use super::error::LogError;
use super::format::{
    BATCH_HEADER_BYTES, BatchHeader, ENTRY_HEADER_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader,
};
use super::reader::BatchReader;
use super::recovery::recover;
use super::segment::{cut_name, drop_suffix, log_name, sync_dir};
use super::writer::{Log, Suffix};
use crate::disk::{ALIGN, Disk, DiskFile};
use crate::pages::round_up;

const COPY_BYTES: usize = 1024 * 1024;

impl<D: Disk> Log<D> {
    /// Removes every entry after `last`, durably, and opens the log again. Nothing may be gathered or in flight.
    ///
    /// # Errors
    /// [`LogError::OutOfRange`] if the log does not hold `last`; [`LogError::Io`].
    pub async fn truncate_after(self, last: Lsn) -> Result<Self, LogError> {
        let (first, next) = (self.first_lsn(), self.next_lsn());
        if last.next() >= next {
            return Ok(self);
        }
        let Some(Suffix { disk, config, whose, seqs }) = self.into_suffix(last) else {
            return Ok(Self::in_memory());
        };
        let (Some((&seq, later)), true) = (seqs.split_first(), first <= last) else {
            return Err(LogError::OutOfRange { shard: whose.shard, from: first, to: last });
        };
        drop_suffix(&disk, &whose, later).await?;
        let (path, copy) = (whose.dir.join(log_name(seq)), whose.dir.join(cut_name(seq)));
        let cut = async {
            let original = disk.open(&path).await?;
            copy_until(&disk, original, &copy, last).await?;
            disk.rename(&copy, &path).await
        };
        cut.await.map_err(|error| whose.io("truncate", seq, error))?;
        sync_dir(&disk, &whose).await?;
        let (log, _) = recover(&disk, config, last, |_| Ok(())).await?;
        Ok(log)
    }
}

/// Copies a segment's entries up to `last` to a new file.
async fn copy_until<D: Disk>(
    disk: &D,
    original: D::File,
    path: &std::path::Path,
    last: Lsn,
) -> io::Result<()> {
    let page = original.read_at(0, ALIGN).await?;
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidData);
    let header = SegmentHeader::decode(page.as_ref()).map_err(invalid)?;
    let original = Rc::new(original);
    let (end, split) = find_end::<D>(Rc::clone(&original), header, last).await?;
    let copy = disk.create_zeroed(path, header.bytes).await?;
    let mut position = 0;
    while position < end {
        let bytes = COPY_BYTES.min(usize::try_from(end - position).unwrap_or(COPY_BYTES));
        let read = original.read_at(position, bytes).await?;
        if read.as_ref().len() < bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        copy.write_at(read, bytes, position).await?;
        position += bytes as u64;
    }
    if let Some(split) = split {
        let bytes = round_up(split.len());
        let mut buf = disk.alloc(bytes);
        let out = buf.as_mut();
        out.fill(0);
        if let Some(out) = out.get_mut(..split.len()) {
            out.copy_from_slice(&split);
        }
        copy.write_at(buf, bytes, end).await?;
    }
    copy.sync().await
}

/// Where the batches end that are kept as they are, and the first part of the batch that `last` is in the middle of.
async fn find_end<D: Disk>(
    file: Rc<D::File>,
    segment: SegmentHeader,
    last: Lsn,
) -> io::Result<(u64, Option<Vec<u8>>)> {
    let mut position = SEGMENT_HEADER_BYTES as u64;
    let page = file.read_at(position, ALIGN).await?;
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidData);
    let mut expected = BatchHeader::decode(page.as_ref()).map_err(invalid)?.first_lsn;
    let mut reader = BatchReader::<D>::new(file, segment);
    while expected <= last {
        let read = reader.batch(position, expected, 0).await?;
        let (header, entries) = read.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        expected = Lsn(header.first_lsn.0 + u64::from(header.entries));
        if expected.0 > last.0 + 1 {
            let kept = u32::try_from(last.0 + 1 - header.first_lsn.0).unwrap_or(header.entries);
            return Ok((position, Some(first_entries(header, entries, kept))));
        }
        position += header.disk_bytes() as u64;
    }
    Ok((position, None))
}

/// A batch with only the first `kept` entries of another one.
fn first_entries(header: BatchHeader, entries: super::format::VerifiedEntries, kept: u32) -> Vec<u8> {
    let bytes: Vec<u8> = entries.body().to_vec();
    let lens = entries.take(kept as usize).map(|(.., body)| ENTRY_HEADER_BYTES + body.len());
    let body_bytes: usize = lens.sum();
    let mut batch = vec![0; BATCH_HEADER_BYTES];
    batch.extend_from_slice(bytes.get(..body_bytes).unwrap_or_default());
    BatchHeader { body_bytes: body_bytes as u32, entries: kept, ..header }.encode(&mut batch);
    batch
}

//! Files that are compacted, block by block.

use std::rc::Rc;

use bytes::Bytes;
use flowmesh_model::{Offset, PartitionRef};

use crate::disk::{Disk, DiskFile};
use crate::segments::error::{SegmentDamage, SegmentError};
use crate::segments::files::{Inner, io_error};
use crate::segments::format::{BLOCK_HEADER_BYTES, BlockHeader, FILE_HEADER_BYTES};
use crate::segments::open::OpenFile;
use crate::window::Window;

/// How much is read from the disk at once: to take it in holds the core for some 50 µs.
const READ_BYTES: usize = 128 * 1024;

/// A file to be compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub base: Offset,
    pub end: Offset,
}

/// A block with its runs, which are not checked yet.
pub(super) struct WalkedBlock {
    pub header: BlockHeader,
    pub body: Bytes,
    /// What was read of the file for it.
    pub disk_bytes: u64,
}

/// The blocks of a file, in order.
pub(super) struct Walk<'a, D: Disk> {
    inner: &'a Inner<D>,
    at: PartitionRef,
    open: OpenFile<D::File>,
    window: Window<D::File>,
    position: u64,
    expected: Offset,
    end: Offset,
}

impl<'a, D: Disk> Walk<'a, D> {
    pub async fn open(inner: &'a Inner<D>, at: PartitionRef, source: Source) -> Result<Self, SegmentError> {
        let open = inner.open_file(at, source.base).await?;
        let size = open.file.size().await;
        let size = size.map_err(|error| io_error(at, "read", &inner.path(at, source.base), error))?;
        let window = Window::new(Rc::clone(&open.file), size).with_reads_of(READ_BYTES);
        let (expected, end) = (source.base, source.end);
        Ok(Self { inner, at, open, window, position: FILE_HEADER_BYTES as u64, expected, end })
    }

    /// The next block that reaches beyond `from`; `None` at the end of the file.
    pub async fn next(&mut self, from: Offset) -> Result<Option<WalkedBlock>, SegmentError> {
        while self.expected < self.end {
            let (open, window) = (&self.open, &mut self.window);
            let header = self.inner.block_header(self.at, open, window, self.position, self.expected).await?;
            let Some(header) = header else { break };
            let (position, disk_bytes) = (self.position, header.disk_bytes());
            self.expected = header.next;
            self.position += disk_bytes as u64;
            if header.next <= from {
                continue;
            }
            let filled = self.window.fill(position, disk_bytes).await;
            if !filled
                .map_err(|error| io_error(self.at, "read", &self.inner.path(self.at, open.base), error))?
            {
                return Err(self.inner.damaged(self.at, open.base, position, SegmentDamage::BlockLength));
            }
            let bytes = self.window.take(disk_bytes);
            let body = bytes.slice(BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + header.body_bytes as usize);
            return Ok(Some(WalkedBlock { header, body, disk_bytes: disk_bytes as u64 }));
        }
        Ok(None)
    }

    /// Something is wrong with the block that came last.
    pub fn damaged(&self, block: &WalkedBlock, what: SegmentDamage) -> SegmentError {
        self.inner.damaged(self.at, self.open.base, self.position - block.disk_bytes, what)
    }

    /// Whether records may be missing.
    pub fn with_gaps(&self) -> bool {
        self.open.compacted.is_some()
    }
}

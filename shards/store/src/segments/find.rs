//! Finding a time: from the nearest block that the index knows, block header to block header, until one starts too late;
//! then the records of the block before, each checked.

use std::rc::Rc;

use flowmesh_model::{Millis, Offset, PartitionRef};

use super::error::{SegmentDamage, SegmentError};
use super::files::{Block, HOP_BYTES, Inner, StreamFiles, io_error};
use super::format::{BLOCK_HEADER_BYTES, UncheckedRun, first_run_time};
use super::open::OpenFile;
use crate::disk::{Disk, DiskFile};
use crate::window::Window;

/// A file with records of a partition, and the offset behind its last one.
struct Range<D: Disk> {
    at: PartitionRef,
    open: OpenFile<D::File>,
    end: Offset,
    size: u64,
}

impl<D: Disk> Range<D> {
    fn window(&self, read_bytes: usize) -> Window<D::File> {
        Window::new(Rc::clone(&self.open.file), self.size).with_reads_of(read_bytes)
    }
}

impl<D: Disk> StreamFiles<D> {
    /// The first record from `from` on that was appended at `since` or later, and when that was; `None` if the files have
    /// none. Append times never go back.
    ///
    /// # Errors
    /// [`SegmentError`]: `Missing` if no file holds `from` although the partition reaches beyond it.
    pub async fn find(
        &self,
        at: PartitionRef,
        mut from: Offset,
        since: Millis,
    ) -> Result<Option<(Offset, Millis)>, SegmentError> {
        while from < self.next_offset(at) {
            self.inner.list(at).await?;
            let swaps = self.inner.swaps(at);
            match self.inner.find_in_file(at, from, since).await {
                Ok((None, end)) => from = end,
                Ok((found, _)) => return Ok(found),
                // A file that was replaced while it was looked for.
                Err(_) if self.inner.swaps(at) != swaps => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

impl<D: Disk> Inner<D> {
    /// Looks in the file that holds `from`. Returns what it found, and where the file ends.
    async fn find_in_file(
        &self,
        at: PartitionRef,
        from: Offset,
        since: Millis,
    ) -> Result<(Option<(Offset, Millis)>, Offset), SegmentError> {
        let range = self.open_range(at, from).await?;
        let block = self.last_before(&range, from, since).await?;
        let found = self.first_since(&range, block, from, since).await?;
        let end = range.end;
        self.keep_open(at, range.open);
        Ok((found, end))
    }

    async fn open_range(&self, at: PartitionRef, from: Offset) -> Result<Range<D>, SegmentError> {
        let (base, end) = self.file_range(at, from)?;
        let open = self.open_file(at, base).await?;
        let size = open.file.size().await;
        let size = size.map_err(|error| io_error(at, "read", &self.path(at, base), error))?;
        Ok(Range { at, open, end, size })
    }

    /// The block before the first one that starts behind `from` and at `since` or later.
    async fn last_before(
        &self,
        range: &Range<D>,
        from: Offset,
        since: Millis,
    ) -> Result<Block, SegmentError> {
        let mut window = range.window(HOP_BYTES);
        let mut block = range.open.index.borrow().before_time(from, since);
        let mut next = block;
        while next.base < range.end {
            let header =
                self.block_header(range.at, &range.open, &mut window, next.position, next.base).await?;
            let Some(header) = header else { break };
            let time = first_run_time(window.bytes());
            range.open.index.borrow_mut().note(header.base, next.position, time);
            if header.base > from && time >= since {
                break;
            }
            block = Block { base: header.base, ..next };
            next = Block {
                base: header.next,
                position: next.position + header.disk_bytes() as u64,
                time: Millis(0),
            };
        }
        Ok(block)
    }

    /// The first record of a file's blocks from `block` on that is wanted.
    async fn first_since(
        &self,
        range: &Range<D>,
        block: Block,
        from: Offset,
        since: Millis,
    ) -> Result<Option<(Offset, Millis)>, SegmentError> {
        let Block { base: mut expected, mut position, .. } = block;
        let mut window = range.window(HOP_BYTES);
        let (at, base) = (range.at, range.open.base);
        while expected < range.end {
            let header = self.block_header(at, &range.open, &mut window, position, expected).await?;
            let Some(header) = header else { break };
            let filled = window.fill(position, header.disk_bytes()).await;
            if !filled.map_err(|error| io_error(at, "read", &self.path(at, base), error))? {
                return Err(self.damaged(at, base, position, SegmentDamage::BlockLength));
            }
            let bytes = window.take(header.disk_bytes());
            let mut body = bytes.slice(BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + header.body_bytes as usize);
            for _ in 0..header.runs {
                let run = UncheckedRun::take(&mut body).and_then(UncheckedRun::check);
                let run = run.map_err(|what| self.damaged(at, base, position, what))?;
                if run.base.plus(u64::from(run.count)) > from && run.appended_at >= since {
                    return Ok(Some((run.base.max(from), run.appended_at)));
                }
            }
            expected = header.next;
            position += header.disk_bytes() as u64;
        }
        Ok(None)
    }
}

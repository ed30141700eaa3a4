//! Appending runs: gathered to blocks, a file after the other, durable after [`StreamFiles::sync`]. Of partitions with few
//! records a block each, many partitions at once, and then one sync of all there is.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::{io, iter};

use flowmesh_model::reply::RecordRun;
use flowmesh_model::{Millis, Offset, PartitionRef};
use futures::future::LocalBoxFuture;
use futures::stream::{self, FuturesOrdered};
use futures::{FutureExt, StreamExt, TryStreamExt};

use super::error::SegmentError;
use super::files::{DirtyFile, Inner, NOWHERE, Partition, SparseIndex, StreamFiles, io_error};
use super::format::{BLOCK_HEADER_BYTES, BlockHeader, FILE_HEADER_BYTES, FileHeader, put_run, run_bytes};
use super::names::file_name;
use super::open::OpenFile;
use crate::disk::{ALIGN, Disk, DiskFile, FileWrite, Pages, Presence};
use crate::pages::round_up;

/// Blocks that are on their way to the disk together: a write waits for its turn on a busy core, not for the disk.
const WRITES_AT_ONCE: usize = 8;

/// Files written to and not synced; beyond it they are synced in between, so that few are open.
const DIRTY_MAX: usize = 64;

/// Files and directories that are synced at the same time: a file system makes one commit of its journal of them.
const SYNCS_AT_ONCE: usize = 16;

impl<D: Disk> StreamFiles<D> {
    /// Appends runs, in order and without a gap. Normally the first one continues the partition; if it lies before the
    /// end (a checkpoint failed after its append, and is made again), the files are first cut back to it. One append
    /// at a time for a partition.
    ///
    /// Readable at once, durable after [`StreamFiles::sync`]. After a failure nothing of it counts.
    ///
    /// # Errors
    /// [`SegmentError`]; `Missing` if the runs leave a gap.
    pub async fn append(&self, at: PartitionRef, runs: &[RecordRun]) -> Result<(), SegmentError> {
        self.append_runs(at, runs, false).await
    }

    /// As [`StreamFiles::append`], into a file of its own: a segment begins. Records between the files and these, if
    /// there are any, are gone for good, and so is all before them: what they lie behind is nothing that is read.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub async fn append_segment(&self, at: PartitionRef, runs: &[RecordRun]) -> Result<(), SegmentError> {
        self.append_runs(at, runs, true).await
    }

    async fn append_runs(
        &self,
        at: PartitionRef,
        runs: &[RecordRun],
        new_file: bool,
    ) -> Result<(), SegmentError> {
        let Some(first) = runs.first() else { return Ok(()) };
        self.make_place(at, first.base, new_file).await?;
        let appended = self.inner.append_blocks(at, runs, new_file).await;
        if appended.is_err() {
            self.inner.go_back(at, first.base);
        }
        appended
    }

    /// Cuts a partition's files to where an append begins.
    async fn make_place(&self, at: PartitionRef, first: Offset, new_file: bool) -> Result<(), SegmentError> {
        let next = self.next_offset(at);
        if first > next && !new_file {
            return Err(self.inner.missing(at, next));
        }
        if first < next {
            self.inner.go_back(at, first);
        }
        if new_file {
            self.inner.make_ready_to_begin(at, first).await
        } else {
            self.inner.make_ready(at).await
        }
    }

    /// As [`StreamFiles::append`] or [`StreamFiles::append_segment`] for each of some partitions, one block each: of very
    /// many partitions with a few records each it is the files that cost, not the records. One append at a time for a
    /// partition.
    ///
    /// # Errors
    /// [`SegmentError`] of one of them; nothing of any of them counts.
    pub async fn append_few(&self, appends: Vec<FewRecords>) -> Result<(), SegmentError> {
        let firsts = appends.iter().filter_map(|few| Some((few.at, few.runs.first()?.base, few.new_file)));
        let firsts: Vec<_> = firsts.collect();
        let places = firsts.iter().map(|&(at, first, new_file)| self.make_place(at, first, new_file));
        stream::iter(places).buffer_unordered(SYNCS_AT_ONCE).try_collect::<()>().await?;
        let appended = self.inner.write_few(appends).await;
        if appended.is_err() {
            for (at, first, _) in firsts {
                self.inner.go_back(at, first);
            }
        }
        appended
    }

    /// Makes everything appended so far durable.
    ///
    /// # Errors
    /// [`SegmentError`]; what was appended since the last success must be appended again.
    pub async fn sync(&self) -> Result<(), SegmentError> {
        self.inner.sync_all().await
    }
}

/// The records of a partition that has few, to be appended with those of others.
#[derive(Clone, Debug)]
pub struct FewRecords {
    /// The partition.
    pub at: PartitionRef,
    /// In order and without a gap, no more than a block holds.
    pub runs: Vec<RecordRun>,
    /// Whether a segment begins with them.
    pub new_file: bool,
}

/// Where the block of a partition goes, and what the partition is with it.
struct FewPlace {
    at: PartitionRef,
    base: Offset,
    tail: u64,
    next: Offset,
}

/// Runs that make up one block.
struct Block<'a> {
    runs: &'a [RecordRun],
    body_bytes: usize,
}

/// Takes runs off the front, up to `block_bytes`, at least one.
fn take_block<'a>(runs: &mut &'a [RecordRun], block_bytes: usize) -> Block<'a> {
    let (mut count, mut body_bytes) = (0, 0);
    for run in *runs {
        let with = body_bytes + run_bytes(run);
        if count > 0 && BLOCK_HEADER_BYTES + with > block_bytes {
            break;
        }
        (count, body_bytes) = (count + 1, with);
    }
    let (taken, rest) = runs.split_at(count);
    *runs = rest;
    Block { runs: taken, body_bytes }
}

/// A block that was written, or not.
struct BlockWrite<D: Disk> {
    file: OpenFile<D::File>,
    written: io::Result<D::Buf>,
    /// Where the file ends with it.
    tail: u64,
    /// Behind its last record.
    next: Offset,
}

async fn write_block<D: Disk>(
    file: OpenFile<D::File>,
    buf: D::Buf,
    bytes: usize,
    position: u64,
    next: Offset,
) -> BlockWrite<D> {
    let written = file.file.write_at(buf, bytes, position).await;
    BlockWrite { file, written, tail: position + bytes as u64, next }
}

impl<D: Disk> Inner<D> {
    fn go_back(&self, at: PartitionRef, next: Offset) {
        self.forget_ahead(at);
        self.open.borrow_mut().close_all(at);
        if let Some(partition) = self.partitions.borrow_mut().get_mut(&at) {
            partition.go_back(next);
        }
    }

    async fn append_blocks(
        &self,
        at: PartitionRef,
        runs: &[RecordRun],
        new_file: bool,
    ) -> Result<(), SegmentError> {
        let mut writing = FuturesOrdered::new();
        let issued = self.issue_blocks(at, runs, new_file, &mut writing).await;
        // A write that nobody waits for could still land later, over what was written there since.
        let mut landed = Ok(());
        while let Some(written) = writing.next().await {
            landed = landed.and(self.land(at, written));
        }
        issued.and(landed)?;
        if self.dirty.borrow().len() > DIRTY_MAX { self.sync_each().await } else { Ok(()) }
    }

    async fn write_few(&self, appends: Vec<FewRecords>) -> Result<(), SegmentError> {
        let (mut places, mut writes) = (Vec::new(), Vec::new());
        for few in appends.iter().filter(|few| !few.runs.is_empty()) {
            let (place, write) = self.few_write(few)?;
            places.push(place);
            writes.push(write);
        }
        self.few_unsynced.set(true);
        if let Err((number, error)) = self.disk.write_files(writes).await {
            let place = places.get(number);
            let (at, base) = place.map_or((NOWHERE, Offset(0)), |place| (place.at, place.base));
            return Err(io_error(at, "write to", &self.path(at, base), error));
        }
        let mut partitions = self.partitions.borrow_mut();
        for FewPlace { at, base, tail, next } in places {
            if let Some(Partition { files: Some(files), tail: end, next: behind, .. }) =
                partitions.get_mut(&at)
            {
                files.insert(base, None);
                (*end, *behind) = (Some(tail), next);
            }
        }
        Ok(())
    }

    /// The block of a partition's few records, behind the header of a file if it begins one.
    fn few_write(&self, few: &FewRecords) -> Result<(FewPlace, FileWrite), SegmentError> {
        let at = few.at;
        let (last, is_first, position, next) = {
            let partitions = self.partitions.borrow();
            let Some(partition) = partitions.get(&at) else { return Err(self.missing(at, Offset(0))) };
            let last = partition.last_open_end().filter(|_| !few.new_file);
            (last, partition.last_file().is_none(), partition.tail.unwrap_or(0), partition.next)
        };
        let block = take_block(&mut few.runs.as_slice(), usize::MAX);
        let bytes = round_up(BLOCK_HEADER_BYTES + block.body_bytes);
        let base = last.filter(|_| position + bytes as u64 <= self.config.file_bytes_max);
        let header_bytes = if base.is_some() { 0 } else { FILE_HEADER_BYTES };
        let position = if base.is_some() { position } else { 0 };
        let mut pages = Pages::zeroed(header_bytes + bytes);
        let (header, body) = pages.as_mut().split_at_mut(header_bytes);
        if !header.is_empty() {
            FileHeader { at, base: next, compacted: None }.encode(header);
        }
        let ((), end) = encode_block(body, &block, bytes, next)
            .map(|(_, end)| ((), end))
            .map_err(|gap| self.missing(at, gap))?;
        let presence = match base {
            Some(_) => Presence::There,
            None if is_first => Presence::MissingWithDirectory,
            None => Presence::Missing,
        };
        if presence == Presence::MissingWithDirectory {
            self.new_dirs.set(true);
        }
        let base = base.unwrap_or(next);
        let path = self.dir(at).join(file_name(base, None));
        let tail = position + (header_bytes + bytes) as u64;
        Ok((FewPlace { at, base, tail, next: end }, FileWrite { path, presence, position, pages }))
    }

    /// Encodes blocks and starts to write them, some at a time. Those that have not landed are left in `writing`.
    async fn issue_blocks<'a>(
        &'a self,
        at: PartitionRef,
        mut runs: &[RecordRun],
        new_file: bool,
        writing: &mut FuturesOrdered<LocalBoxFuture<'a, BlockWrite<D>>>,
    ) -> Result<(), SegmentError> {
        let (last, mut position, mut next) = {
            let partitions = self.partitions.borrow();
            let Some(partition) = partitions.get(&at) else { return Err(self.missing(at, Offset(0))) };
            let last = partition.last_open_end().filter(|_| !new_file);
            (last, partition.tail.unwrap_or(0), partition.next)
        };
        let mut file = match last {
            Some(base) => Some(self.open_file(at, base).await?),
            None => None,
        };
        let mut allocated = 0;
        while !runs.is_empty() {
            let block = take_block(&mut runs, self.config.block_bytes);
            let bytes = round_up(BLOCK_HEADER_BYTES + block.body_bytes);
            let full =
                position > FILE_HEADER_BYTES as u64 && position + bytes as u64 > self.config.file_bytes_max;
            let current = if let Some(file) = file.take().filter(|_| !full) {
                file
            } else {
                (position, allocated) = (FILE_HEADER_BYTES as u64, 0);
                self.create_file(at, next).await?
            };
            if position >= allocated {
                allocated = self.allocate(at, &current, position, (bytes + total(runs)) as u64).await?;
            }
            let buf = self.block_memory(bytes, total(runs));
            let (buf, block_next) =
                encode_block(buf, &block, bytes, next).map_err(|gap| self.missing(at, gap))?;
            let time = block.runs.first().map_or(Millis(0), |run| run.appended_at);
            current.index.borrow_mut().note(next, position, time);
            self.add_dirty(at, &current);
            writing.push_back(write_block(current.clone(), buf, bytes, position, block_next).boxed_local());
            file = Some(current);
            (position, next) = (position + bytes as u64, block_next);
            if writing.len() >= WRITES_AT_ONCE
                && let Some(written) = writing.next().await
            {
                self.land(at, written)?;
            }
        }
        Ok(())
    }

    /// Memory for a block of `bytes`, and as much as the blocks behind it will need if that is more.
    fn block_memory(&self, bytes: usize, behind: usize) -> D::Buf {
        match self.spares.borrow_mut().pop() {
            Some(buf) if AsRef::<[u8]>::as_ref(&buf).len() >= bytes => buf,
            _ => {
                self.disk.alloc(bytes.max(self.config.block_bytes.min(round_up(BLOCK_HEADER_BYTES + behind))))
            }
        }
    }

    /// Allocates the file up to where an append of `bytes` at `position` will take it. Returns where that is, or where to
    /// ask again.
    async fn allocate(
        &self,
        at: PartitionRef,
        file: &OpenFile<D::File>,
        position: u64,
        bytes: u64,
    ) -> Result<u64, SegmentError> {
        if bytes < self.config.allocate_from {
            return Ok(u64::MAX);
        }
        let end = (position + bytes).min(self.config.file_bytes_max).max(position);
        let end = end.next_multiple_of(ALIGN as u64);
        let allocated = file.file.allocate(end).await;
        allocated.map_err(|error| io_error(at, "allocate", &self.path(at, file.base), error))?;
        Ok(end.max(position + 1))
    }

    /// Makes a block readable that was written, and keeps its memory for the next.
    fn land(&self, at: PartitionRef, write: BlockWrite<D>) -> Result<(), SegmentError> {
        let BlockWrite { file, written, tail, next } = write;
        let buf = written.map_err(|error| io_error(at, "write to", &self.path(at, file.base), error))?;
        self.note(at, file, tail, next);
        let mut spares = self.spares.borrow_mut();
        if spares.len() < WRITES_AT_ONCE && AsRef::<[u8]>::as_ref(&buf).len() <= self.config.block_bytes {
            spares.push(buf);
        }
        Ok(())
    }

    /// Takes note of a block that was written.
    fn note(&self, at: PartitionRef, file: OpenFile<D::File>, tail: u64, next: Offset) {
        if let Some(Partition { files: Some(files), tail: end, next: behind, .. }) =
            self.partitions.borrow_mut().get_mut(&at)
        {
            files.insert(file.base, None);
            (*end, *behind) = (Some(tail), next);
        }
        self.keep_open(at, file);
    }

    /// Makes a file for records from `base` on.
    async fn create_file(&self, at: PartitionRef, base: Offset) -> Result<OpenFile<D::File>, SegmentError> {
        let (dir, path) = (self.dir(at), self.path(at, base));
        let make = async {
            let is_new = self.partitions.borrow().get(&at).and_then(Partition::last_file).is_none();
            if is_new {
                self.disk.create_dir_all(&dir).await?;
                self.new_dirs.set(true);
            }
            let file = self.disk.create(&path).await?;
            let mut page = self.disk.alloc(ALIGN);
            page.as_mut().fill(0);
            FileHeader { at, base, compacted: None }.encode(page.as_mut());
            file.write_at(page, ALIGN, 0).await?;
            self.new_files.borrow_mut().insert(at);
            Ok(file)
        };
        let file = make.await.map_err(|error| io_error(at, "create", &path, error))?;
        let index = Rc::new(RefCell::new(SparseIndex::new(base)));
        Ok(OpenFile { base, file: Rc::new(file), index, compacted: None, swaps: self.swaps(at) })
    }

    fn add_dirty(&self, at: PartitionRef, file: &OpenFile<D::File>) {
        let mut dirty = self.dirty.borrow_mut();
        // By identity: a file that was removed and made again has the same path.
        if dirty.iter().all(|dirty| !Rc::ptr_eq(&dirty.file, &file.file)) {
            dirty.push(DirtyFile { at, path: self.path(at, file.base), file: Rc::clone(&file.file) });
        }
    }

    async fn sync_all(&self) -> Result<(), SegmentError> {
        if !self.few_unsynced.take() {
            return self.sync_each().await;
        }
        self.spares.borrow_mut().clear();
        self.ahead.borrow_mut().clear();
        self.dirty.borrow_mut().clear();
        self.new_files.borrow_mut().clear();
        let synced = self.disk.sync_below(&self.root).await;
        synced.map_err(|error| io_error(NOWHERE, "sync", &self.root, error))?;
        if self.new_dirs.take()
            && let Some(above) = self.root.parent()
        {
            self.sync_dir(NOWHERE, above.to_path_buf()).await?;
        }
        Ok(())
    }

    /// Syncs each file that was written to, and each directory that has a new one.
    async fn sync_each(&self) -> Result<(), SegmentError> {
        self.spares.borrow_mut().clear();
        self.ahead.borrow_mut().clear();
        let files = self.dirty.take().into_iter().map(|DirtyFile { at, path, file }| async move {
            file.sync().await.map_err(|error| io_error(at, "sync", &path, error))
        });
        stream::iter(files).buffer_unordered(SYNCS_AT_ONCE).try_collect::<()>().await?;
        let dirs = self.new_files.take().into_iter().map(|at| self.sync_dir(at, self.dir(at)));
        stream::iter(dirs).buffer_unordered(SYNCS_AT_ONCE).try_collect::<()>().await?;
        if self.new_dirs.take() {
            let above = self.root.parent().map(Path::to_path_buf);
            for dir in iter::once(self.root.clone()).chain(above) {
                self.sync_dir(NOWHERE, dir).await?;
            }
        }
        Ok(())
    }

    async fn sync_dir(&self, at: PartitionRef, dir: PathBuf) -> Result<(), SegmentError> {
        self.disk.sync_dir(&dir).await.map_err(|error| io_error(at, "sync", &dir, error))
    }
}

fn total(runs: &[RecordRun]) -> usize {
    runs.iter().map(run_bytes).sum()
}

/// Encodes a block whose first record must be `next`. Returns where the next block starts, or the first record of a gap.
fn encode_block<B: AsMut<[u8]>>(
    mut buf: B,
    block: &Block<'_>,
    bytes: usize,
    mut next: Offset,
) -> Result<(B, Offset), Offset> {
    let base = next;
    let mut at = BLOCK_HEADER_BYTES;
    let out = buf.as_mut();
    for run in block.runs {
        if run.base != next || run.count == 0 {
            return Err(next);
        }
        at += put_run(out.get_mut(at..).unwrap_or_default(), run);
        next = run.base.plus(u64::from(run.count));
    }
    if let Some(padding) = out.get_mut(at..bytes) {
        padding.fill(0);
    }
    let (body_bytes, runs) = (block.body_bytes as u32, block.runs.len() as u32);
    BlockHeader { body_bytes, runs, base, next }.encode(out);
    Ok((buf, next))
}

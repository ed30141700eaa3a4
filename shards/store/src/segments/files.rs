//! All segment files of a shard, by partition.
//!
//! Nothing is read from disk for a partition before it is used, and nothing is changed before it is appended to: then
//! its files are cut to what the index knew. Readers never go beyond that, whatever the files hold.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use flowmesh_model::{Millis, Offset, PartitionRef, ResourceId};
use futures::lock::Mutex;

use super::ahead::ReadAhead;
use super::error::{SegmentDamage, SegmentError};
use super::format::{BlockHeader, FILE_HEADER_BYTES, FileHeader, FileHeaderFault, VERSION, first_run_time};
use super::names::{Files, dir_name, file_name, parse_dir_name, sort_out};
use super::open::{OpenFile, OpenFiles};
use crate::disk::{ALIGN, Disk, DiskFile};
use crate::window::Window;

/// Settings of segment files.
#[derive(Clone, Debug)]
pub struct StreamFilesConfig {
    /// A file that is larger gets a successor, although its segment goes on: more than a segment should have.
    pub file_bytes_max: u64,
    /// Records gather to writes of this size; also what a read of one record costs.
    pub block_bytes: usize,
    /// Appends of so many bytes have their place in the file allocated before they are written: writes that make a file
    /// longer are carried out one by one, by a thread of the kernel's.
    pub allocate_from: u64,
    /// Files kept open.
    pub open_max: usize,
}

impl Default for StreamFilesConfig {
    fn default() -> Self {
        Self {
            file_bytes_max: 16 * 1024 * 1024 * 1024,
            block_bytes: 256 * 1024,
            allocate_from: 512 * 1024,
            open_max: 128,
        }
    }
}

/// The segment files of a shard. A handle: clones share everything, and no borrow is held across an await.
pub struct StreamFiles<D: Disk> {
    pub(super) inner: Rc<Inner<D>>,
}

impl<D: Disk> Clone for StreamFiles<D> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner) }
    }
}

pub(super) struct Inner<D: Disk> {
    pub disk: D,
    /// `streams` in the shard's directory.
    pub root: PathBuf,
    pub config: StreamFilesConfig,
    pub partitions: RefCell<BTreeMap<PartitionRef, Partition>>,
    pub open: RefCell<OpenFiles<D::File>>,
    /// Memory of blocks, between the appends of a checkpoint.
    pub spares: RefCell<Vec<D::Buf>>,
    /// What was read beyond what was asked for, of files that are no longer written to: sequential readers come for it.
    pub ahead: RefCell<ReadAhead<D::File>>,
    /// Whether the log is being written to.
    pub beside_writes: Cell<bool>,
    /// Files that were written to and not synced.
    pub dirty: RefCell<Vec<DirtyFile<D>>>,
    /// Partitions with files that were made and whose directory was not synced, and whether there are such directories.
    pub new_files: RefCell<BTreeSet<PartitionRef>>,
    pub new_dirs: Cell<bool>,
    /// Whether there are files that were written to, or made, that neither `dirty` nor `new_files` names.
    pub few_unsynced: Cell<bool>,
    /// Partitions on disk that the index did not know.
    pub unknown: RefCell<BTreeSet<PartitionRef>>,
    /// Held by whoever removes or replaces files, or looks which there are to do so.
    pub changing: Mutex<()>,
}

pub(super) struct DirtyFile<D: Disk> {
    pub at: PartitionRef,
    pub path: PathBuf,
    pub file: Rc<D::File>,
}

/// What is known of a partition.
pub(super) struct Partition {
    /// Behind the last record that counts.
    pub next: Offset,
    /// The files with records before `next`; `None` before they were listed.
    pub files: Option<Files>,
    /// What compacted files replaced; `None`: nothing so far.
    pub replaced: Option<Box<Replaced>>,
    /// Where the last file ends; `None` before the files were cut to `next`.
    pub tail: Option<u64>,
}

/// What compacted files replaced of a partition.
#[derive(Default)]
pub(super) struct Replaced {
    /// Names of files that a compacted one replaces, to be removed.
    pub stale: Vec<String>,
    /// How often files were replaced: what was known of a file before may be of another one.
    pub swaps: u64,
}

/// Where some of a file's blocks start, and when their first record was appended: enough to find any block with one read.
/// Made anew from the blocks' headers whenever a file is opened.
pub(super) struct SparseIndex(Vec<Block>);

/// One block of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Its first record.
    pub base: Offset,
    /// Where it starts.
    pub position: u64,
    /// When its first record was appended; 0 if that was not looked at.
    pub time: Millis,
}

/// Blocks nearer than this to the one before are left out of the index.
const INDEX_EVERY: u64 = 128 * 1024;

/// How much is read at once to hop from block header to block header.
pub(super) const HOP_BYTES: usize = 64 * 1024;

impl SparseIndex {
    pub fn new(base: Offset) -> Self {
        Self(vec![Block { base, position: FILE_HEADER_BYTES as u64, time: Millis(0) }])
    }

    /// Takes note of a block, if it is far enough behind the last one noted.
    pub fn note(&mut self, base: Offset, position: u64, time: Millis) {
        if self.0.last().is_none_or(|last| position >= last.position + INDEX_EVERY) {
            self.0.push(Block { base, position, time });
        }
    }

    /// A block at or before the one with `offset`.
    pub fn before(&self, offset: Offset) -> Block {
        self.get(self.0.partition_point(|block| block.base <= offset))
    }

    /// A block at or before the one with the first record that is `offset` or one behind it, and was appended at `since`
    /// or later.
    pub fn before_time(&self, offset: Offset, since: Millis) -> Block {
        let at = self.0.partition_point(|block| block.base <= offset);
        self.get(at.max(self.0.partition_point(|block| block.time < since)))
    }

    fn get(&self, behind: usize) -> Block {
        let start = Block { base: Offset(0), position: FILE_HEADER_BYTES as u64, time: Millis(0) };
        self.0.get(behind.saturating_sub(1)).copied().unwrap_or(start)
    }
}

impl<D: Disk> StreamFiles<D> {
    /// Opens the files under `streams` in the shard's directory; `ends` says how far the index knows each partition's
    /// files. Changes nothing on disk.
    pub async fn open(
        disk: D,
        shard_dir: &Path,
        config: StreamFilesConfig,
        ends: impl IntoIterator<Item = (PartitionRef, Offset)>,
    ) -> Result<Self, SegmentError> {
        let partitions: BTreeMap<_, _> =
            ends.into_iter().map(|(at, next)| (at, Partition::new(next))).collect();
        let root = shard_dir.join("streams");
        let names = disk.list(&root).await.map_err(|error| io_error(NOWHERE, "list", &root, error))?;
        let on_disk = names.iter().filter_map(|name| parse_dir_name(name));
        let unknown = RefCell::new(on_disk.filter(|at| !partitions.contains_key(at)).collect());
        let (partitions, dirty) = (RefCell::new(partitions), RefCell::default());
        let (open, spares, ahead) = (RefCell::default(), RefCell::default(), RefCell::default());
        let (new_files, new_dirs, few_unsynced) = (RefCell::default(), Cell::default(), Cell::default());
        let changing = Mutex::default();
        let inner = Inner {
            disk,
            root,
            config,
            partitions,
            open,
            spares,
            ahead,
            beside_writes: Cell::default(),
            dirty,
            new_files,
            new_dirs,
            few_unsynced,
            unknown,
            changing,
        };
        Ok(Self { inner: Rc::new(inner) })
    }

    /// Removes the files of partitions that neither `ends` named nor anybody appended to since: streams that were
    /// deleted or never got into the index. Call it once the log was read, so that a start that is refused has removed
    /// nothing.
    pub async fn remove_unknown(&self) -> Result<(), SegmentError> {
        for at in self.inner.unknown.take() {
            if !self.inner.partitions.borrow().contains_key(&at) {
                self.delete(at).await?;
            }
        }
        Ok(())
    }

    /// Behind the last record of a partition's files.
    pub fn next_offset(&self, at: PartitionRef) -> Offset {
        self.inner.partitions.borrow().get(&at).map_or(Offset(0), |partition| partition.next)
    }

    /// Removes the files of a partition that only have records before `base`, where a segment begins. The index must know
    /// that those are gone; that a crash may bring the files back is no harm.
    ///
    /// # Errors
    /// [`SegmentError`]; what could not be removed is when this is called again.
    pub async fn trim(&self, at: PartitionRef, base: Offset) -> Result<(), SegmentError> {
        self.inner.list(at).await?;
        let _changing = self.inner.changing.lock().await;
        self.inner.remove_stale(at).await?;
        let gone = match self.inner.partitions.borrow().get(&at) {
            Some(partition) => partition.files_before(base),
            None => return Ok(()),
        };
        for &file in &gone {
            let path = self.inner.path(at, file);
            match self.inner.disk.remove(&path).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io_error(at, "remove", &path, error));
                }
                _ => {}
            }
            self.inner.dirty.borrow_mut().retain(|dirty| dirty.path != path);
            self.inner.open.borrow_mut().close(at, file);
            if let Some(partition) = self.inner.partitions.borrow_mut().get_mut(&at)
                && let Some(files) = &mut partition.files
            {
                files.remove(&file);
            }
        }
        Ok(())
    }

    /// Removes a partition's files.
    pub async fn delete(&self, at: PartitionRef) -> Result<(), SegmentError> {
        let _changing = self.inner.changing.lock().await;
        self.inner.partitions.borrow_mut().remove(&at);
        self.inner.forget_ahead(at);
        self.inner.open.borrow_mut().close_all(at);
        self.inner.dirty.borrow_mut().retain(|dirty| dirty.at != at);
        self.inner.new_files.borrow_mut().remove(&at);
        let inner = &self.inner;
        let dir = inner.dir(at);
        let names = inner.disk.list(&dir).await.map_err(|error| io_error(at, "list", &dir, error))?;
        for name in names {
            let file = dir.join(name);
            inner.disk.remove(&file).await.map_err(|error| io_error(at, "remove", &file, error))?;
        }
        match inner.disk.remove_dir(&dir).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            removed => removed.map_err(|error| io_error(at, "remove", &dir, error))?,
        }
        inner.disk.sync_dir(&inner.root).await.map_err(|error| io_error(at, "sync", &inner.root, error))
    }
}

impl Partition {
    pub fn new(next: Offset) -> Self {
        Self { next, files: None, replaced: None, tail: None }
    }

    /// Goes back to `next`: what is behind it no longer counts, and is cut before the next append.
    pub fn go_back(&mut self, next: Offset) {
        let files = self.files.take().map(|mut files| {
            files.split_off(&next);
            files
        });
        *self = Self { files, replaced: self.replaced.take(), ..Self::new(next) };
    }

    /// Takes note of the files that there are, and of those among them that a compacted one replaces.
    fn listed(&mut self, files: Files, stale: Vec<String>) {
        self.files = Some(files);
        if !stale.is_empty() || self.replaced.is_some() {
            self.replaced.get_or_insert_default().stale = stale;
        }
    }

    /// How often files were replaced by compacted ones.
    fn swaps(&self) -> u64 {
        self.replaced.as_ref().map_or(0, |replaced| replaced.swaps)
    }

    /// The file that holds `offset`, if there is one.
    pub fn file_of(&self, offset: Offset) -> Option<Offset> {
        self.files.as_ref()?.range(..=offset).next_back().map(|(base, _)| *base)
    }

    /// The files that only have records before `base`.
    fn files_before(&self, base: Offset) -> Vec<Offset> {
        let Some(files) = &self.files else { return Vec::new() };
        // A file ends where the next one begins.
        let first = if self.next <= base { Some(self.next) } else { self.file_of(base) };
        first.map_or_else(Vec::new, |first| files.range(..first).map(|(base, _)| *base).collect())
    }

    /// The last file.
    pub fn last_file(&self) -> Option<Offset> {
        self.files.as_ref()?.last_key_value().map(|(base, _)| *base)
    }

    /// The last file, if records can be appended to it.
    pub fn last_open_end(&self) -> Option<Offset> {
        self.files.as_ref()?.last_key_value().filter(|(_, end)| end.is_none()).map(|(base, _)| *base)
    }
}

impl<D: Disk> Inner<D> {
    /// Forgets what was read of a partition's files: they change.
    pub fn forget_ahead(&self, at: PartitionRef) {
        self.ahead.borrow_mut().forget(at);
    }

    pub fn dir(&self, at: PartitionRef) -> PathBuf {
        self.root.join(dir_name(at))
    }

    pub fn path(&self, at: PartitionRef, base: Offset) -> PathBuf {
        let partitions = self.partitions.borrow();
        let files = partitions.get(&at).and_then(|partition| partition.files.as_ref());
        let end = files.and_then(|files| files.get(&base)).copied().flatten();
        self.dir(at).join(file_name(base, end))
    }

    /// See [`Replaced::swaps`].
    pub fn swaps(&self, at: PartitionRef) -> u64 {
        self.partitions.borrow().get(&at).map_or(0, Partition::swaps)
    }

    pub fn damaged(&self, at: PartitionRef, base: Offset, offset: u64, what: SegmentDamage) -> SegmentError {
        SegmentError::Damaged { at, file: self.path(at, base), offset, what }
    }

    pub fn missing(&self, at: PartitionRef, record: Offset) -> SegmentError {
        SegmentError::Missing { at, dir: self.dir(at), record }
    }

    /// Lists a partition's files, unless that was done. Changes nothing, so any number of readers may do it at once.
    pub async fn list(&self, at: PartitionRef) -> Result<(), SegmentError> {
        let listed = |partition: &Partition| partition.files.is_some();
        if self.partitions.borrow().get(&at).is_none_or(listed) {
            return Ok(());
        }
        let (mut files, stale) = self.files_on_disk(at).await?;
        if let Some(partition) = self.partitions.borrow_mut().get_mut(&at)
            && partition.files.is_none()
        {
            files.split_off(&partition.next);
            partition.listed(files, stale);
        }
        Ok(())
    }

    /// Removes files that compacted ones replace; only for who holds `changing`.
    pub async fn remove_stale(&self, at: PartitionRef) -> Result<(), SegmentError> {
        let stale = match self.partitions.borrow_mut().get_mut(&at).and_then(|found| found.replaced.as_mut())
        {
            Some(replaced) => std::mem::take(&mut replaced.stale),
            None => return Ok(()),
        };
        if stale.is_empty() {
            return Ok(());
        }
        let removed = self.remove_replaced(at, &stale).await;
        if removed.is_err()
            && let Some(partition) = self.partitions.borrow_mut().get_mut(&at)
        {
            partition.replaced.get_or_insert_default().stale = stale;
        }
        removed
    }

    async fn remove_replaced(&self, at: PartitionRef, names: &[String]) -> Result<(), SegmentError> {
        let dir = self.dir(at);
        // The file that replaces them may have got its name just before the process was killed: it must stay, even if
        // they go and power fails.
        self.disk.sync_dir(&dir).await.map_err(|error| io_error(at, "sync", &dir, error))?;
        for name in names {
            let path = dir.join(name);
            match self.disk.remove(&path).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io_error(at, "remove", &path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Cuts a partition's files to its `next`, unless that was done; only for the one who appends.
    pub async fn make_ready(&self, at: PartitionRef) -> Result<(), SegmentError> {
        let next = {
            let mut partitions = self.partitions.borrow_mut();
            let partition = partitions.entry(at).or_insert_with(|| self.new_partition(at, Offset(0)));
            if partition.tail.is_some() {
                return Ok(());
            }
            partition.next
        };
        self.forget_ahead(at);
        let _changing = self.changing.lock().await;
        let files = self.list_again(at, next).await?;
        let tail = match files.last_key_value() {
            Some((&base, None)) => self.cut(at, base, next).await?,
            // What is compacted is not appended to: the next record begins a file.
            Some((_, &Some(end))) if end >= next => 0,
            Some((_, &Some(end))) => return Err(self.missing(at, end)),
            None if next > Offset(0) => return Err(self.missing(at, Offset(0))),
            None => 0,
        };
        if let Some(partition) = self.partitions.borrow_mut().get_mut(&at) {
            partition.tail = Some(tail);
        }
        Ok(())
    }

    /// A partition that the index did not know. If the disk had nothing of it when it was opened, there is nothing to list.
    fn new_partition(&self, at: PartitionRef, next: Offset) -> Partition {
        if self.unknown.borrow().contains(&at) {
            return Partition::new(next);
        }
        Partition { files: Some(Files::new()), tail: Some(0), ..Partition::new(next) }
    }

    /// Looks which files there are now, and removes those that begin at `next` or behind, or are replaced; only for who
    /// holds `changing`.
    async fn list_again(&self, at: PartitionRef, next: Offset) -> Result<Files, SegmentError> {
        let (mut files, stale) = self.files_on_disk(at).await?;
        let behind = files.split_off(&next);
        if let Some(partition) = self.partitions.borrow_mut().get_mut(&at) {
            partition.listed(files.clone(), stale);
        }
        self.remove_stale(at).await?;
        if !files.is_empty() || !behind.is_empty() {
            // A process that was killed may have made the directory, and not come to sync the one above.
            self.new_dirs.set(true);
            self.remove_files(at, behind).await?;
        }
        Ok(files)
    }

    /// The same for an append that begins a file at `base`: files from there on are removed, those before stay as they are.
    pub async fn make_ready_to_begin(&self, at: PartitionRef, base: Offset) -> Result<(), SegmentError> {
        let is_ready = {
            let mut partitions = self.partitions.borrow_mut();
            let partition = partitions.entry(at).or_insert_with(|| self.new_partition(at, base));
            partition.next = partition.next.max(base);
            partition.tail.is_some()
        };
        if !is_ready {
            let _changing = self.changing.lock().await;
            self.list_again(at, base).await?;
            if let Some(partition) = self.partitions.borrow_mut().get_mut(&at) {
                partition.tail = Some(0);
            }
        }
        Ok(())
    }

    async fn files_on_disk(&self, at: PartitionRef) -> Result<(Files, Vec<String>), SegmentError> {
        let dir = self.dir(at);
        let names = self.disk.list(&dir).await.map_err(|error| io_error(at, "list", &dir, error))?;
        Ok(sort_out(&names))
    }

    async fn remove_files(&self, at: PartitionRef, files: Files) -> Result<(), SegmentError> {
        for (base, end) in files {
            let file = self.dir(at).join(file_name(base, end));
            self.disk.remove(&file).await.map_err(|error| io_error(at, "remove", &file, error))?;
        }
        // Or a crash brings them back, beside what is written in their place; and with them those that a process
        // removed that was killed before it came to this.
        let dir = self.dir(at);
        self.disk.sync_dir(&dir).await.map_err(|error| io_error(at, "sync", &dir, error))
    }

    /// Cuts a file behind the block that ends at `next`; returns where.
    async fn cut(&self, at: PartitionRef, base: Offset, next: Offset) -> Result<u64, SegmentError> {
        let opened = self.open_file(at, base).await?;
        let path = self.path(at, base);
        let size = opened.file.size().await.map_err(|error| io_error(at, "read", &path, error))?;
        let mut window = Window::new(Rc::clone(&opened.file), size).with_reads_of(HOP_BYTES);
        let (mut expected, mut position) = (base, FILE_HEADER_BYTES as u64);
        while expected < next {
            let header = self.block_header(at, &opened, &mut window, position, expected).await?;
            let Some(header) = header else { break };
            opened.index.borrow_mut().note(header.base, position, first_run_time(window.bytes()));
            expected = header.next;
            position += header.disk_bytes() as u64;
        }
        if expected > next {
            return Err(self.damaged(at, base, position, SegmentDamage::Shape));
        }
        if position > size {
            return Err(self.damaged(at, base, size, SegmentDamage::BlockLength));
        }
        if position < size {
            opened.file.truncate(position).await.map_err(|error| io_error(at, "cut", &path, error))?;
        }
        self.keep_open(at, opened);
        Ok(position)
    }

    /// The header of the block at `position`, which must start with `expected`, or, in a compacted file, behind. `None`
    /// behind the last block of a compacted file.
    pub async fn block_header(
        &self,
        at: PartitionRef,
        open: &OpenFile<D::File>,
        window: &mut Window<D::File>,
        position: u64,
        expected: Offset,
    ) -> Result<Option<BlockHeader>, SegmentError> {
        let base = open.base;
        if open.compacted.is_some_and(|compacted| position == compacted.bytes) {
            return Ok(None);
        }
        let filled = window.fill(position, ALIGN).await;
        let damaged = |what| self.damaged(at, base, position, what);
        if !filled.map_err(|error| io_error(at, "read", &self.path(at, base), error))? {
            return Err(damaged(SegmentDamage::Gap));
        }
        let header = BlockHeader::decode(window.bytes()).map_err(damaged)?;
        let follows = match open.compacted {
            None => header.base == expected,
            Some(compacted) => header.base >= expected && header.next <= compacted.end,
        };
        if follows { Ok(Some(header)) } else { Err(damaged(SegmentDamage::Gap)) }
    }

    /// Opens a file and checks its header; an open one is used again.
    pub async fn open_file(&self, at: PartitionRef, base: Offset) -> Result<OpenFile<D::File>, SegmentError> {
        if let Some(open) = self.open.borrow().get(at, base) {
            return Ok(open);
        }
        let swaps = self.swaps(at);
        let path = self.path(at, base);
        let file = self.disk.open(&path).await.map_err(|error| io_error(at, "open", &path, error))?;
        let page = file.read_at(0, ALIGN).await.map_err(|error| io_error(at, "read", &path, error))?;
        let compacted = match FileHeader::decode(page.as_ref()) {
            Ok(header) if header.at == at && header.base == base && path.ends_with(header.file_name()) => {
                header.compacted
            }
            Ok(FileHeader { at: found, base, .. }) => {
                return Err(SegmentError::Misplaced { at, file: path, found, base });
            }
            Err(FileHeaderFault::Damaged) => {
                return Err(self.damaged(at, base, 0, SegmentDamage::FileHeader));
            }
            Err(FileHeaderFault::Newer(version)) => {
                return Err(SegmentError::NewerFormat { at, file: path, version, known: VERSION });
            }
        };
        let index = Rc::new(RefCell::new(SparseIndex::new(base)));
        Ok(OpenFile { base, file: Rc::new(file), index, compacted, swaps })
    }

    /// Keeps a file open that was just used.
    pub fn keep_open(&self, at: PartitionRef, file: OpenFile<D::File>) {
        if self.partitions.borrow().get(&at).is_some_and(|partition| partition.swaps() == file.swaps) {
            self.open.borrow_mut().keep(at, file, self.config.open_max);
        }
    }
}

/// What an error names that is of no partition.
pub(super) const NOWHERE: PartitionRef = PartitionRef { resource: ResourceId(0), partition: 0 };

pub(super) fn io_error(
    at: PartitionRef,
    action: &'static str,
    file: &Path,
    source: std::io::Error,
) -> SegmentError {
    SegmentError::Io { at, action, file: file.to_path_buf(), source }
}

//! The one door to the file system. The runtime implements it with io_uring and O_DIRECT, the simulator with memory
//! and faults.
//!
//! Everything runs on one core: futures are not `Send`, files are shared by reference.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::index::{IndexConfig, Server};

/// Positions and lengths of direct I/O are multiples of this. 4 KiB covers every disk in use.
pub const ALIGN: usize = 4096;

/// Memory that direct I/O can use: aligned to [`ALIGN`], its length a multiple of it.
pub trait IoBuf: AsRef<[u8]> + AsMut<[u8]> + 'static {}

/// Pages that direct I/O can use and that may go to another thread: aligned to [`ALIGN`], zero at first.
#[derive(Debug)]
pub struct Pages {
    memory: Vec<u8>,
    start: usize,
    bytes: usize,
}

impl Pages {
    /// So many bytes, a multiple of [`ALIGN`].
    pub fn zeroed(bytes: usize) -> Self {
        assert!(bytes.is_multiple_of(ALIGN), "{bytes} bytes are not whole pages");
        let memory = vec![0; bytes + ALIGN];
        let start = memory.as_ptr().addr().wrapping_neg() % ALIGN;
        Self { memory, start, bytes }
    }
}

impl AsRef<[u8]> for Pages {
    fn as_ref(&self) -> &[u8] {
        self.memory.get(self.start..self.start + self.bytes).unwrap_or_default()
    }
}

impl AsMut<[u8]> for Pages {
    fn as_mut(&mut self) -> &mut [u8] {
        self.memory.get_mut(self.start..self.start + self.bytes).unwrap_or_default()
    }
}

/// Whether a file is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is.
    There,
    /// It is not: it is made.
    Missing,
    /// Nor may its directory be, which is made as well.
    MissingWithDirectory,
}

/// A few pages for one of many files.
#[derive(Debug)]
pub struct FileWrite {
    /// The file.
    pub path: PathBuf,
    /// Whether it is there.
    pub presence: Presence,
    /// Where the pages go, a multiple of [`ALIGN`].
    pub position: u64,
    /// What is written.
    pub pages: Pages,
}

/// A file system, or a part of one.
pub trait Disk: Clone + 'static {
    /// Memory for I/O.
    type Buf: IoBuf;
    /// An open file.
    type File: DiskFile<Buf = Self::Buf>;

    /// Zeroed memory of `bytes` (a multiple of [`ALIGN`]).
    fn alloc(&self, bytes: usize) -> Self::Buf;

    /// Makes a new file of `bytes`, all zero, its blocks allocated **and written**, so that later writes change no
    /// metadata. The file is synced, its directory is not. Fails with `AlreadyExists`, or `StorageFull`.
    fn create_zeroed(&self, path: &Path, bytes: u64) -> impl Future<Output = io::Result<Self::File>>;

    /// Makes a new empty file that grows as it is written. Fails with `AlreadyExists`.
    fn create(&self, path: &Path) -> impl Future<Output = io::Result<Self::File>>;

    /// Opens a file to read and write.
    fn open(&self, path: &Path) -> impl Future<Output = io::Result<Self::File>>;

    /// The bare names (not joined to `dir`) of the files and directories in a directory, sorted; empty if there is no
    /// such directory.
    fn list(&self, dir: &Path) -> impl Future<Output = io::Result<Vec<PathBuf>>>;

    /// Makes a directory and those above it.
    fn create_dir_all(&self, dir: &Path) -> impl Future<Output = io::Result<()>>;

    /// Renames a file within a directory, replacing `to` if it exists: after a crash the directory has either the old
    /// or the new state of this change. Durable only after [`Disk::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = io::Result<()>>;

    /// Removes a file. Durable only after [`Disk::sync_dir`].
    fn remove(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// Removes an empty directory. Durable only after [`Disk::sync_dir`] of the one above it.
    fn remove_dir(&self, dir: &Path) -> impl Future<Output = io::Result<()>>;

    /// Makes creations, renames and removals in a directory durable.
    fn sync_dir(&self, dir: &Path) -> impl Future<Output = io::Result<()>>;

    /// Writes a few pages to each of many files: where opening them costs more than writing, it is done elsewhere than on
    /// the core. Durable only after [`Disk::sync_below`]. Fails with the number of the first write that failed; those before
    /// it were carried out, those behind it may have been.
    fn write_files(&self, writes: Vec<FileWrite>) -> impl Future<Output = Result<(), (usize, io::Error)>> {
        async move {
            for (number, write) in writes.into_iter().enumerate() {
                write_file(self, write).await.map_err(|error| (number, error))?;
            }
            Ok(())
        }
    }

    /// Makes everything below a directory durable: what was written to any file, and all names. One sync of a file system
    /// instead of one for each of many files; it may take in what others wrote. After a failure the same holds as for
    /// [`DiskFile::sync`].
    fn sync_below(&self, dir: &Path) -> impl Future<Output = io::Result<()>>;

    /// Who serves an index, if that is no database in files of the operating system.
    fn index(&self, _config: &IndexConfig) -> Option<Rc<dyn Server>> {
        None
    }
}

async fn write_file<D: Disk>(disk: &D, write: FileWrite) -> io::Result<()> {
    let FileWrite { path, presence, position, pages } = write;
    if let (Presence::MissingWithDirectory, Some(dir)) = (presence, path.parent()) {
        disk.create_dir_all(dir).await?;
    }
    let file = if presence == Presence::There { disk.open(&path).await? } else { disk.create(&path).await? };
    let bytes = pages.as_ref().len();
    let mut buf = disk.alloc(bytes);
    buf.as_mut().copy_from_slice(pages.as_ref());
    file.write_at(buf, bytes, position).await.map(drop)
}

/// An open file. Dropping it closes it.
pub trait DiskFile: 'static {
    /// Memory for I/O.
    type Buf: IoBuf;

    /// Writes the first `bytes` of `buf` at `position` (both multiples of [`ALIGN`]) and gives the whole buffer back,
    /// so that a small batch out of a large, reused buffer costs a small write. A future that is dropped may still
    /// write. Not durable before [`DiskFile::sync`]. Fails with `StorageFull` if there is no space.
    fn write_at(
        &self,
        buf: Self::Buf,
        bytes: usize,
        position: u64,
    ) -> impl Future<Output = io::Result<Self::Buf>>;

    /// As [`DiskFile::write_at`], and what was written is durable when it returns; nothing else needs to be. One trip to
    /// the disk where the system can do that, instead of two. After a failure the same holds as for [`DiskFile::sync`].
    fn write_durable_at(
        &self,
        buf: Self::Buf,
        bytes: usize,
        position: u64,
    ) -> impl Future<Output = io::Result<Self::Buf>> {
        async move {
            let buf = self.write_at(buf, bytes, position).await?;
            self.sync().await?;
            Ok(buf)
        }
    }

    /// Reads `bytes` from `position` (both multiples of [`ALIGN`]); shorter at the end of the file.
    fn read_at(&self, position: u64, bytes: usize) -> impl Future<Output = io::Result<Self::Buf>>;

    /// Makes everything written durable (fdatasync). After a failure nothing may be assumed of what was written since
    /// the last success; it must not be tried again.
    fn sync(&self) -> impl Future<Output = io::Result<()>>;

    /// Makes the file at least `bytes` long (a multiple of [`ALIGN`]) and allocates its blocks; what was not written
    /// reads as zeros. Writes within the file then neither wait for each other nor for metadata. Does nothing where the
    /// file system cannot. Fails with `StorageFull`.
    fn allocate(&self, bytes: u64) -> impl Future<Output = io::Result<()>>;

    /// Cuts the file (or grows it with zeros).
    fn truncate(&self, bytes: u64) -> impl Future<Output = io::Result<()>>;

    /// The file's length now.
    fn size(&self) -> impl Future<Output = io::Result<u64>>;
}

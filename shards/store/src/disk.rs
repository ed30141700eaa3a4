//! The one door to the file system. The runtime implements it with io_uring and O_DIRECT, the simulator with memory
//! and faults.
//!
//! Everything runs on one core: futures are not `Send`, files are shared by reference.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};

/// Positions and lengths of direct I/O are multiples of this. 4 KiB covers every disk in use.
pub const ALIGN: usize = 4096;

/// Memory that direct I/O can use: aligned to [`ALIGN`], its length a multiple of it.
pub trait IoBuf: AsRef<[u8]> + AsMut<[u8]> + 'static {}

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

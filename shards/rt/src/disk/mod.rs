//! The store's `Disk` on io_uring with O_DIRECT.
//!
//! - [`RtDisk`]: files made and opened through the ring; directories, renames and removals on the threads of
//!   [`crate::blocking`], so that a slow directory never stalls a core.
//! - `buf`: memory that direct I/O can use, registered with the kernel while there is some.
//! - `file`: reads, writes and syncs.
//! - `many`: a few pages for each of many files, without the ring.

mod buf;
mod file;
mod many;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use flowmesh_store::disk::{ALIGN, Disk, FileWrite};
use futures::FutureExt;
use glommio::io::{DmaFile, OpenOptions};

use crate::blocking;
use crate::core::Panicked;

pub use buf::RtBuf;
pub use file::RtFile;

/// Zeros written at a time when a file is made: large enough for the disk, small enough for the core's other I/O.
const ZERO_BYTES: u64 = 1024 * 1024;

/// The real file system, seen from one core. Paths are as the process sees them.
#[derive(Clone, Copy, Debug, Default)]
pub struct RtDisk;

impl RtDisk {
    /// The file system. Its files stay on the core that opened them.
    pub fn new() -> Self {
        Self
    }
}

impl Disk for RtDisk {
    type Buf = RtBuf;
    type File = RtFile;

    fn alloc(&self, bytes: usize) -> RtBuf {
        RtBuf::zeroed(bytes)
    }

    async fn create_zeroed(&self, path: &Path, bytes: u64) -> io::Result<RtFile> {
        assert!(bytes.is_multiple_of(ALIGN as u64), "{bytes} is not a multiple of {ALIGN}");
        let file = self.create(path).await?;
        match file.fill_with_zeros(bytes, ZERO_BYTES).await {
            Ok(()) => Ok(file),
            Err(error) => {
                drop(file);
                // Half a file would be in the way of the next try. If it cannot go, the first error says more.
                let _ = self.remove(path).await;
                Err(error)
            }
        }
    }

    async fn create(&self, path: &Path) -> io::Result<RtFile> {
        let made = open(OpenOptions::new().write(true).create_new(true), path).await?;
        made.close().await.map_err(file::from_glommio)?;
        open(OpenOptions::new().read(true).write(true), path).await.map(RtFile::new)
    }

    async fn open(&self, path: &Path) -> io::Result<RtFile> {
        open(OpenOptions::new().write(true), path).await?.close().await.map_err(file::from_glommio)?;
        open(OpenOptions::new().read(true).write(true), path).await.map(RtFile::new)
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let dir = dir.to_owned();
        blocking::run(move || list(&dir)).await?
    }

    async fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let dir = dir.to_owned();
        blocking::run(move || fs::create_dir_all(dir)).await?.map_err(file::named)
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (from.to_owned(), to.to_owned());
        blocking::run(move || fs::rename(from, to)).await?.map_err(file::named)
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        let path = path.to_owned();
        blocking::run(move || fs::remove_file(path)).await?
    }

    async fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let dir = dir.to_owned();
        blocking::run(move || fs::remove_dir(dir)).await?
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let dir = dir.to_owned();
        blocking::run(move || fs::File::open(dir)?.sync_all()).await?.map_err(file::named)
    }

    async fn write_files(&self, writes: Vec<FileWrite>) -> Result<(), (usize, io::Error)> {
        let written = blocking::run(move || many::write(&writes)).await;
        written.map_err(|error| (0, error.into()))?.map_err(|(number, error)| (number, file::named(error)))
    }

    async fn sync_below(&self, dir: &Path) -> io::Result<()> {
        let dir = dir.to_owned();
        blocking::run(move || many::sync_file_system(&dir)).await?.map_err(file::named)
    }
}

fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names =
        entries.map(|entry| Ok(entry?.file_name().into())).collect::<io::Result<Vec<PathBuf>>>()?;
    names.sort_unstable();
    Ok(names)
}

/// Opens a file for direct I/O. **The first file of a device that a core opens must be opened to write only**: glommio
/// then reads from it to learn whether the device can be polled for completions (IOPOLL), takes the end of an empty
/// file for a yes, and every later read of the device fails. A read of a file opened to write only fails at once, which
/// it takes for a no; polling would burn the core anyway. (It logs that as an error of `glommio::reactor`.)
async fn open(options: &OpenOptions, path: &Path) -> io::Result<DmaFile> {
    // glommio reads the block device's properties in /sys and panics on a device it does not understand.
    let opening = std::panic::AssertUnwindSafe(options.dma_open(path)).catch_unwind();
    match opening.await {
        Ok(opened) => opened.map_err(file::from_glommio),
        Err(payload) => {
            let Panicked { message } = Panicked::from_payload(&*payload);
            let reason = format!("{}: the device below it is not understood: {message}", path.display());
            Err(io::Error::new(io::ErrorKind::Unsupported, reason))
        }
    }
}

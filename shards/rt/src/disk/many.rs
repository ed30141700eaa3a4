//! A few pages for each of many files: on a thread of [`crate::blocking`], with plain system calls. Through the ring each
//! open, each write that makes a file longer and each sync is a thread of the kernel's on the core that asked for it, and an
//! interrupt of that core when it is done.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use flowmesh_store::disk::{ALIGN, FileWrite, Presence};

/// Carries them out one after the other; fails with the number of the one that failed.
pub(super) fn write(writes: &[FileWrite]) -> Result<(), (usize, io::Error)> {
    for (number, write) in writes.iter().enumerate() {
        write_one(write).map_err(|error| (number, error))?;
    }
    Ok(())
}

fn write_one(write: &FileWrite) -> io::Result<()> {
    let FileWrite { path, presence, position, pages } = write;
    if let (Presence::MissingWithDirectory, Some(dir)) = (presence, path.parent()) {
        fs::create_dir_all(dir)?;
    }
    let file = open(path, *presence != Presence::There)?;
    let (mut rest, mut position) = (pages.as_ref(), *position);
    while !rest.is_empty() {
        let written = match file.write_at(rest, position) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            written => written?,
        };
        // A short write: what is missing is tried again from the last whole page on, until the system says why not.
        let whole = written - written % ALIGN;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        rest = rest.get(whole..).unwrap_or_default();
        position += whole as u64;
    }
    Ok(())
}

/// Without the page cache where the file system can do that.
fn open(path: &Path, is_new: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(is_new);
    match options.custom_flags(libc::O_DIRECT).open(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            // A new file may have been made nevertheless.
            OpenOptions::new().write(true).create(is_new).truncate(false).open(path)
        }
        opened => opened,
    }
}

/// Syncs the whole file system that a directory is on, which is the only way to sync many files at once.
pub(super) fn sync_file_system(dir: &Path) -> io::Result<()> {
    let dir = File::open(dir)?;
    Ok(rustix::fs::syncfs(&dir)?)
}

//! Reads, writes and syncs of one file.

use std::cell::OnceCell;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use flowmesh_store::disk::{ALIGN, DiskFile};
use glommio::GlommioError;
use glommio::io::{DmaBuffer, DmaFile, OpenOptions};

use super::buf::{Loan, RtBuf, copy_of};
use crate::blocking;

/// An open file.
#[derive(Debug)]
pub struct RtFile {
    file: DmaFile,
    /// The same file opened with O_DSYNC, once it is needed: a write through it returns when it is durable. That saves
    /// the second trip through the ring, and the kernel thread that an fdatasync there always needs.
    durable: OnceCell<DmaFile>,
}

/// glommio's error as the system's, with its kind.
pub(super) fn from_glommio(error: GlommioError<()>) -> io::Error {
    named(io::Error::from(error))
}

/// A quota that is used up is a full disk to us: writes are refused until there is space.
pub(super) fn named(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::QuotaExceeded => io::Error::new(io::ErrorKind::StorageFull, error),
        _ => error,
    }
}

fn check_aligned(position: u64, bytes: usize) {
    assert!(position.is_multiple_of(ALIGN as u64), "position {position} is not a multiple of {ALIGN}");
    assert!(bytes.is_multiple_of(ALIGN), "{bytes} bytes are not a multiple of {ALIGN}");
}

/// One write of the first `bytes`; gives the buffer back and says how much was written.
async fn write_once(
    file: &DmaFile,
    buffer: DmaBuffer,
    bytes: usize,
    position: u64,
) -> io::Result<(DmaBuffer, usize)> {
    let loan = Loan::of_prefix(buffer, bytes);
    let outcome = file.write_rc_at(loan.shared(), position).await;
    let buffer = loan.end();
    Ok((buffer, outcome.map_err(from_glommio)?))
}

impl RtFile {
    pub(super) fn new(file: DmaFile) -> Self {
        Self { file, durable: OnceCell::new() }
    }

    /// Allocates blocks, writes zeros into all of them and syncs, so that later writes change no metadata.
    pub(super) async fn fill_with_zeros(&self, bytes: u64, at_a_time: u64) -> io::Result<()> {
        if bytes == 0 {
            return self.sync().await;
        }
        self.allocate(bytes).await?;
        let mut zeros = RtBuf::zeroed(bytes.min(at_a_time) as usize).into_owned();
        let mut position = 0;
        while position < bytes {
            let part = (bytes - position).min(at_a_time);
            zeros = self.write_prefix(zeros, part as usize, position).await?;
            position += part;
        }
        self.sync().await
    }

    /// Writes the first `bytes`, all of them, and gives the whole buffer back.
    async fn write_prefix(&self, buffer: DmaBuffer, bytes: usize, position: u64) -> io::Result<DmaBuffer> {
        let (buffer, written) = write_once(&self.file, buffer, bytes, position).await?;
        if written < bytes {
            self.write_rest(&buffer, written, bytes, position).await?;
        }
        Ok(buffer)
    }

    /// The file with O_DSYNC: another description of the same file, whatever its name is by now.
    async fn durable(&self) -> io::Result<&DmaFile> {
        if let Some(file) = self.durable.get() {
            return Ok(file);
        }
        let same = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).custom_flags(libc::O_DSYNC).dma_open(same).await;
        let opened = opened.map_err(from_glommio)?;
        Ok(self.durable.get_or_init(|| opened))
    }

    /// A short write: what is missing is tried again, from the last whole block on, until the system says why not.
    async fn write_rest(
        &self,
        buffer: &DmaBuffer,
        mut written: usize,
        bytes: usize,
        position: u64,
    ) -> io::Result<()> {
        loop {
            written -= written % ALIGN;
            let Some(rest) = buffer.as_bytes().get(written..bytes) else { return Ok(()) };
            if rest.is_empty() {
                return Ok(());
            }
            match self.file.write_at(copy_of(rest), position + written as u64).await.map_err(from_glommio)? {
                more if more < ALIGN => return Err(io::ErrorKind::StorageFull.into()),
                more => written += more,
            }
        }
    }
}

impl DiskFile for RtFile {
    type Buf = RtBuf;

    async fn write_at(&self, buf: RtBuf, bytes: usize, position: u64) -> io::Result<RtBuf> {
        check_aligned(position, bytes);
        assert!(bytes <= buf.len(), "{bytes} bytes of a buffer of {}", buf.len());
        if bytes == 0 {
            return Ok(buf);
        }
        Ok(RtBuf::from_owned(self.write_prefix(buf.into_owned(), bytes, position).await?))
    }

    async fn write_durable_at(&self, buf: RtBuf, bytes: usize, position: u64) -> io::Result<RtBuf> {
        check_aligned(position, bytes);
        assert!(bytes <= buf.len(), "{bytes} bytes of a buffer of {}", buf.len());
        if bytes == 0 {
            return Ok(buf);
        }
        let durable = self.durable().await?;
        let (buffer, written) = write_once(durable, buf.into_owned(), bytes, position).await?;
        if written < bytes {
            self.write_rest(&buffer, written, bytes, position).await?;
            self.sync().await?;
        }
        Ok(RtBuf::from_owned(buffer))
    }

    async fn read_at(&self, position: u64, bytes: usize) -> io::Result<RtBuf> {
        check_aligned(position, bytes);
        if bytes == 0 {
            return Ok(RtBuf::zeroed(0));
        }
        let read = self.file.read_at_aligned(position, bytes).await.map_err(from_glommio)?;
        Ok(RtBuf::from_read(read))
    }

    async fn sync(&self) -> io::Result<()> {
        self.file.fdatasync().await.map_err(from_glommio)
    }

    async fn allocate(&self, bytes: u64) -> io::Result<()> {
        match self.file.pre_allocate(bytes, false).await.map_err(from_glommio) {
            // Some file systems have no fallocate; writing allocates as well.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            outcome => outcome,
        }
    }

    async fn truncate(&self, bytes: u64) -> io::Result<()> {
        // A descriptor of its own: the call may outlive this file if the future is dropped.
        // SAFETY: the descriptor is open as long as the file, which is borrowed here.
        let descriptor = unsafe { BorrowedFd::borrow_raw(self.file.as_raw_fd()) }.try_clone_to_owned()?;
        blocking::run(move || fs::File::from(descriptor).set_len(bytes)).await?.map_err(named)
    }

    async fn size(&self) -> io::Result<u64> {
        self.file.file_size().await.map_err(from_glommio)
    }
}

//! A part of a file in memory, read in large aligned pieces.

use std::io;
use std::rc::Rc;

use bytes::{Buf, Bytes, BytesMut};

use crate::disk::DiskFile;
use crate::pages::round_up;

/// How much is read at once by those who read everything.
pub(crate) const READ_BYTES: usize = 1024 * 1024;

/// A window that moves over a file, mostly forwards.
pub(crate) struct Window<F> {
    file: Rc<F>,
    /// Nothing is read from here on.
    end: u64,
    read_bytes: usize,
    bytes: BytesMut,
    /// The position of the first byte.
    start: u64,
}

impl<F: DiskFile> Window<F> {
    pub fn new(file: Rc<F>, end: u64) -> Self {
        Self { file, end, read_bytes: READ_BYTES, bytes: BytesMut::new(), start: 0 }
    }

    /// Reads at least so much at once, a multiple of 4 KiB.
    pub fn with_reads_of(mut self, read_bytes: usize) -> Self {
        self.read_bytes = read_bytes;
        self
    }

    /// Makes the window start at `position` (a multiple of 4 KiB) and hold `bytes`; `false` if the file ends before.
    pub async fn fill(&mut self, position: u64, bytes: usize) -> io::Result<bool> {
        let skip = position.checked_sub(self.start).and_then(|skip| usize::try_from(skip).ok());
        match skip.filter(|&skip| skip <= self.bytes.len()) {
            Some(skip) => self.bytes.advance(skip),
            None => self.bytes = BytesMut::new(),
        }
        self.start = position;
        while self.bytes.len() < bytes {
            let from = position + self.bytes.len() as u64;
            let left = usize::try_from(self.end.saturating_sub(from)).unwrap_or(usize::MAX);
            let want = self.read_bytes.max(round_up(bytes - self.bytes.len())).min(left);
            if want == 0 {
                return Ok(false);
            }
            let read = self.file.read_at(from, want).await?;
            self.bytes.extend_from_slice(read.as_ref());
            if read.as_ref().len() < want && self.bytes.len() < bytes {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What the window holds.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes `bytes` off the front; the window then starts behind them.
    pub fn take(&mut self, bytes: usize) -> Bytes {
        self.start += bytes as u64;
        self.bytes.split_to(bytes).freeze()
    }
}

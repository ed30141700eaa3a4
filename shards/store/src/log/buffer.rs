//! Buffers that entries gather in. One buffer becomes one batch: one header, its entries, zeros to the next 4 KiB.

use std::rc::Rc;

use flowmesh_model::{Lsn, Millis};

use super::format::{BATCH_HEADER_BYTES, BatchHeader, ENTRY_HEADER_BYTES, Run, seal_entry};
use crate::disk::Disk;
use crate::pages::round_up;

/// Room for the body of an entry: bytes are put to its front, which moves on.
pub type Body<'a> = &'a mut [u8];

/// Where a batch will be written.
pub(super) struct Target<F> {
    pub file: Rc<F>,
    pub seq: u64,
    pub salt: u64,
    pub position: u64,
    /// Bytes from `position` to the end of the segment.
    pub room: usize,
}

/// A buffer that gathers entries for its place in a segment.
pub(super) struct Filling<D: Disk> {
    pub target: Target<D::File>,
    buf: D::Buf,
    /// Bytes that may be used: what fits the buffer and the segment.
    limit: usize,
    used: usize,
    entries: u32,
    first_lsn: Lsn,
}

/// A batch that is ready to be written.
pub(super) struct Sealed<D: Disk> {
    pub target: Target<D::File>,
    pub buf: D::Buf,
    /// Bytes to write, a multiple of 4 KiB.
    pub bytes: usize,
    pub header: BatchHeader,
}

impl<D: Disk> Filling<D> {
    pub fn new(mut buf: D::Buf, target: Target<D::File>, first_lsn: Lsn) -> Self {
        let limit = buf.as_mut().len().min(target.room);
        Self { target, buf, limit, used: BATCH_HEADER_BYTES, entries: 0, first_lsn }
    }

    /// Whether an entry of this size, header included, fits.
    pub fn fits(&self, entry_bytes: usize) -> bool {
        entry_bytes <= self.limit - self.used
    }

    /// What the batch takes on disk if it is sealed now.
    pub fn disk_bytes(&self) -> usize {
        round_up(self.used)
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Encodes an entry behind those before it. The caller has checked that it fits.
    pub fn push(
        &mut self,
        (lsn, time, run): (Lsn, Millis, Run),
        body_bytes_max: usize,
        encode: impl FnOnce(&mut Body<'_>),
    ) {
        let end = self.used + ENTRY_HEADER_BYTES + body_bytes_max;
        assert!(end <= self.limit, "an entry goes into a buffer that has room for it");
        let entry = self.buf.as_mut().get_mut(self.used..end).unwrap_or_default();
        let mut room = entry.get_mut(ENTRY_HEADER_BYTES..).unwrap_or_default();
        encode(&mut room);
        let body_bytes = body_bytes_max - room.len();
        seal_entry(entry, body_bytes, run, lsn, time);
        self.used += ENTRY_HEADER_BYTES + body_bytes;
        self.entries += 1;
    }

    /// Closes the batch. Its header is written when it is known what is durable: [`Sealed::finish`].
    pub fn seal(mut self, run: Run) -> Sealed<D> {
        let bytes = self.disk_bytes();
        if let Some(padding) = self.buf.as_mut().get_mut(self.used..bytes) {
            padding.fill(0);
        }
        let header = BatchHeader {
            body_bytes: (self.used - BATCH_HEADER_BYTES) as u32,
            entries: self.entries,
            seq: self.target.seq,
            salt: self.target.salt,
            run: run.number(),
            first_lsn: self.first_lsn,
            synced_lsn: Lsn(0),
            term: 0,
        };
        Sealed { target: self.target, buf: self.buf, bytes, header }
    }

    /// Gives the memory back.
    pub fn into_buf(self) -> D::Buf {
        self.buf
    }
}

impl<D: Disk> Sealed<D> {
    /// Writes the header: the batch says that everything up to `synced` was durable before it.
    pub fn finish(&mut self, synced: Lsn) {
        assert!(synced < self.header.first_lsn, "nothing is durable before it is written");
        self.header.synced_lsn = synced;
        self.header.encode(self.buf.as_mut());
    }
}

/// Buffers for reuse: memory whose pages are there already.
pub(super) struct BufferPool<D: Disk> {
    free: Vec<D::Buf>,
    buffer_bytes: usize,
    kept: usize,
    /// Memory of all buffers that are gathering or in flight.
    held: usize,
    held_max: usize,
}

impl<D: Disk> BufferPool<D> {
    pub fn new(buffer_bytes: usize, kept: usize, held_max: usize) -> Self {
        Self { free: Vec::with_capacity(kept), buffer_bytes, kept, held: 0, held_max }
    }

    /// How large a buffer for an entry of this size is.
    pub fn capacity_for(&self, entry_bytes: usize) -> usize {
        round_up(BATCH_HEADER_BYTES + entry_bytes).max(self.buffer_bytes)
    }

    /// Whether the bound allows one more buffer. A single one is always allowed, so that the largest entry passes.
    pub fn allows(&self, capacity: usize) -> bool {
        self.held == 0 || self.held + capacity <= self.held_max
    }

    pub fn held(&self) -> usize {
        self.held
    }

    pub fn take(&mut self, disk: &D, capacity: usize) -> D::Buf {
        self.held += capacity;
        if capacity == self.buffer_bytes
            && let Some(buf) = self.free.pop()
        {
            return buf;
        }
        disk.alloc(capacity)
    }

    pub fn give_back(&mut self, buf: D::Buf) {
        let capacity = buf.as_ref().len();
        assert!(self.held >= capacity, "a buffer is given back once");
        self.held -= capacity;
        let kept = self.free.len() * self.buffer_bytes;
        if capacity == self.buffer_bytes && self.held + kept + capacity <= self.held_max {
            self.free.push(buf);
        }
    }

    /// Gives up the memory of all but a few buffers: new memory is dear, so a burst keeps what it needed until it is
    /// over, or until the next checkpoint.
    pub fn shrink(&mut self) {
        self.free.truncate(self.kept);
    }
}

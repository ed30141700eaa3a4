//! Reading ahead: what was read of a file beyond what was asked for waits for the reader who goes on there.

use std::collections::VecDeque;

use flowmesh_model::{Offset, PartitionRef};

use super::read::OpenBlock;
use crate::disk::DiskFile;
use crate::window::Window;

/// So many consumers may catch up at the same time without reading anything twice. Each costs at most what is read ahead for
/// it, a block, and what a run of it unpacks to.
const KEPT_MAX: usize = 8;

/// Where a reader stopped, with what it had in memory there.
pub(super) struct Ahead<F: DiskFile> {
    pub at: PartitionRef,
    /// The file.
    pub file: Offset,
    /// The record it wants next.
    pub from: Offset,
    /// The first record of the block that holds it, and where that block is.
    pub base: Offset,
    pub position: u64,
    /// The block, if it was taken from in part.
    pub block: Option<OpenBlock>,
    /// What follows.
    pub window: Window<F>,
}

/// What readers left, the latest last.
pub(super) struct ReadAhead<F: DiskFile> {
    kept: VecDeque<Ahead<F>>,
    forgotten: u64,
}

impl<F: DiskFile> Default for ReadAhead<F> {
    fn default() -> Self {
        Self { kept: VecDeque::new(), forgotten: 0 }
    }
}

impl<F: DiskFile> ReadAhead<F> {
    /// What a reader left who wanted this record next.
    pub fn take(&mut self, at: PartitionRef, file: Offset, from: Offset) -> Option<Ahead<F>> {
        let found = self.kept.iter().position(|kept| (kept.at, kept.file, kept.from) == (at, file, from))?;
        self.kept.remove(found)
    }

    /// Changes whenever something is forgotten: what was read before then may no longer be what the files hold.
    pub fn moment(&self) -> u64 {
        self.forgotten
    }

    /// Keeps what a reader left that began at `moment`, unless something was forgotten since.
    pub fn keep(&mut self, moment: u64, ahead: Ahead<F>) {
        if moment != self.forgotten {
            return;
        }
        if self.kept.len() >= KEPT_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(ahead);
    }

    /// Forgets what was read of a partition: its files change.
    pub fn forget(&mut self, at: PartitionRef) {
        self.forgotten += 1;
        self.kept.retain(|kept| kept.at != at);
    }

    /// Gives the memory back. Whoever goes on reading reads a little twice.
    pub fn clear(&mut self) {
        self.kept = VecDeque::new();
    }
}

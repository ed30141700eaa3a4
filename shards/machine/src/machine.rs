//! The machine: which part of the state a command or fact is for, and nothing else.

use std::sync::Arc;

use bytes::Bytes;
use flowmesh_model::codec::Malformed;
use flowmesh_model::{Catalog, Command, Fact, IndexWrite, Lsn, Millis, Offset, PartitionRef, Reject, Space};

use crate::decision::{Decision, EntryContext, MachineConfig, MachineStats, StreamFlush, Tick, WaitKey};

/// The state of one shard.
#[derive(Debug)]
pub struct Machine {
    config: MachineConfig,
}

#[allow(clippy::todo, unused_variables, clippy::needless_pass_by_value, clippy::unused_self)]
impl Machine {
    /// An empty state.
    pub fn new(config: MachineConfig) -> Self {
        Self { config }
    }

    /// Uses a newer snapshot of the catalog: what exists and with which settings. Not part of the replayed state.
    /// State of resources that the snapshot no longer has is dropped by ticks.
    pub fn set_catalog(&mut self, catalog: Arc<Catalog>) {
        todo!()
    }

    /// On the catalog's owner: the catalog as its own facts say. Built once per change.
    pub fn catalog_snapshot(&self) -> Arc<Catalog> {
        todo!()
    }

    /// The time that counts: `now`, or the largest time seen if the clock went back.
    pub fn clamp(&self, now: Millis) -> Millis {
        todo!()
    }

    /// Decides on a command. `lsn` is the one its entry will get. Changes nothing.
    ///
    /// # Errors
    /// The named rejection.
    pub fn decide(&self, now: Millis, lsn: Lsn, command: &Command) -> Result<Decision, Reject> {
        todo!()
    }

    /// Makes a command that waits mean the same later: a read from `Latest` becomes one from the offset that is now.
    pub fn pin(&self, command: &mut Command) {
        todo!()
    }

    /// Makes a fact true. Facts of an entry are applied in order, entries in order of their LSN.
    ///
    /// # Panics
    /// If the fact contradicts the state: then the log is not this machine's.
    pub fn apply(&mut self, at: EntryContext, fact: Fact) {
        todo!()
    }

    /// Promotes delayed jobs whose time has come, and says which facts are due.
    pub fn tick(&mut self, now: Millis, facts_max: usize) -> Tick {
        todo!()
    }

    /// When [`Machine::tick`] has something to do next; may be early, never late. Costs next to nothing.
    pub fn next_due(&self) -> Option<Millis> {
        todo!()
    }

    /// Takes one key for which something became available, each once, first come first served.
    pub fn take_woken(&mut self) -> Option<WaitKey> {
        todo!()
    }

    /// Forgets what became available, because nobody waits. Costs next to nothing.
    pub fn forget_woken(&mut self) {
        todo!()
    }

    /// Starts a checkpoint of the state as it is now. Returns the records that are not in segment files yet.
    pub fn seal(&mut self) -> Vec<StreamFlush> {
        todo!()
    }

    /// Appends at most about `items_max` of the sealed state's changes to `out`. Returns whether that was all.
    pub fn collect(&mut self, items_max: usize, out: &mut Vec<IndexWrite>) -> bool {
        todo!()
    }

    /// The checkpoint is durable: index and segment files have all that was sealed.
    pub fn sealed_written(&mut self) {
        todo!()
    }

    /// The checkpoint failed: what was sealed counts as not written.
    pub fn unseal(&mut self) {
        todo!()
    }

    /// Segment files have the partition's records below `upto`, synced.
    pub fn flushed(&mut self, at: PartitionRef, upto: Offset) {
        todo!()
    }

    /// Drops records from memory that segment files have, oldest first, until at most `bytes_max` are left.
    pub fn evict_tails(&mut self, bytes_max: u64) {
        todo!()
    }

    /// Partitions that were dropped and that, as of the last durable checkpoint, nothing knows any more: their files
    /// can be deleted.
    pub fn take_dropped_streams(&mut self) -> Vec<PartitionRef> {
        todo!()
    }

    /// At start, before any fact: takes an entry of the index. Spaces come in the order of [`Space::ALL`].
    ///
    /// # Errors
    /// [`Malformed`] if a newer version wrote it.
    pub fn restore(&mut self, space: Space, key: &[u8], value: Bytes) -> Result<(), Malformed> {
        todo!()
    }

    /// All entries of the index have been restored: builds what is derived from them.
    ///
    /// # Errors
    /// [`Malformed`] if they do not fit together.
    pub fn finish_restore(&mut self) -> Result<(), Malformed> {
        todo!()
    }

    /// After [`Machine::finish_restore`]: the offset behind the last record of each partition that segment files
    /// must have. What they have beyond is cut, other partitions' files are deleted.
    pub fn stream_ends(&self) -> Vec<(PartitionRef, Offset)> {
        todo!()
    }

    /// An estimate of the memory the state takes.
    pub fn memory_bytes(&self) -> u64 {
        todo!()
    }

    /// Counts for metrics.
    pub fn stats(&self) -> MachineStats {
        todo!()
    }

    /// Checks every invariant.
    ///
    /// # Panics
    /// If one does not hold.
    pub fn check_all(&self) {
        todo!()
    }

    /// The replayed state as text, the same for the same state whatever way led there.
    pub fn dump(&self) -> String {
        todo!()
    }
}

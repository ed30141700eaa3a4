//! Memory is short: values of stores that the index has leave it, in small steps between commands.
//!
//! ```text
//!   0 ───────────── 10/16 ──────── 11/16 ───────── 12/16 ───────────── the shard's memory
//!                   values go      values begin    checkpoints come    writes that add wait for values to go; if names
//!                   until here     to go           with the log        alone take it all, they are refused
//! ```

use flowmesh_machine::{Chill, ChillCursor};
use flowmesh_model::Command;
use flowmesh_store::disk::Disk;

use crate::pump::grows;
use crate::shard::{Shard, State};
use crate::timer::Timer;

/// Values that leave memory, or some that cannot, before other tasks run: about 100 µs.
const LOOKS_STEP: usize = 256;

/// Of the shard's memory, where values begin to go.
const fn high(memory_bytes: u64) -> u64 {
    memory_bytes / 16 * 11
}

/// And where they stop.
pub(crate) const fn low(memory_bytes: u64) -> u64 {
    memory_bytes / 16 * 10
}

/// What the index may keep of itself, so that a value that is read costs one read of the disk: where its blocks begin takes about a hundredth of
/// what there is.
pub(crate) fn index_cache(memory_bytes: u64) -> u64 {
    (memory_bytes / 16).min(64 * 1024 * 1024)
}

/// What memory must grow by before it is tried again where nothing could go.
const fn step(memory_bytes: u64) -> u64 {
    memory_bytes / 64
}

impl<D: Disk, T: Timer> Shard<D, T> {
    /// Leaves values to the index whenever memory is short. Runs until it is dropped.
    pub async fn run_chills(self) {
        loop {
            self.inner.signals.chill.wait().await;
            let mut cursor = ChillCursor::default();
            let outcome = loop {
                let to = low(self.inner.config.memory_bytes);
                let outcome = self.inner.state.borrow_mut().machine.chill(to, LOOKS_STEP, &mut cursor);
                if outcome != Chill::More {
                    break outcome;
                }
                self.inner.timer.yield_now().await;
            };
            let wants_checkpoint = self.inner.state.borrow_mut().chilled(outcome);
            if wants_checkpoint {
                self.inner.signals.checkpoint.notify();
            }
            // Those who wait for memory.
            self.run_stalled();
        }
    }
}

impl<D: Disk> State<D> {
    /// Whether values must leave memory, as far as they can.
    #[inline]
    pub fn is_memory_short(&self) -> bool {
        self.machine.memory_bytes() > self.chill_above && !self.memory_only
    }

    /// From now on more may be left to the index.
    pub fn may_chill(&mut self) {
        self.chill_above = high(self.memory_bytes_max);
    }

    /// Takes note of what going through all values came to. Returns whether a checkpoint would help.
    fn chilled(&mut self, outcome: Chill) -> bool {
        let memory_bytes = self.machine.memory_bytes();
        self.may_chill();
        if outcome == Chill::NothingLeft && memory_bytes > self.chill_above {
            self.chill_above = memory_bytes + step(self.memory_bytes_max);
            return self.has_log_for_memory() || !self.stalled.is_empty();
        }
        false
    }

    /// Whether the log has grown so much since the last checkpoint that another one may free memory worth its while.
    pub fn has_log_for_memory(&self) -> bool {
        self.log.log_bytes().saturating_sub(self.log_bytes_at_checkpoint) >= self.checkpoint_log_bytes / 8
    }

    /// Whether a command waits for memory: values are about to leave it.
    pub fn waits_for_memory(&self, command: &Command) -> bool {
        let over = self.machine.memory_bytes().saturating_sub(self.memory_bytes_max);
        over > 0 && grows(command) && self.can_free(over)
    }

    /// Whether values take so much memory, and nothing stands in the way of their leaving it.
    pub fn can_free(&self, bytes: u64) -> bool {
        !self.memory_only && self.untrimmed.is_none() && self.machine.could_go() >= bytes
    }
}

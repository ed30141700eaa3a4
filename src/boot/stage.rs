//! What the cores agree on while starting and stopping. Looked at every few milliseconds; nothing here is on the data
//! path.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use flowmesh_rt::time;

/// How often a core looks.
const LOOK: Duration = Duration::from_millis(2);

/// Counts of cores that have come to a point.
pub struct Stage {
    shards: u16,
    recovered: AtomicU16,
    drained: AtomicU16,
    failed: AtomicBool,
    stopping: AtomicBool,
}

impl Stage {
    /// Nobody has come anywhere yet.
    pub fn new(shards: u16) -> Self {
        Self {
            shards,
            recovered: AtomicU16::new(0),
            drained: AtomicU16::new(0),
            failed: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        }
    }

    /// A core could not start: nobody does.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    /// Whether a core could not start.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Whether every core has recovered its shard.
    pub fn is_recovered(&self) -> bool {
        self.recovered.load(Ordering::Acquire) == self.shards
    }

    /// Whether a stop was asked for.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Asks every core to stop.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// This core has recovered; returns once all have, or `false` if one could not.
    pub async fn recovered(&self) -> bool {
        self.recovered.fetch_add(1, Ordering::AcqRel);
        while !self.is_recovered() {
            if self.has_failed() {
                return false;
            }
            time::sleep(LOOK).await;
        }
        true
    }

    /// This core serves nobody any more; returns once no core does, so that none still needs another's shard.
    pub async fn drained(&self) {
        self.drained.fetch_add(1, Ordering::AcqRel);
        while self.drained.load(Ordering::Acquire) < self.shards {
            time::sleep(LOOK).await;
        }
    }

    /// Returns once a stop was asked for.
    pub async fn stop_asked(&self) {
        while !self.is_stopping() {
            time::sleep(10 * LOOK).await;
        }
    }
}

//! The shard's handle and its state.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use flowmesh_machine::{CatalogNews, Machine, WaitKey};
use flowmesh_model::{Catalog, Durability, Millis, Offset, PartitionRef, Reject, ResourceId, ResourceInfo};
use flowmesh_store::disk::Disk;
use flowmesh_store::index::Index;
use flowmesh_store::log::Log;
use flowmesh_store::segments::StreamFiles;

use crate::config::ShardConfig;
use crate::fetch::Fetch;
use crate::large::Large;
use crate::metrics::ShardStats;
use crate::metrics::resources::Resources;
use crate::release::Parked;
use crate::signal::Signal;
use crate::stalled::Stalled;
use crate::timer::Timer;
use crate::waiting::Waiting;

/// Whether a shard takes work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Reads and writes.
    Ready,
    /// Reads; writes are refused until there is space.
    DiskFull,
    /// Reads; writes are refused until a restart. With the reason.
    Fenced(String),
    /// Draining.
    Stopping,
}

/// A shard. Cheap to clone; stays on its core.
pub struct Shard<D: Disk, T: Timer> {
    pub(crate) inner: Rc<Inner<D, T>>,
}

impl<D: Disk, T: Timer> Clone for Shard<D, T> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner) }
    }
}

pub(crate) struct Inner<D: Disk, T: Timer> {
    pub config: ShardConfig,
    pub timer: T,
    pub state: RefCell<State<D>>,
    /// Where checkpoints go; `None` in memory mode.
    pub durable: Option<Durable<D>>,
    pub signals: Signals,
    /// Held while payloads of jobs are fetched from the index.
    pub warming: futures::lock::Mutex<()>,
}

/// What is behind the log.
pub(crate) struct Durable<D: Disk> {
    pub index: Index,
    pub streams: StreamFiles<D>,
}

/// Who waits for what.
#[derive(Default)]
pub(crate) struct Signals {
    /// The log has something to commit.
    pub commit: Signal,
    /// Time is due earlier than thought.
    pub tick: Signal,
    /// A checkpoint should start.
    pub checkpoint: Signal,
    /// The log wants a segment.
    pub segment: Signal,
    /// Records are wanted from segment files.
    pub fetch: Signal,
    /// A flight landed or the log was given up: whoever waits for an LSN looks again.
    pub landed: Signal,
    /// Segment files have more, which may be compacted.
    pub compact: Signal,
    /// A checkpoint gave space back.
    pub checkpointed: Signal,
    /// A queue has something to send to another queue or a stream.
    pub transfer: Signal,
    /// Memory is short.
    pub chill: Signal,
}

pub(crate) struct State<D: Disk> {
    pub machine: Machine,
    pub log: Log<D>,
    pub parked: Parked,
    /// How many replies waited when the last flight landed: so many are likely to wait for the next one.
    pub expected_replies: usize,
    /// How long the last flight took.
    pub last_commit_ns: u64,
    pub waiting: Waiting,
    pub stalled: Stalled,
    pub large: Large,
    pub fetches: VecDeque<Fetch>,
    /// Queues whose next jobs are being brought into memory.
    pub looking_ahead: u64,
    pub stats: ShardStats,
    pub resources: Resources,
    pub default_durability: Durability,
    /// Resources with a durability of their own.
    pub durability_of: HashMap<ResourceId, Durability>,
    pub disk_full: bool,
    /// Log segments that could not be prepared.
    pub segment_failures: u64,
    /// Policy `memory`: nothing is ever written.
    pub memory_only: bool,
    /// Bytes of log right after the last checkpoint.
    pub log_bytes_at_checkpoint: u64,
    /// The last checkpoint failed, so the log is not trimmed: what writes are told that find it full.
    pub untrimmed: Option<Reject>,
    /// A checkpoint is being made.
    pub checkpointing: bool,
    pub fenced: Option<Reject>,
    pub stopping: bool,
    pub log_bytes_max: u64,
    pub memory_bytes_max: u64,
    /// With more than so much memory in use, values of stores leave it.
    pub chill_above: u64,
    /// A checkpoint starts after so much log.
    pub checkpoint_log_bytes: u64,
    /// When the tick loop will wake by itself.
    pub armed: Option<Millis>,
    /// An `interval` sync is due.
    pub sync_due: bool,
    /// When the last commit landed.
    pub committed_at_ns: Option<u64>,
}

impl<D: Disk, T: Timer> Shard<D, T> {
    /// The time now.
    pub fn now(&self) -> Millis {
        self.inner.timer.now()
    }

    /// Whether the shard takes work.
    pub fn health(&self) -> Health {
        let state = self.inner.state.borrow();
        match &state.fenced {
            Some(Reject::Fenced { reason }) => Health::Fenced(reason.clone()),
            Some(other) => Health::Fenced(other.to_string()),
            None if state.stopping => Health::Stopping,
            None if state.refuses_for_space() => Health::DiskFull,
            None => Health::Ready,
        }
    }

    /// Shard 0: the catalog as its facts say, durable or not.
    pub fn catalog_snapshot(&self) -> Arc<Catalog> {
        self.inner.state.borrow_mut().machine.catalog_snapshot()
    }

    /// Uses a newer catalog from now on. Those who wait for something of a resource that was deleted or that has other
    /// settings now are looked at again.
    pub fn set_catalog(&self, catalog: Arc<Catalog>) {
        let keys = self.inner.state.borrow_mut().set_catalog(catalog);
        self.serve_keys(keys);
        // What was deleted is dropped by a tick.
        self.inner.signals.tick.notify();
    }

    /// A copy of the shard's counters.
    pub fn stats(&self) -> ShardStats {
        let mut state = self.inner.state.borrow_mut();
        let last_lsn = state.last_lsn();
        let (log_bytes, memory_bytes) = (state.log.log_bytes(), state.machine.memory_bytes());
        let (parked, waiting, synced) = (state.parked.len(), state.waiting.len(), state.parked.synced());
        let fenced = u64::from(state.fenced.is_some());
        let body_looks = state.looking_ahead + u64::from(state.machine.looks_ahead());
        let (held, stalled) = (state.machine.stats(), state.stalled.len());
        let stats = &mut state.stats;
        stats.state = held;
        stats.last_lsn = last_lsn.0;
        stats.synced_lsn = synced.0;
        stats.log_bytes = log_bytes;
        stats.memory_bytes = memory_bytes;
        stats.parked_replies = parked as u64;
        stats.waiting_commands = waiting as u64;
        stats.fenced = fenced;
        stats.body_looks = body_looks;
        stats.stalled_writes = stalled as u64;
        stats.clone()
    }

    /// As [`Shard::stats`], with the numbers of single partitions and queues.
    pub fn stats_of_resources(&self) -> ShardStats {
        let mut stats = self.stats();
        let now = self.now();
        let state = &mut *self.inner.state.borrow_mut();
        (stats.partitions, stats.queues, stats.groups, stats.offsets) =
            state.resources.rows(&mut state.machine, now);
        stats.stores = state.resources.stores(&state.machine);
        stats.schedule_lateness = state.resources.lateness().clone();
        stats
    }

    /// The offset that the next record of each of these partitions gets, as far as the shard holds records of them.
    pub fn next_offsets(&self, partitions: &[PartitionRef]) -> Vec<(PartitionRef, Offset)> {
        let machine = &self.inner.state.borrow().machine;
        partitions.iter().filter_map(|at| Some((*at, machine.next_offset(*at)?))).collect()
    }

    /// Checks every invariant of the state; for tests and simulation.
    ///
    /// # Panics
    /// If one does not hold.
    pub fn check_all(&self) {
        self.inner.state.borrow().machine.check_all();
    }

    /// Drops long polls whose client has gone.
    pub fn drop_closed_waiters(&self) {
        self.inner.state.borrow_mut().waiting.drop_closed();
    }
}

impl<D: Disk> State<D> {
    /// Uses a newer catalog. Costs O(log n) for each resource that changed; returns what commands wait for of those.
    fn set_catalog(&mut self, newer: Arc<Catalog>) -> Vec<WaitKey> {
        let catalog = Arc::clone(&newer);
        match self.machine.set_catalog(newer) {
            CatalogNews::Of(changed) => {
                for &id in &changed {
                    match catalog.get(id).and_then(|info| info.settings.durability()) {
                        Some(own) => self.durability_of.insert(id, own),
                        None => self.durability_of.remove(&id),
                    };
                }
                // Nobody waits for something of a resource that was not there before.
                changed.iter().flat_map(|id| self.waiting.keys_of(*id)).collect()
            }
            CatalogNews::OfAny => {
                let own = |info: &Arc<ResourceInfo>| Some((info.id, info.settings.durability()?));
                self.durability_of = catalog.iter().filter_map(own).collect();
                self.waiting.keys()
            }
        }
    }
}

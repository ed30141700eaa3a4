//! Workers that registered: who is there, who has gone, and when it is to be noticed that nothing is heard of one.
//!
//! [`decide`] is what can be asked, [`apply`] how facts change them, [`due`] what time brings, [`index`] their part of
//! checkpoints, [`check`] their invariants. A heartbeat changes nothing that is part of the state: it moves a moment in
//! memory, and after a start each worker has a whole session before it (see [`Workers::begin_sessions`]).

mod apply;
mod check;
pub(crate) mod decide;
mod due;
mod index;

use std::cell::Cell;
use std::collections::BTreeSet;

use flowmesh_model::worker::{Registration, WorkerState, WorkerStatus};
use flowmesh_model::{Lsn, Millis, WorkerPath};

use crate::items::{Items, item_bytes};

/// What a worker takes in memory besides its name and what it said of itself: itself, and its places by time.
const WORKER_BYTES: u64 =
    item_bytes::<WorkerPath, Worker>() + 2 * (size_of::<(Millis, WorkerPath)>() + 16) as u64;

/// All workers that are placed on the shard.
#[derive(Debug, Default)]
pub(crate) struct Workers {
    known: Items<WorkerPath, Worker>,
    /// By the moment something may be due: never later than it is, at times earlier. Not part of the state.
    due: BTreeSet<(Millis, WorkerPath)>,
    /// Those that are not there, by since when.
    gone: BTreeSet<(Millis, WorkerPath)>,
    /// By the place of their state in [`WorkerState::ALL`].
    counts: [u64; WorkerState::ALL.len()],
    memory_bytes: u64,
    /// The entry that changed them last, of those that this process applied.
    last_lsn: Lsn,
    /// Whether all sealed changes were collected.
    collected: bool,
    /// Whether the start is over, before which nobody is missed.
    awake: bool,
}

/// One worker.
#[derive(Clone, Debug)]
struct Worker {
    epoch: Lsn,
    registration: Box<Registration>,
    registered_at: Millis,
    state: WorkerState,
    since: Millis,
    /// Whether it was told to stop since it registered: it still is when it comes back from the dead.
    told_to_stop: bool,
    deaths: u64,
    /// When something was last heard of it. `None`: not since the start. Not part of the state.
    heard: Cell<Option<Millis>>,
    /// The moment under which it is in [`Workers::due`]. Not part of the state.
    armed: Cell<Option<Millis>>,
}

impl Worker {
    fn new(epoch: Lsn, registration: Box<Registration>, now: Millis) -> Self {
        Self {
            epoch,
            registration,
            registered_at: now,
            state: WorkerState::Alive,
            since: now,
            told_to_stop: false,
            deaths: 0,
            heard: Cell::new(Some(now)),
            armed: Cell::new(None),
        }
    }

    /// When it is dead if nothing is heard of it, or forgotten if it has gone.
    fn ends_at(&self) -> Option<Millis> {
        if self.state.is_present() {
            self.heard.get().map(|heard| heard.plus(self.registration.session_timeout_ms))
        } else {
            Some(self.since.plus(self.registration.retention_ms))
        }
    }

    fn memory_bytes(&self, path: &WorkerPath) -> u64 {
        let texts = self.registration.encoded_len_max() + path.as_str().len();
        let names = 1 + self.registration.queues.len() + 2 * self.registration.labels.len();
        WORKER_BYTES + (size_of::<Registration>() + texts + 32 * names) as u64
    }

    fn status(&self, path: &WorkerPath) -> WorkerStatus {
        WorkerStatus {
            path: path.clone(),
            epoch: self.epoch,
            registration: (*self.registration).clone(),
            registered_at: self.registered_at,
            state: self.state,
            since: self.since,
            deaths: self.deaths,
            heard_at: self.heard.get(),
            until: self.ends_at(),
        }
    }
}

impl Workers {
    /// An estimate of what they take in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// How many there are, by the place of their state in [`WorkerState::ALL`].
    pub fn counts(&self) -> [u64; WorkerState::ALL.len()] {
        self.counts
    }

    /// Puts a worker where it belongs besides its name.
    fn link(&mut self, path: &WorkerPath) {
        let Some(worker) = self.known.get(path) else { return };
        let due = worker.ends_at().unwrap_or_default();
        worker.armed.set(Some(due));
        self.due.insert((due, path.clone()));
        if !worker.state.is_present() {
            self.gone.insert((worker.since, path.clone()));
        }
        if let Some(count) = self.counts.get_mut(worker.state as usize) {
            *count += 1;
        }
        self.memory_bytes += worker.memory_bytes(path);
    }

    /// Takes a worker from all of that.
    fn unlink(&mut self, path: &WorkerPath) {
        let Some(worker) = self.known.get(path) else { return };
        if let Some(armed) = worker.armed.take() {
            self.due.remove(&(armed, path.clone()));
        }
        if !worker.state.is_present() {
            self.gone.remove(&(worker.since, path.clone()));
        }
        if let Some(count) = self.counts.get_mut(worker.state as usize) {
            *count -= 1;
        }
        self.memory_bytes -= worker.memory_bytes(path);
    }
}

//! Phase 5, commit: everything that gathered goes to the disk as one write and one sync, while the next gathers.
//!
//! | what happened | then |
//! |---|---|
//! | written, and synced if someone needs that | the flight's replies are released |
//! | write or sync failed | the shard is **fenced**: nobody knows what is on disk, and a sync must not be tried again |
//! | no segment could be prepared | the log refuses entries with `DISK_FULL`, and it is tried again twice a second |

use std::time::Duration;

use flowmesh_model::{Durability, Lsn, Reject};
use flowmesh_store::disk::Disk;
use flowmesh_store::log::{Batch, LogError};
use futures::future::select;

use crate::pump::Effects;
use crate::shard::{Shard, State};
use crate::timer::Timer;

/// How long to wait before trying again to prepare a segment on a full disk.
const SEGMENT_RETRY: Duration = Duration::from_millis(500);

/// Up to this size a commit is one durable write instead of a write and a sync: it saves a trip through the ring.
const DURABLE_WRITE_MAX: u64 = 256 * 1024;

/// A commit waits no longer than this, and no longer than a third of what the last one took, for those who were just
/// answered and are likely to write again.
const GATHER_MAX_NS: u64 = 60_000;

/// With so many replies waiting, a commit waits for nobody.
const GATHER_ENOUGH: usize = 32;

/// One commit on its way.
struct Flight<D: Disk> {
    /// What to write; `None` if only a sync is due.
    batch: Option<Batch<D>>,
    syncs: bool,
}

impl<D: Disk, T: Timer> Shard<D, T> {
    /// Commits whenever there is something. Runs until it is dropped.
    pub async fn run_commits(self) {
        loop {
            self.inner.signals.commit.wait().await;
            loop {
                self.gather().await;
                if !self.commit().await {
                    break;
                }
            }
        }
    }

    /// Lets those join the next commit who are about to write: with a few clients, each waiting for its answer before
    /// it writes again, half of them would otherwise just miss every commit and wait for two.
    async fn gather(&self) {
        let started_ns = self.inner.timer.monotonic_ns();
        loop {
            let left_ns = {
                let state = self.inner.state.borrow();
                let gathered = state.parked.gathered();
                if gathered == 0 || gathered >= state.expected_replies.min(GATHER_ENOUGH) {
                    return;
                }
                let waited_ns = self.inner.timer.monotonic_ns().saturating_sub(started_ns);
                (state.last_commit_ns / 3).min(GATHER_MAX_NS).saturating_sub(waited_ns)
            };
            if left_ns == 0 {
                return;
            }
            let sleep = std::pin::pin!(self.inner.timer.sleep(Duration::from_nanos(left_ns)));
            let joined = std::pin::pin!(self.inner.signals.commit.wait());
            select(sleep, joined).await;
        }
    }

    /// One commit. Returns whether there was anything to do.
    async fn commit(&self) -> bool {
        self.pass_large();
        let Some(flight) = self.inner.state.borrow_mut().take_flight() else {
            return false;
        };
        let (entries, bytes) = flight.batch.as_ref().map_or((0, 0), |batch| (batch.entries(), batch.bytes()));
        let started_ns = self.inner.timer.monotonic_ns();
        let landed = self.fly(flight).await;
        let now_ns = self.inner.timer.monotonic_ns();
        let mut effects = Effects::default();
        {
            let mut state = self.inner.state.borrow_mut();
            match landed {
                Ok(()) => {
                    state.expected_replies = state.parked.len();
                    state.last_commit_ns = now_ns.saturating_sub(started_ns);
                    state.committed_at_ns = Some(now_ns);
                    state.land(now_ns, &mut effects);
                    let stats = &mut state.stats;
                    stats.commit_entries.record(entries);
                    stats.commit_bytes.record(bytes);
                    stats.commit_ns.record(now_ns.saturating_sub(started_ns));
                    effects.segment = true;
                    let grown = state.log.log_bytes().saturating_sub(state.log_bytes_at_checkpoint);
                    effects.checkpoint = grown >= self.inner.config.checkpoint_log_bytes
                        || (state.machine.memory_bytes() > state.memory_bytes_max / 4 * 3
                            && state.has_log_for_memory());
                }
                Err(error) => state.fence(&error.to_string(), &mut effects),
            }
            state.run_stalled(self.inner.timer.now(), now_ns, &mut effects);
        }
        self.inner.signals.landed.notify();
        self.carry_on(effects);
        true
    }

    /// What waited for a commit to go with it.
    fn pass_large(&self) {
        if !self.inner.state.borrow().large.waits() {
            return;
        }
        let (now, now_ns) = (self.inner.timer.now(), self.inner.timer.monotonic_ns());
        let mut effects = Effects::default();
        {
            let mut state = self.inner.state.borrow_mut();
            state.pass_large(now, now_ns, &mut effects);
            state.serve_woken(now, now_ns, &mut effects);
            state.note_times(&mut effects);
        }
        // It is about to be written.
        effects.commit = false;
        self.carry_on(effects);
    }

    /// The log may have room again.
    pub(crate) fn run_stalled(&self) {
        let (now, now_ns) = (self.inner.timer.now(), self.inner.timer.monotonic_ns());
        let mut effects = Effects::default();
        self.inner.state.borrow_mut().run_stalled(now, now_ns, &mut effects);
        self.carry_on(effects);
    }

    async fn fly(&self, flight: Flight<D>) -> Result<(), LogError> {
        if let Some(batch) = flight.batch {
            let at_once = flight.syncs
                && batch.bytes() <= DURABLE_WRITE_MAX
                && self.inner.state.borrow().log.is_clean();
            if at_once {
                let written = batch.write_durably().await?;
                self.inner.state.borrow_mut().log.written_durably(written);
                return Ok(());
            }
            let written = batch.write().await?;
            self.inner.state.borrow_mut().log.written(written);
        }
        if flight.syncs {
            let job = self.inner.state.borrow_mut().log.sync_job();
            if let Some(job) = job {
                let synced = job.run().await?;
                self.inner.state.borrow_mut().log.durable(synced);
            }
        }
        Ok(())
    }

    /// Prepares log segments ahead of their use. Runs until it is dropped.
    pub async fn run_segments(self) {
        loop {
            let request = self.inner.state.borrow_mut().log.wants_segment();
            let Some(request) = request else {
                self.inner.signals.segment.wait().await;
                continue;
            };
            let prepared = request.prepare().await;
            let failed = prepared.as_ref().err().map(ToString::to_string);
            self.inner.state.borrow_mut().segment_prepared(failed.as_deref());
            self.inner.state.borrow_mut().log.segment_prepared(prepared);
            self.run_stalled();
            if failed.is_some() {
                let retry = std::pin::pin!(self.inner.timer.sleep(SEGMENT_RETRY));
                let wanted = std::pin::pin!(self.inner.signals.checkpointed.wait());
                select(retry, wanted).await;
            }
        }
    }
}

impl<D: Disk> State<D> {
    fn take_flight(&mut self) -> Option<Flight<D>> {
        if self.fenced.is_some() {
            return None;
        }
        let must_sync = self.parked.wants_sync() || self.sync_due;
        let batch = self.log.take_batch();
        if batch.is_none() && !must_sync {
            return None;
        }
        let syncs = must_sync || self.default_durability == Durability::Always;
        self.sync_due = false;
        let last = batch.as_ref().map_or(self.log.written_lsn(), Batch::last_lsn);
        self.parked.take_off(last, syncs);
        Some(Flight { batch, syncs })
    }

    fn land(&mut self, now_ns: u64, effects: &mut Effects) {
        self.parked.land(&mut effects.released);
        for outgoing in &effects.released {
            self.released(outgoing, now_ns);
        }
    }

    /// Takes no more writes: what is on disk is unknown. Everyone who waits for the disk is told.
    fn fence(&mut self, reason: &str, effects: &mut Effects) {
        tracing::error!(reason, "shard is fenced: reads go on, writes are refused until a restart");
        let reject = Reject::Fenced { reason: reason.to_owned() };
        self.parked.fail_all(&reject, &mut effects.released);
        self.fail_large(&reject, effects);
        self.fenced = Some(reject);
    }

    fn segment_prepared(&mut self, failed: Option<&str>) {
        if let Some(error) = failed {
            tracing::warn!(error, "cannot prepare a log segment; writes go on while there is one");
            self.segment_failures += 1;
            return;
        }
        if self.disk_full {
            tracing::info!("the disk has space again: writes go on");
        }
        self.disk_full = false;
    }

    /// The last entry that is acknowledged or will be.
    pub fn last_lsn(&self) -> Lsn {
        Lsn(self.log.next_lsn().0 - 1)
    }
}

//! Compaction, in the background: one partition of the shard at a time, in slices that never hold the core for long, and no
//! faster than it may be.
//!
//! 1. the machine says what is to be done, if anything is (`next_compaction`),
//! 2. segment files are rewritten and swapped, one by one (`flowmesh_store::segments`),
//! 3. after each swap a fact tells the state; one that is lost in a crash only leaves counters too high until the
//!    partition is compacted again,
//! 4. what memory has of the range is dropped: files alone know what is left of it.
//!
//! Nobody waits for it: readers go on in the files they have, writers write elsewhere. A failure is logged, and tried again.

use std::cell::Cell;
use std::time::Duration;

use flowmesh_model::{Batch, Cleaned, CompactedSegment, CompactionJob, Fact, PartitionRef};
use flowmesh_store::disk::Disk;
use flowmesh_store::segments::{Compaction, CompactionError, GivenUp, Pace};
use futures::future::select;

use crate::pump::Effects;
use crate::shard::{Durable, Shard};
use crate::timer::Timer;

/// How often the state is asked whether there is something to do, beside after every checkpoint: what is old enough, or
/// too old, is so without anybody telling.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// After a failure, the wait before the next try.
const RETRY: Duration = Duration::from_secs(10);

/// After the log had no room for a fact, the wait before the next try.
const LOG_RETRY: Duration = Duration::from_millis(20);

/// Below this a wait for bandwidth is put off: timers are not that exact.
const SLEEP_MIN_NS: u64 = 500_000;

/// What bandwidth was not used is not saved up for longer than this.
const UNUSED_NS_MAX: u64 = 5_000_000;

/// Appends dropped from memory before other tasks run: about 50 µs.
const EVICT_STEP: usize = 1024;

/// Compaction on a shard's core: others have a turn at every pause, and the bandwidth is kept.
struct ShardPace<'a, D: Disk, T: Timer> {
    shard: &'a Shard<D, T>,
    at: PartitionRef,
    /// When so much may have been read and written as was.
    due_ns: Cell<u64>,
}

impl<'a, D: Disk, T: Timer> ShardPace<'a, D, T> {
    fn new(shard: &'a Shard<D, T>, at: PartitionRef) -> Self {
        Self { shard, at, due_ns: Cell::new(shard.inner.timer.monotonic_ns()) }
    }

    /// How long to wait after so many bytes more.
    fn wait_ns(&self, bytes: u64) -> u64 {
        let per_second = self.shard.inner.config.compaction_bytes_per_second.max(1);
        let now_ns = self.shard.inner.timer.monotonic_ns();
        let cost_ns = u128::from(bytes) * 1_000_000_000 / u128::from(per_second);
        let from_ns = self.due_ns.get().max(now_ns.saturating_sub(UNUSED_NS_MAX));
        self.due_ns.set(from_ns.saturating_add(u64::try_from(cost_ns).unwrap_or(u64::MAX)));
        self.due_ns.get().saturating_sub(now_ns)
    }
}

impl<D: Disk, T: Timer> Pace for ShardPace<'_, D, T> {
    async fn pause(&self, bytes: u64) -> Result<(), GivenUp> {
        let timer = &self.shard.inner.timer;
        let wait_ns = self.wait_ns(bytes);
        if wait_ns >= SLEEP_MIN_NS {
            timer.sleep(Duration::from_nanos(wait_ns)).await;
        } else {
            timer.yield_now().await;
        }
        let mut state = self.shard.inner.state.borrow_mut();
        state.stats.compaction.disk_bytes += bytes;
        let goes_on = !state.stopping && state.fenced.is_none() && state.machine.is_compacted(self.at);
        if goes_on { Ok(()) } else { Err(GivenUp) }
    }
}

impl<D: Disk, T: Timer> Shard<D, T> {
    /// Compacts what is to be compacted. Runs until it is dropped.
    pub async fn run_compactions(self) {
        let Some(durable) = &self.inner.durable else { return };
        let mut is_tidy = false;
        loop {
            if !is_tidy {
                is_tidy = self.remove_unfinished(durable).await;
            }
            while self.compact_next(durable).await {}
            let sleep = std::pin::pin!(self.inner.timer.sleep(LOOK_EVERY));
            let wanted = std::pin::pin!(self.inner.signals.compact.wait());
            select(sleep, wanted).await;
        }
    }

    /// Removes what compactions left that a stop cut off. Returns whether it knew which streams there are.
    async fn remove_unfinished(&self, durable: &Durable<D>) -> bool {
        let partitions = {
            let state = self.inner.state.borrow();
            if !state.machine.has_catalog() {
                return false;
            }
            state.machine.compacted_partitions()
        };
        for at in partitions {
            if let Err(error) = durable.streams.remove_unfinished(at).await {
                tracing::warn!(shard = %self.inner.config.shard, %error, "an unfinished compaction was not removed");
            }
            self.inner.timer.yield_now().await;
        }
        true
    }

    /// Compacts the partition with most to do. Returns whether there may be another one.
    async fn compact_next(&self, durable: &Durable<D>) -> bool {
        let job = {
            let state = self.inner.state.borrow();
            if state.stopping || state.fenced.is_some() || state.disk_full {
                return false;
            }
            state.machine.next_compaction(self.inner.timer.now())
        };
        let Some(job) = job else { return false };
        let (at, started_ns) = (job.at, self.inner.timer.monotonic_ns());
        let outcome = self.compact(durable, job).await;
        let elapsed_ns = self.inner.timer.monotonic_ns().saturating_sub(started_ns);
        let shard = self.inner.config.shard;
        {
            let stats = &mut self.inner.state.borrow_mut().stats.compaction;
            match &outcome {
                Ok(()) => stats.duration_ns.record(elapsed_ns),
                Err(CompactionError::GivenUp(_)) => {}
                Err(CompactionError::Segments(_)) => stats.failures += 1,
            }
        }
        match outcome {
            Ok(()) => {
                tracing::debug!(%shard, %at, ms = elapsed_ns / 1_000_000, "compacted");
                return true;
            }
            Err(CompactionError::GivenUp(_)) => tracing::debug!(%shard, %at, "a compaction was given up"),
            Err(CompactionError::Segments(error)) => {
                tracing::error!(%shard, %error, "a compaction failed; the files are as they were");
            }
        }
        self.inner.timer.sleep(RETRY).await;
        false
    }

    async fn compact(&self, durable: &Durable<D>, job: CompactionJob) -> Result<(), CompactionError> {
        let (at, memory_bytes) = (job.at, self.inner.config.compaction_memory_bytes);
        let pace = ShardPace::new(self, at);
        let begun = durable.streams.begin_compaction(job, memory_bytes).await?;
        let mut compaction = begun.ok_or(GivenUp)?;
        let done = self.rewrite(at, &mut compaction, &pace).await;
        self.note_stats(&compaction);
        compaction.finish(&pace).await;
        let cleaned = done?;
        self.log_fact(at, |machine| machine.cleaned_fact(at, cleaned)).await?;
        Ok(())
    }

    async fn rewrite(
        &self,
        at: PartitionRef,
        compaction: &mut Compaction<D>,
        pace: &ShardPace<'_, D, T>,
    ) -> Result<Cleaned, CompactionError> {
        compaction.scan(pace).await?;
        while let Some(rewritten) = compaction.rewrite(pace).await? {
            let segment: CompactedSegment = compaction.swap(rewritten).await?;
            self.log_fact(at, |machine| machine.compacted_fact(at, &segment)).await?;
            while !self.inner.state.borrow_mut().machine.evict_compacted(at, EVICT_STEP) {
                self.inner.timer.yield_now().await;
            }
        }
        Ok(compaction.cleaned())
    }

    /// Logs what the machine makes of an outcome, once the log has room. Nothing, if it makes nothing of it: then the state
    /// has gone on, and the next compaction tells.
    async fn log_fact(
        &self,
        at: PartitionRef,
        make: impl Fn(&flowmesh_machine::Machine) -> Option<Fact>,
    ) -> Result<(), GivenUp> {
        loop {
            let mut effects = Effects::default();
            let is_done = {
                let mut state = self.inner.state.borrow_mut();
                if state.stopping || state.fenced.is_some() || !state.machine.is_compacted(at) {
                    return Err(GivenUp);
                }
                match make(&state.machine) {
                    Some(fact) => {
                        let mut facts = Batch::new();
                        facts.push(fact);
                        state.log_and_apply(self.inner.timer.now(), facts, &mut effects).is_ok()
                    }
                    None => true,
                }
            };
            self.carry_on(effects);
            if is_done {
                return Ok(());
            }
            self.inner.timer.sleep(LOG_RETRY).await;
        }
    }

    fn note_stats(&self, compaction: &Compaction<D>) {
        let done = compaction.stats();
        let stats = &mut self.inner.state.borrow_mut().stats.compaction;
        stats.records_in += done.records_in;
        stats.records_out += done.records_out;
        stats.bytes_in += done.bytes_in;
        stats.bytes_out += done.bytes_out;
    }
}

//! Phase 7, checkpoint: the state as of one LSN goes to the index and the segment files; the log behind it is trimmed.
//!
//! 1. **seal** at LSN L: the machine remembers its state as of now and goes on. Large values that are on their way into the log
//!    are waited for first, for some tens of milliseconds.
//! 2. records not yet in segment files are taken out of it in small parts, appended to the files and synced,
//! 3. what else changed since the last checkpoint is collected in small steps, between commands,
//! 4. once L is on disk in the log, the index takes it all in one atomic, durable batch tagged with L,
//! 5. only then segment files without live records are removed, and the log up to L is given back.
//!
//! One that fails leaves the log as it is, and is made again. A log that is full and cannot be trimmed refuses writes: with
//! `DISK_FULL` if it failed for lack of space, then it is tried again every second; else with `OVERLOADED`.
//!
//! A crash before 4 leaves the old index and the whole log: segment files longer than the index knows are cut at start.
//! A crash after 4 leaves a log that starts before L: recovery skips what the index has.

use std::time::Duration;

use bytes::Bytes;
use flowmesh_machine::{BodyCursor, FlushRange, HistoryStep};
use flowmesh_model::reply::RecordRun;
use flowmesh_model::{IndexWrite, Lsn, Mutation, Offset, PartitionRef, Reject};
use flowmesh_store::disk::Disk;
use flowmesh_store::index::{HistoryRange, IndexError};
use flowmesh_store::log::{LogError, TrimWork};
use flowmesh_store::segments::{FewRecords, SegmentError};
use futures::StreamExt;
use futures::future::select;
use futures::lock::Mutex;
use futures::stream::FuturesUnordered;
use thiserror::Error;

use crate::pump::Effects;
use crate::shard::{Durable, Shard};
use crate::timer::Timer;

/// Items collected before other tasks run: about 100 µs.
const COLLECT_STEP: usize = 512;

/// Memory of the records taken out of the state before other tasks run: some thousand appends, about 100 µs.
const RECORDS_STEP_BYTES: usize = 512 * 1024;

/// Record bytes handed to the segment files at once: all that they keep on its way to the disk, twice.
const RECORDS_CHUNK_BYTES: usize = 4 * 1024 * 1024;

/// Partitions whose records are written at the same time: a few records of each of many wait for the file system and for
/// their turn on a busy core, not for the disk.
const PARTITIONS_AT_ONCE: usize = 64;

/// A partition with at most so many bytes of records has few: to open its file costs more than to write them.
const FEW_BYTES: usize = 64 * 1024;

/// With so many partitions those that have few records are written together, and synced by one sync of the file system,
/// which with fewer partitions would cost more than it saves.
const MANY_PARTITIONS: usize = 64;

/// Partitions with few records that are handed over at once: encoding them takes about 100 µs.
const FEW_AT_ONCE: usize = 32;

/// So many times as many are on their way to the disk.
const FEW_WRITES_AT_ONCE: usize = 2;

/// Those of a partition with so many bytes keep the disk busy alone, and take all the memory that there is for it.
const ALONE_FROM_BYTES: usize = 256 * 1024;

/// Appends dropped from memory before other tasks run: about 100 µs.
const EVICT_STEP: usize = 4096;

/// Pages of 64 jobs looked at for what can be dropped before other tasks run: about 100 µs.
const EVICT_PAGES: usize = 32;

/// Items handed to the index at once: a few MiB.
const CHUNK_ITEMS: usize = 16 * 1024;

/// How often a wait is checked, should a signal have gone to someone else.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// After a failure, the wait before the next try.
const RETRY: Duration = Duration::from_secs(1);

/// Why a checkpoint did not happen. The log keeps everything, so nothing is lost.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The index refused.
    #[error("{0}")]
    Index(#[from] IndexError),
    /// A segment file refused.
    #[error("{0}")]
    Segments(#[from] SegmentError),
    /// Trimming the log failed.
    #[error("{0}")]
    Log(#[from] LogError),
    /// The log failed before it had what the checkpoint would show.
    #[error("the shard is fenced")]
    Fenced,
}

impl CheckpointError {
    /// Whether there was no space on the disk.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Index(error) => error.is_disk_full(),
            Self::Segments(error) => error.is_disk_full(),
            Self::Log(error) => error.is_disk_full(),
            Self::Fenced => false,
        }
    }
}

impl<D: Disk, T: Timer> Shard<D, T> {
    /// Makes checkpoints when the log has grown or time has passed. Runs until it is dropped.
    pub async fn run_checkpoints(self) {
        let interval = Duration::from_millis(self.inner.config.checkpoint_interval_ms);
        if let Some(durable) = &self.inner.durable
            && let Err(error) = self.remove_trimmed(durable).await
        {
            tracing::warn!(shard = %self.inner.config.shard, %error, "segment files were not removed; tried again later");
        }
        loop {
            let sleep = std::pin::pin!(self.inner.timer.sleep(interval));
            let wanted = std::pin::pin!(self.inner.signals.checkpoint.wait());
            select(sleep, wanted).await;
            while let Err(error) = self.checkpoint().await {
                self.note_failure(&error);
                self.inner.timer.sleep(RETRY).await;
                // Space may come back without anybody writing.
                if !error.is_disk_full() {
                    break;
                }
            }
        }
    }

    fn note_failure(&self, error: &CheckpointError) {
        let shard = self.inner.config.shard;
        let refusal = if error.is_disk_full() {
            Reject::DiskFull
        } else {
            Reject::Overloaded { what: "commit log", retry_after_ms: 1_000 }
        };
        {
            let mut state = self.inner.state.borrow_mut();
            state.stats.checkpoint_failures += 1;
            if state.untrimmed.as_ref() == Some(&refusal) {
                tracing::debug!(%shard, %error, "checkpoint failed again");
            } else {
                tracing::error!(%shard, %error, "checkpoint failed; the log keeps everything");
            }
            state.untrimmed = Some(refusal);
        }
        // Those who wait for the log to be trimmed are told.
        self.run_stalled();
    }

    /// One checkpoint. Does nothing if nothing changed since the last one, or while another one is being made.
    ///
    /// # Errors
    /// [`CheckpointError`]; the state, the log and the last checkpoint are as they were.
    pub async fn checkpoint(&self) -> Result<(), CheckpointError> {
        let Some(durable) = &self.inner.durable else { return Ok(()) };
        let started = self.inner.timer.monotonic_ns();
        self.inner.state.borrow_mut().large.hold();
        self.large_passed().await;
        let sealed = self.seal();
        self.inner.state.borrow_mut().large.release();
        self.inner.signals.commit.notify();
        let Some((lsn, ranges)) = sealed? else { return Ok(()) };
        let written = self.write_checkpoint(durable, lsn, &ranges).await;
        let (dropped, trim) = self.checkpoint_written(written, lsn)?;
        self.evict_tails().await;
        self.evict_bodies().await;
        self.chill_on();
        self.remove_trimmed(durable).await?;
        for at in dropped {
            durable.streams.delete(at).await?;
        }
        if let Some(trim) = trim {
            let trimmed = trim.run().await?;
            self.inner.state.borrow_mut().log.trimmed(trimmed);
        }
        if let Err(error) = self.sweep_history(durable).await {
            tracing::warn!(shard = %self.inner.config.shard, %error, "what is no longer kept of histories was not removed; tried again later");
        }
        let elapsed_ns = self.inner.timer.monotonic_ns().saturating_sub(started);
        {
            let mut state = self.inner.state.borrow_mut();
            state.log_bytes_at_checkpoint = state.log.log_bytes();
            state.stats.checkpoint_ns.record(elapsed_ns);
        }
        tracing::debug!(shard = %self.inner.config.shard, %lsn, ms = elapsed_ns / 1_000_000, "checkpoint");
        self.inner.signals.segment.notify();
        self.inner.signals.checkpointed.notify();
        self.inner.signals.compact.notify();
        self.run_stalled();
        Ok(())
    }

    /// Returns once no large value has pieces in the log whose entry is still to come: a restart reads none that a checkpoint
    /// has behind it.
    async fn large_passed(&self) {
        while self.inner.state.borrow().large.is_passing() {
            let landed = std::pin::pin!(self.inner.signals.landed.wait());
            let look_again = std::pin::pin!(self.inner.timer.sleep(LOOK_AGAIN));
            select(landed, look_again).await;
        }
    }

    /// The state as of now, and up to which entry that is; `None` if there is nothing to do.
    fn seal(&self) -> Result<Option<(Lsn, Vec<FlushRange>)>, CheckpointError> {
        let mut state = self.inner.state.borrow_mut();
        let lsn = state.last_lsn();
        if lsn.0 <= state.stats.checkpoint_lsn || state.checkpointing {
            return Ok(None);
        }
        if state.fenced.is_some() {
            return Err(CheckpointError::Fenced);
        }
        state.checkpointing = true;
        Ok(Some((lsn, state.machine.seal_ranges())))
    }

    /// Takes out of the index what is of no use of histories any more, as the last durable checkpoint has it.
    async fn sweep_history(&self, durable: &Durable<D>) -> Result<(), CheckpointError> {
        if !self.inner.state.borrow_mut().machine.take_history_news() {
            return Ok(());
        }
        let mut from = Bytes::new();
        loop {
            let to = Bytes::from_static(&[u8::MAX; 11]);
            let first = HistoryRange { from: from.clone(), to, rows_max: 1, bytes_max: 1 };
            let found = durable.index.history(vec![first]).await?;
            let Some((key, _)) = found.into_iter().flat_map(|(rows, _)| rows).next() else { return Ok(()) };
            let step = self.inner.state.borrow().machine.history_garbage(&key);
            match step.map_err(|error| durable.index.undecodable(error))? {
                HistoryStep::Remove(upto) => durable.index.remove_history(key, upto).await?,
                HistoryStep::Skip(upto) => from = upto,
            }
        }
    }

    /// Takes note of the outcome. Returns streams whose files can go, and the log that can be given back.
    fn checkpoint_written(
        &self,
        written: Result<(), CheckpointError>,
        lsn: Lsn,
    ) -> Result<(Vec<PartitionRef>, Option<TrimWork<D>>), CheckpointError> {
        let mut state = self.inner.state.borrow_mut();
        state.checkpointing = false;
        if let Err(error) = written {
            state.machine.unseal();
            return Err(error);
        }
        state.machine.sealed_written();
        if state.untrimmed.take() == Some(Reject::DiskFull) {
            tracing::info!(shard = %self.inner.config.shard, "the disk has space for checkpoints again");
        }
        state.stats.checkpoint_lsn = lsn.0;
        Ok((state.machine.take_dropped_streams(), state.log.trim(lsn)))
    }

    async fn write_checkpoint(
        &self,
        durable: &Durable<D>,
        lsn: Lsn,
        ranges: &[FlushRange],
    ) -> Result<(), CheckpointError> {
        self.write_all_records(durable, ranges).await?;
        durable.streams.sync().await?;
        let checkpoint = durable.index.checkpoint();
        let mut all = false;
        while !all {
            let mut chunk: Vec<IndexWrite> = Vec::new();
            while !all && chunk.len() < CHUNK_ITEMS {
                all = self.inner.state.borrow_mut().machine.collect(COLLECT_STEP, &mut chunk);
                self.inner.timer.yield_now().await;
            }
            if Mutation::ForgetInCheckpoint.is_made() {
                chunk.pop();
            }
            if !chunk.is_empty() {
                checkpoint.add(chunk).await?;
            }
        }
        self.wait_synced(lsn).await?;
        checkpoint.commit(lsn).await?;
        Ok(())
    }

    /// Appends the records of all sealed ranges to their segment files, those of some partitions at a time. After a failure
    /// it returns once nothing is on its way to the disk: it could land over what is written there next.
    async fn write_all_records(
        &self,
        durable: &Durable<D>,
        ranges: &[FlushRange],
    ) -> Result<(), CheckpointError> {
        let partitions: Vec<&[FlushRange]> = ranges.chunk_by(|one, next| one.at == next.at).collect();
        let partitions = if partitions.len() < MANY_PARTITIONS {
            partitions
        } else {
            self.write_few_records(durable, partitions).await?
        };
        let (alone, mut partitions) = (Mutex::new(()), partitions.into_iter());
        let (mut writing, mut written) = (FuturesUnordered::new(), Ok(()));
        loop {
            while written.is_ok()
                && writing.len() < PARTITIONS_AT_ONCE
                && let Some(ranges) = partitions.next()
            {
                let alone = &alone;
                writing.push(async move {
                    for range in ranges {
                        self.write_records(durable, range, alone).await?;
                    }
                    Ok(())
                });
            }
            match writing.next().await {
                Some(outcome) => written = written.and(outcome),
                None => return written,
            }
        }
    }

    /// Appends the records of partitions that have few. Returns the other partitions. After a failure as
    /// [`Shard::write_all_records`].
    async fn write_few_records<'a>(
        &self,
        durable: &Durable<D>,
        partitions: Vec<&'a [FlushRange]>,
    ) -> Result<Vec<&'a [FlushRange]>, CheckpointError> {
        let (mut others, mut few) = (Vec::new(), Vec::new());
        let (mut writing, mut written) = (FuturesUnordered::new(), Ok(()));
        let mut partitions = partitions.into_iter();
        loop {
            let mut left = FEW_AT_ONCE;
            while left > 0
                && let Some(ranges) = partitions.next()
            {
                left -= 1;
                match self.few_records(ranges) {
                    Some(records) => few.push(records),
                    None => others.push(ranges),
                }
            }
            self.inner.timer.yield_now().await;
            let is_last = left > 0;
            if few.len() >= FEW_AT_ONCE || (is_last && !few.is_empty()) {
                writing.push(durable.streams.append_few(std::mem::take(&mut few)));
            }
            while (is_last || written.is_err() || writing.len() >= FEW_WRITES_AT_ONCE)
                && let Some(outcome) = writing.next().await
            {
                written = written.and(outcome);
            }
            if is_last || written.is_err() {
                return written.map(|()| others).map_err(CheckpointError::from);
            }
        }
    }

    /// All that a partition's only range has, if that is little.
    fn few_records(&self, ranges: &[FlushRange]) -> Option<FewRecords> {
        let [range] = ranges else { return None };
        let runs = self.inner.state.borrow().machine.sealed_runs(range, range.from, FEW_BYTES);
        let bytes: usize = runs.iter().map(|run| run.records.len()).sum();
        let is_all = runs.last().is_some_and(|run| run.base.plus(u64::from(run.count)) == range.upto);
        let new_file = range.new_file;
        (is_all && bytes <= FEW_BYTES).then_some(FewRecords { at: range.at, runs, new_file })
    }

    /// Appends the records of a sealed range to its segment files.
    async fn write_records(
        &self,
        durable: &Durable<D>,
        range: &FlushRange,
        alone: &Mutex<()>,
    ) -> Result<(), CheckpointError> {
        let mut from = range.from;
        while from < range.upto {
            let mut runs: Vec<RecordRun> = Vec::new();
            let mut bytes = 0;
            while from < range.upto && bytes < RECORDS_CHUNK_BYTES {
                let part = self.inner.state.borrow().machine.sealed_runs(range, from, RECORDS_STEP_BYTES);
                bytes += part.iter().map(|run| run.records.len()).sum::<usize>();
                let next = part.last().map_or(Offset(0), |run| run.base.plus(u64::from(run.count)));
                assert!(next > from, "sealed records of {} are gone from {from} on", range.at);
                from = next;
                runs.extend(part);
                self.inner.timer.yield_now().await;
            }
            let _alone = if bytes >= ALONE_FROM_BYTES { Some(alone.lock().await) } else { None };
            if range.new_file && runs.first().is_some_and(|run| run.base == range.from) {
                durable.streams.append_segment(range.at, &runs).await?;
            } else {
                durable.streams.append(range.at, &runs).await?;
            }
        }
        Ok(())
    }

    /// Removes segment files whose records are gone, as the durable index knows; after a start also those that were left.
    async fn remove_trimmed(&self, durable: &Durable<D>) -> Result<(), CheckpointError> {
        let trimmed = self.inner.state.borrow_mut().machine.take_trimmed_streams();
        for (done, &(at, base)) in trimmed.iter().enumerate() {
            if let Err(error) = durable.streams.trim(at, base).await {
                let left = trimmed.get(done..).unwrap_or_default().to_vec();
                self.inner.state.borrow_mut().machine.give_back_trimmed_streams(left);
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Drops records from memory that segment files have, in small steps.
    async fn evict_tails(&self) {
        let bytes_max = self.inner.config.tail_bytes;
        while !self.inner.state.borrow_mut().machine.evict_tails(bytes_max, EVICT_STEP) {
            self.inner.timer.yield_now().await;
        }
    }

    /// Drops from memory what jobs are about, as far as the index has it, in small steps.
    async fn evict_bodies(&self) {
        let bytes_max = self.inner.config.body_bytes;
        let mut from = Some(BodyCursor::default());
        while let Some(at) = from {
            from = self.inner.state.borrow_mut().machine.evict_bodies(bytes_max, EVICT_PAGES, at);
            self.inner.timer.yield_now().await;
        }
    }

    /// Values that changed can leave memory now.
    fn chill_on(&self) {
        let is_short = {
            let mut state = self.inner.state.borrow_mut();
            state.may_chill();
            state.is_memory_short()
        };
        if is_short {
            self.inner.signals.chill.notify();
        }
    }

    /// Returns once everything up to `lsn` is on disk.
    async fn wait_synced(&self, lsn: Lsn) -> Result<(), CheckpointError> {
        loop {
            {
                let mut state = self.inner.state.borrow_mut();
                if state.parked.synced() >= lsn {
                    return Ok(());
                }
                if state.fenced.is_some() {
                    return Err(CheckpointError::Fenced);
                }
                state.sync_due = true;
            }
            self.inner.signals.commit.notify();
            let landed = std::pin::pin!(self.inner.signals.landed.wait());
            let look_again = std::pin::pin!(self.inner.timer.sleep(LOOK_AGAIN));
            select(landed, look_again).await;
        }
    }

    /// Stops taking writes, answers everyone, and makes a last checkpoint.
    pub async fn shut_down(&self) {
        let mut effects = Effects::default();
        let waiters = {
            let mut state = self.inner.state.borrow_mut();
            state.stopping = true;
            state.fail_large(&Reject::ShuttingDown, &mut effects);
            state.waiting.take_all()
        };
        self.carry_on(effects);
        for waiter in waiters {
            waiter.sink.deliver(Err(Reject::ShuttingDown));
        }
        let Some(durable) = &self.inner.durable else { return };
        // Everyone who waits for the disk gets an answer first.
        let last = self.inner.state.borrow().last_lsn();
        let drained = self.wait_synced(last).await;
        while self.inner.state.borrow().checkpointing {
            self.inner.timer.sleep(LOOK_AGAIN).await;
        }
        let done = match drained {
            Ok(()) => self.checkpoint().await,
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            tracing::warn!(shard = %self.inner.config.shard, %error, "no checkpoint at shutdown; the next start reads more log");
        }
        if let Err(error) = durable.index.clone().shutdown().await {
            tracing::warn!(shard = %self.inner.config.shard, %error, "the index was not closed");
        }
    }
}

//! Checkpoints: the state as of one moment, written in small steps while it goes on changing (see [`crate::changes`]).
//!
//! ```text
//! seal_ranges ──► sealed_runs, collect, … ──► sealed_written  segment files and index have it all
//!                                     └────► unseal          nothing was written; the next seal takes it again
//! ```
//!
//! A dropped resource becomes a grave: its items are no longer part of the state, but the index still has them. A grave
//! is emptied by the checkpoint after the drop, again in small steps, and only then are the files of a stream deleted.

use std::collections::{BTreeMap, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, put_varint};
use flowmesh_model::reply::RecordRun;
use flowmesh_model::{IndexWrite, JobId, Lsn, Millis, Offset, PartitionRef, ProducerId, ResourceId, Space};

use crate::changes::{Seals, Touch, image, removal};
use crate::decision::FlushRange;
use crate::held::{HELD_BYTES, Held, Parts};
use crate::keys::{self, Home};
use crate::kv::past::record::part_of;
use crate::machine::{Machine, arm_earlier};
use crate::queue::Queue;

/// What is to be written next, and what is being written.
#[derive(Debug, Default)]
pub(crate) struct Checkpoint {
    /// Held resources that changed since the last seal.
    dirty: Vec<ResourceId>,
    /// Resources in the sealed state, and those of them that are not collected yet.
    sealed: Vec<ResourceId>,
    to_collect: VecDeque<ResourceId>,
    /// Dropped since the last seal; dropped before it.
    graves: BTreeMap<ResourceId, Grave>,
    sealed_graves: BTreeMap<ResourceId, Grave>,
    /// Streams whose files can go.
    dropped_streams: Vec<PartitionRef>,
    /// The index may have records of histories that are of no use.
    history_news: bool,
    /// Where the first record is that partitions' files must have.
    pub(crate) trimmed_streams: Vec<(PartitionRef, Offset)>,
    /// The entry time the index has.
    written_time: Millis,
    sealed_time: Millis,
    /// Partitions out of the index that still wait for their stream.
    pub(crate) restored_partitions: Vec<(PartitionRef, Bytes)>,
    /// The same for their segments.
    pub(crate) restored_segments: Vec<(PartitionRef, Bytes)>,
    /// The same for producers.
    pub(crate) restored_producers: Vec<(PartitionRef, ProducerId, Bytes)>,
    /// The same for what other queues sent.
    pub(crate) restored_received: Vec<(PartitionRef, ResourceId, Bytes)>,
}

/// A dropped resource whose items the index still has.
#[derive(Debug)]
struct Grave {
    home: Home,
    parts: Parts,
    sealed: bool,
    /// Keys the index has, as far as they are known.
    gone: Vec<(Space, Bytes)>,
    written: usize,
    emptied: bool,
    partitions: Vec<PartitionRef>,
    memory_bytes: u64,
}

impl Grave {
    fn new(held: Held) -> Self {
        let memory_bytes = HELD_BYTES + held.parts.memory_bytes();
        let Held { home, parts, .. } = held;
        let partitions = match &parts {
            Parts::Stream(stream) => stream
                .partitions()
                .map(|(partition, _)| PartitionRef { resource: home.id, partition })
                .collect(),
            Parts::Queue(_) | Parts::Kv(_) | Parts::Group(_) => Vec::new(),
        };
        let mut gone = vec![(Space::Meta, home.resource_key())];
        if has_history(&parts) {
            gone.push((Space::Meta, home.history_key()));
        }
        Self { home, parts, sealed: false, gone, written: 0, emptied: false, partitions, memory_bytes }
    }

    /// Takes what is still listed into the sealed state.
    fn seal(&mut self, seals: &mut Seals) {
        if !self.sealed {
            match &mut self.parts {
                Parts::Stream(stream) => stream.seal_producers(),
                parts => parts.seal(&self.home, seals, &mut Vec::new()),
            }
            self.sealed = true;
        }
    }

    /// Takes at most `items_max` items apart, then writes at most as many removals. Returns how much of `items_max`
    /// it used.
    fn collect(&mut self, items_max: usize, out: &mut Vec<IndexWrite>) -> usize {
        if !self.emptied {
            let taken = self.parts.bury(&self.home, items_max, &mut self.gone);
            self.emptied = taken < items_max;
            if !self.emptied {
                return items_max;
            }
        }
        let end = self.gone.len().min(self.written + items_max);
        let written = self.gone.get(self.written..end).unwrap_or_default();
        out.extend(written.iter().map(|(space, key)| removal(*space, key.clone())));
        std::mem::replace(&mut self.written, end).abs_diff(end)
    }

    /// Whether all of it was written.
    fn is_empty(&self) -> bool {
        self.emptied && self.written == self.gone.len()
    }
}

/// Whether the index may have records of what was.
fn has_history(parts: &Parts) -> bool {
    matches!(parts, Parts::Kv(store) if store.history_from().is_some())
}

impl Checkpoint {
    /// Lists a held resource that changed.
    #[inline]
    pub fn list(&mut self, id: ResourceId) {
        self.dirty.push(id);
    }

    /// What graves take in memory.
    pub fn grave_bytes(&self) -> u64 {
        self.graves.values().chain(self.sealed_graves.values()).map(|grave| grave.memory_bytes).sum()
    }
}

impl Machine {
    /// Starts a checkpoint of the state as it is now, in time that only depends on how many resources changed. Returns
    /// which records are not in segment files yet; [`Machine::sealed_runs`] has them.
    ///
    /// # Panics
    /// If the one before was neither written nor given up, or checkpoints are off.
    pub fn seal_ranges(&mut self) -> Vec<FlushRange> {
        let mut ranges = Vec::new();
        self.seals.seal();
        self.seal_time();
        self.catalog.seal(&mut self.seals);
        self.workers.seal();
        for id in std::mem::take(&mut self.checkpoint.dirty) {
            if let Some(held) = self.held.get_mut(&id) {
                held.seal(&mut self.seals, &mut ranges);
                self.checkpoint.sealed.push(id);
            }
        }
        self.checkpoint.to_collect.extend(self.checkpoint.sealed.iter().copied());
        for (id, mut grave) in std::mem::take(&mut self.checkpoint.graves) {
            grave.seal(&mut self.seals);
            self.checkpoint.sealed_graves.insert(id, grave);
        }
        ranges
    }

    /// Records of a sealed range from `from` on, which is its start or where the runs before ended: whole runs, until
    /// they take `bytes_max` of memory, at least one unless the range is through. Takes some 20 ns for each run.
    ///
    /// They are there until [`Machine::sealed_written`] or [`Machine::unseal`], whatever happens meanwhile: only what
    /// segment files have is evicted, and what is held of a dropped stream is kept until a later checkpoint.
    pub fn sealed_runs(&self, range: &FlushRange, from: Offset, bytes_max: usize) -> Vec<RecordRun> {
        let id = range.at.resource;
        let parts = match self.held.get(&id) {
            Some(held) => Some(&held.parts),
            None => self.checkpoint.graves.get(&id).map(|grave| &grave.parts),
        };
        match parts {
            Some(Parts::Stream(stream)) => stream
                .partition(range.at.partition)
                .map(|partition| partition.tail.flush(from, range.upto, bytes_max.max(1)))
                .unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    /// The shard's own entry: format (1 byte), time of the newest entry (varint).
    fn seal_time(&mut self) {
        self.checkpoint.sealed_time = self.entry_time;
        if self.entry_time == self.checkpoint.written_time {
            return;
        }
        let mut out = BytesMut::with_capacity(11);
        out.put_u8(keys::FORMAT);
        put_varint(&mut out, self.entry_time.0);
        self.seals.capture(image(Space::Meta, keys::clock_key(), out.freeze()));
    }

    pub(crate) fn restored_time(&mut self, time: Millis) {
        self.entry_time = time;
        self.clock = time;
        self.checkpoint.written_time = time;
    }

    /// Appends at most about `items_max` of the sealed state's changes to `out`, each key once. Returns whether that
    /// was all.
    pub fn collect(&mut self, items_max: usize, out: &mut Vec<IndexWrite>) -> bool {
        let mut left = items_max.max(1);
        let captured = self.seals.captured();
        let taken = captured.len().min(left);
        out.extend(captured.drain(captured.len() - taken..));
        left -= taken;
        left -= self.workers.collect(&self.seals, left, out);
        while left > 0 {
            let Some(&id) = self.checkpoint.to_collect.front() else { break };
            let looked = match self.held.get_mut(&id) {
                Some(held) => held.parts.collect(&held.home, &self.seals, left, out),
                None => self
                    .checkpoint
                    .graves
                    .get_mut(&id)
                    .map_or(0, |grave| grave.parts.collect(&grave.home, &self.seals, left, out)),
            };
            if looked < left {
                self.checkpoint.to_collect.pop_front();
            }
            // A resource without changes costs something too.
            left -= looked.max(1);
        }
        let unfinished = self.checkpoint.sealed_graves.values_mut().filter(|grave| !grave.is_empty());
        for grave in unfinished {
            if left == 0 {
                break;
            }
            left -= grave.collect(left, out).max(1);
        }
        self.is_collected()
    }

    fn is_collected(&mut self) -> bool {
        self.seals.captured().is_empty()
            && self.workers.is_collected()
            && self.checkpoint.to_collect.is_empty()
            && self.checkpoint.sealed_graves.values().all(Grave::is_empty)
    }

    /// The checkpoint is durable: index and segment files have all that was sealed.
    ///
    /// # Panics
    /// If not all of it was collected.
    pub fn sealed_written(&mut self) {
        assert!(self.seals.writing() && self.is_collected(), "written before all was collected");
        let mut trimmed = std::mem::take(&mut self.checkpoint.trimmed_streams);
        for id in std::mem::take(&mut self.checkpoint.sealed) {
            if let Some(held) = self.held.get_mut(&id) {
                let before = held.parts.memory_bytes();
                held.parts.sealed_written(id, &self.seals, &mut trimmed);
                self.checkpoint.history_news |= has_history(&held.parts);
                self.memory_bytes = self.memory_bytes + held.parts.memory_bytes() - before;
                arm_earlier(&mut self.timers, held);
            } else if let Some(grave) = self.checkpoint.graves.get_mut(&id) {
                grave.parts.sealed_written(id, &self.seals, &mut trimmed);
            }
        }
        self.checkpoint.trimmed_streams = trimmed;
        for grave in std::mem::take(&mut self.checkpoint.sealed_graves).into_values() {
            self.checkpoint.history_news |= has_history(&grave.parts);
            self.memory_bytes -= grave.memory_bytes;
            self.checkpoint.dropped_streams.extend(grave.partitions);
        }
        self.checkpoint.written_time = self.checkpoint.sealed_time;
        self.catalog.sealed_written();
        self.workers.sealed_written();
        self.seals.end();
    }

    /// The checkpoint failed: what was sealed counts as not written. Does nothing if there is none.
    pub fn unseal(&mut self) {
        if !self.seals.writing() {
            return;
        }
        self.seals.end();
        self.catalog.unseal();
        self.workers.unseal(&self.seals);
        self.checkpoint.to_collect.clear();
        for id in std::mem::take(&mut self.checkpoint.sealed) {
            let seals = &self.seals;
            if let Some(held) = self.held.get_mut(&id) {
                let before = held.parts.memory_bytes();
                held.parts.unseal(seals);
                self.memory_bytes = self.memory_bytes + held.parts.memory_bytes() - before;
                if seals.touch(&mut held.mark) != Touch::Known {
                    self.checkpoint.dirty.push(id);
                }
            } else if let Some(grave) = self.checkpoint.graves.get_mut(&id) {
                grave.parts.unseal(seals);
            }
        }
        for (id, mut grave) in std::mem::take(&mut self.checkpoint.sealed_graves) {
            grave.written = 0;
            self.checkpoint.graves.insert(id, grave);
        }
    }

    /// Keeps what was held of a dropped resource until the index has forgotten it.
    pub(crate) fn bury(&mut self, id: ResourceId, held: Held) {
        if held.mark.in_index() {
            self.checkpoint.graves.insert(id, Grave::new(held));
        } else {
            self.memory_bytes -= HELD_BYTES + held.parts.memory_bytes();
        }
    }

    /// Partitions that were dropped and that, as of the last durable checkpoint, nothing knows any more: their files
    /// can be deleted.
    pub fn take_dropped_streams(&mut self) -> Vec<PartitionRef> {
        std::mem::take(&mut self.checkpoint.dropped_streams)
    }

    /// Partitions whose files are not wanted as far as they only have records before an offset: as of the last durable
    /// checkpoint those are gone. After a start, of all that ever lost records.
    pub fn take_trimmed_streams(&mut self) -> Vec<(PartitionRef, Offset)> {
        std::mem::take(&mut self.checkpoint.trimmed_streams)
    }

    /// Those could not be removed: they come again.
    pub fn give_back_trimmed_streams(&mut self, left: Vec<(PartitionRef, Offset)>) {
        self.checkpoint.trimmed_streams.extend(left);
    }

    /// Whether [`Machine::history_garbage`] may find something: after a checkpoint with a store that has or had a history.
    pub fn take_history_news(&mut self) -> bool {
        std::mem::take(&mut self.checkpoint.history_news)
    }

    /// What a walk through [`Space::History`] does at a key that the index has.
    ///
    /// # Errors
    /// [`Malformed`] if a newer version wrote it.
    pub fn history_garbage(&self, key: &[u8]) -> Result<HistoryStep, Malformed> {
        let (slot, id, row) = keys::split(key)?;
        let behind = || keys::history_row_key(slot, ResourceId(id.0 + 1), &[]);
        // Of a store that was dropped it goes once a checkpoint says so.
        if self.checkpoint.graves.contains_key(&id) || self.checkpoint.sealed_graves.contains_key(&id) {
            return Ok(HistoryStep::Skip(behind()));
        }
        let from = match self.held.get(&id).map(|held| &held.parts) {
            Some(Parts::Kv(store)) => store.history_from(),
            _ => None,
        };
        let Some(from) = from else { return Ok(HistoryStep::Remove(behind())) };
        if part_of(row)? < from {
            let first = keys::history_row_key(slot, id, &from.0.to_be_bytes());
            return Ok(HistoryStep::Remove(first));
        }
        Ok(HistoryStep::Skip(behind()))
    }

    /// Drops records from memory that segment files have, oldest first, until at most `bytes_max` are left, or about
    /// `runs_max` appends were dropped. Returns whether that is all there is to drop; if not, call again.
    pub fn evict_tails(&mut self, bytes_max: u64, runs_max: usize) -> bool {
        let mut tail_bytes = self.tail_bytes();
        if tail_bytes <= bytes_max {
            return true;
        }
        // Finding the oldest looks at every held resource: so much is worth doing at once.
        let mut runs_left = runs_max.max(self.held.len());
        let mut oldest = std::collections::BinaryHeap::new();
        for (id, held) in &self.held {
            if let Parts::Stream(stream) = &held.parts {
                for (partition, _) in stream.partitions() {
                    oldest.extend(oldest_run(stream, *id, partition));
                }
            }
        }
        while tail_bytes > bytes_max
            && let Some((_, at)) = oldest.pop()
        {
            if runs_left == 0 {
                return false;
            }
            runs_left -= 1;
            let Some(Parts::Stream(stream)) = self.held.get_mut(&at.resource).map(|held| &mut held.parts)
            else {
                continue;
            };
            let evicted = stream.evict(at.partition).unwrap_or(0);
            tail_bytes -= evicted;
            self.memory_bytes -= evicted;
            oldest.extend(oldest_run(stream, at.resource, at.partition));
        }
        true
    }

    /// Drops from memory what jobs are about, as far as the index has it, those enqueued last first, until at most
    /// `bytes_max` are left. Looks at no more than `pages_max` pages of 64 jobs at once; returns where to go on, if there
    /// is more to look at. Begins with [`BodyCursor::default`].
    pub fn evict_bodies(&mut self, bytes_max: u64, pages_max: usize, from: BodyCursor) -> Option<BodyCursor> {
        let queues = || self.held.iter().filter(|(_, held)| matches!(held.parts, Parts::Queue(_)));
        let hot_bytes =
            |held: &Held| if let Parts::Queue(queue) = &held.parts { queue.hot_bytes() } else { 0 };
        let all: u64 = queues().map(|(_, held)| hot_bytes(held)).sum();
        if all <= bytes_max {
            return None;
        }
        // Queue by queue in the order of their numbers.
        let id = queues().map(|(id, _)| *id).filter(|id| *id >= from.queue).min()?;
        let held = self.held.get_mut(&id)?;
        let Parts::Queue(queue) = &mut held.parts else { return None };
        let before = queue.memory_bytes();
        let keep = queue.hot_bytes().saturating_sub(all - bytes_max);
        let below = if id == from.queue { from.below } else { u64::MAX };
        let next = queue.evict_bodies(keep, pages_max, below);
        self.memory_bytes = self.memory_bytes + queue.memory_bytes() - before;
        Some(match next {
            Some(below) => BodyCursor { queue: id, below },
            None => BodyCursor { queue: ResourceId(id.0 + 1), below: u64::MAX },
        })
    }

    /// Which of some jobs' bodies are only in the index, with their keys in [`Space::Bodies`]. If there are any, those of
    /// jobs that are wanted next come along.
    pub fn cold_bodies(&self, queue: ResourceId, jobs: &[JobId]) -> Vec<(JobId, Bytes)> {
        let Some(held) = self.held.get(&queue) else { return Vec::new() };
        let Parts::Queue(queue) = &held.parts else { return Vec::new() };
        let cold = queue.cold(jobs, self.clock).into_iter();
        cold.map(|job| (job, Queue::body_key(&held.home, job))).collect()
    }

    /// The jobs of a queue that are wanted next and whose bodies are only in the index, with their keys in
    /// [`Space::Bodies`].
    pub fn bodies_ahead(&mut self, queue: ResourceId) -> Vec<(JobId, Bytes)> {
        let now = self.clock;
        let Some(held) = self.held.get_mut(&queue) else { return Vec::new() };
        let Parts::Queue(queue) = &mut held.parts else { return Vec::new() };
        let cold = queue.look_ahead(now).into_iter();
        cold.map(|job| (job, Queue::body_key(&held.home, job))).collect()
    }

    /// Whether the shard has the job and only the index has what it is about.
    pub fn is_cold(&self, queue: ResourceId, job: JobId) -> bool {
        match self.held.get(&queue).map(|held| &held.parts) {
            Some(Parts::Queue(queue)) => queue.is_cold(job),
            _ => false,
        }
    }

    /// Takes into memory what a job is about, as the index has it; nothing if the job is gone.
    ///
    /// # Errors
    /// [`Malformed`] if a newer version wrote it.
    pub fn warm(&mut self, queue: ResourceId, job: JobId, value: Bytes) -> Result<(), Malformed> {
        let Some(Parts::Queue(queue)) = self.held.get_mut(&queue).map(|held| &mut held.parts) else {
            return Ok(());
        };
        let before = queue.memory_bytes();
        queue.warm(job, value)?;
        self.memory_bytes = self.memory_bytes + queue.memory_bytes() - before;
        Ok(())
    }

    /// Bytes of records in memory.
    pub(crate) fn tail_bytes(&self) -> u64 {
        let tails = self.held.values().map(|held| match &held.parts {
            Parts::Stream(stream) => stream.tail_bytes(),
            Parts::Queue(_) | Parts::Kv(_) | Parts::Group(_) => 0,
        });
        tails.sum()
    }
}

/// How far [`Machine::evict_bodies`] has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyCursor {
    queue: ResourceId,
    below: u64,
}

impl Default for BodyCursor {
    fn default() -> Self {
        Self { queue: ResourceId(0), below: u64::MAX }
    }
}

/// See [`Machine::history_garbage`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HistoryStep {
    /// Nothing before this key is of use.
    Remove(Bytes),
    /// All before this key is kept.
    Skip(Bytes),
}

type Oldest = (std::cmp::Reverse<Lsn>, PartitionRef);

fn oldest_run(stream: &crate::stream::Stream, resource: ResourceId, partition: u32) -> Option<Oldest> {
    let lsn = stream.evictable(partition)?;
    Some((std::cmp::Reverse(lsn), PartitionRef { resource, partition }))
}

//! Compaction, as the shard sees it: asked what is to be done, told what came of it.
//!
//! ```text
//! next_compaction ──► (segment files do it) ──► compacted_fact, … ──► cleaned_fact      each is logged and applied
//! ```

use flowmesh_model::{Cleaned, CompactedSegment, CompactionJob, Fact, Millis, PartitionRef, ResourceId};

use crate::held::Parts;
use crate::machine::Machine;
use crate::stream::{Partition, Stream};

impl Machine {
    /// What is to be compacted next: of all partitions the one with most to do. Walks over the partitions of streams with
    /// compaction.
    pub fn next_compaction(&self, now: Millis) -> Option<CompactionJob> {
        let now = self.clamp(now);
        let jobs = self.compacted.iter().filter_map(|&id| self.held_stream(id)?.compaction(id, now));
        jobs.max_by_key(|(urgency, _)| *urgency).map(|(_, job)| job)
    }

    /// Whether it is known what exists and with which settings.
    pub fn has_catalog(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Whether a partition is still to be compacted: its stream is there, and its settings ask for it.
    pub fn is_compacted(&self, at: PartitionRef) -> bool {
        self.compacted.contains(&at.resource)
    }

    /// Partitions of streams with compaction, as far as the shard holds something of them.
    pub fn compacted_partitions(&self) -> Vec<PartitionRef> {
        let streams = self.compacted.iter().filter_map(|&id| Some((id, self.held_stream(id)?)));
        let partitions = |(resource, stream): (_, &Stream)| {
            stream.partitions().map(|(partition, _)| PartitionRef { resource, partition }).collect::<Vec<_>>()
        };
        streams.flat_map(partitions).collect()
    }

    /// The fact that segment files of a partition were compacted to one; `None` if the segments are others by now, so that
    /// it is not to be logged: the next compaction tells.
    pub fn compacted_fact(&self, at: PartitionRef, segment: &CompactedSegment) -> Option<Fact> {
        self.partition(at)?.compacted_fact(at, segment)
    }

    /// The fact that a compaction went through.
    pub fn cleaned_fact(&self, at: PartitionRef, cleaned: Cleaned) -> Option<Fact> {
        let Cleaned { upto, tombstone } = cleaned;
        (upto <= self.partition(at)?.next).then_some(Fact::PartitionCleaned { at, upto, tombstone })
    }

    /// Drops records from memory that segment files have only what is left of, at most so many appends. Returns whether
    /// that is all.
    pub fn evict_compacted(&mut self, at: PartitionRef, runs_max: usize) -> bool {
        let Some(Parts::Stream(stream)) = self.held.get_mut(&at.resource).map(|held| &mut held.parts) else {
            return true;
        };
        for _ in 0..runs_max {
            let Some(taken) = stream.evict_compacted(at.partition) else { return true };
            self.memory_bytes -= taken;
        }
        false
    }

    fn held_stream(&self, id: ResourceId) -> Option<&Stream> {
        match &self.held.get(&id)?.parts {
            Parts::Stream(stream) => Some(stream),
            _ => None,
        }
    }

    fn partition(&self, at: PartitionRef) -> Option<&Partition> {
        self.held_stream(at.resource)?.partition(at.partition)
    }
}

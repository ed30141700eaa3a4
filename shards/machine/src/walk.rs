//! What is held of each resource, for metrics: only of those that the catalog has, since others have no name.

use flowmesh_model::group::GroupStatus;
use flowmesh_model::reply::QueueStatus;
use flowmesh_model::{Millis, Offset, PartitionRef, ResourceId, Settings};

use crate::held::{Held, Parts};
use crate::kv::past::HistoryStats;
use crate::machine::Machine;
use crate::queue::QueueTally;
use crate::queue::decide::Asked;

/// What a partition holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionHeld {
    /// The first record there is.
    pub earliest: Offset,
    /// The offset the next record gets.
    pub next: Offset,
    /// Packed bytes of all segments.
    pub bytes: u64,
    /// With compaction: packed bytes of closed segments that were not compacted yet.
    pub dirty_bytes: u64,
}

/// What a queue holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueHeld {
    /// Its state.
    pub status: QueueStatus,
    /// Its schedules.
    pub schedules: u64,
    /// Those of them whose time has come and that find no room.
    pub schedules_held_back: u64,
}

/// What a shard holds of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreHeld {
    /// Keys, those included whose time is up and that are not removed yet.
    pub keys: u64,
    /// An estimate of what they take in memory.
    pub memory_bytes: u64,
    /// What it keeps of its past.
    pub history: HistoryStats,
    /// Keys of them whose values are only in the index.
    pub keys_cold: u64,
    /// What these values are together.
    pub cold_bytes: u64,
}

impl Machine {
    /// Whether the catalog has a resource of that number.
    pub fn is_known(&self, id: ResourceId) -> bool {
        self.snapshot.as_ref().is_some_and(|catalog| catalog.get(id).is_some())
    }

    /// Every partition that the shard holds records of. In no order.
    pub fn each_partition(&self, each: &mut dyn FnMut(PartitionRef, PartitionHeld)) {
        for (resource, held) in self.named() {
            if let Parts::Stream(stream) = &held.parts {
                for (partition, held) in stream.partitions() {
                    let dirty_bytes = if stream.is_compacted() { held.dirty_bytes() } else { 0 };
                    let (earliest, next, bytes) = (held.earliest, held.next, held.bytes);
                    let held = PartitionHeld { earliest, next, bytes, dirty_bytes };
                    each(PartitionRef { resource, partition }, held);
                }
            }
        }
    }

    /// Every queue that the shard holds, and how it is at `now`. In no order.
    pub fn each_queue(&self, now: Millis, each: &mut dyn FnMut(ResourceId, QueueHeld)) {
        let now = self.clamp(now);
        for (id, held) in self.named() {
            let settings = held.info.as_ref().map(|info| &info.settings);
            if let (Parts::Queue(queue), Some(Settings::Queue(settings))) = (&held.parts, settings) {
                let status = Asked { queue, id, settings, now }.status();
                let (schedules, held_back) = (queue.schedules.len(), queue.schedules.held_back());
                let schedules_held_back = held_back as u64;
                each(id, QueueHeld { status, schedules: schedules as u64, schedules_held_back });
            }
        }
    }

    /// Every store, and what the shard holds of it. In no order.
    pub fn each_store(&self, each: &mut dyn FnMut(ResourceId, StoreHeld)) {
        for (id, held) in self.named() {
            if let Parts::Kv(store) = &held.parts {
                let (keys, memory_bytes, cold) = (store.len() as u64, store.held_bytes(), store.cold());
                let (keys_cold, cold_bytes) = (cold.entries as u64, cold.bytes);
                let history = store.history_stats();
                each(id, StoreHeld { keys, memory_bytes, history, keys_cold, cold_bytes });
            }
        }
    }

    /// What queues have done since this was last called. In no order.
    pub fn take_tallies(&mut self, each: &mut dyn FnMut(ResourceId, &QueueTally)) {
        for (id, held) in &mut self.held {
            if let Parts::Queue(queue) = &mut held.parts
                && let Some(tally) = queue.take_tally()
            {
                each(*id, &tally);
            }
        }
    }

    /// Every group that the shard holds, and its status. In no order.
    pub fn each_group(&self, each: &mut dyn FnMut(ResourceId, GroupStatus)) {
        for (id, held) in self.named() {
            if let Parts::Group(group) = &held.parts {
                each(id, group.status());
            }
        }
    }

    /// Records that the replay session whose sandbox this group is has gone past.
    pub fn replayed(&self, group: ResourceId) -> Option<u64> {
        match &self.held.get(&group)?.parts {
            Parts::Group(group) => group.replay().map(|session| session.records_total),
            _ => None,
        }
    }

    /// Every group's committed offsets: the group, the stream's partition, the next record to read. In no order.
    pub fn each_committed(&self, each: &mut dyn FnMut(ResourceId, PartitionRef, Offset)) {
        for (id, held) in self.named() {
            if let Parts::Group(group) = &held.parts {
                group.committed_offsets().for_each(|(at, offset)| each(id, at, offset));
            }
        }
    }

    /// The offset that the next record of a partition gets, if the shard holds records of it.
    pub fn next_offset(&self, at: PartitionRef) -> Option<Offset> {
        match &self.held.get(&at.resource)?.parts {
            Parts::Stream(stream) => stream.partition(at.partition).map(|partition| partition.next),
            _ => None,
        }
    }

    fn named(&self) -> impl Iterator<Item = (ResourceId, &Held)> {
        self.held.iter().filter(|(_, held)| held.info.is_some()).map(|(id, held)| (*id, &**held))
    }
}

//! Looking at the state from outside: counts, invariants, a canonical text.

use std::fmt::Write;

use bytes::Bytes;
use flowmesh_model::{Offset, PartitionRef, ResourceId, Space};

use crate::decision::MachineStats;
use crate::held::{HELD_BYTES, Held, Parts};
use crate::machine::Machine;

impl Machine {
    /// Counts for metrics. Walks over the held resources.
    pub fn stats(&self) -> MachineStats {
        let mut stats = MachineStats {
            memory_bytes: self.memory_bytes(),
            workers: self.workers.counts(),
            ..MachineStats::default()
        };
        for held in self.held.values() {
            match &held.parts {
                Parts::Stream(stream) => {
                    stats.partitions += stream.partitions().count() as u64;
                    stats.tail_bytes += stream.tail_bytes();
                    if stream.is_compacted() {
                        let dirty = stream.partitions().map(|(_, partition)| partition.dirty_bytes());
                        stats.dirty_bytes += dirty.sum::<u64>();
                    }
                    stats.producers += stream.producers().map_or(0, |producers| producers.len() as u64);
                }
                Parts::Queue(queue) => {
                    let [ready, delayed, blocked, leased, dead, done] = queue.counts();
                    stats.queues += 1;
                    stats.jobs_ready += ready;
                    stats.jobs_delayed += delayed;
                    stats.jobs_blocked += blocked;
                    stats.jobs_leased += leased;
                    stats.jobs_dead += dead;
                    stats.jobs_done += done;
                    stats.schedules += queue.schedules.len() as u64;
                    stats.schedules_held_back += queue.schedules.held_back() as u64;
                }
                Parts::Group(group) => {
                    stats.groups += 1;
                    stats.members += group.members() as u64;
                    if let Some(session) = group.replay() {
                        stats.replay_records += session.records_total;
                        if let Some(count) = stats.replays.get_mut(session.state as usize) {
                            *count += 1;
                        }
                    }
                }
                Parts::Kv(store) => {
                    stats.stores += 1;
                    stats.keys += store.len() as u64;
                    let history = store.history_stats();
                    stats.history_records += history.records;
                    stats.history_bytes += history.bytes;
                    stats.keys_cold += store.cold().entries as u64;
                    stats.cold_bytes += store.cold().bytes;
                }
            }
        }
        stats
    }

    /// The first record of a partition and the offset of the next one to come, if the shard holds anything of it.
    pub fn stream_range(&self, at: PartitionRef) -> Option<(Offset, Offset)> {
        match &self.held.get(&at.resource)?.parts {
            Parts::Stream(stream) => {
                stream.partition(at.partition).map(|partition| (partition.earliest, partition.next))
            }
            _ => None,
        }
    }

    fn held_in_order(&self) -> Vec<(ResourceId, &Held)> {
        let mut held: Vec<_> = self.held.iter().map(|(id, held)| (*id, &**held)).collect();
        held.sort_unstable_by_key(|(id, _)| *id);
        held
    }

    /// What is known of a held resource is what the snapshot in use says, however it came to be.
    fn check_info(&self, id: ResourceId, held: &Held) {
        let Some(snapshot) = &self.snapshot else { return };
        assert_eq!(held.info.as_ref(), snapshot.get(id), "{} is known as it is not", held.home.path);
        let deleted = held.info.is_none() && id <= snapshot.last_id();
        assert_eq!(self.drops.contains(&id), deleted, "{} is dropped if it was deleted", held.home.path);
    }

    /// Checks every invariant. Slow: for tests and simulation.
    ///
    /// # Panics
    /// If one does not hold.
    pub fn check_all(&self) {
        assert!(self.entry_time <= self.clock);
        self.catalog.check();
        self.workers.check(&self.seals);
        let (mut memory_bytes, mut could_go) = (self.checkpoint.grave_bytes(), 0);
        for (id, held) in self.held_in_order() {
            assert_eq!(held.home.id, id);
            self.check_info(id, held);
            memory_bytes += HELD_BYTES + held.parts.memory_bytes();
            match &held.parts {
                Parts::Stream(stream) => stream.check(&self.seals),
                Parts::Queue(queue) => queue.check(&self.seals),
                Parts::Kv(store) => {
                    store.check(&self.seals);
                    could_go += store.could_go();
                }
                Parts::Group(group) => group.check(&self.seals),
            }
            match held.armed {
                Some(armed) => assert!(self.timers.contains(&(armed, id))),
                None => assert!(held.parts.next_due().is_none() || self.drops.contains(&id)),
            }
            if let (Some(due), Some(armed)) = (held.parts.next_due(), held.armed) {
                assert!(armed <= due, "a timer is late");
            }
        }
        assert_eq!(self.timers.len(), self.held.values().filter(|held| held.armed.is_some()).count());
        assert!(self.drops.iter().all(|id| self.held.contains_key(id)));
        assert_eq!(self.could_go, could_go);
        assert_eq!(self.memory_bytes, memory_bytes, "memory is counted as it changes");
    }

    /// The replayed state as text, the same for the same state whatever way led there.
    pub fn dump(&self) -> String {
        self.dump_with(&|_, _| None)
    }

    /// As [`Machine::dump`], with what is not in memory as the index has it.
    pub fn dump_with(&self, index: &dyn Fn(Space, &Bytes) -> Option<Bytes>) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "time {}", self.entry_time);
        self.catalog.dump(&mut out);
        self.workers.dump(&mut out);
        for (id, held) in self.held_in_order() {
            let _ = writeln!(out, "{id} {}", held.home.path);
            match &held.parts {
                Parts::Stream(stream) => stream.dump(&mut out),
                Parts::Queue(queue) => queue.dump(&mut out),
                Parts::Kv(store) => store.dump(&held.home, index, &mut out),
                Parts::Group(group) => group.dump(&mut out),
            }
        }
        out
    }
}

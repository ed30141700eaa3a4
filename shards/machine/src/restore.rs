//! Start: the state as the index has it.

use bytes::Bytes;
use flowmesh_model::codec::Malformed;
use flowmesh_model::{Millis, Offset, PartitionRef, ResourceId, Space};

use crate::held::{HELD_BYTES, Held, Parts};
use crate::keys::{self, MetaKey};
use crate::machine::{Machine, arm};
use crate::stream::Stream;

impl Machine {
    /// At start, before any fact: takes an entry of the index. Spaces come in the order of [`Space::STATE`], entries of a
    /// space in the order of their keys.
    ///
    /// # Errors
    /// [`Malformed`] if a newer version wrote it, or it does not fit what came before.
    pub fn restore(&mut self, space: Space, key: &[u8], value: Bytes) -> Result<(), Malformed> {
        match space {
            Space::Meta => self.restore_meta(MetaKey::read(key)?, value),
            Space::Jobs => {
                let (_, id, key) = keys::split(key)?;
                let now = self.entry_time;
                match self.held.get_mut(&id).map(|held| &mut held.parts) {
                    Some(Parts::Queue(queue)) => queue.restore_item(key, value, now),
                    _ => Err(Malformed("a job of no queue")),
                }
            }
            Space::Keys => {
                let (slot, id, key) = keys::split(key)?;
                // What came before was not counted as it came.
                if self.memory_bytes == 0 {
                    self.memory_bytes = self.held.values().map(|held| held.parts.memory_bytes()).sum();
                }
                let cold = self.memory_bytes > self.restore_bytes_max;
                match self.held.get_mut(&id).map(|held| &mut held.parts) {
                    Some(Parts::Kv(store)) => {
                        let before = store.memory_bytes();
                        store.restore_entry(slot, key, value, cold)?;
                        self.memory_bytes = self.memory_bytes + store.memory_bytes() - before;
                        Ok(())
                    }
                    _ => Err(Malformed("a key of no store")),
                }
            }
            Space::Pages => {
                let (slot, id, rest) = keys::split(key)?;
                match self.held.get_mut(&id).map(|held| &mut held.parts) {
                    Some(Parts::Kv(store)) => store.restore_page(slot, rest, value),
                    _ => Err(Malformed("a page of no store")),
                }
            }
            Space::Groups => {
                let (_, id, key) = keys::split(key)?;
                match self.held.get_mut(&id).map(|held| &mut held.parts) {
                    Some(Parts::Group(group)) => group.restore_item(key, value),
                    _ => Err(Malformed("a part of no group")),
                }
            }
            // Comes back piece by piece, when it is wanted.
            Space::Bodies | Space::History => Ok(()),
        }
    }

    fn restore_meta(&mut self, key: MetaKey<'_>, value: Bytes) -> Result<(), Malformed> {
        match key {
            MetaKey::Resource(id) => {
                let held = Held::restore(id, value, self.sip)?;
                match self.held.insert(id, Box::new(held)) {
                    None => Ok(()),
                    Some(_) => Err(Malformed("the same resource twice")),
                }
            }
            // Its slot may come before that of the stream itself.
            MetaKey::Partition(id, partition) => {
                let at = PartitionRef { resource: id, partition };
                self.checkpoint.restored_partitions.push((at, value));
                Ok(())
            }
            MetaKey::Clock => {
                let mut reader = keys::open(value)?;
                self.restored_time(Millis(reader.varint()?));
                keys::close(&reader)
            }
            MetaKey::Catalog => self.catalog.restore_counters(value),
            MetaKey::CatalogResource(id) => self.catalog.restore_resource(id, value),
            MetaKey::Producer(at, producer) => {
                self.checkpoint.restored_producers.push((at, producer, value));
                Ok(())
            }
            // Those of a partition come in order.
            MetaKey::Segments(at) => {
                self.checkpoint.restored_segments.push((at, value));
                Ok(())
            }
            MetaKey::History(id) => match self.held.get_mut(&id).map(|held| &mut held.parts) {
                Some(Parts::Kv(store)) => store.restore_history(value),
                _ => Err(Malformed("the history of no store")),
            },
            MetaKey::Worker(path) => self.workers.restore(path, value),
            MetaKey::Received(at, source) => {
                self.checkpoint.restored_received.push((at, source, value));
                Ok(())
            }
            // In the slot of the stream itself, behind it.
            MetaKey::ProducerName(id, name) => self.stream(id)?.producers_mut().restore_name(name, value),
        }
    }

    fn stream(&mut self, id: ResourceId) -> Result<&mut Stream, Malformed> {
        match self.held.get_mut(&id).map(|held| &mut held.parts) {
            Some(Parts::Stream(stream)) => Ok(stream),
            _ => Err(Malformed("a part of no stream")),
        }
    }

    /// All entries of the index have been restored: builds what is derived from them.
    ///
    /// # Errors
    /// [`Malformed`] if they do not fit together.
    pub fn finish_restore(&mut self) -> Result<(), Malformed> {
        for (at, value) in std::mem::take(&mut self.checkpoint.restored_partitions) {
            self.stream(at.resource)?.restore_partition(at.partition, value)?;
        }
        for (at, value) in std::mem::take(&mut self.checkpoint.restored_segments) {
            self.stream(at.resource)?.restore_segments(at.partition, value)?;
        }
        for (at, producer, value) in std::mem::take(&mut self.checkpoint.restored_producers) {
            self.stream(at.resource)?.producers_mut().restore(at.partition, producer, value)?;
        }
        for (at, source, value) in std::mem::take(&mut self.checkpoint.restored_received) {
            let received = match self.held.get_mut(&at.resource).map(|held| &mut held.parts) {
                Some(Parts::Stream(stream)) => stream.received_mut(),
                Some(Parts::Queue(queue)) => queue.received.get_or_insert_default(),
                _ => return Err(Malformed("what nothing received")),
            };
            received.restore(at.partition, source, value)?;
            self.sources.entry(source).or_default().insert(at.resource);
        }
        self.catalog.finish_restore()?;
        self.memory_bytes = 0;
        for (id, held) in &mut self.held {
            match &mut held.parts {
                Parts::Stream(stream) => stream.finish_restore(*id, &mut self.checkpoint.trimmed_streams)?,
                Parts::Group(group) => {
                    group.finish_restore()?;
                    self.groups.insert(*id);
                }
                Parts::Queue(queue) => {
                    queue.finish_restore();
                    self.outgoing.insert(*id);
                }
                Parts::Kv(store) => {
                    store.finish_restore();
                    self.could_go += store.could_go();
                }
            }
            self.memory_bytes += HELD_BYTES + held.parts.memory_bytes();
            let due = held.parts.next_due();
            arm(&mut self.timers, held, due);
        }
        Ok(())
    }

    /// After [`Machine::finish_restore`]: the offset behind the last record of each partition that segment files
    /// must have. What they have beyond is cut, other partitions' files are deleted.
    pub fn stream_ends(&self) -> Vec<(PartitionRef, Offset)> {
        let mut ends: Vec<_> = self
            .held
            .iter()
            .filter_map(|(id, held)| match &held.parts {
                Parts::Stream(stream) => Some((*id, stream)),
                Parts::Queue(_) | Parts::Kv(_) | Parts::Group(_) => None,
            })
            .flat_map(|(resource, stream)| {
                stream
                    .partitions()
                    .map(move |(partition, held)| (PartitionRef { resource, partition }, held.flushed()))
            })
            .collect();
        ends.sort_unstable();
        ends
    }
}

//! Start: the state as the index has it.

use bytes::Bytes;
use flowmesh_model::codec::Malformed;
use flowmesh_model::{JobId, Millis, Offset, PartitionRef, Space};

use crate::held::{HELD_BYTES, Held, Parts};
use crate::keys::{self, MetaKey};
use crate::machine::{Machine, arm};

impl Machine {
    /// At start, before any fact: takes an entry of the index. Spaces come in the order of [`Space::ALL`], entries of a
    /// space in the order of their keys.
    ///
    /// # Errors
    /// [`Malformed`] if a newer version wrote it, or it does not fit what came before.
    pub fn restore(&mut self, space: Space, key: &[u8], value: Bytes) -> Result<(), Malformed> {
        match space {
            Space::Meta => self.restore_meta(MetaKey::read(key)?, value),
            Space::Jobs => {
                let (_, id, job) = keys::split(key)?;
                let job = job.try_into().map_err(|_| Malformed("a job's number is eight bytes"))?;
                let now = self.entry_time;
                match self.held.get_mut(&id).map(|held| &mut held.parts) {
                    Some(Parts::Queue(queue)) => {
                        queue.restore_job(JobId(u64::from_be_bytes(job)), value, now)
                    }
                    _ => Err(Malformed("a job of no queue")),
                }
            }
            Space::Keys => {
                let (_, id, key) = keys::split(key)?;
                match self.held.get_mut(&id).map(|held| &mut held.parts) {
                    Some(Parts::Kv(store)) => store.restore_entry(key, value),
                    _ => Err(Malformed("a key of no store")),
                }
            }
        }
    }

    fn restore_meta(&mut self, key: MetaKey, value: Bytes) -> Result<(), Malformed> {
        match key {
            MetaKey::Resource(id) => {
                let held = Held::restore(id, value, self.sip)?;
                match self.held.insert(id, held) {
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
        }
    }

    /// All entries of the index have been restored: builds what is derived from them.
    ///
    /// # Errors
    /// [`Malformed`] if they do not fit together.
    pub fn finish_restore(&mut self) -> Result<(), Malformed> {
        for (at, value) in std::mem::take(&mut self.checkpoint.restored_partitions) {
            match self.held.get_mut(&at.resource).map(|held| &mut held.parts) {
                Some(Parts::Stream(stream)) => stream.restore_partition(at.partition, value)?,
                _ => return Err(Malformed("a partition of no stream")),
            }
        }
        self.catalog.finish_restore()?;
        self.memory_bytes = 0;
        for held in self.held.values_mut() {
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
                Parts::Queue(_) | Parts::Kv(_) => None,
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

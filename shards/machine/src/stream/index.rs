//! A stream's part of checkpoints. Its records go to segment files; the index gets each partition's counters, as they
//! are at the seal.

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, put_varint};
use flowmesh_model::{Lsn, Millis, Offset, PartitionRef, Space};

use super::{Partition, Stream};
use crate::changes::{Mark, Seals, Touch, image};
use crate::decision::FlushRange;
use crate::keys::{self, Home};

/// A partition in the index.
///
/// | field | size |
/// |---|---|
/// | format | 1 |
/// | earliest, next, bytes, last LSN, last time | varint each |
fn encode(partition: &Partition) -> Bytes {
    let mut out = BytesMut::with_capacity(51);
    out.put_u8(keys::FORMAT);
    for number in
        [partition.earliest.0, partition.next.0, partition.bytes, partition.last_lsn.0, partition.last_time.0]
    {
        put_varint(&mut out, number);
    }
    out.freeze()
}

impl Stream {
    /// Captures what the index gets of partitions that changed, and appends which of their records segment files have not.
    pub fn seal(&mut self, home: &Home, seals: &mut Seals, ranges: &mut Vec<FlushRange>) {
        self.sealed = std::mem::take(&mut self.dirty);
        self.sealed.sort_unstable();
        for &number in &self.sealed {
            let Some(Some(partition)) = self.partitions.get_mut(number as usize) else { continue };
            Seals::written(&mut partition.mark);
            partition.sealed_next = partition.next;
            seals.capture(image(Space::Meta, home.partition_key(number), encode(partition)));
            if partition.flushed < partition.next {
                let at = PartitionRef { resource: home.id, partition: number };
                ranges.push(FlushRange { at, from: partition.flushed, upto: partition.next });
            }
        }
    }

    /// Index and segment files have the sealed state.
    pub fn sealed_written(&mut self) {
        for number in std::mem::take(&mut self.sealed) {
            if let Some(Some(partition)) = self.partitions.get_mut(number as usize) {
                partition.flushed = partition.flushed.max(partition.sealed_next);
            }
        }
    }

    /// The sealed state did not get into the index.
    pub fn unseal(&mut self, seals: &Seals) {
        for number in std::mem::take(&mut self.sealed) {
            if let Some(Some(partition)) = self.partitions.get_mut(number as usize)
                && seals.touch(&mut partition.mark) != Touch::Known
            {
                self.dirty.push(number);
            }
        }
    }

    /// Takes a partition out of the index. Segment files have its records.
    pub fn restore_partition(&mut self, number: u32, value: Bytes) -> Result<(), Malformed> {
        let mut reader = keys::open(value)?;
        let partition = self.make(number);
        partition.earliest = Offset(reader.varint()?);
        partition.next = Offset(reader.varint()?);
        partition.bytes = reader.varint()?;
        partition.last_lsn = Lsn(reader.varint()?);
        partition.last_time = Millis(reader.varint()?);
        partition.flushed = partition.next;
        partition.mark = Mark::IN_INDEX;
        keys::close(&reader)
    }

    /// Keys the index has of a dropped stream.
    pub fn bury(&mut self, home: &Home, gone: &mut Vec<(Space, Bytes)>) {
        for (number, partition) in self.partitions() {
            if partition.mark.in_index() {
                gone.push((Space::Meta, home.partition_key(number)));
            }
        }
    }
}

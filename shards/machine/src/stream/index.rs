//! A stream's part of checkpoints. Its records go to segment files; the index gets each partition's counters, as they
//! are at the seal.

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, Reader, put_varint};
use flowmesh_model::{IndexWrite, Lsn, Millis, Offset, PartitionRef, ResourceId, Space};

use super::compaction::{CLEAN_BYTES, Clean};
use super::segments::SEGMENT_BYTES;
use super::{Partition, Stream};
use crate::changes::{Mark, Seals, Touch, image};
use crate::decision::FlushRange;
use crate::items::Indexed;
use crate::keys::{self, Home};

/// A partition in the index.
///
/// | field | size |
/// |---|---|
/// | format | 2; 3 if it was ever compacted |
/// | earliest, next, bytes, last LSN, last time | varint each |
/// | segments | see `Segments::encode_counters`; format 1 has none |
/// | compaction | see `Clean::encode`; only format 3 |
fn encode(partition: &Partition) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    out.put_u8(if partition.clean.is_some() { COMPACTED_FORMAT } else { PARTITION_FORMAT });
    for number in
        [partition.earliest.0, partition.next.0, partition.bytes, partition.last_lsn.0, partition.last_time.0]
    {
        put_varint(&mut out, number);
    }
    partition.segments.encode_counters(&mut out);
    if let Some(clean) = &partition.clean {
        clean.encode(&mut out);
    }
    out.freeze()
}

/// The format byte of a partition.
const PARTITION_FORMAT: u8 = 2;
const COMPACTED_FORMAT: u8 = 3;

impl Partition {
    /// Appends which records segment files have not, each segment by itself.
    fn flush_ranges(&self, at: PartitionRef, ranges: &mut Vec<FlushRange>) {
        for (segment, end) in self.segments.ranges(self.next) {
            let from = segment.base.max(self.flushed);
            if from < end {
                ranges.push(FlushRange { at, from, upto: end, new_file: from == segment.base });
            }
        }
    }
}

impl Stream {
    /// Captures what the index gets of partitions that changed, and appends which of their records segment files have not.
    pub fn seal(&mut self, home: &Home, seals: &mut Seals, ranges: &mut Vec<FlushRange>) {
        self.seal_producers();
        self.sealed = std::mem::take(&mut self.dirty);
        self.sealed.sort_unstable();
        for &number in &self.sealed {
            let Some(Some(partition)) = self.partitions.get_mut(number as usize) else { continue };
            Seals::written(&mut partition.mark);
            partition.sealed_next = partition.next;
            seals.capture(image(Space::Meta, home.partition_key(number), encode(partition)));
            partition.segments.seal(|chunk, value| {
                seals.capture(IndexWrite {
                    space: Space::Meta,
                    key: home.segments_key(number, chunk),
                    value,
                });
            });
            partition.flush_ranges(PartitionRef { resource: home.id, partition: number }, ranges);
        }
    }

    /// The part of the seal that is left to do for a dropped stream.
    pub fn seal_producers(&mut self) {
        for items in self.indexed() {
            items.seal();
        }
    }

    /// Writes at most `items_max` sealed changes of producers. Returns how many it looked at: fewer means that is all.
    pub fn collect(
        &mut self,
        home: &Home,
        seals: &Seals,
        items_max: usize,
        out: &mut Vec<IndexWrite>,
    ) -> usize {
        self.indexed().fold(0, |looked, items| looked + items.collect(home, seals, items_max - looked, out))
    }

    /// What checkpoints take of it besides partitions.
    fn indexed(&mut self) -> impl Iterator<Item = &mut dyn Indexed<Home>> {
        let producers = self.producers.as_mut().into_iter().flat_map(|producers| producers.indexed());
        producers.chain(self.received.as_mut().map(|received| received.indexed()))
    }

    /// Index and segment files have the sealed state. Appends to `trimmed` from where on partitions have files now, if
    /// that has moved.
    pub fn sealed_written(&mut self, id: ResourceId, trimmed: &mut Vec<(PartitionRef, Offset)>) {
        for items in self.indexed() {
            items.sealed_written();
        }
        for number in std::mem::take(&mut self.sealed) {
            if let Some(Some(partition)) = self.partitions.get_mut(number as usize) {
                partition.flushed = partition.flushed.max(partition.sealed_next);
                if let Some(base) = partition.segments.sealed_written() {
                    trimmed.push((PartitionRef { resource: id, partition: number }, base));
                }
                let taken = partition.drop_trimmed(true);
                self.memory_bytes -= taken;
                self.tail_bytes -= taken;
            }
        }
    }

    /// The sealed state did not get into the index.
    pub fn unseal(&mut self, seals: &Seals) {
        for items in self.indexed() {
            items.unseal(seals);
        }
        for number in std::mem::take(&mut self.sealed) {
            let Some(Some(partition)) = self.partitions.get_mut(number as usize) else { continue };
            partition.sealed_next = partition.flushed;
            let taken = partition.drop_trimmed(true);
            self.memory_bytes -= taken;
            self.tail_bytes -= taken;
            if seals.touch(&mut partition.mark) != Touch::Known {
                self.dirty.push(number);
            }
        }
    }

    /// Takes a partition out of the index. Segment files have its records.
    pub fn restore_partition(&mut self, number: u32, value: Bytes) -> Result<(), Malformed> {
        let mut reader = Reader::new(value);
        let format = reader.byte()?;
        let partition = self.make(number);
        partition.earliest = Offset(reader.varint()?);
        partition.next = Offset(reader.varint()?);
        partition.bytes = reader.varint()?;
        partition.last_lsn = Lsn(reader.varint()?);
        partition.last_time = Millis(reader.varint()?);
        match format {
            1 => partition.segments.restore_one(partition.bytes, partition.last_time),
            PARTITION_FORMAT | COMPACTED_FORMAT => {
                partition.segments.restore_counters(&mut reader, partition.last_time)?;
            }
            _ => return Err(Malformed("a partition of an unknown format")),
        }
        partition.flushed = partition.next;
        partition.sealed_next = partition.next;
        partition.mark = Mark::IN_INDEX;
        if format == COMPACTED_FORMAT {
            partition.clean = Some(Box::new(Clean::restore(&mut reader)?));
            self.memory_bytes += CLEAN_BYTES;
        }
        keys::close(&reader)
    }

    /// Takes some segments of a partition out of the index; the partition itself came before.
    pub fn restore_segments(&mut self, number: u32, value: Bytes) -> Result<(), Malformed> {
        let partition = self.partition_mut(number).ok_or(Malformed("segments of no partition"))?;
        partition.segments.restore_chunk(value)
    }

    /// All partitions and segments were taken out of the index. Appends to `trimmed` where partitions may have files with
    /// records that are gone.
    pub fn finish_restore(
        &mut self,
        id: ResourceId,
        trimmed: &mut Vec<(PartitionRef, Offset)>,
    ) -> Result<(), Malformed> {
        let mut closed = 0;
        for (partition, held) in self.partitions_mut() {
            if let Some(base) = held.segments.finish_restore()? {
                trimmed.push((PartitionRef { resource: id, partition }, base));
            }
            closed += held.segments.closed_count() as u64;
        }
        self.memory_bytes += closed * SEGMENT_BYTES;
        Ok(())
    }

    /// Takes at most `items_max` items of a dropped stream apart and appends the keys the index has of it to `gone`.
    /// Returns how many it took: fewer means that is all.
    pub fn bury(&mut self, home: &Home, items_max: usize, gone: &mut Vec<(Space, Bytes)>) -> usize {
        let taken = self.indexed().fold(0, |taken, items| taken + items.bury(home, items_max - taken, gone));
        if taken < items_max {
            for (number, partition) in self.partitions() {
                if partition.mark.in_index() {
                    gone.push((Space::Meta, home.partition_key(number)));
                    let chunks = partition.segments.chunks();
                    gone.extend(chunks.map(|chunk| (Space::Meta, home.segments_key(number, chunk))));
                }
            }
        }
        taken
    }
}

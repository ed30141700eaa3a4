//! Producers and names in the index.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, put_varint};
use flowmesh_model::limits::PRODUCER_BATCHES_MAX;
use flowmesh_model::{Lsn, Millis, Offset, ProducerId, Space};

use super::{NAME_BYTES, Named, Place, Producer, Producers, Sent};
use crate::items::{Indexed, Item, Key};
use crate::keys::{self, Home};

impl Key for Place {
    type Home = Home;

    const SPACE: Space = Space::Meta;

    fn in_index(&self, home: &Home) -> Bytes {
        home.producer_key(self.0, self.1)
    }
}

impl Key for Bytes {
    type Home = Home;

    const SPACE: Space = Space::Meta;

    fn in_index(&self, home: &Home) -> Bytes {
        home.producer_name_key(self)
    }
}

/// A producer of a partition in the index.
///
/// | field | size | meaning |
/// |---|---|---|
/// | format | 1 | 1 |
/// | epoch, sequence, last LSN, last time | varint each | of the oldest batch; the next one if there is none |
/// | batches | varint | how many are remembered |
/// | count, base, time | varint each | of each batch, oldest first; they follow each other without a gap |
impl Item for Producer {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(48 + self.batches.len() * 16);
        out.put_u8(keys::FORMAT);
        let first = self.batches.front().map_or(self.next, |sent| sent.sequence);
        let head =
            [u64::from(self.epoch), first, self.last_lsn.0, self.last_time.0, self.batches.len() as u64];
        for number in head {
            put_varint(&mut out, number);
        }
        for sent in &self.batches {
            put_varint(&mut out, u64::from(sent.count));
            put_varint(&mut out, sent.base.0);
            put_varint(&mut out, sent.appended_at.0);
        }
        out.freeze()
    }
}

fn decode_producer(value: Bytes) -> Result<Producer, Malformed> {
    let mut reader = keys::open(value)?;
    let (epoch, mut next) = (reader.varint_u32()?, reader.varint()?);
    let (last_lsn, last_time) = (Lsn(reader.varint()?), Millis(reader.varint()?));
    let count = reader.varint()?;
    if count > PRODUCER_BATCHES_MAX as u64 {
        return Err(Malformed("a producer with too many batches"));
    }
    let mut batches = VecDeque::with_capacity(count as usize);
    for _ in 0..count {
        let (sequence, count) = (next, reader.varint_u32()?);
        let (base, appended_at) = (Offset(reader.varint()?), Millis(reader.varint()?));
        next = next.checked_add(u64::from(count)).ok_or(Malformed("a sequence beyond its end"))?;
        batches.push_back(Sent { sequence, count, base, appended_at });
    }
    keys::close(&reader)?;
    Ok(Producer { epoch, next, batches, last_lsn, last_time })
}

/// A producer's name in the index.
///
/// | field | size |
/// |---|---|
/// | format | 1 |
/// | producer, epoch, last LSN | varint each |
impl Item for Named {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(26);
        out.put_u8(keys::FORMAT);
        for number in [self.id.0, u64::from(self.epoch), self.last_lsn.0] {
            put_varint(&mut out, number);
        }
        out.freeze()
    }
}

impl Producers {
    /// What checkpoints take of it.
    pub fn indexed(&mut self) -> [&mut dyn Indexed<Home>; 2] {
        [&mut self.known, &mut self.names]
    }

    /// Takes a producer out of the index.
    pub fn restore(&mut self, partition: u32, id: ProducerId, value: Bytes) -> Result<(), Malformed> {
        let (place, producer) = ((partition, id), decode_producer(value)?);
        self.by_use.insert((producer.last_lsn, place));
        self.memory_bytes += producer.memory_bytes();
        *self.counts.entry(partition).or_default() += 1;
        if self.known.restore(place, producer) { Ok(()) } else { Err(Malformed("the same producer twice")) }
    }

    /// Takes a name out of the index.
    pub fn restore_name(&mut self, name: &[u8], value: Bytes) -> Result<(), Malformed> {
        let mut reader = keys::open(value)?;
        let named = Named {
            id: ProducerId(reader.varint()?),
            epoch: reader.varint_u32()?,
            last_lsn: Lsn(reader.varint()?),
        };
        keys::close(&reader)?;
        let name = Bytes::copy_from_slice(name);
        self.memory_bytes += NAME_BYTES + name.len() as u64;
        self.names_by_use.insert((named.last_lsn, name.clone()));
        if self.names.restore(name, named) { Ok(()) } else { Err(Malformed("the same name twice")) }
    }
}

//! Idempotent producers: what a partition remembers of them, so that a batch that comes again is appended once.
//!
//! A producer counts its records, by partition and from 0 in each epoch. A batch names its first record's number:
//!
//! | epoch | sequence | then |
//! |---|---|---|
//! | older than the partition has seen | any | `PRODUCER_FENCED` |
//! | newer, or the producer is not known | 0 | appended |
//! | newer | above 0 | `SEQUENCE_GAP` |
//! | the producer is not known | above 0 | `UNKNOWN_PRODUCER` |
//! | the same | the next one | appended |
//! | the same | beyond it | `SEQUENCE_GAP` |
//! | the same | one of the last batches, with as many records | answered as the first time; nothing is written |
//! | the same | any other before it | `DUPLICATE_SEQUENCE` |
//!
//! Memory is bounded: [`PRODUCER_BATCHES_MAX`] batches a producer, [`PARTITION_PRODUCERS_MAX`] producers a partition, of
//! which a new one pushes out the one that appended least recently. Those idle for longer than the stream's
//! `producer_retention_ms` count as unknown, and ticks forget them.
//!
//! **Names** are kept on partition 0's shard: each initialisation of a name gives its producer the next epoch.
//! [`items`] brings both into checkpoints, each item by itself; [`index`] has their form there.

pub(crate) mod decide;
mod index;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use flowmesh_model::limits::{PARTITION_PRODUCERS_MAX, PRODUCER_BATCHES_MAX, PRODUCER_NAMES_MAX};
use flowmesh_model::{Fact, Lsn, Millis, Offset, PartitionRef, ProducerId, ProducerStamp, ResourceId};

use crate::changes::Seals;
use crate::decision::EntryContext;
use crate::held::Apply;
use crate::items::{Items, item_bytes};
use crate::keys::Home;

/// A batch that was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    sequence: u64,
    count: u32,
    base: Offset,
    appended_at: Millis,
}

/// What a partition remembers of a producer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Producer {
    epoch: u32,
    /// The number of its next record.
    next: u64,
    /// The last batches, oldest first, without a gap up to `next`.
    batches: VecDeque<Sent>,
    /// The entry that changed it last, and its time.
    last_lsn: Lsn,
    last_time: Millis,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Named {
    id: ProducerId,
    epoch: u32,
    last_lsn: Lsn,
}

/// A producer of a partition.
type Place = (u32, ProducerId);

/// What a producer takes in memory besides its batches: itself, and its places in two orders.
const PRODUCER_BYTES: u64 = item_bytes::<Place, Producer>() + 48;

/// The same for a name, besides its letters.
const NAME_BYTES: u64 = item_bytes::<Bytes, Named>() + 96;

impl Producer {
    fn new(at: EntryContext) -> Self {
        Self { epoch: 0, next: 0, batches: VecDeque::new(), last_lsn: at.lsn, last_time: at.time }
    }

    fn memory_bytes(&self) -> u64 {
        PRODUCER_BYTES + (self.batches.len() * size_of::<Sent>()) as u64
    }

    fn is_idle(&self, now: Millis, retention_ms: u64) -> bool {
        now.since(self.last_time) >= retention_ms
    }

    fn begin(&mut self, epoch: u32) {
        (self.epoch, self.next) = (epoch, 0);
        self.batches.clear();
    }

    fn used(&mut self, at: EntryContext) {
        (self.last_lsn, self.last_time) = (at.lsn, at.time);
    }

    fn sent(&mut self, at: EntryContext, sequence: u64, base: Offset, count: u32) {
        if self.batches.len() == PRODUCER_BATCHES_MAX {
            self.batches.pop_front();
        }
        self.batches.push_back(Sent { sequence, count, base, appended_at: at.time });
        self.next = sequence + u64::from(count);
        self.used(at);
    }
}

/// All producers of a stream, as far as this shard holds its partitions.
#[derive(Debug)]
pub(crate) struct Producers {
    known: Items<Place, Producer>,
    /// Least recently used first.
    by_use: BTreeSet<(Lsn, Place)>,
    /// How many each partition knows.
    counts: BTreeMap<u32, usize>,
    names: Items<Bytes, Named>,
    /// Least recently initialised first.
    names_by_use: BTreeSet<(Lsn, Bytes)>,
    memory_bytes: u64,
}

impl Default for Producers {
    fn default() -> Self {
        Self {
            known: Items::default(),
            by_use: BTreeSet::new(),
            counts: BTreeMap::new(),
            names: Items::default(),
            names_by_use: BTreeSet::new(),
            memory_bytes: size_of::<Self>() as u64,
        }
    }
}

impl Producers {
    /// An estimate of what they take in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// How many are known, each partition's counted.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// `RecordsProduced`.
    pub fn produced(
        &mut self,
        cx: &mut Apply<'_>,
        partition: u32,
        stamp: ProducerStamp,
        base: Offset,
        count: u32,
    ) {
        let at = cx.at;
        self.change(cx, (partition, stamp.id), |producer| {
            if stamp.sequence == 0 {
                // Also of an epoch that it has, or an older one, if it had been idle for so long that it was decided on
                // as an unknown one.
                producer.begin(stamp.epoch);
            }
            assert!(stamp.epoch == producer.epoch, "a producer begins an epoch with sequence 0");
            assert!(stamp.sequence == producer.next, "a producer's records leave no gap");
            producer.sent(at, stamp.sequence, base, count);
        });
    }

    /// `ProducerInitialised`.
    pub fn initialised(
        &mut self,
        cx: &mut Apply<'_>,
        partition: u32,
        id: ProducerId,
        epoch: u32,
        name: &Bytes,
    ) {
        // Epoch 0 fences nobody.
        if epoch > 0 {
            let at = cx.at;
            self.change(cx, (partition, id), |producer| {
                if epoch > producer.epoch {
                    producer.begin(epoch);
                }
                producer.used(at);
            });
        }
        if !name.is_empty() {
            self.named(cx, name, id, epoch);
        }
    }

    /// `ProducerForgotten`.
    pub fn forgotten(&mut self, cx: &mut Apply<'_>, partition: u32, id: ProducerId) {
        let known = self.forget(cx.home, cx.seals, (partition, id));
        assert!(known, "a producer was forgotten that was not known");
    }

    fn named(&mut self, cx: &mut Apply<'_>, name: &Bytes, id: ProducerId, epoch: u32) {
        let named = Named { id, epoch, last_lsn: cx.at.lsn };
        if let Some(before) = self.names.get(name) {
            self.names_by_use.remove(&(before.last_lsn, name.clone()));
        } else {
            if self.names.len() >= PRODUCER_NAMES_MAX
                && let Some((_, oldest)) = self.names_by_use.pop_first()
            {
                self.names.remove(cx.home, cx.seals, &oldest);
                self.memory_bytes -= NAME_BYTES + oldest.len() as u64;
            }
            self.memory_bytes += NAME_BYTES + name.len() as u64;
        }
        // Shared, it would keep the entry's buffer alive.
        let name = Bytes::copy_from_slice(name);
        self.names.change(cx.home, cx.seals, &name, || named, |old| *old = named);
        self.names_by_use.insert((cx.at.lsn, name));
    }

    /// Changes a producer, or a new one for which room is made, and its place in the order of use.
    fn change(&mut self, cx: &mut Apply<'_>, place: Place, change: impl FnOnce(&mut Producer)) {
        if let Some(before) = self.known.get(&place) {
            self.by_use.remove(&(before.last_lsn, place));
            self.memory_bytes -= before.memory_bytes();
        } else {
            self.make_room(cx, place.0);
            *self.counts.entry(place.0).or_default() += 1;
        }
        let at = cx.at;
        let bytes = self.known.change(
            cx.home,
            cx.seals,
            &place,
            || Producer::new(at),
            |producer| {
                change(producer);
                producer.memory_bytes()
            },
        );
        self.memory_bytes += bytes;
        self.by_use.insert((at.lsn, place));
    }

    /// A partition that knows as many as it may forgets the one that was used least recently.
    fn make_room(&mut self, cx: &mut Apply<'_>, partition: u32) {
        if self.counts.get(&partition).is_none_or(|count| *count < PARTITION_PRODUCERS_MAX) {
            return;
        }
        let all = self.known.range((partition, ProducerId(0))..=(partition, ProducerId(u64::MAX)));
        let oldest = all.map(|(place, producer)| (producer.last_lsn, *place)).min();
        if let Some((_, place)) = oldest {
            self.forget(cx.home, cx.seals, place);
        }
    }

    fn forget(&mut self, home: &Home, seals: &mut Seals, place: Place) -> bool {
        let Some(producer) = self.known.remove(home, seals, &place) else { return false };
        self.by_use.remove(&(producer.last_lsn, place));
        self.memory_bytes -= producer.memory_bytes();
        if let Some(count) = self.counts.get_mut(&place.0) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&place.0);
            }
        }
        true
    }

    /// When the first of them has been idle for too long.
    pub fn next_due(&self, retention_ms: u64) -> Option<Millis> {
        let (_, place) = self.by_use.first()?;
        Some(self.known.get(place)?.last_time.plus(retention_ms))
    }

    /// Says which have been idle for too long, at most `facts_max`.
    pub fn expire(
        &self,
        stream: ResourceId,
        now: Millis,
        retention_ms: u64,
        facts_max: usize,
        facts: &mut Vec<Fact>,
    ) {
        let idle = |place: &&Place| {
            self.known.get(place).is_some_and(|producer| producer.is_idle(now, retention_ms))
        };
        let oldest = self.by_use.iter().map(|(_, place)| place).take_while(idle).take(facts_max);
        facts.extend(oldest.map(|&(partition, id)| Fact::ProducerForgotten {
            at: PartitionRef { resource: stream, partition },
            id,
        }));
    }

    /// Checks every invariant.
    pub fn check(&self, seals: &Seals) {
        let mut memory_bytes = size_of::<Self>() as u64;
        let mut counts = BTreeMap::<u32, usize>::new();
        for (place, producer) in self.known.iter() {
            *counts.entry(place.0).or_default() += 1;
            memory_bytes += producer.memory_bytes();
            assert!(self.by_use.contains(&(producer.last_lsn, *place)));
            assert!(producer.batches.len() <= PRODUCER_BATCHES_MAX);
            let mut end = producer.batches.front().map_or(producer.next, |sent| sent.sequence);
            for sent in &producer.batches {
                assert_eq!(sent.sequence, end, "batches leave no gap");
                end += u64::from(sent.count);
                assert!(sent.count > 0 && sent.appended_at <= producer.last_time);
            }
            assert_eq!(end, producer.next, "the batches end where the next one starts");
        }
        assert!(counts.values().all(|count| *count <= PARTITION_PRODUCERS_MAX));
        assert_eq!(self.counts, counts);
        assert_eq!(self.by_use.len(), self.known.len());
        for (name, named) in self.names.iter() {
            memory_bytes += NAME_BYTES + name.len() as u64;
            assert!(self.names_by_use.contains(&(named.last_lsn, name.clone())));
        }
        assert_eq!(self.names_by_use.len(), self.names.len());
        assert!(self.names.len() <= PRODUCER_NAMES_MAX);
        assert_eq!(self.memory_bytes, memory_bytes);
        self.known.check(seals);
        self.names.check(seals);
    }

    /// The state as text.
    pub fn dump(&self, out: &mut String) {
        use std::fmt::Write;
        for ((partition, id), p) in self.known.iter() {
            let _ = write!(
                out,
                "  producer {id} partition {partition} epoch {} next {} lsn {} time {}:",
                p.epoch, p.next, p.last_lsn, p.last_time
            );
            for sent in &p.batches {
                let _ = write!(
                    out,
                    " {}+{} at {} time {}",
                    sent.sequence, sent.count, sent.base, sent.appended_at
                );
            }
            out.push('\n');
        }
        for (name, named) in self.names.iter() {
            let name = String::from_utf8_lossy(name);
            let _ = writeln!(
                out,
                "  producer name {name:?} is {} epoch {} lsn {}",
                named.id, named.epoch, named.last_lsn
            );
        }
    }
}

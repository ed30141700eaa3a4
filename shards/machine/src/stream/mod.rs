//! Streams: partitions of records under dense offsets.
//!
//! A partition knows all its records by number, and has the newest ones, its **tail**, in memory:
//!
//! ```text
//! earliest          tail start                 flushed                 next
//!    │ in segment files │ in files and in memory  │ in memory and the log  │
//! ```
//!
//! [`tail`] is the part in memory, [`segments`] what can be deleted at once, [`producers`] are those whose batches are
//! appended once however often they come, [`receive`] jobs of queues that come as records, [`decide`] says what can be asked, [`find`] where a read starts, [`retention`]
//! what goes by itself, [`compaction`] what a later record of its key replaces; [`index`] is the part in checkpoints.

mod check;
pub(crate) mod compaction;
pub(crate) mod decide;
pub(crate) mod find;
mod index;
pub(crate) mod producers;
mod receive;
pub(crate) mod retention;
mod segments;
pub(crate) mod tail;

use bytes::Bytes;
use compaction::{Clean, CompactionRules};
use flowmesh_model::limits::PRODUCER_RETENTION_MS;
use flowmesh_model::{Fact, Lsn, Millis, Offset, ResourceId, StreamSettings};
use smallvec::SmallVec;

use crate::changes::{Mark, Touch};
use crate::held::Apply;
use crate::received::Received;
use producers::Producers;
use retention::Rules;
use segments::{SEGMENT_BYTES, Segments};
use tail::{Run, Tail};

/// What a partition takes in memory without its records.
const PARTITION_BYTES: u64 = (size_of::<Partition>() + 16) as u64;

/// One stream, as far as this shard holds it.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// By number; `None` where the shard holds nothing yet. The only one of most streams is found without a step more.
    partitions: SmallVec<[Option<Box<Partition>>; 1]>,
    /// Partitions that changed since the last seal.
    dirty: Vec<u32>,
    /// Partitions in the sealed state that is being written.
    sealed: Vec<u32>,
    memory_bytes: u64,
    tail_bytes: u64,
    /// What retention goes by.
    rules: Rules,
    /// What compaction goes by; `None` without it.
    compaction: Option<Box<CompactionRules>>,
    /// When retention may have something to do; never later than that is so.
    due: Option<Millis>,
    /// `None`: there never was one.
    producers: Option<Box<Producers>>,
    /// `None`: it never got a job of a queue.
    received: Option<Box<Received>>,
    /// As the settings say, 0 until they are known. Not part of the state.
    producer_retention_ms: u64,
}

/// One partition.
#[derive(Debug)]
pub(crate) struct Partition {
    /// The first record there is.
    pub earliest: Offset,
    /// The offset the next record will get.
    pub next: Offset,
    /// Packed bytes of all segments.
    pub bytes: u64,
    /// The entry of the last change, and the time of the last append.
    pub last_lsn: Lsn,
    pub last_time: Millis,
    pub segments: Segments,
    /// Segment files have the records before.
    flushed: Offset,
    /// Segment files will have the records before, once the sealed state is written.
    sealed_next: Offset,
    pub tail: Tail,
    /// `None`: it was never compacted.
    clean: Option<Box<Clean>>,
    mark: Mark,
    /// When it was last put on the list of what woke (see [`crate::woken`]).
    pub woken: u64,
}

impl Partition {
    /// Segment files have the records before.
    pub fn flushed(&self) -> Offset {
        self.flushed
    }

    /// Drops records from memory that are trimmed. Those of the sealed state stay until they are written, and where
    /// `files` are made, so do those of a segment that is not gone as a whole: its file has no gap. Returns the bytes they
    /// took.
    fn drop_trimmed(&mut self, files: bool) -> u64 {
        let (mut taken, base) = (0, self.segments.oldest().base);
        let is_writing = self.sealed_next > self.flushed;
        while let Some(end) = self.tail.first().map(Run::end) {
            let can_go = end <= self.flushed || (!is_writing && (end <= base || !files));
            if end > self.earliest || !can_go {
                break;
            }
            taken += self.tail.pop_below(end).unwrap_or(0);
            self.flushed = self.flushed.max(end);
        }
        if !is_writing {
            self.flushed = self.flushed.max(base);
            self.sealed_next = self.flushed;
        }
        taken
    }

    /// A partition without records.
    pub const fn new() -> Self {
        Self {
            earliest: Offset(0),
            next: Offset(0),
            bytes: 0,
            last_lsn: Lsn(0),
            last_time: Millis(0),
            segments: Segments::new(),
            flushed: Offset(0),
            sealed_next: Offset(0),
            tail: Tail::new(),
            clean: None,
            mark: Mark::NEW,
            woken: 0,
        }
    }
}

/// What a partition is before its first record.
pub(crate) static EMPTY: Partition = Partition::new();

impl Stream {
    pub fn partition(&self, number: u32) -> Option<&Partition> {
        self.partitions.get(number as usize)?.as_deref()
    }

    pub fn partition_mut(&mut self, number: u32) -> Option<&mut Partition> {
        self.partitions.get_mut(number as usize)?.as_deref_mut()
    }

    /// Partitions that this shard holds, in order.
    pub fn partitions(&self) -> impl Iterator<Item = (u32, &Partition)> {
        (0u32..).zip(&self.partitions).filter_map(|(number, held)| Some((number, held.as_deref()?)))
    }

    pub fn partitions_mut(&mut self) -> impl Iterator<Item = (u32, &mut Partition)> {
        (0u32..).zip(&mut self.partitions).filter_map(|(number, held)| Some((number, held.as_deref_mut()?)))
    }

    /// An estimate of what it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
            + self.producers.as_ref().map_or(0, |producers| producers.memory_bytes())
            + self.received.as_ref().map_or(0, |received| received.memory_bytes())
    }

    /// Takes over what the settings say.
    pub fn configure(&mut self, settings: &StreamSettings) {
        self.producer_retention_ms = settings.producer_retention_ms();
        self.compaction = CompactionRules::of(settings).map(Box::new);
        self.set_rules(Rules::of(settings));
    }

    /// Whether the settings ask for compaction.
    pub fn is_compacted(&self) -> bool {
        self.compaction.is_some()
    }

    fn producer_retention_ms(&self) -> u64 {
        if self.producer_retention_ms == 0 { PRODUCER_RETENTION_MS } else { self.producer_retention_ms }
    }

    /// When a producer has been idle for too long next.
    #[inline]
    fn producers_due(&self) -> Option<Millis> {
        self.producers.as_ref()?.next_due(self.producer_retention_ms())
    }

    /// Says which producers are to be forgotten now, at most `facts_max`.
    fn expire_producers(&self, id: ResourceId, now: Millis, facts_max: usize, facts: &mut Vec<Fact>) {
        if let Some(producers) = self.producers() {
            producers.expire(id, now, self.producer_retention_ms(), facts_max, facts);
        }
    }

    /// Idempotent producers, if there ever was one.
    #[inline]
    pub fn producers(&self) -> Option<&Producers> {
        self.producers.as_deref()
    }

    /// What it remembers of queues whose jobs it got, if there ever was one.
    pub fn received(&self) -> Option<&Received> {
        self.received.as_deref()
    }

    /// The same, for a change of it.
    pub fn received_mut(&mut self) -> &mut Received {
        self.received.get_or_insert_default()
    }

    /// The same, for a change of them.
    pub fn producers_mut(&mut self) -> &mut Producers {
        self.producers.get_or_insert_default()
    }

    /// Bytes of records in memory, with what each run takes.
    pub fn tail_bytes(&self) -> u64 {
        self.tail_bytes
    }

    fn make(&mut self, number: u32) -> &mut Partition {
        let index = number as usize;
        if self.partitions.len() <= index {
            self.memory_bytes += (index + 1 - self.partitions.len()) as u64 * 8;
            if self.partitions.is_empty() {
                self.partitions.reserve_exact(index + 1);
            }
            self.partitions.resize_with(index + 1, || None);
        }
        #[expect(clippy::indexing_slicing, reason = "the line above made room")]
        let place = &mut self.partitions[index];
        if place.is_none() {
            self.memory_bytes += PARTITION_BYTES;
        }
        place.get_or_insert_with(|| Box::new(Partition::new()))
    }

    /// `RecordsAppended`. Returns the partition, for whoever waits for its records.
    pub fn appended(
        &mut self,
        cx: &mut Apply<'_>,
        number: u32,
        base: Offset,
        count: u32,
        records: &Bytes,
    ) -> &mut Partition {
        let (lsn, appended_at) = (cx.at.lsn, cx.at.time);
        let partition = self.make(number);
        assert!(partition.next == base, "records leave no gap: {} follows {}", base, partition.next);
        assert!(count > 0, "an append has records");
        let run = Run { base, count, appended_at, lsn, records: cx.arena.keep(records), position: 0 };
        let taken = run.memory_bytes();
        partition.next = base.plus(u64::from(count));
        partition.bytes += records.len() as u64;
        partition.last_lsn = lsn;
        partition.last_time = appended_at;
        partition.segments.appended(base, records.len() as u64, appended_at);
        partition.tail.push(run);
        let listed = cx.seals.touch(&mut partition.mark) != Touch::Known;
        if listed {
            self.dirty.push(number);
        }
        self.memory_bytes += taken;
        self.tail_bytes += taken;
        self.note_due(number);
        self.make(number)
    }

    /// `SegmentRolled`.
    pub fn rolled(&mut self, cx: &mut Apply<'_>, number: u32, base: Offset) {
        let partition = self.make(number);
        assert!(
            partition.next == base,
            "a segment begins with the next record: {base}, not {}",
            partition.next
        );
        partition.segments.rolled(base);
        partition.last_lsn = cx.at.lsn;
        if cx.seals.touch(&mut partition.mark) != Touch::Known {
            self.dirty.push(number);
        }
        self.memory_bytes += SEGMENT_BYTES;
        self.note_due(number);
    }

    /// `RecordsTrimmed`. Returns the partition, for whoever waits at records that are gone.
    pub fn trimmed(&mut self, cx: &mut Apply<'_>, number: u32, earliest: Offset) -> &mut Partition {
        let partition = self.make(number);
        let legal = earliest > partition.earliest && earliest <= partition.next;
        assert!(legal, "{earliest} is not in {}..={}", partition.earliest, partition.next);
        partition.earliest = earliest;
        partition.last_lsn = cx.at.lsn;
        let (segments, bytes) = partition.segments.trimmed(earliest);
        partition.bytes -= bytes;
        let taken = partition.drop_trimmed(cx.seals.are_made());
        if cx.seals.touch(&mut partition.mark) != Touch::Known {
            self.dirty.push(number);
        }
        self.memory_bytes -= taken + segments * SEGMENT_BYTES;
        self.tail_bytes -= taken;
        self.make(number)
    }

    /// Drops the oldest run of a partition from memory if segment files have it. Returns the bytes it took.
    pub fn evict(&mut self, number: u32) -> Option<u64> {
        let partition = self.partition_mut(number)?;
        let taken = partition.tail.pop_below(partition.flushed)?;
        self.memory_bytes -= taken;
        self.tail_bytes -= taken;
        Some(taken)
    }

    /// The entry of the oldest run that [`Stream::evict`] would drop.
    pub fn evictable(&self, number: u32) -> Option<Lsn> {
        let partition = self.partition(number)?;
        partition.tail.first().filter(|run| run.end() <= partition.flushed).map(|run| run.lsn)
    }
}

//! Streams: partitions of records under dense offsets.
//!
//! A partition knows all its records by number, and has the newest ones, its **tail**, in memory:
//!
//! ```text
//! earliest          tail start                 flushed                 next
//!    │ in segment files │ in files and in memory  │ in memory and the log  │
//! ```
//!
//! [`tail`] is the part in memory, [`decide`] what can be asked, [`index`] the part in checkpoints.

mod check;
pub(crate) mod decide;
mod index;
pub(crate) mod tail;

use bytes::Bytes;
use flowmesh_model::{Lsn, Millis, Offset};

use crate::changes::{Mark, Touch};
use crate::held::Apply;
use tail::{Run, Tail};

/// What a partition takes in memory without its records.
const PARTITION_BYTES: u64 = (size_of::<Partition>() + 16) as u64;

/// One stream, as far as this shard holds it.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// By number; `None` where the shard holds nothing yet.
    partitions: Vec<Option<Box<Partition>>>,
    /// Partitions that changed since the last seal.
    dirty: Vec<u32>,
    /// Partitions in the sealed state that is being written.
    sealed: Vec<u32>,
    memory_bytes: u64,
    tail_bytes: u64,
}

/// One partition.
#[derive(Debug)]
pub(crate) struct Partition {
    /// The first record there is.
    pub earliest: Offset,
    /// The offset the next record will get.
    pub next: Offset,
    /// Packed bytes of all records there are.
    pub bytes: u64,
    /// The entry of the last append, and its time.
    pub last_lsn: Lsn,
    pub last_time: Millis,
    /// Segment files have the records before.
    flushed: Offset,
    /// Segment files will have the records before, once the sealed state is written.
    sealed_next: Offset,
    pub tail: Tail,
    mark: Mark,
    /// When it was last put on the list of what woke (see [`crate::woken`]).
    pub woken: u64,
}

impl Partition {
    /// Segment files have the records before.
    pub fn flushed(&self) -> Offset {
        self.flushed
    }

    /// A partition without records.
    pub const fn new() -> Self {
        Self {
            earliest: Offset(0),
            next: Offset(0),
            bytes: 0,
            last_lsn: Lsn(0),
            last_time: Millis(0),
            flushed: Offset(0),
            sealed_next: Offset(0),
            tail: Tail::new(),
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
    }

    /// Bytes of records in memory, with what each run takes.
    pub fn tail_bytes(&self) -> u64 {
        self.tail_bytes
    }

    fn make(&mut self, number: u32) -> &mut Partition {
        let index = number as usize;
        if self.partitions.len() <= index {
            self.memory_bytes += (index + 1 - self.partitions.len()) as u64 * 8;
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
        let run = Run { base, count, appended_at, lsn, records: cx.arena.keep(records) };
        let taken = run.memory_bytes();
        partition.next = base.plus(u64::from(count));
        partition.bytes += records.len() as u64;
        partition.last_lsn = lsn;
        partition.last_time = appended_at;
        partition.tail.push(run);
        let listed = cx.seals.touch(&mut partition.mark) != Touch::Known;
        if listed {
            self.dirty.push(number);
        }
        self.memory_bytes += taken;
        self.tail_bytes += taken;
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

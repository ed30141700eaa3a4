//! The newest records of a partition, in memory.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use flowmesh_model::codec::COPY_BELOW_BYTES;
use flowmesh_model::compression::{is_compressed, plain};
use flowmesh_model::record::{RecordSlices, prefix_len};
use flowmesh_model::reply::RecordRun;
use flowmesh_model::{Lsn, Millis, Offset};

/// A piece of memory that small appends share. Some hundreds of small batches, so that the allocator is rarely asked; and
/// small enough that what outlives its neighbours keeps little alive.
const CHUNK_BYTES: usize = 64 * 1024;

/// What one append brought.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub base: Offset,
    pub count: u32,
    pub appended_at: Millis,
    pub lsn: Lsn,
    /// The bytes of all runs before it, modulo 2^32: where it lies. Set when it goes into the tail.
    pub position: u32,
    pub records: Bytes,
}

impl Run {
    /// The offset behind its last record.
    pub fn end(&self) -> Offset {
        self.base.plus(u64::from(self.count))
    }

    /// What it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        (size_of::<Self>() + self.records.len()) as u64
    }

    /// All of it, as replies and segment files want it.
    pub fn to_records(&self) -> RecordRun {
        RecordRun {
            base: self.base,
            count: self.count,
            appended_at: self.appended_at,
            records: self.records.clone(),
        }
    }

    /// The records from `from` on: at most `records_max`, and no more bytes than `bytes_max` unless the first one alone
    /// has more and `first` says that it must come. A compressed run comes as it is, or in part as plain records.
    fn part(&self, from: Offset, records_max: u32, bytes_max: usize, first: bool) -> Option<RecordRun> {
        if from <= self.base && self.count <= records_max && self.records.len() <= bytes_max {
            return Some(self.to_records());
        }
        if is_compressed(&self.records) && !first && self.records.len() > bytes_max {
            return None;
        }
        let skip = from.0.saturating_sub(self.base.0);
        let records = plain(&self.records).ok()?;
        let mut slices = RecordSlices::new(&records);
        for _ in 0..skip {
            slices.next()?.ok()?;
        }
        let start = records.len() - slices.rest().len();
        let (mut end, mut count) = (start, 0u32);
        while count < records_max && matches!(slices.next(), Some(Ok(_))) {
            let after = records.len() - slices.rest().len();
            if after - start > bytes_max && !(first && count == 0) {
                break;
            }
            end = after;
            count += 1;
        }
        (count > 0).then(|| RecordRun {
            base: self.base.plus(skip),
            count,
            appended_at: self.appended_at,
            records: records.slice(start..end),
        })
    }
}

/// Runs in order and without a gap; the last one ends where the partition does.
#[derive(Debug)]
pub(crate) struct Tail {
    runs: VecDeque<Run>,
    /// Packed bytes of all of them.
    bytes: u64,
}

impl Tail {
    pub const fn new() -> Self {
        Self { runs: VecDeque::new(), bytes: 0 }
    }

    pub fn first(&self) -> Option<&Run> {
        self.runs.front()
    }

    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter()
    }

    /// Whether the record at `offset` is in memory.
    pub fn has(&self, offset: Offset) -> bool {
        self.runs.front().is_some_and(|run| run.base <= offset)
    }

    pub fn push(&mut self, mut run: Run) {
        run.position = self.end_position();
        if self.runs.capacity() == 0 {
            // Most streams of many have one run: the first room is no larger.
            self.runs.reserve_exact(1);
        }
        self.bytes += run.records.len() as u64;
        self.runs.push_back(run);
    }

    fn end_position(&self) -> u32 {
        self.runs.back().map_or(0, |run| run.position.wrapping_add(run.records.len() as u32))
    }

    /// Whether there are `bytes` packed bytes from a record on that is in memory. At once, but for tails beyond 4 GiB.
    pub fn has_bytes(&self, from: Offset, bytes: u64) -> bool {
        let Some(run) = self.since(from).next() else { return bytes == 0 };
        let skip = u32::try_from(from.0.saturating_sub(run.base.0)).unwrap_or(run.count);
        let wanted = bytes + prefix_len(&run.records, skip) as u64;
        if u32::try_from(self.bytes).is_ok() {
            return u64::from(self.end_position().wrapping_sub(run.position)) >= wanted;
        }
        let mut sum = 0;
        self.since(from).any(|run| {
            sum += run.records.len() as u64;
            sum >= wanted
        })
    }

    /// The first run that was appended at `time` or later, with its place.
    pub fn reaching(&self, time: Millis) -> Option<(usize, &Run)> {
        let at = self.runs.partition_point(|run| run.appended_at < time);
        Some((at, self.runs.get(at)?))
    }

    /// The run with a record that is in memory.
    pub fn holding(&self, offset: Offset) -> Option<&Run> {
        self.since(offset).next().filter(|run| run.base <= offset)
    }

    /// Drops the first run if all of it is before `flushed`. Returns the bytes it took.
    pub fn pop_below(&mut self, flushed: Offset) -> Option<u64> {
        let run = self.runs.pop_front_if(|run| run.end() <= flushed)?;
        self.bytes -= run.records.len() as u64;
        Some(run.memory_bytes())
    }

    /// Runs that hold records from `from` on.
    fn since(&self, from: Offset) -> impl Iterator<Item = &Run> {
        let start = self.runs.partition_point(|run| run.end() <= from);
        self.runs.range(start..)
    }

    /// Whole runs of `from..upto`, both at a run's border, until they take `bytes_max` of memory.
    pub fn flush(&self, from: Offset, upto: Offset, bytes_max: usize) -> Vec<RecordRun> {
        let (mut runs, mut bytes) = (Vec::new(), 0);
        for run in self.since(from).take_while(|run| run.base < upto) {
            bytes += run.memory_bytes() as usize;
            runs.push(run.to_records());
            if bytes >= bytes_max {
                break;
            }
        }
        runs
    }

    /// The records from `from` on, up to the limits; the first record always comes.
    pub fn read(&self, from: Offset, records_max: u32, bytes_max: usize) -> Vec<RecordRun> {
        let (mut runs, mut records_left, mut bytes_left) = (Vec::new(), records_max, bytes_max);
        for run in self.since(from) {
            let Some(part) = run.part(from, records_left, bytes_left, runs.is_empty()) else { break };
            let whole = part.base.plus(u64::from(part.count)) == run.end();
            records_left -= part.count;
            bytes_left = bytes_left.saturating_sub(part.records.len());
            runs.push(part);
            if !whole || records_left == 0 || bytes_left == 0 {
                break;
            }
        }
        runs
    }
}

/// Memory for small batches, shared by all partitions of a shard.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    chunk: BytesMut,
}

impl Arena {
    /// The same bytes, not sharing memory with the buffer they arrived in if they are few.
    #[inline]
    pub fn keep(&mut self, bytes: &Bytes) -> Bytes {
        if bytes.len() >= COPY_BELOW_BYTES {
            return bytes.clone();
        }
        if self.chunk.capacity() - self.chunk.len() < bytes.len() {
            self.chunk = BytesMut::with_capacity(CHUNK_BYTES);
        }
        self.chunk.extend_from_slice(bytes);
        self.chunk.split().freeze()
    }
}

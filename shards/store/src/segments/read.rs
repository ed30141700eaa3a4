//! Reading records back: find the block, check what is handed out, stop at the limits.

use std::rc::Rc;

use bytes::Bytes;
use flowmesh_model::codec::Malformed;
use flowmesh_model::compression::is_compressed;
use flowmesh_model::record::{prefix_len, records_within};
use flowmesh_model::reply::RecordRun;
use flowmesh_model::{Offset, PartitionRef};

use super::ahead::Ahead;
use super::error::{SegmentDamage, SegmentError};
use super::files::{Block, Inner, Partition, StreamFiles, io_error};
use super::format::{BLOCK_HEADER_BYTES, BlockHeader, UncheckedRun, first_run_time};
use crate::disk::{Disk, DiskFile};
use crate::pages::round_up;
use crate::window::{PIECE_BYTES, Window};

/// How much is read from the disk at once: a read of a few records needs no more than a block, one of many should not wait
/// for its turn on a busy core block by block. What the log writes meanwhile waits for the disk behind such a read, and
/// others on the core for the copy of it, so it is no more than that.
const READ_BYTES_MIN: usize = 256 * 1024;
const READ_BYTES_MAX: usize = PIECE_BYTES;

/// What is on its way from the disk while a consumer that goes on and on is sent what is there: more than the largest block,
/// so that the next one is here when this one was sent; and little enough that the log's writes do not wait for long.
const AHEAD_BYTES: usize = 3 * READ_BYTES_MAX;

/// The same while the log is written to: its writes wait for one read at most.
const AHEAD_BESIDE_WRITES_BYTES: usize = READ_BYTES_MAX;

/// Records out of segment files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundRecords {
    /// In order; those that were compacted away are left out.
    pub runs: Vec<RecordRun>,
    /// Where to go on: there is nothing else before it.
    pub next: Offset,
}

impl<D: Disk> StreamFiles<D> {
    /// Says whether the log is being written to, on the same disk: reads then leave it more room, and take longer.
    pub fn beside_writes(&self, beside_writes: bool) {
        self.inner.beside_writes.set(beside_writes);
    }

    /// Records from `from` on, in order and without a gap but for what was compacted away, every checksum verified: at most
    /// `records_max`, and no more than `bytes_max` packed bytes except for the first record, which always comes. None at the
    /// end of the files.
    ///
    /// # Errors
    /// [`SegmentError`]: `Missing` if no file holds `from` although the partition reaches beyond it.
    pub async fn read(
        &self,
        at: PartitionRef,
        from: Offset,
        records_max: u32,
        bytes_max: u32,
    ) -> Result<FoundRecords, SegmentError> {
        let mut wanted =
            Wanted { from, records: records_max, bytes: bytes_max as usize, runs: Vec::new(), done: false };
        while !wanted.done && wanted.from < self.next_offset(at) {
            self.inner.list(at).await?;
            let swaps = self.inner.swaps(at);
            let read = self.inner.read_file(at, &mut wanted).await;
            // A file that was replaced while it was looked for: what was taken of it is as good.
            if self.inner.swaps(at) == swaps {
                read?;
            }
        }
        Ok(FoundRecords { runs: wanted.runs, next: wanted.from })
    }
}

/// What is still to be read, and what was.
struct Wanted {
    from: Offset,
    records: u32,
    bytes: usize,
    runs: Vec<RecordRun>,
    done: bool,
}

impl Wanted {
    /// Takes as much of a run as is wanted, and returns what is left of it; the run holds `from`, or starts behind it.
    fn take(&mut self, run: RecordRun) -> Result<Option<RecordRun>, Malformed> {
        let fits = run.count <= self.records && run.records.len() <= self.bytes;
        let whole = run.base >= self.from && fits;
        if !whole && is_compressed(&run.records) && run.records.len() > self.bytes && !self.runs.is_empty() {
            self.done = true;
            return Ok(Some(run));
        }
        let run = if whole { run } else { behind(&run.plain()?, self.from) };
        let mut count = run.count.min(self.records);
        let mut len = if count == run.count { run.records.len() } else { prefix_len(&run.records, count) };
        if len > self.bytes {
            (count, len) = records_within(&run.records, self.bytes);
            if count == 0 && self.runs.is_empty() {
                (count, len) = (1, prefix_len(&run.records, 1));
            }
        }
        self.records -= count;
        self.bytes = self.bytes.saturating_sub(len);
        self.done = count < run.count || self.records == 0 || self.bytes == 0;
        let next = run.base.plus(u64::from(count));
        let rest = (count < run.count).then(|| {
            let (count, records) = (run.count - count, run.records.slice(len..));
            RecordRun { base: next, count, records, ..run }
        });
        if count > 0 {
            self.from = next;
            let records: Bytes = run.records.slice(..len);
            self.runs.push(RecordRun { count, records, ..run });
        }
        Ok(rest)
    }
}

/// The part of a run from `from` on.
fn behind(run: &RecordRun, from: Offset) -> RecordRun {
    let skip = u32::try_from(from.0.saturating_sub(run.base.0)).unwrap_or(run.count).min(run.count);
    let records = run.records.slice(prefix_len(&run.records, skip)..);
    let base = run.base.plus(u64::from(skip));
    RecordRun { base, count: run.count - skip, appended_at: run.appended_at, records }
}

impl<D: Disk> Inner<D> {
    /// The file that holds a record, and where it ends.
    pub fn file_range(&self, at: PartitionRef, record: Offset) -> Result<(Offset, Offset), SegmentError> {
        let partitions = self.partitions.borrow();
        let partition = partitions.get(&at).ok_or_else(|| self.missing(at, record))?;
        let base = partition.file_of(record).ok_or_else(|| self.missing(at, record))?;
        let files = partition.files.as_ref();
        let later = files.and_then(|files| files.range(base..).nth(1)).map(|(base, _)| *base);
        Ok((base, later.unwrap_or(partition.next)))
    }

    /// Whether a file may still be written to.
    fn is_last_file(&self, at: PartitionRef, base: Offset) -> bool {
        self.partitions.borrow().get(&at).and_then(Partition::last_file).is_none_or(|last| last <= base)
    }

    /// Reads what is wanted from the file that holds `wanted.from`, to the file's end at most.
    async fn read_file(&self, at: PartitionRef, wanted: &mut Wanted) -> Result<(), SegmentError> {
        let (base, end) = self.file_range(at, wanted.from)?;
        let moment = self.ahead.borrow().moment();
        let open = self.open_file(at, base).await?;
        let path = self.path(at, base);
        let failed = |error| io_error(at, "read", &path, error);
        let kept = self.ahead.borrow_mut().take(at, base, wanted.from);
        let beside_writes = self.beside_writes.get();
        let (mut expected, mut position, mut block, mut window) = if let Some(kept) = kept {
            let ahead_bytes = if beside_writes { AHEAD_BESIDE_WRITES_BYTES } else { AHEAD_BYTES };
            let window = kept.window.with_reads_of(READ_BYTES_MAX).with_ahead(ahead_bytes);
            (kept.base, kept.position, kept.block, window.one_by_one(beside_writes))
        } else {
            let size = open.file.size().await.map_err(failed)?;
            let read_bytes = round_up(wanted.bytes.clamp(READ_BYTES_MIN, READ_BYTES_MAX));
            let window = Window::new(Rc::clone(&open.file), size).with_reads_of(read_bytes);
            let window = window.one_by_one(beside_writes);
            let Block { base, position, .. } = open.index.borrow().before(wanted.from);
            (base, position, None, window)
        };
        while expected < end && !wanted.done {
            let damaged = |what| self.damaged(at, base, position, what);
            let header = match &block {
                Some(block) => Some(block.header),
                None => self.block_header(at, &open, &mut window, position, expected).await?,
            };
            let Some(header) = header else { break };
            if block.is_none() {
                open.index.borrow_mut().note(header.base, position, first_run_time(window.bytes()));
            }
            if header.next > wanted.from {
                let mut opened = match block.take() {
                    Some(opened) => opened,
                    None if window.fill(position, header.disk_bytes()).await.map_err(failed)? => {
                        OpenBlock::new(header, &window.take(header.disk_bytes()))
                    }
                    None => return Err(damaged(SegmentDamage::BlockLength)),
                };
                opened.take(open.compacted.is_some(), wanted).map_err(damaged)?;
                if wanted.done && wanted.from < header.next {
                    block = Some(opened);
                    break;
                }
            }
            expected = header.next;
            position += header.disk_bytes() as u64;
        }
        if wanted.done && wanted.from < end && !self.is_last_file(at, base) {
            let ahead = Ahead { at, file: base, from: wanted.from, base: expected, position, block, window };
            self.ahead.borrow_mut().keep(moment, ahead);
        }
        let is_compacted = open.compacted.is_some();
        self.keep_open(at, open);
        if !wanted.done && wanted.from < end {
            if !is_compacted {
                return Err(self.missing(at, wanted.from));
            }
            wanted.from = end;
        }
        Ok(())
    }
}

/// A block that is taken from, run by run.
pub(super) struct OpenBlock {
    header: BlockHeader,
    /// The runs that were not looked at yet: how many, their bytes, and the record they start with.
    runs: u32,
    body: Bytes,
    expected: Offset,
    /// What is left of a run that was taken in part: it is checked once.
    rest: Option<RecordRun>,
}

impl OpenBlock {
    fn new(header: BlockHeader, bytes: &Bytes) -> Self {
        let body = bytes.slice(BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + header.body_bytes as usize);
        Self { header, runs: header.runs, body, expected: header.base, rest: None }
    }

    /// Takes what is wanted.
    fn take(&mut self, with_gaps: bool, wanted: &mut Wanted) -> Result<(), SegmentDamage> {
        while !wanted.done {
            let Some(run) = self.next(with_gaps, wanted.from)? else { break };
            self.rest = wanted.take(run).map_err(|_| SegmentDamage::Shape)?;
        }
        Ok(())
    }

    /// The next run with records from `from` on, checked.
    fn next(&mut self, with_gaps: bool, from: Offset) -> Result<Option<RecordRun>, SegmentDamage> {
        if let Some(rest) = self.rest.take() {
            return Ok(Some(rest));
        }
        while self.runs > 0 {
            let run = UncheckedRun::take(&mut self.body)?;
            run.check_follows(self.expected, with_gaps)?;
            (self.runs, self.expected) = (self.runs - 1, run.next());
            if self.expected > from {
                return run.check().map(Some);
            }
        }
        if self.expected == self.header.next && self.body.is_empty() {
            Ok(None)
        } else {
            Err(SegmentDamage::Shape)
        }
    }
}

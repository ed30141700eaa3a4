//! The log as the engine holds it: synchronous bookkeeping, no I/O.
//!
//! A buffer knows its place in a segment from its first entry on, so whatever was taken has a place on disk, and a
//! full disk shows before an entry is taken, not after.

use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;

use flowmesh_model::{Lsn, Millis};

use super::batch::{Batch, Dirty, SyncJob, Synced, Whose, Written};
use super::buffer::{Body, BufferPool, Filling, Sealed, Target};
use super::config::LogConfig;
use super::error::LogFull;
use super::format::{BATCH_HEADER_BYTES, ENTRY_HEADER_BYTES, Run, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::range::RangeRead;
use super::segment::{OpenSegment, PrepareFailed, Prepared, SegmentRequest, TrimWork, Trimmed};
use crate::disk::Disk;
use crate::pages::mix;

/// One shard's commit log.
pub struct Log<D: Disk> {
    next: Lsn,
    written: Lsn,
    durable: Lsn,
    /// `None`: policy `memory`, nothing is ever written.
    on_disk: Option<OnDisk<D>>,
}

/// A segment with entries, before the one that is written to.
pub(super) struct Full {
    pub seq: u64,
    pub first: Lsn,
    pub last: Lsn,
    pub used: u64,
}

/// The segment that is written to.
pub(super) struct Head<F> {
    pub segment: OpenSegment<F>,
    /// The first entry in it, if there is one.
    pub first: Option<Lsn>,
    /// Where the next batch goes.
    pub position: u64,
}

struct InFlight {
    ticket: u64,
    last: Lsn,
    done: bool,
}

/// What recovery found, for the log to go on with.
pub(super) struct Opened<D: Disk> {
    pub disk: D,
    pub config: LogConfig,
    pub whose: Whose,
    pub run: Run,
    pub next: Lsn,
    pub full: VecDeque<Full>,
    pub head: Head<D::File>,
    pub ready: VecDeque<OpenSegment<D::File>>,
    pub spares: Vec<u64>,
    pub next_seq: u64,
}

struct OnDisk<D: Disk> {
    disk: D,
    config: LogConfig,
    whose: Whose,
    run: Run,
    pool: BufferPool<D>,
    filling: Option<Filling<D>>,
    sealed: Vec<Sealed<D>>,
    in_flight: VecDeque<InFlight>,
    tickets: u64,
    dirty: Vec<Dirty<D::File>>,
    syncing: bool,
    full: VecDeque<Full>,
    head: Head<D::File>,
    ready: VecDeque<OpenSegment<D::File>>,
    spares: Vec<u64>,
    next_seq: u64,
    preparing: bool,
    disk_full: bool,
}

impl<D: Disk> Log<D> {
    /// A log of policy `memory`: entries get their numbers, count as durable at once, and go nowhere.
    pub fn in_memory() -> Self {
        Self { next: Lsn(1), written: Lsn(0), durable: Lsn(0), on_disk: None }
    }

    pub(super) fn opened(opened: Opened<D>) -> Self {
        let last = Lsn(opened.next.0 - 1);
        let config = opened.config;
        let on_disk = OnDisk {
            disk: opened.disk,
            whose: opened.whose,
            run: opened.run,
            pool: BufferPool::new(config.buffer_bytes, config.buffers_kept, config.buffered_bytes_max),
            filling: None,
            sealed: Vec::new(),
            in_flight: VecDeque::new(),
            tickets: 0,
            dirty: Vec::new(),
            syncing: false,
            full: opened.full,
            head: opened.head,
            ready: opened.ready,
            spares: opened.spares,
            next_seq: opened.next_seq,
            preparing: false,
            disk_full: false,
            config,
        };
        Self { next: opened.next, written: last, durable: last, on_disk: Some(on_disk) }
    }

    /// Appends an entry: `encode` writes its body, at most `body_bytes_max` bytes, straight into the log's buffer.
    /// Nothing is on disk before the batch it gathers in is written. On failure `encode` is not called.
    ///
    /// # Errors
    /// [`LogFull`]; nothing was changed.
    #[inline]
    pub fn append(
        &mut self,
        time: Millis,
        body_bytes_max: usize,
        encode: impl FnOnce(&mut Body<'_>),
    ) -> Result<Lsn, LogFull> {
        let lsn = self.next;
        if let Some(on_disk) = &mut self.on_disk {
            on_disk.append(lsn, time, body_bytes_max, encode)?;
        } else {
            (self.written, self.durable) = (lsn, lsn);
        }
        self.next = lsn.next();
        Ok(lsn)
    }

    /// The LSN the next entry will get.
    pub fn next_lsn(&self) -> Lsn {
        self.next
    }

    /// Everything up to here is written (policies `interval` and `never` acknowledge then).
    pub fn written_lsn(&self) -> Lsn {
        self.written
    }

    /// Everything up to here survives a crash.
    pub fn durable_lsn(&self) -> Lsn {
        self.durable
    }

    /// Whether [`Log::take_batch`] would give one.
    pub fn has_gathered(&self) -> bool {
        self.on_disk.as_ref().is_some_and(|on_disk| {
            !on_disk.sealed.is_empty() || on_disk.filling.as_ref().is_some_and(|filling| !filling.is_empty())
        })
    }

    /// Everything that gathered, as a job of its own; `None` if nothing did. Batches may overlap in time; what counts
    /// as written is always without a gap.
    pub fn take_batch(&mut self) -> Option<Batch<D>> {
        let last = Lsn(self.next.0 - 1);
        self.on_disk.as_mut()?.take_batch(self.durable, last)
    }

    /// Takes note of a batch that was written, and its buffers back.
    pub fn written(&mut self, written: Written<D>) {
        if let Some(on_disk) = &mut self.on_disk {
            self.written = on_disk.written(written).unwrap_or(self.written);
        }
    }

    /// Whether everything written is durable, so that the next batch may be written durably at once.
    pub fn is_clean(&self) -> bool {
        self.written == self.durable
            && self.on_disk.as_ref().is_some_and(|on_disk| on_disk.in_flight.len() <= 1)
    }

    /// Takes note of a batch that was written durably, all before it being durable.
    pub fn written_durably(&mut self, written: Written<D>) {
        assert!(self.is_clean(), "a batch is written durably only behind durable ones");
        self.written(written);
        self.durable = self.written;
    }

    /// A job that makes durable what is written by now; `None` if all of that is, or while another one runs.
    pub fn sync_job(&mut self) -> Option<SyncJob<D>> {
        let on_disk = self.on_disk.as_mut()?;
        if on_disk.syncing || self.written == self.durable {
            return None;
        }
        on_disk.syncing = true;
        let files = std::mem::take(&mut on_disk.dirty);
        Some(SyncJob { files, upto: self.written, whose: on_disk.whose.clone() })
    }

    /// Takes note of a sync that succeeded.
    #[allow(clippy::needless_pass_by_value, reason = "a sync counts once")]
    pub fn durable(&mut self, synced: Synced) {
        assert!(
            synced.upto >= self.durable && synced.upto <= self.written,
            "a sync makes written entries durable"
        );
        self.durable = synced.upto;
        if let Some(on_disk) = &mut self.on_disk {
            on_disk.syncing = false;
        }
    }

    /// A segment to be prepared in the background, if one is due and none is being prepared.
    pub fn wants_segment(&mut self) -> Option<SegmentRequest<D>> {
        self.on_disk.as_mut()?.wants_segment()
    }

    /// Takes the outcome of [`SegmentRequest::prepare`]. After a failure [`Log::wants_segment`] asks again at once: wait
    /// a moment before.
    pub fn segment_prepared(&mut self, outcome: Result<Prepared<D>, PrepareFailed>) {
        let Some(on_disk) = &mut self.on_disk else { return };
        on_disk.preparing = false;
        match outcome {
            Ok(prepared) => {
                on_disk.disk_full = false;
                // Only now: had the failed attempt got as far as the name, the next one replaces that file. With
                // another number, two segments would follow the same one.
                on_disk.next_seq = prepared.segment.header.seq + 1;
                on_disk.ready.push_back(prepared.segment);
            }
            Err(failed) => on_disk.disk_full = failed.error.is_disk_full(),
        }
    }

    /// Gives up segments whose entries all are at or before `upto` (what the index durably holds) and durable. The log
    /// keeps at least its last durable batch, so that it always says where it ends.
    pub fn trim(&mut self, upto: Lsn) -> Option<TrimWork<D>> {
        let durable = self.durable;
        let on_disk = self.on_disk.as_mut()?;
        on_disk.pool.shrink();
        on_disk.trim(upto, durable)
    }

    /// Takes note of segments that were trimmed.
    pub fn trimmed(&mut self, trimmed: Trimmed) {
        if let Some(on_disk) = &mut self.on_disk {
            on_disk.spares.extend(trimmed.spares);
        }
    }

    /// The first entry the log still has; [`Log::next_lsn`] if it has none.
    pub fn first_lsn(&self) -> Lsn {
        self.on_disk.as_ref().and_then(OnDisk::first).unwrap_or(self.next)
    }

    /// Bytes of log that a restart would read: what a checkpoint followed by [`Log::trim`] brings down.
    pub fn log_bytes(&self) -> u64 {
        self.on_disk.as_ref().map_or(0, OnDisk::log_bytes)
    }

    /// Memory of buffers that are gathering or in flight.
    pub fn buffered_bytes(&self) -> usize {
        self.on_disk.as_ref().map_or(0, |on_disk| on_disk.pool.held())
    }

    /// Reads written entries `from..=to` back, as a job of its own; `None` if the log does not hold all of them.
    pub fn range(&self, from: Lsn, to: Lsn) -> Option<RangeRead<D>> {
        let on_disk = self.on_disk.as_ref()?;
        if from < self.first_lsn() || to > self.written || from > to {
            return None;
        }
        let full = on_disk.full.iter().map(|full| (full.seq, full.first));
        let head = on_disk.head.first.map(|first| (on_disk.head.segment.header.seq, first));
        let segments: Vec<_> = full.chain(head).collect();
        Some(RangeRead::new(on_disk.disk.clone(), on_disk.whose.clone(), &segments, from, to))
    }

    /// Where the log is, and the segments from the one with `lsn` on, for truncation.
    pub(super) fn into_suffix(self, lsn: Lsn) -> Option<Suffix<D>> {
        assert!(!self.has_gathered(), "a log is truncated when nothing is on its way");
        let on_disk = self.on_disk?;
        assert!(on_disk.in_flight.is_empty(), "a log is truncated when nothing is on its way");
        let head = on_disk.head.first.map(|first| (on_disk.head.segment.header.seq, first));
        let mut with_entries: Vec<_> =
            on_disk.full.iter().map(|full| (full.seq, full.first)).chain(head).collect();
        let behind = with_entries.iter().rposition(|&(_, first)| first <= lsn).map_or(0, |at| at + 1);
        let mut seqs: Vec<u64> =
            with_entries.split_off(behind.max(1) - 1).into_iter().map(|(seq, _)| seq).collect();
        if on_disk.head.first.is_none() {
            seqs.push(on_disk.head.segment.header.seq);
        }
        seqs.extend(on_disk.ready.iter().map(|ready| ready.header.seq));
        Some(Suffix { disk: on_disk.disk, config: on_disk.config, whose: on_disk.whose, seqs })
    }
}

/// The segment that holds an LSN, and all behind it.
pub(super) struct Suffix<D: Disk> {
    pub disk: D,
    pub config: LogConfig,
    pub whose: Whose,
    pub seqs: Vec<u64>,
}

impl<D: Disk> OnDisk<D> {
    #[inline]
    fn append(
        &mut self,
        lsn: Lsn,
        time: Millis,
        body_bytes_max: usize,
        encode: impl FnOnce(&mut Body<'_>),
    ) -> Result<(), LogFull> {
        let entry_bytes = ENTRY_HEADER_BYTES + body_bytes_max;
        let run = self.run;
        if let Some(filling) = &mut self.filling
            && filling.fits(entry_bytes)
        {
            filling.push((lsn, time, run), body_bytes_max, encode);
            return Ok(());
        }
        let mut filling = self.next_buffer(lsn, entry_bytes)?;
        filling.push((lsn, time, run), body_bytes_max, encode);
        self.filling = Some(filling);
        Ok(())
    }

    /// Closes the buffer there is and starts one with room for an entry of this size.
    #[cold]
    fn next_buffer(&mut self, lsn: Lsn, entry_bytes: usize) -> Result<Filling<D>, LogFull> {
        let max = self.config.body_bytes_max();
        if entry_bytes > max + ENTRY_HEADER_BYTES {
            return Err(LogFull::EntryTooLarge { bytes: entry_bytes - ENTRY_HEADER_BYTES, max });
        }
        let capacity = self.pool.capacity_for(entry_bytes);
        if !self.pool.allows(capacity) {
            return Err(LogFull::Buffers);
        }
        let end = self.head.position + self.filling.as_ref().map_or(0, |filling| filling.disk_bytes() as u64);
        let fits = self.head.segment.header.bytes - end >= (BATCH_HEADER_BYTES + entry_bytes) as u64;
        if !fits && self.next_segment_holds(entry_bytes).is_none() {
            return Err(if self.disk_full { LogFull::DiskFull } else { LogFull::NoSegment });
        }
        self.seal_filling();
        if !fits {
            self.roll(lsn);
        }
        self.head.first.get_or_insert(lsn);
        let target = Target {
            file: Rc::clone(&self.head.segment.file),
            seq: self.head.segment.header.seq,
            salt: self.head.segment.header.salt,
            position: self.head.position,
            room: usize::try_from(self.head.segment.header.bytes - self.head.position).unwrap_or(usize::MAX),
        };
        Ok(Filling::new(self.pool.take(&self.disk, capacity), target, lsn))
    }

    /// The segment to roll to, if it is ready and large enough (its size may be from an earlier configuration).
    fn next_segment_holds(&self, entry_bytes: usize) -> Option<&OpenSegment<D::File>> {
        let need = (SEGMENT_HEADER_BYTES + BATCH_HEADER_BYTES + entry_bytes) as u64;
        self.ready.front().filter(|segment| segment.header.bytes >= need)
    }

    fn seal_filling(&mut self) {
        let Some(filling) = self.filling.take() else { return };
        if filling.is_empty() {
            self.pool.give_back(filling.into_buf());
            return;
        }
        let sealed = filling.seal(self.run);
        self.head.position += sealed.bytes as u64;
        self.sealed.push(sealed);
    }

    /// Goes on to the next segment, whose first entry will be `lsn`.
    fn roll(&mut self, lsn: Lsn) {
        let Some(segment) = self.ready.pop_front() else { return };
        let next = Head { segment, first: None, position: SEGMENT_HEADER_BYTES as u64 };
        let old = std::mem::replace(&mut self.head, next);
        // A segment without an entry is rolled over only if it is too small for the first one; recovery then finds
        // the next one starting where this one would have.
        let first = old.first.unwrap_or(lsn);
        self.full.push_back(Full {
            seq: old.segment.header.seq,
            first,
            last: Lsn(lsn.0 - 1),
            used: old.position,
        });
    }

    fn take_batch(&mut self, durable: Lsn, last: Lsn) -> Option<Batch<D>> {
        self.seal_filling();
        if self.sealed.is_empty() {
            return None;
        }
        let mut writes = std::mem::take(&mut self.sealed);
        for write in &mut writes {
            write.finish(durable);
        }
        self.tickets += 1;
        self.in_flight.push_back(InFlight { ticket: self.tickets, last, done: false });
        Some(Batch { ticket: self.tickets, writes, last, whose: self.whose.clone() })
    }

    /// Returns the entry up to which everything is written, if that moved.
    fn written(&mut self, written: Written<D>) -> Option<Lsn> {
        for buf in written.bufs {
            self.pool.give_back(buf);
        }
        for file in written.files {
            if !self.dirty.iter().any(|dirty| dirty.seq == file.seq) {
                self.dirty.push(file);
            }
        }
        for batch in &mut self.in_flight {
            batch.done |= batch.ticket == written.ticket;
        }
        let mut upto = None;
        while let Some(batch) = self.in_flight.pop_front_if(|batch| batch.done) {
            upto = Some(batch.last);
        }
        upto
    }

    fn wants_segment(&mut self) -> Option<SegmentRequest<D>> {
        if self.preparing || self.ready.len() >= self.config.segments_ahead {
            return None;
        }
        self.preparing = true;
        let seq = self.next_seq;
        let previous = self.ready.back().map_or(self.head.segment.header.seq, |ready| ready.header.seq);
        Some(SegmentRequest {
            disk: self.disk.clone(),
            whose: self.whose.clone(),
            header: new_header(&self.config, self.run, seq, previous),
            spare: self.spares.pop(),
        })
    }

    fn trim(&mut self, upto: Lsn, durable: Lsn) -> Option<TrimWork<D>> {
        let (mut keep, mut remove) = (Vec::new(), Vec::new());
        while let Some(oldest) = self.full.front() {
            let next_first = self.full.get(1).map(|full| full.first).or(self.head.first);
            let followed = next_first.is_some_and(|first| first <= durable);
            if oldest.last > upto.min(durable) || !followed {
                break;
            }
            let room = self.spares.len() + keep.len() < self.config.spares_max;
            if room {
                keep.push(oldest.seq);
            } else {
                remove.push(oldest.seq);
            }
            self.full.pop_front();
        }
        if keep.is_empty() && remove.is_empty() {
            return None;
        }
        Some(TrimWork { disk: self.disk.clone(), whose: self.whose.clone(), keep, remove })
    }

    fn first(&self) -> Option<Lsn> {
        self.full.front().map(|full| full.first).or(self.head.first)
    }

    fn log_bytes(&self) -> u64 {
        let gathering = self.filling.as_ref().map_or(0, |filling| filling.disk_bytes() as u64);
        self.full.iter().map(|full| full.used).sum::<u64>() + self.head.position + gathering
    }
}

/// The header of a segment that is prepared now.
pub(super) fn new_header(config: &LogConfig, run: Run, seq: u64, previous: u64) -> SegmentHeader {
    let salt = mix(mix(config.seed ^ seq) ^ run.number());
    SegmentHeader { shard: config.shard, seq, previous, bytes: config.segment_bytes, salt }
}

/// For error messages.
pub(super) fn whose(config: &LogConfig) -> Whose {
    Whose { shard: config.shard, dir: Rc::new(Path::to_path_buf(&config.dir)) }
}

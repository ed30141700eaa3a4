//! Compaction: of each key only the latest record stays, as Kafka's log cleaner does it.
//!
//! ```text
//!    clean                      │ dirty                         │ active, or not in files yet
//!  ┌───────┬───────┬───────┬────┼──────┬──────────┬──────────┐  │
//!  │ merged│       │       │    │      │          │          │  │  1 scan: where is the latest record of each key?
//!  └───────┴───────┴───────┴────┼──────┴──────────┴──────────┘  │    (bounded memory: perhaps only of a part)
//!  ┌───────────────┬────────────┬────────────┐                  │  2 rewrite from the front: what has a later record
//!  │       a       │     b      │     c      │                  │    goes, and so do tombstones whose time is up
//!  └───────────────┴────────────┴────────────┘                  │  3 swap, file by file
//! ```
//!
//! [`latest`] is the memory of 1, [`walk`] reads, [`output`] writes. A file is written under a name that does not count and
//! synced; then it gets the name that says which range it replaces; once that is durable, the files in the range are
//! removed. A crash leaves either all old files, or the new one with some old ones that are stale (see
//! [`super::names`]); what is there is right in every case, and the work is done again.
//!
//! The order makes it so: a record goes only while a later one of its key is in the files, and a tombstone only after a
//! whole compaction has removed all before it. Damage is never copied: every checksum is verified.

mod latest;
mod output;
mod walk;

use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;

use flowmesh_model::compression::{Codec, codec_of};
use flowmesh_model::record::{RecordSlices, key_and_presence};
use flowmesh_model::reply::RecordRun;
use flowmesh_model::{Cleaned, CompactedSegment, CompactionJob, Offset, PartitionRef};
use thiserror::Error;

use super::error::{SegmentDamage, SegmentError};
use super::files::{Inner, StreamFiles, io_error};
use super::format::{FileHeader, UncheckedRun};
use super::names::UNFINISHED;
use crate::disk::Disk;
use latest::{Latest, Noted, hash};
use output::Output;
use walk::{Source, Walk, WalkedBlock};

/// Records that are looked at before others have a turn: about 50 µs. A call of a client needs several turns.
const RECORDS_AT_ONCE: u32 = 256;

/// Who says how fast compaction may go, and whether it is to go on.
pub trait Pace {
    /// Called every 50 µs or so, with what was read and written since. Returns once work may go on.
    ///
    /// # Errors
    /// [`GivenUp`] if it is to end.
    fn pause(&self, bytes: u64) -> impl Future<Output = Result<(), GivenUp>>;
}

/// A compaction ended early: it was told to, or files that it works on are gone. All is as it was, but for files that
/// were swapped before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the compaction was given up")]
pub struct GivenUp;

/// Why a compaction ended early.
#[derive(Debug, Error)]
pub enum CompactionError {
    /// Files cannot be read or written.
    #[error("{0}")]
    Segments(#[from] SegmentError),
    /// It was told to, or files are gone.
    #[error("{0}")]
    GivenUp(#[from] GivenUp),
}

/// What a compaction has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactionStats {
    /// Records that were looked at to be rewritten, and their packed bytes.
    pub records_in: u64,
    /// The same in bytes.
    pub bytes_in: u64,
    /// Records of them that are left.
    pub records_out: u64,
    /// The same in bytes.
    pub bytes_out: u64,
}

/// A compaction of one partition. Dropped at any time it leaves nothing but a file that does not count.
pub struct Compaction<D: Disk> {
    inner: Rc<Inner<D>>,
    job: CompactionJob,
    sources: Vec<Source>,
    /// Sources that were rewritten.
    rewritten: usize,
    latest: Latest,
    /// Records before are in `latest`, or clean.
    upto: Offset,
    tombstone: Option<Offset>,
    stats: CompactionStats,
}

/// A compacted file that is finished, and does not count yet.
pub struct Rewritten {
    path: PathBuf,
    header: FileHeader,
    sources: Vec<Source>,
    segment: CompactedSegment,
}

impl<D: Disk> StreamFiles<D> {
    /// Begins a compaction, with about `memory_bytes` to remember keys in. One at a time for all partitions. `None` if the
    /// files are not as the job says: records of it are not in files, or gone by now.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub async fn begin_compaction(
        &self,
        job: CompactionJob,
        memory_bytes: usize,
    ) -> Result<Option<Compaction<D>>, SegmentError> {
        self.inner.list(job.at).await?;
        {
            let _changing = self.inner.changing.lock().await;
            self.inner.remove_stale(job.at).await?;
        }
        let sources = self.inner.sources(&job);
        if sources.last().is_none_or(|last| last.end != job.end) {
            return Ok(None);
        }
        let (inner, upto) = (Rc::clone(&self.inner), job.dirty_from);
        let latest = Latest::new(memory_bytes);
        let stats = CompactionStats::default();
        Ok(Some(Compaction { inner, job, sources, rewritten: 0, latest, upto, tombstone: None, stats }))
    }

    /// Removes what a compaction left that was cut off: after a start, of each partition that may be compacted.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub async fn remove_unfinished(&self, at: PartitionRef) -> Result<(), SegmentError> {
        self.inner.list(at).await?;
        let _changing = self.inner.changing.lock().await;
        let path = self.inner.dir(at).join(UNFINISHED);
        match self.inner.disk.remove(&path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io_error(at, "remove", &path, error));
            }
            _ => {}
        }
        self.inner.remove_stale(at).await
    }
}

impl<D: Disk> Inner<D> {
    /// The files that hold what a job is about.
    fn sources(&self, job: &CompactionJob) -> Vec<Source> {
        let partitions = self.partitions.borrow();
        let Some(partition) = partitions.get(&job.at) else { return Vec::new() };
        let (Some(files), Some((first, _))) = (&partition.files, job.segments.first()) else {
            return Vec::new();
        };
        let from = partition.file_of(*first).unwrap_or(*first);
        let ends = files.range(from..).skip(1).map(|(base, _)| *base).chain([partition.next]);
        let all = files.range(from..).zip(ends);
        let source = |((base, _), end): ((&Offset, &Option<Offset>), Offset)| Source { base: *base, end };
        all.map(source).take_while(|source| source.base < job.end).collect()
    }

    /// Whether all of these are still there.
    fn has_all(&self, at: PartitionRef, sources: &[Source]) -> bool {
        let partitions = self.partitions.borrow();
        let files = partitions.get(&at).and_then(|partition| partition.files.as_ref());
        files.is_some_and(|files| sources.iter().all(|source| files.contains_key(&source.base)))
    }
}

impl<D: Disk> Compaction<D> {
    /// Finds the latest record of each key among the dirty ones, as far as there is memory for the keys.
    ///
    /// # Errors
    /// [`CompactionError`].
    pub async fn scan<P: Pace>(&mut self, pace: &P) -> Result<(), CompactionError> {
        let inner = Rc::clone(&self.inner);
        let dirty: Vec<Source> =
            self.sources.iter().copied().filter(|source| source.end > self.job.dirty_from).collect();
        for source in dirty {
            let scanned = self.scan_file(&inner, source, pace).await;
            if !scanned.map_err(|error| self.unless_gone(error))? {
                return Ok(());
            }
        }
        self.upto = self.job.end;
        Ok(())
    }

    /// Whether there was room for all keys of a file.
    async fn scan_file<P: Pace>(
        &mut self,
        inner: &Inner<D>,
        source: Source,
        pace: &P,
    ) -> Result<bool, CompactionError> {
        let mut walk = Walk::open(inner, self.job.at, source).await?;
        let from = self.job.dirty_from.max(self.job.earliest);
        while let Some(mut block) = walk.next(from).await? {
            let (mut expected, mut left) = (block.header.base, RECORDS_AT_ONCE);
            pace.pause(block.disk_bytes).await?;
            for _ in 0..block.header.runs {
                let (run, _) = take_run(&walk, &mut block, &mut expected)?;
                let mut offset = run.base;
                for record in RecordSlices::new(&run.records) {
                    let key = record.and_then(key_and_presence).map_err(|_| damaged(&walk, &block))?.0;
                    if let Some(key) = key.filter(|_| offset >= from) {
                        let hash = hash(key);
                        while self.latest.note(hash, offset) == Noted::NeedsRoom {
                            if !self.latest.grow(pace).await? {
                                self.upto = offset;
                                return Ok(false);
                            }
                        }
                    }
                    offset = offset.plus(1);
                    left -= 1;
                    if left == 0 {
                        pace.pause(0).await?;
                        left = RECORDS_AT_ONCE;
                    }
                }
            }
        }
        Ok(true)
    }

    /// Writes the next file, with what is left of one or some of those that are there. `None` once all is done.
    ///
    /// # Errors
    /// [`CompactionError`].
    pub async fn rewrite<P: Pace>(&mut self, pace: &P) -> Result<Option<Rewritten>, CompactionError> {
        let inner = Rc::clone(&self.inner);
        let path = inner.dir(self.job.at).join(UNFINISHED);
        while let Some(first) = self.sources.get(self.rewritten).filter(|source| source.base < self.upto) {
            let base = first.base;
            let mut output = self.create(&inner, path.clone()).await?;
            let before = self.stats;
            let rewritten = self.rewrite_group(&inner, &mut output, pace).await;
            let sources = rewritten.map_err(|error| self.unless_gone(error))?;
            let Some(last) = sources.last() else { break };
            let end = last.end;
            let gone =
                (self.stats.records_in - before.records_in) - (self.stats.records_out - before.records_out);
            if sources.len() == 1 && gone == 0 && self.is_as_it_was(base, end, output.bytes) {
                continue;
            }
            let header = output.finish(self.job.at, base, end).await;
            let header = header.map_err(|error| io_error(self.job.at, "write to", &path, error))?;
            let (first, bytes, times) = (self.job.segments.first(), output.bytes, output.times);
            let base = first.map_or(base, |(first, _)| base.max(*first));
            let segment = CompactedSegment { base, end, bytes, times };
            return Ok(Some(Rewritten { path, header, sources, segment }));
        }
        Ok(None)
    }

    async fn create(&self, inner: &Inner<D>, path: PathBuf) -> Result<Output<D>, CompactionError> {
        // Nobody removes the directory meanwhile.
        let _changing = inner.changing.lock().await;
        if !inner.has_all(self.job.at, self.sources.get(self.rewritten..).unwrap_or_default()) {
            return Err(GivenUp.into());
        }
        let output = Output::create(&inner.disk, path.clone(), inner.config.block_bytes).await;
        Ok(output.map_err(|error| io_error(self.job.at, "create", &path, error))?)
    }

    /// Whether a file is just the segment that the job says, of which nothing goes.
    fn is_as_it_was(&self, base: Offset, end: Offset, bytes: u64) -> bool {
        let mut of_it = self.job.segments.iter().filter(|segment| (base..end).contains(&segment.0));
        of_it.next() == Some(&(base, bytes)) && of_it.next().is_none()
    }

    /// Copies what is left of the next sources, until they make up a segment.
    async fn rewrite_group<P: Pace>(
        &mut self,
        inner: &Inner<D>,
        output: &mut Output<D>,
        pace: &P,
    ) -> Result<Vec<Source>, CompactionError> {
        let mut read = Vec::new();
        while let Some(&source) = self.sources.get(self.rewritten) {
            let (records, bytes) = (output.records, output.bytes);
            self.rewrite_file(inner, source, output, pace).await?;
            output.close_run();
            self.rewritten += 1;
            self.stats.records_out += output.records - records;
            self.stats.bytes_out += output.bytes - bytes;
            read.push(source);
            if self.ends_group(source.end, output.bytes) {
                break;
            }
        }
        Ok(read)
    }

    /// Whether a file may and should end at this place, with so many bytes. It may where a segment ends. It should unless it
    /// and what follows fit one segment; or it is so small that half of a segment more is better than another segment.
    fn ends_group(&self, end: Offset, bytes: u64) -> bool {
        if end >= self.job.end || end >= self.upto {
            return end >= self.job.end || self.job.segments.iter().any(|(base, _)| *base == end);
        }
        let Some((_, next)) = self.job.segments.iter().find(|(base, _)| *base == end) else { return false };
        let size = self.job.segment_bytes;
        !(bytes + next <= size || (bytes < size / 2 && *next <= size))
    }

    async fn rewrite_file<P: Pace>(
        &mut self,
        inner: &Inner<D>,
        source: Source,
        output: &mut Output<D>,
        pace: &P,
    ) -> Result<(), CompactionError> {
        let mut walk = Walk::open(inner, self.job.at, source).await?;
        while let Some(mut block) = walk.next(source.base).await? {
            pace.pause(block.disk_bytes).await?;
            let (mut expected, mut left, mut bytes) = (block.header.base, RECORDS_AT_ONCE, 0);
            for _ in 0..block.header.runs {
                let (run, codec) = take_run(&walk, &mut block, &mut expected)?;
                let (mut offset, mut slices) = (run.base, RecordSlices::new(&run.records));
                let mut rest = slices.rest();
                while let Some(record) = slices.next() {
                    let known = record.and_then(key_and_presence);
                    let (key, has_value) = known.map_err(|_| damaged(&walk, &block))?;
                    let packed = rest.split_at(rest.len() - slices.rest().len()).0;
                    rest = slices.rest();
                    self.stats.records_in += 1;
                    self.stats.bytes_in += packed.len() as u64;
                    if self.stays(offset, key, has_value) {
                        let pushed = output.push(offset, run.appended_at, packed, codec).await;
                        bytes +=
                            pushed.map_err(|error| io_error(self.job.at, "write to", &output.path, error))?;
                    }
                    offset = offset.plus(1);
                    left -= 1;
                    if left == 0 {
                        pace.pause(std::mem::take(&mut bytes)).await?;
                        left = RECORDS_AT_ONCE;
                    }
                }
            }
            pace.pause(bytes).await?;
        }
        Ok(())
    }

    /// Whether a record is kept. Takes note of tombstones that are.
    #[inline]
    fn stays(&mut self, offset: Offset, key: Option<&[u8]>, has_value: bool) -> bool {
        if offset < self.job.earliest {
            return false;
        }
        let Some(key) = key.filter(|_| offset < self.upto) else { return true };
        if self.latest.has_later(hash(key), offset) {
            return false;
        }
        if !has_value {
            if offset < self.job.tombstones_before {
                return false;
            }
            self.tombstone.get_or_insert(offset);
        }
        true
    }

    /// Puts a file in the place of those it was made of. Once this returns, a crash does not undo it.
    ///
    /// # Errors
    /// [`CompactionError`]: given up if files were removed meanwhile; then so is the new one.
    pub async fn swap(&mut self, rewritten: Rewritten) -> Result<CompactedSegment, CompactionError> {
        let Rewritten { path, header, sources, segment } = rewritten;
        let (inner, at) = (&self.inner, self.job.at);
        let _changing = inner.changing.lock().await;
        if !inner.has_all(at, &sources) {
            let _ = inner.disk.remove(&path).await;
            return Err(GivenUp.into());
        }
        let target = inner.dir(at).join(header.file_name());
        let renamed = inner.disk.rename(&path, &target).await;
        renamed.map_err(|error| io_error(at, "rename", &path, error))?;
        let dir = inner.dir(at);
        inner.disk.sync_dir(&dir).await.map_err(|error| io_error(at, "sync", &dir, error))?;
        inner.swapped(at, header, &sources);
        if let Err(error) = inner.remove_stale(at).await {
            // They do not count, and go later.
            tracing::debug!(%error, "files that were compacted are not removed yet");
        }
        Ok(segment)
    }

    /// How far this compaction came, once all is rewritten.
    pub fn cleaned(&self) -> Cleaned {
        Cleaned { upto: self.upto, tombstone: self.tombstone }
    }

    /// What was done so far.
    pub fn stats(&self) -> CompactionStats {
        self.stats
    }

    /// Gives the memory back, and removes a file that does not count. To be called however the compaction ended.
    pub async fn finish<P: Pace>(mut self, pace: &P) {
        {
            let _changing = self.inner.changing.lock().await;
            let _ = self.inner.disk.remove(&self.inner.dir(self.job.at).join(UNFINISHED)).await;
        }
        self.latest.free(pace).await;
    }

    /// What an error means: nothing, if files are gone that were to be compacted.
    fn unless_gone(&self, error: CompactionError) -> CompactionError {
        let left = self.sources.get(self.rewritten..).unwrap_or_default();
        if self.inner.has_all(self.job.at, left) { error } else { GivenUp.into() }
    }
}

impl<D: Disk> Inner<D> {
    /// Counts a compacted file in place of others, which become stale.
    fn swapped(&self, at: PartitionRef, header: FileHeader, sources: &[Source]) {
        self.forget_ahead(at);
        let replaced: Vec<String> = {
            let names = sources.iter().filter_map(|source| {
                let path = self.path(at, source.base);
                path.file_name().and_then(|name| name.to_str()).map(str::to_owned)
            });
            let name = header.file_name();
            names.filter(|replaced| *replaced != name).collect()
        };
        self.open.borrow_mut().close_all(at);
        let mut partitions = self.partitions.borrow_mut();
        let Some(partition) = partitions.get_mut(&at) else { return };
        if let Some(files) = &mut partition.files {
            files.retain(|base, _| sources.iter().all(|source| source.base != *base));
            files.insert(header.base, header.compacted.map(|compacted| compacted.end));
        }
        let all = partition.replaced.get_or_insert_default();
        all.stale.extend(replaced);
        all.swaps += 1;
    }
}

fn damaged<D: Disk>(walk: &Walk<'_, D>, block: &WalkedBlock) -> SegmentError {
    walk.damaged(block, SegmentDamage::Shape)
}

/// Takes the next run off a block, checked.
fn take_run<D: Disk>(
    walk: &Walk<'_, D>,
    block: &mut WalkedBlock,
    expected: &mut Offset,
) -> Result<(RecordRun, Option<Codec>), SegmentError> {
    let run = UncheckedRun::take(&mut block.body).and_then(|run| {
        run.check_follows(*expected, walk.with_gaps())?;
        *expected = run.next();
        let run = run.check()?;
        let codec = codec_of(&run.records);
        Ok((run.plain().map_err(|_| SegmentDamage::Shape)?, codec))
    });
    run.map_err(|what| walk.damaged(block, what))
}

//! Opening a log: accept it, cut its torn tail, or refuse.
//!
//! The log is read from the entry after `applied` (what the index durably holds). Let `x` be the first LSN that cannot
//! be read, at the **first invalid place**. What proves that `x` was durable: `applied`, and the `synced LSN` of any
//! batch found behind that place, in that segment or a later one.
//!
//! | # | what is found | what is done |
//! |---|---|---|
//! | 1 | no files, nothing applied | a new log |
//! | 2 | no segment, but something applied, or spares | refuse: `EndsEarly` |
//! | 3 | zeros, or old bytes of a recycled file, where the next batch would be | accept: the log ends here |
//! | 4 | an invalid place, nothing behind it proves that `x` was durable | cut: a torn tail |
//! | 5 | an invalid place, something proves that `x` was durable | refuse: `Damaged` |
//! | 6 | the log ends cleanly before what was applied | refuse: `EndsEarly` |
//! | 7 | the first segment starts after what is needed | refuse: `StartsLate` |
//! | 8 | a segment's header does not match its checksum, or its file has another length | refuse: `Damaged` |
//! | 9 | a segment of a newer format | refuse: `NewerFormat` |
//! | 10 | a segment of another shard | refuse: `WrongShard` |
//! | 11 | a segment under another's name | refuse: `SegmentMisnamed` |
//! | 12 | a segment between two others is missing | refuse: `SegmentMissing` |
//! | 13 | an entry that its reader does not understand | refuse: `Undecodable` |
//! | 14 | unfinished files (`.new`, `.cut`) | removed |
//! | 15 | files with other names | left alone |
//!
//! Places are invalid (rows 4, 5) by: no batch, a header or entry that does not match its checksum, a batch that is cut
//! off, an LSN that does not follow, a run below the one before.
//!
//! A cut batch may have been written but was never durable, so nobody was told of it. Segments behind the cut become
//! spares before anything else is written; bytes behind it in the same segment can never be taken for the log again
//! because of the run (see [`super::format`]).
//!
//! One loss cannot be told from a torn tail: damage in the very last batch, if no checkpoint followed it. An orderly
//! shutdown checkpoints, so this needs a crash *and* a decayed sector in the same few milliseconds of log.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;

use bytes::Bytes;
use flowmesh_model::codec::Malformed;
use flowmesh_model::{Lsn, Millis, Mutation};

use super::batch::Whose;
use super::config::LogConfig;
use super::error::{Damage, LogError};
use super::format::{
    BATCH_HEADER_BYTES, BatchHeader, HeaderFault, Run, SEGMENT_HEADER_BYTES, SegmentHeader, VERSION,
};
use super::reader::{BatchReader, Evidence, Fault, ReadBatch};
use super::segment::{
    FileKind, OpenSegment, PrepareFailed, SegmentRequest, drop_suffix, log_name, parse_name, sync_dir,
};
use super::writer::{Full, Head, Log, Opened, new_header, whose};
use crate::disk::{ALIGN, Disk, DiskFile};
use crate::pages::mix;

const FIRST_BATCH: u64 = SEGMENT_HEADER_BYTES as u64;

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub lsn: Lsn,
    /// Its time.
    pub time: Millis,
    /// Its body. Shares memory with its neighbours: detach what is kept for long.
    pub body: Bytes,
}

/// A torn tail that was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// In which file.
    pub file: PathBuf,
    /// Where.
    pub offset: u64,
    /// The first LSN that was cut; the next entry gets it.
    pub lsn: Lsn,
    /// What did not hold.
    pub what: Damage,
}

/// What opening a log found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Entries handed to the sink.
    pub entries: u64,
    /// The torn tail, if there was one.
    pub cut: Option<Cut>,
}

/// Opens the log of a shard, or makes a new one, and hands every entry after `applied` to `sink`, in order. All that was
/// handed over is durable when this returns.
///
/// # Errors
/// As in the table above; nothing is changed on disk then.
pub async fn recover<D: Disk>(
    disk: &D,
    config: LogConfig,
    applied: Lsn,
    mut sink: impl FnMut(Entry) -> Result<(), Malformed>,
) -> Result<(Log<D>, Recovered), LogError> {
    recover_with(disk, config, applied, async |entry| sink(entry)).await
}

/// As [`recover`], with a sink that may wait.
///
/// # Errors
/// As those of [`recover`].
pub async fn recover_with<D: Disk>(
    disk: &D,
    config: LogConfig,
    applied: Lsn,
    mut sink: impl AsyncFnMut(Entry) -> Result<(), Malformed>,
) -> Result<(Log<D>, Recovered), LogError> {
    if let Some((setting, allowed)) = config.problem() {
        return Err(LogError::Config { setting, allowed });
    }
    let whose = whose(&config);
    let listing = Listing::read(disk, &whose).await?;
    if listing.logs.is_empty() {
        if applied > Lsn(0) || !listing.spares.is_empty() {
            return Err(ends_early(&whose, applied, Lsn(1)));
        }
        let log = create(disk, config, whose, &listing).await?;
        return Ok((log, Recovered::default()));
    }
    let mut walk = Walk::start(disk, &whose, &listing, applied).await?;
    let (mut entries, mut held) = (0, None);
    while let Some((_, batch)) = walk.next().await? {
        for (lsn, time, body) in batch.filter(|&(lsn, ..)| lsn > applied) {
            // The mistake lags one behind, and so never comes to the last.
            let (lsn, time, body) = if Mutation::CutLogTooFar.is_made() {
                let Some(before) = held.replace((lsn, time, body)) else { continue };
                before
            } else {
                (lsn, time, body)
            };
            sink(Entry { lsn, time, body }).await.map_err(|Malformed(reason)| LogError::Undecodable {
                shard: whose.shard,
                file: walk.file(),
                lsn,
                reason,
            })?;
            entries += 1;
        }
    }
    let (log, cut) = walk.finish(disk, config, listing).await?;
    Ok((log, Recovered { entries, cut }))
}

fn ends_early(whose: &Whose, applied: Lsn, next: Lsn) -> LogError {
    LogError::EndsEarly { shard: whose.shard, dir: PathBuf::clone(&whose.dir), applied, next }
}

/// The log's directory by names.
struct Listing {
    logs: Vec<u64>,
    spares: Vec<u64>,
    unfinished: Vec<PathBuf>,
    next_seq: u64,
}

impl Listing {
    async fn read<D: Disk>(disk: &D, whose: &Whose) -> Result<Self, LogError> {
        let failed = |action, source| LogError::Io {
            shard: whose.shard,
            action,
            file: PathBuf::clone(&whose.dir),
            source,
        };
        disk.create_dir_all(&whose.dir).await.map_err(|error| failed("create", error))?;
        let names = disk.list(&whose.dir).await.map_err(|error| failed("list", error))?;
        let mut listing = Self { logs: Vec::new(), spares: Vec::new(), unfinished: Vec::new(), next_seq: 1 };
        for name in names {
            let Some((seq, kind)) = parse_name(&name) else { continue };
            listing.next_seq = listing.next_seq.max(seq.saturating_add(1));
            match kind {
                FileKind::Log => listing.logs.push(seq),
                FileKind::Spare => listing.spares.push(seq),
                FileKind::Unfinished => listing.unfinished.push(name),
            }
        }
        listing.logs.sort_unstable();
        Ok(listing)
    }

    async fn clean_up<D: Disk>(&self, disk: &D, whose: &Whose) -> Result<(), LogError> {
        for name in &self.unfinished {
            let file = whose.dir.join(name);
            disk.remove(&file).await.map_err(|source| LogError::Io {
                shard: whose.shard,
                action: "remove",
                file,
                source,
            })?;
        }
        Ok(())
    }
}

/// Row 1.
async fn create<D: Disk>(
    disk: &D,
    config: LogConfig,
    whose: Whose,
    listing: &Listing,
) -> Result<Log<D>, LogError> {
    listing.clean_up(disk, &whose).await?;
    let run = Run::after(0, mix(config.seed) as u32);
    let header = new_header(&config, run, listing.next_seq, 0);
    let request = SegmentRequest { disk: disk.clone(), whose: whose.clone(), header, spare: None };
    let prepared = request.prepare().await.map_err(|PrepareFailed { error }| error)?;
    sync_dir_above(disk, &whose).await?;
    Ok(Log::opened(Opened {
        disk: disk.clone(),
        whose,
        run,
        next: Lsn(1),
        full: VecDeque::new(),
        head: Head { segment: prepared.segment, first: None, position: FIRST_BATCH },
        ready: VecDeque::new(),
        spares: Vec::new(),
        next_seq: header.seq + 1,
        config,
    }))
}

async fn sync_dir_above<D: Disk>(disk: &D, whose: &Whose) -> Result<(), LogError> {
    let Some(above) = whose.dir.parent() else { return Ok(()) };
    disk.sync_dir(above).await.map_err(|source| LogError::Io {
        shard: whose.shard,
        action: "sync",
        file: above.to_path_buf(),
        source,
    })
}

/// A segment with a header that holds.
struct Found<D: Disk> {
    header: SegmentHeader,
    file: Rc<D::File>,
    /// The first batch header, if it holds. Its entries may not.
    first: Option<BatchHeader>,
    /// Where its batches end, once they were read.
    end: u64,
}

impl<D: Disk> Found<D> {
    /// Rows 8 to 11.
    async fn open(disk: &D, whose: &Whose, seq: u64) -> Result<Self, LogError> {
        let path = whose.dir.join(log_name(seq));
        let file = disk.open(&path).await.map_err(|error| whose.io("open", seq, error))?;
        let start = file.read_at(0, 2 * ALIGN).await.map_err(|error| whose.io("read", seq, error))?;
        let start = start.as_ref();
        let damaged = |offset, what| LogError::Damaged {
            shard: whose.shard,
            file: path.clone(),
            offset,
            lsn: Lsn(0),
            what,
        };
        let header = match SegmentHeader::decode(start) {
            Ok(header) => header,
            Err(HeaderFault::Damaged) => return Err(damaged(0, Damage::SegmentHeader)),
            Err(HeaderFault::Newer(version)) => {
                return Err(LogError::NewerFormat {
                    shard: whose.shard,
                    file: path,
                    version,
                    known: VERSION,
                });
            }
        };
        if header.shard != whose.shard {
            return Err(LogError::WrongShard { shard: whose.shard, file: path, found: header.shard });
        }
        if header.seq != seq {
            return Err(LogError::SegmentMisnamed { shard: whose.shard, file: path, inside: header.seq });
        }
        let size = file.size().await.map_err(|error| whose.io("read", seq, error))?;
        if size != header.bytes {
            return Err(damaged(size, Damage::SegmentLength));
        }
        let first = start.get(SEGMENT_HEADER_BYTES..SEGMENT_HEADER_BYTES + BATCH_HEADER_BYTES);
        let first = first.and_then(|bytes| BatchHeader::decode(bytes).ok());
        let first = first.filter(|first| first.belongs_to(&header));
        Ok(Self { header, file: Rc::new(file), first, end: FIRST_BATCH })
    }

    fn reader(&self) -> BatchReader<D> {
        BatchReader::new(Rc::clone(&self.file), self.header)
    }
}

/// Reads batch after batch through the segments, up to the first invalid place.
struct Walk<'a, D: Disk> {
    whose: &'a Whose,
    applied: Lsn,
    segments: Vec<Found<D>>,
    /// The segment being read.
    at: usize,
    reader: BatchReader<D>,
    /// The LSN that the next batch must start with.
    expected: Lsn,
    /// What the accepted batches say.
    evidence: Evidence,
    /// Why the walk is over.
    fault: Option<(usize, Fault)>,
}

impl<'a, D: Disk> Walk<'a, D> {
    async fn start(disk: &D, whose: &'a Whose, listing: &Listing, applied: Lsn) -> Result<Self, LogError> {
        let mut segments = Vec::with_capacity(listing.logs.len());
        for &seq in &listing.logs {
            segments.push(Found::open(disk, whose, seq).await?);
        }
        let at = first_needed(whose, &segments, applied)?;
        check_chain(whose, segments.get(at..).unwrap_or_default())?;
        let Some(segment) = segments.get(at) else { return Err(ends_early(whose, applied, Lsn(1))) };
        let reader = segment.reader();
        let expected = segment.first.map_or(Lsn(1), |first| first.first_lsn);
        Ok(Self {
            whose,
            applied,
            segments,
            at,
            reader,
            expected,
            evidence: Evidence::default(),
            fault: None,
        })
    }

    /// The next batch; `None` at the first invalid place.
    async fn next(&mut self) -> Result<Option<ReadBatch>, LogError> {
        let Some(segment) = self.segments.get(self.at) else { return Ok(None) };
        let (position, seq) = (segment.end, segment.header.seq);
        let read = self.reader.batch(position, self.expected, self.evidence.run).await;
        let fault = match read.map_err(|error| self.whose.io("read", seq, error))? {
            Ok(batch) => return Ok(Some(self.accept(batch))),
            Err(fault) => fault,
        };
        // The batch did not fit into this segment and went to the next one; or the log ends.
        let Some(next) = self.segments.get(self.at + 1) else {
            self.fault = Some((self.at, fault));
            return Ok(None);
        };
        let mut reader = next.reader();
        let read = reader.batch(FIRST_BATCH, self.expected, self.evidence.run).await;
        match read.map_err(|error| self.whose.io("read", next.header.seq, error))? {
            Ok(batch) => {
                self.at += 1;
                self.reader = reader;
                Ok(Some(self.accept(batch)))
            }
            Err(later) => {
                self.fault = Some(more_telling((self.at, fault), (self.at + 1, later)));
                Ok(None)
            }
        }
    }

    fn accept(&mut self, batch: ReadBatch) -> ReadBatch {
        let header = &batch.0;
        self.evidence.add(header);
        self.expected = Lsn(header.first_lsn.0 + u64::from(header.entries));
        if let Some(segment) = self.segments.get_mut(self.at) {
            segment.end += header.disk_bytes() as u64;
        }
        batch
    }

    /// The file being read.
    fn file(&self) -> PathBuf {
        let seq = self.segments.get(self.at).map_or(0, |segment| segment.header.seq);
        self.whose.dir.join(log_name(seq))
    }

    /// Decides between accept, cut and refuse, and makes the log ready to be written to.
    async fn finish(
        mut self,
        disk: &D,
        config: LogConfig,
        listing: Listing,
    ) -> Result<(Log<D>, Option<Cut>), LogError> {
        let (behind, lost_from) = self.search_behind().await?;
        let cut = self.decide(&behind)?;
        listing.clean_up(disk, self.whose).await?;
        let lost = self.segments.split_off(lost_from);
        let mut spares = listing.spares;
        let lost: Vec<u64> = lost.into_iter().map(|segment| segment.header.seq).collect();
        drop_suffix(disk, self.whose, &lost).await?;
        spares.extend(lost);
        let ready = self.segments.split_off(self.at + 1);
        self.make_durable(disk).await?;
        let run = Run::after(self.evidence.run.max(behind.run), mix(config.seed) as u32);
        let next = self.expected;
        let (full, head) = self.into_segments()?;
        let ready = ready.into_iter().map(|found| OpenSegment { header: found.header, file: found.file });
        let opened = Opened {
            disk: disk.clone(),
            whose: whose(&config),
            run,
            next,
            full,
            head,
            ready: ready.collect(),
            spares,
            next_seq: listing.next_seq,
            config,
        };
        Ok((Log::opened(opened), cut))
    }

    /// Searches everything behind the last accepted batch. Returns the first segment behind it that is not empty, too.
    async fn search_behind(&self) -> Result<(Evidence, usize), LogError> {
        let mut behind = Evidence::default();
        let mut lost_from = self.segments.len();
        for (index, segment) in self.segments.iter().enumerate().skip(self.at) {
            let before = behind.batches;
            let searched = behind.search(&*segment.file, &segment.header, segment.end).await;
            searched.map_err(|error| self.whose.io("read", segment.header.seq, error))?;
            if index > self.at && behind.batches > before {
                lost_from = lost_from.min(index);
            }
        }
        Ok((behind, lost_from))
    }

    /// Rows 3 to 6.
    fn decide(&self, behind: &Evidence) -> Result<Option<Cut>, LogError> {
        let Some((index, fault)) = self.fault else { return Ok(None) };
        let seq = self.segments.get(index).map_or(0, |segment| segment.header.seq);
        let file = self.whose.dir.join(log_name(seq));
        let Fault { offset, lsn, what } = fault;
        let ends_cleanly = what == Damage::NoBatch && behind.batches == 0;
        if ends_cleanly && lsn <= self.applied {
            return Err(ends_early(self.whose, self.applied, lsn));
        }
        if lsn <= behind.synced.max(self.applied) && !Mutation::CutDamage.is_made() {
            return Err(LogError::Damaged { shard: self.whose.shard, file, offset, lsn, what });
        }
        Ok((!ends_cleanly).then_some(Cut { file, offset, lsn, what }))
    }

    /// What was read may still be in a volatile cache, even the directory itself: the process before may have been
    /// killed at any point.
    async fn make_durable(&self, disk: &D) -> Result<(), LogError> {
        for segment in &self.segments {
            let synced = segment.file.sync().await;
            synced.map_err(|error| self.whose.io("sync", segment.header.seq, error))?;
        }
        sync_dir(disk, self.whose).await?;
        sync_dir_above(disk, self.whose).await
    }

    /// The segments with entries, and the one to go on with.
    fn into_segments(self) -> Result<(VecDeque<Full>, Head<D::File>), LogError> {
        let mut full: VecDeque<Full> = VecDeque::new();
        let mut following = self.expected;
        let mut segments = self.segments.into_iter().rev();
        let Some(last) = segments.next() else { return Err(ends_early(self.whose, self.applied, Lsn(1))) };
        let first = last.first.map(|first| first.first_lsn).filter(|_| last.end > FIRST_BATCH);
        following = first.unwrap_or(following);
        for found in segments {
            let first = found.first.map_or(following, |first| first.first_lsn).min(following);
            let used = if found.end > FIRST_BATCH { found.end } else { found.header.bytes };
            full.push_front(Full { seq: found.header.seq, first, last: Lsn(following.0 - 1), used });
            following = first;
        }
        let segment = OpenSegment { header: last.header, file: last.file };
        Ok((full, Head { segment, first, position: last.end }))
    }
}

/// The segment with the first entry that is needed. Row 7.
fn first_needed<D: Disk>(whose: &Whose, segments: &[Found<D>], applied: Lsn) -> Result<usize, LogError> {
    let needed = applied.next();
    let starts_by = |found: &Found<D>| found.first.is_some_and(|first| first.first_lsn <= needed);
    if let Some(at) = segments.iter().rposition(starts_by) {
        return Ok(at);
    }
    match segments.first().and_then(|found| found.first) {
        Some(first) => Err(LogError::StartsLate {
            shard: whose.shard,
            dir: PathBuf::clone(&whose.dir),
            needed,
            first: first.first_lsn,
        }),
        None => Ok(0),
    }
}

/// Row 12.
fn check_chain<D: Disk>(whose: &Whose, segments: &[Found<D>]) -> Result<(), LogError> {
    for (before, after) in segments.iter().zip(segments.iter().skip(1)) {
        if after.header.previous != before.header.seq {
            return Err(LogError::SegmentMissing {
                shard: whose.shard,
                file: whose.dir.join(log_name(after.header.seq)),
                missing: after.header.previous,
            });
        }
    }
    Ok(())
}

/// Where a segment simply has no further batch, the next one's broken start says more.
fn more_telling(here: (usize, Fault), next: (usize, Fault)) -> (usize, Fault) {
    let broken = !matches!(next.1.what, Damage::NoBatch | Damage::LsnGap | Damage::StaleRun);
    if here.1.what == Damage::NoBatch && broken { next } else { here }
}

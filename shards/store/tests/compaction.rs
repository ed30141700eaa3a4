//! Compaction of segment files on a simulated disk: whatever is appended, compacted, trimmed and cut off, what a reader finds
//! is what a simple model says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "helpers of tests panic as tests do"
)]

mod common;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use common::{block_on, disk, shard_dir};
use flowmesh_model::compression::{Codec, compress};
use flowmesh_model::record::{RecordPacker, RecordSlices, RecordView};
use flowmesh_model::reply::RecordRun;
use flowmesh_model::{CompactionJob, Millis, Offset, PartitionRef, ResourceId};
use flowmesh_sim::{Operation, Random, SimDisk};
use flowmesh_store::segments::{
    CompactionError, FoundRecords, GivenUp, Pace, SegmentError, StreamFiles, StreamFilesConfig,
};
use proptest::prelude::*;

const AT: PartitionRef = PartitionRef { resource: ResourceId(7), partition: 0 };
const SEGMENT_BYTES: u64 = 4_000;

/// Goes on, until it has been asked so often.
struct Steps(Cell<u64>);

impl Steps {
    fn unbounded() -> Self {
        Self(Cell::new(u64::MAX))
    }
}

impl Pace for Steps {
    async fn pause(&self, _: u64) -> Result<(), GivenUp> {
        let left = self.0.get().checked_sub(1).ok_or(GivenUp)?;
        self.0.set(left);
        Ok(())
    }
}

/// A record of the model: its key, whether it has a value, and when it was appended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    key: Option<u8>,
    is_tombstone: bool,
    time: u64,
}

impl Record {
    fn value(&self, offset: u64) -> Vec<u8> {
        if self.is_tombstone { Vec::new() } else { offset.to_le_bytes().repeat(1 + offset as usize % 40) }
    }
}

fn run(base: u64, records: &[Record]) -> RecordRun {
    let mut packer = RecordPacker::default();
    for (offset, record) in (base..).zip(records) {
        let key = record.key.map(|key| [key]);
        let value = record.value(offset);
        let key = key.as_ref().map(|key| &key[..]);
        packer.push(&RecordView { key, value: &value, ..RecordView::default() });
    }
    let appended_at = Millis(records[0].time);
    let plain = packer.finish();
    // Some rest compressed, those that shrink.
    let packed = Codec::ALL.get(base as usize % 5).and_then(|codec| compress(&plain, *codec));
    let records_packed = packed.unwrap_or(plain);
    RecordRun { base: Offset(base), count: records.len() as u32, appended_at, records: records_packed }
}

/// What the machine would know of a partition, and what every reader must find.
#[derive(Default)]
struct Model {
    /// All that was ever appended.
    all: Vec<Record>,
    /// Of them those that must be there: dropped ones are not.
    must: BTreeMap<u64, Record>,
    /// Where segments begin, with packed bytes as the machine has them; the last one is active.
    segments: Vec<(u64, u64)>,
    earliest: u64,
    clean: u64,
    /// What the files have for good, as the index knows.
    flushed: u64,
}

impl Model {
    fn next(&self) -> u64 {
        self.all.len() as u64
    }

    fn job(&self, tombstones_before: u64) -> Option<CompactionJob> {
        let (active, closed) = self.segments.split_last()?;
        let closed: Vec<_> = closed.iter().map(|(base, bytes)| (Offset(*base), *bytes)).collect();
        let (first, _) = *closed.first()?;
        Some(CompactionJob {
            at: AT,
            segments: closed,
            end: Offset(active.0),
            earliest: Offset(self.earliest),
            dirty_from: Offset(self.clean).max(first),
            tombstones_before: Offset(tombstones_before),
            segment_bytes: SEGMENT_BYTES,
        })
    }

    /// What must be left once `clean..upto` are compacted too.
    fn compacted(&mut self, upto: u64, tombstones_before: u64) {
        let mut latest = HashMap::new();
        for (offset, record) in (0u64..).zip(&self.all).take(upto as usize) {
            latest.insert(record.key, offset);
        }
        let stays = |offset: u64, record: &Record| {
            offset >= upto
                || record.key.is_none()
                || (latest[&record.key] == offset && !(record.is_tombstone && offset < tombstones_before))
        };
        self.must.retain(|offset, record| stays(*offset, record));
        self.clean = self.clean.max(upto);
    }

    fn trim(&mut self, earliest: u64) {
        self.earliest = self.earliest.max(earliest);
        self.must = self.must.split_off(&self.earliest);
        while self.segments.len() > 1 && self.segments[1].0 <= self.earliest {
            self.segments.remove(0);
        }
    }
}

struct Rig {
    disk: SimDisk,
    files: StreamFiles<SimDisk>,
    model: Model,
    time: u64,
}

async fn open(disk: &SimDisk, next: u64) -> StreamFiles<SimDisk> {
    // So few stay open that files are opened again and again.
    let config = StreamFilesConfig { block_bytes: 8 * 1024, open_max: 2, ..StreamFilesConfig::default() };
    StreamFiles::open(disk.clone(), &shard_dir(), config, [(AT, Offset(next))]).await.unwrap()
}

/// The records of some runs, with their offsets.
fn records(found: &FoundRecords) -> Vec<(u64, Record)> {
    let mut all = Vec::new();
    for run in &found.runs {
        let mut offset = run.base.0;
        for slice in RecordSlices::new(&run.plain().unwrap().records) {
            let view = RecordView::read(slice.unwrap()).unwrap();
            let key = view.key.map(|key| key[0]);
            let record = Record { key, is_tombstone: view.value.is_empty(), time: run.appended_at.0 };
            assert_eq!(view.value, record.value(offset), "the bytes of {offset}");
            all.push((offset, record));
            offset += 1;
        }
        assert_eq!(offset, run.base.0 + u64::from(run.count));
    }
    all
}

impl Rig {
    async fn new(seed: u64) -> Self {
        let disk = disk(seed);
        let files = open(&disk, 0).await;
        Self { disk, files, model: Model::default(), time: 1_000 }
    }

    /// Appends as a checkpoint does: the last segment goes on, or a new one begins.
    async fn append(&mut self, keys: &[(Option<u8>, bool)], rolls: bool) -> Result<(), SegmentError> {
        let base = self.model.next();
        self.time += 10;
        let record =
            |&(key, is_tombstone): &(Option<u8>, bool)| Record { key, is_tombstone, time: self.time };
        let records: Vec<Record> = keys.iter().map(record).collect();
        let run = run(base, &records);
        let begins = rolls || self.model.segments.is_empty();
        if begins {
            self.files.append_segment(AT, std::slice::from_ref(&run)).await?;
        } else {
            self.files.append(AT, std::slice::from_ref(&run)).await?;
        }
        self.files.sync().await?;
        if begins {
            self.model.segments.push((base, 0));
        }
        self.model.segments.last_mut().unwrap().1 += run.records.len() as u64;
        self.model.must.extend((base..).zip(records.clone()));
        self.model.all.extend(records);
        self.model.flushed = self.model.next();
        Ok(())
    }

    /// Compacts as a shard does. `log_loses`: so many facts are logged, those after are lost in a crash.
    async fn compact(
        &mut self,
        tombstones_before: u64,
        memory_bytes: usize,
        steps: &Steps,
        log_loses: Option<u64>,
    ) -> Result<(), CompactionError> {
        let Some(job) = self.model.job(tombstones_before) else { return Ok(()) };
        let mut compaction = self.files.begin_compaction(job, memory_bytes).await?.expect("files as told");
        let done = self.carry_out(&mut compaction, tombstones_before, steps, log_loses).await;
        compaction.finish(steps).await;
        done
    }

    async fn carry_out(
        &mut self,
        compaction: &mut flowmesh_store::segments::Compaction<SimDisk>,
        tombstones_before: u64,
        steps: &Steps,
        log_loses: Option<u64>,
    ) -> Result<(), CompactionError> {
        compaction.scan(steps).await?;
        let mut logged = 0;
        while let Some(rewritten) = compaction.rewrite(steps).await? {
            let segment = compaction.swap(rewritten).await?;
            if log_loses.is_some_and(|max| logged >= max) {
                continue;
            }
            logged += 1;
            let inside = |base: &u64| (segment.base.0..segment.end.0).contains(base);
            let place = self.model.segments.iter().position(|(base, _)| inside(base)).unwrap();
            assert_eq!(self.model.segments[place].0, segment.base.0, "a segment begins where it did");
            assert!(
                self.model.segments.iter().any(|(base, _)| *base == segment.end.0),
                "and ends where one did"
            );
            self.model.segments.retain(|(base, _)| !inside(base));
            self.model.segments.insert(place, (segment.base.0, segment.bytes));
        }
        if log_loses.is_none() {
            self.model.compacted(compaction.cleaned().upto.0, tombstones_before);
            let first = self.model.must.iter().find(|(offset, record)| {
                record.is_tombstone && record.key.is_some() && **offset < compaction.cleaned().upto.0
            });
            assert_eq!(compaction.cleaned().tombstone.map(|at| at.0), first.map(|(offset, _)| *offset));
        }
        Ok(())
    }

    /// Reads everything from `from` on, in bites, and by time.
    async fn read(&self, mut from: u64, records_max: u32, bytes_max: u32) -> Vec<(u64, Record)> {
        let mut all = Vec::new();
        while from < self.model.flushed {
            let found = self.files.read(AT, Offset(from), records_max, bytes_max).await.unwrap();
            assert!(found.next.0 > from, "a read that brings nothing says how far it looked");
            let some = records(&found);
            assert!(
                some.first().is_none_or(|(first, _)| *first >= from),
                "nothing before what was asked for"
            );
            assert!(some.last().is_none_or(|(last, _)| *last < found.next.0));
            all.extend(some);
            from = found.next.0;
        }
        all
    }

    /// Everything a reader sees is as the model says.
    async fn check(&self, random: &mut Random) {
        let model = &self.model;
        let expected: Vec<_> = model.must.iter().map(|(offset, record)| (*offset, record.clone())).collect();
        assert_eq!(self.read(model.earliest, 1_000_000, 1 << 30).await, expected);
        let limits = (1 + random.below(20) as u32, 1 + random.below(4_000) as u32);
        assert_eq!(self.read(model.earliest, limits.0, limits.1).await, expected);
        for _ in 0..4 {
            let from = model.earliest + random.below(model.next() - model.earliest + 1);
            let tail: Vec<_> = expected.iter().filter(|(offset, _)| *offset >= from).cloned().collect();
            assert_eq!(self.read(from, limits.0, limits.1).await, tail, "from {from}");
            let since = random.below(self.time + 10);
            let found = self.files.find(AT, Offset(from), Millis(since)).await.unwrap();
            let first = tail.iter().find(|(_, record)| record.time >= since);
            let first = first.map(|(offset, record)| (Offset(*offset), Millis(record.time)));
            assert_eq!(found, first, "from {from} since {since}");
        }
    }

    /// Everything the model says is there is there; what is more is something that was appended.
    async fn check_after_a_cut(&self, tombstones_before: u64) {
        let found = self.read(self.model.earliest, 7, 1 << 20).await;
        assert!(found.is_sorted_by(|a, b| a.0 < b.0), "in order");
        for (offset, record) in &found {
            assert_eq!(record, &self.model.all[*offset as usize]);
        }
        let found: BTreeMap<u64, Record> = found.into_iter().collect();
        // Of each key the last record is there, unless it is a tombstone that may be gone.
        let mut latest = BTreeMap::new();
        for (offset, record) in (0u64..).zip(&self.model.all) {
            latest.insert(record.key.map_or(u64::MAX - offset, u64::from), offset);
        }
        for offset in latest.into_values() {
            let Some(record) = self.model.must.get(&offset) else { continue };
            if record.is_tombstone && record.key.is_some() && offset < tombstones_before {
                continue;
            }
            assert!(found.contains_key(&offset), "{offset} is the last of its key, and gone");
        }
    }

    async fn crash(&mut self) {
        self.disk = self.disk.crash();
        self.files = open(&self.disk, self.model.flushed).await;
    }

    fn paths(&self) -> Vec<PathBuf> {
        self.disk.paths().into_iter().filter(|path| path.to_str().unwrap().contains("streams")).collect()
    }
}

fn keys() -> impl Strategy<Value = Vec<(Option<u8>, bool)>> {
    let key = prop_oneof![20 => (0u8..24).prop_map(Some), 1 => Just(None)];
    proptest::collection::vec((key, prop::bool::weighted(0.2)), 1..60)
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<(Option<u8>, bool)>, bool),
    Compact {
        tombstones: u8,
    },
    /// Facts after so many are lost, and with them what is known.
    CompactAndCrash {
        tombstones: u8,
        logged: u64,
    },
    /// Power fails at some operation.
    CutOff {
        tombstones: u8,
        after: u64,
    },
    GiveUp {
        tombstones: u8,
        after: u64,
    },
    /// To some place, and the files with it.
    Trim(u8),
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (keys(), prop::bool::weighted(0.4)).prop_map(|(keys, rolls)| Step::Append(keys, rolls)),
        4 => any::<u8>().prop_map(|tombstones| Step::Compact { tombstones }),
        1 => (any::<u8>(), 0..4u64)
            .prop_map(|(tombstones, logged)| Step::CompactAndCrash { tombstones, logged }),
        2 => (any::<u8>(), 1..60u64).prop_map(|(tombstones, after)| Step::CutOff { tombstones, after }),
        1 => (any::<u8>(), 0..20u64).prop_map(|(tombstones, after)| Step::GiveUp { tombstones, after }),
        1 => any::<u8>().prop_map(Step::Trim),
        1 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 1..40)
}

/// A place up to where all is clean: tombstones before may go.
fn part_of(share: u8, whole: u64) -> u64 {
    whole * u64::from(share) / 255
}

async fn play(seed: u64, steps: Vec<Step>) {
    let mut rig = Rig::new(seed).await;
    let mut random = Random::new(seed);
    for step in steps {
        match step {
            Step::Append(keys, rolls) => rig.append(&keys, rolls).await.unwrap(),
            Step::Compact { tombstones } => {
                let before = part_of(tombstones, rig.model.clean);
                rig.compact(before, 1 << 20, &Steps::unbounded(), None).await.unwrap();
            }
            Step::CompactAndCrash { tombstones, logged } => {
                let before = part_of(tombstones, rig.model.clean);
                rig.compact(before, 1 << 20, &Steps::unbounded(), Some(logged)).await.unwrap();
                rig.crash().await;
                settle(&mut rig, before).await;
            }
            Step::CutOff { tombstones, after } => {
                let before = part_of(tombstones, rig.model.clean);
                rig.disk.power_cut_after(after);
                let _ = rig.compact(before, 1 << 20, &Steps::unbounded(), Some(u64::MAX)).await;
                rig.crash().await;
                settle(&mut rig, before).await;
            }
            Step::GiveUp { tombstones, after } => {
                let before = part_of(tombstones, rig.model.clean);
                let limited = Steps(Cell::new(after));
                match rig.compact(before, 1 << 20, &limited, Some(u64::MAX)).await {
                    Ok(()) | Err(CompactionError::GivenUp(_)) => {}
                    Err(error) => panic!("{error}"),
                }
                settle(&mut rig, before).await;
            }
            Step::Trim(share) => {
                rig.model.trim(part_of(share, rig.model.next()));
                if let Some((oldest, _)) = rig.model.segments.first() {
                    rig.files.trim(AT, Offset(*oldest)).await.unwrap();
                }
            }
            Step::Crash => rig.crash().await,
        }
        rig.check(&mut random).await;
    }
}

/// After a compaction that ended somewhere: what must be there is, and once it is done again all is as it should be.
async fn settle(rig: &mut Rig, tombstones_before: u64) {
    rig.check_after_a_cut(tombstones_before).await;
    rig.compact(tombstones_before, 1 << 20, &Steps::unbounded(), None).await.unwrap();
    rig.files.remove_unfinished(AT).await.unwrap();
    assert!(rig.paths().iter().all(|path| path.extension().is_some_and(|e| e == "seg")), "{:?}", rig.paths());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn readers_find_what_the_model_says(seed: u64, steps in steps()) {
        block_on(play(seed, steps));
    }
}

/// Segments of keys, each with so many records, one key after the other.
async fn filled(seed: u64, segments: u64, records: u64, keys: u64) -> Rig {
    let mut rig = Rig::new(seed).await;
    for segment in 0..segments {
        let some: Vec<_> =
            (0..records).map(|n| (Some(((segment * records + n) % keys) as u8), false)).collect();
        for (first, some) in some.chunks(10).enumerate() {
            rig.append(some, first == 0).await.unwrap();
        }
    }
    rig
}

#[test]
fn every_operation_of_a_compaction_may_be_the_last() {
    block_on(async {
        let mut cut = 1;
        loop {
            let mut rig = filled(cut, 6, 60, 50).await;
            rig.disk.power_cut_after(cut);
            let done = rig.compact(0, 1 << 20, &Steps::unbounded(), Some(u64::MAX)).await.is_ok();
            rig.crash().await;
            settle(&mut rig, 0).await;
            rig.check(&mut Random::new(cut)).await;
            if done {
                break;
            }
            cut += 1;
        }
        assert!(cut > 20, "{cut}");
    });
}

#[test]
fn what_a_file_system_refuses_is_done_the_next_time() {
    block_on(async {
        let kinds = [
            Operation::Create,
            Operation::Open,
            Operation::Read,
            Operation::Write,
            Operation::Sync,
            Operation::Names,
            Operation::SyncDir,
        ];
        for (seed, (kind, nth)) in
            (0u64..).zip(kinds.into_iter().flat_map(|kind| [1, 2, 4].map(|nth| (kind, nth))))
        {
            let mut rig = filled(seed, 6, 60, 50).await;
            rig.disk.fail(kind, nth, std::io::ErrorKind::StorageFull);
            let _ = rig.compact(0, 1 << 20, &Steps::unbounded(), Some(u64::MAX)).await;
            rig.check_after_a_cut(0).await;
            // The fault may still be to come: one compaction does not do so much of everything.
            if rig.compact(0, 1 << 20, &Steps::unbounded(), None).await.is_err() {
                rig.compact(0, 1 << 20, &Steps::unbounded(), None).await.unwrap();
            }
            rig.check(&mut Random::new(seed)).await;
        }
    });
}

#[test]
fn small_segments_are_merged_and_their_number_does_not_grow() {
    block_on(async {
        let mut rig = filled(3, 1, 100, 100).await;
        for round in 0..40 {
            let some: Vec<_> = (0..100u8).map(|key| (Some(key), false)).collect();
            rig.append(&some, true).await.unwrap();
            rig.compact(0, 1 << 20, &Steps::unbounded(), None).await.unwrap();
            assert_eq!(
                rig.model.must.len() as u64,
                200,
                "round {round}: each key once, and the active segment"
            );
            assert!(rig.model.segments.len() <= 7, "round {round}: {:?}", rig.model.segments);
            assert_eq!(rig.paths().len(), rig.model.segments.len());
        }
    });
}

#[test]
fn a_stretch_of_which_nothing_is_left_is_passed_over() {
    block_on(async {
        let mut rig = Rig::new(5).await;
        rig.append(&[(Some(1), false), (Some(2), false)], true).await.unwrap();
        rig.append(&vec![(Some(3), true); 500], true).await.unwrap();
        rig.append(&[(Some(3), true)], true).await.unwrap();
        rig.append(&[(Some(4), false)], true).await.unwrap();
        rig.compact(0, 1 << 20, &Steps::unbounded(), None).await.unwrap();
        assert_eq!(rig.model.must.len(), 4, "a tombstone stays at first");
        rig.compact(502, 1 << 20, &Steps::unbounded(), None).await.unwrap();
        assert_eq!(rig.model.must.len(), 4, "and is the last record before its time is up");
        rig.compact(503, 1 << 20, &Steps::unbounded(), None).await.unwrap();
        assert_eq!(rig.model.must.keys().copied().collect::<Vec<_>>(), [0, 1, 503]);
        rig.check(&mut Random::new(5)).await;
        rig.crash().await;
        rig.check(&mut Random::new(6)).await;
        rig.append(&[(Some(4), false)], true).await.unwrap();
        rig.check(&mut Random::new(7)).await;
    });
}

#[test]
fn a_file_with_nothing_in_it_is_read_and_followed() {
    block_on(async {
        let mut rig = Rig::new(8).await;
        rig.append(&[(Some(1), true); 40], true).await.unwrap();
        rig.append(&[(Some(2), false)], true).await.unwrap();
        rig.compact(0, 1 << 20, &Steps::unbounded(), None).await.unwrap();
        rig.compact(40, 1 << 20, &Steps::unbounded(), None).await.unwrap();
        assert_eq!(rig.model.segments, [(0, 0), (40, rig.model.segments[1].1)]);
        let found = rig.files.read(AT, Offset(0), 10, 1000).await.unwrap();
        assert_eq!((records(&found).len(), found.next), (1, Offset(41)));
        rig.check(&mut Random::new(8)).await;
    });
}

#[test]
fn keys_beyond_the_memory_are_compacted_the_next_time() {
    block_on(async {
        let rig = Rig::new(9).await;
        // More keys than the least memory has room for: three quarters of 8192.
        let mut packers = Vec::new();
        for round in 0..2u64 {
            for chunk in 0..9u64 {
                let mut packer = RecordPacker::default();
                for n in 0..1_000u64 {
                    let key = (chunk * 1_000 + n).to_le_bytes();
                    packer.push(&RecordView { key: Some(&key), value: b"v", ..RecordView::default() });
                }
                packers.push((round * 9 + chunk, packer.finish()));
            }
        }
        let mut segments = Vec::new();
        for (number, packed) in packers {
            let run = RecordRun {
                base: Offset(number * 1_000),
                count: 1_000,
                appended_at: Millis(number),
                records: packed,
            };
            segments.push((run.base, run.records.len() as u64));
            rig.files.append_segment(AT, &[run]).await.unwrap();
        }
        rig.files.sync().await.unwrap();
        let (mut clean, mut passes) = (Offset(0), Vec::new());
        while clean < Offset(18_000) {
            let job = CompactionJob {
                at: AT,
                segments: segments.clone(),
                end: Offset(18_000),
                earliest: Offset(0),
                dirty_from: clean,
                tombstones_before: Offset(0),
                segment_bytes: 1,
            };
            let pace = Steps::unbounded();
            let mut compaction = rig.files.begin_compaction(job, 0).await.unwrap().unwrap();
            compaction.scan(&pace).await.unwrap();
            while let Some(rewritten) = compaction.rewrite(&pace).await.unwrap() {
                let segment = compaction.swap(rewritten).await.unwrap();
                let place = segments.iter().position(|(base, _)| *base == segment.base).unwrap();
                segments[place].1 = segment.bytes;
            }
            assert!(compaction.cleaned().upto > clean, "it goes on");
            clean = compaction.cleaned().upto;
            passes.push(clean.0);
        }
        assert_eq!(passes, [6_144, 12_288, 18_000]);
        let (mut offsets, mut from) = (Vec::new(), Offset(0));
        while from < Offset(18_000) {
            let found = rig.files.read(AT, from, 1_000, 1 << 20).await.unwrap();
            offsets.extend(found.runs.iter().flat_map(|run| run.base.0..run.base.0 + u64::from(run.count)));
            from = found.next;
        }
        assert_eq!(offsets, (9_000..18_000).collect::<Vec<_>>());
    });
}

#[test]
fn damage_is_found_and_not_copied() {
    block_on(async {
        let mut rig = filled(4, 3, 60, 10).await;
        let before = rig.paths();
        rig.disk.flip_bit(&before[1], 4096 + 200, 3);
        let error = rig.compact(0, 1 << 20, &Steps::unbounded(), None).await.unwrap_err();
        assert!(matches!(error, CompactionError::Segments(SegmentError::Damaged { .. })), "{error}");
        rig.files.remove_unfinished(AT).await.unwrap();
        assert_eq!(rig.paths(), before, "all is as it was");
    });
}

#[test]
fn a_compacted_file_that_was_cut_is_damaged() {
    block_on(async {
        let mut rig = filled(4, 3, 60, 100).await;
        rig.compact(0, 1 << 20, &Steps::unbounded(), None).await.unwrap();
        let path = rig.paths().into_iter().find(|path| path.to_str().unwrap().len() > 60).unwrap();
        let mut bytes = rig.disk.file(&path).unwrap();
        bytes.truncate(bytes.len() - 4096);
        rig.disk.put_file(&path, bytes);
        rig.files = open(&rig.disk, rig.model.flushed).await;
        let error = rig.files.read(AT, Offset(0), 1_000_000, u32::MAX).await.unwrap_err();
        assert!(matches!(error, SegmentError::Damaged { .. }), "{error}");
    });
}

#[test]
fn a_reader_goes_on_while_its_file_is_replaced() {
    block_on(async {
        for seed in 0..40 {
            let mut rig = filled(seed, 6, 60, 50).await;
            rig.disk = rig.disk.clone().with_polls_max(6);
            let (files, end) = (rig.files.clone(), rig.model.flushed);
            let reader = async {
                let (mut from, mut state) = (0, BTreeMap::new());
                while from < end {
                    let found = files.read(AT, Offset(from), 3, 300).await.unwrap();
                    assert!(found.next.0 > from);
                    state.extend(records(&found).into_iter().map(|(offset, record)| (record.key, offset)));
                    from = found.next.0;
                }
                state
            };
            let pace = Steps::unbounded();
            let (state, compacted) = futures::join!(reader, rig.compact(0, 1 << 20, &pace, None));
            compacted.unwrap();
            let mut expected = BTreeMap::new();
            expected.extend((0u64..).zip(&rig.model.all).map(|(offset, record)| (record.key, offset)));
            assert_eq!(state, expected, "the last of every key");
        }
    });
}

#[test]
fn retention_wins_over_a_compaction_that_is_under_way() {
    block_on(async {
        for after in 0..12 {
            let mut rig = filled(after, 6, 60, 50).await;
            let job = rig.model.job(0).unwrap();
            let pace = Steps::unbounded();
            let mut compaction = rig.files.begin_compaction(job, 1 << 20).await.unwrap().unwrap();
            let mut swaps = 0;
            let outcome: Result<(), CompactionError> = async {
                compaction.scan(&pace).await?;
                while let Some(rewritten) = compaction.rewrite(&pace).await? {
                    if swaps == after / 2 && after % 2 == 0 {
                        rig.files.trim(AT, Offset(240)).await?;
                    }
                    compaction.swap(rewritten).await?;
                    swaps += 1;
                    if swaps == after / 2 && after % 2 == 1 {
                        rig.files.trim(AT, Offset(240)).await?;
                    }
                }
                Ok(())
            }
            .await;
            assert!(matches!(outcome, Ok(()) | Err(CompactionError::GivenUp(_))), "{outcome:?}");
            compaction.finish(&pace).await;
            rig.files.trim(AT, Offset(240)).await.unwrap();
            rig.model.trim(240);
            rig.check_after_a_cut(0).await;
            rig.crash().await;
            settle(&mut rig, 0).await;
            rig.check(&mut Random::new(after)).await;
        }
    });
}

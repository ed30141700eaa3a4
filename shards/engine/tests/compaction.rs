//! Compaction of a whole shard: in the background, while it is read and written, over crashes and with retention.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::needless_pass_by_value,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test"
)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Rig, SimTimer};
use flowmesh_model::command::ReadFrom;
use flowmesh_model::record::{PackedRecords, RecordPacker, RecordSlices, RecordView};
use flowmesh_model::{
    CatalogCommand, Command, Kind, Millis, Offset, PartitionRef, Reject, Reply, ResourcePath, Settings,
    StreamCommand, StreamSettings,
};
use flowmesh_sim::{Random, SimDisk};

fn open(dir: &Path, disk: &SimDisk, timer: &SimTimer) -> Rig {
    Rig::open_quiet(dir, disk, timer, |_| {})
}

fn settings() -> StreamSettings {
    StreamSettings { segment_bytes: 65_536, compaction: true, ..StreamSettings::default() }
}

fn create(rig: &mut Rig, settings: StreamSettings) -> PartitionRef {
    PartitionRef { resource: rig.create_with("s", Settings::Stream(settings)), partition: 0 }
}

fn batch(records: &[(u64, Option<&[u8]>)]) -> PackedRecords {
    let mut packer = RecordPacker::default();
    for (key, value) in records {
        let key = key.to_string();
        let value = value.unwrap_or_default();
        packer.push(&RecordView { key: Some(key.as_bytes()), value, ..RecordView::default() });
    }
    PackedRecords::check(packer.finish()).unwrap()
}

/// Appends records of some 1000 bytes, a second apart; keys in turn.
fn fill(rig: &mut Rig, at: PartitionRef, from: u64, count: u64, keys: u64) {
    for number in from..from + count {
        rig.timer.advance(1_000);
        let mut value = number.to_string().into_bytes();
        value.resize(1_000, b'.');
        let records = batch(&[(number % keys, Some(&value))]);
        assert!(rig.ask(Command::Stream(at, StreamCommand::append(records))).is_ok());
    }
}

fn checkpoint(rig: &mut Rig) {
    rig.pool.run_until(rig.shard.clone().checkpoint()).unwrap();
}

/// Lets the loop find what there is to do, and do it.
fn settle(rig: &mut Rig) {
    for _ in 0..400 {
        rig.timer.advance(100);
        rig.run();
    }
    rig.shard.check_all();
}

/// Offsets, keys and values from an offset on, as a reader finds them who goes on where it is told to.
fn read_from(rig: &mut Rig, at: PartitionRef, from: ReadFrom) -> Vec<(u64, String, Vec<u8>)> {
    let (mut all, mut from) = (Vec::new(), from);
    loop {
        let read =
            StreamCommand::Read { from, records_max: 7, bytes_max: 4_000, bytes_min: 0, wait_until: None };
        let Ok(Reply::Records(records)) = rig.ask(Command::Stream(at, read)) else { panic!("not read") };
        for run in &records.runs {
            for (offset, record) in (run.base.0..).zip(RecordSlices::new(&run.records)) {
                let view = RecordView::read(record.unwrap()).unwrap();
                let key = String::from_utf8(view.key.unwrap().to_vec()).unwrap();
                all.push((offset, key, view.value.to_vec()));
            }
        }
        if records.next == records.high_watermark {
            return all;
        }
        if let ReadFrom::Offset(before) = from {
            assert!(records.next > before, "a read that brings nothing says how far it is");
        }
        from = ReadFrom::Offset(records.next);
    }
}

fn read_all(rig: &mut Rig, at: PartitionRef) -> Vec<(u64, String, Vec<u8>)> {
    read_from(rig, at, ReadFrom::Earliest)
}

struct State {
    earliest: u64,
    next: u64,
    bytes: u64,
    segments: u64,
    clean_upto: u64,
    dirty_bytes: u64,
}

fn status(rig: &mut Rig, at: PartitionRef) -> State {
    match rig.ask(Command::Stream(at, StreamCommand::Status)) {
        Ok(Reply::StreamStatus { earliest, next, bytes, segments, clean_upto, dirty_bytes, .. }) => State {
            earliest: earliest.0,
            next: next.0,
            bytes,
            segments,
            clean_upto: clean_upto.map_or(0, |offset| offset.0),
            dirty_bytes,
        },
        other => panic!("{other:?}"),
    }
}

/// Bytes of the stream's files.
fn file_bytes(disk: &SimDisk) -> u64 {
    let paths = disk.paths().into_iter().filter(|path| path.to_str().unwrap().contains("/streams/"));
    paths.map(|path| disk.file(&path).unwrap().len() as u64).sum()
}

#[test]
fn closed_segments_are_compacted_after_a_checkpoint() {
    let (dir, disk, timer) = (tempfile::tempdir().unwrap(), SimDisk::new(1), SimTimer::default());
    let mut rig = open(dir.path(), &disk, &timer);
    let at = create(&mut rig, settings());
    fill(&mut rig, at, 0, 400, 10);
    settle(&mut rig);
    assert_eq!(read_all(&mut rig, at).len(), 400, "what is not in files yet is not compacted");
    checkpoint(&mut rig);
    let before = file_bytes(&disk);
    settle(&mut rig);
    let state = status(&mut rig, at);
    assert!(state.clean_upto > 300 && state.clean_upto < 400 && state.segments == 2, "{}", state.clean_upto);
    assert!(state.bytes < 100_000 && file_bytes(&disk) * 3 < before, "bytes are counted as they are");
    assert_eq!((state.earliest, state.next, state.dirty_bytes), (0, 400, 0));
    let all = read_all(&mut rig, at);
    let expected: Vec<u64> = (state.clean_upto - 10..400).collect();
    assert_eq!(all.iter().map(|(offset, ..)| *offset).collect::<Vec<_>>(), expected, "offsets stay");
    for (offset, key, value) in &all {
        assert_eq!(*key, (offset % 10).to_string());
        assert!(value.starts_with(format!("{offset}.").as_bytes()));
    }
    for from in [0, 5, state.clean_upto - 11, state.clean_upto, 399] {
        let tail = read_from(&mut rig, at, ReadFrom::Offset(Offset(from)));
        assert_eq!(tail[0].0, from.max(state.clean_upto - 10), "from the next record there is");
    }
    let stats = rig.shard.stats().compaction;
    assert_eq!(stats.duration_ns.count(), 1);
    assert_eq!((stats.records_in, stats.records_out), (state.clean_upto, 10));
    // Over a crash before and after the next checkpoint it is the same.
    for _ in 0..2 {
        drop(rig);
        rig = open(dir.path(), &disk.crash(), &timer);
        rig.run();
        rig.shard.check_all();
        assert_eq!(read_all(&mut rig, at), all);
        let after = status(&mut rig, at);
        assert_eq!((after.bytes, after.clean_upto), (state.bytes, state.clean_upto));
        checkpoint(&mut rig);
    }
}

#[test]
fn a_stream_without_compaction_is_left_alone_until_it_is_switched_on() {
    let (dir, disk, timer) = (tempfile::tempdir().unwrap(), SimDisk::new(2), SimTimer::default());
    let mut rig = open(dir.path(), &disk, &timer);
    let at = create(&mut rig, StreamSettings { compaction: false, ..settings() });
    fill(&mut rig, at, 0, 300, 10);
    checkpoint(&mut rig);
    settle(&mut rig);
    assert_eq!(read_all(&mut rig, at).len(), 300);
    let path = ResourcePath::parse(Kind::Stream, "s").unwrap();
    let update = CatalogCommand::Update { path, settings: Settings::Stream(settings()) };
    assert!(rig.ask(Command::Catalog(update)).is_ok());
    rig.shard.set_catalog(rig.shard.catalog_snapshot());
    settle(&mut rig);
    assert!(read_all(&mut rig, at).len() < 100);
    let mut packer = RecordPacker::default();
    packer.push(&RecordView { value: b"v", ..RecordView::default() });
    let keyless = PackedRecords::check(packer.finish()).unwrap();
    let refused = rig.ask(Command::Stream(at, StreamCommand::append(keyless)));
    assert_eq!(refused, Err(Reject::KeyMissing { record: 0 }));
}

#[test]
fn tombstones_go_after_their_time_and_not_before() {
    let (dir, disk, timer) = (tempfile::tempdir().unwrap(), SimDisk::new(3), SimTimer::default());
    let mut rig = open(dir.path(), &disk, &timer);
    let at = create(&mut rig, StreamSettings { tombstone_retention_ms: Some(3_600_000), ..settings() });
    fill(&mut rig, at, 0, 30, 30);
    let tombstones = batch(&[(3, None), (4, None)]);
    assert!(rig.ask(Command::Stream(at, StreamCommand::append(tombstones))).is_ok());
    fill(&mut rig, at, 32, 120, 2);
    checkpoint(&mut rig);
    settle(&mut rig);
    let keys = |all: &[(u64, String, Vec<u8>)]| -> BTreeMap<String, (u64, bool)> {
        all.iter().map(|(offset, key, value)| (key.clone(), (*offset, value.is_empty()))).collect()
    };
    let all = keys(&read_all(&mut rig, at));
    assert_eq!((all.len(), all["3"], all["4"]), (30, (30, true), (31, true)));
    rig.timer.advance(3_500_000);
    settle(&mut rig);
    assert_eq!(keys(&read_all(&mut rig, at)).len(), 30, "a reader may still need them");
    drop(rig);
    let mut rig = open(dir.path(), &disk.crash(), &timer);
    rig.timer.advance(100_000);
    settle(&mut rig);
    let all = keys(&read_all(&mut rig, at));
    assert_eq!(all.len(), 28, "both keys are gone");
    assert!(!all.contains_key("3") && !all.contains_key("4"));
    let compactions = rig.shard.stats().compaction.duration_ns.count();
    settle(&mut rig);
    assert_eq!(rig.shard.stats().compaction.duration_ns.count(), compactions, "there is nothing else to do");
}

#[test]
fn the_bandwidth_is_kept_and_commands_go_on_meanwhile() {
    const PER_SECOND: u64 = 50_000;
    // What was not used for a while may be made up for, and one step is taken at once.
    const AT_ONCE: u64 = 70_000;
    let (dir, disk, timer) = (tempfile::tempdir().unwrap(), SimDisk::new(8), SimTimer::default());
    let mut rig = Rig::open_quiet(dir.path(), &disk, &timer, |config| {
        config.compaction_bytes_per_second = PER_SECOND;
    });
    let at = create(&mut rig, settings());
    fill(&mut rig, at, 0, 300, 10);
    checkpoint(&mut rig);
    let began = rig.shard.stats().compaction.disk_bytes;
    let (mut elapsed_ms, mut answered) = (0, 0);
    while rig.shard.stats().compaction.duration_ns.count() == 0 {
        assert!(elapsed_ms < 3_600_000, "it comes to its end");
        rig.timer.advance(100);
        elapsed_ms += 100;
        for _ in 0..20 {
            rig.run();
        }
        let done = rig.shard.stats().compaction.disk_bytes - began;
        assert!(
            done <= PER_SECOND * elapsed_ms / 1_000 + AT_ONCE,
            "{done} bytes were read and written in {elapsed_ms} ms"
        );
        if elapsed_ms % 1_000 == 0 {
            let record = batch(&[(1, Some(b"meanwhile"))]);
            assert!(rig.ask(Command::Stream(at, StreamCommand::append(record))).is_ok());
            answered += 1;
        }
    }
    let done = rig.shard.stats().compaction.disk_bytes - began;
    assert!(done > 4 * PER_SECOND && answered > 3, "{done} bytes, {answered} appends beside it");
}

#[test]
fn young_segments_wait_for_their_time() {
    let (dir, disk, timer) = (tempfile::tempdir().unwrap(), SimDisk::new(4), SimTimer::default());
    let mut rig = open(dir.path(), &disk, &timer);
    let at = create(&mut rig, StreamSettings { min_compaction_lag_ms: Some(1_000_000), ..settings() });
    fill(&mut rig, at, 0, 300, 10);
    checkpoint(&mut rig);
    settle(&mut rig);
    assert_eq!(read_all(&mut rig, at).len(), 300);
    rig.timer.advance(1_000_000);
    settle(&mut rig);
    assert!(read_all(&mut rig, at).len() < 100);
}

#[test]
fn retention_and_compaction_go_together() {
    let (dir, disk, timer) = (tempfile::tempdir().unwrap(), SimDisk::new(5), SimTimer::default());
    let mut rig = open(dir.path(), &disk, &timer);
    let at = create(&mut rig, StreamSettings { retention_ms: Some(1_000_000), ..settings() });
    fill(&mut rig, at, 0, 400, 50);
    checkpoint(&mut rig);
    settle(&mut rig);
    assert!(read_all(&mut rig, at).len() < 200);
    rig.timer.advance(800_000);
    settle(&mut rig);
    fill(&mut rig, at, 400, 300, 50);
    checkpoint(&mut rig);
    settle(&mut rig);
    let state = status(&mut rig, at);
    assert!(state.earliest > 300, "what is too old is gone: {}", state.earliest);
    let all = read_all(&mut rig, at);
    assert!(all[0].0 >= state.earliest);
    checkpoint(&mut rig);
    drop(rig);
    let mut rig = open(dir.path(), &disk.crash(), &timer);
    settle(&mut rig);
    assert_eq!(read_all(&mut rig, at), all);
}

#[test]
fn a_time_is_found_among_what_is_left() {
    let (dir, disk, timer) = (tempfile::tempdir().unwrap(), SimDisk::new(6), SimTimer::default());
    let mut rig = open(dir.path(), &disk, &timer);
    let at = create(&mut rig, settings());
    fill(&mut rig, at, 0, 300, 10);
    checkpoint(&mut rig);
    settle(&mut rig);
    let all = read_all(&mut rig, at);
    let find = |rig: &mut Rig, from| match rig.ask(Command::Stream(at, StreamCommand::FindOffset { from })) {
        Ok(Reply::OffsetFound { offset, appended_at }) => (offset.0, appended_at),
        other => panic!("{other:?}"),
    };
    let (first, time) = find(&mut rig, ReadFrom::Earliest);
    assert_eq!(first, all[0].0);
    assert_eq!(find(&mut rig, ReadFrom::Timestamp(Millis(0))), (first, time));
    let (second, later) = find(&mut rig, ReadFrom::Timestamp(time.unwrap().plus(1)));
    assert_eq!(second, all[1].0);
    assert_eq!(later, time.map(|time| time.plus(1_000)));
    assert_eq!(read_from(&mut rig, at, ReadFrom::Timestamp(time.unwrap().plus(1))), all[1..]);
}

#[test]
fn a_deleted_stream_ends_its_compaction() {
    let (dir, disk, timer) = (tempfile::tempdir().unwrap(), SimDisk::new(7), SimTimer::default());
    let mut rig = open(dir.path(), &disk, &timer);
    let at = create(&mut rig, settings());
    fill(&mut rig, at, 0, 300, 10);
    checkpoint(&mut rig);
    for _ in 0..20 {
        rig.pool.try_run_one();
    }
    rig.delete(Kind::Stream, "s");
    settle(&mut rig);
    checkpoint(&mut rig);
    settle(&mut rig);
    assert_eq!(file_bytes(&disk), 0);
    let refused = rig.ask(Command::Stream(at, StreamCommand::Status));
    assert!(matches!(refused, Err(Reject::ResourceNotFound { .. })));
}

/// Of each key the last value there must be.
#[test]
fn any_crash_leaves_the_last_record_of_every_key() {
    for seed in 0..12 {
        let mut random = Random::new(seed);
        let (dir, mut disk, timer) = (tempfile::tempdir().unwrap(), SimDisk::new(seed), SimTimer::default());
        let mut rig = open(dir.path(), &disk, &timer);
        let at = create(&mut rig, settings());
        let (mut last, mut next) = (BTreeMap::new(), 0u64);
        for _ in 0..6 {
            for _ in 0..random.below(200) {
                let key = random.below(40);
                let value = vec![b'.'; 1 + random.below(2_000) as usize];
                rig.timer.advance(100);
                let records = batch(&[(key, Some(&value))]);
                assert!(rig.ask(Command::Stream(at, StreamCommand::append(records))).is_ok());
                last.insert(key.to_string(), (next, value));
                next += 1;
            }
            if random.coin() {
                checkpoint(&mut rig);
            }
            if random.coin() {
                rig.timer.advance(20_000);
                for _ in 0..random.below(3_000) {
                    rig.pool.try_run_one();
                    if random.below(50) == 0 {
                        rig.timer.advance(1);
                    }
                }
            }
            if random.coin() {
                drop(rig);
                disk = disk.crash();
                rig = open(dir.path(), &disk, &timer);
                rig.run();
            }
            rig.shard.check_all();
            let all = read_all(&mut rig, at);
            assert!(all.is_sorted_by(|a, b| a.0 < b.0));
            let found: BTreeMap<_, _> =
                all.into_iter().map(|(offset, key, value)| (key, (offset, value))).collect();
            assert_eq!(found, last, "seed {seed}");
        }
    }
}

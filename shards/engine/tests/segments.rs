//! Retention, trims and times of a whole shard: files go with what they hold, and only once that is durable.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::needless_pass_by_value,
    missing_docs,
    reason = "a test"
)]

mod common;

use std::path::Path;

use common::{Rig, SimTimer, append, read_what_is_left};
use flowmesh_model::command::ReadFrom;
use flowmesh_model::{
    Command, Millis, Offset, PartitionRef, Reject, Reply, Settings, StreamCommand, StreamSettings,
};
use flowmesh_sim::{Operation, SimDisk};

fn open(dir: &Path, disk: &SimDisk, timer: &SimTimer) -> Rig {
    Rig::open_quiet(dir, disk, timer, |config| config.tail_bytes = 0)
}

fn create(rig: &mut Rig, settings: StreamSettings) -> PartitionRef {
    let settings = StreamSettings { segment_bytes: 65_536, ..settings };
    PartitionRef { resource: rig.create_with("s", Settings::Stream(settings)), partition: 0 }
}

/// Appends records of some 1000 bytes, a second apart.
fn fill(rig: &mut Rig, at: PartitionRef, from: u64, count: u64) {
    for number in from..from + count {
        rig.timer.advance(1_000);
        let mut value = number.to_string().into_bytes();
        value.resize(1_000, b'.');
        assert!(rig.ask(append(at, &value)).is_ok());
    }
}

fn checkpoint(rig: &mut Rig) {
    rig.pool.run_until(rig.shard.clone().checkpoint()).unwrap();
}

/// First offsets of the files on the disk.
fn files(disk: &SimDisk) -> Vec<u64> {
    let segments = disk.paths().into_iter().filter(|path| path.extension().is_some_and(|e| e == "seg"));
    let base = |path: std::path::PathBuf| path.file_stem()?.to_str()?.parse().ok();
    segments
        .filter(|path| path.parent().unwrap().parent().unwrap().ends_with("streams"))
        .filter_map(base)
        .collect()
}

fn status(rig: &mut Rig, at: PartitionRef) -> (u64, u64, u64, u64) {
    match rig.ask(Command::Stream(at, StreamCommand::Status)) {
        Ok(Reply::StreamStatus { earliest, next, bytes, segments, .. }) => {
            (earliest.0, next.0, bytes, segments)
        }
        other => panic!("{other:?}"),
    }
}

fn find(rig: &mut Rig, at: PartitionRef, from: ReadFrom) -> Result<(u64, Option<u64>), Reject> {
    match rig.ask(Command::Stream(at, StreamCommand::FindOffset { from }))? {
        Reply::OffsetFound { offset, appended_at } => Ok((offset.0, appended_at.map(Millis::get))),
        other => panic!("{other:?}"),
    }
}

#[test]
fn retention_by_bytes_removes_files_once_a_checkpoint_knows_of_it() {
    let (dir, disk, timer) = (tempfile::tempdir().unwrap(), SimDisk::new(1), SimTimer::default());
    let mut rig = open(dir.path(), &disk, &timer);
    let at = create(&mut rig, StreamSettings { retention_bytes: Some(100_000), ..StreamSettings::default() });
    fill(&mut rig, at, 0, 140);
    checkpoint(&mut rig);
    let before = files(&disk);
    assert_eq!(before.len(), 3);
    fill(&mut rig, at, 140, 60);
    let (earliest, next, bytes, segments) = status(&mut rig, at);
    assert_eq!((next, segments), (200, 3), "a segment went and one came");
    assert!(earliest > 0 && bytes >= 100_000);
    assert_eq!(files(&disk), before, "what the index does not know stays on disk");
    drop(rig);
    // A crash at this moment: the log has the trim, the index and the files do not.
    let mut rig = open(dir.path(), &disk.crash(), &timer);
    assert_eq!(status(&mut rig, at).0, earliest);
    checkpoint(&mut rig);
    let left = files(&rig.disk);
    assert_eq!((left.len(), left[0]), (3, earliest), "files are those of the segments");
    let (first, values) = read_what_is_left(&mut rig, at);
    assert_eq!((first, values.len() as u64), (earliest, 200 - earliest));
    assert!(values[0].starts_with(earliest.to_string().as_bytes()));
}

#[test]
fn files_that_a_crash_left_behind_go_at_the_next_start() {
    let (dir, disk, timer) = (tempfile::tempdir().unwrap(), SimDisk::new(2), SimTimer::default());
    let mut rig = open(dir.path(), &disk, &timer);
    let at = create(&mut rig, StreamSettings::default());
    fill(&mut rig, at, 0, 200);
    checkpoint(&mut rig);
    let all = files(&disk);
    assert_eq!(all.len(), 4);
    assert!(rig.ask(Command::Stream(at, StreamCommand::Trim { upto: Offset(150) })).is_ok());
    // The checkpoint is written, but the files cannot be removed.
    disk.fail(flowmesh_sim::Operation::Names, 1, std::io::ErrorKind::Other);
    rig.pool.run_until(rig.shard.clone().checkpoint()).unwrap_err();
    assert_eq!(files(&disk), all);
    drop(rig);
    let mut rig = open(dir.path(), &disk.crash(), &timer);
    rig.run();
    assert_eq!(files(&rig.disk), all[2..], "exact to a segment");
    assert_eq!(read_what_is_left(&mut rig, at).0, 150, "exact to a record");
}

#[test]
fn an_idle_stream_empties_by_age() {
    let (dir, disk, timer) = (tempfile::tempdir().unwrap(), SimDisk::new(3), SimTimer::default());
    let mut rig = open(dir.path(), &disk, &timer);
    let at = create(&mut rig, StreamSettings { retention_ms: Some(300_000), ..StreamSettings::default() });
    fill(&mut rig, at, 0, 70);
    checkpoint(&mut rig);
    timer.advance(299_000);
    rig.run();
    assert!(status(&mut rig, at).0 > 0, "the first segment went before the second");
    timer.advance(1_500);
    rig.run();
    assert_eq!(status(&mut rig, at), (70, 70, 0, 0));
    let early = Command::Stream(
        at,
        StreamCommand::Read {
            from: ReadFrom::Offset(Offset(69)),
            records_max: 1,
            bytes_max: 1,
            bytes_min: 0,
            wait_until: None,
        },
    );
    let range = Reject::OffsetOutOfRange { requested: Offset(69), earliest: Offset(70), next: Offset(70) };
    assert_eq!(rig.ask(early), Err(range));
    checkpoint(&mut rig);
    assert!(files(&disk).is_empty());
    drop(rig);
    let mut rig = open(dir.path(), &disk.crash(), &timer);
    assert_eq!(status(&mut rig, at), (70, 70, 0, 0));
    fill(&mut rig, at, 70, 5);
    checkpoint(&mut rig);
    assert_eq!((files(&rig.disk), read_what_is_left(&mut rig, at).1.len()), (vec![70], 5));
}

#[test]
fn a_time_is_found_in_memory_and_in_files_and_across_a_start() {
    let (dir, disk, timer) = (tempfile::tempdir().unwrap(), SimDisk::new(4), SimTimer::default());
    let mut rig = open(dir.path(), &disk, &timer);
    let at = create(&mut rig, StreamSettings::default());
    fill(&mut rig, at, 0, 100);
    let times: Vec<u64> = (0..100)
        .map(|offset| find(&mut rig, at, ReadFrom::Offset(Offset(offset))).unwrap().1.unwrap())
        .collect();
    assert!(times.is_sorted());
    let check = |rig: &mut Rig| {
        for offset in (0..100).step_by(7) {
            let time = times[offset as usize];
            assert_eq!(find(rig, at, ReadFrom::Timestamp(Millis(time))), Ok((offset, Some(time))));
            assert_eq!(find(rig, at, ReadFrom::Offset(Offset(offset))), Ok((offset, Some(time))));
            let before = find(rig, at, ReadFrom::Timestamp(Millis(time - 1))).unwrap();
            assert_eq!(before, (offset, Some(time)));
            let read = StreamCommand::Read {
                from: ReadFrom::Timestamp(Millis(time)),
                records_max: 1,
                bytes_max: 1,
                bytes_min: 0,
                wait_until: None,
            };
            let Ok(Reply::Records(records)) = rig.ask(Command::Stream(at, read)) else { panic!() };
            assert_eq!((records.runs[0].base.0, records.next.0), (offset, offset + 1));
        }
        let behind = ReadFrom::Timestamp(Millis(times[99] + 1));
        assert_eq!(find(rig, at, behind), Ok((100, None)));
        assert_eq!(find(rig, at, ReadFrom::Earliest), Ok((0, Some(times[0]))));
    };
    check(&mut rig);
    checkpoint(&mut rig);
    check(&mut rig);
    drop(rig);
    let mut rig = open(dir.path(), &disk.crash(), &timer);
    check(&mut rig);
    // A time in files, its record in memory.
    fill(&mut rig, at, 100, 1);
    let (offset, time) = find(&mut rig, at, ReadFrom::Timestamp(Millis(times[99] + 1))).unwrap();
    assert_eq!((offset, time.is_some()), (100, true));
}

#[test]
fn a_read_may_wait_for_bytes() {
    let (dir, disk, timer) = (tempfile::tempdir().unwrap(), SimDisk::new(5), SimTimer::default());
    let mut rig = open(dir.path(), &disk, &timer);
    let at = create(&mut rig, StreamSettings::default());
    let read = |wait_until| {
        let from = ReadFrom::Latest;
        Command::Stream(
            at,
            StreamCommand::Read { from, records_max: 100, bytes_max: 1 << 20, bytes_min: 2_500, wait_until },
        )
    };
    let until = rig.shard.now().plus(30_000);
    let answer = rig.submit(read(Some(until)));
    fill(&mut rig, at, 0, 2);
    assert!(answer.borrow().is_none(), "two records are too few");
    fill(&mut rig, at, 2, 1);
    rig.run();
    let Some(Ok(Reply::Records(records))) = answer.borrow_mut().take() else { panic!() };
    assert_eq!(records.runs.len(), 3);
    let answer = rig.submit(read(Some(rig.shard.now().plus(5_000))));
    fill(&mut rig, at, 3, 1);
    timer.advance(5_000);
    rig.run();
    let Some(Ok(Reply::Records(records))) = answer.borrow_mut().take() else { panic!() };
    assert_eq!(records.runs.len(), 1, "at the end of the wait what is there comes");
}

#[test]
fn who_reads_old_records_takes_no_memory_from_those_who_read_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, timer) = (SimDisk::new(9), SimTimer::default());
    let mut rig = Rig::open_quiet(dir.path(), &disk, &timer, |config| config.tail_bytes = 64 << 10);
    let at = create(&mut rig, StreamSettings::default());
    fill(&mut rig, at, 0, 300);
    checkpoint(&mut rig);
    let read = |offset| {
        let from = ReadFrom::Offset(Offset(offset));
        let (records_max, bytes_max, bytes_min, wait_until) = (10, 1 << 20, 0, None);
        Command::Stream(at, StreamCommand::Read { from, records_max, bytes_max, bytes_min, wait_until })
    };
    // Slowly, from the start to the end and from the start again.
    for offset in (0..300).step_by(10).chain(0..50) {
        assert!(rig.ask(read(offset)).is_ok());
    }
    // The disk is not read for the newest ones. It is for old ones, so that its fault shows.
    disk.fail(Operation::Read, 1, std::io::ErrorKind::TimedOut);
    for offset in 250..290 {
        let answer = rig.ask(read(offset));
        let Ok(Reply::Records(records)) = answer else { panic!("not read from memory: {answer:?}") };
        assert_eq!(records.next, Offset(offset + 10));
    }
    assert!(rig.ask(read(100)).is_err());
}

#[test]
fn who_reads_on_and_on_leaves_the_disk_to_the_log_while_it_is_written() {
    let (dir, disk, timer) = (tempfile::tempdir().unwrap(), SimDisk::new(10), SimTimer::default());
    let mut rig = open(dir.path(), &disk, &timer);
    let settings = StreamSettings { segment_bytes: 4 << 20, ..StreamSettings::default() };
    let at = PartitionRef { resource: rig.create_with("s", Settings::Stream(settings)), partition: 0 };
    // Three files: the first two are not written to any more.
    for _ in 0..100 {
        assert!(rig.ask(append(at, &vec![b'.'; 100_000])).is_ok());
    }
    checkpoint(&mut rig);
    // A read of the disk takes some polls: those that begin together are under way together.
    let read_from = |first: u64, rig: &mut Rig, write: bool| {
        disk.reads_at_once();
        for offset in (first..first + 30).step_by(3) {
            if write {
                assert!(rig.ask(append(at, b"a")).is_ok());
            }
            let from = ReadFrom::Offset(Offset(offset));
            let (records_max, bytes_max, bytes_min, wait_until) = (3, 1 << 20, 0, None);
            let read = StreamCommand::Read { from, records_max, bytes_max, bytes_min, wait_until };
            let Ok(Reply::Records(records)) = rig.ask(Command::Stream(at, read)) else { panic!() };
            assert_eq!(records.next, Offset(offset + 3));
        }
        disk.reads_at_once()
    };
    assert_eq!(read_from(0, &mut rig, true), 1, "one at a time while there are commits");
    timer.advance(1_000);
    let at_once = read_from(45, &mut rig, false);
    assert!(at_once > 1, "{at_once} at once when there are none");
}

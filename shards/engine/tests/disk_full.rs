//! A disk without space for checkpoints: the log cannot be trimmed, so once it is full writes are refused by name, reads
//! go on, and when there is space again so do writes, without anybody asking.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "a test")]

mod common;

use std::io;
use std::path::Path;

use common::{Answer, Rig, SimTimer, append, read_all};
use flowmesh_engine::Health;
use flowmesh_model::{Kind, PartitionRef, Reject};
use flowmesh_sim::{Operation, SimDisk};

const MIB: usize = 1 << 20;

/// A shard whose log is full soon. Long polls and timers wait for the clock, which the test turns.
fn open(dir: &Path, disk: &SimDisk) -> Rig {
    disk.put_dir(dir);
    Rig::open_with(dir, disk.clone(), SimTimer::default(), |config| {
        config.log_bytes_max = 3 << 20;
        config.checkpoint_log_bytes = 1 << 20;
        config.checkpoint_interval_ms = 3_600_000;
    })
}

/// From now on segment files of streams find no room for large appends, the log still does.
fn fail_checkpoints(disk: &SimDisk, kind: io::ErrorKind) {
    for nth in 1..=1_000 {
        disk.fail(Operation::Truncate, nth, kind);
    }
}

/// Appends until a record is refused. Each alone is so large that its segment file is allocated ahead: no checkpoint, however
/// little it has to write, slips by where that fails.
fn append_until_refused(rig: &mut Rig, at: PartitionRef, values: &mut Vec<Vec<u8>>) -> Reject {
    for _ in 0..200 {
        let value = vec![values.len() as u8; 5 * MIB / 8];
        match rig.ask(append(at, &value)) {
            Ok(_) => values.push(value),
            Err(reject) => return reject,
        }
    }
    panic!("the log is never full")
}

/// Lets time pass until the shard takes writes.
fn wait_until_ready(rig: &mut Rig) {
    for _ in 0..100_000 {
        if rig.shard.health() == Health::Ready {
            return;
        }
        rig.timer.advance(10);
        rig.run();
        std::thread::sleep(std::time::Duration::from_micros(50));
    }
    panic!("writes never go on")
}

#[test]
fn checkpoints_without_space_refuse_writes_with_disk_full_and_go_on_when_there_is_space() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new(1);
    let mut rig = open(dir.path(), &disk);
    let at = PartitionRef { resource: rig.create(Kind::Stream, "s"), partition: 0 };
    let mut values = Vec::new();
    for _ in 0..2 {
        fail_checkpoints(&disk, io::ErrorKind::StorageFull);
        assert_eq!(append_until_refused(&mut rig, at, &mut values), Reject::DiskFull);
        assert_eq!(rig.shard.health(), Health::DiskFull);
        assert!(rig.shard.stats().checkpoint_failures > 0);
        assert_eq!(read_all(&mut rig, at), values, "reads go on");
        // Nobody writes; there is space again.
        disk.restart();
        wait_until_ready(&mut rig);
        let answer = rig.ask(append(at, b"after"));
        assert!(answer.is_ok(), "{answer:?}");
        values.push(b"after".to_vec());
        rig.shard.check_all();
    }
    let crashed = disk.crash();
    drop(rig);
    assert_eq!(read_all(&mut open(dir.path(), &crashed), at), values);
}

#[test]
fn writes_that_wait_for_a_checkpoint_are_told_when_it_finds_no_space() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new(2);
    let mut rig = open(dir.path(), &disk);
    let at = PartitionRef { resource: rig.create(Kind::Stream, "s"), partition: 0 };
    fail_checkpoints(&disk, io::ErrorKind::StorageFull);
    // More than the log takes, all at once: the last ones wait for room.
    let value = vec![7; MIB / 8];
    let answers: Vec<Answer> = (0..80).map(|_| rig.submit(append(at, &value))).collect();
    for _ in 0..100_000 {
        rig.run();
        if answers.iter().all(|answer| answer.borrow().is_some()) {
            break;
        }
        rig.timer.advance(1);
    }
    let taken = answers.iter().filter(|answer| matches!(&*answer.borrow(), Some(Ok(_)))).count();
    let refused =
        answers.iter().filter(|answer| matches!(&*answer.borrow(), Some(Err(Reject::DiskFull)))).count();
    assert!(taken > 0 && refused > 0 && taken + refused == 80, "{taken} taken, {refused} refused");
    assert_eq!(read_all(&mut rig, at).len(), taken);
}

#[test]
fn checkpoints_that_fail_for_another_reason_refuse_writes_with_overloaded() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new(3);
    let mut rig = open(dir.path(), &disk);
    let at = PartitionRef { resource: rig.create(Kind::Stream, "s"), partition: 0 };
    fail_checkpoints(&disk, io::ErrorKind::Other);
    let refused = append_until_refused(&mut rig, at, &mut Vec::new());
    assert!(matches!(refused, Reject::Overloaded { what: "commit log", .. }), "{refused:?}");
    assert_eq!(rig.shard.health(), Health::Ready);
}

#[test]
fn memory_that_only_a_checkpoint_could_free_is_refused_with_disk_full() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new(4);
    disk.put_dir(dir.path());
    let mut rig = Rig::open_with(dir.path(), disk.clone(), SimTimer::default(), |config| {
        config.memory_bytes = 2 << 20;
        config.checkpoint_interval_ms = 3_600_000;
    });
    let at = PartitionRef { resource: rig.create(Kind::Stream, "s"), partition: 0 };
    fail_checkpoints(&disk, io::ErrorKind::StorageFull);
    let mut values = Vec::new();
    let refused = loop {
        match append_until_refused(&mut rig, at, &mut values) {
            // The first checkpoint is still on its way.
            Reject::Overloaded { what: "memory budget", .. } => rig.timer.advance(10),
            other => break other,
        }
    };
    assert_eq!(refused, Reject::DiskFull);
    assert_eq!(rig.shard.health(), Health::DiskFull);
    disk.restart();
    wait_until_ready(&mut rig);
    assert!(rig.ask(append(at, b"after")).is_ok());
    assert_eq!(read_all(&mut rig, at).len(), values.len() + 1);
}

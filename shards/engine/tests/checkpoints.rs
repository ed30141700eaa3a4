//! Checkpoints of much at once: in small parts, whatever happens meanwhile.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "a test")]

mod common;

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll};

use common::{Answer, Rig, SimTimer, append, read_all};
use flowmesh_model::{Kind, PartitionRef, ResourceId};
use flowmesh_sim::{Random, SimDisk};
use futures::task::noop_waker;

fn open(dir: &Path, disk: &SimDisk) -> Rig {
    Rig::open_quiet(dir, disk, &SimTimer::default(), |_| {})
}

fn only(stream: ResourceId) -> PartitionRef {
    PartitionRef { resource: stream, partition: 0 }
}

fn value(number: usize, bytes: usize) -> Vec<u8> {
    let mut value = number.to_string().into_bytes();
    value.resize(bytes, b'.');
    value
}

/// Appends records one by one.
fn fill(rig: &mut Rig, at: PartitionRef, from: usize, count: usize, bytes: usize) -> Vec<Vec<u8>> {
    let values: Vec<_> = (from..from + count).map(|number| value(number, bytes)).collect();
    for batch in values.chunks(500) {
        let answers: Vec<Answer> = batch.iter().map(|value| rig.submit(append(at, value))).collect();
        rig.run();
        assert!(answers.iter().all(|answer| matches!(&*answer.borrow(), Some(Ok(_)))), "all are taken");
    }
    values
}

#[test]
fn a_checkpoint_of_many_small_appends_takes_them_in_parts_and_commands_go_on_between_them() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new(1).with_polls_max(0);
    let mut rig = open(dir.path(), &disk);
    let at = only(rig.create(Kind::Stream, "s"));
    let mut values = fill(&mut rig, at, 0, 12_000, 100);
    let (waker, operations) = (noop_waker(), disk.operations());
    let shard = rig.shard.clone();
    let mut checkpoint = pin!(shard.checkpoint());
    // Two MiB of memory: nothing is handed to the files before all parts were taken.
    let mut parts = 0;
    while disk.operations() == operations {
        assert!(checkpoint.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        parts += 1;
        values.push(value(values.len(), 100));
        rig.submit(append(at, values.last().unwrap()));
    }
    assert!((4..12).contains(&parts), "{parts} parts");
    rig.pool.run_until(checkpoint).unwrap();
    rig.shard.check_all();
    assert!(rig.shard.stats().state.tail_bytes <= 16 << 10, "what the files have is no longer in memory");
    assert_eq!(read_all(&mut rig, at), values);
}

#[test]
fn a_stream_that_is_dropped_during_a_checkpoint_does_not_take_its_records_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new(2);
    let mut rig = open(dir.path(), &disk);
    let (kept, dropped) = (only(rig.create(Kind::Stream, "kept")), only(rig.create(Kind::Stream, "dropped")));
    let mut values = fill(&mut rig, kept, 0, 6_000, 100);
    fill(&mut rig, dropped, 0, 6_000, 100);
    let (waker, shard) = (noop_waker(), rig.shard.clone());
    let mut checkpoint = Box::pin(async move { shard.checkpoint().await });
    let mut steps = 0;
    let done = loop {
        if let Poll::Ready(done) = checkpoint.as_mut().poll(&mut Context::from_waker(&waker)) {
            break done;
        }
        steps += 1;
        match steps {
            2 => {
                rig.delete(Kind::Stream, "dropped");
                assert_eq!(rig.shard.stats().state.partitions, 1);
            }
            3..40 => values.extend(fill(&mut rig, kept, values.len(), 3, 100)),
            _ => rig.run(),
        }
    };
    done.unwrap();
    rig.shard.check_all();
    // The index has the stream as of the seal: a start before the next checkpoint needs its records.
    let crashed = rig.disk.crash();
    drop((rig, checkpoint));
    let mut rig = open(dir.path(), &crashed);
    assert_eq!(read_all(&mut rig, kept), values);
    rig.pool.run_until(rig.shard.checkpoint()).unwrap();
    assert_eq!(read_all(&mut rig, kept), values);
}

#[test]
fn a_power_cut_between_the_parts_of_a_checkpoint_loses_nothing() {
    for seed in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let disk = SimDisk::new(seed);
        let mut rig = open(dir.path(), &disk);
        let at = only(rig.create(Kind::Stream, "s"));
        // More than the segment files are handed at once.
        let mut values = fill(&mut rig, at, 0, 5_000, 1_000);
        let mut random = Random::new(seed);
        disk.power_cut_after(1 + random.below(60));
        let shard = rig.shard.clone();
        let checkpoint = rig.pool.run_until(shard.checkpoint());
        let mut crashed = rig.disk.crash();
        drop((rig, shard));
        let mut rig = open(dir.path(), &crashed);
        assert_eq!(read_all(&mut rig, at), values, "seed {seed}, checkpoint {checkpoint:?}");
        // The next one cuts back what the failed one left in the files.
        values.extend(fill(&mut rig, at, values.len(), 100, 1_000));
        rig.pool.run_until(rig.shard.checkpoint()).unwrap();
        crashed = rig.disk.crash();
        drop(rig);
        assert_eq!(read_all(&mut open(dir.path(), &crashed), at), values, "seed {seed}");
    }
}

#[test]
fn a_write_that_fails_between_the_parts_of_a_checkpoint_is_made_up_for_by_the_next() {
    for nth in [1, 3, 12, 20] {
        let dir = tempfile::tempdir().unwrap();
        let disk = SimDisk::new(nth);
        let mut rig = open(dir.path(), &disk);
        let at = only(rig.create(Kind::Stream, "s"));
        let mut values = fill(&mut rig, at, 0, 5_000, 1_000);
        disk.fail(flowmesh_sim::Operation::Write, nth, std::io::ErrorKind::Interrupted);
        let failed = rig.pool.run_until(rig.shard.clone().checkpoint());
        assert!(failed.is_err(), "write {nth}");
        values.extend(fill(&mut rig, at, values.len(), 100, 1_000));
        rig.pool.run_until(rig.shard.checkpoint()).unwrap();
        rig.shard.check_all();
        assert_eq!(read_all(&mut rig, at), values, "write {nth}");
    }
}

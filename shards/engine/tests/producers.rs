//! An idempotent producer on a shard whose power fails at any operation: it sends again whatever has no answer, and each
//! record is there once.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "a test")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use common::{Answer, Rig, SimTimer, read_all, record, seeds};
use flowmesh_model::{
    Command, Durability, Kind, Offset, PartitionRef, ProducerId, ProducerStamp, Reply, ResourceId,
    StreamCommand,
};
use flowmesh_sim::{Random, SimDisk};

fn send(rig: &Rig, stream: ResourceId, (id, epoch): (ProducerId, u32), number: u64) -> Answer {
    let append = StreamCommand::Append {
        records: record(number.to_string().as_bytes()),
        producer: Some(ProducerStamp { id, epoch, sequence: number }),
        expected_offset: None,
    };
    rig.submit(Command::Stream(PartitionRef { resource: stream, partition: 0 }, append))
}

fn init(rig: &mut Rig, stream: ResourceId, name: &'static [u8]) -> (ProducerId, u32) {
    let init = StreamCommand::InitProducer { name: Bytes::from_static(name) };
    match rig.ask(Command::Stream(PartitionRef { resource: stream, partition: 0 }, init)) {
        Ok(Reply::Producer { id, epoch }) => (id, epoch),
        other => panic!("not initialised: {other:?}"),
    }
}

fn appended(answer: &Answer) -> Option<(Offset, bool)> {
    match &*answer.borrow() {
        Some(Ok(Reply::Appended { base, duplicate, .. })) => Some((*base, *duplicate)),
        _ => None,
    }
}

fn open(dir: &Path, disk: &SimDisk) -> Rig {
    Rig::open(dir, disk.clone(), SimTimer::default())
}

/// The first answer may be lost with the power: so may the second, to the same batch, not come before it is durable.
#[test]
fn a_retry_waits_until_what_it_repeats_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new(1);
    disk.put_dir(dir.path());
    let mut rig = open(dir.path(), &disk);
    let stream = rig.create(Kind::Stream, "s");
    let identity = init(&mut rig, stream, b"");
    let (first, again) = (send(&rig, stream, identity, 0), send(&rig, stream, identity, 0));
    assert_eq!((appended(&first), appended(&again)), (None, None), "nothing is durable yet");
    rig.run();
    assert_eq!((appended(&first), appended(&again)), (Some((Offset(0), false)), Some((Offset(0), true))));

    // Neither the append nor its repetition is answered, so it may be gone; sent again, it is there once.
    let lost = [send(&rig, stream, identity, 1), send(&rig, stream, identity, 1)];
    assert!(lost.iter().all(|answer| answer.borrow().is_none()));
    let disk = rig.disk.crash();
    drop(rig);
    let mut rig = open(dir.path(), &disk);
    let answer = send(&rig, stream, identity, 1);
    rig.run();
    assert_eq!(appended(&answer).map(|(base, _)| base), Some(Offset(1)));
    assert_eq!(read_all(&mut rig, PartitionRef { resource: stream, partition: 0 }), [b"0", b"1"]);
}

/// Also where the answer to an append waits for no sync.
#[test]
fn a_number_is_given_out_once_whatever_a_power_cut_takes_back() {
    for durability in [Durability::Always, Durability::Interval, Durability::Never] {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = SimDisk::new(2);
        disk.put_dir(dir.path());
        let (mut given, mut stream) = (BTreeSet::new(), None);
        for _ in 0..6 {
            let mut rig = Rig::open_with(dir.path(), disk.clone(), SimTimer::default(), |config| {
                config.durability = durability;
            });
            let stream = *stream.get_or_insert_with(|| rig.create(Kind::Stream, "s"));
            for _ in 0..3 {
                assert!(given.insert(init(&mut rig, stream, b"").0), "{durability:?}: given out twice");
            }
            disk = rig.disk.crash();
        }
    }
}

fn crash_run(seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(seed);
    let mut disk = SimDisk::new(seed).with_polls_max(random.below(4));
    disk.put_dir(dir.path());
    let (mut stream, mut identity) = (None, None);
    // Numbers below are answered.
    let (mut answered, mut made) = (0u64, 0u64);
    for life in 0..4 {
        let mut rig = open(dir.path(), &disk);
        let stream = *stream.get_or_insert_with(|| rig.create(Kind::Stream, "s"));
        let identity = *identity.get_or_insert_with(|| init(&mut rig, stream, b"p"));
        let last = life == 3;
        if !last {
            rig.disk.power_cut_after(1 + random.below(300));
        }
        for _ in 0..(if last { 1 } else { random.below(40) }) {
            made = if last { made } else { (made + 1 + random.below(5)).min(answered + 32) };
            // What has no answer is sent again, in order, with what is new.
            let answers: Vec<(u64, Answer)> =
                (answered..made).map(|number| (number, send(&rig, stream, identity, number))).collect();
            for _ in 0..(if last { 20 } else { random.below(4) }) {
                rig.run();
                rig.timer.advance(random.below(30));
            }
            for (number, answer) in answers {
                match appended(&answer) {
                    Some((base, _)) if number == answered => {
                        assert_eq!(base, Offset(number), "seed {seed}");
                        answered += 1;
                    }
                    _ => break,
                }
            }
        }
        rig.shard.check_all();
        if last {
            assert_eq!(answered, made, "seed {seed}: all is answered at last");
            let found = read_all(&mut rig, PartitionRef { resource: stream, partition: 0 });
            let expected: Vec<Vec<u8>> = (0..made).map(|number| number.to_string().into_bytes()).collect();
            assert_eq!(found, expected, "seed {seed}: each record once and in order");
            assert_eq!(init(&mut rig, stream, b"p"), (identity.0, identity.1 + 1));
        }
        disk = rig.disk.crash();
    }
}

#[test]
fn each_record_is_there_once_after_power_cuts_at_any_operation() {
    let count = seeds(25);
    for seed in 0..count {
        crash_run(seed);
    }
}

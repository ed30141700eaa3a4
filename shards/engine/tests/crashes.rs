//! The whole shard on a simulated disk whose power fails at any operation: everything that was acknowledged is there
//! afterwards, and nothing that was never asked for.
//!
//! Only the index is on a real disk (fjall has no other): its commits are all or nothing either way.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "a test")]

mod common;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::{Answer, Rig, SimTimer, read_what_is_left, record, seeds};
use flowmesh_model::command::{NewJob, SetEntry, SetIf, SetTtl};
use flowmesh_model::{
    Batch, Command, Kind, KvCommand, Offset, PartitionRef, QueueCommand, Reject, Reply, ResourceId, Settings,
    StreamCommand, StreamSettings,
};
use flowmesh_sim::{Random, SimDisk};

#[derive(Default)]
struct Ledger {
    /// Values appended, in order of submission, and whether that was acknowledged.
    appended: Vec<(Vec<u8>, Answer)>,
    /// Values set by key, in order of submission.
    set: BTreeMap<Vec<u8>, Vec<(Vec<u8>, Answer)>>,
    enqueued: Vec<Answer>,
    /// Offsets before which records were to be deleted.
    trimmed: Vec<(u64, Answer)>,
}

/// Less than one life appends.
const RETENTION_BYTES: u64 = 100_000;

fn stream_settings() -> Settings {
    let retention_bytes = Some(RETENTION_BYTES);
    Settings::Stream(StreamSettings { retention_bytes, segment_bytes: 65_536, ..StreamSettings::default() })
}

fn is_acknowledged(answer: &Answer) -> bool {
    matches!(&*answer.borrow(), Some(Ok(_)))
}

fn check(
    rig: &mut Rig,
    ledger: &Ledger,
    (stream, queue, store): (ResourceId, ResourceId, ResourceId),
    seed: u64,
) {
    let at = PartitionRef { resource: stream, partition: 0 };
    let (earliest, found) = read_what_is_left(rig, at);
    let trimmed = ledger.trimmed.iter().filter(|(_, answer)| is_acknowledged(answer));
    let trimmed = trimmed.map(|(upto, _)| *upto).max().unwrap_or(0);
    assert!(earliest >= trimmed, "seed {seed}: records before {trimmed} are back, from {earliest} on");
    let next = earliest as usize + found.len();
    let acknowledged =
        ledger.appended.iter().rposition(|(_, answer)| is_acknowledged(answer)).map_or(0, |last| last + 1);
    assert!(next >= acknowledged, "seed {seed}: record {acknowledged} was acknowledged, {next} found");
    assert!(next <= ledger.appended.len(), "seed {seed}: records that nobody appended");
    // Trims to where the partition ended then, and retention by bytes, are all that takes records away.
    let kept: usize = found.iter().map(Vec::len).sum();
    let asked = ledger.trimmed.iter().map(|(upto, _)| *upto).max().unwrap_or(0);
    assert!(
        earliest <= asked || kept as u64 + 4_096 >= RETENTION_BYTES,
        "seed {seed}: {kept} bytes are left"
    );
    for (found, (sent, _)) in found.iter().zip(&ledger.appended[earliest as usize..]) {
        assert_eq!(found, sent, "seed {seed}: records in the order they were sent");
    }
    for (key, writes) in &ledger.set {
        let get = KvCommand::Get { keys: Batch::from_iter([Bytes::from(key.clone())]) };
        let answer = rig.ask(Command::Kv(store, get));
        let Ok(Reply::Values(values)) = answer else { panic!("not read: {answer:?}") };
        let value = values[0].as_ref().map(|entry| entry.value.to_vec());
        let last_acknowledged = writes.iter().rposition(|(_, answer)| is_acknowledged(answer));
        let legal =
            writes.iter().skip(last_acknowledged.unwrap_or(0)).any(|(sent, _)| Some(sent) == value.as_ref())
                || (last_acknowledged.is_none() && value.is_none());
        assert!(legal, "seed {seed}: key {key:?} holds {value:?}");
    }
    let answer = rig.ask(Command::Queue(queue, QueueCommand::Status));
    let Ok(Reply::QueueStatus(status, _)) = answer else { panic!("no status: {answer:?}") };
    let acknowledged = ledger.enqueued.iter().filter(|answer| is_acknowledged(answer)).count() as u64;
    assert!(
        status.ready >= acknowledged,
        "seed {seed}: {acknowledged} jobs acknowledged, {} ready",
        status.ready
    );
    assert!(status.ready <= ledger.enqueued.len() as u64);
}

fn crash_run(seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(seed);
    let mut disk = SimDisk::new(seed).with_polls_max(random.below(4));
    disk.put_dir(dir.path());
    let timer = SimTimer::default();
    let mut ledger = Ledger::default();
    let mut ids = None;
    for life in 0..3u64 {
        let mut rig = Rig::open(dir.path(), disk.clone(), timer.clone());
        let ids = *ids.get_or_insert_with(|| {
            (rig.create_with("s", stream_settings()), rig.create(Kind::Queue, "q"), rig.create(Kind::Kv, "k"))
        });
        check(&mut rig, &ledger, ids, seed);
        // What was not acknowledged is now either there for good or not at all.
        let at = PartitionRef { resource: ids.0, partition: 0 };
        let (earliest, found) = read_what_is_left(&mut rig, at);
        ledger.appended.truncate(earliest as usize + found.len());
        ledger.trimmed.retain(|(upto, _)| *upto <= earliest);
        rig.disk.power_cut_after(1 + random.below(400));
        for step in 0..random.below(300) {
            let number = life * 1_000_000 + step;
            let size = if random.below(20) == 0 { 20_000 } else { random.below(200) as usize };
            let mut value = number.to_string().into_bytes();
            value.resize(value.len() + size, b'.');
            match random.below(30) {
                0 => {
                    let upto = random.below(ledger.appended.len() as u64 + 1);
                    let trim = StreamCommand::Trim { upto: Offset(upto) };
                    ledger.trimmed.push((upto, rig.submit(Command::Stream(at, trim))));
                }
                1..=10 => {
                    let append = StreamCommand::append(record(&value));
                    ledger.appended.push((value, rig.submit(Command::Stream(at, append))));
                    // A rejected append must not be in the stream: it is taken out of the list.
                    let rejected = matches!(&*ledger.appended.last().unwrap().1.borrow(), Some(Err(_)));
                    if rejected {
                        ledger.appended.pop();
                    }
                }
                11..=20 => {
                    let key = random.below(20).to_string().into_bytes();
                    let entry = SetEntry {
                        key: key.clone().into(),
                        value: value.clone().into(),
                        ttl: SetTtl::Default,
                        condition: SetIf::Always,
                    };
                    let set = KvCommand::Set { entries: Batch::from_iter([entry]) };
                    ledger.set.entry(key).or_default().push((value, rig.submit(Command::Kv(ids.2, set))));
                }
                _ => {
                    let job = NewJob { payload: value.into(), ..NewJob::default() };
                    let enqueue = QueueCommand::enqueue(Batch::from_iter([job]));
                    ledger.enqueued.push(rig.submit(Command::Queue(ids.1, enqueue)));
                }
            }
            rig.go_on(&mut random);
        }
        rig.run();
        rig.shard.check_all();
        disk = rig.disk.crash();
    }
    let mut rig = Rig::open(dir.path(), disk, timer);
    check(&mut rig, &ledger, ids.unwrap(), seed);
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_at_any_operation() {
    let count = seeds(25);
    for seed in 0..count {
        crash_run(seed);
    }
}

/// More partitions than checkpoints write one by one.
const MANY_PARTITIONS: u32 = 80;

fn many_partitions_run(seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(seed);
    let mut disk = SimDisk::new(seed).with_polls_max(random.below(4));
    disk.put_dir(dir.path());
    let timer = SimTimer::default();
    let settings =
        Settings::Stream(StreamSettings { partitions: MANY_PARTITIONS, ..StreamSettings::default() });
    let mut appended: Vec<Vec<(Vec<u8>, Answer)>> = vec![Vec::new(); MANY_PARTITIONS as usize];
    for life in 0..4 {
        let mut rig = Rig::open(dir.path(), disk.clone(), timer.clone());
        let resource = rig.create_with("s", settings.clone());
        for (partition, sent) in (0..).zip(&mut appended) {
            let (_, found) = read_what_is_left(&mut rig, PartitionRef { resource, partition });
            let acknowledged = sent.iter().rposition(|(_, answer)| is_acknowledged(answer));
            let least = acknowledged.map_or(0, |last| last + 1);
            assert!(found.len() >= least, "seed {seed}: partition {partition}: {} of {least}", found.len());
            sent.truncate(found.len());
            assert!(found.iter().eq(sent.iter().map(|(value, _)| value)), "seed {seed}: {partition}");
        }
        if life == 3 {
            return;
        }
        rig.disk.power_cut_after(1 + random.below(2_000));
        for round in 0..6 {
            for (partition, sent) in (0..).zip(&mut appended) {
                // Some have more than what is written with others.
                let size = if random.below(40) == 0 { 70_000 } else { random.below(200) as usize };
                let mut value = format!("{life}-{round}-").into_bytes();
                value.resize(value.len() + size, b'.');
                let append = StreamCommand::append(record(&value));
                let at = PartitionRef { resource, partition };
                sent.push((value, rig.submit(Command::Stream(at, append))));
            }
            rig.run();
            rig.timer.advance(10_000);
            rig.run();
        }
        disk = if random.below(3) == 0 { rig.disk.clone() } else { rig.disk.crash() };
        disk.restart();
    }
}

#[test]
fn checkpoints_of_many_partitions_survive_a_power_cut_at_any_operation() {
    let count = seeds(12);
    for seed in 0..count {
        many_partitions_run(seed);
    }
}

#[test]
fn a_failed_sync_fences_the_shard_reads_go_on_and_nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new(1);
    disk.put_dir(dir.path());
    let timer = SimTimer::default();
    let mut rig = Rig::open(dir.path(), disk.clone(), timer.clone());
    let store = rig.create(Kind::Kv, "k");
    let set = |value: &'static str| {
        let entry = SetEntry {
            key: Bytes::from_static(b"key"),
            value: value.into(),
            ttl: SetTtl::Default,
            condition: SetIf::Always,
        };
        Command::Kv(store, KvCommand::Set { entries: Batch::from_iter([entry]) })
    };
    let get = || Command::Kv(store, KvCommand::Get { keys: Batch::from_iter([Bytes::from_static(b"key")]) });
    assert!(rig.ask(set("kept")).is_ok());
    disk.fail(flowmesh_sim::Operation::Sync, 1, std::io::ErrorKind::Other);
    assert!(matches!(rig.ask(set("lost")), Err(Reject::Fenced { .. })));
    assert!(matches!(rig.ask(set("refused")), Err(Reject::Fenced { .. })));
    // What the failed sync may or may not have kept is not shown; everything older is.
    assert!(matches!(rig.ask(get()), Err(Reject::Fenced { .. })));
    assert!(matches!(rig.shard.health(), flowmesh_engine::Health::Fenced(_)));
    drop(rig);
    let mut rig = Rig::open(dir.path(), disk.crash(), timer);
    let answer = rig.ask(get());
    let Ok(Reply::Values(values)) = answer else { panic!("not read: {answer:?}") };
    let value = values[0].clone().unwrap().value;
    assert!(value == "kept" || value == "lost", "{value:?}");
}

//! A crash at any moment loses nothing and invents nothing: whatever commands, ticks, checkpoints and failures came
//! before, the index with the log behind it is exactly the state.

// A test fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::{Outcome, World, pack, restored, values, written_afresh};
use flowmesh_model::command::{LeaseRef, Nack, NewJob, ReadFrom, SetEntry, SetIf, SetTtl};
use flowmesh_model::group::Name;
use flowmesh_model::job::NackKind;
use flowmesh_model::schedule::{MissedPolicy, ScheduleChanges, ScheduleSpec, Timing};
use flowmesh_model::{
    Batch, Command, FeedSettings, Kind, KvCommand, KvMode, KvSettings, Millis, Offset, PartitionRef,
    ProducerId, ProducerStamp, QueueCommand, QueueSettings, Reject, Reply, ResourceId, ScheduleCommand,
    Settings, StreamCommand, StreamSettings,
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Append { stream: u8, partition: u32, records: u8 },
    Produce { stream: u8, partition: u32, producer: u64, epoch: u32, again: bool },
    InitProducer { stream: u8, name: u8 },
    Enqueue { queue: u8, jobs: Vec<(u8, u64)> },
    Reserve { queue: u8, jobs: u32 },
    Schedule { queue: u8, name: u8, how: u8 },
    Trim { stream: u8, partition: u32, upto: u64 },
    Settle { queue: u8, lease: usize, how: u8 },
    Set { store: u8, key: u8, size: u8, ttl: Option<u64>, condition: u8 },
    Delete { store: u8, key: u8 },
    Recreate { kind: u8, which: u8 },
    Drop { kind: u8, which: u8 },
    Pass { ms: u64 },
    Tick,
    Seal,
    Collect { items: usize },
    Write,
    Fail,
    Evict,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0u8..2;
    prop_oneof![
        4 => (which.clone(), 0u32..3, 1u8..4).prop_map(|(stream, partition, records)| Step::Append { stream, partition, records }),
        5 => (which.clone(), 0u32..3, 1u64..5, 0u32..3, any::<bool>()).prop_map(
            |(stream, partition, producer, epoch, again)| Step::Produce { stream, partition, producer, epoch, again }
        ),
        2 => (which.clone(), 0u8..3).prop_map(|(stream, name)| Step::InitProducer { stream, name }),
        2 => (which.clone(), 0u32..3, 0u64..12).prop_map(|(stream, partition, upto)| Step::Trim { stream, partition, upto }),
        4 => (which.clone(), prop::collection::vec((0u8..3, 0u64..50), 1..4)).prop_map(|(queue, jobs)| Step::Enqueue { queue, jobs }),
        4 => (which.clone(), 1u32..4).prop_map(|(queue, jobs)| Step::Reserve { queue, jobs }),
        5 => (which.clone(), 0u8..3, 0u8..9).prop_map(|(queue, name, how)| Step::Schedule { queue, name, how }),
        5 => (which.clone(), any::<usize>(), 0u8..6).prop_map(|(queue, lease, how)| Step::Settle { queue, lease, how }),
        8 => (which.clone(), 0u8..4, 0u8..20, prop::option::of(1u64..60), 0u8..5)
            .prop_map(|(store, key, size, ttl, condition)| Step::Set { store, key, size, ttl, condition }),
        6 => (which.clone(), 0u8..4).prop_map(|(store, key)| Step::Delete { store, key }),
        1 => (0u8..3, which.clone()).prop_map(|(kind, which)| Step::Recreate { kind, which }),
        1 => (0u8..3, which).prop_map(|(kind, which)| Step::Drop { kind, which }),
        4 => (0u64..80).prop_map(|ms| Step::Pass { ms }),
        1 => (500u64..1_500).prop_map(|ms| Step::Pass { ms }),
        3 => Just(Step::Tick),
        3 => Just(Step::Seal),
        6 => (1usize..6).prop_map(|items| Step::Collect { items }),
        2 => Just(Step::Write),
        1 => Just(Step::Fail),
        3 => Just(Step::Evict),
        1 => Just(Step::Crash),
    ]
}

struct Driver {
    world: World,
    streams: [ResourceId; 2],
    queues: [ResourceId; 2],
    stores: [ResourceId; 2],
    leases: [Vec<LeaseRef>; 2],
    /// What was ever appended, by partition.
    appended: BTreeMap<PartitionRef, Vec<Vec<u8>>>,
}

const SIZE_STEP: usize = 300;

const NAMES: [&str; 2] = ["a", "b{tag}"];

fn stream_settings() -> Settings {
    Settings::Stream(StreamSettings {
        partitions: 3,
        producer_retention_ms: Some(1_000),
        ..StreamSettings::default()
    })
}

fn queue_settings() -> Settings {
    Settings::Queue(QueueSettings { backoff_initial_ms: 10, max_attempts: 2, ..QueueSettings::default() })
}

/// One of both with a feed, which is created and dropped with it.
fn store_settings(name: &str) -> Settings {
    let stream = format!("default/default/stream/{name}-changes");
    let feed =
        (name != NAMES[0]).then_some(FeedSettings { stream, partitions: 0, old_values: true, late: false });
    Settings::Kv(KvSettings { feed, ..KvSettings::default() })
}

/// The same as a cache that has room for less than what comes.
fn cache_settings(name: &str) -> Settings {
    let Settings::Kv(durable) = store_settings(name) else { unreachable!() };
    Settings::Kv(KvSettings { mode: KvMode::Cache, entries_max: Some(2), ..durable })
}

impl Driver {
    fn new() -> Self {
        let mut world = World::default();
        let streams = NAMES.map(|name| world.create_with(name, stream_settings()));
        let queues = NAMES.map(|name| world.create_with(name, queue_settings()));
        let stores = NAMES.map(|name| world.create_with(name, store_settings(name)));
        Self { world, streams, queues, stores, leases: [Vec::new(), Vec::new()], appended: BTreeMap::new() }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Append { stream, partition, records } => self.append(*stream, *partition, *records),
            Step::Trim { stream, partition, upto } => {
                let at = PartitionRef { resource: self.streams[usize::from(*stream)], partition: *partition };
                self.world.run(&Command::Stream(at, StreamCommand::Trim { upto: Offset(*upto) }));
            }
            Step::Produce { stream, partition, producer, epoch, again } => {
                self.produce(*stream, *partition, *producer, *epoch, *again);
            }
            Step::InitProducer { stream, name } => {
                let at = PartitionRef { resource: self.streams[usize::from(*stream)], partition: 0 };
                let name = Bytes::from(vec![b'a' + *name; usize::from(*name)]);
                self.world.run(&Command::Stream(at, StreamCommand::InitProducer { name }));
            }
            Step::Enqueue { queue, jobs } => {
                let jobs = jobs.iter().map(|&(priority, delay_ms)| NewJob {
                    payload: Bytes::from(vec![priority; 3]),
                    priority,
                    delay_ms,
                    ..NewJob::default()
                });
                self.queue(*queue, QueueCommand::enqueue(jobs.collect()));
            }
            Step::Reserve { queue, jobs } => {
                let reserve = QueueCommand::Reserve {
                    jobs_max: *jobs,
                    visibility_timeout_ms: Some(100),
                    worker: Bytes::from(vec![b'w'; *jobs as usize]),
                    wait_until: None,
                };
                if let Outcome::Changed(Reply::Reserved(leased), _) = self.queue(*queue, reserve) {
                    let leases = leased.iter().map(|job| LeaseRef { job: job.job, token: job.token });
                    self.leases[usize::from(*queue)].extend(leases);
                }
            }
            Step::Schedule { queue, name, how } => self.schedule(*queue, *name, *how),
            Step::Settle { queue, lease, how } => self.settle(*queue, *lease, *how),
            Step::Set { store, key, size, ttl, condition } => {
                let entry = SetEntry {
                    key: Bytes::from(vec![b'k', *key]),
                    // Short ones lie with their keys, long ones apart.
                    value: Bytes::from(vec![*size; usize::from(*size) * SIZE_STEP]),
                    ttl: ttl.map_or(SetTtl::Keep, SetTtl::Millis),
                    condition: match condition {
                        0 => SetIf::Absent,
                        1 => SetIf::Present,
                        _ => SetIf::Always,
                    },
                };
                self.kv(*store, KvCommand::Set { entries: Batch::from_elem(entry, 1) });
            }
            Step::Delete { store, key } => {
                let keys = Batch::from_elem(Bytes::from(vec![b'k', *key]), 1);
                self.kv(*store, KvCommand::Delete { keys, if_version: None });
            }
            Step::Recreate { kind, which } => self.recreate(*kind, *which),
            Step::Drop { kind, which } => {
                let kind = Kind::ALL[usize::from(*kind)];
                self.world.delete(kind, NAMES[usize::from(*which)]);
            }
            Step::Pass { ms } => self.world.now = self.world.now.plus(*ms),
            Step::Tick => {
                self.world.tick(2);
            }
            Step::Seal if self.world.sealed.is_none() => self.world.seal(),
            Step::Seal => {}
            Step::Collect { items } => self.world.collect(*items),
            Step::Write => self.write(),
            Step::Fail => self.world.unseal(),
            Step::Evict => {
                while !self.world.machine.evict_tails(100, 1) {}
                self.world.evict_bodies(1);
                self.world.chill(2);
            }
            Step::Crash => self.crash(),
        }
    }

    fn append(&mut self, stream: u8, partition: u32, records: u8) {
        let at = PartitionRef { resource: self.streams[usize::from(stream)], partition };
        let values: Vec<Vec<u8>> = (0..records).map(|n| vec![n; usize::from(n) + 1]).collect();
        let slices: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
        let append = StreamCommand::append(pack(&slices));
        if let Outcome::Changed(..) = self.world.run(&Command::Stream(at, append)) {
            self.appended.entry(at).or_default().extend(values);
        }
    }

    /// A batch at the place that the rejection names; again, once more the same.
    fn produce(&mut self, stream: u8, partition: u32, producer: u64, epoch: u32, again: bool) {
        let at = PartitionRef { resource: self.streams[usize::from(stream)], partition };
        let mut stamp = ProducerStamp { id: ProducerId(producer), epoch, sequence: 1 << 40 };
        for _ in 0..2 + u32::from(again) {
            let append = StreamCommand::Append {
                records: pack(&[b"p", b"q"]),
                producer: Some(stamp),
                expected_offset: None,
            };
            match self.world.run(&Command::Stream(at, append)) {
                Outcome::Changed(..) => {
                    self.appended.entry(at).or_default().extend([b"p".to_vec(), b"q".to_vec()]);
                }
                Outcome::Rejected(Reject::SequenceGap { expected, .. }) => stamp.sequence = expected,
                Outcome::Rejected(Reject::UnknownProducer { .. }) => stamp.sequence = 0,
                Outcome::Rejected(_) | Outcome::Answered(..) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn settle(&mut self, queue: u8, lease: usize, how: u8) {
        let leases = &self.leases[usize::from(queue)];
        let Some(&lease) = leases.get(lease % leases.len().max(1)) else { return };
        let nack = |delay_ms| {
            let nack = Nack { lease, kind: NackKind::Failed, delay_ms, error: Bytes::from_static(b"no") };
            QueueCommand::Nack { nacks: Batch::from_elem(nack, 1) }
        };
        let command = match how {
            0 => nack(None),
            1 => nack(Some(0)),
            2 => {
                QueueCommand::Extend { leases: Batch::from_elem(lease, 1), visibility_timeout_ms: Some(200) }
            }
            _ => QueueCommand::ack([lease, lease]),
        };
        self.queue(queue, command);
    }

    fn schedule(&mut self, queue: u8, name: u8, how: u8) {
        let name = Name::from(["s", "t", "u"][usize::from(name)]);
        let command = match how {
            0..4 => {
                let cron = Timing::Cron { expression: "* * * * * *".into(), time_zone: "UTC".into() };
                let timing = if how == 0 { Timing::Once(self.world.now.plus(100)) } else { cron };
                let job = NewJob { payload: Bytes::from_static(b"job"), ..NewJob::default() };
                let end = (how == 1).then(|| self.world.now.plus(2_000));
                let spec = ScheduleSpec { timing, end, missed: MissedPolicy::All, job };
                ScheduleCommand::Create { name, spec, paused: false }
            }
            4 => ScheduleCommand::Delete(name),
            5 => ScheduleCommand::Pause(name),
            6 => ScheduleCommand::Resume(name),
            7 => ScheduleCommand::Update {
                name,
                changes: Box::new(ScheduleChanges {
                    cron: Some("*/2 * * * * *".into()),
                    missed: Some(MissedPolicy::Skip),
                    ..ScheduleChanges::default()
                }),
            },
            _ => ScheduleCommand::RunNow(name),
        };
        self.queue(queue, QueueCommand::Schedule(command));
    }

    fn queue(&mut self, queue: u8, command: QueueCommand) -> Outcome {
        self.world.run(&Command::Queue(self.queues[usize::from(queue)], command))
    }

    fn kv(&mut self, store: u8, command: KvCommand) -> Outcome {
        self.world.run(&Command::Kv(self.stores[usize::from(store)], command))
    }

    fn recreate(&mut self, kind: u8, which: u8) {
        let which = usize::from(which);
        let name = NAMES[which];
        match kind {
            0 => self.streams[which] = self.world.create_with(name, stream_settings()),
            1 => {
                let id = self.world.create_with(name, queue_settings());
                if id != self.queues[which] {
                    self.leases[which].clear();
                }
                self.queues[which] = id;
            }
            // Caches and others in turn.
            _ => {
                let settings =
                    if self.world.lsn.0.is_multiple_of(2) { cache_settings } else { store_settings };
                self.stores[which] = self.world.create_with(name, settings(name));
            }
        }
    }

    /// The index is what a machine would have written that only read the log up to the seal.
    fn write(&mut self) {
        if self.world.write() {
            let replayed = self.world.replayed(self.world.index_lsn);
            assert_eq!(
                restored(&self.world.index).dump(),
                replayed.dump(),
                "the index is the state at the seal"
            );
            let afresh = written_afresh(replayed);
            assert_eq!(self.world.index, afresh, "the index has no more than that");
        }
    }

    fn crash(&mut self) {
        let before = self.world.dump();
        self.world.crash();
        assert_eq!(self.world.dump(), before);
    }

    fn check(&self) {
        self.world.machine.check_all();
        let recovered = self.world.recovered();
        recovered.check_all();
        assert_eq!(self.world.dump_of(&recovered), self.world.dump());
    }

    /// Every record ever appended can be read, from memory or files, as it was.
    fn check_records(&self) {
        for (at, expected) in &self.appended {
            let status = self.world.decide(&Command::Stream(*at, StreamCommand::Status));
            let earliest = match status {
                Ok(flowmesh_machine::Decision::Answer {
                    reply: Reply::StreamStatus { earliest, next, .. },
                    ..
                }) if next.0 > 0 => earliest.0 as usize,
                _ => continue,
            };
            let mut read: Vec<Vec<u8>> = Vec::new();
            while earliest + read.len() < expected.len() {
                let from = Offset((earliest + read.len()) as u64);
                let command = StreamCommand::Read {
                    from: ReadFrom::Offset(from),
                    records_max: 5,
                    bytes_max: 100,
                    bytes_min: 0,
                    wait_until: None,
                };
                match self.world.decide(&Command::Stream(*at, command)) {
                    Ok(flowmesh_machine::Decision::Fetch(_)) => {
                        let run = self.world.files[at].iter().rfind(|run| run.base <= from).unwrap();
                        let values = values(std::slice::from_ref(run));
                        read.extend(values.into_iter().skip((from.0 - run.base.0) as usize));
                    }
                    Ok(flowmesh_machine::Decision::Answer { reply: Reply::Records(records), .. }) => {
                        assert_eq!(records.next.0, from.0 + values(&records.runs).len() as u64);
                        assert!(records.next > from, "a read gets on");
                        read.extend(values(&records.runs));
                    }
                    Ok(other) => panic!("{other:?}"),
                    Err(_) => break,
                }
            }
            assert!(read == expected[earliest..]);
        }
    }
}

proptest! {
    #![proptest_config(common::cases(500))]
    #[test]
    fn a_crash_at_any_moment_loses_nothing(steps in prop::collection::vec(step(), 1..150)) {
        let mut driver = Driver::new();
        for (number, step) in steps.iter().enumerate() {
            driver.step(step);
            driver.world.machine.check_all();
            if number % 8 == 7 {
                driver.check();
            }
        }
        driver.check();
        driver.check_records();
        driver.write();
        driver.check();
    }
}

#[test]
fn what_lived_and_died_between_two_checkpoints_is_never_written() {
    let mut driver = Driver::new();
    driver.world.seal();
    driver.write();
    let before = driver.world.index.len();
    for key in 0..5 {
        driver.step(&Step::Set { store: 0, key, size: 3, ttl: None, condition: 2 });
        driver.step(&Step::Delete { store: 0, key });
        driver.step(&Step::Enqueue { queue: 0, jobs: vec![(0, 0)] });
        driver.step(&Step::Reserve { queue: 0, jobs: 1 });
        driver.step(&Step::Settle { queue: 0, lease: key.into(), how: 5 });
    }
    driver.world.seal();
    driver.world.collect(1_000);
    let (_, writes, all) = driver.world.sealed.clone().unwrap();
    assert!(all);
    let kept = "the counters of the queue, of its worker and of the store";
    assert_eq!(writes.len(), 3, "{kept}: {writes:?}");
    driver.write();
    assert_eq!(driver.world.index.len(), before + 3);
}

#[test]
fn a_clock_that_goes_back_revives_no_key() {
    let mut driver = Driver::new();
    driver.step(&Step::Set { store: 0, key: 1, size: 3, ttl: Some(50), condition: 2 });
    let get = KvCommand::Get { keys: Batch::from_elem(Bytes::from(vec![b'k', 1]), 1) };
    let there = |driver: &mut Driver| match driver.kv(0, get.clone()) {
        Outcome::Answered(Reply::Values(values), _) => values[0].is_some(),
        other => panic!("{other:?}"),
    };
    assert!(there(&mut driver));
    driver.world.now = driver.world.now.plus(50);
    assert!(!there(&mut driver));
    driver.world.tick(10);
    driver.world.now = Millis(1);
    assert!(!there(&mut driver));
    driver.world.crash();
    assert!(!there(&mut driver));
}

#[test]
fn files_of_a_dropped_stream_go_only_after_the_checkpoint_that_forgets_it() {
    let mut driver = Driver::new();
    driver.append(0, 1, 2);
    driver.world.seal();
    driver.write();
    let at = PartitionRef { resource: driver.streams[0], partition: 1 };
    driver.world.delete(Kind::Stream, NAMES[0]);
    driver.world.tick(10);
    assert!(driver.world.machine.take_dropped_streams().is_empty());
    driver.world.seal();
    driver.world.collect(100);
    assert!(driver.world.machine.take_dropped_streams().is_empty());
    driver.world.machine.sealed_written();
    assert_eq!(driver.world.machine.take_dropped_streams(), [at]);
    driver.world.machine.check_all();
}

#[test]
fn neither_eviction_nor_a_drop_takes_records_from_a_checkpoint_in_the_making() {
    for (drops, fails) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut driver = Driver::new();
        for _ in 0..50 {
            driver.append(0, 1, 2);
        }
        let at = PartitionRef { resource: driver.streams[0], partition: 1 };
        let ranges = driver.world.machine.seal_ranges();
        let [range] = ranges[..] else { panic!("{ranges:?}") };
        assert_eq!((range.at, range.from, range.upto), (at, Offset(0), Offset(100)));
        let all = driver.world.machine.sealed_runs(&range, range.from, usize::MAX);
        assert_eq!(all.len(), 50);
        // Later records are not part of it.
        driver.append(0, 1, 3);
        if drops {
            driver.world.delete(Kind::Stream, NAMES[0]);
            driver.world.tick(10);
        }
        let mut parts = Vec::new();
        while parts.len() < all.len() {
            assert!(driver.world.machine.evict_tails(0, 1), "nothing may be evicted");
            let from = parts.last().map_or(range.from, end);
            let part = driver.world.machine.sealed_runs(&range, from, 400);
            assert!((1..10).contains(&part.len()), "small parts: {}", part.len());
            parts.extend(part);
        }
        assert_eq!(parts, all);
        assert!(driver.world.machine.sealed_runs(&range, range.upto, 400).is_empty());
        while !driver.world.machine.collect(100, &mut Vec::new()) {}
        if fails {
            driver.world.machine.unseal();
            let again = driver.world.machine.seal_ranges();
            assert_eq!(again.first().map(|range| range.from), (!drops).then_some(Offset(0)));
        } else {
            driver.world.machine.sealed_written();
            while !driver.world.machine.evict_tails(0, 1) {}
            let left = driver.world.machine.stats().tail_bytes;
            assert_eq!(left == 0, drops, "only what came later is left");
            let again = driver.world.machine.seal_ranges();
            assert_eq!(again.first().map(|range| range.from), (!drops).then_some(Offset(100)));
        }
        driver.world.machine.check_all();
    }
}

fn end(run: &flowmesh_model::reply::RecordRun) -> Offset {
    run.base.plus(u64::from(run.count))
}

/// What comes and goes many times between two checkpoints thins out the lists of changes; what is there at the end must
/// still be on them, or the index never gets it and the log that has it is trimmed.
#[test]
fn what_stays_after_much_that_came_and_went_is_in_the_next_checkpoint() {
    for cycles in [30, 33, 64, 100, 1_500] {
        let mut driver = Driver::new();
        for cycle in 0..cycles {
            let (key, other) = ((cycle % 7) as u8, ((cycle + 1) % 7) as u8);
            driver.step(&Step::Set { store: 0, key, size: 3, ttl: None, condition: 2 });
            driver.world.machine.check_all();
            driver.step(&Step::Delete { store: 0, key: other });
            driver.step(&Step::Enqueue { queue: 0, jobs: vec![(0, 0)] });
            driver.world.machine.check_all();
            driver.step(&Step::Reserve { queue: 0, jobs: 1 });
            driver.step(&Step::Settle { queue: 0, lease: cycle, how: 5 });
        }
        driver.step(&Step::Set { store: 0, key: 9, size: 3, ttl: None, condition: 2 });
        driver.step(&Step::Enqueue { queue: 0, jobs: vec![(0, 0)] });
        driver.world.machine.check_all();
        driver.world.seal();
        while !driver.world.sealed.as_ref().unwrap().2 {
            driver.world.collect(100);
        }
        // All was collected, so nothing that changes now may be captured for the sealed state.
        driver.step(&Step::Set { store: 0, key: 9, size: 4, ttl: None, condition: 2 });
        driver.step(&Step::Reserve { queue: 0, jobs: 1 });
        driver.write();
        driver.check();
    }
}

/// A body that was fetched from the index says nothing about one that a checkpoint is about to bring there.
#[test]
fn what_a_checkpoint_that_fails_took_stays_in_memory() {
    let mut driver = Driver::new();
    driver.step(&Step::Enqueue { queue: 0, jobs: vec![(0, 0)] });
    driver.world.seal();
    driver.write();
    driver.step(&Step::Enqueue { queue: 0, jobs: vec![(0, 0)] });
    driver.crash();
    driver.world.seal();
    // The first job's body is fetched, the second's is captured for the checkpoint.
    driver.step(&Step::Reserve { queue: 0, jobs: 2 });
    driver.step(&Step::Evict);
    driver.world.unseal();
    driver.check();
    driver.world.seal();
    driver.write();
    driver.check();
}

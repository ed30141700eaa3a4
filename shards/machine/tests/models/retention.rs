//! Segments, retention, trims and times: a partition is a list of records with their append times and the segment of
//! each, and retention takes whole segments off its front. Checkpoints, failures and crashes change nothing of it.

use std::collections::BTreeMap;

use flowmesh_model::command::ReadFrom;
use flowmesh_model::reply::RecordRun;
use flowmesh_model::{
    Command, Fact, Kind, Millis, Offset, PartitionRef, Reject, Reply, ResourceId, ResourcePath, Settings,
    StreamCommand, StreamSettings,
};
use proptest::prelude::*;

use crate::common::{Outcome, World, cases, pack, values};

#[derive(Clone, Debug)]
enum Step {
    Append { partition: u32, sizes: Vec<usize> },
    Pass { ms: u64 },
    Tick { facts_max: usize },
    Trim { partition: u32, upto: u64 },
    Set { settings: StreamSettings },
    Find { partition: u32, from: From },
    Seal,
    Collect,
    Write,
    Fail,
    Evict { bytes_max: u64 },
    Crash,
}

#[derive(Clone, Debug)]
enum From {
    Earliest,
    Latest,
    Offset(u64),
    Ago(u64),
}

fn settings() -> impl Strategy<Value = StreamSettings> {
    let retention_ms = prop::option::of(1_000u64..8_000);
    let retention_bytes = prop::option::of(1u64..1_500);
    (retention_ms, retention_bytes, 100u64..900, 60_000u64..61_000).prop_map(
        |(retention_ms, retention_bytes, segment_bytes, segment_ms)| StreamSettings {
            partitions: 2,
            retention_ms,
            retention_bytes,
            segment_bytes,
            segment_ms,
            ..StreamSettings::default()
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let from = prop_oneof![
        1 => Just(From::Earliest),
        1 => Just(From::Latest),
        1 => (0u64..80).prop_map(From::Offset),
        4 => (0u64..12_000).prop_map(From::Ago),
    ];
    prop_oneof![
        10 => (0u32..2, prop::collection::vec(0usize..120, 1..5))
            .prop_map(|(partition, sizes)| Step::Append { partition, sizes }),
        5 => prop_oneof![0u64..900, 0u64..900, 0u64..70_000].prop_map(|ms| Step::Pass { ms }),
        5 => (1usize..4).prop_map(|facts_max| Step::Tick { facts_max }),
        2 => (0u32..2, 0u64..80).prop_map(|(partition, upto)| Step::Trim { partition, upto }),
        1 => settings().prop_map(|settings| Step::Set { settings }),
        6 => (0u32..2, from).prop_map(|(partition, from)| Step::Find { partition, from }),
        3 => Just(Step::Seal),
        3 => Just(Step::Collect),
        3 => Just(Step::Write),
        1 => Just(Step::Fail),
        1 => (0u64..900).prop_map(|bytes_max| Step::Evict { bytes_max }),
        1 => Just(Step::Crash),
    ]
}

/// A partition: all records ever appended, and what is left of them.
#[derive(Default)]
struct List {
    records: Vec<Record>,
    earliest: usize,
    segment: usize,
    /// Bytes and first time of the segment that takes records.
    bytes: u64,
    begun: u64,
}

struct Record {
    value: Vec<u8>,
    time: u64,
    segment: usize,
    bytes: u64,
}

impl List {
    fn append(&mut self, settings: &StreamSettings, now: u64, batch: Vec<Vec<u8>>) {
        let sizes: Vec<u64> = batch.iter().map(|value| pack(&[value]).bytes().len() as u64).collect();
        let bytes: u64 = sizes.iter().sum();
        let age_max = settings.segment_ms.min(settings.retention_ms.unwrap_or(u64::MAX));
        if self.bytes > 0 && (self.bytes + bytes > settings.segment_bytes || now - self.begun >= age_max) {
            (self.segment, self.bytes) = (self.segment + 1, 0);
        }
        if self.bytes == 0 {
            self.begun = now;
        }
        self.bytes += bytes;
        let segment = self.segment;
        self.records.extend(batch.into_iter().zip(sizes).map(|(value, bytes)| Record {
            value,
            time: now,
            segment,
            bytes,
        }));
    }

    /// Bytes of the segments that are left.
    fn bytes(&self) -> u64 {
        let first = self.records.get(self.earliest).map_or(usize::MAX, |record| record.segment);
        self.records.iter().filter(|record| record.segment >= first).map(|record| record.bytes).sum()
    }

    fn segments(&self) -> u64 {
        let last = self.records.last().map_or(0, |record| record.segment);
        self.records.get(self.earliest).map_or(0, |record| (last - record.segment + 1) as u64)
    }

    fn trim(&mut self, upto: usize) {
        self.earliest = self.earliest.max(upto);
        if self.earliest == self.records.len() && self.bytes > 0 {
            (self.segment, self.bytes) = (self.segment + 1, 0);
        }
    }

    /// Takes off what is too old or too much.
    fn expire(&mut self, settings: &StreamSettings, now: u64) {
        while let Some(first) = self.records.get(self.earliest) {
            let segment = first.segment;
            let is_active = self.bytes > 0 && segment == self.segment;
            let end = self.records.partition_point(|record| record.segment <= segment);
            let last = self.records[end - 1].time;
            let rest: u64 = self.records[end..].iter().map(|record| record.bytes).sum();
            let too_old = settings.retention_ms.is_some_and(|ms| last + ms <= now);
            let too_much = !is_active && settings.retention_bytes.is_some_and(|bytes| rest >= bytes);
            if !too_old && !too_much {
                return;
            }
            self.trim(end);
        }
    }

    fn find(&self, from: ReadFrom) -> Option<usize> {
        let end = self.records.len();
        match from {
            ReadFrom::Earliest => Some(self.earliest),
            ReadFrom::Latest => Some(end),
            ReadFrom::Offset(at) => Some(at.0 as usize).filter(|at| (self.earliest..=end).contains(at)),
            ReadFrom::Timestamp(time) => {
                Some((self.earliest..end).find(|at| self.records[*at].time >= time.0).unwrap_or(end))
            }
        }
    }
}

struct Driver {
    world: World,
    resource: ResourceId,
    settings: StreamSettings,
    lists: [List; 2],
}

impl Driver {
    fn new(settings: StreamSettings) -> Self {
        let mut world = World::default();
        let resource = world.create(Kind::Stream, "logs");
        let mut driver = Self { world, resource, settings: settings.clone(), lists: Default::default() };
        driver.set(settings);
        driver
    }

    /// Segments as small as these could not be asked for.
    fn set(&mut self, settings: StreamSettings) {
        self.settings = settings.clone();
        let id = self.resource;
        self.world.commit([Fact::ResourceUpdated { id, settings: Box::new(Settings::Stream(settings)) }]);
        self.world.machine.set_catalog(self.world.machine.catalog_snapshot());
    }

    fn at(&self, partition: u32) -> PartitionRef {
        PartitionRef { resource: self.resource, partition }
    }

    fn ask(&mut self, partition: u32, command: StreamCommand) -> Outcome {
        self.world.run(&Command::Stream(self.at(partition), command))
    }

    fn step(&mut self, step: Step) {
        let now = self.world.now.0;
        match step {
            Step::Append { partition, sizes } => {
                let list = &mut self.lists[partition as usize];
                let first = list.records.len();
                let batch: Vec<Vec<u8>> =
                    sizes.iter().enumerate().map(|(n, size)| vec![(first + n) as u8; *size]).collect();
                let slices: Vec<&[u8]> = batch.iter().map(Vec::as_slice).collect();
                let append = StreamCommand::append(pack(&slices));
                list.append(&self.settings, now, batch);
                let Reply::Appended { base, .. } = self.ask(partition, append).reply() else { panic!() };
                assert_eq!(base.0, first as u64);
            }
            Step::Pass { ms } => self.world.now = Millis(now + ms),
            Step::Tick { facts_max } => {
                self.world.tick(facts_max);
                for list in &mut self.lists {
                    list.expire(&self.settings, now);
                }
                let due = self.world.machine.next_due();
                assert!(due.is_none_or(|due| due > self.world.now), "nothing is due after a tick: {due:?}");
                self.compare();
            }
            Step::Trim { partition, upto } => self.trim(partition, upto),
            Step::Set { settings } => self.set(settings),
            Step::Find { partition, from } => self.find(partition, &from),
            Step::Seal => {
                if self.world.sealed.is_none() {
                    self.world.seal();
                }
            }
            Step::Collect => self.world.collect(2),
            Step::Write => {
                self.world.write();
            }
            Step::Fail => {
                if self.world.sealed.is_some() {
                    self.world.unseal();
                }
            }
            Step::Evict { bytes_max } => while !self.world.machine.evict_tails(bytes_max, 2) {},
            Step::Crash => {
                self.world.crash();
                self.compare();
            }
        }
        self.world.machine.check_all();
    }

    fn trim(&mut self, partition: u32, upto: u64) {
        let next = self.lists[partition as usize].records.len() as u64;
        let outcome = self.ask(partition, StreamCommand::Trim { upto: Offset(upto) });
        let list = &mut self.lists[partition as usize];
        if upto > next {
            let (requested, earliest) = (Offset(upto), Offset(list.earliest as u64));
            let range = Reject::OffsetOutOfRange { requested, earliest, next: Offset(next) };
            assert_eq!(outcome, Outcome::Rejected(range));
            return;
        }
        list.trim(upto as usize);
        let earliest = Offset(list.earliest as u64);
        assert_eq!(outcome.reply(), Reply::Trimmed { earliest, next: Offset(next) });
    }

    fn find(&mut self, partition: u32, from: &From) {
        let from = match from {
            From::Earliest => ReadFrom::Earliest,
            From::Latest => ReadFrom::Latest,
            From::Offset(offset) => ReadFrom::Offset(Offset(*offset)),
            From::Ago(ms) => ReadFrom::Timestamp(Millis(self.world.now.0.saturating_sub(*ms))),
        };
        let expected = self.lists[partition as usize].find(from);
        let found = self.resolve(partition, from);
        assert_eq!(found.as_ref().ok().copied(), expected, "{from:?}");
        if let Ok(offset) = found {
            self.read_to_end(partition, offset);
        }
    }

    /// What a start stands for, and its time; files are looked through where the machine says so.
    fn resolve(&mut self, partition: u32, from: ReadFrom) -> Result<usize, Reject> {
        match self.ask(partition, StreamCommand::FindOffset { from }) {
            Outcome::Answered(Reply::OffsetFound { offset, appended_at }, _) => {
                let record = self.lists[partition as usize].records.get(offset.0 as usize);
                assert_eq!(appended_at.map(Millis::get), record.map(|record| record.time));
                Ok(offset.0 as usize)
            }
            Outcome::Finds(find) => {
                let file = self.world.files.get(&find.at).map_or(&[][..], Vec::as_slice);
                let first = file.iter().find(|run| end(run) > find.from).expect("a find begins in files");
                assert!(first.base <= find.from);
                let found = file.iter().find(|run| end(run) > find.from && run.appended_at >= find.since);
                match found {
                    Some(run) => Ok(run.base.max(find.from).0 as usize),
                    None => {
                        let behind = file.last().map(end).unwrap();
                        assert!(behind > find.from);
                        self.resolve(partition, ReadFrom::Offset(behind))
                    }
                }
            }
            Outcome::Rejected(reject) => Err(reject),
            other => panic!("{other:?}"),
        }
    }

    /// Everything from a record on is in memory or in files.
    fn read_to_end(&mut self, partition: u32, from: usize) {
        let mut at = from as u64;
        let mut read = Vec::new();
        let end_offset = self.lists[partition as usize].records.len() as u64;
        while at < end_offset {
            let from = ReadFrom::Offset(Offset(at));
            let command =
                StreamCommand::Read { from, records_max: 7, bytes_max: 300, bytes_min: 0, wait_until: None };
            let runs = match self.ask(partition, command) {
                Outcome::Answered(Reply::Records(records), _) => records.runs,
                Outcome::Cold(from) => {
                    let file = &self.world.files[&self.at(partition)];
                    let run =
                        file.iter().find(|run| end(run) > from).expect("what is cold is in files").clone();
                    assert!(run.base <= from);
                    vec![run]
                }
                other => panic!("{other:?}"),
            };
            let first = runs.first().unwrap().base.0;
            let skip = (at - first) as usize;
            read.extend(values(&runs).into_iter().skip(skip));
            at = end(runs.last().unwrap()).0;
        }
        let list = &self.lists[partition as usize];
        let expected: Vec<Vec<u8>> = list.records[from..].iter().map(|record| record.value.clone()).collect();
        assert_eq!(read, expected);
    }

    /// Counters are those of the model.
    fn compare(&mut self) {
        for partition in 0..2 {
            let Reply::StreamStatus { earliest, next, bytes, segments, oldest, newest, .. } =
                self.ask(partition, StreamCommand::Status).reply()
            else {
                panic!()
            };
            let list = &self.lists[partition as usize];
            assert_eq!((earliest.0 as usize, next.0 as usize), (list.earliest, list.records.len()));
            assert_eq!((bytes, segments), (list.bytes(), list.segments()));
            let first = list.records.get(list.earliest).map(|record| record.segment);
            let begun = list.records.iter().find(|record| Some(record.segment) == first);
            assert_eq!(oldest.map(Millis::get), begun.map(|record| record.time));
            let last = list.records.last().filter(|_| first.is_some());
            assert_eq!(newest.map(Millis::get), last.map(|record| record.time));
        }
    }
}

fn end(run: &RecordRun) -> Offset {
    run.base.plus(u64::from(run.count))
}

proptest! {
    #![proptest_config(cases(300))]
    #[test]
    fn retention_takes_whole_segments_off_the_front(
        settings in settings(),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut driver = Driver::new(settings);
        for step in steps {
            driver.step(step);
        }
        driver.world.write();
        driver.world.crash();
        driver.compare();
        for partition in 0..2 {
            driver.find(partition, &From::Earliest);
        }
    }
}

/// Files hold nothing but the segments that are left, each from its start, once a checkpoint is written.
#[test]
fn a_file_goes_with_its_segment() {
    let settings =
        StreamSettings { retention_bytes: Some(250), segment_bytes: 100, ..StreamSettings::default() };
    let mut driver = Driver::new(StreamSettings { partitions: 2, ..settings });
    for _ in 0..60 {
        driver.step(Step::Append { partition: 0, sizes: vec![40, 40] });
        driver.step(Step::Tick { facts_max: 4 });
        driver.world.seal();
        driver.world.write();
        let list = &driver.lists[0];
        let mut bases = BTreeMap::new();
        for (offset, record) in list.records.iter().enumerate().skip(list.earliest) {
            bases.entry(record.segment).or_insert(offset as u64);
        }
        let files: Vec<u64> = driver.world.file_bases[&driver.at(0)].iter().map(|base| base.0).collect();
        assert_eq!(files, bases.into_values().collect::<Vec<_>>());
    }
    assert!(driver.lists[0].earliest > 100);
}

/// The index keeps old segments in chunks that are not written again.
#[test]
fn a_checkpoint_writes_few_of_many_segments() {
    let settings = StreamSettings { segment_bytes: 10, partitions: 2, ..StreamSettings::default() };
    let mut driver = Driver::new(settings);
    for _ in 0..5_000 {
        driver.step(Step::Append { partition: 0, sizes: vec![20] });
    }
    driver.world.seal();
    driver.world.write();
    driver.step(Step::Append { partition: 0, sizes: vec![20] });
    driver.world.seal();
    let mut writes = Vec::new();
    while !driver.world.machine.collect(100, &mut writes) {}
    let bytes: usize = writes.iter().map(|write| write.value.as_ref().map_or(0, bytes::Bytes::len)).sum();
    assert!(writes.len() <= 4 && bytes < 2_000, "{} items, {bytes} bytes", writes.len());
    driver.world.sealed.as_mut().unwrap().1 = writes;
    driver.world.sealed.as_mut().unwrap().2 = true;
    driver.world.write();
    driver.step(Step::Crash);
    driver.step(Step::Trim { partition: 0, upto: 4_990 });
    driver.world.seal();
    driver.world.write();
    let chunks = driver.world.index.len();
    assert!(chunks < 10, "{chunks} items are left in the index");
    driver.step(Step::Crash);
}

/// What a stream takes that has records and is not used.
#[test]
fn an_idle_stream_takes_little_memory() {
    let mut world = World::default();
    let before = world.machine.memory_bytes();
    for number in 0..1_000 {
        let path = ResourcePath::parse(Kind::Stream, &format!("stream-{number}")).unwrap();
        let resource = world.create(Kind::Stream, path.name());
        let at = PartitionRef { resource, partition: 0 };
        world.run(&Command::Stream(at, StreamCommand::append(pack(&[b"value"])))).reply();
    }
    world.seal();
    world.write();
    world.machine.evict_tails(0, usize::MAX);
    let each = (world.machine.memory_bytes() - before) / 1_000;
    assert!(each <= 2_048, "{each} bytes an idle stream");
}

//! Compaction, as the machine sees it: which segments are compacted when, what is counted, what is read, and that it is all
//! the same after any checkpoint, failure or crash. Files are a list of runs, compacted by the book.

use std::collections::{BTreeMap, BTreeSet};

use flowmesh_model::command::ReadFrom;
use flowmesh_model::record::{PackedRecords, RecordPacker, RecordView};
use flowmesh_model::{
    Cleaned, Command, CompactedSegment, CompactionJob, Fact, Kind, Offset, PartitionRef, Reply, Settings,
    StreamCommand, StreamSettings,
};
use proptest::prelude::*;

use crate::common::{Outcome, World, cases, written_afresh};

const TOMBSTONE_MS: u64 = 5_000;
const LAG_MS: u64 = 500;

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<(u8, bool)>),
    Pass { ms: u64 },
    Compact { groups: u64, lost_after: Option<u8> },
    Trim { share: u8 },
    Seal,
    Collect,
    Write,
    Fail,
    Evict { bytes_max: u64 },
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => prop::collection::vec((0u8..8, prop::bool::weighted(0.2)), 1..12).prop_map(Step::Append),
        3 => (0u64..3_000).prop_map(|ms| Step::Pass { ms }),
        4 => (any::<u64>(), prop::option::weighted(0.2, 0u8..3))
            .prop_map(|(groups, lost_after)| Step::Compact { groups, lost_after }),
        1 => any::<u8>().prop_map(|share| Step::Trim { share }),
        3 => Just(Step::Seal),
        2 => Just(Step::Collect),
        4 => Just(Step::Write),
        1 => Just(Step::Fail),
        1 => (0u64..900).prop_map(|bytes_max| Step::Evict { bytes_max }),
        1 => Just(Step::Crash),
    ]
}

struct Record {
    key: u8,
    is_tombstone: bool,
    /// When all before it were clean for the first time.
    clean_since: Option<u64>,
}

struct Driver {
    world: World,
    at: PartitionRef,
    all: Vec<Record>,
    /// Offsets of what is left.
    left: BTreeSet<u64>,
    earliest: u64,
}

fn batch(key: u8, is_tombstone: bool) -> PackedRecords {
    let value: &[u8] = if is_tombstone { b"" } else { b"some value" };
    let mut packer = RecordPacker::default();
    packer.push(&RecordView { key: Some(&[key]), value, ..RecordView::default() });
    PackedRecords::check(packer.finish()).unwrap()
}

impl Driver {
    fn new() -> Self {
        let mut world = World::default();
        let settings = StreamSettings {
            compaction: true,
            segment_bytes: 40,
            tombstone_retention_ms: Some(TOMBSTONE_MS),
            min_compaction_lag_ms: Some(LAG_MS),
            ..StreamSettings::default()
        };
        // Segments as small as these could not be asked for.
        let resource = world.create(Kind::Stream, "s");
        world
            .commit([Fact::ResourceUpdated { id: resource, settings: Box::new(Settings::Stream(settings)) }]);
        world.machine.set_catalog(world.machine.catalog_snapshot());
        let at = PartitionRef { resource, partition: 0 };
        Self { world, at, all: Vec::new(), left: BTreeSet::new(), earliest: 0 }
    }

    fn ask(&mut self, command: StreamCommand) -> Outcome {
        self.world.run(&Command::Stream(self.at, command))
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Append(records) => {
                for (key, is_tombstone) in records {
                    self.ask(StreamCommand::append(batch(key, is_tombstone))).reply();
                    self.left.insert(self.all.len() as u64);
                    self.all.push(Record { key, is_tombstone, clean_since: None });
                }
            }
            Step::Pass { ms } => self.world.now = self.world.now.plus(ms),
            Step::Compact { groups, lost_after } => self.compact(groups, lost_after),
            Step::Trim { share } => {
                let upto = self.all.len() as u64 * u64::from(share) / 255;
                self.ask(StreamCommand::Trim { upto: Offset(upto) }).reply();
                self.earliest = self.earliest.max(upto);
                self.left = self.left.split_off(&self.earliest);
            }
            Step::Seal => {
                if self.world.sealed.is_none() {
                    self.world.seal();
                }
            }
            Step::Collect => self.world.collect(2),
            Step::Write => {
                if self.world.write() {
                    let afresh = written_afresh(self.world.replayed(self.world.index_lsn));
                    assert!(afresh == self.world.index, "the index has what it would have, written at once");
                }
            }
            Step::Fail => {
                if self.world.sealed.is_some() {
                    self.world.unseal();
                }
            }
            Step::Evict { bytes_max } => while !self.world.machine.evict_tails(bytes_max, 2) {},
            Step::Crash => {
                let before = self.status();
                self.world.crash();
                assert_eq!(self.status(), before);
            }
        }
        self.world.machine.check_all();
        self.read_all();
    }

    fn status(&mut self) -> Reply {
        self.ask(StreamCommand::Status).reply()
    }

    /// What must be left of a job's range, by the book.
    fn survivors(&self, job: &CompactionJob) -> BTreeSet<u64> {
        let mut latest = BTreeMap::new();
        for offset in job.dirty_from.max(job.earliest).0..job.end.0 {
            latest.insert(self.all[offset as usize].key, offset);
        }
        let stays = |offset: &u64| {
            let record = &self.all[*offset as usize];
            let goes = record.is_tombstone && *offset < job.tombstones_before.0;
            latest.get(&record.key).is_none_or(|last| last <= offset) && !goes
        };
        self.left.range(..job.end.0).copied().filter(stays).collect()
    }

    fn check_job(&self, job: &CompactionJob) {
        let now = self.world.now.0;
        let in_files: BTreeSet<u64> = self.world.files[&self.at].iter().map(|run| run.base.0).collect();
        for offset in self.left.range(..job.end.0) {
            assert!(in_files.contains(offset), "{offset} is to be compacted and is in no file");
        }
        for (offset, record) in (0u64..).zip(&self.all) {
            if record.is_tombstone && offset < job.tombstones_before.0 && self.left.contains(&offset) {
                let since = record.clean_since.expect("a tombstone goes that was never clean");
                assert!(since + TOMBSTONE_MS <= now, "{offset} goes too early");
            }
        }
    }

    /// Compacts as files do, in groups of segments; facts after `lost_after` are not logged.
    fn compact(&mut self, groups: u64, lost_after: Option<u8>) {
        let Some(job) = self.world.machine.next_compaction(self.world.now) else { return };
        self.check_job(&job);
        let survivors = self.survivors(&job);
        let mut logged = 0;
        let mut ends: Vec<Offset> = job.segments.iter().skip(1).map(|(base, _)| *base).collect();
        let mut bit = groups;
        ends.retain(|_| {
            bit = bit.rotate_left(1);
            bit & 1 == 1
        });
        ends.push(job.end);
        let mut base = job.segments[0].0;
        for end in ends {
            let files = self.world.files.get_mut(&self.at).unwrap();
            let inside = |offset: Offset| (base..end).contains(&offset);
            files.retain(|run| !inside(run.base) || survivors.contains(&run.base.0));
            let some: Vec<_> = files.iter().filter(|run| inside(run.base)).collect();
            let bytes = some.iter().map(|run| run.records.len() as u64).sum();
            let times = some.first().zip(some.last()).map(|(a, b)| (a.appended_at, b.appended_at));
            let bases = self.world.file_bases.get_mut(&self.at).unwrap();
            bases.retain(|first| !inside(*first) || *first == base);
            self.left.retain(|offset| !inside(Offset(*offset)) || survivors.contains(offset));
            let segment = CompactedSegment { base, end, bytes, times };
            base = end;
            if lost_after.is_some_and(|after| logged >= after) {
                continue;
            }
            logged += 1;
            let fact = self.world.machine.compacted_fact(self.at, &segment).expect("segments as they were");
            self.world.commit([fact]);
            while !self.world.machine.evict_compacted(self.at, 2) {}
        }
        if lost_after.is_some() {
            // What memory still has of it would be read: as after a crash it has not.
            self.world.crash();
            while !self.world.machine.evict_tails(0, 100) {}
            return;
        }
        let is_tombstone = |offset: &&u64| self.all[**offset as usize].is_tombstone;
        let tombstone = survivors.iter().find(is_tombstone).map(|offset| Offset(*offset));
        let cleaned = Cleaned { upto: job.end, tombstone };
        let fact = self.world.machine.cleaned_fact(self.at, cleaned).unwrap();
        self.world.commit([fact]);
        for record in &mut self.all[..job.end.0 as usize] {
            record.clean_since.get_or_insert(self.world.now.0);
        }
    }

    /// A reader from the first record on finds what is left, and nothing else.
    fn read_all(&mut self) {
        let (mut found, mut next) = (Vec::new(), self.earliest);
        while next < self.all.len() as u64 {
            let from = ReadFrom::Offset(Offset(next));
            let read =
                StreamCommand::Read { from, records_max: 5, bytes_max: 400, bytes_min: 0, wait_until: None };
            match self.ask(read) {
                Outcome::Answered(Reply::Records(records), _) => {
                    for run in &records.runs {
                        found.extend(run.base.0..run.base.0 + u64::from(run.count));
                    }
                    next = records.next.0;
                }
                Outcome::Cold(from) => {
                    let files = &self.world.files[&self.at];
                    match files.iter().find(|run| run.base >= from) {
                        Some(run) => {
                            found.push(run.base.0);
                            next = run.base.0 + 1;
                        }
                        None => next = self.flushed(),
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(found, self.left.iter().copied().collect::<Vec<_>>());
    }

    /// Where files end.
    fn flushed(&self) -> u64 {
        let tail = self.world.machine.stream_ends();
        tail.iter().find(|(at, _)| *at == self.at).map_or(0, |(_, end)| end.0)
    }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn it_reads_and_counts_as_a_list_does(steps in prop::collection::vec(step(), 1..60)) {
        let mut driver = Driver::new();
        for step in steps {
            driver.step(step);
        }
        // In the end all that can be compacted is.
        driver.step(Step::Fail);
        driver.step(Step::Seal);
        driver.step(Step::Write);
        driver.step(Step::Pass { ms: LAG_MS + TOMBSTONE_MS * 2 });
        for _ in 0..4 {
            driver.step(Step::Compact { groups: u64::MAX, lost_after: None });
            driver.step(Step::Pass { ms: TOMBSTONE_MS * 2 });
        }
        assert_eq!(driver.world.machine.next_compaction(driver.world.now), None, "it comes to an end");
        driver.step(Step::Crash);
    }
}

#[test]
fn many_segments_become_few_and_the_index_follows() {
    let mut driver = Driver::new();
    for round in 0..5u8 {
        for number in 0..200u8 {
            driver.step(Step::Append(vec![(number % (150 + round), false)]));
        }
        driver.step(Step::Seal);
        driver.step(Step::Write);
        driver.step(Step::Pass { ms: LAG_MS });
        driver.step(Step::Compact { groups: 0x1111_1111_1111_1111, lost_after: None });
        driver.step(Step::Seal);
        driver.step(Step::Write);
        driver.step(Step::Crash);
    }
}

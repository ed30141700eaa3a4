//! A shard without a disk: a machine, the log it wrote, an index and segment files in memory, and a clock to turn.

#![allow(dead_code)] // each test binary uses a part of it

pub mod generated;
pub mod operations;
pub mod text;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flowmesh_machine::{
    BodyCursor, Chill, ChillCursor, ColdFind, ColdKeys, Decision, EntryContext, FlushRange, HistoryStep,
    Machine, MachineConfig, PastRead, PastRows,
};
use flowmesh_model::job::fact::{QueueFact, RemovalCause};
use flowmesh_model::record::{RecordPacker, RecordView};
use flowmesh_model::reply::RecordRun;
use flowmesh_model::{
    Batch, CatalogCommand, Command, Fact, IndexWrite, JobId, Kind, Lsn, Millis, Offset, PartitionRef, Reject,
    Reply, ResourceId, ResourcePath, Settings, ShardId, Space, fact,
};

pub const CONFIG: MachineConfig = MachineConfig {
    shard: ShardId(0),
    catalog_owner: true,
    shards: 1,
    shares: 1,
    hash_seed: 7,
    checkpoints: true,
};

pub type Index = BTreeMap<(Space, Bytes), Bytes>;

/// What a command came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Changed(Reply, Batch<Fact>),
    Answered(Reply, Lsn),
    Waits,
    Cold(Offset),
    Finds(ColdFind),
    Rejected(Reject),
}

impl Outcome {
    pub fn reply(self) -> Reply {
        match self {
            Self::Changed(reply, _) | Self::Answered(reply, _) => reply,
            other => panic!("no reply: {other:?}"),
        }
    }
}

pub struct World {
    pub machine: Machine,
    pub log: Vec<(EntryContext, Batch<Fact>)>,
    pub now: Millis,
    pub lsn: Lsn,
    pub index: Index,
    pub index_lsn: Lsn,
    pub files: BTreeMap<PartitionRef, Vec<RecordRun>>,
    /// The first record of each file.
    pub file_bases: BTreeMap<PartitionRef, BTreeSet<Offset>>,
    /// A checkpoint in the making: its LSN, what was collected, whether that is all.
    pub sealed: Option<(Lsn, Vec<IndexWrite>, bool)>,
    pub to_flush: Vec<FlushRange>,
    /// Rows of a history that are read at once.
    pub history_rows_max: usize,
}

impl Default for World {
    fn default() -> Self {
        Self {
            machine: Machine::new(CONFIG),
            log: Vec::new(),
            now: Millis(1_000),
            lsn: Lsn(0),
            index: Index::new(),
            index_lsn: Lsn(0),
            files: BTreeMap::new(),
            file_bases: BTreeMap::new(),
            sealed: None,
            to_flush: Vec::new(),
            history_rows_max: 3,
        }
    }
}

impl World {
    pub fn decide(&self, command: &Command) -> Result<Decision, Reject> {
        self.machine.decide(self.now, self.lsn.next(), command)
    }

    pub fn run(&mut self, command: &Command) -> Outcome {
        match self.decide(command) {
            Ok(Decision::Warm(queue, jobs)) => {
                assert!(!jobs.is_empty());
                self.warm(queue, &jobs);
                self.run(command)
            }
            Ok(Decision::WarmStore(cold)) => {
                warm_store(&mut self.machine, &self.index, &cold);
                self.machine.check_all();
                assert_ne!(self.decide(command), Ok(Decision::WarmStore(cold)), "what was fetched is there");
                self.run(command)
            }
            Ok(Decision::Change { facts, reply }) => {
                assert!(!facts.is_empty(), "a change has facts");
                self.commit(facts.clone());
                self.make_room();
                if matches!(command, Command::Catalog(_)) {
                    self.machine.set_catalog(self.machine.catalog_snapshot());
                }
                Outcome::Changed(reply, facts)
            }
            Ok(Decision::Answer { reply, seen }) => {
                assert!(seen <= self.lsn, "an answer shows what has not happened");
                Outcome::Answered(reply, seen)
            }
            Ok(Decision::Past(read)) => self.run_past(command, read),
            Ok(Decision::Wait(_)) => Outcome::Waits,
            Ok(Decision::Fetch(read)) => Outcome::Cold(read.from),
            Ok(Decision::Find(find)) => Outcome::Finds(find),
            Err(reject) => Outcome::Rejected(reject),
        }
    }

    /// Fetches what jobs are about from the index.
    fn warm(&mut self, queue: ResourceId, jobs: &[JobId]) {
        let cold = self.machine.cold_bodies(queue, jobs);
        assert!(
            jobs.iter().all(|job| cold.iter().any(|(found, _)| found == job)),
            "only what is cold is fetched"
        );
        for (job, key) in cold {
            let body = self.index.get(&(Space::Bodies, key)).expect("the index has what memory has not");
            self.machine.warm(queue, job, body.clone()).unwrap();
        }
        self.machine.check_all();
    }

    /// Reads of the history what a command needs, a few rows at a time, until it is answered.
    fn run_past(&mut self, command: &Command, mut read: PastRead) -> Outcome {
        let mut rows = PastRows::default();
        for _ in 0..100_000 {
            assert!(!read.ranges.is_empty() || !read.entries.is_empty(), "a read that reads nothing");
            for range in &read.ranges {
                assert!(range.from < range.to);
                let (from, to) = (range.from.clone(), range.to.clone());
                let mut found = self.index.range((Space::History, from)..(Space::History, to));
                let rows_max = range.rows_max.min(self.history_rows_max);
                let chunk = found.by_ref().take(rows_max);
                let chunk: Vec<_> = chunk.map(|((_, row), value)| (row.clone(), value.clone())).collect();
                rows.add(read.generation, range, chunk, found.next().is_none());
            }
            for (key, version) in read.entries {
                let value = self.index.get(&(Space::Keys, key.clone())).cloned();
                rows.add_entry((key, version), value);
            }
            match self.machine.past(self.now, self.lsn.next(), command, &rows) {
                Ok(Decision::Answer { reply, seen }) => {
                    assert!(seen <= self.lsn, "an answer shows what has not happened");
                    return Outcome::Answered(reply, seen);
                }
                Ok(Decision::Past(more)) => read = more,
                Ok(other) => panic!("what was is only read: {other:?}"),
                Err(reject) => return Outcome::Rejected(reject),
            }
        }
        panic!("a read of the past never ends");
    }

    /// Takes out of the index what is of no use of histories.
    fn sweep_history(&mut self) {
        if !self.machine.take_history_news() {
            return;
        }
        let mut at = Bytes::new();
        while let Some(((_, key), _)) = self
            .index
            .range((Space::History, at.clone())..)
            .next()
            .filter(|((space, _), _)| *space == Space::History)
        {
            let key = key.clone();
            match self.machine.history_garbage(&key).unwrap() {
                HistoryStep::Remove(upto) => {
                    assert!(upto > key);
                    let range = (Space::History, key)..(Space::History, upto);
                    let gone: BTreeSet<_> = self.index.range(range).map(|(key, _)| key.clone()).collect();
                    self.index.retain(|key, _| !gone.contains(key));
                }
                HistoryStep::Skip(upto) => {
                    assert!(upto > key);
                    at = upto;
                }
            }
        }
    }

    /// Drops all from memory of what jobs are about that the index has.
    pub fn evict_bodies(&mut self, pages_max: usize) {
        let mut from = Some(BodyCursor::default());
        while let Some(at) = from {
            from = self.machine.evict_bodies(0, pages_max, at);
        }
    }

    /// A whole checkpoint, be it that one was begun.
    pub fn checkpoint(&mut self) {
        if self.sealed.is_none() {
            self.seal();
        }
        self.write();
    }

    /// Leaves all values to the index that it has as they are, some entries at a time.
    pub fn chill(&mut self, looks_max: usize) {
        let mut cursor = ChillCursor::default();
        while self.machine.chill(0, looks_max, &mut cursor) == Chill::More {}
        if self.sealed.is_none() && self.index_lsn == self.lsn {
            assert_eq!(self.machine.could_go(), 0, "all that the index has can go");
        }
        assert_eq!(self.machine.chill(u64::MAX, looks_max, &mut cursor), Chill::Enough);
    }

    /// The state as text, with what is not in memory as the index has it.
    pub fn dump(&self) -> String {
        self.dump_of(&self.machine)
    }

    /// As [`World::dump`], of another machine over the same index.
    pub fn dump_of(&self, machine: &Machine) -> String {
        machine.dump_with(&|space, key| self.index.get(&(space, key.clone())).cloned())
    }

    /// Logs facts, as bytes, and applies what is read back.
    pub fn commit(&mut self, facts: impl IntoIterator<Item = Fact>) {
        self.lsn = self.lsn.next();
        let at = EntryContext { lsn: self.lsn, time: self.machine.clamp(self.now) };
        let mut bytes = Vec::new();
        facts.into_iter().for_each(|fact| fact.encode(&mut bytes));
        let facts = fact::decode_all(bytes.into()).unwrap();
        self.log.push((at, facts.clone()));
        facts.into_iter().for_each(|fact| self.machine.apply(at, fact));
    }

    /// Makes room in caches, as is done behind every change.
    pub fn make_room(&mut self) {
        while self.machine.is_crowded() {
            let facts = self.machine.make_room(self.now, self.lsn.next());
            if !facts.is_empty() {
                self.commit(facts);
            }
        }
    }

    /// Does what is due, in ticks of `facts_max`.
    pub fn tick(&mut self, facts_max: usize) -> Vec<Fact> {
        let mut all = Vec::new();
        for _ in 0..10_000 {
            let tick = self.machine.tick(self.now, self.lsn.next(), facts_max);
            // What jobs of schedules drop comes on top, and so does what feeds get.
            let on_top = |fact: &&Fact| {
                matches!(
                    fact,
                    Fact::Queue(_, QueueFact::Removed { cause: RemovalCause::Dropped, .. })
                        | Fact::FeedHeld { .. }
                        | Fact::RecordsAppended { .. }
                        | Fact::SegmentRolled { .. }
                )
            };
            assert!(tick.facts.len() - tick.facts.iter().filter(on_top).count() <= facts_max);
            if !tick.facts.is_empty() {
                all.extend(tick.facts.clone());
                self.commit(tick.facts);
            }
            let mut fetched = false;
            while let Some(cold) = self.machine.take_cold_due() {
                warm_store(&mut self.machine, &self.index, &cold);
                fetched = true;
            }
            if !fetched && tick.next.is_none_or(|next| next > self.machine.clamp(self.now)) {
                return all;
            }
        }
        panic!("ticks never end");
    }

    pub fn create(&mut self, kind: Kind, name: &str) -> ResourceId {
        self.create_with(name, Settings::default_for(kind))
    }

    pub fn create_with(&mut self, name: &str, settings: Settings) -> ResourceId {
        let path = ResourcePath::parse(settings.kind(), name).unwrap();
        let create = CatalogCommand::Create { path, settings, or_existing: true };
        match self.run(&Command::Catalog(create)).reply() {
            Reply::Resource { info, .. } => info.id,
            other => panic!("{other:?}"),
        }
    }

    pub fn delete(&mut self, kind: Kind, name: &str) -> Outcome {
        let path = ResourcePath::parse(kind, name).unwrap();
        self.run(&Command::Catalog(CatalogCommand::Delete { path }))
    }

    /// Starts a checkpoint.
    pub fn seal(&mut self) {
        self.to_flush = self.machine.seal_ranges();
        self.sealed = Some((self.lsn, Vec::new(), false));
    }

    /// Brings the records of the checkpoint to the files, at last; a part of them at a time.
    fn flush(&mut self) {
        for range in std::mem::take(&mut self.to_flush) {
            let file = self.files.entry(range.at).or_default();
            let bases = self.file_bases.entry(range.at).or_default();
            // What was flushed for a checkpoint that failed comes again.
            file.retain(|run| run.base < range.from);
            bases.retain(|base| *base < range.from);
            let mut end = file.last().map_or(Offset(0), run_end);
            if range.new_file {
                assert!(end <= range.from);
                (end, _) = (range.from, bases.insert(range.from));
            }
            assert_eq!(end, range.from, "a file has no gap");
            assert!(!bases.is_empty());
            while end < range.upto {
                let runs = self.machine.sealed_runs(&range, end, 8);
                assert_eq!(runs.first().expect("a range that is not through has more").base, end);
                end = runs.last().map_or(end, run_end);
                file.extend(runs);
            }
            assert_eq!(end, range.upto);
            assert!(self.machine.sealed_runs(&range, range.upto, 8).is_empty());
        }
    }

    pub fn collect(&mut self, items_max: usize) {
        if let Some((_, writes, all)) = &mut self.sealed {
            *all = self.machine.collect(items_max, writes);
        }
    }

    /// Ends the checkpoint. Returns whether there was one.
    pub fn write(&mut self) -> bool {
        while self.sealed.as_ref().is_some_and(|(_, _, all)| !all) {
            self.collect(3);
        }
        self.flush();
        let Some((lsn, writes, _)) = self.sealed.take() else { return false };
        let keys: BTreeSet<_> = writes.iter().map(|write| (write.space, write.key.clone())).collect();
        assert_eq!(keys.len(), writes.len(), "each key is written once");
        for IndexWrite { space, key, value } in writes {
            match value {
                Some(value) => self.index.insert((space, key), value),
                None => self.index.remove(&(space, key)),
            };
        }
        self.index_lsn = lsn;
        self.machine.sealed_written();
        self.remove_trimmed();
        self.sweep_history();
        for at in self.machine.take_dropped_streams() {
            self.files.remove(&at);
            self.file_bases.remove(&at);
        }
        true
    }

    /// Removes files that only have records that are gone.
    fn remove_trimmed(&mut self) {
        for (at, from) in self.machine.take_trimmed_streams() {
            let Some(file) = self.files.get_mut(&at) else { continue };
            let bases = self.file_bases.get_mut(&at).unwrap();
            file.retain(|run| run_end(run) > from);
            assert!(file.first().is_none_or(|run| run.base >= from), "whole files go");
            bases.retain(|base| *base >= from);
        }
    }

    /// The checkpoint fails; its records may be in the files already.
    pub fn unseal(&mut self) {
        self.flush();
        self.sealed = None;
        self.machine.unseal();
    }

    /// What a start after a crash at this moment gives.
    pub fn recovered(&self) -> Machine {
        // At times all of it, at times with no value that can stay in the index.
        let mut machine = Machine::new(CONFIG);
        machine.restore_within(if self.lsn.0.is_multiple_of(2) { 0 } else { u64::MAX });
        restore(&mut machine, &self.index);
        for (at, facts) in self.log.iter().filter(|(at, _)| at.lsn > self.index_lsn) {
            for fact in facts {
                if let Some(cold) = machine.cold_of(fact) {
                    warm_store(&mut machine, &self.index, &cold);
                }
                machine.apply(*at, fact.clone());
            }
        }
        machine.set_catalog(machine.catalog_snapshot());
        machine
    }

    /// A machine that read the log up to `lsn` and nothing else.
    pub fn replayed(&self, lsn: Lsn) -> Machine {
        let mut machine = Machine::new(CONFIG);
        for (at, facts) in self.log.iter().take_while(|(at, _)| at.lsn <= lsn) {
            facts.iter().for_each(|fact| machine.apply(*at, fact.clone()));
        }
        machine
    }

    /// Goes on as after a crash and a start.
    pub fn crash(&mut self) {
        self.machine = self.recovered();
        self.sealed = None;
        self.to_flush.clear();
        let ends: BTreeMap<_, _> = restored(&self.index).stream_ends().into_iter().collect();
        self.files.retain(|at, _| ends.contains_key(at));
        self.file_bases.retain(|at, _| ends.contains_key(at));
        for (at, file) in &mut self.files {
            file.retain(|run| run.base < ends[at]);
            self.file_bases.get_mut(at).unwrap().retain(|base| *base < ends[at]);
            let end = file.last().map_or(Offset(0), run_end);
            assert!(end <= ends[at], "files are cut at a run's end");
        }
        self.remove_trimmed();
    }
}

fn run_end(run: &RecordRun) -> Offset {
    run.base.plus(u64::from(run.count))
}

/// A machine with what an index has.
pub fn restored(index: &Index) -> Machine {
    let mut machine = Machine::new(CONFIG);
    restore(&mut machine, index);
    machine
}

fn restore(machine: &mut Machine, index: &Index) {
    for ((space, key), value) in index {
        machine.restore(*space, key, value.clone()).unwrap();
    }
    machine.finish_restore().unwrap();
}

/// Fetches cold values from an index.
fn warm_store(machine: &mut Machine, index: &Index, cold: &ColdKeys) {
    let items = machine.cold_items(cold, false).unwrap();
    assert!(!items.is_empty() && items.len() == cold.keys.len(), "only what is cold is fetched");
    for item in items {
        let value = index.get(&(item.space, item.index_key.clone())).cloned();
        machine.warm_item(cold.store, &item, value).unwrap();
    }
}

/// All that a machine would write to an empty index.
pub fn written_afresh(mut machine: Machine) -> Index {
    let mut writes = Vec::new();
    machine.seal_ranges();
    while !machine.collect(100, &mut writes) {}
    writes.into_iter().map(|write| ((write.space, write.key), write.value.unwrap())).collect()
}

/// Packed records with these values.
pub fn pack(values: &[&[u8]]) -> flowmesh_model::record::PackedRecords {
    let mut packer = RecordPacker::default();
    for value in values {
        packer.push(&RecordView { value, ..RecordView::default() });
    }
    flowmesh_model::record::PackedRecords::check(packer.finish()).unwrap()
}

/// Values of packed records.
pub fn values(runs: &[RecordRun]) -> Vec<Vec<u8>> {
    let plain: Vec<bytes::Bytes> = runs.iter().map(|run| run.plain().unwrap().records).collect();
    let slices = plain.iter().flat_map(|records| flowmesh_model::record::RecordSlices::new(records));
    slices.map(|record| RecordView::read(record.unwrap()).unwrap().value.to_vec()).collect()
}

/// So many cases, or what `PROPTEST_CASES` says.
pub fn cases(cases: u32) -> proptest::test_runner::Config {
    let default = proptest::test_runner::Config::default();
    if std::env::var_os("PROPTEST_CASES").is_some() {
        return default;
    }
    proptest::test_runner::Config { cases, ..default }
}

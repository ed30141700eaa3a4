//! A partition of a stream: offsets are dense, in order and never given twice; what was acknowledged stays where it is, what
//! was read stays too, and what was refused never appears.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use flowmesh_model::command::ReadFrom;
use flowmesh_model::record::{PackedRecords, RecordPacker, RecordSlices, RecordView};
use flowmesh_model::reply::RecordRuns;
use flowmesh_model::{Command, Offset, PartitionRef, Reply, ShardId, StreamCommand};

use super::{Known, Site};

/// What must be found in a partition.
#[derive(Default)]
pub(crate) struct Model {
    /// Sent, and not known to be refused: by their first word, which no two have in common.
    sent: BTreeMap<String, Vec<u8>>,
    refused: BTreeSet<String>,
    /// What is known to be where.
    at: BTreeMap<u64, String>,
    /// And the other way round.
    where_is: BTreeMap<String, u64>,
    /// Records before it may be gone, those before the other one are.
    trimmed_maybe: u64,
    trimmed: u64,
    next_name: u64,
}

/// A partition that clients append to and read.
#[derive(Clone)]
pub(crate) struct Partition {
    pub site: Site,
    pub at: PartitionRef,
    pub shard: ShardId,
    pub model: Rc<RefCell<Model>>,
}

fn name_of(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    text.split(' ').next().unwrap_or_default().to_owned()
}

impl Model {
    /// Something was found, or said to be, at an offset.
    fn found(&mut self, offset: u64, name: &str) {
        assert!(!self.refused.contains(name), "record {name} at {offset} was refused");
        assert!(self.sent.contains_key(name), "record {name} at {offset} was never sent");
        let here = self.at.entry(offset).or_insert_with(|| name.to_owned());
        assert_eq!(here, name, "the record at {offset} is another one now");
        let place = *self.where_is.entry(name.to_owned()).or_insert(offset);
        assert_eq!(place, offset, "record {name} is there twice");
    }
}

impl Partition {
    fn command(&self, command: StreamCommand) -> Command {
        Command::Stream(self.at, command)
    }

    /// Appends, trims and reads, for ever.
    pub async fn use_it(self) {
        loop {
            match self.site.shared.below(12) {
                0 => self.trim().await,
                1..=6 => self.append().await,
                _ => self.read_some().await,
            }
            self.site.pause().await;
        }
    }

    async fn append(&self) {
        let count = 1 + self.site.shared.below(4);
        let mut packer = RecordPacker::default();
        let mut names = Vec::new();
        for _ in 0..count {
            let bytes = if self.site.shared.below(20) == 0 { 20_000 } else { self.site.shared.below(300) };
            let model = &mut *self.model.borrow_mut();
            model.next_name += 1;
            let name = format!("p{}-{}", self.at.partition, model.next_name);
            let value = [name.as_bytes(), b" ", &vec![b'.'; bytes as usize]].concat();
            packer.push(&RecordView { value: &value, ..RecordView::default() });
            model.sent.insert(name.clone(), value);
            names.push(name);
        }
        let records = PackedRecords::check(packer.finish()).expect("well-formed records");
        let command = self.command(StreamCommand::append(records));
        let known = self.site.call("append", self.shard, command).await;
        let model = &mut *self.model.borrow_mut();
        match known {
            Known::Done(Reply::Appended { base, .. }) => {
                for (offset, name) in (base.0..).zip(&names) {
                    model.found(offset, name);
                }
            }
            Known::Done(other) => panic!("an append is answered with {other:?}"),
            Known::Not => {
                for name in names {
                    assert!(
                        !model.where_is.contains_key(&name),
                        "record {name} was refused, and read before"
                    );
                    model.sent.remove(&name);
                    model.refused.insert(name);
                }
            }
            Known::Unknown => {}
        }
    }

    async fn trim(&self) {
        let upto = {
            let model = self.model.borrow();
            let last = model.at.last_key_value().map_or(0, |(offset, _)| *offset);
            self.site.shared.below(last + 1)
        };
        {
            let model = &mut *self.model.borrow_mut();
            model.trimmed_maybe = model.trimmed_maybe.max(upto);
        }
        let command = self.command(StreamCommand::Trim { upto: Offset(upto) });
        if let Known::Done(reply) = self.site.call("trim", self.shard, command).await {
            let Reply::Trimmed { earliest, .. } = reply else { panic!("a trim is answered with {reply:?}") };
            let model = &mut *self.model.borrow_mut();
            assert!(earliest.0 >= upto, "trimmed to {upto}, begins at {earliest}");
            model.trimmed = model.trimmed.max(upto);
        }
    }

    /// Reads from any place on.
    pub async fn read_some(&self) {
        let from = {
            let model = self.model.borrow();
            let last = model.at.last_key_value().map_or(0, |(offset, _)| *offset);
            self.site.shared.below(last + 2)
        };
        if let Some(records) = self.read(ReadFrom::Offset(Offset(from))).await {
            self.look(&records);
        }
    }

    async fn read(&self, from: ReadFrom) -> Option<RecordRuns> {
        let read = StreamCommand::Read {
            from,
            records_max: 50,
            bytes_max: 64 << 10,
            bytes_min: 0,
            wait_until: None,
        };
        match self.site.call("read", self.shard, self.command(read)).await {
            Known::Done(Reply::Records(records)) => Some(records),
            Known::Done(other) => panic!("a read is answered with {other:?}"),
            Known::Not | Known::Unknown => None,
        }
    }

    fn look(&self, records: &RecordRuns) {
        let model = &mut *self.model.borrow_mut();
        assert!(records.earliest.0 <= model.trimmed_maybe, "records are gone that nobody trimmed");
        for run in &records.runs {
            let plain = run.plain().expect("records that can be unpacked");
            for (offset, record) in (run.base.0..).zip(RecordSlices::new(&plain.records)) {
                let record = RecordView::read(record.expect("a whole record")).expect("a record");
                let name = name_of(record.value);
                model.found(offset, &name);
                assert_eq!(record.value, model.sent[&name], "record {name} has another value");
            }
        }
    }

    /// Everything that was acknowledged is there, and nothing else but what may be. Answers must come.
    pub async fn check(&self) -> bool {
        let mut from = ReadFrom::Earliest;
        let mut offsets: Option<(u64, u64)> = None;
        loop {
            let Some(records) = self.read(from).await else { return false };
            self.look(&records);
            let first = offsets.map_or(records.earliest.0, |(first, _)| first);
            for run in &records.runs {
                let next = offsets.map_or(run.base.0, |(_, next)| next);
                assert_eq!(run.base.0, next, "offsets are dense");
                offsets = Some((first, next + u64::from(run.count)));
            }
            from = ReadFrom::Offset(records.next);
            if records.next >= records.high_watermark {
                break;
            }
        }
        let model = self.model.borrow();
        let (first, next) = offsets.unwrap_or((model.trimmed_maybe, model.trimmed_maybe));
        assert!(first <= model.trimmed_maybe, "records before {first} are gone that nobody trimmed");
        assert!(first >= model.trimmed, "records before {} were trimmed, and {first} is back", model.trimmed);
        if let Some((last, name)) = model.at.last_key_value() {
            assert!(offsets.is_none() || *last < next, "record {name} at {last} is gone; the end is {next}");
            assert!(
                offsets.is_some() || *last < model.trimmed_maybe,
                "record {name} at {last} is gone; there are none"
            );
        }
        true
    }
}

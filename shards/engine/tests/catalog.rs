//! A shard learns of a change of the catalog: what it looks at, and who is told.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "a test")]

mod common;

use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;
use std::rc::Rc;

use common::{Answer, Rig, SimTimer, append};
use flowmesh_engine::ReplySink;
use flowmesh_model::command::ReadFrom;
use flowmesh_model::{
    CatalogCommand, Command, Durability, Kind, Offset, PartitionRef, Reject, Reply, ResourceId, ResourcePath,
    Settings, StreamCommand, StreamSettings,
};
use flowmesh_sim::{Operation, SimDisk};

fn open(dir: &Path, disk: &SimDisk, durability: Durability) -> Rig {
    disk.put_dir(dir);
    Rig::open_with(dir, disk.clone(), SimTimer::default(), |config| {
        config.durability = durability;
        config.checkpoint_interval_ms = 3_600_000;
    })
}

/// A sink that counts how often it was looked at.
struct Watched {
    looks: Rc<Cell<usize>>,
    answer: Answer,
}

impl ReplySink for Watched {
    fn deliver(self: Box<Self>, outcome: Result<Reply, Reject>) {
        *self.answer.borrow_mut() = Some(outcome);
    }

    fn is_closed(&self) -> bool {
        self.looks.set(self.looks.get() + 1);
        false
    }
}

/// A read that waits for a partition's next record.
fn wait(rig: &Rig, resource: ResourceId, partition: u32, looks: &Rc<Cell<usize>>) -> Answer {
    let answer: Answer = Rc::new(RefCell::new(None));
    let read = StreamCommand::Read {
        from: ReadFrom::Latest,
        records_max: 1,
        bytes_max: 1024,
        bytes_min: 0,
        wait_until: Some(rig.shard.now().plus(25_000)),
    };
    let sink = Watched { looks: Rc::clone(looks), answer: Rc::clone(&answer) };
    rig.shard.submit(Command::Stream(PartitionRef { resource, partition }, read), Box::new(sink));
    answer
}

fn update(rig: &mut Rig, name: &str, settings: StreamSettings) {
    let path = ResourcePath::parse(Kind::Stream, name).unwrap();
    let update = CatalogCommand::Update { path, settings: Settings::Stream(settings) };
    let answer = rig.ask(Command::Catalog(update));
    assert!(answer.is_ok(), "{answer:?}");
    rig.shard.set_catalog(rig.shard.catalog_snapshot());
}

#[test]
fn only_those_who_wait_for_what_changed_are_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = open(dir.path(), &SimDisk::new(1), Durability::Always);
    let (others, own) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let other = rig.create(Kind::Stream, "other");
    let stream = rig.create(Kind::Stream, "s");
    let waiting: Vec<Answer> = (0..100).map(|_| wait(&rig, other, 0, &others)).collect();
    let told: Vec<Answer> = (0..3).map(|_| wait(&rig, stream, 0, &own)).collect();
    for number in 0..50 {
        rig.create(Kind::Stream, &format!("new-{number}"));
    }
    assert_eq!((others.get(), own.get()), (0, 0), "a new resource concerns nobody who waits");
    update(
        &mut rig,
        "s",
        StreamSettings { durability: Some(Durability::Never), ..StreamSettings::default() },
    );
    assert_eq!((others.get(), own.get()), (0, 3), "they are looked at, and wait on");
    assert!(told.iter().all(|answer| answer.borrow().is_none()));
    rig.delete(Kind::Stream, "s");
    assert_eq!(others.get(), 0);
    for answer in &told {
        let outcome = answer.borrow_mut().take();
        assert!(matches!(outcome, Some(Err(Reject::ResourceNotFound { .. }))), "{outcome:?}");
    }
    assert!(waiting.iter().all(|answer| answer.borrow().is_none()));
    // They still get what they wait for.
    rig.ask(append(PartitionRef { resource: other, partition: 0 }, b"x")).unwrap();
    for answer in &waiting {
        let outcome = answer.borrow_mut().take();
        assert!(matches!(&outcome, Some(Ok(Reply::Records(records))) if records.next == Offset(1)));
    }
}

#[test]
fn a_change_of_durability_counts_from_the_snapshot_that_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new(1);
    let mut rig = open(dir.path(), &disk, Durability::Never);
    let at = PartitionRef { resource: rig.create(Kind::Stream, "s"), partition: 0 };
    let own = |durability| StreamSettings { durability, ..StreamSettings::default() };
    update(&mut rig, "s", own(Some(Durability::Always)));
    update(&mut rig, "s", own(None));
    disk.fail(Operation::Sync, 1, io::ErrorKind::Other);
    assert!(rig.ask(append(at, b"not synced")).is_ok());
    disk.restart();
    update(&mut rig, "s", own(Some(Durability::Always)));
    disk.fail(Operation::Sync, 1, io::ErrorKind::Other);
    let answer = rig.ask(append(at, b"synced"));
    assert!(matches!(answer, Err(Reject::Fenced { .. })), "{answer:?}");
}

//! The memory of producers is bounded: batches of a producer, producers of a partition, names of a stream.

// A test fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use bytes::Bytes;
use common::{Outcome, World, pack, restored};
use flowmesh_model::limits::{
    NAME_BYTES_MAX, PARTITION_PRODUCERS_MAX, PRODUCER_BATCHES_MAX, PRODUCER_NAMES_MAX, SEQUENCE_MAX,
};
use flowmesh_model::placement::key_partition;
use flowmesh_model::{
    CatalogCommand, Command, Kind, Offset, PartitionRef, ProducerId, ProducerStamp, Reject, Reply,
    ResourceId, ResourcePath, Settings, StreamCommand, StreamSettings,
};

fn world() -> (World, ResourceId) {
    let mut world = World::default();
    let stream = world.create(Kind::Stream, "logs");
    (world, stream)
}

fn send(world: &mut World, stream: ResourceId, id: u64, sequence: u64) -> Outcome {
    let producer = Some(ProducerStamp { id: ProducerId(id), epoch: 0, sequence });
    let append = StreamCommand::Append { records: pack(&[b"x"]), producer, expected_offset: None };
    world.run(&Command::Stream(PartitionRef { resource: stream, partition: 0 }, append))
}

fn init(world: &mut World, stream: ResourceId, name: &str) -> Result<(ProducerId, u32), Reject> {
    let command = StreamCommand::InitProducer { name: Bytes::copy_from_slice(name.as_bytes()) };
    match world.run(&Command::Stream(PartitionRef { resource: stream, partition: 0 }, command)) {
        Outcome::Changed(Reply::Producer { id, epoch }, _) => Ok((id, epoch)),
        Outcome::Rejected(reject) => Err(reject),
        other => panic!("{other:?}"),
    }
}

fn is_duplicate(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Answered(Reply::Appended { duplicate: true, .. }, _))
}

#[test]
fn a_retry_is_known_among_the_last_batches_and_named_beyond() {
    let (mut world, stream) = world();
    for sequence in 0..=PRODUCER_BATCHES_MAX as u64 {
        assert!(matches!(send(&mut world, stream, 7, sequence), Outcome::Changed(..)));
    }
    for sequence in 1..=PRODUCER_BATCHES_MAX as u64 {
        match send(&mut world, stream, 7, sequence) {
            Outcome::Answered(Reply::Appended { base, duplicate: true, .. }, _) => {
                assert_eq!(base, Offset(sequence));
            }
            other => panic!("{other:?}"),
        }
    }
    let next = PRODUCER_BATCHES_MAX as u64 + 1;
    let too_old = Reject::DuplicateSequence { sequence: 0, count: 1, remembered_from: 1, next };
    assert_eq!(send(&mut world, stream, 7, 0), Outcome::Rejected(too_old));
    world.machine.check_all();
}

#[test]
fn a_full_partition_forgets_whoever_appended_least_recently() {
    let (mut world, stream) = world();
    let max = PARTITION_PRODUCERS_MAX as u64;
    for id in 1..=max {
        send(&mut world, stream, id, 0);
    }
    world.seal();
    world.write();
    // The first one appends again, so the second is the one.
    send(&mut world, stream, 1, 1);
    let before = world.machine.memory_bytes();
    send(&mut world, stream, max + 1, 0);
    assert!(world.machine.memory_bytes() <= before + 1_000, "one comes, one goes");
    assert!(is_duplicate(&send(&mut world, stream, 1, 1)));
    assert!(is_duplicate(&send(&mut world, stream, 3, 0)));
    let unknown = Reject::UnknownProducer { id: ProducerId(2), sequence: 1 };
    assert_eq!(send(&mut world, stream, 2, 1), Outcome::Rejected(unknown));
    world.machine.check_all();
    let dump = world.machine.dump();
    assert_eq!(world.recovered().dump(), dump, "forgetting is replayed");
    world.seal();
    world.write();
    assert_eq!(restored(&world.index).dump(), dump, "and not in the index any more");
}

/// A checkpoint writes the producers that changed, not those that are there.
#[test]
fn a_checkpoint_costs_what_changed() {
    let (mut world, stream) = world();
    for id in 1..=500 {
        send(&mut world, stream, id, 0);
    }
    world.seal();
    world.write();
    send(&mut world, stream, 3, 1);
    world.seal();
    world.collect(1_000);
    let (_, writes, all) = world.sealed.clone().unwrap();
    assert!(all);
    let producers = writes.iter().filter(|write| write.key.len() == 23).count();
    assert_eq!(producers, 1, "{writes:?}");
}

#[test]
fn names_are_bounded_and_checked() {
    let (mut world, stream) = world();
    let longest = "n".repeat(NAME_BYTES_MAX);
    assert_eq!(init(&mut world, stream, &longest).unwrap().1, 0);
    let refused = init(&mut world, stream, &(longest.clone() + "n")).unwrap_err();
    assert!(matches!(refused, Reject::TooLarge { what: "name", .. }));
    for number in 1..PRODUCER_NAMES_MAX {
        init(&mut world, stream, &number.to_string()).unwrap();
    }
    assert_eq!(init(&mut world, stream, &longest).unwrap().1, 1, "still known");
    init(&mut world, stream, "one more").unwrap();
    assert_eq!(init(&mut world, stream, &longest).unwrap().1, 2, "initialised last");
    assert_eq!(init(&mut world, stream, "1").unwrap().1, 0, "forgotten: a new producer");
    world.machine.check_all();
}

#[test]
fn sequences_end_at_their_limit() {
    let (mut world, stream) = world();
    let refused = send(&mut world, stream, 7, SEQUENCE_MAX);
    let names = |outcome: &Outcome| {
        matches!(outcome, Outcome::Rejected(Reject::InvalidArgument { field: "producer.sequence", .. }))
    };
    assert!(names(&refused), "{refused:?}");
    let unknown = Reject::UnknownProducer { id: ProducerId(7), sequence: SEQUENCE_MAX - 1 };
    assert_eq!(send(&mut world, stream, 7, SEQUENCE_MAX - 1), Outcome::Rejected(unknown));
}

/// Part of the API, and never changes: with more partitions, a key's records go where the new number says.
#[test]
fn with_more_partitions_keys_map_by_the_new_count() {
    let keys = ["a", "b", "order-17", "order-18", "", "ключ"];
    let of = |partitions| keys.map(|key| key_partition(key.as_bytes(), partitions));
    assert_eq!(of(1), [0; 6]);
    assert_eq!(of(4), GOLDEN_4);
    assert_eq!(of(6), GOLDEN_6);

    let (mut world, stream) = world();
    let at = |partition| PartitionRef { resource: stream, partition };
    let append = |world: &mut World, partition| {
        world.run(&Command::Stream(at(partition), StreamCommand::append(pack(&[b"x"]))))
    };
    let update = |world: &mut World, partitions| {
        let path = ResourcePath::parse(Kind::Stream, "logs").unwrap();
        let settings = Settings::Stream(StreamSettings { partitions, ..StreamSettings::default() });
        world.run(&Command::Catalog(CatalogCommand::Update { path, settings }))
    };
    append(&mut world, 0);
    let none = Reject::NoSuchPartition { partition: 5, partitions: 1 };
    assert_eq!(append(&mut world, 5), Outcome::Rejected(none));
    assert!(matches!(update(&mut world, 6), Outcome::Changed(..)));
    assert!(matches!(append(&mut world, 5), Outcome::Changed(Reply::Appended { base: Offset(0), .. }, _)));
    assert!(matches!(append(&mut world, 0), Outcome::Changed(Reply::Appended { base: Offset(1), .. }, _)));
    let lowered = Reject::PartitionsLowered { partitions: 6, requested: 5 };
    assert_eq!(update(&mut world, 5), Outcome::Rejected(lowered));
    assert!(matches!(update(&mut world, 1025), Outcome::Rejected(Reject::InvalidArgument { .. })));
    world.machine.check_all();
}

const GOLDEN_4: [u32; 6] = [3, 3, 2, 2, 2, 2];
const GOLDEN_6: [u32; 6] = [1, 5, 0, 0, 4, 2];

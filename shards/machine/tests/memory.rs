//! What the machine takes in memory for what nobody uses now: idle streams, jobs that wait. Many of them must cost little.

#![allow(
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test: a panic is a failure"
)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::{World, pack};
use flowmesh_model::command::{NewJob, SetEntry, SetIf, SetTtl};
use flowmesh_model::{
    Command, Kind, KvCommand, PartitionRef, QueueCommand, ResourceId, Settings, StreamCommand, StreamSettings,
};

/// Counts the bytes that this thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
}

// SAFETY: the system's allocator, with a count beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = HELD.try_with(|held| held.set(held.get() + layout.size() as isize));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        let _ = HELD.try_with(|held| held.set(held.get() - layout.size() as isize));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn held() -> isize {
    HELD.with(Cell::get)
}

#[test]
fn an_idle_stream_takes_little() {
    const STREAMS: isize = 10_000;
    let mut world = World::default();
    let step = |world: &mut World, names: std::ops::Range<isize>, append: bool| {
        for name in names {
            let settings = Settings::Stream(StreamSettings::default());
            let resource = world.create_with(&format!("idle-{name}"), settings);
            if append {
                let at = PartitionRef { resource, partition: 0 };
                world.run(&Command::Stream(at, StreamCommand::append(pack(&[b"one"]))));
            }
        }
        world.seal();
        world.write();
        // What the test keeps: the disk.
        (world.log, world.index, world.files, world.file_bases) = Default::default();
    };
    step(&mut world, 0..1, true);
    let before = held();
    step(&mut world, 1..STREAMS, false);
    let created = held();
    step(&mut world, 1..STREAMS, true);
    let used = held();
    let (created, used) = ((created - before) / STREAMS, (used - created) / STREAMS);
    let told = world.machine.memory_bytes() as isize / STREAMS;
    println!("bytes a stream: {created} created, {used} with a record; by its own word {told}");
    assert!(created < 480, "{created} bytes for a stream that was created");
    assert!(used < 720, "{used} bytes for a stream with a record");
    assert!((told - created - used).abs() < 200, "its own estimate: {told} for {}", created + used);
}

/// Of a job that waits, for a worker or its time, only its place is kept: what it is about is in the index.
#[test]
fn a_job_that_waits_takes_little() {
    const JOBS: isize = 100_000;
    for delay_ms in [0, 1_000_000] {
        let mut world = World::default();
        let queue = world.create(Kind::Queue, "deep");
        let before = held();
        for batch in 0..JOBS / 1_000 {
            let new = |n: isize| NewJob {
                payload: vec![7; 100].into(),
                delay_ms: if delay_ms == 0 { 0 } else { delay_ms + (batch * 1_000 + n) as u64 },
                ..NewJob::default()
            };
            world.run(&Command::Queue(queue, QueueCommand::enqueue((0..1_000).map(new).collect())));
            world.seal();
            world.write();
            world.evict_bodies(usize::MAX);
            // What the test keeps: the disk.
            (world.log, world.index) = Default::default();
        }
        let bytes = (held() - before) as f64 / JOBS as f64;
        let told = world.machine.memory_bytes() as f64 / JOBS as f64;
        println!("bytes a job, delay {delay_ms} ms: {bytes:.1}; by its own word {told:.1}");
        assert!(bytes <= 100.0, "{bytes} bytes for a job that waits");
        assert!((told - bytes).abs() < 15.0, "its own estimate: {told} for {bytes}");
    }
}

const KEY_BYTES: usize = 16;
const VALUE_BYTES: usize = 100;

/// Sets a thousand keys, in an order that means nothing.
fn set_thousand(world: &mut World, store: ResourceId, thousand: u64, ttl: SetTtl) {
    let entry = |number: u64| SetEntry {
        key: format!("{:0KEY_BYTES$x}", number.wrapping_mul(0x9E37_79B9_7F4A_7C15)).into(),
        value: vec![7; VALUE_BYTES].into(),
        ttl,
        condition: SetIf::Always,
    };
    let entries = (thousand * 1_000..(thousand + 1) * 1_000).map(entry).collect();
    world.run(&Command::Kv(store, KvCommand::Set { entries }));
}

/// Besides key and value an entry takes its place, its version, and a few bytes of table and order.
#[test]
fn an_entry_takes_little_besides_key_and_value() {
    const ENTRIES: u64 = 200_000;
    for (ttl, bytes_max) in [(SetTtl::Default, 66.0), (SetTtl::Millis(1_000_000), 104.0)] {
        let mut world = World::default();
        let store = world.create(Kind::Kv, "full");
        let before = held();
        for thousand in 0..ENTRIES / 1_000 {
            set_thousand(&mut world, store, thousand, ttl);
            world.seal();
            world.write();
            // What the test keeps: the disk.
            (world.log, world.index) = Default::default();
        }
        let beside = |bytes: f64| bytes / ENTRIES as f64 - (KEY_BYTES + VALUE_BYTES) as f64;
        let bytes = beside((held() - before) as f64);
        let told = beside(world.machine.memory_bytes() as f64);
        println!("bytes an entry beside key and value, {ttl:?}: {bytes:.1}; by its own word {told:.1}");
        assert!(bytes <= bytes_max, "{bytes} bytes for an entry");
        // The allocator's share is in its own word, not in what is counted here.
        assert!((told - 8.0 - bytes).abs() < 15.0, "its own estimate: {told} for {bytes}");
    }
}

/// Of an entry whose value is in the index, key, version and end are left, its places, and four bytes.
#[test]
fn a_cold_entry_takes_little_besides_its_key() {
    const ENTRIES: u64 = 200_000;
    for (ttl, bytes_max) in [(SetTtl::Default, 82.0), (SetTtl::Millis(1_000_000), 120.0)] {
        let mut world = World::default();
        let store = world.create(Kind::Kv, "cold");
        let before = held();
        for thousand in 0..ENTRIES / 1_000 {
            set_thousand(&mut world, store, thousand, ttl);
            world.seal();
            world.write();
            world.chill(1_000);
            // What the test keeps: the disk.
            (world.log, world.index) = Default::default();
        }
        assert_eq!(world.machine.stats().keys_cold, ENTRIES);
        let beside = |bytes: f64| bytes / ENTRIES as f64 - KEY_BYTES as f64;
        let bytes = beside((held() - before) as f64);
        let told = beside(world.machine.memory_bytes() as f64);
        println!("bytes a cold entry beside its key, {ttl:?}: {bytes:.1}; by its own word {told:.1}");
        assert!(bytes <= bytes_max, "{bytes} bytes for a cold entry");
        assert!((told - 8.0 - bytes).abs() < 15.0, "its own estimate: {told} for {bytes}");
    }
}

/// What came and went since the last checkpoint is not remembered once for each time.
#[test]
fn keys_that_come_and_go_leave_nothing() {
    let mut world = World::default();
    let store = world.create(Kind::Kv, "busy");
    let churn = |world: &mut World, times: u64| {
        for _ in 0..times {
            set_thousand(world, store, 0, SetTtl::Default);
            world.run(&Command::Kv(store, KvCommand::Clear { keys_max: 1_000 }));
            world.log = Vec::new();
        }
        held()
    };
    let before = churn(&mut world, 10);
    let after = churn(&mut world, 200);
    assert!(after - before < 100_000, "{} bytes of nothing", after - before);
}

//! What the machine takes in memory for a resource that nobody uses: many of them must cost little.

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
use flowmesh_model::{Command, PartitionRef, Settings, StreamCommand, StreamSettings};

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

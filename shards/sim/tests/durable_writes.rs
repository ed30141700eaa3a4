//! Writes that are durable when they return, as the log uses them: what they promise, and what is left of one that fails,
//! is torn, or loses its power.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::task::Context;

use flowmesh_sim::{Operation, SimBuf, SimDisk, SimFile};
use flowmesh_store::disk::{ALIGN, Disk, DiskFile};
use futures::executor::block_on;
use futures::task::noop_waker;

const SECTOR: usize = 512;
const SEEDS: u64 = 64;

fn path() -> &'static Path {
    Path::new("/d/a")
}

fn pages(disk: &SimDisk, fill: u8, count: usize) -> SimBuf {
    let mut buf = disk.alloc(count * ALIGN);
    buf.as_mut().fill(fill);
    buf
}

/// A file of four pages, all of them 1 and durable.
fn prepared(seed: u64) -> (SimDisk, SimFile) {
    let disk = SimDisk::new(seed);
    disk.put_file(path(), vec![1; 4 * ALIGN]);
    let file = block_on(disk.open(path())).unwrap();
    (disk, file)
}

/// What each sector of the file holds after a crash.
fn sectors(disk: &SimDisk) -> Vec<u8> {
    let file = disk.crash().file(path()).unwrap();
    file.chunks(SECTOR)
        .map(|sector| {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is written whole or not at all");
            sector[0]
        })
        .collect()
}

/// The sectors of one page.
fn page(sectors: &[u8], number: usize) -> &[u8] {
    let each = ALIGN / SECTOR;
    &sectors[number * each..(number + 1) * each]
}

fn all(sectors: &[u8], value: u8) -> bool {
    sectors.iter().all(|sector| *sector == value)
}

#[test]
fn what_was_written_durably_survives_and_nothing_else_is_promised() {
    let (mut kept, mut lost) = (0, 0);
    for seed in 0..SEEDS {
        let (disk, file) = prepared(seed);
        block_on(async {
            file.write_at(pages(&disk, 2, 1), ALIGN, 0).await.unwrap();
            file.write_durable_at(pages(&disk, 3, 2), 2 * ALIGN, ALIGN as u64).await.unwrap();
        });
        let after = sectors(&disk);
        assert!(all(page(&after, 1), 3) && all(page(&after, 2), 3), "seed {seed}: durable");
        assert!(all(page(&after, 3), 1), "seed {seed}: not touched");
        // The write before it was never synced: a durable write elsewhere in the file does not do that.
        kept += u64::from(all(page(&after, 0), 2));
        lost += u64::from(page(&after, 0).contains(&1));
    }
    assert!(lost > SEEDS / 2 && kept + lost == SEEDS, "lost {lost} of {SEEDS}");
}

#[test]
fn a_durable_write_at_the_end_makes_the_file_as_long_as_it_needs() {
    for seed in 0..SEEDS {
        let (disk, file) = prepared(seed);
        block_on(file.write_durable_at(pages(&disk, 2, 2), 2 * ALIGN, 4 * ALIGN as u64)).unwrap();
        let after = sectors(&disk);
        assert_eq!(after.len(), 6 * ALIGN / SECTOR, "seed {seed}");
        assert!(all(page(&after, 4), 2) && all(page(&after, 5), 2), "seed {seed}");
    }
}

#[test]
fn a_power_cut_during_a_durable_write_tears_it_and_hurts_nothing_else() {
    let (mut old, mut new, mut torn) = (0, 0, 0);
    // In the write itself, and in making it durable.
    for cut in [1, 2] {
        for seed in 0..SEEDS {
            let (disk, file) = prepared(seed);
            disk.power_cut_after(cut);
            let failed = block_on(file.write_durable_at(pages(&disk, 2, 2), 2 * ALIGN, ALIGN as u64));
            assert!(failed.is_err(), "what lost its power was not acknowledged");
            let refused = block_on(file.write_durable_at(pages(&disk, 9, 1), ALIGN, 0));
            assert!(refused.is_err(), "nothing goes on without power");
            let after = sectors(&disk);
            assert!(all(page(&after, 0), 1) && all(page(&after, 3), 1), "seed {seed}: the rest is as it was");
            let written = [page(&after, 1), page(&after, 2)].concat();
            assert!(written.iter().all(|sector| [1, 2].contains(sector)), "seed {seed}: old or new");
            match (all(&written, 1), all(&written, 2)) {
                (true, _) => old += 1,
                (_, true) => new += 1,
                _ => torn += 1,
            }
        }
    }
    assert!(old > 0 && new > 0 && torn > 0, "{old} without effect, {new} whole, {torn} torn");
}

#[test]
fn a_durable_write_whose_write_fails_has_no_effect_and_can_be_made_again() {
    for kind in [io::ErrorKind::Interrupted, io::ErrorKind::StorageFull, io::ErrorKind::Other] {
        let (disk, file) = prepared(5);
        disk.fail(Operation::Write, 1, kind);
        let failed = block_on(file.write_durable_at(pages(&disk, 2, 1), ALIGN, 0)).unwrap_err();
        assert_eq!(failed.kind(), kind);
        assert!(all(&sectors(&disk), 1));
        assert_eq!(disk.file(path()).unwrap(), vec![1; 4 * ALIGN]);
        block_on(file.write_durable_at(pages(&disk, 3, 1), ALIGN, 0)).unwrap();
        assert!(all(page(&sectors(&disk), 0), 3));
    }
    // One that needs more space than there is.
    let (disk, file) = prepared(6);
    disk.set_space(Some(4 * ALIGN as u64));
    let full = block_on(file.write_durable_at(pages(&disk, 2, 2), 2 * ALIGN, 3 * ALIGN as u64)).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    assert!(all(&sectors(&disk), 1) && disk.used_bytes() == 4 * ALIGN as u64);
}

#[test]
fn of_a_durable_write_whose_sync_fails_nothing_is_known() {
    let (mut old, mut new) = (0, 0);
    for seed in 0..SEEDS {
        let (disk, file) = prepared(seed);
        block_on(file.write_durable_at(pages(&disk, 2, 1), ALIGN, 0)).unwrap();
        disk.fail(Operation::Sync, 1, io::ErrorKind::Other);
        let failed = block_on(file.write_durable_at(pages(&disk, 3, 2), 2 * ALIGN, 0)).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::Other);
        // It can be read as long as nothing crashes, which says nothing.
        assert_eq!(disk.file(path()).unwrap()[..2 * ALIGN], vec![3; 2 * ALIGN]);
        let after = sectors(&disk);
        assert!(
            page(&after, 0).iter().all(|sector| [2, 3].contains(sector)),
            "seed {seed}: never what was before"
        );
        assert!(page(&after, 1).iter().all(|sector| [1, 3].contains(sector)), "seed {seed}");
        old += u64::from(after[0] == 2);
        new += u64::from(after[0] == 3);
        // A later write that succeeds makes only itself durable.
        block_on(file.write_durable_at(pages(&disk, 4, 1), ALIGN, 3 * ALIGN as u64)).unwrap();
        assert!(page(&sectors(&disk), 3).iter().all(|sector| *sector == 4));
    }
    assert!(old > SEEDS / 8 && new > SEEDS / 8, "{old} old, {new} new");
}

#[test]
fn a_write_that_comes_during_a_durable_one_is_not_covered_by_it() {
    let mut seen = Vec::new();
    for seed in 0..SEEDS {
        let (disk, file) = prepared(seed);
        let waker = noop_waker();
        let mut first = pin!(file.write_durable_at(pages(&disk, 2, 1), ALIGN, 0));
        // Its write has had its effect, its sync may not.
        let landed = first.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        block_on(file.write_at(pages(&disk, 3, 1), ALIGN, 0)).unwrap();
        if !landed {
            block_on(first).unwrap();
        }
        let after = sectors(&disk);
        assert!(
            page(&after, 0).iter().all(|sector| [2, 3].contains(sector)),
            "seed {seed}: the first is durable"
        );
        seen.push(after[0]);
    }
    assert!(seen.contains(&2) && seen.contains(&3));
}

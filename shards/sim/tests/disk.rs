//! The simulated disk: what a crash may do, the same for the same seed, and faults when they are planned.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::io;
use std::path::Path;

use flowmesh_sim::happened::{Happened, Happening};
use flowmesh_sim::{Operation, SimBuf, SimDisk};
use flowmesh_store::disk::{ALIGN, Disk, DiskFile};
use futures::executor::block_on;

fn page(disk: &SimDisk, fill: u8) -> SimBuf {
    let mut page = disk.alloc(ALIGN);
    page.as_mut().fill(fill);
    page
}

#[test]
fn a_name_that_was_not_synced_may_be_gone_and_one_that_was_never_is() {
    let dir = Path::new("/d");
    let (mut kept, mut gone) = (false, false);
    for seed in 0..32 {
        let disk = SimDisk::new(seed);
        block_on(async {
            disk.create_dir_all(dir).await.unwrap();
            disk.sync_dir(Path::new("/")).await.unwrap();
            let file = disk.create(&dir.join("a")).await.unwrap();
            file.write_at(page(&disk, 7), ALIGN, 0).await.unwrap();
            file.sync().await.unwrap();
            disk.sync_dir(dir).await.unwrap();
            disk.rename(&dir.join("a"), &dir.join("b")).await.unwrap();
        });
        let after = disk.crash();
        let (a, b) = (after.file(&dir.join("a")), after.file(&dir.join("b")));
        assert_eq!(a.clone().or(b), Some(vec![7; ALIGN]));
        *(if a.is_some() { &mut kept } else { &mut gone }) = true;
    }
    assert!(kept && gone);
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = |seed| {
        let disk = SimDisk::new(seed);
        block_on(async {
            disk.create_dir_all(Path::new("/d")).await.unwrap();
            disk.sync_dir(Path::new("/")).await.unwrap();
            let file = disk.create_zeroed(Path::new("/d/a"), 1 << 16).await.unwrap();
            disk.sync_dir(Path::new("/d")).await.unwrap();
            for position in 0..16 {
                file.write_at(page(&disk, position + 1), ALIGN, u64::from(position) * 4096).await.unwrap();
            }
        });
        disk.crash().file(Path::new("/d/a"))
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

/// A file of eight pages whose second half was written in one go and not synced, after a crash of its disk.
fn crashed(seed: u64, happened: &Happened) -> Vec<u8> {
    let disk = SimDisk::new(seed).with_happened(happened);
    disk.put_file(Path::new("/d/a"), vec![0; 8 * ALIGN]);
    block_on(async {
        let file = disk.open(Path::new("/d/a")).await.unwrap();
        file.write_at(page(&disk, 1), ALIGN, 0).await.unwrap();
        let mut pages = disk.alloc(4 * ALIGN);
        pages.as_mut().fill(2);
        file.write_at(pages, 4 * ALIGN, 4 * ALIGN as u64).await.unwrap();
    });
    disk.crash().file(Path::new("/d/a")).unwrap()
}

#[test]
fn crashes_tear_writes_at_sectors_and_at_pages_and_reorder_them_and_each_is_counted() {
    let (mut by_sector, mut by_page, mut reordered, mut whole) = (0, 0, 0, 0);
    for seed in 0..64 {
        let happened = Happened::default();
        let bytes = crashed(seed, &happened);
        let (first, second) = (&bytes[..ALIGN], &bytes[4 * ALIGN..]);
        let sectors: Vec<bool> = second.chunks(512).map(|sector| sector == [2; 512]).collect();
        let of_pages: Vec<usize> =
            sectors.chunks(8).map(|page| page.iter().filter(|left| **left).count()).collect();
        let torn = of_pages.iter().filter(|left| !matches!(left, 0 | 8)).count();
        let torn_first = first.chunks(512).any(|sector| sector != &first[..512]);
        let counts = happened.counts();
        assert_eq!(counts.of(Happening::TornPage), torn as u64 + u64::from(torn_first));
        let is_torn_at_pages = of_pages.contains(&0) && of_pages.contains(&8);
        assert_eq!(counts.of(Happening::TornWrite), u64::from(is_torn_at_pages));
        let is_reordered = first == [0; ALIGN] && of_pages == [8; 4];
        assert_eq!(counts.of(Happening::Reordered), u64::from(is_reordered));
        by_sector += u64::from(torn > 0);
        by_page += u64::from(is_torn_at_pages && torn == 0);
        reordered += u64::from(is_reordered);
        whole += u64::from(of_pages == [8; 4]);
    }
    assert!(
        by_sector > 4 && by_page > 4 && reordered > 1 && whole > 4,
        "{by_sector} {by_page} {reordered} {whole}"
    );
}

#[test]
fn bits_decay_where_later_writes_say_that_they_were_synced_and_come_back() {
    let mut decayed = 0;
    for seed in 0..32 {
        let disk = SimDisk::new(seed);
        disk.put_file(Path::new("/d/a"), vec![0; 4 * ALIGN]);
        block_on(async {
            let file = disk.open(Path::new("/d/a")).await.unwrap();
            file.write_at(page(&disk, 1), ALIGN, 0).await.unwrap();
            assert!(disk.decay().is_none(), "nothing was synced");
            file.write_durable_at(page(&disk, 2), ALIGN, ALIGN as u64).await.unwrap();
            file.write_durable_at(page(&disk, 3), ALIGN, 2 * ALIGN as u64).await.unwrap();
        });
        let before = disk.file(Path::new("/d/a")).unwrap();
        let (_, byte) = disk.decay().unwrap();
        let after = disk.file(Path::new("/d/a")).unwrap();
        let bits: Vec<u32> = before.iter().zip(&after).map(|(was, is)| (was ^ is).count_ones()).collect();
        assert_eq!((bits.iter().sum::<u32>(), bits[byte as usize]), (1, 1));
        assert_eq!(
            byte as usize / ALIGN,
            1,
            "of the first page nothing is known, of the last nobody says it yet"
        );
        disk.heal();
        assert_eq!(disk.file(Path::new("/d/a")).unwrap(), before);
        decayed += u64::from(!disk.is_decayed());
    }
    assert_eq!(decayed, 32);
}

#[test]
fn faults_come_when_they_are_planned() {
    let disk = SimDisk::new(1);
    block_on(async {
        disk.create_dir_all(Path::new("/d")).await.unwrap();
        disk.set_space(Some(8192));
        let file = disk.create(Path::new("/d/a")).await.unwrap();
        disk.fail(Operation::Write, 2, io::ErrorKind::TimedOut);
        file.write_at(page(&disk, 1), ALIGN, 0).await.unwrap();
        let failed = file.write_at(page(&disk, 2), ALIGN, 4096).await.unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
        file.write_at(page(&disk, 2), ALIGN, 4096).await.unwrap();
        let full = file.write_at(page(&disk, 3), ALIGN, 8192).await.unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        let full = disk.create_zeroed(Path::new("/d/b"), 4096).await.err().unwrap();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        disk.power_cut_after(1);
        assert!(file.sync().await.is_err() && file.sync().await.is_err());
    });
}

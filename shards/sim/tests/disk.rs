//! The simulated disk: what a crash may do, the same for the same seed, and faults when they are planned.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::io;
use std::path::Path;

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

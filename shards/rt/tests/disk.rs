//! The store's disk on real files.

#![allow(
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test: a panic is a failure"
)]

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use flowmesh_rt::core::{CoreConfig, spawn_cores};
use flowmesh_rt::disk::{RtBuf, RtDisk};
use flowmesh_store::disk::{ALIGN, Disk, DiskFile, FileWrite, Pages, Presence};

const MIB: usize = 1024 * 1024;

fn filled(disk: &RtDisk, bytes: usize, with: u8) -> RtBuf {
    let mut buf = disk.alloc(bytes);
    assert!(buf.as_ref().iter().all(|&byte| byte == 0), "fresh memory is zero");
    assert_eq!(buf.as_ref().len(), bytes);
    assert_eq!(buf.as_ref().as_ptr() as usize % ALIGN, 0, "memory is aligned");
    buf.as_mut().fill(with);
    buf
}

fn kind_of<T>(outcome: io::Result<T>) -> ErrorKind {
    outcome.map(|_| ()).unwrap_err().kind()
}

#[test]
fn the_disk_keeps_its_contract() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let cores = spawn_cores(&[CoreConfig::default()], "disk", move |_| {
        let path = path.clone();
        async move {
            writes_and_reads(&path).await.unwrap();
            made_files_are_written(&path).await.unwrap();
            names(&path).await.unwrap();
            failures(&path).await;
            many_files(&path).await.unwrap();
        }
    });
    cores.unwrap().join().unwrap();
}

async fn writes_and_reads(dir: &Path) -> io::Result<()> {
    let disk = RtDisk::new();
    let file = disk.create(&dir.join("grows")).await?;
    assert_eq!(file.size().await?, 0);
    // Small buffers come from registered memory, large ones do not.
    for (round, bytes) in [ALIGN, 16 * ALIGN, 2 * MIB].into_iter().enumerate() {
        let buf = filled(&disk, bytes, round as u8 + 1);
        let memory = buf.as_ref().as_ptr();
        let buf = file.write_at(buf, ALIGN, 0).await?;
        assert_eq!(
            (buf.as_ref().as_ptr(), buf.as_ref().len()),
            (memory, bytes),
            "the whole buffer comes back"
        );
        let mut buf = file.write_at(buf, bytes, 0).await?;
        buf.as_mut().fill(0xEE);
        file.sync().await?;
        let mut read = file.read_at(0, bytes).await?;
        assert_eq!(read.as_ref().len(), bytes);
        assert!(read.as_ref().iter().all(|&byte| byte == round as u8 + 1));
        // What was read can be changed and written back.
        read.as_mut()[0] = 0xFF;
        let read = file.write_at(read, ALIGN, 0).await?;
        assert_eq!(read.as_ref().len(), bytes);
        assert_eq!(file.read_at(0, ALIGN).await?.as_ref()[..2], [0xFF, round as u8 + 1]);
    }
    assert_eq!(file.size().await?, 2 * MIB as u64);

    let end = 2 * MIB as u64;
    assert_eq!(
        file.read_at(end - ALIGN as u64, 4 * ALIGN).await?.as_ref().len(),
        ALIGN,
        "shorter at the end"
    );
    assert!(file.read_at(end, ALIGN).await?.as_ref().is_empty());
    assert!(file.read_at(0, 0).await?.as_ref().is_empty());
    assert!(file.write_at(disk.alloc(0), 0, 0).await?.as_ref().is_empty());

    file.truncate(ALIGN as u64).await?;
    assert_eq!(file.size().await?, ALIGN as u64);
    file.truncate(3 * ALIGN as u64).await?;
    let grown = file.read_at(ALIGN as u64, 2 * ALIGN).await?;
    assert!(grown.as_ref().len() == 2 * ALIGN && grown.as_ref().iter().all(|&byte| byte == 0));

    // A write whose future is dropped leaves the memory alone until the kernel is done with it.
    for _ in 0..50 {
        let write = file.write_at(filled(&disk, MIB, 3), MIB, 0);
        let now = futures::future::poll_immediate(write).await;
        assert!(now.is_none_or(|outcome| outcome.is_ok()));
    }
    file.write_at(filled(&disk, MIB, 4), MIB, 0).await?;
    Ok(())
}

async fn made_files_are_written(dir: &Path) -> io::Result<()> {
    let disk = RtDisk::new();
    let path = dir.join("segment");
    // Not a multiple of what is written at a time.
    let bytes = 2 * MIB + 3 * ALIGN;
    let file = disk.create_zeroed(&path, bytes as u64).await?;
    assert_eq!(file.size().await?, bytes as u64);
    let read = file.read_at(0, bytes).await?;
    assert!(read.as_ref().len() == bytes && read.as_ref().iter().all(|&byte| byte == 0));
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path)?);
    assert!(blocks * 512 >= bytes as u64, "all blocks are there");
    assert_eq!(kind_of(disk.create_zeroed(&path, bytes as u64).await), ErrorKind::AlreadyExists);
    assert_eq!(std::fs::metadata(&path)?.len(), bytes as u64, "and the file is as it was");
    Ok(())
}

async fn names(dir: &Path) -> io::Result<()> {
    let disk = RtDisk::new();
    let deep = dir.join("a/b/c");
    assert!(disk.list(&deep).await?.is_empty());
    disk.create_dir_all(&deep).await?;
    disk.create_dir_all(&deep).await?;
    for name in ["two", "one", "three"] {
        disk.create(&deep.join(name)).await?;
    }
    assert_eq!(disk.list(&deep).await?, ["one", "three", "two"].map(PathBuf::from));
    disk.rename(&deep.join("one"), &deep.join("two")).await?;
    disk.remove(&deep.join("three")).await?;
    disk.sync_dir(&deep).await?;
    assert_eq!(disk.list(&deep).await?, [PathBuf::from("two")]);
    assert_eq!(kind_of(disk.remove_dir(&deep).await), ErrorKind::DirectoryNotEmpty);
    disk.remove(&deep.join("two")).await?;
    disk.remove_dir(&deep).await?;
    assert!(disk.list(&deep).await?.is_empty());
    Ok(())
}

async fn failures(dir: &Path) {
    let disk = RtDisk::new();
    let absent = dir.join("absent");
    assert_eq!(kind_of(disk.open(&absent).await), ErrorKind::NotFound);
    assert_eq!(kind_of(disk.remove(&absent).await), ErrorKind::NotFound);
    assert_eq!(kind_of(disk.sync_dir(&absent).await), ErrorKind::NotFound);
    let full = disk.open(Path::new("/dev/full")).await.unwrap();
    assert_eq!(kind_of(full.write_at(disk.alloc(ALIGN), ALIGN, 0).await), ErrorKind::StorageFull);
}

async fn many_files(dir: &Path) -> io::Result<()> {
    let (disk, dir) = (RtDisk::new(), dir.join("many"));
    let write = |name: &str, presence, position: usize, pages: usize, with: u8| {
        let mut bytes = Pages::zeroed(pages * ALIGN);
        assert!(bytes.as_ref().iter().all(|&byte| byte == 0) && bytes.as_ref().len() == pages * ALIGN);
        assert_eq!(bytes.as_ref().as_ptr() as usize % ALIGN, 0, "memory is aligned");
        bytes.as_mut().fill(with);
        FileWrite { path: dir.join(name), presence, position: (position * ALIGN) as u64, pages: bytes }
    };
    let first = (0..40u8).map(|n| write(&format!("{n}/file"), Presence::MissingWithDirectory, 0, 2, n));
    disk.write_files(first.collect()).await.unwrap();
    let second = vec![
        write("3/file", Presence::There, 1, 3, 100),
        write("3/other", Presence::Missing, 0, 1, 101),
        write("4/new/file", Presence::There, 0, 1, 0),
        write("5/file", Presence::There, 2, 1, 102),
    ];
    let (number, error) = disk.write_files(second).await.unwrap_err();
    assert_eq!((number, error.kind()), (2, ErrorKind::NotFound));
    let again = vec![write("3/other", Presence::Missing, 0, 1, 0)];
    assert_eq!(disk.write_files(again).await.unwrap_err().1.kind(), ErrorKind::AlreadyExists);
    disk.sync_below(&dir).await?;
    assert_eq!(kind_of(disk.sync_below(&dir.join("none")).await), ErrorKind::NotFound);
    for (name, pages) in [("3/file", &[3, 100, 100, 100][..]), ("3/other", &[101]), ("7/file", &[7, 7])] {
        let file = disk.open(&dir.join(name)).await?;
        assert_eq!(file.size().await?, (pages.len() * ALIGN) as u64, "{name}");
        let read = file.read_at(0, pages.len() * ALIGN).await?;
        for (page, with) in read.as_ref().chunks(ALIGN).zip(pages) {
            assert!(page.iter().all(|byte| byte == with), "{name}");
        }
    }
    Ok(())
}

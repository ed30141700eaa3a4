//! The index on a disk that fills up: a checkpoint that finds no space says so, whichever of its writes met the end of
//! the disk, and once there is space the next one opens the database again and loses nothing.
//!
//! Needs a small file system of its own, so root; elsewhere a test says why it does nothing.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use flowmesh_model::{IndexWrite, Lsn, ShardId, Space};
use flowmesh_sim::Random;
use flowmesh_store::index::{Index, IndexConfig, IndexError};
use futures::executor::block_on;

const MIB: usize = 1 << 20;

/// Checkpoints that find the disk full, one after the other, before there is space.
const REFUSALS: usize = 4;

/// A tmpfs of its own; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, bytes: usize) -> Result<Self, String> {
        fs::create_dir_all(at).unwrap();
        let target = CString::new(at.to_str().unwrap()).unwrap();
        let options = CString::new(format!("size={bytes}")).unwrap();
        // SAFETY: all pointers are to strings that live through the call.
        let result = unsafe {
            libc::mount(c"tmpfs".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, options.as_ptr().cast())
        };
        if result != 0 {
            return Err(format!("cannot mount a tmpfs: {}", std::io::Error::last_os_error()));
        }
        Ok(Self(at.to_owned()))
    }

    /// Fills it up to so many free bytes.
    fn leave(&self, ballast: &Path, free: usize) {
        let mut file = fs::File::create(ballast).unwrap();
        let block = vec![1u8; 64 * 1024];
        while rustix::fs::statvfs(&self.0).is_ok_and(|disk| disk.f_bavail * disk.f_frsize > free as u64) {
            if let Err(error) = file.write_all(&block) {
                assert_eq!(error.kind(), io::ErrorKind::StorageFull);
                break;
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let target = CString::new(self.0.to_str().unwrap()).unwrap();
        // SAFETY: as above.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

/// Bytes that no compression makes smaller.
fn noise(random: &mut Random, bytes: usize) -> Vec<u8> {
    (0..bytes.div_ceil(8)).flat_map(|_| random.next_u64().to_le_bytes()).take(bytes).collect()
}

type Content = BTreeMap<Bytes, Bytes>;

async fn all(index: &Index) -> Content {
    let mut found = Content::new();
    let mut take = |key: Bytes, value: Bytes| {
        found.insert(key, value);
        Ok(())
    };
    index.scan_all(Space::Keys, &mut take).await.unwrap();
    found
}

/// What a checkpoint of so many KiB changes: old keys and new ones.
fn changes(random: &mut Random, kib: usize) -> Content {
    let change = |_| {
        let key = Bytes::from(format!("key-{:06}", random.below(100_000)));
        (key, Bytes::from(noise(random, 1000)))
    };
    (0..kib).map(change).collect()
}

async fn write(index: &Index, changes: &Content, lsn: Lsn) -> Result<(), IndexError> {
    let checkpoint = index.checkpoint();
    let writes: Vec<IndexWrite> = changes
        .iter()
        .map(|(key, value)| IndexWrite { space: Space::Keys, key: key.clone(), value: Some(value.clone()) })
        .collect();
    for chunk in writes.chunks(500) {
        checkpoint.add(chunk.to_vec()).await?;
    }
    checkpoint.commit(lsn).await
}

/// Checkpoints of `kib` until the disk with `free` bytes is full, then with space again.
fn fill_and_recover(seed: u64, kib: usize, free: usize) {
    let dir = tempfile::tempdir().unwrap();
    let disk = match SmallDisk::mount(&dir.path().join("disk"), 192 * MIB) {
        Ok(disk) => disk,
        Err(why) => {
            println!("skipped: {why}");
            return;
        }
    };
    let mut random = Random::new(seed);
    let config = IndexConfig {
        memtable_bytes: MIB as u64,
        batch_bytes_max: MIB,
        ..IndexConfig::new(&disk.0.join("shard"), ShardId(0))
    };
    block_on(async {
        let (index, _) = Index::open(config.clone()).await.unwrap();
        let (mut content, mut lsn) = (Content::new(), Lsn(0));
        let first = changes(&mut random, kib);
        lsn = lsn.next();
        write(&index, &first, lsn).await.unwrap();
        content.extend(first);
        let ballast = disk.0.join("ballast");
        disk.leave(&ballast, free);
        let mut refused = Vec::new();
        while refused.len() < REFUSALS {
            let next = changes(&mut random, kib);
            lsn = lsn.next();
            match write(&index, &next, lsn).await {
                Ok(()) => content.extend(next),
                Err(error) => {
                    assert!(error.is_disk_full(), "seed {seed}, {kib} KiB, {free} free: {error}");
                    refused.push(next);
                }
            }
            assert!(lsn < Lsn(10_000), "the disk never fills");
        }
        fs::remove_file(&ballast).unwrap();
        // What was not written comes again, as in a checkpoint.
        let mut again = Content::new();
        for next in refused {
            again.extend(next);
        }
        again.extend(changes(&mut random, kib));
        content.extend(again.clone());
        lsn = lsn.next();
        write(&index, &again, lsn).await.unwrap();
        assert_eq!(all(&index).await, content);
        index.shutdown().await.unwrap();
        let (index, applied) = Index::open(config).await.unwrap();
        assert_eq!(applied, lsn);
        assert_eq!(all(&index).await, content);
    });
}

#[test]
fn small_checkpoints_on_a_disk_that_fills_up() {
    for (seed, free) in [0, 1, 3, 7, 20, 45].into_iter().enumerate() {
        fill_and_recover(seed as u64, 100, free * MIB);
    }
}

#[test]
fn large_checkpoints_on_a_disk_that_fills_up() {
    for (seed, (kib, free)) in
        [(2_000, 0), (2_000, 2), (2_000, 9), (6_000, 5), (6_000, 30)].into_iter().enumerate()
    {
        fill_and_recover(seed as u64, kib, free * MIB);
    }
}

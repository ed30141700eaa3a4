//! What the tests of the log share: a small log on a simulated disk, and ways to feed it.

#![allow(dead_code, reason = "not every test uses all of it")]

use std::path::{Path, PathBuf};

use bytes::BufMut;
use flowmesh_model::{Lsn, Millis, ShardId};
use flowmesh_sim::SimDisk;
use flowmesh_store::log::{Entry, Log, LogConfig, LogError, LogFull, Recovered, recover};
pub use futures::executor::block_on;

pub const MIB: u64 = 1024 * 1024;
pub const PAGE: u64 = 4096;

pub fn shard_dir() -> PathBuf {
    PathBuf::from("/data/shard-000")
}

/// A small log: segments of 1 MiB, buffers of 16 KiB.
pub fn config(seed: u64) -> LogConfig {
    LogConfig {
        segment_bytes: MIB,
        buffer_bytes: 16 * 1024,
        buffered_bytes_max: 256 * 1024,
        seed,
        ..LogConfig::new(&shard_dir(), ShardId(0))
    }
}

/// A disk with the shard's directory.
pub fn disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.put_dir(&shard_dir());
    disk
}

pub fn log_file(seq: u64) -> PathBuf {
    shard_dir().join("log").join(format!("{seq:020}.log"))
}

/// The body of the entry with that number: any length, no two alike.
pub fn body(lsn: Lsn, len: usize) -> Vec<u8> {
    let mut body = lsn.0.to_le_bytes().to_vec();
    body.extend((0..len).map(|at| (at as u64 * 31 + lsn.0) as u8));
    body
}

pub fn append(log: &mut Log<SimDisk>, len: usize) -> Result<Lsn, LogFull> {
    let lsn = log.next_lsn();
    let body = body(lsn, len);
    log.append(Millis(lsn.0), body.len() + 10, |out| out.put_slice(&body))
}

/// Writes what gathered.
pub async fn write(log: &mut Log<SimDisk>) -> Result<(), LogError> {
    if let Some(batch) = log.take_batch() {
        let written = batch.write().await?;
        log.written(written);
    }
    Ok(())
}

/// Writes what gathered, and makes it durable.
pub async fn commit(log: &mut Log<SimDisk>) -> Result<(), LogError> {
    write(log).await?;
    if let Some(job) = log.sync_job() {
        let synced = job.run().await?;
        log.durable(synced);
    }
    Ok(())
}

/// Writes what gathered so that it is durable at once, as small commits are; all before it must be durable.
pub async fn commit_at_once(log: &mut Log<SimDisk>) -> Result<(), LogError> {
    assert!(log.is_clean());
    if let Some(batch) = log.take_batch() {
        let written = batch.write_durably().await?;
        log.written_durably(written);
    }
    Ok(())
}

/// Prepares a segment if one is wanted.
pub async fn prepare(log: &mut Log<SimDisk>) -> Result<(), LogError> {
    if let Some(request) = log.wants_segment() {
        match request.prepare().await {
            Ok(prepared) => log.segment_prepared(Ok(prepared)),
            Err(failed) => {
                let text = failed.error.to_string();
                let full = failed.error.is_disk_full();
                log.segment_prepared(Err(failed));
                return Err(LogError::Io {
                    shard: ShardId(0),
                    action: "prepare",
                    file: PathBuf::from(text),
                    source: if full { std::io::ErrorKind::StorageFull } else { std::io::ErrorKind::Other }
                        .into(),
                });
            }
        }
    }
    Ok(())
}

/// Appends entries of these lengths, each in a batch of its own, durable.
pub async fn commit_each(log: &mut Log<SimDisk>, lens: &[usize]) {
    for &len in lens {
        prepare(log).await.unwrap();
        append(log, len).unwrap();
        commit(log).await.unwrap();
    }
}

pub async fn try_open(
    disk: &SimDisk,
    config: LogConfig,
    applied: Lsn,
) -> Result<(Log<SimDisk>, Recovered, Vec<Entry>), LogError> {
    let mut entries = Vec::new();
    let (log, recovered) = recover(disk, config, applied, |entry| {
        entries.push(entry);
        Ok(())
    })
    .await?;
    assert_eq!(recovered.entries, entries.len() as u64);
    Ok((log, recovered, entries))
}

/// Opens the log and checks that its entries are dense and unharmed.
pub async fn open(disk: &SimDisk, config: LogConfig, applied: Lsn) -> (Log<SimDisk>, Recovered, Vec<Entry>) {
    let (log, recovered, entries) = try_open(disk, config, applied).await.unwrap();
    check_entries(&entries, applied);
    assert_eq!(log.next_lsn().0, applied.0 + 1 + entries.len() as u64);
    assert_eq!(log.durable_lsn().0 + 1, log.next_lsn().0);
    (log, recovered, entries)
}

pub fn check_entries(entries: &[Entry], applied: Lsn) {
    for (entry, lsn) in entries.iter().zip(applied.0 + 1..) {
        assert_eq!(entry.lsn, Lsn(lsn));
        assert_eq!(entry.time, Millis(lsn));
        assert_eq!(&entry.body[..], &body(entry.lsn, entry.body.len() - 8)[..]);
    }
}

/// The positions of the batches in a segment file, by their magic.
pub fn batches_in(disk: &SimDisk, path: &Path) -> Vec<u64> {
    let file = disk.file(path).unwrap();
    let pages = file.chunks(PAGE as usize).enumerate();
    pages.filter(|(_, page)| page.starts_with(b"FMB1")).map(|(at, _)| at as u64 * PAGE).collect()
}

//! The bare disk: single writes with a sync each, as a lone durable writer needs them, and large writes one after the
//! other. Files are written full of zeros beforehand, as the commit log's segments are: no write changes metadata.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use flowmesh_rt::core::{CoreConfig, spawn_cores};
use flowmesh_rt::disk::RtDisk;
use flowmesh_store::disk::{Disk, DiskFile};
use futures::stream::{FuturesUnordered, StreamExt};
use serde::Serialize;

use crate::load::random::Random;
use crate::load::stats::{Latencies, LatencySummary};

/// One write with a sync.
pub const SYNC_WRITE_BYTES: usize = 4096;
/// One of the large writes.
pub const LARGE_WRITE_BYTES: usize = 1024 * 1024;
/// The file that single writes go through, round and round; a log segment is larger, and this says the same.
const SYNC_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// The file that large writes go through, round and round.
const LARGE_FILE_BYTES: u64 = 256 * 1024 * 1024;
/// Large writes under way at once where the most is wanted: enough to keep a disk busy while one is being prepared.
const LARGE_WRITES_AT_ONCE: usize = 4;

/// What the disk does by itself.
#[derive(Clone, Debug, Serialize)]
pub struct DiskLimits {
    /// 4 KiB write + fdatasync through the runtime, one after the other.
    pub sync_write: LatencySummary,
    /// The same with plain system calls, for comparison.
    pub sync_write_plain: LatencySummary,
    /// 1 MiB writes through the runtime, one after the other, in 10⁶ bytes a second.
    pub large_megabytes_per_s: f64,
    /// The same, four at once.
    pub large_at_once_megabytes_per_s: f64,
    /// 1 MiB writes with plain system calls, one after the other, in 10⁶ bytes a second.
    pub large_plain_megabytes_per_s: f64,
}

/// Measures all, each part for about `each`. The runtime's parts run on core `cpu`.
///
/// # Errors
/// The disk's, or a core that did not start.
pub fn measure(dir: &Path, cpu: Option<usize>, each: Duration) -> anyhow::Result<DiskLimits> {
    Ok(DiskLimits {
        sync_write: sync_writes(dir, cpu, each)?.summary(),
        sync_write_plain: sync_writes_plain(dir, each)?.summary(),
        large_megabytes_per_s: large_writes(dir, cpu, 1, each)?,
        large_at_once_megabytes_per_s: large_writes(dir, cpu, LARGE_WRITES_AT_ONCE, each)?,
        large_plain_megabytes_per_s: large_writes_plain(dir, each)?,
    })
}

/// 4 KiB write + fdatasync through the runtime, one after the other.
///
/// # Errors
/// As [`measure`].
pub fn sync_writes(dir: &Path, cpu: Option<usize>, span: Duration) -> anyhow::Result<Latencies> {
    let path = Scratch::new(dir, "sync-write")?;
    let file = path.0.clone();
    let latencies = on_core(cpu, move || {
        let file = file.clone();
        async move {
            let file = RtDisk.create_zeroed(&file, SYNC_FILE_BYTES).await?;
            let mut latencies = Latencies::default();
            let (mut buf, mut position) = (RtDisk.alloc(SYNC_WRITE_BYTES), 0);
            let began = Instant::now();
            while began.elapsed() < span {
                let at = Instant::now();
                buf = file.write_at(buf, SYNC_WRITE_BYTES, position).await?;
                file.sync().await?;
                latencies.record(at.elapsed().as_nanos() as u64);
                position = (position + SYNC_WRITE_BYTES as u64) % SYNC_FILE_BYTES;
            }
            Ok(latencies)
        }
    })?;
    Ok(latencies)
}

/// 1 MiB writes through the runtime, `at_once` of them under way, in 10⁶ bytes a second. Not synced.
///
/// # Errors
/// As [`measure`].
pub fn large_writes(dir: &Path, cpu: Option<usize>, at_once: usize, span: Duration) -> anyhow::Result<f64> {
    let path = Scratch::new(dir, "large-write")?;
    let file = path.0.clone();
    on_core(cpu, move || {
        let file = file.clone();
        async move {
            let file = Rc::new(RtDisk.create_zeroed(&file, LARGE_FILE_BYTES).await?);
            let mut position = 0;
            let mut write = |buf| {
                let (file, at) = (Rc::clone(&file), position);
                position = (position + LARGE_WRITE_BYTES as u64) % LARGE_FILE_BYTES;
                async move { file.write_at(buf, LARGE_WRITE_BYTES, at).await }
            };
            let mut writes: FuturesUnordered<_> =
                (0..at_once).map(|_| write(RtDisk.alloc(LARGE_WRITE_BYTES))).collect();
            let (began, mut done) = (Instant::now(), 0u64);
            while let Some(buf) = writes.next().await {
                let buf = buf?;
                done += LARGE_WRITE_BYTES as u64;
                if began.elapsed() >= span {
                    break;
                }
                writes.push(write(buf));
            }
            let rate = done as f64 / 1e6 / began.elapsed().as_secs_f64();
            while writes.next().await.is_some() {}
            Ok(rate)
        }
    })
}

/// 1 MiB reads through the runtime, one after the other, in 10⁶ bytes a second.
///
/// # Errors
/// As [`measure`].
pub fn large_reads(dir: &Path, cpu: Option<usize>, span: Duration) -> anyhow::Result<f64> {
    let path = Scratch::new(dir, "large-read")?;
    let file = path.0.clone();
    on_core(cpu, move || {
        let file = file.clone();
        async move {
            let file = RtDisk.create_zeroed(&file, LARGE_FILE_BYTES).await?;
            let (began, mut done) = (Instant::now(), 0u64);
            while began.elapsed() < span {
                file.read_at(done % LARGE_FILE_BYTES, LARGE_WRITE_BYTES).await?;
                done += LARGE_WRITE_BYTES as u64;
            }
            Ok(done as f64 / 1e6 / began.elapsed().as_secs_f64())
        }
    })
}

/// Reads of 4 KiB at random through the runtime, one after the other.
///
/// # Errors
/// As [`measure`].
pub fn small_reads(dir: &Path, cpu: Option<usize>, span: Duration) -> anyhow::Result<Latencies> {
    let path = Scratch::new(dir, "small-read")?;
    let file = path.0.clone();
    on_core(cpu, move || {
        let file = file.clone();
        async move {
            let file = RtDisk.create_zeroed(&file, LARGE_FILE_BYTES).await?;
            let (mut latencies, mut random) = (Latencies::default(), Random::new(1));
            let began = Instant::now();
            while began.elapsed() < span {
                let at = Instant::now();
                let block = random.below(LARGE_FILE_BYTES / SYNC_WRITE_BYTES as u64);
                file.read_at(block * SYNC_WRITE_BYTES as u64, SYNC_WRITE_BYTES).await?;
                latencies.record(at.elapsed().as_nanos() as u64);
            }
            Ok(latencies)
        }
    })
}

fn on_core<T, F, Fut>(cpu: Option<usize>, make: F) -> anyhow::Result<T>
where
    T: Send + 'static,
    F: Fn() -> Fut + Clone + Send + 'static,
    Fut: Future<Output = io::Result<T>> + 'static,
{
    let config = CoreConfig { cpu, ..CoreConfig::default() };
    let mut ended = spawn_cores(&[config], "disk", move |_| make())?.join()?;
    Ok(ended.pop().ok_or_else(|| anyhow::anyhow!("no core ran"))??)
}

fn sync_writes_plain(dir: &Path, span: Duration) -> anyhow::Result<Latencies> {
    let scratch = Scratch::new(dir, "sync-write-plain")?;
    let file = plain_file(&scratch.0, SYNC_FILE_BYTES)?;
    let buf = AlignedBuf::new(SYNC_WRITE_BYTES);
    let (mut latencies, mut position, began) = (Latencies::default(), 0, Instant::now());
    while began.elapsed() < span {
        let at = Instant::now();
        file.write_all_at(buf.bytes(), position)?;
        file.sync_data()?;
        latencies.record(at.elapsed().as_nanos() as u64);
        position = (position + SYNC_WRITE_BYTES as u64) % SYNC_FILE_BYTES;
    }
    Ok(latencies)
}

fn large_writes_plain(dir: &Path, span: Duration) -> anyhow::Result<f64> {
    let scratch = Scratch::new(dir, "large-write-plain")?;
    let file = plain_file(&scratch.0, LARGE_FILE_BYTES)?;
    let buf = AlignedBuf::new(LARGE_WRITE_BYTES);
    let (mut done, began) = (0u64, Instant::now());
    while began.elapsed() < span {
        file.write_all_at(buf.bytes(), done % LARGE_FILE_BYTES)?;
        done += LARGE_WRITE_BYTES as u64;
    }
    Ok(done as f64 / 1e6 / began.elapsed().as_secs_f64())
}

/// A file of zeros, opened for direct writes.
fn plain_file(path: &Path, bytes: u64) -> io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    let zeros = AlignedBuf::new(LARGE_WRITE_BYTES);
    for position in (0..bytes).step_by(LARGE_WRITE_BYTES) {
        file.write_all_at(zeros.bytes(), position)?;
    }
    file.sync_all()?;
    Ok(file)
}

/// Zeroed memory that direct I/O can use: a part of a larger piece that starts at a page.
struct AlignedBuf {
    memory: Vec<u8>,
    start: usize,
    bytes: usize,
}

impl AlignedBuf {
    fn new(bytes: usize) -> Self {
        const PAGE: usize = 4096;
        let memory = vec![0; bytes + PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        Self { memory, start, bytes }
    }

    fn bytes(&self) -> &[u8] {
        self.memory.get(self.start..self.start + self.bytes).unwrap_or_default()
    }
}

/// A file that is gone when this is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(dir: &Path, name: &str) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let path = dir.join(format!("flowmesh-perf-{name}-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

//! How many bytes the data directory takes on the disk, by what they are for.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flowmesh_rt::blocking;

/// The directory is walked at most so often: that takes a while where there are many stream segments.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// A block as stat(2) counts.
const BLOCK_BYTES: u64 = 512;

/// The parts of a shard's directory.
const PARTS: [&str; 3] = ["log", "index", "streams"];

/// Bytes on the disk by part, allocated ones included.
pub type PartBytes = [(&'static str, u64); PARTS.len()];

/// Looks at the shards' directories, off the core and now and then only.
#[derive(Debug, Default)]
pub struct Storage {
    shard_dirs: Vec<PathBuf>,
    last: Cell<Option<(Instant, PartBytes)>>,
}

impl Storage {
    /// Of shards with these directories; none in memory mode.
    #[must_use]
    pub fn new(shard_dirs: Vec<PathBuf>) -> Self {
        Self { shard_dirs, last: Cell::new(None) }
    }

    /// What they take now, or took [`LOOK_EVERY`] ago at most. `None` if nobody could look.
    pub async fn bytes(&self) -> Option<PartBytes> {
        if let Some((looked, bytes)) = self.last.get()
            && looked.elapsed() < LOOK_EVERY
        {
            return Some(bytes);
        }
        let dirs = self.shard_dirs.clone();
        let bytes = blocking::run(move || walk(&dirs)).await.ok()?;
        self.last.set(Some((Instant::now(), bytes)));
        Some(bytes)
    }
}

fn walk(shard_dirs: &[PathBuf]) -> PartBytes {
    PARTS.map(|part| (part, shard_dirs.iter().map(|dir| below(&dir.join(part))).sum()))
}

/// What all files below a directory take. What goes away meanwhile takes nothing.
fn below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let bytes = entries.filter_map(Result::ok).filter_map(|entry| {
        let meta = entry.metadata().ok()?;
        Some(if meta.is_dir() { below(&entry.path()) } else { meta.blocks() * BLOCK_BYTES })
    });
    bytes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_every_shard_is_added_up() {
        let dir = tempfile::tempdir().unwrap();
        let dirs: Vec<PathBuf> = (0..2).map(|shard| dir.path().join(format!("shard-{shard}"))).collect();
        for (shard, bytes) in dirs.iter().zip([4096, 8192]) {
            fs::create_dir_all(shard.join("streams/7/0")).unwrap();
            fs::write(shard.join("streams/7/0/a"), vec![1; bytes]).unwrap();
        }
        let [log, index, streams] = walk(&dirs);
        assert_eq!((log, index, streams.0), (("log", 0), ("index", 0), "streams"));
        assert!((12_288..65_536).contains(&streams.1), "{streams:?}");
    }
}

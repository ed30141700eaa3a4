//! Whether the disk has the space that fjall's background thread needs.
//!
//! A failure of that thread shows only as `Poisoned`, at the next write, without its cause. A disk that is (nearly) full
//! is by far the most frequent one, and the one that passes; so it is looked for.

use std::fs;
use std::io;
use std::path::Path;

use super::IndexConfig;

/// Whether the disk has less space than the background thread may need at once: to write what is in memory, and to write
/// any part of the index anew before the old one goes.
pub(super) fn is_short(config: &IndexConfig) -> bool {
    let Ok(disk) = rustix::fs::statvfs(&config.dir) else { return false };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    free < bytes_of(&config.dir).unwrap_or(0) + config.journal_bytes_max
}

/// Bytes that the files of a directory take on the disk.
fn bytes_of(dir: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        // 512 bytes a block, whatever the file system's own are (stat(2)).
        bytes += if meta.is_dir() { bytes_of(&entry.path())? } else { meta.blocks() * 512 };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use flowmesh_model::ShardId;

    use super::*;

    #[test]
    fn space_is_short_below_what_the_index_has_and_its_journal() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = IndexConfig::new(dir.path(), ShardId(0));
        fs::create_dir_all(config.dir.join("keyspaces")).unwrap();
        fs::write(config.dir.join("keyspaces").join("table"), vec![1; 100_000]).unwrap();
        assert!((100_000..200_000).contains(&bytes_of(&config.dir).unwrap()));
        config.journal_bytes_max = 0;
        assert!(!is_short(&config), "the disk of the tests has a MiB");
        config.journal_bytes_max = u64::MAX / 2;
        assert!(is_short(&config));
        config.dir = dir.path().join("nowhere");
        assert!(!is_short(&config));
    }
}

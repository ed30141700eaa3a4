//! The data directory: its lock, its description, its shards' folders.
//!
//! | path | meaning |
//! |---|---|
//! | `LOCK` | locked (flock) by the server that has the directory open; holds its process id |
//! | `flowmesh.json` | format version, shard count, slot map, hash seed; written once, by rename |
//! | `shard-NNN/` | what shard NNN owns: `log/`, `index/`, `streams/` |

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use flowmesh_model::ShardId;
use flowmesh_model::placement::SlotMap;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The version of everything on disk. Raise it when an older server could misread what this one writes; a server
/// opens its own version and those before it.
pub const FORMAT_VERSION: u32 = 1;

const LOCK: &str = "LOCK";
const DESCRIPTION: &str = "flowmesh.json";

/// Why a data directory cannot be opened.
#[derive(Debug, Error)]
pub enum DataDirError {
    /// Another server has it.
    #[error(
        "data directory {dir} is in use by another server (process {holder}); stop it or set another data_dir"
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// What the lock file says of its holder.
        holder: String,
    },
    /// A newer server wrote it.
    #[error(
        "data directory {dir} has format {found}; this server knows formats up to {FORMAT_VERSION}: start it with the newer server that wrote it"
    )]
    Newer {
        /// The directory.
        dir: PathBuf,
        /// Its format.
        found: u32,
    },
    /// It was made for another number of shards.
    #[error(
        "data directory {dir} was made with {made} shards, but {asked} are asked for: set shards = {made}, or use another data_dir"
    )]
    OtherShards {
        /// The directory.
        dir: PathBuf,
        /// Its shards.
        made: u16,
        /// The shards in the settings.
        asked: u16,
    },
    /// Its description cannot be read.
    #[error("{path} is damaged: {reason}; restore it from a backup, it is never rewritten")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There is data but no description.
    #[error(
        "{dir} holds `{entry}` but no {DESCRIPTION}: not a FlowMesh data directory, or its description was lost"
    )]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// Something in it.
        entry: String,
    },
    /// The system said no.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io { action, path, source }
}

/// What `flowmesh.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// [`FORMAT_VERSION`] of the server that made it.
    pub format: u32,
    /// How many shards there are.
    pub shards: u16,
    /// Seeds the hash tables of keys that clients choose.
    pub hash_seed: u64,
    /// Which shard holds which slot.
    pub slots: SlotMap,
}

/// An open, locked data directory. Dropping it gives the lock back.
#[derive(Debug)]
pub struct DataDir {
    dir: PathBuf,
    description: Description,
    _lock: File,
}

impl DataDir {
    /// Opens `dir`, or makes it; `shards` is what the settings ask for, `None` to take what is there (or `default`).
    pub fn open(dir: &Path, shards: Option<u16>, default_shards: u16) -> Result<Self, DataDirError> {
        fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        let lock = take_lock(dir)?;
        let description = match read_description(dir)? {
            Some(description) => description,
            None => make(dir, shards.unwrap_or(default_shards))?,
        };
        if let Some(asked) = shards
            && asked != description.shards
        {
            return Err(DataDirError::OtherShards { dir: dir.to_owned(), made: description.shards, asked });
        }
        for shard in 0..description.shards {
            let path = shard_dir(dir, ShardId(shard));
            fs::create_dir_all(&path).map_err(io_error("create", &path))?;
        }
        sync_dir(dir)?;
        Ok(Self { dir: dir.to_owned(), description, _lock: lock })
    }

    /// What the directory was made with.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The folder of a shard.
    pub fn shard_dir(&self, shard: ShardId) -> PathBuf {
        shard_dir(&self.dir, shard)
    }
}

fn shard_dir(dir: &Path, shard: ShardId) -> PathBuf {
    dir.join(format!("shard-{:03}", shard.0))
}

fn sync_dir(dir: &Path) -> Result<(), DataDirError> {
    File::open(dir).and_then(|file| file.sync_all()).map_err(io_error("sync", dir))
}

fn take_lock(dir: &Path) -> Result<File, DataDirError> {
    let path = dir.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io_error("open", &path))?;
    // SAFETY: flock on a descriptor that `file` owns.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(io_error("lock", &path)(error));
        }
        let mut holder = String::new();
        let _ = file.read_to_string(&mut holder);
        let holder = if holder.trim().is_empty() { "unknown".to_owned() } else { holder.trim().to_owned() };
        return Err(DataDirError::InUse { dir: dir.to_owned(), holder });
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(io_error("write", &path))?;
    Ok(file)
}

fn read_description(dir: &Path) -> Result<Option<Description>, DataDirError> {
    let path = dir.join(DESCRIPTION);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", &path)(error)),
    };
    let damaged = |reason: String| DataDirError::Damaged { path: path.clone(), reason };
    // The format comes first: a newer file may have another shape.
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
    let found = value.get("format").and_then(serde_json::Value::as_u64);
    match found.and_then(|f| u32::try_from(f).ok()) {
        None => return Err(damaged("it has no format number".to_owned())),
        Some(found) if found > FORMAT_VERSION => {
            return Err(DataDirError::Newer { dir: dir.to_owned(), found });
        }
        Some(_) => {}
    }
    let description: Description = serde_json::from_value(value).map_err(|e| damaged(e.to_string()))?;
    if description.shards == 0 || !description.slots.is_valid(description.shards) {
        return Err(damaged("its slot map does not fit its shards".to_owned()));
    }
    Ok(Some(description))
}

fn make(dir: &Path, shards: u16) -> Result<Description, DataDirError> {
    let foreign = fs::read_dir(dir)
        .map_err(io_error("list", dir))?
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|name| name.starts_with("shard-"));
    if let Some(entry) = foreign {
        return Err(DataDirError::Foreign { dir: dir.to_owned(), entry });
    }
    let description =
        Description { format: FORMAT_VERSION, shards, hash_seed: random_seed(), slots: SlotMap::new(shards) };
    let (path, draft) = (dir.join(DESCRIPTION), dir.join("flowmesh.json.new"));
    let text = serde_json::to_vec(&description).map_err(|e| io_error("encode", &path)(e.into()))?;
    let mut file = File::create(&draft).map_err(io_error("create", &draft))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(io_error("write", &draft))?;
    fs::rename(&draft, &path).map_err(io_error("rename", &draft))?;
    sync_dir(dir)?;
    Ok(description)
}

/// A number nobody can guess, from the randomness that the standard library seeds its own hash maps with.
pub fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_its_shards_and_refuses_others() {
        let dir = tempfile::tempdir().unwrap();
        let made = DataDir::open(dir.path(), Some(3), 1).unwrap().description().clone();
        assert_eq!(DataDir::open(dir.path(), None, 1).unwrap().description(), &made);
        let refused = DataDir::open(dir.path(), Some(2), 1).unwrap_err().to_string();
        assert!(refused.contains("made with 3 shards, but 2"), "{refused}");
    }

    #[test]
    fn a_second_server_is_refused_by_the_first_ones_process() {
        let dir = tempfile::tempdir().unwrap();
        let _first = DataDir::open(dir.path(), Some(1), 1).unwrap();
        let refused = DataDir::open(dir.path(), Some(1), 1).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
    }

    #[test]
    fn newer_damaged_and_foreign_directories_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DESCRIPTION);
        fs::write(&path, br#"{"format":2,"other":true}"#).unwrap();
        assert!(matches!(DataDir::open(dir.path(), None, 1), Err(DataDirError::Newer { found: 2, .. })));
        fs::write(&path, b"{").unwrap();
        assert!(matches!(DataDir::open(dir.path(), None, 1), Err(DataDirError::Damaged { .. })));
        fs::remove_file(&path).unwrap();
        fs::create_dir(dir.path().join("shard-000")).unwrap();
        assert!(matches!(DataDir::open(dir.path(), None, 1), Err(DataDirError::Foreign { .. })));
    }
}

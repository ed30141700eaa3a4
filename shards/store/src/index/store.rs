//! What the storage thread does to fjall.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `meta`, `jobs`, `keys`, `groups`, `bodies`, `pages`, `history` | slot u16 BE, resource u64 BE, then as the machine likes | as the machine likes |
//! | `state` | `format` | version u32 LE |
//! | | `shard` | u16 LE |
//! | | `applied` | u64 LE: everything up to this LSN is in the index |
//! | | `staged` | a committed checkpoint that is not wholly in its place: number u64 LE, bytes on the stage u64 LE, applied u64 LE |
//! | `shelf` | see below | which files of bodies there are, and what of them |
//!
//! **A small checkpoint** (up to `batch_bytes_max`) is one fjall batch with `applied`, synced.
//!
//! **A large one** does not fit memory as one batch. Its changes go to the [`stage`](super::stage), a file, as they come.
//! The commit syncs it and writes `staged`, synced: from then on it has happened. Then the changes are moved to their
//! place in small batches, and `applied` is set and `staged` removed, synced. After a crash in between, the move is done
//! again from the start when the index is opened; changes are absolute, so that is the same.
//!
//! **Bodies** (see [`Space::Bodies`]) mostly go to files of their own, which [`shelf`](super::shelf) describes; what they
//! change in the database is in the batch that makes the checkpoint happen.
//!
//! **Version 1** had all bodies in their keyspace, and the stage in a keyspace `stage`: key checkpoint number u64 BE, change u64 BE; value space u8, 1 = set
//! or 0 = remove u8, key bytes u16 LE, key, value; `staged` had the number of changes where bytes are now. An index of that
//! version is brought to this one when it is opened. **Version 2** had no pages, **version 3** no history; they
//! are as this one without any.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use flowmesh_model::{IndexWrite, Lsn, ShardId, Space};

use super::shelf::{Reader, Shelf};
use super::stage::{Stage, Staged, StagedChange, read_change};
use super::worker::failed;
use super::{Chunk, HistoryRange, IndexConfig, IndexError};
use crate::pages::Fields;

/// The format this server writes, and the newest it reads. Grows with every change an older server would misread.
const VERSION: u32 = 4;

/// The last version without histories. The one before that had no pages of collections either.
const VERSION_WITHOUT_HISTORY: u32 = 3;

/// The last version with a keyspace for a stage, and without files of bodies; what it has of those is read as it is.
const VERSION_STAGE_KEYSPACE: u32 = 1;

/// Bytes moved from the stage in one batch.
const MOVE_BYTES: usize = 2 * 1024 * 1024;

const FORMAT_KEY: &[u8] = b"format";
const SHARD_KEY: &[u8] = b"shard";
const APPLIED_KEY: &[u8] = b"applied";
const STAGED_KEY: &[u8] = b"staged";

/// An open database.
pub(super) struct Store {
    database: Database,
    spaces: [Keyspace; 7],
    state: Keyspace,
    stage: Stage,
    shelf: Shelf,
    batch_bytes_max: usize,
    pending: Pending,
}

/// What of the checkpoint in progress is not on the stage.
#[derive(Default)]
struct Pending {
    writes: Vec<IndexWrite>,
    bytes: usize,
}

/// A database, and up to where it holds everything.
pub(super) struct Opened {
    pub store: Store,
    pub applied: Lsn,
}

impl Store {
    pub fn open(config: &IndexConfig) -> Result<Opened, IndexError> {
        let mut store = Self::open_database(config).map_err(|source| failed(config, "open", source))?;
        store.check_identity(config)?;
        let applied = store.recover().map_err(|source| failed(config, "recover", source))?;
        Ok(Opened { store, applied })
    }

    fn open_database(config: &IndexConfig) -> fjall::Result<Self> {
        std::fs::create_dir_all(&config.dir)?;
        let database = Database::builder(&config.dir)
            .cache_size(config.cache_bytes)
            .worker_threads(1)
            .max_journaling_size(config.journal_bytes_max)
            .open()?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(config.memtable_bytes);
        let [meta, jobs, keys, groups, bodies, pages, history] =
            Space::ALL.map(|space| database.keyspace(space.as_str(), options));
        let shelf = Shelf::open(&config.dir, config.shard, database.keyspace("shelf", options)?)?;
        Ok(Self {
            shelf,
            spaces: [meta?, jobs?, keys?, groups?, bodies?, pages?, history?],
            state: database.keyspace("state", options)?,
            stage: Stage::new(config.dir.with_extension("stage")),
            database,
            batch_bytes_max: config.batch_bytes_max,
            pending: Pending::default(),
        })
    }

    fn check_identity(&self, config: &IndexConfig) -> Result<(), IndexError> {
        let failed = |source| failed(config, "read", source);
        let Some(format) = self.state.get(FORMAT_KEY).map_err(failed)? else {
            return self.mark(VERSION, config.shard).map_err(failed);
        };
        let version = Fields(&format).u32();
        if version > VERSION {
            return Err(IndexError::NewerFormat {
                shard: config.shard,
                dir: config.dir.clone(),
                version,
                known: VERSION,
            });
        }
        let found = self.state.get(SHARD_KEY).map_err(failed)?.map(|shard| ShardId(Fields(&shard).u16()));
        match found {
            Some(found) if found != config.shard => {
                Err(IndexError::WrongShard { shard: config.shard, dir: config.dir.clone(), found })
            }
            _ if version == VERSION_STAGE_KEYSPACE => self.leave_stage_keyspace().map_err(failed),
            _ if version <= VERSION_WITHOUT_HISTORY => self.mark(VERSION, config.shard).map_err(failed),
            _ => Ok(()),
        }
    }

    /// Brings an index of the version with a keyspace for a stage to this version.
    fn leave_stage_keyspace(&self) -> fjall::Result<()> {
        let stage = self.database.keyspace("stage", KeyspaceCreateOptions::default)?;
        if let Some(staged) = self.state.get(STAGED_KEY)? {
            let mut read = Fields(&staged);
            let (number, changes, applied) = (read.u64(), read.u64(), Lsn(read.u64()));
            let mut moving = Moving::new(self);
            for entry in stage.prefix(number.to_be_bytes()) {
                moving.put(read_change(&entry.value()?).ok_or(fjall::Error::Unrecoverable)?)?;
            }
            if moving.changes != changes {
                return Err(fjall::Error::Unrecoverable);
            }
            moving.finish(applied)?;
        }
        let mut batch = self.durable_batch();
        batch.insert(&self.state, FORMAT_KEY, VERSION.to_le_bytes());
        batch.commit()?;
        self.database.delete_keyspace(stage)
    }

    fn mark(&self, version: u32, shard: ShardId) -> fjall::Result<()> {
        let mut batch = self.durable_batch();
        batch.insert(&self.state, FORMAT_KEY, version.to_le_bytes());
        batch.insert(&self.state, SHARD_KEY, shard.0.to_le_bytes());
        batch.commit()
    }

    /// Finishes a committed checkpoint, and says what is applied.
    fn recover(&mut self) -> fjall::Result<Lsn> {
        if let Some(staged) = self.state.get(STAGED_KEY)? {
            let mut read = Fields(&staged);
            let staged = Staged { number: read.u64(), bytes: read.u64() };
            self.move_staged(staged, Lsn(read.u64()))?;
        } else {
            self.stage.clear()?;
        }
        Ok(Lsn(self.state.get(APPLIED_KEY)?.map_or(0, |applied| Fields(&applied).u64())))
    }

    pub fn get_many(&self, space: Space, keys: &[Bytes]) -> fjall::Result<Vec<Option<Bytes>>> {
        self.beside().get_many(space, keys)
    }

    /// Reads from any thread.
    pub fn beside(&self) -> Beside {
        Beside { files: self.shelf.reader(), spaces: self.spaces.clone() }
    }

    pub fn scan(&self, space: Space, after: Option<&[u8]>, bytes_max: usize) -> fjall::Result<Chunk> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut memory = BytesMut::new();
        let mut lens = Vec::new();
        for entry in self.space(space).range::<&[u8], _>((from, Bound::Unbounded)) {
            let (key, value) = entry.into_inner()?;
            memory.extend_from_slice(&key);
            memory.extend_from_slice(&value);
            lens.push((key.len(), value.len()));
            if memory.len() >= bytes_max {
                break;
            }
        }
        let mut memory = memory.freeze();
        Ok(lens.into_iter().map(|(key, value)| (memory.split_to(key), memory.split_to(value))).collect())
    }

    /// Removes rows of histories from a key on and before another, at most so many, beside checkpoints. Returns whether that
    /// is all. A crash may bring them back.
    pub fn remove_history(&self, from: &[u8], to: &[u8], rows_max: usize) -> fjall::Result<bool> {
        let history = self.space(Space::History);
        let mut batch = self.database.batch();
        let mut rows = 0;
        for row in history.range(from..to).take(rows_max) {
            batch.remove(history, row.key()?);
            rows += 1;
        }
        batch.commit()?;
        Ok(rows < rows_max)
    }

    /// Forgets a checkpoint that was not committed.
    pub fn begin(&mut self) -> fjall::Result<()> {
        self.pending = Pending::default();
        self.stage.abandon();
        Ok(self.shelf.begin()?)
    }

    pub fn add(&mut self, writes: Vec<IndexWrite>) -> fjall::Result<()> {
        for write in writes {
            let shelved = match &write.value {
                _ if write.space != Space::Bodies => false,
                Some(body) => self.shelf.add(&write.key, body)?,
                None => self.shelf.remove(&write.key),
            };
            if !shelved {
                self.push(write);
            }
        }
        if self.pending.bytes > self.batch_bytes_max { self.spill() } else { Ok(()) }
    }

    fn push(&mut self, write: IndexWrite) {
        self.pending.bytes += write.key.len() + write.value.as_ref().map_or(0, Bytes::len);
        self.pending.writes.push(write);
    }

    pub fn commit(&mut self, applied: Lsn) -> fjall::Result<()> {
        for write in self.shelf.finish()? {
            self.push(write);
        }
        if self.stage.is_used() {
            self.spill()?;
            let staged = self.stage.finish()?;
            self.mark_staged(staged, applied)?;
            self.shelf.committed()?;
            return self.move_staged(staged, applied);
        }
        let mut batch = self.durable_batch();
        for write in std::mem::take(&mut self.pending).writes {
            put(&mut batch, self.space(write.space), &write.key, write.value.as_deref());
        }
        self.shelf.put(&mut batch);
        batch.insert(&self.state, APPLIED_KEY, applied.0.to_le_bytes());
        batch.commit()?;
        Ok(self.shelf.committed()?)
    }

    /// The moment a large checkpoint happens.
    fn mark_staged(&mut self, staged: Staged, applied: Lsn) -> fjall::Result<()> {
        let mut marker = Vec::with_capacity(24);
        marker.put_u64_le(staged.number);
        marker.put_u64_le(staged.bytes);
        marker.put_u64_le(applied.0);
        let mut batch = self.durable_batch();
        self.shelf.put(&mut batch);
        batch.insert(&self.state, STAGED_KEY, marker);
        batch.commit()
    }

    /// Writes what is pending to the stage, in the order of the keys.
    fn spill(&mut self) -> fjall::Result<()> {
        let mut pending = std::mem::take(&mut self.pending);
        // Stable: the last change of a key stays the last.
        pending.writes.sort_by(|one, other| (one.space, &one.key).cmp(&(other.space, &other.key)));
        Ok(self.stage.add(new_number, &pending.writes)?)
    }

    /// Moves a committed checkpoint from the stage to its place.
    fn move_staged(&mut self, staged: Staged, applied: Lsn) -> fjall::Result<()> {
        let mut moving = Moving::new(self);
        self.stage.read(staged, |change| moving.put(change))?;
        moving.finish(applied)?;
        Ok(self.stage.clear()?)
    }

    fn space(&self, space: Space) -> &Keyspace {
        of_space(&self.spaces, space)
    }

    fn durable_batch(&self) -> OwnedWriteBatch {
        self.database.batch().durability(Some(PersistMode::SyncAll))
    }
}

fn of_space(spaces: &[Keyspace; 7], space: Space) -> &Keyspace {
    let [meta, jobs, keys, groups, bodies, pages, history] = spaces;
    match space {
        Space::Meta => meta,
        Space::Jobs => jobs,
        Space::Keys => keys,
        Space::Groups => groups,
        Space::Bodies => bodies,
        Space::Pages => pages,
        Space::History => history,
    }
}

/// Reads from any thread, beside a checkpoint. What is asked for was there at the last one and is not changed by the one in the
/// making; of all else either may be found.
#[derive(Clone)]
pub(super) struct Beside {
    files: Reader,
    spaces: [Keyspace; 7],
}

impl Beside {
    pub fn get_many(&self, space: Space, keys: &[Bytes]) -> fjall::Result<Vec<Option<Bytes>>> {
        let keyspace = of_space(&self.spaces, space);
        if space != Space::Bodies {
            return keys.iter().map(|key| get(keyspace, key)).collect();
        }
        let mut found = self.files.get_many(keys)?;
        for (found, key) in found.iter_mut().zip(keys) {
            if found.is_none() {
                *found = get(keyspace, key)?;
            }
        }
        Ok(found)
    }

    /// Rows of histories from a key on and before another, in order, and whether that is all: at most so many, and until they
    /// have so many bytes, but at least one.
    pub fn history(&self, range: &HistoryRange) -> fjall::Result<(Chunk, bool)> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for row in of_space(&self.spaces, Space::History).range(&range.from[..]..&range.to[..]) {
            if rows.len() == range.rows_max || bytes >= range.bytes_max {
                return Ok((rows, false));
            }
            let (key, value) = row.into_inner()?;
            bytes += key.len() + value.len();
            // Copied: a slice of fjall's keeps its whole block alive.
            rows.push((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)));
        }
        Ok((rows, true))
    }
}

fn get(space: &Keyspace, key: &[u8]) -> fjall::Result<Option<Bytes>> {
    // Copied: a slice of fjall's keeps its whole block alive.
    Ok(space.get(key)?.map(|value| Bytes::copy_from_slice(&value)))
}

fn put(batch: &mut OwnedWriteBatch, space: &Keyspace, key: &[u8], value: Option<&[u8]>) {
    match value {
        Some(value) => batch.insert(space, key, value),
        None => batch.remove(space, key),
    }
}

/// A number that no leftover on the stage has.
fn new_number() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_nanos()).unwrap_or_default()
}

/// Changes on their way from a stage to their place.
struct Moving<'a> {
    store: &'a Store,
    batch: OwnedWriteBatch,
    bytes: usize,
    changes: u64,
}

impl<'a> Moving<'a> {
    fn new(store: &'a Store) -> Self {
        Self { store, batch: store.database.batch(), bytes: 0, changes: 0 }
    }

    fn put(&mut self, (space, key, value): StagedChange<'_>) -> fjall::Result<()> {
        put(&mut self.batch, self.store.space(space), key, value);
        self.changes += 1;
        self.bytes += key.len() + value.map_or(0, <[u8]>::len);
        if self.bytes < MOVE_BYTES {
            return Ok(());
        }
        self.bytes = 0;
        std::mem::replace(&mut self.batch, self.store.database.batch()).commit()
    }

    /// All of it is in its place.
    fn finish(self, applied: Lsn) -> fjall::Result<()> {
        let mut batch = self.batch.durability(Some(PersistMode::SyncAll));
        batch.insert(&self.store.state, APPLIED_KEY, applied.0.to_le_bytes());
        batch.remove(&self.store.state, STAGED_KEY);
        batch.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(count: u32) -> Vec<IndexWrite> {
        let change = |n: u32| IndexWrite {
            space: Space::Keys,
            key: Bytes::from(n.to_be_bytes().to_vec()),
            value: (!n.is_multiple_of(10)).then(|| Bytes::from(vec![n as u8; 100])),
        };
        (0..count).map(change).collect()
    }

    fn entries(store: &Store) -> usize {
        store.space(Space::Keys).iter().count()
    }

    #[test]
    fn a_large_checkpoint_that_was_committed_is_finished_at_the_next_opening() {
        let dir = tempfile::tempdir().unwrap();
        let config = IndexConfig { batch_bytes_max: 10_000, ..IndexConfig::new(dir.path(), ShardId(0)) };
        let on_stage = || std::fs::metadata(dir.path().join("index.stage")).unwrap().len();
        let Opened { mut store, .. } = Store::open(&config).unwrap();
        store.add(changes(1000)).unwrap();
        assert!(store.stage.is_used() && entries(&store) == 0 && on_stage() > 10_000);
        // Not committed: it is gone.
        drop(store);
        let Opened { mut store, applied } = Store::open(&config).unwrap();
        assert_eq!((applied, entries(&store), on_stage()), (Lsn(0), 0, 0));
        // Committed, and cut off before it was moved.
        store.add(changes(1000)).unwrap();
        let staged = store.stage.finish().unwrap();
        store.mark_staged(staged, Lsn(6)).unwrap();
        drop(store);
        let Opened { store, applied } = Store::open(&config).unwrap();
        assert_eq!((applied, entries(&store), on_stage()), (Lsn(6), 900, 0));
        assert!(store.state.get(STAGED_KEY).unwrap().is_none());
        // And so it stays.
        drop(store);
        let Opened { store, applied } = Store::open(&config).unwrap();
        assert_eq!((applied, entries(&store)), (Lsn(6), 900));
    }

    fn job_key(job: u64) -> Bytes {
        [&[0; 10][..], &job.to_be_bytes()].concat().into()
    }

    fn bodies(jobs: std::ops::Range<u64>) -> Vec<IndexWrite> {
        let body = |job: u64| Some(Bytes::from(vec![job as u8; 400]));
        jobs.map(|job| IndexWrite { space: Space::Bodies, key: job_key(job), value: body(job) }).collect()
    }

    /// How many of some bodies are there, all of them as they were written.
    fn there(store: &Store, jobs: std::ops::Range<u64>) -> usize {
        let keys: Vec<Bytes> = jobs.clone().map(job_key).collect();
        let found = store.get_many(Space::Bodies, &keys).unwrap();
        let whole =
            |(job, body): (u64, Option<Bytes>)| body.map(|body| assert_eq!(body, vec![job as u8; 400]));
        jobs.zip(found).filter_map(whole).count()
    }

    #[test]
    fn bodies_come_and_go_at_the_moment_a_large_checkpoint_happens() {
        let dir = tempfile::tempdir().unwrap();
        let config = IndexConfig {
            batch_bytes_max: 10_000,
            ..IndexConfig::new(&dir.path().join("index"), ShardId(0))
        };
        let Opened { mut store, .. } = Store::open(&config).unwrap();
        store.add(changes(1000)).unwrap();
        store.add(bodies(1..2000)).unwrap();
        store.commit(Lsn(1)).unwrap();
        let gone =
            || (1..1500).map(|job| IndexWrite { space: Space::Bodies, key: job_key(job), value: None });
        // Not committed: as if it had not been.
        for crash in [false, true] {
            store.add(changes(1000)).unwrap();
            store.add(bodies(2000..4000)).unwrap();
            store.add(gone().collect()).unwrap();
            assert_eq!(there(&store, 1..4000), 1999);
            if crash {
                drop(store);
                store = Store::open(&config).unwrap().store;
            } else {
                store.begin().unwrap();
            }
            assert_eq!(there(&store, 1..4000), 1999);
        }
        // Committed, and cut off before it was moved.
        store.add(changes(1000)).unwrap();
        store.add(bodies(2000..4000)).unwrap();
        store.add(gone().collect()).unwrap();
        assert!(store.shelf.finish().unwrap().is_empty());
        let staged = store.stage.finish().unwrap();
        store.mark_staged(staged, Lsn(2)).unwrap();
        drop(store);
        for _ in 0..2 {
            let Opened { store, applied } = Store::open(&config).unwrap();
            assert_eq!((applied, there(&store, 1..1500), there(&store, 1500..4000)), (Lsn(2), 0, 2500));
        }
    }

    #[test]
    fn bodies_of_an_index_without_files_are_read_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let config = IndexConfig::new(&dir.path().join("index"), ShardId(0));
        let Opened { mut store, .. } = Store::open(&config).unwrap();
        // As the version before wrote it.
        for write in bodies(1..2000) {
            store.push(write);
        }
        store.commit(Lsn(1)).unwrap();
        store.mark(VERSION_STAGE_KEYSPACE, ShardId(0)).unwrap();
        drop(store);
        let Opened { mut store, .. } = Store::open(&config).unwrap();
        assert_eq!(there(&store, 1..2000), 1999);
        let gone = (1..1000).map(|job| IndexWrite { space: Space::Bodies, key: job_key(job), value: None });
        store.add(gone.collect()).unwrap();
        store.add(bodies(2000..4000)).unwrap();
        store.commit(Lsn(2)).unwrap();
        assert_eq!(there(&store, 1..4000), 3000);
        // It says what it is now.
        assert_eq!(Fields(&store.state.get(FORMAT_KEY).unwrap().unwrap()).u32(), VERSION);
        let mut store = store;
        for before in [VERSION_STAGE_KEYSPACE + 1, VERSION_WITHOUT_HISTORY] {
            store.mark(before, ShardId(0)).unwrap();
            drop(store);
            store = Store::open(&config).unwrap().store;
            assert_eq!(there(&store, 1..4000), 3000);
            assert_eq!(Fields(&store.state.get(FORMAT_KEY).unwrap().unwrap()).u32(), VERSION);
        }
        store.mark(VERSION + 1, ShardId(0)).unwrap();
        drop(store);
        let newer = Store::open(&config).map(|_| ()).unwrap_err();
        assert!(matches!(newer, IndexError::NewerFormat { .. }), "{newer}");
    }

    #[test]
    fn a_committed_checkpoint_on_a_damaged_stage_is_refused_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let config = IndexConfig { batch_bytes_max: 10_000, ..IndexConfig::new(dir.path(), ShardId(0)) };
        let Opened { mut store, .. } = Store::open(&config).unwrap();
        store.add(changes(1000)).unwrap();
        let staged = store.stage.finish().unwrap();
        store.mark_staged(staged, Lsn(6)).unwrap();
        drop(store);
        let path = dir.path().join("index.stage");
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let refused = Store::open(&config).err().unwrap().to_string();
        assert!(refused.contains("index.stage is damaged in the frame at byte 0"), "{refused}");
    }

    #[test]
    fn an_index_with_a_stage_of_version_1_is_finished_and_goes_on() {
        for committed in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let config = IndexConfig::new(dir.path(), ShardId(0));
            let Opened { store, .. } = Store::open(&config).unwrap();
            let stage = store.database.keyspace("stage", KeyspaceCreateOptions::default).unwrap();
            let mut batch = store.durable_batch();
            for (n, write) in (0u64..).zip(changes(20)) {
                let key = [7u64.to_be_bytes(), n.to_be_bytes()].concat();
                let is_set = u8::from(write.value.is_some());
                let mut change = vec![write.space as u8, is_set, write.key.len() as u8, 0];
                change.extend_from_slice(&write.key);
                change.extend_from_slice(write.value.as_deref().unwrap_or_default());
                batch.insert(&stage, key, change);
            }
            if committed {
                let marker = [7u64.to_le_bytes(), 20u64.to_le_bytes(), 6u64.to_le_bytes()].concat();
                batch.insert(&store.state, STAGED_KEY, marker);
            }
            batch.insert(&store.state, FORMAT_KEY, 1u32.to_le_bytes());
            batch.commit().unwrap();
            drop((stage, store));
            for _ in 0..2 {
                let Opened { store, applied } = Store::open(&config).unwrap();
                let expected = if committed { (Lsn(6), 18) } else { (Lsn(0), 0) };
                assert_eq!((applied, entries(&store)), expected);
                assert!(!store.database.keyspace_exists("stage"));
                assert_eq!(Fields(&store.state.get(FORMAT_KEY).unwrap().unwrap()).u32(), VERSION);
            }
        }
    }
}

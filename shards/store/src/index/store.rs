//! What the storage thread does to fjall.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `meta`, `jobs`, `keys`, `groups`, `bodies` | slot u16 BE, resource u64 BE, then as the machine likes | as the machine likes |
//! | `state` | `format` | version u32 LE |
//! | | `shard` | u16 LE |
//! | | `applied` | u64 LE: everything up to this LSN is in the index |
//! | | `staged` | a committed checkpoint that is not wholly in its place: number u64 LE, changes u64 LE, applied u64 LE |
//! | `shelf` | see below | which files of bodies there are, and what of them |
//! | `stage` | checkpoint number u64 BE, change u64 BE | space u8, 1 = set or 0 = remove u8, key bytes u16 LE, key, value |
//!
//! **A small checkpoint** (up to `batch_bytes_max`) is one fjall batch with `applied`, synced.
//!
//! **A large one** does not fit memory as one batch. Its changes go to `stage` as they come. The commit writes `staged`,
//! synced: from then on it has happened. Then the changes are moved to their place in small batches, and `applied` is
//! set and `staged` removed, synced. After a crash in between, the move is done again from the start when the index is
//! opened; changes are absolute, so that is the same.
//!
//! **Bodies** (see [`Space::Bodies`]) mostly go to files of their own, which [`shelf`](super::shelf) describes; what they
//! change in the database is in the batch that makes the checkpoint happen.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use flowmesh_model::{IndexWrite, Lsn, ShardId, Space};

use super::shelf::{Reader, Shelf};
use super::worker::failed;
use super::{Chunk, IndexConfig, IndexError};
use crate::pages::Fields;

/// The format this server writes, and the newest it reads. Grows with every change an older server would misread.
const VERSION: u32 = 2;
/// Without files of bodies; what it has is read as it is.
const VERSION_WITHOUT_FILES: u32 = 1;

/// Bytes moved from the stage in one batch.
const MOVE_BYTES: usize = 2 * 1024 * 1024;

const FORMAT_KEY: &[u8] = b"format";
const SHARD_KEY: &[u8] = b"shard";
const APPLIED_KEY: &[u8] = b"applied";
const STAGED_KEY: &[u8] = b"staged";

/// An open database.
pub(super) struct Store {
    database: Database,
    spaces: [Keyspace; 5],
    state: Keyspace,
    stage: Keyspace,
    shelf: Shelf,
    batch_bytes_max: usize,
    pending: Pending,
}

/// The checkpoint in progress.
#[derive(Default)]
struct Pending {
    writes: Vec<IndexWrite>,
    bytes: usize,
    /// Its number and how many changes are on the stage, if any are.
    staged: Option<(u64, u64)>,
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
        let [meta, jobs, keys, groups, bodies] =
            Space::ALL.map(|space| database.keyspace(space.as_str(), options));
        let (state, stage) = (database.keyspace("state", options)?, database.keyspace("stage", options)?);
        let shelf = Shelf::open(&config.dir, config.shard, database.keyspace("shelf", options)?)?;
        Ok(Self {
            shelf,
            spaces: [meta?, jobs?, keys?, groups?, bodies?],
            state,
            stage,
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
        if version == VERSION_WITHOUT_FILES {
            self.mark(VERSION, config.shard).map_err(failed)?;
        } else if version != VERSION {
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
            _ => Ok(()),
        }
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
            let (number, changes, applied) = (read.u64(), read.u64(), Lsn(read.u64()));
            self.move_staged(number, changes, applied)?;
        } else if !self.stage.is_empty()? {
            self.stage.clear()?;
        }
        Ok(Lsn(self.state.get(APPLIED_KEY)?.map_or(0, |applied| Fields(&applied).u64())))
    }

    pub fn get_many(&self, space: Space, keys: &[Bytes]) -> fjall::Result<Vec<Option<Bytes>>> {
        if space == Space::Bodies {
            return self.bodies().get_many(keys);
        }
        keys.iter().map(|key| get(self.space(space), key)).collect()
    }

    /// Reads bodies from any thread.
    pub fn bodies(&self) -> Bodies {
        Bodies { files: self.shelf.reader(), few: self.space(Space::Bodies).clone() }
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

    /// Forgets a checkpoint that was not committed.
    pub fn begin(&mut self) -> fjall::Result<()> {
        self.pending = Pending::default();
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
        if self.pending.staged.is_some() {
            self.spill()?;
        }
        let pending = std::mem::take(&mut self.pending);
        let Some((number, changes)) = pending.staged else {
            let mut batch = self.durable_batch();
            for write in pending.writes {
                put(&mut batch, self.space(write.space), &write.key, write.value.as_deref());
            }
            self.shelf.put(&mut batch);
            batch.insert(&self.state, APPLIED_KEY, applied.0.to_le_bytes());
            batch.commit()?;
            return Ok(self.shelf.committed()?);
        };
        self.mark_staged(number, changes, applied)?;
        self.shelf.committed()?;
        self.move_staged(number, changes, applied)
    }

    /// The moment a large checkpoint happens.
    fn mark_staged(&mut self, number: u64, changes: u64, applied: Lsn) -> fjall::Result<()> {
        let mut marker = Vec::with_capacity(24);
        marker.put_u64_le(number);
        marker.put_u64_le(changes);
        marker.put_u64_le(applied.0);
        let mut batch = self.durable_batch();
        self.shelf.put(&mut batch);
        batch.insert(&self.state, STAGED_KEY, marker);
        batch.commit()
    }

    /// Writes what is pending to the stage.
    fn spill(&mut self) -> fjall::Result<()> {
        if self.pending.staged.is_none() && !self.stage.is_empty()? {
            self.stage.clear()?;
        }
        let (number, mut change) = self.pending.staged.unwrap_or_else(|| (new_number(), 0));
        let mut batch = self.database.batch();
        for write in std::mem::take(&mut self.pending.writes) {
            batch.insert(&self.stage, stage_key(number, change).as_slice(), stage_value(&write));
            change += 1;
        }
        batch.commit()?;
        self.pending.bytes = 0;
        self.pending.staged = Some((number, change));
        Ok(())
    }

    /// Moves a committed checkpoint from the stage to its place.
    fn move_staged(&self, number: u64, changes: u64, applied: Lsn) -> fjall::Result<()> {
        let mut moved = 0;
        let mut bytes = 0;
        let mut batch = self.database.batch();
        for entry in self.stage.prefix(number.to_be_bytes()) {
            let change = entry.value()?;
            let Some((space, key, value)) = read_stage_value(&change) else {
                return Err(fjall::Error::Unrecoverable);
            };
            put(&mut batch, self.space(space), key, value);
            moved += 1;
            bytes += change.len();
            if bytes >= MOVE_BYTES {
                batch.commit()?;
                batch = self.database.batch();
                bytes = 0;
            }
        }
        if moved != changes {
            return Err(fjall::Error::Unrecoverable);
        }
        let mut batch = batch.durability(Some(PersistMode::SyncAll));
        batch.insert(&self.state, APPLIED_KEY, applied.0.to_le_bytes());
        batch.remove(&self.state, STAGED_KEY);
        batch.commit()?;
        self.stage.clear()
    }

    fn space(&self, space: Space) -> &Keyspace {
        let [meta, jobs, keys, groups, bodies] = &self.spaces;
        match space {
            Space::Meta => meta,
            Space::Jobs => jobs,
            Space::Keys => keys,
            Space::Groups => groups,
            Space::Bodies => bodies,
        }
    }

    fn durable_batch(&self) -> OwnedWriteBatch {
        self.database.batch().durability(Some(PersistMode::SyncAll))
    }
}

/// Reads bodies from any thread, beside a checkpoint: what is asked for was there at the last one, and is not changed.
#[derive(Clone)]
pub(super) struct Bodies {
    files: Reader,
    few: Keyspace,
}

impl Bodies {
    pub fn get_many(&self, keys: &[Bytes]) -> fjall::Result<Vec<Option<Bytes>>> {
        let mut found = self.files.get_many(keys)?;
        for (found, key) in found.iter_mut().zip(keys) {
            if found.is_none() {
                *found = get(&self.few, key)?;
            }
        }
        Ok(found)
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

fn stage_key(number: u64, change: u64) -> Vec<u8> {
    [number.to_be_bytes(), change.to_be_bytes()].concat()
}

fn stage_value(write: &IndexWrite) -> Vec<u8> {
    let value = write.value.as_deref();
    let mut out = Vec::with_capacity(4 + write.key.len() + value.map_or(0, <[u8]>::len));
    out.put_u8(write.space as u8);
    out.put_u8(u8::from(value.is_some()));
    out.put_u16_le(write.key.len() as u16);
    out.put_slice(&write.key);
    out.put_slice(value.unwrap_or_default());
    out
}

/// A change on the stage: where, the key, the value or none.
type StagedChange<'a> = (Space, &'a [u8], Option<&'a [u8]>);

fn read_stage_value(bytes: &[u8]) -> Option<StagedChange<'_>> {
    let (&[space, is_set], rest) = bytes.split_first_chunk::<2>()?;
    let (&key_len, rest) = rest.split_first_chunk::<2>()?;
    let (key, value) = rest.split_at_checked(usize::from(u16::from_le_bytes(key_len)))?;
    let space = *Space::ALL.get(usize::from(space))?;
    Some((space, key, (is_set == 1).then_some(value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        let Opened { mut store, .. } = Store::open(&config).unwrap();
        store.add(changes(1000)).unwrap();
        let (number, count) = store.pending.staged.unwrap();
        assert_eq!((count, entries(&store)), (1000, 0));
        // Not committed: it is gone.
        drop(store);
        let Opened { mut store, applied } = Store::open(&config).unwrap();
        assert_eq!((applied, entries(&store)), (Lsn(0), 0));
        assert!(store.stage.is_empty().unwrap());
        // Committed, and cut off before it was moved.
        store.add(changes(1000)).unwrap();
        let (next_number, count) = store.pending.staged.unwrap();
        assert!(next_number > number);
        store.mark_staged(next_number, count, Lsn(6)).unwrap();
        drop(store);
        let Opened { store, applied } = Store::open(&config).unwrap();
        assert_eq!((applied, entries(&store)), (Lsn(6), 900));
        assert!(store.stage.is_empty().unwrap() && store.state.get(STAGED_KEY).unwrap().is_none());
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
        let (number, count) = store.pending.staged.unwrap();
        store.mark_staged(number, count, Lsn(2)).unwrap();
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
        bodies(1..2000).into_iter().for_each(|write| store.push(write));
        store.commit(Lsn(1)).unwrap();
        store.mark(VERSION_WITHOUT_FILES, ShardId(0)).unwrap();
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
        store.mark(VERSION + 1, ShardId(0)).unwrap();
        drop(store);
        let newer = Store::open(&config).map(|_| ()).unwrap_err();
        assert!(matches!(newer, IndexError::NewerFormat { .. }), "{newer}");
    }

    proptest! {
        #[test]
        fn staged_changes_round_trip(which in 0usize..5, key: Vec<u8>, value: Option<Vec<u8>>) {
            let write = IndexWrite { space: Space::ALL[which], key: key.clone().into(), value: value.clone().map(Bytes::from) };
            let bytes = stage_value(&write);
            prop_assert_eq!(read_stage_value(&bytes), Some((Space::ALL[which], &key[..], value.as_deref())));
        }

        #[test]
        fn noise_on_the_stage_never_panics(noise: Vec<u8>) {
            let _ = read_stage_value(&noise);
        }
    }
}

//! The storage thread: one operation after the other, so that nobody sees half a checkpoint. And a thread that reads bodies
//! of jobs and what stores have left to the index meanwhile: clients wait for those, and a checkpoint can take seconds.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use bytes::Bytes;
use flowmesh_model::{IndexWrite, Lsn, Space};
use futures::channel::oneshot;

use super::store::{Beside, Opened, Store};
use super::{Chunk, HistoryRange, IndexConfig, IndexError, space};

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, IndexError>>;

/// What the core asks for. An answer that nobody waits for any more is dropped.
pub enum Op {
    /// Up to where the index holds everything.
    Open {
        /// That.
        reply: Reply<Lsn>,
    },
    /// The value of a key.
    Get {
        /// Where.
        space: Space,
        /// Which.
        key: Bytes,
        /// The value, if there is one.
        reply: Reply<Option<Bytes>>,
    },
    /// Values of keys that no checkpoint in the making changes; waits for none.
    Beside {
        /// Where.
        space: Space,
        /// Which.
        keys: Vec<Bytes>,
        /// Values, in the order of the keys.
        reply: Reply<Vec<Option<Bytes>>>,
    },
    /// Entries in key order.
    Scan {
        /// Where.
        space: Space,
        /// Behind this key.
        after: Option<Bytes>,
        /// About so many bytes, at least one entry.
        bytes_max: usize,
        /// Entries; none at the end.
        reply: Reply<Chunk>,
    },
    /// Rows of histories; waits for no checkpoint, and may have a part of one.
    History {
        /// Which, in [`Space::History`].
        ranges: Vec<HistoryRange>,
        /// For each range its rows, and whether that is all.
        reply: Reply<Vec<(Chunk, bool)>>,
    },
    /// Removes rows of histories, beside checkpoints.
    RemoveHistory {
        /// From this key on.
        from: Bytes,
        /// Before this one.
        to: Bytes,
        /// At most so many.
        rows_max: usize,
        /// Whether that is all.
        reply: Reply<bool>,
    },
    /// A checkpoint begins; of another that was not committed nothing stays.
    Begin {
        /// Its number.
        number: u64,
    },
    /// Changes of a checkpoint.
    Add {
        /// Its number. Refused if another was begun meanwhile, or one of its operations failed.
        number: u64,
        /// In order.
        writes: Vec<IndexWrite>,
        /// Taken over.
        reply: Reply<()>,
    },
    /// Makes a checkpoint visible and durable as a whole.
    Commit {
        /// Its number.
        number: u64,
        /// Up to where the index holds everything then.
        applied: Lsn,
        /// Done.
        reply: Reply<()>,
    },
    /// The end.
    Shutdown {
        /// Done.
        reply: Reply<()>,
    },
}

/// What is asked of the thread that reads beside checkpoints.
pub(super) enum Read {
    Keys { space: Space, keys: Vec<Bytes>, reply: Reply<Vec<Option<Bytes>>> },
    History { ranges: Vec<HistoryRange>, reply: Reply<Vec<(Chunk, bool)>> },
}

/// How is read beside checkpoints, while the database is open.
pub(super) type OpenReader = Arc<Mutex<Option<Beside>>>;

fn lock(reader: &OpenReader) -> MutexGuard<'_, Option<Beside>> {
    reader.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The main function of the thread that reads beside checkpoints. What it cannot answer goes to the storage thread.
pub(super) fn run_reads(
    config: &IndexConfig,
    reads: &mpsc::Receiver<Read>,
    reader: &OpenReader,
    ops: &mpsc::Sender<Op>,
) {
    if let Some(on_start) = &config.on_thread_start {
        on_start();
    }
    // Not cloned: nothing may keep a database open that is being opened again.
    for read in reads {
        match read {
            Read::Keys { space, keys, reply } => {
                let found = lock(reader).as_ref().and_then(|reader| reader.get_many(space, &keys).ok());
                match found {
                    Some(found) => drop(reply.send(Ok(found))),
                    None => drop(ops.send(Op::Beside { space, keys, reply })),
                }
            }
            Read::History { ranges, reply } => {
                let found = lock(reader).as_ref().and_then(|reader| history(reader, &ranges).ok());
                match found {
                    Some(found) => drop(reply.send(Ok(found))),
                    None => drop(ops.send(Op::History { ranges, reply })),
                }
            }
        }
    }
}

/// Rows of ranges, until they have so many bytes; of the others none.
const HISTORY_BYTES_MAX: usize = 8 * 1024 * 1024;

fn history(reader: &Beside, ranges: &[HistoryRange]) -> fjall::Result<Vec<(Chunk, bool)>> {
    let mut left = HISTORY_BYTES_MAX;
    let read = |range: &HistoryRange| {
        if left == 0 {
            return Ok((Vec::new(), false));
        }
        let found =
            reader.history(&HistoryRange { bytes_max: range.bytes_max.min(left), ..range.clone() })?;
        left = left.saturating_sub(found.0.iter().map(|(key, value)| key.len() + value.len()).sum());
        Ok(found)
    };
    ranges.iter().map(read).collect()
}

/// The thread's main function.
pub(super) fn run(config: IndexConfig, ops: &mpsc::Receiver<Op>, reader: OpenReader, opened: Reply<Lsn>) {
    if let Some(on_start) = &config.on_thread_start {
        on_start();
    }
    match Store::open(&config) {
        Ok(store) => {
            let applied = store.applied;
            let worker = Worker::new(config, store, reader);
            drop(opened.send(Ok(applied)));
            worker.serve(ops);
        }
        Err(error) => drop(opened.send(Err(error))),
    }
}

/// Whether the database can be used.
enum Database {
    Open(Box<Store>),
    /// Closed after a failure that may pass; the next checkpoint opens it again.
    Reopen,
    /// Closed after a failure that nothing is known about.
    Closed,
}

struct Worker {
    config: IndexConfig,
    /// What has been acknowledged.
    committed: Lsn,
    /// The checkpoint in progress.
    checkpoint: Option<u64>,
    database: Database,
    reader: OpenReader,
}

impl Drop for Worker {
    fn drop(&mut self) {
        *lock(&self.reader) = None;
    }
}

impl Worker {
    fn new(config: IndexConfig, opened: Opened, reader: OpenReader) -> Self {
        let Opened { store, applied } = opened;
        *lock(&reader) = Some(store.beside());
        let database = Database::Open(Box::new(store));
        Self { config, committed: applied, checkpoint: None, database, reader }
    }

    fn serve(mut self, ops: &mpsc::Receiver<Op>) {
        for op in ops {
            match op {
                Op::Get { space, key, reply } => {
                    let get = |store: &Store| Ok(store.get_many(space, &[key])?.pop().flatten());
                    drop(reply.send(self.read(get, "read")));
                }
                Op::Open { reply } => drop(reply.send(Ok(self.committed))),
                Op::Beside { space, keys, reply } => {
                    drop(reply.send(self.read(|store| store.get_many(space, &keys), "read")));
                }
                Op::Scan { space, after, bytes_max, reply } => {
                    let outcome = self.read(|store| store.scan(space, after.as_deref(), bytes_max), "scan");
                    drop(reply.send(outcome));
                }
                Op::History { ranges, reply } => {
                    drop(reply.send(self.read(|store| history(&store.beside(), &ranges), "read")));
                }
                Op::RemoveHistory { from, to, rows_max, reply } => {
                    let remove = |store: &Store| store.remove_history(&from, &to, rows_max);
                    drop(reply.send(self.read(remove, "remove from")));
                }
                Op::Begin { number } => {
                    self.checkpoint = Some(number);
                    if let Database::Open(store) = &mut self.database
                        && let Err(source) = store.begin()
                    {
                        let error = failed(&self.config, "write to", source);
                        tracing::error!(%error, "a checkpoint that was given up left a file");
                        self.close(Database::Reopen);
                    }
                }
                Op::Add { number, writes, reply } => {
                    let outcome = self.write(number, |store| store.add(writes), "write to");
                    drop(reply.send(outcome));
                }
                Op::Commit { number, applied, reply } => {
                    let outcome = self.write(number, |store| store.commit(applied), "commit to");
                    if outcome.is_ok() {
                        self.committed = applied;
                        self.checkpoint = None;
                    }
                    drop(reply.send(outcome));
                }
                Op::Shutdown { reply } => {
                    drop(self);
                    drop(reply.send(Ok(())));
                    return;
                }
            }
        }
    }

    fn closed(&self) -> IndexError {
        IndexError::Closed { shard: self.config.shard }
    }

    fn read<T>(
        &mut self,
        read: impl FnOnce(&Store) -> fjall::Result<T>,
        action: &'static str,
    ) -> Result<T, IndexError> {
        self.reopen()?;
        let Database::Open(store) = &self.database else { return Err(self.closed()) };
        read(store).map_err(|source| failed(&self.config, action, source))
    }

    /// A write that fails closes the database: what it holds in memory and on disk may differ.
    fn write(
        &mut self,
        checkpoint: u64,
        write: impl FnOnce(&mut Store) -> fjall::Result<()>,
        action: &'static str,
    ) -> Result<(), IndexError> {
        if self.checkpoint != Some(checkpoint) {
            return Err(IndexError::GivenUp { shard: self.config.shard });
        }
        if let Err(error) = self.reopen() {
            self.checkpoint = None;
            return Err(error);
        }
        let Database::Open(store) = &mut self.database else { return Err(self.closed()) };
        let Err(source) = write(store) else { return Ok(()) };
        let error = failed(&self.config, action, source);
        self.checkpoint = None;
        tracing::error!(%error, "index write failed");
        // fjall is poisoned by a failure in its background thread, too: what that wrote is still in its journal.
        // Anything else (a sync that failed) leaves nothing to rely on.
        let passing = match &error {
            IndexError::DiskFull { .. } => true,
            IndexError::Database { source, .. } => matches!(source, fjall::Error::Poisoned),
            _ => false,
        };
        self.close(if passing { Database::Reopen } else { Database::Closed });
        Err(error)
    }

    fn close(&mut self, database: Database) {
        *lock(&self.reader) = None;
        self.database = database;
    }

    fn reopen(&mut self) -> Result<(), IndexError> {
        if !matches!(self.database, Database::Reopen) {
            return Ok(());
        }
        let Opened { store, applied } = Store::open(&self.config)?;
        if applied < self.committed {
            self.database = Database::Closed;
            return Err(IndexError::WentBack {
                shard: self.config.shard,
                dir: self.config.dir.clone(),
                committed: self.committed,
                found: applied,
            });
        }
        *lock(&self.reader) = Some(store.beside());
        self.database = Database::Open(Box::new(store));
        Ok(())
    }
}

/// The error of a failed operation. A disk that is full shows in an operation itself, or in fjall's background thread
/// before it.
pub(super) fn failed(config: &IndexConfig, action: &'static str, source: fjall::Error) -> IndexError {
    let io_kind = match &source {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => Some(error.kind()),
        _ => None,
    };
    let shard = config.shard;
    let by_background = matches!(source, fjall::Error::Poisoned) && space::is_short(config);
    if io_kind == Some(std::io::ErrorKind::StorageFull) || by_background {
        return IndexError::DiskFull { shard };
    }
    if matches!(source, fjall::Error::Locked) {
        return IndexError::Locked { shard, dir: config.dir.clone() };
    }
    IndexError::Database { shard, action, dir: config.dir.clone(), source }
}

#[cfg(test)]
mod tests {
    use std::io;

    use flowmesh_model::ShardId;

    use super::*;

    fn worker(dir: &std::path::Path) -> Worker {
        let config = IndexConfig::new(dir, ShardId(0));
        let opened = Store::open(&config).unwrap();
        Worker::new(config, opened, OpenReader::default())
    }

    /// A checkpoint of one key, all of it.
    fn write(worker: &mut Worker, number: u64, key: &'static str) -> Result<(), IndexError> {
        worker.checkpoint = Some(number);
        let write =
            IndexWrite { space: Space::Keys, key: key.into(), value: Some(Bytes::from_static(b"value")) };
        worker.write(number, |store| store.add(vec![write]), "write to")?;
        worker.write(number, |store| store.commit(Lsn(number)), "commit to")?;
        worker.committed = Lsn(number);
        Ok(())
    }

    fn has(worker: &mut Worker, key: &'static str) -> bool {
        worker.read(|store| store.get_many(Space::Keys, &[key.into()]), "read").unwrap() != [None]
    }

    fn full() -> fjall::Error {
        io::Error::from(io::ErrorKind::StorageFull).into()
    }

    #[test]
    fn after_a_full_disk_the_next_checkpoint_opens_the_database_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut worker = worker(dir.path());
        write(&mut worker, 1, "a").unwrap();
        for (number, failure) in [(2, full()), (4, fjall::Error::Poisoned)] {
            worker.checkpoint = Some(number);
            let failed = worker.write(number, |_| Err(failure), "write to").unwrap_err();
            // The disk of the tests has space, so what fjall does not explain is not taken for a full disk.
            assert_eq!(failed.is_disk_full(), number == 2, "{failed}");
            assert!(matches!(worker.database, Database::Reopen));
            let given_up = worker.write(number, |_| Ok(()), "commit to").unwrap_err();
            assert!(matches!(given_up, IndexError::GivenUp { .. }), "{given_up}");
            write(&mut worker, number + 1, "b").unwrap();
            assert!(has(&mut worker, "a") && has(&mut worker, "b"));
        }
    }

    #[test]
    fn a_disk_without_space_for_the_background_thread_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = IndexConfig::new(dir.path(), ShardId(0));
        std::fs::create_dir_all(&config.dir).unwrap();
        assert!(!failed(&config, "commit to", fjall::Error::Poisoned).is_disk_full());
        config.journal_bytes_max = u64::MAX / 2;
        assert!(failed(&config, "commit to", fjall::Error::Poisoned).is_disk_full());
        assert!(!failed(&config, "commit to", fjall::Error::Unrecoverable).is_disk_full());
    }

    #[test]
    fn a_database_that_lost_what_was_committed_stays_closed() {
        let dir = tempfile::tempdir().unwrap();
        let mut worker = worker(dir.path());
        write(&mut worker, 1, "a").unwrap();
        worker.committed = Lsn(9);
        worker.checkpoint = Some(2);
        worker.write(2, |_| Err(full()), "write to").unwrap_err();
        let went_back = write(&mut worker, 3, "b").unwrap_err();
        assert!(
            matches!(went_back, IndexError::WentBack { committed: Lsn(9), found: Lsn(1), .. }),
            "{went_back}"
        );
        assert!(matches!(write(&mut worker, 4, "b"), Err(IndexError::Closed { .. })));
    }

    #[test]
    fn any_other_failure_closes_the_database_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let mut worker = worker(dir.path());
        worker.checkpoint = Some(1);
        let failed = worker.write(1, |_| Err(io::Error::other("a bad sector").into()), "write to");
        assert!(matches!(failed, Err(IndexError::Database { .. })));
        assert!(matches!(write(&mut worker, 2, "a"), Err(IndexError::Closed { .. })));
    }
}

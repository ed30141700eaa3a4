//! The index: where a checkpoint puts what is not in stream segments, so that a restart need not read the whole log.
//!
//! One fjall database per shard, owned by one storage thread, because its writes can block for 100 ms. This file is the
//! core's side: each call goes over a channel, its future completes on the core's executor. [`worker`] is the thread,
//! [`store`] what it does to fjall, and the keys and values it keeps there, [`stage`] where a large checkpoint waits,
//! [`shelf`] the files of bodies beside it, [`space`] whether the disk is full.
//!
//! ```text
//!   core                                 storage thread
//!   index.checkpoint()  add* ──────────► gathers; beyond `batch_bytes_max` writes to the stage, invisible
//!                       commit(lsn) ───► all of it and the LSN become visible and durable, atomically
//!   index.scan_all ◄──── chunks ──────── at start
//! ```
//!
//! A simulation serves what is asked itself ([`Server`]), in the same order.
//!
//! The index is never the authority: it can be thrown away if the log still reaches back to LSN 1, and what it says it
//! holds (`applied`) is compared with the log at every start.

mod shelf;
mod space;
mod stage;
mod store;
mod worker;

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use bytes::Bytes;
use flowmesh_model::codec::Malformed;
use flowmesh_model::{IndexWrite, Lsn, ShardId, Space};
use futures::channel::oneshot;
use thiserror::Error;

use worker::{OpenReader, Read};

pub use worker::Op;

/// Settings of one shard's index.
#[derive(Clone)]
pub struct IndexConfig {
    /// Where it is: `index` in the shard's directory.
    pub dir: PathBuf,
    /// Whose it is.
    pub shard: ShardId,
    /// Memory for blocks that were read.
    pub cache_bytes: u64,
    /// Memory for what was written last, for each [`Space`].
    pub memtable_bytes: u64,
    /// fjall's journal on disk at most, at least 64 MiB.
    pub journal_bytes_max: u64,
    /// A checkpoint up to this size is one fjall batch; a larger one is written to a file first (see [`store`]).
    pub batch_bytes_max: usize,
    /// Runs first on the storage thread: moves it off the core of the shard that made it.
    pub on_thread_start: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl IndexConfig {
    /// The defaults for a shard with this directory.
    pub fn new(shard_dir: &Path, shard: ShardId) -> Self {
        Self {
            dir: shard_dir.join("index"),
            shard,
            cache_bytes: 4 * 1024 * 1024,
            memtable_bytes: 8 * 1024 * 1024,
            journal_bytes_max: 64 * 1024 * 1024,
            batch_bytes_max: 8 * 1024 * 1024,
            on_thread_start: None,
        }
    }
}

/// An index that cannot be opened, read or written.
#[derive(Debug, Error)]
pub enum IndexError {
    /// No space on the disk. The next commit tries again with a newly opened database.
    #[error("shard {shard}: no space on the disk for the index")]
    DiskFull {
        /// Whose index.
        shard: ShardId,
    },
    /// The database said no.
    #[error("shard {shard}: cannot {action} the index in {}: {source}", .dir.display())]
    Database {
        /// Whose index.
        shard: ShardId,
        /// What was tried.
        action: &'static str,
        /// Where.
        dir: PathBuf,
        /// Why not.
        source: fjall::Error,
    },
    /// Another process has the database open.
    #[error("shard {shard}: the index in {} is in use by another process", .dir.display())]
    Locked {
        /// Whose index.
        shard: ShardId,
        /// Where.
        dir: PathBuf,
    },
    /// The index of another shard.
    #[error(
        "shard {shard}: the index in {} belongs to shard {found}. Put each shard's files back into its own directory",
        .dir.display()
    )]
    WrongShard {
        /// Whose index is being opened.
        shard: ShardId,
        /// Where.
        dir: PathBuf,
        /// Whose it is.
        found: ShardId,
    },
    /// Written by a newer server.
    #[error(
        "shard {shard}: the index in {} has format version {version}, this server knows up to {known}. Start the newer \
         server again",
        .dir.display()
    )]
    NewerFormat {
        /// Whose index.
        shard: ShardId,
        /// Where.
        dir: PathBuf,
        /// Its version.
        version: u32,
        /// The newest known one.
        known: u32,
    },
    /// Something in it cannot be understood.
    #[error("shard {shard}: an entry of the index in {} cannot be read: {reason}", .dir.display())]
    Undecodable {
        /// Whose index.
        shard: ShardId,
        /// Where.
        dir: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// The database lost something that was durable.
    #[error(
        "shard {shard}: the index in {} went back to LSN {found} from {committed}: its files were changed or the disk \
         loses writes. Restart the server after checking the disk",
        .dir.display()
    )]
    WentBack {
        /// Whose index.
        shard: ShardId,
        /// Where.
        dir: PathBuf,
        /// What had been committed.
        committed: Lsn,
        /// What was found.
        found: Lsn,
    },
    /// An earlier change of this checkpoint failed, or a later checkpoint was begun: nothing of it stays.
    #[error("shard {shard}: the checkpoint was given up before; begin another one")]
    GivenUp {
        /// Whose index.
        shard: ShardId,
    },
    /// An earlier failure closed the index for good; reads of the shard's memory and its log go on.
    #[error(
        "shard {shard}: the index is closed after an earlier failure; restart the server after checking the disk"
    )]
    Closed {
        /// Whose index.
        shard: ShardId,
    },
}

impl IndexError {
    /// Whether there was no space on the disk.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::DiskFull { .. })
    }
}

/// Keys and values, in key order. They share one piece of memory: detach what is kept for long.
pub type Chunk = Vec<(Bytes, Bytes)>;

/// Rows of a history that are read at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryRange {
    /// From this key on.
    pub from: Bytes,
    /// Before this one.
    pub to: Bytes,
    /// At most so many.
    pub rows_max: usize,
    /// Until they have so many bytes, but at least one row.
    pub bytes_max: usize,
}

/// Bytes of keys and values a scan fetches at once.
const SCAN_BYTES: usize = 1024 * 1024;

/// One shard's index. Cheap to clone; the last one dropped, or [`Index::shutdown`], ends the storage thread.
#[derive(Clone)]
pub struct Index {
    way: Way,
    checkpoints: Arc<AtomicU64>,
    shard: ShardId,
    dir: Arc<Path>,
}

/// Serves an index instead of a database and its threads.
///
/// Operations are carried out one after the other, in the order they are asked for; only [`Op::Bodies`] overtakes others. What is
/// committed is one change; if the server ends in between it happened or it did not.
pub trait Server {
    /// Takes an operation. Dropped without an answer, it says that the index is closed.
    fn ask(&self, op: Op);
}

/// How operations get where they are carried out.
#[derive(Clone)]
enum Way {
    Threads { ops: mpsc::Sender<Op>, reads: mpsc::Sender<Read> },
    Server(Rc<dyn Server>),
}

impl Way {
    /// If a thread is gone the reply is dropped with the operation, and that is the answer.
    fn send(&self, op: Op) {
        match self {
            Self::Threads { ops, .. } => drop(ops.send(op)),
            Self::Server(server) => server.ask(op),
        }
    }
}

impl Index {
    /// Opens the index that a server has; also says up to which LSN it holds everything (0 if new).
    pub async fn open_at(config: &IndexConfig, server: Rc<dyn Server>) -> Result<(Self, Lsn), IndexError> {
        let dir = Arc::from(config.dir.as_path());
        let index = Self { way: Way::Server(server), checkpoints: Arc::default(), shard: config.shard, dir };
        let applied = index.ask(|reply| Op::Open { reply }).await?;
        Ok((index, applied))
    }

    /// Opens the index or makes a new one; also says up to which LSN it holds everything (0 if new). Finishes a
    /// checkpoint that was committed and not yet wholly moved to its place.
    pub async fn open(config: IndexConfig) -> Result<(Self, Lsn), IndexError> {
        let (shard, dir) = (config.shard, Arc::from(config.dir.as_path()));
        let (ops, inbox) = mpsc::channel();
        let (reads, reads_inbox) = mpsc::channel();
        let (opened, outcome) = oneshot::channel();
        let open = OpenReader::default();
        let (reader, ops_of_reads, open_reader) = (config.clone(), ops.clone(), Arc::clone(&open));
        let thread = |name: &str| std::thread::Builder::new().name(format!("{name}-{shard}"));
        let started =
            thread("index").spawn(move || worker::run(config, &inbox, open, opened)).and_then(|_| {
                thread("reads").spawn(move || {
                    worker::run_reads(&reader, &reads_inbox, &open_reader, &ops_of_reads);
                })
            });
        let index = Self { way: Way::Threads { ops, reads }, checkpoints: Arc::default(), shard, dir };
        if let Err(error) = started {
            return Err(index.failed("start a thread of", error.into()));
        }
        let applied = outcome.await.unwrap_or_else(|_| Err(index.closed()))?;
        Ok((index, applied))
    }

    /// Starts a checkpoint. A checkpoint that is dropped before its commit leaves no trace; a new one ends the one
    /// before.
    pub fn checkpoint(&self) -> Checkpoint {
        // Told to the thread first of all, so that nothing of an abandoned checkpoint gets into this one.
        let number = self.checkpoints.fetch_add(1, Ordering::Relaxed);
        self.way.send(Op::Begin { number });
        Checkpoint { index: self.clone(), number }
    }

    /// A checkpoint in one call: everything in it and `applied` become visible and durable together, or nothing.
    pub async fn commit(&self, writes: Vec<IndexWrite>, applied: Lsn) -> Result<(), IndexError> {
        let checkpoint = self.checkpoint();
        checkpoint.add(writes).await?;
        checkpoint.commit(applied).await
    }

    /// The value of a key.
    pub async fn get(&self, space: Space, key: Bytes) -> Result<Option<Bytes>, IndexError> {
        self.ask(|reply| Op::Get { space, key, reply }).await
    }

    /// The bodies of jobs ([`Space::Bodies`]) as the last checkpoint has them, in the order of the keys. Waits for no
    /// checkpoint.
    pub async fn bodies(&self, keys: Vec<Bytes>) -> Result<Vec<Option<Bytes>>, IndexError> {
        self.beside(Space::Bodies, keys).await
    }

    /// The values of keys that no checkpoint in the making changes, in their order: as the last one has them. Of a key that is
    /// changed, what it was or what it becomes. Waits for no checkpoint.
    pub async fn beside(&self, space: Space, keys: Vec<Bytes>) -> Result<Vec<Option<Bytes>>, IndexError> {
        let (reply, answer) = oneshot::channel();
        match &self.way {
            Way::Threads { reads, .. } => drop(reads.send(Read::Keys { space, keys, reply })),
            Way::Server(server) => server.ask(Op::Beside { space, keys, reply }),
        }
        answer.await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// Rows of histories ([`Space::History`]), for each range those that there are and whether that is all; of many ranges some may
    /// come back without any, to be asked for again. Waits for no
    /// checkpoint; of one that is being made it may have a part.
    pub async fn history(&self, ranges: Vec<HistoryRange>) -> Result<Vec<(Chunk, bool)>, IndexError> {
        let (reply, answer) = oneshot::channel();
        match &self.way {
            Way::Threads { reads, .. } => drop(reads.send(Read::History { ranges, reply })),
            Way::Server(server) => server.ask(Op::History { ranges, reply }),
        }
        answer.await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// Removes rows of histories from a key on and before another, beside checkpoints and some at a time. A crash may bring
    /// them back.
    pub async fn remove_history(&self, from: Bytes, to: Bytes) -> Result<(), IndexError> {
        const ROWS_AT_ONCE: usize = 4096;
        loop {
            let (from, to) = (from.clone(), to.clone());
            let rows_max = ROWS_AT_ONCE;
            if self.ask(|reply| Op::RemoveHistory { from, to, rows_max, reply }).await? {
                return Ok(());
            }
        }
    }

    /// All entries of a space in key order, a chunk at a time.
    pub fn scan(&self, space: Space) -> Scan {
        let mut scan = Scan { index: self.clone(), space, fetching: None };
        scan.fetch(None);
        scan
    }

    /// All entries of a space in key order.
    pub async fn scan_all(
        &self,
        space: Space,
        mut sink: impl FnMut(Bytes, Bytes) -> Result<(), Malformed>,
    ) -> Result<(), IndexError> {
        let mut scan = self.scan(space);
        while let Some(chunk) = scan.next().await? {
            for (key, value) in chunk {
                sink(key, value).map_err(|malformed| self.undecodable(malformed))?;
            }
        }
        Ok(())
    }

    /// Closes the database and ends the thread.
    pub async fn shutdown(self) -> Result<(), IndexError> {
        self.ask(|reply| Op::Shutdown { reply }).await
    }

    fn send<T>(
        &self,
        op: impl FnOnce(oneshot::Sender<Result<T, IndexError>>) -> Op,
    ) -> oneshot::Receiver<Result<T, IndexError>> {
        let (reply, answer) = oneshot::channel();
        self.way.send(op(reply));
        answer
    }

    async fn ask<T>(
        &self,
        op: impl FnOnce(oneshot::Sender<Result<T, IndexError>>) -> Op,
    ) -> Result<T, IndexError> {
        self.send(op).await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// Something in it cannot be understood.
    #[must_use]
    pub fn undecodable(&self, Malformed(reason): Malformed) -> IndexError {
        IndexError::Undecodable { shard: self.shard, dir: self.dir.to_path_buf(), reason }
    }

    fn closed(&self) -> IndexError {
        IndexError::Closed { shard: self.shard }
    }

    fn failed(&self, action: &'static str, source: fjall::Error) -> IndexError {
        IndexError::Database { shard: self.shard, action, dir: self.dir.to_path_buf(), source }
    }
}

/// A walk through a space. The next chunk is fetched while the caller works on one.
pub struct Scan {
    index: Index,
    space: Space,
    fetching: Option<oneshot::Receiver<Result<Chunk, IndexError>>>,
}

impl Scan {
    /// The next entries, about a MiB of them; `None` at the end, or after an error.
    pub async fn next(&mut self) -> Result<Option<Chunk>, IndexError> {
        let Some(fetching) = self.fetching.take() else { return Ok(None) };
        let chunk = fetching.await.unwrap_or_else(|_| Err(self.index.closed()))?;
        let Some((last, _)) = chunk.last() else { return Ok(None) };
        self.fetch(Some(last.clone()));
        Ok(Some(chunk))
    }

    fn fetch(&mut self, after: Option<Bytes>) {
        let space = self.space;
        let scan = self.index.send(|reply| Op::Scan { space, after, bytes_max: SCAN_BYTES, reply });
        self.fetching = Some(scan);
    }
}

/// Changes of the index that become visible together.
#[must_use = "nothing of a checkpoint stays unless it is committed"]
pub struct Checkpoint {
    index: Index,
    number: u64,
}

impl Checkpoint {
    /// Adds changes, in order: the last one of a key counts; but a body of a job is set by one checkpoint at most, once, and
    /// removed by a later one. Send a few MiB at a time and wait: memory is bounded by
    /// that and `batch_bytes_max`.
    pub async fn add(&self, writes: Vec<IndexWrite>) -> Result<(), IndexError> {
        self.index.ask(|reply| Op::Add { number: self.number, writes, reply }).await
    }

    /// Makes everything that was added, and `applied`, visible and durable. On an error none of it is visible, and all
    /// of it must be added again to another checkpoint (it may come to light at the next opening nevertheless).
    pub async fn commit(self, applied: Lsn) -> Result<(), IndexError> {
        self.index.ask(|reply| Op::Commit { number: self.number, applied, reply }).await
    }
}

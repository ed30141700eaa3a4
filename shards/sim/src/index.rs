//! Indexes of shards: what fjall and its threads are on a real machine, without either.
//!
//! Operations take their time, as those of files do, one after the other; reads of bodies overtake them. A commit happens as
//! a whole, or, if power fails first, not at all.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::task::{Poll, Waker};

use bytes::Bytes;
use flowmesh_model::{IndexWrite, Lsn, ShardId, Space};
use flowmesh_store::index::{Chunk, HistoryRange, IndexConfig, IndexError, Op, Server};

use crate::disk::{Operation, World, polls};

/// What is committed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Database {
    entries: BTreeMap<(u8, Bytes), Bytes>,
    applied: Lsn,
}

impl Database {
    fn scan(&self, space: Space, after: Option<&Bytes>, bytes_max: usize) -> Chunk {
        let from = (space as u8, after.cloned().unwrap_or_default());
        let behind = self.entries.range(from.clone()..).filter(|(at, _)| after.is_none() || **at != from);
        let mut bytes = 0;
        let entries = behind.take_while(|((of, _), _)| *of == space as u8).take_while(|((_, key), value)| {
            let fits = bytes == 0 || bytes + key.len() + value.len() <= bytes_max;
            bytes += key.len() + value.len();
            fits
        });
        entries.map(|((_, key), value)| (key.clone(), value.clone())).collect()
    }

    fn history(&self, range: &HistoryRange) -> (Chunk, bool) {
        let key = |key: &Bytes| (Space::History as u8, key.clone());
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for ((_, key), value) in self.entries.range(key(&range.from)..key(&range.to)) {
            if rows.len() == range.rows_max || bytes >= range.bytes_max {
                return (rows, false);
            }
            bytes += key.len() + value.len();
            rows.push((key.clone(), value.clone()));
        }
        (rows, true)
    }

    fn get(&self, space: Space, key: Bytes) -> Option<Bytes> {
        self.entries.get(&(space as u8, key)).cloned()
    }

    fn commit(&mut self, writes: Vec<IndexWrite>, applied: Lsn) {
        for IndexWrite { space, key, value } in writes {
            match value {
                Some(value) => drop(self.entries.insert((space as u8, key), value)),
                None => drop(self.entries.remove(&(space as u8, key))),
            }
        }
        self.applied = applied;
    }
}

/// A checkpoint in the making.
#[derive(Default)]
struct Pending {
    number: Option<u64>,
    writes: Vec<IndexWrite>,
}

/// What is asked of indexes, in order.
#[derive(Default)]
pub(crate) struct Requests {
    queue: VecDeque<(Rc<SimIndex>, Op)>,
    waker: Option<Waker>,
}

/// One shard's index.
pub(crate) struct SimIndex {
    world: Rc<RefCell<World>>,
    dir: PathBuf,
    shard: ShardId,
    pending: RefCell<Pending>,
}

impl SimIndex {
    pub fn new(world: Rc<RefCell<World>>, config: &IndexConfig) -> Self {
        Self { world, dir: config.dir.clone(), shard: config.shard, pending: RefCell::default() }
    }

    fn database<T>(&self, with: impl FnOnce(&mut Database) -> T) -> T {
        with(self.world.borrow_mut().indexes.entry(self.dir.clone()).or_default())
    }

    /// Carries out an operation. An error that is not named leaves it without an answer: the index is closed.
    async fn serve(&self, op: Op) {
        let fate = self.world.borrow_mut().begin(Operation::Index);
        polls(fate.polls).await;
        let is_full = fate.error.as_ref().is_some_and(|error| error.kind() == io::ErrorKind::StorageFull);
        if !fate.takes_effect && !is_full {
            return;
        }
        match op {
            Op::Open { reply } => drop(reply.send(Ok(self.database(|database| database.applied)))),
            Op::Get { space, key, reply } => {
                drop(reply.send(Ok(self.database(|database| database.get(space, key)))));
            }
            Op::Beside { space, keys, reply } => {
                let get =
                    |database: &mut Database| keys.into_iter().map(|key| database.get(space, key)).collect();
                drop(reply.send(Ok(self.database(get))));
            }
            Op::Scan { space, after, bytes_max, reply } => {
                let scan = |database: &mut Database| database.scan(space, after.as_ref(), bytes_max);
                drop(reply.send(Ok(self.database(scan))));
            }
            Op::History { ranges, reply } => {
                let rows =
                    |database: &mut Database| ranges.iter().map(|range| database.history(range)).collect();
                drop(reply.send(Ok(self.database(rows))));
            }
            Op::RemoveHistory { from, to, rows_max, reply } => {
                let range = HistoryRange { from, to, rows_max, bytes_max: usize::MAX };
                let remove = |database: &mut Database| {
                    let (rows, is_all) = database.history(&range);
                    for (key, _) in rows {
                        database.entries.remove(&(Space::History as u8, key));
                    }
                    is_all
                };
                drop(reply.send(Ok(self.database(remove))));
            }
            Op::Begin { number } => {
                *self.pending.borrow_mut() = Pending { number: Some(number), writes: Vec::new() };
            }
            Op::Add { number, writes, reply } => {
                let outcome = self.write(number, is_full);
                if outcome.is_ok() {
                    self.pending.borrow_mut().writes.extend(writes);
                }
                drop(reply.send(outcome));
            }
            Op::Commit { number, applied, reply } => {
                let outcome = self.write(number, is_full);
                if outcome.is_ok() {
                    let writes = std::mem::take(&mut *self.pending.borrow_mut()).writes;
                    self.database(|database| database.commit(writes, applied));
                }
                // Power may fail before anybody hears of it.
                if fate.error.is_none() || is_full {
                    drop(reply.send(outcome));
                }
            }
            Op::Shutdown { reply } => drop(reply.send(Ok(()))),
        }
    }

    fn write(&self, number: u64, is_full: bool) -> Result<(), IndexError> {
        let mut pending = self.pending.borrow_mut();
        if pending.number != Some(number) {
            return Err(IndexError::GivenUp { shard: self.shard });
        }
        if is_full {
            *pending = Pending::default();
            return Err(IndexError::DiskFull { shard: self.shard });
        }
        Ok(())
    }
}

/// What a shard asks with.
pub(crate) struct Client(pub Rc<SimIndex>);

impl Server for Client {
    fn ask(&self, op: Op) {
        let requests = &mut self.0.world.borrow_mut().requests;
        let request = (Rc::clone(&self.0), op);
        match &request.1 {
            Op::Beside { .. } | Op::History { .. } => requests.queue.push_front(request),
            _ => requests.queue.push_back(request),
        }
        if let Some(waker) = requests.waker.take() {
            waker.wake();
        }
    }
}

/// Serves all indexes of a world, until it is dropped.
pub(crate) async fn serve(world: Rc<RefCell<World>>) {
    loop {
        let (index, op) = poll_fn(|context| {
            let requests = &mut world.borrow_mut().requests;
            if let Some(request) = requests.queue.pop_front() {
                return Poll::Ready(request);
            }
            requests.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
        index.serve(op).await;
    }
}

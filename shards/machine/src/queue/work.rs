//! What became of the jobs that were reserved under each name.

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, put_varint};
use flowmesh_model::job::AttemptEnd;
use flowmesh_model::limits::QUEUE_WORKERS_MAX;
use flowmesh_model::worker::WorkCounts;
use flowmesh_model::{Millis, Space};

use super::names::Names;
use crate::changes::Seals;
use crate::held::Apply;
use crate::items::{Indexed, Item, Items, Key, item_bytes};
use crate::keys::{self, Home};

/// What a name takes in memory beside its bytes.
const NAME_BYTES: u64 = item_bytes::<WorkerName, WorkCounts>();

/// So many names go at once when there are too many, so that each new one costs little.
const FORGOTTEN_AT_ONCE: usize = QUEUE_WORKERS_MAX / 8;

/// The name that jobs are reserved with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WorkerName(Bytes);

impl Key for WorkerName {
    type Home = Home;

    const SPACE: Space = Space::Jobs;

    fn in_index(&self, home: &Home) -> Bytes {
        home.work_counts_key(&self.0)
    }
}

impl Item for WorkCounts {
    /// The counts in the index.
    ///
    /// | field | size |
    /// |---|---|
    /// | format | 1 |
    /// | acked, failed, lost, last seen (ms) | varint each |
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(41);
        out.put_u8(keys::FORMAT);
        for number in [self.acked, self.failed, self.lost, self.last_seen.0] {
            put_varint(&mut out, number);
        }
        out.freeze()
    }
}

/// Counts by name.
#[derive(Debug, Default)]
pub(super) struct Work {
    by_name: Items<WorkerName, WorkCounts>,
    memory_bytes: u64,
}

impl Work {
    /// An estimate of what it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// What became of the jobs of a name.
    pub fn counts(&self, name: &Bytes) -> WorkCounts {
        self.by_name.get(&WorkerName(name.clone())).copied().unwrap_or_default()
    }

    /// A lease ended, of a name that is not empty. Names that are in `used` have others.
    pub fn ended(&mut self, cx: &mut Apply<'_>, used: &Names, name: Bytes, end: AttemptEnd) {
        let (key, now, mut new) = (WorkerName(name), cx.at.time, false);
        let make = || {
            new = true;
            WorkCounts::default()
        };
        self.by_name.change(cx.home, cx.seals, &key, make, |counts| {
            counts.last_seen = now;
            match end {
                AttemptEnd::Acked => counts.acked += 1,
                AttemptEnd::Nacked | AttemptEnd::Final => counts.failed += 1,
                AttemptEnd::Expired | AttemptEnd::Quarantined => counts.lost += 1,
                AttemptEnd::Released => {}
            }
        });
        if new {
            self.memory_bytes += NAME_BYTES + key.0.len() as u64;
            if self.by_name.len() > QUEUE_WORKERS_MAX {
                self.forget_oldest(cx, used);
            }
        }
    }

    /// Forgets names that were idle for longest; those that have jobs come last.
    fn forget_oldest(&mut self, cx: &mut Apply<'_>, used: &Names) {
        let all = self.by_name.iter();
        let mut oldest: Vec<(bool, Millis, WorkerName)> = all
            .map(|(name, counts)| (used.number(&name.0).is_some(), counts.last_seen, name.clone()))
            .collect();
        oldest.sort_unstable();
        for (_, _, name) in oldest.into_iter().take(FORGOTTEN_AT_ONCE) {
            if self.by_name.remove(cx.home, cx.seals, &name).is_some() {
                self.memory_bytes -= NAME_BYTES + name.0.len() as u64;
            }
        }
    }

    /// Takes a name's counts out of the index.
    pub fn restore(&mut self, name: &[u8], value: Bytes) -> Result<(), Malformed> {
        let mut reader = keys::open(value)?;
        let counts = WorkCounts {
            acked: reader.varint()?,
            failed: reader.varint()?,
            lost: reader.varint()?,
            last_seen: Millis(reader.varint()?),
        };
        keys::close(&reader)?;
        self.memory_bytes += NAME_BYTES + name.len() as u64;
        let new = self.by_name.restore(WorkerName(Bytes::copy_from_slice(name)), counts);
        if new { Ok(()) } else { Err(Malformed("the same worker twice")) }
    }

    /// What checkpoints take of it.
    pub fn indexed(&mut self) -> &mut dyn Indexed<Home> {
        &mut self.by_name
    }

    /// All names, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, &WorkCounts)> {
        self.by_name.iter().map(|(name, counts)| (&name.0, counts))
    }

    /// Checks every invariant, for a queue that has had so many jobs done.
    pub fn check(&self, done_total: u64, seals: &Seals) {
        self.by_name.check(seals);
        assert!(self.by_name.len() <= QUEUE_WORKERS_MAX);
        assert!(self.iter().map(|(_, counts)| counts.acked).sum::<u64>() <= done_total);
        let memory_bytes: u64 = self.iter().map(|(name, _)| NAME_BYTES + name.len() as u64).sum();
        assert_eq!(self.memory_bytes, memory_bytes);
    }
}

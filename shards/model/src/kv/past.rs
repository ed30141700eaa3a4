//! What can be asked of a store as it was, if it keeps a history.
//!
//! A time shows what the entries up to it made true, and what had not ended then. A version is an entry's place in the log
//! of one shard: it shows what that entry and those before it made true, whether or not it had ended.

use bytes::Bytes;

use super::KvOp;
use super::change::ChangeItem;
use crate::Batch;
use crate::command::KeyScan;
use crate::ids::{Lsn, Millis};
use crate::reply::EntryValue;

/// When.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PastAt {
    /// At the end of this millisecond.
    Time(Millis),
    /// After this entry of the shard's log.
    Version(Lsn),
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PastAsk {
    /// Values and versions. → [`crate::Reply::Values`]
    Get {
        /// When.
        at: PastAt,
        /// The keys, at least one.
        keys: Batch<Bytes>,
    },
    /// Operations that change nothing. → [`crate::Reply::Kv`]
    Run {
        /// When.
        at: PastAt,
        /// At least one.
        ops: Batch<KvOp>,
        /// What chance is drawn from.
        seed: u64,
    },
    /// Keys in byte order. → [`crate::Reply::Scanned`]
    Scan {
        /// When.
        at: PastAt,
        /// Which, and how they are shown; not from the last to the first.
        scan: KeyScan,
    },
    /// What a key held, as far back as is kept, the oldest first. → [`crate::Reply::KvVersions`]
    Versions {
        /// The key.
        key: Bytes,
        /// Only versions behind this one.
        after: Lsn,
        /// At most so many, at least 1.
        limit: u32,
    },
    /// Keys that held something else. → [`crate::Reply::KvDiff`]
    Diff {
        /// Then.
        from: PastAt,
        /// And later.
        to: PastAt,
        /// Which keys, and with their values or without.
        scan: KeyScan,
    },
}

/// What a key held from an entry on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyVersion {
    /// The entry.
    pub version: Lsn,
    /// Its time; `None` of what was there when the history begins.
    pub at: Option<Millis>,
    /// What the key held, of a collection without its items; nothing if it was gone.
    pub value: Option<EntryValue>,
}

/// A key that held something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyDiff {
    /// Which.
    pub key: Bytes,
    /// Then; nothing if it was not there.
    pub before: Option<EntryValue>,
    /// Later; nothing if it was not there.
    pub after: Option<EntryValue>,
    /// Of a collection of the same type: what of it is another.
    pub items: Vec<ItemDiff>,
    /// There are more.
    pub more: bool,
}

/// An item of a collection that is another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ItemDiff {
    /// Of a list: where, then or, of what is only there later, later.
    pub index: Option<u64>,
    /// Then; nothing if it was not there.
    pub before: Option<ChangeItem>,
    /// Later; nothing if it was not there.
    pub after: Option<ChangeItem>,
}

impl ItemDiff {
    /// What it takes in a message, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        16 + self.before.iter().chain(&self.after).map(ChangeItem::bytes).sum::<usize>()
    }
}

impl KeyDiff {
    /// What it takes in a message, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let values = self.before.iter().chain(&self.after).map(|value| value.value.len() + 32).sum::<usize>();
        self.key.len() + values + self.items.iter().map(ItemDiff::bytes).sum::<usize>()
    }
}

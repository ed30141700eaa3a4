//! Key-value stores: entries by key, and two orders over the keys.
//!
//! [`table`] finds an entry by its key's hash, [`decide`] is what can be asked of single keys and [`scan`] of ranges,
//! [`apply`] how facts change a store, [`index`] its part of checkpoints.
//!
//! | structure | by | for |
//! |---|---|---|
//! | `table` | keyed hash | everything that names a key |
//! | `ordered` | key | scans |
//! | `expiry` | moment, then arrival | ticks |
//!
//! An entry whose time is up is not there for any command, whether or not a tick has removed it. Key bytes exist once
//! and are shared by all three.

mod apply;
mod batch;
mod check;
pub(crate) mod decide;
mod index;
mod scan;
mod table;
#[cfg_attr(not(test), expect(dead_code, unused_imports, reason = "what is made of trees comes next"))]
pub(crate) mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use flowmesh_model::{Fact, Lsn, Millis, ResourceId};

use crate::changes::{Changes, Mark};
use crate::siphash::SipKey;
use table::Table;

/// A key, shared by the structures that need it.
pub(crate) type Key = Arc<[u8]>;

/// What an entry takes in memory besides key and value: itself, its place in the table and in the order of keys, the
/// counters of both shared pieces of memory, and what the allocator adds.
const ENTRY_BYTES: u64 = (size_of::<Entry>() + 24 + 24 + 16 + 24 + 32) as u64;

/// What a place in the order of expiry takes.
const EXPIRY_BYTES: u64 = 48;

/// One entry.
#[derive(Debug)]
pub(crate) struct Entry {
    pub key: Key,
    pub value: Bytes,
    /// The log entry that set it.
    pub version: Lsn,
    /// When it is no longer there; `Millis(0)` if never.
    expires_at: Millis,
    /// Its place among those that end at the same moment: comparing numbers is cheaper than following keys.
    expiry_number: u64,
    pub mark: Mark,
}

impl Entry {
    /// When it is no longer there, if ever.
    pub fn expires_at(&self) -> Option<Millis> {
        (self.expires_at.0 != 0).then_some(self.expires_at)
    }

    /// Whether it is there at `now`.
    #[inline]
    pub fn is_live(&self, now: Millis) -> bool {
        self.expires_at.0 == 0 || self.expires_at > now
    }

    fn memory_bytes(&self) -> u64 {
        let expiry = if self.expires_at.0 == 0 { 0 } else { EXPIRY_BYTES };
        ENTRY_BYTES + expiry + (self.key.len() + self.value.len()) as u64
    }
}

/// The keys of one store that this shard holds.
#[derive(Debug)]
pub(crate) struct Store {
    sip: SipKey,
    table: Table,
    ordered: BTreeSet<Key>,
    expiry: BTreeMap<(Millis, u64), Key>,
    /// The last number given out in `expiry`. Not part of the state.
    expiry_number: u64,
    /// The entry that removed a key last.
    last_removal: Lsn,
    changes: Changes<Key>,
    memory_bytes: u64,
}

impl Store {
    pub fn new(sip: SipKey) -> Self {
        Self {
            sip,
            table: Table::default(),
            ordered: BTreeSet::new(),
            expiry: BTreeMap::new(),
            expiry_number: 0,
            last_removal: Lsn(0),
            changes: Changes::default(),
            memory_bytes: 0,
        }
    }

    /// The entry of a key, if it is held, live or not.
    #[inline]
    fn entry(&self, key: &[u8]) -> Option<&Entry> {
        self.table.find(self.sip.hash(key), key)
    }

    /// How many keys it holds.
    pub fn len(&self) -> usize {
        self.ordered.len()
    }

    /// An estimate of what it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// When something is due next.
    #[inline]
    pub fn next_due(&self) -> Option<Millis> {
        self.expiry.first_key_value().map(|((at, _), _)| *at)
    }

    /// Appends the removal of keys whose time is up.
    pub fn expire(&self, store: ResourceId, now: Millis, facts_max: usize, facts: &mut Vec<Fact>) {
        let over = self.expiry.iter().take_while(|((at, _), _)| *at <= now).take(facts_max);
        facts.extend(over.map(|(_, key)| Fact::KeyExpired { store, key: Bytes::copy_from_slice(key) }));
    }
}

//! Key-value stores: entries by key, two orders over the keys, and the pages of collections.
//!
//! [`table`] finds an entry by its key's hash, [`value`] is what keys hold and [`tree`] what collections are made of, with
//! their [`pages`]. [`decide`] is what can be asked of many keys at once, [`run`] what can be asked of what one holds, and
//! [`scan`] of ranges. [`apply`] is how facts change a store, [`change`] how they change a collection, [`index`] its part of
//! checkpoints. [`feed`] is the stream that has its changes.
//!
//! | structure | by | for |
//! |---|---|---|
//! | `table` | keyed hash | everything that names a key |
//! | `ordered` | key | scans |
//! | `expiry` | moment, then arrival | ticks |
//! | `pages` | collection, number | what collections hold beyond their roots |
//!
//! An entry whose time is up is not there for any command, whether or not a tick has removed it; so is a field. Key bytes
//! exist once and are shared by all three.

mod apply;
mod batch;
mod change;
mod check;
pub(crate) mod decide;
pub(crate) mod feed;
mod index;
mod pages;
mod run;
mod scan;
mod table;
mod tree;
mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::{Fact, Lsn, Millis, ResourceId};

use crate::changes::{Changes, Mark};
use crate::siphash::SipKey;
use pages::AllPages;
use table::Table;
use value::Value;

/// A key, shared by the structures that need it.
pub(crate) type Key = Arc<[u8]>;

/// What an entry takes in memory besides key and value: itself, its place in the table and in the order of keys, the
/// counters of both shared pieces of memory, and what the allocator adds.
const ENTRY_BYTES: u64 = (size_of::<Entry>() + 24 + 24 + 16 + 24 + 32) as u64;

/// What a place in the order of expiry takes.
const EXPIRY_BYTES: u64 = 48;

/// Pages of a collection that is gone that go at once: about as much work as that many small changes.
const PAGES_PER_FACT: u32 = 64;

/// One entry.
#[derive(Debug)]
pub(crate) struct Entry {
    pub key: Key,
    pub value: Value,
    /// The log entry that changed it last.
    pub version: Lsn,
    /// When it is no longer there; `Millis(0)` if never.
    expires_at: Millis,
    /// Where the order of expiry has it; `Millis(0)` if it has not.
    due: Millis,
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
        is_live(&self.value, self.expires_at, now)
    }

    /// When it, or the first field of it, ends; `Millis(0)` if never.
    fn next_end(&self) -> Millis {
        let ends = [self.expires_at, self.value.first_end()];
        ends.into_iter().filter(|end| end.0 != 0).min().unwrap_or_default()
    }

    fn memory_bytes(&self) -> u64 {
        let expiry = if self.due.0 == 0 { 0 } else { EXPIRY_BYTES };
        memory_bytes_of(&self.key, &self.value) + expiry
    }
}

/// Whether what a key holds is there at `now`.
#[inline]
fn is_live(value: &Value, expires_at: Millis, now: Millis) -> bool {
    let lasts = |end: Millis| end.0 == 0 || end > now;
    lasts(expires_at) && lasts(value.last_end())
}

/// What a key and what it holds take in memory, but for its place in the order of expiry and pages.
fn memory_bytes_of(key: &[u8], value: &Value) -> u64 {
    ENTRY_BYTES + key.len() as u64 + value.memory_bytes()
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
    /// The entry that changed anything last. Not part of the state.
    last_change: Lsn,
    changes: Changes<Key>,
    pages: AllPages,
    /// The number of the collection that was made last.
    collections: u64,
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
            last_change: Lsn(0),
            changes: Changes::default(),
            pages: AllPages::default(),
            collections: 0,
            memory_bytes: 0,
        }
    }

    /// The entry of a key, if it is held, live or not.
    #[inline]
    fn entry(&self, key: &[u8]) -> Option<&Entry> {
        self.table.find(self.sip.hash(key), key)
    }

    /// So many entries by chance, each as likely as any other.
    fn draw(&self, seed: u64, draws: usize) -> impl Iterator<Item = &Entry> {
        let (keys, mut chance) = (self.len() as u64, run::Chance::new(seed));
        (0..draws.min(self.len())).filter_map(move |_| self.table.nth(chance.below(keys) as usize))
    }

    /// How many keys it holds.
    pub fn len(&self) -> usize {
        self.ordered.len()
    }

    /// An estimate of what it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes + self.pages.memory_bytes
    }

    /// When something is due next.
    #[inline]
    pub fn next_due(&self) -> Option<Millis> {
        if self.pages.gone.len() > 0 {
            return Some(Millis(0));
        }
        self.expiry.first_key_value().map(|((at, _), _)| *at)
    }

    /// Appends the removal of what has ended, and of pages that nothing leads to.
    pub fn expire(&self, store: ResourceId, now: Millis, facts_max: usize, facts: &mut Vec<Fact>) {
        let facts_max = facts.len() + facts_max;
        for (_, key) in self.expiry.iter().take_while(|((at, _), _)| *at <= now) {
            if facts.len() >= facts_max {
                return;
            }
            let Some(entry) = self.entry(key) else { panic!("a key ends that there is not") };
            let key = Bytes::copy_from_slice(key);
            if !entry.is_live(now) {
                facts.push(Fact::KeyExpired { store, key });
            } else if let Value::Collection(hash) = &entry.value {
                let ended = run::ended_fields(hash, &self.pages.look(hash), now, facts_max - facts.len());
                let ended = ended.unwrap_or_default().into_iter();
                facts.extend(ended.map(|field| {
                    Fact::Kv(store, KvFact::FieldRemoved { key: key.clone(), field, expired: true })
                }));
            }
        }
        if facts.len() < facts_max
            && let Some((key, gone)) = self.pages.gone.iter().next()
        {
            let upto = gone.upto.min(gone.freed.saturating_add(PAGES_PER_FACT));
            facts.push(Fact::Kv(store, KvFact::PagesFreed { collection: key.collection, upto }));
        }
    }
}

//! Key-value stores: entries by key, two orders over the keys, and the pages of collections.
//!
//! An [`entry`] is a key and what it holds, [`value`] is what that can be and [`tree`] what collections are made of, with
//! their [`pages`]. [`decide`] is what can be asked of many keys at once, found by [`many`], [`run`] what can be asked of what one holds, and
//! [`scan`] of ranges. [`apply`] is how facts change a store, [`change`] how they change a collection, [`index`] its part of
//! checkpoints. [`eviction`] says which entry goes where there is no room for all, which [`room`] sees to, [`cold`] how values leave
//! memory, and come back. [`feed`] is the stream that has its changes, [`past`] what was before them.
//!
//! | structure | by | for |
//! |---|---|---|
//! | [`slab`] | place | entries: all that follows names them by four bytes |
//! | [`table`] | keyed hash | everything that names a key |
//! | [`order`] | key | scans |
//! | `expiry` | moment, then place | ticks |
//! | `pages` | collection, number | what collections hold beyond their roots |
//!
//! An entry whose time is up is not there for any command, whether or not a tick has removed it; so is a field. Key bytes
//! exist once.

mod apply;
mod batch;
mod change;
mod check;
pub(crate) mod cold;
pub(crate) mod decide;
mod entry;
mod eviction;
pub(crate) mod feed;
mod index;
mod many;
mod order;
mod pages;
pub(crate) mod past;
mod room;
mod run;
mod scan;
mod shelf;
mod shown;
mod slab;
mod table;
mod tree;
mod value;

use std::collections::BTreeSet;

use bytes::Bytes;
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::{Fact, Lsn, Millis, ResourceId};

use crate::changes::Changes;
use crate::siphash::SipKey;
use cold::ColdCount;
use entry::{Entry, View};
use eviction::Eviction;
use order::Order;
use pages::AllPages;
use past::History;
use room::Room;
use slab::{Place, Slab};
use table::Table;

/// What an entry takes in memory besides key and value: itself, its version, its places in the table, which is filled by
/// three fifths, and in the order of keys, and what the allocator adds.
const ENTRY_BYTES: u64 = (size_of::<Entry>() + size_of::<Lsn>() + 15 + 11 + 8) as u64;

/// What a place in the order of expiry takes, and an entry's end.
const EXPIRY_BYTES: u64 = 40;

/// Pages of a collection that is gone that go at once: about as much work as that many small changes.
const PAGES_PER_FACT: u32 = 64;

/// Whether what a key holds is there at `now`.
#[inline]
fn is_live(value: View<'_>, expires_at: Millis, now: Millis) -> bool {
    let lasts = |end: Millis| end.0 == 0 || end > now;
    lasts(expires_at) && lasts(value.last_end())
}

/// What a key and what it holds take in memory with the value in memory, but for its place in the order of expiry and pages.
fn memory_bytes_of(key: &[u8], value: View<'_>) -> u64 {
    ENTRY_BYTES + key.len() as u64 + value.whole_memory_bytes()
}

/// What an entry takes in memory with an end at this moment, if any, but for pages.
fn memory_bytes(entry: &Entry, due: Millis) -> u64 {
    ENTRY_BYTES + entry.key().len() as u64 + entry.view().memory_bytes() + expiry_bytes(due)
}

/// The same with its value in memory.
fn whole_bytes(entry: &Entry) -> u64 {
    memory_bytes_of(entry.key(), entry.view()) + expiry_bytes(entry.next_end())
}

fn expiry_bytes(due: Millis) -> u64 {
    if due.0 == 0 { 0 } else { EXPIRY_BYTES }
}

/// The keys of one store that this shard holds.
#[derive(Debug)]
pub(crate) struct Store {
    sip: SipKey,
    slab: Slab,
    table: Table,
    ordered: Order,
    /// Entries by when they, or the first of their fields, end.
    expiry: BTreeSet<(Millis, Place)>,
    /// The entry that removed a key last.
    last_removal: Lsn,
    /// The entry that changed anything last. Not part of the state.
    last_change: Lsn,
    changes: Changes<Place, Box<[u8]>>,
    pages: AllPages,
    /// The number of the collection that was made last.
    collections: u64,
    memory_bytes: u64,
    /// What was, if that is kept or was once.
    history: Option<Box<History>>,
    /// For how long the settings want it to be kept, ms; `None` as long as they are not known. Not part of the state.
    history_wanted: Option<u64>,
    cold: ColdCount,
    /// Entries looked at since the last one whose value could go.
    idle_looks: usize,
    /// In which order entries go, once it matters. Not part of the state.
    eviction: Option<Box<Eviction>>,
    /// Not part of the state.
    room: Room,
}

impl Store {
    pub fn new(sip: SipKey) -> Self {
        Self {
            sip,
            slab: Slab::default(),
            table: Table::default(),
            ordered: Order::default(),
            expiry: BTreeSet::new(),
            last_removal: Lsn(0),
            last_change: Lsn(0),
            changes: Changes::default(),
            pages: AllPages::default(),
            collections: 0,
            memory_bytes: 0,
            history: None,
            history_wanted: None,
            cold: ColdCount::default(),
            idle_looks: 0,
            eviction: None,
            room: Room::default(),
        }
    }

    /// The entry of a key, if it is held, live or not.
    #[inline]
    fn entry(&self, key: &[u8]) -> Option<&Entry> {
        self.slab.get(self.place(key)?)
    }

    /// Where the entry of a key is, if it is held, live or not.
    #[inline]
    fn place(&self, key: &[u8]) -> Option<Place> {
        self.table.find(self.sip.hash(key), key, &self.slab)
    }

    /// So many entries by chance, each as likely as any other.
    fn draw(&self, seed: u64, draws: usize) -> impl Iterator<Item = &Entry> {
        let (keys, mut chance) = (self.len() as u64, run::Chance::new(seed));
        (0..draws.min(self.len())).filter_map(move |_| {
            let place = self.table.nth(chance.below(keys) as usize)?;
            self.slab.get(place)
        })
    }

    /// How many keys it holds.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// An estimate of what it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        let order = self.eviction.as_ref().map_or(0, |eviction| eviction.memory_bytes());
        let history = self.history.as_ref().map_or(0, |history| history.records.memory_bytes());
        self.held_bytes() + order + history
    }

    /// Whether it never had a key.
    fn is_blank(&self) -> bool {
        self.len() == 0 && self.last_removal == Lsn(0) && self.collections == 0
    }

    /// What its entries take in memory.
    pub fn held_bytes(&self) -> u64 {
        self.memory_bytes + self.pages.memory_bytes
    }

    /// When something is due next.
    #[inline]
    pub fn next_due(&self) -> Option<Millis> {
        if self.pages.gone.len() > 0 || self.is_overdue() {
            return Some(Millis(0));
        }
        let ends = self.expiry.first().map(|(at, _)| *at);
        ends.into_iter().chain(self.history_due()).min()
    }

    /// Appends the removal of what has ended, of pages that nothing leads to, and of what was too long ago.
    pub fn expire(&self, store: ResourceId, now: Millis, facts_max: usize, facts: &mut Vec<Fact>) {
        let facts_max = facts.len() + facts_max;
        self.tick_history(store, now, facts);
        for (_, place) in self.expiry.iter().take_while(|(at, _)| *at <= now) {
            if facts.len() >= facts_max {
                return;
            }
            let Some(entry) = self.slab.get(*place) else { panic!("a key ends that there is not") };
            let key = Bytes::copy_from_slice(entry.key());
            if !entry.is_live(now) {
                facts.push(Fact::KeyExpired { store, key });
            } else if let Some(hash) = entry.view().collection() {
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

//! How much a store may have, and what is done about more.
//!
//! | mode | a change that goes beyond the limits |
//! |---|---|
//! | durable | is refused before it happens: [`Asked::check_room`] |
//! | cache | happens; then entries go, in the order of [`super::eviction`], until the store is within its limits again, or has lost twice what the change added: [`Store::evict`] |
//!
//! Each shard has an equal share of the limits, rounded up. What was to go and did not, because its entry of the log was
//! refused, is first the next time.

use bytes::Bytes;
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::{Batch, Fact, KvMode, KvSettings, Millis, Reject, ResourceId};

use super::decide::Asked;
use super::entry::{Entry, View};
use super::slab::Place;
use super::value::Value;
use super::{ENTRY_BYTES, EXPIRY_BYTES, Store, memory_bytes_of, whole_bytes};
use crate::siphash::SipKey;

/// Entries that are looked at for one that goes; if all of them were asked for, the first goes nevertheless.
const LOOKS_MAX: usize = 1024;

/// Pages of collections that are gone that go with one fact when room is needed.
const PAGES_PER_FACT: u32 = 512;

/// What an item of a collection takes beside its bytes, about.
const ITEM_BYTES: u64 = 24;

/// A shard's share of what a store may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub bytes: u64,
    pub entries: u64,
}

impl Share {
    const NO_LIMIT: Self = Self { bytes: u64::MAX, entries: u64::MAX };

    pub fn of(settings: &KvSettings, shares: u16) -> Self {
        let share = |all: Option<u64>| all.map_or(u64::MAX, |all| all.div_ceil(u64::from(shares.max(1))));
        Self { bytes: share(settings.bytes_max), entries: share(settings.entries_max) }
    }
}

/// What entries of a store take.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Taken {
    pub bytes: u64,
    pub entries: u64,
}

/// What makes room in a cache.
#[derive(Debug)]
pub(super) struct Room {
    is_cache: bool,
    share: Share,
    /// What is still to go for what was added last.
    owed: Taken,
    /// Taken out of the order, to go with the facts that were returned last.
    chosen: Vec<Place>,
}

impl Default for Room {
    fn default() -> Self {
        Self { is_cache: false, share: Share::NO_LIMIT, owed: Taken::default(), chosen: Vec::new() }
    }
}

impl Store {
    /// Takes over what settings say.
    pub fn configure(&mut self, settings: &KvSettings, shares: u16) {
        let was_cache = std::mem::replace(&mut self.room.is_cache, settings.mode == KvMode::Cache);
        self.room.share = Share::of(settings, shares);
        if self.room.is_cache {
            self.keep_order();
        }
        if self.room.is_cache && !was_cache {
            self.take_cold_in();
        }
    }

    /// Whether entries go for good where there is no room: then values do not leave memory for the index.
    pub fn is_cache(&self) -> bool {
        self.room.is_cache
    }

    /// What its entries take, with all values in memory.
    #[inline]
    pub fn taken(&self) -> Taken {
        Taken { bytes: self.held_bytes() + self.cold.away, entries: self.len() as u64 }
    }

    /// Whether entries go where there is no room, and there are any.
    pub fn can_make_room(&self) -> bool {
        self.room.is_cache && self.len() > 0
    }

    /// Whether it is a cache with more than it may have, for which nothing is to go at once.
    #[inline]
    pub fn is_overdue(&self) -> bool {
        let owed = &self.room.owed;
        self.room.is_cache && owed.bytes == 0 && owed.entries == 0 && self.is_beyond(Taken::default())
    }

    /// Whether it has more than it may have once this is gone.
    fn is_beyond(&self, gone: Taken) -> bool {
        self.has_too_many(gone) || self.taken().bytes.saturating_sub(gone.bytes) > self.room.share.bytes
    }

    fn has_too_many(&self, gone: Taken) -> bool {
        (self.len() as u64).saturating_sub(gone.entries) > self.room.share.entries
    }

    /// A change was made, before which it took so much. Returns whether room is to be made for what it added; with `tight`
    /// that is so even within the limits.
    #[inline]
    pub fn changed(&mut self, before: Taken, tight: bool) -> bool {
        if !self.room.is_cache {
            return false;
        }
        let (now, owed) = (self.taken(), &mut self.room.owed);
        let settle = |owed: u64, before: u64, now: u64| {
            (owed + 2 * now.saturating_sub(before)).saturating_sub(before.saturating_sub(now))
        };
        owed.bytes = settle(owed.bytes, before.bytes, now.bytes);
        owed.entries = settle(owed.entries, before.entries, now.entries);
        let owes = self.owes(Taken::default(), tight);
        if !owes {
            self.settle();
        }
        owes
    }

    /// Whether more is owed than this, and there is no room without it.
    fn owes(&self, gone: Taken, tight: bool) -> bool {
        let owed = &self.room.owed;
        if self.is_beyond(gone) {
            return owed.bytes > gone.bytes || owed.entries > gone.entries;
        }
        tight && owed.bytes > gone.bytes
    }

    /// Nothing is owed any more.
    pub fn settle(&mut self) {
        self.room.owed = Taken::default();
    }

    /// Appends what makes room in a crowded cache, at most `facts_max` facts that one entry takes as well. To be called when
    /// nothing else of the store is in that entry.
    pub fn evict(&mut self, store: ResourceId, now: Millis, facts_max: usize, facts: &mut Vec<Fact>) {
        let wants = |cache: &Self, gone: Taken| cache.is_beyond(gone);
        self.evict_while(store, now, facts_max, wants, facts);
    }

    /// The same, for no more than what is owed; with `tight` even within the limits.
    pub fn evict_owed(
        &mut self,
        store: ResourceId,
        now: Millis,
        tight: bool,
        facts_max: usize,
        facts: &mut Vec<Fact>,
    ) {
        let wants = |cache: &Self, gone: Taken| cache.owes(gone, tight);
        self.evict_while(store, now, facts_max, wants, facts);
    }

    fn evict_while(
        &mut self,
        store: ResourceId,
        now: Millis,
        facts_max: usize,
        wants: impl Fn(&Self, Taken) -> bool,
        facts: &mut Vec<Fact>,
    ) {
        if !self.room.is_cache || facts_max == 0 || !wants(self, Taken::default()) {
            return;
        }
        let mut gone = Taken::default();
        // What collections had that are gone counts until it is freed: it goes first, or all others would go for it.
        if !self.has_too_many(gone)
            && let Some((key, pages)) = self.pages.gone.iter().next()
        {
            let upto = pages.upto.min(pages.freed.saturating_add(PAGES_PER_FACT));
            facts.push(Fact::Kv(store, KvFact::PagesFreed { collection: key.collection, upto }));
            return;
        }
        let mut again = std::mem::take(&mut self.room.chosen);
        for _ in 0..facts_max {
            if !wants(self, gone) {
                break;
            }
            let Some(place) = self.next_chosen(&mut again) else { break };
            self.room.chosen.push(place);
            let Some(entry) = self.slab.get(place) else { panic!("an entry goes that there is not") };
            gone.bytes += whole_bytes(entry);
            gone.entries += 1;
            let key = Bytes::copy_from_slice(entry.key());
            facts.push(if entry.is_live(now) {
                Fact::Kv(store, KvFact::Evicted { key })
            } else {
                Fact::KeyExpired { store, key }
            });
            // How much its pages take shows once they are freed.
            if entry.view().collection().is_some_and(|collection| collection.next_page.0 > 0) {
                break;
            }
        }
        self.room.chosen.append(&mut again);
    }

    /// What was chosen before and is still there, else what goes next.
    fn next_chosen(&mut self, again: &mut Vec<Place>) -> Option<Place> {
        while let Some(place) = again.pop() {
            if self.slab.get(place).is_some_and(|entry| entry.heat.is_taken_out()) {
                return Some(place);
            }
        }
        if let Some(place) = self.next_to_go(LOOKS_MAX, |_| true).or_else(|| self.first_to_go()) {
            return Some(place);
        }
        // Only what was taken out and is there nevertheless.
        if self.room.chosen.is_empty() {
            self.take_all_in();
            return self.first_to_go();
        }
        None
    }
}

/// What keys would take that facts of one entry change more than once.
type Changed<'a> = hashbrown::HashMap<&'a [u8], Option<u64>, SipKey>;

/// What facts of one entry make of a store.
struct Growth<'a> {
    asked: &'a Asked<'a>,
    changed: Changed<'a>,
    bytes: i128,
    entries: i128,
}

impl Asked<'_> {
    /// Refuses what makes a durable store larger than it may be.
    ///
    /// # Errors
    /// [`Reject::StoreFull`].
    pub fn check_room(&self, facts: &Batch<Fact>) -> Result<(), Reject> {
        let has_limits = self.settings.bytes_max.is_some() || self.settings.entries_max.is_some();
        if !has_limits || self.settings.mode == KvMode::Cache {
            return Ok(());
        }
        let changed = Changed::with_hasher(self.store.sip);
        let mut growth = Growth { asked: self, changed, bytes: 0, entries: 0 };
        facts.iter().for_each(|fact| growth.add(fact));
        let (share, held) = (Share::of(self.settings, self.shares), self.store.taken());
        let full = |what, setting, held: u64, grows: i128, max: u64| {
            let wanted = u64::try_from(i128::from(held) + grows).unwrap_or_default();
            if grows > 0 && wanted > max {
                return Err(Reject::StoreFull { what, setting, held, wanted, max });
            }
            Ok(())
        };
        full("entries", "entries_max", held.entries, growth.entries, share.entries)?;
        full("bytes", "bytes_max", held.bytes, growth.bytes, share.bytes)
    }
}

impl<'a> Growth<'a> {
    /// What a key takes with the facts before, if it is there.
    fn of(&self, key: &[u8]) -> Option<u64> {
        match self.changed.get(key) {
            Some(bytes) => *bytes,
            None => self.asked.store.entry(key).map(whole_bytes),
        }
    }

    /// A key takes so much from now on.
    fn put(&mut self, key: &'a [u8], bytes: Option<u64>) {
        let before = self.of(key);
        self.bytes += i128::from(bytes.unwrap_or(0)) - i128::from(before.unwrap_or(0));
        self.entries += i128::from(bytes.is_some()) - i128::from(before.is_some());
        self.changed.insert(key, bytes);
    }

    /// A collection gets an item of so many bytes; it may be that it has it already.
    fn add_item(&mut self, key: &'a [u8], bytes: usize) {
        let before = self.of(key).unwrap_or(ENTRY_BYTES + key.len() as u64);
        self.put(key, Some(before + ITEM_BYTES + bytes as u64));
    }

    fn add(&mut self, fact: &'a Fact) {
        let fact = match fact {
            Fact::KeySet { key, value, expires_at, .. } => {
                let end = expires_at.map_or(0, |_| EXPIRY_BYTES);
                // As it will lie: a large one lies beside its entry.
                let value = Value::Bytes(value.clone());
                return self.put(key, Some(memory_bytes_of(key, View::Value(&value)) + end));
            }
            Fact::KeyDeleted { key, .. } | Fact::KeyExpired { key, .. } => return self.put(key, None),
            Fact::Kv(_, fact) => fact,
            _ => return,
        };
        match fact {
            KvFact::Counted { key, .. } => {
                let bytes = self.of(key).unwrap_or(ENTRY_BYTES + 2 * ITEM_BYTES + key.len() as u64);
                self.put(key, Some(bytes));
            }
            KvFact::EndSet { key, expires_at } => {
                let bytes = self.of(key).unwrap_or(0);
                self.put(key, Some(bytes + expires_at.map_or(0, |_| EXPIRY_BYTES)));
            }
            KvFact::Renamed { key, to } => {
                let bytes = self.of(key);
                self.put(key, None);
                self.put(to, bytes);
            }
            KvFact::Copied { key, to } => {
                let bytes = self.of(key).unwrap_or(0) + self.pages_of(key);
                self.put(to, Some(bytes));
            }
            KvFact::Evicted { key } => self.put(key, None),
            KvFact::FieldSet { key, field, value, .. } => self.add_item(key, field.len() + value.len()),
            KvFact::MemberAdded { key, member } => self.add_item(key, member.len()),
            KvFact::ScoreSet { key, member, .. } => self.add_item(key, 2 * member.len() + 16),
            KvFact::Pushed { key, value, .. }
            | KvFact::ItemInserted { key, value, .. }
            | KvFact::ItemSet { key, value, .. } => self.add_item(key, value.len()),
            KvFact::FieldRemoved { .. }
            | KvFact::FieldEndSet { .. }
            | KvFact::MemberRemoved { .. }
            | KvFact::ScoreRemoved { .. }
            | KvFact::ItemsRemoved { .. }
            | KvFact::PagesFreed { .. }
            | KvFact::HistoryKept { .. }
            | KvFact::HistoryTrimmed { .. } => {}
        }
    }

    /// What the pages of a collection take.
    fn pages_of(&self, key: &[u8]) -> u64 {
        let store = self.asked.store;
        let collection = store.entry(key).and_then(|entry: &Entry| entry.view().collection());
        collection.map_or(0, |collection| store.pages.bytes_of(collection))
    }
}

//! What only the index has: values of entries that have left memory.
//!
//! ```text
//!              a checkpoint has it, and memory is short
//!        hot ──────────────────────────────────────────► cold
//!         ▲  ◄──────────────────────────────────────────
//!         │    a decision, or a fact that keeps the value, needs it
//!         └──── the key gets another value; the key goes
//! ```
//!
//! A cold entry still has key, version and end, with its places in the table and in the orders, so that only what looks at the
//! value itself needs it. A decision that does notes so in [`Wanted`] and goes on, so that all it needs is known at once; what it
//! comes to meanwhile is thrown away. Facts that keep a value change none that is cold: who decided on them had it in memory,
//! and recovery fetches it before.
//!
//! Which entries are cold is no part of the state: decisions are the same whatever is.

use std::cell::RefCell;

use bytes::Bytes;
use flowmesh_model::codec::Malformed;
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::limits::KV_FETCHED_BYTES_MAX;
use flowmesh_model::{Fact, Lsn, Reject, Reply, Space};

use super::decide::Asked;
use super::entry::ColdValue;
use super::eviction::Heat;
use super::slab::Place;
use super::{Entry, Store, View, index, memory_bytes};
use crate::changes::Seals;
use crate::decision::Decision;
use crate::keys::Home;
use crate::ticks::BYTES_PER_TICK;

/// What an operation comes to whose value is noted: never shown.
pub(crate) const NOT_IN_MEMORY: Reject = Reject::Internal("a value that is not in memory");

/// What a decision needs that is cold.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    keys: RefCell<Vec<Bytes>>,
}

impl Wanted {
    /// This value is needed.
    pub fn note(&self, cold: ColdValue<'_>) {
        self.keys.borrow_mut().push(Bytes::copy_from_slice(cold.key));
    }

    pub fn is_empty(&self) -> bool {
        self.keys.borrow().is_empty()
    }

    /// The keys whose values are needed, each once.
    pub fn into_keys(self) -> Vec<Bytes> {
        let mut keys = self.keys.into_inner();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// The bytes of bytes and counters, noted if they are cold.
    pub fn text(&self, value: View<'_>) -> Result<Option<Bytes>, Reject> {
        value.text().map_err(|cold| self.refuse(cold))
    }

    /// Notes a value that must be in memory for what is about to become true.
    pub fn keep(&self, value: View<'_>) -> Result<(), Reject> {
        value.cold().map_or(Ok(()), |cold| Err(self.refuse(cold)))
    }

    fn refuse(&self, cold: ColdValue<'_>) -> Reject {
        self.note(cold);
        NOT_IN_MEMORY
    }
}

/// Which values are in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ColdCount {
    /// How many entries are cold.
    pub entries: usize,
    /// What their values are together.
    pub bytes: u64,
    /// Memory that these values would take.
    pub away: u64,
    /// Memory that values take which could leave it, once the index has them.
    pub could_go: u64,
}

impl ColdCount {
    /// An entry is here from now on.
    #[inline]
    pub fn add(&mut self, entry: &Entry) {
        match entry.view().cold() {
            Some(cold) => {
                self.entries += 1;
                self.bytes += u64::from(cold.len);
                self.away += cold.away();
            }
            None => self.could_go += entry.could_go(),
        }
    }

    /// An entry is about to go or to change.
    #[inline]
    pub fn remove(&mut self, entry: &Entry) {
        match entry.view().cold() {
            Some(cold) => {
                self.entries -= 1;
                self.bytes -= u64::from(cold.len);
                self.away -= cold.away();
            }
            None => self.could_go -= entry.could_go(),
        }
    }
}

/// A cold value as it is asked for: where the index has it and which version it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColdItem {
    /// Where.
    pub space: Space,
    /// Its key there.
    pub index_key: Bytes,
    key: Bytes,
    version: Lsn,
    /// It was cold when it was asked for: the index has it as it is.
    is_cold: bool,
}

impl std::fmt::Display for ColdItem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the value of key {:?} with version {}", self.key, self.version)
    }
}

/// Entries looked at for one that can go before others get their turn.
const LOOKS_AT_ONCE: usize = 16;

/// So often an entry comes to the front before it goes: what was asked for stays three times.
const ROUNDS: usize = 5;

/// What [`Store::chill`] came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chilled {
    pub bytes: u64,
    pub looked: usize,
    /// Nothing can go.
    pub is_through: bool,
}

/// Refuses what is more than one call may bring into memory.
pub(crate) fn fetched(bytes: u64) -> Result<(), Reject> {
    if bytes > KV_FETCHED_BYTES_MAX {
        let what = "values that one call reads from the disk";
        return Err(Reject::TooLarge { what, size: bytes, max: KV_FETCHED_BYTES_MAX });
    }
    Ok(())
}

/// The key that a fact keeps the value of and gives something else.
fn kept_key(fact: &Fact) -> Option<&Bytes> {
    match fact {
        Fact::Kv(
            _,
            KvFact::EndSet { key, .. } | KvFact::Renamed { key, .. } | KvFact::Copied { key, .. },
        ) => Some(key),
        _ => None,
    }
}

/// The keys that a fact leaves with something else than they hold, or with nothing.
fn noted_keys(fact: &Fact) -> [Option<&Bytes>; 2] {
    let fact = match fact {
        Fact::KeySet { key, .. } | Fact::KeyDeleted { key, .. } | Fact::KeyExpired { key, .. } => {
            return [Some(key), None];
        }
        Fact::Kv(_, fact) => fact,
        _ => return [None; 2],
    };
    match fact {
        KvFact::Counted { key, .. } | KvFact::Evicted { key } => [Some(key), None],
        KvFact::Renamed { key, to } => [Some(key), Some(to)],
        KvFact::Copied { to, .. } => [Some(to), None],
        _ => [None; 2],
    }
}

impl Asked<'_> {
    /// Whether somebody is told what keys held before changes.
    fn keeps_old(&self) -> bool {
        let of_feed = self.settings.feed.as_ref().is_some_and(|feed| feed.old_values);
        of_feed || self.settings.history_ms.is_some_and(|ms| ms > 0) || self.store.keeps_history()
    }

    /// What a decision leaves must be in memory where it is kept. Of a clear an entry has as many keys as are.
    pub fn keep_old(&self, decision: Decision) -> Decision {
        let Decision::Change { mut facts, mut reply } = decision else { return decision };
        if self.keeps_old() {
            if matches!(reply, Reply::KvCleared { .. }) {
                let ready = self.ready(&facts);
                if ready < facts.len() {
                    facts.truncate(ready);
                    reply = Reply::KvCleared { count: ready as u64, more: true };
                }
            } else {
                facts.iter().flat_map(|fact| self.left_cold(fact)).for_each(|cold| self.wanted.note(cold));
            }
        }
        Decision::Change { facts, reply }
    }

    /// How many facts come before the first one that leaves something which is not in memory and must be. If it is the very first,
    /// that is noted, and what is behind it, as far as one entry would take it.
    pub fn ready(&self, facts: &[Fact]) -> usize {
        if !self.keeps_old() {
            return facts.len();
        }
        let is_cold = |fact: &Fact| self.left_cold(fact).next().is_some();
        let ready = facts.iter().position(is_cold).unwrap_or(facts.len());
        let mut bytes = 0;
        for cold in facts.iter().filter(|_| ready == 0).flat_map(|fact| self.left_cold(fact)) {
            self.wanted.note(cold);
            bytes += cold.len as usize;
            if bytes > BYTES_PER_TICK {
                break;
            }
        }
        ready
    }

    fn left_cold<'s>(&'s self, fact: &'s Fact) -> impl Iterator<Item = ColdValue<'s>> {
        let entries = noted_keys(fact).into_iter().flatten().filter_map(|key| self.store.entry(key));
        entries.filter_map(|entry| entry.view().cold())
    }
}

impl Store {
    /// Those of some keys that are cold, as they can be asked for; or `all` whose value may be by the time it is there.
    ///
    /// # Errors
    /// [`Reject::TooLarge`] if that is more than one call may bring into memory.
    pub fn cold_items(&self, home: &Home, keys: &[Bytes], all: bool) -> Result<Vec<ColdItem>, Reject> {
        let (mut items, mut bytes) = (Vec::new(), 0);
        for key in keys {
            let Some(entry) = self.entry(key) else { continue };
            let is_cold = entry.is_cold();
            let may_be = all && entry.could_go() > 0;
            if !is_cold && !may_be {
                continue;
            }
            bytes += entry.view().text_len();
            let (index_key, version) = (home.entry_key(key), entry.version());
            items.push(ColdItem { space: Space::Keys, index_key, key: key.clone(), version, is_cold });
        }
        fetched(bytes)?;
        Ok(items)
    }

    /// Keys with cold values that must be in memory for a fact to be applied: it keeps them, or they are noted.
    pub fn cold_of(&self, fact: &Fact) -> Vec<Bytes> {
        let noted = noted_keys(fact).into_iter().flatten().filter(|_| self.keeps_history());
        let keys = kept_key(fact).into_iter().chain(noted);
        let mut keys: Vec<Bytes> =
            keys.filter(|key| self.entry(key).is_some_and(Entry::is_cold)).cloned().collect();
        keys.dedup();
        keys
    }

    /// Takes the value of a cold entry into memory, as the index has it. Nothing happens if the entry is another one by now.
    ///
    /// # Errors
    /// What is wrong if it is not the value of the entry that was asked for, and that entry is still there.
    pub fn warm_item(&mut self, item: &ColdItem, value: Option<Bytes>) -> Result<(), &'static str> {
        let Some(place) = self.place(&item.key) else { return Ok(()) };
        let Some(entry) = self.slab.get_mut(place) else { return Ok(()) };
        let Some(cold) = entry.view().cold().filter(|_| entry.version() == item.version) else {
            return Ok(());
        };
        let value = match value {
            Some(value) => value,
            None if item.is_cold => return Err("missing"),
            // It was new when it was asked for.
            None => return Ok(()),
        };
        let found = index::read_bytes(value).map_err(|Malformed(reason)| reason)?;
        let Some(found) = found else { return Err("of another type") };
        if (found.version, found.expires_at) != (entry.version(), entry.end()) {
            return if item.is_cold { Err("of another version") } else { Ok(()) };
        }
        if found.bytes.len() != cold.len as usize {
            return Err("of another length");
        }
        let before = memory_bytes(entry, entry.next_end());
        self.cold.remove(entry);
        entry.warm(found.bytes);
        self.cold.add(entry);
        self.memory_bytes = self.memory_bytes + memory_bytes(entry, entry.next_end()) - before;
        self.came(place, self.sip.hash(&item.key));
        Ok(())
    }

    /// Leaves values to the index that it has as they are, in the order in which entries go, until so many bytes are free. Looks at
    /// about so many entries.
    pub fn chill(&mut self, seals: &Seals, bytes: u64, looks_max: usize) -> Chilled {
        self.keep_order();
        let mut chilled = Chilled::default();
        while chilled.looked < looks_max && chilled.bytes < bytes && !chilled.is_through {
            let may_go = |entry: &Entry| entry.could_go() > 0 && seals.is_clean(entry.mark);
            let Some(place) = self.next_to_go(LOOKS_AT_ONCE, may_go) else {
                chilled.looked += LOOKS_AT_ONCE;
                self.idle_looks += LOOKS_AT_ONCE;
                chilled.is_through = self.is_idle();
                continue;
            };
            chilled.looked += 1;
            self.idle_looks = 0;
            chilled.bytes += self.chill_at(place);
        }
        chilled
    }

    /// What could not go before may be able to now.
    pub fn begin_chill(&mut self) {
        self.idle_looks = 0;
    }

    /// Whether all entries were looked at since the last one whose value could go, as often as each may stay.
    fn is_idle(&mut self) -> bool {
        let Some(eviction) = &self.eviction else { return true };
        let is_idle = !eviction.is_adopting() && self.idle_looks > ROUNDS * eviction.len();
        if is_idle {
            self.idle_looks = 0;
        }
        is_idle
    }

    fn chill_at(&mut self, place: Place) -> u64 {
        let Some(entry) = self.slab.get_mut(place) else { panic!("an entry goes that there is not") };
        let freed = entry.could_go();
        self.cold.remove(entry);
        let went = entry.chill();
        entry.heat = Heat::default();
        self.cold.add(entry);
        assert!(went, "a value leaves memory that cannot");
        self.memory_bytes -= freed;
        freed
    }

    /// How many of its values are only in the index.
    pub fn cold(&self) -> ColdCount {
        self.cold
    }

    /// Memory that values take which could leave it, once the index has them.
    #[inline]
    pub fn could_go(&self) -> u64 {
        if self.is_cache() { 0 } else { self.cold.could_go }
    }
}

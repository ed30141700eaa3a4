//! How facts change a store.

use std::collections::BTreeSet;

use bytes::Bytes;
use flowmesh_model::kv::KvType;
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::{Millis, Space};

use super::change::{self, collection_of};
use super::pages::AllPages;
use super::value::{Collection, Value};
use super::{Entry, Place, Store, index, memory_bytes};
use crate::changes::{Mark, Seals, Touch, image};
use crate::held::Apply;
use crate::keys::Home;

impl Store {
    /// `KeySet`.
    pub fn set(&mut self, cx: &mut Apply<'_>, key: &Bytes, value: &Bytes, expires_at: Option<Millis>) {
        let (version, end) = (cx.at.lsn, expires_at.unwrap_or_default());
        self.note_whole(cx, key);
        self.write(cx, key, end, || Value::Bytes(value.clone()), |entry| entry.put_over(value, version, end));
    }

    /// What else became true of it.
    pub fn apply(&mut self, cx: &mut Apply<'_>, fact: &KvFact) {
        self.note_fact(cx, fact);
        match fact {
            KvFact::Counted { key, number, expires_at } => {
                self.overwrite(cx, key, Value::Counter(*number), expires_at.unwrap_or_default());
            }
            KvFact::EndSet { key, expires_at } => {
                let end = expires_at.unwrap_or_default();
                self.change(cx, key, |entry, _, _, _| entry.set_end(end));
            }
            KvFact::Renamed { key, to } => {
                let Some(entry) = self.take(cx, key) else { panic!("a key was renamed that there is not") };
                let end = entry.end();
                self.overwrite(cx, to, entry.into_value(), end);
            }
            KvFact::Copied { key, to } => self.copy(cx, key, to),
            KvFact::Evicted { key } => self.removed(cx, key),
            KvFact::PagesFreed { collection, upto } => {
                self.pages.free(cx.home, cx.seals, *collection, *upto);
            }
            KvFact::HistoryKept { ms } => self.history_kept(cx, *ms),
            KvFact::HistoryTrimmed { upto, time } => self.history_trimmed(cx, *upto, *time),
            _ => {
                let (Some(key), Some(holds)) = (fact.key(), collection_of(fact)) else {
                    panic!("a fact about no key: {fact:?}")
                };
                if self.entry(key).is_none() {
                    let value = self.new_collection(cx, key, holds);
                    self.overwrite(cx, key, Value::Collection(value), Millis(0));
                }
                self.change(cx, key, |entry, pages, home, seals| {
                    let Some(collection) = entry.collection_mut() else {
                        panic!("a fact about items of no collection: {fact:?}")
                    };
                    let mut pages = pages.change(home, seals, collection);
                    let applied = change::apply(collection, &mut pages, fact);
                    assert!(applied.is_ok(), "a fact about a page that is not in memory: {fact:?}");
                });
            }
        }
    }

    fn new_collection(&mut self, cx: &Apply<'_>, key: &[u8], holds: KvType) -> Box<Collection> {
        self.collections += 1;
        Box::new(Collection::new(holds, self.collections, cx.home.entry_slot(key)))
    }

    fn copy(&mut self, cx: &mut Apply<'_>, key: &[u8], to: &Bytes) {
        let Some(entry) = self.entry(key) else { panic!("a key was copied that there is not") };
        let Ok(value) = entry.view().to_value() else { panic!("a value is copied that is not in memory") };
        let expires_at = entry.end();
        let value = match value {
            Value::Collection(from) => {
                let new = self.new_collection(cx, to, from.holds);
                self.pages.copy(cx.home, cx.seals, &from, &new);
                let copy = Collection { slot: new.slot, number: new.number, ..*from };
                Value::Collection(Box::new(copy))
            }
            other => other,
        };
        self.overwrite(cx, to, value, expires_at);
    }

    /// A key holds this from now on.
    fn overwrite(&mut self, cx: &mut Apply<'_>, key: &[u8], value: Value, end: Millis) {
        self.write(cx, key, end, || value, |_| false);
    }

    /// A key holds this value from now on, put over what is there if that can be.
    fn write(
        &mut self,
        cx: &mut Apply<'_>,
        key: &[u8],
        end: Millis,
        value: impl FnOnce() -> Value,
        put_over: impl FnOnce(&mut Entry) -> bool,
    ) {
        let hash = self.sip.hash(key);
        let Some(place) = self.table.find(hash, key, &self.slab) else {
            return self.insert(cx, hash, key, value(), end);
        };
        let (version, keeps) = (cx.at.lsn, self.keeps_history());
        self.change_at(cx, place, |entry, pages, home, seals| {
            if !put_over(entry)
                && let Some(before) = entry.replace(value(), version, end)
            {
                pages.part_with(home, seals, &before, keeps.then_some(version));
            }
        });
    }

    fn insert(&mut self, cx: &mut Apply<'_>, hash: u64, key: &[u8], value: Value, end: Millis) {
        let mut mark = Mark::new(self.changes.is_back(key));
        let touch = cx.seals.touch(&mut mark);
        self.last_change = cx.at.lsn;
        let place = self.put(hash, Entry::new(key, value, cx.at.lsn, end, mark));
        self.ordered.insert(&self.slab, place);
        if let Some(due) = self.slab.get(place).map(Entry::next_end) {
            reschedule(&mut self.expiry, place, Millis(0), due);
        }
        if touch != Touch::Known {
            self.list(place);
        }
    }

    /// Adds an entry that is not there, to no order.
    pub(super) fn put(&mut self, hash: u64, entry: Entry) -> Place {
        self.memory_bytes += memory_bytes(&entry, entry.next_end());
        self.cold.add(&entry);
        let place = self.slab.insert(entry);
        self.table.insert(hash, place);
        self.came(place, hash);
        place
    }

    /// Changes an entry that is there, and what hangs on it: its image in the sealed state, the list of changes, the order
    /// of ends, the memory it takes.
    fn change(
        &mut self,
        cx: &mut Apply<'_>,
        key: &[u8],
        change: impl FnOnce(&mut Entry, &mut AllPages, &Home, &mut Seals),
    ) {
        let Some(place) = self.place(key) else { panic!("a key changed that there is not") };
        self.change_at(cx, place, change);
    }

    fn change_at(
        &mut self,
        cx: &mut Apply<'_>,
        place: Place,
        change: impl FnOnce(&mut Entry, &mut AllPages, &Home, &mut Seals),
    ) {
        let Some(entry) = self.slab.get_mut(place) else { panic!("a key changed that there is not") };
        let touch = cx.seals.touch(&mut entry.mark);
        if touch == Touch::CaptureAndList {
            cx.seals.capture(image(Space::Keys, cx.home.entry_key(entry.key()), index::encode(entry)));
        }
        // What an entry of the log makes of it in several steps it was asked for once.
        if entry.version() != cx.at.lsn {
            entry.heat.count();
        }
        let due = entry.next_end();
        let before = memory_bytes(entry, due);
        self.cold.remove(entry);
        let was_cold = entry.is_cold();
        change(entry, &mut self.pages, cx.home, cx.seals);
        assert!(!entry.is_cold(), "an entry changes whose value is not in memory");
        self.cold.add(entry);
        entry.set_version(cx.at.lsn);
        self.last_change = cx.at.lsn;
        let due_now = entry.next_end();
        let back = was_cold.then(|| self.sip.hash(entry.key()));
        self.memory_bytes = self.memory_bytes + memory_bytes(entry, due_now) - before;
        reschedule(&mut self.expiry, place, due, due_now);
        if let Some(hash) = back {
            self.came(place, hash);
        }
        if touch != Touch::Known {
            self.list(place);
        }
    }

    /// `KeyDeleted`, `KeyExpired` or `Evicted`.
    pub fn removed(&mut self, cx: &mut Apply<'_>, key: &[u8]) {
        self.note_whole(cx, key);
        let keeps = self.keeps_history().then_some(cx.at.lsn);
        let Some(entry) = self.take(cx, key) else { panic!("a key was removed that there was not") };
        if let Some(collection) = entry.into_collection() {
            self.pages.part_with(cx.home, cx.seals, &collection, keeps);
        }
    }

    /// Takes an entry out; pages of its collection stay.
    fn take(&mut self, cx: &mut Apply<'_>, key: &[u8]) -> Option<Entry> {
        let place = self.place(key)?;
        let entry = self.slab.get_mut(place)?;
        if cx.seals.touch(&mut entry.mark) == Touch::CaptureAndList {
            cx.seals.capture(image(Space::Keys, cx.home.entry_key(key), index::encode(entry)));
        }
        let entry = self.forget(place)?;
        (self.last_removal, self.last_change) = (cx.at.lsn, cx.at.lsn);
        if entry.mark.in_index() {
            self.changes.list_gone(key.into());
        }
        Some(entry)
    }

    /// Takes an entry out of every structure.
    pub(super) fn forget(&mut self, place: Place) -> Option<Entry> {
        let entry = self.slab.get(place)?;
        let due = entry.next_end();
        self.memory_bytes -= memory_bytes(entry, due);
        self.cold.remove(entry);
        self.ordered.remove(&self.slab, entry.key());
        self.table.remove(self.sip.hash(entry.key()), place);
        reschedule(&mut self.expiry, place, due, Millis(0));
        if let Some(eviction) = &mut self.eviction {
            eviction.left(place, entry);
        }
        self.slab.remove(place)
    }

    /// Lists a change of an entry that is there: of one that is not, thinning out would forget it.
    pub(super) fn list(&mut self, place: Place) {
        self.changes.list(place);
        if self.changes.is_stale(self.slab.len()) {
            let slab = &self.slab;
            self.changes.thin(|place| slab.get(*place).is_some());
        }
    }
}

/// Puts an entry where its next end belongs.
fn reschedule(expiry: &mut BTreeSet<(Millis, Place)>, place: Place, before: Millis, due: Millis) {
    if before == due {
        return;
    }
    if before.0 != 0 {
        expiry.remove(&(before, place));
    }
    if due.0 != 0 {
        expiry.insert((due, place));
    }
}

//! How facts change a store.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use flowmesh_model::codec::detached;
use flowmesh_model::kv::KvType;
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::{Millis, Space};

use super::change::{self, collection_of};
use super::pages::AllPages;
use super::value::{Collection, Value};
use super::{Entry, Key, Store, index};
use crate::changes::{Mark, Seals, Touch, image};
use crate::held::Apply;
use crate::keys::Home;

impl Store {
    /// `KeySet`.
    pub fn set(&mut self, cx: &mut Apply<'_>, key: &Bytes, value: &Bytes, expires_at: Option<Millis>) {
        self.overwrite(cx, key, Value::Bytes(detached(value)), expires_at.unwrap_or_default());
    }

    /// What else became true of it.
    pub fn apply(&mut self, cx: &mut Apply<'_>, fact: &KvFact) {
        match fact {
            KvFact::Counted { key, number, expires_at } => {
                self.overwrite(cx, key, Value::Counter(*number), expires_at.unwrap_or_default());
            }
            KvFact::EndSet { key, expires_at } => {
                let end = expires_at.unwrap_or_default();
                self.change(cx, key, |entry, _, _, _| entry.expires_at = end);
            }
            KvFact::Renamed { key, to } => {
                let Some(entry) = self.take(cx, key) else { panic!("a key was renamed that there is not") };
                self.overwrite(cx, to, entry.value, entry.expires_at);
            }
            KvFact::Copied { key, to } => self.copy(cx, key, to),
            KvFact::PagesFreed { collection, upto } => {
                self.pages.free(cx.home, cx.seals, *collection, *upto);
            }
            _ => {
                let (Some(key), Some(holds)) = (fact.key(), collection_of(fact)) else {
                    panic!("a fact about no key: {fact:?}")
                };
                if self.entry(key).is_none() {
                    let value = self.new_collection(cx, key, holds);
                    self.overwrite(cx, key, Value::Collection(value), Millis(0));
                }
                self.change(cx, key, |entry, pages, home, seals| {
                    let Value::Collection(collection) = &mut entry.value else {
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
        let (value, expires_at) = (entry.value.clone(), entry.expires_at);
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
    fn overwrite(&mut self, cx: &mut Apply<'_>, key: &[u8], value: Value, expires_at: Millis) {
        let hash = self.sip.hash(key);
        if self.table.find(hash, key).is_none() {
            return self.insert(cx, hash, key, value, expires_at);
        }
        self.change(cx, key, |entry, pages, home, seals| {
            entry.expires_at = expires_at;
            if let Value::Collection(before) = std::mem::replace(&mut entry.value, value) {
                pages.leave(home, seals, &before);
            }
        });
    }

    fn insert(&mut self, cx: &mut Apply<'_>, hash: u64, key: &[u8], value: Value, expires_at: Millis) {
        let key: Key = Arc::from(key);
        let mut mark = Mark::new(self.changes.is_back(&*key));
        let touch = cx.seals.touch(&mut mark);
        let new = Arc::clone(&key);
        let version = cx.at.lsn;
        self.last_change = version;
        self.put(hash, Entry { key, value, version, expires_at, due: Millis(0), expiry_number: 0, mark });
        if touch != Touch::Known {
            self.list(new);
        }
    }

    /// Adds an entry that is not there.
    pub(super) fn put(&mut self, hash: u64, mut entry: Entry) {
        self.schedule(&mut entry);
        self.memory_bytes += entry.memory_bytes();
        self.ordered.insert(Arc::clone(&entry.key));
        self.table.insert(hash, entry);
    }

    /// Changes an entry that is there, and what hangs on it: its image in the sealed state, the list of changes, the order
    /// of ends, the memory it takes.
    fn change(
        &mut self,
        cx: &mut Apply<'_>,
        key: &[u8],
        change: impl FnOnce(&mut Entry, &mut AllPages, &Home, &mut Seals),
    ) {
        let hash = self.sip.hash(key);
        let Some(entry) = self.table.find_mut(hash, key) else { panic!("a key changed that there is not") };
        let touch = cx.seals.touch(&mut entry.mark);
        if touch == Touch::CaptureAndList {
            cx.seals.capture(image(Space::Keys, cx.home.entry_key(key), index::encode(entry)));
        }
        let before = entry.memory_bytes();
        change(entry, &mut self.pages, cx.home, cx.seals);
        entry.version = cx.at.lsn;
        self.last_change = cx.at.lsn;
        reschedule(&mut self.expiry, &mut self.expiry_number, entry);
        self.memory_bytes = self.memory_bytes + entry.memory_bytes() - before;
        if touch != Touch::Known {
            let key = Arc::clone(&entry.key);
            self.list(key);
        }
    }

    /// `KeyDeleted` or `KeyExpired`.
    pub fn removed(&mut self, cx: &mut Apply<'_>, key: &[u8]) {
        let Some(entry) = self.take(cx, key) else { panic!("a key was removed that there was not") };
        if let Value::Collection(collection) = &entry.value {
            self.pages.leave(cx.home, cx.seals, collection);
        }
    }

    /// Takes an entry out; pages of its collection stay.
    fn take(&mut self, cx: &mut Apply<'_>, key: &[u8]) -> Option<Entry> {
        let mut entry = self.table.remove(self.sip.hash(key), key)?;
        if cx.seals.touch(&mut entry.mark) == Touch::CaptureAndList {
            cx.seals.capture(image(Space::Keys, cx.home.entry_key(key), index::encode(&entry)));
        }
        self.memory_bytes -= entry.memory_bytes();
        self.ordered.remove(key);
        if entry.due.0 != 0 {
            self.expiry.remove(&(entry.due, entry.expiry_number));
        }
        (self.last_removal, self.last_change) = (cx.at.lsn, cx.at.lsn);
        if entry.mark.in_index() {
            self.changes.list_gone(Arc::clone(&entry.key));
        }
        Some(entry)
    }

    fn schedule(&mut self, entry: &mut Entry) {
        reschedule(&mut self.expiry, &mut self.expiry_number, entry);
    }

    /// Lists a change of an entry that is there: of one that is not, thinning out would forget it.
    pub(super) fn list(&mut self, key: Key) {
        self.changes.list(key);
        if self.changes.is_stale(self.ordered.len()) {
            let (table, sip) = (&self.table, self.sip);
            let lives =
                |key: &Key| table.find(sip.hash(key), key).is_some_and(|entry| Arc::ptr_eq(&entry.key, key));
            self.changes.thin(lives);
        }
    }
}

/// Puts an entry where its next end belongs.
fn reschedule(expiry: &mut BTreeMap<(Millis, u64), Key>, last: &mut u64, entry: &mut Entry) {
    let due = entry.next_end();
    if due == entry.due {
        return;
    }
    if entry.due.0 != 0 {
        expiry.remove(&(entry.due, entry.expiry_number));
    }
    entry.due = due;
    if due.0 != 0 {
        *last += 1;
        entry.expiry_number = *last;
        expiry.insert((due, *last), Arc::clone(&entry.key));
    }
}

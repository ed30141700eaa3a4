//! How facts change a store.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use flowmesh_model::codec::detached;
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::{Millis, Space};

use super::{Entry, Key, Store, index};
use crate::changes::{Mark, Touch, image};
use crate::held::Apply;

impl Store {
    /// `KeySet`.
    pub fn set(&mut self, cx: &mut Apply<'_>, key: &Bytes, value: &Bytes, expires_at: Option<Millis>) {
        let hash = self.sip.hash(key);
        let (value, expires_at) = (detached(value), expires_at.unwrap_or_default());
        let Some(entry) = self.table.find_mut(hash, key) else {
            self.insert(cx, hash, key, value, expires_at);
            return;
        };
        let touch = cx.seals.touch(&mut entry.mark);
        if touch == Touch::CaptureAndList {
            cx.seals.capture(image(Space::Keys, cx.home.entry_key(key), index::encode(entry)));
        }
        let before = entry.memory_bytes();
        entry.value = value;
        entry.version = cx.at.lsn;
        if entry.expires_at != expires_at {
            reschedule(&mut self.expiry, &mut self.expiry_number, entry, expires_at);
        }
        self.memory_bytes = self.memory_bytes + entry.memory_bytes() - before;
        if touch != Touch::Known {
            let key = Arc::clone(&entry.key);
            self.list(key);
        }
    }

    /// The facts that only some stores have.
    pub fn apply(&mut self, _: &mut Apply<'_>, fact: &KvFact) {
        panic!("not decided by any shard: {fact:?}");
    }

    fn insert(&mut self, cx: &Apply<'_>, hash: u64, key: &[u8], value: Bytes, expires_at: Millis) {
        let key: Key = Arc::from(key);
        let mut mark = Mark::new(self.changes.is_back(&*key));
        let touch = cx.seals.touch(&mut mark);
        let new = Arc::clone(&key);
        self.put(
            hash,
            Entry { key, value, version: cx.at.lsn, expires_at: Millis(0), expiry_number: 0, mark },
            expires_at,
        );
        if touch != Touch::Known {
            self.list(new);
        }
    }

    /// Adds an entry that is not there, and which ends then.
    pub(super) fn put(&mut self, hash: u64, mut entry: Entry, expires_at: Millis) {
        if expires_at.0 != 0 {
            reschedule(&mut self.expiry, &mut self.expiry_number, &mut entry, expires_at);
        }
        self.memory_bytes += entry.memory_bytes();
        self.ordered.insert(Arc::clone(&entry.key));
        self.table.insert(hash, entry);
    }

    /// `KeyDeleted` or `KeyExpired`.
    pub fn removed(&mut self, cx: &mut Apply<'_>, key: &[u8]) {
        let removed = self.table.remove(self.sip.hash(key), key);
        let Some(mut entry) = removed else { panic!("a key was removed that there was not") };
        if cx.seals.touch(&mut entry.mark) == Touch::CaptureAndList {
            cx.seals.capture(image(Space::Keys, cx.home.entry_key(key), index::encode(&entry)));
        }
        self.memory_bytes -= entry.memory_bytes();
        self.ordered.remove(key);
        reschedule(&mut self.expiry, &mut self.expiry_number, &mut entry, Millis(0));
        self.last_removal = cx.at.lsn;
        if entry.mark.in_index() {
            self.changes.list_gone(entry.key);
        }
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

/// Gives an entry another end.
fn reschedule(
    expiry: &mut BTreeMap<(Millis, u64), Key>,
    last: &mut u64,
    entry: &mut Entry,
    expires_at: Millis,
) {
    if entry.expires_at.0 != 0 {
        expiry.remove(&(entry.expires_at, entry.expiry_number));
    }
    entry.expires_at = expires_at;
    if expires_at.0 != 0 {
        *last += 1;
        entry.expiry_number = *last;
        expiry.insert((expires_at, *last), Arc::clone(&entry.key));
    }
}

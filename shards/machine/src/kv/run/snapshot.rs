//! What keys hold, in the words of changes, so that whoever reads it goes on with the feed.
//!
//! A part is as of one entry of the log. A collection that does not fit one part comes in several, each as of its own entry:
//! what a hash, a set or a sorted set has is said as it is when it is read, and what changes meanwhile comes again with the
//! feed from the first part on, which does no harm, since it says what becomes true; a list that changes meanwhile is begun
//! anew.

use std::ops::Bound;

use bytes::Bytes;
use flowmesh_model::kv::KvType;
use flowmesh_model::kv::change::{ChangeKind, ItemsFrom, KvChange, SnapshotFrom, SnapshotPart};
use flowmesh_model::limits::{BATCH_ITEMS_MAX, KEY_BYTES_MAX, SNAPSHOT_BYTES, SNAPSHOT_KEYS_MAX};
use flowmesh_model::{Lsn, Reject, Reply};

use super::changed::{head, items, more};
use super::found::{Found, Members};
use super::tried::stored;
use crate::decision::Decision;
use crate::kv::decide::Asked;
use crate::kv::entry::Entry;
use crate::limit::size;

/// A part in the making.
struct Part {
    changes: Vec<(Bytes, Bytes)>,
    bytes: usize,
}

impl Part {
    fn push(&mut self, key: &Bytes, change: &KvChange) {
        let message = change.encode();
        self.bytes += key.len() + message.len();
        self.changes.push((key.clone(), message));
    }

    fn is_full(&self) -> bool {
        self.bytes > SNAPSHOT_BYTES || self.changes.len() >= SNAPSHOT_KEYS_MAX
    }
}

impl<'a> Asked<'a> {
    /// What keys hold from there on.
    pub(in crate::kv) fn snapshot(
        &'a self,
        prefix: &Bytes,
        only: Option<&Bytes>,
        from: &SnapshotFrom,
    ) -> Result<Decision, Reject> {
        size("prefix", prefix, KEY_BYTES_MAX)?;
        let mut part = Part { changes: Vec::new(), bytes: 0 };
        let (next, again) = match from {
            SnapshotFrom::Within { key, collection, version, items } => {
                self.go_on(&mut part, key, *collection, *version, items)?
            }
            SnapshotFrom::Start => (self.keys(&mut part, prefix, only, Bound::Included(prefix))?, false),
            SnapshotFrom::Behind(key) => (self.keys(&mut part, prefix, only, Bound::Excluded(key))?, false),
        };
        let upto = Lsn(self.lsn.0.saturating_sub(1));
        let reply = Reply::KvSnapshot(SnapshotPart { changes: part.changes, next, upto, again });
        Ok(Decision::Answer { reply, seen: upto })
    }

    fn keys(
        &'a self,
        part: &mut Part,
        prefix: &Bytes,
        only: Option<&Bytes>,
        from: Bound<&Bytes>,
    ) -> Result<Option<SnapshotFrom>, Reject> {
        if let Some(key) = only {
            return match from {
                Bound::Excluded(_) => Ok(None),
                _ => self.key(part, key),
            };
        }
        let slab = &self.store.slab;
        let places = self.store.ordered.range(slab, (from.map(|key| &key[..]), Bound::Unbounded));
        let keys = places.filter_map(|place| slab.get(place)).map(Entry::key);
        let mut last: Option<&[u8]> = None;
        for (passed, key) in keys.take_while(|key| key.starts_with(prefix)).enumerate() {
            if let Some(last) = last.filter(|_| part.is_full() || passed == BATCH_ITEMS_MAX) {
                return Ok(Some(SnapshotFrom::Behind(Bytes::copy_from_slice(last))));
            }
            let before = part.changes.len();
            let within = self.key(part, &Bytes::copy_from_slice(key))?;
            if within.is_some() {
                // What is too large for one part is alone in its first: the others are as of the same entry.
                return Ok(match last {
                    Some(last) => {
                        part.changes.truncate(before);
                        Some(SnapshotFrom::Behind(Bytes::copy_from_slice(last)))
                    }
                    None => within,
                });
            }
            last = Some(key);
        }
        Ok(None)
    }

    /// A key, if it is there; where it goes on if it is too large.
    fn key(&'a self, part: &mut Part, key: &Bytes) -> Result<Option<SnapshotFrom>, Reject> {
        let Some(found) = self.found(key) else { return Ok(None) };
        let first = KvChange { kind: ChangeKind::Present, version: found.version, ..KvChange::default() };
        let change = head(&found, first);
        if let Some(members) = Members::of(&found) {
            return pieces(part, key, &found, &members, change, ItemsFrom::Start);
        }
        part.push(key, &change);
        part.bytes += found.value.cold().map_or(0, |cold| cold.len as usize);
        Ok(None)
    }

    /// More of a collection that was begun in another part, if it is still there.
    fn go_on(
        &'a self,
        part: &mut Part,
        key: &Bytes,
        collection: u64,
        version: Lsn,
        from: &ItemsFrom,
    ) -> Result<(Option<SnapshotFrom>, bool), Reject> {
        let behind = Some(SnapshotFrom::Behind(key.clone()));
        let Some(found) = self.found(key) else { return Ok((behind, false)) };
        let Some(members) = Members::of(&found).filter(|of| of.number() == collection) else {
            return Ok((behind, false));
        };
        if members.holds() == KvType::List && found.version != version {
            return Ok((self.key(part, key)?.or(behind), true));
        }
        let change = more(&members, found.version);
        let next = pieces(part, key, &found, &members, change, from.clone())?;
        Ok((next.or(behind), false))
    }

    fn found(&'a self, key: &[u8]) -> Option<Found<'a>> {
        let entry = self.store.entry(key).filter(|entry| entry.is_live(self.now))?;
        Some(stored(self, entry, self.now))
    }
}

/// Items of a collection, until the part is full.
fn pieces(
    part: &mut Part,
    key: &Bytes,
    found: &Found<'_>,
    members: &Members<'_>,
    mut change: KvChange,
    mut from: ItemsFrom,
) -> Result<Option<SnapshotFrom>, Reject> {
    let before = part.bytes;
    loop {
        let (listed, next) = items(members, &from, false)?;
        change.items = listed;
        change.more = next.is_some();
        part.push(key, &change);
        let Some(next) = next else { return Ok(None) };
        if part.bytes - before > SNAPSHOT_BYTES {
            let collection = members.number();
            let (key, version) = (key.clone(), found.version);
            return Ok(Some(SnapshotFrom::Within { key, collection, version, items: next }));
        }
        from = next;
        change = more(members, found.version);
    }
}

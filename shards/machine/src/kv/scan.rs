//! What can be asked of a range of keys.

use std::ops::{Bound, RangeBounds};

use bytes::Bytes;
use flowmesh_model::command::KeyScan;
use flowmesh_model::limits::{BATCH_ITEMS_MAX, KEY_BYTES_MAX, REPLY_BYTES_MAX};
use flowmesh_model::reply::KvStatus;
use flowmesh_model::settings::within;
use flowmesh_model::{Batch, Fact, Reject, Reply};

use super::decide::Asked;
use super::entry::Entry;
use super::run::glob;
use super::slab::Place;
use crate::decision::Decision;
use crate::limit::size;

/// Keys a scan steps over, because they have ended or do not match, before it says that there may be more: bounds the work
/// of one call.
const PASSED_MAX: usize = BATCH_ITEMS_MAX;

/// The keys that a scan is about: the first, and the first behind them.
pub(in crate::kv) fn range(scan: &KeyScan) -> (Bound<&[u8]>, Bound<Vec<u8>>) {
    let start = scan.start.as_deref().unwrap_or_default().max(&scan.prefix);
    let behind_prefix = behind(&scan.prefix);
    let end = match (scan.end.as_deref(), &behind_prefix) {
        (Some(end), Some(behind)) => Some(end.min(behind).to_vec()),
        (Some(end), None) => Some(end.to_vec()),
        (None, _) => behind_prefix,
    };
    (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded))
}

/// The first text behind all that start with a prefix, if there is one.
fn behind(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != u8::MAX)?;
    let mut behind = prefix.get(..=last)?.to_vec();
    *behind.last_mut()? += 1;
    Some(behind)
}

impl Asked<'_> {
    /// Keys of a range, in byte order or back, up to the limits. What was removed lately may have been in the range, so the
    /// last removal is always seen.
    pub(super) fn scan(&self, scan: &KeyScan) -> Result<Decision, Reject> {
        size("prefix", &scan.prefix, KEY_BYTES_MAX)?;
        for (name, key) in
            [("start", &scan.start), ("end", &scan.end), ("after", &scan.after), ("glob", &scan.glob)]
        {
            size(name, key.as_deref().unwrap_or_default(), KEY_BYTES_MAX)?;
        }
        within("keys_max", u64::from(scan.keys_max), 1, BATCH_ITEMS_MAX as u64)?;
        let (mut low, end) = range(scan);
        let mut high = end.as_ref().map(Vec::as_slice);
        if let Some(after) = scan.after.as_deref() {
            if !RangeBounds::<[u8]>::contains(&(low, high), after) {
                return Err(Reject::ForeignCursor);
            }
            *if scan.reverse { &mut high } else { &mut low } = Bound::Excluded(after);
        }
        if is_empty(low, high) {
            let reply = Reply::Scanned { entries: Vec::new(), next: None };
            return Ok(Decision::Answer { reply, seen: self.store.last_removal });
        }
        let keys = self.store.ordered.range(&self.store.slab, (low, high));
        Ok(if scan.reverse { self.show(scan, keys.rev()) } else { self.show(scan, keys) })
    }

    fn show(&self, scan: &KeyScan, places: impl Iterator<Item = Place>) -> Decision {
        let (mut entries, mut bytes, mut passed) = (Vec::new(), 0, 0);
        let mut seen = self.store.last_removal;
        let (mut last, mut more) = (None, false);
        for held in places.filter_map(|place| self.store.slab.get(place)) {
            if entries.len() == scan.keys_max as usize || passed == PASSED_MAX {
                more = true;
                break;
            }
            let key = held.key();
            let matches = scan.glob.as_ref().is_none_or(|glob| glob::matches(glob, key));
            let Some(entry) = Some(held).filter(|entry| matches && entry.is_live(self.now)) else {
                seen = seen.max(held.version());
                passed += 1;
                last = Some(key);
                continue;
            };
            let value = self.value_of(entry, scan.with_values);
            let cold = if scan.with_values { entry.view().cold() } else { None };
            bytes += key.len() + value.value.len() + cold.map_or(0, |cold| cold.len as usize);
            if bytes > REPLY_BYTES_MAX && !entries.is_empty() {
                more = true;
                break;
            }
            seen = seen.max(entry.version());
            entries.push((Bytes::copy_from_slice(key), value));
            last = Some(key);
        }
        let next = last.filter(|_| more).map(Bytes::copy_from_slice);
        Decision::Answer { reply: Reply::Scanned { entries, next }, seen }
    }

    /// A key by chance: one that is drawn and has ended is drawn again, some times.
    pub(super) fn random(&self, seed: u64) -> Decision {
        const DRAWS: usize = 32;
        let mut seen = self.store.last_removal;
        let mut is_live = |entry: &&Entry| {
            seen = seen.max(entry.version());
            entry.is_live(self.now)
        };
        let drawn = self.store.draw(seed, DRAWS).find(&mut is_live);
        let first = || self.store.ordered.iter().filter_map(|place| self.store.slab.get(place)).find(is_live);
        let entries = drawn
            .or_else(first)
            .map(|entry| (Bytes::copy_from_slice(entry.key()), self.value_of(entry, false)))
            .into_iter()
            .collect();
        Decision::Answer { reply: Reply::Scanned { entries, next: None }, seen }
    }

    pub(super) fn status(&self) -> Decision {
        let status = KvStatus {
            keys: self.store.len() as u64,
            expiring: self.store.expiry.len() as u64,
            memory_bytes: self.store.held_bytes(),
            cold: self.store.cold().entries as u64,
            bytes: self.store.taken().bytes,
        };
        Decision::Answer { reply: Reply::KvStatus(status), seen: self.store.last_change }
    }

    /// The first keys go.
    pub(super) fn clear(&self, keys_max: u32) -> Result<Decision, Reject> {
        within("keys_max", u64::from(keys_max), 1, BATCH_ITEMS_MAX as u64)?;
        let first = self.store.ordered.iter().take(keys_max as usize);
        let key_of = |place| Bytes::copy_from_slice(self.store.slab.key(place));
        let gone = |place| Fact::KeyDeleted { store: self.id, key: key_of(place) };
        let facts: Batch<Fact> = first.map(gone).collect();
        let (count, more) = (facts.len(), self.store.len() > facts.len());
        let reply = Reply::KvCleared { count: count as u64, more };
        Ok(if facts.is_empty() {
            Decision::Answer { reply, seen: self.store.last_removal }
        } else {
            Decision::Change { facts, reply }
        })
    }
}

/// Whether nothing can be between two bounds: a map refuses such a range.
pub(in crate::kv) fn is_empty(low: Bound<&[u8]>, high: Bound<&[u8]>) -> bool {
    let (Bound::Included(from) | Bound::Excluded(from)) = low else { return false };
    let (Bound::Included(to) | Bound::Excluded(to)) = high else { return false };
    from >= to
}

//! What can be asked of a range of keys.

use std::ops::Bound;

use bytes::Bytes;
use flowmesh_model::limits::{BATCH_ITEMS_MAX, KEY_BYTES_MAX, REPLY_BYTES_MAX};
use flowmesh_model::reply::KvStatus;
use flowmesh_model::settings::within;
use flowmesh_model::{Batch, Fact, Lsn, Reject, Reply};

use super::Key;
use super::decide::{Asked, value_of};
use crate::decision::Decision;
use crate::limit::size;

/// Expired keys a scan steps over before it says that there may be more: bounds the work when many keys end together.
const EXPIRED_MAX: usize = BATCH_ITEMS_MAX;

impl Asked<'_> {
    /// Keys with a prefix, in byte order, up to the limits. What was removed lately may have been in the range, so the
    /// last removal is always seen.
    pub(super) fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        keys_max: u32,
        with_values: bool,
    ) -> Result<Decision, Reject> {
        size("prefix", prefix, KEY_BYTES_MAX)?;
        size("after", after.unwrap_or_default(), KEY_BYTES_MAX)?;
        within("keys_max", u64::from(keys_max), 1, BATCH_ITEMS_MAX as u64)?;
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let (mut entries, mut bytes, mut expired, mut more) = (Vec::new(), 0, 0, false);
        let mut seen = self.store.last_removal;
        for key in self.store.ordered.range::<[u8], _>((start, Bound::Unbounded)) {
            if !key.starts_with(prefix) {
                break;
            }
            if entries.len() == keys_max as usize || expired == EXPIRED_MAX {
                more = true;
                break;
            }
            let mut version = Lsn(0);
            let Some(entry) = self.look(key, &mut version) else {
                seen = seen.max(version);
                expired += 1;
                continue;
            };
            let value = value_of(entry, with_values);
            bytes += key.len() + value.value.len();
            if bytes > REPLY_BYTES_MAX && !entries.is_empty() {
                more = true;
                break;
            }
            seen = seen.max(version);
            entries.push((Bytes::copy_from_slice(key), value));
        }
        Ok(Decision::Answer { reply: Reply::Scanned { entries, more }, seen })
    }

    /// A key by chance: one that is drawn and has ended is drawn again, some times.
    pub(super) fn random(&self, seed: u64) -> Decision {
        const DRAWS: usize = 32;
        let mut seen = self.store.last_removal;
        let drawn = self.store.draw(seed, DRAWS).find_map(|key| self.look(key, &mut seen));
        let live = drawn.or_else(|| self.store.ordered.iter().find_map(|key| self.look(key, &mut seen)));
        let entries = live
            .map(|entry| (Bytes::copy_from_slice(&entry.key), value_of(entry, false)))
            .into_iter()
            .collect();
        Decision::Answer { reply: Reply::Scanned { entries, more: false }, seen }
    }

    pub(super) fn status(&self) -> Decision {
        let status = KvStatus {
            keys: self.store.len() as u64,
            expiring: self.store.expiry.len() as u64,
            memory_bytes: self.store.memory_bytes(),
        };
        Decision::Answer { reply: Reply::KvStatus(status), seen: self.store.last_change }
    }

    /// The first keys go.
    pub(super) fn clear(&self, keys_max: u32) -> Result<Decision, Reject> {
        within("keys_max", u64::from(keys_max), 1, BATCH_ITEMS_MAX as u64)?;
        let first = self.store.ordered.iter().take(keys_max as usize);
        let gone = |key: &Key| Fact::KeyDeleted { store: self.id, key: Bytes::copy_from_slice(key) };
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

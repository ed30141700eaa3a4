//! What can be asked of a range of keys.

use std::ops::Bound;

use bytes::Bytes;
use flowmesh_model::limits::{BATCH_ITEMS_MAX, KEY_BYTES_MAX, REPLY_BYTES_MAX};
use flowmesh_model::settings::within;
use flowmesh_model::{Lsn, Reject, Reply};

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
            bytes += key.len() + if with_values { entry.value.len() } else { 0 };
            if bytes > REPLY_BYTES_MAX && !entries.is_empty() {
                more = true;
                break;
            }
            seen = seen.max(version);
            entries.push((Bytes::copy_from_slice(key), value_of(entry, with_values)));
        }
        Ok(Decision::Answer { reply: Reply::Scanned { entries, more }, seen })
    }
}

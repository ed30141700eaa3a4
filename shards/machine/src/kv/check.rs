//! A store's invariants, and its state as text.

use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;

use super::Store;
use crate::changes::Seals;

impl Store {
    /// Checks every invariant.
    pub fn check(&self, seals: &Seals) {
        let (mut memory_bytes, mut expiring) = (0, 0);
        for key in &self.ordered {
            let Some(entry) = self.entry(key) else { panic!("a key in order but not in the table: {key:?}") };
            assert!(Arc::ptr_eq(&entry.key, key), "key bytes exist once");
            memory_bytes += entry.memory_bytes();
            if let Some(at) = entry.expires_at() {
                assert!(
                    self.expiry.get(&(at, entry.expiry_number)).is_some_and(|other| Arc::ptr_eq(other, key))
                );
                expiring += 1;
            }
            if seals.is_listed(entry.mark) && seals.are_made() {
                assert!(self.changes.has_listed(key), "a key is marked but not listed: {key:?}");
            }
        }
        assert_eq!(self.table.len(), self.ordered.len());
        assert_eq!(self.expiry.len(), expiring);
        assert_eq!(self.memory_bytes, memory_bytes);
    }

    /// The state as text.
    pub fn dump(&self, out: &mut String) {
        let _ = writeln!(out, "  last removal {}", self.last_removal);
        for key in &self.ordered {
            if let Some(entry) = self.entry(key) {
                let (key, version, end) = (Bytes::copy_from_slice(key), entry.version, entry.expires_at());
                let _ = writeln!(out, "  {key:?} = {:?} version {version} ends {end:?}", entry.value);
            }
        }
    }
}

//! Entries by the hash of their key.
//!
//! The table has half of each hash and where the entry is, eight bytes: one that grows touches no entry. It is cut into
//! parts that grow one at a time: moving one part of ten million entries takes some milliseconds instead of some hundreds.

use hashbrown::HashTable;
use hashbrown::hash_table::OccupiedEntry;

use super::slab::{Place, Slab};

/// Parts of a table. Each costs nothing while it is empty but its header.
const PARTS: usize = 64;

type Part = HashTable<(u32, Place)>;

/// Where entries are, by hash. Never iterated but to draw one by chance.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Empty until the first entry.
    parts: Vec<Part>,
}

/// Bits that are not in the half that is kept.
fn part_of(hash: u64) -> usize {
    (hash >> 48) as usize % PARTS
}

/// The half of a hash that is kept.
fn half(hash: u64) -> u32 {
    hash as u32
}

/// What a part is ordered by: buckets take its low bits, tags the top seven.
fn spread(half: u32) -> u64 {
    u64::from(half) << 32 | u64::from(half)
}

impl Table {
    /// Where the entry of a key is.
    #[inline]
    pub fn find(&self, hash: u64, key: &[u8], slab: &Slab) -> Option<Place> {
        let part = self.parts.get(part_of(hash))?;
        let is_it = |(other, place): &(u32, Place)| *other == half(hash) && slab.key(*place) == key;
        part.find(spread(half(hash)), is_it).map(|(_, place)| *place)
    }

    /// Where the entry of a key is in all likelihood, if there is one: looks at no entry. Keys of which as much of the hash
    /// is the same are one in some billions.
    #[inline]
    pub fn guess(&self, hash: u64) -> Option<Place> {
        let part = self.parts.get(part_of(hash))?;
        part.find(spread(half(hash)), |(other, _)| *other == half(hash)).map(|(_, place)| *place)
    }

    /// Adds an entry whose key is not there.
    pub fn insert(&mut self, hash: u64, place: Place) {
        if self.parts.is_empty() {
            self.parts.resize_with(PARTS, Part::new);
        }
        if let Some(part) = self.parts.get_mut(part_of(hash)) {
            part.insert_unique(spread(half(hash)), (half(hash), place), |(half, _)| spread(*half));
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.parts.iter().map(Part::len).sum()
    }

    /// The entry of a place, in no order that means anything: for those who draw one by chance. Goes over one part.
    pub fn nth(&self, mut nth: usize) -> Option<Place> {
        for part in &self.parts {
            if nth < part.len() {
                return part.iter().nth(nth).map(|(_, place)| *place);
            }
            nth -= part.len();
        }
        None
    }

    /// Forgets where an entry is.
    pub fn remove(&mut self, hash: u64, place: Place) -> bool {
        let Some(part) = self.parts.get_mut(part_of(hash)) else { return false };
        let found = part.find_entry(spread(half(hash)), |(_, other)| *other == place);
        found.map(OccupiedEntry::remove).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use flowmesh_model::{Lsn, Millis};
    use proptest::prelude::*;

    use super::super::entry::Entry;
    use super::super::value::Value;
    use super::*;
    use crate::changes::Mark;

    proptest! {
        /// Hashes meet as often as they can: only keys tell entries apart.
        #[test]
        fn keys_are_told_apart_whatever_their_hashes(steps: Vec<(u8, u8, bool)>) {
            let (mut table, mut slab) = (Table::default(), Slab::default());
            let mut model: BTreeMap<u8, Place> = BTreeMap::new();
            let hash_of = |key: u8| u64::from(key % 4) | u64::from(key % 3) << 48;
            for (key, asked, put) in steps {
                let (hash, found) = (hash_of(key), table.find(hash_of(key), &[key], &slab));
                prop_assert_eq!(found, model.get(&key).copied());
                match found {
                    Some(place) if !put => {
                        prop_assert!(table.remove(hash, place));
                        slab.remove(place);
                        model.remove(&key);
                    }
                    None if put => {
                        let value = Value::Bytes(bytes::Bytes::new());
                        let place = slab.insert(Entry::new(&[key], value, Lsn(1), Millis(0), Mark::NEW));
                        table.insert(hash, place);
                        model.insert(key, place);
                    }
                    _ => {}
                }
                prop_assert_eq!(table.len(), model.len());
                prop_assert_eq!(table.find(hash_of(asked), &[asked], &slab), model.get(&asked).copied());
                if let Some(place) = table.guess(hash_of(asked)) {
                    prop_assert_eq!(hash_of(slab.key(place)[0]), hash_of(asked));
                } else {
                    prop_assert!(!model.contains_key(&asked));
                }
                let drawn: std::collections::BTreeSet<Place> =
                    (0..table.len()).filter_map(|nth| table.nth(nth)).collect();
                prop_assert_eq!(drawn, model.values().copied().collect());
            }
        }
    }
}

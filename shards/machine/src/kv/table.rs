//! Entries by the hash of their key.
//!
//! Entries live behind a pointer and their hash beside it, so that a table that grows moves sixteen bytes an entry and
//! touches none. It is cut into parts that grow one at a time: moving one part of ten million entries takes some
//! milliseconds instead of some hundreds.

use hashbrown::HashTable;
use hashbrown::hash_table;

use super::Entry;

/// Parts of a table. Each costs nothing while it is empty but its header.
const PARTS: usize = 64;

type Part = HashTable<(u64, Box<Entry>)>;

/// Entries by hash. Never iterated but to draw one by chance.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Empty until the first entry.
    parts: Vec<Part>,
}

/// Bits that neither the table's buckets (low bits) nor its tags (the top seven) use.
fn part_of(hash: u64) -> usize {
    (hash >> 48) as usize % PARTS
}

impl Table {
    #[inline]
    pub fn find(&self, hash: u64, key: &[u8]) -> Option<&Entry> {
        let part = self.parts.get(part_of(hash))?;
        part.find(hash, |(other, entry)| *other == hash && *entry.key == *key)
            .map(|(_, entry)| entry.as_ref())
    }

    #[inline]
    pub fn find_mut(&mut self, hash: u64, key: &[u8]) -> Option<&mut Entry> {
        let part = self.parts.get_mut(part_of(hash))?;
        part.find_mut(hash, |(other, entry)| *other == hash && *entry.key == *key)
            .map(|(_, entry)| entry.as_mut())
    }

    /// Adds an entry whose key is not there.
    pub fn insert(&mut self, hash: u64, entry: Entry) {
        if self.parts.is_empty() {
            self.parts.resize_with(PARTS, Part::new);
        }
        if let Some(part) = self.parts.get_mut(part_of(hash)) {
            part.insert_unique(hash, (hash, Box::new(entry)), |(hash, _)| *hash);
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.parts.iter().map(Part::len).sum()
    }

    /// The entry of a place, in no order that means anything: for those who draw one by chance. Goes over one part.
    pub fn nth(&self, mut place: usize) -> Option<&Entry> {
        for part in &self.parts {
            if place < part.len() {
                return part.iter().nth(place).map(|(_, entry)| entry.as_ref());
            }
            place -= part.len();
        }
        None
    }

    pub fn remove(&mut self, hash: u64, key: &[u8]) -> Option<Entry> {
        let part = self.parts.get_mut(part_of(hash))?;
        let found: Result<hash_table::OccupiedEntry<'_, _>, _> =
            part.find_entry(hash, |(other, entry)| *other == hash && *entry.key == *key);
        let ((_, entry), _) = found.ok()?.remove();
        Some(*entry)
    }
}

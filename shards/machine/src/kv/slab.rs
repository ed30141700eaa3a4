//! Entries by number, in pages of 64, so that what leads to an entry takes four bytes.
//!
//! A number is given again once its entry is gone, the lowest first: then pages far behind become empty, and go.

use std::collections::BTreeSet;

use super::entry::Entry;

/// Where an entry is, for as long as it is there. Not part of the state: the same entries may be elsewhere after a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place(u32);

const PAGE_BITS: u32 = 6;
const PAGE_ENTRIES: usize = 1 << PAGE_BITS;

impl Place {
    /// The place with this number.
    pub fn of(number: u32) -> Self {
        Self(number)
    }

    pub fn number(self) -> u32 {
        self.0
    }

    fn page(self) -> usize {
        (self.0 >> PAGE_BITS) as usize
    }

    fn in_page(self) -> usize {
        self.0 as usize % PAGE_ENTRIES
    }
}

#[derive(Debug, Default)]
struct Page {
    /// A bit for each entry.
    used: u64,
    /// Alone in their piece of memory: 1536 bytes are a size that allocators have.
    entries: Option<Box<[Entry; PAGE_ENTRIES]>>,
}

fn vacant() -> Box<[Entry; PAGE_ENTRIES]> {
    Box::new(std::array::from_fn(|_| Entry::vacant()))
}

/// Entries by number.
#[derive(Debug, Default)]
pub(crate) struct Slab {
    pages: Vec<Page>,
    /// Pages that have room, those included that are not there.
    with_room: BTreeSet<u32>,
    len: usize,
}

impl Slab {
    pub fn len(&self) -> usize {
        self.len
    }

    /// A number above all that are taken.
    pub fn end(&self) -> u32 {
        (self.pages.len() << PAGE_BITS) as u32
    }

    #[inline]
    pub fn get(&self, place: Place) -> Option<&Entry> {
        let entries = self.pages.get(place.page())?.entries.as_ref()?;
        entries.get(place.in_page()).filter(|entry| !entry.is_vacant())
    }

    #[inline]
    pub fn get_mut(&mut self, place: Place) -> Option<&mut Entry> {
        let entries = self.pages.get_mut(place.page())?.entries.as_mut()?;
        entries.get_mut(place.in_page()).filter(|entry| !entry.is_vacant())
    }

    /// All entries, as they lie.
    pub fn iter(&self) -> impl Iterator<Item = (Place, &Entry)> {
        (0..).step_by(PAGE_ENTRIES).zip(&self.pages).flat_map(|(first, page)| {
            let entries = page.entries.iter().flat_map(|entries| entries.iter());
            (first..).map(Place).zip(entries).filter(|(_, entry)| !entry.is_vacant())
        })
    }

    /// The key of a place; nothing if there is no entry.
    #[inline]
    pub fn key(&self, place: Place) -> &[u8] {
        self.get(place).map_or(&[], Entry::key)
    }

    pub fn insert(&mut self, entry: Entry) -> Place {
        debug_assert!(!entry.is_vacant());
        let number = if let Some(number) = self.with_room.first() {
            *number
        } else {
            let Ok(number) = u32::try_from(self.pages.len()) else { panic!("more entries than numbers") };
            assert!(number < u32::MAX >> PAGE_BITS, "more entries than numbers");
            self.pages.push(Page::default());
            self.with_room.insert(number);
            number
        };
        let Some(page) = self.pages.get_mut(number as usize) else { panic!("a page that there is not") };
        let free = page.used.trailing_ones();
        page.used |= 1 << free;
        if page.used == u64::MAX {
            self.with_room.remove(&number);
        }
        let place = Place(number << PAGE_BITS | free);
        if let Some(room) = page.entries.get_or_insert_with(vacant).get_mut(place.in_page()) {
            *room = entry;
        }
        self.len += 1;
        place
    }

    pub fn remove(&mut self, place: Place) -> Option<Entry> {
        let page = self.pages.get_mut(place.page())?;
        let entry = page.entries.as_mut()?.get_mut(place.in_page()).filter(|entry| !entry.is_vacant())?;
        let entry = std::mem::replace(entry, Entry::vacant());
        page.used &= !(1 << place.in_page());
        self.len -= 1;
        if page.used == 0 {
            page.entries = None;
        }
        self.with_room.insert(place.page() as u32);
        while self.pages.last().is_some_and(|page| page.used == 0) {
            self.pages.pop();
            self.with_room.remove(&(self.pages.len() as u32));
        }
        Some(entry)
    }

    /// Checks that what is counted and listed is so.
    pub fn check(&self) {
        let mut len = 0;
        for (number, page) in self.pages.iter().enumerate() {
            let used = page.used;
            for (index, entry) in page.entries.iter().flat_map(|entries| entries.iter()).enumerate() {
                assert_eq!(entry.is_vacant(), used & (1 << index) == 0);
            }
            assert_eq!(page.entries.is_none(), used == 0, "an empty page goes");
            assert_eq!(self.with_room.contains(&(number as u32)), used != u64::MAX);
            len += used.count_ones() as usize;
        }
        assert!(self.pages.last().is_none_or(|last| last.used != 0), "empty pages at the end go");
        assert!(self.with_room.last().is_none_or(|last| (*last as usize) < self.pages.len()));
        assert_eq!(self.len, len);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use flowmesh_model::{Lsn, Millis};
    use proptest::prelude::*;

    use super::super::value::Value;
    use super::*;
    use crate::changes::Mark;

    fn entry(key: u32) -> Entry {
        let value = Value::Bytes(key.to_be_bytes().to_vec().into());
        Entry::new(&key.to_be_bytes(), value, Lsn(1), Millis(0), Mark::NEW)
    }

    proptest! {
        #[test]
        fn it_has_what_was_put_and_not_removed(steps: Vec<(bool, u16)>) {
            let mut slab = Slab::default();
            let mut model: BTreeMap<Place, u32> = BTreeMap::new();
            for (key, (put, which)) in steps.into_iter().enumerate() {
                if put {
                    // Pages get full only if many come at once.
                    for number in 0..u32::from(which % 100) {
                        let key = (key as u32) << 8 | number;
                        prop_assert!(model.insert(slab.insert(entry(key)), key).is_none());
                    }
                } else {
                    let places: Vec<Place> = model.keys().copied().collect();
                    for (index, place) in places.into_iter().enumerate() {
                        if which == 0 || index % usize::from(which) != 0 {
                            let key = model.remove(&place).unwrap();
                            let removed = slab.remove(place).unwrap();
                            prop_assert_eq!(removed.key(), &key.to_be_bytes());
                            prop_assert!(slab.get(place).is_none() && slab.remove(place).is_none());
                        }
                    }
                }
                slab.check();
                prop_assert_eq!(slab.len(), model.len());
                prop_assert!(slab.iter().map(|(place, _)| place).eq(model.keys().copied()));
                for (place, key) in &model {
                    prop_assert_eq!(slab.key(*place), &key.to_be_bytes());
                }
            }
        }
    }

    #[test]
    fn pages_go_once_they_are_empty() {
        let mut slab = Slab::default();
        let places: Vec<Place> = (0..1000).map(|key| slab.insert(entry(key))).collect();
        for place in &places[64..] {
            slab.remove(*place);
        }
        assert_eq!(slab.pages.len(), 1);
        assert_eq!(slab.insert(entry(0)), places[64], "numbers are given again");
    }
}

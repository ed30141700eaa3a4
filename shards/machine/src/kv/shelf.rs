//! Where the pages of collections are kept: in chunks by number, so that finding one of very many takes about as long as finding one of
//! few. A page of a set of ten million members is one of 150 000, and an add looks for a dozen of them.

use std::collections::BTreeMap;

use flowmesh_model::SlotId;

use super::pages::PageKey;
use super::tree::PageNo;
use crate::items::Map;

/// Pages of a chunk. Numbers of a collection's pages are given in order and never again, so that most places of a chunk are taken.
const CHUNK_PAGES: u32 = 256;

/// Which chunk of which collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ChunkKey {
    collection: u64,
    chunk: u32,
    slot: SlotId,
}

impl From<&PageKey> for ChunkKey {
    #[inline]
    fn from(key: &PageKey) -> Self {
        Self { collection: key.collection, chunk: key.page.0 / CHUNK_PAGES, slot: key.slot }
    }
}

impl ChunkKey {
    fn page(self, place: usize) -> PageKey {
        let page = PageNo(self.chunk * CHUNK_PAGES + place as u32);
        PageKey { collection: self.collection, page, slot: self.slot }
    }
}

#[inline]
fn place(key: &PageKey) -> usize {
    (key.page.0 % CHUNK_PAGES) as usize
}

/// Pages by number, as far as there are some; not empty.
#[derive(Debug)]
struct Chunk<E> {
    pages: Vec<Option<E>>,
    len: usize,
}

impl<E> Chunk<E> {
    fn take(&mut self, place: usize) -> Option<E> {
        let taken = self.pages.get_mut(place)?.take()?;
        self.len -= 1;
        Some(taken)
    }
}

/// Pages by key. In the order of collections, and of pages within each.
#[derive(Debug)]
pub(crate) struct Shelf<E> {
    chunks: BTreeMap<ChunkKey, Chunk<E>>,
    len: usize,
}

impl<E> Default for Shelf<E> {
    fn default() -> Self {
        Self { chunks: BTreeMap::new(), len: 0 }
    }
}

impl<E> Shelf<E> {
    /// A page is taken out of a chunk, which goes if that was the last one.
    fn taken(&mut self, chunk: ChunkKey) {
        self.len -= 1;
        if self.chunks.get(&chunk).is_some_and(|chunk| chunk.len == 0) {
            self.chunks.remove(&chunk);
        }
    }
}

impl<E> Map<PageKey, E> for Shelf<E> {
    #[inline]
    fn get(&self, key: &PageKey) -> Option<&E> {
        self.chunks.get(&key.into())?.pages.get(place(key))?.as_ref()
    }

    #[inline]
    fn get_mut(&mut self, key: &PageKey) -> Option<&mut E> {
        self.chunks.get_mut(&key.into())?.pages.get_mut(place(key))?.as_mut()
    }

    fn insert(&mut self, key: PageKey, entry: E) -> Option<E> {
        let chunk = self.chunks.entry((&key).into()).or_insert_with(|| Chunk { pages: Vec::new(), len: 0 });
        let place = place(&key);
        if place >= chunk.pages.len() {
            chunk.pages.resize_with(place + 1, || None);
        }
        let before = chunk.pages.get_mut(place).and_then(|page| page.replace(entry));
        if before.is_none() {
            chunk.len += 1;
            self.len += 1;
        }
        before
    }

    fn remove_entry(&mut self, key: &PageKey) -> Option<(PageKey, E)> {
        let chunk = key.into();
        let taken = self.chunks.get_mut(&chunk)?.take(place(key))?;
        self.taken(chunk);
        Some((*key, taken))
    }

    fn pop_first(&mut self) -> Option<(PageKey, E)> {
        let mut first = self.chunks.first_entry()?;
        let (key, chunk) = (*first.key(), first.get_mut());
        let place = chunk.pages.iter().position(Option::is_some)?;
        let taken = chunk.take(place)?;
        self.taken(key);
        Some((key.page(place), taken))
    }

    fn len(&self) -> usize {
        self.len
    }

    fn each<'a>(&'a self) -> impl Iterator<Item = (PageKey, &'a E)>
    where
        E: 'a,
    {
        let pages = |(key, chunk): (&ChunkKey, &'a Chunk<E>)| {
            let key = *key;
            let page = move |(place, page): (usize, &'a Option<E>)| Some((key.page(place), page.as_ref()?));
            chunk.pages.iter().enumerate().filter_map(page)
        };
        self.chunks.iter().flat_map(pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = PageKey> {
        // Chunks that are next to each other, and their first and last places.
        let page =
            prop_oneof![0..4u32, CHUNK_PAGES - 2..CHUNK_PAGES + 2, 9 * CHUNK_PAGES..9 * CHUNK_PAGES + 3];
        (0..3u64, page).prop_map(|(collection, page)| PageKey {
            collection,
            page: PageNo(page),
            slot: SlotId(collection as u16),
        })
    }

    proptest! {
        #[test]
        fn a_shelf_is_a_map_of_pages(steps in proptest::collection::vec((key(), 0..4u8), 0..200)) {
            let (mut shelf, mut map) = (Shelf::default(), BTreeMap::new());
            for (number, (key, what)) in steps.into_iter().enumerate() {
                match what {
                    0 => prop_assert_eq!(Map::remove_entry(&mut shelf, &key), map.remove_entry(&key)),
                    1 if number % 5 == 0 => prop_assert_eq!(Map::pop_first(&mut shelf), map.pop_first()),
                    1 => {
                        let changed = shelf.get_mut(&key).map(|page| *page += 1000);
                        prop_assert_eq!(changed, map.get_mut(&key).map(|page| *page += 1000));
                    }
                    _ => prop_assert_eq!(shelf.insert(key, number), map.insert(key, number)),
                }
                prop_assert_eq!(shelf.get(&key), map.get(&key));
                prop_assert_eq!(shelf.len(), map.len());
            }
            prop_assert_eq!(shelf.each().collect::<Vec<_>>(), map.each().collect::<Vec<_>>());
            while let Some(first) = map.pop_first() {
                prop_assert_eq!(shelf.pop_first(), Some(first));
            }
            prop_assert!(shelf.chunks.is_empty(), "a chunk goes with its last page");
        }
    }
}

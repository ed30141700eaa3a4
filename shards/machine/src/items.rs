//! A map whose changes reach the index by itself, as [`crate::changes`] says: whoever changes an item names it, and that
//! is all.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use bytes::Bytes;
use flowmesh_model::{IndexWrite, Space};

use crate::changes::{Change, Changes, Mark, Seals, Touch, image, removal};

/// What stands for an item.
pub(crate) trait Key: Ord + Clone {
    /// What its key in the index is made of besides itself.
    type Home;

    /// Where the index has it.
    const SPACE: Space;

    /// Its key in the index.
    fn in_index(&self, home: &Self::Home) -> Bytes;
}

/// An item.
pub(crate) trait Item {
    /// Its value in the index.
    fn encode(&self) -> Bytes;
}

/// What a checkpoint does with items, whatever they are.
pub(crate) trait Indexed<H> {
    /// Takes the changes into the sealed state.
    fn seal(&mut self);

    /// Writes at most `items_max` sealed changes. Returns how many it looked at: fewer means that is all.
    fn collect(&mut self, home: &H, seals: &Seals, items_max: usize, out: &mut Vec<IndexWrite>) -> usize;

    /// The sealed state is in the index.
    fn sealed_written(&mut self);

    /// The sealed state did not get into the index.
    fn unseal(&mut self, seals: &Seals);

    /// Takes at most `items_max` items of a dropped resource out of memory and appends the keys the index has of them to
    /// `gone`. Returns how many it took: fewer means that is all.
    fn bury(&mut self, home: &H, items_max: usize, gone: &mut Vec<(Space, Bytes)>) -> usize;
}

#[derive(Debug)]
pub(crate) struct Entry<V> {
    item: V,
    mark: Mark,
}

/// What items are kept in, in the order of their keys.
pub(crate) trait Map<K, E>: Default {
    fn get(&self, key: &K) -> Option<&E>;
    fn get_mut(&mut self, key: &K) -> Option<&mut E>;
    fn insert(&mut self, key: K, entry: E) -> Option<E>;
    fn remove_entry(&mut self, key: &K) -> Option<(K, E)>;
    fn pop_first(&mut self) -> Option<(K, E)>;
    fn len(&self) -> usize;
    fn each<'a>(&'a self) -> impl Iterator<Item = (K, &'a E)>
    where
        E: 'a;
}

impl<K: Ord + Clone, E> Map<K, E> for BTreeMap<K, E> {
    fn get(&self, key: &K) -> Option<&E> {
        self.get(key)
    }

    fn get_mut(&mut self, key: &K) -> Option<&mut E> {
        self.get_mut(key)
    }

    fn insert(&mut self, key: K, entry: E) -> Option<E> {
        self.insert(key, entry)
    }

    fn remove_entry(&mut self, key: &K) -> Option<(K, E)> {
        self.remove_entry(key)
    }

    fn pop_first(&mut self) -> Option<(K, E)> {
        self.pop_first()
    }

    fn len(&self) -> usize {
        self.len()
    }

    fn each<'a>(&'a self) -> impl Iterator<Item = (K, &'a E)>
    where
        E: 'a,
    {
        self.iter().map(|(key, entry)| (key.clone(), entry))
    }
}

/// Items by key, in the order of the keys.
#[derive(Debug)]
pub(crate) struct Items<K, V, M = BTreeMap<K, Entry<V>>> {
    map: M,
    changes: Changes<K>,
    values: PhantomData<V>,
}

impl<K, V, M: Default> Default for Items<K, V, M> {
    fn default() -> Self {
        Self { map: M::default(), changes: Changes::default(), values: PhantomData }
    }
}

/// Bytes that an item takes in memory besides what its value points to.
pub(crate) const fn item_bytes<K, V>() -> u64 {
    (size_of::<K>() + size_of::<Entry<V>>() + 32) as u64
}

impl<K: Key, V: Item> Items<K, V> {
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.map.iter().map(|(key, entry)| (key, &entry.item))
    }

    pub fn range(&self, keys: impl std::ops::RangeBounds<K>) -> impl Iterator<Item = (&K, &V)> {
        self.map.range(keys).map(|(key, entry)| (key, &entry.item))
    }
}

impl<K: Key, V: Item, M: Map<K, Entry<V>>> Items<K, V, M> {
    #[inline]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.map.get(key).map(|entry| &entry.item)
    }

    /// An item, to change of it what is no part of its value in the index.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.map.get_mut(key).map(|entry| &mut entry.item)
    }

    /// All items, in order.
    pub fn each<'a>(&'a self) -> impl Iterator<Item = (K, &'a V)>
    where
        V: 'a,
    {
        self.map.each().map(|(key, entry)| (key, &entry.item))
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Changes an item; it is made first if there is none.
    pub fn change<R>(
        &mut self,
        home: &K::Home,
        seals: &mut Seals,
        key: &K,
        make: impl FnOnce() -> V,
        change: impl FnOnce(&mut V) -> R,
    ) -> R {
        let (touch, result) = if let Some(entry) = self.map.get_mut(key) {
            let touch = seals.touch(&mut entry.mark);
            if touch == Touch::CaptureAndList {
                seals.capture(image(K::SPACE, key.in_index(home), entry.item.encode()));
            }
            (touch, change(&mut entry.item))
        } else {
            let mut mark = Mark::new(self.changes.is_back(key));
            let touch = seals.touch(&mut mark);
            let mut item = make();
            let result = change(&mut item);
            self.map.insert(key.clone(), Entry { item, mark });
            (touch, result)
        };
        // Listed once it is there: thinning out forgets what is not.
        if touch != Touch::Known {
            self.changes.list(key.clone());
            if self.changes.is_stale(self.map.len()) {
                self.changes.thin(|key| self.map.get(key).is_some());
            }
        }
        result
    }

    /// Takes an item out.
    pub fn remove(&mut self, home: &K::Home, seals: &mut Seals, key: &K) -> Option<V> {
        let (key, mut entry) = self.map.remove_entry(key)?;
        if seals.touch(&mut entry.mark) == Touch::CaptureAndList {
            seals.capture(image(K::SPACE, key.in_index(home), entry.item.encode()));
        }
        if entry.mark.in_index() {
            self.changes.list_gone(key);
        }
        Some(entry.item)
    }

    /// Puts an item that comes out of the index. Returns whether there was none.
    pub fn restore(&mut self, key: K, item: V) -> bool {
        self.map.insert(key, Entry { item, mark: Mark::IN_INDEX }).is_none()
    }

    /// Checks that exactly what changed is listed.
    pub fn check(&self, seals: &Seals) {
        if seals.are_made() {
            for (key, entry) in self.map.each() {
                assert_eq!(seals.is_listed(entry.mark), self.changes.has_listed(&key));
            }
        }
    }
}

impl<K: Key, V: Item, M: Map<K, Entry<V>>> Indexed<K::Home> for Items<K, V, M> {
    fn seal(&mut self) {
        self.changes.seal();
    }

    fn collect(
        &mut self,
        home: &K::Home,
        seals: &Seals,
        items_max: usize,
        out: &mut Vec<IndexWrite>,
    ) -> usize {
        for count in 0..items_max {
            match self.changes.next() {
                None => return count,
                Some(Change::Gone(key)) => out.push(removal(K::SPACE, key.in_index(home))),
                Some(Change::Listed(key)) => {
                    if let Some(entry) = self.map.get_mut(&key).filter(|entry| seals.is_sealed(entry.mark)) {
                        seals.collected(&mut entry.mark);
                        out.push(image(K::SPACE, key.in_index(home), entry.item.encode()));
                    }
                }
            }
        }
        items_max
    }

    fn sealed_written(&mut self) {
        self.changes.sealed_written();
    }

    fn unseal(&mut self, seals: &Seals) {
        let (changed, gone) = self.changes.unseal();
        for key in changed {
            if let Some(entry) = self.map.get_mut(&key)
                && seals.touch(&mut entry.mark) != Touch::Known
            {
                self.changes.list(key);
            }
        }
        for key in gone {
            match self.map.get_mut(&key) {
                Some(entry) => entry.mark.set_in_index(),
                None => self.changes.list_gone(key),
            }
        }
    }

    fn bury(&mut self, home: &K::Home, items_max: usize, gone: &mut Vec<(Space, Bytes)>) -> usize {
        for count in 0..items_max {
            let key = if let Some((key, entry)) = self.map.pop_first() {
                Some(key).filter(|_| entry.mark.in_index())
            } else if let Some(Change::Gone(key)) = self.changes.next() {
                Some(key)
            } else {
                return count;
            };
            gone.extend(key.map(|key| (K::SPACE, key.in_index(home))));
        }
        items_max
    }
}

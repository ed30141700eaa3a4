//! A map with few entries: a sorted vector, which for one file takes a tenth of what a node of a tree does. Of ten thousand
//! partitions most have one file.

use std::ops::{Bound, RangeBounds};

/// Entries in order of their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sorted<K, V>(Vec<(K, V)>);

impl<K, V> Default for Sorted<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Ord + Copy, V> Sorted<K, V> {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    fn place(&self, key: K) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| other.cmp(&key))
    }

    /// Adds an entry, or replaces the one with its key. Mostly the new key is the last one.
    pub fn insert(&mut self, key: K, value: V) {
        match self.place(key) {
            Ok(at) => {
                if let Some(entry) = self.0.get_mut(at) {
                    entry.1 = value;
                }
            }
            Err(at) => {
                if self.0.is_empty() {
                    self.0.reserve_exact(1);
                }
                self.0.insert(at, (key, value));
            }
        }
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.place(*key).ok().map(|at| self.0.remove(at).1)
    }

    /// What a key has.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.place(*key).ok().and_then(|at| self.0.get(at)).map(|(_, value)| value)
    }

    /// Whether there is an entry with that key.
    pub fn contains_key(&self, key: &K) -> bool {
        self.place(*key).is_ok()
    }

    /// The last entry.
    pub fn last_key_value(&self) -> Option<(&K, &V)> {
        self.0.last().map(|(key, value)| (key, value))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All entries in order.
    #[cfg(test)]
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// The entries with keys in a range, in order.
    pub fn range(&self, range: impl RangeBounds<K>) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        let from = match range.start_bound() {
            Bound::Included(key) => self.0.partition_point(|(other, _)| other < key),
            Bound::Excluded(key) => self.0.partition_point(|(other, _)| other <= key),
            Bound::Unbounded => 0,
        };
        let upto = match range.end_bound() {
            Bound::Included(key) => self.0.partition_point(|(other, _)| other <= key),
            Bound::Excluded(key) => self.0.partition_point(|(other, _)| other < key),
            Bound::Unbounded => self.0.len(),
        };
        self.0.get(from..upto).unwrap_or_default().iter().map(|(key, value)| (key, value))
    }

    /// Takes out the entries from a key on.
    pub fn split_off(&mut self, key: &K) -> Self {
        let at = self.0.partition_point(|(other, _)| other < key);
        Self(self.0.split_off(at))
    }

    /// Keeps the entries for which `keep` holds.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        self.0.retain(|(key, value)| keep(key, value));
    }
}

impl<K, V> IntoIterator for Sorted<K, V> {
    type Item = (K, V);
    type IntoIter = std::vec::IntoIter<(K, V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_is_what_a_tree_is(steps in prop::collection::vec((0u8..5, 0u8..12, any::<u8>()), 1..60)) {
            let (mut sorted, mut tree) = (Sorted::new(), BTreeMap::new());
            for (step, key, value) in steps {
                match step {
                    0 | 1 => {
                        sorted.insert(key, value);
                        tree.insert(key, value);
                    }
                    2 => prop_assert_eq!(sorted.remove(&key), tree.remove(&key)),
                    3 => {
                        let (a, b) = (sorted.split_off(&key), tree.split_off(&key));
                        prop_assert!(a.into_iter().eq(b));
                    }
                    _ => {
                        sorted.retain(|other, _| other % 5 != key % 5);
                        tree.retain(|other, _| other % 5 != key % 5);
                    }
                }
                prop_assert!(sorted.iter().eq(tree.iter()));
                prop_assert_eq!(sorted.get(&key), tree.get(&key));
                prop_assert_eq!(sorted.contains_key(&key), tree.contains_key(&key));
                prop_assert_eq!(sorted.last_key_value(), tree.last_key_value());
                prop_assert_eq!(sorted.is_empty(), tree.is_empty());
                prop_assert!(sorted.range(key..).eq(tree.range(key..)));
                prop_assert!(sorted.range(..key).rev().eq(tree.range(..key).rev()));
                prop_assert!(sorted.range(..=key).eq(tree.range(..=key)));
                prop_assert!(sorted.range(key / 2..key).eq(tree.range(key / 2..key)));
            }
        }
    }
}

//! All keys of a store in byte order, without the keys: places in leaves of up to 128.
//!
//! | part of a leaf | meaning |
//! |---|---|
//! | separator, its key in the map | above all keys of the leaves before, not above its own; the first leaf has all below, too |
//! | `common` | what all its keys begin with, or less of it |
//! | `places` | in order, each with the four bytes of its key behind `common` |
//!
//! Four bytes tell nearly all keys of a leaf apart, so that a search looks at next to no entry. A leaf takes as much memory
//! as it needs, whether it is full or not.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;

use smallvec::SmallVec;

use super::slab::{Place, Slab};

/// Places of a leaf.
const LEAF_MAX: usize = 128;

/// A leaf with fewer is put together with the next, if both have little.
const LEAF_FEW: usize = LEAF_MAX / 8;

/// Room that a leaf gets at once.
const LEAF_STEP: usize = 16;

/// Parts of keys, mostly short.
type Part = SmallVec<[u8; 16]>;

/// A range of keys.
pub(super) type Range<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// Places in the order of their keys.
#[derive(Debug, Default)]
pub(crate) struct Order {
    leaves: BTreeMap<Part, Leaf>,
    len: usize,
}

#[derive(Debug, Default)]
struct Leaf {
    common: Part,
    places: Vec<(u32, Place)>,
}

impl Order {
    /// The order of all entries of a slab: faster than one after the other, and leaves are full.
    pub fn of(slab: &Slab) -> Self {
        let first = slab.iter().next().map_or(&[][..], |(_, entry)| entry.key());
        let common = slab.iter().fold(first.len(), |common, (_, entry)| {
            common.min(common_bytes(first.get(..common).unwrap_or_default(), entry.key()))
        });
        // Eight bytes behind what all begin with are nearly all that must be compared.
        let mut all: Vec<(u64, Place)> =
            slab.iter().map(|(place, entry)| (eight_of(entry.key(), common), place)).collect();
        all.sort_unstable_by(|(one, at), (other, with)| {
            one.cmp(other).then_with(|| slab.key(*at).cmp(slab.key(*with)))
        });
        let mut order = Self { leaves: BTreeMap::new(), len: all.len() };
        let mut last: Option<&[u8]> = None;
        for places in all.chunks(LEAF_MAX) {
            let places: Vec<(u32, Place)> = places.iter().map(|(_, place)| (0, *place)).collect();
            let mut leaf = Leaf { common: Part::new(), places };
            leaf.share(slab, leaf.common_of_all(slab));
            let key_at = |place: Option<&(u32, Place)>| place.map_or(&[][..], |(_, place)| slab.key(*place));
            let separator = last.map_or(&[][..], |last| between(last, key_at(leaf.places.first())));
            last = Some(key_at(leaf.places.last()));
            order.leaves.insert(Part::from_slice(separator), leaf);
        }
        order
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// The separator of the leaf that has a key, if it is there.
    fn leaf_of(&self, key: &[u8]) -> Option<(&Part, &Leaf)> {
        self.leaves.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()
    }

    fn leaf_of_mut(&mut self, key: &[u8]) -> Option<&mut Leaf> {
        let mut leaves = self.leaves.range_mut::<[u8], _>((Bound::Unbounded, Bound::Included(key)));
        leaves.next_back().map(|(_, leaf)| leaf)
    }

    /// Puts an entry of the slab in order whose key is not there.
    pub fn insert(&mut self, slab: &Slab, place: Place) {
        let key = slab.key(place);
        if self.leaves.is_empty() {
            self.leaves.insert(Part::new(), Leaf::default());
        }
        let Some(leaf) = self.leaf_of_mut(key) else { panic!("there is a leaf for every key") };
        let split = leaf.insert(slab, key, place);
        self.len += 1;
        if let Some((separator, leaf)) = split {
            self.leaves.insert(separator, leaf);
        }
    }

    /// Takes out what has this key, which the slab still has.
    pub fn remove(&mut self, slab: &Slab, key: &[u8]) -> Option<Place> {
        let leaf = self.leaf_of_mut(key)?;
        let index = leaf.search(slab, key).ok()?;
        let (_, place) = leaf.places.remove(index);
        let few = leaf.places.len() < LEAF_FEW;
        self.len -= 1;
        if few {
            self.join(slab, key);
        }
        Some(place)
    }

    /// Removes the leaf of a key if it is empty. If it and one beside it have little, makes one of the two.
    fn join(&mut self, slab: &Slab, key: &[u8]) {
        let Some((separator, leaf)) = self.leaf_of(key) else { return };
        let (separator, len) = (separator.clone(), leaf.places.len());
        if len == 0 {
            self.leaves.remove(&separator);
            self.begin();
            return;
        }
        let has_room = |(_, leaf): &(&Part, &Leaf)| leaf.places.len() + len <= LEAF_MAX / 2;
        let before = self.leaves.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(&*separator)));
        let behind = self.leaves.range::<[u8], _>((Bound::Excluded(&*separator), Bound::Unbounded));
        if let Some((before, _)) = { before }.next_back().filter(has_room) {
            let before = before.clone();
            self.append(slab, &before, &separator);
        } else if let Some((behind, _)) = { behind }.next().filter(has_room) {
            let behind = behind.clone();
            self.append(slab, &separator, &behind);
        }
    }

    /// The first leaf has no separator: else what it gets below that, and splits off, would come before it.
    fn begin(&mut self) {
        if let Some(first) = self.leaves.first_entry().filter(|first| !first.key().is_empty()) {
            let leaf = first.remove();
            self.leaves.insert(Part::new(), leaf);
        }
    }

    /// Puts what the next leaf has into one.
    fn append(&mut self, slab: &Slab, to: &[u8], next: &[u8]) {
        let Some(next) = self.leaves.remove(next) else { return };
        if let Some(leaf) = self.leaves.get_mut(to) {
            leaf.places.reserve_exact(next.places.len());
            leaf.places.extend(next.places);
            leaf.share(slab, leaf.common_of_all(slab));
        }
    }

    /// Takes out the first.
    pub fn pop_first(&mut self) -> Option<Place> {
        let mut first = self.leaves.first_entry()?;
        let leaf = first.get_mut();
        let (_, place) = leaf.places.remove(0);
        if leaf.places.is_empty() {
            first.remove();
            self.begin();
        }
        self.len -= 1;
        Some(place)
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = Place> {
        self.leaves.values().flat_map(|leaf| leaf.places.iter().map(|(_, place)| *place))
    }

    /// Those with keys in a range, which must not be one that a map refuses.
    pub fn range<'a>(
        &'a self,
        slab: &'a Slab,
        (low, high): Range<'a>,
    ) -> impl DoubleEndedIterator<Item = Place> {
        let first = match low {
            Bound::Included(low) | Bound::Excluded(low) => {
                self.leaf_of(low).map_or(Bound::Unbounded, |(separator, _)| Bound::Included(&**separator))
            }
            Bound::Unbounded => Bound::Unbounded,
        };
        // A leaf whose separator is behind the end has nothing of the range.
        let last = match high {
            Bound::Included(high) | Bound::Excluded(high) => Bound::Included(high),
            Bound::Unbounded => Bound::Unbounded,
        };
        self.leaves
            .range::<[u8], _>((first, last))
            .flat_map(move |(_, leaf)| leaf.between(slab, low, high).iter().map(|(_, place)| *place))
    }

    /// Checks that it is in order, and short.
    pub fn check(&self, slab: &Slab) {
        let keys: Vec<&[u8]> = self.iter().map(|place| slab.key(place)).collect();
        assert!(keys.is_sorted_by(|one, next| one < next), "keys are in order");
        assert_eq!(self.len, keys.len());
        for (index, (separator, leaf)) in self.leaves.iter().enumerate() {
            assert!(!leaf.places.is_empty() && leaf.places.len() <= LEAF_MAX);
            assert_eq!(index == 0, separator.is_empty(), "the first leaf has no separator, and no other");
            for (head, place) in &leaf.places {
                let key = slab.key(*place);
                assert!(key.starts_with(&leaf.common) && *head == head_of(key, leaf.common.len()));
                assert!(*key >= **separator);
                let next = self.leaves.iter().nth(index + 1);
                assert!(next.is_none_or(|(next, _)| *key < **next));
            }
        }
    }
}

impl Leaf {
    /// Where a key is, or belongs.
    fn search(&self, slab: &Slab, key: &[u8]) -> Result<usize, usize> {
        let Some(rest) = key.strip_prefix(&*self.common) else {
            return Err(if *key < *self.common { 0 } else { self.places.len() });
        };
        let head = head_of(rest, 0);
        self.places.binary_search_by(|(other, place)| match other.cmp(&head) {
            Ordering::Equal => slab.key(*place).cmp(key),
            other => other,
        })
    }

    /// Those with keys in a range.
    fn between(&self, slab: &Slab, low: Bound<&[u8]>, high: Bound<&[u8]>) -> &[(u32, Place)] {
        let start = match low {
            Bound::Included(low) => self.search(slab, low).unwrap_or_else(|at| at),
            Bound::Excluded(low) => self.search(slab, low).map_or_else(|at| at, |at| at + 1),
            Bound::Unbounded => 0,
        };
        let end = match high {
            Bound::Included(high) => self.search(slab, high).map_or_else(|at| at, |at| at + 1),
            Bound::Excluded(high) => self.search(slab, high).unwrap_or_else(|at| at),
            Bound::Unbounded => self.places.len(),
        };
        self.places.get(start..end).unwrap_or_default()
    }

    /// Puts a key in; if that makes it too large, returns what comes behind it, with its separator.
    fn insert(&mut self, slab: &Slab, key: &[u8], place: Place) -> Option<(Part, Self)> {
        let Err(at) = self.search(slab, key) else { panic!("a key twice in order") };
        if !key.starts_with(&self.common) {
            let common = common_bytes(key, &self.common);
            self.share(slab, common);
        }
        if self.places.len() == self.places.capacity() {
            self.places.reserve_exact(LEAF_STEP);
        }
        self.places.insert(at, (head_of(key, self.common.len()), place));
        (self.places.len() > LEAF_MAX).then(|| self.split(slab, at))
    }

    /// Keys that come in order fill leaves; others leave them half full.
    fn split(&mut self, slab: &Slab, inserted_at: usize) -> (Part, Self) {
        let at = if inserted_at + 1 == self.places.len() { inserted_at } else { self.places.len() / 2 };
        let mut behind = Self { common: self.common.clone(), places: self.places.split_off(at) };
        self.places.shrink_to_fit();
        let last = self.places.last().map_or(&[][..], |(_, place)| slab.key(*place));
        let first = behind.places.first().map_or(&[][..], |(_, place)| slab.key(*place));
        let separator = Part::from_slice(between(last, first));
        for leaf in [&mut *self, &mut behind] {
            let common = leaf.common_of_all(slab);
            if common != leaf.common.len() {
                leaf.share(slab, common);
            }
        }
        (separator, behind)
    }

    /// How much all keys have in common. One key alone says nothing about the next.
    fn common_of_all(&self, slab: &Slab) -> usize {
        match &*self.places {
            [(_, first), .., (_, last)] => common_bytes(slab.key(*first), slab.key(*last)),
            _ => self.common.len(),
        }
    }

    /// Takes so many first bytes of its keys as what they have in common.
    fn share(&mut self, slab: &Slab, common: usize) {
        if let Some((_, first)) = self.places.first() {
            let bytes = slab.key(*first).get(..common).unwrap_or_default();
            self.common = Part::from_slice(bytes);
        }
        for (head, place) in &mut self.places {
            *head = head_of(slab.key(*place), common);
        }
    }
}

/// The shortest part of `first` that is behind `last`.
fn between<'a>(last: &[u8], first: &'a [u8]) -> &'a [u8] {
    first.get(..=common_bytes(last, first)).unwrap_or(first)
}

/// Eight bytes of a key as a number, in the same order as keys that begin with the same bytes before them.
fn eight_of(key: &[u8], from: usize) -> u64 {
    u64::from(head_of(key, from)) << 32 | u64::from(head_of(key, from + size_of::<u32>()))
}

/// Four bytes of a key as a number, in the same order as keys that begin with the same bytes before them.
fn head_of(key: &[u8], from: usize) -> u32 {
    let rest = key.get(from..).unwrap_or_default();
    match rest.first_chunk() {
        Some(head) => u32::from_be_bytes(*head),
        None => rest.iter().zip([24, 16, 8]).fold(0, |head, (byte, shift)| head | u32::from(*byte) << shift),
    }
}

/// How many first bytes two keys have in common.
fn common_bytes(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use flowmesh_model::{Lsn, Millis};
    use proptest::prelude::*;

    use super::super::entry::Entry;
    use super::super::value::Value;
    use super::*;
    use crate::changes::Mark;

    /// Keys that begin alike, end with zeros, are parts of each other; runs of keys in order, so that leaves split.
    fn keys() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let bytes = prop_oneof![Just(0), Just(b'a'), Just(b'b'), Just(u8::MAX)];
        let key = prop::collection::vec(bytes, 1..12);
        (key, 0..200_u16, any::<bool>()).prop_map(|(key, count, zeros)| {
            let numbered = |number: u16| {
                let number = number.to_be_bytes();
                let end: &[u8] = if zeros { &[0; 5] } else { b"" };
                [&key[..], &number, end].concat()
            };
            (0..count).map(numbered).chain([key.clone()]).collect()
        })
    }

    fn bound(key: &[u8], which: u8) -> Bound<&[u8]> {
        match which % 3 {
            0 => Bound::Included(key),
            1 => Bound::Excluded(key),
            _ => Bound::Unbounded,
        }
    }

    fn is_range(low: Bound<&[u8]>, high: Bound<&[u8]>) -> bool {
        match (low, high) {
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => true,
            (Bound::Included(low), Bound::Included(high)) => low <= high,
            (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => {
                low < high
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 128 }))]
        #[test]
        fn it_is_as_a_set_of_keys(
            steps in prop::collection::vec((keys(), 0..4_u8, any::<u8>(), any::<(prop::sample::Index, prop::sample::Index)>()), 1..24),
        ) {
            let (mut order, mut slab) = (Order::default(), Slab::default());
            let mut model: BTreeMap<Vec<u8>, Place> = BTreeMap::new();
            for (mut keys, what, bounds, (low, high)) in steps {
                if what == 0 {
                    keys.reverse();
                }
                for key in keys {
                    if what < 3 {
                        if model.contains_key(&key) {
                            continue;
                        }
                        let value = Value::Bytes(Bytes::new());
                        let place = slab.insert(Entry::new(&key, value, Lsn(1), Millis(0), Mark::NEW));
                        order.insert(&slab, place);
                        model.insert(key, place);
                    } else if let Some(place) = model.remove(&key) {
                        prop_assert_eq!(order.remove(&slab, &key), Some(place));
                        prop_assert_eq!(order.remove(&slab, &key), None);
                        slab.remove(place);
                    }
                }
                order.check(&slab);
                prop_assert!(order.iter().eq(model.values().copied()));
                if bounds % 4 == 0 {
                    // What is built at once goes on as what came bit by bit.
                    order = Order::of(&slab);
                    order.check(&slab);
                    prop_assert!(order.iter().eq(model.values().copied()));
                }
                if bounds % 8 == 7 && let Some((key, place)) = model.pop_first() {
                    prop_assert_eq!(order.pop_first(), Some(place));
                    prop_assert_eq!(order.remove(&slab, &key), None);
                    slab.remove(place);
                }
                let all: Vec<Vec<u8>> = model.keys().cloned().chain([b"b".to_vec(), vec![0], vec![255; 9]]).collect();
                let (low, high) = (bound(low.get::<Vec<u8>>(&all), bounds), bound(high.get::<Vec<u8>>(&all), bounds / 3));
                if is_range(low, high) {
                    let expected: Vec<Place> =
                        model.range::<[u8], _>((low, high)).map(|(_, place)| *place).collect();
                    prop_assert_eq!(&order.range(&slab, (low, high)).collect::<Vec<_>>(), &expected);
                    let back: Vec<Place> = order.range(&slab, (low, high)).rev().collect();
                    prop_assert!(back.iter().rev().eq(&expected));
                }
            }
        }
    }

    #[test]
    fn keys_in_order_fill_leaves_and_few_keys_take_few() {
        let (mut order, mut slab) = (Order::default(), Slab::default());
        let key = |number: usize| format!("key-{number:012}").into_bytes();
        for number in 0..LEAF_MAX * 100 {
            let value = Value::Bytes(Bytes::new());
            let place = slab.insert(Entry::new(&key(number), value, Lsn(1), Millis(0), Mark::NEW));
            order.insert(&slab, place);
        }
        order.check(&slab);
        assert_eq!(order.leaves.len(), 100);
        for number in (0..LEAF_MAX * 100).filter(|number| number % 32 != 0) {
            order.remove(&slab, &key(number)).unwrap();
        }
        order.check(&slab);
        assert!(order.leaves.len() < 50, "{} leaves for {} keys", order.leaves.len(), order.len());
    }

    #[test]
    fn a_first_leaf_that_goes_takes_its_bound_with_it() {
        let (mut order, mut slab) = (Order::default(), Slab::default());
        let key = |number: usize| format!("key-{number:012}").into_bytes();
        let add = |order: &mut Order, slab: &mut Slab, number: usize| {
            let value = Value::Bytes(Bytes::new());
            let place = slab.insert(Entry::new(&key(number), value, Lsn(1), Millis(0), Mark::NEW));
            order.insert(slab, place);
        };
        let (below, all) = (LEAF_MAX * 8, LEAF_MAX * 11);
        for number in below..all {
            add(&mut order, &mut slab, number);
        }
        // Leaves beside it are full: none of them takes in what is left, and it goes when it is empty.
        for number in below..below + LEAF_MAX {
            let place = order.remove(&slab, &key(number)).unwrap();
            slab.remove(place);
        }
        for number in 0..below {
            add(&mut order, &mut slab, number);
        }
        for number in (0..below).chain(below + LEAF_MAX..all) {
            assert!(order.remove(&slab, &key(number)).is_some(), "key {number} is not found");
        }
        assert_eq!(order.len(), 0);
    }
}

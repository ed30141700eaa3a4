//! One page of a tree: what a checkpoint writes and what is fetched, at once.
//!
//! | | leaf, level 0 | inner page |
//! |---|---|---|
//! | an item is | a key and its value | a link to a page one level below, and a key |
//! | that key is | the item's own; empty in a list | above all keys of the page before, not above any of its own; empty in the first item and in a list |
//!
//! The first link of a page takes all keys that come before the second: its key is never looked at, so it is empty.

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, put_bytes, put_varint, read_varint};

use super::packed::{self, Packed};
use super::{Order, PageNo};

/// The format byte at the start of a page's value in the index.
const FORMAT: u8 = 1;

/// Levels of a tree: with two items in each page it holds more than there can be.
pub(super) const LEVELS_MAX: u8 = 64;

/// Items of an inner page that may be as large as they are: halves of what is split have two links each, so that a tree
/// of keys as large as pages has a depth that is a logarithm, too.
const INNER_ITEMS_MIN: usize = 3;

/// A page below an inner page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub child: PageNo,
    /// Items of all leaves below.
    pub count: u64,
}

/// A page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    level: u8,
    items: Packed,
    /// As many as items, of an inner page; none of a leaf.
    links: Vec<Link>,
}

/// What was split off a page: all that is not below `key`.
pub(super) struct Part {
    pub key: Box<[u8]>,
    pub page: Page,
}

/// Where in a tree a page grew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edge {
    /// At its very start: more will come before it.
    First,
    /// At its very end: more will come behind it.
    Last,
    /// Elsewhere.
    None,
}

impl Page {
    /// A leaf without items.
    pub fn leaf() -> Self {
        Self { level: 0, items: Packed::default(), links: Vec::new() }
    }

    /// A page above one other.
    pub(super) fn above(level: u8, link: Link) -> Self {
        assert!(level < LEVELS_MAX, "a tree has fewer levels");
        let mut page = Self { level, items: Packed::default(), links: Vec::new() };
        page.put_link(0, &[], link);
        page
    }

    /// How far it is above the leaves.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// How many items or links it has.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// How many items there are in it or in all leaves below.
    pub fn count(&self) -> u64 {
        if self.level == 0 { self.len() as u64 } else { self.links.iter().map(|link| link.count).sum() }
    }

    /// What it takes in memory, with all that was allocated for it.
    pub fn memory_bytes(&self) -> u64 {
        let links = self.links.capacity() * size_of::<Link>();
        (size_of::<Self>() + self.items.memory_bytes() + links) as u64
    }

    /// What decides whether it is split.
    fn size(&self) -> usize {
        self.items.size() + self.links.len() * size_of::<Link>()
    }

    /// Whether it has more than a page should and can be split.
    pub(super) fn is_over(&self, bytes_max: usize) -> bool {
        let items_min = if self.level == 0 { 1 } else { INNER_ITEMS_MIN };
        self.len() > items_min && self.size() > bytes_max
    }

    #[inline]
    pub(super) fn key(&self, index: usize) -> &[u8] {
        self.items.key(index)
    }

    /// Key and value of a leaf's item.
    #[inline]
    pub(super) fn item(&self, index: usize) -> (&[u8], &[u8]) {
        self.items.item(index)
    }

    /// Where a key is in a leaf, or before which item it would be.
    #[inline]
    pub(super) fn search(&self, key: &[u8]) -> Result<usize, usize> {
        self.items.search(key)
    }

    #[inline]
    pub(super) fn link(&self, index: usize) -> Link {
        let Some(link) = self.links.get(index) else { panic!("an inner page has no link at this place") };
        *link
    }

    /// The link below which a key is, if it is anywhere.
    #[inline]
    pub(super) fn link_for(&self, key: &[u8]) -> usize {
        match self.items.search(key) {
            Ok(index) => index,
            // The first key is empty and below no other.
            Err(index) => index.saturating_sub(1),
        }
    }

    /// How many items are below the links before this one.
    #[inline]
    pub(super) fn count_before(&self, index: usize) -> u64 {
        self.links.iter().take(index).map(|link| link.count).sum()
    }

    /// The link below which the item of a rank is, and its rank there. With `gap`, what is looked for is the place before
    /// that item; where that is the end of one page and the start of the next, it is the end.
    #[inline]
    pub(super) fn link_at(&self, rank: u64, gap: bool) -> (usize, u64) {
        let mut rest = rank;
        for (index, link) in self.links.iter().enumerate() {
            if rest < link.count || (gap && rest == link.count) {
                return (index, rest);
            }
            rest -= link.count;
        }
        panic!("an inner page counts fewer items than its parent says")
    }

    pub(super) fn insert(&mut self, index: usize, key: &[u8], value: &[u8]) {
        self.items.insert(index, key, value);
    }

    pub(super) fn replace(&mut self, index: usize, value: &[u8]) {
        self.items.replace(index, value);
    }

    fn put_link(&mut self, index: usize, key: &[u8], link: Link) {
        self.items.insert(index, key, &[]);
        packed::insert(&mut self.links, index, link);
    }

    /// Puts a link behind the one at `index`, of which `link` takes a part.
    pub(super) fn link_part(&mut self, index: usize, key: &[u8], link: Link) {
        self.take_count(index, link.count);
        self.put_link(index + 1, key, link);
    }

    pub(super) fn add_count(&mut self, index: usize, more: u64) {
        match self.links.get_mut(index) {
            Some(link) => link.count += more,
            None => panic!("an inner page has no link at this place"),
        }
    }

    pub(super) fn take_count(&mut self, index: usize, fewer: u64) {
        match self.links.get_mut(index) {
            Some(link) => link.count -= fewer,
            None => panic!("an inner page has no link at this place"),
        }
    }

    /// Takes out items or links.
    pub(super) fn remove(&mut self, range: std::ops::Range<usize>) {
        let start = range.start;
        self.items.remove(range.clone());
        if self.level > 0 {
            packed::drain(&mut self.links, range);
            if start == 0 && self.len() > 0 {
                self.items.clear_key(0);
            }
        }
    }

    /// Splits it until no part has more than a page should. Most pages have nothing to split off.
    pub(super) fn split(&mut self, bytes_max: usize, edge: Edge) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        if !self.is_over(bytes_max) {
            return parts;
        }
        let at = match edge {
            Edge::First => 1,
            Edge::Last => self.len() - 1,
            Edge::None => self.middle(),
        };
        parts.push(self.split_off(at));
        // Around an item as large as a page there are three.
        let mut index = 0;
        while index <= parts.len() {
            let page = match index.checked_sub(1).and_then(|part| parts.get_mut(part)) {
                Some(part) => &mut part.page,
                None => &mut *self,
            };
            if page.is_over(bytes_max) {
                let part = page.split_off(page.middle());
                parts.insert(index, part);
            } else {
                index += 1;
            }
        }
        parts
    }

    /// The item with which the second half of its bytes starts.
    fn middle(&self) -> usize {
        let item_bytes = self.links.len().min(1) * size_of::<Link>();
        let half = self.size() / 2;
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.items.size_before(middle) + middle * item_bytes < half {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let least = if self.level == 0 { 1 } else { 2 };
        low.clamp(least, self.len() - least)
    }

    fn split_off(&mut self, index: usize) -> Part {
        let mut items = self.items.split_off(index);
        let key = if self.level == 0 {
            Box::from(shortest_between(self.items.key(index - 1), items.key(0)))
        } else {
            let key = Box::from(items.key(0));
            items.clear_key(0);
            key
        };
        let links = if self.level == 0 { Vec::new() } else { packed::split_off(&mut self.links, index) };
        Part { key, page: Self { level: self.level, items, links } }
    }

    /// A page in the index.
    ///
    /// | field | size | meaning |
    /// |---|---|---|
    /// | format | 1 | 1 |
    /// | level | 1 | 0 = a leaf |
    /// | items | varint | how many |
    /// | of a leaf, each | length + bytes, twice | key and value |
    /// | of an inner page, each | varint, varint, length + bytes | page number, count of items below, key |
    pub fn encode(&self) -> Bytes {
        let items = self.items.size() + self.links.len() * 12 + self.len() * 4;
        let mut out = BytesMut::with_capacity(8 + items);
        out.put_u8(FORMAT);
        out.put_u8(self.level);
        put_varint(&mut out, self.len() as u64);
        for index in 0..self.len() {
            let (key, value) = self.item(index);
            if let Some(link) = self.links.get(index) {
                put_varint(&mut out, u64::from(link.child.0));
                put_varint(&mut out, link.count);
                put_bytes(&mut out, key);
            } else {
                put_bytes(&mut out, key);
                put_bytes(&mut out, value);
            }
        }
        out.freeze()
    }

    /// Reads what [`Page::encode`] wrote. The only page without items is the root of an empty tree.
    pub fn decode(bytes: &[u8], order: Order) -> Result<Self, Malformed> {
        let [format, level, rest @ ..] = bytes else { return Err(Malformed("a page ends early")) };
        let mut rest = rest;
        if *format != FORMAT {
            return Err(Malformed("a page of an unknown format"));
        }
        if *level >= LEVELS_MAX {
            return Err(Malformed("a page above the highest level"));
        }
        let len = take_varint(&mut rest)?;
        // The shortest items take two bytes: what memory is asked for is bounded by what was read.
        if len > rest.len() as u64 / 2 || bytes.len() >= u32::MAX as usize / 2 {
            return Err(Malformed("a page of more items than bytes"));
        }
        if len == 0 && *level > 0 {
            return Err(Malformed("an inner page without items"));
        }
        let len = len as usize;
        let mut page = Self { level: *level, items: Packed::with_room(len, rest.len()), links: Vec::new() };
        page.read_items(len, &mut rest, order)?;
        if rest.is_empty() { Ok(page) } else { Err(Malformed("a page is longer than its items")) }
    }

    fn read_items(&mut self, len: usize, rest: &mut &[u8], order: Order) -> Result<(), Malformed> {
        let mut below = 0u64;
        let mut before: Option<&[u8]> = None;
        if self.level > 0 {
            self.links = Vec::with_capacity(len);
        }
        for index in 0..len {
            if self.level > 0 {
                let child = u32::try_from(take_varint(rest)?);
                let child = child.map_err(|_| Malformed("a page's number is above 32 bits"))?;
                let count = take_varint(rest)?;
                below = below.checked_add(count).ok_or(Malformed("a page counts too many items"))?;
                if count == 0 {
                    return Err(Malformed("a link to a page without items"));
                }
                self.links.push(Link { child: PageNo(child), count });
            }
            let key = take_bytes(rest)?;
            let value = if self.level > 0 { &[] } else { take_bytes(rest)? };
            let fits = match order {
                Order::ByKey if self.level > 0 && index == 0 => key.is_empty(),
                Order::ByKey => before.is_none_or(|before| before < key),
                Order::ByPlace => key.is_empty(),
            };
            if !fits {
                return Err(Malformed("keys of a page are not in order"));
            }
            before = Some(key);
            self.items.insert(index, key, value);
        }
        Ok(())
    }

    /// Checks what can be seen of it alone.
    pub(super) fn check(&self, bytes_max: usize, order: Order) {
        assert!(!self.is_over(bytes_max), "a page is not larger than it should be");
        assert!(self.level < LEVELS_MAX, "a tree has fewer levels");
        assert_eq!(self.links.len(), if self.level > 0 { self.len() } else { 0 }, "an inner item has a link");
        assert!(self.links.iter().all(|link| link.count > 0), "no page but the root is empty");
        let mut before: Option<&[u8]> = None;
        for index in 0..self.len() {
            let (key, value) = self.item(index);
            assert!(self.level == 0 || value.is_empty(), "an inner item has no value");
            match order {
                Order::ByKey => assert!(before.is_none_or(|before| before < key), "keys are in order"),
                Order::ByPlace => assert!(key.is_empty(), "a list has no keys"),
            }
            assert!(self.level == 0 || index > 0 || key.is_empty(), "a first link has no key");
            before = Some(key);
        }
    }
}

/// The shortest key that is above one and not above another.
fn shortest_between<'a>(below: &[u8], key: &'a [u8]) -> &'a [u8] {
    let common = below.iter().zip(key).take_while(|(a, b)| a == b).count();
    key.get(..=common).unwrap_or(key)
}

fn take_varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let (value, used) = read_varint(rest)?;
    *rest = rest.get(used..).unwrap_or_default();
    Ok(value)
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let len = usize::try_from(take_varint(rest)?).map_err(|_| Malformed("length above memory"))?;
    let (bytes, after) = rest.split_at_checked(len).ok_or(Malformed("length beyond the end"))?;
    *rest = after;
    Ok(bytes)
}

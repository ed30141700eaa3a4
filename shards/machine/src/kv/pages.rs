//! Pages of collections: all but the roots, which stand with their keys.

use std::collections::BTreeSet;

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, put_varint};
use flowmesh_model::{Lsn, SlotId, Space};

use super::shelf::Shelf;
use super::tree::{Order, Page, PageNo, Pages, PagesMut};
use super::value::Collection;
use crate::changes::Seals;
use crate::items::{self, Entry, Items, item_bytes};
use crate::keys::{self, Home};

/// A page of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PageKey {
    pub collection: u64,
    pub page: PageNo,
    pub slot: SlotId,
}

impl items::Key for PageKey {
    type Home = Home;

    const SPACE: Space = Space::Pages;

    fn in_index(&self, home: &Home) -> Bytes {
        home.page_key(self.slot, self.collection, self.page.0)
    }
}

/// A page with the order of its items.
#[derive(Debug)]
pub(crate) struct Stored {
    order: Order,
    page: Page,
}

impl items::Item for Stored {
    /// | field | size | meaning |
    /// |---|---|---|
    /// | order | 1 | 0 by key, 1 by place |
    /// | page | the rest | |
    fn encode(&self) -> Bytes {
        let page = self.page.encode();
        let mut out = BytesMut::with_capacity(1 + page.len());
        out.put_u8(self.order as u8);
        out.put_slice(&page);
        out.freeze()
    }
}

/// What it takes in memory.
fn memory_bytes(page: &Page) -> u64 {
    item_bytes::<PageKey, Stored>() - size_of::<Page>() as u64 + page.memory_bytes()
}

/// Pages of a collection that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GoneKey {
    pub collection: u64,
    pub slot: SlotId,
}

/// In the index it stands as a page that no collection can have.
const GONE_PAGE: u32 = u32::MAX;

impl items::Key for GoneKey {
    type Home = Home;

    const SPACE: Space = Space::Pages;

    fn in_index(&self, home: &Home) -> Bytes {
        home.page_key(self.slot, self.collection, GONE_PAGE)
    }
}

/// Those from `freed` to `upto` are still there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gone {
    pub freed: u32,
    pub upto: u32,
}

impl items::Item for Gone {
    /// | field | size |
    /// |---|---|
    /// | format | 1 |
    /// | first page that is there, end | varint each |
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(11);
        out.put_u8(keys::FORMAT);
        put_varint(&mut out, u64::from(self.freed));
        put_varint(&mut out, u64::from(self.upto));
        out.freeze()
    }
}

/// Pages of a collection that no key holds any more, and that the history still leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KeptKey {
    pub collection: u64,
    pub slot: SlotId,
}

/// In the index it stands as a page that no collection can have.
const KEPT_PAGE: u32 = u32::MAX - 1;

impl items::Key for KeptKey {
    type Home = Home;

    const SPACE: Space = Space::Pages;

    fn in_index(&self, home: &Home) -> Bytes {
        home.page_key(self.slot, self.collection, KEPT_PAGE)
    }
}

/// Since which entry, and how many pages it has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    pub since: Lsn,
    pub upto: u32,
}

impl items::Item for Kept {
    /// | field | size |
    /// |---|---|
    /// | format | 1 |
    /// | entry, end of its pages | varint each |
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(16);
        out.put_u8(keys::FORMAT);
        put_varint(&mut out, self.since.0);
        put_varint(&mut out, u64::from(self.upto));
        out.freeze()
    }
}

/// All pages of a store.
#[derive(Debug, Default)]
pub(crate) struct AllPages {
    pub pages: Items<PageKey, Stored, Shelf<Entry<Stored>>>,
    /// Collections that are gone and still have pages.
    pub gone: Items<GoneKey, Gone>,
    /// Collections that only the history has.
    pub kept: Items<KeptKey, Kept>,
    /// The same in the order in which their records go.
    kept_since: BTreeSet<(Lsn, KeptKey)>,
    pub memory_bytes: u64,
}

impl AllPages {
    /// Pages of a collection, to be looked at.
    pub fn look(&self, collection: &Collection) -> Look<'_> {
        Look { all: Some(self), at: at(collection), next: collection.next_page }
    }

    /// Pages of a collection, to be changed.
    pub fn change<'a>(
        &'a mut self,
        home: &'a Home,
        seals: &'a mut Seals,
        collection: &Collection,
    ) -> Live<'a> {
        let (order, next) = (collection.order_of_items(), collection.next_page);
        Live { all: self, home, seals, at: at(collection), order, next }
    }

    /// A collection is gone: its pages go bit by bit.
    pub fn leave(&mut self, home: &Home, seals: &mut Seals, collection: &Collection) {
        let upto = collection.next_page.0;
        if upto == 0 {
            return;
        }
        let key = GoneKey { collection: collection.number, slot: collection.slot };
        self.gone.change(home, seals, &key, || Gone { freed: 0, upto }, |_| ());
    }

    /// No key holds a collection since an entry: its pages go, or stay as long as the history leads to them.
    pub fn part_with(
        &mut self,
        home: &Home,
        seals: &mut Seals,
        collection: &Collection,
        kept_since: Option<Lsn>,
    ) {
        let (Some(since), upto) = (kept_since, collection.next_page.0) else {
            return self.leave(home, seals, collection);
        };
        if upto > 0 {
            let key = KeptKey { collection: collection.number, slot: collection.slot };
            self.kept.change(home, seals, &key, || Kept { since, upto }, |_| ());
            self.kept_since.insert((since, key));
        }
    }

    /// The entry since which the n-th of all kept collections is.
    pub fn nth_kept(&self, nth: usize) -> Option<Lsn> {
        self.kept_since.iter().nth(nth).map(|(since, _)| *since)
    }

    /// The history leads no more to collections that no key holds since this entry or before.
    pub fn release(&mut self, home: &Home, seals: &mut Seals, upto: Lsn) {
        while let Some((_, key)) = self.kept_since.first().copied().filter(|(since, _)| *since <= upto) {
            self.kept_since.pop_first();
            if let Some(kept) = self.kept.remove(home, seals, &key) {
                let gone = GoneKey { collection: key.collection, slot: key.slot };
                self.gone.change(home, seals, &gone, || Gone { freed: 0, upto: kept.upto }, |_| ());
            }
        }
    }

    /// Pages of a collection that is gone, before this one, go.
    pub fn free(&mut self, home: &Home, seals: &mut Seals, collection: u64, upto: u32) {
        let all = GoneKey { collection, slot: SlotId(0) }..=GoneKey { collection, slot: SlotId(u16::MAX) };
        let Some((&key, &gone)) = self.gone.range(all).next() else {
            panic!("pages were freed of a collection that is not gone")
        };
        for page in gone.freed..upto {
            self.remove(home, seals, &PageKey { collection, page: PageNo(page), slot: key.slot });
        }
        if upto >= gone.upto {
            self.gone.remove(home, seals, &key);
        } else {
            let change = |gone: &mut Gone| gone.freed = upto;
            self.gone.change(home, seals, &key, || gone, change);
        }
    }

    /// What the pages of a collection take in memory.
    pub fn bytes_of(&self, collection: &Collection) -> u64 {
        let pages = (0..collection.next_page.0).map(|page| PageKey { page: PageNo(page), ..at(collection) });
        pages.filter_map(|key| self.pages.get(&key)).map(|stored| memory_bytes(&stored.page)).sum()
    }

    /// Another collection gets the same pages.
    pub fn copy(&mut self, home: &Home, seals: &mut Seals, from: &Collection, to: &Collection) {
        for page in 0..from.next_page.0 {
            let page = PageNo(page);
            let Some(stored) = self.pages.get(&PageKey { page, ..at(from) }) else { continue };
            let stored = Stored { order: stored.order, page: stored.page.clone() };
            self.put(home, seals, PageKey { page, ..at(to) }, stored);
        }
    }

    fn put(&mut self, home: &Home, seals: &mut Seals, key: PageKey, stored: Stored) {
        self.memory_bytes += memory_bytes(&stored.page);
        self.pages.change(home, seals, &key, || stored, |_| ());
    }

    fn remove(&mut self, home: &Home, seals: &mut Seals, key: &PageKey) {
        if let Some(stored) = self.pages.remove(home, seals, key) {
            self.memory_bytes -= memory_bytes(&stored.page);
        }
    }

    /// Checks that there are so many pages of collections that are there, and those that are said to be gone.
    pub fn check(&self, seals: &Seals, pages: usize) {
        let is_gone = |key: &PageKey| {
            let gone = self.gone.get(&GoneKey { collection: key.collection, slot: key.slot });
            let kept = self.kept.get(&KeptKey { collection: key.collection, slot: key.slot });
            kept.is_some() || gone.is_some_and(|gone| (gone.freed..gone.upto).contains(&key.page.0))
        };
        assert_eq!(
            self.pages.each().filter(|(key, _)| !is_gone(key)).count(),
            pages,
            "a link leads to each page"
        );
        let bytes = self.pages.each().map(|(_, stored)| memory_bytes(&stored.page)).sum::<u64>();
        assert_eq!(self.memory_bytes, bytes);
        self.pages.check(seals);
        self.gone.check(seals);
        self.kept.check(seals);
        assert!(self.kept.iter().map(|(key, kept)| (kept.since, *key)).eq(by_key(&self.kept_since)));
    }

    /// Takes a page or what is left of a collection out of the index: what follows slot and store in its key.
    pub fn restore(&mut self, slot: SlotId, rest: &[u8], value: Bytes) -> Result<(), Malformed> {
        let (collection, page) = rest.split_first_chunk::<8>().ok_or(Malformed("a page of no collection"))?;
        let page = page.try_into().map_err(|_| Malformed("a page's number is four bytes"))?;
        let (collection, page) = (u64::from_be_bytes(*collection), u32::from_be_bytes(page));
        if page == GONE_PAGE {
            let mut reader = keys::open(value)?;
            let gone = Gone { freed: reader.varint_u32()?, upto: reader.varint_u32()? };
            keys::close(&reader)?;
            self.gone.restore(GoneKey { collection, slot }, gone);
            return Ok(());
        }
        if page == KEPT_PAGE {
            let mut reader = keys::open(value)?;
            let kept = Kept { since: Lsn(reader.varint()?), upto: reader.varint_u32()? };
            keys::close(&reader)?;
            let key = KeptKey { collection, slot };
            self.kept_since.insert((kept.since, key));
            self.kept.restore(key, kept);
            return Ok(());
        }
        let (order, bytes) = value.split_first().ok_or(Malformed("a page without an order"))?;
        let order = match order {
            0 => Order::ByKey,
            1 => Order::ByPlace,
            _ => return Err(Malformed("a page of an unknown order")),
        };
        let stored = Stored { order, page: Page::decode(bytes, order)? };
        self.memory_bytes += memory_bytes(&stored.page);
        self.pages.restore(PageKey { collection, page: PageNo(page), slot }, stored);
        Ok(())
    }
}

/// In the order of keys.
fn by_key(since: &BTreeSet<(Lsn, KeptKey)>) -> impl Iterator<Item = (Lsn, KeptKey)> {
    let mut kept: Vec<_> = since.iter().copied().collect();
    kept.sort_by_key(|(_, key)| *key);
    kept.into_iter()
}

fn at(collection: &Collection) -> PageKey {
    PageKey { collection: collection.number, page: PageNo(0), slot: collection.slot }
}

/// Pages of one collection, as they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look<'a> {
    /// `None`: there are none.
    all: Option<&'a AllPages>,
    at: PageKey,
    next: PageNo,
}

impl Look<'_> {
    /// Of a collection that is not there yet.
    pub const NOTHING: Self =
        Self { all: None, at: PageKey { collection: 0, page: PageNo(0), slot: SlotId(0) }, next: PageNo(0) };
}

impl Pages for Look<'_> {
    #[inline]
    fn page(&self, no: PageNo) -> Option<&Page> {
        self.all?.pages.get(&PageKey { page: no, ..self.at }).map(|stored| &stored.page)
    }

    fn next_no(&self) -> PageNo {
        self.next
    }
}

/// Pages of one collection, to be changed.
pub(crate) struct Live<'a> {
    all: &'a mut AllPages,
    home: &'a Home,
    seals: &'a mut Seals,
    at: PageKey,
    /// Of items of a list; what else trees have is ordered by key.
    order: Order,
    next: PageNo,
}

impl Pages for Live<'_> {
    fn page(&self, no: PageNo) -> Option<&Page> {
        self.all.pages.get(&PageKey { page: no, ..self.at }).map(|stored| &stored.page)
    }

    fn next_no(&self) -> PageNo {
        self.next
    }
}

impl PagesMut for Live<'_> {
    fn change<R>(&mut self, no: PageNo, change: impl FnOnce(&mut Page) -> R) -> R {
        let key = PageKey { page: no, ..self.at };
        let bytes = &mut self.all.memory_bytes;
        let change = |stored: &mut Stored| {
            *bytes -= memory_bytes(&stored.page);
            let result = change(&mut stored.page);
            *bytes += memory_bytes(&stored.page);
            result
        };
        let missing = || panic!("a page that changes is in memory");
        self.all.pages.change(self.home, self.seals, &key, missing, change)
    }

    fn add(&mut self, page: Page) -> PageNo {
        let no = self.next;
        self.next = PageNo(no.0 + 1);
        let stored = Stored { order: self.order, page };
        self.all.put(self.home, self.seals, PageKey { page: no, ..self.at }, stored);
        no
    }

    fn remove(&mut self, no: PageNo) {
        self.all.remove(self.home, self.seals, &PageKey { page: no, ..self.at });
    }
}

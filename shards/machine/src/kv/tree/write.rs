//! One item put in, replaced or taken out. The way is found first: from then on nothing is missing.

use super::page::{Edge, Link, Page, Part};
use super::read::{Found, Path, Step};
use super::{Cold, PageNo, PagesMut, SizedTree};

impl<const BYTES_MAX: usize> SizedTree<BYTES_MAX> {
    /// Sets the value of a key. Returns how long it was, if the key was there.
    pub fn insert(
        &mut self,
        pages: &mut impl PagesMut,
        key: &[u8],
        value: &[u8],
    ) -> Result<Option<usize>, Cold> {
        self.insert_over(pages, key, value, <[u8]>::len)
    }

    /// As [`SizedTree::insert`], and says of the value before what `look` makes of it.
    pub fn insert_over<R>(
        &mut self,
        pages: &mut impl PagesMut,
        key: &[u8],
        value: &[u8],
        look: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>, Cold> {
        let found = self.way_to_key(pages, key)?;
        if found.is_there {
            let Some(leaf) = found.path.last() else { panic!("a way ends at a leaf") };
            let before = look(self.page_of(pages, leaf.page).item(leaf.index).1);
            self.replace(pages, &found.path, value);
            return Ok(Some(before));
        }
        self.add(pages, found, key, value);
        Ok(None)
    }

    /// Takes out a key. Returns how long its value was, if it was there.
    pub fn remove(&mut self, pages: &mut impl PagesMut, key: &[u8]) -> Result<Option<usize>, Cold> {
        let found = self.way_to_key(pages, key)?;
        Ok(found.is_there.then(|| self.take(pages, found.path)))
    }

    /// Puts a value into a list, before the one that has this rank now. Returns whether the list is long enough.
    pub fn insert_at(&mut self, pages: &mut impl PagesMut, rank: u64, value: &[u8]) -> Result<bool, Cold> {
        if rank > self.len {
            return Ok(false);
        }
        let found = self.way_to_rank(pages, rank, true)?;
        self.add(pages, found, &[], value);
        Ok(true)
    }

    /// Replaces the value of a rank. Returns how long it was, if there is one.
    pub fn replace_at(
        &mut self,
        pages: &mut impl PagesMut,
        rank: u64,
        value: &[u8],
    ) -> Result<Option<usize>, Cold> {
        if rank >= self.len {
            return Ok(None);
        }
        let found = self.way_to_rank(pages, rank, false)?;
        Ok(Some(self.replace(pages, &found.path, value)))
    }

    /// Takes out the item of a rank. Returns how long its value was, if there is one.
    pub fn remove_at(&mut self, pages: &mut impl PagesMut, rank: u64) -> Result<Option<usize>, Cold> {
        if rank >= self.len {
            return Ok(None);
        }
        let found = self.way_to_rank(pages, rank, false)?;
        Ok(Some(self.take(pages, found.path)))
    }

    pub(super) fn page_of<'a>(&'a self, pages: &'a impl PagesMut, no: Option<PageNo>) -> &'a Page {
        let Some(no) = no else { return &self.root };
        let Some(page) = pages.page(no) else { panic!("a page on a way is in memory") };
        page
    }

    pub(super) fn change<R>(
        &mut self,
        pages: &mut impl PagesMut,
        no: Option<PageNo>,
        change: impl FnOnce(&mut Page) -> R,
    ) -> R {
        match no {
            None => change(&mut self.root),
            Some(no) => pages.change(no, change),
        }
    }

    fn add(&mut self, pages: &mut impl PagesMut, found: Found, key: &[u8], value: &[u8]) {
        let path = self.rise(pages, found.path);
        let Some((leaf, above)) = path.split_last() else { panic!("a way ends at a leaf") };
        for step in above {
            self.change(pages, step.page, |page| page.add_count(step.index, 1));
        }
        self.len += 1;
        let parts = self.change(pages, leaf.page, |page| {
            page.insert(leaf.index, key, value);
            page.split(BYTES_MAX, found.edge)
        });
        self.link(pages, above, parts, found.edge);
    }

    fn replace(&mut self, pages: &mut impl PagesMut, path: &Path, value: &[u8]) -> usize {
        let Some((leaf, above)) = path.split_last() else { panic!("a way ends at a leaf") };
        let before = self.page_of(pages, leaf.page).item(leaf.index).1.len();
        let parts = self.change(pages, leaf.page, |page| {
            page.replace(leaf.index, value);
            page.split(BYTES_MAX, Edge::None)
        });
        self.link(pages, above, parts, Edge::None);
        before
    }

    /// Links what was split off the page below the last of some steps.
    fn link(&mut self, pages: &mut impl PagesMut, above: &[Step], mut parts: Vec<Part>, edge: Edge) {
        for step in above.iter().rev() {
            if parts.is_empty() {
                return;
            }
            let links = added(pages, parts);
            parts = self.change(pages, step.page, |page| {
                // Each puts itself right behind the page that was split, the last first.
                for (key, link) in links.iter().rev() {
                    page.link_part(step.index, key, *link);
                }
                page.split(BYTES_MAX, edge)
            });
        }
        if parts.is_empty() {
            return;
        }
        let level = self.root.level() + 1;
        let root = std::mem::replace(&mut self.root, Page::leaf());
        let links = added(pages, parts);
        let count = root.count() + links.iter().map(|(_, link)| link.count).sum::<u64>();
        self.root = Page::above(level, Link { child: pages.add(root), count });
        for (key, link) in links.iter().rev() {
            self.root.link_part(0, key, *link);
        }
    }

    fn take(&mut self, pages: &mut impl PagesMut, path: Path) -> usize {
        let path = self.rise(pages, path);
        let Some(leaf) = path.last() else { panic!("a way ends at a leaf") };
        let value_bytes = self.page_of(pages, leaf.page).item(leaf.index).1.len();
        let mut above: &[Step] = &path;
        while let Some((step, rest)) = above.split_last() {
            above = rest;
            match step.page {
                // It would be left without items.
                Some(no) if self.page_of(pages, step.page).len() == 1 => pages.remove(no),
                no => {
                    self.change(pages, no, |page| page.remove(step.index..step.index + 1));
                    break;
                }
            }
        }
        for step in above {
            self.change(pages, step.page, |page| page.take_count(step.index, 1));
        }
        self.len -= 1;
        self.reset_if_empty();
        value_bytes
    }

    /// An empty tree is an empty leaf.
    pub(super) fn reset_if_empty(&mut self) {
        if self.root.len() == 0 {
            self.root = Page::leaf();
        }
    }

    /// While the root has one link, which is on the way and so in memory, the page below takes its place. Returns what is
    /// left of the way.
    fn rise(&mut self, pages: &mut impl PagesMut, mut path: Path) -> Path {
        while self.root.level() > 0 && self.root.len() == 1 {
            let no = self.root.link(0).child;
            self.root = self.page_of(pages, Some(no)).clone();
            pages.remove(no);
            path.remove(0);
            if let Some(step) = path.first_mut() {
                step.page = None;
            }
        }
        path
    }
}

/// Adds what was split off. Returns the links to it.
fn added(pages: &mut impl PagesMut, parts: Vec<Part>) -> Vec<(Box<[u8]>, Link)> {
    let link = |part: Part| {
        let count = part.page.count();
        (part.key, Link { child: pages.add(part.page), count })
    };
    parts.into_iter().map(link).collect()
}

//! The way from the root to an item.

use smallvec::SmallVec;

use super::page::{Edge, Page};
use super::{Cold, Item, PageNo, Pages, SizedTree};

/// One page on the way: nothing for the root, and which of its links or items.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub page: Option<PageNo>,
    pub index: usize,
}

/// From the root to a leaf. The last step is the leaf's.
pub(super) type Path = SmallVec<[Step; 6]>;

/// The page below a link.
#[inline]
pub(super) fn child<'a, P: Pages>(pages: &'a P, page: &Page, index: usize) -> Result<&'a Page, Cold> {
    let no = page.link(index).child;
    let child = pages.page(no).ok_or(Cold(no))?;
    assert_eq!(child.level() + 1, page.level(), "a page is one level below the one that links to it");
    Ok(child)
}

/// A way to a place, and what it is.
pub(super) struct Found {
    pub path: Path,
    /// Whether there is an item at the place; if not, it is before an item or at the end of a page.
    pub is_there: bool,
    /// Whether it is where the tree starts or ends.
    pub edge: Edge,
}

impl<const BYTES_MAX: usize> SizedTree<BYTES_MAX> {
    /// The value of a key.
    pub fn get<'a>(&'a self, pages: &'a impl Pages, key: &[u8]) -> Result<Option<&'a [u8]>, Cold> {
        let mut page = &self.root;
        while page.level() > 0 {
            page = child(pages, page, page.link_for(key))?;
        }
        Ok(page.search(key).ok().map(|index| page.item(index).1))
    }

    /// How many keys are below this one: its rank if it is there (`Ok`), or the rank that it would have (`Err`).
    pub fn rank(&self, pages: &impl Pages, key: &[u8]) -> Result<Result<u64, u64>, Cold> {
        let (mut page, mut before) = (&self.root, 0);
        while page.level() > 0 {
            let (parent, index) = (page, page.link_for(key));
            page = child(pages, page, index)?;
            before += parent.count_before(index);
        }
        let place = page.search(key);
        Ok(place.map(|index| before + index as u64).map_err(|index| before + index as u64))
    }

    /// The item of a rank.
    pub fn at<'a>(&'a self, pages: &'a impl Pages, rank: u64) -> Result<Option<Item<'a>>, Cold> {
        if rank >= self.len {
            return Ok(None);
        }
        let (mut page, mut rest) = (&self.root, rank);
        while page.level() > 0 {
            let (index, below) = page.link_at(rest, false);
            (page, rest) = (child(pages, page, index)?, below);
        }
        Ok(Some(page.item(rest as usize)))
    }

    /// The way to a key or to where it would be.
    pub(super) fn way_to_key(&self, pages: &impl Pages, key: &[u8]) -> Result<Found, Cold> {
        let mut way = Way::default();
        let mut page = &self.root;
        while page.level() > 0 {
            page = way.step(pages, page, page.link_for(key))?;
        }
        Ok(match page.search(key) {
            Ok(index) => way.end(page, index, true),
            Err(index) => way.end(page, index, false),
        })
    }

    /// The way to the item of a rank, or to the place before it.
    pub(super) fn way_to_rank(&self, pages: &impl Pages, rank: u64, gap: bool) -> Result<Found, Cold> {
        let mut way = Way::default();
        let (mut page, mut rest) = (&self.root, rank);
        while page.level() > 0 {
            let (index, below) = page.link_at(rest, gap);
            (page, rest) = (way.step(pages, page, index)?, below);
        }
        Ok(way.end(page, rest as usize, !gap))
    }
}

struct Way {
    path: Path,
    next: Option<PageNo>,
    is_first: bool,
    is_last: bool,
}

impl Default for Way {
    fn default() -> Self {
        Self { path: Path::new(), next: None, is_first: true, is_last: true }
    }
}

impl Way {
    fn step<'a, P: Pages>(&mut self, pages: &'a P, page: &Page, index: usize) -> Result<&'a Page, Cold> {
        self.path.push(Step { page: self.next, index });
        self.is_first &= index == 0;
        self.is_last &= index + 1 == page.len();
        self.next = Some(page.link(index).child);
        child(pages, page, index)
    }

    fn end(mut self, page: &Page, index: usize, is_there: bool) -> Found {
        self.path.push(Step { page: self.next, index });
        let edge = if self.is_last && index == page.len() {
            Edge::Last
        } else if self.is_first && index == 0 {
            Edge::First
        } else {
            Edge::None
        };
        Found { path: self.path, is_there, edge }
    }
}

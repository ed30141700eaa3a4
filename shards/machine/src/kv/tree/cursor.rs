//! Items in order, both ways.

use smallvec::SmallVec;

use super::page::Page;
use super::read::child;
use super::{Cold, Item, Pages, SizedTree};

/// A place before, between or behind the items of a tree. Where a page is missing a step leaves it where it is.
pub(crate) struct Cursor<'a, P> {
    pages: &'a P,
    /// Inner pages down to the leaf, and which of their links is on the way.
    path: SmallVec<[(&'a Page, usize); 6]>,
    leaf: &'a Page,
    /// The item of the leaf that it is before.
    index: usize,
    rank: u64,
}

impl<const BYTES_MAX: usize> SizedTree<BYTES_MAX> {
    /// The place before the item of this rank; the end if there are fewer.
    pub fn before_rank<'a, P: Pages>(&'a self, pages: &'a P, rank: u64) -> Result<Cursor<'a, P>, Cold> {
        let rank = rank.min(self.len);
        let (mut cursor, mut rest) = (self.cursor(pages), rank);
        while cursor.leaf.level() > 0 {
            // At the end of all there is no item to find.
            let (index, below) = cursor.leaf.link_at(rest, rank == self.len);
            cursor.descend(index)?;
            rest = below;
        }
        Ok(Cursor { index: rest as usize, rank, ..cursor })
    }

    /// The place before the first item whose key is not below this one.
    #[cfg(test)]
    pub fn before_key<'a, P: Pages>(&'a self, pages: &'a P, key: &[u8]) -> Result<Cursor<'a, P>, Cold> {
        self.beside_key(pages, key, 0)
    }

    /// The place behind the last item whose key is not above this one.
    pub fn behind_key<'a, P: Pages>(&'a self, pages: &'a P, key: &[u8]) -> Result<Cursor<'a, P>, Cold> {
        self.beside_key(pages, key, 1)
    }

    /// Before or behind a key, `past` items after where it starts.
    fn beside_key<'a, P: Pages>(
        &'a self,
        pages: &'a P,
        key: &[u8],
        past: usize,
    ) -> Result<Cursor<'a, P>, Cold> {
        let mut cursor = self.cursor(pages);
        while cursor.leaf.level() > 0 {
            let (parent, index) = (cursor.leaf, cursor.leaf.link_for(key));
            cursor.descend(index)?;
            cursor.rank += parent.count_before(index);
        }
        let index = cursor.leaf.search(key).map_or_else(|index| index, |index| index + past);
        Ok(Cursor { index, rank: cursor.rank + index as u64, ..cursor })
    }

    fn cursor<'a, P: Pages>(&'a self, pages: &'a P) -> Cursor<'a, P> {
        Cursor { pages, path: SmallVec::new(), leaf: &self.root, index: 0, rank: 0 }
    }
}

impl<'a, P: Pages> Cursor<'a, P> {
    /// How many items are before it.
    pub fn rank(&self) -> u64 {
        self.rank
    }

    /// Steps over the item behind it and returns it.
    #[inline]
    pub fn forward(&mut self) -> Result<Option<Item<'a>>, Cold> {
        if self.index == self.leaf.len() && !self.turn(true)? {
            return Ok(None);
        }
        let item = self.leaf.item(self.index);
        self.index += 1;
        self.rank += 1;
        Ok(Some(item))
    }

    /// Steps over the item before it and returns it.
    #[inline]
    pub fn backward(&mut self) -> Result<Option<Item<'a>>, Cold> {
        if self.index == 0 && !self.turn(false)? {
            return Ok(None);
        }
        self.index -= 1;
        self.rank -= 1;
        Ok(Some(self.leaf.item(self.index)))
    }

    /// Goes on to the start of the next leaf, or to the end of the one before. Returns whether there is one.
    fn turn(&mut self, forward: bool) -> Result<bool, Cold> {
        let more = |(page, index): &(&Page, usize)| if forward { index + 1 < page.len() } else { *index > 0 };
        let Some(depth) = self.path.iter().rposition(more) else { return Ok(false) };
        let Some(&(mut page, index)) = self.path.get(depth) else { return Ok(false) };
        let mut index = if forward { index + 1 } else { index - 1 };
        let mut tail: SmallVec<[(&Page, usize); 6]> = SmallVec::new();
        while page.level() > 0 {
            tail.push((page, index));
            page = child(self.pages, page, index)?;
            index = if forward || page.level() == 0 { 0 } else { page.len() - 1 };
        }
        self.path.truncate(depth);
        self.path.extend(tail);
        self.leaf = page;
        self.index = if forward { 0 } else { page.len() };
        Ok(true)
    }

    fn descend(&mut self, index: usize) -> Result<(), Cold> {
        let page = child(self.pages, self.leaf, index)?;
        self.path.push((self.leaf, index));
        self.leaf = page;
        Ok(())
    }
}

//! Many items taken out at once: of pages that go as a whole no item is looked at, and leaves among them need not be in
//! memory.

use std::ops::Range;

use super::page::{Link, Page};
use super::read::child;
use super::{Cold, PageNo, Pages, PagesMut, SizedTree};

/// What of a page's links falls into a range of ranks.
struct Hit {
    index: usize,
    link: Link,
    /// Of the items below it.
    ranks: Range<u64>,
}

impl Hit {
    fn is_whole(&self) -> bool {
        self.ranks == (0..self.link.count)
    }
}

fn hits(page: &Page, ranks: &Range<u64>) -> Vec<Hit> {
    let (mut hits, mut before) = (Vec::new(), 0);
    for index in 0..page.len() {
        let link = page.link(index);
        let start = ranks.start.max(before);
        let end = ranks.end.min(before + link.count);
        if start < end {
            hits.push(Hit { index, link, ranks: start - before..end - before });
        }
        before += link.count;
        if before >= ranks.end {
            break;
        }
    }
    hits
}

impl<const BYTES_MAX: usize> SizedTree<BYTES_MAX> {
    /// Takes out up to `count` items from a rank on. Returns how many there were.
    pub fn remove_range(&mut self, pages: &mut impl PagesMut, from: u64, count: u64) -> Result<u64, Cold> {
        let ranks = from.min(self.len)..from.saturating_add(count).min(self.len);
        if ranks.is_empty() {
            return Ok(0);
        }
        look(pages, &self.root, &ranks)?;
        self.cut(pages, None, &ranks);
        self.len -= ranks.end - ranks.start;
        self.reset_if_empty();
        Ok(ranks.end - ranks.start)
    }

    /// Takes some ranks out of a page; of any but the root some stay.
    fn cut(&mut self, pages: &mut impl PagesMut, no: Option<PageNo>, ranks: &Range<u64>) {
        let page = self.page_of(pages, no);
        let level = page.level();
        if level == 0 {
            self.change(pages, no, |page| page.remove(ranks.start as usize..ranks.end as usize));
            return;
        }
        let hits = hits(page, ranks);
        for hit in &hits {
            if hit.is_whole() {
                free(pages, hit.link.child, level - 1);
            } else {
                self.cut(pages, Some(hit.link.child), &hit.ranks);
            }
        }
        self.change(pages, no, |page| {
            let (whole, partly): (Vec<&Hit>, Vec<&Hit>) = hits.iter().partition(|hit| hit.is_whole());
            for hit in partly {
                page.take_count(hit.index, hit.ranks.end - hit.ranks.start);
            }
            if let (Some(first), Some(last)) = (whole.first(), whole.last()) {
                page.remove(first.index..last.index + 1);
            }
        });
    }
}

/// Whether all that [`SizedTree::cut`] needs of a page is in memory.
fn look(pages: &impl Pages, page: &Page, ranks: &Range<u64>) -> Result<(), Cold> {
    if page.level() == 0 {
        return Ok(());
    }
    for hit in hits(page, ranks) {
        if !hit.is_whole() {
            look(pages, child(pages, page, hit.index)?, &hit.ranks)?;
        } else if page.level() > 1 {
            look_below(pages, child(pages, page, hit.index)?)?;
        }
    }
    Ok(())
}

/// Whether all inner pages from this one down are in memory.
fn look_below(pages: &impl Pages, page: &Page) -> Result<(), Cold> {
    if page.level() > 1 {
        for index in 0..page.len() {
            look_below(pages, child(pages, page, index)?)?;
        }
    }
    Ok(())
}

/// Takes away a page and all below it.
fn free(pages: &mut impl PagesMut, no: PageNo, level: u8) {
    if level > 0 {
        let Some(page) = pages.page(no) else { panic!("an inner page that goes is in memory") };
        let below: Vec<PageNo> = (0..page.len()).map(|index| page.link(index).child).collect();
        for no in below {
            free(pages, no, level - 1);
        }
    }
    pages.remove(no);
}

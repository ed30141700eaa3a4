//! A tree's invariants.

use super::page::Page;
use super::{Order, PageNo, Pages, SizedTree};

/// What is known of the keys below a link: not below the first, below the second.
type Between<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

impl<const BYTES_MAX: usize> SizedTree<BYTES_MAX> {
    /// Checks every invariant, of what is in memory. Returns the numbers of its pages, as far as they are known: those
    /// below an inner page that is not in memory are not.
    pub fn check(&self, pages: &impl Pages, order: Order) -> Vec<PageNo> {
        assert_eq!(self.len, self.root.count(), "a tree counts its items");
        let mut seen = Vec::new();
        check::<BYTES_MAX>(pages, &self.root, order, (None, None), &mut seen);
        let mut unique = seen.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), seen.len(), "each page has one link to it");
        unique
    }
}

fn check<const BYTES_MAX: usize>(
    pages: &impl Pages,
    page: &Page,
    order: Order,
    between: Between<'_>,
    seen: &mut Vec<PageNo>,
) {
    page.check(BYTES_MAX, order);
    for index in 0..page.len() {
        let key = page.key(index);
        let is_link_without_key = page.level() > 0 && index == 0;
        assert!(
            order == Order::ByPlace
                || is_link_without_key
                || (between.0.is_none_or(|low| low <= key) && between.1.is_none_or(|high| key < high)),
            "keys are below the link that leads to them"
        );
        if page.level() == 0 {
            continue;
        }
        let link = page.link(index);
        seen.push(link.child);
        let Some(child) = pages.page(link.child) else { continue };
        assert!(child.len() > 0, "no page but the root is empty");
        assert_eq!(child.level() + 1, page.level(), "a page is one level below the one that links to it");
        assert_eq!(child.count(), link.count, "a link counts the items below it");
        let low = if is_link_without_key { between.0 } else { Some(key) };
        let high = if index + 1 < page.len() { Some(page.key(index + 1)) } else { between.1 };
        check::<BYTES_MAX>(pages, child, order, (low, high), seen);
    }
}

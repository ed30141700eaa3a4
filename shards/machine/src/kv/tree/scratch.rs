//! Changes that are tried and not made: a copy of each page that they touch, over pages that stay as they are.

use std::collections::BTreeMap;

use super::{Page, PageNo, Pages, PagesMut};

/// Pages with changes on top. The tree's root is not among them: try changes on a clone of the tree.
#[derive(Clone)]
pub(crate) struct Scratch<P> {
    base: P,
    next: PageNo,
    /// What became of pages: nothing if it was taken away.
    changes: BTreeMap<PageNo, Option<Page>>,
}

impl<P: Pages> Scratch<P> {
    /// Nothing changed yet.
    pub fn new(base: P) -> Self {
        Self { next: base.next_no(), base, changes: BTreeMap::new() }
    }

    /// What became of pages, those taken away as nothing.
    #[cfg(test)]
    pub fn into_changes(self) -> BTreeMap<PageNo, Option<Page>> {
        self.changes
    }
}

impl<P: Pages> Pages for Scratch<P> {
    fn page(&self, no: PageNo) -> Option<&Page> {
        match self.changes.get(&no) {
            Some(change) => change.as_ref(),
            None => self.base.page(no),
        }
    }

    fn next_no(&self) -> PageNo {
        self.next
    }
}

impl<P: Pages> PagesMut for Scratch<P> {
    fn change<R>(&mut self, no: PageNo, change: impl FnOnce(&mut Page) -> R) -> R {
        let base = &self.base;
        let page = self.changes.entry(no).or_insert_with(|| base.page(no).cloned());
        let Some(page) = page else { panic!("a page that changes is in memory") };
        change(page)
    }

    fn add(&mut self, page: Page) -> PageNo {
        let no = self.next;
        self.next = PageNo(no.0 + 1);
        self.changes.insert(no, Some(page));
        no
    }

    fn remove(&mut self, no: PageNo) {
        self.changes.insert(no, None);
    }
}

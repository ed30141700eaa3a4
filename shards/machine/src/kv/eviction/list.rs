//! Lists through the numbers of a slab: what is in one leaves it at once.

use crate::kv::slab::Place;

/// What is before and behind an entry in its list.
#[derive(Clone, Copy, Debug)]
struct Link {
    before: u32,
    behind: u32,
}

/// No entry: the list ends here.
const END: u32 = u32::MAX;

/// In no list. Slabs have no such numbers, either.
const OUT: Link = Link { before: END - 1, behind: END - 1 };

const CHUNK: usize = 1024;

/// Links of so many neighbours, as long as one of them is in a list.
#[derive(Debug, Default)]
struct Chunk {
    used: usize,
    links: Option<Box<[Link; CHUNK]>>,
}

/// The links of all places.
#[derive(Debug, Default)]
pub(super) struct Links {
    chunks: Vec<Chunk>,
    /// Chunks that are there.
    there: usize,
}

impl Links {
    /// Whether an entry is in a list.
    pub fn has(&self, place: Place) -> bool {
        self.get(place.number()).before != OUT.before
    }

    /// What it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        (self.there * size_of::<[Link; CHUNK]>() + self.chunks.capacity() * size_of::<Chunk>()) as u64
    }

    fn get(&self, number: u32) -> Link {
        let chunk = self.chunks.get(number as usize / CHUNK).and_then(|chunk| chunk.links.as_ref());
        chunk.and_then(|links| links.get(number as usize % CHUNK)).copied().unwrap_or(OUT)
    }

    fn get_mut(&mut self, number: u32) -> &mut Link {
        let chunk = self.chunks.get_mut(number as usize / CHUNK).and_then(|chunk| chunk.links.as_mut());
        let link = chunk.and_then(|links| links.get_mut(number as usize % CHUNK));
        link.unwrap_or_else(|| panic!("an entry in a list has a link"))
    }

    fn add(&mut self, number: u32, link: Link) {
        let index = number as usize / CHUNK;
        if index >= self.chunks.len() {
            self.chunks.resize_with(index + 1, Chunk::default);
        }
        if let Some(chunk) = self.chunks.get_mut(index) {
            if chunk.links.is_none() {
                chunk.links = Some(Box::new([OUT; CHUNK]));
                self.there += 1;
            }
            chunk.used += 1;
        }
        *self.get_mut(number) = link;
    }

    fn take(&mut self, number: u32) -> Link {
        let link = std::mem::replace(self.get_mut(number), OUT);
        if let Some(chunk) = self.chunks.get_mut(number as usize / CHUNK) {
            chunk.used -= 1;
            if chunk.used == 0 {
                chunk.links = None;
                self.there -= 1;
            }
        }
        while self.chunks.last().is_some_and(|chunk| chunk.used == 0) {
            self.chunks.pop();
        }
        link
    }

    /// Checks that so many entries are in lists.
    pub fn check(&self, len: usize) {
        assert_eq!(self.chunks.iter().map(|chunk| chunk.used).sum::<usize>(), len);
        assert_eq!(self.chunks.iter().filter(|chunk| chunk.links.is_some()).count(), self.there);
        for chunk in &self.chunks {
            let links = chunk.links.iter().flat_map(|links| links.iter());
            assert_eq!(links.filter(|link| link.before != OUT.before).count(), chunk.used);
        }
    }
}

/// A list: what comes last goes last.
#[derive(Debug)]
pub(super) struct List {
    first: u32,
    last: u32,
    pub len: usize,
}

impl Default for List {
    fn default() -> Self {
        Self { first: END, last: END, len: 0 }
    }
}

impl List {
    /// Puts an entry behind all others. It is in no list.
    pub fn push(&mut self, place: Place, links: &mut Links) {
        debug_assert!(!links.has(place), "an entry is in one list");
        let number = place.number();
        links.add(number, Link { before: self.last, behind: END });
        match self.last {
            END => self.first = number,
            last => links.get_mut(last).behind = number,
        }
        self.last = number;
        self.len += 1;
    }

    /// Takes the first entry.
    pub fn pop(&mut self, links: &mut Links) -> Option<Place> {
        let first = Some(self.first).filter(|first| *first != END).map(Place::of)?;
        self.remove(first, links);
        Some(first)
    }

    /// Takes an entry of this list out of it.
    pub fn remove(&mut self, place: Place, links: &mut Links) {
        let link = links.take(place.number());
        match link.before {
            END => self.first = link.behind,
            before => links.get_mut(before).behind = link.behind,
        }
        match link.behind {
            END => self.last = link.before,
            behind => links.get_mut(behind).before = link.before,
        }
        self.len -= 1;
    }

    /// All of it, the first first.
    pub fn iter<'a>(&self, links: &'a Links) -> impl Iterator<Item = Place> + use<'a> {
        let first = Some(self.first);
        let numbers = std::iter::successors(first, |number| Some(links.get(*number).behind));
        numbers.take_while(|number| *number != END).map(Place::of)
    }
}

//! Which entry goes next: S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023).
//!
//! | queue | has | what comes to its front |
//! |---|---|---|
//! | small, a tenth of all | what came | goes to main if it was asked for twice since; else goes, and is remembered |
//! | main | what was asked for again, or came back while it was remembered | stays for another round if it was asked for since, and counts once less; else goes |
//!
//! What is asked for only costs a count of two bits in its [`Heat`]: nothing moves. What went is remembered by sixteen bits
//! of its hash ([`Ghosts`]). An order is a list through the numbers of the slab, eight bytes an entry, so that what is
//! removed leaves at once. It is made when something is to go for the first time or the store is a cache; until then it
//! costs nothing, and afterwards it takes in what was there before bit by bit. Not part of the state.

mod ghosts;
mod list;
#[cfg(test)]
mod tests;

use std::cell::Cell;

use super::Store;
use super::entry::Entry;
use super::slab::{Place, Slab};
use ghosts::Ghosts;
use list::{Links, List};

/// How often an entry was asked for lately, up to three, and which queue it is in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heat(Cell<u8>);

/// The most that is counted.
const COUNT_MAX: u8 = 3;

/// What must be counted of an entry at the front of the small queue for it to stay.
const COUNT_TO_STAY: u8 = 2;

/// It is in an order: its count matters.
const COUNTS: u8 = 1 << 2;

/// It is in the main queue, not in the small one.
const IN_MAIN: u8 = 1 << 3;

/// It was taken out of an order.
const TAKEN_OUT: u8 = 1 << 4;

impl Heat {
    /// It was asked for.
    #[inline]
    pub fn count(&self) {
        let heat = self.0.get();
        if heat & COUNTS != 0 && heat & COUNT_MAX != COUNT_MAX {
            self.0.set(heat + 1);
        }
    }

    fn counted(&self) -> u8 {
        self.0.get() & COUNT_MAX
    }

    fn begin(&self, queue: Queue) {
        self.0.set(COUNTS | if queue == Queue::Main { IN_MAIN } else { 0 });
    }

    fn cool(&self) {
        self.0.set(self.0.get() - 1);
    }

    fn take_out(&self) {
        self.0.set(TAKEN_OUT);
    }

    /// Whether it was taken out of an order, to go.
    pub fn is_taken_out(&self) -> bool {
        self.0.get() == TAKEN_OUT
    }

    fn queue(&self) -> Queue {
        if self.0.get() & IN_MAIN != 0 { Queue::Main } else { Queue::Small }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    Small,
    Main,
}

/// Of all that is in order, one in so many is in the small queue.
const SMALL_SHARE: usize = 10;

/// Entries from before the order that one look takes in.
const ADOPTED_AT_ONCE: usize = 256;

/// The order in which entries go.
#[derive(Debug, Default)]
pub(crate) struct Eviction {
    small: List,
    main: List,
    links: Links,
    ghosts: Ghosts,
    /// Places from here on up to the other one may have entries that came before the order.
    adopted: u32,
    adopt_upto: u32,
    /// Whether it has entries, too, whose values are not in memory.
    has_cold: bool,
}

impl Eviction {
    /// An order of what is there, none of which was ever asked for.
    pub fn of(slab: &Slab) -> Self {
        Self { adopt_upto: slab.end(), ..Self::default() }
    }

    /// From now on what is cold is in order as well; what is there already is taken in bit by bit.
    pub fn take_cold_in(&mut self, slab: &Slab) {
        self.has_cold = true;
        (self.adopted, self.adopt_upto) = (0, slab.end());
    }

    /// An entry came, or came back. `hash` is that of its key.
    pub fn came(&mut self, place: Place, entry: &Entry, hash: u64) {
        if self.links.has(place) || entry.is_cold() && !self.has_cold {
            return;
        }
        let queue = if self.ghosts.take(hash) { Queue::Main } else { Queue::Small };
        self.enter(place, entry, queue);
    }

    /// An entry leaves, whatever the reason.
    pub fn left(&mut self, place: Place, entry: &Entry) {
        if self.links.has(place) {
            let (list, links) = self.list(entry.heat.queue());
            list.remove(place, links);
        }
    }

    /// Takes the entry that goes next out of the order, and remembers it. What `may_go` does not let go stays for another
    /// round. Looks at no more than `looks_max` entries: `None` means that none of them goes, or that there is none.
    /// What was taken out and does not go after all must come back.
    pub fn next(
        &mut self,
        slab: &Slab,
        hash_of: impl Fn(&[u8]) -> u64,
        looks_max: usize,
        mut may_go: impl FnMut(&Entry) -> bool,
    ) -> Option<Place> {
        self.adopt(slab);
        // Where the one has only what does not go there may be something in the other.
        let mut refused = None;
        for _ in 0..looks_max {
            let all = self.len();
            // Without the one that came last, for which room is made.
            let is_long = self.small.len > 0 && (self.small.len - 1) * SMALL_SHARE >= all - 1;
            let is_turn = is_long && refused != Some(Queue::Small) || refused == Some(Queue::Main);
            let queue =
                if self.main.len == 0 || self.small.len > 0 && is_turn { Queue::Small } else { Queue::Main };
            let (list, links) = self.list(queue);
            let place = list.pop(links)?;
            let Some(entry) = slab.get(place) else { panic!("an entry in order that is not there") };
            let counted = entry.heat.counted();
            match queue {
                Queue::Small if counted >= COUNT_TO_STAY => self.enter(place, entry, Queue::Main),
                Queue::Main if counted > 0 => {
                    self.main.push(place, &mut self.links);
                    entry.heat.cool();
                }
                _ if !may_go(entry) => {
                    self.enter(place, entry, Queue::Main);
                    refused = Some(queue);
                }
                _ => {
                    entry.heat.take_out();
                    if queue == Queue::Small {
                        self.ghosts.remember(hash_of(entry.key()), all);
                    }
                    return Some(place);
                }
            }
        }
        None
    }

    /// Takes the first entry out of the order, however often it was asked for.
    pub fn first(&mut self, slab: &Slab) -> Option<Place> {
        self.adopt(slab);
        let queue = if self.main.len > 0 { Queue::Main } else { Queue::Small };
        let (list, links) = self.list(queue);
        let place = list.pop(links)?;
        slab.get(place).into_iter().for_each(|entry| entry.heat.take_out());
        Some(place)
    }

    /// Takes all in that is there, be it that it was taken out before.
    pub fn take_all_in(&mut self, slab: &Slab) {
        for (place, entry) in slab.iter() {
            if !self.links.has(place) {
                self.enter(place, entry, Queue::Main);
            }
        }
    }

    /// How many entries are in order.
    pub fn len(&self) -> usize {
        self.small.len + self.main.len
    }

    /// Whether what was there before the order is still to be taken in.
    pub fn is_adopting(&self) -> bool {
        self.adopted < self.adopt_upto
    }

    /// What it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.links.memory_bytes() + self.ghosts.memory_bytes()
    }

    /// Takes in some of what was there before the order: it has been there for long.
    fn adopt(&mut self, slab: &Slab) {
        for number in (self.adopted..self.adopt_upto).take(ADOPTED_AT_ONCE) {
            self.adopted = number + 1;
            let place = Place::of(number);
            let waits = |entry: &&Entry| {
                !self.links.has(place) && !entry.heat.is_taken_out() && (self.has_cold || !entry.is_cold())
            };
            if let Some(entry) = slab.get(place).filter(waits) {
                self.enter(place, entry, Queue::Main);
            }
        }
    }

    fn enter(&mut self, place: Place, entry: &Entry, queue: Queue) {
        let (list, links) = self.list(queue);
        list.push(place, links);
        entry.heat.begin(queue);
    }

    fn list(&mut self, queue: Queue) -> (&mut List, &mut Links) {
        match queue {
            Queue::Small => (&mut self.small, &mut self.links),
            Queue::Main => (&mut self.main, &mut self.links),
        }
    }

    /// Checks that exactly what is there is in order, but for what is still to be taken in and what was taken out.
    pub fn check(&self, slab: &Slab) {
        let mut places = std::collections::BTreeSet::new();
        for (list, queue) in [(&self.small, Queue::Small), (&self.main, Queue::Main)] {
            for place in list.iter(&self.links) {
                let Some(entry) = slab.get(place) else { panic!("an entry in order that is not there") };
                assert_eq!(entry.heat.queue(), queue);
                assert!(entry.heat.0.get() & COUNTS != 0, "what is in order is counted");
                assert!(places.insert(place), "an entry is in order once");
            }
        }
        assert_eq!(places.len(), self.len());
        self.links.check(places.len());
    }
}

impl Store {
    /// From now on it is kept in mind in which order entries go. Costs nothing if it is already.
    pub fn keep_order(&mut self) {
        self.eviction.get_or_insert_with(|| Box::new(Eviction::of(&self.slab)));
    }

    /// Takes the entry that goes next out of the order, of those that `may_go`, looking at `looks_max` of them at most. If it
    /// does not go after all it must come back. Nothing unless order is kept.
    pub fn next_to_go(&mut self, looks_max: usize, may_go: impl FnMut(&Entry) -> bool) -> Option<Place> {
        let (sip, slab) = (self.sip, &self.slab);
        self.eviction.as_mut()?.next(slab, |key| sip.hash(key), looks_max, may_go)
    }

    /// Takes the first entry out of the order, however often it was asked for.
    pub fn first_to_go(&mut self) -> Option<Place> {
        self.eviction.as_mut()?.first(&self.slab)
    }

    /// All that is there is in order again.
    pub fn take_all_in(&mut self) {
        if let Some(eviction) = &mut self.eviction {
            eviction.take_all_in(&self.slab);
        }
    }

    /// What was left to the index while nothing went for good can go for good now.
    pub fn take_cold_in(&mut self) {
        if let Some(eviction) = self.eviction.as_mut().filter(|_| self.cold.entries > 0) {
            eviction.take_cold_in(&self.slab);
        }
    }

    /// An entry is there, or is there again. `hash` is that of its key. One whose value is not in memory has no place in the order
    /// in which values leave memory.
    #[inline]
    pub fn came(&mut self, place: Place, hash: u64) {
        if let (Some(eviction), Some(entry)) = (&mut self.eviction, self.slab.get(place)) {
            eviction.came(place, entry, hash);
        }
    }
}

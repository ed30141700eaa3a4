//! Looking at many keys at once.
//!
//! To find one entry is to wait for memory four times: a table's tags, its bucket, the entry, the entry's bytes. Keys do not
//! depend on each other, so each step is taken for all of them before the next one: then the processor waits for many of
//! them at the same time.

use bytes::Bytes;
use smallvec::SmallVec;

use super::Store;
use super::entry::Entry;
use super::slab::Place;

/// Keys that are looked at together: what is read of them stays in the innermost cache.
const AT_ONCE: usize = 64;

/// As many as there are in most calls lie on the stack.
pub(super) type Found<'a> = SmallVec<[Option<&'a Entry>; AT_ONCE]>;

impl Store {
    /// The entries of keys that are held, live or not.
    pub fn entries(&self, keys: &[Bytes]) -> Found<'_> {
        if let [key] = keys {
            return Found::from_iter([self.entry(key)]);
        }
        let mut found = Found::with_capacity(keys.len());
        for keys in keys.chunks(AT_ONCE) {
            let guessed = self.guess(keys.iter().map(|key| &**key));
            found.extend(keys.iter().zip(guessed).map(|(key, guess)| {
                let guess = guess.filter(|entry| entry.key() == key);
                guess.or_else(|| self.entry(key))
            }));
        }
        found
    }

    /// Brings what there is of keys into the processor's caches: what is done with them next does not wait.
    pub fn warm<'k>(&self, keys: impl ExactSizeIterator<Item = &'k [u8]>) {
        if keys.len() < 2 {
            return;
        }
        let mut keys = keys;
        while keys.len() > 0 {
            self.guess(keys.by_ref().take(AT_ONCE));
        }
    }

    /// What is there of keys, in all likelihood.
    fn guess<'k>(&self, keys: impl Iterator<Item = &'k [u8]>) -> Found<'_> {
        let hashes: SmallVec<[u64; AT_ONCE]> = keys.map(|key| self.sip.hash(key)).collect();
        let places: SmallVec<[Option<Place>; AT_ONCE]> =
            hashes.iter().map(|hash| self.table.guess(*hash)).collect();
        let entries: Found<'_> = places.iter().map(|place| self.slab.get((*place)?)).collect();
        touch(&entries);
        entries
    }

    /// Brings entries into the processor's caches.
    pub fn warm_places(&self, places: &[Place]) {
        for places in places.chunks(AT_ONCE) {
            touch(&places.iter().map(|place| self.slab.get(*place)).collect::<Found<'_>>());
        }
    }
}

fn touch(entries: &[Option<&Entry>]) {
    let read = entries.iter().flatten().fold(0, |all, entry| all ^ entry.touch());
    std::hint::black_box(read);
}

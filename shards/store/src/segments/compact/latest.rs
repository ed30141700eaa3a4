//! Where the latest record of each key is, in memory that is bounded.
//!
//! Keys are known by their 128-bit hash (XXH3). Two of the 2^32 keys that one map could ever hold have the same one with a
//! probability of 2^-65: far below that of a disk that gives back another byte than it was given.
//!
//! A table with open addressing, in pieces: none is so large that to get it, move it or give it back holds the core up.

use flowmesh_model::Offset;

use super::{GivenUp, Pace};

/// Slots of one piece: 192 KiB.
const PIECE: usize = 8 * 1024;

/// Slots that are moved before others have a turn: about 50 µs.
const MOVED_AT_ONCE: usize = 1024;

/// A key's hash and the offset of its latest record; all zero if nothing is there.
#[derive(Clone, Copy, Default)]
struct Slot {
    hash: [u64; 2],
    /// One more than the offset.
    behind: u64,
}

/// What becomes of a record that is noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// It is the latest of its key now.
    Yes,
    /// First there must be more room: see [`Latest::grow`].
    NeedsRoom,
}

/// The latest record of each key.
pub(super) struct Latest {
    pieces: Vec<Box<[Slot]>>,
    /// A power of two.
    slots: usize,
    slots_max: usize,
    keys: usize,
}

pub(super) fn hash(key: &[u8]) -> [u64; 2] {
    let hash = xxhash_rust::xxh3::xxh3_128(key);
    [hash as u64, (hash >> 64) as u64]
}

impl Latest {
    /// Grows up to `bytes_max`, at least one piece; while it does, it has half as much more.
    pub fn new(bytes_max: usize) -> Self {
        let slots_max = (bytes_max / size_of::<Slot>()).max(PIECE);
        let slots_max =
            if slots_max.is_power_of_two() { slots_max } else { slots_max.next_power_of_two() / 2 };
        Self { pieces: pieces(PIECE), slots: PIECE, slots_max, keys: 0 }
    }

    /// Takes note of a record that is later than all before it.
    pub fn note(&mut self, hash: [u64; 2], offset: Offset) -> Noted {
        let is_full = self.keys >= self.slots / 4 * 3;
        let slot = self.slot(hash);
        if slot.behind == 0 {
            if is_full {
                return Noted::NeedsRoom;
            }
            slot.hash = hash;
            slot.behind = offset.0 + 1;
            self.keys += 1;
        } else {
            slot.behind = offset.0 + 1;
        }
        Noted::Yes
    }

    /// Whether a later record of the key was noted.
    #[inline]
    pub fn has_later(&mut self, hash: [u64; 2], offset: Offset) -> bool {
        self.slot(hash).behind > offset.0 + 1
    }

    /// The slot of a key, or the empty one where it would be. There is always an empty one.
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "the mask keeps the place below the number of slots")]
    fn slot(&mut self, hash: [u64; 2]) -> &mut Slot {
        let mask = self.slots - 1;
        let mut place = hash[0] as usize & mask;
        loop {
            let slot = &self.pieces[place / PIECE][place % PIECE];
            if slot.behind == 0 || slot.hash == hash {
                break;
            }
            place = (place + 1) & mask;
        }
        &mut self.pieces[place / PIECE][place % PIECE]
    }

    /// Makes room for as many keys again. `false` if there is no more to be had.
    pub async fn grow<P: Pace>(&mut self, pace: &P) -> Result<bool, GivenUp> {
        if self.slots * 2 > self.slots_max {
            return Ok(false);
        }
        let slots = self.slots * 2;
        let old = std::mem::replace(&mut self.pieces, pieces(slots));
        (self.slots, self.keys) = (slots, 0);
        for piece in old {
            for some in piece.chunks(MOVED_AT_ONCE) {
                for moved in some.iter().filter(|slot| slot.behind > 0) {
                    *self.slot(moved.hash) = *moved;
                    self.keys += 1;
                }
                pace.pause(0).await?;
            }
        }
        Ok(true)
    }

    /// Gives the memory back.
    pub async fn free<P: Pace>(&mut self, pace: &P) {
        while self.pieces.pop().is_some() {
            // Whoever wants to stop must not keep the memory.
            let _ = pace.pause(0).await;
        }
    }
}

fn pieces(slots: usize) -> Vec<Box<[Slot]>> {
    (0..slots / PIECE).map(|_| vec![Slot::default(); PIECE].into_boxed_slice()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use std::collections::HashMap;

    struct AtOnce;

    impl Pace for AtOnce {
        async fn pause(&self, _: u64) -> Result<(), GivenUp> {
            Ok(())
        }
    }

    #[test]
    fn it_knows_what_a_map_knows_and_says_when_it_is_full() {
        let slot = size_of::<Slot>();
        let mut latest = Latest::new(PIECE * slot * 5);
        assert_eq!(latest.slots_max, PIECE * 4);
        let mut model = HashMap::new();
        let mut offset = 0u64;
        'all: for round in 0..3u64 {
            for key in 0..40_000u64 {
                offset += 1;
                let key = key * (round + 1);
                let hash = hash(&key.to_le_bytes());
                while latest.note(hash, Offset(offset)) == Noted::NeedsRoom {
                    if !block_on(latest.grow(&AtOnce)).unwrap() {
                        break 'all;
                    }
                }
                model.insert(key, offset);
            }
        }
        assert_eq!((latest.keys, model.len()), (PIECE * 3, PIECE * 3), "three quarters are used");
        for (key, offset) in model {
            let hash = hash(&key.to_le_bytes());
            assert!(latest.has_later(hash, Offset(offset - 1)));
            assert!(!latest.has_later(hash, Offset(offset)));
        }
        assert!(!latest.has_later(hash(b"not there"), Offset(0)));
        block_on(latest.free(&AtOnce));
    }
}

//! Random numbers by a seed that is printed, so that a failure can be played again with `FLOWMESH_TEST_SEED=…`.

use std::hash::{BuildHasher, RandomState};

/// SplitMix64: small, and good enough to choose what a test does.
pub struct Random(u64);

impl Random {
    /// By `FLOWMESH_TEST_SEED`, or by a new seed; prints it (the output of a failed test is shown).
    pub fn new(test: &str) -> Self {
        let seed = std::env::var("FLOWMESH_TEST_SEED")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| RandomState::new().hash_one(test));
        println!("{test}: FLOWMESH_TEST_SEED={seed}");
        Self(seed)
    }

    /// A generator of its own, for another task of the same test.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// So many bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

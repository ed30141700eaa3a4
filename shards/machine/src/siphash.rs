//! SipHash-1-3 (Aumasson and Bernstein, 2012): a keyed hash for keys that clients choose, so that nobody can aim them
//! all at one bucket without knowing the key.
//!
//! The standard library has the same function but no way to give it a key; a test compares the two.

use std::hash::{BuildHasher, Hasher};

/// The hash's key.
#[derive(Clone, Copy)]
pub(crate) struct SipKey(u64, u64);

impl std::fmt::Debug for SipKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SipKey(secret)")
    }
}

impl SipKey {
    /// A key out of one seed (the second half by splitmix64).
    pub fn new(seed: u64) -> Self {
        let mut mixed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Self(seed, mixed ^ (mixed >> 31))
    }

    /// The hash of `bytes`.
    #[inline]
    pub fn hash(self, bytes: &[u8]) -> u64 {
        let mut state = State {
            v0: self.0 ^ 0x736f_6d65_7073_6575,
            v1: self.1 ^ 0x646f_7261_6e64_6f6d,
            v2: self.0 ^ 0x6c79_6765_6e65_7261,
            v3: self.1 ^ 0x7465_6462_7974_6573,
        };
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            state.absorb(u64::from_le_bytes(*word));
        }
        let mut last = (bytes.len() as u64) << 56;
        for (index, &byte) in rest.iter().enumerate() {
            last |= u64::from(byte) << (8 * index);
        }
        state.absorb(last);
        state.finish()
    }
}

struct State {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl State {
    #[inline]
    fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v2 = self.v2.rotate_left(32);
    }

    #[inline]
    fn absorb(&mut self, word: u64) {
        self.v3 ^= word;
        self.round();
        self.v0 ^= word;
    }

    #[inline]
    fn finish(mut self) -> u64 {
        self.v2 ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.v0 ^ self.v1 ^ self.v2 ^ self.v3
    }
}

/// Lets maps of byte strings use the keyed hash.
impl BuildHasher for SipKey {
    type Hasher = SipHasher;

    fn build_hasher(&self) -> SipHasher {
        SipHasher { key: *self, hash: 0 }
    }
}

/// The hash of one byte string.
pub(crate) struct SipHasher {
    key: SipKey,
    hash: u64,
}

impl Hasher for SipHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.hash = self.key.hash(bytes);
    }

    /// The length of a slice comes before its bytes; it is part of their hash anyway.
    fn write_usize(&mut self, _length: usize) {}

    fn finish(&self) -> u64 {
        self.hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn with_a_zero_key_it_is_the_hash_of_the_standard_library(bytes: Vec<u8>) {
            let mut standard = std::hash::DefaultHasher::new();
            standard.write(&bytes);
            prop_assert_eq!(SipKey(0, 0).hash(&bytes), standard.finish());
        }
    }

    #[test]
    fn another_key_gives_another_hash() {
        assert_ne!(SipKey::new(1).hash(b"user:1"), SipKey::new(2).hash(b"user:1"));
    }
}

//! Which keys are used, and what they hold.
//!
//! Key number `i` is `key-` and twelve digits. What it holds starts with eight bytes that follow from `i`, so that every
//! answer can be checked without remembering what was written.

use std::sync::Arc;

use super::random::{Random, Zipf, mix};

/// Bytes of every key.
pub const KEY_BYTES: usize = 16;
/// Bytes of a value that follow from its key; a shorter value has the first of them.
pub const STAMP_BYTES: usize = 8;
/// What the other bytes of a value are.
pub const FILLER: u8 = b'.';

/// How keys are chosen.
#[derive(Clone, Debug)]
pub enum Distribution {
    /// All as often.
    Uniform,
    /// Few very often. The ranks are spread over the key numbers, as popular keys are in life.
    Zipf(Zipf),
}

/// The keys of a run.
#[derive(Clone, Debug)]
pub struct KeySpace {
    /// Keys 0..count, or an index into `only`.
    count: u64,
    only: Option<Arc<[u64]>>,
    distribution: Distribution,
}

impl KeySpace {
    /// Keys 0 to `count`, which is not 0; zipf with `exponent` if there is one, else uniform.
    pub fn new(count: u64, exponent: Option<f64>) -> Self {
        assert!(count > 0, "a run needs a key");
        let distribution =
            exponent.map_or(Distribution::Uniform, |s| Distribution::Zipf(Zipf::new(count, s)));
        Self { count, only: None, distribution }
    }

    /// Only the keys named, all as often.
    pub fn only(keys: impl Into<Arc<[u64]>>) -> Self {
        let keys = keys.into();
        assert!(!keys.is_empty(), "a run needs a key");
        Self { count: keys.len() as u64, only: Some(keys), distribution: Distribution::Uniform }
    }

    /// How many keys there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The key number at a place below [`KeySpace::count`].
    #[inline]
    pub fn at(&self, place: u64) -> u64 {
        self.only.as_ref().map_or(place, |keys| keys.get(place as usize).copied().unwrap_or_default())
    }

    /// A key number.
    #[inline]
    pub fn pick(&self, random: &mut Random) -> u64 {
        match &self.distribution {
            Distribution::Uniform => self.at(random.below(self.count)),
            Distribution::Zipf(zipf) => mix(zipf.draw(random)) % self.count,
        }
    }
}

/// The bytes of a key.
#[inline]
pub fn key_bytes(mut number: u64) -> [u8; KEY_BYTES] {
    let mut key = *b"key-000000000000";
    for digit in key.iter_mut().skip(4).rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    key
}

/// How a key's value starts.
#[inline]
pub fn stamp(number: u64) -> [u8; STAMP_BYTES] {
    mix(number ^ 0x666c_6f77_6d65_7368).to_le_bytes()
}

/// A key's whole value.
pub fn value(number: u64, bytes: usize) -> Vec<u8> {
    let mut value: Vec<u8> = stamp(number).to_vec();
    value.resize(bytes, FILLER);
    value
}

/// Whether a value is that of the key: its length and its first bytes always, all of it with `whole`.
#[inline]
pub fn value_fits(number: u64, bytes: usize, value: &[u8], whole: bool) -> bool {
    let stamp = stamp(number);
    let (start, rest) = value.split_at(value.len().min(STAMP_BYTES));
    value.len() == bytes && stamp.starts_with(start) && (!whole || rest.iter().all(|byte| *byte == FILLER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_their_number_and_one_length() {
        assert_eq!(&key_bytes(0), b"key-000000000000");
        assert_eq!(&key_bytes(1_234_567), b"key-000001234567");
    }

    #[test]
    fn only_the_right_value_fits() {
        for bytes in [0, 3, 8, 100] {
            let mut held = value(5, bytes);
            assert!(value_fits(5, bytes, &held, true));
            assert!(!value_fits(5, bytes + 1, &held, true));
            if bytes > 0 {
                assert!(!value_fits(6, bytes, &held, true));
                *held.last_mut().unwrap() ^= 1;
                assert!(!value_fits(5, bytes, &held, true));
            }
        }
    }

    #[test]
    fn picks_stay_inside_and_zipf_has_favourites() {
        let mut random = Random::new(3);
        let few = KeySpace::only(vec![4, 9]);
        assert!((0..100).all(|_| matches!(few.pick(&mut random), 4 | 9)));
        let zipf = KeySpace::new(1000, Some(1.2));
        let mut counts = vec![0; 1000];
        for _ in 0..100_000 {
            counts[zipf.pick(&mut random) as usize] += 1;
        }
        assert!(*counts.iter().max().unwrap() > 10_000);
    }
}

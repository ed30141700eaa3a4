//! Chance, drawn from a command's seed: the same command draws the same.

/// SplitMix64 (Steele, Lea, Flood, 2014).
pub(in crate::kv) struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, which is not 0. The bias is below bound / 2^64.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// So many different numbers below `bound`, or all, in the order of chance (Floyd, 1987, then shuffled).
    pub fn different(&mut self, count: u64, bound: u64) -> Vec<u64> {
        let count = count.min(bound);
        let mut taken = std::collections::BTreeSet::new();
        let mut drawn = Vec::with_capacity(count as usize);
        for last in bound - count..bound {
            let candidate = self.below(last + 1);
            let number = if taken.contains(&candidate) { last } else { candidate };
            taken.insert(number);
            drawn.push(number);
        }
        for index in (1..drawn.len()).rev() {
            let other = self.below(index as u64 + 1) as usize;
            drawn.swap(index, other);
        }
        drawn
    }

    /// As `RANDMEMBER` has it: so many different ones, or, below zero, so many with repetitions.
    pub fn places(&mut self, count: i64, bound: u64) -> Vec<u64> {
        if bound == 0 {
            return Vec::new();
        }
        if count >= 0 {
            return self.different(count.unsigned_abs(), bound);
        }
        (0..count.unsigned_abs()).map(|_| self.below(bound)).collect()
    }
}

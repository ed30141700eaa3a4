//! Durations in few buckets, for what there is one of for each resource or method.

/// The first bucket is below two to this power of nanoseconds: 16 µs.
const FIRST_POWER: u32 = 14;

/// Powers of two from one bound to the next: a factor of four.
const STEP: u32 = 2;

/// Bounds: 16 µs, 66 µs, 262 µs and so on to 4.3 s.
const BOUNDS: usize = 10;

/// A histogram of durations in eleven buckets, a hundred bytes in all. Recording is a shift and two adds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans {
    /// Below each bound, not below the one before; then what is beyond the last.
    buckets: [u64; BOUNDS + 1],
    sum_ns: u64,
}

impl Spans {
    /// Counts a duration.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        let bits = u64::BITS - ns.leading_zeros();
        let bucket = (bits.saturating_sub(FIRST_POWER).div_ceil(STEP) as usize).min(BOUNDS);
        if let Some(count) = self.buckets.get_mut(bucket) {
            *count += 1;
        }
        self.sum_ns = self.sum_ns.wrapping_add(ns);
    }

    /// How many durations were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Their sum, in nanoseconds.
    #[must_use]
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// For each bound in nanoseconds, how many durations are below it and not below the one before; then, under
    /// `u64::MAX`, how many are beyond all.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        let bounds = (0..BOUNDS as u32).map(|step| 1u64 << (FIRST_POWER + STEP * step)).chain([u64::MAX]);
        bounds.zip(self.buckets)
    }

    /// Adds what another one counted.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.buckets.iter_mut().zip(other.buckets) {
            *count += more;
        }
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_duration_is_counted_once_between_its_bounds(ns: u64) {
            let mut spans = Spans::default();
            spans.record(ns);
            let mut below = 0;
            for (bound, count) in spans.buckets() {
                let inside = ns >= below && (ns < bound || bound == u64::MAX);
                prop_assert_eq!(count, u64::from(inside), "{}..{}", below, bound);
                below = bound;
            }
            prop_assert_eq!((spans.count(), spans.sum_ns()), (1, ns));
        }
    }

    #[test]
    fn two_together_count_what_both_did() {
        let (mut first, mut second) = (Spans::default(), Spans::default());
        first.record(1);
        second.record(1);
        second.record(1 << 40);
        first.add(&second);
        assert_eq!((first.count(), first.sum_ns()), (3, 2 + (1 << 40)));
    }
}

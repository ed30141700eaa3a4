//! Decimals that compare.

use std::cmp::Ordering;

/// A decimal that is not NaN; -0 is 0. So decimals equal themselves and have one order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Real(f64);

impl Real {
    /// One.
    pub const ONE: Self = Self(1.0);

    /// `None` if it is NaN.
    #[must_use]
    pub fn new(value: f64) -> Option<Self> {
        // Adding 0 makes 0 of -0.
        if value.is_nan() { None } else { Some(Self(value + 0.0)) }
    }

    /// As the language has it.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }

    /// Bytes in the order of the decimals.
    #[must_use]
    pub const fn to_ordered(self) -> [u8; 8] {
        let bits = self.0.to_bits();
        let flipped = if bits >> 63 == 0 { bits | 1 << 63 } else { !bits };
        flipped.to_be_bytes()
    }

    /// What [`Real::to_ordered`] was made of; `None` if it cannot be.
    #[must_use]
    pub fn from_ordered(bytes: [u8; 8]) -> Option<Self> {
        let flipped = u64::from_be_bytes(bytes);
        let bits = if flipped >> 63 == 1 { flipped & !(1 << 63) } else { !flipped };
        Self::new(f64::from_bits(bits))
    }
}

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Real {}

impl PartialOrd for Real {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Real {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl std::fmt::Display for Real {
    /// Its shortest text, without an exponent, as Redis writes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_are_in_the_order_of_decimals(a: f64, b: f64) {
            if let (Some(a), Some(b)) = (Real::new(a), Real::new(b)) {
                prop_assert_eq!(a.cmp(&b), a.to_ordered().cmp(&b.to_ordered()));
                prop_assert_eq!(Real::from_ordered(a.to_ordered()), Some(a));
            }
        }
    }

    #[test]
    fn there_is_one_zero_and_no_nan() {
        assert_eq!(Real::new(-0.0), Real::new(0.0));
        assert_eq!(Real::new(f64::NAN), None);
        let ordered =
            [f64::NEG_INFINITY, -1.5, 0.0, 1.5, f64::INFINITY].map(|value| Real::new(value).unwrap());
        assert!(ordered.is_sorted() && ordered.map(Real::to_ordered).is_sorted());
    }
}

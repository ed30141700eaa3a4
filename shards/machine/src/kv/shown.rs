//! How much a reply shows of values.

use flowmesh_model::Reject;
use flowmesh_model::limits::{REPLY_BESIDE_LARGE_BYTES_MAX, REPLY_BYTES_MAX, VALUE_BYTES_MAX};

/// Bytes of values in a reply: some, or a large one and little beside it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shown {
    bytes: usize,
    largest: usize,
}

impl Shown {
    /// One more value, or what else is as large.
    pub fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.largest = self.largest.max(bytes);
    }

    /// Many small ones.
    pub fn add_all(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// # Errors
    /// [`Reject::TooLarge`] if it is too much for one reply.
    pub fn check(&self, what: &'static str) -> Result<(), Reject> {
        let is_large = self.largest > VALUE_BYTES_MAX;
        let max = match self.bytes - self.largest {
            beside if is_large && beside <= REPLY_BESIDE_LARGE_BYTES_MAX => return Ok(()),
            _ => REPLY_BYTES_MAX,
        };
        if self.bytes <= max {
            return Ok(());
        }
        Err(Reject::TooLarge { what, size: self.bytes as u64, max: max as u64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[usize]) -> Result<(), Reject> {
        let mut shown = Shown::default();
        for &bytes in values {
            shown.add(bytes);
        }
        shown.check("values")
    }

    #[test]
    fn many_values_have_a_limit_and_one_large_one_stands_out() {
        const MIB: usize = 1024 * 1024;
        assert_eq!(check(&[MIB; 4]), Ok(()));
        assert!(check(&[MIB, MIB, MIB, MIB, 1]).is_err());
        assert_eq!(check(&[16 * MIB]), Ok(()));
        assert_eq!(check(&[16 * MIB, MIB]), Ok(()));
        let refused = Reject::TooLarge { what: "values", size: 17 * MIB as u64 + 1, max: 4 * MIB as u64 };
        assert_eq!(check(&[16 * MIB, MIB, 1]), Err(refused));
        assert!(check(&[3 * MIB, 3 * MIB]).is_err());
    }
}

//! When requests are due at a fixed rate, whatever the server does.
//!
//! A closed loop asks again only when it was answered, so a server that stalls is asked less while it stalls and looks
//! better than it is. Here the times are fixed beforehand, and a latency counts from the time a request was due, not
//! from when it could be sent: nothing is left out (G. Tene, "How NOT to measure latency").

/// The due times of one of `shares` equal parts of a rate, in nanoseconds from the start.
#[derive(Clone, Debug)]
pub struct Schedule {
    per_second: f64,
    share: u64,
    shares: u64,
    fired: u64,
}

impl Schedule {
    /// Part `share` of `shares`: requests `share`, `share + shares`, … of the whole.
    pub fn new(per_second: f64, share: u64, shares: u64) -> Self {
        assert!(per_second > 0.0 && share < shares, "a rate is positive, a share one of the shares");
        Self { per_second, share, shares, fired: 0 }
    }

    /// When the next request is due. Computed from the start each time, so that nothing drifts.
    pub fn next_due(&self) -> u64 {
        let number = self.share + self.fired * self.shares;
        (number as f64 * 1e9 / self.per_second) as u64
    }

    /// The due time of the next request if it has come; it is then taken.
    pub fn take_due(&mut self, now: u64) -> Option<u64> {
        let due = self.next_due();
        (due <= now).then(|| {
            self.fired += 1;
            due
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shares_together_are_the_whole_rate_evenly_spaced(per_second in 1.0f64..1e6, shares in 1u64..8) {
            let mut all = Vec::new();
            for share in 0..shares {
                let mut schedule = Schedule::new(per_second, share, shares);
                for _ in 0..100 {
                    let due = schedule.next_due();
                    if due > 0 {
                        prop_assert_eq!(schedule.take_due(due - 1), None);
                    }
                    prop_assert_eq!(schedule.take_due(due), Some(due));
                    all.push(due);
                }
            }
            all.sort_unstable();
            for (number, due) in all.iter().enumerate() {
                let exact = number as f64 * 1e9 / per_second;
                prop_assert!((*due as f64 - exact).abs() <= 1.0);
            }
        }
    }

    #[test]
    fn a_stall_leaves_nothing_out() {
        let mut schedule = Schedule::new(1000.0, 0, 1);
        let due: Vec<u64> = std::iter::from_fn(|| schedule.take_due(5_000_000)).collect();
        assert_eq!(due, [0, 1_000_000, 2_000_000, 3_000_000, 4_000_000, 5_000_000]);
        assert_eq!(schedule.next_due(), 6_000_000);
    }
}

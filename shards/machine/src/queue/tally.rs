//! What a queue has done since somebody last took note of it, for metrics. Not part of the state: what takes note adds it up.

/// Bounds of a [`Spread`], in milliseconds: from what a worker that waits needs up to a day.
const BOUNDS_MS: [u64; 14] = [
    10, 50, 100, 500, 1_000, 5_000, 10_000, 30_000, 60_000, 300_000, 900_000, 3_600_000, 21_600_000,
    86_400_000,
];

/// Durations in few buckets, from hundredths of a second to days.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// At most each bound, above the one before; then what is above the last.
    buckets: [u64; BOUNDS_MS.len() + 1],
    sum_ms: u64,
}

impl Spread {
    /// Counts a duration.
    #[inline]
    pub fn record(&mut self, ms: u64) {
        let bucket = BOUNDS_MS.partition_point(|bound| *bound < ms);
        if let Some(count) = self.buckets.get_mut(bucket) {
            *count += 1;
        }
        self.sum_ms = self.sum_ms.wrapping_add(ms);
    }

    /// How many durations were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Their sum, in milliseconds.
    #[must_use]
    pub fn sum_ms(&self) -> u64 {
        self.sum_ms
    }

    /// For each bound in milliseconds, how many durations are at most that and above the one before; then, under `u64::MAX`,
    /// how many are above all.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        BOUNDS_MS.into_iter().chain([u64::MAX]).zip(self.buckets)
    }

    /// Adds what another one counted.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.buckets.iter_mut().zip(other.buckets) {
            *count += more;
        }
        self.sum_ms = self.sum_ms.wrapping_add(other.sum_ms);
    }
}

/// What a queue has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueTally {
    /// Attempts that failed and were followed by another one.
    pub retried: u64,
    /// Jobs that died, each time.
    pub died: u64,
    /// Jobs nobody had in their time.
    pub expired: u64,
    /// Cancelled jobs.
    pub cancelled: u64,
    /// Jobs dropped because the queue was full.
    pub dropped: u64,
    /// Dead jobs that are not kept any more.
    pub purged: u64,
    /// Leases that ran out without an answer.
    pub leases_expired: u64,
    /// Jobs that schedules enqueued.
    pub firings: u64,
    /// Times of schedules that were missed and left out.
    pub missed: u64,
    /// How long jobs were ready before they were leased.
    pub wait: Spread,
    /// How long jobs were leased before they were acknowledged.
    pub run: Spread,
    /// How late jobs of schedules were enqueued.
    pub lateness: Spread,
}

impl QueueTally {
    /// Adds what another one counted.
    pub fn add(&mut self, other: &Self) {
        self.retried += other.retried;
        self.died += other.died;
        self.expired += other.expired;
        self.cancelled += other.cancelled;
        self.dropped += other.dropped;
        self.purged += other.purged;
        self.leases_expired += other.leases_expired;
        self.firings += other.firings;
        self.missed += other.missed;
        self.wait.add(&other.wait);
        self.run.add(&other.run);
        self.lateness.add(&other.lateness);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_duration_is_counted_once_between_its_bounds(ms in 0u64..200_000_000) {
            let mut spread = Spread::default();
            spread.record(ms);
            let mut above = None;
            for (bound, count) in spread.buckets() {
                let inside = above.is_none_or(|above| ms > above) && ms <= bound;
                prop_assert_eq!(count, u64::from(inside), "up to {}", bound);
                above = Some(bound);
            }
            let mut twice = spread.clone();
            twice.add(&spread);
            prop_assert_eq!((twice.count(), twice.sum_ms()), (2, 2 * ms));
        }
    }
}

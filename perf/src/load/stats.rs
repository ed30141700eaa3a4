//! What a run counts: calls, items, bytes, errors, latencies.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

/// The longest latency told apart; longer ones count as this.
const LATENCY_NS_MAX: u64 = 120_000_000_000;

/// Latencies in nanoseconds, to three digits.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    #[allow(clippy::expect_used, reason = "the bounds are constants that hdrhistogram accepts")]
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("bounds of a histogram"))
    }
}

impl Latencies {
    /// Counts one.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    /// Adds those of another.
    pub fn add(&mut self, other: &Self) {
        // Both have the same bounds, so there is nothing that could not be added.
        let _ = self.0.add(&other.0);
    }

    /// The usual figures.
    pub fn summary(&self) -> LatencySummary {
        let us = |ns: u64| ns as f64 / 1000.0;
        let at = |quantile: f64| us(self.0.value_at_quantile(quantile));
        LatencySummary {
            count: self.0.len(),
            mean_us: self.0.mean() / 1000.0,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: us(self.0.max()),
        }
    }
}

/// Latencies in a few figures, in microseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LatencySummary {
    /// How many.
    pub count: u64,
    /// Their mean.
    pub mean_us: f64,
    /// Half took at most so long.
    pub p50_us: f64,
    /// 90 %.
    pub p90_us: f64,
    /// 99 %.
    pub p99_us: f64,
    /// 99.9 %.
    pub p999_us: f64,
    /// All.
    pub max_us: f64,
}

/// One operation's counts.
#[derive(Clone, Debug, Default)]
pub struct OpStats {
    /// Calls answered well, or for streams messages.
    pub calls: u64,
    /// Records, jobs or keys in them.
    pub items: u64,
    /// Bytes of values in them.
    pub bytes: u64,
    /// What went wrong, by what it was.
    pub errors: BTreeMap<String, u64>,
    /// How long the good ones took.
    pub latencies: Latencies,
}

impl OpStats {
    /// Adds those of another.
    pub fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.items += other.items;
        self.bytes += other.bytes;
        for (what, count) in &other.errors {
            *self.errors.entry(what.clone()).or_default() += count;
        }
        self.latencies.add(&other.latencies);
    }
}

/// The counts of one thread: one place for each operation of the run. Counts only while it measures.
#[derive(Clone, Debug)]
pub struct Recorder {
    ops: Vec<OpStats>,
    failures: u64,
    /// Whether what happens now is measured (and not warm-up or the end).
    pub measuring: bool,
}

/// An operation of a run, by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpId(pub usize);

impl Recorder {
    /// For so many operations.
    pub fn new(ops: usize) -> Self {
        Self { ops: vec![OpStats::default(); ops], failures: 0, measuring: false }
    }

    /// A good call.
    #[inline]
    pub fn done(&mut self, op: OpId, latency_ns: u64, items: u64, bytes: u64) {
        if !self.measuring {
            return;
        }
        if let Some(stats) = self.ops.get_mut(op.0) {
            stats.calls += 1;
            stats.items += items;
            stats.bytes += bytes;
            stats.latencies.record(latency_ns);
        }
    }

    /// Items that came without a call of their own.
    #[inline]
    pub fn received(&mut self, op: OpId, items: u64, bytes: u64) {
        if self.measuring
            && let Some(stats) = self.ops.get_mut(op.0)
        {
            stats.calls += 1;
            stats.items += items;
            stats.bytes += bytes;
        }
    }

    /// A bad one. Counted always: an error in the warm-up is one too.
    pub fn failed(&mut self, op: OpId, what: String) {
        self.failures += 1;
        if let Some(stats) = self.ops.get_mut(op.0) {
            *stats.errors.entry(what).or_default() += 1;
        }
    }

    /// Bad ones so far.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// The bad ones in words.
    pub fn describe_failures(&self) -> String {
        let all: Vec<String> = self
            .ops
            .iter()
            .flat_map(|op| &op.errors)
            .map(|(what, count)| format!("{count} × {what}"))
            .collect();
        format!("too many calls failed: {}", all.join("; "))
    }

    /// All counts, by operation.
    pub fn into_ops(self) -> Vec<OpStats> {
        self.ops
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_three_digits_and_sums_add_up() {
        let (mut odd, mut even) = (Latencies::default(), Latencies::default());
        for us in 1..=10_000u64 {
            if us % 2 == 0 { even.record(us * 1000) } else { odd.record(us * 1000) }
        }
        odd.add(&even);
        let summary = odd.summary();
        assert_eq!(summary.count, 10_000);
        for (figure, exact) in [
            (summary.p50_us, 5_000.0),
            (summary.p90_us, 9_000.0),
            (summary.p99_us, 9_900.0),
            (summary.p999_us, 9_990.0),
            (summary.max_us, 10_000.0),
            (summary.mean_us, 5_000.5),
        ] {
            assert!((figure - exact).abs() <= exact / 1000.0, "{figure} is not {exact}");
        }
    }

    #[test]
    fn only_what_is_measured_counts_but_every_error_does() {
        let mut recorder = Recorder::new(1);
        recorder.done(OpId(0), 5, 1, 1);
        recorder.failed(OpId(0), "status 8".to_owned());
        recorder.measuring = true;
        recorder.done(OpId(0), u64::MAX, 2, 3);
        let ops = recorder.into_ops();
        assert_eq!((ops[0].calls, ops[0].items, ops[0].bytes, ops[0].errors.len()), (1, 2, 3, 1));
        assert!(ops[0].latencies.summary().max_us > 1e7);
    }
}

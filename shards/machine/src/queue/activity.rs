//! How much a queue does, for people who watch: rates over the last minute, waits and runs over the last minutes. Not part
//! of the state: a restart begins anew.

use flowmesh_model::Millis;
use flowmesh_model::reply::{LastMinute, Percentiles};
use hdrhistogram::Histogram;

use super::tally::QueueTally;

/// The span that rates are of.
const RATE_SPAN_MS: u64 = 60_000;

/// The span that percentiles are of, at least; at most twice as long.
const PERCENTILE_SPAN_MS: u64 = 300_000;

/// Waits and runs are kept to about 1 %.
const DIGITS: u8 = 2;

/// What happens to jobs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    Enqueued,
    Done,
    Retried,
    Died,
}

/// Counts in the span that runs now and in the one before: together, weighted, a span that slides.
#[derive(Debug, Default)]
struct Counts {
    now: [u32; 4],
    before: [u32; 4],
}

/// Values of the span that runs now and of the one before. They grow with the largest value they have.
#[derive(Debug)]
struct Values {
    now: Histogram<u32>,
    before: Option<Histogram<u32>>,
}

impl Values {
    fn new() -> Option<Self> {
        Some(Self { now: Histogram::new(DIGITS).ok()?, before: None })
    }

    fn turn(&mut self, gone: bool) {
        let fresh = Histogram::new_from(&self.now);
        let now = std::mem::replace(&mut self.now, fresh);
        self.before = (!gone).then_some(now);
    }

    fn percentiles(&self) -> Percentiles {
        let mut all = self.now.clone();
        if let Some(before) = &self.before {
            // Fails only if the sum does not fit, and it grows.
            let _ = all.add(before);
        }
        Percentiles {
            count: all.len(),
            p50: all.value_at_quantile(0.5),
            p95: all.value_at_quantile(0.95),
            p99: all.value_at_quantile(0.99),
            max: all.max(),
        }
    }
}

/// What a queue has done of late.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    counts: Counts,
    counts_since: Millis,
    values_since: Millis,
    /// Only once there are any: each takes some KiB.
    waits: Option<Box<Values>>,
    runs: Option<Box<Values>>,
    /// What nobody has taken note of yet; only once there is anything.
    tally: Option<Box<QueueTally>>,
}

/// How many spans have passed, and when the one of `now` began.
fn spans(since: Millis, now: Millis, span_ms: u64) -> (u64, Millis) {
    let passed = now.since(since) / span_ms;
    (passed, since.plus(passed * span_ms))
}

impl Activity {
    /// Counts an event.
    #[inline]
    pub fn count(&mut self, event: Event, now: Millis) {
        let (passed, since) = spans(self.counts_since, now, RATE_SPAN_MS);
        if passed > 0 {
            let before = std::mem::take(&mut self.counts.now);
            self.counts.before = if passed == 1 { before } else { [0; 4] };
            self.counts_since = since;
        }
        if let Some(count) = self.counts.now.get_mut(event as usize) {
            *count = count.saturating_add(1);
        }
        match event {
            Event::Retried => self.tally().retried += 1,
            Event::Died => self.tally().died += 1,
            Event::Enqueued | Event::Done => {}
        }
    }

    /// Where it is noted for metrics what happens.
    #[inline]
    pub fn tally(&mut self) -> &mut QueueTally {
        self.tally.get_or_insert_default()
    }

    /// What was noted since this was last called.
    pub fn take_tally(&mut self) -> Option<Box<QueueTally>> {
        self.tally.take()
    }

    /// A job was leased after it was ready for so long.
    #[inline]
    pub fn waited(&mut self, ms: u64, now: Millis) {
        self.turn(now);
        record(&mut self.waits, ms);
        self.tally().wait.record(ms);
    }

    /// A job was done after it was leased for so long.
    #[inline]
    pub fn ran(&mut self, ms: u64, now: Millis) {
        self.turn(now);
        record(&mut self.runs, ms);
        self.tally().run.record(ms);
    }

    #[inline]
    fn turn(&mut self, now: Millis) {
        let (passed, since) = spans(self.values_since, now, PERCENTILE_SPAN_MS);
        if passed > 0 {
            self.values_since = since;
            for values in [&mut self.waits, &mut self.runs].into_iter().flatten() {
                values.turn(passed > 1);
            }
        }
    }

    /// Events of the last minute.
    pub fn last_minute(&self, now: Millis) -> LastMinute {
        let (passed, since) = spans(self.counts_since, now, RATE_SPAN_MS);
        let none = [0; 4];
        let (current, before) = match passed {
            0 => (&self.counts.now, &self.counts.before),
            1 => (&none, &self.counts.now),
            _ => (&none, &none),
        };
        let left_ms = RATE_SPAN_MS - now.since(since);
        let count = |event: Event| {
            let of = |counts: &[u32; 4]| u64::from(counts.get(event as usize).copied().unwrap_or(0));
            of(current) + of(before) * left_ms / RATE_SPAN_MS
        };
        LastMinute {
            enqueued: count(Event::Enqueued),
            done: count(Event::Done),
            retried: count(Event::Retried),
            died: count(Event::Died),
        }
    }

    /// How long jobs waited and how long they ran, over the last minutes.
    pub fn percentiles(&self) -> (Percentiles, Percentiles) {
        let of = |values: &Option<Box<Values>>| {
            values.as_ref().map_or_else(Percentiles::default, |values| values.percentiles())
        };
        (of(&self.waits), of(&self.runs))
    }
}

fn record(values: &mut Option<Box<Values>>, ms: u64) {
    if values.is_none() {
        *values = Values::new().map(Box::new);
    }
    if let Some(values) = values {
        values.now.saturating_record(ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_slide_over_a_minute() {
        let mut activity = Activity::default();
        let at = |ms: u64| Millis(600_000 + ms);
        for n in 0..600 {
            activity.count(Event::Enqueued, at(n * 100));
        }
        let enqueued = |ms: u64| activity.last_minute(at(ms)).enqueued;
        assert_eq!(enqueued(59_999), 600);
        assert_eq!(enqueued(90_000), 300, "half of it is in the last minute");
        assert_eq!((enqueued(120_000), activity.last_minute(at(0)).done), (0, 0));
    }

    #[test]
    fn percentiles_forget_what_is_long_past() {
        let mut activity = Activity::default();
        (1..=100).for_each(|ms| activity.waited(ms, Millis(600_000)));
        activity.ran(7, Millis(600_000));
        let (waits, runs) = activity.percentiles();
        assert_eq!((waits.count, waits.p50, waits.p99, waits.max), (100, 50, 99, 100));
        assert_eq!((runs.count, runs.max), (1, 7));
        activity.waited(5, Millis(600_000 + PERCENTILE_SPAN_MS));
        assert_eq!(activity.percentiles().0.count, 101);
        activity.waited(5, Millis(600_000 + 3 * PERCENTILE_SPAN_MS));
        assert_eq!(activity.percentiles().0, Percentiles { count: 1, p50: 5, p95: 5, p99: 5, max: 5 });
    }
}

//! Durations as an HDR histogram, and its stored format.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Significant digits: the relative error of a value is at most a thousandth.
const DIGITS: u8 = 3;

/// Recorded durations, in microseconds.
#[derive(Debug, Clone)]
pub(super) struct Durations(Histogram<u64>);

impl Default for Durations {
    fn default() -> Self {
        // A resizable histogram with a valid number of digits cannot fail.
        Self(Histogram::new(DIGITS).unwrap_or_else(|error| unreachable!("{error}")))
    }
}

impl Durations {
    pub(super) fn record(&mut self, took: Duration) {
        self.record_us(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    pub(super) fn record_us(&mut self, us: u64) {
        // The histogram grows as needed; values are cut at an hour.
        const HOUR_US: u64 = 3_600_000_000;
        let _ = self.0.record(us.clamp(1, HOUR_US));
    }

    /// The distribution in its stored format.
    pub(super) fn summary(&self) -> Latency {
        let at = |quantile: f64| self.0.value_at_quantile(quantile);
        let counts = self.0.iter_recorded();
        let counts = counts.map(|step| (step.value_iterated_to(), step.count_at_value()));
        Latency {
            count: self.0.len(),
            mean_us: self.0.mean(),
            min_us: if self.0.is_empty() { 0 } else { self.0.min() },
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p99_9_us: at(0.999),
            max_us: self.0.max(),
            counts: counts.collect(),
        }
    }
}

/// A distribution of durations, in microseconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Latency {
    pub(super) count: u64,
    pub(super) mean_us: f64,
    pub(super) min_us: u64,
    pub(super) p50_us: u64,
    pub(super) p90_us: u64,
    pub(super) p99_us: u64,
    pub(super) p99_9_us: u64,
    pub(super) max_us: u64,
    /// Each value that occurred, rounded to three digits, with its count: enough to draw the
    /// distribution again.
    pub(super) counts: Vec<(u64, u64)>,
}

impl Latency {
    /// The curve over the percentiles: (share of durations that are at most this long,
    /// microseconds). The last point would be at infinity, and is drawn where half a duration is
    /// beyond it.
    pub(super) fn curve(&self) -> Vec<(f64, f64)> {
        let total = self.count as f64;
        let mut seen = 0;
        let step = |&(us, count): &(u64, u64)| {
            seen += count;
            ((seen as f64).min(total - 0.5) / total, us as f64)
        };
        self.counts.iter().map(step).collect()
    }

    /// The value with this rank, counted from 0.
    fn at_rank(&self, rank: f64) -> Option<f64> {
        let mut left = rank.max(0.0);
        let reached = |(_, count): &&(u64, u64)| {
            left -= *count as f64;
            left < 0.0
        };
        let found = self.counts.iter().find(reached).or_else(|| self.counts.last());
        found.map(|(us, _)| *us as f64)
    }

    /// The duration in microseconds that a share of all durations does not exceed.
    pub(super) fn quantile(&self, quantile: f64) -> Option<f64> {
        self.at_rank(self.count as f64 * quantile)
    }

    /// The confidence interval (95 %) of a quantile for independent values: from two standard
    /// deviations below its rank to two above.
    pub(super) fn interval(&self, quantile: f64) -> (f64, f64) {
        let rank = self.count as f64 * quantile;
        let spread = 1.96 * (rank * (1.0 - quantile)).sqrt();
        let at = |rank: f64| self.at_rank(rank).unwrap_or(0.0);
        (at(rank - spread), at(rank + spread))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_says_what_was_recorded() {
        let mut durations = Durations::default();
        (1..=1_000).for_each(|us| durations.record(Duration::from_micros(us)));
        let summary = durations.summary();
        assert_eq!((summary.count, summary.min_us, summary.p50_us), (1_000, 1, 500));
        assert_eq!((summary.p99_us, summary.p99_9_us, summary.max_us), (990, 999, 1_000));
        assert_eq!(summary.counts.iter().map(|(_, count)| count).sum::<u64>(), 1_000);
        let curve = summary.curve();
        assert_eq!(curve[0], (0.001, 1.0));
        assert_eq!(curve[999], (0.9995, 1_000.0));
    }

    #[test]
    fn nothing_recorded_is_a_summary_too() {
        let summary = Durations::default().summary();
        assert_eq!((summary.count, summary.p50_us, summary.max_us), (0, 0, 0));
        assert!(summary.curve().is_empty());
    }
}

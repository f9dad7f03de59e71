//! How long something took, sorted into buckets. Atomics alone: whoever measures never waits for whoever
//! reads, which the library's own histogram does not promise.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};

/// A histogram of durations, in seconds. Clones count into the same buckets.
#[derive(Clone, Debug)]
pub struct Durations(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Ascending, in seconds; what is longer than the last goes into one more bucket.
    bounds: &'static [f64],
    counts: Box<[AtomicU64]>,
    sum_nanos: AtomicU64,
}

impl Durations {
    /// Buckets that end at `bounds`, ascending, in seconds.
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Inner { bounds, counts, sum_nanos: AtomicU64::new(0) }))
    }

    /// Something took `duration`.
    pub fn observe(&self, duration: Duration) {
        let secs = duration.as_secs_f64();
        let bucket = self.0.bounds.partition_point(|bound| *bound < secs);
        self.0.counts[bucket].fetch_add(1, Ordering::Relaxed);
        // Nanoseconds of 584 years.
        self.0.sum_nanos.fetch_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How many were observed.
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder) -> fmt::Result {
        let bounds = self.0.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(&self.0.counts).map(|(bound, count)| (bound, count.load(Ordering::Relaxed))).collect();
        // Counted from the same look, so that the last bucket and the count agree.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_nanos(self.0.sum_nanos.load(Ordering::Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::metrics::text;

    #[test]
    fn a_duration_is_in_every_bucket_it_is_not_longer_than() {
        let durations = Durations::new(&[0.1, 1.0]);
        for millis in [50, 100, 101, 1_000, 2_000] {
            durations.observe(Duration::from_millis(millis));
        }
        let mut registry = Registry::default();
        registry.register("nap_seconds", "How long", durations.clone());

        let page = text(&registry);

        assert_eq!(durations.count(), 5);
        for line in [
            "nap_seconds_bucket{le=\"0.1\"} 2",
            "nap_seconds_bucket{le=\"1.0\"} 4",
            "nap_seconds_bucket{le=\"+Inf\"} 5",
            "nap_seconds_count 5",
            "nap_seconds_sum 3.251",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}:\n{page}");
        }
    }
}

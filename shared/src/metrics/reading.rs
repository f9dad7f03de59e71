//! A figure that lives elsewhere and is read when somebody asks. Where there is none at the moment, the
//! page says nothing rather than something old.

use std::fmt;

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

/// A metric whose value `read` knows. It must not wait for anything.
pub struct Reading<F> {
    read: F,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Gauge,
    Counter,
}

impl<F: Fn() -> Option<f64> + Send + Sync + 'static> Reading<F> {
    /// A value that goes up and down.
    pub fn gauge(read: F) -> Self {
        Self { read, kind: Kind::Gauge }
    }

    /// A value that only grows.
    pub fn counter(read: F) -> Self {
        Self { read, kind: Kind::Counter }
    }
}

impl<F> fmt::Debug for Reading<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reading({:?})", self.kind)
    }
}

impl<F: Fn() -> Option<f64>> EncodeMetric for Reading<F> {
    fn encode(&self, encoder: MetricEncoder) -> fmt::Result {
        match ((self.read)(), self.kind) {
            (Some(value), Kind::Gauge) => ConstGauge::new(value).encode(encoder),
            (Some(value), Kind::Counter) => ConstCounter::new(value).encode(encoder),
            (None, Kind::Gauge | Kind::Counter) => Ok(()),
        }
    }

    fn metric_type(&self) -> MetricType {
        match self.kind {
            Kind::Gauge => MetricType::Gauge,
            Kind::Counter => MetricType::Counter,
        }
    }

    fn is_empty(&self) -> bool {
        (self.read)().is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use prometheus_client::registry::Registry;

    use super::*;
    use crate::metrics::text;

    #[test]
    fn what_cannot_be_read_is_not_on_the_page() {
        let there = Arc::new(AtomicBool::new(true));
        let mut registry = Registry::default();
        let read = there.clone();
        registry.register("depth_meters", "How deep", Reading::gauge(move || read.load(Ordering::Relaxed).then_some(2.5)));
        assert!(text(&registry).contains("\ndepth_meters 2.5\n"));

        there.store(false, Ordering::Relaxed);

        assert_eq!(text(&registry), "");
    }
}

//! A histogram of times that takes no lock: the library's takes a mutex for every observation, and each push and each
//! delivery makes one.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::striped::{self, STRIPES};

/// The upper bounds of the buckets, in seconds: from 50 µs, where a push on one machine starts, to 10 s, where the
/// timeouts are.
const BOUNDS: [f64; 16] =
    [0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// How long something took, in buckets. Cloning is a reference count.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histogram(Arc<Observed>);

#[derive(Debug, Default)]
struct Observed([Stripe; STRIPES]);

/// What some of the threads observed.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Stripe {
    /// Observations of each bucket alone, and behind them those over the last bound. Their number is not kept beside them:
    /// a scrape that adds them up always finds the two in agreement.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Histogram {
    pub(crate) fn observe(&self, seconds: f64) {
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        let stripe = &self.0.0[striped::stripe()];
        stripe.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        stripe.nanoseconds.fetch_add((seconds * 1e9) as u64, Ordering::Relaxed);
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        let sum_of = |part: &dyn Fn(&Stripe) -> &AtomicU64| -> u64 {
            self.0.0.iter().map(|stripe| part(stripe).load(Ordering::Relaxed)).sum()
        };
        let buckets: Vec<_> =
            bounds.enumerate().map(|(at, bound)| (bound, sum_of(&|stripe| &stripe.buckets[at]))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_nanos(sum_of(&|stripe| &stripe.nanoseconds)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::metrics::histogram::Histogram as Reference;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn it_is_encoded_as_the_librarys_own_is() {
        let (ours, reference) = (Histogram::default(), Reference::new(BOUNDS));
        for seconds in [0.0, 0.000_05, 0.000_051, 0.003, 0.01, 1.5, 10.0, 11.5] {
            ours.observe(seconds);
            reference.observe(seconds);
        }
        let text = |register: &dyn Fn(&mut Registry)| {
            let (mut registry, mut text) = (Registry::default(), String::new());
            register(&mut registry);
            encode(&mut text, &registry).expect("a string takes all");
            text
        };
        let ours = text(&|registry| registry.register("push", "A time", ours.clone()));
        assert_eq!(ours, text(&|registry| registry.register("push", "A time", reference.clone())));
    }
}

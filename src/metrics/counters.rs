//! Counters of one name whose labels are all known beforehand: counting takes no lock and no search, as the library's
//! families do, and a counter is there before it first counts.

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};

use super::striped::Counter;

/// Labels of which every combination is known.
pub(crate) trait Labels: EncodeLabelSet + Sized {
    /// How many combinations there are.
    const COUNT: usize;

    /// The combination in this place.
    fn at(place: usize) -> Self;

    /// The place of this combination, less than [`Labels::COUNT`].
    fn place(&self) -> usize;
}

/// A counter for each combination of labels, from the start. Cloning is a reference count.
#[derive(Clone, Debug)]
pub(crate) struct Counters<L>(Arc<[(L, Counter)]>);

impl<L: Labels> Counters<L> {
    pub(crate) fn of(&self, labels: &L) -> &Counter {
        &self.0[labels.place()].1
    }
}

impl<L: Labels> Default for Counters<L> {
    fn default() -> Self {
        Self((0..L::COUNT).map(|place| (L::at(place), Counter::default())).collect())
    }
}

impl<L: Labels> EncodeMetric for Counters<L> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(labels, counter)| counter.encode(encoder.encode_family(labels)?))
    }

    fn metric_type(&self) -> MetricType {
        Counter::TYPE
    }
}

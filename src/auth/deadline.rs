//! The deadline of a check, be it a stock one or an embedder's, and the log line for checks that could not be made.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::metrics::{Check, InSnakeCase, Metrics};
use crate::seldom::Seldom;

/// Holds one kind of check to `check_timeout`.
#[derive(Debug)]
pub(crate) struct Deadline {
    check: Check,
    after: Duration,
    metrics: Arc<Metrics>,
    line: Seldom,
}

impl Deadline {
    pub(crate) fn new(check: Check, after: Duration, metrics: Arc<Metrics>) -> Self {
        Self { check, after, metrics, line: Seldom::default() }
    }

    /// Waits for a check. Returns `None` if it takes too long, and gives it up.
    pub(crate) async fn hold<T>(&self, check: impl Future<Output = T>) -> Option<T> {
        let checked = tokio::time::timeout(self.after, check).await.ok();
        if checked.is_none() {
            self.metrics.check_timed_out(self.check);
            self.unavailable("it took longer than check_timeout");
        }
        checked
    }

    /// Logs that a check could not be made: at most once a second, because every peer that comes causes it.
    pub(crate) fn unavailable(&self, reason: &'static str) {
        if let Some(left_out) = self.line.due(Instant::now()) {
            warn!(check = %InSnakeCase(self.check), reason, left_out, "a check could not be made");
        }
    }
}

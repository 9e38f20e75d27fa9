//! Tasks that the gateway is half dead without: a panic in one is counted and logged, and the task begins again.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tracing::error;

use crate::metrics::{InSnakeCase, Metrics, Task};

/// How long a task that panicked rests. Short, because everyone waits for it; long enough that one that panics each time
/// does not take a core.
const PAUSE: Duration = Duration::from_millis(50);

/// Runs what `begin` makes to its end, as often as it panics.
///
/// What it shares must be as good after a panic as before: its locks are taken over, and each step under one is whole.
pub(super) async fn supervise<F>(metrics: &Metrics, task: Task, begin: impl Fn() -> F)
where
    F: Future<Output = ()>,
{
    while AssertUnwindSafe(async { begin().await }).catch_unwind().await.is_err() {
        metrics.task_panicked(task);
        error!(task = %InSnakeCase(task), "a task panicked, and begins again");
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::metrics::Format;

    #[tokio::test]
    async fn a_task_that_panics_begins_again_until_it_ends_and_is_counted() {
        let (metrics, begun) = (Metrics::new(), AtomicUsize::new(0));
        let begin = || {
            let number = begun.fetch_add(1, Ordering::Relaxed);
            assert_ne!(number, 0, "before there is a future");
            async move { assert_ne!(number, 1, "in the future") }
        };
        supervise(&metrics, Task::Clock, begin).await;
        assert_eq!(begun.load(Ordering::Relaxed), 3);
        assert!(metrics.encode(Format::OpenMetrics).contains("pushgate_task_panics_total{task=\"clock\"} 2\n"));
    }
}

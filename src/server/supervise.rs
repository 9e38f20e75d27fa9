//! Restarts essential background tasks after a panic. Each panic is counted and logged.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tracing::error;

use crate::metrics::{InSnakeCase, Metrics, Task};

/// The pause before a task is restarted. Short, because the whole gateway waits for the task, but long enough that a
/// task that panics each time does not use up a core.
const PAUSE: Duration = Duration::from_millis(50);

/// Runs the future that `begin` returns to its end, and starts over if it panics.
///
/// The state that the task shares must stay valid after a panic: users of its locks must ignore poisoning, and each
/// change under a lock must be complete before anything can panic.
pub(super) async fn supervise<F>(metrics: &Metrics, task: Task, begin: impl Fn() -> F)
where
    F: Future<Output = ()>,
{
    while AssertUnwindSafe(async { begin().await }).catch_unwind().await.is_err() {
        metrics.task_panicked(task);
        error!(task = %InSnakeCase(task), "a task panicked and is restarted");
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::metrics::Format;

    #[tokio::test]
    async fn a_task_that_panics_is_restarted_until_it_ends_and_each_panic_is_counted() {
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

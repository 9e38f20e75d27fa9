//! Polls a future again at once that has woken itself, in place of the runtime.
//!
//! hyper passes the body of an HTTP/1 request from the connection to the service by waking its own task. The runtime takes
//! a task that was woken while it ran to the back of its queue, and wakes a second thread, which finds nothing to do: of a
//! small push, a third of the CPU time.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// How often a future is polled before other tasks have a turn. A request takes two or three.
const POLLS_MAX: usize = 4;

/// Nobody polls the future, so that a wake is for its task.
const AT_REST: u8 = 0;
/// The future is being polled.
const POLLED: u8 = 1;
/// The same, and it was woken meanwhile.
const WOKEN: u8 = 2;

/// A future that is polled again, a few times, when it was woken while it was polled.
pub(super) struct Repoll<F> {
    future: Pin<Box<F>>,
    wakes: Arc<Wakes>,
    /// `wakes` as the future has it.
    waker: Waker,
}

struct Wakes {
    state: AtomicU8,
    task: AtomicWaker,
}

impl<F> Repoll<F> {
    pub(super) fn new(future: F) -> Self {
        let wakes = Arc::new(Wakes { state: AtomicU8::new(AT_REST), task: AtomicWaker::new() });
        Self { future: Box::pin(future), waker: wakes.clone().into(), wakes }
    }
}

impl<F: Future> Future for Repoll<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { future, wakes, waker } = &mut *self;
        wakes.task.register(cx.waker());
        for _ in 0..POLLS_MAX {
            wakes.state.store(POLLED, Ordering::SeqCst);
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(waker)) {
                return Poll::Ready(output);
            }
            if wakes.state.compare_exchange(POLLED, AT_REST, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                return Poll::Pending;
            }
        }
        wakes.state.store(AT_REST, Ordering::SeqCst);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let noted = self.state.compare_exchange(POLLED, WOKEN, Ordering::SeqCst, Ordering::SeqCst);
        if noted == Err(AT_REST) {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A future that wakes itself in each of its first polls, and is ready in the one after them.
    fn waking_itself(times: usize) -> impl Future<Output = ()> {
        let mut left = times;
        poll_fn(move |cx| {
            if left == 0 {
                return Poll::Ready(());
            }
            left -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }

    #[test]
    fn a_future_that_wakes_itself_is_polled_again_without_its_task() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let mut future = Repoll::new(waking_itself(POLLS_MAX - 1));
        assert_eq!(Pin::new(&mut future).poll(&mut Context::from_waker(&waker)), Poll::Ready(()));
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_that_goes_on_waking_itself_leaves_others_their_turn_and_is_polled_later() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let mut future = Repoll::new(waking_itself(POLLS_MAX));
        assert_eq!(Pin::new(&mut future).poll(&mut Context::from_waker(&waker)), Poll::Pending);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert_eq!(Pin::new(&mut future).poll(&mut Context::from_waker(&waker)), Poll::Ready(()));
    }

    #[test]
    fn one_at_rest_wakes_its_task_once_for_each_poll() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let mut inner = None;
        let mut future = Repoll::new(poll_fn(|cx| {
            inner = Some(cx.waker().clone());
            Poll::<()>::Pending
        }));
        assert_eq!(Pin::new(&mut future).poll(&mut Context::from_waker(&waker)), Poll::Pending);
        drop(future);
        let inner = inner.expect("polled");
        inner.wake_by_ref();
        inner.wake_by_ref();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }
}

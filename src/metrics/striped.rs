//! A count that many threads add to at once: each has a part of its own, so that none waits for the others' cache lines.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use prometheus_client::metrics::counter::{self, Atomic};

/// Parts of a count. Threads beyond as many share them.
pub(super) const STRIPES: usize = 8;

/// A counter of events. Cloning is a reference count.
pub(crate) type Counter = counter::Counter<u64, Striped>;

/// The sum of its parts.
#[derive(Debug, Default)]
pub(crate) struct Striped([Stripe; STRIPES]);

/// In a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Stripe(AtomicU64);

/// The part of this thread, less than [`STRIPES`].
pub(super) fn stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
    }
    // A thread that is ending has given up its own.
    OWN.try_with(|own| *own).unwrap_or_default()
}

/// What the additions return is not the sum, which nobody asks for: it would need a look at all parts.
impl Atomic<u64> for Striped {
    fn inc(&self) -> u64 {
        self.inc_by(1)
    }

    fn inc_by(&self, count: u64) -> u64 {
        if count == 0 {
            return 0;
        }
        self.0[stripe()].0.fetch_add(count, Ordering::Relaxed)
    }

    fn get(&self) -> u64 {
        self.0.iter().map(|stripe| stripe.0.load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_many_threads_count_at_once_adds_up() {
        let counter = Counter::default();
        std::thread::scope(|scope| {
            for _ in 0..2 * STRIPES {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        counter.inc();
                    }
                });
            }
        });
        assert_eq!(counter.get(), 2 * STRIPES as u64 * 1000);
    }
}

//! What all receivers may have queued: each its capacity, and how much all of them have together.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::sync::{AtomicUsize, MutexGuard, Ordering};

use super::State;
use super::queue::Capacity;

/// Bytes of one receiver count among those of all in steps of this. So a receiver that keeps up with small messages never
/// touches the common count, and has no share in what must go when all is full.
pub(crate) const STEP_BYTES: usize = 4096;

/// The queues of all receivers.
#[derive(Debug)]
pub(crate) struct Outboxes {
    each: Capacity,
    steps: Steps,
}

/// In a cache line of its own, since all read the capacity.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Steps(AtomicUsize);

impl Outboxes {
    pub(crate) fn new(each: Capacity) -> Arc<Self> {
        Arc::new(Self { each, steps: Steps::default() })
    }

    /// What each receiver may have queued.
    pub(super) fn each(&self) -> Capacity {
        self.each
    }

    /// Memory of what is queued for all receivers, what writers have in hand included. A message counts for each receiver.
    /// Of each receiver, up to [`STEP_BYTES`] are left out.
    pub(crate) fn bytes(&self) -> usize {
        self.steps.0.load(Ordering::Relaxed) * STEP_BYTES
    }

    fn changed(&self, before: usize, after: usize) {
        let (before, after) = (before / STEP_BYTES, after / STEP_BYTES);
        if after > before {
            self.steps.0.fetch_add(after - before, Ordering::Relaxed);
        } else if after < before {
            self.steps.0.fetch_sub(before - after, Ordering::Relaxed);
        }
    }
}

/// A mailbox's state under its lock. What it has queued when it is let go is what counts.
pub(super) struct Locked<'a> {
    state: MutexGuard<'a, State>,
    outboxes: &'a Outboxes,
    bytes_before: usize,
}

impl<'a> Locked<'a> {
    pub(super) fn new(state: MutexGuard<'a, State>, outboxes: &'a Outboxes) -> Self {
        let bytes_before = state.queue.depth.memory();
        Self { state, outboxes, bytes_before }
    }
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.outboxes.changed(self.bytes_before, self.state.queue.depth.memory());
    }
}

//! Writes for the receivers of large fan-outs and of bursts, many in one go, in tasks of its own. Waking the task of each
//! receiver instead would cost more than the writes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::mailbox::Mailbox;
use crate::metrics::Metrics;

/// Receivers that are written to between two looks at the clock.
const CHUNK: usize = 16;

/// How long a flusher writes before the other tasks of its worker have a turn: as long as their last turn took, so that
/// pushes that come meanwhile are offered soon and one write takes several messages, and so that no receiver waits for
/// pushes without end. Within these bounds.
const TURN_MIN: Duration = Duration::from_micros(30);
const TURN_MAX: Duration = Duration::from_millis(2);

/// Receivers that wait to be written to. Each belongs to one part, so that its messages keep their order and every core
/// has something to do.
#[derive(Debug)]
pub(crate) struct Flusher {
    parts: Box<[Part]>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Part {
    waiting: Mutex<VecDeque<Arc<Mailbox>>>,
    is_wanted: Notify,
}

impl Flusher {
    /// One with so many parts, each with a task of its own, which the caller runs.
    pub(crate) fn new(parts: usize, metrics: Arc<Metrics>) -> Self {
        Self { parts: (0..parts.max(1)).map(|_| Part::default()).collect(), metrics }
    }

    pub(crate) fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Writes to this receiver soon. A receiver is promised a flush once, so that what waits is bounded by the number of
    /// connections.
    pub(crate) fn flush_soon(&self, mailbox: Arc<Mailbox>) {
        let part = &self.parts[mailbox.id().spread(self.parts.len())];
        let mut waiting = part.waiting();
        let is_first = waiting.is_empty();
        waiting.push_back(mailbox);
        drop(waiting);
        if is_first {
            part.is_wanted.notify_one();
        }
    }

    /// Writes to this receiver now.
    pub(crate) fn flush_now(&self, mailbox: &Mailbox) {
        mailbox.flush(|after| self.metrics.delivered(after));
    }

    /// The task of one part, for ever.
    pub(crate) async fn run(&self, part: usize) {
        let part = &self.parts[part];
        let mut chunk = Vec::new();
        let mut turn = TURN_MIN;
        loop {
            let mut since = Instant::now();
            // What waits from before a panic is found here too.
            while part.take(&mut chunk) {
                for mailbox in chunk.drain(..) {
                    self.flush_now(&mailbox);
                }
                let now = Instant::now();
                if now - since >= turn {
                    tokio::task::yield_now().await;
                    since = Instant::now();
                    turn = (since - now).clamp(TURN_MIN, TURN_MAX);
                }
            }
            part.is_wanted.notified().await;
        }
    }
}

impl Part {
    /// Moves what comes next into `chunk`. Returns whether there is any.
    fn take(&self, chunk: &mut Vec<Arc<Mailbox>>) -> bool {
        let mut waiting = self.waiting();
        let count = CHUNK.min(waiting.len());
        chunk.extend(waiting.drain(..count));
        count > 0
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<Mailbox>>> {
        // Nothing under this lock can panic half way.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

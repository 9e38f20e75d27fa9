//! Bounds all that is queued and kept in the process. When it is full, whoever has the most makes room: the receiver with
//! the fullest queue, by its slow-reader policy, or the user for whom the most is kept, by the oldest of it.

use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::mailbox::{GaveWay, MESSAGE_OVERHEAD_BYTES, Mailbox, Ranked, STEP_BYTES};
use crate::metrics::{MadeRoomBy, MadeRoomLabels};
use crate::seldom::Seldom;

use super::Gateway;

/// How old the ranks of receivers may be. To rank them takes a look at every connection.
const FRESH_FOR: Duration = Duration::from_millis(250);

/// The bound.
pub(crate) struct Total {
    bytes_max: usize,
    /// Taken by those who find no room, and by nobody else.
    ranking: Mutex<Ranking>,
    full: Seldom,
}

/// Which receivers have the most queued, known well enough to make room and no better.
#[derive(Default)]
struct Ranking {
    heap: BinaryHeap<Ranked<Mailbox>>,
    ranked_at: Option<Instant>,
    /// Those that were told to stop, be it to make room, and still have messages in hand. These bytes go without anybody
    /// else making room.
    leaving: Vec<Weak<Mailbox>>,
}

impl Total {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, ranking: Mutex::default(), full: Seldom::default() }
    }

    fn ranking(&self) -> MutexGuard<'_, Ranking> {
        // A panic in a few list steps can only be running out of memory; the ranks are made anew.
        self.ranking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ranking {
    fn rank(&mut self, mailbox: Arc<Mailbox>) {
        let bytes = mailbox.depth().memory();
        if bytes >= STEP_BYTES {
            self.heap.push(Ranked { bytes, of: mailbox });
        }
    }

    /// Takes out the receiver that has the most queued. One that has less by now is ranked again on the way.
    fn highest(&mut self) -> Option<Ranked<Mailbox>> {
        while let Some(ranked) = self.heap.pop() {
            let bytes = ranked.of.depth().memory();
            if bytes >= ranked.bytes {
                return Some(ranked);
            }
            self.rank(ranked.of);
        }
        None
    }

    /// Notes a receiver that is leaving. Returns how many bytes go with it, 0 if they were told before.
    fn leaves(&mut self, mailbox: &Arc<Mailbox>) -> usize {
        if self.leaving.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(mailbox))) {
            return 0;
        }
        self.leaving.push(Arc::downgrade(mailbox));
        mailbox.depth().memory()
    }

    /// Bytes of those that are leaving.
    fn leaving_bytes(&mut self) -> usize {
        let mut bytes = 0;
        self.leaving.retain(|mailbox| {
            let left = mailbox.upgrade().map_or(0, |mailbox| mailbox.depth().memory());
            bytes += left;
            left > 0
        });
        bytes
    }
}

impl Gateway {
    /// Bytes queued for receivers and kept for users.
    pub(super) fn total_bytes(&self) -> usize {
        self.0.registry.outboxes().bytes() + self.0.sessions.keep().usage().bytes
    }

    /// Has others make room for one more message of so many bytes, for this receiver if it is known, where all is full.
    pub(super) fn make_room(&self, bytes: usize, mailbox: Option<&Arc<Mailbox>>) {
        let bytes = bytes + MESSAGE_OVERHEAD_BYTES;
        if self.total_bytes().saturating_add(bytes) > self.0.total.bytes_max {
            self.have_others_make_room(bytes, mailbox);
        }
    }

    #[cold]
    fn have_others_make_room(&self, bytes: usize, mailbox: Option<&Arc<Mailbox>>) {
        let Total { bytes_max, full, .. } = &self.0.total;
        if let Some(left_out) = full.due(Instant::now()) {
            warn!(
                left_out,
                "all that is queued and kept is at queued_total_bytes_max; those who have the most make room"
            );
        }
        let mut ranking = self.0.total.ranking();
        if ranking.heap.is_empty() || ranking.ranked_at.is_none_or(|at| at.elapsed() >= FRESH_FOR) {
            ranking.heap = self.0.registry.fullest(STEP_BYTES).into();
            ranking.ranked_at = Some(Instant::now());
        }
        // Whoever grows is ranked by what it has now.
        mailbox.into_iter().for_each(|mailbox| ranking.rank(mailbox.clone()));
        let mut leaving = ranking.leaving_bytes();
        while self.total_bytes().saturating_add(bytes).saturating_sub(leaving) > *bytes_max {
            let highest = ranking.highest();
            let most = highest.as_ref().map_or(0, |ranked| ranked.bytes);
            if self.0.sessions.keep().give_up_largest(most) {
                self.made_room(MadeRoomBy::Forgetting, 0);
                ranking.heap.extend(highest);
                continue;
            }
            // Without one, what is left is too little of each to be found.
            let Some(Ranked { of: mailbox, .. }) = highest else { return };
            match mailbox.give_way() {
                GaveWay::Message => {
                    self.made_room(MadeRoomBy::Dropping, 1);
                    ranking.rank(mailbox);
                }
                GaveWay::Connection { messages } => {
                    self.made_room(MadeRoomBy::Closing, messages);
                    leaving += ranking.leaves(&mailbox);
                }
                GaveWay::Nothing => leaving += ranking.leaves(&mailbox),
            }
        }
    }

    fn made_room(&self, by: MadeRoomBy, displaced: usize) {
        let metrics = &self.0.metrics;
        metrics.made_room.of(&MadeRoomLabels { by }).inc();
        metrics.displaced.inc_by(displaced as u64);
    }
}

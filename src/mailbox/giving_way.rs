//! What a receiver gives up when all that is queued is too much, and it has the most.

use crate::handle::Stop;
use crate::message::SlowReaderPolicy;
use crate::outcome::DropReason;

use super::{Mailbox, Whereabouts};

/// What a receiver gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GaveWay {
    /// One message.
    Message,
    /// All that was queued, so many messages, and its connection. What its writer has in hand goes with the connection.
    Connection { messages: usize },
    /// Nothing: it has no connection, or was told to stop before.
    Nothing,
}

impl Mailbox {
    /// Makes room, as the slow-reader policy of what is queued says. A receiver whose messages are all in its writer's
    /// hand is closed whatever the policy: nothing can be taken out of there.
    pub(crate) fn give_way(&self) -> GaveWay {
        let mut guard = self.state();
        let state = &mut *guard;
        let Whereabouts::Attached(attached) = &mut state.at else { return GaveWay::Nothing };
        if attached.handle.stopped().is_some() {
            return GaveWay::Nothing;
        }
        let one = match state.queue.policy() {
            Some(SlowReaderPolicy::DropOldest | SlowReaderPolicy::Conflate) => state.queue.take_oldest(),
            Some(SlowReaderPolicy::DropNewest) => state.queue.take_newest(),
            Some(SlowReaderPolicy::Disconnect) | None => None,
        };
        let (given_up, gave_way) = match one {
            Some(ticket) => (vec![ticket], GaveWay::Message),
            None => {
                let queued = state.queue.take_queued();
                attached.handle.stop(Stop::QueueFull);
                let messages = queued.len();
                (queued.into(), GaveWay::Connection { messages })
            }
        };
        if let Some(log) = &mut state.log {
            given_up.iter().for_each(|ticket| log.given_up(ticket));
            log.skip(given_up.len());
            // For the gap.
            attached.wake_for_message();
        }
        drop(guard);
        // Each message tells whoever waits for it, which is not for under the lock.
        given_up.into_iter().for_each(|ticket| ticket.lost(DropReason::QueueFull));
        gave_way
    }
}

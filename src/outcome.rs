//! The outcome of a push, in total and on each connection.

use std::time::Duration;

use crate::message::{ConnectionId, MessageId};

/// How far a message got. Each level claims only what is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The message is in the connection's outbox.
    #[default]
    Accepted,
    /// The message was handed to the kernel.
    Written,
    /// The client acknowledged the message. Only clients of the session protocol can do so.
    Acked,
}

/// The outcome of one push. `matched` is always `accepted` plus [`Outcome::dropped`]. `accepted` is `written` plus
/// [`Outcome::lost`] plus the messages still on their way.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// The id that the gateway gave the message.
    pub message_id: MessageId,
    /// The level up to which the message was followed. Nothing beyond this level is counted.
    pub level: Level,
    /// Connections that were bound to the user and event and that the push did not rule out.
    pub matched: u64,
    /// Connections whose outbox took the message.
    pub accepted: u64,
    /// Connections that matched but whose outbox did not take the message, by reason.
    pub drops: Drops,
    /// Of the `accepted` connections, those whose message was handed to the kernel.
    pub written: u64,
    /// Of the `written` connections, those whose client acknowledged the message.
    pub acked: u64,
    /// Of the `written` connections, those whose client cannot acknowledge. For them `written` is the last level.
    pub cannot_ack: u64,
    /// Copies kept for clients that are not connected: one for each session that is away, or one for the user as a
    /// whole. A copy is not in `matched` as long as it is kept.
    pub held: u64,
    /// Of the `accepted` connections, those whose message will never be written, by reason.
    pub losses: Drops,
    /// The outcome on each connection, if the caller asked for it.
    pub connections: Vec<ConnectionOutcome>,
    /// Whether this is the outcome of an earlier push with the same idempotency key. If so, nothing was sent this time.
    pub replayed: bool,
}

impl Outcome {
    /// Connections that matched but whose outbox did not take the message.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops.total()
    }

    /// Connections whose outbox took the message but lost it before it was written.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.losses.total()
    }

    /// Adds up the outcomes of all connections.
    pub(crate) fn count(message_id: MessageId, level: Level, connections: Vec<ConnectionOutcome>) -> Self {
        let mut outcome = Self {
            message_id,
            level,
            matched: 0,
            accepted: 0,
            drops: Drops::default(),
            written: 0,
            acked: 0,
            cannot_ack: 0,
            held: 0,
            losses: Drops::default(),
            connections: Vec::new(),
            replayed: false,
        };
        for connection in &connections {
            match connection.progress {
                Progress::Held => {
                    outcome.held += 1;
                    continue;
                }
                Progress::Dropped(reason) => {
                    outcome.drops.add(reason);
                    outcome.matched += 1;
                    continue;
                }
                Progress::Accepted => {}
                Progress::Written { .. } => {
                    outcome.written += 1;
                    outcome.cannot_ack += u64::from(connection.cannot_ack);
                }
                Progress::Acked { .. } => {
                    outcome.written += 1;
                    outcome.acked += 1;
                }
                Progress::Lost(reason) => outcome.losses.add(reason),
            }
            outcome.matched += 1;
            outcome.accepted += 1;
        }
        outcome.connections = connections;
        outcome
    }
}

/// The outcome of a message on one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionOutcome {
    /// The connection.
    pub connection_id: ConnectionId,
    /// How far the message got.
    pub progress: Progress,
    /// How many messages were in the outbox before this one.
    pub queued_before: usize,
    /// Whether the client cannot acknowledge, so that `Written` is the last level. Known once the message is written.
    pub cannot_ack: bool,
}

impl ConnectionOutcome {
    pub(crate) fn accepted(connection_id: ConnectionId) -> Self {
        Self { connection_id, progress: Progress::Accepted, queued_before: 0, cannot_ack: false }
    }
}

/// How far a message got on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The outbox did not take the message.
    Dropped(DropReason),
    /// The client's session is away. The message is kept for its return.
    Held,
    /// The message is in the outbox.
    Accepted,
    /// The message was handed to the kernel.
    Written {
        /// The time from acceptance to the write.
        after: Duration,
    },
    /// The client acknowledged the message.
    Acked {
        /// The time from acceptance to the write.
        written_after: Duration,
        /// The time from acceptance to the acknowledgement.
        after: Duration,
    },
    /// The message was in the outbox, but will never be written.
    Lost(DropReason),
}

/// Why a message was dropped or lost on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// The outbox was full.
    QueueFull,
    /// The connection was closing or had ended.
    Closed,
    /// The message's time to live had passed.
    Expired,
    /// A newer message replaced it: one with the same collapse key, or a conflated one of the same event.
    Superseded,
}

/// The number of connections that did not get a message, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drops {
    /// See [`DropReason::QueueFull`].
    pub queue_full: u64,
    /// See [`DropReason::Closed`].
    pub closed: u64,
    /// See [`DropReason::Expired`].
    pub expired: u64,
    /// See [`DropReason::Superseded`].
    pub superseded: u64,
}

impl Drops {
    /// The sum of all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.by_reason().into_iter().map(|(_, count)| count).sum()
    }

    /// Each reason with its count, including counts of 0.
    #[must_use]
    pub fn by_reason(&self) -> [(DropReason, u64); 4] {
        [
            (DropReason::QueueFull, self.queue_full),
            (DropReason::Closed, self.closed),
            (DropReason::Expired, self.expired),
            (DropReason::Superseded, self.superseded),
        ]
    }

    pub(crate) fn add(&mut self, reason: DropReason) {
        *match reason {
            DropReason::QueueFull => &mut self.queue_full,
            DropReason::Closed => &mut self.closed,
            DropReason::Expired => &mut self.expired,
            DropReason::Superseded => &mut self.superseded,
        } += 1;
    }
}

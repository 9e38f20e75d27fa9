//! What became of a push, in counts and on each connection.

use std::time::Duration;

use crate::message::{ConnectionId, MessageId};

/// How far a message got. No level says more than happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// It is in the connection's outbox.
    #[default]
    Accepted,
    /// It was handed to the kernel.
    Written,
    /// The client said that it has it. Only clients of the session protocol can.
    Acked,
}

/// What became of one push. `matched` is always `accepted` plus [`Outcome::dropped`], and `accepted` is `written` plus
/// [`Outcome::lost`] plus what is still on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// The gateway's name for the message.
    pub message_id: MessageId,
    /// How far the counts were followed: what is beyond this level is not counted.
    pub level: Level,
    /// Connections that were bound to the user and event, and that it was for.
    pub matched: u64,
    /// Connections whose outbox took the message.
    pub accepted: u64,
    /// Connections that matched but did not take it, by reason.
    pub drops: Drops,
    /// Accepted ones whose message was handed to the kernel.
    pub written: u64,
    /// Written ones whose client said that it has the message.
    pub acked: u64,
    /// Written ones whose client has no way to say so: what is known of them ends with `written`.
    pub cannot_ack: u64,
    /// Kept for a client that is not connected: each session that is away, or the user as a whole. Not in `matched` as
    /// long as it is kept.
    pub held: u64,
    /// Accepted ones that will never be written, by reason.
    pub losses: Drops,
    /// Each connection by itself, when that was asked for.
    pub connections: Vec<ConnectionOutcome>,
    /// Whether this is about an earlier push with the same idempotency key, and nothing was sent this time.
    pub replayed: bool,
}

impl Outcome {
    /// Connections that matched but did not take the message.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops.total()
    }

    /// Connections that took the message and lost it before it was written.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.losses.total()
    }

    /// Counts what happened on each connection.
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

/// What became of a message on one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionOutcome {
    /// Which one.
    pub connection_id: ConnectionId,
    /// How far it got.
    pub progress: Progress,
    /// Messages that were waiting in the outbox before this one.
    pub queued_before: usize,
    /// Whether its client has no way to acknowledge, so that `Written` is the end. Known once it is written.
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
    /// The outbox did not take it.
    Dropped(DropReason),
    /// The client's session is away, and the message is kept for its return.
    Held,
    /// The outbox has it.
    Accepted,
    /// It was handed to the kernel.
    Written {
        /// How long that took from when it was accepted.
        after: Duration,
    },
    /// The client said that it has it.
    Acked {
        /// How long it took to be written, from when it was accepted.
        written_after: Duration,
        /// How long it took to be acknowledged, from when it was accepted.
        after: Duration,
    },
    /// The outbox had it, and it will never be written.
    Lost(DropReason),
}

/// Why a message did not get further on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// The outbox was full.
    QueueFull,
    /// The connection was closing, or ended.
    Closed,
    /// The message's time to live was over.
    Expired,
    /// A newer message with the same collapse key took its place, or a conflated one of its event did.
    Superseded,
}

/// How many connections did not get a message, by reason.
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
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.by_reason().into_iter().map(|(_, count)| count).sum()
    }

    /// Each reason with its count, 0 included.
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

//! The outcome of a push, in total and on each connection.

use std::time::Duration;

use crate::message::{ConnectionId, MessageId};

/// How far a message got. Each level claims only what is known. Levels have no order of their own, because one that says
/// nothing about the client may stand beside [`Level::Written`]: [`Level::includes`] says which levels a level implies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// The message is in the connection's outbox.
    #[default]
    Accepted,
    /// The message was handed to the kernel.
    Written,
    /// The client acknowledged the message. Only clients of the session protocol can do so.
    Acked,
}

impl Level {
    /// Whether a message that got as far as this level has got to `other` too.
    #[must_use]
    pub fn includes(self, other: Self) -> bool {
        match self {
            Self::Accepted => other == Self::Accepted,
            Self::Written => matches!(other, Self::Accepted | Self::Written),
            Self::Acked => true,
        }
    }

    /// The furthest level that both include.
    fn common(self, other: Self) -> Self {
        if self.includes(other) {
            other
        } else if other.includes(self) {
            self
        } else {
            Self::Accepted
        }
    }
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
    /// Connections that are counted but left out of `connections`, because [`Outcome::merge`] lists only so many.
    pub connections_omitted: u64,
    /// Whether this is the outcome of an earlier push with the same idempotency key. If so, nothing was sent this time.
    pub replayed: bool,
}

impl Outcome {
    /// Connections that a merged outcome lists, and an answer of the API.
    pub const CONNECTIONS_LISTED_MAX: usize = 1000;

    /// The outcome of a push that was made in two parts, each to connections of its own: the sum of both. It has the
    /// message id of this part, and counts as followed to the level up to which both were followed. It lists this part's
    /// connections before the other's, at most [`Outcome::CONNECTIONS_LISTED_MAX`], and says how many it leaves out. It
    /// is `replayed` if both parts are.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        let mut connections = self.connections;
        connections.extend(other.connections);
        let omitted = connections.len().saturating_sub(Self::CONNECTIONS_LISTED_MAX);
        connections.truncate(Self::CONNECTIONS_LISTED_MAX);
        Self {
            message_id: self.message_id,
            level: self.level.common(other.level),
            matched: self.matched + other.matched,
            accepted: self.accepted + other.accepted,
            drops: self.drops.merge(other.drops),
            written: self.written + other.written,
            acked: self.acked + other.acked,
            cannot_ack: self.cannot_ack + other.cannot_ack,
            held: self.held + other.held,
            losses: self.losses.merge(other.losses),
            connections,
            connections_omitted: self.connections_omitted + other.connections_omitted + omitted as u64,
            replayed: self.replayed && other.replayed,
        }
    }

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
            connections_omitted: 0,
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

    fn merge(self, other: Self) -> Self {
        Self {
            queue_full: self.queue_full + other.queue_full,
            closed: self.closed + other.closed,
            expired: self.expired + other.expired,
            superseded: self.superseded + other.superseded,
        }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::Names;

    const LEVELS: [Level; 3] = [Level::Accepted, Level::Written, Level::Acked];

    fn progress() -> impl Strategy<Value = Progress> {
        let after = Duration::from_millis(1);
        let reason = prop::sample::select(vec![
            DropReason::QueueFull,
            DropReason::Closed,
            DropReason::Expired,
            DropReason::Superseded,
        ]);
        prop_oneof![
            reason.clone().prop_map(Progress::Dropped),
            reason.prop_map(Progress::Lost),
            Just(Progress::Held),
            Just(Progress::Accepted),
            Just(Progress::Written { after }),
            Just(Progress::Acked { written_after: after, after }),
        ]
    }

    prop_compose! {
        /// The outcome on some connections, or on so many that two of them pass the limit.
        fn part()(
            progress in prop::collection::vec(progress(), 0..8),
            copies in prop::sample::select(vec![1, 80]),
            cannot_ack in any::<bool>(),
            level in prop::sample::select(LEVELS.to_vec()),
            is_listed in any::<bool>(),
            replayed in any::<bool>(),
        ) -> Outcome {
            let names = Names::new();
            let connections = progress.repeat(copies).into_iter().map(|progress| ConnectionOutcome {
                progress, cannot_ack, ..ConnectionOutcome::accepted(names.connection_id())
            });
            let outcome = Outcome::count(message_id(), level, connections.collect());
            let connections = if is_listed { outcome.connections } else { Vec::new() };
            Outcome { connections, replayed, ..outcome }
        }
    }

    fn message_id() -> MessageId {
        "0000000000000001-1".parse().expect("a message id")
    }

    fn counts(outcome: &Outcome) -> [u64; 8] {
        let Outcome { matched, accepted, written, acked, cannot_ack, held, .. } = *outcome;
        [matched, accepted, written, acked, cannot_ack, held, outcome.dropped(), outcome.lost()]
    }

    /// The outcome without what depends on the order of its parts.
    fn unordered(mut outcome: Outcome) -> (Outcome, usize) {
        let listed = std::mem::take(&mut outcome.connections).len();
        (outcome, listed)
    }

    proptest! {
        #[test]
        fn parts_can_be_merged_in_any_grouping(a in part(), b in part(), c in part()) {
            let (left, right) = (a.clone().merge(b.clone()).merge(c.clone()), a.merge(b.merge(c)));
            prop_assert_eq!(left, right);
        }

        #[test]
        fn the_order_of_parts_is_only_the_order_of_what_is_listed(a in part(), b in part()) {
            let (one, other) = (a.clone().merge(b.clone()), b.merge(a));
            if one.connections_omitted == 0 {
                let ids = |outcome: &Outcome| {
                    let mut ids: Vec<_> = outcome.connections.iter().map(|listed| listed.connection_id).collect();
                    ids.sort();
                    ids
                };
                prop_assert_eq!(ids(&one), ids(&other));
            }
            prop_assert_eq!(unordered(one), unordered(other));
        }

        #[test]
        fn the_counts_of_parts_add_up_and_no_connection_goes_untold(a in part(), b in part()) {
            let merged = a.clone().merge(b.clone());
            let sums: Vec<_> = counts(&a).iter().zip(counts(&b)).map(|(a, b)| a + b).collect();
            prop_assert_eq!(counts(&merged).to_vec(), sums);
            prop_assert_eq!(merged.matched, merged.accepted + merged.dropped());
            prop_assert!(merged.connections.len() <= Outcome::CONNECTIONS_LISTED_MAX);
            let listed = a.connections.len() + b.connections.len();
            prop_assert_eq!(merged.connections.len() as u64 + merged.connections_omitted, listed as u64);
            for level in LEVELS {
                let both = a.level.includes(level) && b.level.includes(level);
                prop_assert_eq!(merged.level.includes(level), both);
            }
        }
    }

    #[test]
    fn each_level_includes_itself_and_those_before_it() {
        for (place, level) in LEVELS.into_iter().enumerate() {
            for (other_place, other) in LEVELS.into_iter().enumerate() {
                assert_eq!(level.includes(other), other_place <= place, "{level:?} {other:?}");
            }
        }
    }
}

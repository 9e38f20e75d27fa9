//! The gateway's answers to each push. Checks that every answer is consistent in itself and with the answer before it.

use std::time::Instant;

use pushgate::proto::{ConnectionOutcome, DropCount, DropReason, Level, PushError, PushResponse};
use tonic::{Code, Status};

use crate::book::Name;
use crate::world::REQUEST_TIMEOUT;

/// The outcome of one push on one connection, as reported to its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Dropped(DropReason),
    Held,
    Accepted,
    Written { cannot_ack: bool },
    Acked,
    Lost(DropReason),
}

impl State {
    fn of(told: &ConnectionOutcome) -> Self {
        let (level, reason) = (told.level(), told.reason());
        assert_eq!(told.written_after.is_some(), level >= Level::Written, "{told:?}");
        assert_eq!(told.acked_after.is_some(), level == Level::Acked, "{told:?}");
        match (level, reason, told.held) {
            (Level::Unspecified, DropReason::Unspecified, true) => Self::Held,
            (Level::Unspecified, reason, false) if reason != DropReason::Unspecified => Self::Dropped(reason),
            (Level::Accepted, DropReason::Unspecified, false) => Self::Accepted,
            (Level::Accepted, reason, false) => Self::Lost(reason),
            (Level::Written, DropReason::Unspecified, false) => Self::Written { cannot_ack: told.cannot_ack },
            (Level::Acked, DropReason::Unspecified, false) => Self::Acked,
            _ => panic!("in no state or in two: {told:?}"),
        }
    }

    fn may_become(self, later: Self) -> bool {
        self == later
            || match self {
                Self::Held | Self::Accepted => !matches!(later, Self::Dropped(_)) && later != Self::Accepted,
                Self::Written { cannot_ack: false } => later == Self::Acked,
                _ => false,
            }
    }
}

/// How a push was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// On the stream, in the order of the numbers.
    Stream,
    /// In its own unary call, concurrently with others.
    Call,
}

/// One push and its answers.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) user: usize,
    pub(crate) lane: Lane,
    pub(crate) priority: i32,
    pub(crate) message_id: Option<Name>,
    pub(crate) connections: Vec<(Name, State)>,
    /// Held for the user as a whole.
    pub(crate) is_held_for_user: bool,
    /// Held, with a time to live, and taken by no connection. Any client of the user that connects may get it.
    pub(crate) is_anyones: bool,
    has_ttl: bool,
    pub(crate) refused: Option<i32>,
    /// The call timed out, so the outcome of the push is unknown.
    pub(crate) is_unanswered: bool,
    sent_at: Instant,
    level: Level,
    is_final: bool,
}

impl Record {
    pub(crate) fn new(user: usize, lane: Lane, priority: i32, has_ttl: bool) -> Self {
        Self {
            user,
            lane,
            priority,
            message_id: None,
            connections: Vec::new(),
            is_held_for_user: false,
            is_anyones: false,
            has_ttl,
            refused: None,
            is_unanswered: false,
            sent_at: Instant::now(),
            level: Level::Unspecified,
            is_final: false,
        }
    }

    /// Records that the gateway refused the push and sent it to nobody.
    pub(crate) fn refuse(&mut self, error: &PushError) {
        assert!(!self.is_final && self.message_id.is_none(), "{error:?} after another answer");
        (self.refused, self.is_final) = (Some(error.code), true);
    }

    /// Records the answer to a unary call.
    pub(crate) fn answer_call(&mut self, answer: Result<PushResponse, Status>, wait_for: Level) {
        match answer {
            Ok(response) => self.answer(&response, true, wait_for),
            Err(status) if status.code() == Code::DeadlineExceeded => {
                (self.is_unanswered, self.is_final) = (true, true);
            }
            Err(status) => panic!("{status:?}"),
        }
    }

    /// Records an answer, which may or may not be the last one.
    pub(crate) fn answer(&mut self, response: &PushResponse, is_final: bool, wait_for: Level) {
        assert!(!self.is_final, "an answer behind the last: {response:?}");
        self.is_final = is_final;
        let message_id = Name::of(&response.message_id);
        assert_eq!(*self.message_id.get_or_insert(message_id), message_id);
        assert!(response.level() > self.level && response.level() <= wait_for, "{response:?}");
        let is_first = self.level == Level::Unspecified;
        self.level = response.level();
        let connections: Vec<_> =
            response.connections.iter().map(|told| (Name::of(&told.connection_id), State::of(told))).collect();
        adds_up(response, &connections);
        if is_first {
            self.is_held_for_user = connections.is_empty() && response.held == 1;
            self.is_anyones = response.matched == 0 && response.held > 0 && self.has_ttl;
            assert!(self.is_anyones || !self.is_held_for_user, "held without a time to live: {response:?}");
        } else {
            let before = std::mem::take(&mut self.connections);
            assert_eq!(before.len(), connections.len(), "{response:?}");
            for ((before, was), (now, is)) in before.iter().zip(&connections) {
                assert!(before == now && was.may_become(*is), "{was:?} became {is:?}: {response:?}");
            }
        }
        self.connections = connections;
        self.check_patience(is_final, wait_for);
    }

    /// Checks that the gateway waited long enough. If an answer waited for a level and a message is still on its way,
    /// then the answer must have taken nearly the whole request timeout.
    fn check_patience(&self, is_final: bool, wait_for: Level) {
        let took = self.sent_at.elapsed();
        let is_open = self.connections.iter().any(|(_, state)| *state == State::Accepted);
        let has_waited = self.level >= Level::Written || (is_final && self.level < wait_for);
        assert!(!is_open || !has_waited || took > REQUEST_TIMEOUT * 3 / 4, "not waited for, {took:?}: {self:?}");
    }

    /// Whether the push matched no connection and was not held.
    pub(crate) fn is_unmatched(&self) -> bool {
        self.message_id.is_some() && self.connections.is_empty() && !self.is_held_for_user
    }

    /// Checks that the push has a last answer.
    pub(crate) fn check_end(&self) {
        assert!(self.is_final, "no last answer: {self:?}");
        assert!(self.refused.is_none() || self.connections.is_empty(), "{self:?}");
        let names: std::collections::HashSet<_> = self.connections.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), self.connections.len(), "a connection is told of twice: {self:?}");
    }
}

fn total(counts: &[DropCount]) -> u64 {
    let mut reasons: Vec<_> = counts.iter().map(|count| count.reason).collect();
    reasons.dedup();
    assert_eq!(reasons.len(), counts.len(), "{counts:?}");
    assert!(counts.iter().all(|count| count.count > 0 && count.reason() != DropReason::Unspecified), "{counts:?}");
    counts.iter().map(|count| count.count).sum()
}

/// Checks that the counts of one answer agree with each other and with its connections.
fn adds_up(response: &PushResponse, connections: &[(Name, State)]) {
    let count = |is: fn(State) -> bool| connections.iter().filter(|(_, state)| is(*state)).count() as u64;
    let dropped = count(|state| matches!(state, State::Dropped(_)));
    let lost = count(|state| matches!(state, State::Lost(_)));
    let held = count(|state| state == State::Held);
    let accepted = count(|state| state == State::Accepted);
    let acked = count(|state| state == State::Acked);
    let written = acked + count(|state| matches!(state, State::Written { .. }));
    let cannot_ack = count(|state| state == State::Written { cannot_ack: true });
    assert!(!response.replayed && response.connections_omitted == 0, "{response:?}");
    assert_eq!(response.matched, response.accepted + response.dropped, "{response:?}");
    assert_eq!(response.dropped, total(&response.drops), "{response:?}");
    assert_eq!((response.dropped, response.accepted), (dropped, accepted + written + lost), "{response:?}");
    assert!(response.held == held || (connections.is_empty() && response.held == 1), "{response:?}");
    if response.level() >= Level::Written {
        assert_eq!((response.written, total(&response.losses)), (written, lost), "{response:?}");
        assert_eq!(response.accepted, response.written + total(&response.losses) + accepted, "{response:?}");
    } else {
        assert_eq!((response.written, response.losses.len()), (0, 0), "{response:?}");
    }
    if response.level() >= Level::Acked {
        assert_eq!((response.acked, response.cannot_ack), (acked, cannot_ack), "{response:?}");
        assert!(response.acked + response.cannot_ack <= response.written, "{response:?}");
    } else {
        assert_eq!((response.acked, response.cannot_ack), (0, 0), "{response:?}");
    }
}

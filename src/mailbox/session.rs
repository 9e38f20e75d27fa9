//! A session's steps in its mailbox: it begins, acknowledges, loses its connection, is claimed, gets another, and ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::delivery::{LetGo, Ticket};
use crate::handle::{Handle, Stop};
use crate::message::{ConnectionId, UserId};

use super::keep::{Keep, Oldest, Usage, WasSent};
use super::line::Line;
use super::log::{GivenUp, Log, NeverSent, Resumed};
use super::{Attached, Mailbox, Outboxes, Whereabouts, WriteNow};

/// What became of the wish to go on with a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It is the claimant's, who attaches it or gives it back.
    Granted,
    /// It is on another connection, which was told to leave it, or was claimed by somebody else.
    Wait,
    /// It does not go on.
    Over,
}

/// What became of a session whose connection is gone.
#[derive(Debug)]
pub(crate) enum Departure {
    /// It may come back. So many of its messages are not kept.
    MayComeBack { lost: usize },
    /// It is over.
    Over,
}

/// What outlived the process of a session.
pub(crate) struct Restored {
    pub(crate) last: u64,
    pub(crate) written: u64,
    pub(crate) skipped: u64,
    /// Numbers, 0 where there is none, and messages.
    pub(crate) messages: Vec<(u64, Ticket)>,
}

impl Mailbox {
    /// Makes the mailbox a session's, before anything is offered to it.
    pub(crate) fn begin_session(self: &Arc<Self>, keep: &Arc<Keep>, user_id: &UserId) {
        let account = keep.open(user_id, self);
        self.state().log = Some(Box::new(Log::new(account, self.id)));
    }

    /// The mailbox of a session that outlived the process, and is yet to be put away.
    pub(crate) fn restored(
        keep: &Arc<Keep>,
        user_id: &UserId,
        epoch: ConnectionId,
        outboxes: Arc<Outboxes>,
        restored: Restored,
    ) -> Arc<Self> {
        let mailbox = Arc::new(Self::at(epoch, outboxes, Whereabouts::Going));
        let mut log = Log::new(keep.open(user_id, &mailbox), epoch);
        let Restored { last, written, skipped, messages } = restored;
        log.restore(last, written, skipped, messages);
        let account = log.account().clone();
        mailbox.state().log = Some(Box::new(log));
        account.settle();
        mailbox
    }

    /// The client has everything up to this number. Returns how many numbers were written past the connection's task
    /// since it was last told.
    pub(crate) fn acknowledge(&self, seq: u64, mut acked: impl FnMut(Duration)) -> Result<u32, NeverSent> {
        let mut state = self.state();
        let Some(log) = &mut state.log else { return Err(NeverSent) };
        log.acknowledge(seq, Instant::now(), &mut acked)?;
        Ok(log.take_elsewhere())
    }

    /// The last number that the connection was handed to write, 0 before the first.
    pub(crate) fn told(&self) -> u64 {
        self.state().log.as_ref().map_or(0, |log| log.told())
    }

    /// Whether it is the mailbox of a session without a connection.
    pub(crate) fn is_away(&self) -> bool {
        matches!(self.state().at, Whereabouts::Going | Whereabouts::Away { .. } | Whereabouts::Moving)
    }

    /// Whether it takes nothing any more.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state().at, Whereabouts::Over)
    }

    /// Since when the session is away, if it is.
    pub(crate) fn away_since(&self) -> Option<Instant> {
        if let Whereabouts::Away { since } = self.state().at { Some(since) } else { None }
    }

    /// An operator or service drops the receiver: its connection ends, and its session does not go on. Returns whether a
    /// connection was told for the first time.
    pub(crate) fn drop_receiver(&self) -> bool {
        self.end_receiver(Stop::Dropped)
    }

    /// A token by which the receiver is bound is revoked: the same, and what is queued is given up.
    pub(crate) fn revoke_receiver(&self) -> bool {
        self.end_receiver(Stop::Revoked)
    }

    fn end_receiver(&self, stop: Stop) -> bool {
        let mut state = self.state();
        let is_session = state.log.is_some();
        match &state.at {
            // Under the lock: the session must not leave for another connection before this one is told.
            Whereabouts::Attached(Attached { handle, .. }) => {
                handle.stop(stop) || (is_session && handle.stop_for_good(stop))
            }
            Whereabouts::Going | Whereabouts::Away { .. } | Whereabouts::Moving => {
                state.at = Whereabouts::Over;
                false
            }
            Whereabouts::Over => false,
        }
    }

    /// The session's connection is gone: from here on messages are kept for its return, with those that were accepted and
    /// not written. `line` is what the task had in hand.
    pub(crate) fn detach(&self, line: &mut Line) -> Departure {
        let mut state = self.state();
        let Whereabouts::Attached(Attached { handle, .. }) = &state.at else { return Departure::Over };
        let Some(log) = &state.log else { return Departure::Over };
        let may_come_back = match handle.stopped() {
            None | Some(Stop::QueueFull | Stop::Replaced | Stop::Aged | Stop::SentAway) => true,
            Some(Stop::GoingAway) => log.account().is_durable(),
            Some(Stop::Dropped | Stop::Revoked | Stop::MadeRoom | Stop::Cut | Stop::Ended) => false,
        };
        if !may_come_back {
            return Departure::Over;
        }
        line.take_back();
        state.at = Whereabouts::Going;
        // The stream ends within a frame that was begun past the task. Its message is in the log.
        state.begun = None;
        let queued = state.queue.take_all();
        let Some(log) = &mut state.log else { return Departure::Over };
        let given_up = log.detach(queued);
        let account = log.account().clone();
        drop(state);
        account.settle();
        Departure::MayComeBack { lost: give_up(given_up) }
    }

    /// The session that was going is put away. Returns whether it may still come back.
    pub(crate) fn put_away(&self, since: Instant) -> bool {
        let mut state = self.state();
        let may = matches!(state.at, Whereabouts::Going | Whereabouts::Moving);
        if may {
            state.at = Whereabouts::Away { since };
        }
        may
    }

    /// Somebody wants to go on with the session over another connection.
    pub(crate) fn claim(&self) -> Claim {
        let mut state = self.state();
        match &state.at {
            Whereabouts::Attached(Attached { handle, .. }) => {
                handle.stop(Stop::Replaced);
                Claim::Wait
            }
            Whereabouts::Going | Whereabouts::Moving => Claim::Wait,
            Whereabouts::Away { .. } => {
                state.at = Whereabouts::Moving;
                Claim::Granted
            }
            Whereabouts::Over => Claim::Over,
        }
    }

    /// The claimed session gets its connection, and goes on behind the last number that the client has. `None` if it was
    /// dropped meanwhile. Returns with how it goes on how many messages were given up that the client never had.
    ///
    /// # Errors
    /// When that number was never written.
    pub(crate) fn attach(
        &self,
        handle: &Arc<Handle>,
        socket: Option<Arc<dyn WriteNow>>,
        seq: u64,
        mut acked: impl FnMut(Duration),
    ) -> Result<Option<(Resumed, usize)>, NeverSent> {
        let mut given_up = Vec::new();
        let mut state = self.state();
        if !matches!(state.at, Whereabouts::Moving) {
            return Ok(None);
        }
        let Some(log) = &mut state.log else { return Ok(None) };
        let resumed = log.attach(seq, Instant::now(), &mut acked, &mut given_up)?;
        let lost = resumed.lost;
        state.queue.depth.late += resumed.late;
        state.at = Whereabouts::Attached(Attached::new(handle.clone(), socket));
        drop(state);
        give_up(given_up);
        Ok(Some((resumed, lost)))
    }

    /// The session is over without a connection. Returns what must be passed on, which only this session had, and how many
    /// messages are lost.
    pub(crate) fn end_away(&self) -> (Vec<Ticket>, usize) {
        let mut state = self.state();
        state.at = Whereabouts::Over;
        let Some(mut log) = state.log.take() else { return (Vec::new(), 0) };
        drop(state);
        let unsent = log.end();
        log.account().leave(self);
        let (mut left_behind, mut lost) = (Vec::new(), 0);
        for mut ticket in unsent {
            match ticket.let_go() {
                LetGo::PassOn => left_behind.push(ticket.for_anyone()),
                // Told by the push where it ends up.
                LetGo::LeftToPush => drop(ticket.for_anyone()),
                LetGo::Lost => lost += 1,
            }
        }
        (left_behind, lost)
    }

    /// How much the session keeps.
    pub(super) fn kept(&self) -> Usage {
        self.state().log.as_ref().map(|log| log.usage()).unwrap_or_default()
    }

    pub(super) fn give_up_oldest(&self) -> Option<Oldest> {
        let mut state = self.state();
        let oldest = state.log.as_mut()?.give_up_oldest();
        if let Some(Oldest::Unsent(ticket)) = &oldest
            && matches!(state.at, Whereabouts::Attached(_))
        {
            // It was on its way again.
            state.queue.depth -= super::Depth::of(ticket);
        }
        oldest
    }

    pub(super) fn sweep(&self, now: Instant, age: Duration, given_up: &mut Vec<(GivenUp, WasSent)>) {
        let mut state = self.state();
        let is_attached = matches!(state.at, Whereabouts::Attached(_));
        let before = given_up.len();
        let Some(log) = &mut state.log else { return };
        log.sweep(now, age, given_up);
        let unsent = given_up[before..].iter().filter(|(_, was_sent)| *was_sent == WasSent::No);
        for ((ticket, _), _) in unsent.filter(|_| is_attached) {
            state.queue.depth -= super::Depth::of(ticket);
        }
    }
}

/// Tells of messages that are given up, outside of the lock. Returns how many.
fn give_up(given_up: Vec<GivenUp>) -> usize {
    let count = given_up.len();
    given_up.into_iter().for_each(|(ticket, reason)| ticket.lost(reason));
    count
}

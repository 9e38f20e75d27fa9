//! All that one receiver has coming, under one lock: a connection of the legacy protocol, or a session over all of its
//! connections. A push offers and never waits. Whoever writes takes from here: the connection's task, the push itself, or a
//! flusher.

mod direct;
mod giving_way;
mod keep;
mod line;
mod log;
mod outboxes;
mod queue;
mod ranked;
mod session;
#[cfg(test)]
mod tests;

use std::sync::{Arc, PoisonError};
use std::task::Context;
use std::time::{Duration, Instant};

use crate::delivery::Ticket;
use crate::dialect::Frame;
use crate::handle::{Handle, Stop};
use crate::message::ConnectionId;
use crate::outcome::DropReason;
use crate::revocations::{Revoked, Stamp, Stamps};
use crate::sync::Mutex;

pub(crate) use direct::WriteNow;
pub(crate) use giving_way::GaveWay;
pub(crate) use keep::{Bounds, Keep};
pub(crate) use line::{FRAMES_MAX, Line};
pub(crate) use log::Resumed;
pub(crate) use outboxes::{Outboxes, STEP_BYTES};
pub(crate) use queue::{Capacity, Depth, MESSAGE_OVERHEAD_BYTES};
pub(crate) use ranked::Ranked;
pub(crate) use session::{Claim, Departure, Restored};

use line::Expired;
use log::{Elsewhere, GivenUp, Log};
use outboxes::Locked;
use queue::{Queue, Refused};

/// What became of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offered {
    pub(crate) taken: Taken,
    /// How many messages that were accepted before had to go for it.
    pub(crate) displaced: usize,
    pub(crate) flush: Flush,
}

/// Whether a mailbox took a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Queued,
    /// Its session is away, and keeps it for its return.
    Held,
    Refused(DropReason),
}

/// What whoever made an offer has to do so that the message is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    /// Nothing: the connection's task writes it, or somebody else has promised to.
    None,
    /// Call [`Mailbox::flush`] soon. The receiver was written to just before, so that waiting a little saves writes.
    Soon,
    /// The same, and waiting would gain nothing.
    Now,
}

/// What the connection's task finds at one visit.
#[derive(Debug, Default)]
pub(crate) struct Visit {
    /// Whether the connection must stop.
    pub(crate) stop: Option<Stop>,
    /// How many messages in hand were given up because their time to live is over.
    pub(crate) expired: usize,
    /// Numbers that were written past the task since the last visit.
    pub(crate) written_elsewhere: u32,
}

/// What the connection's task wants of a visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wants {
    /// To take messages, and to be woken for more. `is_busy` says that it has something else to write.
    Messages { is_busy: bool },
    /// No message, since it cannot write one now.
    Nothing,
}

/// One receiver's messages.
#[derive(Debug)]
pub(crate) struct Mailbox {
    /// The connection's id, or the session's epoch: the id of the connection on which it began.
    id: ConnectionId,
    outboxes: Arc<Outboxes>,
    /// A std mutex: held for a few instructions, or for one write that does not wait, and never over an await.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    at: Whereabouts,
    queue: Queue,
    /// A frame that was written in part past the connection's task, which writes the rest, and how much was.
    begun: Option<Box<(Frame, usize)>>,
    /// Present when the mailbox is a session's.
    log: Option<Box<Log>>,
    /// The tokens by which the receiver is bound, unless nothing is known of any of them.
    stamps: Option<Box<Stamps>>,
}

/// Where the receiver is.
#[derive(Debug)]
enum Whereabouts {
    /// It has a connection.
    Attached(Attached),
    /// Its connection is gone, and the session is not yet put away.
    Going,
    /// The session has no connection, and may come back.
    Away { since: Instant },
    /// Somebody has claimed the session for another connection.
    Moving,
    /// Nothing is taken any more.
    Over,
}

/// A connection as its mailbox knows it.
#[derive(Debug)]
struct Attached {
    handle: Arc<Handle>,
    /// The socket, where others than the connection's task may write to it.
    direct: Option<Arc<dyn WriteNow>>,
    /// Whether the task sleeps, and a message is reason enough to wake it. It is not while the socket takes no more.
    wants_messages: bool,
    /// Whether the task sleeps with nothing in hand, so that others may write.
    is_idle: bool,
    /// Whether somebody has promised to flush.
    is_promised: bool,
    /// When a flush was promised last, in nanoseconds since the connection was admitted. An `Instant` is twice as large.
    flushed_at: u64,
}

impl Attached {
    fn new(handle: Arc<Handle>, direct: Option<Arc<dyn WriteNow>>) -> Self {
        Self { handle, direct, wants_messages: false, is_idle: false, is_promised: false, flushed_at: 0 }
    }

    /// Wakes the task for a message, unless it is awake or could not write it.
    fn wake_for_message(&mut self) {
        if std::mem::take(&mut self.wants_messages) {
            self.is_idle = false;
            self.handle.wake();
        }
    }

    /// Leaves the writing to the task.
    fn hand_over(&mut self) {
        self.is_idle = false;
        self.wants_messages = false;
        self.handle.wake();
    }
}

impl State {
    fn next_frame(&mut self) -> Option<Frame> {
        match &mut self.log {
            Some(log) => log.next_frame(&mut self.queue),
            None => self.queue.pop().map(Frame::message),
        }
    }

    /// Whether a connection that was told to stop still takes messages: its session goes on, and keeps them.
    fn takes_when_stopped(&self, stop: Stop) -> bool {
        self.log.is_some() && matches!(stop, Stop::Replaced | Stop::Aged | Stop::SentAway)
    }
}

impl Mailbox {
    /// The mailbox of a connection.
    pub(crate) fn new(handle: Arc<Handle>, outboxes: Arc<Outboxes>) -> Self {
        Self::left_by(handle.id(), handle, outboxes)
    }

    /// The mailbox of a connection whose session, with this epoch, has left it.
    pub(crate) fn left_by(epoch: ConnectionId, handle: Arc<Handle>, outboxes: Arc<Outboxes>) -> Self {
        Self::at(epoch, outboxes, Whereabouts::Attached(Attached::new(handle, None)))
    }

    fn at(id: ConnectionId, outboxes: Arc<Outboxes>, at: Whereabouts) -> Self {
        let state = State { at, queue: Queue::default(), begun: None, log: None, stamps: None };
        Self { id, outboxes, state: Mutex::new(state) }
    }

    pub(crate) fn id(&self) -> ConnectionId {
        self.id
    }

    /// Lets others than the connection's task write to its socket while the task has nothing in hand.
    pub(crate) fn share(&self, socket: Option<Arc<dyn WriteNow>>) {
        if let Whereabouts::Attached(attached) = &mut self.state().at {
            attached.direct = socket;
        }
    }

    /// Takes a message, or says why not. Never waits.
    pub(crate) fn offer(&self, ticket: Ticket) -> Offered {
        // A late one was accepted before, and is told in its turn.
        let is_expired = !ticket.is_late() && ticket.is_expired();
        let mut state = self.state();
        let State { at, log, .. } = &mut *state;
        let result = match (at, log) {
            (Whereabouts::Over, _) => Err(Refused::new(ticket, DropReason::Closed)),
            (Whereabouts::Attached(_), _) => return self.queue(state, ticket, is_expired),
            (_, None) => Err(Refused::new(ticket, DropReason::Closed)),
            (_, Some(log)) if is_expired || ticket.is_for_now() => {
                log.skip(1);
                Err(Refused::new(ticket, DropReason::Expired))
            }
            (_, Some(log)) => {
                let account = log.account().clone();
                match log.hold(ticket) {
                    Ok(()) => {
                        drop(state);
                        account.settle();
                        return Offered { taken: Taken::Held, displaced: 0, flush: Flush::None };
                    }
                    Err(ticket) => Err(Refused::new(ticket, DropReason::QueueFull)),
                }
            }
        };
        drop(state);
        told(result, Vec::new(), Flush::None)
    }

    fn queue(&self, mut guard: Locked<'_>, ticket: Ticket, is_expired: bool) -> Offered {
        let state = &mut *guard;
        let Whereabouts::Attached(Attached { handle, .. }) = &state.at else {
            unreachable!("looked at under this lock")
        };
        let is_closed = handle.stopped().is_some_and(|stop| !state.takes_when_stopped(stop));
        let (mut out, mut flush) = (Vec::new(), Flush::None);
        let accepted_at = ticket.accepted_at();
        if let Some(log) = &state.log
            && !is_closed
        {
            log.accepted(&ticket);
        }
        let result = if is_closed {
            Err(Refused::new(ticket, DropReason::Closed))
        } else if is_expired {
            Err(Refused::new(ticket, DropReason::Expired))
        } else {
            state.queue.push(ticket, self.outboxes.each(), &mut out)
        };
        if let Some(log) = &mut state.log {
            let refused = result.as_ref().err().map(|refused| &refused.ticket).filter(|_| !is_closed);
            out.iter().map(|(ticket, _)| ticket).chain(refused).for_each(|ticket| log.given_up(ticket));
            log.skip(out.len() + usize::from(result.is_err()));
        }
        let Whereabouts::Attached(attached) = &mut state.at else { unreachable!("looked at under this lock") };
        if result.as_ref().is_err_and(|refused| refused.closes) {
            attached.handle.stop(Stop::QueueFull);
        }
        if attached.is_idle && attached.direct.is_some() && result.is_ok() {
            if !attached.is_promised {
                flush = attached.promise(accepted_at);
            }
        } else {
            // A message, or a gap to be told.
            attached.wake_for_message();
        }
        drop(guard);
        told(result, out, flush)
    }

    /// The connection's task looks in. It reports what is off the books since its last visit, takes messages into `line` if
    /// it wants any, learns whether to stop, and is woken when any of that changes.
    pub(crate) fn visit(&self, cx: &Context<'_>, line: &mut Line, done: Depth, wants: Wants) -> Visit {
        let mut visit = Visit::default();
        let mut guard = self.state();
        let state = &mut *guard;
        state.queue.depth -= done;
        if let Some(begun) = state.begun.take() {
            // Nobody else writes while the task has something in hand, so the line is empty of what would go before.
            let (frame, offset) = *begun;
            line.go_on_with(frame, offset);
        }
        if wants != Wants::Nothing {
            let mut bytes = line.bytes();
            while line.len() < FRAMES_MAX
                && bytes < line::BYTES_MAX
                && let Some(frame) = state.next_frame()
            {
                bytes += frame.len();
                line.push(frame);
            }
        }
        state.queue.shrink();
        let given_up = state.expire(line);
        visit.expired = given_up.iter().filter(|(_, is_lost)| *is_lost).count();
        visit.written_elsewhere = state.log.as_mut().map_or(0, |log| log.take_elsewhere());
        if let Whereabouts::Attached(attached) = &mut state.at {
            attached.wants_messages = wants != Wants::Nothing;
            attached.is_idle = wants == Wants::Messages { is_busy: false } && line.is_empty();
            attached.is_promised = false;
            visit.stop = attached.handle.sleep(cx);
        }
        drop(guard);
        for ((ticket, reason), _) in given_up {
            ticket.lost(reason);
        }
        visit
    }

    /// The connection's task is about to have something to write that must come before messages which others could write
    /// for it.
    pub(crate) fn hold_back(&self) {
        if let Whereabouts::Attached(attached) = &mut self.state().at {
            attached.is_idle = false;
        }
    }

    /// The connection's task has written everything up to this number to a session's client.
    pub(crate) fn wrote(&self, seq: u64, now: Instant, delivered: impl FnMut(Duration)) {
        let mut state = self.state();
        let Some(log) = &mut state.log else { return };
        let done = log.wrote(seq, now, Elsewhere::No, delivered);
        let account = log.account().clone();
        state.queue.depth -= done;
        drop(state);
        account.settle();
    }

    /// Refuses what comes from here on, for a connection that has ended and has no session that goes on. Returns how many
    /// messages were accepted and never written; `done` is what the last visit did not report.
    pub(crate) fn close(&self, done: Depth) -> usize {
        let mut state = self.state();
        state.at = Whereabouts::Over;
        state.queue.depth -= done;
        let Depth { messages, late, .. } = state.queue.depth;
        let (queued, begun, log) = (state.queue.take_all(), state.begun.take(), state.log.take());
        // Each message tells whoever waits for it that it is lost, which is not for under the lock.
        drop(state);
        drop((queued, begun));
        if let Some(mut log) = log {
            log.end();
            log.account().leave(self);
        }
        (messages + late) as usize
    }

    /// The connection that it has, if it has one.
    pub(crate) fn connection(&self) -> Option<Arc<Handle>> {
        match &self.state().at {
            Whereabouts::Attached(attached) => Some(attached.handle.clone()),
            _ => None,
        }
    }

    /// Notes the tokens by which the receiver is bound now.
    pub(crate) fn show(&self, stamps: Option<Stamps>) {
        self.state().stamps = stamps.map(Box::new);
    }

    /// Whether one of the tokens by which the receiver is bound is revoked.
    pub(crate) fn is_bound_by(&self, revoked: &Revoked) -> bool {
        match &self.state().stamps {
            None => revoked.covers(&Stamp::default()),
            Some(stamps) => stamps.has_one_of(revoked),
        }
    }

    /// How much is queued.
    pub(crate) fn depth(&self) -> Depth {
        self.state().queue.depth
    }

    fn state(&self) -> Locked<'_> {
        // A panic under this lock leaves counters at worst one message off, and one receiver is no reason to stop serving
        // the rest.
        Locked::new(self.state.lock().unwrap_or_else(PoisonError::into_inner), &self.outboxes)
    }
}

impl State {
    /// Takes what has expired out of the hand. Each comes with whether it was lost: one that the client may have already
    /// was not.
    fn expire(&mut self, line: &mut Line) -> Vec<(GivenUp, bool)> {
        let mut given_up = Vec::new();
        let Self { queue, log, .. } = self;
        line.expire(|expired| {
            let (ticket, was_sent) = match expired {
                Expired::Message(ticket) => (ticket, false),
                Expired::Numbered(seq) => match log.as_mut().and_then(|log| log.remove(seq)) {
                    Some(removed) => removed,
                    None => return,
                },
            };
            if !was_sent {
                queue.depth -= Depth::of(&ticket);
            }
            given_up.push(((ticket, DropReason::Expired), !was_sent));
        });
        given_up
    }
}

/// Tells whoever waits what became of a message and of those that had to go for it, outside of the lock.
fn told(result: Result<(), Refused>, out: Vec<GivenUp>, flush: Flush) -> Offered {
    let displaced = out.len();
    for (ticket, reason) in out {
        ticket.lost(reason);
    }
    let taken = match result {
        Ok(()) => Taken::Queued,
        Err(Refused { ticket, reason, .. }) => {
            ticket.refused(reason);
            Taken::Refused(reason)
        }
    };
    Offered { taken, displaced, flush }
}

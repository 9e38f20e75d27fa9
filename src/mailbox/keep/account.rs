//! One user's account of what is kept, and who of the user's pays when a bound is reached.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Instant;

use smallvec::SmallVec;

use crate::delivery::Ticket;
use crate::journal::Record;
use crate::message::{MessageId, UserId};
use crate::outcome::DropReason;
use crate::sync::{AtomicUsize, Mutex, MutexGuard};

use super::super::Mailbox;
use super::{Bounds, Keep, Oldest, SharedUsage, Usage, WasSent};

/// What is kept for one user.
#[derive(Debug)]
pub(crate) struct Account {
    pub(super) keep: Arc<Keep>,
    pub(super) user_id: UserId,
    pub(super) usage: SharedUsage,
    /// How many bytes it had when it was ranked last. Read and written under the ranking's lock alone.
    pub(super) rank: AtomicUsize,
    /// A std mutex: held for a few instructions, and no other lock is taken under it.
    pub(super) state: Mutex<AccountState>,
}

#[derive(Debug, Default)]
pub(super) struct AccountState {
    /// Messages for the user as a whole, oldest first.
    pub(super) held: VecDeque<Held>,
    pub(super) held_bytes: usize,
    /// The sessions' mailboxes.
    pub(super) sessions: SmallVec<[Weak<Mailbox>; 2]>,
}

/// A message for the user as a whole.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) ticket: Ticket,
    pub(super) kept_at: Instant,
    /// For which the account is charged.
    pub(super) bytes: usize,
}

/// Who of a user's has the most.
pub(super) enum Fullest {
    Held,
    Session(Arc<Mailbox>),
}

/// What a held message takes beside itself.
pub(super) const HELD_OVERHEAD_BYTES: usize = 2 * size_of::<Held>() + 160;

impl Account {
    pub(in crate::mailbox) fn record(&self, make: impl FnOnce() -> Record) {
        self.keep.recorder.record(&self.user_id, make);
    }

    pub(in crate::mailbox) fn charge(&self, usage: Usage) {
        self.usage.add(usage);
        self.keep.total.add(usage);
    }

    pub(in crate::mailbox) fn refund(&self, usage: Usage) {
        self.usage.remove(usage);
        self.keep.total.remove(usage);
    }

    /// Whether what is kept outlives the process.
    pub(in crate::mailbox) fn is_durable(&self) -> bool {
        self.keep.recorder.is_durable()
    }

    /// Whether a message of this size fits at all, were it alone.
    pub(in crate::mailbox) fn could_hold(&self, bytes: usize) -> bool {
        let Bounds { bytes_per_user_max, bytes_max, messages_per_user_max, .. } = self.keep.bounds;
        bytes <= bytes_per_user_max.min(bytes_max) && messages_per_user_max > 0
    }

    pub(super) fn is_full(&self) -> bool {
        let Usage { messages, bytes } = self.usage.get();
        messages > self.keep.bounds.messages_per_user_max || bytes > self.keep.bounds.bytes_per_user_max
    }

    /// Gives up the oldest of whoever has the most until all bounds hold. Called with no mailbox locked.
    pub(in crate::mailbox) fn settle(self: &Arc<Self>) {
        self.make_room(None);
    }

    /// The same. A held message that has only just come goes before the older ones: its caller can still be told. Returns
    /// whether it stays.
    pub(super) fn make_room(self: &Arc<Self>, newest: Option<MessageId>) -> bool {
        while self.is_full() {
            match self.fullest() {
                None => break,
                Some(Fullest::Held) if newest.is_some() => return false,
                Some(fullest) => {
                    if !self.give_up(fullest) {
                        break;
                    }
                }
            }
        }
        if !self.keep.is_full() {
            return true;
        }
        let mut ranking = self.keep.ranking.lock().unwrap_or_else(PoisonError::into_inner);
        ranking.refresh(|| self.keep.accounts());
        ranking.rank(self);
        while self.keep.is_full() {
            let Some(account) = ranking.highest() else { break };
            let Some(fullest) = account.fullest() else { continue };
            if newest.is_some() && matches!(fullest, Fullest::Held) && Arc::ptr_eq(&account, self) {
                ranking.rank(&account);
                return false;
            }
            if account.give_up(fullest) {
                ranking.rank(&account);
            }
        }
        true
    }

    /// Who of this user's has the most.
    pub(super) fn fullest(&self) -> Option<Fullest> {
        let (sessions, held) = {
            let mut state = self.state();
            state.sessions.retain(|session| session.strong_count() > 0);
            let sessions: Vec<_> = state.sessions.iter().filter_map(Weak::upgrade).collect();
            (sessions, Usage { messages: state.held.len(), bytes: state.held_bytes })
        };
        let is_by_bytes = self.usage.get().messages <= self.keep.bounds.messages_per_user_max;
        let size = |usage: Usage| if is_by_bytes { usage.bytes } else { usage.messages };
        let by_size = sessions.into_iter().map(|session| (size(session.kept()), session));
        let (most, session) = by_size.max_by_key(|(size, _)| *size).unzip();
        match session {
            Some(session) if most > Some(size(held)) || held.messages == 0 => Some(Fullest::Session(session)),
            _ if held.messages > 0 => Some(Fullest::Held),
            _ => None,
        }
    }

    /// Gives up the oldest of it. Returns whether there was anything to give up.
    pub(super) fn give_up(&self, fullest: Fullest) -> bool {
        let metrics = &self.keep.metrics;
        match fullest {
            Fullest::Session(session) => match session.give_up_oldest() {
                None => return false,
                Some(Oldest::Unsent(ticket)) => {
                    metrics.forgotten.inc();
                    ticket.lost(DropReason::QueueFull);
                }
                Some(Oldest::Sent | Oldest::Remains) => {}
            },
            Fullest::Held => {
                let mut state = self.state();
                let Some(held) = state.held.pop_front() else { return false };
                let ticket = self.released(&mut state, held);
                drop(state);
                metrics.forgotten.inc();
                ticket.lost(DropReason::QueueFull);
            }
        }
        true
    }

    /// Takes a held message off the books.
    pub(super) fn released(&self, state: &mut AccountState, held: Held) -> Ticket {
        let Held { ticket, bytes, .. } = held;
        state.held_bytes -= bytes;
        self.refund(Usage { messages: 1, bytes });
        let message_id = ticket.message_id();
        self.record(|| Record::Released(message_id));
        ticket
    }

    pub(super) fn sweep(&self, now: Instant) {
        let age = self.keep.bounds.age;
        let mut given_up = Vec::new();
        let mut state = self.state();
        let sessions: Vec<_> = state.sessions.iter().filter_map(Weak::upgrade).collect();
        let is_over = |held: &Held| {
            let is_old = now.saturating_duration_since(held.kept_at) >= age;
            is_old || held.ticket.expires_at().is_some_and(|at| at <= now)
        };
        let (over, rest): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut state.held).into_iter().partition(is_over);
        state.held = rest;
        for held in over {
            given_up.push(((self.released(&mut state, held), DropReason::Expired), WasSent::No));
        }
        drop(state);
        for session in sessions {
            session.sweep(now, age, &mut given_up);
        }
        for ((ticket, reason), was_sent) in given_up {
            self.keep.metrics.forgotten.inc_by(u64::from(was_sent == WasSent::No));
            ticket.lost(reason);
        }
    }

    /// A session is over.
    pub(in crate::mailbox) fn leave(&self, session: &Mailbox) {
        let mut shard = self.keep.shard(&self.user_id);
        self.state().sessions.retain(|known| known.strong_count() > 0 && !std::ptr::eq(known.as_ptr(), session));
        self.close_if_empty(&mut shard);
    }

    pub(super) fn close_if_empty(&self, shard: &mut HashMap<UserId, Arc<Self>>) {
        let state = self.state();
        let is_empty = state.held.is_empty() && state.sessions.iter().all(|session| session.strong_count() == 0);
        // The user may have a newer account by now.
        if is_empty && shard.get(&self.user_id).is_some_and(|known| std::ptr::eq(&raw const **known, self)) {
            shard.remove(&self.user_id);
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, AccountState> {
        // A panic in a few list steps can only be running out of memory; what is kept for others is still good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

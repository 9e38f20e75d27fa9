//! The room for what is kept: each user's account of it, the bounds, and who pays when they are reached. Whoever has the most
//! does: the fullest session of a user, and of all users the one that keeps the most. So nobody loses more than a fair share
//! to others.

mod ranking;

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::ops::{AddAssign, SubAssign};
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::delivery::Ticket;
use crate::journal::{Record, Recorder, Stored};
use crate::message::{Event, MessageId, UserId};
use crate::metrics::Metrics;
use crate::outcome::DropReason;
use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering};

use super::Mailbox;
use ranking::Ranking;

/// What may be kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Messages of one user, over all of its sessions.
    pub(crate) messages_per_user_max: usize,
    /// Bytes of one user's messages.
    pub(crate) bytes_per_user_max: usize,
    /// Bytes in all.
    pub(crate) bytes_max: usize,
    /// How long a message is kept.
    pub(crate) age: Duration,
}

/// How much is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Messages, each counted once for every session it is kept for.
    pub(crate) messages: usize,
    /// Bytes, about as many as of memory.
    pub(crate) bytes: usize,
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
    }
}

impl SubAssign for Usage {
    fn sub_assign(&mut self, other: Self) {
        self.messages -= other.messages;
        self.bytes -= other.bytes;
    }
}

/// A usage that many threads change.
#[derive(Debug, Default)]
struct SharedUsage {
    messages: AtomicUsize,
    bytes: AtomicUsize,
}

impl SharedUsage {
    fn add(&self, usage: Usage) {
        self.messages.fetch_add(usage.messages, Ordering::SeqCst);
        self.bytes.fetch_add(usage.bytes, Ordering::SeqCst);
    }

    fn remove(&self, usage: Usage) {
        self.messages.fetch_sub(usage.messages, Ordering::SeqCst);
        self.bytes.fetch_sub(usage.bytes, Ordering::SeqCst);
    }

    fn get(&self) -> Usage {
        Usage { messages: self.messages.load(Ordering::SeqCst), bytes: self.bytes.load(Ordering::SeqCst) }
    }
}

type Accounts = HashMap<UserId, Arc<Account>>;

/// Shards of the accounts, so that users do not wait for each other.
const SHARDS: usize = 64;

/// Everything that is kept, by user. No lock is common to all users but on the way to make room in all.
#[derive(Debug)]
pub(crate) struct Keep {
    bounds: Bounds,
    recorder: Recorder,
    metrics: Arc<Metrics>,
    total: SharedUsage,
    hasher: std::hash::RandomState,
    shards: Box<[Mutex<Accounts>]>,
    ranking: Mutex<Ranking>,
}

/// What is kept for one user.
#[derive(Debug)]
pub(crate) struct Account {
    keep: Arc<Keep>,
    user_id: UserId,
    usage: SharedUsage,
    /// How many bytes it had when it was ranked last. Read and written under the ranking's lock alone.
    rank: AtomicUsize,
    /// A std mutex: held for a few instructions, and no other lock is taken under it.
    state: Mutex<AccountState>,
}

#[derive(Debug, Default)]
struct AccountState {
    /// Messages for the user as a whole, oldest first.
    held: VecDeque<Held>,
    held_bytes: usize,
    /// The sessions' mailboxes.
    sessions: Vec<Weak<Mailbox>>,
}

/// A message for the user as a whole.
#[derive(Debug)]
struct Held {
    ticket: Ticket,
    kept_at: Instant,
    /// For which the account is charged.
    bytes: usize,
}

/// Who of a user's has the most.
enum Fullest {
    Held,
    Session(Arc<Mailbox>),
}

/// Whether a client can have a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WasSent {
    No,
    Yes,
}

/// What was given up to make room.
#[derive(Debug)]
pub(super) enum Oldest {
    /// A message that its client never had.
    Unsent(Ticket),
    /// The content of a message that its client can have.
    Sent,
    /// All that was left of one.
    Remains,
}

impl Keep {
    pub(crate) fn new(bounds: Bounds, recorder: Recorder, metrics: Arc<Metrics>) -> Arc<Self> {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        let (total, hasher, ranking) = (SharedUsage::default(), std::hash::RandomState::new(), Mutex::default());
        Arc::new(Self { bounds, recorder, metrics, total, hasher, shards, ranking })
    }

    pub(crate) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// How much is kept in all.
    pub(crate) fn usage(&self) -> Usage {
        self.total.get()
    }

    /// Opens the account of a user for one more session.
    pub(crate) fn open(self: &Arc<Self>, user_id: &UserId, session: &Arc<Mailbox>) -> Arc<Account> {
        let mut shard = self.shard(user_id);
        let account = self.account(&mut shard, user_id);
        // Under the shard's lock, so that the account is not taken for an empty one.
        account.state().sessions.push(Arc::downgrade(session));
        account
    }

    fn account(self: &Arc<Self>, shard: &mut Accounts, user_id: &UserId) -> Arc<Account> {
        let open = || {
            Arc::new(Account {
                keep: self.clone(),
                user_id: user_id.clone(),
                usage: SharedUsage::default(),
                rank: AtomicUsize::new(0),
                state: Mutex::default(),
            })
        };
        shard.entry(user_id.clone()).or_insert_with(open).clone()
    }

    /// Keeps a message for a user of whom no connection is bound to its event. Room is made only by whoever has more than
    /// what is held for this user.
    ///
    /// # Errors
    /// Hands it back where there is no room.
    pub(crate) fn hold(self: &Arc<Self>, user_id: &UserId, ticket: Ticket) -> Result<(), Ticket> {
        let bytes = HELD_OVERHEAD_BYTES + ticket.memory();
        if bytes > self.bounds.bytes_per_user_max.min(self.bounds.bytes_max) {
            return Err(ticket);
        }
        let added = Usage { messages: 1, bytes };
        let message_id = ticket.message_id();
        let mut shard = self.shard(user_id);
        let account = self.account(&mut shard, user_id);
        self.recorder.record(user_id, || Record::Held(Stored::of(&ticket, 0)));
        account.charge(added);
        let mut state = account.state();
        state.held_bytes += bytes;
        state.held.push_back(Held { ticket, kept_at: Instant::now(), bytes });
        drop(state);
        drop(shard);
        // Now that it counts: of all that might pay for it, it is the first to go if what is held here is the most.
        if account.make_room(Some(message_id)) {
            Ok(())
        } else {
            self.withdraw(user_id, message_id).map_or(Ok(()), Err)
        }
    }

    /// Hands back one message that is held, if it was not released yet.
    pub(crate) fn withdraw(&self, user_id: &UserId, message_id: MessageId) -> Option<Ticket> {
        let mut shard = self.shard(user_id);
        let account = shard.get(user_id)?.clone();
        let mut state = account.state();
        // The latest is the likeliest.
        let place = state.held.iter().rposition(|held| held.ticket.message_id() == message_id)?;
        let held = state.held.remove(place)?;
        let ticket = account.released(&mut state, held);
        drop(state);
        account.close_if_empty(&mut shard);
        Some(ticket)
    }

    /// Whether anything is held for a user.
    pub(crate) fn holds(&self, user_id: &UserId) -> bool {
        let account = self.shard(user_id).get(user_id).cloned();
        account.is_some_and(|account| !account.state().held.is_empty())
    }

    /// Hands over what is held for a user's event, oldest first.
    pub(crate) fn release(&self, user_id: &UserId, event: &Event) -> Vec<Ticket> {
        let mut shard = self.shard(user_id);
        let Some(account) = shard.get(user_id).cloned() else { return Vec::new() };
        let mut state = account.state();
        let (of_event, rest): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut state.held).into_iter().partition(|held| held.ticket.event() == event);
        state.held = rest;
        let released = of_event.into_iter().map(|held| account.released(&mut state, held)).collect();
        drop(state);
        account.close_if_empty(&mut shard);
        released
    }

    /// Gives up what has been kept for too long.
    pub(crate) fn sweep(&self, now: Instant) {
        for shard in &self.shards {
            let accounts: Vec<_> = shard.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
            for account in accounts {
                account.sweep(now);
                account.close_if_empty(&mut self.shard(&account.user_id));
            }
        }
    }

    /// The accounts that keep anything.
    fn accounts(&self) -> Vec<Arc<Account>> {
        let shards = self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner));
        let accounts = shards.flat_map(|shard| shard.values().cloned().collect::<Vec<_>>());
        accounts.filter(|account| account.usage.get().bytes > 0).collect()
    }

    fn is_full(&self) -> bool {
        self.total.get().bytes > self.bounds.bytes_max
    }

    fn shard(&self, user_id: &UserId) -> MutexGuard<'_, Accounts> {
        let shard = self.hasher.hash_one(user_id) as usize % SHARDS;
        // A panic in a few map steps can only be running out of memory; what is kept for others is still good.
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a held message takes beside itself.
const HELD_OVERHEAD_BYTES: usize = 2 * size_of::<Held>() + 160;

impl Account {
    pub(super) fn record(&self, make: impl FnOnce() -> Record) {
        self.keep.recorder.record(&self.user_id, make);
    }

    pub(super) fn charge(&self, usage: Usage) {
        self.usage.add(usage);
        self.keep.total.add(usage);
    }

    pub(super) fn refund(&self, usage: Usage) {
        self.usage.remove(usage);
        self.keep.total.remove(usage);
    }

    /// Whether what is kept outlives the process.
    pub(super) fn is_durable(&self) -> bool {
        self.keep.recorder.is_durable()
    }

    /// Whether a message of this size fits at all, were it alone.
    pub(super) fn could_hold(&self, bytes: usize) -> bool {
        let Bounds { bytes_per_user_max, bytes_max, messages_per_user_max, .. } = self.keep.bounds;
        bytes <= bytes_per_user_max.min(bytes_max) && messages_per_user_max > 0
    }

    fn is_full(&self) -> bool {
        let Usage { messages, bytes } = self.usage.get();
        messages > self.keep.bounds.messages_per_user_max || bytes > self.keep.bounds.bytes_per_user_max
    }

    /// Gives up the oldest of whoever has the most until all bounds hold. Called with no mailbox locked.
    pub(super) fn settle(self: &Arc<Self>) {
        self.make_room(None);
    }

    /// The same. A held message that has only just come goes before the older ones: its caller can still be told. Returns
    /// whether it stays.
    fn make_room(self: &Arc<Self>, newest: Option<MessageId>) -> bool {
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
    fn fullest(&self) -> Option<Fullest> {
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
    fn give_up(&self, fullest: Fullest) -> bool {
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
    fn released(&self, state: &mut AccountState, held: Held) -> Ticket {
        let Held { ticket, bytes, .. } = held;
        state.held_bytes -= bytes;
        self.refund(Usage { messages: 1, bytes });
        let message_id = ticket.message_id();
        self.record(|| Record::Released(message_id));
        ticket
    }

    fn sweep(&self, now: Instant) {
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
    pub(super) fn leave(&self, session: &Mailbox) {
        let mut shard = self.keep.shard(&self.user_id);
        self.state().sessions.retain(|known| known.strong_count() > 0 && !std::ptr::eq(known.as_ptr(), session));
        self.close_if_empty(&mut shard);
    }

    fn close_if_empty(&self, shard: &mut HashMap<UserId, Arc<Self>>) {
        let state = self.state();
        let is_empty = state.held.is_empty() && state.sessions.iter().all(|session| session.strong_count() == 0);
        // The user may have a newer account by now.
        if is_empty && shard.get(&self.user_id).is_some_and(|known| std::ptr::eq(&raw const **known, self)) {
            shard.remove(&self.user_id);
        }
    }

    fn state(&self) -> MutexGuard<'_, AccountState> {
        // A panic in a few list steps can only be running out of memory; what is kept for others is still good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The room for what is kept: each user's account of it, the bounds, and who pays when they are reached. Whoever has the most
//! does: the fullest session of a user, and of all users the one that keeps the most. So nobody loses more than a fair share
//! to others.

mod account;
mod ranking;

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::ops::{AddAssign, SubAssign};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::delivery::Ticket;
use crate::journal::{Record, Recorder, Stored};
use crate::message::{Event, MessageId, UserId};
use crate::metrics::Metrics;
use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering};

use super::Mailbox;
use account::{HELD_OVERHEAD_BYTES, Held};
use ranking::Ranking;

pub(super) use account::Account;

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

    /// Gives up the oldest of the user who keeps the most, if that is more than so many bytes. Returns whether it did.
    /// Called with no mailbox locked.
    pub(crate) fn give_up_largest(&self, bytes: usize) -> bool {
        if self.total.get().bytes <= bytes {
            return false;
        }
        let mut ranking = self.ranking.lock().unwrap_or_else(PoisonError::into_inner);
        ranking.refresh(|| self.accounts());
        while let Some(account) = ranking.highest() {
            if account.usage.get().bytes <= bytes {
                ranking.rank(&account);
                return false;
            }
            // One whose messages are all in its writers' hands is found again at the next look at all.
            let gave_up = account.fullest().is_some_and(|fullest| account.give_up(fullest));
            if gave_up {
                ranking.rank(&account);
                return true;
            }
        }
        false
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

//! The index of bindings: which receivers are bound to which of a user's events. It knows nothing of sockets.

mod bindings;
mod mailboxes;
mod making_room;
#[cfg(test)]
mod model;
mod receivers;
mod revoking;
mod shard;
mod user;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use tracing::warn;

use crate::config::{Config, UserConnectionsPolicy};
use crate::mailbox::Mailbox;
use crate::message::{Event, UserId};
use crate::seldom::Seldom;
use crate::sync::Mutex;

pub(crate) use bindings::{Bindings, Seat, Validity};
pub(crate) use receivers::Receivers;

use mailboxes::Mailboxes;
use shard::{Key, Shard};

/// Shards of a binder. Many more than cores, so that two pushes seldom want the same one; few enough for a broadcast to go
/// through all.
const SHARDS: usize = 64;

/// All bindings of this process. A user with all bindings is in one shard, so that only pushes to users of one shard can
/// wait for each other.
#[derive(Debug)]
pub(crate) struct Binder {
    shards: Box<[Shard]>,
    /// SipHash with random keys: clients may choose user ids and events, and must not choose those that collide.
    hasher: RandomState,
    making_room: Mutex<()>,
    /// Users who have as many connections as they may have.
    full: Seldom,
}

impl Default for Binder {
    fn default() -> Self {
        let hasher = RandomState::new();
        Self {
            shards: (0..SHARDS).map(|_| Shard::new(&hasher)).collect(),
            hasher,
            making_room: Mutex::new(()),
            full: Seldom::default(),
        }
    }
}

/// What a connection may bind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BindLimits {
    /// Connections of one user; 0 for no limit.
    pub(crate) connections_per_user_max: usize,
    pub(crate) connections_per_user_policy: UserConnectionsPolicy,
    /// Events of one connection.
    pub(crate) events_per_connection_max: usize,
}

impl BindLimits {
    pub(crate) fn of(config: &Config) -> Self {
        let Config { connections_per_user_max, connections_per_user_policy, events_per_connection_max, .. } = *config;
        Self { connections_per_user_max, connections_per_user_policy, events_per_connection_max }
    }
}

/// Why a binding was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BindError {
    #[error("too many connections for this user, the limit is {limit}")]
    TooManyConnections { limit: usize },
    #[error("too many events on this connection, the limit is {limit}")]
    TooManyEvents { limit: usize },
}

impl Binder {
    /// Takes a seat for one more connection of a user.
    ///
    /// # Errors
    /// Refuses a connection over the user's limit, unless the policy is to close the oldest instead.
    pub(crate) fn seat(self: &Arc<Self>, user_id: &UserId, limits: BindLimits) -> Result<Seat, BindError> {
        let limit = limits.connections_per_user_max;
        let (shard, key) = self.place(user_id);
        let mut index = shard.index();
        let user = index.user_or_new(key);
        let is_full = limit != 0 && user.seats >= limit;
        let policy = limits.connections_per_user_policy;
        if is_full && policy == UserConnectionsPolicy::RejectNew {
            drop(index);
            self.log_full(limit, "a further one was refused");
            return Err(BindError::TooManyConnections { limit });
        }
        user.seats += 1;
        let seat = Seat::new(self.clone(), user.id.clone());
        drop(index);
        if is_full {
            self.make_room(user_id, limit);
            self.log_full(limit, "the oldest was closed");
        }
        Ok(seat)
    }

    /// At most one line a second, so that a client cannot flood the log.
    fn log_full(&self, limit: usize, what: &'static str) {
        if let Some(left_out) = self.full.due(Instant::now()) {
            warn!(limit, left_out, "a user has as many connections as connections_per_user_max allows, {what}");
        }
    }

    /// Binds a receiver to a user's event. More may be added to what this returns; a receiver has only one of these.
    pub(crate) fn bind(self: &Arc<Self>, mailbox: &Arc<Mailbox>, user_id: &UserId, event: &Event) -> Bindings {
        let (shard, key) = self.place(user_id);
        let (user_id, event) = shard.index().bind(key, event, mailbox);
        Bindings::new(self.clone(), mailbox.clone(), user_id, event)
    }

    fn leave_seat(&self, user_id: &UserId) {
        let (shard, key) = self.place(user_id);
        shard.index().leave_seat(key);
    }

    /// The connections bound to a user's event.
    pub(crate) fn receivers(&self, user_id: &UserId, event: &Event) -> Receivers {
        let (shard, key) = self.place(user_id);
        let mut receivers = Receivers::none();
        if let Some(user) = shard.index().user(key) {
            user.add_receivers(event, &mut receivers);
        }
        receivers
    }

    /// All connections bound to an event, whoever's they are. The shards are looked at one after the other, so a binding
    /// that comes or goes meanwhile may be in or not.
    pub(crate) fn receivers_of_all(&self, event: &Event) -> Receivers {
        let mut receivers = Receivers::none();
        for shard in &self.shards {
            let index = shard.index();
            if let Some(mailboxes) = index.receivers_of_all(event) {
                receivers.reserve(mailboxes.len());
                receivers.extend(mailboxes.iter());
            }
        }
        receivers
    }

    /// Unbinds a user's connections that are bound to the event, or all of them, from everything, and returns each
    /// once. From here on no push matches them, though their tasks may still be writing what was accepted before.
    pub(crate) fn evict(&self, user_id: &UserId, event: Option<&Event>) -> Vec<Arc<Mailbox>> {
        let (shard, key) = self.place(user_id);
        shard.index().evict(key, |bound, _| event.is_none_or(|event| event == bound)).into_vec()
    }

    /// How many bindings there are.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.index().bindings()).sum()
    }

    /// How many users have a seat or a binding.
    pub(crate) fn users(&self) -> usize {
        self.shards.iter().map(|shard| shard.index().users()).sum()
    }

    /// Where a user's bindings are.
    fn place<'a>(&self, user_id: &'a UserId) -> (&Shard, Key<'a>) {
        let hash = self.hasher.hash_one(user_id);
        // Bits in the middle: the tables take theirs from both ends.
        let shard = (hash >> 40) as usize % SHARDS;
        (&self.shards[shard], Key { hash, user_id })
    }
}

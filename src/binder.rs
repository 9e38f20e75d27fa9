//! The index of bindings: which receivers are bound to which of a user's events. It knows nothing of sockets.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use slab::Slab;
use smallvec::SmallVec;

use crate::config::Config;
use crate::mailbox::Mailbox;
use crate::message::{ConnectionId, Event, UserId};
use crate::sync::{Mutex, MutexGuard};

/// The mailboxes that one push goes to. Inline for the usual handful, so that a push allocates nothing for them.
pub(crate) type Receivers = SmallVec<[Arc<Mailbox>; 8]>;

/// All bindings of this process.
#[derive(Debug, Default)]
pub(crate) struct Binder {
    /// One std mutex: every operation is a few map steps, and none is held over an await.
    index: Mutex<Index>,
}

#[derive(Debug, Default)]
struct Index {
    users: HashMap<UserId, User>,
    /// Every binding once more by its event, for broadcasts.
    events: HashMap<Event, HashMap<ConnectionId, Arc<Mailbox>>>,
    bindings: usize,
}

impl Index {
    fn insert(&mut self, user_id: &UserId, event: &Event, mailbox: &Arc<Mailbox>) -> usize {
        self.bindings += 1;
        self.events.entry(event.clone()).or_default().insert(mailbox.id(), mailbox.clone());
        let user = self.users.entry(user_id.clone()).or_default();
        user.events.entry(event.clone()).or_default().insert(mailbox.clone())
    }

    /// Takes one binding out, if it is still there: after an eviction its place is free, or another connection's.
    fn unbind(&mut self, user_id: &UserId, event: &Event, place: usize, connection_id: ConnectionId) {
        let Some(user) = self.users.get_mut(user_id) else { return };
        let Some(mailboxes) = user.events.get_mut(event) else { return };
        if mailboxes.get(place).is_some_and(|mailbox| mailbox.id() == connection_id) {
            mailboxes.remove(place);
            if mailboxes.is_empty() {
                user.events.remove(event);
            }
            self.remove(event, connection_id);
        }
    }

    fn forget_if_empty(&mut self, user_id: &UserId) {
        if self.users.get(user_id).is_some_and(|user| user.seats == 0 && user.events.is_empty()) {
            self.users.remove(user_id);
        }
    }

    fn remove(&mut self, event: &Event, connection_id: ConnectionId) {
        self.bindings -= 1;
        if let Some(mailboxes) = self.events.get_mut(event) {
            mailboxes.remove(&connection_id);
            if mailboxes.is_empty() {
                self.events.remove(event);
            }
        }
    }
}

#[derive(Debug, Default)]
struct User {
    /// Connections that are bound, whatever they are bound to.
    seats: usize,
    /// The slab gives each binding a place of its own, so that unbinding one of many does not search.
    events: HashMap<Event, Slab<Arc<Mailbox>>>,
}

/// What a connection may bind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BindLimits {
    /// Connections of one user; 0 for no limit.
    pub(crate) connections_per_user_max: usize,
    /// Events of one connection.
    pub(crate) events_per_connection_max: usize,
}

impl BindLimits {
    pub(crate) fn of(config: &Config) -> Self {
        let Config { connections_per_user_max, events_per_connection_max, .. } = *config;
        Self { connections_per_user_max, events_per_connection_max }
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
    /// Refuses a connection over the user's limit.
    pub(crate) fn seat(self: &Arc<Self>, user_id: &UserId, limits: BindLimits) -> Result<Seat, BindError> {
        let limit = limits.connections_per_user_max;
        let mut index = self.index();
        let user = index.users.entry(user_id.clone()).or_default();
        if limit != 0 && user.seats >= limit {
            return Err(BindError::TooManyConnections { limit });
        }
        user.seats += 1;
        Ok(Seat { binder: self.clone(), user_id: user_id.clone() })
    }

    /// Binds a receiver to a user's event. More may be added.
    pub(crate) fn bind(
        self: &Arc<Self>,
        mailbox: &Arc<Mailbox>,
        user_id: UserId,
        event: Event,
        limits: BindLimits,
    ) -> Bindings {
        let place = self.index().insert(&user_id, &event, mailbox);
        Bindings {
            binder: self.clone(),
            mailbox: mailbox.clone(),
            user_id,
            events: SmallVec::from_buf([Bound { event, place, expires_at: None }]),
            limits,
        }
    }

    /// The connections bound to a user's event.
    pub(crate) fn receivers(&self, user_id: &UserId, event: &Event) -> Receivers {
        let index = self.index();
        let bound = index.users.get(user_id).and_then(|user| user.events.get(event));
        bound.into_iter().flatten().map(|(_, mailbox)| mailbox.clone()).collect()
    }

    /// All connections bound to an event, whoever's they are.
    pub(crate) fn receivers_of_all(&self, event: &Event) -> Receivers {
        let index = self.index();
        index.events.get(event).into_iter().flat_map(HashMap::values).cloned().collect()
    }

    /// Unbinds a user's connections that are bound to the event, or all of them, from everything, and returns each
    /// once. From here on no push matches them, though their tasks may still be writing what was accepted before.
    pub(crate) fn evict(&self, user_id: &UserId, event: Option<&Event>) -> Vec<Arc<Mailbox>> {
        let mut index = self.index();
        let Some(user) = index.users.get_mut(user_id) else { return Vec::new() };
        let mut evicted: HashMap<ConnectionId, Arc<Mailbox>> = HashMap::new();
        for (bound_event, mailboxes) in &user.events {
            if event.is_none_or(|event| event == bound_event) {
                evicted.extend(mailboxes.iter().map(|(_, mailbox)| (mailbox.id(), mailbox.clone())));
            }
        }
        let mut unbound = Vec::new();
        user.events.retain(|event, mailboxes| {
            mailboxes.retain(|_, mailbox| {
                let stays = !evicted.contains_key(&mailbox.id());
                if !stays {
                    unbound.push((event.clone(), mailbox.id()));
                }
                stays
            });
            !mailboxes.is_empty()
        });
        for (event, connection_id) in unbound {
            index.remove(&event, connection_id);
        }
        index.forget_if_empty(user_id);
        evicted.into_values().collect()
    }

    /// How many bindings there are.
    pub(crate) fn len(&self) -> usize {
        self.index().bindings
    }

    /// How many users have at least one binding.
    pub(crate) fn users(&self) -> usize {
        self.index().users.len()
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // A panic in a few map steps can only be running out of memory; the other connections are still good.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One receiver's bindings, of a connection or a session. Dropping them unbinds all, on every path by which one can end.
#[derive(Debug)]
pub(crate) struct Bindings {
    binder: Arc<Binder>,
    mailbox: Arc<Mailbox>,
    user_id: UserId,
    events: SmallVec<[Bound; 1]>,
    limits: BindLimits,
}

/// One of a user's connections, as far as their number is limited. Dropping it frees the seat; a session that is away has
/// none.
#[derive(Debug)]
pub(crate) struct Seat {
    binder: Arc<Binder>,
    user_id: UserId,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut index = self.binder.index();
        if let Some(user) = index.users.get_mut(&self.user_id) {
            user.seats -= 1;
            index.forget_if_empty(&self.user_id);
        }
    }
}

/// One event that is bound.
#[derive(Debug)]
struct Bound {
    event: Event,
    /// Where in the event's slab.
    place: usize,
    /// When the token that was shown for it is over.
    expires_at: Option<SystemTime>,
}

impl Bindings {
    pub(crate) fn user_id(&self) -> &UserId {
        &self.user_id
    }

    /// Binds one more event, by a token that is over at this time. An event that is already bound stays bound, once, by
    /// the newer token.
    ///
    /// # Errors
    /// Refuses an event over the connection's limit.
    pub(crate) fn add(&mut self, event: Event, expires_at: Option<SystemTime>) -> Result<(), BindError> {
        let limit = self.limits.events_per_connection_max;
        if let Some(bound) = self.events.iter_mut().find(|bound| bound.event == event) {
            bound.expires_at = expires_at;
            return Ok(());
        }
        if self.events.len() >= limit {
            return Err(BindError::TooManyEvents { limit });
        }
        let mut index = self.binder.index();
        if !self.holds(&index) {
            // Evicted: the connection is on its way out, and must not come back into the index.
            return Ok(());
        }
        let place = index.insert(&self.user_id, &event, &self.mailbox);
        self.events.push(Bound { event, place, expires_at });
        Ok(())
    }

    /// A token that is over at this time is good for all events that are bound.
    pub(crate) fn renew(&mut self, expires_at: Option<SystemTime>) {
        self.events.iter_mut().for_each(|bound| bound.expires_at = expires_at);
    }

    /// When the first of the tokens is over.
    pub(crate) fn expires_at(&self) -> Option<SystemTime> {
        self.events.iter().filter_map(|bound| bound.expires_at).min()
    }

    /// The events that are bound.
    pub(crate) fn events(&self) -> impl Iterator<Item = &Event> {
        self.events.iter().map(|bound| &bound.event)
    }

    /// Unbinds an event, and says whether it is unbound now: the last one stays.
    pub(crate) fn remove(&mut self, event: &Event) -> bool {
        let Some(at) = self.events.iter().position(|bound| bound.event == *event) else { return true };
        if self.events.len() == 1 {
            return false;
        }
        let Bound { event, place, .. } = self.events.remove(at);
        self.binder.index().unbind(&self.user_id, &event, place, self.mailbox.id());
        true
    }

    /// Whether the first binding is still in the index. An eviction takes all at once.
    fn holds(&self, index: &Index) -> bool {
        let user = index.users.get(&self.user_id);
        self.events.first().is_some_and(|Bound { event, place, .. }| {
            let mailbox = user.and_then(|user| user.events.get(event)).and_then(|mailboxes| mailboxes.get(*place));
            mailbox.is_some_and(|mailbox| mailbox.id() == self.mailbox.id())
        })
    }
}

impl Drop for Bindings {
    fn drop(&mut self) {
        let mut index = self.binder.index();
        for Bound { event, place, .. } in &self.events {
            index.unbind(&self.user_id, event, *place, self.mailbox.id());
        }
        index.forget_if_empty(&self.user_id);
    }
}

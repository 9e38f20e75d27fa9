//! A share of the users with all of their bindings, under one lock.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, PoisonError};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::mailbox::Mailbox;
use crate::message::{Event, UserId};
use crate::sync::{Mutex, MutexGuard};

use super::mailboxes::Mailboxes;
use super::user::User;

/// A share of the users. Aligned so that no two locks are in one cache line, nor in the line that the processor fetches
/// beside it.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Shard {
    /// A std mutex: every operation is a few map steps, and none is held over an await.
    index: Mutex<Index>,
}

/// A user id with its hash, so that it is hashed once for the shard and the place in it.
#[derive(Clone, Copy)]
pub(super) struct Key<'a> {
    pub(super) hash: u64,
    pub(super) user_id: &'a UserId,
}

#[derive(Debug)]
pub(super) struct Index {
    /// In boxes, so that the free places of the table cost next to nothing.
    users: HashTable<Box<User>>,
    /// Every binding once more by its event, for broadcasts. Holds the one copy of the event's name. No set is empty.
    events: HashMap<Event, Mailboxes, RandomState>,
    bindings: usize,
    hasher: RandomState,
}

impl Shard {
    pub(super) fn new(hasher: &RandomState) -> Self {
        let index = Index {
            users: HashTable::new(),
            events: HashMap::with_hasher(hasher.clone()),
            bindings: 0,
            hasher: hasher.clone(),
        };
        Self { index: Mutex::new(index) }
    }

    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        // A panic in a few map steps can only be running out of memory; the other connections are still good.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    pub(super) fn bindings(&self) -> usize {
        self.bindings
    }

    /// How many distinct events are bound in this shard.
    #[cfg(test)]
    pub(super) fn events(&self) -> usize {
        self.events.len()
    }

    pub(super) fn users(&self) -> usize {
        self.users.len()
    }

    pub(super) fn user(&self, key: Key<'_>) -> Option<&User> {
        self.users.find(key.hash, |user| user.id == *key.user_id).map(|user| &**user)
    }

    /// The user, who is made known if need be.
    pub(super) fn user_or_new(&mut self, key: Key<'_>) -> &mut User {
        let Self { users, hasher, .. } = self;
        let entry = users.entry(key.hash, |user| user.id == *key.user_id, |user| hasher.hash_one(&user.id));
        match entry {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Box::new(User::new(key.user_id.clone()))).into_mut(),
        }
    }

    /// Binds a receiver to a user's event. Returns both names as they are kept here, so that others need no copies.
    pub(super) fn bind(&mut self, key: Key<'_>, event: &Event, mailbox: &Arc<Mailbox>) -> (UserId, Event) {
        let event = self.events.get_key_value(event).map_or(event, |(kept, _)| kept).clone();
        let user = self.user_or_new(key);
        let user_id = user.id.clone();
        if user.insert(event.clone(), mailbox.clone()) {
            self.bindings += 1;
            self.events.entry(event.clone()).or_default().insert(mailbox.clone());
        }
        (user_id, event)
    }

    /// Takes one binding out, if it is still there: after an eviction it is not.
    pub(super) fn unbind(&mut self, key: Key<'_>, event: &Event, mailbox: &Arc<Mailbox>) {
        let Some(user) = self.users.find_mut(key.hash, |user| user.id == *key.user_id) else { return };
        if user.remove(event, mailbox) {
            self.bindings -= 1;
            remove(&mut self.events, event, mailbox);
        }
    }

    /// Frees a seat.
    pub(super) fn leave_seat(&mut self, key: Key<'_>) {
        if let Some(user) = self.users.find_mut(key.hash, |user| user.id == *key.user_id) {
            user.seats -= 1;
            self.forget_if_gone(key);
        }
    }

    pub(super) fn forget_if_gone(&mut self, key: Key<'_>) {
        if let Ok(entry) = self.users.find_entry(key.hash, |user| user.id == *key.user_id)
            && entry.get().is_gone()
        {
            entry.remove();
        }
    }

    /// All receivers that are bound to an event, of whichever user.
    pub(super) fn receivers_of_all(&self, event: &Event) -> Option<&Mailboxes> {
        self.events.get(event)
    }

    /// Every user.
    pub(super) fn all_users(&self) -> impl Iterator<Item = &User> {
        self.users.iter().map(|user| &**user)
    }

    /// Unbinds a user's receivers of which `is_wanted` is true for one binding, from everything, and returns each once.
    pub(super) fn evict(&mut self, key: Key<'_>, is_wanted: impl Fn(&Event, &Arc<Mailbox>) -> bool) -> Mailboxes {
        let Self { users, events, bindings, .. } = self;
        let Some(user) = users.find_mut(key.hash, |user| user.id == *key.user_id) else { return Mailboxes::default() };
        let evicted = user.evict(is_wanted, |event, mailbox| {
            *bindings -= 1;
            remove(events, event, mailbox);
        });
        self.forget_if_gone(key);
        evicted
    }
}

fn remove(events: &mut HashMap<Event, Mailboxes, RandomState>, event: &Event, mailbox: &Arc<Mailbox>) {
    if let Some(mailboxes) = events.get_mut(event) {
        mailboxes.remove(mailbox);
        if mailboxes.is_empty() {
            events.remove(event);
        }
    }
}

//! The journal in this process's memory: bounded, and gone with the process.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::PoisonError;
use std::time::Instant;

use async_trait::async_trait;

use super::{Appended, Journal, JournalBounds, Kept, SessionKey, Usage};
use crate::message::{ConnectionId, Event, MessageId, UserId};
use crate::outcome::DropReason;
use crate::sync::{Mutex, MutexGuard};

/// Keeps messages until they are acknowledged, too old, or one too many.
#[derive(Debug)]
pub struct MemoryJournal {
    bounds: JournalBounds,
    /// A std mutex: held for a few map steps, never over an await.
    shelves: Mutex<Shelves>,
}

#[derive(Debug, Default)]
struct Shelves {
    users: HashMap<UserId, Shelf>,
    total: Usage,
}

/// What is kept for one user.
#[derive(Debug, Default)]
struct Shelf {
    sessions: HashMap<ConnectionId, VecDeque<Kept>>,
    held: VecDeque<Kept>,
    usage: Usage,
}

impl Usage {
    fn add(&mut self, message: &Kept) {
        self.messages += 1;
        self.bytes += message.bytes();
    }

    fn remove(&mut self, message: &Kept) {
        self.messages -= 1;
        self.bytes -= message.bytes();
    }
}

impl Shelf {
    fn is_empty(&self) -> bool {
        self.sessions.is_empty() && self.held.is_empty()
    }
}

impl MemoryJournal {
    /// An empty one.
    #[must_use]
    pub fn new(bounds: JournalBounds) -> Self {
        Self { bounds, shelves: Mutex::default() }
    }

    fn shelves(&self) -> MutexGuard<'_, Shelves> {
        // A panic in a few map steps can only be running out of memory; what is kept for others is still good.
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self, user: Usage, total: Usage, message: &Kept) -> bool {
        user.messages < self.bounds.messages_per_user_max
            && user.bytes + message.bytes() <= self.bounds.bytes_per_user_max
            && total.bytes + message.bytes() <= self.bounds.bytes_max
    }

    /// How many of a session's oldest messages must go for a newer one; `None` if it has no room without all of them
    /// either, and then none goes in vain.
    fn leaving_for(&self, newer: &Kept, log: &VecDeque<Kept>, mut user: Usage, mut total: Usage) -> Option<usize> {
        let mut oldest = log.iter().enumerate();
        loop {
            let next = oldest.next();
            if self.has_room(user, total, newer) {
                return Some(next.map_or(log.len(), |(place, _)| place));
            }
            let (_, message) = next?;
            user.remove(message);
            total.remove(message);
        }
    }

    fn is_over(&self, message: &Kept, now: Instant) -> bool {
        // What was sent is not sent again once it has expired, but its client may still acknowledge it.
        let is_expired = !message.is_sent() && message.expires_at().is_some_and(|expires_at| expires_at <= now);
        is_expired || now.saturating_duration_since(message.kept_at()) >= self.bounds.age
    }
}

/// Lets go of messages outside of the lock: each tells whoever waits for it. Says how many never reached a client.
fn give_up(gone: Vec<(Kept, DropReason)>) -> usize {
    let lost = gone.iter().filter(|(message, _)| !message.is_sent()).count();
    gone.into_iter().for_each(|(message, reason)| message.give_up(reason));
    lost
}

#[async_trait]
impl Journal for MemoryJournal {
    fn append(&self, session: &SessionKey, messages: &mut dyn Iterator<Item = Kept>) -> Appended {
        let (mut gone, mut refused) = (Vec::new(), Vec::new());
        let mut shelves = self.shelves();
        let Shelves { users, total } = &mut *shelves;
        let Shelf { sessions, usage, .. } = users.entry(session.user_id.clone()).or_default();
        let log = sessions.entry(session.epoch).or_default();
        for message in messages {
            let Some(count) = self.leaving_for(&message, log, *usage, *total) else {
                refused.push(message);
                continue;
            };
            for oldest in log.drain(..count) {
                usage.remove(&oldest);
                total.remove(&oldest);
                gone.push((oldest, DropReason::QueueFull));
            }
            usage.add(&message);
            total.add(&message);
            log.push_back(message);
        }
        if log.is_empty() {
            sessions.remove(&session.epoch);
            drop_if_empty(users, &session.user_id);
        }
        drop(shelves);
        Appended { refused, lost: give_up(gone) }
    }

    fn acknowledge(&self, session: &SessionKey, seq: u64) -> Vec<Kept> {
        let mut shelves = self.shelves();
        let Shelves { users, total } = &mut *shelves;
        let Some(Shelf { sessions, usage, .. }) = users.get_mut(&session.user_id) else { return Vec::new() };
        let Entry::Occupied(mut log) = sessions.entry(session.epoch) else { return Vec::new() };
        let count = log.get().partition_point(|message| message.seq() <= seq);
        let acknowledged: Vec<_> = log.get_mut().drain(..count).collect();
        for message in &acknowledged {
            usage.remove(message);
            total.remove(message);
        }
        if log.get().is_empty() {
            log.remove();
            drop_if_empty(users, &session.user_id);
        }
        acknowledged
    }

    async fn take(&self, session: &SessionKey) -> Vec<Kept> {
        self.acknowledge(session, u64::MAX)
    }

    fn hold(&self, user_id: &UserId, message: Kept) -> Result<(), Kept> {
        let mut shelves = self.shelves();
        let Shelves { users, total } = &mut *shelves;
        let usage = users.get(user_id).map(|shelf| shelf.usage).unwrap_or_default();
        if !self.has_room(usage, *total, &message) {
            return Err(message);
        }
        total.add(&message);
        let shelf = users.entry(user_id.clone()).or_default();
        shelf.usage.add(&message);
        shelf.held.push_back(message);
        Ok(())
    }

    fn withdraw(&self, user_id: &UserId, message_id: MessageId) -> Option<Kept> {
        let mut shelves = self.shelves();
        let Shelves { users, total } = &mut *shelves;
        let shelf = users.get_mut(user_id)?;
        // The latest is the likeliest.
        let place = shelf.held.iter().rposition(|message| message.message_id() == message_id)?;
        let message = shelf.held.remove(place)?;
        shelf.usage.remove(&message);
        total.remove(&message);
        drop_if_empty(users, user_id);
        Some(message)
    }

    fn holds(&self, user_id: &UserId) -> bool {
        self.shelves().users.get(user_id).is_some_and(|shelf| !shelf.held.is_empty())
    }

    async fn release(&self, user_id: &UserId, event: &Event) -> Vec<Kept> {
        let mut shelves = self.shelves();
        let Shelves { users, total } = &mut *shelves;
        let Some(shelf) = users.get_mut(user_id) else { return Vec::new() };
        let (released, rest) =
            std::mem::take(&mut shelf.held).into_iter().partition(|message| message.event() == event);
        shelf.held = rest;
        let released: VecDeque<Kept> = released;
        for message in &released {
            shelf.usage.remove(message);
            total.remove(message);
        }
        drop_if_empty(users, user_id);
        released.into()
    }

    fn sweep(&self, now: Instant) -> usize {
        let mut gone = Vec::new();
        let mut shelves = self.shelves();
        let Shelves { users, total } = &mut *shelves;
        users.retain(|_, shelf| {
            let Shelf { sessions, held, usage } = shelf;
            let mut let_go = |message: Kept| {
                usage.remove(&message);
                total.remove(&message);
                gone.push((message, DropReason::Expired));
            };
            sessions.retain(|_, log| {
                // The oldest are in front; one that is over before its turn is found out when it would be sent.
                while log.front().is_some_and(|message| self.is_over(message, now)) {
                    log.pop_front().into_iter().for_each(&mut let_go);
                }
                !log.is_empty()
            });
            let (over, rest) = std::mem::take(held).into_iter().partition(|message| self.is_over(message, now));
            *held = rest;
            let over: VecDeque<Kept> = over;
            over.into_iter().for_each(&mut let_go);
            !shelf.is_empty()
        });
        drop(shelves);
        give_up(gone)
    }

    fn usage(&self) -> Usage {
        self.shelves().total
    }
}

fn drop_if_empty(users: &mut HashMap<UserId, Shelf>, user_id: &UserId) {
    if users.get(user_id).is_some_and(Shelf::is_empty) {
        users.remove(user_id);
    }
}

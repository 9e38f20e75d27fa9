//! The bindings of one user: a short list for the usual few, an index once there are many.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::mailbox::Mailbox;
use crate::message::{Event, UserId};

use super::mailboxes::Mailboxes;
use super::receivers::Receivers;

/// A user with more bindings than this has an index of them. Up to here, a search takes about as long as a hash.
const FEW_MAX: usize = 16;

/// A list up to this long grows by one binding at a time: two or three events are usual, and most users never bind more.
const EXACT_MAX: usize = 4;

/// One user who has a seat or a binding.
#[derive(Debug)]
pub(super) struct User {
    pub(super) id: UserId,
    /// Connections that are bound, whatever they are bound to.
    pub(super) seats: usize,
    bound: Bound,
}

/// Which receivers are bound to which event.
#[derive(Debug)]
enum Bound {
    /// In the order in which they were bound, at most [`FEW_MAX`].
    Few(SmallVec<[Binding; 1]>),
    /// No set is empty. It stays an index until the user has no binding.
    #[expect(clippy::box_collection, reason = "a map in it would make every user's entry larger")]
    Many(Box<HashMap<Event, Mailboxes>>),
}

#[derive(Debug)]
struct Binding {
    event: Event,
    mailbox: Arc<Mailbox>,
}

impl Binding {
    fn is(&self, event: &Event, mailbox: &Arc<Mailbox>) -> bool {
        Arc::ptr_eq(&self.mailbox, mailbox) && self.event == *event
    }
}

impl User {
    pub(super) fn new(id: UserId) -> Self {
        Self { id, seats: 0, bound: Bound::Few(SmallVec::new()) }
    }

    /// Whether nothing is left to remember of the user.
    pub(super) fn is_gone(&self) -> bool {
        self.seats == 0
            && match &self.bound {
                Bound::Few(list) => list.is_empty(),
                Bound::Many(index) => index.is_empty(),
            }
    }

    pub(super) fn contains(&self, event: &Event, mailbox: &Arc<Mailbox>) -> bool {
        match &self.bound {
            Bound::Few(list) => list.iter().any(|binding| binding.is(event, mailbox)),
            Bound::Many(index) => index.get(event).is_some_and(|mailboxes| mailboxes.contains(mailbox)),
        }
    }

    /// Adds the receivers that are bound to an event.
    pub(super) fn add_receivers(&self, event: &Event, receivers: &mut Receivers) {
        match &self.bound {
            Bound::Few(list) => {
                let bound = list.iter().filter(|binding| binding.event == *event);
                receivers.extend(bound.map(|binding| &binding.mailbox));
            }
            Bound::Many(index) => {
                if let Some(mailboxes) = index.get(event) {
                    receivers.reserve(mailboxes.len());
                    receivers.extend(mailboxes.iter());
                }
            }
        }
    }

    /// Adds all of the user's receivers.
    pub(super) fn add_mailboxes(&self, mailboxes: &mut Mailboxes) {
        let mut add = |mailbox: &Arc<Mailbox>| {
            mailboxes.insert(mailbox.clone());
        };
        match &self.bound {
            Bound::Few(list) => list.iter().for_each(|binding| add(&binding.mailbox)),
            Bound::Many(index) => index.values().flat_map(Mailboxes::iter).for_each(add),
        }
    }

    /// Binds a receiver to an event, and says whether it was not bound to it before.
    pub(super) fn insert(&mut self, event: Event, mailbox: Arc<Mailbox>) -> bool {
        if self.contains(&event, &mailbox) {
            return false;
        }
        match &mut self.bound {
            Bound::Few(list) if list.len() < FEW_MAX => {
                if list.len() < EXACT_MAX {
                    list.reserve_exact(1);
                }
                list.push(Binding { event, mailbox });
            }
            Bound::Few(list) => {
                let mut index: HashMap<Event, Mailboxes> = HashMap::new();
                for Binding { event, mailbox } in list.drain(..).chain([Binding { event, mailbox }]) {
                    index.entry(event).or_default().insert(mailbox);
                }
                self.bound = Bound::Many(Box::new(index));
            }
            Bound::Many(index) => {
                index.entry(event).or_default().insert(mailbox);
            }
        }
        true
    }

    /// Unbinds a receiver from an event, and says whether it was bound to it.
    pub(super) fn remove(&mut self, event: &Event, mailbox: &Arc<Mailbox>) -> bool {
        match &mut self.bound {
            Bound::Few(list) => {
                let Some(at) = list.iter().position(|binding| binding.is(event, mailbox)) else { return false };
                list.remove(at);
            }
            Bound::Many(index) => {
                let Some(mailboxes) = index.get_mut(event) else { return false };
                if !mailboxes.remove(mailbox) {
                    return false;
                }
                if mailboxes.is_empty() {
                    index.remove(event);
                }
                if index.is_empty() {
                    self.bound = Bound::Few(SmallVec::new());
                }
            }
        }
        true
    }

    /// Unbinds all receivers of which `is_wanted` is true for one binding, from everything. Tells `unbound` each binding,
    /// and returns each receiver once.
    pub(super) fn evict(
        &mut self,
        is_wanted: impl Fn(&Event, &Arc<Mailbox>) -> bool,
        mut unbound: impl FnMut(&Event, &Arc<Mailbox>),
    ) -> Mailboxes {
        let mut evicted = Mailboxes::default();
        match &mut self.bound {
            Bound::Few(list) => {
                for binding in list.iter().filter(|binding| is_wanted(&binding.event, &binding.mailbox)) {
                    evicted.insert(binding.mailbox.clone());
                }
                list.retain(|Binding { event, mailbox }| {
                    let stays = !evicted.contains(mailbox);
                    if !stays {
                        unbound(event, mailbox);
                    }
                    stays
                });
            }
            Bound::Many(index) => {
                for (event, mailboxes) in index.iter() {
                    for mailbox in mailboxes.iter().filter(|mailbox| is_wanted(event, mailbox)) {
                        evicted.insert(mailbox.clone());
                    }
                }
                index.retain(|event, mailboxes| {
                    mailboxes.retain(|mailbox| {
                        let stays = !evicted.contains(mailbox);
                        if !stays {
                            unbound(event, mailbox);
                        }
                        stays
                    });
                    !mailboxes.is_empty()
                });
            }
        }
        evicted
    }
}

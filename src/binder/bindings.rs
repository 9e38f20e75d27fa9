//! What a receiver holds of the binder: its bindings and its seat, both given back on drop.

use std::sync::Arc;
use std::time::SystemTime;

use smallvec::SmallVec;

use crate::mailbox::Mailbox;
use crate::message::{Event, UserId};
use crate::revocations::{Stamp, Stamps};

use super::{BindError, BindLimits, Binder};

/// A list up to this long grows by one event at a time, since most receivers bind no more.
const EXACT_MAX: usize = 4;

/// One receiver's bindings, of a connection or a session. Dropping them unbinds all, on every path by which one can end.
#[derive(Debug)]
pub(crate) struct Bindings {
    binder: Arc<Binder>,
    mailbox: Arc<Mailbox>,
    user_id: UserId,
    events: SmallVec<[Bound; 1]>,
    /// Whether the receiver has a [`Seat`]. Noted only, because with the seat itself every connection would hold binder
    /// and user twice.
    is_seated: bool,
}

/// One of a user's connections, as far as their number is limited. Dropping it frees the seat; a session that is away has
/// none.
#[derive(Debug)]
pub(crate) struct Seat {
    binder: Arc<Binder>,
    user_id: UserId,
    is_taken: bool,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if !self.is_taken {
            self.binder.leave_seat(&self.user_id);
        }
    }
}

/// What is to be remembered of a token that was shown.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Validity {
    /// When it is over.
    pub(crate) expires_at: Option<SystemTime>,
    pub(crate) stamp: Stamp,
}

/// One event that is bound.
#[derive(Debug)]
struct Bound {
    event: Event,
    /// What is remembered of the token that was shown for it. In a box, because of many tokens there is nothing.
    validity: Option<Box<Validity>>,
}

impl Bound {
    fn new(event: Event, validity: Validity) -> Self {
        let mut bound = Self { event, validity: None };
        bound.renew(validity);
        bound
    }

    fn renew(&mut self, validity: Validity) {
        let is_blank = validity.expires_at.is_none() && validity.stamp.is_blank();
        self.validity = (!is_blank).then(|| Box::new(validity));
    }

    fn validity(&self) -> Validity {
        self.validity.as_deref().copied().unwrap_or_default()
    }
}

impl Seat {
    /// For a seat that was taken already.
    pub(super) fn new(binder: Arc<Binder>, user_id: UserId) -> Self {
        Self { binder, user_id, is_taken: false }
    }
}

impl Bindings {
    /// For a receiver that was bound already.
    pub(super) fn new(binder: Arc<Binder>, mailbox: Arc<Mailbox>, user_id: UserId, event: Event) -> Self {
        let events = SmallVec::from_buf([Bound::new(event, Validity::default())]);
        Self { binder, mailbox, user_id, events, is_seated: false }
    }

    pub(crate) fn user_id(&self) -> &UserId {
        &self.user_id
    }

    /// Takes the receiver's seat, to be freed with the bindings at the latest.
    pub(crate) fn take_seat(&mut self, mut seat: Seat) {
        debug_assert!(!self.is_seated && seat.user_id == self.user_id, "a receiver has one seat, its user's");
        seat.is_taken = true;
        self.is_seated = true;
    }

    /// Frees the seat: the receiver is a session that goes away.
    pub(crate) fn leave_seat(&mut self) {
        if std::mem::take(&mut self.is_seated) {
            self.binder.leave_seat(&self.user_id);
        }
    }

    /// Binds one more event, by this token. An event that is already bound stays bound, once, by
    /// the newer token.
    ///
    /// # Errors
    /// Refuses an event over the connection's limit.
    pub(crate) fn add(&mut self, event: &Event, validity: Validity, limits: BindLimits) -> Result<(), BindError> {
        let limit = limits.events_per_connection_max;
        if let Some(bound) = self.events.iter_mut().find(|bound| bound.event == *event) {
            bound.renew(validity);
            self.show();
            return Ok(());
        }
        if self.events.len() >= limit {
            return Err(BindError::TooManyEvents { limit });
        }
        let (shard, key) = self.binder.place(&self.user_id);
        let mut index = shard.index();
        // An eviction takes all bindings at once, so the first stands for all.
        let (user, first) = (index.user(key), self.events.first());
        if !user.zip(first).is_some_and(|(user, first)| user.contains(&first.event, &self.mailbox)) {
            // Evicted: the connection is on its way out, and must not come back into the index.
            return Ok(());
        }
        let (_, event) = index.bind(key, event, &self.mailbox);
        drop(index);
        if self.events.len() < EXACT_MAX {
            self.events.reserve_exact(1);
        }
        self.events.push(Bound::new(event, validity));
        self.show();
        Ok(())
    }

    /// This token is good for all events that are bound.
    pub(crate) fn renew(&mut self, validity: Validity) {
        self.events.iter_mut().for_each(|bound| bound.renew(validity));
        self.show();
    }

    /// Tells the mailbox by which tokens it is bound.
    fn show(&self) {
        self.mailbox.show(Stamps::of(self.events.iter().map(|bound| bound.validity().stamp)));
    }

    /// When the first of the tokens is over.
    pub(crate) fn expires_at(&self) -> Option<SystemTime> {
        self.events.iter().filter_map(|bound| bound.validity().expires_at).min()
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
        let Bound { event, .. } = self.events.remove(at);
        let (shard, key) = self.binder.place(&self.user_id);
        shard.index().unbind(key, &event, &self.mailbox);
        self.show();
        true
    }
}

impl Drop for Bindings {
    fn drop(&mut self) {
        self.leave_seat();
        let (shard, key) = self.binder.place(&self.user_id);
        let mut index = shard.index();
        for Bound { event, .. } in &self.events {
            index.unbind(key, event, &self.mailbox);
        }
        index.forget_if_gone(key);
    }
}

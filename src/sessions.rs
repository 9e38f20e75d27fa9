//! Every session by its resume token: begin, leave, claim, go on, end; and what is held for a user without one.

mod in_hand;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use tracing::warn;

use crate::binder::{BindLimits, Binder, Bindings, Validity};
use crate::delivery::Ticket;
use crate::journal::{Recovered, StoredSession};
use crate::mailbox::{Claim, Flush, Keep, Mailbox, Offered, Outboxes, Restored, Taken};
use crate::message::{ResumeToken, UserId};
use crate::metrics::Metrics;
use crate::sync::{Mutex, MutexGuard};

pub(crate) use in_hand::{Attached, Claimed, Returned};

/// All sessions of this process.
#[derive(Debug)]
pub(crate) struct Sessions {
    limits: Limits,
    keep: Arc<Keep>,
    binder: Arc<Binder>,
    metrics: Arc<Metrics>,
    /// A std mutex: every operation is a few map steps, and none is held over an await. No push, delivery or
    /// acknowledgement takes it. Lock order: this one before a mailbox's.
    known: Mutex<Known>,
    /// Told whenever a session has left a connection or is over.
    changed: Notify,
}

/// How many sessions are kept without a connection, for how long, and what they may bind.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) away_max: usize,
    pub(crate) away_per_user_max: usize,
    pub(crate) age: Duration,
    pub(crate) binds: BindLimits,
    pub(crate) outboxes: Arc<Outboxes>,
}

#[derive(Debug, Default)]
struct Known {
    by_token: HashMap<ResumeToken, Arc<Session>>,
    /// Those that are away, longest first. One that came back leaves its entry behind until its time, or until there are
    /// too many such.
    departures: VecDeque<(Instant, ResumeToken)>,
    away: usize,
    /// The same by user, longest first.
    away_of_user: HashMap<UserId, VecDeque<ResumeToken>>,
}

/// One session, with a connection or without. Where it is, its mailbox knows.
#[derive(Debug)]
struct Session {
    token: ResumeToken,
    user_id: UserId,
    mailbox: Arc<Mailbox>,
    /// Here while the session has no connection.
    bindings: Mutex<Option<Box<Bindings>>>,
}

impl Session {
    fn bindings(&self) -> MutexGuard<'_, Option<Box<Bindings>>> {
        self.bindings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sessions {
    pub(crate) fn new(limits: Limits, keep: Arc<Keep>, binder: Arc<Binder>, metrics: Arc<Metrics>) -> Self {
        Self { limits, keep, binder, metrics, known: Mutex::default(), changed: Notify::new() }
    }

    pub(crate) fn keep(&self) -> &Arc<Keep> {
        &self.keep
    }

    pub(crate) fn binder(&self) -> &Arc<Binder> {
        &self.binder
    }

    /// Takes over what outlived the process.
    pub(crate) fn restore(self: &Arc<Self>, recovered: Recovered) {
        for (user_id, stored) in recovered.held {
            let held = stored.restored().map_err(|error| warn!(%error, "a message of the journal is not valid"));
            let kept = held.is_ok_and(|ticket| self.keep.hold(&user_id, ticket).is_ok());
            self.metrics.forgotten.inc_by(u64::from(!kept));
        }
        for session in recovered.sessions {
            self.restore_session(session);
        }
    }

    fn restore_session(&self, stored: StoredSession) {
        let StoredSession { user_id, epoch, resume, events, last, written, skipped, messages } = stored;
        let Some(token) = ResumeToken::read(&resume) else {
            return warn!("a resume token of the journal is not valid");
        };
        let messages = messages.into_iter().filter_map(|stored| Some((stored.seq, stored.restored().ok()?))).collect();
        let restored = Restored { last, written, skipped, messages };
        let mailbox = Mailbox::restored(&self.keep, &user_id, epoch, self.limits.outboxes.clone(), restored);
        let mut events = events.into_iter();
        let Some(first) = events.next() else { return };
        let mut bindings = self.binder.bind(&mailbox, &user_id, &first);
        for event in events {
            // One over a limit that is lower now is bound no more, and its client is told when it comes back.
            let _over_the_limit = bindings.add(&event, Validity::default(), self.limits.binds);
        }
        let session = Arc::new(Session { token, user_id, mailbox, bindings: Mutex::new(Some(Box::new(bindings))) });
        self.known().by_token.insert(token, session.clone());
        self.put_away(&session);
    }

    /// Begins a session on a connection's mailbox, before the mailbox is bound. `None` when the system has no random
    /// numbers to make its token from.
    pub(crate) fn begin(self: &Arc<Self>, mailbox: &Arc<Mailbox>, user_id: &UserId) -> Option<Attached> {
        let token = ResumeToken::draw().ok()?;
        mailbox.begin_session(&self.keep, user_id);
        let (user_id, mailbox) = (user_id.clone(), mailbox.clone());
        let session = Arc::new(Session { token, user_id, mailbox, bindings: Mutex::new(None) });
        self.known().by_token.insert(token, session.clone());
        Some(Attached { sessions: self.clone(), session, has_left: false })
    }

    /// Takes a session of this user, to go on with it over another connection. One that has a connection still is made to
    /// leave it first. `None` if it is not known any more.
    pub(crate) async fn claim(self: &Arc<Self>, token: ResumeToken, user_id: &UserId) -> Option<Claimed> {
        loop {
            let changed = self.changed.notified();
            if let Some(claimed) = self.try_claim(token, user_id)? {
                return Some(claimed);
            }
            changed.await;
        }
    }

    /// The session, if it is away; `None` inside if it must be waited for.
    fn try_claim(self: &Arc<Self>, token: ResumeToken, user_id: &UserId) -> Option<Option<Claimed>> {
        let mut known = self.known();
        let session = known.by_token.get(&token).filter(|session| session.user_id == *user_id)?.clone();
        match session.mailbox.claim() {
            Claim::Over => None,
            Claim::Wait => Some(None),
            Claim::Granted => {
                known.one_less_away(user_id, token);
                let bindings = session.bindings().take().map(|bindings| *bindings);
                Some(Some(Claimed { sessions: self.clone(), session, bindings }))
            }
        }
    }

    /// Lists a session as away, and gives up one that is too many.
    fn put_away(&self, session: &Arc<Session>) {
        let (token, since) = (session.token, Instant::now());
        let mut over = Vec::new();
        let mut known = self.known();
        // Under the lock that `end_dropped` takes after the drop, so that one of the two sees it.
        if session.mailbox.put_away(since) {
            known.departures.push_back((since, token));
            known.away += 1;
            let of_user = known.away_of_user.entry(session.user_id.clone()).or_default();
            of_user.push_back(token);
            let longest_of_user = of_user.front().copied().filter(|_| of_user.len() > self.limits.away_per_user_max);
            if let Some(longest) = longest_of_user {
                over.extend(known.remove_away(longest));
            } else if known.away > self.limits.away_max {
                over.extend(known.remove_longest_away());
            }
            if known.departures.len() > 2 * known.away + 64 {
                known.forget_old_departures();
            }
        } else {
            over.extend(known.by_token.remove(&token));
        }
        drop(known);
        self.changed.notify_waiters();
        over.iter().for_each(|session| self.end(session));
    }

    /// Ends those of a user's sessions that are away and were dropped, so that they take no room from the others.
    pub(crate) fn end_dropped(&self, user_id: &UserId) {
        let mut known = self.known();
        let away: Vec<_> = known.away_of_user.get(user_id).into_iter().flatten().copied().collect();
        let dropped = away.into_iter().filter_map(|token| {
            let is_over = known.by_token.get(&token).is_some_and(|session| session.mailbox.is_over());
            if is_over { known.remove_away(token) } else { None }
        });
        let over: Vec<_> = dropped.collect();
        drop(known);
        over.iter().for_each(|session| self.end(session));
    }

    /// Ends what is kept for too long, for ever.
    pub(crate) async fn keep_time(&self) {
        // Late by no more than a tenth, and seldom enough to go through all that is kept.
        let tick = (self.limits.age / 10).clamp(Duration::from_millis(10), Duration::from_secs(10));
        let mut interval = tokio::time::interval_at(tokio::time::Instant::now() + tick, tick);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = interval.tick().await.into_std();
            while let Some(session) = self.remove_old(now) {
                self.end(&session);
            }
            // Behind the sessions, which pass on what only they have.
            self.keep.sweep(now);
        }
    }

    /// The session that is away for longest, if it is for too long.
    fn remove_old(&self, now: Instant) -> Option<Arc<Session>> {
        let mut known = self.known();
        while let Some((since, token)) = known.departures.front().copied()
            && now.saturating_duration_since(since) >= self.limits.age
        {
            known.departures.pop_front();
            if known.is_away_since(token, since) {
                return known.remove_away(token);
            }
        }
        None
    }

    /// How many sessions are away.
    pub(crate) fn away(&self) -> usize {
        self.known().away
    }

    /// Ends a session that has no connection and is not known any more.
    fn end(&self, session: &Session) {
        // Unbound first: whoever pushes now is told the truth.
        drop(session.bindings().take());
        let (left_behind, lost) = session.mailbox.end_away();
        self.metrics.forgotten.inc_by(lost as u64);
        for ticket in left_behind {
            self.pass_on(&session.user_id, ticket);
        }
    }

    /// Gives a message that had a receiver which is none any more to the user's next connection, or to one there is.
    pub(crate) fn pass_on(&self, user_id: &UserId, ticket: Ticket) {
        let (event, message_id) = (ticket.event().clone(), ticket.message_id());
        let find = || self.binder.receivers(user_id, &event).iter().find(|mailbox| !mailbox.is_away()).cloned();
        let (receiver, ticket) = match find() {
            Some(receiver) => (receiver, ticket),
            None => {
                if self.keep.hold(user_id, ticket).is_err() {
                    self.metrics.forgotten.inc();
                    return;
                }
                // A connection that was bound since has looked for what is held before this was.
                let withdrawn = find().and_then(|receiver| Some((receiver, self.keep.withdraw(user_id, message_id)?)));
                let Some(withdrawn) = withdrawn else { return };
                withdrawn
            }
        };
        self.offer_late(&receiver, ticket);
    }

    /// Gives a receiver that has just been bound what is held for its events.
    pub(crate) fn release(&self, bindings: &Bindings, mailbox: &Mailbox) {
        if self.keep.holds(bindings.user_id()) {
            for event in bindings.events() {
                for ticket in self.keep.release(bindings.user_id(), event) {
                    self.offer_late(mailbox, ticket);
                }
            }
        }
    }

    fn offer_late(&self, mailbox: &Mailbox, ticket: Ticket) {
        let Offered { taken, displaced, flush } = mailbox.offer(ticket.late());
        if flush != Flush::None {
            mailbox.flush(|after| self.metrics.delivered(after));
        }
        self.metrics.displaced.inc_by(displaced as u64);
        self.metrics.forgotten.inc_by(u64::from(matches!(taken, Taken::Refused(_))));
    }

    fn remove(&self, token: ResumeToken) {
        self.known().by_token.remove(&token);
        self.changed.notify_waiters();
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // A panic in a few map steps can only be running out of memory; the other sessions are still good.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn one_less_away(&mut self, user_id: &UserId, token: ResumeToken) {
        self.away -= 1;
        if let Some(of_user) = self.away_of_user.get_mut(user_id) {
            of_user.retain(|away| *away != token);
            if of_user.is_empty() {
                self.away_of_user.remove(user_id);
            }
        }
    }

    fn is_away_since(&self, token: ResumeToken, since: Instant) -> bool {
        let session = self.by_token.get(&token);
        session.is_some_and(|session| {
            // One that was dropped meanwhile is ended by whoever did it.
            session.mailbox.away_since() == Some(since)
        })
    }

    /// Takes out a session that is listed as away.
    fn remove_away(&mut self, token: ResumeToken) -> Option<Arc<Session>> {
        let session = self.by_token.remove(&token)?;
        self.one_less_away(&session.user_id, token);
        Some(session)
    }

    fn remove_longest_away(&mut self) -> Option<Arc<Session>> {
        loop {
            let (since, token) = self.departures.pop_front()?;
            if self.is_away_since(token, since) {
                return self.remove_away(token);
            }
        }
    }

    fn forget_old_departures(&mut self) {
        let departures = std::mem::take(&mut self.departures);
        self.departures = departures.into_iter().filter(|(since, token)| self.is_away_since(*token, *since)).collect();
    }
}

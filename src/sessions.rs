//! Every session by its resume token: those that have a connection, and those that are away and may come back.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use tracing::error;

use crate::binder::{BindError, Binder, Bindings};
use crate::journal::{Journal, Kept, SessionKey, Usage};
use crate::message::{ConnectionId, Event, UserId};
use crate::metrics::{Metrics, Task};
use crate::outbox::{Depth, Offered, Outbox, Resumed, Stop, Taken};
use crate::sync::{Mutex, MutexGuard};

/// All sessions of this process.
#[derive(Debug)]
pub(crate) struct Sessions {
    limits: Limits,
    journal: Arc<dyn Journal>,
    metrics: Arc<Metrics>,
    /// A std mutex: every operation is a few map steps, and none is held over an await.
    known: Mutex<Known>,
    /// Held by a session that is over while it lets go of its messages: of two that have one and end at the same time, the
    /// second sees that it is the last.
    letting_go: Mutex<()>,
    /// Told whenever a session has left a connection.
    changed: Notify,
}

/// How many sessions are kept without a connection, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) away_max: usize,
    pub(crate) away_per_user_max: usize,
    pub(crate) age: Duration,
}

#[derive(Debug, Default)]
struct Known {
    places: HashMap<ResumeToken, Place>,
    /// Those that are away, longest first. One that came back leaves its entry behind until its time, or until there are
    /// too many such.
    departures: VecDeque<(Instant, ResumeToken)>,
    away: usize,
    /// The same by user, longest first.
    away_of_user: HashMap<UserId, VecDeque<ResumeToken>>,
}

/// Where a session is.
#[derive(Debug)]
enum Place {
    Here {
        outbox: Arc<Outbox>,
        user_id: UserId,
    },
    Away(Away),
    /// Between two connections.
    Moving {
        user_id: UserId,
    },
}

/// A session without a connection.
#[derive(Debug)]
struct Away {
    since: Instant,
    key: SessionKey,
    outbox: Arc<Outbox>,
    bindings: Bindings,
}

/// The secret by which a client goes on with its session.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ResumeToken(u128);

impl ResumeToken {
    fn draw() -> Result<Self, getrandom::Error> {
        let mut random = [0; 16];
        getrandom::fill(&mut random)?;
        Ok(Self(u128::from_be_bytes(random)))
    }

    /// Reads what `Display` wrote; `None` for anything else.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let is_written_so = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        is_written_so.then(|| u128::from_str_radix(text, 16).ok().map(Self)).flatten()
    }
}

impl fmt::Display for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Prints nothing of it: it is a secret.
impl fmt::Debug for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResumeToken(..)")
    }
}

fn would_be_lost(message: &Kept) -> bool {
    !message.is_sent() && message.ticket().would_be_lost()
}

/// A session that has a connection. Dropped without [`Session::leave`], it is over.
#[derive(Debug)]
pub(crate) struct Session {
    sessions: Arc<Sessions>,
    token: ResumeToken,
    key: SessionKey,
    outbox: Arc<Outbox>,
    has_left: bool,
}

impl Sessions {
    pub(crate) fn new(limits: Limits, journal: Arc<dyn Journal>, metrics: Arc<Metrics>) -> Self {
        Self { limits, journal, metrics, known: Mutex::default(), letting_go: Mutex::default(), changed: Notify::new() }
    }

    pub(crate) fn journal(&self) -> &Arc<dyn Journal> {
        &self.journal
    }

    /// Begins a session on a connection's outbox, before the outbox is bound. `None` when the system has no random numbers
    /// to make its token from.
    pub(crate) fn begin(self: &Arc<Self>, outbox: &Arc<Outbox>, user_id: &UserId) -> Option<Session> {
        let token = ResumeToken::draw().ok()?;
        let key = SessionKey { user_id: user_id.clone(), epoch: outbox.id() };
        outbox.begin_session(key.clone(), self.journal.clone());
        let place = Place::Here { outbox: outbox.clone(), user_id: user_id.clone() };
        self.known().places.insert(token, place);
        Some(Session { sessions: self.clone(), token, key, outbox: outbox.clone(), has_left: false })
    }

    /// Takes a session of this user, to go on with it over another connection. One that has a connection still is made to
    /// leave it first. `None` if it is not known any more.
    pub(crate) async fn claim(self: &Arc<Self>, token: ResumeToken, user_id: &UserId) -> Option<Claimed> {
        loop {
            let changed = self.changed.notified();
            if let Some(away) = self.take(token, user_id)? {
                let key = away.key.clone();
                let mut claimed = Claimed { sessions: self.clone(), token, away: Some(away), kept: Vec::new() };
                if !claimed.come_back() {
                    claimed.end();
                    return None;
                }
                claimed.kept = self.journal.take(&key).await;
                return Some(claimed);
            }
            changed.await;
        }
    }

    /// The session, if it is away; `None` inside if it must be waited for.
    fn take(&self, token: ResumeToken, claimant: &UserId) -> Option<Option<Away>> {
        let mut known = self.known();
        let place = known.places.get_mut(&token)?;
        match place {
            Place::Here { user_id, .. } | Place::Moving { user_id } if user_id != claimant => None,
            Place::Away(away) if away.key.user_id != *claimant => None,
            Place::Here { outbox, .. } => {
                let outbox = outbox.clone();
                drop(known);
                outbox.stop(Stop::Replaced);
                Some(None)
            }
            Place::Moving { .. } => Some(None),
            Place::Away(_) => {
                let moving = Place::Moving { user_id: claimant.clone() };
                let Place::Away(away) = std::mem::replace(place, moving) else { unreachable!("looked at just now") };
                known.one_less_away(claimant, token);
                Some(Some(away))
            }
        }
    }

    fn put_away(&self, token: ResumeToken, away: Away) {
        let user_id = away.key.user_id.clone();
        let mut over = Vec::new();
        let mut known = self.known();
        // Looked at under the lock that `end_dropped` takes after the drop, so that one of the two sees it.
        let is_dropped = away.outbox.told_to_stop().is_some();
        known.departures.push_back((away.since, token));
        known.places.insert(token, Place::Away(away));
        known.away += 1;
        let of_user = known.away_of_user.entry(user_id).or_default();
        of_user.push_back(token);
        let longest_of_user = of_user.front().copied().filter(|_| of_user.len() > self.limits.away_per_user_max);
        if is_dropped {
            over.extend(known.remove_away(token));
        } else if let Some(longest) = longest_of_user {
            over.extend(known.remove_away(longest));
        } else if known.away > self.limits.away_max {
            over.extend(known.remove_longest_away());
        }
        if known.departures.len() > 2 * known.away + 64 {
            known.forget_old_departures();
        }
        drop(known);
        self.changed.notify_waiters();
        over.into_iter().for_each(|away| self.end(away, Vec::new()));
    }

    /// Ends those of a user's sessions that are away and were dropped, so that they take no room from the others.
    pub(crate) fn end_dropped(&self, user_id: &UserId) {
        let mut known = self.known();
        let away: Vec<_> = known.away_of_user.get(user_id).into_iter().flatten().copied().collect();
        let dropped = away.into_iter().filter_map(|token| known.remove_dropped(token));
        let over: Vec<_> = dropped.collect();
        drop(known);
        over.into_iter().for_each(|away| self.end(away, Vec::new()));
    }

    /// Ends what is kept for too long, for ever.
    pub(crate) async fn keep_time(&self) {
        // Late by no more than a tenth, and seldom enough to go through all that is kept.
        let tick = (self.limits.age / 10).clamp(Duration::from_millis(10), Duration::from_secs(10));
        let mut interval = tokio::time::interval_at(tokio::time::Instant::now() + tick, tick);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = interval.tick().await.into_std();
            // Each by itself: a journal that panics over one must not keep the others.
            while let Some(away) = self.remove_over(now) {
                self.end(away, Vec::new());
            }
            // Behind the sessions, which pass on what only they have.
            self.sweep_journal(now);
        }
    }

    /// Has the journal let go of what it has kept for too long. It may be an embedder's: a panic in it is its own.
    fn sweep_journal(&self, now: Instant) {
        let forgotten = self.in_journal(|| self.journal.sweep(now)).unwrap_or_default();
        self.metrics.forgotten.inc_by(forgotten as u64);
    }

    /// How much the journal keeps, if it says so.
    pub(crate) fn kept(&self) -> Option<Usage> {
        self.in_journal(|| self.journal.usage())
    }

    /// Does what calls the journal. It may be an embedder's, and a panic in it goes no further: where a panic of it is what
    /// led here, a second one would end the process.
    pub(crate) fn in_journal<T>(&self, call: impl FnOnce() -> T) -> Option<T> {
        let result = panic::catch_unwind(AssertUnwindSafe(call)).ok();
        if result.is_none() {
            self.metrics.task_panicked(Task::Journal);
            error!("the journal panicked");
        }
        result
    }

    /// The session that is away for longest, if it is for too long.
    fn remove_over(&self, now: Instant) -> Option<Away> {
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

    /// Ends a session that is away. `kept` is what the journal has handed over of it already.
    fn end(&self, away: Away, kept: Vec<Kept>) {
        // Unbound first: whoever pushes now is told the truth.
        let binder = away.bindings.binder().clone();
        drop(away.bindings);
        let queued = away.outbox.close(Depth::default());
        self.metrics.forgotten.inc_by(queued as u64);
        let kept = kept.into_iter().chain(self.journal.acknowledge(&away.key, u64::MAX));
        let letting_go = self.letting_go.lock().unwrap_or_else(PoisonError::into_inner);
        let (left_behind, rest): (Vec<_>, Vec<_>) = kept.partition(would_be_lost);
        self.count_forgotten(&rest);
        drop(rest);
        drop(letting_go);
        for message in left_behind {
            self.pass_on(&binder, &away.key.user_id, message.for_anyone());
        }
    }

    /// Gives a message that had a receiver which is none any more, a session that is over or a bind that was refused, to the
    /// user's next connection, or to one there is.
    pub(crate) fn pass_on(&self, binder: &Binder, user_id: &UserId, message: Kept) {
        let (event, message_id) = (message.event().clone(), message.message_id());
        let find = || binder.receivers(user_id, &event).into_iter().find(|outbox| !outbox.is_away());
        let (receiver, message) = match find() {
            Some(receiver) => (receiver, message),
            None => {
                if self.journal.hold(user_id, message).is_err() {
                    self.metrics.forgotten.inc();
                    return;
                }
                // A connection that was bound since has looked for what is held before this was.
                let withdrawn =
                    find().and_then(|receiver| Some((receiver, self.journal.withdraw(user_id, message_id)?)));
                let Some(withdrawn) = withdrawn else { return };
                withdrawn
            }
        };
        let Offered { taken, displaced, forgotten } = receiver.offer(message.into_ticket().late());
        self.metrics.displaced.inc_by(displaced as u64);
        self.metrics.forgotten.inc_by(forgotten as u64 + u64::from(matches!(taken, Taken::Refused(_))));
    }

    fn count_forgotten(&self, kept: &[Kept]) {
        let never_sent = kept.iter().filter(|message| !message.is_sent()).count();
        self.metrics.forgotten.inc_by(never_sent as u64);
    }

    fn remove(&self, token: ResumeToken) {
        self.known().places.remove(&token);
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
        matches!(self.places.get(&token), Some(Place::Away(away)) if away.since == since)
    }

    fn remove_away(&mut self, token: ResumeToken) -> Option<Away> {
        match self.places.remove(&token)? {
            Place::Away(away) => {
                self.one_less_away(&away.key.user_id, token);
                Some(away)
            }
            place => {
                self.places.insert(token, place);
                None
            }
        }
    }

    fn remove_dropped(&mut self, token: ResumeToken) -> Option<Away> {
        match self.places.get(&token)? {
            Place::Away(away) if away.outbox.told_to_stop().is_some() => self.remove_away(token),
            _ => None,
        }
    }

    fn remove_longest_away(&mut self) -> Option<Away> {
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

impl Session {
    pub(crate) fn token(&self) -> ResumeToken {
        self.token
    }

    pub(crate) fn key(&self) -> &SessionKey {
        &self.key
    }

    pub(crate) fn epoch(&self) -> ConnectionId {
        self.key.epoch
    }

    /// The session is over, and nobody can go on with it. Until it is dropped, its client may acknowledge what it got.
    pub(crate) fn end(&self) {
        self.sessions.remove(self.token);
    }

    /// The connection is gone, and the session may come back. `in_hand` is what was on its way to the client, `written`
    /// the last number that the client can have. Says whether the outbox is the session's now; else the session is over,
    /// and the outbox is still the connection's.
    pub(crate) fn leave(mut self, mut bindings: Bindings, in_hand: Vec<Kept>, written: u64) -> bool {
        let Ok(lost) = self.outbox.leave(in_hand, written) else { return false };
        self.has_left = true;
        self.sessions.metrics.forgotten.inc_by(lost as u64);
        bindings.leave();
        let away = Away { since: Instant::now(), key: self.key.clone(), outbox: self.outbox.clone(), bindings };
        self.sessions.put_away(self.token, away);
        true
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.has_left {
            self.end();
            let journal = &self.sessions.journal;
            let kept = self.sessions.in_journal(|| journal.acknowledge(&self.key, u64::MAX));
            self.sessions.count_forgotten(&kept.unwrap_or_default());
        }
    }
}

/// A session between two connections. Dropped before [`Claimed::go_on`], it is away again.
#[derive(Debug)]
pub(crate) struct Claimed {
    sessions: Arc<Sessions>,
    token: ResumeToken,
    away: Option<Away>,
    kept: Vec<Kept>,
}

/// A session with its new connection.
pub(crate) struct GoesOn {
    pub(crate) session: Session,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) bindings: Bindings,
    pub(crate) is_recovered: bool,
    pub(crate) acknowledged: Vec<Kept>,
}

impl Claimed {
    fn come_back(&self) -> bool {
        self.away.as_ref().is_some_and(|away| away.outbox.come_back())
    }

    /// The events that are bound.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.away.iter().flat_map(|away| away.bindings.events().cloned()).collect()
    }

    /// A token that is over at this time is good for all its events.
    pub(crate) fn renew(&mut self, expires_at: Option<SystemTime>) {
        if let Some(away) = &mut self.away {
            away.bindings.renew(expires_at);
        }
    }

    /// Goes on behind the last number that the client has. `None` if the session cannot: the client claims a number that
    /// it was never sent.
    ///
    /// # Errors
    /// Refuses a connection over the user's limit, and the session stays away.
    pub(crate) fn go_on(mut self, seq: u64) -> Result<Option<GoesOn>, BindError> {
        let Some(away) = &mut self.away else { return Ok(None) };
        away.bindings.come_back()?;
        let resumed = match away.outbox.resume(seq, std::mem::take(&mut self.kept)) {
            Ok(resumed) => resumed,
            Err(kept) => {
                self.kept = kept;
                self.end();
                return Ok(None);
            }
        };
        let Some(Away { key, outbox, bindings, .. }) = self.away.take() else { return Ok(None) };
        let Resumed { is_recovered, acknowledged, lost, .. } = resumed;
        self.sessions.metrics.forgotten.inc_by(lost as u64);
        let place = Place::Here { outbox: outbox.clone(), user_id: key.user_id.clone() };
        self.sessions.known().places.insert(self.token, place);
        self.sessions.changed.notify_waiters();
        let (sessions, token) = (self.sessions.clone(), self.token);
        let session = Session { sessions, token, key, outbox: outbox.clone(), has_left: false };
        Ok(Some(GoesOn { session, outbox, bindings, is_recovered, acknowledged }))
    }

    /// Ends the session: it is not to go on.
    pub(crate) fn end(mut self) {
        if let Some(away) = self.away.take() {
            self.sessions.remove(self.token);
            self.sessions.end(away, std::mem::take(&mut self.kept));
        }
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        let Some(away) = self.away.take() else { return };
        let kept = std::mem::take(&mut self.kept);
        let left = self.sessions.in_journal(|| {
            // Nothing was written meanwhile.
            match away.outbox.leave(kept, 0) {
                Ok(lost) => {
                    self.sessions.metrics.forgotten.inc_by(lost as u64);
                    self.sessions.put_away(self.token, away);
                }
                Err(kept) => {
                    self.sessions.remove(self.token);
                    self.sessions.end(away, kept);
                }
            }
        });
        if left.is_none() {
            // Nobody can go on with it, and nobody is to wait for it.
            self.sessions.remove(self.token);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::binder::BindLimits;
    use crate::delivery::Delivery;
    use crate::journal::{JournalBounds, MemoryJournal};
    use crate::message::{Names, Push, SlowReaderPolicy};
    use crate::outbox::Capacity;

    const AGE: Duration = Duration::from_secs(3600);

    /// A session of ann's mail on a connection.
    struct World {
        sessions: Arc<Sessions>,
        binder: Arc<Binder>,
        outbox: Arc<Outbox>,
        user_id: UserId,
        event: Event,
    }

    impl World {
        fn new() -> (Self, Session, Bindings) {
            let bounds =
                JournalBounds { messages_per_user_max: 8, bytes_per_user_max: 10_000, bytes_max: 10_000, age: AGE };
            let limits = Limits { away_max: 4, away_per_user_max: 4, age: AGE };
            let journal = Arc::new(MemoryJournal::new(bounds));
            let sessions = Arc::new(Sessions::new(limits, journal, Arc::new(Metrics::new())));
            let capacity = Capacity { messages_max: 8, bytes_max: 1000 };
            let outbox = Arc::new(Outbox::new(Names::new().connection_id(), capacity));
            let (user_id, event) = (UserId::new("ann").expect("valid"), Event::new("mail").expect("valid"));
            let binder = Arc::new(Binder::default());
            let session = sessions.begin(&outbox, &user_id).expect("random numbers");
            let limits = BindLimits { connections_per_user_max: 0, events_per_connection_max: 1 };
            let bindings = binder.bind(&outbox, user_id.clone(), event.clone(), limits).expect("no limit");
            (Self { sessions, binder, outbox, user_id, event }, session, bindings)
        }

        /// As the gateway drops a user.
        fn drop_user(&self) -> usize {
            let evicted = self.binder.evict(&self.user_id, None);
            evicted.iter().filter(|outbox| outbox.stop(Stop::Dropped)).count()
        }
    }

    #[test]
    fn a_session_that_is_dropped_on_its_way_to_another_connection_does_not_go_on_without_its_bindings() {
        for stop in [Stop::Replaced, Stop::QueueFull] {
            let (world, session, bindings) = World::new();
            let token = session.token();
            assert!(world.outbox.stop(stop));
            assert_eq!(world.drop_user(), 1);
            assert!(!session.leave(bindings, Vec::new(), 0), "{stop:?}");
            let claimed = world.sessions.claim(token, &world.user_id).now_or_never().expect("nothing to wait for");
            assert!(claimed.is_none(), "{stop:?}: it would be bound to {:?}, and no push would reach it", world.event);
        }
    }

    #[test]
    fn what_only_a_session_had_is_passed_on_too_when_the_session_ends_while_it_is_claimed() {
        for is_dropped in [false, true] {
            let (world, session, bindings) = World::new();
            let token = session.token();
            assert!(session.leave(bindings, Vec::new(), 0));
            let push = Push::new("ann", "mail", "lasting").expect("valid").with_ttl(AGE);
            let delivery = Delivery::new(Names::new().message_id(), &push, SlowReaderPolicy::default(), Instant::now());
            let delivery = Arc::new(delivery);
            assert_eq!(world.outbox.offer(delivery.ticket(0)).taken, Taken::Held);
            delivery.leave_behind();
            drop(delivery);
            let claimed = world.sessions.claim(token, &world.user_id).now_or_never().expect("nothing to wait for");
            let claimed = claimed.expect("it is away");
            if is_dropped {
                assert_eq!(world.drop_user(), 1);
                drop(claimed);
            } else {
                // As one whose token does not allow all its events any more.
                claimed.end();
            }
            assert!(world.sessions.journal().holds(&world.user_id), "{is_dropped}");
        }
    }
}

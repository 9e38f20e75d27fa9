//! What a token is shown for: binding, going on with a session, refreshing; and what it comes to.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::auth::{BindAttempt, Identity, Token, TokenError};
use crate::binder::{BindError, BindLimits, Bindings};
use crate::close::CloseReason;
use crate::journal::Kept;
use crate::legacy;
use crate::message::{Event, UserId};
use crate::metrics::ResumeResult;
use crate::outbox::Taken;
use crate::sessions::{Claimed, GoesOn, Session};

use super::frames::{Problem, Resume, Said, milliseconds};
use super::link::{Link, NEVER};
use super::transport::Transport;
use super::{Shared, TOKEN_BYTES_MAX};

/// Checks of one token for several events that are made at one time.
const CHECKS_AT_ONCE: usize = 8;

/// What a token check came to, or a look at what is held.
pub(super) enum Checked {
    Bind {
        event: Event,
        result: Result<Identity, TokenError>,
        /// The session that the client wants to go on with, and from where.
        resume: Option<(Resume, Option<Box<Claimed>>)>,
        /// What was held for the event.
        held: Vec<Kept>,
    },
    /// When the first of the new tokens is over.
    Refresh(Result<Option<SystemTime>, Refused>),
    Held(Vec<Kept>),
}

/// Why a bind was not granted: as a session is told, and as a legacy connection is closed.
pub(super) struct Refused {
    pub(super) problem: Problem,
    pub(super) reason: CloseReason,
}

impl Refused {
    pub(super) fn other_user() -> Self {
        Self { problem: Problem::OtherUser, reason: CloseReason::OtherUser }
    }
}

impl From<&TokenError> for Refused {
    fn from(error: &TokenError) -> Self {
        Self { problem: error.into(), reason: error.into() }
    }
}

impl From<BindError> for Refused {
    fn from(error: BindError) -> Self {
        Self { problem: error.into(), reason: error.into() }
    }
}

pub(super) fn expires_in_ms(expires_at: SystemTime) -> u64 {
    milliseconds(left(expires_at))
}

/// A time that is past already is over now.
fn left(expires_at: SystemTime) -> Duration {
    expires_at.duration_since(SystemTime::now()).unwrap_or_default()
}

impl From<&TokenError> for CloseReason {
    fn from(error: &TokenError) -> Self {
        match error {
            TokenError::Refused => Self::TokenRefused,
            TokenError::NotAllowed => Self::NotAllowed,
            TokenError::Unavailable => Self::CheckUnavailable,
        }
    }
}

impl From<BindError> for CloseReason {
    fn from(error: BindError) -> Self {
        match error {
            BindError::TooManyConnections { .. } => Self::TooManyConnections,
            BindError::TooManyEvents { .. } => Self::TooManyEvents,
        }
    }
}

/// What the journal has handed over for a bind that is still on its way. Dropped with it, it is put back.
struct Released<'a> {
    shared: &'a Shared,
    user_id: &'a UserId,
    messages: Vec<Kept>,
}

impl Drop for Released<'_> {
    fn drop(&mut self) {
        let messages = std::mem::take(&mut self.messages);
        self.shared.sessions.in_journal(|| self.shared.hold_again(messages, self.user_id));
    }
}

impl Shared {
    /// Takes the session that a client wants to go on with, if it is known and the token still allows all its events.
    async fn claim(
        &self,
        resume: Resume,
        token: &Token,
        user_id: &UserId,
        peer: SocketAddr,
    ) -> Result<Option<Claimed>, TokenError> {
        let Some(resume_token) = resume.token else { return Ok(None) };
        let Some(mut claimed) = self.sessions.claim(resume_token, user_id).await else { return Ok(None) };
        match self.check_all(&claimed.events(), token, user_id, peer).await {
            Ok(expires_at) => {
                claimed.renew(expires_at);
                Ok(Some(claimed))
            }
            Err(Refused { problem: Problem::CheckUnavailable, .. }) => Err(TokenError::Unavailable),
            Err(_) => {
                claimed.end();
                Ok(None)
            }
        }
    }

    /// Shows a user's token for each of these events, some at a time, and says when the first of them is over.
    async fn check_all(
        &self,
        events: &[Event],
        token: &Token,
        user_id: &UserId,
        peer: SocketAddr,
    ) -> Result<Option<SystemTime>, Refused> {
        // Collected: as a stream of closures they would not be `Send`, for want of a lifetime.
        let checks: Vec<_> = events.iter().map(|event| self.check(event, token, user_id, peer)).collect();
        let mut results = stream::iter(checks).buffered(CHECKS_AT_ONCE);
        let mut earliest = None;
        while let Some(expires_at) = results.try_next().await? {
            earliest = earliest.into_iter().chain(expires_at).min();
        }
        Ok(earliest)
    }

    /// Shows a user's token for one event, and says when it is over.
    async fn check(
        &self,
        event: &Event,
        token: &Token,
        user_id: &UserId,
        peer: SocketAddr,
    ) -> Result<Option<SystemTime>, Refused> {
        let attempt = BindAttempt::new(token, event, peer);
        let identity = self.token_authenticator.authenticate(&attempt).await.map_err(|error| Refused::from(&error))?;
        if identity.user_id == *user_id { Ok(identity.expires_at) } else { Err(Refused::other_user()) }
    }

    /// What is held for these events of a user, behind what was handed over before.
    async fn release(&self, user_id: &UserId, events: &[Event], before: Vec<Kept>) -> Vec<Kept> {
        let mut released = Released { shared: self, user_id, messages: before };
        for event in events {
            released.messages.extend(self.sessions.journal().release(user_id, event).await);
        }
        std::mem::take(&mut released.messages)
    }

    /// Puts back what was held for a bind that is not granted. Another connection may have been bound meanwhile.
    pub(super) fn hold_again(&self, held: Vec<Kept>, user_id: &UserId) {
        for message in held {
            self.sessions.pass_on(&self.binder, user_id, message);
        }
    }

    /// The client of a session has every message up to this number.
    pub(super) fn acknowledge(&self, session: &Session, seq: u64) {
        self.acknowledged(self.sessions.journal().acknowledge(session.key(), seq));
    }

    fn acknowledged(&self, messages: Vec<Kept>) {
        let now = Instant::now();
        for message in messages {
            debug_assert!(message.is_sent(), "no client can claim a number that was not written");
            self.metrics.acknowledged(message.into_ticket().acked(now));
        }
    }
}

impl<S: Transport> Link<S> {
    /// Reads a legacy bind request and starts the token check.
    pub(super) fn asked_as_ever(&mut self, data: &[u8]) -> Result<(), CloseReason> {
        let [token, event] = legacy::fields(data, ["token", "event"]).map_err(|_| CloseReason::NotUnderstood)?;
        if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
            return Err(CloseReason::Incomplete);
        }
        let event = Event::new(event).map_err(|_| CloseReason::Incomplete)?;
        self.check_bind(Token::new(token), event, None);
        Ok(())
    }

    pub(super) fn check_bind(&mut self, token: Token, event: Event, resume: Option<Resume>) {
        self.start_bind_deadline();
        let (shared, peer) = (self.shared.clone(), self.peer);
        self.check = Some(Box::pin(async move {
            let mut result = shared.token_authenticator.authenticate(&BindAttempt::new(&token, &event, peer)).await;
            let (mut resumed, mut held) = (None, Vec::new());
            if let (Ok(identity), Some(resume)) = (&result, resume) {
                match shared.claim(resume, &token, &identity.user_id, peer).await {
                    Ok(claimed) => resumed = Some((resume, claimed.map(Box::new))),
                    Err(error) => result = Err(error),
                }
            }
            if let Ok(identity) = &result
                && shared.sessions.journal().holds(&identity.user_id)
            {
                let claimed = resumed.iter().filter_map(|(_, claimed)| claimed.as_ref());
                let mut events: Vec<Event> = claimed.flat_map(|claimed| claimed.events()).collect();
                events.retain(|bound| *bound != event);
                events.push(event.clone());
                held = shared.release(&identity.user_id, &events, held).await;
            }
            Box::new(Checked::Bind { event, result, resume: resumed, held })
        }));
    }

    /// Checks a new token against every event that is bound.
    pub(super) fn check_refresh(&mut self, token: Token, user_id: UserId, events: Vec<Event>) {
        self.start_bind_deadline();
        let (shared, peer) = (self.shared.clone(), self.peer);
        self.check = Some(Box::pin(async move {
            Box::new(Checked::Refresh(shared.check_all(&events, &token, &user_id, peer).await))
        }));
    }

    fn start_bind_deadline(&mut self) {
        if self.bind_deadline == NEVER {
            self.bind_deadline = self.clock().after(self.shared.config.bind_timeout);
        }
    }

    /// Sets when the token is over, or that it never is.
    pub(super) fn expire_at(&mut self, expires_at: Option<SystemTime>) {
        self.token_deadline = match expires_at {
            None => NEVER,
            Some(at) => self.clock().after(left(at)),
        };
    }

    pub(super) fn first_binding(&mut self, checked: Checked) -> Result<(Bindings, Option<Box<Session>>), CloseReason> {
        self.bind_deadline = NEVER;
        let Checked::Bind { event, result, resume, held } = checked else {
            unreachable!("nothing else is checked before the first bind");
        };
        let bound = match &result {
            Ok(identity) => self.bind_first(identity, &event, resume),
            Err(error) => Err(error.into()),
        };
        match bound {
            Ok((bindings, session)) => {
                self.deliver_held(held, bindings.user_id(), bindings.events().cloned().collect());
                Ok((bindings, session))
            }
            Err(Refused { problem, reason }) => {
                if let Ok(identity) = &result {
                    self.shared.hold_again(held, &identity.user_id);
                }
                self.say(&Said::error(problem, Some(&event)));
                Err(reason)
            }
        }
    }

    fn bind_first(
        &mut self,
        identity: &Identity,
        event: &Event,
        resume: Option<(Resume, Option<Box<Claimed>>)>,
    ) -> Result<(Bindings, Option<Box<Session>>), Refused> {
        let limits = BindLimits {
            connections_per_user_max: self.shared.config.connections_per_user_max,
            events_per_connection_max: self.shared.config.events_per_connection_max,
        };
        let (binder, user_id) = (self.shared.binder.clone(), identity.user_id.clone());
        if !self.socket.is_session() {
            let mut bindings = binder.bind(self.registration.outbox(), user_id, event.clone(), limits)?;
            bindings.renew(identity.expires_at);
            self.expire_at(identity.expires_at);
            self.shared.metrics.binds.inc();
            return Ok((bindings, None));
        }
        let is_resume = resume.is_some();
        if let Some((Resume { seq, .. }, Some(claimed))) = resume
            && let Some(goes_on) = claimed.go_on(seq)?
        {
            return self.go_on(goes_on, identity.expires_at, event);
        }
        if is_resume {
            self.shared.metrics.resumed(ResumeResult::Unknown);
        }
        // Before the binding, so that nothing is offered to the outbox that has no number.
        let session = self.shared.sessions.begin(self.registration.outbox(), &user_id);
        let session = session.ok_or_else(|| Refused::from(&TokenError::Unavailable))?;
        let mut bindings = binder.bind(self.registration.outbox(), user_id, event.clone(), limits)?;
        bindings.renew(identity.expires_at);
        self.begin(&session, event, is_resume.then_some(false), identity.expires_at);
        Ok((bindings, Some(Box::new(session))))
    }

    /// Goes on with a session that was on another connection before.
    fn go_on(
        &mut self,
        goes_on: GoesOn,
        expires_at: Option<SystemTime>,
        event: &Event,
    ) -> Result<(Bindings, Option<Box<Session>>), Refused> {
        let GoesOn { session, outbox, mut bindings, is_recovered, acknowledged } = goes_on;
        self.shared.acknowledged(acknowledged);
        if let Err(error) = bindings.add(event.clone(), expires_at) {
            session.leave(bindings, Vec::new(), 0);
            return Err(error.into());
        }
        self.registration.adopt(outbox);
        self.shared.metrics.resumed(if is_recovered { ResumeResult::Recovered } else { ResumeResult::Gap });
        self.begin(&session, event, Some(is_recovered), bindings.expires_at());
        Ok((bindings, Some(Box::new(session))))
    }

    fn begin(&mut self, session: &Session, event: &Event, recovered: Option<bool>, expires_at: Option<SystemTime>) {
        self.expire_at(expires_at);
        let written = self.registration.outbox().written();
        self.socket.keep_sent_for(session.key().clone(), self.shared.sessions.journal().clone(), written);
        self.shared.metrics.binds.inc();
        self.say_bound(session, event, recovered, expires_at);
    }

    pub(super) fn say_bound(
        &mut self,
        session: &Session,
        event: &Event,
        recovered: Option<bool>,
        expires_at: Option<SystemTime>,
    ) {
        let seq = self.registration.outbox().seq();
        let expires_in_ms = expires_at.map(expires_in_ms);
        self.say(&Said::bound(event, session.epoch(), session.token(), seq, recovered, expires_in_ms));
    }

    /// Queues what was held for the events that are bound now, after one more look for what was held meanwhile. Until then
    /// nothing is taken from the outbox: what is held may be older than what is there.
    pub(super) fn deliver_held(&mut self, held: Vec<Kept>, user_id: &UserId, events: Vec<Event>) {
        if !self.shared.sessions.journal().holds(user_id) {
            self.offer_held(held);
        } else {
            self.start_bind_deadline();
            self.looks_for_held = true;
            let (shared, user_id) = (self.shared.clone(), user_id.clone());
            self.check =
                Some(Box::pin(async move { Box::new(Checked::Held(shared.release(&user_id, &events, held).await)) }));
        }
    }

    pub(super) fn offer_held(&self, held: Vec<Kept>) {
        let metrics = &self.shared.metrics;
        for message in held {
            let offered = self.registration.outbox().offer(message.into_ticket().late());
            metrics.displaced.inc_by(offered.displaced as u64);
            metrics.forgotten.inc_by(u64::from(matches!(offered.taken, Taken::Refused(_))));
        }
    }
}

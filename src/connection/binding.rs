//! What a token is shown for: binding, going on with a session, refreshing; and what it comes to.

use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

use tokio::io::{AsyncRead, AsyncWrite};

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
use super::{Shared, TOKEN_BYTES_MAX};

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
    Refresh(Result<Identity, TokenError>),
    Held(Vec<Kept>),
}

/// Why a bind was not granted: as a session is told, and as a legacy connection is closed.
pub(super) struct Refused {
    pub(super) problem: Problem,
    pub(super) reason: CloseReason,
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

pub(super) fn expires_in_ms(identity: &Identity) -> Option<u64> {
    // A time that is past already is over now.
    let left = |at: SystemTime| at.duration_since(SystemTime::now()).unwrap_or_default();
    identity.expires_at.map(|at| milliseconds(left(at)))
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
        let Some(claimed) = self.sessions.claim(resume_token, user_id).await else { return Ok(None) };
        for event in claimed.events() {
            match self.token_authenticator.authenticate(&BindAttempt::new(token, &event, peer)).await {
                Ok(identity) if identity.user_id == *user_id => {}
                Err(TokenError::Unavailable) => return Err(TokenError::Unavailable),
                Ok(_) | Err(TokenError::Refused | TokenError::NotAllowed) => {
                    claimed.end();
                    return Ok(None);
                }
            }
        }
        Ok(Some(claimed))
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

impl<S: AsyncRead + AsyncWrite + Unpin> Link<S> {
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
                held = shared.sessions.journal().release(&identity.user_id, &event).await;
            }
            Box::new(Checked::Bind { event, result, resume: resumed, held })
        }));
    }

    /// Checks a new token against every event that is bound.
    pub(super) fn check_refresh(&mut self, token: Token, events: Vec<Event>) {
        self.start_bind_deadline();
        let (shared, peer) = (self.shared.clone(), self.peer);
        self.check = Some(Box::pin(async move {
            let mut result = Err(TokenError::Refused);
            for event in &events {
                result = shared.token_authenticator.authenticate(&BindAttempt::new(&token, event, peer)).await;
                if result.is_err() {
                    break;
                }
            }
            Box::new(Checked::Refresh(result))
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
            Some(at) => self.clock().after(at.duration_since(SystemTime::now()).unwrap_or_default()),
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
                self.deliver_held(held, bindings.user_id(), &event);
                Ok((bindings, session))
            }
            Err(Refused { problem, reason }) => {
                if let Ok(identity) = &result {
                    self.hold_again(held, &identity.user_id);
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
        self.expire_at(identity.expires_at);
        let limits = BindLimits {
            connections_per_user_max: self.shared.config.connections_per_user_max,
            events_per_connection_max: self.shared.config.events_per_connection_max,
        };
        let (binder, user_id) = (self.shared.binder.clone(), identity.user_id.clone());
        if !self.socket.is_session() {
            let bindings = binder.bind(self.registration.outbox(), user_id, event.clone(), limits)?;
            self.shared.metrics.binds.inc();
            return Ok((bindings, None));
        }
        let is_resume = resume.is_some();
        if let Some((Resume { seq, .. }, Some(claimed))) = resume
            && let Some(goes_on) = claimed.go_on(seq)?
        {
            return self.go_on(goes_on, identity, event);
        }
        if is_resume {
            self.shared.metrics.resumed(ResumeResult::Unknown);
        }
        // Before the binding, so that nothing is offered to the outbox that has no number.
        let session = self.shared.sessions.begin(self.registration.outbox(), &user_id);
        let session = session.ok_or_else(|| Refused::from(&TokenError::Unavailable))?;
        let bindings = binder.bind(self.registration.outbox(), user_id, event.clone(), limits)?;
        self.begin(&session, identity, event, is_resume.then_some(false));
        Ok((bindings, Some(Box::new(session))))
    }

    /// Goes on with a session that was on another connection before.
    fn go_on(
        &mut self,
        goes_on: GoesOn,
        identity: &Identity,
        event: &Event,
    ) -> Result<(Bindings, Option<Box<Session>>), Refused> {
        let GoesOn { session, outbox, mut bindings, is_recovered, acknowledged } = goes_on;
        self.shared.acknowledged(acknowledged);
        if let Err(error) = bindings.add(event.clone()) {
            session.leave(bindings, Vec::new(), 0);
            return Err(error.into());
        }
        self.registration.adopt(outbox);
        self.shared.metrics.resumed(if is_recovered { ResumeResult::Recovered } else { ResumeResult::Gap });
        self.begin(&session, identity, event, Some(is_recovered));
        Ok((bindings, Some(Box::new(session))))
    }

    fn begin(&mut self, session: &Session, identity: &Identity, event: &Event, recovered: Option<bool>) {
        let written = self.registration.outbox().written();
        self.socket.keep_sent_for(session.key().clone(), self.shared.sessions.journal().clone(), written);
        self.shared.metrics.binds.inc();
        self.say_bound(session, identity, event, recovered);
    }

    pub(super) fn say_bound(&mut self, session: &Session, identity: &Identity, event: &Event, recovered: Option<bool>) {
        let seq = self.registration.outbox().seq();
        let expires_in_ms = expires_in_ms(identity);
        self.say(&Said::bound(event, session.epoch(), session.token(), seq, recovered, expires_in_ms));
    }

    /// Queues what was held for the event that is bound now, and looks once more for what was held meanwhile.
    pub(super) fn deliver_held(&mut self, held: Vec<Kept>, user_id: &UserId, event: &Event) {
        self.offer_held(held);
        if self.shared.sessions.journal().holds(user_id) {
            let (shared, user_id, event) = (self.shared.clone(), user_id.clone(), event.clone());
            self.check = Some(Box::pin(async move {
                Box::new(Checked::Held(shared.sessions.journal().release(&user_id, &event).await))
            }));
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

    /// Puts back what was held for a bind that was refused.
    pub(super) fn hold_again(&self, held: Vec<Kept>, user_id: &UserId) {
        for message in held {
            if self.shared.sessions.journal().hold(user_id, message).is_err() {
                self.shared.metrics.forgotten.inc();
            }
        }
    }
}

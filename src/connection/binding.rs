//! What a token is shown for: binding, going on with a session, refreshing; and what it comes to.

use std::time::SystemTime;

use futures_util::stream::{self, StreamExt, TryStreamExt};

use tracing::{Instrument, debug};

use crate::auth::{BindAttempt, Client, Identity, Token, TokenError};
use crate::binder::{Bindings, Validity};
use crate::close::CloseReason;
use crate::dialect::{RequestError, Resume, ServerFrame};
use crate::message::{Event, UserId};
use crate::metrics::ResumeResult;
use crate::revocations::Stamp;
use crate::sessions::{Attached, Claimed, Returned};

use super::Shared;
use super::grant::{Checked, Granted, Refused, expires_in_ms, left, validity};
use super::link::{Link, NEVER};
use super::transport::Transport;

/// Checks of one token for several events that are made at one time.
const CHECKS_AT_ONCE: usize = 8;

impl Shared {
    /// Shows a client's token for a bind, and takes the session that it wants to go on with.
    async fn check_bind(
        &self,
        token: &Token,
        event: &Event,
        resume: Option<Resume>,
        client: &Client,
    ) -> (Result<Identity, TokenError>, Option<(Resume, Option<Box<Claimed>>)>) {
        let identity = match self.authenticate(&BindAttempt::new(token, event, client)).await {
            Ok(identity) => identity,
            Err(error) => return (Err(error), None),
        };
        let Some(resume) = resume else { return (Ok(identity), None) };
        match self.claim(resume, token, &identity.user_id, client).await {
            Ok(claimed) => (Ok(identity), Some((resume, claimed.map(Box::new)))),
            Err(error) => (Err(error), None),
        }
    }

    /// Takes the session that a client wants to go on with, if it is known and the token still allows all its events.
    async fn claim(
        &self,
        resume: Resume,
        token: &Token,
        user_id: &UserId,
        client: &Client,
    ) -> Result<Option<Claimed>, TokenError> {
        let Some(resume_token) = resume.token else { return Ok(None) };
        let Some(mut claimed) = self.sessions.claim(resume_token, user_id).await else { return Ok(None) };
        match self.check_all(&claimed.events(), token, user_id, client).await {
            Ok(validity) => {
                claimed.renew(validity);
                Ok(Some(claimed))
            }
            Err(Refused { error: RequestError::CheckUnavailable, .. }) => Err(TokenError::Unavailable),
            Err(_) => {
                claimed.end();
                Ok(None)
            }
        }
    }

    /// The answer of the token check, unless the token was revoked.
    async fn authenticate(&self, attempt: &BindAttempt<'_>) -> Result<Identity, TokenError> {
        let checked = self.token_authenticator.authenticate(attempt).await;
        if checked == Err(TokenError::Unavailable) {
            self.check_deadline.unavailable("the check says so");
        }
        let identity = checked?;
        if self.is_revoked(&identity.user_id, &identity.stamp()) { Err(TokenError::Refused) } else { Ok(identity) }
    }

    /// Whether a user's token is revoked. Asked before a token is used, so that a revoked one does nothing; and again once
    /// the binding is there, because a revocation in between has not found it.
    pub(super) fn is_revoked(&self, user_id: &UserId, stamp: &Stamp) -> bool {
        let Some(reason) = self.revocations.find(user_id, stamp, SystemTime::now()) else { return false };
        debug!(?reason, "token revoked");
        self.metrics.refused_as_revoked(reason);
        true
    }

    /// Shows a user's token for each of these events, some at a time, and says what it is, and when the first is over.
    async fn check_all(
        &self,
        events: &[Event],
        token: &Token,
        user_id: &UserId,
        client: &Client,
    ) -> Result<Validity, Refused> {
        // Collected: as a stream of closures they would not be `Send`, for want of a lifetime.
        let checks: Vec<_> = events.iter().map(|event| self.check(event, token, user_id, client)).collect();
        let mut results = stream::iter(checks).buffered(CHECKS_AT_ONCE);
        let mut all = Validity::default();
        while let Some(Validity { expires_at, stamp }) = results.try_next().await? {
            all = Validity { expires_at: all.expires_at.into_iter().chain(expires_at).min(), stamp };
        }
        Ok(all)
    }

    /// Shows a user's token for one event, and says what it is.
    async fn check(
        &self,
        event: &Event,
        token: &Token,
        user_id: &UserId,
        client: &Client,
    ) -> Result<Validity, Refused> {
        let attempt = BindAttempt::new(token, event, client);
        let identity = self.authenticate(&attempt).await.map_err(|error| Refused::from(&error))?;
        if identity.user_id == *user_id { Ok(validity(&identity)) } else { Err(Refused::other_user()) }
    }
}

impl<S: Transport> Link<S> {
    pub(super) fn check_bind(&mut self, token: Token, event: Event, resume: Option<Resume>) {
        let (shared, client) = (self.shared.clone(), self.client());
        let check = async move {
            let checked = shared.check_deadline.hold(shared.check_bind(&token, &event, resume, &client)).await;
            let (result, resume) = checked.unwrap_or((Err(TokenError::Unavailable), None));
            Box::new(Checked::Bind { event, result, resume })
        };
        self.begin(check);
    }

    /// Checks a new token against every event that is bound.
    pub(super) fn check_refresh(&mut self, token: Token, user_id: UserId, events: Vec<Event>) {
        let (shared, client) = (self.shared.clone(), self.client());
        let check = async move {
            let checked = shared.check_deadline.hold(shared.check_all(&events, &token, &user_id, &client)).await;
            Box::new(Checked::Refresh(checked.unwrap_or_else(|| Err(Refused::from(&TokenError::Unavailable)))))
        };
        self.begin(check);
    }

    /// From here on the check's own deadline holds: the client has done its part.
    fn begin(&mut self, check: impl Future<Output = Box<Checked>> + Send + 'static) {
        self.bind_deadline = NEVER;
        self.check = Some(Box::pin(check.instrument(self.span())));
    }

    /// Sets when the token is over, or that it never is.
    pub(super) fn expire_at(&mut self, expires_at: Option<SystemTime>) {
        self.token_deadline = match expires_at {
            None => NEVER,
            Some(at) => self.clock().after(left(at)),
        };
    }

    /// Binds for the first time, or goes on with a session.
    pub(super) fn first_binding(&mut self, checked: Checked) -> Result<Granted, CloseReason> {
        let Checked::Bind { event, result, resume } = checked else {
            unreachable!("nothing else is checked before the first bind");
        };
        // What is said here, and what was held, goes before what is pushed from now on.
        self.mailbox().hold_back();
        let granted = match &result {
            Ok(identity) => self.bind_first(identity, &event, resume),
            Err(error) => Err(error.into()),
        };
        match granted {
            Ok(granted) => {
                self.shared.sessions.release(&granted.bindings, self.mailbox());
                Ok(granted)
            }
            Err(Refused { error, reason }) => {
                self.say(&ServerFrame::error(error, Some(&event)));
                Err(reason)
            }
        }
    }

    fn bind_first(
        &mut self,
        identity: &Identity,
        event: &Event,
        resume: Option<(Resume, Option<Box<Claimed>>)>,
    ) -> Result<Granted, Refused> {
        let is_resume = resume.is_some();
        if let Some((Resume { seq, .. }, Some(claimed))) = resume
            && let Some(returned) = claimed.go_on(self.registration.handle(), self.socket.direct(), seq)?
        {
            return self.go_on(returned, identity, event);
        }
        if is_resume {
            self.shared.metrics.resumed(ResumeResult::Unknown);
        }
        let (binder, limits) = (self.shared.sessions.binder().clone(), self.shared.bind_limits());
        let seat = binder.seat(&identity.user_id, limits)?;
        // Before the binding, so that nothing is offered to the mailbox that has no number.
        let session = if self.dialect().has_sessions() {
            let session = self.shared.sessions.begin(self.mailbox(), &identity.user_id);
            Some(Box::new(session.ok_or_else(|| Refused::from(&TokenError::Unavailable))?))
        } else {
            None
        };
        let mut bindings = binder.bind(self.mailbox(), &identity.user_id, event);
        bindings.take_seat(seat);
        bindings.renew(validity(identity));
        self.unless_revoked(identity)?;
        self.granted(session.as_deref(), &bindings, event, is_resume.then_some(false));
        Ok(Granted { bindings, session })
    }

    /// Goes on with a session that was on another connection before.
    fn go_on(&mut self, returned: Returned, identity: &Identity, event: &Event) -> Result<Granted, Refused> {
        let Returned { session, mut bindings, is_recovered } = returned;
        if let Err(error) = bindings.add(event, validity(identity), self.shared.bind_limits()) {
            session.leave(bindings, &mut self.socket.line);
            return Err(error.into());
        }
        self.registration.go_on_with(session.mailbox().clone());
        self.unless_revoked(identity)?;
        self.shared.metrics.resumed(if is_recovered { ResumeResult::Recovered } else { ResumeResult::Gap });
        self.granted(Some(&session), &bindings, event, Some(is_recovered));
        Ok(Granted { bindings, session: Some(Box::new(session)) })
    }

    /// Refuses a token that was revoked while it was used.
    fn unless_revoked(&self, identity: &Identity) -> Result<(), Refused> {
        let is_revoked = self.shared.is_revoked(&identity.user_id, &identity.stamp());
        if is_revoked { Err(Refused::from(&TokenError::Refused)) } else { Ok(()) }
    }

    /// Notes that an event is bound, and tells a session's client.
    pub(super) fn granted(
        &mut self,
        session: Option<&Attached>,
        bindings: &Bindings,
        event: &Event,
        recovered: Option<bool>,
    ) {
        let expires_at = bindings.expires_at();
        self.expire_at(expires_at);
        self.shared.metrics.binds.inc();
        if let Some(session) = session {
            session.bound(bindings);
            let (seq, expires_in_ms) = (session.mailbox().told(), expires_at.map(expires_in_ms));
            self.say(&ServerFrame::bound(event, session.epoch(), session.token(), seq, recovered, expires_in_ms));
        }
    }
}

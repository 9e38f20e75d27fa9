//! The task of one socket: bind in time, then read, write, ping, stop; one close reason, and clean-up by `Drop` alone.

mod binding;
mod closing;
#[cfg(feature = "inside")]
mod echo;
mod grant;
mod inbound;
mod inflow;
mod link;
mod socket;
mod tls;
mod transport;
mod wire;

use std::sync::Arc;

use crate::auth::{Deadline, Identity, Shown, Token, TokenAuthenticator, TokenError};
use crate::binder::BindLimits;
use crate::close::CloseReason;
use crate::config::Config;
use crate::dialect::{Dialect, Legacy, Request, RequestError, ServerFrame, Session};
use crate::handle::Stop;
use crate::message::Event;
use crate::metrics::Metrics;
use crate::registry::Registration;
use crate::revocations::Revocations;
use crate::sessions::{Attached, Sessions};

use grant::{Checked, Granted, Refused, expires_in_ms, validity};
use inflow::Limits;
use link::{Input, Link};

pub(crate) use tls::TlsTransport;
pub(crate) use transport::Transport;

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Bind requests in, messages out.
    Legacy,
    /// `pushgate.v1.json`.
    Session,
}

impl Protocol {
    fn dialect(self) -> &'static dyn Dialect {
        match self {
            Self::Legacy => &Legacy,
            Self::Session => &Session,
        }
    }
}

/// What every connection of a gateway shares.
pub(crate) struct Shared {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) config: Arc<Config>,
    pub(crate) token_authenticator: Arc<dyn TokenAuthenticator>,
    pub(crate) check_deadline: Deadline,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) revocations: Arc<Revocations>,
}

impl Shared {
    fn limits(&self) -> Limits {
        Limits::of(&self.config)
    }

    fn bind_limits(&self) -> BindLimits {
        BindLimits::of(&self.config)
    }
}

/// A client whose upgrade is answered, until its stream is handed over.
pub(crate) struct Arrival {
    pub(crate) protocol: Protocol,
    /// The token that the client showed in its upgrade.
    pub(crate) token: Option<Box<Token>>,
    /// What else it showed there, if a token check looks at it.
    pub(crate) shown: Option<Arc<Shown>>,
    pub(crate) registration: Registration,
    pub(crate) shared: Arc<Shared>,
}

impl Arrival {
    /// `already_read` is what the HTTP side read past the upgrade request.
    pub(crate) fn connect<S: Transport>(mut self, stream: S, already_read: &[u8]) -> Connection<S::Shared> {
        let token = self.token.take();
        Connection { token, link: Box::new(Link::open(stream.share(), already_read, self)) }
    }
}

/// An upgraded connection. In a box from the beginning, because a task is for its whole life as large as the largest
/// thing it ever held.
pub(crate) struct Connection<S> {
    link: Box<Link<S>>,
    token: Option<Box<Token>>,
}

impl<S: Transport> Connection<S> {
    /// Runs it to its end.
    pub(crate) async fn run(self) {
        let (link, session, reason) = match (Unbound { link: self.link, token: self.token }).bind().await {
            Ok(bound) => bound.run().await,
            Err((link, reason)) => (link, None, reason),
        };
        Box::pin(link.close(reason, session)).await;
    }
}

/// A connection that has not shown a token yet. No push can reach it.
struct Unbound<S> {
    link: Box<Link<S>>,
    /// The token of the upgrade. It goes with the first bind, whether that uses it or not.
    token: Option<Box<Token>>,
}

/// A connection that is bound to a user. Dropping it unbinds.
struct Bound<S> {
    link: Box<Link<S>>,
    /// In a box, because the task has room for several of what it hands on.
    granted: Box<Granted>,
}

/// Why a request is not granted, and the event that it was about.
type NotGranted = (RequestError, Option<Event>);

impl<S: Transport> Unbound<S> {
    /// Waits for the first bind, within `bind_timeout` from the upgrade.
    async fn bind(mut self) -> Result<Bound<S>, (Box<Link<S>>, CloseReason)> {
        self.link.welcome();
        loop {
            let step = match self.link.input().await {
                Input::Data(data) => self.on_request(&data),
                Input::Checked(checked) => match self.link.first_binding(*checked) {
                    Ok(granted) => return Ok(Bound { link: self.link, granted: Box::new(granted) }),
                    Err(reason) => Err(reason),
                },
                Input::End(reason) => Err(reason),
            };
            if let Err(reason) = step {
                return Err((self.link, reason));
            }
        }
    }

    fn on_request(&mut self, data: &[u8]) -> Result<(), CloseReason> {
        let (error, event) = match self.link.dialect().read(data) {
            Ok(Request::Bind { token, event, resume }) => match token.or(self.token.take().map(|token| *token)) {
                Some(token) => {
                    self.link.check_bind(token, event, resume);
                    return Ok(());
                }
                None => (RequestError::Incomplete, None),
            },
            Ok(Request::Ping) => {
                self.link.say(&ServerFrame::Pong);
                return Ok(());
            }
            Ok(Request::Unbind { event }) => (RequestError::NotBound, Some(event)),
            Ok(Request::Ack { .. } | Request::Refresh { .. }) => (RequestError::NotBound, None),
            Err(error) => (error, None),
        };
        self.link.say(&ServerFrame::error(error, event.as_ref()));
        error.close_reason().map_or(Ok(()), Err)
    }
}

impl<S: Transport> Bound<S> {
    /// Delivers until something ends the connection. A further bind adds an event.
    async fn run(mut self) -> (Box<Link<S>>, Option<Box<Attached>>, CloseReason) {
        loop {
            let step = match self.link.input().await {
                Input::Data(data) => self.on_request(&data),
                Input::Checked(checked) => self.on_checked(*checked),
                Input::End(reason) => Err(reason),
            };
            if let Err(reason) = step {
                let (link, session) = Box::pin(self.leave(reason)).await;
                return (link, session, reason);
            }
        }
    }

    /// Leaves the session, if there is one that may come back; hands over one that is over. The bindings of the others go
    /// here, before the close frame is even written: whoever pushes now is told the truth.
    async fn leave(self, reason: CloseReason) -> (Box<Link<S>>, Option<Box<Attached>>) {
        let Self { mut link, granted } = self;
        let Granted { bindings, session } = *granted;
        let Some(session) = session else { return (link, None) };
        let is_over = match reason {
            CloseReason::ClientClosed => link.socket.is_done(),
            CloseReason::Drained => {
                let lives_on = link.registration.handle().stopped() == Some(Stop::SentAway);
                !lives_on && !session.outlives_the_process()
            }
            CloseReason::Dropped | CloseReason::TokenRevoked | CloseReason::MadeRoom | CloseReason::Cut => true,
            _ => false,
        };
        if is_over {
            session.end();
            return (link, Some(session));
        }
        if reason != CloseReason::Reset {
            link.finish_message().await;
        }
        if session.leave(bindings, &mut link.socket.line) {
            // The books are the session's now; this connection begins new ones.
            let _left_behind = link.socket.take_done();
            link.registration.leave_mailbox();
        }
        (link, None)
    }

    fn on_request(&mut self, data: &[u8]) -> Result<(), CloseReason> {
        let result = match self.link.dialect().read(data) {
            Ok(request) => self.serve(request),
            Err(error) => Err((error, None)),
        };
        let Err((error, event)) = result else { return Ok(()) };
        self.link.say(&ServerFrame::error(error, event.as_ref()));
        // A session's client has been told; a legacy one can only be closed.
        if self.granted.session.is_some() { Ok(()) } else { error.close_reason().map_or(Ok(()), Err) }
    }

    fn serve(&mut self, request: Request) -> Result<(), NotGranted> {
        let Self { link, granted } = self;
        match request {
            Request::Bind { resume: Some(_), event, .. } => return Err((RequestError::AlreadyBound, Some(event))),
            Request::Bind { token: None, .. } => return Err((RequestError::Incomplete, None)),
            Request::Bind { token: Some(token), event, resume: None } => link.check_bind(token, event, None),
            Request::Refresh { token } => {
                let events = granted.bindings.events().cloned().collect();
                link.check_refresh(token, granted.bindings.user_id().clone(), events);
            }
            Request::Unbind { event } => {
                if !granted.bindings.remove(&event) {
                    return Err((RequestError::LastEvent, Some(event)));
                }
                link.expire_at(granted.bindings.expires_at());
                granted.session.iter().for_each(|session| session.bound(&granted.bindings));
                link.say(&ServerFrame::Unbound { event: event.as_str() });
            }
            Request::Ack { seq } => {
                let metrics = &link.shared.metrics;
                let acked = link.registration.mailbox().acknowledge(seq, |after| metrics.acknowledged(after));
                let written_elsewhere = acked.map_err(|_never_sent| (RequestError::BadAck, None))?;
                link.socket.earn(written_elsewhere);
            }
            Request::Ping => link.say(&ServerFrame::Pong),
        }
        Ok(())
    }

    fn on_checked(&mut self, checked: Checked) -> Result<(), CloseReason> {
        match checked {
            Checked::Bind { event, result, .. } => self.bind_also(&event, result),
            Checked::Refresh(result) => {
                match result {
                    Ok(validity) => {
                        let (bindings, expires_at) = (&mut self.granted.bindings, validity.expires_at);
                        bindings.renew(validity);
                        if self.link.shared.is_revoked(bindings.user_id(), &validity.stamp) {
                            return Err(CloseReason::TokenRevoked);
                        }
                        self.link.expire_at(expires_at);
                        self.link.say(&ServerFrame::Refreshed { expires_in_ms: expires_at.map(expires_in_ms) });
                    }
                    Err(Refused { error, .. }) => self.link.say(&ServerFrame::error(error, None)),
                }
                Ok(())
            }
        }
    }

    fn bind_also(&mut self, event: &Event, result: Result<Identity, TokenError>) -> Result<(), CloseReason> {
        let Self { link, granted } = self;
        // What is said here, and what was held, goes before what is pushed from now on.
        link.mailbox().hold_back();
        let mut is_revoked = false;
        let added = result.map_err(|error| Refused::from(&error)).and_then(|identity| {
            if identity.user_id != *granted.bindings.user_id() {
                return Err(Refused::other_user());
            }
            granted.bindings.add(event, validity(&identity), link.shared.bind_limits())?;
            is_revoked = link.shared.is_revoked(&identity.user_id, &identity.stamp());
            Ok(())
        });
        if is_revoked {
            return Err(CloseReason::TokenRevoked);
        }
        match added {
            Ok(()) => {
                link.granted(granted.session.as_deref(), &granted.bindings, event, None);
                link.shared.sessions.release(&granted.bindings, link.mailbox());
                Ok(())
            }
            Err(Refused { error, reason }) => {
                link.say(&ServerFrame::error(error, Some(event)));
                // A session's client has been told; a legacy one can only be closed.
                if granted.session.is_some() { Ok(()) } else { Err(reason) }
            }
        }
    }
}

/// What a bound connection over this stream consists of, in bytes, beside what it shares with other rooms.
#[cfg(any(test, feature = "inside"))]
pub(crate) fn sizes<S: Transport>() -> [(&'static str, usize); 3] {
    fn size_of_task<F, A>(_: fn(A) -> F) -> usize {
        size_of::<F>()
    }
    [
        ("task", size_of_task(Connection::<S>::run)),
        ("link", size_of::<Link<S::Shared>>()),
        ("granted", size_of::<Granted>()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every idle connection costs. A larger state is easily added by accident: a local kept over an await will do.
    #[test]
    fn the_task_and_the_state_of_a_connection_stay_small() {
        let [(_, task), (_, link), ..] = sizes::<tokio::net::TcpStream>();
        assert!(task <= 128, "{task} bytes");
        assert!(link <= 232, "{link} bytes");
    }
}

//! The task of one socket: bind in time, then read, write, ping, stop; one close reason, and clean-up by `Drop` alone.

mod batch;
mod binding;
mod frames;
mod inbound;
mod link;
mod socket;
mod transport;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tracing::{Instrument, debug_span};

use crate::auth::{Identity, TokenAuthenticator, TokenError};
use crate::binder::{Binder, Bindings};
use crate::close::CloseReason;
use crate::config::Config;
use crate::journal::Kept;
use crate::message::Event;
use crate::metrics::Metrics;
use crate::registry::Registration;
use crate::sessions::{Session, Sessions};

use binding::{Checked, Refused, expires_in_ms};
use frames::{Problem, Request, Said};
use link::{Input, Link, NEVER};

pub(crate) use transport::Transport;

/// The longest token, in bytes. Signed tokens with a few claims stay below it.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// The subprotocol by which a client asks for sessions.
pub(crate) const SESSION_PROTOCOL: &str = "pushgate.v1.json";

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Bind requests in, messages out.
    Legacy,
    /// `pushgate.v1.json`.
    Session,
}

/// What every connection of a gateway shares.
pub(crate) struct Shared {
    pub(crate) binder: Arc<Binder>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) config: Arc<Config>,
    pub(crate) token_authenticator: Arc<dyn TokenAuthenticator>,
    pub(crate) sessions: Arc<Sessions>,
}

/// Runs one upgraded connection to its end.
///
/// `already_read` is what the HTTP side read past the upgrade request.
pub(crate) async fn run<S>(
    stream: S,
    already_read: Bytes,
    protocol: Protocol,
    peer: SocketAddr,
    registration: Registration,
    shared: Arc<Shared>,
) where
    S: Transport,
{
    let span = debug_span!("connection", id = %registration.id(), %peer);
    async move {
        // Set up in a box, and kept in one: a task is for its whole life as large as the largest thing it ever held.
        let link = Box::pin(Link::open(stream, already_read, protocol, peer, registration, shared)).await;
        let unbound = Unbound { link };
        let (link, session, reason) = match unbound.bind().await {
            Ok(bound) => bound.run().await,
            Err((link, reason)) => (link, None, reason),
        };
        Box::pin(link.close(reason, session)).await;
    }
    .instrument(span)
    .await;
}

/// A connection that has not shown a token yet. No push can reach it.
struct Unbound<S> {
    link: Box<Link<S>>,
}

/// A connection that is bound to a user. Dropping it unbinds.
struct Bound<S> {
    link: Box<Link<S>>,
    /// In a box, because the task has room for several of what it hands on.
    bindings: Box<Bindings>,
    /// Only for a client of the session protocol.
    session: Option<Box<Session>>,
}

impl<S: Transport> Unbound<S> {
    /// Waits for the first bind, within `bind_timeout` from the upgrade.
    async fn bind(mut self) -> Result<Bound<S>, (Box<Link<S>>, CloseReason)> {
        self.link.welcome();
        loop {
            let step = match self.link.input().await {
                Input::Data(data) => self.asked(&data),
                Input::Checked(checked) => match self.link.first_binding(*checked) {
                    Ok((bindings, session)) => {
                        return Ok(Bound { link: self.link, bindings: Box::new(bindings), session });
                    }
                    Err(reason) => Err(reason),
                },
                Input::End(reason) => Err(reason),
            };
            if let Err(reason) = step {
                return Err((self.link, reason));
            }
        }
    }

    fn asked(&mut self, data: &[u8]) -> Result<(), CloseReason> {
        if !self.link.socket.is_session() {
            return self.link.asked_as_ever(data);
        }
        let (problem, event) = match Request::read(data) {
            Ok(Request::Bind { token, event, resume }) => {
                self.link.check_bind(token, event, resume);
                return Ok(());
            }
            Ok(Request::Ping) => {
                self.link.say(&Said::Pong);
                return Ok(());
            }
            Ok(Request::Unbind { event }) => (Problem::NotBound, Some(event)),
            Ok(Request::Ack { .. } | Request::Refresh { .. }) => (Problem::NotBound, None),
            Err(problem) => (problem, None),
        };
        self.link.say(&Said::error(problem, event.as_ref()));
        problem.close_reason().map_or(Ok(()), Err)
    }
}

impl<S: Transport> Bound<S> {
    /// Delivers until something ends the connection. A further bind adds an event.
    async fn run(mut self) -> (Box<Link<S>>, Option<Box<Session>>, CloseReason) {
        loop {
            let step = match self.link.input().await {
                Input::Data(data) => self.asked(&data),
                Input::Checked(checked) => self.checked(*checked),
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
    async fn leave(self, reason: CloseReason) -> (Box<Link<S>>, Option<Box<Session>>) {
        let Self { mut link, bindings, session } = self;
        let Some(session) = session else { return (link, None) };
        let is_done = reason == CloseReason::ClientClosed && link.socket.is_done();
        if is_done || matches!(reason, CloseReason::Dropped | CloseReason::Drained | CloseReason::Cut) {
            session.end();
            return (link, Some(session));
        }
        if reason != CloseReason::Reset {
            link.finish_message().await;
        }
        let written = link.socket.written();
        let in_hand = link.socket.take_messages();
        if session.leave(*bindings, in_hand, written) {
            // The books are the session's now; this connection begins new ones.
            let _left_behind = link.socket.take_done();
            link.registration.part_with_outbox();
        }
        (link, None)
    }

    fn asked(&mut self, data: &[u8]) -> Result<(), CloseReason> {
        let Some(session) = &self.session else { return self.link.asked_as_ever(data) };
        let answer = match Request::read(data) {
            Ok(Request::Bind { resume: Some(_), event, .. }) => Err((Problem::AlreadyBound, Some(event))),
            Ok(Request::Bind { token, event, resume: None }) => {
                self.link.check_bind(token, event, None);
                return Ok(());
            }
            Ok(Request::Refresh { token }) => {
                let events = self.bindings.events().cloned().collect();
                self.link.check_refresh(token, self.bindings.user_id().clone(), events);
                return Ok(());
            }
            Ok(Request::Unbind { event }) if self.bindings.remove(&event) => {
                self.link.expire_at(self.bindings.expires_at());
                self.link.say(&Said::Unbound { event: event.as_str() });
                return Ok(());
            }
            Ok(Request::Unbind { event }) => Err((Problem::LastEvent, Some(event))),
            Ok(Request::Ack { seq }) if seq <= self.link.socket.written() => {
                self.link.shared.acknowledge(session, seq);
                return Ok(());
            }
            Ok(Request::Ack { .. }) => Err((Problem::BadAck, None)),
            Ok(Request::Ping) => Ok(Said::Pong),
            Err(problem) => Err((problem, None)),
        };
        match answer {
            Ok(said) => self.link.say(&said),
            Err((problem, event)) => self.link.say(&Said::error(problem, event.as_ref())),
        }
        Ok(())
    }

    fn checked(&mut self, checked: Checked) -> Result<(), CloseReason> {
        self.link.bind_deadline = NEVER;
        match checked {
            Checked::Bind { event, result, held, .. } => self.bind_also(&event, result, held),
            Checked::Refresh(result) => {
                match result {
                    Ok(expires_at) => {
                        self.bindings.renew(expires_at);
                        self.link.expire_at(expires_at);
                        self.link.say(&Said::Refreshed { expires_in_ms: expires_at.map(expires_in_ms) });
                    }
                    Err(Refused { problem, .. }) => self.link.say(&Said::error(problem, None)),
                }
                Ok(())
            }
            Checked::Held(held) => {
                self.link.offer_held(held);
                Ok(())
            }
        }
    }

    fn bind_also(
        &mut self,
        event: &Event,
        result: Result<Identity, TokenError>,
        held: Vec<Kept>,
    ) -> Result<(), CloseReason> {
        let whose = result.as_ref().ok().map(|identity| identity.user_id.clone());
        let granted = result.map_err(|error| Refused::from(&error)).and_then(|identity| {
            if identity.user_id != *self.bindings.user_id() {
                return Err(Refused::other_user());
            }
            Ok(self.bindings.add(event.clone(), identity.expires_at)?)
        });
        match granted {
            Ok(()) => {
                let expires_at = self.bindings.expires_at();
                self.link.expire_at(expires_at);
                self.link.shared.metrics.binds.inc();
                if let Some(session) = &self.session {
                    self.link.say_bound(session, event, None, expires_at);
                }
                self.link.deliver_held(held, self.bindings.user_id(), vec![event.clone()]);
                Ok(())
            }
            Err(Refused { problem, reason }) => {
                if let Some(user_id) = whose {
                    self.link.shared.hold_again(held, &user_id);
                }
                self.link.say(&Said::error(problem, Some(event)));
                // A session's client has been told; a legacy one can only be closed.
                if self.session.is_some() { Ok(()) } else { Err(reason) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every idle connection costs. A larger state is easily added by accident: a local kept over an await will do.
    #[test]
    fn the_task_and_the_state_of_a_connection_stay_small() {
        fn size_of_task<F, A, B, C, D, E, G>(_: fn(A, B, C, D, E, G) -> F) -> usize {
            size_of::<F>()
        }
        let task = size_of_task(run::<tokio::net::TcpStream>);
        assert!(task <= 600, "{task} bytes");
        let link = size_of::<Link<tokio::net::TcpStream>>();
        assert!(link <= 640, "{link} bytes");
    }
}

//! The task of one socket: bind in time, then read, write, ping, stop; one close reason, and clean-up by `Drop` alone.

mod socket;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::{Instrument, Level, debug, debug_span, error, warn};

use crate::auth::{BindAttempt, Identity, Token, TokenAuthenticator, TokenError};
use crate::binder::{BindError, BindLimits, Binder, Bindings};
use crate::close::CloseReason;
use crate::config::Config;
use crate::legacy;
use crate::message::Event;
use crate::metrics::Metrics;
use crate::outbox::Stop;
use crate::registry::{Clock, Registration};

use socket::{Received, Socket};

/// The longest token, in bytes. Signed tokens with a few claims stay below it.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// What every connection of a gateway shares.
pub(crate) struct Shared {
    pub(crate) binder: Arc<Binder>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) config: Arc<Config>,
    pub(crate) token_authenticator: Arc<dyn TokenAuthenticator>,
}

/// Runs one upgraded connection to its end.
///
/// `already_read` is what the HTTP side read past the upgrade request.
pub(crate) async fn run<S>(
    stream: S,
    already_read: Bytes,
    peer: SocketAddr,
    registration: Registration,
    shared: Arc<Shared>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let span = debug_span!("connection", id = %registration.id(), %peer);
    async move {
        // Set up in a box, and kept in one: a task is for its whole life as large as the largest thing it ever held.
        let link = Box::pin(Link::open(stream, already_read, peer, registration, shared)).await;
        let unbound = Unbound { link };
        let (link, reason) = match unbound.bind().await {
            Ok(bound) => bound.run().await,
            Err(ended) => ended,
        };
        Box::pin(link.close(reason)).await;
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
    bindings: Bindings,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Unbound<S> {
    /// Waits for the first bind, within `bind_timeout` from the upgrade.
    async fn bind(mut self) -> Result<Bound<S>, (Box<Link<S>>, CloseReason)> {
        self.link.bind_deadline = self.link.clock().after(self.link.shared.config.bind_timeout);
        loop {
            let step = match self.link.input().await {
                Input::Data(data) => self.link.start_check(&data),
                Input::Checked(Ok((identity, event))) => match self.link.first_binding(identity, event) {
                    Ok(bindings) => return Ok(Bound { link: self.link, bindings }),
                    Err(reason) => Err(reason),
                },
                Input::Checked(Err(refused)) => Err(refused.into()),
                Input::End(reason) => Err(reason),
            };
            if let Err(reason) = step {
                return Err((self.link, reason));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Bound<S> {
    /// Delivers until something ends the connection. A further bind adds an event.
    async fn run(mut self) -> (Box<Link<S>>, CloseReason) {
        loop {
            let step = match self.link.input().await {
                Input::Data(data) => self.link.start_check(&data),
                Input::Checked(Ok((identity, event))) => self.add(&identity, event),
                Input::Checked(Err(refused)) => Err(refused.into()),
                Input::End(reason) => Err(reason),
            };
            if let Err(reason) = step {
                // The bindings go here, before the close frame is even written: whoever pushes now is told the truth.
                return (self.link, reason);
            }
        }
    }

    fn add(&mut self, identity: &Identity, event: Event) -> Result<(), CloseReason> {
        self.link.bind_deadline = NEVER;
        if identity.user_id != *self.bindings.user_id() {
            return Err(CloseReason::OtherUser);
        }
        self.bindings.add(event)?;
        self.link.shared.metrics.binds.inc();
        Ok(())
    }
}

impl From<TokenError> for CloseReason {
    fn from(error: TokenError) -> Self {
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

impl From<Stop> for CloseReason {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::QueueFull => Self::QueueFull,
            Stop::Dropped => Self::Dropped,
            Stop::GoingAway => Self::GoingAway,
            Stop::Cut | Stop::Ended => Self::Cut,
        }
    }
}

/// The tick of a deadline that is not set.
const NEVER: u64 = u64::MAX;

/// The heartbeat's two states, each with the tick at which it is due.
#[derive(Clone, Copy, Debug)]
enum Heartbeat {
    /// Nothing was heard for a while: send a ping.
    ToPing(u64),
    /// A ping was sent and nothing heard since: give up.
    ForPong(u64),
}

impl Heartbeat {
    fn due(self) -> u64 {
        match self {
            Self::ToPing(tick) | Self::ForPong(tick) => tick,
        }
    }
}

type Checked = Result<(Identity, Event), TokenError>;

/// What a connection has whether bound or not: its socket, its place in the registry, its deadlines.
struct Link<S> {
    socket: Socket<S>,
    peer: SocketAddr,
    registration: Registration,
    shared: Arc<Shared>,
    /// A token check on its way. Nothing is read meanwhile, so that binds keep their order; writing goes on.
    check: Option<Pin<Box<dyn Future<Output = Checked> + Send>>>,
    bind_deadline: u64,
    /// Set while the client takes no byte of something that waits.
    write_deadline: u64,
    heartbeat: Heartbeat,
    /// Why the connection ended, counted when the link is dropped: a task that panics or is given up never sets it, and
    /// is counted too.
    reason: Option<CloseReason>,
}

/// What a connection's task has to act on.
enum Input {
    /// The client sent a message.
    Data(Bytes),
    /// The token check is done.
    Checked(Checked),
    /// The connection is over.
    End(CloseReason),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Link<S> {
    async fn open(
        stream: S,
        already_read: Bytes,
        peer: SocketAddr,
        registration: Registration,
        shared: Arc<Shared>,
    ) -> Box<Self> {
        let config = &shared.config;
        let socket =
            Socket::new(stream, already_read, config.client_message_bytes_max, config.client_frame_bytes_max).await;
        let first_ping = registration.clock().after(shared.config.ping_interval);
        Box::new(Self {
            socket,
            peer,
            registration,
            shared,
            check: None,
            bind_deadline: NEVER,
            write_deadline: NEVER,
            heartbeat: Heartbeat::ToPing(first_ping),
            reason: None,
        })
    }

    fn clock(&self) -> &Clock {
        self.registration.clock()
    }

    /// Reads the bind request and starts the token check.
    fn start_check(&mut self, data: &[u8]) -> Result<(), CloseReason> {
        let [token, event] = legacy::fields(data, ["token", "event"]).map_err(|_| CloseReason::NotUnderstood)?;
        if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
            return Err(CloseReason::Incomplete);
        }
        let event = Event::new(event).map_err(|_| CloseReason::Incomplete)?;
        if self.bind_deadline == NEVER {
            self.bind_deadline = self.clock().after(self.shared.config.bind_timeout);
        }
        let (shared, peer, token) = (self.shared.clone(), self.peer, Token::new(token));
        self.check = Some(Box::pin(async move {
            let attempt = BindAttempt::new(&token, &event, peer);
            let identity = shared.token_authenticator.authenticate(&attempt).await?;
            Ok((identity, event))
        }));
        Ok(())
    }

    fn first_binding(&mut self, identity: Identity, event: Event) -> Result<Bindings, CloseReason> {
        self.bind_deadline = NEVER;
        let limits = BindLimits {
            connections_per_user_max: self.shared.config.connections_per_user_max,
            events_per_connection_max: self.shared.config.events_per_connection_max,
        };
        let bindings = self.shared.binder.bind(self.registration.outbox(), identity.user_id, event, limits)?;
        self.shared.metrics.binds.inc();
        Ok(bindings)
    }

    /// Serves the connection until there is something to act on. Its inputs: the client, the outbox with what is to be
    /// written and whether to stop, the token check, and the clock.
    async fn input(&mut self) -> Input {
        poll_fn(|cx| self.poll_input(cx)).await
    }

    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<Input> {
        loop {
            if let Poll::Ready(input) = self.poll_client(cx) {
                return Poll::Ready(input);
            }
            if let Poll::Ready(reason) = self.poll_deliver(cx) {
                return Poll::Ready(Input::End(reason));
            }
            if self.socket.take_control_went() {
                self.ping_went();
                continue;
            }
            match self.check_deadlines() {
                Err(reason) => return Poll::Ready(Input::End(reason)),
                Ok(NextStep::Write) => {}
                Ok(NextStep::WaitFor(tick)) => {
                    self.registration.outbox().set_alarm(tick);
                    return Poll::Pending;
                }
            }
        }
    }

    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<Input> {
        if let Some(check) = &mut self.check {
            return check.as_mut().poll(cx).map(|checked| {
                self.check = None;
                Input::Checked(checked)
            });
        }
        loop {
            let received = self.socket.poll_read(cx);
            if self.socket.take_heard() {
                self.heartbeat = Heartbeat::ToPing(self.clock().after(self.shared.config.ping_interval));
            }
            let Poll::Ready(received) = received else { return Poll::Pending };
            match received {
                Received::Life => {}
                Received::Data(data) => return Poll::Ready(Input::Data(data)),
                Received::End(reason) => return Poll::Ready(Input::End(reason)),
            }
        }
    }

    /// Takes what is queued and writes it, until there is nothing more or the client takes no more.
    fn poll_deliver(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        loop {
            let done = self.socket.take_done();
            let (batch, room) = self.socket.batch();
            if let Some(stop) = self.registration.outbox().visit(cx, done, batch, room) {
                return Poll::Ready(stop.into());
            }
            if self.expire() {
                continue;
            }
            if self.socket.is_idle() {
                return Poll::Pending;
            }
            match self.poll_write(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(CloseReason::Reset),
                Poll::Pending => {
                    // Without room: while the client takes nothing, another message is no reason to wake up.
                    let done = self.socket.take_done();
                    let (batch, _) = self.socket.batch();
                    return match self.registration.outbox().visit(cx, done, batch, 0) {
                        Some(stop) => Poll::Ready(stop.into()),
                        None => Poll::Pending,
                    };
                }
            }
        }
    }

    /// Gives up what is in hand and past its time to live. Says whether there was any, so that the outbox is told.
    fn expire(&mut self) -> bool {
        let expired = self.socket.expire();
        self.shared.metrics.expired.inc_by(expired as u64);
        expired > 0
    }

    /// Writes what is in hand and keeps the write deadline.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let mut progress = false;
        let metrics = &self.shared.metrics;
        let result = self.socket.poll_write(cx, &mut progress, |after| metrics.delivered(after));
        if result.is_ready() {
            self.write_deadline = NEVER;
        } else if progress || self.write_deadline == NEVER {
            self.write_deadline = self.clock().after(self.shared.config.write_timeout);
        }
        result
    }

    /// Starts the time for the answer, if it was a ping of ours that was written.
    fn ping_went(&mut self) {
        if let Heartbeat::ForPong(due) = &mut self.heartbeat
            && *due == NEVER
        {
            *due = self.registration.clock().after(self.shared.config.pong_timeout);
        }
    }

    fn check_deadlines(&mut self) -> Result<NextStep, CloseReason> {
        let now = self.clock().now();
        if self.write_deadline <= now {
            return Err(CloseReason::WriteTimeout);
        }
        if self.bind_deadline <= now {
            return Err(CloseReason::BindTimeout);
        }
        match self.heartbeat {
            Heartbeat::ForPong(due) if due <= now => return Err(CloseReason::PongTimeout),
            Heartbeat::ToPing(due) if due <= now => {
                self.socket.queue_ping();
                // Its time begins when it is written; until then the write deadline holds.
                self.heartbeat = Heartbeat::ForPong(NEVER);
                return Ok(NextStep::Write);
            }
            _ => {}
        }
        Ok(NextStep::WaitFor(self.write_deadline.min(self.bind_deadline).min(self.heartbeat.due())))
    }

    /// Ends the connection: refuses more messages, writes those already accepted if the reason allows, tells the client
    /// why, and waits for it to go, all of it within bounds.
    async fn close(mut self: Box<Self>, reason: CloseReason) {
        self.reason = Some(reason);
        self.check = None;
        let outbox = self.registration.outbox().clone();
        outbox.stop(Stop::Ended);
        let flushed = if reason.flushes() {
            poll_fn(|cx| self.poll_flush(cx)).await
        } else {
            self.socket.give_up();
            Ok(())
        };
        if flushed.is_err() {
            return;
        }
        match reason.frame() {
            Some((code, text)) => self.socket.queue_close(code, text),
            // The answer to the client's own close frame is queued already.
            None if reason == CloseReason::ClientClosed => {}
            None => return,
        }
        let deadline = self.clock().after(self.shared.config.close_timeout);
        poll_fn(|cx| self.poll_close(cx, deadline)).await;
    }

    /// Writes all that was accepted. An error when the client takes nothing in time, or the grace is over.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CloseReason>> {
        loop {
            let done = self.socket.take_done();
            let (batch, room) = self.socket.batch();
            if self.registration.outbox().visit(cx, done, batch, room) == Some(Stop::Cut) {
                self.reason = Some(CloseReason::Cut);
                return Poll::Ready(Err(CloseReason::Cut));
            }
            if self.expire() {
                continue;
            }
            if self.socket.is_idle() {
                return Poll::Ready(Ok(()));
            }
            match self.poll_write(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(CloseReason::Reset)),
                Poll::Pending if self.write_deadline <= self.clock().now() => {
                    return Poll::Ready(Err(CloseReason::WriteTimeout));
                }
                Poll::Pending => {
                    self.registration.outbox().set_alarm(self.write_deadline);
                    return Poll::Pending;
                }
            }
        }
    }

    /// Writes the close frame, ends the sending direction, and waits for the client to do the same.
    fn poll_close(&mut self, cx: &mut Context<'_>, deadline: u64) -> Poll<()> {
        let done = self.socket.take_done();
        let (batch, _) = self.socket.batch();
        let stop = self.registration.outbox().visit(cx, done, batch, 0);
        if stop == Some(Stop::Cut) || deadline <= self.clock().now() {
            return Poll::Ready(());
        }
        self.registration.outbox().set_alarm(deadline);
        loop {
            match self.poll_write(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
            if !self.socket.take_control_went() {
                break;
            }
            // The answer to a close frame may have been held back behind pongs. What else comes is of no interest.
            let _ended = self.socket.poll_read(cx);
        }
        match self.socket.poll_shutdown(cx) {
            // It has said its last word, and has our answer.
            Poll::Ready(Ok(())) if self.reason == Some(CloseReason::ClientClosed) => Poll::Ready(()),
            Poll::Ready(Ok(())) => self.socket.poll_discard(cx),
            Poll::Ready(Err(_)) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// What the deadlines leave to do.
enum NextStep {
    Write,
    /// Until the tick of the next deadline.
    WaitFor(u64),
}

impl<S> Drop for Link<S> {
    fn drop(&mut self) {
        let unset = if std::thread::panicking() { CloseReason::Panicked } else { CloseReason::Cut };
        let reason = self.reason.unwrap_or(unset);
        let undelivered = self.registration.outbox().close(self.socket.take_done());
        self.shared.metrics.closed(reason, undelivered);
        match reason.level() {
            Level::ERROR => error!(?reason, undelivered, "connection ended"),
            Level::WARN => warn!(?reason, undelivered, "connection ended"),
            _ => debug!(?reason, undelivered, "connection ended"),
        }
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    /// What every idle connection costs. A larger state is easily added by accident: a local kept over an await will do.
    #[test]
    fn the_task_and_the_state_of_a_connection_stay_small() {
        fn size_of_task<F, A, B, C, D, E>(_: fn(A, B, C, D, E) -> F) -> usize {
            size_of::<F>()
        }
        let task = size_of_task(run::<tokio::net::TcpStream>);
        assert!(task <= 800, "{task} bytes");
        let link = size_of::<Link<tokio::net::TcpStream>>();
        assert!(link <= 600, "{link} bytes");
    }
}

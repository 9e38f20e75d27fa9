//! One connection's socket with its deadlines: serves it until there is something to act on.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::{Level, Span, debug, debug_span, error, field, warn};

use crate::auth::{Client, Shown};
use crate::close::CloseReason;
use crate::config::Config;
use crate::dialect::{Dialect, ServerFrame, milliseconds};
use crate::handle::Stop;
use crate::mailbox::Mailbox;
use crate::metrics::InSnakeCase;
use crate::registry::{Clock, Registration};

use super::grant::Checked;
use super::inflow::Limits;
use super::socket::{Received, Socket, Takes, Wrote};
use super::transport::Transport;
use super::{Arrival, Protocol, Shared};

/// Answers that wait for a client that asks and does not read. Past it, the client is not read either.
const ANSWERS_MAX: usize = 32;

impl From<Stop> for CloseReason {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::QueueFull => Self::QueueFull,
            Stop::Dropped => Self::Dropped,
            Stop::Revoked => Self::TokenRevoked,
            Stop::Replaced => Self::Replaced,
            Stop::MadeRoom => Self::MadeRoom,
            Stop::Aged => Self::Aged,
            Stop::GoingAway | Stop::SentAway => Self::GoingAway,
            Stop::Cut | Stop::Ended => Self::Cut,
        }
    }
}

/// The tick of a deadline that is not set.
pub(super) const NEVER: u64 = u64::MAX;

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

/// What a connection has whether bound or not: its socket, its place in the registry, its deadlines.
pub(super) struct Link<S> {
    pub(super) socket: Socket<S>,
    protocol: Protocol,
    shown: Option<Arc<Shown>>,
    pub(super) registration: Registration,
    pub(super) shared: Arc<Shared>,
    /// A token check on its way. Nothing is read meanwhile, so that binds keep their order; writing goes on.
    pub(super) check: Option<Pin<Box<dyn Future<Output = Box<Checked>> + Send>>>,
    pub(super) bind_deadline: u64,
    /// When the first of the tokens is over.
    pub(super) token_deadline: u64,
    /// Set while the client takes no byte of something that waits.
    pub(super) write_deadline: u64,
    heartbeat: Heartbeat,
    /// Why the connection ended, counted when the link is dropped: a task that panics or is given up never sets it, and
    /// is counted too.
    pub(super) reason: Option<CloseReason>,
}

/// What a connection's task has to act on.
pub(super) enum Input {
    /// The client sent a message.
    Data(Bytes),
    /// The token check is done.
    Checked(Box<Checked>),
    /// The connection is over.
    End(CloseReason),
}

impl<S> Link<S> {
    pub(super) fn dialect(&self) -> &'static dyn Dialect {
        self.protocol.dialect()
    }

    /// The address that the client came from.
    pub(super) fn peer(&self) -> SocketAddr {
        self.registration.handle().peer()
    }

    /// The client as token checks see it.
    pub(super) fn client(&self) -> Client {
        Client { peer: self.peer(), shown: self.shown.clone() }
    }

    /// The span of what is logged about the connection. Made when something may be logged: kept, it would be a part of
    /// every idle connection.
    pub(super) fn span(&self) -> Span {
        let (id, peer) = (self.registration.id(), self.peer());
        let span = debug_span!("connection", %id, %peer, session = field::Empty);
        if self.dialect().has_sessions() {
            // What a message's outcome calls it, on whichever connection.
            span.record("session", field::display(self.mailbox().id()));
        }
        span
    }

    pub(super) fn mailbox(&self) -> &Arc<Mailbox> {
        self.registration.mailbox()
    }

    pub(super) fn clock(&self) -> &Clock {
        self.registration.clock()
    }
}

impl<S: Transport> Link<S> {
    pub(super) fn open(stream: S, already_read: &[u8], arrival: Arrival) -> Self {
        let Arrival { protocol, token: _, shown, registration, shared } = arrival;
        let config = &shared.config;
        let socket = Socket::new(stream, already_read, Limits::of(config));
        let clock = registration.clock();
        let (first_ping, bind_deadline) = (clock.after(config.ping_interval), clock.after(config.bind_timeout));
        registration.mailbox().share(socket.direct());
        Self {
            socket,
            protocol,
            shown,
            registration,
            shared,
            check: None,
            bind_deadline,
            token_deadline: NEVER,
            write_deadline: NEVER,
            heartbeat: Heartbeat::ToPing(first_ping),
            reason: None,
        }
    }

    /// Says something, where the dialect has a word for it.
    pub(super) fn say(&mut self, frame: &ServerFrame<'_>) {
        if let Some(text) = self.dialect().word(frame) {
            self.socket.line.say(text);
        }
    }

    pub(super) fn welcome(&mut self) {
        let Config { bind_timeout, ping_interval, .. } = &*self.shared.config;
        let (bind_timeout_ms, ping_interval_ms) = (milliseconds(*bind_timeout), milliseconds(*ping_interval));
        self.say(&ServerFrame::Welcome { bind_timeout_ms, ping_interval_ms });
    }

    /// Serves the connection until there is something to act on. Its inputs: the client, the mailbox with what is to be
    /// written, the handle with whether to stop, the token check, and the clock.
    pub(super) async fn input(&mut self) -> Input {
        poll_fn(|cx| self.poll_input(cx)).await
    }

    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<Input> {
        loop {
            if let Poll::Ready(input) = self.poll_client(cx) {
                return Poll::Ready(input);
            }
            let is_held_back = self.holds_back();
            if let Poll::Ready(reason) = self.poll_deliver(cx) {
                return Poll::Ready(Input::End(reason));
            }
            if self.socket.take_control_went() {
                self.ping_went();
                continue;
            }
            if is_held_back && !self.holds_back() {
                continue;
            }
            match self.check_deadlines() {
                Err(reason) => return Poll::Ready(Input::End(reason)),
                Ok(NextStep::Write) => {}
                Ok(NextStep::WaitFor(tick)) => {
                    self.registration.handle().set_alarm(tick);
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
        if self.holds_back() {
            return Poll::Pending;
        }
        loop {
            let received = self.socket.poll_read(cx, self.shared.limits());
            if self.socket.take_heard() {
                self.heartbeat = Heartbeat::ToPing(self.clock().after(self.shared.config.ping_interval));
            }
            let Poll::Ready(received) = received else {
                let Self { socket, registration, shared, .. } = self;
                socket.note_unfinished(|| registration.clock().after(shared.config.client_message_timeout));
                return Poll::Pending;
            };
            match received {
                Received::Life => {}
                Received::Data(data) => return Poll::Ready(Input::Data(data)),
                Received::End(reason) => return Poll::Ready(Input::End(reason)),
            }
        }
    }

    /// Whether the client is not read because it does not read its answers.
    fn holds_back(&self) -> bool {
        self.socket.line.own() >= ANSWERS_MAX
    }

    /// Why the connection ends when it is told to. A session's client is told when to come back.
    fn stopped(&mut self, stop: Stop) -> CloseReason {
        if matches!(stop, Stop::GoingAway | Stop::SentAway | Stop::Aged) {
            let retry_after_ms = milliseconds(draw_below(self.shared.config.reconnect_spread));
            self.say(&ServerFrame::Goaway { retry_after_ms });
        }
        match stop {
            Stop::GoingAway | Stop::SentAway if self.dialect().has_sessions() => CloseReason::Drained,
            _ => stop.into(),
        }
    }

    /// Takes what is queued and writes it, until there is nothing more or the client takes no more.
    pub(super) fn poll_deliver(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        loop {
            let (stop, has_expired) = self.visit(cx, Takes::Messages);
            if let Some(stop) = stop {
                return Poll::Ready(self.stopped(stop));
            }
            if self.socket.is_idle() {
                if has_expired {
                    continue;
                }
                return Poll::Pending;
            }
            match self.poll_write(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(CloseReason::Reset),
                Poll::Pending => {
                    // While the client takes nothing, another message is no reason to wake up.
                    return match self.visit(cx, Takes::Nothing).0 {
                        Some(stop) => Poll::Ready(self.stopped(stop)),
                        None => Poll::Pending,
                    };
                }
            }
        }
    }

    /// Looks into the mailbox. Returns whether to stop, and whether messages in hand were past their time to live and are
    /// gone.
    pub(super) fn visit(&mut self, cx: &Context<'_>, takes: Takes) -> (Option<Stop>, bool) {
        let visit = self.socket.visit(self.registration.mailbox(), cx, takes);
        self.shared.metrics.expired.inc_by(visit.expired as u64);
        (visit.stop, visit.expired > 0)
    }

    /// Writes what is in hand and keeps the write deadline.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let mut wrote = Wrote::default();
        let metrics = &self.shared.metrics;
        let result = self.socket.poll_write(cx, &mut wrote, |after| metrics.delivered(after));
        self.note_written(wrote.seq);
        if result.is_ready() {
            self.write_deadline = NEVER;
        } else if wrote.progress || self.write_deadline == NEVER {
            self.write_deadline = self.clock().after(self.shared.config.write_timeout);
        }
        result
    }

    /// Tells a session's mailbox that everything up to this number is written.
    pub(super) fn note_written(&self, seq: u64) {
        if seq > 0 {
            let metrics = &self.shared.metrics;
            self.mailbox().wrote(seq, Instant::now(), |after| metrics.delivered(after));
        }
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
        if self.token_deadline <= now {
            return Err(CloseReason::TokenExpired);
        }
        // While nothing is read, the client cannot finish what it has begun.
        let is_read = self.check.is_none() && !self.holds_back();
        let message_deadline = self.socket.message_deadline().filter(|_| is_read).unwrap_or(NEVER);
        if message_deadline <= now {
            return Err(CloseReason::MessageTimeout);
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
        let deadlines =
            [self.write_deadline, self.bind_deadline, self.token_deadline, message_deadline, self.heartbeat.due()];
        Ok(NextStep::WaitFor(deadlines.into_iter().fold(NEVER, u64::min)))
    }
}

/// A random time below this one, so that clients do not all come back at once.
fn draw_below(spread: Duration) -> Duration {
    // Without random numbers, all at half the time: late, but not lost.
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    spread.mul_f64(f64::from(random) / f64::from(u32::MAX))
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
        let undelivered = self.registration.mailbox().close(self.socket.take_done());
        self.shared.metrics.closed(reason, undelivered);
        let _entered = self.span().entered();
        let lasted = self.registration.handle().since().elapsed();
        let (level, reason) = (reason.level(), InSnakeCase(reason));
        match level {
            Level::ERROR => error!(%reason, undelivered, ?lasted, "connection ended"),
            Level::WARN => warn!(%reason, undelivered, ?lasted, "connection ended"),
            _ => debug!(%reason, undelivered, ?lasted, "connection ended"),
        }
    }
}

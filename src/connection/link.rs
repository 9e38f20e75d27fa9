//! One connection's socket with its deadlines: serves it until there is something to act on, and closes it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tracing::{Level, debug, error, warn};

use crate::close::CloseReason;
use crate::config::Config;
use crate::metrics::InSnakeCase;
use crate::outbox::Stop;
use crate::registry::{Clock, Registration};
use crate::sessions::Session;

use super::batch::{Batch, SessionBatch};
use super::binding::Checked;
use super::frames::{Request, Said, milliseconds};
use super::socket::{Received, Socket};
use super::transport::Transport;
use super::{Protocol, Shared};

/// Answers that wait for a client that asks and does not read. Past it, the client is not read either.
const SAID_MAX: usize = 32;

impl From<Stop> for CloseReason {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::QueueFull => Self::QueueFull,
            Stop::Dropped => Self::Dropped,
            Stop::Replaced => Self::Replaced,
            Stop::GoingAway => Self::GoingAway,
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
    pub(super) peer: SocketAddr,
    pub(super) registration: Registration,
    pub(super) shared: Arc<Shared>,
    /// A token check on its way. Nothing is read meanwhile, so that binds keep their order; writing goes on.
    pub(super) check: Option<Pin<Box<dyn Future<Output = Box<Checked>> + Send>>>,
    /// Whether that is a look for what is held, which goes before what is in the outbox.
    pub(super) looks_for_held: bool,
    pub(super) bind_deadline: u64,
    /// When the first of the tokens is over.
    pub(super) token_deadline: u64,
    /// Set while the client takes no byte of something that waits.
    write_deadline: u64,
    heartbeat: Heartbeat,
    /// Why the connection ended, counted when the link is dropped: a task that panics or is given up never sets it, and
    /// is counted too.
    reason: Option<CloseReason>,
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

impl<S: Transport> Link<S> {
    pub(super) async fn open(
        stream: S,
        already_read: Bytes,
        protocol: Protocol,
        peer: SocketAddr,
        registration: Registration,
        shared: Arc<Shared>,
    ) -> Box<Self> {
        let config = &shared.config;
        let batch = match protocol {
            Protocol::Legacy => Batch::Legacy(VecDeque::new()),
            Protocol::Session => Batch::Session(Box::<SessionBatch>::default()),
        };
        let (message_bytes_max, frame_bytes_max) = (config.client_message_bytes_max, config.client_frame_bytes_max);
        let frames_per_second_max = config.client_frames_per_second_max;
        let socket =
            Socket::new(stream, already_read, batch, message_bytes_max, frame_bytes_max, frames_per_second_max).await;
        let clock = registration.clock();
        let (first_ping, bind_deadline) = (clock.after(config.ping_interval), clock.after(config.bind_timeout));
        Box::new(Self {
            socket,
            peer,
            registration,
            shared,
            check: None,
            looks_for_held: false,
            bind_deadline,
            token_deadline: NEVER,
            write_deadline: NEVER,
            heartbeat: Heartbeat::ToPing(first_ping),
            reason: None,
        })
    }

    pub(super) fn clock(&self) -> &Clock {
        self.registration.clock()
    }

    /// Says something to a client of the session protocol.
    pub(super) fn say(&mut self, said: &Said<'_>) {
        self.socket.say(said.to_json());
    }

    pub(super) fn welcome(&mut self) {
        if self.socket.is_session() {
            let Config { bind_timeout, ping_interval, .. } = &*self.shared.config;
            let (bind_timeout_ms, ping_interval_ms) = (milliseconds(*bind_timeout), milliseconds(*ping_interval));
            self.say(&Said::Welcome { bind_timeout_ms, ping_interval_ms });
        }
    }

    /// Serves the connection until there is something to act on. Its inputs: the client, the outbox with what is to be
    /// written and whether to stop, the token check, and the clock.
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
                    self.registration.outbox().set_alarm(tick);
                    return Poll::Pending;
                }
            }
        }
    }

    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<Input> {
        if let Some(check) = &mut self.check {
            return check.as_mut().poll(cx).map(|checked| {
                (self.check, self.looks_for_held) = (None, false);
                Input::Checked(checked)
            });
        }
        if self.holds_back() {
            return Poll::Pending;
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

    /// Whether the client is not read because it does not read its answers.
    fn holds_back(&self) -> bool {
        self.socket.said() >= SAID_MAX
    }

    /// Why the connection ends when it is told to. A session's client is told when to come back.
    fn stopped(&mut self, stop: Stop) -> CloseReason {
        if stop == Stop::GoingAway && self.socket.is_session() {
            let retry_after_ms = milliseconds(draw_below(self.shared.config.reconnect_spread));
            self.say(&Said::Goaway { retry_after_ms });
            return CloseReason::Drained;
        }
        stop.into()
    }

    /// Takes what is queued and writes it, until there is nothing more or the client takes no more.
    fn poll_deliver(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        loop {
            if let Some(stop) = self.socket.visit(self.registration.outbox(), cx, !self.looks_for_held) {
                return Poll::Ready(self.stopped(stop));
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
                    return match self.socket.visit(self.registration.outbox(), cx, false) {
                        Some(stop) => Poll::Ready(self.stopped(stop)),
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
        self.socket.keep_sent();
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
        if self.token_deadline <= now {
            return Err(CloseReason::TokenExpired);
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
        let deadlines = [self.write_deadline, self.bind_deadline, self.token_deadline, self.heartbeat.due()];
        Ok(NextStep::WaitFor(deadlines.into_iter().fold(NEVER, u64::min)))
    }

    /// Writes the rest of a message that is partly written, so that a session leaves between two messages: its client has
    /// each whole, or never will from this connection. Gives up after a while, and at once when the session is wanted
    /// elsewhere or is over.
    pub(super) async fn finish_message(&mut self) {
        let deadline = self.clock().after(self.shared.config.close_timeout);
        self.registration.outbox().set_alarm(deadline);
        poll_fn(|cx| {
            let metrics = &self.shared.metrics;
            let finished = self.socket.poll_finish_frame(cx, |after| metrics.delivered(after));
            let stop = self.socket.visit(self.registration.outbox(), cx, false);
            let is_urgent = matches!(stop, Some(Stop::Replaced | Stop::Dropped | Stop::GoingAway | Stop::Cut));
            if finished.is_ready() || is_urgent || deadline <= self.clock().now() {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
        self.socket.keep_sent();
    }

    /// Ends the connection: refuses more messages, writes those already accepted if the reason allows, tells the client
    /// why, and waits for it to go, all of it within bounds. A session that is over ends with it, and until then its client
    /// may acknowledge what it got last.
    pub(super) async fn close(mut self: Box<Self>, reason: CloseReason, session: Option<Box<Session>>) {
        self.reason = Some(reason);
        self.say_goodbye(reason, session).await;
        if !self.socket.is_idle() {
            // It did not read, and will not have this from us.
            self.socket.reset_when_dropped();
        }
    }

    async fn say_goodbye(&mut self, reason: CloseReason, session: Option<Box<Session>>) {
        self.check = None;
        let outbox = self.registration.outbox().clone();
        outbox.stop(Stop::Ended);
        match reason.frame() {
            // Nothing goes behind the answer to the client's close frame, or to one who is gone.
            None => self.socket.silence(),
            Some(_) if reason.flushes() => {}
            Some(_) => self.socket.give_up(),
        }
        if self.socket.is_torn() {
            return;
        }
        let session = session.as_deref();
        let has_last_words = reason.flushes() || self.socket.said() > 0;
        if has_last_words && poll_fn(|cx| self.poll_flush(cx, session)).await.is_err() {
            return;
        }
        match reason.frame() {
            // The answer to the client's own close frame is queued already.
            _ if self.socket.has_closed() => {}
            Some((code, text)) => self.socket.queue_close(code, text),
            None => return,
        }
        let deadline = self.clock().after(self.shared.config.close_timeout);
        poll_fn(|cx| self.poll_close(cx, deadline, session)).await;
    }

    /// Reads what the client of a session that is over still says, and takes its acknowledgements. Ready when it has
    /// closed.
    fn poll_last_acks(&mut self, cx: &mut Context<'_>, session: Option<&Session>) -> Poll<()> {
        let Self { socket, shared, .. } = self;
        let written = socket.written();
        socket.poll_last_words(cx, |data| {
            if let (Some(session), Ok(Request::Ack { seq })) = (session, Request::read(data))
                && seq <= written
            {
                shared.acknowledge(session, seq);
            }
        })
    }

    /// Writes all that was accepted. An error when the client takes nothing in time, or the grace is over.
    fn poll_flush(&mut self, cx: &mut Context<'_>, session: Option<&Session>) -> Poll<Result<(), CloseReason>> {
        let is_over = session.is_some() && self.poll_last_acks(cx, session).is_ready();
        if is_over {
            // It has closed, or broke the protocol: nothing goes behind the answer to a close frame.
            self.socket.silence();
        }
        loop {
            if self.socket.visit(self.registration.outbox(), cx, !is_over) == Some(Stop::Cut) {
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
    fn poll_close(&mut self, cx: &mut Context<'_>, deadline: u64, session: Option<&Session>) -> Poll<()> {
        let stop = self.socket.visit(self.registration.outbox(), cx, false);
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
            if self.socket.has_closed() {
                // The answer to its close frame may have been held back behind pongs.
                let _ended = self.socket.poll_read(cx);
            } else {
                let _closed = self.poll_last_acks(cx, session);
            }
        }
        if ready!(self.socket.poll_shutdown(cx)).is_err() {
            return Poll::Ready(());
        }
        ready!(self.poll_last_acks(cx, session));
        // A client that has closed has said its last word, and has our answer.
        if self.socket.has_closed() { Poll::Ready(()) } else { self.socket.poll_discard(cx) }
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
        let undelivered = self.registration.outbox().close(self.socket.take_done());
        self.shared.metrics.closed(reason, undelivered);
        let (level, reason) = (reason.level(), InSnakeCase(reason));
        match level {
            Level::ERROR => error!(%reason, undelivered, "connection ended"),
            Level::WARN => warn!(%reason, undelivered, "connection ended"),
            _ => debug!(%reason, undelivered, "connection ended"),
        }
    }
}

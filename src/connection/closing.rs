//! The end of a connection: what was accepted is written if the reason allows, the client is told why, and all of it within
//! bounds.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use crate::close::CloseReason;
use crate::dialect::Request;
use crate::handle::Stop;
use crate::sessions::Attached;

use super::link::Link;
use super::socket::{Takes, Wrote};
use super::transport::Transport;

impl<S: Transport> Link<S> {
    /// Writes the rest of a message that is partly written, so that a session leaves between two messages: its client has
    /// each whole, or never will from this connection. Gives up after a while, and at once when the session is wanted
    /// elsewhere or is over.
    pub(super) async fn finish_message(&mut self) {
        let deadline = self.clock().after(self.shared.config.close_timeout);
        self.registration.handle().set_alarm(deadline);
        let mut wrote = Wrote::default();
        poll_fn(|cx| {
            // First, for a frame that was begun past this task, and so that none is from here on.
            let (stop, _) = self.visit(cx, Takes::Nothing);
            let metrics = &self.shared.metrics;
            let finished = self.socket.poll_finish_frame(cx, &mut wrote, |after| metrics.delivered(after));
            let is_urgent = matches!(
                stop,
                Some(Stop::Replaced | Stop::Dropped | Stop::Revoked | Stop::MadeRoom | Stop::GoingAway | Stop::Cut)
            );
            if finished.is_ready() || is_urgent || deadline <= self.clock().now() {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
        self.note_written(wrote.seq);
    }

    /// Ends the connection: refuses more messages, writes those already accepted if the reason allows, tells the client
    /// why, and waits for it to go, all of it within bounds. A session that is over ends with it, and until then its client
    /// may acknowledge what it got last.
    pub(super) async fn close(mut self: Box<Self>, reason: CloseReason, session: Option<Box<Attached>>) {
        self.reason = Some(reason);
        self.say_goodbye(reason, session).await;
        if !self.socket.is_idle() {
            // It did not read, and will not have this from us.
            self.socket.reset_when_dropped();
        }
    }

    async fn say_goodbye(&mut self, reason: CloseReason, session: Option<Box<Attached>>) {
        self.check = None;
        self.registration.handle().stop(Stop::Ended);
        // Once more, for a frame that was begun past this task. From here on nobody else writes.
        poll_fn(|cx| {
            self.visit(cx, Takes::Nothing);
            Poll::Ready(())
        })
        .await;
        match reason.frame() {
            // Nothing goes behind the answer to the client's close frame, or to one who is gone.
            None => self.socket.line.silence(),
            Some(_) if reason.flushes() => {}
            Some(_) => self.socket.line.give_up(),
        }
        if self.socket.line.is_torn() {
            return;
        }
        let session = session.as_deref();
        let has_last_words = reason.flushes() || self.socket.line.own() > 0;
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
    fn poll_last_acks(&mut self, cx: &mut Context<'_>, session: Option<&Attached>) -> Poll<()> {
        let Self { socket, shared, .. } = self;
        socket.poll_last_words(cx, shared.limits(), |data| {
            if let (Some(session), Ok(Request::Ack { seq })) = (session, Request::read(data)) {
                let _never_sent = session.mailbox().acknowledge(seq, |after| shared.metrics.acknowledged(after));
            }
        })
    }

    /// Writes all that was accepted. An error when the client takes nothing in time, or the grace is over.
    fn poll_flush(&mut self, cx: &mut Context<'_>, session: Option<&Attached>) -> Poll<Result<(), CloseReason>> {
        let is_over = session.is_some() && self.poll_last_acks(cx, session).is_ready();
        if is_over {
            // It has closed, or broke the protocol: nothing goes behind the answer to a close frame.
            self.socket.line.silence();
        }
        let takes = if is_over { Takes::Nothing } else { Takes::Messages };
        loop {
            let (stop, has_expired) = self.visit(cx, takes);
            if stop == Some(Stop::Cut) {
                self.reason = Some(CloseReason::Cut);
                return Poll::Ready(Err(CloseReason::Cut));
            }
            if self.socket.is_idle() {
                if has_expired {
                    continue;
                }
                return Poll::Ready(Ok(()));
            }
            match self.poll_write(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(CloseReason::Reset)),
                Poll::Pending if self.write_deadline <= self.clock().now() => {
                    return Poll::Ready(Err(CloseReason::WriteTimeout));
                }
                Poll::Pending => {
                    self.registration.handle().set_alarm(self.write_deadline);
                    return Poll::Pending;
                }
            }
        }
    }

    /// Writes the close frame, ends the sending direction, and waits for the client to do the same.
    fn poll_close(&mut self, cx: &mut Context<'_>, deadline: u64, session: Option<&Attached>) -> Poll<()> {
        let (stop, _) = self.visit(cx, Takes::Nothing);
        if stop == Some(Stop::Cut) || deadline <= self.clock().now() {
            return Poll::Ready(());
        }
        self.registration.handle().set_alarm(deadline);
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
                let _ended = self.socket.poll_read(cx, self.shared.limits());
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

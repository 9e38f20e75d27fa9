//! One WebSocket as the connection's task sees it: tungstenite reads, and the mailbox's frames are written as they are.
//!
//! Frames come from the mailbox already encoded, their bodies shared between connections. Sent through tungstenite, each would be
//! copied into a buffer of this connection's own; so they are written past it, many in one call, and tungstenite's
//! own output (its answers to pings and close frames) is slipped in between two of them.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::ReadBuf;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig, WebSocketContext};

use crate::close::CloseReason;
use crate::dialect::Content;
use crate::mailbox::{Depth, FRAMES_MAX, Line, Mailbox, Visit, Wants, WriteNow};

use super::inflow::Limits;
use super::transport::Transport;
use super::wire::{CONTROL_BYTES_MAX, Polled, Unfinished, Wire};

/// RFC 6455 section 5.2.
const OPCODE_CLOSE: u8 = 0x8;
const OPCODE_PING: u8 = 0x9;

/// Held while a message of the client's is read. Clients send little: a token once, then pongs.
const READ_BUFFER_BYTES: usize = 512;

/// What a client may still send behind the gateway's close frame.
const DISCARDED_BYTES_MAX: u32 = 1024 * 1024;

pub(super) struct Socket<S> {
    wire: Wire<S>,
    /// tungstenite, which reads what the client sends. Here only while it has something unfinished: a quiet connection
    /// needs neither its state nor its buffer.
    reader: Option<Box<Reader>>,
    /// What is in hand to write.
    pub(super) line: Line,
    /// What was written since the mailbox was last told.
    done: Depth,
    /// Whether bytes were written that the stream may still hold back.
    unflushed: bool,
    /// Whether tungstenite has given up on what comes from the client.
    unreadable: bool,
    /// Whether control frames were written since anybody asked, so that tungstenite can bring out what it held back.
    control_went: bool,
    /// Whether the client's close frame came, which is answered by then.
    has_closed: bool,
    is_done: bool,
    /// Bytes that came behind the gateway's close frame.
    discarded: u32,
    /// Whether the last message was text. The gateway itself takes both kinds alike.
    #[cfg(feature = "inside")]
    pub(super) is_text: bool,
}

/// What reads a message of the client's.
struct Reader {
    context: WebSocketContext,
    /// The tick by which what is unfinished must be finished, if anybody has seen that it is.
    deadline: Option<u64>,
}

impl Reader {
    fn new(limits: Limits, already_read: &[u8]) -> Box<Self> {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_write_buffer_size(CONTROL_BYTES_MAX)
            .max_message_size(Some(limits.message_bytes_max))
            .max_frame_size(Some(limits.frame_bytes_max));
        let context = WebSocketContext::from_partially_read(already_read.to_vec(), Role::Server, Some(config));
        Box::new(Self { context, deadline: None })
    }
}

/// What came from the client.
#[derive(Debug)]
pub(super) enum Received {
    /// A text or binary message.
    Data(Bytes),
    /// A ping or pong: a sign of life.
    Life,
    /// Nothing more will come.
    End(CloseReason),
}

impl<S> Socket<S> {
    /// What was written since the last visit, for the mailbox's books.
    pub(super) fn take_done(&mut self) -> Depth {
        std::mem::take(&mut self.done)
    }

    /// Whether the client's close frame has come.
    pub(super) fn has_closed(&self) -> bool {
        self.has_closed
    }

    /// Whether the client's close frame said that it is done, not that it may be back.
    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }
}

/// What a look into the mailbox is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    /// To be told to stop, and no message: none could be written now.
    Nothing,
    Messages,
}

/// What a write got done.
#[derive(Debug, Default)]
pub(super) struct Wrote {
    /// Whether any byte went.
    pub(super) progress: bool,
    /// The last number of a session that went, 0 for none.
    pub(super) seq: u64,
}

impl<S: Transport> Socket<S> {
    /// `already_read` is what the HTTP side read past the upgrade request.
    pub(super) fn new(stream: S, already_read: &[u8], limits: Limits) -> Self {
        let mut wire = Wire::new(stream, limits);
        wire.look(already_read, limits);
        let reader = (!already_read.is_empty()).then(|| Reader::new(limits, already_read));
        Self {
            wire,
            reader,
            line: Line::default(),
            done: Depth::default(),
            unflushed: false,
            unreadable: false,
            control_went: false,
            has_closed: false,
            is_done: false,
            discarded: 0,
            #[cfg(feature = "inside")]
            is_text: false,
        }
    }

    /// Looks into the mailbox: reports what was written, takes more if `takes` says so, and learns whether to stop.
    pub(super) fn visit(&mut self, mailbox: &Mailbox, cx: &Context<'_>, takes: Takes) -> Visit {
        let wants = match takes {
            Takes::Nothing => Wants::Nothing,
            Takes::Messages => Wants::Messages { is_busy: self.unflushed || self.has_control() },
        };
        let done = self.take_done();
        let visit = mailbox.visit(cx, &mut self.line, done, wants);
        self.earn(visit.written_elsewhere);
        visit
    }

    /// Allows as many frames more, since a session's client acknowledges what was written to it.
    pub(super) fn earn(&mut self, numbers: u32) {
        self.wire.earn(numbers);
    }

    /// Notes what the client has not finished once everything that came is read. `new_deadline` is for what began since
    /// the last look. Kept in the reader, which an idle connection does not have.
    pub(super) fn note_unfinished(&mut self, new_deadline: impl FnOnce() -> u64) {
        let unfinished = self.wire.unfinished();
        let Some(reader) = &mut self.reader else { return };
        match unfinished {
            Unfinished::Nothing => reader.deadline = None,
            Unfinished::Same if reader.deadline.is_some() => {}
            Unfinished::Same | Unfinished::Newer => reader.deadline = Some(new_deadline()),
        }
    }

    /// The tick by which the client must finish what it has begun, if it has.
    pub(super) fn message_deadline(&self) -> Option<u64> {
        self.reader.as_ref()?.deadline
    }

    fn has_control(&self) -> bool {
        self.wire.control.is_some()
    }

    /// The socket for others to write to.
    pub(super) fn direct(&self) -> Option<Arc<dyn WriteNow>> {
        self.wire.stream.direct()
    }

    /// Has the connection reset when it is dropped, with what the client has not read.
    pub(super) fn reset_when_dropped(&self) {
        self.wire.stream.reset_when_dropped();
    }

    /// Whether everything in hand is written.
    pub(super) fn is_idle(&self) -> bool {
        self.line.is_empty() && !self.unflushed && !self.has_control()
    }

    /// Whether control frames were written since the last call. tungstenite, which holds answers back while they wait,
    /// must then be polled again.
    pub(super) fn take_control_went(&mut self) -> bool {
        std::mem::take(&mut self.control_went)
    }

    /// Whether bytes came from the client since the last call, be they part of a frame only.
    pub(super) fn take_heard(&mut self) -> bool {
        std::mem::take(&mut self.wire.heard)
    }

    /// Queues the gateway's close frame. Nothing that tungstenite has to answer afterwards is written any more.
    pub(super) fn queue_close(&mut self, code: u16, text: &str) {
        self.queue_control(OPCODE_CLOSE, &[&code.to_be_bytes(), text.as_bytes()].concat());
        self.wire.is_closed = true;
    }

    /// Queues a ping of the gateway's.
    pub(super) fn queue_ping(&mut self) {
        self.queue_control(OPCODE_PING, &[]);
    }

    /// Queues a control frame behind the frame that is being written.
    fn queue_control(&mut self, opcode: u8, body: &[u8]) {
        debug_assert!(body.len() <= 125, "RFC 6455 section 5.5");
        self.wire.write_control(&[&[0x80 | opcode, body.len() as u8], body].concat());
    }

    /// Writes what is in hand. Ready when all of it is with the kernel; `wrote` says what went. `delivered` is called with
    /// the time that each message took which is done with that.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        wrote: &mut Wrote,
        mut delivered: impl FnMut(Duration),
    ) -> Poll<io::Result<()>> {
        loop {
            let wire = &mut self.wire;
            let at_boundary = !self.line.is_begun();
            let count = if at_boundary && let Some(control) = &mut wire.control {
                let count = ready!(Pin::new(&mut wire.stream).poll_write(cx, control.rest()))?;
                control.written += count;
                if control.rest().is_empty() {
                    self.control_went = true;
                    wire.control = None;
                }
                count
            } else if !self.line.is_empty() {
                // With a control frame waiting, only the frame that is partly written goes before it.
                let frames_max = if wire.control.is_none() { FRAMES_MAX } else { 1 };
                ready!(self.poll_write_frames(cx, frames_max, wrote, &mut delivered))?
            } else if self.unflushed {
                ready!(Pin::new(&mut wire.stream).poll_flush(cx))?;
                self.unflushed = false;
                return Poll::Ready(Ok(()));
            } else {
                return Poll::Ready(Ok(()));
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            wrote.progress = true;
            self.unflushed = true;
        }
    }

    /// Writes the rest of the frame that is partly written, and nothing behind it.
    pub(super) fn poll_finish_frame(
        &mut self,
        cx: &mut Context<'_>,
        wrote: &mut Wrote,
        mut delivered: impl FnMut(Duration),
    ) -> Poll<io::Result<()>> {
        while self.line.is_begun() {
            if ready!(self.poll_write_frames(cx, 1, wrote, &mut delivered))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_frames(
        &mut self,
        cx: &mut Context<'_>,
        frames_max: usize,
        wrote: &mut Wrote,
        delivered: &mut impl FnMut(Duration),
    ) -> Poll<io::Result<usize>> {
        let mut slices = self.line.slices(frames_max);
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, self.line.offset());
        let count = ready!(Pin::new(&mut self.wire.stream).poll_write_vectored(cx, rest))?;
        drop(slices);
        let (now, done) = (Instant::now(), &mut self.done);
        let mut numbers = 0;
        self.line.wrote(count, |content| match content {
            Content::Message(ticket) => {
                *done += Depth::of(&ticket);
                delivered(ticket.written(now));
            }
            Content::Numbered { seq, .. } => {
                wrote.seq = seq;
                // A session's client acknowledges each of them. What it is told besides was its own doing.
                numbers += 1;
            }
            Content::Gap { to } => {
                wrote.seq = to;
                numbers += 1;
            }
            Content::Own | Content::Taken => {}
        });
        self.earn(numbers);
        Poll::Ready(Ok(count))
    }

    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, limits: Limits) -> Poll<Received> {
        if self.unreadable {
            return Poll::Ready(Received::End(CloseReason::Reset));
        }
        let polled = self.poll_reader(cx, limits);
        // Before the message, so that one which came too many is not acted on.
        if let Some(reason) = self.wire.broken() {
            self.unreadable = true;
            return Poll::Ready(Received::End(reason));
        }
        #[cfg(feature = "inside")]
        if let Poll::Ready(Ok(message)) = &polled {
            self.is_text = message.is_text();
        }
        let received = match ready!(polled) {
            Ok(Message::Text(text)) => Received::Data(text.into()),
            Ok(Message::Binary(bytes)) => Received::Data(bytes),
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => Received::Life,
            Ok(Message::Close(frame)) => {
                self.has_closed = true;
                self.is_done = frame.is_some_and(|frame| frame.code == CloseCode::Normal);
                // The next read does not read: it hands over the answer to the close frame. tungstenite answers 1014, which was
                // assigned after RFC 6455, with 1002, and has put that into the frame already; to see the client's own code,
                // each connection would have to unmask what it reads a second time.
                let _answered = self.poll_reader(cx, limits);
                Received::End(CloseReason::ClientClosed)
            }
            Err(error) => {
                self.unreadable = true;
                Received::End(reason(&error))
            }
        };
        Poll::Ready(received)
    }

    fn poll_reader(&mut self, cx: &mut Context<'_>, limits: Limits) -> Poll<Result<Message, Error>> {
        let reader = self.reader.get_or_insert_with(|| Reader::new(limits, &[]));
        match reader.context.read(&mut Polled { wire: &mut self.wire, limits, cx }) {
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                if self.wire.is_between_messages() {
                    self.reader = None;
                }
                Poll::Pending
            }
            done => Poll::Ready(done),
        }
    }

    /// Ends the sending direction, so that the client sees the end of the stream behind the close frame.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire.stream).poll_shutdown(cx)
    }

    /// Reads what still comes; ready when the client has closed, or cannot be understood any more.
    pub(super) fn poll_last_words(
        &mut self,
        cx: &mut Context<'_>,
        limits: Limits,
        mut heard: impl FnMut(&[u8]),
    ) -> Poll<()> {
        while !self.unreadable && !self.has_closed {
            if let Received::Data(data) = ready!(self.poll_read(cx, limits)) {
                heard(&data);
            }
        }
        Poll::Ready(())
    }

    /// Reads and throws away what still comes from a client that has not closed; ready when it is gone. Closing with
    /// unread bytes would reset the connection, and the close frame might be lost on its way. One that goes on sending is
    /// reset in the end: reading would cost as much as what it was closed for.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0; 512];
        while self.discarded < DISCARDED_BYTES_MAX {
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.wire.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => self.discarded += buffer.filled().len() as u32,
                _ => return Poll::Ready(()),
            }
        }
        Poll::Ready(())
    }
}

fn reason(error: &Error) -> CloseReason {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => CloseReason::TooBig,
        Error::Utf8(_) => CloseReason::NotUtf8,
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => CloseReason::Reset,
        Error::Protocol(_) | Error::Capacity(_) => CloseReason::ProtocolError,
        _ => CloseReason::Reset,
    }
}

//! The stream under tungstenite.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, ReadBuf};

use crate::close::CloseReason;

use super::inbound::{Begun, Broken, Inbound};
use super::inflow::{Inflow, Limits};

/// Control frames that wait for a client that does not read. A pong is at most 127 bytes, and a newer one replaces the
/// one that waits inside tungstenite, so more than a few never queue.
pub(super) const CONTROL_BYTES_MAX: usize = 512;

/// The stream, as far as tungstenite has to do with it: what it reads is looked at first, and what it writes is set aside in
/// `control`, to be placed between two frames.
pub(super) struct Wire<S> {
    pub(super) stream: S,
    pub(super) control: Option<Box<Control>>,
    pub(super) heard: bool,
    /// Whether the gateway's close frame is queued, after which RFC 6455 section 5.5.1 allows no other frame.
    pub(super) is_closed: bool,
    /// Whether tungstenite has something to write for which there is no room in `control`.
    holds_back: bool,
    inbound: Inbound,
    /// What the client may still send.
    inflow: Inflow,
    /// Why the client is not read any more, where tungstenite would read on.
    broken: Option<CloseReason>,
}

/// Whether the client has begun something and not finished it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfinished {
    Nothing,
    /// The same as at the last look, if there was any.
    Same,
    /// Something that began since then.
    Newer,
}

/// Control frames to write. In a box, because an idle connection has none.
#[derive(Debug, Default)]
pub(super) struct Control {
    bytes: Vec<u8>,
    pub(super) written: usize,
}

impl Control {
    pub(super) fn rest(&self) -> &[u8] {
        &self.bytes[self.written..]
    }
}

impl<S> Wire<S> {
    pub(super) fn new(stream: S, limits: Limits) -> Self {
        Self {
            stream,
            control: None,
            heard: false,
            is_closed: false,
            holds_back: false,
            inbound: Inbound::default(),
            inflow: Inflow::new(limits.rates, Instant::now()),
            broken: None,
        }
    }

    /// Looks at what the client sent, before tungstenite does.
    pub(super) fn look(&mut self, bytes: &[u8], limits: Limits) {
        let is_good = match self.inbound.read(bytes) {
            Ok(Begun { frames: 0, .. }) => return,
            Ok(begun) => self.inflow.spend(begun, limits, Instant::now()),
            Err(Broken::NotMinimal) => Err(CloseReason::ProtocolError),
            Err(Broken::NotUtf8) => Err(CloseReason::NotUtf8),
        };
        self.broken = self.broken.or(is_good.err());
    }

    /// Queues control frames, or a part of one.
    pub(super) fn write_control(&mut self, bytes: &[u8]) {
        self.control.get_or_insert_default().bytes.extend_from_slice(bytes);
    }

    pub(super) fn broken(&self) -> Option<CloseReason> {
        self.broken
    }

    /// Allows as many frames more.
    pub(super) fn earn(&mut self, frames: u32) {
        self.inflow.earn(frames);
    }

    /// What is unfinished of what the client sends.
    pub(super) fn unfinished(&mut self) -> Unfinished {
        match (self.inbound.is_between_messages(), self.inbound.take_has_ended()) {
            (true, _) => Unfinished::Nothing,
            (false, true) => Unfinished::Newer,
            (false, false) => Unfinished::Same,
        }
    }

    /// Whether tungstenite, once it has read all there is, has nothing unfinished.
    pub(super) fn is_between_messages(&self) -> bool {
        self.inbound.is_between_messages() && !self.holds_back
    }
}

/// The stream for one call of tungstenite's, which knows of blocking and not of polling.
pub(super) struct Polled<'a, 'b, S> {
    pub(super) wire: &'a mut Wire<S>,
    pub(super) limits: Limits,
    pub(super) cx: &'a mut Context<'b>,
}

impl<S: AsyncRead + Unpin> Read for Polled<'_, '_, S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(bytes);
        let Poll::Ready(read) = Pin::new(&mut self.wire.stream).poll_read(self.cx, &mut buffer) else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        self.wire.heard = true;
        self.wire.look(buffer.filled(), self.limits);
        read.map(|()| buffer.filled().len())
    }
}

impl<S> Write for Polled<'_, '_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let wire = &mut *self.wire;
        if wire.is_closed {
            return Ok(bytes.len());
        }
        if wire.control.as_ref().is_some_and(|control| control.bytes.len() + bytes.len() > CONTROL_BYTES_MAX) {
            // The task polls the reader again once these are written.
            wire.holds_back = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        wire.write_control(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.wire.holds_back = false;
        Ok(())
    }
}

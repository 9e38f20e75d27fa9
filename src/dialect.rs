//! How a protocol words what the gateway says: frames as a head and a body, and the two dialects that clients speak.

mod legacy;
mod session;

use std::io::IoSlice;
use std::time::Instant;

use bytes::{BufMut, Bytes};

use crate::delivery::Ticket;

pub(crate) use legacy::Legacy;
pub(crate) use session::{
    Request, RequestError, Resume, SESSION_PROTOCOL, ServerFrame, Session, TOKEN_BYTES_MAX, milliseconds,
};

/// What a client speaks.
pub(crate) trait Dialect: Send + Sync {
    /// Reads what a client asks for.
    fn read(&self, data: &[u8]) -> Result<Request, RequestError>;

    /// Words what the gateway has to say beside messages. `None` where the dialect has no word for it.
    fn word(&self, frame: &ServerFrame<'_>) -> Option<String>;

    /// Whether messages are numbered and acknowledged.
    fn has_sessions(&self) -> bool;
}

/// One frame to write: a head of its own, and a body that may be shared with other connections.
#[derive(Debug)]
pub(crate) struct Frame {
    head: Head,
    body: Bytes,
    pub(crate) content: Content,
}

/// What a frame tells.
#[derive(Debug)]
pub(crate) enum Content {
    /// A message that is done when it is written.
    Message(Ticket),
    /// A session's message: the session keeps it until it is acknowledged.
    Numbered { seq: u64, expires_at: Option<Instant> },
    /// That a session's messages are lost, up to this number.
    Gap { to: u64 },
    /// Something of the gateway's own.
    Own,
    /// A message that the session took back.
    Taken,
}

impl Frame {
    /// A message as it is. The ticket has the body.
    pub(crate) fn message(ticket: Ticket) -> Self {
        let opcode = if ticket.is_text() { OPCODE_TEXT } else { OPCODE_BINARY };
        let head = Head::of(opcode, ticket.payload().len());
        Self { head, body: Bytes::new(), content: Content::Message(ticket) }
    }

    /// A session's message with its number.
    pub(crate) fn numbered(seq: u64, ticket: &Ticket) -> Self {
        let body = ticket.session_tail(session::push_tail).clone();
        let head = session::push_head(seq, body.len());
        Self { head, body, content: Content::Numbered { seq, expires_at: ticket.expires_at() } }
    }

    /// That the messages with these numbers are lost.
    pub(crate) fn gap(from: u64, to: u64) -> Self {
        Self { content: Content::Gap { to }, ..Self::own(session::gap(from, to)) }
    }

    /// Something of the gateway's own.
    pub(crate) fn own(text: String) -> Self {
        Self { head: Head::of(OPCODE_TEXT, text.len()), body: text.into(), content: Content::Own }
    }

    pub(crate) fn len(&self) -> usize {
        self.head.as_bytes().len() + self.body().len()
    }

    /// The bytes, head and body.
    pub(crate) fn parts(&self) -> [IoSlice<'_>; 2] {
        [IoSlice::new(self.head.as_bytes()), IoSlice::new(self.body())]
    }

    fn body(&self) -> &[u8] {
        if let Content::Message(ticket) = &self.content { ticket.payload() } else { &self.body }
    }

    /// Whether its message is no longer worth writing.
    pub(crate) fn is_expired(&self) -> bool {
        match &self.content {
            Content::Message(ticket) => ticket.is_expired(),
            Content::Numbered { expires_at, .. } => expires_at.is_some_and(|at| at <= Instant::now()),
            Content::Gap { .. } | Content::Own | Content::Taken => false,
        }
    }

    pub(crate) fn is_own(&self) -> bool {
        matches!(self.content, Content::Own)
    }
}

/// RFC 6455 section 5.2.
const OPCODE_TEXT: u8 = 0x1;
const OPCODE_BINARY: u8 = 0x2;

/// The longest header of a frame from a server.
const HEADER_BYTES_MAX: usize = 10;

/// Appends the header of a frame of this many bytes.
fn header(opcode: u8, length: usize, into: &mut impl BufMut) {
    // RFC 6455 section 5.2: FIN and opcode, then the length in 7, 16 or 64 bits; a server does not mask.
    into.put_u8(0x80 | opcode);
    match length {
        ..126 => into.put_u8(length as u8),
        126..=0xffff => {
            into.put_u8(126);
            into.put_u16(length as u16);
        }
        _ => {
            into.put_u8(127);
            into.put_u64(length as u64);
        }
    }
}

/// What stands before the shared part of a frame. In place, so that a delivered message costs no allocation.
#[derive(Debug)]
struct Head {
    bytes: [u8; HEADER_BYTES_MAX + session::PUSH_HEAD_BYTES_MAX],
    length: u8,
}

impl Head {
    /// The header of a frame of this many bytes.
    fn of(opcode: u8, length: usize) -> Self {
        let mut head = Self { bytes: [0; _], length: 0 };
        let mut rest = &mut head.bytes[..];
        header(opcode, length, &mut rest);
        let left = rest.len();
        head.length = (head.bytes.len() - left) as u8;
        head
    }

    fn append(&mut self, bytes: &[u8]) {
        let from = usize::from(self.length);
        self.bytes[from..from + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len() as u8;
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_the_shortest_that_holds_the_length() {
        for (length, bytes) in [
            (1, &[0x81, 1][..]),
            (125, &[0x81, 125]),
            (126, &[0x81, 126, 0, 126]),
            (65_535, &[0x81, 126, 0xff, 0xff]),
            (65_536, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            assert_eq!(Head::of(OPCODE_TEXT, length).as_bytes(), bytes);
        }
        assert_eq!(Head::of(OPCODE_BINARY, 1).as_bytes(), [0x82, 1]);
    }

    #[test]
    fn the_longest_number_fits_in_the_head() {
        let head = session::push_head(u64::MAX, usize::MAX >> 8);
        assert!(head.as_bytes().ends_with(br#"{"type":"push","seq":18446744073709551615,"#));
    }
}

//! The dialect of the session protocol `pushgate.v1.json`: every text of it, read and worded.

#[cfg(test)]
mod tests;

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use crate::auth::{Token, TokenError};
use crate::close::CloseReason;
use crate::delivery::Ticket;
use crate::message::{ConnectionId, Event, ResumeToken};

use super::{Dialect, Head, OPCODE_TEXT};

/// The subprotocol by which a client asks for sessions.
pub(crate) const SESSION_PROTOCOL: &str = "pushgate.v1.json";

/// The longest token, in bytes. Signed tokens with a few claims stay below it.
pub(crate) const TOKEN_BYTES_MAX: usize = Token::BYTES_MAX;

/// The longest resume token, in bytes, of this gateway or another.
const RESUME_TOKEN_BYTES_MAX: usize = 256;

/// The largest number in a frame: from there on not every whole number is a double.
const NUMBER_MAX: u64 = (1 << 53) - 1;

/// The session protocol.
pub(crate) struct Session;

impl Dialect for Session {
    fn read(&self, data: &[u8]) -> Result<Request, RequestError> {
        Request::read(data)
    }

    fn word(&self, frame: &ServerFrame<'_>) -> Option<String> {
        Some(frame.to_json())
    }

    fn has_sessions(&self) -> bool {
        true
    }
}

/// `{"type":"push","seq":` and `,` with the longest number between them.
pub(super) const PUSH_HEAD_BYTES_MAX: usize = PUSH_HEAD.len() + 20 + 1;
const PUSH_HEAD: &str = r#"{"type":"push","seq":"#;

/// What stands before the shared part of a message's frame, which has this many bytes.
pub(super) fn push_head(seq: u64, tail: usize) -> Head {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = seq;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let digits = &digits[at..];
    let mut head = Head::of(OPCODE_TEXT, PUSH_HEAD.len() + digits.len() + 1 + tail);
    head.append(PUSH_HEAD.as_bytes());
    head.append(digits);
    head.append(b",");
    head
}

/// The JSON of a message's frame from behind `"seq":N,` to its end.
pub(super) fn push_tail(ticket: &Ticket) -> Bytes {
    #[derive(Serialize)]
    struct Tail<'a> {
        id: String,
        event: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        message: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        binary: Option<String>,
    }
    let payload = ticket.payload();
    let message = std::str::from_utf8(payload).ok().filter(|_| ticket.is_text());
    let tail = Tail {
        id: ticket.message_id().to_string(),
        event: ticket.event().as_str(),
        message,
        binary: message.is_none().then(|| BASE64_STANDARD.encode(payload)),
    };
    let mut json = Vec::with_capacity(payload.len() + 96);
    serde_json::to_writer(&mut json, &tail).expect("strings are always JSON");
    // Without the brace, which stands before the number.
    Bytes::from(json).slice(1..)
}

/// The frame that tells that the messages with these numbers are lost.
pub(super) fn gap(from: u64, to: u64) -> String {
    format!(r#"{{"type":"gap","from":{from},"to":{to}}}"#)
}

/// What a client asks for.
#[derive(Debug)]
pub(crate) enum Request {
    /// Without a token where the one of the upgrade is meant.
    Bind {
        token: Option<Token>,
        event: Event,
        resume: Option<Resume>,
    },
    Unbind {
        event: Event,
    },
    Ack {
        seq: u64,
    },
    Refresh {
        token: Token,
    },
    Ping,
}

/// Where a client wants to go on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resume {
    /// `None` for a text that is no token, which is a session that is not known.
    pub(crate) token: Option<ResumeToken>,
    pub(crate) seq: u64,
}

/// What a client is told when its request is not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("not a JSON object with a string `type`, or a key of the wrong kind")]
    NotUnderstood,
    #[error("no such type of frame")]
    UnknownType,
    #[error("a value is missing, empty or too long")]
    Incomplete,
    #[error("the token was refused")]
    TokenRefused,
    #[error("the token does not allow this event")]
    NotAllowed,
    #[error("the token cannot be checked now, try again later")]
    CheckUnavailable,
    #[error("the token belongs to a different user")]
    OtherUser,
    #[error("too many events on this connection, the limit is {limit}")]
    TooManyEvents { limit: usize },
    #[error("too many connections of this user, the limit is {limit}")]
    TooManyConnections { limit: usize },
    #[error("bind first")]
    NotBound,
    #[error("only the first bind of a connection can resume a session")]
    AlreadyBound,
    #[error("nothing with this seq was sent")]
    BadAck,
    #[error("the last event cannot be unbound: close the connection instead")]
    LastEvent,
}

impl RequestError {
    fn code(self) -> &'static str {
        match self {
            Self::NotUnderstood => "not_understood",
            Self::UnknownType => "unknown_type",
            Self::Incomplete => "incomplete",
            Self::TokenRefused => "token_refused",
            Self::NotAllowed => "not_allowed",
            Self::CheckUnavailable => "check_unavailable",
            Self::OtherUser => "other_user",
            Self::TooManyEvents { .. } => "too_many_events",
            Self::TooManyConnections { .. } => "too_many_connections",
            Self::NotBound => "not_bound",
            Self::AlreadyBound => "already_bound",
            Self::BadAck => "bad_ack",
            Self::LastEvent => "last_event",
        }
    }

    /// What ends a connection that is not bound yet.
    pub(crate) fn close_reason(self) -> Option<CloseReason> {
        Some(match self {
            Self::NotUnderstood => CloseReason::NotUnderstood,
            Self::Incomplete => CloseReason::Incomplete,
            Self::TokenRefused => CloseReason::TokenRefused,
            Self::NotAllowed => CloseReason::NotAllowed,
            Self::CheckUnavailable => CloseReason::CheckUnavailable,
            Self::TooManyConnections { .. } => CloseReason::TooManyConnections,
            Self::TooManyEvents { .. } => CloseReason::TooManyEvents,
            Self::OtherUser => CloseReason::OtherUser,
            Self::UnknownType | Self::NotBound | Self::AlreadyBound | Self::BadAck | Self::LastEvent => return None,
        })
    }
}

impl From<&TokenError> for RequestError {
    fn from(error: &TokenError) -> Self {
        match error {
            TokenError::Refused => Self::TokenRefused,
            TokenError::NotAllowed => Self::NotAllowed,
            TokenError::Unavailable => Self::CheckUnavailable,
        }
    }
}

impl Request {
    /// Reads a frame. What it takes and what the published schema does are the same, but for lengths in bytes.
    pub(crate) fn read(json: &[u8]) -> Result<Self, RequestError> {
        let Ok(Value::Object(frame)) = serde_json::from_slice(json) else { return Err(RequestError::NotUnderstood) };
        let kind = frame.get("type").and_then(Value::as_str).ok_or(RequestError::NotUnderstood)?;
        match kind {
            "bind" => Ok(Self::Bind {
                token: bind_token(&frame)?,
                event: event(&frame)?,
                resume: frame.get("resume").map(Resume::read).transpose()?,
            }),
            "unbind" => Ok(Self::Unbind { event: event(&frame)? }),
            "ack" => Ok(Self::Ack { seq: seq(&frame)? }),
            "refresh" => Ok(Self::Refresh { token: token(&frame)? }),
            "ping" => Ok(Self::Ping),
            _ => Err(RequestError::UnknownType),
        }
    }
}

impl Resume {
    fn read(resume: &Value) -> Result<Self, RequestError> {
        let Value::Object(resume) = resume else { return Err(RequestError::NotUnderstood) };
        let token = text(resume, "token")?;
        if token.is_empty() || token.len() > RESUME_TOKEN_BYTES_MAX {
            return Err(RequestError::Incomplete);
        }
        if !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(RequestError::NotUnderstood);
        }
        Ok(Self { token: ResumeToken::read(token), seq: seq(resume)? })
    }
}

type Frame = serde_json::Map<String, Value>;

fn text<'a>(frame: &'a Frame, key: &str) -> Result<&'a str, RequestError> {
    frame.get(key).ok_or(RequestError::Incomplete)?.as_str().ok_or(RequestError::NotUnderstood)
}

fn token(frame: &Frame) -> Result<Token, RequestError> {
    bind_token(frame)?.ok_or(RequestError::Incomplete)
}

/// The token of a bind, which may be empty.
fn bind_token(frame: &Frame) -> Result<Option<Token>, RequestError> {
    let token = text(frame, "token")?;
    if token.len() > TOKEN_BYTES_MAX {
        return Err(RequestError::Incomplete);
    }
    Ok((!token.is_empty()).then(|| Token::new(token.to_owned())))
}

fn event(frame: &Frame) -> Result<Event, RequestError> {
    Event::new(text(frame, "event")?).map_err(|_| RequestError::Incomplete)
}

/// The number of a message. To a client whose numbers are doubles, `1`, `1.0` and `1e0` are the same.
fn seq(frame: &Frame) -> Result<u64, RequestError> {
    let seq = frame.get("seq").ok_or(RequestError::Incomplete)?;
    let seq = match (seq.as_u64(), seq.as_f64()) {
        (Some(seq), _) => seq,
        // Exact below the limit, and above it whatever is above it.
        (None, Some(seq)) if seq >= 0.0 && seq.fract() == 0.0 => seq as u64,
        _ => return Err(RequestError::NotUnderstood),
    };
    if seq > NUMBER_MAX { Err(RequestError::Incomplete) } else { Ok(seq) }
}

/// What the gateway says beside messages and gaps.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum ServerFrame<'a> {
    Welcome {
        bind_timeout_ms: u64,
        ping_interval_ms: u64,
    },
    Bound {
        event: &'a str,
        connection_id: String,
        epoch: String,
        resume: String,
        seq: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        recovered: Option<bool>,
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_in_ms: Option<u64>,
    },
    Unbound {
        event: &'a str,
    },
    Refreshed {
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_in_ms: Option<u64>,
    },
    Pong,
    Error {
        code: &'static str,
        message: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        event: Option<&'a str>,
    },
    Goaway {
        retry_after_ms: u64,
    },
}

impl<'a> ServerFrame<'a> {
    pub(crate) fn bound(
        event: &'a Event,
        epoch: ConnectionId,
        resume: ResumeToken,
        seq: u64,
        recovered: Option<bool>,
        expires_in_ms: Option<u64>,
    ) -> Self {
        Self::Bound {
            event: event.as_str(),
            connection_id: epoch.to_string(),
            epoch: epoch.to_string(),
            resume: resume.to_string(),
            seq,
            recovered,
            expires_in_ms,
        }
    }

    pub(crate) fn error(error: RequestError, event: Option<&'a Event>) -> Self {
        Self::Error { code: error.code(), message: error.to_string(), event: event.map(Event::as_str) }
    }

    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers are always JSON")
    }
}

pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).map_or(NUMBER_MAX, |milliseconds| milliseconds.min(NUMBER_MAX))
}

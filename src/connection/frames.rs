//! The frames of the session protocol `pushgate.v1.json`: reads what a client asks, words what it is answered.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::auth::{Token, TokenError};
use crate::binder::BindError;
use crate::close::CloseReason;
use crate::message::{ConnectionId, Event};
use crate::sessions::ResumeToken;

/// The longest resume token, in bytes, of this gateway or another.
const RESUME_TOKEN_BYTES_MAX: usize = 256;

/// The largest number in a frame: from there on not every whole number is a double.
const NUMBER_MAX: u64 = (1 << 53) - 1;

/// What a client asks.
pub(super) enum Request {
    Bind { token: Token, event: Event, resume: Option<Resume> },
    Unbind { event: Event },
    Ack { seq: u64 },
    Refresh { token: Token },
    Ping,
}

/// Where a client wants to go on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resume {
    /// `None` for a text that is no token, which is a session that is not known.
    pub(super) token: Option<ResumeToken>,
    pub(super) seq: u64,
}

/// What a client is told when its request is not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Problem {
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
    #[error("the token is another user's than this connection's")]
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

impl Problem {
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
    pub(super) fn close_reason(self) -> Option<CloseReason> {
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

impl From<&TokenError> for Problem {
    fn from(error: &TokenError) -> Self {
        match error {
            TokenError::Refused => Self::TokenRefused,
            TokenError::NotAllowed => Self::NotAllowed,
            TokenError::Unavailable => Self::CheckUnavailable,
        }
    }
}

impl From<BindError> for Problem {
    fn from(error: BindError) -> Self {
        match error {
            BindError::TooManyConnections { limit } => Self::TooManyConnections { limit },
            BindError::TooManyEvents { limit } => Self::TooManyEvents { limit },
        }
    }
}

impl Request {
    /// Reads a frame.
    pub(super) fn read(json: &[u8]) -> Result<Self, Problem> {
        let frame: Value = serde_json::from_slice(json).map_err(|_| Problem::NotUnderstood)?;
        let kind = frame.get("type").and_then(Value::as_str).ok_or(Problem::NotUnderstood)?;
        match kind {
            "bind" => {
                let BindFrame { token, event, resume } = frame_of(&frame)?;
                let (token, event) = (self::token(token)?, self::event(event)?);
                Ok(Self::Bind { token, event, resume: resume.map(self::resume).transpose()? })
            }
            "unbind" => {
                let UnbindFrame { event } = frame_of(&frame)?;
                Ok(Self::Unbind { event: self::event(event)? })
            }
            "ack" => {
                let AckFrame { seq } = frame_of(&frame)?;
                Ok(Self::Ack { seq: seq.ok_or(Problem::Incomplete)? })
            }
            "refresh" => {
                let RefreshFrame { token } = frame_of(&frame)?;
                Ok(Self::Refresh { token: self::token(token)? })
            }
            "ping" => Ok(Self::Ping),
            _ => Err(Problem::UnknownType),
        }
    }
}

fn frame_of<'a, T: Deserialize<'a>>(frame: &'a Value) -> Result<T, Problem> {
    T::deserialize(frame).map_err(|_| Problem::NotUnderstood)
}

fn token(token: String) -> Result<Token, Problem> {
    if token.is_empty() || token.len() > super::TOKEN_BYTES_MAX {
        return Err(Problem::Incomplete);
    }
    Ok(Token::new(token))
}

fn event(event: String) -> Result<Event, Problem> {
    Event::new(event).map_err(|_| Problem::Incomplete)
}

fn resume(ResumeFrame { token, seq }: ResumeFrame) -> Result<Resume, Problem> {
    if token.is_empty() || token.len() > RESUME_TOKEN_BYTES_MAX {
        return Err(Problem::Incomplete);
    }
    Ok(Resume { token: ResumeToken::read(&token), seq: seq.ok_or(Problem::Incomplete)? })
}

#[derive(Deserialize)]
struct BindFrame {
    #[serde(default)]
    token: String,
    #[serde(default)]
    event: String,
    resume: Option<ResumeFrame>,
}

#[derive(Deserialize)]
struct ResumeFrame {
    #[serde(default)]
    token: String,
    seq: Option<u64>,
}

#[derive(Deserialize)]
struct UnbindFrame {
    #[serde(default)]
    event: String,
}

#[derive(Deserialize)]
struct AckFrame {
    seq: Option<u64>,
}

#[derive(Deserialize)]
struct RefreshFrame {
    #[serde(default)]
    token: String,
}

/// What the gateway says, pushes and gaps apart, which are made where they are numbered.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Said<'a> {
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

impl<'a> Said<'a> {
    pub(super) fn bound(
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

    pub(super) fn error(problem: Problem, event: Option<&'a Event>) -> Self {
        Self::Error { code: problem.code(), message: problem.to_string(), event: event.map(Event::as_str) }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers are always JSON")
    }
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).map_or(NUMBER_MAX, |milliseconds| milliseconds.min(NUMBER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_without_end_is_still_a_number_that_every_client_can_read() {
        assert_eq!(milliseconds(Duration::MAX), NUMBER_MAX);
        assert_eq!(milliseconds(Duration::from_secs(1)), 1000);
    }
}

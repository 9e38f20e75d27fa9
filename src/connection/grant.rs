//! What the check of a token comes to: what a client is granted, or why not.

use std::time::{Duration, SystemTime};

use crate::auth::{Identity, TokenError};
use crate::binder::{BindError, Bindings, Validity};
use crate::close::CloseReason;
use crate::dialect::{RequestError, Resume, milliseconds};
use crate::message::Event;
use crate::sessions::{Attached, Claimed};

/// What a token check came to.
pub(super) enum Checked {
    Bind {
        event: Event,
        result: Result<Identity, TokenError>,
        /// The session that the client wants to go on with, and from where.
        resume: Option<(Resume, Option<Box<Claimed>>)>,
    },
    /// What the new token is, as shown for all events.
    Refresh(Result<Validity, Refused>),
}

/// What a connection that is bound holds.
pub(super) struct Granted {
    pub(super) bindings: Bindings,
    /// Only for a client of the session protocol.
    pub(super) session: Option<Box<Attached>>,
}

/// Why a bind was not granted: as a session is told, and as a legacy connection is closed.
pub(super) struct Refused {
    pub(super) error: RequestError,
    pub(super) reason: CloseReason,
}

impl Refused {
    pub(super) fn other_user() -> Self {
        Self { error: RequestError::OtherUser, reason: CloseReason::OtherUser }
    }
}

impl From<&TokenError> for Refused {
    fn from(error: &TokenError) -> Self {
        Self { error: error.into(), reason: error.into() }
    }
}

impl From<BindError> for Refused {
    fn from(error: BindError) -> Self {
        let (error, reason) = match error {
            BindError::TooManyConnections { limit } => {
                (RequestError::TooManyConnections { limit }, CloseReason::TooManyConnections)
            }
            BindError::TooManyEvents { limit } => (RequestError::TooManyEvents { limit }, CloseReason::TooManyEvents),
        };
        Self { error, reason }
    }
}

/// What is to be remembered of a token.
pub(super) fn validity(identity: &Identity) -> Validity {
    Validity { expires_at: identity.expires_at, stamp: identity.stamp() }
}

pub(super) fn expires_in_ms(expires_at: SystemTime) -> u64 {
    milliseconds(left(expires_at))
}

/// A time that is past already is over now.
pub(super) fn left(expires_at: SystemTime) -> Duration {
    expires_at.duration_since(SystemTime::now()).unwrap_or_default()
}

impl From<&TokenError> for CloseReason {
    fn from(error: &TokenError) -> Self {
        match error {
            TokenError::Refused => Self::TokenRefused,
            TokenError::NotAllowed => Self::NotAllowed,
            TokenError::Unavailable => Self::CheckUnavailable,
        }
    }
}

//! What a service is asked about a token, and what it answers.

use std::net::IpAddr;

use aws_lc_rs::digest::{Context, SHA256};
use wildmatch::WildMatch;

use super::super::{BindAttempt, Headers, Identity, Token, TokenError};
use crate::message::{Event, UserId};

/// A question about one token.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) token: Token,
    pub(super) event: Event,
    pub(super) peer: IpAddr,
    pub(super) headers: Headers,
}

/// What the answer to a question depends on, as a hash: whoever reads the gateway's memory finds no token here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

impl Question {
    pub(super) fn of(attempt: &BindAttempt<'_>) -> Self {
        let BindAttempt { token, event, peer, headers, .. } = *attempt;
        Self { token: token.clone(), event: event.clone(), peer: peer.ip().to_canonical(), headers: headers.clone() }
    }

    /// The key of answers for all events.
    pub(super) fn key(&self) -> Key {
        self.hash(None)
    }

    /// The key of answers for this event alone.
    pub(super) fn key_with_event(&self) -> Key {
        self.hash(Some(&self.event))
    }

    /// Each part has its length before it, so that no two questions are the same bytes.
    fn hash(&self, event: Option<&Event>) -> Key {
        let mut context = Context::new(&SHA256);
        let mut add = |part: &str| {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        };
        add(self.token.expose());
        for (name, value) in self.headers.iter() {
            add(name);
            add(value);
        }
        // No header has an empty name.
        if let Some(event) = event {
            add("");
            add(event.as_str());
        }
        let mut key = [0; 32];
        key.copy_from_slice(context.finish().as_ref());
        Key(key)
    }
}

/// What a service said.
pub(super) type Answer = Result<Grant, Refused>;

/// The token is good.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Grant {
    pub(super) identity: Identity,
    /// The patterns of the events that the client may bind. `None` if the answer is for the event of the question alone.
    pub(super) events: Option<Vec<WildMatch>>,
}

/// The token is not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// For nothing.
    Token,
    /// For the event of the question.
    Event,
}

/// What a client is told.
pub(super) fn identity(answer: &Answer, event: &Event) -> Result<Identity, TokenError> {
    match answer {
        Ok(Grant { events: Some(patterns), .. }) if !patterns.iter().any(|pattern| pattern.matches(event.as_str())) => {
            Err(TokenError::NotAllowed)
        }
        Ok(Grant { identity, .. }) => Ok(identity.clone()),
        Err(Refused::Token) => Err(TokenError::Refused),
        Err(Refused::Event) => Err(TokenError::NotAllowed),
    }
}

/// Why there is no answer. The text contains nothing that the service said, which may hold the token.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error("there was no complete answer within token_callback_timeout")]
    TimedOut,
    #[error("the service cannot be reached")]
    Unreachable(#[source] hyper_util::client::legacy::Error),
    #[error("the service answered {0}; redirects are not followed")]
    Redirected(http::StatusCode),
    #[error("the service answered {0}")]
    Status(http::StatusCode),
    #[error("the service answered {0:?}")]
    Code(tonic::Code),
    #[error("the answer cannot be read, or is too long")]
    Unreadable(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the answer is not understood: {0}")]
    Malformed(&'static str),
}

impl NoAnswer {
    /// Whether the service could not deal with this question, and may well deal with others.
    pub(super) fn is_about_question(&self) -> bool {
        matches!(self, Self::Status(http::StatusCode::BAD_REQUEST) | Self::Code(tonic::Code::InvalidArgument))
    }
}

/// Reads the user id of a grant, which has the same limits in JSON and gRPC.
pub(super) fn user(user_id: String) -> Result<Identity, NoAnswer> {
    let user_id = UserId::new(user_id).map_err(|_| NoAnswer::Malformed("user_id is not a text of 1 to 4096 bytes"))?;
    Ok(Identity::new(user_id))
}

/// The same for its patterns of events.
pub(super) fn patterns(events: &[String]) -> Vec<WildMatch> {
    events.iter().map(|pattern| WildMatch::new(pattern)).collect()
}

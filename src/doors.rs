//! The doors, and what they have in common: a body type, and why a request is turned away before it is read.

pub(crate) mod admin;
pub(crate) mod api;
pub(crate) mod grpc;
pub(crate) mod json;
pub(crate) mod websocket;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::{Either, Full};
use tonic::Code;

use crate::config;
use crate::metrics::PushResult;

/// The body of every answer: tonic's boxed body, so that gRPC answers are not boxed twice.
pub(crate) type Body = tonic::body::Body;

/// The body of a request at a push door: whole and within `request_bytes_max`, or of a stream as it comes.
pub(crate) type RequestBody = Either<Full<Bytes>, Body>;

/// Why a request at a push door is turned away before the door reads it. Each door says it in its own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("no API key, or one that is not known")]
    Unauthenticated,
    #[error("the token has expired")]
    TokenExpired,
    #[error("the token is refused; the gateway's log says why at level debug")]
    TokenRefused,
    #[error("the API key may not call this method")]
    NotForMethod,
    #[error(
        "not allowed to operate the gateway: push_keys_file must give the caller's key or certificate admin = \"write\""
    )]
    NotAdmin,
    #[error("push check unavailable, try again later")]
    CheckUnavailable,
    #[error("overloaded, try again later")]
    Overloaded,
    #[error("too many bytes of requests are in hand, try again later")]
    TooManyBytes,
    #[error("shutting down, try again later")]
    Draining,
    #[error("the request took too long")]
    TimedOut,
    #[error("the request is over the limit of {limit_bytes} bytes")]
    TooLarge { limit_bytes: usize },
    #[error("the body of the request broke off")]
    BrokenOff,
    #[error("malformed grpc-timeout")]
    MalformedTimeout,
    #[error("the body is encoded, and is taken only as it is")]
    Encoded,
}

impl Refusal {
    /// The same as a gRPC code, which the JSON door's answers have too.
    pub(crate) fn code(self) -> Code {
        match self {
            Self::Unauthenticated | Self::TokenExpired | Self::TokenRefused => Code::Unauthenticated,
            Self::NotForMethod | Self::NotAdmin => Code::PermissionDenied,
            Self::CheckUnavailable | Self::Draining => Code::Unavailable,
            Self::Overloaded | Self::TooManyBytes | Self::TooLarge { .. } => Code::ResourceExhausted,
            Self::TimedOut => Code::DeadlineExceeded,
            Self::BrokenOff => Code::Cancelled,
            // As grpc-go has it.
            Self::MalformedTimeout => Code::Internal,
            Self::Encoded => Code::Unimplemented,
        }
    }
}

impl From<Refusal> for PushResult {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unauthenticated | Refusal::TokenExpired | Refusal::TokenRefused => Self::Unauthenticated,
            Refusal::NotForMethod | Refusal::NotAdmin => Self::PermissionDenied,
            Refusal::CheckUnavailable => Self::CheckUnavailable,
            Refusal::Overloaded | Refusal::TooManyBytes => Self::Overloaded,
            Refusal::Draining => Self::Draining,
            Refusal::TimedOut => Self::TimedOut,
            Refusal::TooLarge { .. } => Self::TooLarge,
            Refusal::BrokenOff | Refusal::MalformedTimeout | Refusal::Encoded => Self::Invalid,
        }
    }
}

/// What a list header lists, on however many lines (RFC 9110 section 5.3).
pub(crate) fn listed<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|item| !item.is_empty())
}

/// Whether a list header lists this word, in any letter case.
pub(crate) fn lists(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    listed(headers, name).any(|listed| listed.eq_ignore_ascii_case(word))
}

/// An answer of plain text.
pub(crate) fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(text.into())));
    *response.status_mut() = status;
    // The replaced service set none; Go found this one by looking at the text.
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// An answer that asks the caller to come back.
pub(crate) fn try_later(status: StatusCode, why: impl Into<Bytes>) -> Response<Body> {
    let mut response = text(status, why);
    response.headers_mut().insert(RETRY_AFTER, config::RETRY_AFTER.as_secs().into());
    response
}

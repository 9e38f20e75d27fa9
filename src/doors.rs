//! The three doors, and what they have in common: a body type, and why a request is turned away before it is read.

pub(crate) mod api;
pub(crate) mod grpc;
pub(crate) mod json;
pub(crate) mod websocket;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{Full, Limited};
use hyper::body::Incoming;

use crate::config;
use crate::metrics::PushResult;

/// The body of every answer: tonic's boxed body, so that gRPC answers are not boxed twice.
pub(crate) type Body = tonic::body::Body;

/// The body of a request at a push door: an error once it is over `request_bytes_max`.
pub(crate) type BoundedBody = Limited<Incoming>;

/// Why a request at a push door is turned away before the door reads it. Each door says it in its own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("no API key, or one that is not known")]
    Unauthenticated,
    #[error("push check unavailable, try again later")]
    CheckUnavailable,
    #[error("overloaded, try again later")]
    Overloaded,
    #[error("shutting down, try again later")]
    Draining,
    #[error("the request took too long")]
    TimedOut,
    #[error("the request is over the limit of {limit_bytes} bytes")]
    TooLarge { limit_bytes: usize },
}

impl From<Refusal> for PushResult {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unauthenticated => Self::Unauthenticated,
            Refusal::CheckUnavailable => Self::CheckUnavailable,
            Refusal::Overloaded => Self::Overloaded,
            Refusal::Draining => Self::Draining,
            Refusal::TimedOut => Self::TimedOut,
            Refusal::TooLarge { .. } => Self::TooLarge,
        }
    }
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

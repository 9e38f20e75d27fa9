//! The JSON door: `POST /push` as the replaced service had it, byte for byte.

use http::header::ALLOW;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError};

use crate::auth::PushScope;
use crate::doors::{Body, BoundedBody, Refusal, empty, text, try_later};
use crate::gateway::{Gateway, PushError};
use crate::legacy;
use crate::message::{InvalidPush, Push};
use crate::metrics::{Door, PushResult};

/// What the replaced service answered to whatever it could not use.
const ILLEGAL: &str = "request data illegal";

/// Reads the body, pushes, and says to how many.
pub(crate) async fn push(gateway: &Gateway, request: Request<BoundedBody>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let scope = parts.extensions.get::<PushScope>();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            let limit_bytes = gateway.rooms().config.request_bytes_max;
            return refuse(gateway, Refusal::TooLarge { limit_bytes });
        }
        // The caller broke off, so this answer most likely reaches nobody.
        Err(_) => return illegal(gateway),
    };
    let Ok([user_id, event, message]) = legacy::fields(&body, ["userId", "event", "message"]) else {
        return illegal(gateway);
    };
    drop(body);
    let push = match Push::new(user_id, event, message) {
        Ok(push) => push,
        Err(InvalidPush::Empty { .. }) => return illegal(gateway),
        Err(error @ InvalidPush::TooLong { .. }) => {
            gateway.rooms().metrics.pushed(Door::Json, PushResult::TooLarge);
            return too_large(&error.to_string());
        }
    };
    match gateway.push_from(Door::Json, scope, &push) {
        Ok(outcome) => text(StatusCode::OK, format!("message sent to {} clients", outcome.accepted)),
        Err(PushError::Invalid(InvalidPush::Empty { .. })) => text(StatusCode::BAD_REQUEST, ILLEGAL),
        Err(PushError::Invalid(error @ InvalidPush::TooLong { .. })) => too_large(&error.to_string()),
        Err(PushError::PermissionDenied) => empty(StatusCode::UNAUTHORIZED),
        Err(error @ (PushError::TooManyWaiting | PushError::TooSlow { .. })) => {
            try_later(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
        }
    }
}

/// The answer to any other method.
pub(crate) fn method_not_allowed() -> Response<Body> {
    let mut response = empty(StatusCode::METHOD_NOT_ALLOWED);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    response
}

/// Turns a request away in this door's words.
pub(crate) fn refuse(gateway: &Gateway, refusal: Refusal) -> Response<Body> {
    gateway.rooms().metrics.pushed(Door::Json, refusal.into());
    match refusal {
        Refusal::Unauthenticated => empty(StatusCode::UNAUTHORIZED),
        Refusal::TimedOut => text(StatusCode::REQUEST_TIMEOUT, refusal.to_string()),
        Refusal::TooLarge { .. } => too_large(&refusal.to_string()),
        Refusal::CheckUnavailable | Refusal::Overloaded | Refusal::Draining => {
            try_later(StatusCode::SERVICE_UNAVAILABLE, refusal.to_string())
        }
    }
}

fn illegal(gateway: &Gateway) -> Response<Body> {
    gateway.rooms().metrics.pushed(Door::Json, PushResult::Invalid);
    text(StatusCode::BAD_REQUEST, ILLEGAL)
}

fn too_large(problem: &str) -> Response<Body> {
    text(StatusCode::PAYLOAD_TOO_LARGE, problem.to_owned())
}

//! The JSON door: `POST /push` as the replaced service had it, byte for byte; and for a caller that accepts JSON, the
//! same messages as the gRPC door has, in protobuf's JSON mapping.

mod mapping;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError};
use tonic::Code;

use crate::doors::api::{Caller, Wrong, batch, send};
use crate::doors::{Body, BoundedBody, Refusal, empty, text, try_later};
use crate::gateway::{Gateway, PushError};
use crate::legacy;
use crate::message::{InvalidPush, Push};
use crate::metrics::{Door, PushResult};
use crate::proto;
use crate::proto::push_request::Payload;

/// What the replaced service answered to whatever it could not use.
const ILLEGAL: &str = "request data illegal";

/// What a batch's path has behind the push path.
pub(crate) const BATCH: &str = "/batch";

/// Reads the body, pushes, and answers as the caller asks.
pub(crate) async fn push(gateway: &Gateway, request: Request<BoundedBody>) -> Response<Body> {
    let is_batch = request.uri().path() != gateway.rooms().config.push_path;
    let (parts, body) = request.into_parts();
    let Some(caller) = Caller::noted(&parts.extensions) else {
        // A path to this door past the layer that authorizes would be a hole.
        return refuse(gateway, Refusal::Unauthenticated);
    };
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            let limit_bytes = gateway.rooms().config.request_bytes_max;
            return refuse(gateway, Refusal::TooLarge { limit_bytes });
        }
        // The caller broke off, so this answer most likely reaches nobody.
        Err(_) => return illegal(gateway),
    };
    if is_batch {
        match push_batch(gateway, &caller, &body).await {
            Ok(results) => json(StatusCode::OK, mapping::write(&results, "PushBatchResponse")),
            Err(wrong) => refused(wrong),
        }
    } else if accepts_json(&parts.headers) {
        match push_in_full(gateway, &caller, &body).await {
            Ok(outcome) => json(StatusCode::OK, mapping::write(&outcome, "PushResponse")),
            Err(wrong) => refused(wrong),
        }
    } else {
        push_as_ever(gateway, &caller, &body)
    }
}

/// Whether the caller asks for more than the replaced service answered: it accepts JSON, and would not as well accept
/// the plain text that it got there. Some HTTP libraries accept JSON and everything else unasked, and their callers must
/// see what they see today.
fn accepts_json(headers: &HeaderMap) -> bool {
    let accepts: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|accept| accept.to_str().ok()).collect();
    let kinds = || accepts.iter().flat_map(|accept| accept.split(',')).filter_map(|kind| kind.split(';').next());
    let accepts = |wanted: &[&str]| kinds().any(|kind| wanted.contains(&kind.trim()));
    accepts(&["application/json"]) && !accepts(&["text/plain", "text/*", "*/*"])
}

/// The legacy contract.
fn push_as_ever(gateway: &Gateway, caller: &Caller, body: &[u8]) -> Response<Body> {
    let Ok([user_id, event, message]) = legacy::fields(body, FIELDS) else {
        return illegal(gateway);
    };
    let push = match Push::new(user_id, event, message) {
        Ok(push) => push,
        Err(InvalidPush::Empty { .. }) => return illegal(gateway),
        Err(error @ InvalidPush::TooLong { .. }) => {
            gateway.rooms().metrics.pushed(Door::Json, PushResult::Invalid);
            return too_large(&error.to_string());
        }
    };
    match gateway.push_from(Door::Json, Some(&caller.scope), &push) {
        Ok(outcome) => text(StatusCode::OK, format!("message sent to {} clients", outcome.accepted)),
        Err(PushError::Invalid(InvalidPush::Empty { .. }) | PushError::KeyReused { .. }) => {
            text(StatusCode::BAD_REQUEST, ILLEGAL)
        }
        Err(PushError::Invalid(error @ InvalidPush::TooLong { .. })) => too_large(&error.to_string()),
        Err(PushError::PermissionDenied) => empty(StatusCode::UNAUTHORIZED),
        Err(error @ (PushError::TooManyWaiting | PushError::TooSlow { .. })) => {
            try_later(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
        }
    }
}

const FIELDS: [&str; 3] = ["userId", "event", "message"];

/// The legacy body with whatever `PushRequest` has besides, and its whole outcome.
async fn push_in_full(gateway: &Gateway, caller: &Caller, body: &[u8]) -> Result<proto::PushResponse, Wrong> {
    let wrong = |problem| {
        gateway.rooms().metrics.pushed(Door::Json, PushResult::Invalid);
        Wrong::field("", problem)
    };
    let mut request: proto::PushRequest = mapping::read(body, "PushRequest").map_err(wrong)?;
    // The three legacy fields by their own rules, so that a caller may add the header to what it sends today.
    let [user_id, event, message] = legacy::fields(body, FIELDS).map_err(|error| wrong(error.to_string()))?;
    (request.user_id, request.event) = (user_id, event);
    if !message.is_empty() {
        request.payload = Some(Payload::Message(message));
    }
    Ok(send(gateway, Door::Json, &caller.scope, request)?.answer(caller.wait_until).await)
}

async fn push_batch(gateway: &Gateway, caller: &Caller, body: &[u8]) -> Result<proto::PushBatchResponse, Wrong> {
    let request = mapping::read(body, "PushBatchRequest").map_err(|problem| {
        gateway.rooms().metrics.pushed(Door::Json, PushResult::Invalid);
        Wrong::field("", problem)
    })?;
    batch(gateway, Door::Json, caller, request).await
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

/// What was wrong, to a caller that accepts JSON.
fn refused(wrong: Wrong) -> Response<Body> {
    let status = match wrong.code {
        Code::InvalidArgument if wrong.reuses_key => StatusCode::UNPROCESSABLE_ENTITY,
        Code::PermissionDenied => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    };
    json(status, mapping::write(&proto::PushError::from(wrong), "PushError"))
}

fn illegal(gateway: &Gateway) -> Response<Body> {
    gateway.rooms().metrics.pushed(Door::Json, PushResult::Invalid);
    text(StatusCode::BAD_REQUEST, ILLEGAL)
}

fn too_large(problem: &str) -> Response<Body> {
    text(StatusCode::PAYLOAD_TOO_LARGE, problem.to_owned())
}

fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = text(status, body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

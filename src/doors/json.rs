//! The JSON door: `POST /push` as the replaced service had it, byte for byte; and for a caller that accepts JSON, the
//! same messages as the gRPC door has, in protobuf's JSON mapping.

mod mapping;
mod reading;

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use tonic::Code;

use crate::config::{self, Config};
use crate::doors::api::{Caller, Kind, Wrong, batch, send};
use crate::doors::{Body, Refusal, empty, listed, text};
use crate::gateway::{Follow, Gateway, PushError, whole_seconds};
use crate::legacy;
use crate::message::{InvalidPush, Push};
use crate::metrics::{Door, PushResult};
use crate::proto;
use crate::push_request::EXCLUDED_MAX;

/// What the replaced service answered to whatever it could not use.
const ILLEGAL: &str = "request data illegal";

/// What a batch's path has behind the push path.
pub(crate) const BATCH: &str = crate::config::BATCH_PATH;

/// What a caller asks for, and how it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// One push, as the replaced service had it.
    Legacy,
    /// One push with all its options, and its whole outcome in JSON.
    Full,
    /// Many of these.
    Batch,
}

impl Mode {
    pub(crate) fn asked(config: &Config, path: &str, headers: &HeaderMap) -> Self {
        if path != config.push_path {
            Self::Batch
        } else if accepts_json(headers) {
            Self::Full
        } else {
            Self::Legacy
        }
    }
}

/// Pushes what the body says, and answers as the caller asks.
pub(crate) async fn push(gateway: &Gateway, mode: Mode, caller: Caller, body: Bytes) -> Response<Body> {
    // Boxed where an answer may have to be waited for: room for that would be moved with every request.
    let answer = match mode {
        Mode::Legacy => return push_as_ever(gateway, &caller, &body).await,
        Mode::Full => {
            Box::pin(push_in_full(gateway, caller, body)).await.map(|outcome| mapping::write(&outcome, "PushResponse"))
        }
        Mode::Batch => Box::pin(push_batch(gateway, caller, body))
            .await
            .map(|results| mapping::write(&results, "PushBatchResponse")),
    };
    match answer {
        Ok(json) => self::json(StatusCode::OK, json),
        Err(wrong) => refused(wrong),
    }
}

/// Whether the caller asks for more than the replaced service answered: it accepts JSON, and would not as well accept
/// the plain text that it got there. Some HTTP libraries accept JSON and everything else unasked, and their callers must
/// see what they see today.
fn accepts_json(headers: &HeaderMap) -> bool {
    accepts(headers, "application", "json") && !accepts(headers, "text", "plain")
}

/// Whether a media type is named as acceptable; of several ranges that it is in, the narrowest holds (RFC 9110 section
/// 12.5.1).
fn accepts(headers: &HeaderMap, kind: &str, subkind: &str) -> bool {
    let ranges = listed(headers, &ACCEPT).filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let (range, subrange) = parts.next()?.split_once('/')?;
        let narrow = if range.eq_ignore_ascii_case(kind) && subrange.eq_ignore_ascii_case(subkind) {
            2
        } else if range.eq_ignore_ascii_case(kind) && subrange == "*" {
            1
        } else if range == "*" && subrange == "*" {
            0
        } else {
            return None;
        };
        let mut weights =
            parts.filter_map(|part| part.split_once('=')).filter(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
        let is_excluded = weights.any(|(_, weight)| weight.trim().parse::<f32>().is_ok_and(|weight| weight <= 0.0));
        Some((narrow, !is_excluded))
    });
    ranges.max().is_some_and(|(_, accepted)| accepted)
}

/// The legacy contract.
async fn push_as_ever(gateway: &Gateway, caller: &Caller, body: &[u8]) -> Response<Body> {
    let push = match read_as_ever(body) {
        Some(Ok(push)) => push,
        None | Some(Err(InvalidPush::Empty { .. })) => return illegal(gateway),
        Some(Err(error @ InvalidPush::TooLong { .. })) => {
            gateway.rooms().metrics.pushed(Door::Json, PushResult::Invalid);
            return too_large(&error.to_string());
        }
    };
    match gateway.send_from(Door::Json, Some(&caller.scope), &push, Follow::Nobody).await {
        Ok(sent) => text(StatusCode::OK, format!("message sent to {} clients", sent.into_outcome().accepted)),
        Err(PushError::Invalid(InvalidPush::Empty { .. }) | PushError::KeyReused { .. }) => {
            text(StatusCode::BAD_REQUEST, ILLEGAL)
        }
        Err(PushError::Invalid(error @ InvalidPush::TooLong { .. })) => too_large(&error.to_string()),
        Err(PushError::PermissionDenied) => with_its_headers(empty(StatusCode::UNAUTHORIZED)),
        Err(error @ PushError::RateLimited { retry_after }) => {
            in_a_while(text(StatusCode::TOO_MANY_REQUESTS, error.to_string()), retry_after)
        }
        Err(error @ (PushError::TooManyWaiting | PushError::TooSlow { .. })) => {
            with_its_headers(text(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))
        }
    }
}

/// The push that a legacy body asks for. `None` if it is not understood.
fn read_as_ever(body: &[u8]) -> Option<Result<Push, InvalidPush>> {
    let json = legacy::text(body);
    let [user_id, event, message] = legacy::fields_of(&json, FIELDS).ok()?;
    Some(Push::new(user_id, event, message.into_owned()))
}

const FIELDS: [&str; 3] = ["userId", "event", "message"];

/// The legacy body with whatever `PushRequest` has besides, and its whole outcome.
async fn push_in_full(gateway: &Gateway, caller: Caller, body: Bytes) -> Result<proto::PushResponse, Wrong> {
    let request = read(gateway, body, "PushRequest")?;
    let asked = send(gateway, Door::Json, &caller.scope, request).await?;
    Ok(asked.answer(caller.into_wait()).await)
}

async fn push_batch(gateway: &Gateway, caller: Caller, body: Bytes) -> Result<proto::PushBatchResponse, Wrong> {
    let request = read(gateway, body, "PushBatchRequest")?;
    batch(gateway, Door::Json, caller, request).await
}

/// Takes the body, so that nothing keeps it during a wait.
fn read<M: prost::Message + Default>(gateway: &Gateway, body: Bytes, name: &str) -> Result<M, Wrong> {
    let items_max = gateway.rooms().config.batch_pushes_max.max(EXCLUDED_MAX);
    let read = reading::read(&body, name, items_max);
    drop(body);
    read.map_err(|(field, problem)| {
        gateway.rooms().metrics.pushed(Door::Json, PushResult::Invalid);
        Wrong::field(field, problem)
    })
}

/// The answer to any other method.
pub(crate) fn method_not_allowed(mode: Mode) -> Response<Body> {
    let status = StatusCode::METHOD_NOT_ALLOWED;
    let mut response = match mode {
        Mode::Legacy => empty(status),
        Mode::Full | Mode::Batch => told(status, Code::Unimplemented, "the method is not POST".to_owned()),
    };
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    response
}

/// Turns a request away in this door's words.
pub(crate) fn refuse(gateway: &Gateway, mode: Mode, refusal: Refusal) -> Response<Body> {
    gateway.rooms().metrics.pushed(Door::Json, refusal.into());
    let status = match refusal {
        Refusal::Unauthenticated | Refusal::TokenExpired | Refusal::TokenRefused => StatusCode::UNAUTHORIZED,
        Refusal::NotForMethod | Refusal::NotAdmin => StatusCode::FORBIDDEN,
        Refusal::TimedOut => StatusCode::REQUEST_TIMEOUT,
        Refusal::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        Refusal::Encoded => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Refusal::BrokenOff | Refusal::MalformedTimeout => StatusCode::BAD_REQUEST,
        Refusal::CheckUnavailable | Refusal::Overloaded | Refusal::TooManyBytes | Refusal::Draining => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    match (mode, refusal) {
        (Mode::Legacy, Refusal::Unauthenticated | Refusal::TokenExpired | Refusal::TokenRefused) => {
            with_its_headers(empty(status))
        }
        (Mode::Legacy, Refusal::BrokenOff) => text(status, ILLEGAL),
        (Mode::Legacy, _) => with_its_headers(text(status, refusal.to_string())),
        (Mode::Full | Mode::Batch, _) => told(status, refusal.code(), refusal.to_string()),
    }
}

/// Why a request was turned away, to a caller that accepts JSON.
fn told(status: StatusCode, code: Code, message: String) -> Response<Body> {
    let error = proto::PushError { code: code.into(), message, field: String::new() };
    json(status, mapping::write(&error, "PushError"))
}

/// What was wrong, to a caller that accepts JSON.
fn refused(wrong: Wrong) -> Response<Body> {
    let retry_after = wrong.retry_after;
    let status = match wrong.code {
        _ if retry_after.is_some() => StatusCode::TOO_MANY_REQUESTS,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::ResourceExhausted => StatusCode::SERVICE_UNAVAILABLE,
        _ if wrong.kind == Kind::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
        _ if wrong.kind == Kind::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::BAD_REQUEST,
    };
    let response = json(status, mapping::write(&proto::PushError::from(wrong), "PushError"));
    match retry_after {
        Some(wait) => in_a_while(response, wait),
        None => response,
    }
}

/// Tells when to come back.
fn in_a_while(mut response: Response<Body>, wait: Duration) -> Response<Body> {
    response.headers_mut().insert(RETRY_AFTER, whole_seconds(wait).into());
    response
}

/// Adds the header that goes with an answer's status.
fn with_its_headers(mut response: Response<Body>) -> Response<Body> {
    let status = response.status();
    let headers = response.headers_mut();
    match status {
        StatusCode::UNAUTHORIZED => {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"pushgate\""));
        }
        StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            headers.insert(RETRY_AFTER, config::RETRY_AFTER.as_secs().into());
        }
        _ => {}
    }
    response
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
    with_its_headers(response)
}

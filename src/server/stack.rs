//! The one tower stack before both push doors: trace with request id, shedding, deadline, authorization, body limit.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, CONTENT_LENGTH};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tonic::Status;
use tower::limit::{ConcurrencyLimit, GlobalConcurrencyLimitLayer};
use tower::load_shed::{LoadShed, LoadShedLayer};
use tower::{BoxError, Service, ServiceBuilder, layer::layer_fn};
use tracing::{Instrument, Span, debug_span, field};

use crate::auth::{PushCredentials, PushRefused, Token};
use crate::doors::api::WaitUntil;
use crate::doors::grpc::PushDoor;
use crate::doors::{Body, BoundedBody, Refusal, grpc, json};
use crate::gateway::Gateway;
use crate::proto::push_service_server::{PushServiceServer, SERVICE_NAME};

/// Where a request came from, as the router noted it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) SocketAddr);

/// The whole stack, for one request each time it is cloned.
pub(super) type PushStack = Answer<LoadShed<ConcurrencyLimit<Guard<PushDoors>>>>;

/// Builds the stack. Who holds all of `permits` knows that no push is in hand.
pub(super) fn push_stack(gateway: &Gateway, permits: Arc<Semaphore>) -> PushStack {
    ServiceBuilder::new()
        .layer(layer_fn(|inner| Answer { inner, gateway: gateway.clone() }))
        // Shed, not queued: a caller that is told at once can try another gateway.
        .layer(LoadShedLayer::new())
        .layer(GlobalConcurrencyLimitLayer::with_semaphore(permits))
        .layer(layer_fn(|inner| Guard { inner, gateway: gateway.clone() }))
        .service(PushDoors { gateway: gateway.clone(), grpc: PushDoor::server(gateway.clone()) })
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// `OUT_OF_RANGE` as a header has it.
const OUT_OF_RANGE: &str = "11";

/// The method whose requests have no end.
const PUSH_STREAM: &str = "/pushgate.v1.PushService/PushStream";

/// Whether the path belongs to the gRPC push door.
pub(super) fn is_grpc_push(path: &str) -> bool {
    path.strip_prefix('/').and_then(|path| path.strip_prefix(SERVICE_NAME)).is_some_and(|rest| rest.starts_with('/'))
}

/// The outermost layer: gives the request its span and id, and turns a refusal from further in into the door's answer.
#[derive(Clone)]
pub(super) struct Answer<S> {
    inner: S,
    gateway: Gateway,
}

impl<S> Service<Request<Incoming>> for Answer<S>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Load shedding under this layer is always ready, and says so in the answer when it is not.
        let _ready = ready!(self.inner.poll_ready(cx));
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let gateway = self.gateway.clone();
        let is_grpc = is_grpc_push(request.uri().path());
        let request_id = request.headers().get(&X_REQUEST_ID).cloned();
        let span = span(&gateway, is_grpc, &request);
        // Decided before the request is begun: what is begun when the drain starts is finished.
        let inner = (!gateway.rooms().registry.is_draining()).then(|| self.inner.call(request));
        let answer = async move {
            let result = match inner {
                Some(inner) => inner.await,
                None => Err(Refusal::Draining.into()),
            };
            let mut response = result.unwrap_or_else(|error| {
                let refusal = error.downcast_ref().copied().unwrap_or(Refusal::Overloaded);
                if is_grpc { grpc::refuse(&gateway, refusal).into_http() } else { json::refuse(&gateway, refusal) }
            });
            if let Some(request_id) = request_id {
                response.headers_mut().insert(X_REQUEST_ID.clone(), request_id);
            }
            Ok(response)
        };
        Box::pin(answer.instrument(span))
    }
}

static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The request's span: the caller's request id or one of ours, and the caller's trace if it is in one.
fn span<B>(gateway: &Gateway, is_grpc: bool, request: &Request<B>) -> Span {
    let door = if is_grpc { "grpc" } else { "json" };
    let span =
        debug_span!("request", door, request_id = field::Empty, trace_id = field::Empty, parent_id = field::Empty);
    if span.is_disabled() {
        return span;
    }
    let headers = request.headers();
    match headers.get(&X_REQUEST_ID).and_then(|id| id.to_str().ok()).filter(|id| id.len() <= 128) {
        Some(id) => span.record("request_id", id),
        None => span.record("request_id", field::display(gateway.rooms().names.request_id())),
    };
    if let Some((trace_id, parent_id)) = headers.get(&TRACEPARENT).and_then(|value| traceparent(value.as_bytes())) {
        span.record("trace_id", trace_id);
        span.record("parent_id", parent_id);
    }
    span
}

/// The trace id and the parent's span id of a W3C Trace Context `traceparent`; `None` for one that is not valid, which
/// by section 3.2 is as good as none.
fn traceparent(value: &[u8]) -> Option<(&str, &str)> {
    let text = std::str::from_utf8(value).ok()?;
    let (version, trace_id, parent_id, rest) = (text.get(..2)?, text.get(3..35)?, text.get(36..52)?, text.get(52..)?);
    let hex = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let nonzero = |part: &str| part.bytes().any(|b| b != b'0');
    let dashes = [2, 35].iter().all(|at| value[*at] == b'-') && rest.starts_with('-');
    // Version 00 ends after two digits of flags; a later one may go on behind another dash.
    let ends = rest.len() == 3 || (version != "00" && rest.as_bytes().get(3) == Some(&b'-'));
    let digits = hex(version) && hex(trace_id) && hex(parent_id) && hex(rest.get(1..3)?);
    let valid = dashes && ends && digits && version != "ff" && nonzero(trace_id) && nonzero(parent_id);
    valid.then_some((trace_id, parent_id))
}

/// The part of a call's time, one in so many, that is kept back from a wait for the way of the answer.
const WAIT_MARGIN: u32 = 10;

/// The innermost layer: deadline, authorization, body limit.
#[derive(Clone)]
pub(super) struct Guard<S> {
    inner: S,
    gateway: Gateway,
}

impl<S> Service<Request<Incoming>> for Guard<S>
where
    S: Service<Request<BoundedBody>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Refusal;
    type Future = BoxFuture<Result<Response<Body>, Refusal>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx).map_err(|never| match never {})
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        let gateway = self.gateway.clone();
        let mut inner = self.inner.clone();
        Box::pin(async move {
            let config = &gateway.rooms().config;
            let started_at = Instant::now();
            let deadline = match request.headers().get(&GRPC_TIMEOUT) {
                Some(value) => grpc_timeout(value).map_or(config.request_timeout, |t| t.min(config.request_timeout)),
                None => config.request_timeout,
            };
            let guarded = async {
                let Peer(peer) = *request.extensions().get().ok_or(Refusal::Unauthenticated)?;
                let credentials = PushCredentials::new(api_key(request.headers()), peer);
                let scope = gateway.rooms().push_authorizer.authorize(&credentials).await.map_err(|e| match e {
                    PushRefused::Unauthenticated => Refusal::Unauthenticated,
                    PushRefused::Unavailable => Refusal::CheckUnavailable,
                })?;
                request.extensions_mut().insert(scope);
                request.extensions_mut().insert(WaitUntil(started_at + deadline - deadline / WAIT_MARGIN));
                // A stream has no size of its own; there the limit holds for each message.
                let is_stream = request.uri().path() == PUSH_STREAM;
                let limit_bytes = if is_stream { usize::MAX } else { config.request_bytes_max };
                if content_length(request.headers()).is_some_and(|length| length > limit_bytes as u64) {
                    take_some(request.into_body(), limit_bytes.saturating_mul(2)).await;
                    return Err(Refusal::TooLarge { limit_bytes });
                }
                let answer = inner.call(request.map(|body| Limited::new(body, limit_bytes))).await;
                answer.map_err(|never| match never {})
            };
            tokio::time::timeout(deadline, guarded).await.unwrap_or(Err(Refusal::TimedOut))
        })
    }
}

/// Reads and throws away a body that is too large, for a second and so many bytes: a plain caller reads no answer before
/// it has sent everything, and a connection closed on unread bytes is reset, answer and all.
async fn take_some(mut body: Incoming, bytes_max: usize) {
    let mut taken = 0;
    let take = async {
        while let Some(Ok(frame)) = body.frame().await {
            taken += frame.data_ref().map_or(0, |data| data.len());
            if taken > bytes_max {
                return;
            }
        }
    };
    let _in_time = tokio::time::timeout(Duration::from_secs(1), take).await;
}

/// The API key, from `authorization: Bearer KEY` or `x-api-key: KEY`.
fn api_key(headers: &HeaderMap) -> Option<Token> {
    let bearer = || {
        let (scheme, key) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    };
    let key = headers.get(&X_API_KEY).and_then(|key| key.to_str().ok()).or_else(bearer)?;
    Some(Token::new(key.to_owned()))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The `grpc-timeout` header: up to eight digits and a unit. `None` for one that is not valid.
fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// Both push doors, told apart by the path.
#[derive(Clone)]
pub(super) struct PushDoors {
    gateway: Gateway,
    grpc: PushServiceServer<PushDoor>,
}

impl Service<Request<BoundedBody>> for PushDoors {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<BoundedBody>) -> Self::Future {
        if is_grpc_push(request.uri().path()) {
            let limit_bytes = self.gateway.rooms().config.request_bytes_max;
            // tonic passes a body's error on when it is a status.
            let bounded = request.map(|body| {
                body.map_err(move |error| -> BoxError {
                    if error.is::<LengthLimitError>() {
                        Box::new(grpc::status(Refusal::TooLarge { limit_bytes }))
                    } else {
                        error
                    }
                })
            });
            let (gateway, answer) = (self.gateway.clone(), self.grpc.call(bounded));
            Box::pin(async move {
                let response = answer.await?;
                // tonic's word for a message whose length is told to be over the limit, before our own limit sees it.
                let is_too_large = response.headers().get(Status::GRPC_STATUS).is_some_and(|code| code == OUT_OF_RANGE);
                Ok(if is_too_large {
                    grpc::refuse(&gateway, Refusal::TooLarge { limit_bytes }).into_http()
                } else {
                    response
                })
            })
        } else {
            let gateway = self.gateway.clone();
            Box::pin(async move { Ok(json::push(&gateway, request).await) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_taken_only_when_valid() {
        let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let parent_id = "00f067aa0ba902b7";
        let good = format!("00-{trace_id}-{parent_id}-01");
        assert_eq!(traceparent(good.as_bytes()), Some((trace_id, parent_id)));
        assert!(traceparent(format!("01-{trace_id}-{parent_id}-01-more").as_bytes()).is_some(), "a later version");
        for bad in [
            String::new(),
            good[..50].to_owned(),
            format!("{good}-more"),
            format!("ff-{trace_id}-{parent_id}-01"),
            format!("00-{}-{parent_id}-01", "0".repeat(32)),
            format!("00-{trace_id}-{}-01", "0".repeat(16)),
            good.to_uppercase(),
            good.replace('-', "_"),
        ] {
            assert_eq!(traceparent(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_grpc_timeout_is_digits_and_a_unit() {
        let read = |text: &'static str| grpc_timeout(&HeaderValue::from_static(text));
        assert_eq!(read("5S"), Some(Duration::from_secs(5)));
        assert_eq!(read("100m"), Some(Duration::from_millis(100)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "S", "5", "5s", "-5S", "123456789S", "5 S"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_key_comes_as_bearer_or_as_x_api_key() {
        let key = |name: &'static str, value: &'static str| {
            let headers = HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))]);
            api_key(&headers).map(|key| key.expose().to_owned())
        };
        assert_eq!(key("x-api-key", "k"), Some("k".to_owned()));
        assert_eq!(key("authorization", "Bearer k"), Some("k".to_owned()));
        assert_eq!(key("authorization", "bearer k"), Some("k".to_owned()));
        assert_eq!(key("authorization", "Basic k"), None);
    }

    #[test]
    fn only_the_push_service_is_a_push_door() {
        assert!(is_grpc_push("/pushgate.v1.PushService/Push"));
        assert!(!is_grpc_push("/pushgate.v1.PushServiceX/Push"));
        assert!(!is_grpc_push("/push"));
    }
}

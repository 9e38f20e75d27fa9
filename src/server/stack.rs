//! The one tower stack before both push doors: trace with request id, deadline, authorization, the body, a place to work.

mod bodies;
mod head;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::header::{CONNECTION, EXPECT};
use http::{HeaderName, HeaderValue, Request, Response, Version};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tower::{Service, ServiceBuilder, layer::layer_fn};
use tracing::{Instrument, Span, debug_span, field};

use crate::auth::{PushCredentials, PushRefused, PushScope};
use crate::doors::api::{Place, WaitUntil};
use crate::doors::grpc::PushDoor;
use crate::doors::{Body, Refusal, RequestBody, grpc, json, lists};
use crate::gateway::Gateway;
use crate::proto::push_service_server::{PushServiceServer, SERVICE_NAME};
use crate::shares::{Payer, Share, Shares};

use head::{api_key, content_length, grpc_timeout, is_encoded, traceparent};

/// Where a request came from, as the router noted it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) SocketAddr);

/// The whole stack, for one request each time it is cloned.
pub(super) type PushStack = Answer<Guard<PushDoors>>;

/// Builds the stack.
pub(super) fn push_stack(gateway: &Gateway) -> PushStack {
    let rooms = gateway.rooms();
    let places_max = rooms.config.push_concurrency_max;
    let places = Arc::new(Semaphore::new(places_max));
    let free = places.clone();
    rooms.metrics.read(&rooms.metrics.push_concurrency, move || places_max.saturating_sub(free.available_permits()));
    let bodies = Shares::new(rooms.config.request_bodies_bytes_max);
    ServiceBuilder::new()
        .layer(layer_fn(|inner| Answer { inner, gateway: gateway.clone() }))
        .layer(layer_fn(|inner| Guard {
            inner,
            gateway: gateway.clone(),
            places: places.clone(),
            bodies: bodies.clone(),
        }))
        .service(PushDoors { gateway: gateway.clone(), grpc: PushDoor::server(gateway.clone()) })
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The method whose requests have no end.
const PUSH_STREAM: &str = "/pushgate.v1.PushService/PushStream";

/// The method whose requests are counted before they are decoded.
const PUSH_BATCH: &str = "/pushgate.v1.PushService/PushBatch";

/// Whether the path belongs to the gRPC push door.
pub(super) fn is_grpc_push(path: &str) -> bool {
    is_of(path, SERVICE_NAME)
}

/// Whether the path is a method of this gRPC service.
pub(super) fn is_of(path: &str, service: &str) -> bool {
    path.strip_prefix('/').and_then(|path| path.strip_prefix(service)).is_some_and(|rest| rest.starts_with('/'))
}

/// How a caller is answered.
#[derive(Clone, Copy)]
enum Door {
    Grpc,
    Json(json::Mode),
}

impl Door {
    fn of<B>(gateway: &Gateway, request: &Request<B>) -> Self {
        if is_grpc_push(request.uri().path()) {
            Self::Grpc
        } else {
            Self::Json(json::Mode::asked(&gateway.rooms().config, request))
        }
    }

    fn refuse(self, gateway: &Gateway, refusal: Refusal) -> Response<Body> {
        match self {
            Self::Grpc => grpc::refuse(gateway, refusal).into_http(),
            Self::Json(mode) => json::refuse(gateway, mode, refusal),
        }
    }
}

/// The outermost layer: gives the request its span and id, and turns a refusal from further in into the door's answer.
#[derive(Clone)]
pub(super) struct Answer<S> {
    inner: S,
    gateway: Gateway,
}

impl<S> Service<Request<Incoming>> for Answer<S>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Refusal>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let gateway = self.gateway.clone();
        let door = Door::of(&gateway, &request);
        let request_id = request.headers().get(&X_REQUEST_ID).cloned();
        let is_http1 = request.version() < Version::HTTP_2;
        let span = span(&gateway, door, &request);
        // Before the drain is asked about: what is begun when it starts is waited for.
        let in_hand = gateway.rooms().pushes.token();
        let inner = (!gateway.rooms().registry.is_draining()).then(|| self.inner.call(request));
        let answer = async move {
            let _in_hand = in_hand;
            let result = match inner {
                Some(inner) => inner.await,
                None => Err(Refusal::Draining),
            };
            let mut response = result.unwrap_or_else(|refusal| {
                let mut response = door.refuse(&gateway, refusal);
                if is_http1 && matches!(refusal, Refusal::TooLarge { .. } | Refusal::TooManyBytes) {
                    // The rest of the body is not wanted.
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                response
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
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The request's span: the caller's request id or one of ours, and the caller's trace if it is in one.
fn span<B>(gateway: &Gateway, door: Door, request: &Request<B>) -> Span {
    let door = if matches!(door, Door::Grpc) { "grpc" } else { "json" };
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

/// The part of a call's time, one in so many, that is kept back from a wait for the way of the answer.
const WAIT_MARGIN: u32 = 10;

/// The innermost layer: deadline, authorization, the body, and a place among those that are worked on.
#[derive(Clone)]
pub(super) struct Guard<S> {
    inner: S,
    gateway: Gateway,
    places: Arc<Semaphore>,
    bodies: Arc<Shares>,
}

impl<S> Service<Request<Incoming>> for Guard<S>
where
    S: Service<Request<RequestBody>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Refusal;
    type Future = BoxFuture<Result<Response<Body>, Refusal>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx).map_err(|never| match never {})
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let mut guard = self.clone();
        Box::pin(async move {
            let started_at = Instant::now();
            let deadline = guard.deadline(&request)?;
            let guarded = async {
                let Peer(peer) = *request.extensions().get().ok_or(Refusal::Unauthenticated)?;
                let credentials = PushCredentials::new(api_key(request.headers()), peer);
                let mut scope = guard.authorize(&credentials).await?;
                if credentials.api_key.is_none() {
                    scope = scope.paid_by(Payer::Address(peer.ip().to_canonical()));
                }
                let mut share = guard.bodies.share(scope.payer().clone());
                let mut request = if request.uri().path() == PUSH_STREAM {
                    // Has no size and no end; what is counted is the message that is coming.
                    let share = guard.bodies.share(scope.payer().clone());
                    let gateway = guard.gateway.clone();
                    request.map(|body| Either::Right(Body::new(bodies::Messages::new(body, share, gateway))))
                } else {
                    guard.read(request, &mut share).await?
                };
                let extensions = request.extensions_mut();
                extensions.insert(scope);
                extensions.insert(WaitUntil(started_at + deadline - deadline / WAIT_MARGIN));
                // Only now: a body that comes slowly must not keep others out.
                extensions.insert(Place(Arc::new((guard.place()?, share))));
                guard.inner.call(request).await.map_err(|never| match never {})
            };
            tokio::time::timeout(deadline, guarded).await.unwrap_or(Err(Refusal::TimedOut))
        })
    }
}

impl<S> Guard<S> {
    fn deadline<B>(&self, request: &Request<B>) -> Result<Duration, Refusal> {
        let own = self.gateway.rooms().config.request_timeout;
        match request.headers().get(&GRPC_TIMEOUT) {
            Some(asked) if is_grpc_push(request.uri().path()) => {
                grpc_timeout(asked).map(|asked| asked.min(own)).ok_or(Refusal::MalformedTimeout)
            }
            _ => Ok(own),
        }
    }

    /// Refused, not queued, where all are taken: a caller that is told at once can try another gateway.
    fn place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        self.places.clone().try_acquire_owned().map_err(|_| Refusal::Overloaded)
    }

    async fn authorize(&self, credentials: &PushCredentials) -> Result<PushScope, Refusal> {
        // An embedder's check may be slow, and must not be asked more often at a time than it is told.
        let _place = self.place()?;
        self.gateway.rooms().push_authorizer.authorize(credentials).await.map_err(|refused| match refused {
            PushRefused::Unauthenticated => Refusal::Unauthenticated,
            PushRefused::Unavailable => Refusal::CheckUnavailable,
        })
    }

    /// The request with its whole body.
    async fn read(&self, request: Request<Incoming>, share: &mut Share) -> Result<Request<RequestBody>, Refusal> {
        let path = request.uri().path();
        // gRPC has a header of its own for that, and knows some.
        if !is_grpc_push(path) && is_encoded(request.headers()) {
            return Err(Refusal::Encoded);
        }
        let limit_bytes = self.gateway.rooms().config.request_bytes_max;
        let (parts, body) = request.into_parts();
        if content_length(&parts.headers).is_some_and(|length| length > limit_bytes as u64) {
            // Who waits to be told to go on reads the answer first, and reading here would tell it to go on.
            if !lists(&parts.headers, &EXPECT, "100-continue") {
                take_some(body, limit_bytes.saturating_mul(2)).await;
            }
            return Err(Refusal::TooLarge { limit_bytes });
        }
        let bytes = bodies::read(body, limit_bytes, share).await?;
        Ok(Request::from_parts(parts, Either::Left(Full::new(bytes))))
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

/// Both push doors, told apart by the path.
#[derive(Clone)]
pub(super) struct PushDoors {
    gateway: Gateway,
    grpc: PushServiceServer<PushDoor>,
}

impl Service<Request<RequestBody>> for PushDoors {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        let gateway = self.gateway.clone();
        if !is_grpc_push(request.uri().path()) {
            return Box::pin(async move { Ok(json::push(&gateway, request).await) });
        }
        let answer = if request.uri().path() == PUSH_BATCH {
            Either::Left(PushDoor::batch(gateway.clone(), request))
        } else {
            Either::Right(self.grpc.call(request))
        };
        Box::pin(async move {
            let response = match answer {
                Either::Left(batch) => batch.await,
                Either::Right(call) => call.await?,
            };
            // Only a refusal has its status here; what was carried out has it in the trailers.
            let is_too_large =
                Status::from_header_map(response.headers()).is_some_and(|status| grpc::is_too_large(&status));
            let limit_bytes = gateway.rooms().config.request_bytes_max;
            Ok(if is_too_large {
                grpc::refuse(&gateway, Refusal::TooLarge { limit_bytes }).into_http()
            } else {
                response
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_push_service_is_a_push_door() {
        assert!(is_grpc_push("/pushgate.v1.PushService/Push"));
        assert!(!is_grpc_push("/pushgate.v1.PushServiceX/Push"));
        assert!(!is_grpc_push("/push"));
    }
}

//! What the doors of callers stand behind: trace with request id, deadline, authorization, the body, a place to work.

mod bodies;
#[cfg(feature = "inside")]
pub(crate) mod guest;
mod head;

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONNECTION, EXPECT};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Status};
use tower::Service;
use tracing::{Instrument, Span, debug_span, field};

use crate::auth::{AdminAccess, Method, PushScope};
use crate::doors::admin::AdminDoor;
use crate::doors::api::{Caller, Place};
use crate::doors::grpc::PushDoor;
use crate::doors::{Body, Refusal, RequestBody, grpc, json, lists};
use crate::gateway::{Denial, Gateway};
use crate::metrics::{self, AdminResult};
use crate::proto::admin_service_server::{self, AdminServiceServer};
use crate::proto::push_service_server::{PushServiceServer, SERVICE_NAME};
use crate::shares::{Share, Shares};

use super::callers::{Callers, NotACaller};
use super::peer::Peer;

pub(super) use head::api_key;

#[cfg(feature = "inside")]
use guest::is_for_guest;
use head::{content_length, grpc_timeout, is_encoded, traceparent};

/// The method whose requests have no end.
const PUSH_STREAM: &str = "/pushgate.v1.PushService/PushStream";

/// The method whose requests are counted before they are decoded.
const PUSH_BATCH: &str = "/pushgate.v1.PushService/PushBatch";

/// Calls of the `AdminService` in progress. Of their own, so that an operator can do something about too many pushes.
const ADMIN_CALLS_MAX: usize = 16;

/// Whether the path belongs to a gRPC service that stands behind this.
pub(super) fn is_guarded(path: &str) -> bool {
    is_of(path, SERVICE_NAME) || is_admin(path) || is_for_guest(path)
}

fn is_admin(path: &str) -> bool {
    is_of(path, admin_service_server::SERVICE_NAME)
}

/// There are guests for conformance suites only.
#[cfg(not(feature = "inside"))]
fn is_for_guest(_path: &str) -> bool {
    false
}

/// Whether the path is a method of this gRPC service.
pub(super) fn is_of(path: &str, service: &str) -> bool {
    path.strip_prefix('/').and_then(|path| path.strip_prefix(service)).is_some_and(|rest| rest.starts_with('/'))
}

/// How a caller is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Grpc,
    Admin,
    Json(json::Mode),
}

impl Door {
    fn of(gateway: &Gateway, request: &Parts) -> Self {
        if is_admin(request.uri.path()) {
            Self::Admin
        } else if is_guarded(request.uri.path()) {
            Self::Grpc
        } else {
            Self::Json(json::Mode::asked(&gateway.rooms().config, request.uri.path(), &request.headers))
        }
    }

    fn label(self) -> metrics::Door {
        match self {
            Self::Grpc | Self::Admin => metrics::Door::Grpc,
            Self::Json(_) => metrics::Door::Json,
        }
    }

    /// Whether the caller may call what it calls. What the gRPC services do not have is left to them.
    fn allows(self, scope: &PushScope, path: &str) -> Result<(), (Denial, Refusal)> {
        let name = path.rsplit('/').next().unwrap_or_default();
        let method = match self {
            Self::Json(json::Mode::Batch) => Some(Method::Batch),
            Self::Json(json::Mode::Legacy | json::Mode::Full) => Some(Method::Push),
            Self::Grpc => Method::of_grpc(name),
            Self::Admin => {
                let is_allowed = AdminAccess::needed_for(name).is_none_or(|needed| scope.allows_admin(needed));
                return if is_allowed { Ok(()) } else { Err((Denial::Admin, Refusal::NotAdmin)) };
            }
        };
        if method.is_none_or(|method| scope.allows_method(method)) {
            Ok(())
        } else {
            Err((Denial::Method, Refusal::NotForMethod))
        }
    }

    fn refuse(self, gateway: &Gateway, refusal: Refusal) -> Response<Body> {
        match self {
            Self::Grpc => grpc::refuse(gateway, refusal).into_http(),
            Self::Admin => grpc::status(refusal).into_http(),
            Self::Json(mode) => json::refuse(gateway, mode, refusal),
        }
    }
}

static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The part of a call's time, one in so many, that is kept back from a wait for the way of the answer.
const WAIT_MARGIN: u32 = 10;

/// The push doors and what they stand behind. One service rather than a tower of layers: each layer boxed its future and
/// cloned what it holds, for every request.
pub(super) struct PushStack {
    gateway: Gateway,
    grpc: PushServiceServer<PushDoor>,
    admin: AdminServiceServer<AdminDoor>,
    places: Arc<Semaphore>,
    admin_places: Arc<Semaphore>,
    bodies: Arc<Shares>,
    callers: Arc<Callers>,
}

impl PushStack {
    pub(super) fn new(gateway: &Gateway, callers: Arc<Callers>) -> Self {
        let rooms = gateway.rooms();
        let places_max = rooms.config.push_concurrency_max;
        let places = Arc::new(Semaphore::new(places_max));
        let free = places.clone();
        rooms
            .metrics
            .read(&rooms.metrics.push_concurrency, move || places_max.saturating_sub(free.available_permits()));
        Self {
            gateway: gateway.clone(),
            grpc: PushDoor::server(gateway.clone()),
            admin: AdminDoor::server(gateway.clone()),
            places,
            admin_places: Arc::new(Semaphore::new(ADMIN_CALLS_MAX)),
            bodies: Shares::new(rooms.config.request_bodies_bytes_max),
            callers,
        }
    }

    /// Answers one request, in its span and in its door's words.
    pub(super) async fn answer(&self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let (head, body) = request.into_parts();
        let door = Door::of(&self.gateway, &head);
        let request_id = head.headers.get(&X_REQUEST_ID).cloned();
        let is_http1 = head.version < Version::HTTP_2;
        let span = span(&self.gateway, door, &head.headers);
        let pushes = &self.gateway.rooms().pushes;
        // Before the close is asked about: what is begun when it comes is waited for.
        let _in_hand = pushes.token();
        let result = if pushes.is_closed() {
            Err(Refusal::Draining)
        } else {
            // Pinned here, so that nothing below has to move it.
            pin!(self.work(door, head, body, peer)).instrument(span).await
        };
        let mut response = result.unwrap_or_else(|refusal| {
            let mut response = door.refuse(&self.gateway, refusal);
            if is_http1 && matches!(refusal, Refusal::TooLarge { .. } | Refusal::TooManyBytes) {
                // The rest of the body is not wanted.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            response
        });
        if door == Door::Admin {
            self.gateway.rooms().metrics.operated(admin_result(response.headers()));
        }
        if let Some(request_id) = request_id {
            response.headers_mut().insert(X_REQUEST_ID.clone(), request_id);
        }
        response
    }

    /// Has the door work on it, within the deadline.
    async fn work(&self, door: Door, head: Parts, body: Incoming, peer: Peer) -> Result<Response<Body>, Refusal> {
        let started_at = Instant::now();
        let deadline = self.deadline(door, &head.headers)?;
        let wait_until = started_at + deadline - deadline / WAIT_MARGIN;
        let worked = pin!(async {
            let scope = self.authorize(door, &head.headers, &peer).await?;
            if let Err((denial, refusal)) = door.allows(&scope, head.uri.path()) {
                let (name, peer) = (Some(scope.name()), scope.peer());
                self.gateway.rooms().audit.denied(denial, door.label(), name, peer);
                return Err(refusal);
            }
            let mut share = self.bodies.share(scope.payer().clone());
            // The place only once the body is there: one that comes slowly must not keep others out.
            if let Door::Json(mode) = door {
                if is_encoded(&head.headers) {
                    return Err(Refusal::Encoded);
                }
                let body = self.read(&head.headers, body, &mut share).await?;
                let caller = Caller::new(scope, wait_until, Place::new((self.place(door)?, share)));
                return Ok(json::push(&self.gateway, mode, caller, body).await);
            }
            let body = if head.uri.path() == PUSH_STREAM || is_for_guest(head.uri.path()) {
                // Has no size and no end; what is counted is the message that is coming.
                let share = self.bodies.share(scope.payer().clone());
                Either::Right(Body::new(bodies::Messages::new(body, share, self.gateway.clone())))
            } else {
                Either::Left(Full::new(self.read(&head.headers, body, &mut share).await?))
            };
            let caller = Caller::new(scope, wait_until, Place::new((self.place(door)?, share)));
            Ok(self.call(door, Request::from_parts(head, body), caller).await)
        });
        tokio::time::timeout(deadline, worked).await.unwrap_or(Err(Refusal::TimedOut))
    }

    fn deadline(&self, door: Door, headers: &HeaderMap) -> Result<Duration, Refusal> {
        let own = self.gateway.rooms().config.request_timeout;
        if matches!(door, Door::Json(_)) {
            return Ok(own);
        }
        match headers.get(&GRPC_TIMEOUT) {
            Some(asked) => grpc_timeout(asked).map(|asked| asked.min(own)).ok_or(Refusal::MalformedTimeout),
            None => Ok(own),
        }
    }

    /// Refused, not queued, where all are taken: a caller that is told at once can try another gateway.
    fn place(&self, door: Door) -> Result<OwnedSemaphorePermit, Refusal> {
        let places = if door == Door::Admin { &self.admin_places } else { &self.places };
        places.clone().try_acquire_owned().map_err(|_| Refusal::Overloaded)
    }

    async fn authorize(&self, door: Door, headers: &HeaderMap, peer: &Peer) -> Result<PushScope, Refusal> {
        // An embedder's check may be slow, and must not be asked more often at a time than it is told.
        let _place = self.place(door)?;
        self.callers.check(api_key(headers), headers, peer).await.map_err(|refused| {
            let denial = match refused {
                NotACaller::CheckUnavailable => return Refusal::CheckUnavailable,
                NotACaller::Denied(denial) => denial,
            };
            self.gateway.rooms().audit.denied(denial, door.label(), None, Some(peer.address));
            match denial {
                Denial::ExpiredToken => Refusal::TokenExpired,
                Denial::BadToken => Refusal::TokenRefused,
                _ => Refusal::Unauthenticated,
            }
        })
    }

    /// The whole body.
    async fn read(&self, headers: &HeaderMap, body: Incoming, share: &mut Share) -> Result<Bytes, Refusal> {
        let limit_bytes = self.gateway.rooms().config.request_bytes_max;
        if content_length(headers).is_some_and(|length| length > limit_bytes as u64) {
            // Who waits to be told to go on reads the answer first, and reading here would tell it to go on.
            if !lists(headers, &EXPECT, "100-continue") {
                Box::pin(take_some(body, limit_bytes.saturating_mul(2))).await;
            }
            return Err(Refusal::TooLarge { limit_bytes });
        }
        bodies::read(body, limit_bytes, share).await
    }

    fn call_service(&self, request: Request<RequestBody>) -> Answer {
        #[cfg(feature = "inside")]
        if is_for_guest(request.uri().path()) {
            return guest::call(request);
        }
        self.grpc.clone().call(request)
    }

    /// Calls a method of a gRPC door. The call is boxed whichever it is: room for the largest would be moved with every
    /// request.
    fn call(
        &self,
        door: Door,
        mut request: Request<RequestBody>,
        caller: Caller,
    ) -> impl Future<Output = Response<Body>> {
        request.extensions_mut().insert(caller);
        let call = if request.uri().path() == PUSH_BATCH {
            let gateway = self.gateway.clone();
            Box::pin(async move { Ok(PushDoor::batch(gateway, request).await) })
        } else if door == Door::Admin {
            self.admin.clone().call(request)
        } else {
            self.call_service(request)
        };
        async move {
            let response = call.await.unwrap_or_else(|never: Infallible| match never {});
            // Only a refusal has its status here; what was carried out has it in the trailers.
            let is_too_large =
                Status::from_header_map(response.headers()).is_some_and(|status| grpc::is_too_large(&status));
            let limit_bytes = self.gateway.rooms().config.request_bytes_max;
            if is_too_large { door.refuse(&self.gateway, Refusal::TooLarge { limit_bytes }) } else { response }
        }
    }
}

/// How a call of the `AdminService` ended, by its answer.
fn admin_result(headers: &HeaderMap) -> AdminResult {
    match Status::from_header_map(headers).map_or(Code::Ok, |status| status.code()) {
        Code::Ok => AdminResult::Done,
        Code::InvalidArgument => AdminResult::Invalid,
        Code::Unauthenticated => AdminResult::Unauthenticated,
        Code::PermissionDenied => AdminResult::PermissionDenied,
        Code::ResourceExhausted => AdminResult::Exhausted,
        Code::Unavailable => AdminResult::Unavailable,
        _ => AdminResult::Failed,
    }
}

/// What a gRPC service answers in the end.
type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// The request's span: the caller's request id or one of ours, and the caller's trace if it is in one.
fn span(gateway: &Gateway, door: Door, headers: &HeaderMap) -> Span {
    let door = match door {
        Door::Grpc => "grpc",
        Door::Admin => "admin",
        Door::Json(_) => "json",
    };
    let span =
        debug_span!("request", door, request_id = field::Empty, trace_id = field::Empty, parent_id = field::Empty);
    if span.is_disabled() {
        return span;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_services_of_callers_are_guarded() {
        assert!(is_guarded("/pushgate.v1.PushService/Push"));
        assert!(is_guarded("/pushgate.v1.AdminService/Drain"));
        assert!(!is_guarded("/pushgate.v1.PushServiceX/Push"));
        assert!(!is_guarded("/push"));
    }
}

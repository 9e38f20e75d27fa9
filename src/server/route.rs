//! Routes requests by path, on each of the two addresses.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, RETRY_AFTER, VARY};
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use tonic_health::pb::health_server::HealthServer;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};

use crate::config;
use crate::connection::Transport;
use crate::doors::websocket::WebSocketDoor;
use crate::doors::{Body, empty, grpc, json, text, try_later};
use crate::gateway::{Gateway, Readiness};
use crate::metrics::Listener;

use super::client::Client;
use super::health::Health;
use super::page::PAGE_POLICY;
use super::peer::Peer;
use super::readers::Readers;
use super::scrape::{self, Scrapes};
use super::stack::{PushStack, is_guarded, is_of};
use super::traffic::TrackedStream;

/// What an address serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Serves {
    /// Everything.
    All,
    /// The WebSocket endpoint and the client module.
    Clients,
    /// Everything except the WebSocket endpoint.
    Control,
}

impl Serves {
    pub(super) fn label(self) -> Listener {
        match self {
            Self::All => Listener::All,
            Self::Clients => Listener::Clients,
            Self::Control => Listener::Control,
        }
    }
}

/// All services that requests can reach.
pub(super) struct Router {
    pub(super) gateway: Gateway,
    pub(super) websocket: WebSocketDoor,
    pub(super) push: PushStack,
    pub(super) health: HealthServer<Health>,
    pub(super) reflection: Reflection,
    pub(super) readers: Readers,
    pub(super) client: Client,
    pub(super) scrapes: Scrapes,
    /// The test page, if it is turned on.
    pub(super) page: Option<Bytes>,
}

const HEALTH: &str = "grpc.health.v1.Health";
const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";
const REFLECTION_V1: &str = "grpc.reflection.v1.ServerReflection";
const REFLECTION_V1ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";

/// Server reflection in both versions. grpcurl tries v1 first, and older tools know only v1alpha.
pub(super) struct Reflection {
    pub(super) v1: GrpcService,
    pub(super) v1alpha: GrpcService,
}

/// A gRPC service whose type has no name in tonic.
pub(super) type GrpcService = BoxCloneSyncService<Request<Incoming>, Response<Body>, Infallible>;

impl Router {
    /// Answers one request. `S` is the stream inside the connection's [`TrackedStream`]; an upgrade takes it over.
    pub(super) async fn route<S>(
        self: Arc<Self>,
        serves: Serves,
        request: Request<Incoming>,
        peer: Peer,
    ) -> Response<Body>
    where
        S: Transport,
    {
        if let Err(problem) = check_host(&request) {
            return text(StatusCode::BAD_REQUEST, problem);
        }
        let config = &self.gateway.rooms().config;
        let path = request.uri().path();
        if serves != Serves::Control && path == config.ws_path {
            return self.websocket.upgrade(
                request,
                peer.address,
                peer.certificate_names,
                TrackedStream::<S>::into_stream,
            );
        }
        if let Some(file) = self.client.file(path) {
            return if is_read_only(&request) { file.answer(request.headers()) } else { read_only() };
        }
        if serves == Serves::Clients {
            let is_probe = config.listen_health && matches!(path, "/healthz" | "/readyz");
            return if is_probe { self.read(&request) } else { not_found(&request) };
        }
        let is_json_push = is_json_push(&config.push_path, path);
        if is_json_push && request.method() != Method::POST {
            // The legacy service checked the method before authorization, so this does too.
            return json::method_not_allowed(json::Mode::asked(config, path, request.headers()));
        }
        if is_grpc(path)
            && let Some(refusal) = grpc::not_a_call(&request)
        {
            return refusal;
        }
        if is_json_push || is_guarded(path) {
            return self.push.answer(request, peer).await;
        }
        if self.asks_for_key(path)
            && let Err(refusal) = self.readers.check(&request, &peer).await
        {
            return refusal;
        }
        match path {
            "/metrics" | "/healthz" | "/readyz" | "/" => self.read(&request),
            _ if is_of(path, HEALTH) => call(self.health.clone(), request).await,
            _ if is_of(path, REFLECTION_V1) => call(self.reflection.v1.clone(), request).await,
            _ if is_of(path, REFLECTION_V1ALPHA) => call(self.reflection.v1alpha.clone(), request).await,
            _ => not_found(&request),
        }
    }

    /// Whether this is read only by those who may push, as far as there are keys. The probes are read by all.
    fn asks_for_key(&self, path: &str) -> bool {
        let config = &self.gateway.rooms().config;
        match path {
            "/metrics" => !config.open_metrics,
            "/" => self.page.is_some() && !config.open_reflection,
            _ => (is_of(path, REFLECTION_V1) || is_of(path, REFLECTION_V1ALPHA)) && !config.open_reflection,
        }
    }

    /// Whether the request needs no place at a push door and its answer takes memory until it is read. A health watch does not
    /// count, because it takes little memory and a proxy may have many on one connection.
    pub(super) fn is_keyless<B>(&self, request: &Request<B>) -> bool {
        let config = &self.gateway.rooms().config;
        let path = request.uri().path();
        !(is_json_push(&config.push_path, path) || is_guarded(path) || path == config.ws_path || path == HEALTH_WATCH)
    }

    /// Answers a request for a read-only path: the page, the probes or the metrics.
    fn read(&self, request: &Request<Incoming>) -> Response<Body> {
        if !is_read_only(request) {
            return read_only();
        }
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" => match *self.gateway.readiness().borrow() {
                Readiness::Ready => text(StatusCode::OK, "ready\n"),
                Readiness::Draining => try_later(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
                Readiness::Stopping | Readiness::Over => try_later(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n"),
            },
            "/metrics" => {
                let format = scrape::format(request.headers());
                let text = self.scrapes.text(format, Instant::now(), || self.gateway.scrape(format));
                let mut response = typed(scrape::content_type(format), text);
                response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
                response
            }
            "/" => match &self.page {
                Some(page) => {
                    let mut response = typed(HeaderValue::from_static("text/html; charset=utf-8"), page.clone());
                    let policy = HeaderValue::from_static(PAGE_POLICY);
                    response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
                    response
                }
                None => not_found(request),
            },
            _ => not_found(request),
        }
    }
}

fn is_json_push(push_path: &str, path: &str) -> bool {
    path.strip_prefix(push_path).is_some_and(|rest| rest.is_empty() || rest == json::BATCH)
}

/// The answer to a keyless request past the connection's limit. It has no body, because a body would be one more unread
/// answer.
pub(super) fn too_many_keyless<B>(request: &Request<B>) -> Response<Body> {
    if grpc::not_a_call(request).is_none() {
        return tonic::Status::resource_exhausted(
            "too many calls of this connection are open, read their answers first",
        )
        .into_http();
    }
    let mut response = empty(StatusCode::SERVICE_UNAVAILABLE);
    response.headers_mut().insert(RETRY_AFTER, config::RETRY_AFTER.as_secs().into());
    response
}

/// Checks the Host header. An HTTP/1.1 request must have exactly one, RFC 9112 section 3.2. Older versions need none,
/// and HTTP/2 uses a pseudo-header.
fn check_host<B>(request: &Request<B>) -> Result<(), &'static str> {
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if request.version() == Version::HTTP_11 => Err("an HTTP/1.1 request needs a Host header\n"),
        (Some(_), Some(_)) => Err("a request must not have more than one Host header\n"),
        (Some(host), None) if !is_host(host) => Err("the Host header is not a valid host\n"),
        _ => Ok(()),
    }
}

/// Whether the value is a host with or without a port. An empty value is allowed and means that there is no host.
fn is_host(value: &HeaderValue) -> bool {
    value.is_empty()
        || is_plain_host(value)
        || Authority::try_from(value.as_bytes()).is_ok_and(|authority| is_host_and_port(&authority))
}

/// Whether it is a name or an IPv4 address, with or without a port. Nearly all are, and need not be copied and parsed.
fn is_plain_host(value: &HeaderValue) -> bool {
    let Ok(text) = value.to_str() else { return false };
    let (host, port) = text.split_once(':').unwrap_or((text, "0"));
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'-';
    !host.is_empty() && host.bytes().all(is_plain) && port.parse::<u16>().is_ok()
}

fn is_host_and_port(authority: &Authority) -> bool {
    let text = authority.as_str();
    // RFC 3986 section 3.2.3 allows an empty port.
    let is_port = |port: &str| port.is_empty() || port.parse::<u16>().is_ok();
    !text.contains('@') && text[authority.host().len()..].strip_prefix(':').is_none_or(is_port)
}

fn is_read_only<B>(request: &Request<B>) -> bool {
    request.method() == Method::GET || request.method() == Method::HEAD
}

/// The answer to any other method than GET and HEAD.
fn read_only() -> Response<Body> {
    let mut response = empty(StatusCode::METHOD_NOT_ALLOWED);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

/// Whether the path belongs to one of the gRPC services.
fn is_grpc(path: &str) -> bool {
    is_guarded(path) || [HEALTH, REFLECTION_V1, REFLECTION_V1ALPHA].iter().any(|service| is_of(path, service))
}

async fn call<S>(service: S, request: Request<Incoming>) -> Response<Body>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>,
{
    service.oneshot(request).await.unwrap_or_else(|never| match never {})
}

fn typed(kind: HeaderValue, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(bytes)));
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Answers "not found" in the protocol of the caller.
fn not_found<B>(request: &Request<B>) -> Response<Body> {
    if grpc::not_a_call(request).is_none() {
        tonic::Status::unimplemented("no such service").into_http()
    } else {
        text(StatusCode::NOT_FOUND, "not found\n")
    }
}

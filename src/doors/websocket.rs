//! The WebSocket endpoint: admits and upgrades a request, then hands the socket to the task of its connection.

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{
    ALLOW, CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::close::CloseReason;
use crate::connection::{Arrival, Connection, Protocol, Shared, Transport};
use crate::dialect::SESSION_PROTOCOL;
use crate::doors::{Body, empty, listed, lists, text, try_later};
use crate::metrics::UpgradeResult;
use crate::registry::{AdmitError, Registry};

/// What is needed to turn an upgrade request into a connection.
pub(crate) struct WebSocketDoor {
    pub(crate) registry: Arc<Registry>,
    pub(crate) shared: Arc<Shared>,
    /// Tracks the tasks of upgraded connections. A shutdown waits for them here, because hyper does not wait for
    /// upgraded connections.
    pub(crate) tasks: TaskTracker,
}

impl WebSocketDoor {
    /// Answers an upgrade request. `Served` is the stream that hyper serves. The connection continues on the stream
    /// that `into_stream` returns.
    pub(crate) fn upgrade<Served, S>(
        &self,
        mut request: Request<Incoming>,
        peer: SocketAddr,
        into_stream: fn(Served) -> S,
    ) -> Response<Body>
    where
        Served: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Transport,
    {
        let metrics = &self.shared.metrics;
        let protocol = protocol(request.headers());
        let mut response = match accept_key(&request) {
            Ok(key) => switching(&key),
            Err(malformed) => {
                metrics.upgrade(UpgradeResult::Malformed);
                return malformed.answer();
            }
        };
        let registration = match self.registry.admit(SocketAddr::new(peer.ip().to_canonical(), peer.port())) {
            Ok(registration) => registration,
            Err(error) => {
                metrics.upgrade(match error {
                    AdmitError::TooMany { .. } => UpgradeResult::TooMany,
                    AdmitError::TooManyFromAddress { .. } => UpgradeResult::TooManyFromAddress,
                    AdmitError::Draining => UpgradeResult::Draining,
                });
                return refused(error);
            }
        };
        metrics.upgrade(UpgradeResult::Accepted);
        if protocol == Protocol::Session {
            response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SESSION_PROTOCOL));
        }
        let upgrade = hyper::upgrade::on(&mut request);
        // The task must not keep any part of the request, because a single header would keep hyper's read buffer alive.
        drop(request);
        let arrival = Box::new(Arrival { protocol, registration, shared: self.shared.clone() });
        self.tasks.spawn(async move {
            let connection = match upgrade.await {
                Ok(upgraded) => connect(upgraded, arrival, into_stream),
                Err(error) => {
                    arrival.shared.metrics.closed(CloseReason::Reset, 0);
                    return debug!(%error, "upgrade failed");
                }
            };
            connection.run().await;
        });
        response
    }
}

/// Takes the stream out of hyper's hands.
#[expect(clippy::boxed_local, reason = "the box is freed here, and not when the task ends")]
fn connect<Served, S>(upgraded: Upgraded, arrival: Box<Arrival>, into_stream: fn(Served) -> S) -> Connection<S::Shared>
where
    Served: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Transport,
{
    // The type of the upgraded stream depends on whether hyper detected the HTTP version or served HTTP/1 only.
    let (io, already_read) = match downcast::<TokioIo<Served>>(upgraded) {
        Ok(parts) => (parts.io, parts.read_buf),
        Err(upgraded) => match upgraded.downcast::<TokioIo<Served>>() {
            Ok(parts) => (parts.io, parts.read_buf),
            Err(_) => unreachable!("hyper serves another stream type than the router was told"),
        },
    };
    arrival.connect(into_stream(io.into_inner()), &already_read)
}

/// The protocol that the client offers. A client that offers only other subprotocols gets the legacy protocol, and can
/// see this in the response.
fn protocol(headers: &HeaderMap) -> Protocol {
    if listed(headers, &SEC_WEBSOCKET_PROTOCOL).any(|offer| offer == SESSION_PROTOCOL) {
        Protocol::Session
    } else {
        Protocol::Legacy
    }
}

/// Why a request is not a valid WebSocket upgrade, by RFC 6455 section 4.2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Malformed {
    #[error("the method is not GET")]
    Method,
    #[error("the HTTP version is not 1.1")]
    HttpVersion,
    #[error("no Connection header lists upgrade")]
    Connection,
    #[error("no Upgrade header lists websocket")]
    Upgrade,
    #[error("there is no Sec-WebSocket-Version header, or not one of 13 alone")]
    Version,
    #[error("there is no Sec-WebSocket-Key header, or not one of 16 bytes in base64 alone")]
    Key,
}

/// Checks the upgrade request and returns the value of `Sec-WebSocket-Accept`.
fn accept_key<B>(request: &Request<B>) -> Result<String, Malformed> {
    let headers = request.headers();
    let refuse_unless = |holds: bool, malformed| if holds { Ok(()) } else { Err(malformed) };
    refuse_unless(request.method() == Method::GET, Malformed::Method)?;
    refuse_unless(request.version() == Version::HTTP_11, Malformed::HttpVersion)?;
    refuse_unless(lists(headers, &CONNECTION, "upgrade"), Malformed::Connection)?;
    refuse_unless(lists(headers, &UPGRADE, "websocket"), Malformed::Upgrade)?;
    refuse_unless(only(headers, &SEC_WEBSOCKET_VERSION) == Some("13"), Malformed::Version)?;
    let key = only(headers, &SEC_WEBSOCKET_KEY).ok_or(Malformed::Key)?;
    let is_good = BASE64_STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16);
    refuse_unless(is_good, Malformed::Key)?;
    Ok(derive_accept_key(key.as_bytes()))
}

/// The value of a header that must occur exactly once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut lines = headers.get_all(name).iter();
    let line = lines.next()?;
    if lines.next().is_some() { None } else { line.to_str().ok().map(str::trim) }
}

fn switching(accept_key: &str) -> Response<Body> {
    let mut response = empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(accept_key).expect("base64"));
    response
}

impl Malformed {
    fn answer(self) -> Response<Body> {
        let status = match self {
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::HttpVersion | Self::Connection | Self::Upgrade | Self::Version => StatusCode::UPGRADE_REQUIRED,
            Self::Key => StatusCode::BAD_REQUEST,
        };
        let mut response = text(status, format!("not a WebSocket upgrade: {self}"));
        let headers = response.headers_mut();
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET"));
        }
        if status == StatusCode::UPGRADE_REQUIRED {
            // RFC 9110 section 7.8 and RFC 6455 section 4.4 require the response to name what the server supports.
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        response
    }
}

fn refused(error: AdmitError) -> Response<Body> {
    let status = match error {
        AdmitError::TooMany { .. } | AdmitError::Draining => StatusCode::SERVICE_UNAVAILABLE,
        AdmitError::TooManyFromAddress { .. } => StatusCode::TOO_MANY_REQUESTS,
    };
    try_later(status, error.to_string())
}

//! The WebSocket door: admits and upgrades a request, and hands the socket to its connection's task.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::{ALLOW, CONNECTION, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::error::{Error, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::close::CloseReason;
use crate::connection::{self, Protocol, SESSION_PROTOCOL, Shared};
use crate::doors::{Body, text, try_later};
use crate::metrics::UpgradeResult;
use crate::registry::{AdmitError, Registry};

/// What the door needs to turn a request into a connection.
pub(crate) struct WebSocketDoor {
    pub(crate) registry: Arc<Registry>,
    pub(crate) shared: Arc<Shared>,
    /// hyper forgets an upgraded connection, so a shutdown waits for the tasks that are tracked here.
    pub(crate) tasks: TaskTracker,
}

impl WebSocketDoor {
    /// Answers an upgrade request. `Served` is the stream that hyper serves; the connection goes on with what
    /// `into_stream` makes of it.
    pub(crate) fn upgrade<Served, S>(
        &self,
        mut request: Request<Incoming>,
        peer: SocketAddr,
        into_stream: fn(Served) -> S,
    ) -> Response<Body>
    where
        Served: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let metrics = &self.shared.metrics;
        let protocol = protocol(request.headers());
        let mut response = match create_response_with_body(&request, Body::empty) {
            Ok(response) => response,
            Err(error) => {
                metrics.upgrade(UpgradeResult::Malformed);
                return malformed(&error);
            }
        };
        let registration = match self.registry.admit(peer.ip().to_canonical()) {
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
        // Nothing else of the request goes into the task: a header kept there would keep hyper's read buffer alive.
        drop(request);
        let shared = self.shared.clone();
        self.tasks.spawn(async move {
            let upgraded = match upgrade.await {
                Ok(upgraded) => upgraded,
                Err(error) => {
                    shared.metrics.closed(CloseReason::Reset, 0);
                    return debug!(%error, "upgrade failed");
                }
            };
            // From a connection whose HTTP version was told by its first bytes, or from one that is HTTP/1 only.
            let (io, already_read) = match downcast::<TokioIo<Served>>(upgraded) {
                Ok(parts) => (parts.io, parts.read_buf),
                Err(upgraded) => match upgraded.downcast::<TokioIo<Served>>() {
                    Ok(parts) => (parts.io, parts.read_buf),
                    Err(_) => unreachable!("hyper serves another stream type than the router was told"),
                },
            };
            connection::run(into_stream(io.into_inner()), already_read, protocol, peer, registration, shared).await;
        });
        response
    }
}

/// What the client wants to speak. One that offers other subprotocols gets the legacy protocol, and can see that it does.
fn protocol(headers: &HeaderMap) -> Protocol {
    let offers = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|offers| offers.to_str().ok());
    if offers.flat_map(|offers| offers.split(',')).any(|offer| offer.trim() == SESSION_PROTOCOL) {
        Protocol::Session
    } else {
        Protocol::Legacy
    }
}

fn malformed(error: &Error) -> Response<Body> {
    let status = match error {
        Error::Protocol(ProtocolError::WrongHttpMethod) => StatusCode::METHOD_NOT_ALLOWED,
        Error::Protocol(
            ProtocolError::WrongHttpVersion
            | ProtocolError::MissingConnectionUpgradeHeader
            | ProtocolError::MissingUpgradeWebSocketHeader
            | ProtocolError::MissingSecWebSocketVersionHeader,
        ) => StatusCode::UPGRADE_REQUIRED,
        _ => StatusCode::BAD_REQUEST,
    };
    let mut response = text(status, format!("not a WebSocket upgrade: {error}"));
    let headers = response.headers_mut();
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET"));
    }
    if status == StatusCode::UPGRADE_REQUIRED {
        // RFC 9110 section 7.8 and RFC 6455 section 4.4: say what would be understood.
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    }
    response
}

fn refused(error: AdmitError) -> Response<Body> {
    let status = match error {
        AdmitError::TooMany { .. } | AdmitError::Draining => StatusCode::SERVICE_UNAVAILABLE,
        AdmitError::TooManyFromAddress { .. } => StatusCode::TOO_MANY_REQUESTS,
    };
    try_later(status, error.to_string())
}

//! The WebSocket endpoint: admits and upgrades a request, then hands the socket to the task of its connection.

mod rates;
mod refusal;
mod token;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{
    CONNECTION, HOST, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::auth::{Headers, Shown, Token};
use crate::close::CloseReason;
use crate::config::{Config, Origin};
use crate::connection::{Arrival, Connection, Protocol, Shared, Transport};
use crate::dialect::SESSION_PROTOCOL;
use crate::doors::{Body, empty, listed, lists};
use crate::metrics::UpgradeResult;
use crate::registry::{Registration, Registry};
use crate::subscriber::subscriber;

use rates::Rates;
use refusal::{Malformed, Refusal, Refusals};

/// What is needed to turn an upgrade request into a connection.
pub(crate) struct WebSocketDoor {
    registry: Arc<Registry>,
    shared: Arc<Shared>,
    /// Tracks the tasks of upgraded connections. A shutdown waits for them here, because hyper does not wait for
    /// upgraded connections.
    tasks: TaskTracker,
    refusals: Refusals,
    rates: Rates,
    /// The headers that the token check looks at.
    headers_wanted: Vec<String>,
}

/// An upgrade that is granted.
struct Admitted {
    response: Response<Body>,
    token: Option<Token>,
    registration: Registration,
}

impl WebSocketDoor {
    pub(crate) fn new(registry: Arc<Registry>, shared: Arc<Shared>, tasks: TaskTracker) -> Self {
        let rates = Rates::new(shared.config.upgrades_per_address_per_second_max, Instant::now());
        let headers_wanted = shared.token_authenticator.headers_wanted();
        Self { registry, shared, tasks, refusals: Refusals::default(), rates, headers_wanted }
    }

    /// Answers an upgrade request. `Served` is the stream that hyper serves. The connection continues on the stream
    /// that `into_stream` returns.
    pub(crate) fn upgrade<Served, S>(
        &self,
        mut request: Request<Incoming>,
        peer: SocketAddr,
        certificate_names: Arc<[String]>,
        into_stream: fn(Served) -> S,
    ) -> Response<Body>
    where
        Served: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Transport,
    {
        let protocol = protocol(request.headers());
        let Admitted { mut response, token, registration } = match self.admit(&request, peer) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                self.shared.metrics.upgrade(refusal.result());
                self.refusals.log(&refusal, peer);
                return refusal.answer();
            }
        };
        self.shared.metrics.upgrade(UpgradeResult::Accepted);
        if protocol == Protocol::Session {
            response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SESSION_PROTOCOL));
        }
        let shown = Shown::new(Headers::of(request.headers(), &self.headers_wanted), certificate_names);
        let upgrade = hyper::upgrade::on(&mut request);
        // The task must not keep any part of the request, because a single header would keep hyper's read buffer alive.
        drop(request);
        let token = token.map(Box::new);
        let arrival = Box::new(Arrival { protocol, token, shown, registration, shared: self.shared.clone() });
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

    /// Checks a request, and finds a place for its connection.
    fn admit<B>(&self, request: &Request<B>, peer: SocketAddr) -> Result<Admitted, Refusal> {
        let response = switching(&accept_key(request)?);
        check_origin(request, &self.shared.config)?;
        let token = token::token(request.headers(), request.uri(), &self.shared.config)?;
        let address = peer.ip().to_canonical();
        if !self.rates.allows(subscriber(address), Instant::now()) {
            let limit = self.shared.config.upgrades_per_address_per_second_max;
            return Err(Refusal::TooFastFromAddress { limit });
        }
        Ok(Admitted { response, token, registration: self.registry.admit(SocketAddr::new(address, peer.port()))? })
    }
}

/// Checks whether the web page that a request is from may connect, if it is from a web page.
fn check_origin<B>(request: &Request<B>, config: &Config) -> Result<(), Refusal> {
    if !request.headers().contains_key(ORIGIN) {
        return Ok(());
    }
    let origin = only(request.headers(), &ORIGIN).and_then(Origin::read).ok_or(Refusal::Origin(None))?;
    // RFC 9112 section 3.2.2: a host in the request line precedes the header.
    let host = request.uri().authority().map(Authority::as_str);
    let host = host.or_else(|| only(request.headers(), &HOST)).unwrap_or_default();
    if config.allows_origin(&origin, host) { Ok(()) } else { Err(Refusal::Origin(Some(origin))) }
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

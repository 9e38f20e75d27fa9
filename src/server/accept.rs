//! Accepts TCP connections and serves HTTP on each, until the connection ends, is upgraded or must stop.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::config::{Config, HTTP_HEADERS_MAX, Networks, UNIX_PEER};
use crate::connection::{TlsTransport, Transport};
use crate::metrics::{Counter, HandshakeResult, ListenerLabels, Metrics, set};
use crate::seldom::Seldom;

use super::forwarded;
use super::peer::Peer;
use super::places::{CountsAs, Found, Place, Places};
use super::proxy_header::{self, HeaderError};
use super::refusals::Refusals;
use super::repoll::Repoll;
use super::route::{Router, Serves, too_many_keyless};
use super::socket::{Accepted, Socket};
use super::tls::{Handshakes, names};
use super::traffic::{Due, LAST_HEAD, Timeouts, TrackedBody, TrackedStream, Traffic};

/// How long to pause before accepting again when the process is out of files or memory. Short, because a file can
/// become free at any moment.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The flow-control window of an HTTP/2 stream. h2 limits small unread frames to half of the
/// connection's window and cuts a connection past that limit. A connection window of 16 stream windows keeps honest
/// streams of small messages below the limit even while one of them is not being read.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 64 * 1024;

/// The interval and the timeout of HTTP/2 keep-alive pings. A dead connection is detected within twice this time.
const HTTP2_KEEP_ALIVE: Duration = Duration::from_secs(20);

/// A listener with its own connection limits and counters. Load on one listener does not affect another.
pub(super) struct Port {
    socket: Socket,
    serves: Serves,
    places: Arc<Places>,
    refusals: Arc<Refusals>,
    /// Whether each connection begins with a header of the PROXY protocol.
    proxy_protocol: bool,
    evicted: Counter,
    accept_errors: Counter,
    /// Present if the listener speaks TLS.
    handshakes: Option<Arc<Handshakes>>,
}

impl Port {
    pub(super) fn new(
        socket: Socket,
        serves: Serves,
        config: &Config,
        metrics: &Metrics,
        handshakes: Option<Arc<Handshakes>>,
    ) -> Self {
        let places = match serves {
            Serves::All | Serves::Clients => {
                Places::new(config.http_connections_max, config.http_connections_per_address_max)
            }
            Serves::Control => Places::new(config.control_http_connections_max, 0),
        };
        let listener_label = serves.label();
        let labels = ListenerLabels { listener: listener_label };
        set(&metrics.http_connections_max.get_or_create_owned(&labels), places.limit());
        let counted = places.clone();
        metrics.read(&metrics.http_connections.get_or_create_owned(&labels), move || counted.taken());
        Self {
            socket,
            serves,
            places,
            refusals: Arc::new(Refusals::new(serves, metrics, handshakes.as_deref())),
            proxy_protocol: config.proxy_protocol && serves != Serves::Control,
            evicted: metrics.http_evicted.of(&labels).clone(),
            accept_errors: metrics.accept_errors.of(&labels).clone(),
            handshakes,
        }
    }

    /// What makes the handshakes, if the listener speaks TLS.
    pub(super) fn handshakes(&self) -> Option<&Arc<Handshakes>> {
        self.handshakes.as_ref()
    }
}

/// The state shared by all HTTP connections of a server.
pub(super) struct Http {
    /// Serves HTTP/1 and HTTP/2. The first bytes of a connection decide which.
    builder: auto::Builder<TokioExecutor>,
    /// The same for peers that have agreed on HTTP/2 in the handshake of TLS. One that then speaks HTTP/1 is not answered.
    http2: auto::Builder<TokioExecutor>,
    http1: http1::Builder,
    router: Arc<Router>,
    timeouts: Timeouts,
    proxies_trusted: Networks,
    /// Cancelled when no further requests are accepted.
    pub(super) stop: CancellationToken,
    /// Cancelled at the end of the shutdown grace period.
    pub(super) cut: CancellationToken,
    pub(super) tasks: TaskTracker,
}

impl Http {
    pub(super) fn new(router: Arc<Router>, config: &Config) -> Self {
        let head_bytes_max = config.http_head_bytes_max;
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // hyper's own header timeout includes the time before the head begins, so `drive` keeps the deadlines instead.
        // With `half_close`, a caller that closes its sending side after a request still gets the answer.
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .half_close(true)
            .max_buf_size(head_bytes_max)
            .max_headers(HTTP_HEADERS_MAX);
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .half_close(true)
            .max_buf_size(head_bytes_max)
            .max_headers(HTTP_HEADERS_MAX);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(HTTP2_KEEP_ALIVE)
            .keep_alive_timeout(HTTP2_KEEP_ALIVE)
            .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(Config::HTTP2_CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(u32::try_from(config.http2_streams_max).unwrap_or(u32::MAX))
            .max_header_list_size(u32::try_from(head_bytes_max).unwrap_or(u32::MAX))
            // These are hyper's defaults. They are explicit because they protect against reset floods.
            .max_pending_accept_reset_streams(20)
            .max_local_error_reset_streams(1024);
        Self {
            http2: builder.clone().http2_only(),
            builder,
            http1,
            router,
            timeouts: Timeouts { head: config.http_header_timeout, idle: config.http_idle_timeout },
            proxies_trusted: config.proxies_trusted.clone(),
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Accepts connections until `stop`. A failure to accept does not end the loop and pauses only this listener.
    pub(super) async fn accept(self: Arc<Self>, port: &Port) {
        let failed = Seldom::default();
        loop {
            let accepted = tokio::select! {
                accepted = port.socket.accept() => accepted,
                () = self.stop.cancelled() => return,
            };
            match accepted {
                Ok(Accepted::Unix(stream)) => self.admit(port, stream, UNIX_PEER).await,
                Ok(Accepted::Tcp(stream, peer)) => {
                    if let Err(error) = stream.set_nodelay(true) {
                        debug!(%error, "cannot set TCP_NODELAY");
                    }
                    self.admit(port, stream, peer).await;
                }
                Err(error) if is_peer_error(&error) => {}
                Err(error) => {
                    port.accept_errors.inc();
                    if let Some(left_out) = failed.due(Instant::now()) {
                        warn!(%error, listener = ?port.serves, left_out, "cannot accept a connection");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves a connection in its own task, if there is a place for it.
    async fn admit<S>(self: &Arc<Self>, port: &Port, mut stream: S, peer: SocketAddr)
    where
        S: Transport,
    {
        if port.proxy_protocol && !self.proxies_trusted.contains(peer.ip()) {
            return port.refusals.not_a_proxy(peer);
        }
        let traffic = Traffic::new();
        let (place, found) = match port.places.take(self.counts_as(peer), traffic.clone()).await {
            Ok(taken) => taken,
            Err(why) => return port.refusals.no_place(&stream, peer, why),
        };
        if found == Found::Evicted {
            port.evicted.inc();
        }
        let (http, serves) = (self.clone(), port.serves);
        let behind = port.proxy_protocol.then(|| port.refusals.clone());
        // Two tasks rather than one that does either, so that a plain connection has no room for the state of TLS.
        match port.handshakes.clone() {
            None => self.tasks.spawn(async move {
                if let Some(client) = http.client_of(&mut stream, peer, &place, &traffic, behind).await {
                    Repoll::new(http.serve(stream, client.into(), serves, traffic)).await;
                }
                drop(place);
            }),
            Some(handshakes) => self.tasks.spawn(async move {
                if let Some(client) = http.client_of(&mut stream, peer, &place, &traffic, behind).await {
                    Repoll::new(http.serve_tls(stream, client, serves, traffic, &handshakes)).await;
                }
                drop(place);
            }),
        };
    }

    /// Serves HTTP over TLS on one stream.
    async fn serve_tls<S>(
        &self,
        stream: S,
        peer: SocketAddr,
        serves: Serves,
        traffic: Arc<Traffic>,
        handshakes: &Handshakes,
    ) where
        S: Transport,
    {
        // Declared first, so that it is dropped last, after the connection's file is closed.
        let mut _leaving = None;
        let given_up = async {
            tokio::select! {
                () = tokio::time::sleep(self.timeouts.head) => HandshakeResult::TimedOut,
                permit = traffic.evicted() => {
                    _leaving = permit;
                    HandshakeResult::GivenUp
                }
                () = self.stop_waiting() => HandshakeResult::GivenUp,
            }
        };
        let shaken = pin!(handshakes.shake(stream, peer, given_up)).await;
        if let Some(stream) = shaken {
            let peer = Peer { address: peer, certificate_names: names(&stream) };
            self.serve(TlsTransport::new(stream), peer, serves, traffic).await;
        }
    }

    /// Ready when a connection that has not made a request yet must not delay the shutdown any longer.
    async fn stop_waiting(&self) {
        self.stop.cancelled().await;
        let _cut = tokio::time::timeout(LAST_HEAD, self.cut.cancelled()).await;
    }

    fn counts_as(&self, address: SocketAddr) -> CountsAs {
        let address = address.ip();
        if self.proxies_trusted.contains(address) { CountsAs::Proxy(address) } else { CountsAs::Client(address) }
    }

    /// The address of the client: the peer's, or where it is behind a proxy, the one that the proxy names. `None` if the
    /// connection is to be closed.
    async fn client_of<S: Transport>(
        &self,
        stream: &mut S,
        peer: SocketAddr,
        place: &Place,
        traffic: &Traffic,
        behind: Option<Arc<Refusals>>,
    ) -> Option<SocketAddr> {
        match behind {
            None => Some(peer),
            Some(refusals) => Box::pin(self.client_behind(stream, peer, place, traffic, &refusals)).await,
        }
    }

    /// Reads the header of the PROXY protocol and gives the place to the client that it names. Returns the client's
    /// address, or `None` if the connection is to be closed.
    async fn client_behind<S: Transport>(
        &self,
        stream: &mut S,
        proxy: SocketAddr,
        place: &Place,
        traffic: &Traffic,
        refusals: &Refusals,
    ) -> Option<SocketAddr> {
        let header = tokio::time::timeout(self.timeouts.head, proxy_header::read(stream));
        let header = tokio::select! {
            header = header => header,
            // Its place is another's already, and it is closed at once.
            _ = traffic.evicted() => return None,
            () = self.stop.cancelled() => return None,
        };
        let client = match header {
            Ok(Ok(client)) => client.unwrap_or(proxy),
            Ok(Err(HeaderError::Nothing)) => return None,
            Ok(Err(error)) => {
                refusals.no_proxy_header(proxy, &format!("it sent no header of the PROXY protocol, {error}"));
                return None;
            }
            Err(_) => {
                refusals.no_proxy_header(proxy, "it sent no header of the PROXY protocol in time");
                return None;
            }
        };
        if let Err(why) = place.pass_to(self.counts_as(client)) {
            refusals.no_place(stream, client, why);
            return None;
        }
        Some(client)
    }

    /// Serves HTTP on one stream. Returns when the connection ends or is upgraded.
    pub(super) async fn serve<S>(&self, stream: S, peer: Peer, serves: Serves, traffic: Arc<Traffic>)
    where
        S: Transport,
    {
        let service = service_fn(|request| {
            let mut in_hand = traffic.begin();
            let is_refused = self.router.is_keyless(&request) && !in_hand.count_keyless();
            let router = self.router.clone();
            let client = Peer {
                address: forwarded::client(peer.address, request.headers(), &self.proxies_trusted),
                certificate_names: peer.certificate_names.clone(),
            };
            async move {
                let answer = if is_refused {
                    too_many_keyless(&request)
                } else {
                    router.route::<S>(serves, request, client).await
                };
                Ok::<_, std::convert::Infallible>(answer.map(|body| TrackedBody::new(body, in_hand)))
            }
        });
        let is_for_http2 = stream.is_for_http2();
        let io = TokioIo::new(TrackedStream::new(stream, traffic.clone()));
        let address = peer.address;
        match serves {
            // Clients do not need HTTP/2, so it is off here and cannot be abused.
            Serves::Clients => {
                let connection = self.http1.serve_connection(io, service).with_upgrades();
                self.drive(connection, |connection| connection.graceful_shutdown(), address, &traffic).await;
            }
            Serves::All | Serves::Control if is_for_http2 => {
                let connection = self.http2.serve_connection(io, service);
                self.drive(connection, |connection| connection.graceful_shutdown(), address, &traffic).await;
            }
            Serves::All | Serves::Control => {
                let connection = self.builder.serve_connection_with_upgrades(io, service);
                self.drive(connection, |connection| connection.graceful_shutdown(), address, &traffic).await;
            }
        }
    }

    /// Runs a connection to its end. After `stop`, the connection ends as soon as its requests are answered.
    async fn drive<C, E>(&self, connection: C, finish: fn(Pin<&mut C>), peer: SocketAddr, traffic: &Traffic)
    where
        C: Future<Output = Result<(), E>>,
        E: std::fmt::Display,
    {
        // Declared first, so that it is dropped last, after the connection's file is closed.
        let mut _leaving = None;
        let mut connection = pin!(connection);
        let mut alarm = pin!(tokio::time::sleep(self.timeouts.head.min(self.timeouts.idle)));
        let (mut is_finishing, mut is_evicted) = (false, false);
        loop {
            tokio::select! {
                // Polls the connection first, because a connection whose next request has already arrived is not idle.
                biased;
                result = &mut connection => {
                    if let Err(error) = result {
                        debug!(%peer, %error, "HTTP connection ended");
                    }
                    return;
                }
                () = self.cut.cancelled() => return,
                () = self.stop.cancelled(), if !is_finishing => {}
                permit = traffic.evicted(), if !is_evicted => {
                    _leaving = permit;
                    is_evicted = true;
                    finish(connection.as_mut());
                    // Polls once more, so that an HTTP/2 connection sends its GOAWAY.
                    let ended = poll_fn(|cx| Poll::Ready(connection.as_mut().poll(cx).is_ready())).await;
                    let (_, idle_since) = traffic.seen();
                    if ended || idle_since.is_some() {
                        return debug!(%peer, "closed after being idle for longest, to make room for another connection");
                    }
                    // A request has arrived in the meantime, so the connection stays open to answer it.
                    _leaving = None;
                }
                due = poll_fn(|cx| traffic.poll_due(self.timeouts, alarm.as_mut(), cx)) => match due {
                    Due::Finish if !is_finishing => {}
                    Due::Finish => return,
                    Due::Cut(why) => return debug!(%peer, "{why}"),
                },
            }
            if !is_finishing {
                is_finishing = true;
                finish(connection.as_mut());
                traffic.finishing();
            }
        }
    }
}

/// Whether the peer caused the error, for example by giving up before it was accepted.
fn is_peer_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

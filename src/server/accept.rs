//! Accepts TCP connections and speaks HTTP on each, until it ends, upgrades or is told to stop.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::config::{Config, HTTP_HEADERS_MAX, UNIX_PEER};
use crate::connection::Transport;
use crate::metrics::{ListenerLabels, Metrics, RefusedLabels, RefusedReason, set};

use super::places::{Found, NoPlace, Places};
use super::route::{Router, Serves, too_many_keyless};
use super::socket::{Accepted, Socket};
use super::traffic::{Answered, Due, Noted, Timeouts, Traffic};

/// How long accepting rests when the process is out of files or memory. Short, because a file may come free at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Flow control of a stream and of a connection. h2 counts small unread frames against half of the connection's
/// window and cuts a connection that goes over; sixteen times the stream's window keeps honest streams of small
/// messages below that while one of them is not being read.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// A caller's dead HTTP/2 connection is found within twice this.
const HTTP2_KEEP_ALIVE: Duration = Duration::from_secs(20);

/// A listener that cannot accept says so this often.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(1);

/// A listener, and what it has for itself: nothing that happens on another takes any of it.
pub(super) struct Port {
    socket: Socket,
    serves: Serves,
    places: Arc<Places>,
    refused: Counter,
    refused_for_address: Counter,
    evicted: Counter,
    accept_errors: Counter,
}

impl Port {
    pub(super) fn new(socket: Socket, serves: Serves, config: &Config, metrics: &Metrics) -> Self {
        let places = match serves {
            Serves::All | Serves::Clients => {
                Places::new(config.http_connections_max, config.http_connections_per_address_max)
            }
            Serves::Control => Places::new(config.control_http_connections_max, 0),
        };
        let listener_label = serves.label();
        let refused = |reason| metrics.http_refused.of(&RefusedLabels { listener: listener_label, reason }).clone();
        let labels = ListenerLabels { listener: listener_label };
        set(&metrics.http_connections_max.get_or_create_owned(&labels), places.limit());
        let seen = places.clone();
        metrics.read(&metrics.http_connections.get_or_create_owned(&labels), move || seen.taken());
        Self {
            socket,
            serves,
            places,
            refused: refused(RefusedReason::Full),
            refused_for_address: refused(RefusedReason::FullForAddress),
            evicted: metrics.http_evicted.of(&labels).clone(),
            accept_errors: metrics.accept_errors.of(&labels).clone(),
        }
    }
}

/// What all HTTP connections of a server share.
pub(super) struct Http {
    /// HTTP/1 and HTTP/2, told apart by how a connection begins.
    builder: auto::Builder<TokioExecutor>,
    http1: http1::Builder,
    router: Arc<Router>,
    timeouts: Timeouts,
    /// Told when no new request is wanted.
    pub(super) stop: CancellationToken,
    /// Told when the grace is over.
    pub(super) cut: CancellationToken,
    pub(super) tasks: TaskTracker,
}

impl Http {
    pub(super) fn new(router: Arc<Router>, config: &Config) -> Self {
        let head_bytes_max = config.http_head_bytes_max;
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // hyper's own timeout of a head counts the time before the head begins; the deadlines here are kept by `drive`.
        // A caller that has said all it has to say may close its side, and is still answered.
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
            .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(u32::try_from(config.http2_streams_max).unwrap_or(u32::MAX))
            .max_header_list_size(u32::try_from(head_bytes_max).unwrap_or(u32::MAX))
            // hyper's own defaults, spelled out because they are what stands against reset floods.
            .max_pending_accept_reset_streams(20)
            .max_local_error_reset_streams(1024);
        Self {
            builder,
            http1,
            router,
            timeouts: Timeouts { head: config.http_header_timeout, idle: config.http_idle_timeout },
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Accepts until told to stop. A failure to accept never ends it, and pauses this listener alone.
    pub(super) async fn accept(self: Arc<Self>, port: &Port) {
        let mut complained: Option<Instant> = None;
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
                Err(error) if is_the_peers(&error) => {}
                Err(error) => {
                    port.accept_errors.inc();
                    if complained.is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL) {
                        complained = Some(Instant::now());
                        warn!(%error, listener = ?port.serves, "cannot accept a connection");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves a connection in a task of its own, if there is a place for it.
    async fn admit<S>(self: &Arc<Self>, port: &Port, stream: S, peer: SocketAddr)
    where
        S: Transport,
    {
        let traffic = Traffic::new();
        let (place, found) = match port.places.take(peer.ip().to_canonical(), traffic.clone()).await {
            Ok(taken) => taken,
            Err(NoPlace::Full) => {
                port.refused.inc();
                return;
            }
            Err(NoPlace::FullForAddress) => {
                port.refused_for_address.inc();
                return;
            }
        };
        if found == Found::Evicted {
            port.evicted.inc();
        }
        let (http, serves) = (self.clone(), port.serves);
        self.tasks.spawn(async move {
            http.serve(stream, peer, serves, traffic).await;
            drop(place);
        });
    }

    /// Speaks HTTP on one stream. Returns when it ends or is upgraded.
    pub(super) async fn serve<S>(&self, stream: S, peer: SocketAddr, serves: Serves, traffic: Arc<Traffic>)
    where
        S: Transport,
    {
        let service = service_fn(|request| {
            let mut in_hand = traffic.begin();
            let is_refused = self.router.needs_no_key(&request) && !in_hand.keyless();
            let router = self.router.clone();
            async move {
                let answer = if is_refused {
                    too_many_keyless(&request)
                } else {
                    router.route::<S>(serves, request, peer).await
                };
                Ok::<_, std::convert::Infallible>(answer.map(|body| Answered::new(body, in_hand)))
            }
        });
        let io = TokioIo::new(Noted::new(stream, traffic.clone()));
        match serves {
            // Clients have no use for HTTP/2, so there they cannot abuse it either.
            Serves::Clients => {
                let connection = self.http1.serve_connection(io, service).with_upgrades();
                self.drive(connection, |connection| connection.graceful_shutdown(), peer, &traffic).await;
            }
            Serves::All | Serves::Control => {
                let connection = self.builder.serve_connection_with_upgrades(io, service);
                self.drive(connection, |connection| connection.graceful_shutdown(), peer, &traffic).await;
            }
        }
    }

    /// Runs a connection to its end, which comes soon once no new request is wanted.
    async fn drive<C, E>(&self, connection: C, finish: fn(Pin<&mut C>), peer: SocketAddr, traffic: &Traffic)
    where
        C: Future<Output = Result<(), E>>,
        E: std::fmt::Display,
    {
        // Given back last of all, once the connection's file is closed.
        let mut _leaving = None;
        let mut connection = pin!(connection);
        let mut alarm = pin!(tokio::time::sleep(self.timeouts.head.min(self.timeouts.idle)));
        let (mut is_finishing, mut is_evicted) = (false, false);
        loop {
            tokio::select! {
                // The connection first: a request that has come already is not idle.
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
                    // Once more, to bring out the farewell of HTTP/2.
                    let ended = poll_fn(|cx| Poll::Ready(connection.as_mut().poll(cx).is_ready())).await;
                    let (_, idle_since) = traffic.seen();
                    if ended || idle_since.is_some() {
                        return debug!(%peer, "idle for longest, and its place was needed");
                    }
                    // It stays for the request that came in the meantime.
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

/// Whether the fault is the peer's, who gave up before being accepted, and not ours.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

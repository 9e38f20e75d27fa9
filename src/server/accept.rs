//! Accepts TCP connections and speaks HTTP on each, until it ends, upgrades or is told to stop.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::config::{Config, HTTP_HEAD_BYTES_MAX, HTTP_HEADERS_MAX};

use super::route::{Router, Serves};

/// How long accepting rests when the process is out of files or memory. Short, because a file may come free at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Flow control of a stream and of a connection. h2 counts small unread frames against half of the connection's
/// window and cuts a connection that goes over; sixteen times the stream's window keeps honest streams of small
/// messages below that while one of them is not being read.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// A caller's dead HTTP/2 connection is found within twice this.
const HTTP2_KEEP_ALIVE: Duration = Duration::from_secs(20);

/// The bytes that make an HTTP/2 connection: the preface and the head of a SETTINGS frame. From there on pings keep it
/// honest; before, nothing does but a deadline.
const HTTP2_START_BYTES: usize = 24 + 9;

/// What all HTTP connections of a server share.
pub(super) struct Http {
    /// HTTP/1 and HTTP/2, told apart by how a connection begins.
    builder: auto::Builder<TokioExecutor>,
    http1: http1::Builder,
    router: Arc<Router>,
    head_timeout: Duration,
    permits: Arc<Semaphore>,
    /// Told when no new request is wanted.
    pub(super) stop: CancellationToken,
    /// Told when the grace is over.
    pub(super) cut: CancellationToken,
    pub(super) tasks: TaskTracker,
}

impl Http {
    pub(super) fn new(router: Arc<Router>, config: &Config) -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // Without a timer hyper's header timeout does nothing.
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(config.http_header_timeout)
            .max_buf_size(HTTP_HEAD_BYTES_MAX)
            .max_headers(HTTP_HEADERS_MAX);
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(config.http_header_timeout)
            .max_buf_size(HTTP_HEAD_BYTES_MAX)
            .max_headers(HTTP_HEADERS_MAX);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(HTTP2_KEEP_ALIVE)
            .keep_alive_timeout(HTTP2_KEEP_ALIVE)
            .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(u32::try_from(config.http2_streams_max).unwrap_or(u32::MAX))
            .max_header_list_size(HTTP_HEAD_BYTES_MAX as u32)
            // hyper's own defaults, spelled out because they are what stands against reset floods.
            .max_pending_accept_reset_streams(20)
            .max_local_error_reset_streams(1024);
        let permits = Arc::new(Semaphore::new(config.http_connections_max));
        let (places, places_max) = (permits.clone(), config.http_connections_max);
        let metrics = &router.gateway.rooms().metrics;
        metrics.read(&metrics.http_connections, move || places_max.saturating_sub(places.available_permits()));
        Self {
            builder,
            http1,
            router,
            head_timeout: config.http_header_timeout,
            permits,
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Accepts until told to stop. A failure to accept never ends it.
    pub(super) async fn accept(self: Arc<Self>, listener: &TcpListener, serves: Serves) {
        let metrics = &self.router.gateway.rooms().metrics;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stop.cancelled() => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_the_peers(&error) => continue,
                Err(error) => {
                    metrics.accept_errors.inc();
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "cannot set TCP_NODELAY");
            }
            let Ok(permit) = self.permits.clone().try_acquire_owned() else {
                metrics.http_refused.inc();
                continue;
            };
            let http = self.clone();
            self.tasks.spawn(async move {
                http.serve(stream, peer, serves).await;
                drop(permit);
            });
        }
    }

    /// Speaks HTTP on one stream. Returns when it ends or is upgraded.
    pub(super) async fn serve<S>(&self, stream: S, peer: SocketAddr, serves: Serves)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let traffic = Arc::new(Traffic::default());
        let counted = Counted { stream, traffic: traffic.clone() };
        let service = service_fn(|request| {
            let answer = self.router.clone().route::<S>(serves, request, peer);
            async { Ok::<_, std::convert::Infallible>(answer.await) }
        });
        let io = TokioIo::new(counted);
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
        let mut connection = pin!(connection);
        let mut look = tokio::time::interval_at(Instant::now() + self.head_timeout, self.head_timeout);
        let (mut is_stopping, mut written) = (false, 0);
        loop {
            tokio::select! {
                result = &mut connection => {
                    if let Err(error) = result {
                        debug!(%peer, %error, "HTTP connection ended");
                    }
                    return;
                }
                _ = look.tick() => {
                    // hyper-util waits for the first bytes without a limit of its own, and hyper for a peer that does
                    // not read.
                    if traffic.read.load(Ordering::Relaxed) < HTTP2_START_BYTES {
                        return debug!(%peer, "no request in time");
                    }
                    let before = std::mem::replace(&mut written, traffic.written.load(Ordering::Relaxed));
                    if traffic.is_blocked.load(Ordering::Relaxed) && written == before {
                        return debug!(%peer, "no byte of the answer taken in time");
                    }
                }
                () = self.stop.cancelled(), if !is_stopping => {
                    finish(connection.as_mut());
                    is_stopping = true;
                }
                () = self.cut.cancelled() => return,
            }
        }
    }
}

/// Whether the fault is the peer's, who gave up before being accepted, and not ours.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// What went over one HTTP connection.
#[derive(Debug, Default)]
struct Traffic {
    read: AtomicUsize,
    written: AtomicUsize,
    /// Whether something waits to be written that the peer does not take.
    is_blocked: AtomicBool,
}

/// A stream whose traffic is counted, for the deadlines that hyper does not keep.
pub(super) struct Counted<S> {
    stream: S,
    traffic: Arc<Traffic>,
}

impl<S> Counted<S> {
    pub(super) fn into_stream(self) -> S {
        self.stream
    }

    fn wrote(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.traffic.is_blocked.store(result.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(Ok(count)) = &result {
            self.traffic.written.fetch_add(*count, Ordering::Relaxed);
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.traffic.read.fetch_add(buffer.filled().len() - before, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

//! Listeners, and the life of a server: bind, run, and stop in order.

mod accept;
mod callers;
mod client;
mod forwarded;
mod health;
mod http2_frames;
mod kernel;
mod page;
mod peer;
mod places;
mod proxy_header;
mod readers;
mod refusals;
mod repoll;
mod route;
mod scrape;
mod socket;
mod stack;
mod supervise;
mod tls;
mod traffic;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::codec::CompressionEncoding;
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::server::Builder as ReflectionBuilder;
use tower::util::BoxCloneSyncService;
use tracing::{debug, info, warn};

use crate::auth::{
    Deadline, JwtAuthenticator, OpenAdmin, OpenPush, PushAuthorizer, PushJwt, PushKeys, ReloadError,
    TokenAuthenticator, TokenCallback, TokenFile, TokenIsUser,
};
use crate::binder::{BindLimits, Binder};
use crate::config::{Address, Check, Config, Invalid, Page};
use crate::connection::Shared;
use crate::doors::websocket::WebSocketDoor;
use crate::flusher::Flusher;
use crate::gateway::{Audit, Drain, Gateway, Reload, Rooms, Total};
use crate::handle::Stop;
use crate::journal::{Journal, Recorder, Recovered};
use crate::mailbox::{Bounds, Capacity, Keep, Outboxes};
use crate::message::Names;
use crate::metrics::{self, LogLinesLost, Metrics, Task};
use crate::proto;
use crate::registry::{Limits, Registry};
use crate::replays::{self, Replays};
use crate::revocations::Revocations;
use crate::sessions::{self, Sessions};
use crate::shares::Shares;

use accept::{Http, Port};
use callers::Callers;
use client::Client;
use health::Health;
use readers::Readers;
use route::{Reflection, Router, Serves};
use scrape::Scrapes;
use socket::Socket;
use supervise::supervise;
use tls::{Handshakes, Tls};

pub use tls::{InvalidTls, TlsMistake};
#[cfg(feature = "inside")]
pub(crate) use {proxy_header::read as read_proxy_header, stack::guest};

/// What a server is made from.
pub struct ServerBuilder {
    config: Config,
    listener: Option<Socket>,
    control_listener: Option<Socket>,
    token_authenticator: Option<Arc<dyn TokenAuthenticator>>,
    push_authorizer: Option<Arc<dyn PushAuthorizer>>,
    journal: Option<Arc<dyn Journal>>,
    log_lines_lost: Option<LogLinesLost>,
}

/// A gateway with its addresses bound and nothing served yet.
pub struct Server {
    gateway: Gateway,
    http: Arc<Http>,
    ports: Vec<Port>,
    address: Address,
    control_address: Address,
    page: bool,
    sockets: TaskTracker,
}

impl fmt::Debug for ServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses = (&self.address, &self.control_address);
        f.debug_struct("Server").field("addresses", &addresses).finish_non_exhaustive()
    }
}

/// Why a server could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The configuration is wrong.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A file of tokens or keys cannot be used.
    #[error("cannot set up authorization")]
    Auth(#[from] ReloadError),
    /// The files of certificates and keys have mistakes.
    #[error(transparent)]
    Tls(#[from] InvalidTls),
    /// The journal cannot be read.
    #[error("cannot load the journal")]
    Journal(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which address.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
}

/// How a server's run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// WebSocket connections that were still open when the grace was over.
    pub connections_cut: usize,
    /// HTTP connections that were still open when the grace was over.
    pub http_connections_cut: usize,
}

impl ServerBuilder {
    /// Serves clients, and everything else without a control listener, on this listener instead of `listen`.
    #[must_use]
    pub fn listener(mut self, listener: TcpListener) -> Self {
        self.listener = Some(Socket::Tcp(listener));
        self
    }

    /// Serves everything but clients on this listener instead of `control_listen`.
    #[must_use]
    pub fn control_listener(mut self, listener: TcpListener) -> Self {
        self.control_listener = Some(Socket::Tcp(listener));
        self
    }

    /// Checks tokens with this instead of what the settings say.
    #[must_use]
    pub fn token_authenticator(mut self, authenticator: impl TokenAuthenticator) -> Self {
        self.token_authenticator = Some(Arc::new(authenticator));
        self
    }

    /// Checks pushes with this instead of what the settings say.
    #[must_use]
    pub fn push_authorizer(mut self, authorizer: impl PushAuthorizer) -> Self {
        self.push_authorizer = Some(Arc::new(authorizer));
        self
    }

    /// Tells this what must outlive the process, and takes over at the start what it has kept. Without one, sessions and what
    /// is held for users end with the process.
    #[must_use]
    pub fn journal(mut self, journal: impl Journal) -> Self {
        self.journal = Some(Arc::new(journal));
        self
    }

    /// Tells in `/metrics`, as `pushgate_log_lines_lost_total`, how many lines of its log the program lost. Asked at each
    /// scrape.
    #[must_use]
    pub fn log_lines_lost(mut self, lost: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        self.log_lines_lost = Some(LogLinesLost(Box::new(lost)));
        self
    }

    /// Checks the configuration, reads the files it names, and binds its addresses.
    ///
    /// # Errors
    /// When any of the three fails.
    pub async fn bind(mut self) -> Result<Server, ServerError> {
        if let Some(listener) = &self.listener {
            self.config.listen = address_of(listener, &self.config.listen)?;
        }
        if let Some(listener) = &self.control_listener {
            self.config.control_listen = Some(address_of(listener, self.config.control_address())?);
        }
        let check = |is_own| if is_own { Check::Own } else { Check::Stock };
        self.config.validate_with(check(self.token_authenticator.is_some()), check(self.push_authorizer.is_some()))?;
        let mut metrics = Metrics::new();
        if let Some(lost) = self.log_lines_lost {
            metrics.tell_log_lines_lost(lost);
        }
        let metrics = finished(metrics, &self.config);
        let token_authenticator = match self.token_authenticator {
            Some(own) => own,
            None => token_authenticator(&self.config, &metrics)?,
        };
        let push_authorizer = match self.push_authorizer {
            Some(own) => own,
            None => push_authorizer(&self.config, &metrics)?,
        };
        let serves = if self.config.control_listen.is_some() { Serves::Clients } else { Serves::All };
        tls::check(&self.config)?;
        let tls = Tls::open(serves, &self.config, &metrics)?;
        let control_tls = Tls::open(Serves::Control, &self.config, &metrics)?;
        let listener = match self.listener {
            Some(listener) => listener,
            None => listen(&self.config.listen).await?,
        };
        let control_listener = match (self.control_listener, &self.config.control_listen) {
            (Some(listener), _) => Some(listener),
            (None, Some(address)) => Some(listen(address).await?),
            (None, None) => None,
        };
        for listener in [Some(&listener), control_listener.as_ref()].into_iter().flatten() {
            kernel::bound(listener, &self.config);
        }
        if self.config.token_in_url {
            warn!("token_in_url is on: tokens in URLs may be written to the logs of proxies and other programs");
        }
        if self.config.callback_is_readable() {
            warn!("token_callback_url has no TLS: whoever is on the way to it can read tokens, and forge answers");
        }
        let address = address_of(&listener, &self.config.listen)?;
        let control_address = match &control_listener {
            Some(control) => address_of(control, self.config.control_address())?,
            None => address.clone(),
        };
        let certificates = [&tls, &control_tls].into_iter().flatten().map(|tls| tls.clone() as _).collect();
        let mut listeners = vec![Listening { socket: listener, serves, tls }];
        let control = control_listener.map(|socket| Listening { socket, serves: Serves::Control, tls: control_tls });
        listeners.extend(control);
        let recorder = Recorder::new(self.journal, metrics.clone());
        let recovered = recorder.load().await.map_err(ServerError::Journal)?;
        let gateway =
            gateway(self.config, metrics, token_authenticator, push_authorizer, certificates, recorder, recovered);
        Ok(Server::new(gateway, listeners, address, control_address))
    }
}

/// The token check that the settings ask for.
fn token_authenticator(config: &Config, metrics: &Arc<Metrics>) -> Result<Arc<dyn TokenAuthenticator>, ReloadError> {
    if let Some(callback) = TokenCallback::from_config(config, metrics)? {
        return Ok(Arc::new(callback));
    }
    if let Some(jwt) = JwtAuthenticator::open(&config.jwt(), metrics::Side::Clients, Some(metrics.clone()))? {
        return Ok(Arc::new(jwt));
    }
    match &config.tokens_file {
        Some(path) => Ok(Arc::new(TokenFile::open(path)?)),
        None => Ok(Arc::new(TokenIsUser)),
    }
}

/// The push check that the settings ask for.
fn push_authorizer(config: &Config, metrics: &Arc<Metrics>) -> Result<Arc<dyn PushAuthorizer>, ReloadError> {
    let keys = config.push_keys_file.as_ref().map(PushKeys::open).transpose()?;
    let jwt = JwtAuthenticator::open(&config.push_jwt(), metrics::Side::Callers, Some(metrics.clone()))?;
    Ok(match (jwt, keys) {
        (Some(jwt), keys) => Arc::new(PushJwt::new(jwt, keys)),
        (None, Some(keys)) => Arc::new(keys),
        (None, None) if config.control_address().is_loopback() => Arc::new(OpenAdmin),
        (None, None) => Arc::new(OpenPush),
    })
}

/// An address that is listened on.
struct Listening {
    socket: Socket,
    serves: Serves,
    tls: Option<Arc<Tls>>,
}

/// The address a socket really has, port 0 resolved.
fn address_of(socket: &Socket, asked_for: &Address) -> Result<Address, ServerError> {
    socket.address().map_err(|source| ServerError::Listen { address: asked_for.clone(), source })
}

async fn listen(address: &Address) -> Result<Socket, ServerError> {
    Socket::open(address).await.map_err(|source| ServerError::Listen { address: address.clone(), source })
}

fn finished(mut metrics: Metrics, config: &Config) -> Arc<Metrics> {
    metrics.tell_limits(config);
    metrics.tell_limit("journal_bytes", "journal_total_bytes_max", config.journal_total_bytes_max);
    Arc::new(metrics)
}

fn gateway(
    config: Config,
    metrics: Arc<Metrics>,
    token_authenticator: Arc<dyn TokenAuthenticator>,
    push_authorizer: Arc<dyn PushAuthorizer>,
    certificates: Vec<Arc<dyn Reload>>,
    recorder: Recorder,
    recovered: Recovered,
) -> Gateway {
    let names = Arc::new(Names::new());
    let queue = Capacity { messages_max: config.outbox_messages_max, bytes_max: config.outbox_bytes_max };
    let outboxes = Outboxes::new(queue);
    let limits = Limits {
        connections_max: config.connections_max,
        connections_per_address_max: config.connections_per_address_max,
        age_max: (!config.connection_age_max.is_zero()).then_some(config.connection_age_max),
        outboxes: outboxes.clone(),
    };
    let bounds = Bounds {
        messages_per_user_max: config.journal_messages_max,
        bytes_per_user_max: config.journal_bytes_max,
        bytes_max: config.journal_total_bytes_max,
        age: config.journal_age,
    };
    let replays = replays::Limits {
        window: config.idempotency_window,
        keys_max: config.idempotency_keys_max,
        bytes_max: config.idempotency_bytes_max,
    };
    let away = sessions::Limits {
        away_max: config.sessions_away_max,
        away_per_user_max: config.sessions_away_per_user_max,
        age: config.journal_age,
        binds: BindLimits::of(&config),
        outboxes,
    };
    let binder = Arc::new(Binder::default());
    let keep = Keep::new(bounds, recorder, metrics.clone());
    let sessions = Arc::new(Sessions::new(away, keep, binder.clone(), metrics.clone()));
    sessions.restore(recovered);
    // As many parts as the runtime has threads, so that a large fan-out is written by all of them.
    let parts = tokio::runtime::Handle::current().metrics().num_workers();
    Gateway::new(Rooms {
        binder,
        registry: Arc::new(Registry::new(limits, names.clone(), config.tick())),
        sessions,
        flusher: Arc::new(Flusher::new(parts, metrics.clone())),
        waiting: Shares::new(config.waiting_pushes_max),
        revocations: Arc::new(Revocations::new(config.revocations_max)),
        total: Total::new(config.queued_total_bytes_max),
        replays: Replays::new(replays, metrics.clone()),
        metrics,
        drain: Drain::default(),
        stopping: CancellationToken::new(),
        pushes: TaskTracker::new(),
        config: Arc::new(config),
        names,
        token_authenticator,
        push_authorizer,
        audit: Audit::default(),
        certificates,
    })
}

impl Server {
    /// Starts from a config; more can be plugged in before [`ServerBuilder::bind`].
    #[must_use]
    pub fn builder(config: Config) -> ServerBuilder {
        ServerBuilder {
            config,
            listener: None,
            control_listener: None,
            token_authenticator: None,
            push_authorizer: None,
            journal: None,
            log_lines_lost: None,
        }
    }

    /// Binds a server made from the config alone.
    ///
    /// # Errors
    /// See [`ServerBuilder::bind`].
    pub async fn bind(config: Config) -> Result<Self, ServerError> {
        Self::builder(config).bind().await
    }

    fn new(gateway: Gateway, listeners: Vec<Listening>, address: Address, control_address: Address) -> Self {
        let rooms = gateway.rooms();
        let page = match rooms.config.page {
            Page::On => true,
            Page::Off => false,
            Page::Auto => control_address.is_loopback(),
        };
        let sockets = TaskTracker::new();
        let callers = Arc::new(Callers::new(&gateway));
        let router = Router {
            websocket: WebSocketDoor::new(
                rooms.registry.clone(),
                Arc::new(Shared {
                    metrics: rooms.metrics.clone(),
                    config: rooms.config.clone(),
                    token_authenticator: rooms.token_authenticator.clone(),
                    check_deadline: Deadline::new(
                        metrics::Check::Token,
                        rooms.config.check_timeout,
                        rooms.metrics.clone(),
                    ),
                    sessions: rooms.sessions.clone(),
                    revocations: rooms.revocations.clone(),
                }),
                sockets.clone(),
            ),
            push: stack::PushStack::new(&gateway, callers.clone()),
            health: HealthServer::new(Health::new(gateway.readiness()))
                .accept_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Zstd),
            reflection: reflection(),
            readers: Readers::new(gateway.clone(), callers),
            client: Client::new(),
            page: page.then(|| page::page(&rooms.config, address.ip_address(), control_address.ip_address())),
            scrapes: Scrapes::default(),
            gateway: gateway.clone(),
        };
        let http = Arc::new(Http::new(Arc::new(router), &rooms.config));
        let port = |Listening { socket, serves, tls }| {
            let handshakes = tls.map(|tls| Arc::new(Handshakes::new(tls, rooms.metrics.clone())));
            Port::new(socket, serves, &rooms.config, &rooms.metrics, handshakes)
        };
        let ports = listeners.into_iter().map(port).collect();
        Self { gateway, http, ports, address, control_address, page, sockets }
    }

    /// Reads the files of certificates and keys that the config names, and finds every mistake in them.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn check_tls(config: &Config) -> Result<(), InvalidTls> {
        tls::check(config)
    }

    /// The address that clients connect to.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The address of the push doors; the same as [`Server::address`] unless they have one of their own.
    #[must_use]
    pub fn control_address(&self) -> &Address {
        &self.control_address
    }

    /// [`Server::address`] where that is TCP; 127.0.0.1:0 for a Unix socket, as for its peers.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address.ip_address()
    }

    /// [`Server::control_address`] in the same way.
    #[must_use]
    pub fn control_addr(&self) -> SocketAddr {
        self.control_address.ip_address()
    }

    /// Whether the page to try the gateway from is served.
    #[must_use]
    pub fn has_page(&self) -> bool {
        self.page
    }

    /// The gateway, to push, drop and reload without a door.
    #[must_use]
    pub fn gateway(&self) -> Gateway {
        self.gateway.clone()
    }

    /// Serves until `stop` is ready, then stops in order: not ready any more; serve on for `shutdown_delay`; refuse
    /// new clients, and close those that are open one after the other over `drain_period`, while pushes are served; accept
    /// nobody; finish the pushes in hand; write what is queued and close every client that is left; after
    /// `shutdown_grace`, cut what is left.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Report {
        let mut tasks = vec![
            AbortOnDropHandle::new(tokio::spawn(keep_time(self.gateway.clone()))),
            AbortOnDropHandle::new(tokio::spawn(keep_sessions(self.gateway.clone()))),
        ];
        for part in 0..self.gateway.rooms().flusher.parts() {
            tasks.push(AbortOnDropHandle::new(tokio::spawn(flush(self.gateway.clone(), part))));
        }
        let accepting = TaskTracker::new();
        for port in std::mem::take(&mut self.ports) {
            if let Some(handshakes) = port.handshakes() {
                tasks.push(AbortOnDropHandle::new(tokio::spawn(watch(self.gateway.clone(), handshakes.tls().clone()))));
            }
            accepting.spawn(accept(self.http.clone(), self.gateway.clone(), port));
        }
        stop.await;
        self.leave().await;
        self.drain().await;
        let report = self.stop(&accepting).await;
        drop(tasks);
        report
    }

    /// Says that nobody new should come, and gives them the time to hear of it.
    async fn leave(&self) {
        self.gateway.leave();
        let delay = self.gateway.rooms().config.shutdown_delay;
        if !delay.is_zero() {
            info!(delay = %humantime::format_duration(delay), "not ready any more, and serving on for the delay");
            tokio::time::sleep(delay).await;
        }
    }

    /// Sends clients away a few at a time, so that the gateways they come back to are not all met at once.
    async fn drain(&self) {
        let Rooms { registry, config, .. } = self.gateway.rooms();
        let period = config.drain_period;
        if period.is_zero() {
            return;
        }
        registry.drain();
        self.gateway.take_over_drain().await;
        info!(connections = registry.len(), period = %humantime::format_duration(period), "draining");
        registry.stop_over(period, Stop::GoingAway).await;
    }

    async fn stop(self, accepting: &TaskTracker) -> Report {
        let rooms = self.gateway.rooms();
        let grace = rooms.config.shutdown_grace;
        let deadline = Instant::now() + grace;
        rooms.registry.drain();
        rooms.pushes.close();
        rooms.stopping.cancel();
        self.http.stop.cancel();
        info!(connections = rooms.registry.len(), grace = %humantime::format_duration(grace), "shutting down");
        finish(accepting, deadline).await;
        self.finish_pushes(grace / 2).await;
        // Ends the streams of whoever watches the health, who has been told by now.
        self.gateway.end_watches();
        let told = rooms.registry.stop_all(Stop::GoingAway);
        debug!(told, "clients told to go");
        finish(&self.sockets, deadline).await;
        finish(&self.http.tasks, deadline).await;
        let report = Report { connections_cut: self.sockets.len(), http_connections_cut: self.http.tasks.len() };
        self.http.cut.cancel();
        rooms.registry.stop_all(Stop::Cut);
        // A task that is cut ends at its next poll. One that does not is in an embedder's check that blocks.
        let moment = Instant::now() + Duration::from_secs(1);
        finish(&self.sockets, moment).await;
        finish(&self.http.tasks, moment).await;
        if report == Report::default() {
            info!("stopped, nothing was cut");
        } else {
            let Report { connections_cut, http_connections_cut } = report;
            warn!(connections_cut, http_connections_cut, "stopped after the grace");
        }
        report
    }

    /// Waits until no push is in hand. Half of the grace, so that a caller that sends its body slowly leaves the other
    /// half to the clients.
    async fn finish_pushes(&self, patience: Duration) {
        match tokio::time::timeout(patience, self.gateway.rooms().pushes.wait()).await {
            Ok(_) => debug!("pushes finished"),
            Err(_) => warn!("pushes are still in hand"),
        }
    }
}

/// Writes for those receivers whose own tasks sleep.
async fn flush(gateway: Gateway, part: usize) {
    let Rooms { flusher, metrics, .. } = gateway.rooms();
    supervise(metrics, Task::Flusher, || flusher.run(part)).await;
}

/// Keeps the deadlines of all connections.
async fn keep_time(gateway: Gateway) {
    let Rooms { registry, metrics, .. } = gateway.rooms();
    supervise(metrics, Task::Clock, || registry.keep_time()).await;
}

async fn keep_sessions(gateway: Gateway) {
    let Rooms { sessions, metrics, .. } = gateway.rooms();
    supervise(metrics, Task::Sessions, || sessions.keep_time()).await;
}

/// Takes over certificates whose files have changed.
async fn watch(gateway: Gateway, tls: Arc<Tls>) {
    supervise(&gateway.rooms().metrics, Task::Certificates, || tls.watch()).await;
}

/// The port goes with this, so that nobody can connect any more once it has ended.
async fn accept(http: Arc<Http>, gateway: Gateway, port: Port) {
    supervise(&gateway.rooms().metrics, Task::Accept, || http.clone().accept(&port)).await;
}

async fn finish(tasks: &TaskTracker, deadline: Instant) {
    tasks.close();
    let _in_time = tokio::time::timeout_at(deadline, tasks.wait()).await;
}

fn reflection() -> Reflection {
    let builder = || {
        ReflectionBuilder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // The details of errors, so that grpcurl can show them.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    const SOUND: &str = "the descriptors were encoded by this build";
    Reflection {
        v1: BoxCloneSyncService::new(
            (builder().build_v1().expect(SOUND))
                .accept_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Zstd),
        ),
        v1alpha: BoxCloneSyncService::new(
            (builder().build_v1alpha().expect(SOUND))
                .accept_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Zstd),
        ),
    }
}

#[cfg(test)]
mod tests {
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tonic::transport::Endpoint;
    use tower::service_fn;

    use super::*;
    use crate::proto::PushRequest;
    use crate::proto::push_service_client::PushServiceClient;

    /// A server that nobody connects to but by streams in memory.
    async fn server() -> Server {
        let config = Config { listen: ([127, 0, 0, 1], 0).into(), ..Config::default() };
        Server::bind(config).await.expect("a free port")
    }

    fn connect(server: &Server) -> DuplexStream {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let http = server.http.clone();
        tokio::spawn(async move {
            let peer = SocketAddr::from(([127, 0, 0, 1], 1)).into();
            http.serve(far, peer, Serves::All, traffic::Traffic::new()).await;
        });
        near
    }

    async fn json(server: &Server, body: &str) -> String {
        let mut stream = connect(server);
        let length = body.len();
        let request =
            format!("POST /push HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.expect("taken");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer
    }

    #[tokio::test]
    async fn while_stopping_both_doors_send_a_new_request_away() {
        let server = server().await;
        let body = r#"{"userId":"ann","event":"mail","message":"m"}"#;
        assert!(json(&server, body).await.starts_with("HTTP/1.1 200 OK\r\n"));
        server.gateway.leave();
        server.gateway.rooms().pushes.close();
        let answer = json(&server, body).await;
        assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
        assert!(answer.contains("\r\nretry-after: 5\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nshutting down, try again later"), "{answer}");

        let stream = TokioIo::new(connect(&server));
        let mut once = Some(stream);
        let connector = service_fn(move |_| {
            std::future::ready(once.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
        });
        let endpoint = Endpoint::from_static("http://in.memory");
        let channel = endpoint.connect_with_connector(connector).await.expect("connected");
        let mut grpc = PushServiceClient::new(channel);
        let status = grpc.push(PushRequest::default()).await.expect_err("sent away");
        assert_eq!((status.code(), status.message()), (tonic::Code::Unavailable, "shutting down, try again later"));

        let mut ready = connect(&server);
        ready.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("taken");
        let mut answer = String::new();
        ready.read_to_string(&mut answer).await.expect("answered");
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    }
}

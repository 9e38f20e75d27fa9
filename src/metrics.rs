//! All metrics of a gateway. Each metric is a field and each label is an enum. No label ever holds a user, an event or
//! a token.

mod counters;
mod histogram;
mod process;
mod striped;
mod text;

use std::fmt::{self, Debug, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder,
};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::close::CloseReason;
use crate::config::Config;
use crate::outcome::{DropReason, Drops};
use crate::revocations::RevokedBy;

use counters::{Counters, Labels};
use histogram::Histogram;

pub(crate) use striped::Counter;

/// The metrics of one gateway. Not global, so that two gateways in one process do not share counts.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// Metrics whose names do not start with the gateway's prefix.
    common: Registry,
    readings: Readings,
    pub(crate) connections: Gauge,
    pub(crate) bindings: Gauge,
    pub(crate) users: Gauge,
    pub(crate) outbox_messages: Gauge,
    pub(crate) outbox_bytes: Gauge,
    pub(crate) outbox_messages_fullest: Gauge,
    pub(crate) outbox_bytes_fullest: Gauge,
    pub(crate) queued_total_bytes: Gauge,
    pub(crate) made_room: Counters<MadeRoomLabels>,
    pub(crate) http_connections: Family<ListenerLabels, Gauge>,
    pub(crate) http_connections_max: Family<ListenerLabels, Gauge>,
    pub(crate) push_concurrency: Gauge,
    pub(crate) waiting_pushes: Gauge,
    pub(crate) idempotency_keys: Gauge,
    pub(crate) idempotency_bytes: Gauge,
    pub(crate) revocations: Gauge,
    pub(crate) revocation_refusals: Counters<RevokedLabels>,
    pub(crate) upgrades: Counters<UpgradeLabels>,
    pub(crate) binds: Counter,
    pub(crate) closes: Counters<CloseLabels>,
    pub(crate) pushes: Counters<PushLabels>,
    pub(crate) admin_calls: Counters<AdminLabels>,
    pub(crate) matched: Counter,
    pub(crate) accepted: Counter,
    pub(crate) drops: Counters<DropLabels>,
    pub(crate) written: Counter,
    pub(crate) undelivered: Counters<CloseLabels>,
    pub(crate) expired: Counter,
    pub(crate) displaced: Counter,
    pub(crate) acked: Counter,
    pub(crate) held: Counter,
    pub(crate) forgotten: Counter,
    pub(crate) resumes: Counters<ResumeLabels>,
    pub(crate) idempotency_keys_forgotten: Counter,
    pub(crate) sessions_away: Gauge,
    pub(crate) journal_messages: Gauge,
    pub(crate) journal_bytes: Gauge,
    pub(crate) http_refused: Counters<RefusedLabels>,
    pub(crate) reads_refused: Counters<ReadRefusedLabels>,
    pub(crate) http_evicted: Counters<ListenerLabels>,
    pub(crate) accept_errors: Counters<ListenerLabels>,
    pub(crate) tls_handshakes: Counters<HandshakeLabels>,
    pub(crate) certificate_reloads: Counters<CertificateReloadLabels>,
    pub(crate) certificate_expires: Family<ListenerLabels, Gauge>,
    pub(crate) task_panics: Counters<TaskLabels>,
    pub(crate) check_timeouts: Counters<CheckLabels>,
    pub(crate) token_callback_calls: Counters<CallbackLabels>,
    pub(crate) token_callback_cache_hits: Counter,
    pub(crate) token_callback_concurrency: Gauge,
    pub(crate) token_callback_circuit_open: Gauge,
    pub(crate) token_callback_seconds: Histogram,
    pub(crate) jwks_fetches: Counters<JwksLabels>,
    pub(crate) push_jwks_fetches: Counters<JwksLabels>,
    jwks_age_seconds: Gauge,
    push_jwks_age_seconds: Gauge,
    pub(crate) push_seconds: Histogram,
    pub(crate) delivery_seconds: Histogram,
    pub(crate) ack_seconds: Histogram,
}

/// The API that a push came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Door {
    Json,
    Grpc,
    /// The embedding program.
    Library,
}

/// The result of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PushResult {
    /// At least one outbox took the message.
    Accepted,
    /// No connection was bound.
    Unmatched,
    /// No connection was bound, and the message is kept for a later one.
    Held,
    /// Every connection that matched dropped the message.
    Dropped,
    Invalid,
    Unauthenticated,
    PermissionDenied,
    RateLimited,
    TooLarge,
    Overloaded,
    TimedOut,
    Draining,
    CheckUnavailable,
}

/// The result of a call of the `AdminService`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AdminResult {
    Done,
    Invalid,
    Unauthenticated,
    PermissionDenied,
    /// A limit is reached.
    Exhausted,
    /// The gateway is shutting down, or cannot check the caller.
    Unavailable,
    /// Anything else, such as a method that is not known.
    Failed,
}

/// The result of a request to upgrade to WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum UpgradeResult {
    Accepted,
    Malformed,
    OriginRefused,
    TooMany,
    TooManyFromAddress,
    TooFastFromAddress,
    Draining,
}

/// What an address serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Listener {
    /// Everything, because there is no separate control address.
    All,
    Clients,
    Control,
}

/// Why a TCP connection was closed before it was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RefusedReason {
    Full,
    FullForAddress,
    /// The PROXY protocol is expected, and the peer is not a trusted proxy.
    NotAProxy,
    /// The PROXY protocol is expected, and its header did not come in time or was not valid.
    NoProxyHeader,
}

/// Why a request to read what the gateway tells about itself was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ReadRefusal {
    NoKey,
    UnknownKey,
    ExpiredToken,
    BadToken,
    CheckUnavailable,
    /// Too many checks are in progress.
    Overloaded,
}

/// What whoever had the most gave up when all that is queued and kept was too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum MadeRoomBy {
    /// A connection, with all that was queued for it.
    Closing,
    /// One queued message.
    Dropping,
    /// One message that was kept.
    Forgetting,
}

/// How a TLS handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HandshakeResult {
    Done,
    /// What the peer sent first was not TLS.
    NotTls,
    /// The peer has no version, cipher suite or protocol that the gateway has too.
    NothingInCommon,
    /// The peer did not accept the gateway's certificate, or something else.
    RefusedByPeer,
    /// The peer presented no certificate, though it must.
    NoCertificate,
    /// The peer's certificate is of another CA, or has expired, or is not for clients.
    BadCertificate,
    /// The peer broke the rules of TLS.
    Malformed,
    /// The peer ended the connection.
    PeerLeft,
    TimedOut,
    /// The gateway needed the place for another connection, or stopped.
    GivenUp,
}

/// The result of reading changed certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CertificateReloadResult {
    Loaded,
    /// The files have mistakes, and the previous certificates stay in use.
    Failed,
}

/// The result of a bind that asked to resume a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ResumeResult {
    /// The session continues with all its messages.
    Recovered,
    /// The session continues, but some of its messages are lost.
    Gap,
    /// The session is no longer known.
    Unknown,
}

/// Whose tokens are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Clients,
    Callers,
}

impl Side {
    /// The setting that says where the keys for its tokens are published.
    pub(crate) fn jwks_setting(self) -> &'static str {
        match self {
            Self::Clients => "jwt_jwks_url",
            Self::Callers => "push_jwt_jwks_url",
        }
    }
}

/// The result of fetching the keys that check JWTs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FetchResult {
    Fetched,
    /// The keys could not be fetched, or none of them can be used.
    Failed,
}

/// The result of asking `token_callback_url` about a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CallbackResult {
    Granted,
    /// The token is not valid.
    Refused,
    /// The token is not valid for the event.
    NotAllowed,
    TimedOut,
    /// The service could not be reached, or answered something else.
    Failed,
    /// Too many calls were on their way for too long.
    NoPlace,
    /// The service had failed too often in a row, and was not asked.
    CircuitOpen,
}

/// A check that has a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Check {
    Token,
    Push,
}

/// A task whose panics are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    /// Accepting connections on one address.
    Accept,
    /// The clock that keeps the deadlines of all connections.
    Clock,
    /// Ending the sessions that were away for too long.
    Sessions,
    /// Recording in an embedding program's journal.
    Journal,
    /// Writing messages for many receivers at once.
    Flusher,
    /// Reloading tokens or push keys.
    Reload,
    /// Taking over certificates whose files have changed.
    Certificates,
    /// Answering one stream of pushes. Unlike the other tasks, it ends after a panic.
    PushStream,
}

/// A label enum with all its values.
trait Label: Sized + 'static {
    const ALL: &'static [Self];
}

/// Implements a label. Its values are the variant names in snake case, as is usual in Prometheus. Leaving out a variant
/// does not compile.
macro_rules! labelled {
    ($($label:ident: $($variant:ident)+;)+) => {
        $(
            impl Label for $label {
                const ALL: &'static [Self] = {
                    const fn is_listed(label: $label) -> bool {
                        match label { $($label::$variant)|+ => true }
                    }
                    let all = &[$($label::$variant),+];
                    assert!(is_listed(all[0]));
                    let mut place = 0;
                    while place < all.len() {
                        assert!(all[place] as usize == place, "in the order in which they are declared");
                        place += 1;
                    }
                    all
                };
            }

            impl EncodeLabelValue for $label {
                fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                    snake_case(self, encoder)
                }
            }
        )+
    };
}

labelled! {
    Listener: All Clients Control;
    RefusedReason: Full FullForAddress NotAProxy NoProxyHeader;
    ReadRefusal: NoKey UnknownKey ExpiredToken BadToken CheckUnavailable Overloaded;
    Door: Json Grpc Library;
    PushResult:
        Accepted Unmatched Held Dropped Invalid Unauthenticated PermissionDenied RateLimited TooLarge
        Overloaded TimedOut Draining CheckUnavailable;
    AdminResult: Done Invalid Unauthenticated PermissionDenied Exhausted Unavailable Failed;
    UpgradeResult: Accepted Malformed OriginRefused TooMany TooManyFromAddress TooFastFromAddress Draining;
    HandshakeResult: Done NotTls NothingInCommon RefusedByPeer NoCertificate BadCertificate Malformed PeerLeft TimedOut GivenUp;
    CertificateReloadResult: Loaded Failed;
    ResumeResult: Recovered Gap Unknown;
    FetchResult: Fetched Failed;
    Check: Token Push;
    RevokedBy: Token User;
    CallbackResult: Granted Refused NotAllowed TimedOut Failed NoPlace CircuitOpen;
    Task: Accept Clock Sessions Journal Flusher Reload Certificates PushStream;
    DropReason: QueueFull Closed Expired Superseded;
    MadeRoomBy: Closing Dropping Forgetting;
    CloseReason:
        ClientClosed Reset ProtocolError NotUtf8 TooBig TooManyFrames TooManyPings TooManyFragments MessageTimeout
        NotUnderstood Incomplete TokenRefused CheckUnavailable NotAllowed OtherUser BindTimeout TooManyConnections
        TooManyEvents PongTimeout WriteTimeout QueueFull Dropped Replaced MadeRoom TokenExpired Aged TokenRevoked GoingAway
        Drained Cut Panicked;
}

/// What the samples of one name are told apart by.
macro_rules! label_sets {
    ($($labels:ident: $($name:ident $label:ty),+;)+) => {
        $(
            #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
            pub(crate) struct $labels {
                $(pub(crate) $name: $label),+
            }

            impl Labels for $labels {
                const COUNT: usize = 1 $(* <$label>::ALL.len())+;

                fn at(place: usize) -> Self {
                    let mut step = Self::COUNT;
                    $(
                        step /= <$label>::ALL.len();
                        let $name = <$label>::ALL[place / step % <$label>::ALL.len()];
                    )+
                    Self { $($name),+ }
                }

                fn place(&self) -> usize {
                    let place = 0;
                    $(let place = place * <$label>::ALL.len() + self.$name as usize;)+
                    place
                }
            }
        )+
    };
}

label_sets! {
    ListenerLabels: listener Listener;
    RefusedLabels: listener Listener, reason RefusedReason;
    ReadRefusedLabels: reason ReadRefusal;
    HandshakeLabels: listener Listener, result HandshakeResult;
    CertificateReloadLabels: listener Listener, result CertificateReloadResult;
    TaskLabels: task Task;
    ResumeLabels: result ResumeResult;
    CloseLabels: reason CloseReason;
    PushLabels: door Door, result PushResult;
    AdminLabels: result AdminResult;
    DropLabels: reason DropReason;
    UpgradeLabels: result UpgradeResult;
    MadeRoomLabels: by MadeRoomBy;
    JwksLabels: result FetchResult;
    CheckLabels: check Check;
    RevokedLabels: reason RevokedBy;
    CallbackLabels: result CallbackResult;
}

/// A gauge and the function that reads its value at each scrape.
type Reading = (Gauge, Box<dyn Fn() -> usize + Send + Sync>);

#[derive(Default)]
struct Readings(Mutex<Vec<Reading>>);

impl Readings {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Reading>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Debug for Readings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Readings(..)")
    }
}

/// The text format of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// The text format 0.0.4 of Prometheus.
    Plain,
}

/// Sets a gauge to a count.
pub(crate) fn set(gauge: &Gauge, value: usize) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// Shows a label value in the log by the same word as in the metrics.
pub(crate) struct InSnakeCase<L>(pub(crate) L);

impl<L: Debug> fmt::Display for InSnakeCase<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        snake_case(&self.0, f)
    }
}

fn snake_case(variant: &impl Debug, encoder: &mut impl Write) -> fmt::Result {
    for (at, letter) in format!("{variant:?}").char_indices() {
        if at > 0 && letter.is_ascii_uppercase() {
            encoder.write_char('_')?;
        }
        encoder.write_char(letter.to_ascii_lowercase())?;
    }
    Ok(())
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("pushgate"),
            common: Registry::default(),
            readings: Readings::default(),
            connections: Gauge::default(),
            bindings: Gauge::default(),
            users: Gauge::default(),
            outbox_messages: Gauge::default(),
            outbox_bytes: Gauge::default(),
            outbox_messages_fullest: Gauge::default(),
            outbox_bytes_fullest: Gauge::default(),
            queued_total_bytes: Gauge::default(),
            made_room: Counters::default(),
            http_connections: Family::default(),
            http_connections_max: Family::default(),
            push_concurrency: Gauge::default(),
            waiting_pushes: Gauge::default(),
            idempotency_keys: Gauge::default(),
            idempotency_bytes: Gauge::default(),
            revocations: Gauge::default(),
            revocation_refusals: Counters::default(),
            upgrades: Counters::default(),
            binds: Counter::default(),
            closes: Counters::default(),
            pushes: Counters::default(),
            admin_calls: Counters::default(),
            matched: Counter::default(),
            accepted: Counter::default(),
            drops: Counters::default(),
            written: Counter::default(),
            undelivered: Counters::default(),
            expired: Counter::default(),
            displaced: Counter::default(),
            acked: Counter::default(),
            held: Counter::default(),
            forgotten: Counter::default(),
            resumes: Counters::default(),
            idempotency_keys_forgotten: Counter::default(),
            sessions_away: Gauge::default(),
            journal_messages: Gauge::default(),
            journal_bytes: Gauge::default(),
            http_refused: Counters::default(),
            reads_refused: Counters::default(),
            http_evicted: Counters::default(),
            accept_errors: Counters::default(),
            tls_handshakes: Counters::default(),
            certificate_reloads: Counters::default(),
            certificate_expires: Family::default(),
            task_panics: Counters::default(),
            check_timeouts: Counters::default(),
            token_callback_calls: Counters::default(),
            token_callback_cache_hits: Counter::default(),
            token_callback_concurrency: Gauge::default(),
            token_callback_circuit_open: Gauge::default(),
            token_callback_seconds: Histogram::default(),
            jwks_fetches: Counters::default(),
            push_jwks_fetches: Counters::default(),
            jwks_age_seconds: Gauge::default(),
            push_jwks_age_seconds: Gauge::default(),
            push_seconds: Histogram::default(),
            delivery_seconds: Histogram::default(),
            ack_seconds: Histogram::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("connections", "Open WebSocket connections", self.connections.clone());
        registry.register("bindings", "Bindings of connections to a user's event", self.bindings.clone());
        registry.register("users", "Users with at least one connection", self.users.clone());
        registry.register("outbox_messages", "Messages accepted and not yet written", self.outbox_messages.clone());
        registry.register("outbox_bytes", "Bytes accepted and not yet written", self.outbox_bytes.clone());
        registry.register(
            "outbox_messages_fullest",
            "Messages in the outbox that holds the most",
            self.outbox_messages_fullest.clone(),
        );
        registry.register(
            "outbox_bytes_fullest",
            "Bytes in the outbox that holds the most",
            self.outbox_bytes_fullest.clone(),
        );
        registry.register(
            "queued_total_bytes",
            "Bytes queued for all receivers and kept for all users, a message counted for each receiver",
            self.queued_total_bytes.clone(),
        );
        registry.register(
            "made_room",
            "Times that somebody who had the most made room because all was full, by what it gave up",
            self.made_room.clone(),
        );
        registry.register("http_connections", "TCP connections that speak HTTP", self.http_connections.clone());
        registry.register(
            "http_connections_max",
            "The limit of pushgate_http_connections, from http_connections_max and control_http_connections_max",
            self.http_connections_max.clone(),
        );
        registry.register("push_concurrency", "Push requests in progress", self.push_concurrency.clone());
        registry.register(
            "waiting_pushes",
            "Pushes that wait, or may yet wait, for delivery beyond acceptance",
            self.waiting_pushes.clone(),
        );
        registry.register(
            "idempotency_keys",
            "Remembered pushes with an idempotency key",
            self.idempotency_keys.clone(),
        );
        registry.register(
            "idempotency_bytes",
            "Memory of remembered idempotency keys, in bytes",
            self.idempotency_bytes.clone(),
        );
        registry.register("upgrades", "Requests to upgrade to WebSocket, by result", self.upgrades.clone());
        registry.register("revocations", "Revocations of tokens and users in force", self.revocations.clone());
        registry.register(
            "revocation_refusals",
            "Tokens that were refused because they or their user's were revoked, by reason",
            self.revocation_refusals.clone(),
        );
        registry.register("binds", "Binds that were granted", self.binds.clone());
        registry.register("closes", "Connections that ended, by reason", self.closes.clone());
        registry.register("pushes", "Pushes, by door and result", self.pushes.clone());
        registry.register("admin_calls", "Calls of the AdminService, by result", self.admin_calls.clone());
        registry.register("push_matched", "Connections that pushes matched", self.matched.clone());
        registry.register("push_accepted", "Connections whose outbox took a push", self.accepted.clone());
        registry.register(
            "push_dropped",
            "Connections that matched a push but did not take it, by reason",
            self.drops.clone(),
        );
        registry.register("messages_written", "Messages handed to the kernel", self.written.clone());
        registry.register(
            "messages_undelivered",
            "Messages accepted but never written because their connection ended, by reason of the end",
            self.undelivered.clone(),
        );
        registry.register(
            "messages_expired",
            "Messages accepted but not written because their time to live had passed",
            self.expired.clone(),
        );
        registry.register(
            "messages_displaced",
            "Messages accepted but not written because a newer message replaced them or needed their room",
            self.displaced.clone(),
        );
        registry.register("messages_acked", "Messages that clients acknowledged", self.acked.clone());
        registry.register(
            "messages_held",
            "Messages kept for a session that is away, or for a user without a connection bound to the event",
            self.held.clone(),
        );
        registry.register(
            "messages_forgotten",
            "Messages kept for a session or held for a user that were given up before their client had them",
            self.forgotten.clone(),
        );
        registry.register("resumes", "Binds that asked to resume a session, by result", self.resumes.clone());
        registry.register(
            "idempotency_keys_forgotten",
            "Idempotency keys forgotten before the end of their window to make room",
            self.idempotency_keys_forgotten.clone(),
        );
        registry.register(
            "sessions_away",
            "Sessions without a connection that can still be resumed",
            self.sessions_away.clone(),
        );
        registry.register(
            "journal_messages",
            "Messages kept for sessions, or held for users without a connection",
            self.journal_messages.clone(),
        );
        registry.register(
            "journal_bytes",
            "Memory of the messages that are kept, in bytes",
            self.journal_bytes.clone(),
        );
        registry.register(
            "http_refused",
            "TCP connections closed before they were served, by reason",
            self.http_refused.clone(),
        );
        registry.register(
            "reads_refused",
            "Requests for metrics, reflection or the page that were refused, by reason",
            self.reads_refused.clone(),
        );
        registry.register(
            "http_evicted",
            "TCP connections without a request in progress that were closed to make room for a new one",
            self.http_evicted.clone(),
        );
        registry.register("accept_errors", "Failures to accept a TCP connection", self.accept_errors.clone());
        registry.register("tls_handshakes", "TLS handshakes, by how they ended", self.tls_handshakes.clone());
        registry.register(
            "certificate_reloads",
            "Changed or requested certificates that were taken over, or not because their files have mistakes",
            self.certificate_reloads.clone(),
        );
        registry.register_with_unit(
            "certificate_expires",
            "When the first of the certificates in use expires, in seconds since 1970",
            Unit::Seconds,
            self.certificate_expires.clone(),
        );
        registry.register(
            "task_panics",
            "Panics caught in background tasks and push streams, by task",
            self.task_panics.clone(),
        );
        registry.register(
            "check_timeouts",
            "Token checks and push checks that took longer than check_timeout",
            self.check_timeouts.clone(),
        );
        registry.register(
            "token_callback_calls",
            "Questions to token_callback_url, by result",
            self.token_callback_calls.clone(),
        );
        registry.register(
            "token_callback_cache_hits",
            "Token checks that a kept answer of token_callback_url settled",
            self.token_callback_cache_hits.clone(),
        );
        registry.register(
            "token_callback_concurrency",
            "Questions on their way to token_callback_url",
            self.token_callback_concurrency.clone(),
        );
        registry.register(
            "token_callback_circuit_open",
            "1 while token_callback_url has failed too often in a row to be asked",
            self.token_callback_circuit_open.clone(),
        );
        registry.register_with_unit(
            "token_callback",
            "Time that token_callback_url took to answer, or until it was given up",
            Unit::Seconds,
            self.token_callback_seconds.clone(),
        );
        registry.register("jwks_fetches", "Fetches of jwt_jwks_url, by result", self.jwks_fetches.clone());
        registry.register_with_unit(
            "jwks_age",
            "Time since jwt_jwks_url was last fetched with success, or since the start; 0 without that setting",
            Unit::Seconds,
            self.jwks_age_seconds.clone(),
        );
        registry.register(
            "push_jwks_fetches",
            "Fetches of push_jwt_jwks_url, by result",
            self.push_jwks_fetches.clone(),
        );
        registry.register_with_unit(
            "push_jwks_age",
            "Time since push_jwt_jwks_url was last fetched with success, or since the start; 0 without that setting",
            Unit::Seconds,
            self.push_jwks_age_seconds.clone(),
        );
        registry.register_with_unit(
            "push",
            "Time from a push's arrival in the gateway to its outcome",
            Unit::Seconds,
            self.push_seconds.clone(),
        );
        registry.register_with_unit(
            "delivery",
            "Time from a message's acceptance to handing its last byte to the kernel",
            Unit::Seconds,
            self.delivery_seconds.clone(),
        );
        registry.register_with_unit(
            "ack",
            "Time from a message's acceptance to the client's acknowledgement",
            Unit::Seconds,
            self.ack_seconds.clone(),
        );
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The running version, as a label", version);
        self.common.register_collector(Box::new(process::Process));
    }

    /// The result of a bind that asked to resume a session.
    pub(crate) fn tell_limits(&mut self, config: &Config) {
        for (of, setting, limit) in [
            ("connections", "connections_max", config.connections_max),
            ("push_concurrency", "push_concurrency_max", config.push_concurrency_max),
            ("waiting_pushes", "waiting_pushes_max", config.waiting_pushes_max),
            ("idempotency_keys", "idempotency_keys_max", config.idempotency_keys_max),
            ("idempotency_bytes", "idempotency_bytes_max", config.idempotency_bytes_max),
            ("outbox_messages_fullest", "outbox_messages_max", config.outbox_messages_max),
            ("outbox_bytes_fullest", "outbox_bytes_max", config.outbox_bytes_max),
            ("sessions_away", "sessions_away_max", config.sessions_away_max),
            ("revocations", "revocations_max", config.revocations_max),
            ("queued_total_bytes", "queued_total_bytes_max", config.queued_total_bytes_max),
            ("token_callback_concurrency", "token_callback_concurrency_max", config.token_callback_concurrency_max),
        ] {
            self.tell_limit(of, setting, limit);
        }
    }

    /// Adds the metric of one limit.
    pub(crate) fn tell_limit(&mut self, of: &str, setting: &str, limit: usize) {
        let gauge = Gauge::default();
        set(&gauge, limit);
        self.registry.register(
            format!("{of}_max"),
            format!("The limit of pushgate_{of}, from the setting {setting}"),
            gauge,
        );
    }

    /// Sets a gauge from `read` at each scrape, so that no code has to keep the gauge up to date.
    pub(crate) fn read(&self, gauge: &Gauge, read: impl Fn() -> usize + Send + Sync + 'static) {
        self.readings.lock().push((gauge.clone(), Box::new(read)));
    }

    /// Adds the number of log lines that the program lost.
    pub(crate) fn tell_log_lines_lost(&mut self, lost: LogLinesLost) {
        self.registry.register_collector(Box::new(lost));
    }

    pub(crate) fn pushed(&self, door: Door, result: PushResult) {
        self.pushes.of(&PushLabels { door, result }).inc();
    }

    pub(crate) fn operated(&self, result: AdminResult) {
        self.admin_calls.of(&AdminLabels { result }).inc();
    }

    pub(crate) fn dropped(&self, drops: &Drops) {
        for (reason, count) in drops.by_reason() {
            if count > 0 {
                self.drops.of(&DropLabels { reason }).inc_by(count);
            }
        }
    }

    pub(crate) fn delivered(&self, after: Duration) {
        self.written.inc();
        self.delivery_seconds.observe(after.as_secs_f64());
    }

    pub(crate) fn acknowledged(&self, after: Duration) {
        self.acked.inc();
        self.ack_seconds.observe(after.as_secs_f64());
    }

    pub(crate) fn task_panicked(&self, task: Task) {
        self.task_panics.of(&TaskLabels { task }).inc();
    }

    pub(crate) fn called_back(&self, result: CallbackResult) {
        self.token_callback_calls.of(&CallbackLabels { result }).inc();
    }

    pub(crate) fn check_timed_out(&self, check: Check) {
        self.check_timeouts.of(&CheckLabels { check }).inc();
    }

    pub(crate) fn fetched_jwks(&self, side: Side, result: FetchResult) {
        let fetches = match side {
            Side::Clients => &self.jwks_fetches,
            Side::Callers => &self.push_jwks_fetches,
        };
        fetches.of(&JwksLabels { result }).inc();
    }

    /// The age of the keys for the tokens of one side.
    pub(crate) fn jwks_age(&self, side: Side) -> &Gauge {
        match side {
            Side::Clients => &self.jwks_age_seconds,
            Side::Callers => &self.push_jwks_age_seconds,
        }
    }

    pub(crate) fn refused_as_revoked(&self, reason: RevokedBy) {
        self.revocation_refusals.of(&RevokedLabels { reason }).inc();
    }

    pub(crate) fn resumed(&self, result: ResumeResult) {
        self.resumes.of(&ResumeLabels { result }).inc();
    }

    pub(crate) fn upgrade(&self, result: UpgradeResult) {
        self.upgrades.of(&UpgradeLabels { result }).inc();
    }

    pub(crate) fn closed(&self, reason: CloseReason, undelivered: usize) {
        self.closes.of(&CloseLabels { reason }).inc();
        if undelivered > 0 {
            self.undelivered.of(&CloseLabels { reason }).inc_by(undelivered as u64);
        }
    }

    /// Returns all metrics as text.
    pub(crate) fn encode(&self, format: Format) -> String {
        for (gauge, read) in &*self.readings.lock() {
            set(gauge, read());
        }
        let mut text = String::new();
        let encoded = encode_registry(&mut text, &self.common)
            .and_then(|()| encode_registry(&mut text, &self.registry))
            .and_then(|()| encode_eof(&mut text));
        // Writing to a String fails only if a metric's own encoding fails, which would be a bug in the library.
        encoded.expect("a metric that cannot be encoded was registered");
        match format {
            Format::OpenMetrics => text,
            Format::Plain => text::plain(&text),
        }
    }
}

/// Asks the program how many lines of its log it lost.
pub(crate) struct LogLinesLost(pub(crate) Box<dyn Fn() -> u64 + Send + Sync>);

impl Debug for LogLinesLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogLinesLost(..)")
    }
}

impl Collector for LogLinesLost {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let lost = ConstCounter::new((self.0)());
        let help = "Log lines that could not be written, or were dropped because too many were waiting";
        lost.encode(encoder.encode_descriptor("log_lines_lost", help, None, lost.metric_type())?)
    }
}

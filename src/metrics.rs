//! All metrics of a gateway. Each metric is a field and each label is an enum. No label ever holds a user, an event or
//! a token.

mod counters;
mod histogram;
mod labels;
mod process;
mod striped;
mod text;

use std::fmt::{self, Debug};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::close::CloseReason;
use crate::config::Config;
use crate::outcome::Drops;
use crate::revocations::RevokedBy;

use counters::Counters;
use histogram::Histogram;

pub(crate) use labels::{
    AdminLabels, AdminResult, CallbackLabels, CallbackResult, CertificateReloadLabels, CertificateReloadResult, Check,
    CheckLabels, CloseLabels, Door, DropLabels, FetchResult, HandshakeLabels, HandshakeResult, InSnakeCase, JwksLabels,
    Listener, ListenerLabels, MadeRoomBy, MadeRoomLabels, PushLabels, PushResult, ReadRefusal, ReadRefusedLabels,
    RefusedLabels, RefusedReason, ResumeLabels, ResumeResult, RevokedLabels, Side, Task, TaskLabels, UpgradeLabels,
    UpgradeResult,
};
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

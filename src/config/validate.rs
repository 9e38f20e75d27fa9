//! What must hold of the settings together: every mistake at once, each with what would be right.

use std::path::PathBuf;
use std::time::Duration;

use super::{Address, BATCH_PATH, CLIENT_PATH, CLIENT_TYPES_PATH, Config, Invalid, Mistake};

/// Paths that cannot be given to another purpose.
const TAKEN_PATHS: [&str; 6] = ["/", "/metrics", "/healthz", "/readyz", CLIENT_PATH, CLIENT_TYPES_PATH];

/// Where the gRPC services are, whose methods are under these paths.
const GRPC_PATHS: [&str; 4] = [
    "/pushgate.v1.",
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1.ServerReflection/",
    "/grpc.reflection.v1alpha.ServerReflection/",
];

/// Whether a check is the stock one, made from the config, or an embedder's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    Stock,
    Own,
}

impl Config {
    /// Says everything that is wrong with the settings, and nothing when all is well.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.validate_with(Check::Stock, Check::Stock)
    }

    pub(crate) fn validate_with(&self, token_check: Check, push_check: Check) -> Result<(), Invalid> {
        let mut mistakes = self.mistakes();
        mistakes.extend(self.token_mistakes());
        mistakes.extend(self.callback_mistakes());
        mistakes.extend(self.tls_mistakes());
        mistakes.extend(self.trust_mistakes(token_check, push_check));
        Invalid::unless_empty(mistakes)
    }

    /// The paths that two would have, all compared with all: the setting, the path, and whose it is already.
    fn shared_paths(&self) -> Vec<(&'static str, String, String)> {
        let batch = format!("{}{BATCH_PATH}", self.push_path);
        let own = [("ws_path", &self.ws_path), ("push_path", &self.push_path), ("push_path", &batch)];
        let mut shared = Vec::new();
        for (at, (name, path)) in own.into_iter().enumerate() {
            let is_taken = TAKEN_PATHS.contains(&path.as_str());
            if is_taken || GRPC_PATHS.iter().any(|prefix| path.starts_with(prefix)) {
                let what = if is_taken { "something else that the gateway serves" } else { "a gRPC service" };
                shared.push((name, path.clone(), what.to_owned()));
            }
            for (other, _) in own[..at].iter().filter(|(other, taken)| *other != name && *taken == path) {
                shared.push((name, path.clone(), (*other).to_owned()));
            }
        }
        shared
    }

    fn mistakes(&self) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        let mut require = |holds: bool, name: &'static str, expected: &str| {
            if !holds {
                mistakes.push(Mistake::new(name, self.show(name).unwrap_or_default(), expected));
            }
        };
        require(!self.log.trim().is_empty(), "log", "must not be empty; leave it out for info");
        for (name, address) in [("listen", Some(&self.listen)), ("control_listen", self.control_listen.as_ref())] {
            let expected = "must be a path that a socket can have, on Linux of at most 107 bytes";
            require(address.is_none_or(Address::can_be_bound), name, expected);
        }
        for (name, path) in [("ws_path", &self.ws_path), ("push_path", &self.push_path)] {
            let plain = path.starts_with('/')
                && !path.starts_with("//")
                && path.bytes().all(|b| b.is_ascii_graphic() && !b"?#%".contains(&b));
            require(plain, name, "must be a path that starts with one / and holds no space, ?, # or %");
        }
        for (name, path, other) in self.shared_paths() {
            let expected = format!("{path} would be the path of {other} too; each needs a path of its own");
            require(false, name, &expected);
        }
        require(
            self.public_ws_url.as_deref().is_none_or(is_ws_url),
            "public_ws_url",
            "must be a ws:// or wss:// address with a host, such as wss://push.example.com/ws, and without user or fragment",
        );
        require(
            !self.proxy_protocol || !self.proxies_trusted.is_empty(),
            "proxy_protocol",
            "needs proxies_trusted, the addresses from which the PROXY protocol is taken",
        );
        require(
            self.control_listen.as_ref().is_none_or(|control| *control != self.listen || !control.is_fixed()),
            "control_listen",
            "must differ from listen; leave it out to serve everything on one address",
        );
        for (name, duration) in [
            ("bind_timeout", self.bind_timeout),
            ("check_timeout", self.check_timeout),
            ("ping_interval", self.ping_interval),
            ("pong_timeout", self.pong_timeout),
            ("write_timeout", self.write_timeout),
            ("close_timeout", self.close_timeout),
            ("http_header_timeout", self.http_header_timeout),
            ("http_idle_timeout", self.http_idle_timeout),
            ("request_timeout", self.request_timeout),
            ("socket_timeout", self.socket_timeout),
            ("client_message_timeout", self.client_message_timeout),
            ("idempotency_window", self.idempotency_window),
            ("journal_age", self.journal_age),
        ] {
            let in_range = duration >= Duration::from_millis(1) && duration <= Duration::from_secs(86_400);
            require(in_range, name, "must be between 1ms and 24h");
        }
        for (name, duration) in [
            ("shutdown_delay", self.shutdown_delay),
            ("drain_period", self.drain_period),
            ("shutdown_grace", self.shutdown_grace),
            ("reconnect_spread", self.reconnect_spread),
        ] {
            require(duration <= Duration::from_secs(86_400), name, "must be at most 24h");
        }
        let age = self.connection_age_max;
        require(
            age.is_zero() || (Duration::from_secs(1)..=Duration::from_secs(30 * 86_400)).contains(&age),
            "connection_age_max",
            "must be 0, for no limit, or between 1s and 30days",
        );
        let year = Duration::from_secs(366 * 86_400);
        let in_range = self.revocation_age >= Duration::from_secs(1) && self.revocation_age <= year;
        require(in_range, "revocation_age", "must be between 1s and 366days");
        for (name, limit, most) in [
            ("connections_max", self.connections_max, 1 << 24),
            ("token_callback_cache_entries_max", self.token_callback_cache_entries_max, 1 << 24),
            ("token_callback_concurrency_max", self.token_callback_concurrency_max, 1 << 20),
            ("events_per_connection_max", self.events_per_connection_max, 1 << 20),
            ("http_connections_max", self.http_connections_max, 1 << 24),
            ("control_http_connections_max", self.control_http_connections_max, 1 << 24),
            ("batch_pushes_max", self.batch_pushes_max, 1 << 20),
            ("push_concurrency_max", self.push_concurrency_max, 1 << 20),
            ("http2_streams_max", self.http2_streams_max, 1 << 24),
            ("waiting_pushes_max", self.waiting_pushes_max, 1 << 24),
            ("idempotency_keys_max", self.idempotency_keys_max, 1 << 24),
            ("idempotency_bytes_max", self.idempotency_bytes_max, 1 << 40),
            ("outbox_messages_max", self.outbox_messages_max, 1 << 24),
            ("journal_messages_max", self.journal_messages_max, 1 << 24),
            ("journal_bytes_max", self.journal_bytes_max, 1 << 32),
            ("journal_total_bytes_max", self.journal_total_bytes_max, 1 << 40),
            ("sessions_away_max", self.sessions_away_max, 1 << 24),
            ("sessions_away_per_user_max", self.sessions_away_per_user_max, 1 << 24),
            ("revocations_max", self.revocations_max, 1 << 24),
            ("socket_unsent_bytes_max", self.socket_unsent_bytes_max, 1 << 30),
            ("message_bytes_max", self.message_bytes_max, 1 << 28),
            ("outbox_bytes_max", self.outbox_bytes_max, 1 << 32),
        ] {
            require((1..=most).contains(&limit), name, &format!("must be between 1 and {most}"));
        }
        let sent = self.socket_send_bytes_max;
        require(
            sent == 0 || (4096..=1 << 30).contains(&sent),
            "socket_send_bytes_max",
            "must be 0, for the kernel's own, or between 4096 and 1073741824",
        );
        // A frame's header alone makes room for what it claims.
        for (name, limit) in [
            ("client_message_bytes_max", self.client_message_bytes_max),
            ("client_frame_bytes_max", self.client_frame_bytes_max),
        ] {
            let expected = "must be at least 1024, to hold a token and an event, and at most 16777216";
            require((1024..=1 << 24).contains(&limit), name, expected);
        }
        require(
            (8192..=1 << 24).contains(&self.http_head_bytes_max),
            "http_head_bytes_max",
            "must be at least 8192, to hold any usual head, and at most 16777216",
        );
        require(
            self.outbox_bytes_max >= self.message_bytes_max.saturating_add(10),
            "outbox_bytes_max",
            "must be at least message_bytes_max + 10, to hold one message and its frame header",
        );
        require(
            (self.outbox_bytes_max..=1 << 44).contains(&self.queued_total_bytes_max),
            "queued_total_bytes_max",
            "must be at least outbox_bytes_max, to hold one outbox, and at most 17592186044416",
        );
        require(
            self.request_bytes_max >= self.message_bytes_max && self.request_bytes_max <= u32::MAX as usize,
            "request_bytes_max",
            "must be at least message_bytes_max and at most 4294967295",
        );
        require(
            self.client_frames_per_second_max > 0,
            "client_frames_per_second_max",
            "must be at least 1, or no client could bind",
        );
        require(
            self.client_pings_per_second_max > 0,
            "client_pings_per_second_max",
            "must be at least 1, or no client could look after its connection",
        );
        require(
            (1..=1 << 24).contains(&self.client_message_fragments_max),
            "client_message_fragments_max",
            "must be between 1, for messages in one piece, and 16777216",
        );
        require(
            self.request_bodies_bytes_max / 2 >= self.request_bytes_max,
            "request_bodies_bytes_max",
            "must be at least twice request_bytes_max, to hold one request of each of two callers",
        );
        let filter = tracing_subscriber::EnvFilter::builder().parse(&self.log);
        require(filter.is_ok(), "log", "must be error, warn, info, debug, trace, or target=level directives");
        mistakes
    }

    /// What is wrong with the settings of TLS by themselves. What is in the files is the server's to read.
    fn tls_mistakes(&self) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        let mut need = |name: &'static str, of: &Option<PathBuf>, other: &str, is_there: bool| {
            if of.is_some() && !is_there {
                let value = self.show(name).unwrap_or_default();
                mistakes.push(Mistake::new(name, value, &format!("has no use without {other}; set both or neither")));
            }
        };
        let (cert, key) = (&self.tls_cert_file, &self.tls_key_file);
        need("tls_cert_file", cert, "tls_key_file", key.is_some());
        need("tls_key_file", key, "tls_cert_file", cert.is_some());
        let (cert, key) = (&self.control_tls_cert_file, &self.control_tls_key_file);
        need("control_tls_cert_file", cert, "control_tls_key_file", key.is_some());
        need("control_tls_key_file", key, "control_tls_cert_file", cert.is_some());
        need("control_tls_cert_file", cert, "control_listen", self.control_listen.is_some());
        let client_ca = &self.control_tls_client_ca_file;
        if client_ca.is_some() && cert.is_none() {
            let value = self.show("control_tls_client_ca_file").unwrap_or_default();
            let expected = "has no use without control_tls_cert_file: callers show their certificates over TLS only";
            mistakes.push(Mistake::new("control_tls_client_ca_file", value, expected));
        }
        mistakes
    }

    /// Safe by default: what is reachable from other machines must be guarded, or be declared open.
    fn trust_mistakes(&self, token_check: Check, push_check: Check) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        if token_check == Check::Stock
            && !self.listen.is_loopback()
            && !self.checks_tokens()
            && !self.insecure_token_is_user
        {
            mistakes.push(Mistake::new(
                "listen",
                self.listen.to_string(),
                "is not a loopback address, and without a token check any client could be any user; set tokens_file, \
                 jwt_keys_file, jwt_jwks_url or token_callback_url, or set insecure_token_is_user = true if that is meant",
            ));
        }
        let control = self.control_address();
        if push_check == Check::Stock
            && !control.is_loopback()
            && self.push_keys_file.is_none()
            && !self.push_jwt().is_on()
            && self.control_tls_client_ca_file.is_none()
            && !self.insecure_open_push
        {
            mistakes.push(Mistake::new(
                if self.control_listen.is_some() { "control_listen" } else { "listen" },
                control.to_string(),
                "is not a loopback address, and without push authorization anyone could push; set push_keys_file, \
                 push_jwt_keys_file or push_jwt_jwks_url or, for control_listen, control_tls_client_ca_file, or set insecure_open_push = true if that is meant",
            ));
        }
        mistakes
    }
}

/// What a browser takes as the address of a WebSocket, and no more.
fn is_ws_url(text: &str) -> bool {
    let Ok(url) = text.parse::<http::Uri>() else { return false };
    let is_ws = ["ws", "wss"].iter().any(|ws| url.scheme_str().is_some_and(|scheme| scheme.eq_ignore_ascii_case(ws)));
    is_ws && url.host().is_some_and(|host| !host.is_empty()) && !text.contains(['#', '@'])
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{Networks, NonEmpty};
    use super::*;

    pub(in crate::config) fn mistaken(change: impl FnOnce(&mut Config)) -> Vec<String> {
        let mut config = Config::default();
        change(&mut config);
        match config.validate() {
            Ok(()) => Vec::new(),
            Err(invalid) => invalid.mistakes().iter().map(|mistake| mistake.name().to_owned()).collect(),
        }
    }

    #[test]
    fn the_defaults_are_valid() {
        assert!(mistaken(|_| ()).is_empty());
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let names = mistaken(|config| {
            config.ws_path = "ws".to_owned();
            config.push_path = "/metrics".to_owned();
            config.bind_timeout = Duration::ZERO;
            config.outbox_bytes_max = config.message_bytes_max;
            config.log = "loud=very".to_owned();
        });
        assert_eq!(names, ["ws_path", "push_path", "bind_timeout", "outbox_bytes_max", "log"]);
    }

    #[test]
    fn a_path_that_serves_something_else_is_a_mistake() {
        for taken in TAKEN_PATHS {
            assert_eq!(mistaken(|config| config.ws_path = taken.to_owned()), ["ws_path"], "{taken}");
            assert_eq!(mistaken(|config| config.push_path = taken.to_owned()), ["push_path"], "{taken}");
        }
        assert!(mistaken(|config| config.ws_path = "/pushgate".to_owned()).is_empty());
    }

    #[test]
    fn a_public_ws_url_is_the_address_of_a_websocket() {
        let with = |url: &str| mistaken(|config| config.public_ws_url = Some(url.to_owned()));
        for good in
            ["wss://push.example.com/ws", "ws://127.0.0.1:8080/a/ws?b=c", "wss://[::1]", "WSS://push.example.com/ws"]
        {
            assert!(with(good).is_empty(), "{good}");
        }
        for bad in ["push.example.com", "/ws", "https://push.example.com/ws", "wss://", "wss:///ws", "wss://a b/ws"] {
            assert_eq!(with(bad), ["public_ws_url"], "{bad}");
        }
        for bad in ["wss://push.example.com/ws#there", "wss://ann:secret@push.example.com/ws", "wss://:443/ws"] {
            assert_eq!(with(bad), ["public_ws_url"], "{bad}");
        }
    }

    #[test]
    fn the_proxy_protocol_is_taken_from_somebody_or_not_at_all() {
        assert_eq!(mistaken(|config| config.proxy_protocol = true), ["proxy_protocol"]);
        let trusted: Networks = "10.0.0.0/8".parse().expect("valid");
        assert!(mistaken(|config| (config.proxy_protocol, config.proxies_trusted) = (true, trusted)).is_empty());
    }

    #[test]
    fn no_two_routes_have_one_path_and_the_mistake_names_both() {
        let told = |ws_path: &str, push_path: &str| {
            let config = Config { ws_path: ws_path.to_owned(), push_path: push_path.to_owned(), ..Config::default() };
            config.validate().err().map(|invalid| invalid.to_string()).unwrap_or_default()
        };
        for (ws_path, push_path) in [("/push/batch", "/push"), ("/x", "/x"), ("/x/batch", "/x")] {
            let text = told(ws_path, push_path);
            assert!(text.contains("push_path = ") && text.contains("the path of ws_path too"), "{text}");
            assert!(text.contains(ws_path), "{text}");
        }
        for grpc in ["/pushgate.v1.PushService/Push", "/grpc.health.v1.Health/Check"] {
            let text = told(grpc, "/push");
            assert!(text.contains(&format!("ws_path = \"{grpc}\": {grpc} would be the path of a gRPC")), "{text}");
        }
        assert_eq!(told("/batch", "/push"), "");
    }

    #[test]
    fn a_number_that_would_exhaust_the_machine_or_a_library_is_a_mistake() {
        assert_eq!(mistaken(|config| config.push_concurrency_max = usize::MAX), ["push_concurrency_max"]);
        assert_eq!(mistaken(|config| config.waiting_pushes_max = usize::MAX), ["waiting_pushes_max"]);
        assert_eq!(mistaken(|config| config.client_frame_bytes_max = 1 << 62), ["client_frame_bytes_max"]);
        assert_eq!(mistaken(|config| config.connections_max = 0), ["connections_max"]);
    }

    #[test]
    fn what_a_client_may_send_and_have_queued_is_limited_and_not_to_nothing() {
        assert_eq!(mistaken(|config| config.client_pings_per_second_max = 0), ["client_pings_per_second_max"]);
        assert!(mistaken(|config| config.client_pings_per_second_max = 1).is_empty());
        for (fragments, is_valid) in [(0, false), (1, true), (1 << 24, true), ((1 << 24) + 1, false)] {
            let mistakes = mistaken(|config| config.client_message_fragments_max = fragments);
            assert_eq!(mistakes.is_empty(), is_valid, "{fragments}");
        }
        let outbox = Config::default().outbox_bytes_max;
        for (total, is_valid) in [(outbox - 1, false), (outbox, true), (1 << 44, true), ((1 << 44) + 1, false)] {
            let mistakes = mistaken(|config| config.queued_total_bytes_max = total);
            assert_eq!(mistakes.is_empty(), is_valid, "{total}");
        }
        for (timeout, is_valid) in [(0, false), (1, true), (86_400_000, true), (86_400_001, false)] {
            let mistakes = mistaken(|config| config.client_message_timeout = Duration::from_millis(timeout));
            assert_eq!(mistakes.is_empty(), is_valid, "{timeout} ms");
        }
    }

    #[test]
    fn a_shutdown_may_take_a_day_and_no_longer() {
        let day = Duration::from_secs(24 * 3600);
        assert!(mistaken(|config| (config.shutdown_delay, config.shutdown_grace) = (day, day)).is_empty());
        let longer = day + Duration::from_nanos(1);
        assert_eq!(mistaken(|config| config.shutdown_delay = longer), ["shutdown_delay"]);
        assert_eq!(mistaken(|config| config.drain_period = longer), ["drain_period"]);
    }

    #[test]
    fn a_connection_may_stay_open_without_end_or_for_a_second_to_a_month() {
        let (second, month) = (Duration::from_secs(1), Duration::from_secs(30 * 86_400));
        for age in [Duration::ZERO, second, month] {
            assert!(mistaken(|config| config.connection_age_max = age).is_empty(), "{age:?}");
        }
        for age in [second - Duration::from_nanos(1), month + Duration::from_nanos(1)] {
            assert_eq!(mistaken(|config| config.connection_age_max = age), ["connection_age_max"], "{age:?}");
        }
    }

    #[test]
    fn a_revocation_is_kept_for_a_second_at_least_and_a_year_at_most() {
        let year = Duration::from_secs(366 * 86_400);
        for (age, is_valid) in [
            (Duration::from_millis(999), false),
            (Duration::from_secs(1), true),
            (year, true),
            (year + Duration::from_nanos(1), false),
        ] {
            assert_eq!(mistaken(|config| config.revocation_age = age).is_empty(), is_valid, "{age:?}");
        }
        assert_eq!(mistaken(|config| config.revocations_max = 0), ["revocations_max"]);
        assert!(mistaken(|config| config.revocations_max = 1).is_empty());
    }

    #[test]
    fn an_open_address_must_be_guarded_or_declared_open() {
        let open = || Address::from(([0, 0, 0, 0], 12345));
        let named = "tokens_file";
        assert_eq!(mistaken(|config| config.listen = open()), ["listen", "listen"]);
        assert_eq!(mistaken(|config| (config.listen, config.tokens_file) = (open(), Some(named.into()))), ["listen"]);
        assert_eq!(mistaken(|config| (config.listen, config.jwt_keys_file) = (open(), Some(named.into()))), ["listen"]);
        let provider = || NonEmpty::new("https://id.example.com/jwks.json");
        let callers = mistaken(|config| (config.control_listen, config.push_jwt_jwks_url) = (Some(open()), provider()));
        assert!(callers.is_empty(), "{callers:?}");
        assert_eq!(mistaken(|config| (config.listen, config.jwt_jwks_url) = (open(), provider())), ["listen"]);
        assert_eq!(
            mistaken(|config| (config.listen, config.push_keys_file) = (open(), Some(named.into()))),
            ["listen"]
        );
        assert_eq!(mistaken(|config| config.control_listen = Some(open())), ["control_listen"]);
        assert!(
            mistaken(|config| {
                config.listen = open();
                config.insecure_open_push = true;
                config.insecure_token_is_user = true;
            })
            .is_empty()
        );
        let private = Address::from(([127, 0, 0, 1], 12346));
        assert!(
            mistaken(|config| {
                config.listen = open();
                config.control_listen = Some(private);
                config.tokens_file = Some(named.into());
            })
            .is_empty(),
            "push doors that only this machine reaches need no keys"
        );
        assert!(
            mistaken(|config| {
                config.control_listen = Some(open());
                config.control_tls_cert_file = Some(named.into());
                config.control_tls_key_file = Some(named.into());
                config.control_tls_client_ca_file = Some(named.into());
            })
            .is_empty(),
            "those of callers with a certificate need none either"
        );
    }

    #[test]
    fn a_certificate_needs_its_key_and_an_address() {
        let file = || Some("file.pem".into());
        assert_eq!(mistaken(|config| config.tls_cert_file = file()), ["tls_cert_file"]);
        assert_eq!(mistaken(|config| config.tls_key_file = file()), ["tls_key_file"]);
        assert!(mistaken(|config| (config.tls_cert_file, config.tls_key_file) = (file(), file())).is_empty());
        assert!(mistaken(|config| config.tls_cert_folder = file()).is_empty());
        let control = |config: &mut Config| {
            config.control_tls_cert_file = file();
            config.control_tls_key_file = file();
        };
        assert_eq!(mistaken(control), ["control_tls_cert_file"], "there is no control_listen");
        let with_address = |config: &mut Config| {
            control(config);
            config.control_listen = Some(([127, 0, 0, 1], 1).into());
        };
        assert!(mistaken(with_address).is_empty());
        let names = mistaken(|config| {
            with_address(config);
            config.control_tls_key_file = None;
            config.tls_key_file = file();
        });
        assert_eq!(names, ["tls_key_file", "control_tls_cert_file"]);
        assert_eq!(mistaken(|config| config.control_tls_client_ca_file = file()), ["control_tls_client_ca_file"]);
    }

    #[test]
    fn a_socket_has_a_path_that_the_system_has_room_for() {
        let path = |bytes: usize| Address::Unix(format!("/{}", "x".repeat(bytes - 1)).into());
        assert!(mistaken(|config| config.listen = path(107)).is_empty());
        assert_eq!(mistaken(|config| config.listen = path(108)), ["listen"]);
        assert_eq!(mistaken(|config| config.control_listen = Some(path(108))), ["control_listen"]);
    }

    #[test]
    fn the_refusal_names_both_settings_that_would_change_it() {
        let config = Config { listen: ([0, 0, 0, 0], 1).into(), ..Config::default() };
        let text = config.validate().expect_err("open").to_string();
        for setting in ["tokens_file", "insecure_token_is_user", "push_keys_file", "insecure_open_push"] {
            assert!(text.contains(setting), "{text}");
        }
    }
}

//! Every setting and limit, as documented plain data: one table gives the fields, the file keys, the environment
//! variables and the printed reference.

mod address;
mod callback;
mod jwt;
mod memory;
mod networks;
mod origins;
mod source;
mod value;

use std::path::PathBuf;
use std::time::Duration;

pub use address::Address;
pub(crate) use address::UNIX_PEER;
pub(crate) use callback::Callback;
pub use callback::HeaderNames;
pub(crate) use jwt::JwtSettings;
pub use jwt::{JwtAlgorithm, JwtAlgorithms, NonEmpty, OneOf};
pub use networks::Networks;
pub(crate) use origins::Origin;
pub use origins::Origins;
pub use source::{Invalid, Loaded, Mistake, Source};
pub use value::{EventPolicies, LogFormat, Page, UserConnectionsPolicy};

use crate::message::{Event, SlowReaderPolicy};
use value::Value;

/// One row of the table of settings.
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    pub(crate) doc: &'static str,
}

/// Whether the setting is a number of bytes, which may be written with a unit.
fn is_size(name: &str) -> bool {
    name.ends_with("_bytes_max")
}

macro_rules! settings {
    ($( $(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:expr; )+) => {
        /// Every setting of a gateway. `Config::default()` is a gateway for this machine only, with limits that suit a
        /// server of a few cores.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Config {
            $( $(#[doc = $doc])+ pub $name: $type, )+
        }

        impl Default for Config {
            fn default() -> Self {
                Self { $( $name: $default, )+ }
            }
        }

        /// All settings, in the order in which they are explained.
        pub(crate) const SETTINGS: &[Setting] = &[
            $( Setting { name: stringify!($name), doc: concat!($($doc, "\n"),+) }, )+
        ];

        impl Config {
            /// Sets one setting from what a source says. `None` when there is no such setting; an error says what the
            /// value must be.
            fn set(&mut self, name: &str, raw: &toml::Value) -> Option<Result<(), String>> {
                let sized = if is_size(name) { value::size(raw) } else { Ok(raw.clone()) };
                match name {
                    $( stringify!($name) => Some(
                        sized.and_then(|raw| <$type>::from_toml(&raw)).map(|value| self.$name = value),
                    ), )+
                    _ => None,
                }
            }

            /// One setting as TOML; `None` when it is not set, or there is no such setting.
            pub(crate) fn show(&self, name: &str) -> Option<String> {
                let shown = match name {
                    $( stringify!($name) => self.$name.to_toml(), )+
                    _ => None,
                };
                if is_size(name) { shown.map(value::show_size) } else { shown }
            }
        }
    };
}

settings! {
    /// The address that clients connect to: `127.0.0.1:12345`, `localhost:12345` for the same, `[::1]:12345`, `:12345`
    /// for all interfaces, or `unix:/path`. A Unix socket accepts the gateway's user and group, and all its peers have
    /// the address 127.0.0.1. This address serves everything unless `control_listen` is set.
    listen: Address = Address::from(([127, 0, 0, 1], 12345));
    /// A second, private address. When it is set, `push_path`, gRPC, `/metrics`, `/healthz`, `/readyz` and the page
    /// move there, and `listen` serves only `ws_path` and the client module.
    control_listen: Option<Address> = None;
    /// Serves `/healthz` and `/readyz` on `listen` too when `control_listen` is set. Use it for a balancer that probes
    /// the port that it balances.
    listen_health: bool = false;
    /// The path of the WebSocket door.
    ws_path: String = "/ws".to_owned();
    /// The path of the JSON push door.
    push_path: String = "/push".to_owned();
    /// The page at `/` to try the gateway from: "on", "off" or "auto". "auto" is on while the address that serves it is
    /// a loopback address.
    page: Page = Page::Auto;
    /// Where browsers reach the WebSocket door, for the page: a ws:// or wss:// address with its path, such as
    /// "wss://push.example.com/ws". Without it, the page uses the address that it came from. With `control_listen`, it
    /// uses the host of that address and the port of `listen`.
    public_ws_url: Option<String> = None;
    /// The origins of web pages that may open a WebSocket: exact ones such as `https://app.example.com`, or
    /// `https://*.example.com` or `*.example.com` for all subdomains, separated by commas. `*` allows all, `null` allows
    /// pages without an origin, such as local files. A page of another origin is answered 403. A request without an
    /// `Origin` header is not from a web page, and is not affected. Without this setting, all origins are allowed while
    /// `listen` is a loopback address; otherwise only pages of the host that the request is for are, on any port.
    origins_allowed: Option<Origins> = None;
    /// Takes a token from the query of the URL too, as in `/ws?token=...`, for clients that can set neither a header nor
    /// a subprotocol. Proxies, browsers and other programs write URLs into their logs and histories, and whoever reads
    /// one of them has the token.
    token_in_url: bool = false;
    /// The proxies before the gateway, as addresses or networks such as "10.0.0.0/8, 2001:db8::/32", separated by commas.
    /// The client of a request that comes from one of them is the rightmost address in its `Forwarded` or
    /// `X-Forwarded-For` header that is not one of them too. The limits per address, the log and the token check then
    /// see that address. From others, these headers are ignored.
    proxies_trusted: Networks = Networks::default();
    /// Expects the header of the PROXY protocol, version 1 or 2, at the begin of each connection to `listen`, within
    /// `http_header_timeout`. A connection without one, or from an address that is not in `proxies_trusted`, is closed.
    proxy_protocol: bool = false;

    /// A PEM file of the certificate for `listen`, followed by those between it and its CA. With it, `listen` speaks TLS
    /// and nothing else. SIGHUP reads it again, and so does a change of the file within a few seconds.
    tls_cert_file: Option<PathBuf> = None;
    /// A PEM file of the private key of `tls_cert_file`, without a passphrase.
    tls_key_file: Option<PathBuf> = None;
    /// A folder of certificates for `listen`, each as `NAME.crt` with its key as `NAME.key`. A client gets the one that
    /// is made out to the host that it asks for. A client that asks for another host, or for none, gets that of
    /// `tls_cert_file` or, without it, the first by file name.
    tls_cert_folder: Option<PathBuf> = None;
    /// The same as `tls_cert_file`, for `control_listen`. Without it, `control_listen` does not speak TLS.
    control_tls_cert_file: Option<PathBuf> = None;
    /// A PEM file of the private key of `control_tls_cert_file`, without a passphrase.
    control_tls_key_file: Option<PathBuf> = None;
    /// A PEM file of CA certificates. With it, whoever connects to `control_listen` must present a certificate of one of
    /// them. The names in that certificate can be allowed in `push_keys_file`. Without `push_keys_file`, each such caller
    /// may push to everyone.
    control_tls_client_ca_file: Option<PathBuf> = None;

    /// A TOML file of `token = "user"` lines. Without it, the settings for JWTs and `token_callback_url`, the token is the
    /// user. SIGHUP reads it again.
    tokens_file: Option<PathBuf> = None;
    /// A file of keys, with which tokens are checked as JWTs: public keys in PEM, or a JWKS document, or, if
    /// `jwt_algorithms` names HMAC, the secret. SIGHUP reads it again. A token must have an `exp`. When that is past,
    /// the connection is closed with 4410, unless the client has sent a newer token before.
    jwt_keys_file: Option<PathBuf> = None;
    /// The https address of a JWKS document, as identity providers publish them, instead of `jwt_keys_file`. It may be
    /// http on a loopback address. It is fetched at the start, again before it is out of date, and at once for a token
    /// with an unknown `kid`, at most every 10 seconds. While it cannot be fetched, the last good one stays in use.
    jwt_jwks_url: Option<NonEmpty> = None;
    /// The algorithms that may sign a JWT. By default all that need no secret here. For HMAC, set "HS256", "HS384",
    /// "HS512" or several of them. They cannot be mixed with others.
    jwt_algorithms: JwtAlgorithms = JwtAlgorithms::default();
    /// The issuer that a JWT must have in `iss`, or several, separated by commas, of which it must have one. Without it,
    /// `iss` is not checked.
    jwt_issuer: Option<OneOf> = None;
    /// The audience that a JWT must have in `aud`, or several, separated by commas, of which it must have one. Without
    /// it, a JWT that has an audience is refused, because it is meant for somebody else (RFC 7519, section 4.1.3).
    jwt_audience: Option<OneOf> = None;
    /// The claim of a JWT that holds the user id: a text, or a whole number.
    jwt_user_claim: String = "sub".to_owned();
    /// The claim of a JWT that holds the events that the client may bind: a list of patterns, or a text of patterns
    /// separated by spaces. In a pattern, `*` stands for any characters and `?` for one. A JWT without the claim may
    /// bind no event. Without this setting, every JWT may bind every event.
    jwt_events_claim: Option<NonEmpty> = None;
    /// How far the clocks of the gateway and of the issuer may be apart. A JWT counts as valid for this long before its
    /// `nbf` and after its `exp`.
    jwt_leeway: Duration = Duration::from_secs(30);
    /// How long a revocation is kept that does not say when its tokens expire. At least as long as any token is good, or
    /// a revoked one would be taken again at the end.
    revocation_age: Duration = Duration::from_secs(86_400);
    /// Revocations of tokens and users that are kept at one time. A further one is refused with RESOURCE_EXHAUSTED, and
    /// none is forgotten before its time. Each takes about a hundred bytes.
    revocations_max: usize = 100_000;
    /// The address of a service that checks tokens: `https://` or `http://` for a POST of JSON, or `grpcs://` or `grpc://`
    /// with a host and port for `pushgate.v1.TokenCheckService`. Without TLS, whoever is on the way can read tokens and
    /// forge answers.
    token_callback_url: Option<NonEmpty> = None;
    /// A PEM file of the CA certificates that `token_callback_url` is trusted by, instead of those of the system. SIGHUP
    /// reads it again.
    token_callback_ca_file: Option<PathBuf> = None;
    /// The headers of a client's upgrade that the service is told, such as "cookie, x-tenant".
    token_callback_headers: Option<HeaderNames> = None;
    /// How long the service may take to answer, the wait for `token_callback_concurrency_max` included. After it, the
    /// client is closed with 1013. At most `check_timeout`.
    token_callback_timeout: Duration = Duration::from_secs(2);
    /// How long an answer is kept, 0 for not at all, but never beyond the expiry of the token. A token that the service
    /// withdraws stays good here for as long. Refusals are kept for at most 5 seconds. SIGHUP forgets all answers.
    token_callback_cache_age: Duration = Duration::from_secs(10);
    /// Answers that are kept, of grants and of refusals each. Each takes about 200 bytes, and those that are used
    /// least make room.
    token_callback_cache_entries_max: usize = 10_000;
    /// Questions to the service that are on their way at one time. Further ones wait within `token_callback_timeout`.
    token_callback_concurrency_max: usize = 64;
    /// A TOML file of push API keys. Without it, everyone who reaches the push doors may push. SIGHUP reads it again.
    push_keys_file: Option<PathBuf> = None;
    /// A file of keys, with which callers' tokens are checked as JWTs, in the formats of `jwt_keys_file`. SIGHUP reads it
    /// again. A caller shows its token like a key. What does not look like a JWT is checked with `push_keys_file`, which
    /// may be set as well. A request is checked when it begins: a PushStream may go on after the token's `exp`.
    push_jwt_keys_file: Option<PathBuf> = None;
    /// The https address of a JWKS document for callers' tokens, instead of `push_jwt_keys_file`. It is fetched like that
    /// of `jwt_jwks_url`.
    push_jwt_jwks_url: Option<NonEmpty> = None;
    /// The algorithms that may sign a caller's JWT, as in `jwt_algorithms`.
    push_jwt_algorithms: JwtAlgorithms = JwtAlgorithms::default();
    /// The issuer that a caller's JWT must have in `iss`, or several, separated by commas. Without it, `iss` is not checked.
    push_jwt_issuer: Option<OneOf> = None;
    /// The audience that a caller's JWT must have in `aud`, or several, separated by commas. Without it, a JWT that has an
    /// audience is refused.
    push_jwt_audience: Option<OneOf> = None;
    /// The claim of a caller's JWT that holds its name: a text, or a whole number. The name is in logs, and callers of one
    /// name share what one caller may use up.
    push_jwt_name_claim: String = "sub".to_owned();
    /// The claim of a caller's JWT that holds the users whom it may push to: a list of patterns, or a text of patterns
    /// separated by spaces. A JWT without the claim may push to nobody. Without this setting, every JWT may push to
    /// everybody.
    push_jwt_users_claim: Option<NonEmpty> = None;
    /// The same for the events that it may push.
    push_jwt_events_claim: Option<NonEmpty> = None;
    /// The same for the methods that it may call, by their names: "push", "batch", "stream", "broadcast" and "drop".
    push_jwt_methods_claim: Option<NonEmpty> = None;
    /// How far the clocks of the gateway and of the issuer of callers' JWTs may be apart.
    push_jwt_leeway: Duration = Duration::from_secs(30);
    /// Allows `listen` to be something other than a loopback address without `tokens_file`, `jwt_keys_file`, `jwt_jwks_url`
    /// or `token_callback_url`. Any client may then be any user.
    insecure_token_is_user: bool = false;
    /// Allows the push doors to be on something other than a loopback address without `push_keys_file`, `push_jwt_keys_file`
    /// or `push_jwt_jwks_url`. Anyone may then push.
    insecure_open_push: bool = false;
    /// Serves `/metrics` without an API key. Otherwise it asks for one if pushes need one. Any key is enough, whatever it
    /// may push.
    open_metrics: bool = false;
    /// Serves gRPC server reflection and the page at `/` without an API key, as `open_metrics` does for `/metrics`.
    open_reflection: bool = false;

    /// What to log: error, warn, info, debug, trace, or directives such as "info,pushgate::connection=debug".
    log: String = "info".to_owned();
    /// The format of the log: "text" for people, or "json" for machines, with one object a line.
    log_format: LogFormat = LogFormat::Text;

    /// WebSocket connections in all. A further upgrade is answered 503. A quiet connection costs a file and a few KiB, with
    /// TLS about 9. A busy one costs up to an outbox (`outbox_bytes_max`), two of the client's messages
    /// (`client_message_bytes_max`), two TLS records and a few control frames. A session adds the JSON of what it is being
    /// sent, and what is kept for it (`journal_bytes_max`). Lowered at start to what the open-file limit allows.
    connections_max: usize = 100_000;
    /// Connections of one user, 0 for no limit. `connections_per_user_policy` says what happens to a further one. The
    /// default is far above any person's devices, and low enough that one stolen token cannot use up `connections_max`.
    connections_per_user_max: usize = 10_000;
    /// What happens when a user who has `connections_per_user_max` connections binds one more. With "reject_new", the new
    /// one is closed with 4429. With "close_oldest", the one that was opened first is closed with 4409, after what is
    /// queued for it was written, and its session ends. Each such bind goes through all of the user's connections, so
    /// use it with a limit of a few.
    connections_per_user_policy: UserConnectionsPolicy = UserConnectionsPolicy::RejectNew;
    /// Connections from one address, 0 for no limit. A further upgrade is answered 429. Off by default, because behind
    /// a proxy that is not in `proxies_trusted` all clients share the proxy's address. An IPv6 address counts as its
    /// network of 64 bits, here and in the other limits of clients' addresses.
    connections_per_address_max: usize = 0;
    /// Upgrades from one address a second, 0 for no limit. Ten seconds' worth may come at once. A further one is answered
    /// 429. Off by default, because behind a proxy that is not in `proxies_trusted` all clients share the proxy's
    /// address.
    upgrades_per_address_per_second_max: u32 = 0;
    /// Events that one connection may bind. A further bind closes the connection with 4429.
    events_per_connection_max: usize = 128;
    /// TCP connections on `listen` that speak HTTP. These are clients that have not upgraded yet and, without
    /// `control_listen`, callers and scrapers. When all places are taken, a new connection takes one from the address
    /// that has the most. It replaces a connection that never made a request or, if there is none, the one that has
    /// been without a request for longest. If all connections that the gateway looked at have a request in hand, the
    /// new one is answered 503 and closed at once, with TLS without an answer.
    http_connections_max: usize = 4096;
    /// TCP connections on `listen` that speak HTTP, from one address, 0 for no limit. A further one is answered 429 and
    /// closed at once, with TLS without an answer. Off by default, because behind a proxy all clients share the proxy's address. Connections of `proxies_trusted`
    /// themselves are not limited, and with `proxy_protocol` those of the clients behind them are.
    http_connections_per_address_max: usize = 0;
    /// TCP connections on `control_listen` that speak HTTP, with the same rule. Connections to one address take no
    /// places from the other.
    control_http_connections_max: usize = 1024;
    /// Bytes that a connection buffers for the head of a request, before the client has shown a token. A head that does
    /// not fit is answered 431. Bytes beyond the limit may still fit if one read brings them. The default leaves room
    /// for browsers that send many cookies.
    http_head_bytes_max: usize = 32 * 1024;

    /// Bytes of one connection that the kernel holds unsent or unacknowledged (`SO_SNDBUF`). Linux counts its own
    /// overhead on top, up to as much again. Without this limit, Linux lets each client that does not read pile up 4
    /// MiB, outside of `outbox_bytes_max`. Further bytes wait in the client's own outbox. The setting also bounds the
    /// speed of one client: at most this many bytes in a round trip. 0 leaves it to the kernel.
    socket_send_bytes_max: usize = 128 * 1024;
    /// Bytes of one connection that the kernel takes before it has sent them (`TCP_NOTSENT_LOWAT`). Further bytes wait
    /// in the outbox. There a message can still expire, be overtaken or be superseded; it does not count as written,
    /// and takes the room of later messages to the same client.
    socket_unsent_bytes_max: usize = 32 * 1024;
    /// How long the kernel waits for a peer to acknowledge what was sent, or to take more (`TCP_USER_TIMEOUT`). After
    /// it, the kernel ends the connection. Bytes on their way are lost, unless a session's client comes back for them.
    /// It also bounds how long the kernel keeps bytes for a peer that is gone after the gateway has closed the
    /// connection.
    socket_timeout: Duration = Duration::from_secs(30);

    /// Bytes of one message from a client. A larger one closes the connection with 1009. The default is twice what the
    /// longest token needs.
    client_message_bytes_max: usize = 32 * 1024;
    /// Bytes of one frame from a client. A larger one closes the connection with 1009. A frame's header claims a length
    /// before any byte of the frame has come, so this also bounds the memory that a claim can reserve.
    client_frame_bytes_max: usize = 32 * 1024;
    /// Frames from one client a second, whatever their content. Ten seconds' worth may come at once. Each message
    /// written to the client allows one more, for its acknowledgement. A client that sends more is closed with 1008.
    /// Without this limit, one client's pings, empty fragments or refused binds could keep a core busy.
    client_frames_per_second_max: u32 = 100;
    /// WebSocket pings from one client a second, which count as frames too. Ten seconds' worth may come at once. A client
    /// that sends more is closed with 1008. Each ping is answered, so this bounds what a client has the gateway write. A
    /// client that looks after its connection pings every few seconds at most.
    client_pings_per_second_max: u32 = 10;
    /// Fragments of one message from a client. A message in more of them closes the connection with 1008. Browsers send a
    /// message in one, and libraries that cut messages make pieces of some KiB, of which the longest message has a few.
    client_message_fragments_max: u32 = 128;
    /// How long a client may take from the begin of a message, or of a ping or pong, to its end. After it, the connection
    /// is closed with 1008. A quiet connection has no buffer for what it sends, and one with an unfinished message does.
    /// The default lets the longest message of the default `client_message_bytes_max` come at 3 KiB a second.
    client_message_timeout: Duration = Duration::from_secs(10);
    /// Bytes of one pushed message. A larger one is answered 413 or INVALID_ARGUMENT, and nobody gets it.
    message_bytes_max: usize = 256 * 1024;
    /// Bytes of one request at a push door, or of one message of a PushStream. A larger one is answered 413 or
    /// RESOURCE_EXHAUSTED, which ends a PushStream.
    request_bytes_max: usize = 4 * 1024 * 1024;
    /// Bytes of requests whose bodies come in several pieces, while they come and are worked on, and of PushStream
    /// messages over 16 KiB while they come. A request that would exceed it is answered 503 or RESOURCE_EXHAUSTED,
    /// which ends a PushStream. One caller may use at most half. Callers are told apart by their key, or by their
    /// address if they showed none. Must be at least twice `request_bytes_max`. A body or message that is there at
    /// once, as most are, does not count.
    request_bodies_bytes_max: usize = 64 * 1024 * 1024;
    /// Pushes in one PushBatch. A larger batch is refused as a whole with INVALID_ARGUMENT or 400.
    batch_pushes_max: usize = 1000;
    /// Requests at the push doors that are worked on at one time, in the push check or being pushed. A further one is
    /// answered 503 or RESOURCE_EXHAUSTED at once. A request whose body is still coming, or that waits for more than
    /// acceptance, does not count.
    push_concurrency_max: usize = 1024;
    /// Calls open at one time on one HTTP/2 connection. Further calls wait on the caller's side. A unary push that
    /// waits for more than acceptance holds a call open while it waits. At most 32 of the calls may be for what needs
    /// no key, such as `/metrics`. A further one of these is answered 503 or RESOURCE_EXHAUSTED.
    http2_streams_max: usize = 1000;
    /// Pushes that wait for more than acceptance at one time. A further one is answered 503 or RESOURCE_EXHAUSTED at
    /// once. One caller may have at most half of them. Callers are told apart by their key, or by their address if they
    /// showed none. Each push keeps a few dozen bytes for every connection it matched.
    waiting_pushes_max: usize = 10_000;
    /// How long a push with an idempotency key is remembered. Within it, the same push again is answered with the
    /// outcome of the first, and another push under the same key is refused. After it, a caller that repeats the push
    /// sends it a second time.
    idempotency_window: Duration = Duration::from_secs(300);
    /// Pushes with an idempotency key that are remembered. For a further one, the oldest is forgotten early, whoever
    /// made it, and `pushgate_idempotency_keys_forgotten_total` counts it. A push that is repeated after that is sent a
    /// second time.
    idempotency_keys_max: usize = 100_000;
    /// Bytes of memory for the remembered pushes: about a thousand for each push, and a few dozen for every connection
    /// it matched. When they need more, the oldest are forgotten early in the same way, but never the latest.
    idempotency_bytes_max: usize = 128 * 1024 * 1024;
    /// What happens when a message finds the outbox full: "disconnect", "drop_newest", "drop_oldest" or "conflate". A
    /// push may ask for a different policy.
    slow_reader_policy: SlowReaderPolicy = SlowReaderPolicy::Disconnect;
    /// The policy for events that match a pattern, such as "price.*=conflate, log.*=drop_oldest". It takes precedence
    /// over `slow_reader_policy`. The first pattern that matches applies.
    slow_reader_policy_by_event: EventPolicies = EventPolicies::default();
    /// Messages queued for one connection. `slow_reader_policy` says what happens to a further one.
    outbox_messages_max: usize = 4096;
    /// Bytes queued for one connection. `slow_reader_policy` says what happens to more. A reader this far behind is not
    /// reading. Must hold at least one message of `message_bytes_max`.
    outbox_bytes_max: usize = 1024 * 1024;
    /// Bytes queued for all connections and kept for all sessions and users together. A message counts with 256 bytes
    /// beside its own, and for each of its receivers, though they share it. Up to 4 KiB of each receiver's queue are not
    /// counted. Past this limit, whoever has the most makes room: the connection with the fullest queue by the slow-reader
    /// policy of what it has queued, or the user for whom the most is kept by the oldest of it. A connection whose messages
    /// are all being written is closed with 4429. One that is closed may keep the rest of a message that it has begun for
    /// `close_timeout`. So readers that keep up lose nothing. Must hold at least one outbox.
    queued_total_bytes_max: usize = 1024 * 1024 * 1024;

    /// How long a session without a connection may be away, and how long a message is kept: one that a session has not
    /// acknowledged, or one with a time to live that nobody was bound to get. After it, the message is lost, and a session
    /// that comes back is told to begin anew. Long enough to survive a lift, a tunnel or a change of networks.
    journal_age: Duration = Duration::from_secs(300);
    /// Messages kept for one user, over all of its sessions. Past this limit, the session of the user that keeps the most
    /// gives up its oldest message. If its client does not have that message, it is told of a gap. If its client has it,
    /// only the content goes, and a later acknowledgement still counts.
    journal_messages_max: usize = 1024;
    /// Bytes kept for one user, about as many as of memory: a message as it was pushed, as JSON once it was sent to a
    /// session, and about 300 beside them. Past this limit, room is made as for `journal_messages_max`.
    journal_bytes_max: usize = 2 * 1024 * 1024;
    /// The same for all users together. Past this limit, the user who keeps the most gives up the oldest, so that no user
    /// loses more than a fair share to others.
    journal_total_bytes_max: usize = 256 * 1024 * 1024;
    /// Sessions without a connection that may come back. Past this limit, the one that has been away for longest ends,
    /// whosever it is: its messages are lost, and its client is told so when it comes back. Each costs about a KiB, and
    /// what is kept for it.
    sessions_away_max: usize = 100_000;
    /// The same for one user. For a further one, the user's own session that is away for longest is given up.
    sessions_away_per_user_max: usize = 16;
    /// The longest delay that a client of the session protocol is told to wait before it comes back, at a shutdown or at
    /// `connection_age_max`. Each client gets a random delay of its own, between zero and this.
    reconnect_spread: Duration = Duration::from_secs(10);

    /// How long a WebSocket may stay open, 0 for no limit. A connection is closed with 1012 after three quarters of this
    /// to all of it. Each has its own share, so that clients which came at the same moment do not come back at the same
    /// moment. A client with a session is told when to come back, and goes on where it was. With a limit of some hours,
    /// clients spread over new gateways by themselves, and a deploy is no more than what happens to them every day.
    connection_age_max: Duration = Duration::ZERO;
    /// How long a client may take to send its bind after the upgrade. After it, the client is closed with 4408.
    bind_timeout: Duration = Duration::from_secs(10);
    /// How long the check of a client's token or of a caller may take, be it a stock one or an embedding program's. After
    /// it, the check is given up: a client is closed with 1013 or, if it has a session that is bound, told that the check
    /// is unavailable, and a caller is answered 503 or UNAVAILABLE. Keep it below `request_timeout`, which holds as well.
    check_timeout: Duration = Duration::from_secs(5);
    /// How long a connection may be quiet before it is pinged. The default is below the idle timeouts of common proxies
    /// (60 s and up), and often enough to keep phones' network address translation open.
    ping_interval: Duration = Duration::from_secs(25);
    /// How long the answer to a ping, or any other byte from the client, may take after the kernel has the ping. After
    /// it, the connection is closed. A slow client has to get through everything written before the ping in this time.
    pong_timeout: Duration = Duration::from_secs(10);
    /// How long a client may take no byte while something waits to be written. After it, the connection is closed.
    write_timeout: Duration = Duration::from_secs(10);
    /// How long the gateway waits for a client to take the close frame and go. A session's client that has got a part
    /// of a message has as long, before the close frame, to take the rest. After it, the connection is ended, and the
    /// client may lose what it has not read.
    close_timeout: Duration = Duration::from_secs(5);
    /// How long the head of an HTTP request may take once it has begun. A new connection has as long to send its first
    /// head, TLS handshake included, and a peer may take no byte of an answer for as long. After it, the connection is closed.
    http_header_timeout: Duration = Duration::from_secs(10);
    /// How long an HTTP connection without a request in hand is kept. After it, the connection is closed. The default
    /// is longer than common proxies keep an idle connection to a server (60 s), so that the proxy closes it and no
    /// request meets a closed one.
    http_idle_timeout: Duration = Duration::from_secs(75);
    /// How long a request at a push door may take, body included. A shorter gRPC deadline applies instead. After it,
    /// the caller is answered 408 or DEADLINE_EXCEEDED, and messages sent by then stay sent. A request that waits for
    /// more than acceptance is answered shortly before, with what is known.
    request_timeout: Duration = Duration::from_secs(10);
    /// How long a gateway that is told to stop goes on serving everything, while `/readyz` answers 503 and gRPC health
    /// NOT_SERVING. Set it longer than a balancer takes to notice, or to 0 if no balancer asks.
    shutdown_delay: Duration = Duration::ZERO;
    /// How long a gateway that is told to stop takes, after `shutdown_delay`, to send its clients away. It tells them in
    /// random order, spread evenly over this time, refuses new ones with 503, and serves pushes meanwhile. It goes on
    /// early once no client is left. With 0 all are told at once, so that a stop is quick where nobody else takes the
    /// clients over; set it where a deploy would have them all bind again at the same moment.
    drain_period: Duration = Duration::ZERO;
    /// How long a shutdown waits for requests to finish and clients to take what is queued. After it, they are cut: a
    /// request gets no answer, and a client does not get the rest of its messages.
    shutdown_grace: Duration = Duration::from_secs(10);
}

/// Headers of an HTTP request; a browser sends about twenty, and proxies add some.
pub(crate) const HTTP_HEADERS_MAX: usize = 100;

/// Where the client for browsers and Node.js is served, and its types.
pub(crate) const CLIENT_PATH: &str = "/pushgate.js";
pub(crate) const CLIENT_TYPES_PATH: &str = "/pushgate.d.ts";

/// Paths that cannot be given to another purpose.
const TAKEN_PATHS: [&str; 6] = ["/", "/metrics", "/healthz", "/readyz", CLIENT_PATH, CLIENT_TYPES_PATH];

/// Where the gRPC services are, whose methods are under these paths.
const GRPC_PATHS: [&str; 4] = [
    "/pushgate.v1.",
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1.ServerReflection/",
    "/grpc.reflection.v1alpha.ServerReflection/",
];

/// What follows `push_path` in the path of a batch.
pub(crate) const BATCH_PATH: &str = "/batch";

/// What a caller that was sent away is told to wait.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Whether a check is the stock one, made from the config, or an embedder's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    Stock,
    Own,
}

impl Config {
    /// The flow-control window of an HTTP/2 connection: what a caller may send before it is read.
    pub(crate) const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

    /// How finely connections keep their deadlines: a tenth of the shortest, between 10 ms and 1 s.
    pub(crate) fn tick(&self) -> Duration {
        let Self { bind_timeout, ping_interval, pong_timeout, write_timeout, close_timeout, .. } = *self;
        [bind_timeout, ping_interval, pong_timeout, write_timeout, close_timeout, self.client_message_timeout]
            .into_iter()
            .min()
            .map_or(Duration::from_secs(1), |shortest| shortest / 10)
            .clamp(Duration::from_millis(10), Duration::from_secs(1))
    }

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

    /// Whether a page of this origin may open a WebSocket to the host that its request names.
    pub(crate) fn allows_origin(&self, origin: &Origin, host: &str) -> bool {
        match &self.origins_allowed {
            Some(allowed) => allowed.contains(origin),
            None => self.listen.is_loopback() || origin.is_of_host(host),
        }
    }

    /// What happens to an event's message whose outbox is full, unless the push says otherwise.
    pub(crate) fn slow_reader_policy(&self, event: &Event) -> SlowReaderPolicy {
        self.slow_reader_policy_by_event.find(event).unwrap_or(self.slow_reader_policy)
    }

    /// The address of the push doors.
    pub(crate) fn control_address(&self) -> &Address {
        self.control_listen.as_ref().unwrap_or(&self.listen)
    }

    /// Whether `listen` speaks TLS.
    pub(crate) fn listen_has_tls(&self) -> bool {
        self.tls_cert_file.is_some() || self.tls_cert_folder.is_some()
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
mod tests {
    use super::*;

    pub(super) fn mistaken(change: impl FnOnce(&mut Config)) -> Vec<String> {
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

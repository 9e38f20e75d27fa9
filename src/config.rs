//! Every setting and limit, as documented plain data: one table gives the fields, the file keys, the environment
//! variables and the printed reference.

mod address;
mod callback;
mod jwt;
mod memory;
mod networks;
mod origins;
mod source;
mod validate;
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
pub(crate) use validate::Check;
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
    /// loses more than a fair share to others. A push adds its message before room is made, so those that are being made
    /// may be over the limit for a moment.
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

/// What follows `push_path` in the path of a batch.
pub(crate) const BATCH_PATH: &str = "/batch";

/// What a caller that was sent away is told to wait.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(5);

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
}

//! `pushgate bench`: the arguments of a benchmark and their checks.

mod callers;
mod calls;
mod clients;
mod clock;
mod grpc;
mod json;
mod plot;
mod process;
mod progress;
mod report;
mod run;
mod stream;
mod target;
mod wire;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, ValueEnum};
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::ServerName;

use super::Outcome;
use super::tls::Tls;
use clients::Introduction;
use run::Run;
use stream::Secured;
use target::{PushTls, Target};

/// Open files reserved for everything but clients and callers.
const RESERVED_FILES: usize = 64;
/// The largest value of `--connections`, far more than one process can open.
const CONNECTIONS_MAX: u64 = 10_000_000;

/// The end of the help: what a server must support, examples, and the meaning of `--rate`.
pub(super) const HELP: &str = "\
The clients speak the legacy protocol and use their user as the token, so the server must run without a tokens file.
Any server works that accepts {\"token\":USER,\"event\":EVENT} at --url and, with `--door json`, JSON at --push-url.

Examples:
  pushgate bench                                          100 clients of one user, 1 caller, as fast as possible
  pushgate bench --connections 10000 --to many --callers 16
  pushgate bench --connections 10 --to many --rate 2000   2,000 pushes a second, however slow the server is
  pushgate bench --connections 15000 --to many --hold     memory and CPU of idle connections

With --rate, the latency of a push counts from its scheduled time, even if it is sent later.";

#[derive(Args)]
pub(super) struct Bench {
    /// How many clients to open and bind
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100,
        value_parser = clap::value_parser!(u64).range(1..=CONNECTIONS_MAX))]
    connections: u64,
    /// Who receives the pushes
    #[arg(long, value_enum, default_value_t = Shape::One)]
    to: Shape,
    /// With `--to many`, the order in which users get pushes
    #[arg(long, value_enum, default_value_t = Order::Turn)]
    order: Order,
    /// How to push
    #[arg(long, value_enum, default_value_t = Door::Json)]
    door: Door,
    /// Callers that push at the same time; with `--door stream`, pushes in flight. With --rate, the maximum of either
    #[arg(short = 'c', long, value_name = "C", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    callers: Option<u32>,
    /// Pushes a second, at times fixed in advance; without it, each caller pushes as soon as its last push was answered
    #[arg(short = 'r', long, value_name = "R", value_parser = rate)]
    rate: Option<f64>,
    /// Pushes in one call with `--door batch`
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// The size of a message in bytes
    #[arg(long, value_name = "N", default_value_t = 32,
        value_parser = clap::value_parser!(u32).range(wire::MESSAGE_BYTES_MIN as i64..=1 << 20))]
    bytes: u32,
    /// The percentage of clients that stop reading once they are bound
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..100))]
    stalled: u32,
    /// Push nothing, only measure the cost of open connections
    #[arg(long, conflicts_with_all = ["rate", "callers", "door", "stalled", "plot", "warm_up"])]
    hold: bool,
    /// Bind with the session protocol; needs --hold
    #[arg(long, requires = "hold")]
    session: bool,
    /// How long to measure
    #[arg(short = 'd', long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// How long to push before measuring
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    warm_up: Duration,
    /// How long to wait without progress for clients to bind and for messages to arrive
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    patience: Duration,
    /// The server's WebSocket URL
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:12345/ws")]
    url: String,
    /// The server's push URL, for gRPC without a path [default: the host of --url, and /push]
    #[arg(long, value_name = "URL")]
    push_url: Option<String>,
    /// An API key, if the server requires one; an empty one counts as none
    #[arg(long, value_name = "KEY", env = "PUSHGATE_KEY", hide_env_values = true)]
    key: Option<String>,
    /// The user; with `--to many`, the prefix of all users
    #[arg(long, default_value = "bench", value_parser = NonEmptyStringValueParser::new())]
    user: String,
    /// The event to bind and push
    #[arg(long, default_value = "bench", value_parser = NonEmptyStringValueParser::new())]
    event: String,
    /// The server's process, to measure its CPU and memory [default: the process on this machine that listens at --url]
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pid: Option<i32>,
    /// Measure memory per connection from this many clients on [default: an eighth of --connections]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=CONNECTIONS_MAX))]
    memory_from: Option<u64>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
    /// Write a plot of the percentiles to this file
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    tls: Tls,
}

/// Where a URL leads.
struct Place {
    is_tls: bool,
    host: String,
    address: SocketAddr,
    path: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Door {
    /// JSON `POST`, over one keep-alive connection for each caller
    Json,
    /// Unary `Push` or `Broadcast`, over one connection for all callers
    Grpc,
    /// `PushBatch`, over one connection for all callers
    Batch,
    /// A single `PushStream`
    Stream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shape {
    /// One user with all connections
    One,
    /// A user for each connection
    Many,
    /// Everyone bound to the event, with `Broadcast`
    Broadcast,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Order {
    /// One after another
    Turn,
    /// Random, but the same in every run
    Random,
}

impl Door {
    fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Grpc => "grpc",
            Self::Batch => "batch",
            Self::Stream => "stream",
        }
    }
}

impl Shape {
    fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Many => "many",
            Self::Broadcast => "broadcast",
        }
    }
}

impl Bench {
    pub(super) fn run(self) -> Outcome {
        if let Err(conflict) = self.check() {
            super::Cli::command().error(ErrorKind::ArgumentConflict, conflict).exit();
        }
        self.fit_open_files()?;
        let place = Place::of(&self.url, ["ws", "wss"])?;
        let mut push = match &self.push_url {
            Some(url) => Place::of(url, ["http", "https"])?,
            None => Place { host: place.host.clone(), path: String::new(), ..place },
        };
        if push.path.len() < 2 {
            push.path = "/push".to_owned();
        }
        let push_tls = match push.is_tls {
            true => Some(PushTls {
                grpc_url: format!("https://{}:{}", push.host, push.address.port()),
                for_grpc: self.tls.for_grpc()?,
                for_json: self.secured(&push)?,
            }),
            false => None,
        };
        let secured = if place.is_tls { Some(self.secured(&place)?) } else { None };
        let target = Arc::new(Target {
            push_address: push.address,
            push_tls,
            push_path: push.path,
            key: self.key.clone().filter(|key| !key.is_empty()),
            door: self.door,
            shape: self.to,
            order: self.order,
            user: self.user.clone(),
            event: self.event.clone(),
            connections: usize::try_from(self.connections)?,
            stalled: self.stalled,
            turn: AtomicU64::new(0),
        });
        let introduction = self.introduction(&place, secured, target.clone());
        let address = place.address;
        let pid = self.pid.or_else(|| address.ip().is_loopback().then(|| process::listening(address)).flatten());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(Run { bench: self, target, pid }.go(introduction))
    }

    /// Checks for conflicts between arguments that clap cannot express.
    fn check(&self) -> Result<(), String> {
        if self.to == Shape::Broadcast && self.door != Door::Grpc && !self.hold {
            return Err("`--to broadcast` needs `--door grpc`: only that one can broadcast".to_owned());
        }
        if self.order == Order::Random && self.to != Shape::Many {
            return Err("`--order` chooses among users, which needs `--to many`".to_owned());
        }
        if self.memory_from.is_some_and(|from| from >= self.connections) {
            return Err("`--memory-from` must be less than `--connections`".to_owned());
        }
        Ok(())
    }

    fn fit_open_files(&self) -> Result<(), String> {
        let files = rlimit::increase_nofile_limit(rlimit::INFINITY)
            .map_err(|error| format!("cannot raise the limit of open files: {error}"))?;
        // Each caller also uses a file for its timer.
        let needed = self.connections + 2 * u64::from(self.callers()) + RESERVED_FILES as u64;
        if needed > files {
            return Err(format!(
                "{} clients need {needed} open files, and this process may have {files}: raise the limit (`ulimit -Hn`), \
                 or run several of this command with fewer --connections, each with a --user of its own",
                self.connections
            ));
        }
        Ok(())
    }

    fn callers(&self) -> u32 {
        // With a rate, some caller must be free whenever a push is due.
        self.callers.unwrap_or(match (self.door, self.rate) {
            (Door::Stream, _) => 256,
            (_, None) => 1,
            (_, Some(_)) => 32,
        })
    }

    /// TLS with a full handshake for each client: those of a real crowd have not been there before.
    fn secured(&self, place: &Place) -> Result<Secured, Box<dyn std::error::Error>> {
        let mut config = Arc::unwrap_or_clone(self.tls.for_websocket()?);
        config.resumption = Resumption::disabled();
        let name = ServerName::try_from(place.host.trim_matches(['[', ']']).to_owned())
            .map_err(|error| format!("not a server address: {}: {error}", place.host))?;
        Ok(Secured { config: Arc::new(config), name })
    }

    fn introduction(&self, place: &Place, secured: Option<Secured>, target: Arc<Target>) -> Introduction {
        let Place { address, path, .. } = place;
        let session = self.session;
        let protocol = if session { "sec-websocket-protocol: pushgate.v1.json\r\n" } else { "" };
        let upgrade = format!(
            "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{protocol}\r\n"
        );
        let bind = move |client| {
            let mut bind = serde_json::json!({ "token": target.user_of(client), "event": target.event });
            if session {
                bind["type"] = "bind".into();
            }
            bind.to_string()
        };
        Introduction { address: *address, secured, upgrade, bind: Box::new(bind) }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration.is_zero() { Err("must be more than 0".to_owned()) } else { Ok(duration) }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.01..=10_000_000.0).contains(&rate) => Ok(rate),
        _ => Err("must be a number of pushes a second, from 0.01 to 10000000".to_owned()),
    }
}

impl Place {
    /// Resolves a URL of one of these schemes, the second of which is TLS.
    fn of(url: &str, [plain, tls]: [&str; 2]) -> Result<Self, String> {
        let after = |scheme| url.strip_prefix(scheme).and_then(|rest: &str| rest.strip_prefix("://"));
        let Some((rest, is_tls)) = after(tls).map(|rest| (rest, true)).or(after(plain).map(|rest| (rest, false)))
        else {
            return Err(format!("not a server address: {url}: must begin with {plain}:// or {tls}://"));
        };
        let (place, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let port_after = |(host, port): (&str, &str)| Some((host.to_owned(), port.parse().ok()?));
        let with_port = place.rsplit_once(':').and_then(port_after);
        let (host, port): (String, u16) =
            with_port.unwrap_or_else(|| (place.to_owned(), if is_tls { 443 } else { 80 }));
        let found = format!("{host}:{port}").to_socket_addrs();
        let found: Vec<_> = found.map_err(|error| format!("not a server address: {url}: {error}"))?.collect();
        // Prefers IPv4, because by default the gateway listens on the IPv4 loopback address only.
        let address = found.iter().find(|address| address.is_ipv4()).or(found.first());
        let address = *address.ok_or_else(|| format!("not a server address: {url}"))?;
        Ok(Self { is_tls, host, address, path: if path.is_empty() { "/".to_owned() } else { path.to_owned() } })
    }
}

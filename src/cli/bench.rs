//! `pushgate bench`: what is to be measured, and whether that can be.

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

use super::Outcome;
use clients::Introduction;
use run::Run;
use target::Target;

/// Files for what is neither a client nor a caller.
const FILES_APART: usize = 64;
/// The most clients that can be asked for, far above what one process can open.
const CONNECTIONS_MAX: u64 = 10_000_000;

/// What measures and how, at the end of the help.
pub(super) const HELP: &str = "\
The clients speak the legacy protocol, each with its user as the token, so the server must run without a tokens file.
Any server will do that takes {\"token\":USER,\"event\":EVENT} at --url, and JSON at --push-url for `--door json`.

Examples:
  pushgate bench                                          100 clients of one user, 1 caller, as fast as it goes
  pushgate bench --connections 10000 --to many --callers 16
  pushgate bench --connections 10 --to many --rate 2000   2,000 pushes a second, whatever the server does
  pushgate bench --connections 15000 --to many --hold     memory and CPU of idle connections

With --rate, a push that is sent late counts from when it was to be sent.";

#[derive(Args)]
pub(super) struct Bench {
    /// How many clients to open and bind
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100,
        value_parser = clap::value_parser!(u64).range(1..=CONNECTIONS_MAX))]
    connections: u64,
    /// Who gets the pushes
    #[arg(long, value_enum, default_value_t = Shape::One)]
    to: Shape,
    /// With `--to many`, whose turn it is
    #[arg(long, value_enum, default_value_t = Order::Turn)]
    order: Order,
    /// How to push
    #[arg(long, value_enum, default_value_t = Door::Json)]
    door: Door,
    /// Callers that push at one time; by the stream door, pushes in flight. With --rate, the most of them
    #[arg(short = 'c', long, value_name = "C", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    callers: Option<u32>,
    /// Pushes a second, at times fixed beforehand; without it, each caller pushes when its last push was answered
    #[arg(short = 'r', long, value_name = "R", value_parser = rate)]
    rate: Option<f64>,
    /// Pushes in one call by the batch door
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Bytes of a message
    #[arg(long, value_name = "N", default_value_t = 32,
        value_parser = clap::value_parser!(u32).range(wire::MESSAGE_BYTES_MIN as i64..=1 << 20))]
    bytes: u32,
    /// How many of a hundred clients stop reading once they are bound
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..100))]
    stalled: u32,
    /// Push nothing: measure what open connections cost
    #[arg(long, conflicts_with_all = ["rate", "callers", "door", "stalled", "plot", "warm_up"])]
    hold: bool,
    /// Bind by the protocol of sessions, which needs --hold
    #[arg(long, requires = "hold")]
    session: bool,
    /// How long to measure
    #[arg(short = 'd', long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// How long to push before that
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    warm_up: Duration,
    /// How long to wait for what makes no progress: an opened client, a receipt that is missing
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    patience: Duration,
    /// The server's WebSocket door
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:12345/ws")]
    url: String,
    /// The server's push door, for gRPC without a path [default: the host of --url, and /push]
    #[arg(long, value_name = "URL")]
    push_url: Option<String>,
    /// An API key, where the server asks for one; an empty one is none
    #[arg(long, value_name = "KEY", env = "PUSHGATE_KEY", hide_env_values = true)]
    key: Option<String>,
    /// The user; with `--to many`, what each user begins with
    #[arg(long, default_value = "bench", value_parser = NonEmptyStringValueParser::new())]
    user: String,
    /// The event to bind and push
    #[arg(long, default_value = "bench", value_parser = NonEmptyStringValueParser::new())]
    event: String,
    /// The server's process, for its CPU and memory [default: the one that listens there, on this machine]
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pid: Option<i32>,
    /// Measure memory per connection from so many clients on [default: an eighth of them]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=CONNECTIONS_MAX))]
    memory_from: Option<u64>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
    /// Write a plot of the percentiles to this file
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Door {
    /// JSON `POST`, one kept connection for each caller
    Json,
    /// Unary `Push`, or `Broadcast`, by one connection for all callers
    Grpc,
    /// `PushBatch`, by one connection for all callers
    Batch,
    /// One `PushStream`
    Stream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shape {
    /// One user with all connections
    One,
    /// A user for each connection
    Many,
    /// Everyone bound to the event, by `Broadcast`
    Broadcast,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Order {
    /// One after the other
    Turn,
    /// At random, the same in every run
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
        if let Err(wrong) = self.check() {
            super::Cli::command().error(ErrorKind::ArgumentConflict, wrong).exit();
        }
        self.fit_open_files()?;
        let (address, path) = address(&self.url, "ws")?;
        let (push_address, push_path) = match &self.push_url {
            Some(url) => address_of_push(url)?,
            None => (address, "/push".to_owned()),
        };
        let target = Arc::new(Target {
            push_address,
            push_path,
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
        let introduction = self.introduction(address, &path, target.clone());
        let pid = self.pid.or_else(|| address.ip().is_loopback().then(|| process::listening(address)).flatten());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(Run { bench: self, target, pid }.go(introduction))
    }

    /// What clap cannot say: arguments that each are right but not together.
    fn check(&self) -> Result<(), String> {
        if self.to == Shape::Broadcast && self.door != Door::Grpc && !self.hold {
            return Err("`--to broadcast` needs `--door grpc`: no other door has broadcasts".to_owned());
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
        // Each caller has a timer too.
        let needed = self.connections + 2 * u64::from(self.callers()) + FILES_APART as u64;
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
        // In an open loop there must be one free when a push is due.
        self.callers.unwrap_or(match (self.door, self.rate) {
            (Door::Stream, _) => 256,
            (_, None) => 1,
            (_, Some(_)) => 32,
        })
    }

    fn introduction(&self, address: SocketAddr, path: &str, target: Arc<Target>) -> Introduction {
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
        Introduction { address, upgrade, bind: Box::new(bind) }
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

fn address_of_push(url: &str) -> Result<(SocketAddr, String), String> {
    let (address, path) = address(url, "http")?;
    Ok((address, if path == "/" { "/push".to_owned() } else { path }))
}

/// Where a URL of this scheme leads, and its path.
fn address(url: &str, scheme: &str) -> Result<(SocketAddr, String), String> {
    let Some(rest) = url.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://")) else {
        return Err(format!("no address of a server: {url}: must begin with {scheme}://"));
    };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let with_port = if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let found = with_port.to_socket_addrs().map_err(|error| format!("no address of a server: {url}: {error}"))?;
    let found: Vec<_> = found.collect();
    // Loopback servers of the gateway's default listen by IPv4 alone.
    let address = found.iter().find(|address| address.is_ipv4()).or(found.first());
    let address = *address.ok_or_else(|| format!("no address of a server: {url}"))?;
    Ok((address, if path.is_empty() { "/".to_owned() } else { path.to_owned() }))
}

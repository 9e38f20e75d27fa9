//! Attacks on the real program, each with honest traffic beside it: what one caller or client can use up, and who pays
//! when it is gone. Some minutes, so ignored by default: `cargo test --test attacks -- --ignored --nocapture`.
//!
//! Always checked: nothing of the honest is refused or lost, the gateway's memory stays within its limits, and attackers
//! are sent away where they should be. What depends on the machine, the honest people's rate and their p99, is printed, and
//! checked only with `PUSHGATE_ATTACKS_LONG=1`. `PUSHGATE_ATTACKED` names another build of the gateway to attack.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/process.rs"]
mod process;
#[path = "../support/mod.rs"]
mod support;

mod bodies;
mod canary;
mod door;
mod floods;
mod handshakes;
mod honest;
mod http2;
mod places;
mod readers;
mod sessions;
mod tokens;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use pushgate::Loaded;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinSet;

use door::{Door, Stream};
use honest::{Honest, Tokens, Windows};
use process::GatewayProcess;
use support::certificates::Authority;
use support::signer::Signer;
use support::soon;
use support::tls::Speaks;

/// One attack at a time, or they would be measured together.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Limits of a small gateway, so that an attack reaches them.
const SMALL: [(&str, &str); 17] = [
    ("control_listen", "127.0.0.1:0"),
    ("connections_max", "2500"),
    ("http_connections_max", "1000"),
    ("control_http_connections_max", "60"),
    ("http2_streams_max", "250"),
    ("push_concurrency_max", "256"),
    ("sessions_away_max", "5000"),
    ("outbox_bytes_max", "64KiB"),
    ("message_bytes_max", "48KiB"),
    ("client_message_bytes_max", "16KiB"),
    ("client_frame_bytes_max", "16KiB"),
    ("request_bodies_bytes_max", "16MiB"),
    ("idempotency_bytes_max", "16MiB"),
    ("journal_total_bytes_max", "16MiB"),
    ("queued_total_bytes_max", "176MiB"),
    ("http_header_timeout", "3s"),
    ("bind_timeout", "3s"),
];

/// How long a window of honest traffic is, and how many are watched before an attack and during it.
fn windows() -> (Duration, usize) {
    if is_long() { (Duration::from_secs(3), 5) } else { (Duration::from_secs(1), 3) }
}

fn is_long() -> bool {
    std::env::var_os("PUSHGATE_ATTACKS_LONG").is_some()
}

/// How a gateway is set up for an attack.
#[derive(Default)]
struct Setup<'a> {
    settings: &'a [(&'a str, &'a str)],
    /// Both addresses speak TLS.
    tls: bool,
    /// Tokens are JWTs, signed by this.
    signer: Option<Signer>,
    /// Files that it may have open.
    files: Option<usize>,
}

/// A gateway with honest traffic, and how that was before the attack.
struct World {
    // First, so that honest people are gone before the gateway is.
    honest: Honest,
    gateway: GatewayProcess,
    clients: Door,
    control: Door,
    before: Windows,
    /// What the limits allow.
    memory_max: usize,
    is_tls: bool,
    _files: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl World {
    async fn start(settings: &[(&str, &str)]) -> Self {
        Self::with(Setup { settings, ..Setup::default() }).await
    }

    async fn with(setup: Setup<'_>) -> Self {
        let alone = ALONE.lock().await;
        let files = tempfile::tempdir().unwrap();
        let set = SMALL.iter().chain(setup.settings);
        let mut settings: Vec<(String, OsString)> =
            set.map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
        let mut speaks = None;
        if setup.tls {
            // Whoever makes the handshakes has no CPU to spare, in a build without optimisation above all.
            settings.push(("http_header_timeout".to_owned(), "10s".into()));
            let authority = Authority::new("attacked");
            let pem = authority.issue("gateway", &["localhost"], 2100);
            for (name, file) in [("cert", &pem.certificate), ("key", &pem.key)] {
                let kept = files.path().join(name);
                std::fs::copy(file, &kept).unwrap();
                settings.push((format!("tls_{name}_file"), kept.clone().into()));
                settings.push((format!("control_tls_{name}_file"), kept.into()));
            }
            speaks = Some(Speaks::with(&authority));
        }
        if let Some(signer) = &setup.signer {
            let keys = files.path().join("jwt.pem");
            std::fs::write(&keys, signer.public_pem()).unwrap();
            settings.push(("jwt_keys_file".to_owned(), keys.into()));
        }
        let environment: Vec<(OsString, OsString)> = settings
            .into_iter()
            .map(|(name, value)| (format!("PUSHGATE_{}", name.to_uppercase()).into(), value))
            .collect();
        let memory_max = Loaded::new(None, environment.clone(), []).unwrap().config.memory_max();
        let gateway = tokio::task::block_in_place(|| {
            let mut command = program(setup.files);
            GatewayProcess::start_as(command.envs(environment))
        });
        let clients = Door::new(gateway.clients, speaks.clone());
        let control = Door::new(gateway.control, speaks);
        let tokens = Tokens::new(setup.signer);
        let honest = Honest::start(&clients, &control, &tokens).await;
        let before = honest.watch().await;
        let memory_max = usize::try_from(memory_max).unwrap();
        Self { honest, gateway, clients, control, before, memory_max, is_tls: setup.tls, _files: files, _alone: alone }
    }

    /// Watches honest people while an attack goes on: they are refused nothing, and the gateway's memory is within its
    /// limits.
    async fn honest_people_notice_nothing(&self, attack: &str) {
        let during = self.honest.watch().await;
        let peak = self.memory("VmHWM:");
        let (rate, p99) = (during.rate() / self.before.rate(), during.p99() / self.before.p99());
        println!(
            "| {attack}{} | {rate:.2} | {p99:.1} | {} of {} MiB |",
            if self.is_tls { ", over TLS" } else { "" },
            peak >> 20,
            self.memory_max >> 20,
        );
        self.honest.was_refused_nothing();
        assert!(peak <= self.memory_max + self.memory_max / 20, "{peak} bytes, the limits allow {}", self.memory_max);
        if is_long() {
            assert!(rate >= 0.9, "{attack}: honest people had {rate:.2} of their rate");
            assert!(p99 <= 3.0, "{attack}: the p99 of honest people was {p99:.1} times as long");
        }
    }

    /// The same, and then each of these attackers has to have ended, because the gateway ended its connection.
    async fn honest_people_notice_nothing_and_are_rid_of(&self, attack: &str, attackers: JoinSet<()>) {
        self.honest_people_notice_nothing(attack).await;
        soon(attackers.join_all()).await;
    }

    /// Ends the honest traffic: whatever was accepted has to have arrived.
    async fn nothing_was_lost(self) {
        self.honest.end().await;
    }

    /// The resident memory of the gateway, in bytes.
    fn memory(&self, which: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.gateway.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(which)).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
    }

    /// Fails if the memory grew by more than this, and a twentieth.
    #[track_caller]
    fn grew_by_at_most(&self, before: usize, budget: usize) {
        let grown = self.memory("VmRSS:").saturating_sub(before);
        assert!(grown <= budget + budget / 20, "{grown} bytes, the budget is {budget}");
    }

    /// The value of a sample of `/metrics`.
    async fn metric(&self, sample: &str) -> u64 {
        let text = self.control.ask("GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {sample} in {text}")).parse().unwrap()
    }
}

/// The gateway, with at most so many files.
fn program(files: Option<usize>) -> Command {
    let ours = process::pushgate();
    let program = std::env::var_os("PUSHGATE_ATTACKED").unwrap_or_else(|| ours.get_program().to_owned());
    let limit = files.map_or(String::new(), |files| format!("ulimit -n {files}; "));
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{limit}exec \"$0\" \"$@\"")]).arg(program);
    for (name, value) in ours.get_envs() {
        if value.is_none() {
            command.env_remove(name);
        }
    }
    command
}

/// An address of its own for each thousand attackers.
fn source(number: usize) -> SocketAddr {
    ([127, 0, 2, 1 + (number / 1000) as u8], 0).into()
}

/// Sends this, and then that until the gateway has ended the connection. Reads all answers.
async fn send_until_ended(stream: Stream, begin: Vec<u8>, flood: Vec<u8>) {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let flood = async {
        if writing.write_all(&begin).await.is_ok() {
            while writing.write_all(&flood).await.is_ok() {}
        }
    };
    let drain = async {
        let mut answers = [0; 4096];
        while reading.read(&mut answers).await.is_ok_and(|count| count > 0) {}
    };
    soon(async {
        tokio::select! {
            () = flood => {}
            () = drain => {}
        }
    })
    .await;
}

/// Sends this, and then each of these bytes after a pause, until the gateway has ended the connection.
async fn drip_until_ended(mut stream: Stream, begin: Vec<u8>, drop: &[u8]) {
    soon(async {
        let mut answers = [0; 4096];
        let mut is_open = stream.write_all(&begin).await.is_ok();
        while is_open {
            is_open = match tokio::time::timeout(Duration::from_millis(200), stream.read(&mut answers)).await {
                Ok(read) => read.is_ok_and(|count| count > 0),
                Err(_) => stream.write_all(drop).await.is_ok(),
            };
        }
    })
    .await;
}

//! Attacks on the real program, each with honest traffic beside it: what one caller or client can use up, and who pays
//! when it is gone. A minute or two, so ignored by default: `cargo test --test attacks -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/process.rs"]
mod process;
#[path = "../support/mod.rs"]
mod support;

mod bodies;
mod floods;
mod honest;
mod places;
mod readers;

use std::net::SocketAddr;
use std::time::Duration;

use process::GatewayProcess;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Mutex, MutexGuard};

use honest::Honest;
use support::soon;

/// How long honest traffic is watched, before an attack and during it.
const WATCHED: Duration = Duration::from_secs(4);

/// One attack at a time, or they would be measured together.
static ALONE: Mutex<()> = Mutex::const_new(());

/// A gateway with honest traffic, and how that was before the attack.
struct World {
    // First, so that honest people are gone before the gateway is.
    honest: Honest,
    gateway: GatewayProcess,
    before: honest::While,
    _alone: MutexGuard<'static, ()>,
}

impl World {
    /// Starts a gateway with these settings, control on an address of its own.
    async fn start(settings: &[(&str, &str)]) -> Self {
        let alone = ALONE.lock().await;
        let mut command = process::pushgate();
        command.args(["--control-listen", "127.0.0.1:0"]);
        command.envs(settings.iter().map(|(name, value)| (format!("PUSHGATE_{}", name.to_uppercase()), value)));
        let gateway = tokio::task::block_in_place(|| GatewayProcess::start_as(&mut command));
        let honest = Honest::start(&gateway).await;
        let before = honest.for_a_while(WATCHED).await;
        Self { gateway, honest, before, _alone: alone }
    }

    /// Watches honest people while an attack goes on: they are refused nothing and keep their rate.
    async fn honest_people_notice_nothing(&self) {
        self.honest.for_a_while(WATCHED).await.kept_what_they_had(&self.before);
    }

    /// The resident memory of the gateway, in bytes.
    fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.gateway.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
    }

    /// Fails if the memory grew by more than this, and a twentieth.
    #[track_caller]
    fn grew_by_at_most(&self, before: usize, budget: usize) {
        let grown = self.memory().saturating_sub(before);
        println!("memory: {} MiB and {} KiB more", before >> 20, grown >> 10);
        assert!(grown <= budget + budget / 20, "{grown} bytes, the budget is {budget}");
    }
}

/// A connection from an address of its own thousand.
async fn connect_from(number: usize, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 2, 1 + (number / 1000) as u8], 0).into()).unwrap();
    soon(socket.connect(to)).await.unwrap()
}

/// Sends until the gateway has ended the connection.
async fn send_until_ended(mut stream: TcpStream, bytes: Vec<u8>) {
    let (mut reading, mut writing) = stream.split();
    let flood = async { while writing.write_all(&bytes).await.is_ok() {} };
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

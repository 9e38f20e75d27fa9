//! Honest traffic beside an attack: clients that read, services that push, newcomers and probes. It counts what it is
//! refused, and how much of its rate it keeps.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::process::GatewayProcess;
use crate::support::{Client, GrpcCaller, push_request, soon};

const CLIENTS: usize = 1000;

/// Services, each of which pushes this often.
const SERVICES: usize = 8;
const PUSHES_EACH: Duration = Duration::from_millis(40);

/// How often somebody new comes, and a probe looks.
const NEWCOMER_EACH: Duration = Duration::from_millis(50);

/// What honest people saw so far.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pushed: AtomicU64,
    received: AtomicU64,
    newcomers: AtomicU64,
    probes: AtomicU64,
    /// Pushes that were not accepted by the client they were for, newcomers who could not bind, probes without a 200.
    refused: AtomicU64,
}

/// The counts of a while.
#[derive(Clone, Copy, Debug)]
pub(crate) struct While {
    pub(crate) pushed: u64,
    pub(crate) received: u64,
    pub(crate) newcomers: u64,
    pub(crate) probes: u64,
    pub(crate) refused: u64,
}

/// Honest people, until dropped.
pub(crate) struct Honest {
    seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

impl Honest {
    /// Connects everybody.
    pub(crate) async fn start(gateway: &GatewayProcess) -> Self {
        let seen = Arc::new(Seen::default());
        let mut tasks = JoinSet::new();
        for number in 0..CLIENTS {
            let mut client = Client::connect_from(source(number), gateway.clients).await;
            client.send_bind(&user(number), "honest").await;
            let seen = seen.clone();
            tasks.spawn(async move {
                while let Some(Ok(message)) = client.socket.next().await {
                    seen.received.fetch_add(u64::from(matches!(message, Message::Text(_))), Ordering::Relaxed);
                }
            });
        }
        for service in 0..SERVICES {
            tasks.spawn(push(gateway.control, service, seen.clone()));
        }
        tasks.spawn(newcomers(gateway.clients, seen.clone()));
        tasks.spawn(probes(gateway.control, seen.clone()));
        let honest = Self { seen, _tasks: tasks };
        // Everybody is bound once pushes to each of them are taken.
        honest.for_a_while(Duration::from_secs(1)).await;
        honest
    }

    /// What honest people see in this time.
    pub(crate) async fn for_a_while(&self, time: Duration) -> While {
        let before = self.now();
        tokio::time::sleep(time).await;
        let after = self.now();
        While {
            pushed: after.pushed - before.pushed,
            received: after.received - before.received,
            newcomers: after.newcomers - before.newcomers,
            probes: after.probes - before.probes,
            refused: after.refused - before.refused,
        }
    }

    fn now(&self) -> While {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Seen { pushed, received, newcomers, probes, refused } = &*self.seen;
        While {
            pushed: load(pushed),
            received: load(received),
            newcomers: load(newcomers),
            probes: load(probes),
            refused: load(refused),
        }
    }
}

impl While {
    /// Fails unless honest people kept their rate, and were refused nothing.
    #[track_caller]
    pub(crate) fn kept_what_they_had(&self, before: &Self) {
        println!("before: {before:?}\nduring: {self:?}");
        assert_eq!(self.refused, 0, "honest people were refused");
        for (kept, had) in [
            (self.pushed, before.pushed),
            (self.received, before.received),
            (self.newcomers, before.newcomers),
            (self.probes, before.probes),
        ] {
            assert!(kept as f64 >= 0.9 * had as f64, "{kept} of {had}");
        }
    }
}

/// One address would be told that it has too many connections where a limit holds for each.
fn source(number: usize) -> SocketAddr {
    ([127, 0, 1, 1 + (number % 100) as u8], 0).into()
}

fn user(number: usize) -> String {
    format!("honest {number}")
}

async fn push(control: SocketAddr, service: usize, seen: Arc<Seen>) {
    let mut grpc = GrpcCaller::connect(control).await;
    let mut interval = tokio::time::interval(PUSHES_EACH);
    for number in (service..).step_by(SERVICES) {
        interval.tick().await;
        let push = grpc.try_push(push_request(&user(number % CLIENTS), "honest", "hello")).await;
        let is_taken = push.as_ref().is_ok_and(|outcome| outcome.accepted == 1);
        seen.pushed.fetch_add(u64::from(is_taken), Ordering::Relaxed);
        if let Err(status) = push {
            println!("an honest push was refused: {status}");
            seen.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn newcomers(clients: SocketAddr, seen: Arc<Seen>) {
    let mut interval = tokio::time::interval(NEWCOMER_EACH);
    loop {
        interval.tick().await;
        let come = async {
            let stream = TcpStream::connect(clients).await.ok()?;
            let (mut socket, _) = tokio_tungstenite::client_async(format!("ws://{clients}/ws"), stream).await.ok()?;
            socket.close(None).await.ok()
        };
        let counter = if soon(come).await.is_some() { &seen.newcomers } else { &seen.refused };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

async fn probes(control: SocketAddr, seen: Arc<Seen>) {
    let mut interval = tokio::time::interval(NEWCOMER_EACH);
    loop {
        interval.tick().await;
        let look = async {
            let mut stream = TcpStream::connect(control).await.ok()?;
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            answer.starts_with("HTTP/1.1 200 ").then_some(())
        };
        let counter = if soon(look).await.is_some() { &seen.probes } else { &seen.refused };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

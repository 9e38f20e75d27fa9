//! Honest traffic beside an attack: clients that read, services that push, newcomers and probes. It counts what it is
//! refused, and measures its rate and how long its pushes take.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_tungstenite::tungstenite::Message;

use crate::door::Door;
use crate::support::signer::{Signer, claims};
use crate::support::{GrpcCaller, push_request, soon};
use crate::windows;

pub(crate) const CLIENTS: usize = 500;

/// Services, each of which pushes this often.
const SERVICES: usize = 8;
const PUSHES_EACH: Duration = Duration::from_millis(40);

/// How often somebody new comes, and a probe looks.
const NEWCOMER_EACH: Duration = Duration::from_millis(50);

/// Which token makes somebody a user.
#[derive(Clone)]
pub(crate) struct Tokens(Option<Arc<Signer>>);

impl Tokens {
    pub(crate) fn new(signer: Option<Signer>) -> Self {
        Self(signer.map(Arc::new))
    }

    pub(crate) fn of(&self, user: &str) -> String {
        match &self.0 {
            Some(signer) => signer.token(&claims(&json!({ "sub": user }))),
            None => user.to_owned(),
        }
    }
}

/// What honest people saw so far.
#[derive(Debug)]
struct Seen {
    is_over: AtomicBool,
    accepted: AtomicU64,
    received: AtomicU64,
    newcomers: AtomicU64,
    probes: AtomicU64,
    /// Pushes that were not accepted by the client they were for, clients who were cut, newcomers who could not bind, probes
    /// without a 200.
    refused: AtomicU64,
    /// How long pushes took since this was last looked at, in microseconds.
    took: Mutex<Histogram<u64>>,
}

/// The rates and times of some windows.
pub(crate) struct Windows(Vec<(f64, f64)>);

impl Windows {
    /// What honest people got done in a second.
    pub(crate) fn rate(&self) -> f64 {
        median(self.0.iter().map(|(rate, _)| *rate))
    }

    /// The p99 of their pushes, in microseconds.
    pub(crate) fn p99(&self) -> f64 {
        median(self.0.iter().map(|(_, p99)| *p99))
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Honest people, until dropped.
pub(crate) struct Honest {
    seen: Arc<Seen>,
    services: JoinSet<()>,
    _others: JoinSet<()>,
}

impl Honest {
    /// Connects everybody.
    pub(crate) async fn start(clients: &Door, control: &Door, tokens: &Tokens) -> Self {
        let seen = Arc::new(Seen {
            is_over: AtomicBool::new(false),
            accepted: AtomicU64::new(0),
            received: AtomicU64::new(0),
            newcomers: AtomicU64::new(0),
            probes: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            took: Mutex::new(Histogram::new_with_bounds(1, 60_000_000, 3).unwrap()),
        });
        let mut others = JoinSet::new();
        for number in 0..CLIENTS {
            let mut client = clients.client(source(number)).await;
            client.send_bind(&tokens.of(&user(number)), "honest").await;
            let seen = seen.clone();
            others.spawn(async move {
                while let Some(Ok(message)) = client.socket.next().await {
                    seen.received.fetch_add(u64::from(matches!(message, Message::Text(_))), Ordering::Relaxed);
                }
                seen.refuse("a client was cut");
            });
        }
        let bindings = format!("pushgate_bindings {CLIENTS}\n");
        soon(async {
            let metrics = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
            while !control.ask(metrics).await.unwrap().contains(&bindings) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        let mut services = JoinSet::new();
        for service in 0..SERVICES {
            services.spawn(push(control.grpc().await, service, seen.clone()));
        }
        others.spawn(newcomers(clients.clone(), seen.clone()));
        others.spawn(probes(control.clone(), seen.clone()));
        Self { seen, services, _others: others }
    }

    /// Watches honest people for some windows.
    pub(crate) async fn watch(&self) -> Windows {
        let (length, count) = windows();
        let mut windows = Vec::new();
        for _ in 0..count {
            self.seen.took.lock().await.reset();
            let (before, begin) = (self.seen.done(), Instant::now());
            tokio::time::sleep(length).await;
            let rate = (self.seen.done() - before) as f64 / begin.elapsed().as_secs_f64();
            windows.push((rate, self.seen.took.lock().await.value_at_quantile(0.99) as f64));
        }
        Windows(windows)
    }

    #[track_caller]
    pub(crate) fn was_refused_nothing(&self) {
        assert_eq!(self.seen.refused.load(Ordering::Relaxed), 0, "honest people were refused, see above");
    }

    /// Ends the pushes and waits until each that was accepted has arrived.
    pub(crate) async fn end(self) {
        self.seen.is_over.store(true, Ordering::Relaxed);
        soon(self.services.join_all()).await;
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let accepted = load(&self.seen.accepted);
        assert!(accepted > 0);
        let arrived = async {
            while load(&self.seen.received) < accepted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        soon(arrived).await;
        assert_eq!((load(&self.seen.received), load(&self.seen.refused)), (accepted, 0));
    }
}

impl Seen {
    fn done(&self) -> u64 {
        [&self.accepted, &self.received, &self.newcomers, &self.probes]
            .map(|count| count.load(Ordering::Relaxed))
            .iter()
            .sum()
    }

    fn refuse(&self, what: &str) {
        println!("honest people were refused: {what}");
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// One address would be told that it has too many connections where a limit holds for each.
fn source(number: usize) -> SocketAddr {
    ([127, 0, 1, 1 + (number % 100) as u8], 0).into()
}

fn user(number: usize) -> String {
    format!("honest {number}")
}

async fn push(mut grpc: GrpcCaller, service: usize, seen: Arc<Seen>) {
    let mut interval = tokio::time::interval(PUSHES_EACH);
    // A stall is seen by each push that it makes late, and not by all that come after it.
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in (service..).step_by(SERVICES) {
        let due = interval.tick().await;
        if seen.is_over.load(Ordering::Relaxed) {
            return;
        }
        match grpc.try_push(push_request(&user(number % CLIENTS), "honest", "hello")).await {
            Ok(outcome) if outcome.accepted == 1 => _ = seen.accepted.fetch_add(1, Ordering::Relaxed),
            other => seen.refuse(&format!("a push: {other:?}")),
        }
        seen.took.lock().await.saturating_record(due.elapsed().as_micros() as u64);
    }
}

async fn newcomers(clients: Door, seen: Arc<Seen>) {
    let mut interval = tokio::time::interval(NEWCOMER_EACH);
    loop {
        interval.tick().await;
        let come = async {
            let stream = clients.open(([127, 0, 0, 1], 0).into()).await;
            let (mut socket, _) = tokio_tungstenite::client_async("ws://localhost/ws", stream).await.ok()?;
            socket.close(None).await.ok()
        };
        match soon(come).await {
            Some(()) => _ = seen.newcomers.fetch_add(1, Ordering::Relaxed),
            None => seen.refuse("a newcomer"),
        }
    }
}

async fn probes(control: Door, seen: Arc<Seen>) {
    let mut interval = tokio::time::interval(NEWCOMER_EACH);
    loop {
        interval.tick().await;
        let answer = control.ask("GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        match answer {
            Some(answer) if answer.starts_with("HTTP/1.1 200 ") => _ = seen.probes.fetch_add(1, Ordering::Relaxed),
            other => seen.refuse(&format!("a probe: {other:?}")),
        }
    }
}

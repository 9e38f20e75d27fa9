//! The ledger: very many pushes at each level to clients that reset, stall, come back and take over sessions at random.
//! At the end, the answers to the callers, the messages that the clients received, and the metrics must account for
//! every push.
//!
//! `PUSHGATE_LEDGER_PUSHES` sets the number of pushes at each level, and `PUSHGATE_LEDGER_SEED` sets the random seed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod answers;
mod balance;
mod body;
mod book;
mod dice;
mod link;
#[cfg(target_os = "linux")]
mod link_with_loss;
mod pusher;
#[cfg(target_os = "linux")]
mod reflector;
mod roamer;
mod world;

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pushgate::proto::Level;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use answers::Record;
use balance::{Counters, Ledger};
use pusher::{Pusher, push_last};
use roamer::{Listener, Roamer, Visits};
use support::{PATIENCE, TestGateway, soon};
use world::{News, PUSHERS, Time, World, gateway, has_legacy, households};

use crate::book::Book;

/// Takes about twenty seconds per level without optimisation, on two cores.
const PUSHES: usize = 35_000;

/// Serializes the tests, because each run needs the whole machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {text:?}")))
}

fn seed() -> u64 {
    number("PUSHGATE_LEDGER_SEED").unwrap_or_else(|| {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).unwrap();
        // Keeps the seed short enough to type.
        u64::from_le_bytes(bytes) % 1_000_000_000
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute"]
async fn every_push_at_every_level_is_accounted_for() {
    let _alone = ONE_AT_A_TIME.lock().await;
    at_every_level(seed(), None).await;
}

/// Runs the ledger at every level. `far` is the address of the gateways if they are reached over a link and not over
/// the loopback.
async fn at_every_level(seed: u64, far: Option<IpAddr>) {
    let pushes = number("PUSHGATE_LEDGER_PUSHES").map_or(PUSHES, |pushes| usize::try_from(pushes).unwrap());
    for level in [Level::Accepted, Level::Written, Level::Acked] {
        println!("{}: {pushes} pushes, PUSHGATE_LEDGER_SEED={seed}", level.as_str_name());
        let begun = Instant::now();
        let balance = run(level, pushes, seed, far).await;
        println!("{balance}\n  in {:.1?}", begun.elapsed());
    }
}

/// Runs the ledger on one gateway, from its start to its end.
async fn run(level: Level, pushes: usize, seed: u64, far: Option<IpAddr>) -> String {
    let gateway = gateway(far).await;
    let (world, clock, mut news) = World::new(&gateway, seed, level, pushes);
    let world = Arc::new(world);
    let mut clients = Clients::spawn(&world);
    let mut pushers = JoinSet::new();
    for number in 0..PUSHERS {
        let (caller, other) = (gateway.grpc().await, channel(&gateway).await);
        let pusher = Pusher::new(world.clone(), number);
        pushers.spawn(async move { (number, pusher.push_all(caller, other).await) });
    }
    let mut records: Vec<Vec<Record>> = (0..PUSHERS).map(|_| Vec::new()).collect();
    while let Some(done) = clients.or_else(pushers.join_next()).await {
        let (number, share) = done.unwrap();
        records[number] = share;
    }
    let begun = Instant::now();
    clock.send_replace(Time::ComeHome);
    clients.or_else(told(&mut news, clients.count, |news| news == News::IsHome)).await;
    let last = clients.or_else(send_last(&gateway, &world, &mut news, clients.of_user.clone())).await;
    let counters = clients.or_else(quiet(&gateway, clients.count)).await;
    println!("  home after {:.1?}", begun.elapsed());
    clock.send_replace(Time::Leave);
    told(&mut news, clients.count, |news| news == News::IsReadyToEnd).await;
    let report = gateway.stop().await;
    assert_eq!(report.connections_cut, 0);
    let (books, visits) = clients.join().await;
    let records = (0..pushes).map(|number| (number, number % PUSHERS)).map(|(number, pusher)| {
        let place = number / PUSHERS;
        std::mem::replace(&mut records[pusher][place], Record::new(0, answers::Lane::Call, 0, false))
    });
    let records = records.chain(last).collect();
    Ledger { records, books, visits, counters }.balance()
}

/// Opens a connection for a stream, with the window sizes that the README recommends.
async fn channel(gateway: &TestGateway) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{}", gateway.control)).unwrap();
    let endpoint = endpoint.initial_stream_window_size(64 * 1024).initial_connection_window_size(1024 * 1024);
    soon(endpoint.connect()).await.unwrap()
}

/// All clients of a run.
struct Clients {
    sessions: JoinSet<Vec<Book>>,
    legacy: JoinSet<Visits>,
    count: usize,
    of_user: Vec<usize>,
}

impl Clients {
    fn spawn(world: &Arc<World>) -> Self {
        let (mut sessions, mut legacy, mut of_user) = (JoinSet::new(), JoinSet::new(), Vec::new());
        let mut count = 0;
        for (user, sessions_of_user) in households() {
            for _ in 0..sessions_of_user {
                sessions.spawn(Roamer::new(world.clone(), user, count).live());
                count += 1;
            }
            if has_legacy(user) {
                legacy.spawn(Listener::new(world.clone(), user, count).live());
                count += 1;
            }
            of_user.push(sessions_of_user + usize::from(has_legacy(user)));
        }
        Self { sessions, legacy, count, of_user }
    }

    /// Waits for a future, and panics if a client ends first.
    async fn or_else<T>(&mut self, other: impl Future<Output = T>) -> T {
        tokio::select! {
            output = other => output,
            Some(ended) = self.sessions.join_next() => panic!("a session client ended early: {:?}", ended.err()),
            Some(ended) = self.legacy.join_next() => panic!("a legacy client ended early: {:?}", ended.err()),
        }
    }

    async fn join(self) -> (Vec<Book>, Vec<Visits>) {
        let books = soon(self.sessions.join_all()).await.into_iter().flatten().collect();
        (books, soon(self.legacy.join_all()).await)
    }
}

/// Waits until `count` clients have sent this news.
async fn told(news: &mut mpsc::UnboundedReceiver<News>, count: usize, is_it: impl Fn(News) -> bool) {
    let mut left = count;
    while left > 0 {
        left -= usize::from(is_it(soon(news.recv()).await.unwrap()));
    }
}

/// Pushes to every user until each of its clients has received a message that comes after all others.
async fn send_last(
    gateway: &TestGateway,
    world: &World,
    news: &mut mpsc::UnboundedReceiver<News>,
    mut missing: Vec<usize>,
) -> Vec<Record> {
    let caller = gateway.grpc().await;
    let mut records = Vec::new();
    let begun = Instant::now();
    while missing.iter().any(|clients| *clients > 0) {
        assert!(begun.elapsed() < PATIENCE, "not everybody has everything: {missing:?}");
        let users = missing.iter().enumerate().filter(|(_, clients)| **clients > 0);
        let pushes: Vec<_> = users
            .zip(world.pushes + records.len()..)
            .map(|((user, _), number)| push_last(caller.clone(), user, u32::try_from(number).unwrap()))
            .collect();
        records.extend(futures_util::future::join_all(pushes).await);
        // Clients report shortly after their acknowledgement. Users with a missing report get another push.
        while let Ok(Some(told)) = tokio::time::timeout(Duration::from_millis(20), news.recv()).await {
            if let News::HasAll { user } = told {
                missing[user] -= 1;
            }
        }
    }
    records
}

/// Waits until the gateway has nothing left to do, then reads the counters.
async fn quiet(gateway: &TestGateway, clients: usize) -> Counters {
    gateway.until("pushgate_connections", |open| open == clients as u64).await;
    for gauge in ["pushgate_sessions_away", "pushgate_outbox_messages", "pushgate_journal_messages"] {
        gateway.until(gauge, |left| left == 0).await;
    }
    Counters::read(&gateway.get("/metrics").await.body)
}

/// Panics if two items are equal.
fn assert_distinct<T: std::hash::Hash + Eq + std::fmt::Debug>(all: impl Iterator<Item = T>, what: &str) {
    let mut known = HashSet::new();
    for one in all {
        let text = format!("{one:?}");
        assert!(known.insert(one), "twice the same {what}: {text}");
    }
}

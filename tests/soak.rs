//! A minute of everything at once: 2,000 sockets that come and go, pushes through both doors, and a ledger that must
//! balance.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use support::{Client, TestGateway, soon};
use tokio_tungstenite::tungstenite::Message;

const MINUTE: Duration = Duration::from_secs(60);
const SOCKETS: usize = 2000;
const SOCKETS_PER_USER: usize = 4;
/// The rest leave with a close frame and read to the end, so that each of their messages can be accounted for.
const SOCKETS_THAT_RESET: usize = 200;
const PUSHERS: usize = 8;

#[derive(Default)]
struct Ledger {
    /// By connections that leave with a close frame.
    received: AtomicU64,
    visits: AtomicU64,
    over: AtomicBool,
}

fn user(socket: usize) -> String {
    format!("user {}", socket / SOCKETS_PER_USER)
}

fn resets(socket: usize) -> bool {
    socket < SOCKETS_THAT_RESET
}

/// One socket: comes, takes a while of messages, goes, comes again.
async fn visit_again_and_again(gateway: Arc<TestGateway>, socket: usize, ledger: Arc<Ledger>) {
    let mut stay = 20 + socket * 7 % 180;
    while !ledger.over.load(Ordering::Relaxed) {
        stay = 20 + (stay * 31 + 17) % 180;
        // An address for every thousand, or the ports that rest after closing would run out.
        let source = ([127, 0, 1, u8::try_from(1 + socket / 1000).unwrap()], 0).into();
        let mut client = Client::connect_from(source, gateway.clients).await;
        client.send_bind(&user(socket), "soak").await;
        ledger.visits.fetch_add(1, Ordering::Relaxed);
        let received = take(&mut client, if resets(socket) { stay / 4 } else { stay }).await;
        if resets(socket) {
            client.reset();
            continue;
        }
        client.send(Message::Close(None)).await;
        let rest = take(&mut client, usize::MAX).await;
        if let (Some(last), Some(first)) = (received.last(), rest.first()) {
            assert_eq!(last + 1, *first, "no gap while closing");
        }
        ledger.received.fetch_add((received.len() + rest.len()) as u64, Ordering::Relaxed);
    }
}

/// Takes messages until there were `count`, one was the last of all, or the connection ends; they must have no gap and
/// no repetition.
async fn take(client: &mut Client, count: usize) -> Vec<u64> {
    let mut numbers: Vec<u64> = Vec::new();
    while numbers.len() < count {
        let text = match soon(client.socket.next()).await {
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Ping(_))) => continue,
            _ => break,
        };
        let (number, kind) = text.split_once(' ').unwrap();
        let number = number.parse().unwrap();
        if let Some(last) = numbers.last() {
            assert_eq!(number, last + 1, "once and in order");
        }
        numbers.push(number);
        if kind == "last" && count != usize::MAX {
            break;
        }
    }
    numbers
}

/// Pushes to every user in turn, each message by the other door, and says how many were accepted for those that do not
/// reset.
async fn push(
    gateway: Arc<TestGateway>,
    pusher: usize,
    numbers: Arc<Vec<AtomicU64>>,
    kind: &str,
    rounds_end: Instant,
) -> (u64, u64) {
    let (mut json, mut grpc) = (gateway.json(), gateway.grpc().await);
    let (mut pushes, mut accepted) = (0, 0);
    loop {
        for user in (pusher..numbers.len()).step_by(PUSHERS) {
            let number = numbers[user].fetch_add(1, Ordering::Relaxed);
            let (id, message) = (format!("user {user}"), format!("{number} {kind}"));
            let taken = if number.is_multiple_of(2) {
                json.push(&id, "soak", &message).await
            } else {
                let outcome = grpc.push(&id, "soak", &message).await;
                assert_eq!((outcome.matched, outcome.dropped), (outcome.accepted, 0));
                outcome.accepted
            };
            pushes += 1;
            if !resets(user * SOCKETS_PER_USER) {
                accepted += taken;
            }
        }
        if Instant::now() >= rounds_end {
            return (pushes, accepted);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute"]
async fn every_accepted_message_arrives_once_and_in_order() {
    let gateway = Arc::new(TestGateway::with(|config| config.shutdown_grace = Duration::from_secs(20)).await);
    let ledger = Arc::new(Ledger::default());
    let sockets: Vec<_> = (0..SOCKETS)
        .map(|socket| tokio::spawn(visit_again_and_again(gateway.clone(), socket, ledger.clone())))
        .collect();
    let numbers: Arc<Vec<AtomicU64>> = Arc::new((0..SOCKETS / SOCKETS_PER_USER).map(|_| AtomicU64::new(0)).collect());
    let end = Instant::now() + MINUTE;
    let round = |kind: &'static str, end: Instant| {
        let pushers =
            (0..PUSHERS).map(|pusher| tokio::spawn(push(gateway.clone(), pusher, numbers.clone(), kind, end)));
        futures_util::future::join_all(pushers)
    };
    let (mut pushes, mut accepted) = (0, 0);
    let mut count = |results: Vec<Result<(u64, u64), _>>| {
        for result in results {
            let (pushed, taken) = result.unwrap();
            pushes += pushed;
            accepted += taken;
        }
    };
    count(round("more", end).await);
    ledger.over.store(true, Ordering::Relaxed);
    // Whoever is connected leaves at the last message; whoever was just coming gets a further one.
    let mut sockets = futures_util::future::join_all(sockets);
    let ended = loop {
        count(round("last", Instant::now()).await);
        match tokio::time::timeout(Duration::from_millis(100), &mut sockets).await {
            Ok(ended) => break ended,
            Err(_) => assert!(Instant::now() < end + MINUTE, "sockets did not come to an end"),
        }
    };
    ended.into_iter().for_each(|socket| socket.unwrap());
    gateway.until_empty().await;
    let undelivered = gateway.metric("pushgate_messages_undelivered_total{reason=\"client_closed\"}").await;
    let (received, visits) = (ledger.received.load(Ordering::Relaxed), ledger.visits.load(Ordering::Relaxed));
    println!(
        "{visits} visits, {pushes} pushes, {accepted} accepted, {received} received, {undelivered} told as undelivered"
    );
    assert_eq!(accepted, received + undelivered);
    assert!(visits > SOCKETS as u64, "sockets came and went");
    for reason in ["queue_full", "write_timeout", "pong_timeout", "panicked", "protocol_error"] {
        assert_eq!(gateway.metric(&format!("pushgate_closes_total{{reason=\"{reason}\"}}")).await, 0, "{reason}");
    }
    assert_eq!(gateway.metric("pushgate_outbox_messages").await, 0);
    let report = Arc::try_unwrap(gateway).ok().expect("the tasks are done").stop().await;
    assert_eq!(report.connections_cut, 0);
}

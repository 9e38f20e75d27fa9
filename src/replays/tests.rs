use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use tokio::sync::oneshot;

use super::*;
use crate::delivery::Delivery;
use crate::message::{Names, Priority, SlowReaderPolicy};
use crate::outcome::Level;

const LIMITS: Limits = Limits { window: Duration::from_secs(10), keys_max: 100, bytes_max: 1 << 20 };

fn replays(limits: Limits) -> Replays {
    Replays::new(limits, Arc::new(Metrics::new()))
}

fn push() -> Push {
    Push::new("ann", "mail", "m").expect("valid")
}

fn made(receivers: usize) -> Made {
    let names = Names::new();
    let delivery = Delivery::new(names.message_id(), &push(), SlowReaderPolicy::default(), Instant::now());
    let delivery = delivery.followed((0..receivers).map(|_| names.connection_id()));
    let outcome = Outcome::count(names.message_id(), Level::Accepted, Vec::new());
    Made { outcome, receipt: delivery.receipt() }
}

/// Whether the push was made now rather than replayed.
fn is_made(replays: &Replays, caller: &str, key: &str, now: Instant, receivers: usize) -> bool {
    let push = push();
    let once = replays.once(caller, key, &push, now, async { made(receivers) });
    let made = once.now_or_never().expect("nobody else makes it").expect("the same push");
    !made.outcome.replayed
}

#[test]
fn a_key_is_known_for_the_window_and_to_its_caller() {
    let (replays, start) = (replays(LIMITS), Instant::now());
    assert!(is_made(&replays, "billing", "1", start, 1));
    assert!(!is_made(&replays, "billing", "1", start + Duration::from_millis(9_999), 1));
    assert!(is_made(&replays, "shipping", "1", start, 1));
    assert!(is_made(&replays, "billing", "1", start + Duration::from_secs(10), 1));
    assert_eq!(replays.metrics.idempotency_keys_forgotten.get(), 0, "their time was over");
}

#[test]
fn of_too_many_keys_the_oldest_is_forgotten_and_counted() {
    let (replays, now) = (replays(Limits { keys_max: 2, ..LIMITS }), Instant::now());
    for key in ["1", "2", "3"] {
        assert!(is_made(&replays, "billing", key, now, 1));
    }
    assert_eq!(replays.metrics.idempotency_keys_forgotten.get(), 1);
    assert!(["3", "2"].iter().all(|key| !is_made(&replays, "billing", key, now, 1)));
    assert!(is_made(&replays, "billing", "1", now, 1));
}

#[test]
fn many_connections_take_the_room_of_many_keys_and_the_latest_is_always_remembered() {
    let (replays, now) = (replays(Limits { bytes_max: 300_000, ..LIMITS }), Instant::now());
    for key in ["1", "2", "3"] {
        assert!(is_made(&replays, "billing", key, now, 1_500));
    }
    let forgotten = || replays.metrics.idempotency_keys_forgotten.get();
    assert_eq!(forgotten(), 1, "{:?} bytes", replays.known.lock().expect("no panic").bytes);
    assert!(is_made(&replays, "billing", "4", now, 10_000));
    assert!(!is_made(&replays, "billing", "4", now, 10_000));
    assert_eq!(forgotten(), 3);
}

#[test]
fn the_part_is_named_in_which_a_push_differs_and_it_is_not_made() {
    let (replays, now) = (replays(LIMITS), Instant::now());
    let id = Names::new().connection_id();
    let collapsing = push().with_collapse_key("key").expect("valid");
    let pushes = [
        (Push::new("bob", "mail", "m").expect("valid"), Field::UserId),
        (Push::to_everyone("mail", "m").expect("valid"), Field::UserId),
        (Push::new("ann", "chat", "m").expect("valid"), Field::Event),
        (Push::new("ann", "mail", "n").expect("valid"), Field::Message),
        (Push::new("ann", "mail", bytes::Bytes::from_static(b"m")).expect("valid"), Field::Message),
        (push().with_ttl(Duration::ZERO), Field::Ttl),
        (push().with_priority(Priority::Bulk), Field::Priority),
        (collapsing, Field::CollapseKey),
        (push().with_slow_reader_policy(SlowReaderPolicy::DropNewest), Field::SlowReaderPolicy),
        (push().only_to(id), Field::ConnectionId),
        (push().excluding([id]), Field::ExcludedConnectionIds),
    ];
    assert!(is_made(&replays, "billing", "1", now, 1));
    for (push, differs) in pushes {
        let refused = replays.once("billing", "1", &push, now, async { panic!("it must not be made") });
        assert_eq!(refused.now_or_never().expect("known at once").map(|_| ()), Err(differs));
    }
    assert!(!is_made(&replays, "billing", "1", now, 1), "the first is still the one");
    let (one, other) = (Names::new().connection_id(), id);
    let excluding = |ids: [_; 2]| Fingerprint::of(&push().excluding(ids), &replays.hasher);
    assert_eq!(excluding([one, other]), excluding([other, one]), "in whatever order");
}

/// A push by one caller of the key "1", in a task of its own. It is made once `go` says so, and counted then.
struct Caller {
    go: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Made>,
}

/// As far as callers get without being told to go on.
async fn caller(replays: &Arc<Replays>, makes: &Arc<AtomicUsize>) -> Caller {
    let (go, gone) = oneshot::channel();
    let (replays, makes) = (replays.clone(), makes.clone());
    let task = tokio::spawn(async move {
        let make = async {
            gone.await.expect("told to go, or it panics here");
            makes.fetch_add(1, Ordering::Relaxed);
            made(1)
        };
        replays.once("billing", "1", &push(), Instant::now(), make).await.expect("the same push")
    });
    tokio::task::yield_now().await;
    Caller { go, task }
}

#[tokio::test]
async fn who_repeats_a_push_that_is_being_made_waits_and_gets_the_same_outcome() {
    let (replays, makes) = (Arc::new(replays(Limits { keys_max: 1, ..LIMITS })), Arc::default());
    let first = caller(&replays, &makes).await;
    let repeats = [caller(&replays, &makes).await, caller(&replays, &makes).await];
    assert!(repeats.iter().all(|repeat| !repeat.task.is_finished()));
    let other = Push::new("ann", "mail", "n").expect("valid");
    let refused = replays.once("billing", "1", &other, Instant::now(), async { made(1) }).now_or_never();
    assert_eq!(refused.expect("known at once").map(|_| ()), Err(Field::Message));
    first.go.send(()).expect("it waits");
    let first = first.task.await.expect("no panic").outcome;
    assert!(!first.replayed);
    assert!(is_made(&replays, "billing", "2", Instant::now(), 1), "the first is forgotten before the others wake");
    for repeat in repeats {
        let outcome = repeat.task.await.expect("no panic").outcome;
        assert_eq!(outcome, Outcome { replayed: true, ..first.clone() });
    }
    assert_eq!(makes.load(Ordering::Relaxed), 1);
    assert!(replays.known().making.is_empty());
}

#[tokio::test]
async fn a_push_whose_maker_is_cancelled_or_panics_is_made_by_the_next() {
    let (replays, makes) = (Arc::new(replays(LIMITS)), Arc::default());
    let cancelled = caller(&replays, &makes).await;
    let panicked = caller(&replays, &makes).await;
    let (next, last) = (caller(&replays, &makes).await, caller(&replays, &makes).await);
    cancelled.task.abort();
    assert!(cancelled.task.await.expect_err("aborted").is_cancelled());
    drop(panicked.go);
    assert!(panicked.task.await.expect_err("it panics").is_panic());
    next.go.send(()).expect("it waits");
    let made = next.task.await.expect("no panic").outcome;
    assert!(!made.replayed);
    assert_eq!(last.task.await.expect("no panic").outcome, Outcome { replayed: true, ..made });
    assert_eq!(makes.load(Ordering::Relaxed), 1);
    assert!(!is_made(&replays, "billing", "1", Instant::now(), 1));
}

#[tokio::test]
async fn a_key_under_which_nothing_was_made_is_free() {
    let (replays, makes) = (Arc::new(replays(LIMITS)), Arc::default());
    let (first, repeat) = (caller(&replays, &makes).await, caller(&replays, &makes).await);
    for caller in [repeat, first] {
        caller.task.abort();
        assert!(caller.task.await.expect_err("aborted").is_cancelled());
    }
    assert!(replays.known().making.is_empty());
    let other = Push::new("ann", "mail", "n").expect("valid");
    let made = replays.once("billing", "1", &other, Instant::now(), async { made(1) }).now_or_never();
    assert!(made.expect("nobody else makes it").is_ok_and(|made| !made.outcome.replayed));
}

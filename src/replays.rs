//! Remembers pushes made under an idempotency key, so that a repeated push returns the outcome of the first.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;

use crate::delivery::Receipt;
use crate::message::{Field, Push};
use crate::metrics::Metrics;
use crate::outcome::Outcome;

/// The recent pushes with an idempotency key, within the limits.
#[derive(Debug)]
pub(crate) struct Replays {
    limits: Limits,
    /// Randomly keyed for this process, so that nobody can construct two pushes with the same fingerprint.
    hasher: RandomState,
    metrics: Arc<Metrics>,
    /// Held for look-ups only, never while a push is made. No other lock is taken under it.
    known: Mutex<Known>,
}

/// The limits on what is remembered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) window: Duration,
    pub(crate) keys_max: usize,
    /// Past this limit the oldest keys are forgotten, but never the newest.
    pub(crate) bytes_max: usize,
}

#[derive(Debug, Default)]
struct Known {
    /// Not in the limits: each is in the hands of a caller, who has a place of its own.
    making: HashMap<Key, Making>,
    pushes: HashMap<Key, Remembered>,
    /// The same keys, in the order in which they were remembered.
    ages: VecDeque<(Instant, Key)>,
    bytes: usize,
}

/// A push that is being made. Whoever repeats it meanwhile waits at the cell. If its maker is cancelled or panics, the next
/// one at the cell makes it.
#[derive(Debug)]
struct Making {
    cell: Arc<OnceCell<Made>>,
    fingerprint: Fingerprint,
    /// Counted under the lock, as the count of an `Arc` could not be.
    holds: usize,
}

/// One caller's hold of a push that is being made. The last to give it up unmade frees the key.
struct Hold<'a> {
    replays: &'a Replays,
    key: Key,
    cell: Arc<OnceCell<Made>>,
    fingerprint: Fingerprint,
}

#[derive(Debug)]
struct Remembered {
    made: Made,
    fingerprint: Fingerprint,
    bytes: usize,
}

/// A caller's idempotency key. Different callers may use the same key text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    caller: Arc<str>,
    key: Arc<str>,
}

impl Key {
    /// The memory of a key and its push, in bytes: its slots in the map and in the queue, and its texts. The map's slot
    /// counts twice, because the map can have up to twice the slots that it needs.
    fn memory(&self) -> usize {
        let texts = self.caller.len() + self.key.len() + 4 * size_of::<usize>();
        2 * size_of::<(Self, Remembered)>() + size_of::<(Instant, Self)>() + texts
    }
}

/// A push that was made: its outcome, and a receipt if its progress is followed.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) outcome: Outcome,
    pub(crate) receipt: Option<Arc<Receipt>>,
}

impl Made {
    /// The same, told to whoever repeats the push.
    fn replayed(self) -> Self {
        Self { outcome: Outcome { replayed: true, ..self.outcome }, ..self }
    }
}

/// What was found under a key.
enum Found<'a> {
    Made(Made),
    /// By this caller, or by another whom it may have to follow.
    Making(Hold<'a>),
}

/// The parts of a push that must match when a key is reused. What the caller asks to have reported is not among them.
const PARTS: [Field; 9] = [
    Field::UserId,
    Field::Event,
    Field::Message,
    Field::Ttl,
    Field::Priority,
    Field::CollapseKey,
    Field::SlowReaderPolicy,
    Field::ConnectionId,
    Field::ExcludedConnectionIds,
];

/// One hash for each of [`PARTS`] of a push, so that the part that differs can be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint([u64; PARTS.len()]);

impl Fingerprint {
    fn of(push: &Push, hasher: &RandomState) -> Self {
        Self(PARTS.map(|part| match part {
            Field::UserId => hash(hasher, push.user_id()),
            Field::Event => hash(hasher, push.event()),
            Field::Message => hash(hasher, push.payload()),
            Field::Ttl => hash(hasher, push.ttl()),
            Field::Priority => hash(hasher, push.priority()),
            Field::CollapseKey => hash(hasher, push.collapse_key()),
            Field::SlowReaderPolicy => hash(hasher, push.slow_reader_policy()),
            Field::ConnectionId => hash(hasher, push.only()),
            Field::ExcludedConnectionIds => hash(hasher, push.excluded_in_order()),
            Field::IdempotencyKey => 0,
        }))
    }

    /// Returns the first part in which the pushes differ, if they do.
    fn must_equal(&self, other: &Self) -> Result<(), Field> {
        let mut parts = PARTS.into_iter().zip(self.0.iter().zip(&other.0));
        parts.find_map(|(part, (one, other))| (one != other).then_some(part)).map_or(Ok(()), Err)
    }
}

fn hash(hasher: &RandomState, part: impl Hash) -> u64 {
    hasher.hash_one(part)
}

impl Replays {
    pub(crate) fn new(limits: Limits, metrics: Arc<Metrics>) -> Self {
        Self { limits, hasher: RandomState::new(), metrics, known: Mutex::default() }
    }

    /// Makes a push once. If it was already made under this key within the window, or is being made, returns the first push
    /// instead, once it is made.
    ///
    /// If the maker is cancelled, the next one makes the push, so `make` must offer the message only after its last wait.
    ///
    /// # Errors
    /// Refuses a push that differs from the one made under this key, and returns the first part that differs.
    pub(crate) async fn once(
        &self,
        caller: &str,
        key: &str,
        push: &Push,
        now: Instant,
        make: impl Future<Output = Made>,
    ) -> Result<Made, Field> {
        let key = Key { caller: caller.into(), key: key.into() };
        let hold = match self.find(key, Fingerprint::of(push, &self.hasher), now)? {
            Found::Made(made) => return Ok(made.replayed()),
            Found::Making(hold) => hold,
        };
        let mut is_ours = false;
        let make = || {
            is_ours = true;
            make
        };
        let made = hold.cell.get_or_init(make).await.clone();
        if !is_ours {
            return Ok(made.replayed());
        }
        self.remember(&hold, made.clone(), now);
        Ok(made)
    }

    /// What is known under a key. The key is taken if that is nothing.
    fn find(&self, key: Key, fingerprint: Fingerprint, now: Instant) -> Result<Found<'_>, Field> {
        let mut known = self.known();
        known.forget_older(now, self.limits.window);
        if let Some(remembered) = known.pushes.get(&key) {
            fingerprint.must_equal(&remembered.fingerprint)?;
            return Ok(Found::Made(remembered.made.clone()));
        }
        let making = known.making.entry(key.clone()).or_insert_with(|| Making::new(fingerprint));
        fingerprint.must_equal(&making.fingerprint)?;
        making.holds += 1;
        Ok(Found::Making(Hold { replays: self, key, cell: making.cell.clone(), fingerprint }))
    }

    fn remember(&self, hold: &Hold<'_>, made: Made, now: Instant) {
        let bytes = hold.key.memory() + made.receipt.as_ref().map_or(0, |receipt| receipt.memory());
        let remembered = Remembered { made, fingerprint: hold.fingerprint, bytes };
        let mut known = self.known();
        known.making.remove(&hold.key);
        let forgotten = known.remember(hold.key.clone(), remembered, now, self.limits);
        self.metrics.idempotency_keys_forgotten.inc_by(forgotten);
    }

    /// The number of remembered keys and their memory in bytes.
    pub(crate) fn usage(&self) -> (usize, usize) {
        let known = self.known();
        (known.pushes.len(), known.bytes)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Making {
    fn new(fingerprint: Fingerprint) -> Self {
        Self { cell: Arc::default(), fingerprint, holds: 0 }
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if self.cell.initialized() {
            // Its maker has remembered it, or is about to.
            return;
        }
        let mut known = self.replays.known();
        if let Some(making) = known.making.get_mut(&self.key).filter(|making| Arc::ptr_eq(&making.cell, &self.cell)) {
            making.holds -= 1;
            if making.holds == 0 {
                known.making.remove(&self.key);
            }
        }
    }
}

impl Known {
    fn forget_older(&mut self, now: Instant, window: Duration) {
        while let Some((at, _)) = self.ages.front()
            && now.saturating_duration_since(*at) >= window
        {
            self.forget_oldest();
        }
    }

    /// Remembers a push. Returns how many others were forgotten before their window was over to make room.
    fn remember(&mut self, key: Key, remembered: Remembered, now: Instant, limits: Limits) -> u64 {
        let mut forgotten = 0;
        let is_full =
            |known: &Self| known.pushes.len() >= limits.keys_max || known.bytes + remembered.bytes > limits.bytes_max;
        while !self.ages.is_empty() && is_full(self) {
            self.forget_oldest();
            forgotten += 1;
        }
        self.bytes += remembered.bytes;
        self.ages.push_back((now, key.clone()));
        self.pushes.insert(key, remembered);
        forgotten
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.ages.pop_front()
            && let Some(remembered) = self.pushes.remove(&key)
        {
            self.bytes -= remembered.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
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
}

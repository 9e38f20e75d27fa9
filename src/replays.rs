//! Remembers pushes made under an idempotency key, so that a repeated push returns the outcome of the first.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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
    /// A std mutex, held while a push with a key is offered to its outboxes. A concurrent push with the same key waits
    /// and then finds the first. Lock order: this lock before every other lock that a push takes.
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
    pushes: HashMap<Key, Remembered>,
    /// The same keys, oldest first.
    ages: VecDeque<(Instant, Key)>,
    bytes: usize,
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

    /// The first part in which the pushes differ.
    fn first_difference(&self, other: &Self) -> Option<Field> {
        let mut parts = PARTS.into_iter().zip(self.0.iter().zip(&other.0));
        parts.find_map(|(part, (one, other))| (one != other).then_some(part))
    }
}

fn hash(hasher: &RandomState, part: impl Hash) -> u64 {
    hasher.hash_one(part)
}

impl Replays {
    pub(crate) fn new(limits: Limits, metrics: Arc<Metrics>) -> Self {
        Self { limits, hasher: RandomState::new(), metrics, known: Mutex::default() }
    }

    /// Makes a push once. If it was already made under this key within the window, returns the first push instead.
    ///
    /// # Errors
    /// Refuses a push that differs from the one made under this key, and returns the first part that differs.
    pub(crate) fn once(
        &self,
        caller: &str,
        key: &str,
        push: &Push,
        now: Instant,
        make: impl FnOnce() -> Made,
    ) -> Result<Made, Field> {
        let key = Key { caller: caller.into(), key: key.into() };
        let fingerprint = Fingerprint::of(push, &self.hasher);
        let mut known = self.known();
        known.forget_older(now, self.limits.window);
        if let Some(remembered) = known.pushes.get(&key) {
            let Made { outcome, receipt } = remembered.made.clone();
            let replayed = Made { outcome: Outcome { replayed: true, ..outcome }, receipt };
            return fingerprint.first_difference(&remembered.fingerprint).map_or(Ok(replayed), Err);
        }
        let made = make();
        let bytes = key.memory() + made.receipt.as_ref().map_or(0, |receipt| receipt.memory());
        let remembered = Remembered { made: made.clone(), fingerprint, bytes };
        let forgotten = known.remember(key, remembered, now, self.limits);
        self.metrics.idempotency_keys_forgotten.inc_by(forgotten);
        Ok(made)
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
        let made = replays.once(caller, key, &push(), now, || made(receivers)).expect("the same push");
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
            let refused = replays.once("billing", "1", &push, now, || panic!("it must not be made"));
            assert_eq!(refused.map(|_| ()), Err(differs));
        }
        assert!(!is_made(&replays, "billing", "1", now, 1), "the first is still the one");
        let (one, other) = (Names::new().connection_id(), id);
        let excluding = |ids: [_; 2]| Fingerprint::of(&push().excluding(ids), &replays.hasher);
        assert_eq!(excluding([one, other]), excluding([other, one]), "in whatever order");
    }
}

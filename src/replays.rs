//! Remembers pushes made under an idempotency key, so that a repeated push returns the outcome of the first.

#[cfg(test)]
mod tests;

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

//! Pushes that were made under an idempotency key, so that a caller who repeats one is told of the first.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::delivery::Receipt;
use crate::outcome::Outcome;

/// The pushes of the last while, at most so many.
#[derive(Debug)]
pub(crate) struct Replays {
    window: Duration,
    keys_max: usize,
    made: HashMap<Key, Made>,
    /// The same keys, oldest first.
    ages: VecDeque<(Instant, Key)>,
}

/// A caller's own name for a push. Two callers may use the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    caller: Arc<str>,
    key: Arc<str>,
}

impl Key {
    pub(crate) fn new(caller: &str, key: &str) -> Self {
        Self { caller: caller.into(), key: key.into() }
    }
}

/// A push that was made: who took it, and if it is followed, how far it gets.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) outcome: Outcome,
    pub(crate) receipt: Option<Arc<Receipt>>,
}

impl Replays {
    pub(crate) fn new(window: Duration, keys_max: usize) -> Self {
        Self { window, keys_max, made: HashMap::new(), ages: VecDeque::new() }
    }

    /// The push that was made under this key within the window.
    pub(crate) fn find(&mut self, key: &Key, now: Instant) -> Option<&Made> {
        while let Some((at, _)) = self.ages.front()
            && now.saturating_duration_since(*at) >= self.window
        {
            self.forget_oldest();
        }
        self.made.get(key)
    }

    /// Remembers a push, and forgets the oldest one where there would be too many.
    pub(crate) fn remember(&mut self, key: Key, made: Made, now: Instant) {
        if self.made.len() >= self.keys_max {
            self.forget_oldest();
        }
        self.ages.push_back((now, key.clone()));
        self.made.insert(key, made);
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.ages.pop_front() {
            self.made.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Names;
    use crate::outcome::Level;

    fn made() -> Made {
        let outcome = Outcome::count(Names::new().message_id(), Level::Accepted, Vec::new());
        Made { outcome, receipt: None }
    }

    #[test]
    fn a_key_is_known_for_the_window_and_to_its_caller() {
        let (mut replays, start) = (Replays::new(Duration::from_secs(10), 100), Instant::now());
        let key = Key::new("billing", "1");
        assert!(replays.find(&key, start).is_none());
        replays.remember(key.clone(), made(), start);
        assert!(replays.find(&key, start + Duration::from_millis(9_999)).is_some());
        assert!(replays.find(&Key::new("shipping", "1"), start).is_none());
        assert!(replays.find(&key, start + Duration::from_secs(10)).is_none());
    }

    #[test]
    fn of_too_many_keys_the_oldest_is_forgotten() {
        let (mut replays, now) = (Replays::new(Duration::from_secs(10), 2), Instant::now());
        for key in ["1", "2", "3"] {
            replays.remember(Key::new("billing", key), made(), now);
        }
        let known = ["1", "2", "3"].map(|key| replays.find(&Key::new("billing", key), now).is_some());
        assert_eq!(known, [false, true, true]);
    }
}

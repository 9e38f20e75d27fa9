//! How much of something one peer may do: so much a second, and a burst that was saved up. It knows no clock of its own.

use std::time::Instant;

/// For how many seconds a rate can be saved up: that many seconds' worth may come at once.
const BURST_SECONDS: f32 = 10.0;

/// What is left of a peer's rate.
#[derive(Debug)]
pub(crate) struct Allowance {
    per_second: f32,
    left: f32,
    at: Instant,
}

impl Allowance {
    /// Begins with a whole burst.
    pub(crate) fn new(per_second: u32, now: Instant) -> Self {
        Self { per_second: per_second as f32, left: per_second as f32 * BURST_SECONDS, at: now }
    }

    /// Uses up `count`. Says whether that much was allowed; once it was not, the peer is over its rate.
    pub(crate) fn spend(&mut self, count: u32, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.at).as_secs_f32() * self.per_second;
        self.at = now;
        self.earn(earned);
        self.left -= count as f32;
        self.left >= 0.0
    }

    /// Allows `count` more, for something that the peer answers.
    pub(crate) fn earn(&mut self, count: f32) {
        self.left = (self.left + count).min(self.per_second * BURST_SECONDS);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_is_allowed_once_and_the_rate_for_ever() {
        let start = Instant::now();
        let mut allowance = Allowance::new(10, start);
        assert!(allowance.spend(100, start));
        for second in 1..1000 {
            assert!(allowance.spend(10, start + Duration::from_secs(second)), "second {second}");
        }
        assert!(!allowance.spend(10, start + Duration::from_secs(999)));
    }

    #[test]
    fn what_is_not_used_is_saved_up_to_the_burst() {
        let start = Instant::now();
        let mut allowance = Allowance::new(2, start);
        let later = start + Duration::from_secs(3600);
        assert!(allowance.spend(20, later));
        assert!(!allowance.spend(1, later));
    }

    #[test]
    fn an_answer_that_is_expected_costs_nothing() {
        let start = Instant::now();
        let mut allowance = Allowance::new(1, start);
        assert!(allowance.spend(10, start));
        for _ in 0..1000 {
            allowance.earn(1.0);
            assert!(allowance.spend(1, start));
        }
    }
}

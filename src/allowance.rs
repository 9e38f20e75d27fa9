//! A rate limit for one peer: an amount per second, plus a burst of unused allowance. The caller passes in the time.

use std::time::{Duration, Instant};

/// The largest burst, in seconds of the rate. Unused allowance accumulates up to this amount.
const BURST_SECONDS: f32 = 10.0;

/// After this time without use, the whole burst is allowed again.
pub(crate) const BURST: Duration = Duration::from_secs(BURST_SECONDS as u64);

/// A peer's remaining allowance.
#[derive(Debug)]
pub(crate) struct Allowance {
    per_second: f32,
    left: f32,
    at: Instant,
}

impl Allowance {
    /// Starts with a full burst.
    pub(crate) fn new(per_second: u32, now: Instant) -> Self {
        Self { per_second: per_second as f32, left: per_second as f32 * BURST_SECONDS, at: now }
    }

    /// Uses up `count` and returns whether that was allowed. `false` means that the peer exceeds its rate.
    pub(crate) fn spend(&mut self, count: u32, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.at).as_secs_f32() * self.per_second;
        self.at = now;
        self.earn(earned);
        self.left -= count as f32;
        self.left >= 0.0
    }

    /// Uses up `count` only if that is allowed, and returns whether it was.
    pub(crate) fn try_spend(&mut self, count: u32, now: Instant) -> bool {
        let is_allowed = self.spend(count, now);
        if !is_allowed {
            self.left += count as f32;
        }
        is_allowed
    }

    /// Allows `count` more, because the gateway has sent something that the peer must answer.
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

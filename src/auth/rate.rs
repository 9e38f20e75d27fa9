//! How many pushes a second a key may make, over all its connections.

use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, de};

/// The default burst, in seconds of the rate, as clients have it.
const BURST_SECONDS: f64 = 10.0;

/// The rate of one key, as a leaky bucket with a clock instead of a level: it holds the time at which all pushes so far
/// would have been made at the even pace of the rate.
#[derive(Debug)]
pub(crate) struct Rate {
    limit: Limit,
    made_at: Mutex<Option<Instant>>,
}

/// So many pushes a second, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// Between two pushes at an even pace.
    each: Duration,
    burst: u32,
}

/// Pushes per second. A fraction is less than one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PerSecond(f64);

impl<'de> Deserialize<'de> for PerSecond {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = f64::deserialize(deserializer)?;
        if (0.001..=1_000_000.0).contains(&number) {
            return Ok(Self(number));
        }
        Err(de::Error::custom("the rate is not a number of pushes per second from 0.001 to 1000000"))
    }
}

impl Limit {
    /// Ten seconds' worth at once, and at least one push, unless said otherwise.
    pub(crate) fn new(PerSecond(per_second): PerSecond, burst: Option<NonZeroU32>) -> Self {
        let usual = (per_second * BURST_SECONDS).max(1.0) as u32;
        Self { each: Duration::from_secs_f64(1.0 / per_second), burst: burst.map_or(usual, NonZeroU32::get) }
    }
}

impl Rate {
    /// Starts with a full burst.
    pub(crate) fn new(limit: Limit) -> Self {
        Self { limit, made_at: Mutex::new(None) }
    }

    pub(crate) fn limit(&self) -> Limit {
        self.limit
    }

    /// Uses up one push. A push too many uses up nothing.
    ///
    /// # Errors
    /// How long it takes until the next push is allowed.
    pub(crate) fn spend(&self, now: Instant) -> Result<(), Duration> {
        let Limit { each, burst } = self.limit;
        let ahead_max = each.saturating_mul(burst);
        let mut made_at = self.made_at.lock().unwrap_or_else(PoisonError::into_inner);
        let next = made_at.map_or(now, |at| at.max(now)) + each;
        match next.saturating_duration_since(now).checked_sub(ahead_max) {
            Some(early) if !early.is_zero() => Err(early),
            _ => {
                *made_at = Some(next);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(per_second: u32, burst: Option<u32>) -> Rate {
        let burst = burst.map(|burst| NonZeroU32::new(burst).expect("not 0"));
        Rate::new(Limit::new(PerSecond(f64::from(per_second)), burst))
    }

    fn allowed(rate: &Rate, now: Instant) -> u32 {
        (0..).take_while(|_| rate.spend(now).is_ok()).map(|_| 1).sum()
    }

    #[test]
    fn a_burst_is_allowed_once_and_the_rate_for_ever() {
        let start = Instant::now();
        for (rate, per_second, burst) in [(rate(4, None), 4, 40), (rate(5, Some(7)), 5, 7), (rate(1, Some(1)), 1, 1)] {
            assert_eq!(allowed(&rate, start), burst);
            for second in 1..100 {
                assert_eq!(allowed(&rate, start + Duration::from_secs(second)), per_second, "second {second}");
            }
            assert_eq!(allowed(&rate, start + Duration::from_secs(10_000)), burst, "no more is saved than the burst");
        }
    }

    #[test]
    fn a_push_too_many_is_told_when_the_next_is_allowed_and_does_not_put_it_off() {
        let (rate, start) = (rate(2, Some(1)), Instant::now());
        assert_eq!(rate.spend(start), Ok(()));
        for _ in 0..1000 {
            assert_eq!(rate.spend(start), Err(Duration::from_millis(500)));
        }
        assert_eq!(rate.spend(start + Duration::from_millis(499)), Err(Duration::from_millis(1)));
        assert_eq!(rate.spend(start + Duration::from_millis(500)), Ok(()));
    }
}

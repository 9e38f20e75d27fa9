//! Keeps down how often one thing is logged, however often peers cause it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The minimum time between two lines.
const INTERVAL: Duration = Duration::from_secs(1);

/// Says when a line is due for something that may happen often.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    logged_at: Option<Instant>,
    /// How often it has happened since then without a line.
    left_out: u64,
}

impl Seldom {
    /// Notes that it has happened. If a line is due, returns how many were left out since the last one.
    pub(crate) fn due(&self, now: Instant) -> Option<u64> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.logged_at.is_some_and(|at| now.saturating_duration_since(at) < INTERVAL) {
            held.left_out += 1;
            return None;
        }
        held.logged_at = Some(now);
        Some(std::mem::take(&mut held.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_due_once_a_second_and_tells_of_those_that_were_held_back() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        let due = |after: u64| seldom.due(start + Duration::from_millis(after));
        assert_eq!(
            [due(0), due(1), due(999), due(1000), due(1001), due(5000)],
            [Some(0), None, None, Some(2), None, Some(1)]
        );
    }
}

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
    /// How often it has happened since then.
    count: u64,
}

impl Seldom {
    /// Notes that it has happened, and returns how often it has since the last line, if another line is due.
    pub(crate) fn due(&self, now: Instant) -> Option<u64> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.count += 1;
        if held.logged_at.is_some_and(|at| now.saturating_duration_since(at) < INTERVAL) {
            return None;
        }
        held.logged_at = Some(now);
        Some(std::mem::take(&mut held.count))
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
            [Some(1), None, None, Some(3), None, Some(2)]
        );
    }
}

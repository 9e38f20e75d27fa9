//! A circuit breaker: after some failures in a row nobody is sent to a service that is away, except one to see whether it
//! is back.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// So many failures in a row open the circuit.
const FAILURES_MAX: u32 = 5;

/// How long the circuit is open at first. After each probe that fails, it is open for twice as long.
const WAIT_MIN: Duration = Duration::from_secs(1);

/// The longest such time. Clients that come back later still find out soon that the service is there again.
const WAIT_MAX: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Breaker(Mutex<State>);

#[derive(Clone, Copy, Debug)]
enum State {
    Closed {
        failures: u32,
    },
    Open {
        until: Instant,
        wait: Duration,
    },
    /// One call is on its way to see whether the service is back.
    Probing {
        wait: Duration,
    },
}

/// The leave to make a call. Dropped without a result, it counts as no call.
#[derive(Debug)]
pub(super) struct Leave<'a> {
    breaker: &'a Breaker,
    is_probe: bool,
}

/// What the result of a call has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Changed {
    Nothing,
    Opened,
    Closed,
}

impl Default for Breaker {
    fn default() -> Self {
        Self(Mutex::new(State::Closed { failures: 0 }))
    }
}

impl Breaker {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks whether to make a call. `None` while the circuit is open.
    pub(super) fn leave(&self) -> Option<Leave<'_>> {
        let mut state = self.lock();
        let is_probe = match *state {
            State::Closed { .. } => false,
            State::Open { until, wait } if until <= Instant::now() => {
                *state = State::Probing { wait };
                true
            }
            State::Open { .. } | State::Probing { .. } => return None,
        };
        Some(Leave { breaker: self, is_probe })
    }

    pub(super) fn is_open(&self) -> bool {
        !matches!(*self.lock(), State::Closed { .. })
    }
}

impl Leave<'_> {
    /// The service answered.
    pub(super) fn succeeded(mut self) -> Changed {
        let is_probe = std::mem::take(&mut self.is_probe);
        let mut state = self.breaker.lock();
        match *state {
            State::Probing { .. } if is_probe => {
                *state = State::Closed { failures: 0 };
                Changed::Closed
            }
            State::Closed { .. } => {
                *state = State::Closed { failures: 0 };
                Changed::Nothing
            }
            // A call from before, which says less than the probe will.
            State::Open { .. } | State::Probing { .. } => Changed::Nothing,
        }
    }

    /// The service did not answer, or with nonsense.
    pub(super) fn failed(mut self) -> Changed {
        let is_probe = std::mem::take(&mut self.is_probe);
        let mut state = self.breaker.lock();
        match *state {
            State::Closed { failures } if failures + 1 < FAILURES_MAX => {
                *state = State::Closed { failures: failures + 1 };
                Changed::Nothing
            }
            State::Closed { .. } => {
                *state = State::Open { until: Instant::now() + WAIT_MIN, wait: WAIT_MIN };
                Changed::Opened
            }
            State::Probing { wait } if is_probe => {
                let wait = (wait * 2).min(WAIT_MAX);
                *state = State::Open { until: Instant::now() + wait, wait };
                Changed::Nothing
            }
            State::Open { .. } | State::Probing { .. } => Changed::Nothing,
        }
    }
}

impl Drop for Leave<'_> {
    /// A probe that nobody waits for any more makes way for the next one.
    fn drop(&mut self) {
        let mut state = self.breaker.lock();
        if self.is_probe
            && let State::Probing { wait } = *state
        {
            *state = State::Open { until: Instant::now(), wait };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(breaker: &Breaker, times: u32) -> Changed {
        (0..times).map(|_| breaker.leave().expect("closed").failed()).last().expect("some")
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_open_the_circuit_and_a_good_probe_closes_it() {
        let breaker = Breaker::default();
        assert_eq!(fail(&breaker, FAILURES_MAX - 1), Changed::Nothing);
        breaker.leave().expect("closed").succeeded();
        assert_eq!(fail(&breaker, FAILURES_MAX - 1), Changed::Nothing, "not in a row");
        assert_eq!(fail(&breaker, 1), Changed::Opened);
        assert!(breaker.is_open() && breaker.leave().is_none());
        let mut wait = WAIT_MIN;
        for _ in 0..6 {
            tokio::time::advance(wait - Duration::from_millis(1)).await;
            assert!(breaker.leave().is_none());
            tokio::time::advance(Duration::from_millis(1)).await;
            let probe = breaker.leave().expect("a probe");
            assert!(breaker.leave().is_none(), "one probe at a time");
            probe.failed();
            wait = (wait * 2).min(WAIT_MAX);
        }
        tokio::time::advance(wait).await;
        drop(breaker.leave().expect("a probe that is given up"));
        assert_eq!(breaker.leave().expect("the next").succeeded(), Changed::Closed);
        assert!(!breaker.is_open());
        assert_eq!(fail(&breaker, FAILURES_MAX), Changed::Opened);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_from_before_does_not_decide_for_the_probe() {
        let breaker = Breaker::default();
        let (early, late) = (breaker.leave().expect("closed"), breaker.leave().expect("closed"));
        fail(&breaker, FAILURES_MAX);
        assert_eq!(early.succeeded(), Changed::Nothing);
        assert!(breaker.leave().is_none());
        tokio::time::advance(WAIT_MIN).await;
        let probe = breaker.leave().expect("a probe");
        assert_eq!(late.failed(), Changed::Nothing);
        assert_eq!(probe.succeeded(), Changed::Closed);
    }
}

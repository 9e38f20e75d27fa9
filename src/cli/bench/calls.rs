//! The calls of a run: when each one starts, and its results.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio_util::sync::CancellationToken;

use super::clock::{Timer, now};
use super::report::histogram;
use super::target::Target;
use super::wire::Part;

/// The start times of calls. In an open loop all times are fixed in advance, and the latency of a late call counts from
/// its scheduled time. A server that stalls therefore does not reduce the load.
pub(super) struct Schedule {
    begin: u64,
    end: u64,
    /// The time between two calls, in nanoseconds. `None` in a closed loop.
    interval: Option<f64>,
    number: AtomicU64,
    stop: CancellationToken,
    /// Pushes that were answered, for the progress bar.
    pub(super) pushed: AtomicU64,
}

impl Schedule {
    pub(super) fn new(duration: Duration, calls_per_second: Option<f64>, stop: CancellationToken) -> Self {
        let begin = now();
        let end = begin.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
        let interval = calls_per_second.map(|rate| 1e9 / rate);
        Self { begin, end, interval, number: AtomicU64::new(0), stop, pushed: AtomicU64::new(0) }
    }

    /// Waits for the start time of the next call and returns it. Returns `None` when the run is over.
    pub(super) async fn next(&self, timer: &mut Timer) -> Option<u64> {
        if self.stop.is_cancelled() {
            return None;
        }
        let Some(interval) = self.interval else { return Some(now()).filter(|at| *at < self.end) };
        let number = self.number.fetch_add(1, Relaxed);
        let at = self.begin + (number as f64 * interval) as u64;
        if at >= self.end {
            return None;
        }
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            waited = timer.until(at) => waited.ok().map(|()| at),
        }
    }
}

/// The results of one caller's calls.
pub(super) struct Calls {
    pub(super) pushes: u64,
    pub(super) failures: u64,
    pub(super) first_failure: Option<String>,
    /// The deliveries that the successful pushes should cause.
    pub(super) expected: u64,
    /// The deliveries that the server reported as accepted.
    pub(super) accepted: u64,
    pub(super) latency: Histogram<u64>,
}

impl Calls {
    pub(super) fn new() -> Self {
        Self { pushes: 0, failures: 0, first_failure: None, expected: 0, accepted: 0, latency: histogram() }
    }

    pub(super) fn latency(&mut self, nanoseconds: u64) {
        self.latency.saturating_record(nanoseconds.max(1));
    }

    pub(super) fn done(&mut self, outcome: Result<u64, String>, receivers: u64, schedule: &Schedule) {
        match outcome {
            Ok(accepted) => {
                self.pushes += 1;
                self.accepted += accepted;
                self.expected += receivers;
                schedule.pushed.fetch_add(1, Relaxed);
            }
            Err(why) => self.failed(&why),
        }
    }

    pub(super) fn failed(&mut self, why: &str) {
        self.failures += 1;
        self.first_failure.get_or_insert_with(|| why.to_owned());
    }

    pub(super) fn add(&mut self, other: Self) {
        self.pushes += other.pushes;
        self.failures += other.failures;
        self.first_failure = self.first_failure.take().or(other.first_failure);
        self.expected += other.expected;
        self.accepted += other.accepted;
        self.latency += other.latency;
    }
}

/// What all callers share in one part of a run.
pub(super) struct Call {
    pub(super) target: Arc<Target>,
    pub(super) schedule: Arc<Schedule>,
    pub(super) part: Part,
    pub(super) bytes: usize,
    /// Pushes in one call with `--door batch`.
    pub(super) batch: usize,
}

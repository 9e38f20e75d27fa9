//! The keys of `jwt_jwks_url`: one task fetches them, ahead of time and when a token asks for more, and never more often
//! than it should.

#[cfg(test)]
mod tests;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use jsonwebtoken::Algorithm;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::super::https::causes;
use super::fetch::{Document, Fetch, FetchError, TIMEOUT};
use super::keys::Keys;
use crate::metrics::{FetchResult, Metrics, Side, Task};

/// The minimum time between two fetches. A token with an unknown `kid` that comes earlier is answered with what is known,
/// so that no number of such tokens makes more fetches.
const INTERVAL_MIN: Duration = Duration::from_secs(10);

/// The time after which a document is fetched again, if the provider does not say how long it is good.
const REFRESH: Duration = Duration::from_secs(600);

/// The longest such time. A key that the provider withdraws stays good here for as long.
const REFRESH_MAX: Duration = Duration::from_secs(3600);

/// The longest time between two tries while the provider is away.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Keys that are fetched. The task that does ends when this is dropped.
#[derive(Debug)]
pub(super) struct Remote {
    state: watch::Receiver<State>,
    wanted: Arc<Notify>,
    _task: AbortOnDropHandle<()>,
}

/// What is known.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// The keys of the last good document.
    pub(super) keys: Option<Arc<Keys>>,
    /// Since when they are known, or since when there should have been some.
    pub(super) good_since: Instant,
    /// Why the last fetch failed, if it did.
    pub(super) failure: Option<Arc<FetchError>>,
    /// When the last fetch ended, and how many there were.
    fetched_at: Instant,
    fetches: u64,
}

impl Remote {
    /// Starts the task, which begins to fetch.
    pub(super) fn start(
        source: impl Fetch,
        allowed: Vec<Algorithm>,
        side: Side,
        metrics: Option<Arc<Metrics>>,
    ) -> Self {
        let now = Instant::now();
        let (sender, state) =
            watch::channel(State { keys: None, good_since: now, failure: None, fetched_at: now, fetches: 0 });
        let wanted = Arc::new(Notify::new());
        if let Some(metrics) = &metrics {
            let state = state.clone();
            metrics.read(metrics.jwks_age(side), move || {
                usize::try_from(state.borrow().good_since.elapsed().as_secs()).unwrap_or(usize::MAX)
            });
        }
        let refresher = Refresher { source, allowed, side, metrics, state: sender, wanted: wanted.clone() };
        Self { state, wanted, _task: AbortOnDropHandle::new(tokio::spawn(refresher.run())) }
    }

    pub(super) fn current(&self) -> State {
        self.state.borrow().clone()
    }

    /// Has the document fetched again, unless that was done a moment ago, and returns what is known then.
    pub(super) async fn newer_than(&self, seen: &State) -> State {
        let is_first = seen.fetches == 0;
        if !is_first && seen.fetched_at.elapsed() < INTERVAL_MIN {
            return seen.clone();
        }
        // The first fetch is on its way already.
        if !is_first {
            self.wanted.notify_one();
        }
        let mut state = self.state.clone();
        // Longer than a fetch can take.
        let patience = TIMEOUT + Duration::from_secs(1);
        let _timed_out = tokio::time::timeout(patience, state.wait_for(|now| now.fetches > seen.fetches)).await;
        self.current()
    }
}

/// The task that fetches.
struct Refresher<F> {
    source: F,
    allowed: Vec<Algorithm>,
    side: Side,
    metrics: Option<Arc<Metrics>>,
    state: watch::Sender<State>,
    wanted: Arc<Notify>,
}

impl<F: Fetch> Refresher<F> {
    async fn run(self) {
        let mut retry = INTERVAL_MIN;
        loop {
            let fetched = self.fetch().await;
            let wait = match &fetched {
                Ok((_, wait)) => {
                    retry = INTERVAL_MIN;
                    *wait
                }
                Err(_) => {
                    let wait = retry;
                    retry = (retry * 2).min(RETRY_MAX);
                    wait
                }
            };
            self.publish(fetched.map(|(keys, _)| keys));
            tokio::time::sleep(INTERVAL_MIN).await;
            tokio::select! {
                () = self.wanted.notified() => {}
                () = tokio::time::sleep(wait.saturating_sub(INTERVAL_MIN)) => {}
            }
        }
    }

    /// A panic is a failure like any other, so that the task lives on.
    async fn fetch(&self) -> Result<(Keys, Duration), FetchError> {
        let fetch = async { self.read(&self.source.fetch().await?) };
        AssertUnwindSafe(fetch).catch_unwind().await.unwrap_or_else(|_| {
            if let Some(metrics) = &self.metrics {
                metrics.task_panicked(Task::Reload);
            }
            Err(FetchError::Panicked)
        })
    }

    /// The keys of a document, and when to fetch it again: while there is still a quarter of the time for which it is good.
    fn read(&self, document: &Document) -> Result<(Keys, Duration), FetchError> {
        let keys = Keys::of_jwks(&document.content, &self.allowed).map_err(FetchError::Unusable)?;
        let wait = document.max_age.map_or(REFRESH, |age| (age * 3 / 4).clamp(INTERVAL_MIN, REFRESH_MAX));
        Ok((keys, wait))
    }

    fn publish(&self, fetched: Result<Keys, FetchError>) {
        let result = if fetched.is_ok() { FetchResult::Fetched } else { FetchResult::Failed };
        if let Some(metrics) = &self.metrics {
            metrics.fetched_jwks(self.side, result);
        }
        let setting = self.side.jwks_setting();
        match &fetched {
            Ok(keys) => tracing::debug!(setting, keys = keys.len(), ignored = ?keys.ignored(), "keys for JWTs fetched"),
            Err(error) => {
                let (cause, last_good_seconds) = (causes(error), self.state.borrow().good_since.elapsed().as_secs());
                tracing::warn!(setting, %error, cause, last_good_seconds, "keys for JWTs could not be fetched");
            }
        }
        self.state.send_modify(|state| {
            let now = Instant::now();
            state.fetches += 1;
            state.fetched_at = now;
            match fetched {
                Ok(keys) => {
                    state.keys = Some(Arc::new(keys));
                    state.good_since = now;
                    state.failure = None;
                }
                Err(error) => state.failure = Some(Arc::new(error)),
            }
        });
    }
}

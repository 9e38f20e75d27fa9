//! The token check that asks another service, `token_callback_url`: when to ask it, and what of its answers to keep. `http`
//! and `grpc` do the asking.

mod breaker;
mod cache;
mod grpc;
mod http;
mod question;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::{BindAttempt, Identity, ReloadError, TokenAuthenticator, TokenError};
use crate::config::{Callback, Config};
use crate::metrics::{CallbackResult, Metrics};
use crate::seldom::Seldom;

use breaker::{Breaker, Changed};
use cache::Cache;
use question::{Answer, Key, NoAnswer, Question, Refused, identity};

/// Bytes of an answer. One has a user id and perhaps some patterns.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Who is asked.
#[async_trait]
trait Service: Send + Sync + 'static {
    async fn ask(&self, question: &Question) -> Result<Answer, NoAnswer>;
}

/// A token check that asks another service.
pub(crate) struct TokenCallback {
    config: Config,
    headers: Vec<String>,
    calls: Arc<Calls>,
}

/// The calls to the service, which all checks share.
struct Calls {
    service: RwLock<Arc<dyn Service>>,
    timeout: Duration,
    cache: Cache,
    /// Those on their way, so that equal questions are asked once.
    in_flight: Mutex<HashMap<Key, InFlight>>,
    places: Arc<Semaphore>,
    breaker: Arc<Breaker>,
    metrics: Arc<Metrics>,
    line: Seldom,
}

struct InFlight {
    /// Tells it from a later one with the same key.
    number: u64,
    call: WeakShared<BoxFuture<'static, Outcome>>,
}

/// `None` if there was no answer.
type Outcome = Option<Arc<Answer>>;

impl TokenCallback {
    /// `None` without a `token_callback_url`. Must be made in a tokio runtime.
    ///
    /// # Errors
    /// `token_callback_ca_file` cannot be read, or is wrong.
    pub(crate) fn from_config(config: &Config, metrics: &Arc<Metrics>) -> Result<Option<Self>, ReloadError> {
        let Some(service) = service(config)? else { return Ok(None) };
        Ok(Some(Self::asking(service, config, metrics)))
    }

    fn asking(service: Arc<dyn Service>, config: &Config, metrics: &Arc<Metrics>) -> Self {
        let (places_max, breaker) = (config.token_callback_concurrency_max, Arc::new(Breaker::default()));
        let places = Arc::new(Semaphore::new(places_max));
        let (free, circuit) = (places.clone(), breaker.clone());
        metrics.read(&metrics.token_callback_concurrency, move || places_max.saturating_sub(free.available_permits()));
        metrics.read(&metrics.token_callback_circuit_open, move || usize::from(circuit.is_open()));
        let calls = Calls {
            service: RwLock::new(service),
            timeout: config.token_callback_timeout,
            cache: Cache::new(config.token_callback_cache_age, config.token_callback_cache_entries_max),
            in_flight: Mutex::default(),
            places,
            breaker,
            metrics: metrics.clone(),
            line: Seldom::default(),
        };
        let headers = config.token_callback_headers.as_ref().map(|names| names.as_slice().to_vec());
        Self { config: config.clone(), headers: headers.unwrap_or_default(), calls: Arc::new(calls) }
    }
}

fn service(config: &Config) -> Result<Option<Arc<dyn Service>>, ReloadError> {
    let roots = |is_tls: bool| match is_tls {
        true => super::https::roots(config.token_callback_ca_file.as_deref(), "token_callback_url"),
        false => Ok(tokio_rustls::rustls::RootCertStore::empty()),
    };
    Ok(match config.callback() {
        None => None,
        Some(Callback::Http { uri, is_tls }) => {
            Some(Arc::new(http::Http::new(uri, roots(is_tls)?, config.token_callback_concurrency_max)?))
        }
        Some(Callback::Grpc { uri, is_tls }) => Some(Arc::new(grpc::Grpc::new(uri, is_tls, roots(is_tls)?)?)),
    })
}

impl std::fmt::Debug for TokenCallback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenCallback").field("headers", &self.headers).finish_non_exhaustive()
    }
}

#[async_trait]
impl TokenAuthenticator for TokenCallback {
    async fn authenticate(&self, attempt: &BindAttempt<'_>) -> Result<Identity, TokenError> {
        let question = Question::of(attempt);
        if let Some(answer) = self.calls.cache.get(&question) {
            self.calls.metrics.token_callback_cache_hits.inc();
            return identity(&answer, attempt.event);
        }
        let answer = self.calls.join(question).await.ok_or(TokenError::Unavailable)?;
        identity(&answer, attempt.event)
    }

    fn headers_wanted(&self) -> Vec<String> {
        self.headers.clone()
    }

    /// Forgets the answers that are kept, and reads `token_callback_ca_file` again.
    async fn reload(&self) -> Result<(), ReloadError> {
        self.calls.cache.clear();
        if let Some(service) = service(&self.config)? {
            *self.calls.service.write().unwrap_or_else(PoisonError::into_inner) = service;
        }
        Ok(())
    }
}

impl Calls {
    fn in_flight(&self) -> MutexGuard<'_, HashMap<Key, InFlight>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The call for a question: one that is on its way with the same token, headers and event, or a new one. It goes on as
    /// long as anybody waits for it.
    fn join(self: &Arc<Self>, question: Question) -> Shared<BoxFuture<'static, Outcome>> {
        let key = question.key_with_event();
        let mut in_flight = self.in_flight();
        let earlier = in_flight.get(&key);
        let number = earlier.map_or(0, |earlier| earlier.number + 1);
        if let Some(call) = earlier.and_then(|earlier| earlier.call.upgrade()) {
            return call;
        }
        let entry = Entry { calls: self.clone(), key, number };
        let call = async move { entry.calls.ask(&question).await }.boxed().shared();
        if let Some(weak) = call.downgrade() {
            in_flight.insert(key, InFlight { number, call: weak });
        }
        call
    }

    async fn ask(&self, question: &Question) -> Outcome {
        let deadline = Instant::now() + self.timeout;
        let Ok(Ok(_place)) = timeout_at(deadline, self.places.acquire()).await else {
            self.metrics.called_back(CallbackResult::NoPlace);
            return None;
        };
        // After the wait, in which the service may have gone.
        let Some(leave) = self.breaker.leave() else {
            self.metrics.called_back(CallbackResult::CircuitOpen);
            return None;
        };
        let service = self.service.read().unwrap_or_else(PoisonError::into_inner).clone();
        let started_at = Instant::now();
        let answer = timeout_at(deadline, service.ask(question)).await.unwrap_or(Err(NoAnswer::TimedOut));
        self.metrics.token_callback_seconds.observe(started_at.elapsed().as_secs_f64());
        self.metrics.called_back(match &answer {
            Ok(Ok(_)) => CallbackResult::Granted,
            Ok(Err(Refused::Token)) => CallbackResult::Refused,
            Ok(Err(Refused::Event)) => CallbackResult::NotAllowed,
            Err(NoAnswer::TimedOut) => CallbackResult::TimedOut,
            Err(_) => CallbackResult::Failed,
        });
        let is_there = answer.as_ref().err().is_none_or(NoAnswer::is_about_question);
        match if is_there { leave.succeeded() } else { leave.failed() } {
            Changed::Nothing => {}
            Changed::Opened => warn!("token_callback_url fails again and again, and is asked now and then only"),
            Changed::Closed => info!("token_callback_url answers again"),
        }
        match answer {
            Ok(answer) => {
                self.cache.keep(question, &answer);
                Some(Arc::new(answer))
            }
            Err(error) => {
                if let Some(left_out) = self.line.due(std::time::Instant::now()) {
                    let cause = super::https::causes(&error);
                    warn!(%error, cause, left_out, "token_callback_url gave no answer");
                }
                None
            }
        }
    }
}

/// Takes a call off the list when it is over, or nobody waits for it any more.
struct Entry {
    calls: Arc<Calls>,
    key: Key,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut in_flight = self.calls.in_flight();
        if in_flight.get(&self.key).is_some_and(|listed| listed.number == self.number) {
            in_flight.remove(&self.key);
        }
    }
}

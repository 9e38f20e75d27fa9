//! Push and drop: the one operation behind both push doors and the library.

use std::sync::Arc;
use std::time::Instant;

use prometheus_client::metrics::gauge::Gauge;
use tracing::{debug, debug_span};

use crate::auth::{PushAuthorizer, PushScope, ReloadError, TokenAuthenticator};
use crate::binder::Binder;
use crate::config::Config;
use crate::message::{Drops, Event, Field, InvalidPush, Names, Outcome, Push, UserId};
use crate::metrics::{Door, DropReason, Metrics, PushResult};
use crate::outbox::{Frame, Offered, Stop};
use crate::registry::Registry;

/// A running gateway, for the program that embeds it. Cloning is a reference count.
///
/// ```
/// # async fn example(gateway: pushgate::Gateway) -> Result<(), pushgate::PushError> {
/// let push = pushgate::Push::new("ann", "mail", "you have mail")?;
/// let outcome = gateway.push(&push)?;
/// println!("{} of {} connections took it", outcome.accepted, outcome.matched);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Gateway(Arc<Rooms>);

pub(crate) struct Rooms {
    pub(crate) config: Arc<Config>,
    pub(crate) binder: Arc<Binder>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) names: Arc<Names>,
    pub(crate) token_authenticator: Arc<dyn TokenAuthenticator>,
    pub(crate) push_authorizer: Arc<dyn PushAuthorizer>,
}

/// Why a push or drop was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// The user id, event or message is not valid.
    #[error(transparent)]
    Invalid(#[from] InvalidPush),
    /// The caller may not push to this user or event.
    #[error("the API key may not push to this user or event")]
    PermissionDenied,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("connections", &self.connections()).finish_non_exhaustive()
    }
}

impl Gateway {
    pub(crate) fn new(rooms: Rooms) -> Self {
        Self(Arc::new(rooms))
    }

    pub(crate) fn rooms(&self) -> &Rooms {
        &self.0
    }

    /// Pushes one message to every connection bound to its user and event. Never waits for a client.
    ///
    /// # Errors
    /// Refuses a message over the config's `message_bytes_max`.
    pub fn push(&self, push: &Push) -> Result<Outcome, PushError> {
        self.push_from(Door::Library, None, push)
    }

    /// Closes a user's connections that are bound to the event, all of them without one, and says how many. What is
    /// already queued for them is written first. When this returns, no push matches them any more.
    pub fn drop_user(&self, user_id: &UserId, event: Option<&Event>) -> u64 {
        let evicted = self.0.binder.evict(user_id, event);
        let told = evicted.iter().filter(|outbox| outbox.stop(Stop::Dropped)).count();
        debug!(told, "drop");
        told as u64
    }

    /// How many WebSocket connections are open, bound or not.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.registry.len()
    }

    /// Reads tokens and push keys again. Open connections stay as they are.
    ///
    /// # Errors
    /// The first check that could not be read again; it goes on with what it had.
    pub async fn reload(&self) -> Result<(), ReloadError> {
        let tokens = self.0.token_authenticator.reload().await;
        let push_keys = self.0.push_authorizer.reload().await;
        tokens.and(push_keys)
    }

    /// All metrics as OpenMetrics text. What can be counted when asked is counted now, not kept in step by hand.
    pub(crate) fn scrape(&self) -> String {
        let Rooms { metrics, registry, binder, .. } = &*self.0;
        let depths = registry.depths();
        let set = |gauge: &Gauge, value: usize| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&metrics.connections, depths.connections);
        set(&metrics.bindings, binder.len());
        set(&metrics.users, binder.users());
        set(&metrics.outbox_messages, depths.total.messages);
        set(&metrics.outbox_bytes, depths.total.bytes);
        set(&metrics.outbox_messages_fullest, depths.messages_max);
        metrics.encode()
    }

    /// A push by a door, for a caller with a scope; the embedding program needs none.
    pub(crate) fn push_from(&self, door: Door, scope: Option<&PushScope>, push: &Push) -> Result<Outcome, PushError> {
        let started_at = Instant::now();
        let result = self.deliver(scope, push, started_at);
        let metrics = &self.0.metrics;
        metrics.push_seconds.observe(started_at.elapsed().as_secs_f64());
        metrics.pushed(door, result_label(&result));
        result
    }

    /// A drop by a door, for a caller with a scope.
    pub(crate) fn drop_from(
        &self,
        scope: &PushScope,
        user_id: &UserId,
        event: Option<&Event>,
    ) -> Result<u64, PushError> {
        if !scope.allows(user_id, event) {
            return Err(PushError::PermissionDenied);
        }
        Ok(self.drop_user(user_id, event))
    }

    fn deliver(&self, scope: Option<&PushScope>, push: &Push, accepted_at: Instant) -> Result<Outcome, PushError> {
        let span = debug_span!("push", event = ?push.event(), caller = scope.map(PushScope::name));
        let _entered = span.enter();
        if scope.is_some_and(|scope| !scope.allows(push.user_id(), Some(push.event()))) {
            return Err(PushError::PermissionDenied);
        }
        let limit_bytes = self.0.config.message_bytes_max;
        if push.payload().as_bytes().len() > limit_bytes {
            return Err(InvalidPush::TooLong { field: Field::Message, limit_bytes }.into());
        }
        let outcome = self.fan_out(push, accepted_at);
        debug!(id = %outcome.message_id, outcome.matched, outcome.accepted, "pushed");
        Ok(outcome)
    }

    fn fan_out(&self, push: &Push, accepted_at: Instant) -> Outcome {
        let receivers = self.0.binder.receivers(push.user_id(), push.event());
        let mut accepted = 0;
        let mut drops = Drops::default();
        if !receivers.is_empty() {
            let frame = Frame::new(push.payload(), accepted_at);
            for outbox in &receivers {
                match outbox.offer(&frame) {
                    Offered::Accepted => accepted += 1,
                    Offered::Full => drops.queue_full += 1,
                    Offered::Closed => drops.closed += 1,
                }
            }
        }
        let matched = receivers.len() as u64;
        let metrics = &self.0.metrics;
        metrics.matched.inc_by(matched);
        metrics.accepted.inc_by(accepted);
        metrics.dropped(DropReason::QueueFull, drops.queue_full);
        metrics.dropped(DropReason::Closed, drops.closed);
        Outcome { message_id: self.0.names.message_id(), matched, accepted, drops }
    }
}

fn result_label(result: &Result<Outcome, PushError>) -> PushResult {
    match result {
        Ok(Outcome { matched: 0, .. }) => PushResult::Unmatched,
        Ok(Outcome { accepted: 0, .. }) => PushResult::Dropped,
        Ok(_) => PushResult::Accepted,
        Err(PushError::Invalid(InvalidPush::TooLong { .. })) => PushResult::TooLarge,
        Err(PushError::Invalid(InvalidPush::Empty { .. })) => PushResult::Invalid,
        Err(PushError::PermissionDenied) => PushResult::PermissionDenied,
    }
}

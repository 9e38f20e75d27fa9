//! Push and drop: the one operation behind both push doors and the library.

use std::sync::Arc;
use std::time::Instant;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, debug_span};

use crate::auth::{PushAuthorizer, PushScope, ReloadError, TokenAuthenticator};
use crate::binder::Binder;
use crate::config::Config;
use crate::delivery::Delivery;
use crate::message::{Event, Field, InvalidPush, Level, Names, Outcome, Push, UserId};
use crate::metrics::{Door, Metrics, PushResult};
use crate::outbox::Stop;
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
    /// Pushes that may still wait for more than acceptance.
    pub(crate) waiting: Arc<Semaphore>,
    /// Cancelled when the gateway begins to stop.
    pub(crate) stopping: CancellationToken,
    /// The tasks of push streams, which a shutdown waits for.
    pub(crate) streams: TaskTracker,
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
    /// `waiting_pushes_max` pushes are waiting for more than acceptance already. This one was not sent.
    #[error("too many pushes are waiting, try again later or do not wait")]
    TooManyWaiting,
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

    /// Pushes one message and waits until it is handed to the kernel on every connection that took it, but not past
    /// `until`: the outcome then says what is known so far.
    ///
    /// # Errors
    /// Refuses a message over the config's `message_bytes_max`, and any once `waiting_pushes_max` are waiting.
    pub async fn push_written(&self, push: &Push, until: Instant) -> Result<Outcome, PushError> {
        let sent = self.send_from(Door::Library, None, push, Follow::Each)?;
        Ok(sent.settled(until).await)
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
        self.send_from(door, scope, push, Follow::Nobody).map(|sent| sent.outcome)
    }

    /// The same, followed further if the caller asks.
    pub(crate) fn send_from(
        &self,
        door: Door,
        scope: Option<&PushScope>,
        push: &Push,
        follow: Follow,
    ) -> Result<Sent, PushError> {
        let started_at = Instant::now();
        let result = self.deliver(scope, push, follow, started_at);
        let metrics = &self.0.metrics;
        metrics.push_seconds.observe(started_at.elapsed().as_secs_f64());
        metrics.pushed(door, result_label(result.as_ref().map(|sent| &sent.outcome)));
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

    fn deliver(
        &self,
        scope: Option<&PushScope>,
        push: &Push,
        follow: Follow,
        accepted_at: Instant,
    ) -> Result<Sent, PushError> {
        let span = debug_span!("push", event = ?push.event(), caller = scope.map(PushScope::name));
        let _entered = span.enter();
        if scope.is_some_and(|scope| !scope.allows(push.user_id(), Some(push.event()))) {
            return Err(PushError::PermissionDenied);
        }
        let limit_bytes = self.0.config.message_bytes_max;
        if push.payload().as_bytes().len() > limit_bytes {
            return Err(InvalidPush::TooLong { field: Field::Message, limit_bytes }.into());
        }
        let sent = self.fan_out(push, follow, accepted_at)?;
        debug!(id = %sent.outcome.message_id, sent.outcome.matched, sent.outcome.accepted, "pushed");
        Ok(sent)
    }

    fn fan_out(&self, push: &Push, follow: Follow, accepted_at: Instant) -> Result<Sent, PushError> {
        let mut receivers = self.0.binder.receivers(push.user_id(), push.event());
        receivers.retain(|outbox| push.is_for(outbox.id()));
        let mut outcome = Outcome::count(self.0.names.message_id(), Level::Accepted, Vec::new());
        outcome.matched = receivers.len() as u64;
        let mut followed = None;
        if !receivers.is_empty() {
            let policy = push.slow_reader_policy().unwrap_or_else(|| self.0.config.slow_reader_policy(push.event()));
            let mut delivery = Delivery::new(push, policy, accepted_at);
            if follow == Follow::Each {
                // Taken before anything is sent: a push that is refused must have done nothing.
                let waiting = self.0.waiting.clone().try_acquire_owned().map_err(|_| PushError::TooManyWaiting)?;
                delivery = delivery.followed(receivers.iter().map(|outbox| outbox.id()));
                followed = Some(waiting);
            }
            let delivery = Arc::new(delivery);
            let mut displaced = 0;
            for (place, outbox) in receivers.iter().enumerate() {
                let offered = outbox.offer(delivery.ticket(place));
                match offered.refused {
                    None => outcome.accepted += 1,
                    Some(reason) => outcome.drops.add(reason),
                }
                displaced += offered.displaced;
            }
            let metrics = &self.0.metrics;
            metrics.matched.inc_by(outcome.matched);
            metrics.accepted.inc_by(outcome.accepted);
            metrics.dropped(&outcome.drops);
            metrics.displaced.inc_by(displaced as u64);
            return Ok(Sent { outcome, followed: followed.map(|waiting| Followed { delivery, _waiting: waiting }) });
        }
        Ok(Sent { outcome, followed: None })
    }
}

/// Whether each receiver is followed past acceptance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Follow {
    /// Nobody asks, so nothing is kept.
    Nobody,
    /// Each by itself.
    Each,
}

/// A push that was made, and what of it is still followed.
pub(crate) struct Sent {
    /// As it was when the outboxes had taken it.
    pub(crate) outcome: Outcome,
    followed: Option<Followed>,
}

struct Followed {
    delivery: Arc<Delivery>,
    /// One of `waiting_pushes_max`.
    _waiting: OwnedSemaphorePermit,
}

impl Sent {
    /// What became of it by now.
    pub(crate) fn now(&self, level: Level) -> Outcome {
        match &self.followed {
            Some(followed) => Outcome::count(self.outcome.message_id, level, followed.delivery.outcomes()),
            None => Outcome { level, ..self.outcome.clone() },
        }
    }

    /// What became of it once every receiver is settled, or at `until` as far as it is known then.
    pub(crate) async fn settled(&self, until: Instant) -> Outcome {
        if let Some(followed) = &self.followed {
            let _in_time = tokio::time::timeout_at(until.into(), followed.delivery.settled()).await;
        }
        self.now(Level::Written)
    }
}

fn result_label(result: Result<&Outcome, &PushError>) -> PushResult {
    match result {
        Ok(Outcome { matched: 0, .. }) => PushResult::Unmatched,
        Ok(Outcome { accepted: 0, .. }) => PushResult::Dropped,
        Ok(_) => PushResult::Accepted,
        Err(PushError::Invalid(InvalidPush::TooLong { .. })) => PushResult::TooLarge,
        Err(PushError::Invalid(InvalidPush::Empty { .. })) => PushResult::Invalid,
        Err(PushError::PermissionDenied) => PushResult::PermissionDenied,
        Err(PushError::TooManyWaiting) => PushResult::Overloaded,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, VecDeque};
    use std::task::{Context, Waker};
    use std::time::Duration;

    use super::*;
    use crate::auth::{OpenPush, TokenIsUser};
    use crate::binder::{BindLimits, Bindings};
    use crate::message::Drops;
    use crate::outbox::{Capacity, Depth};
    use crate::registry::{Limits, Registration};

    const STEPS: usize = 10_000;
    const OUTBOX_MESSAGES: usize = 4;
    const CONNECTIONS_MAX: usize = 24;
    const USER_MAX: usize = 6;
    const EVENTS_MAX: usize = 3;

    fn gateway() -> Gateway {
        let names = Arc::new(Names::new());
        let limits = Limits {
            connections_max: CONNECTIONS_MAX,
            connections_per_address_max: 0,
            outbox: Capacity { messages_max: OUTBOX_MESSAGES, bytes_max: 1 << 20 },
        };
        Gateway::new(Rooms {
            config: Arc::new(Config::default()),
            binder: Arc::default(),
            registry: Arc::new(Registry::new(limits, names.clone(), Duration::from_secs(1))),
            metrics: Arc::new(Metrics::new()),
            names,
            token_authenticator: Arc::new(TokenIsUser),
            push_authorizer: Arc::new(OpenPush),
            waiting: Arc::new(Semaphore::new(1)),
            stopping: CancellationToken::new(),
            streams: TaskTracker::new(),
        })
    }

    /// A connection as its task holds it, without a socket.
    struct Held {
        bindings: Option<Bindings>,
        registration: Registration,
    }

    /// The same connection as the naive model has it.
    #[derive(Default)]
    struct Naive {
        user: Option<u8>,
        events: BTreeSet<u8>,
        queued: Vec<String>,
        stopped: bool,
    }

    /// Small, fast and the same on every machine: xorshift64*.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, sides: usize) -> usize {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
        }
    }

    fn user(number: u8) -> UserId {
        UserId::new(format!("user {number}")).expect("not empty")
    }

    fn event(number: u8) -> Event {
        Event::new(format!("event {number}")).expect("not empty")
    }

    struct World {
        gateway: Gateway,
        held: BTreeMap<usize, Held>,
        naive: BTreeMap<usize, Naive>,
        dice: Dice,
        next: usize,
    }

    impl World {
        fn any(&mut self) -> Option<usize> {
            let count = self.held.len();
            if count == 0 { None } else { self.held.keys().nth(self.dice.below(count)).copied() }
        }

        fn connect(&mut self) {
            let admitted = self.gateway.rooms().registry.admit([127, 0, 0, 1].into());
            assert_eq!(admitted.is_ok(), self.naive.len() < CONNECTIONS_MAX);
            if let Ok(registration) = admitted {
                self.held.insert(self.next, Held { bindings: None, registration });
                self.naive.insert(self.next, Naive::default());
                self.next += 1;
            }
        }

        fn bind(&mut self) {
            let Some(key) = self.any() else { return };
            let (user_number, event_number) = (self.dice.below(5) as u8, self.dice.below(4) as u8);
            let of_user = self.naive.values().filter(|naive| naive.user == Some(user_number)).count();
            let held = self.held.get_mut(&key).expect("picked from it");
            let naive = self.naive.get_mut(&key).expect("the same keys");
            if naive.stopped {
                return;
            }
            let limits = BindLimits { connections_per_user_max: USER_MAX, events_per_connection_max: EVENTS_MAX };
            let bound = match &mut held.bindings {
                None => {
                    let outbox = held.registration.outbox();
                    let bound =
                        self.gateway.rooms().binder.bind(outbox, user(user_number), event(event_number), limits);
                    assert_eq!(bound.is_ok(), of_user < USER_MAX);
                    bound.map(|bindings| {
                        naive.user = Some(user_number);
                        held.bindings = Some(bindings);
                    })
                }
                Some(bindings) => {
                    let bound = bindings.add(event(event_number));
                    let fits = naive.events.len() < EVENTS_MAX || naive.events.contains(&event_number);
                    assert_eq!(bound.is_ok(), fits);
                    bound
                }
            };
            if bound.is_ok() {
                naive.events.insert(event_number);
            }
        }

        /// The connection's task ends: by a reset, a close frame, a drop; to the rooms it is all the same.
        fn end(&mut self) {
            let Some(key) = self.any() else { return };
            let naive = self.naive.remove(&key).expect("the same keys");
            let held = self.held.remove(&key).expect("picked from it");
            assert_eq!(held.registration.outbox().close(Depth::default()), naive.queued.len());
        }

        fn push(&mut self, step: usize) {
            let (user_number, event_number) = (self.dice.below(5) as u8, self.dice.below(4) as u8);
            let message = format!("message {step}");
            let push = Push::new(user(user_number).as_str(), event(event_number).as_str(), &*message).expect("valid");
            let outcome = self.gateway.push(&push).expect("valid");
            let mut expected = (0, 0, Drops::default());
            for naive in self.naive.values_mut() {
                if naive.user != Some(user_number) || !naive.events.contains(&event_number) {
                    continue;
                }
                expected.0 += 1;
                if naive.stopped {
                    expected.2.closed += 1;
                } else if naive.queued.len() == OUTBOX_MESSAGES {
                    naive.stopped = true;
                    expected.2.queue_full += 1;
                } else {
                    naive.queued.push(message.clone());
                    expected.1 += 1;
                }
            }
            assert_eq!((outcome.matched, outcome.accepted, outcome.drops), expected);
            assert_eq!(outcome.matched, outcome.accepted + outcome.dropped());
        }

        fn drop_user(&mut self) {
            let user_number = self.dice.below(5) as u8;
            let event_number = Some(self.dice.below(5) as u8).filter(|number| *number < 4);
            let told = self.gateway.drop_user(&user(user_number), event_number.map(event).as_ref());
            let mut expected = 0;
            for naive in self.naive.values_mut() {
                let bound = naive.user == Some(user_number) && !naive.events.is_empty();
                if bound && event_number.is_none_or(|number| naive.events.contains(&number)) {
                    expected += u64::from(!naive.stopped);
                    naive.stopped = true;
                    naive.events.clear();
                }
            }
            assert_eq!(told, expected);
        }

        /// The connection's task runs, and its client takes everything.
        fn write(&mut self) {
            let Some(key) = self.any() else { return };
            let outbox = self.held[&key].registration.outbox().clone();
            let naive = self.naive.get_mut(&key).expect("the same keys");
            let cx = Context::from_waker(Waker::noop());
            let mut batch = VecDeque::new();
            let stop = outbox.visit(&cx, Depth::default(), &mut batch, 64);
            assert_eq!(stop.is_some(), naive.stopped);
            let bytes = batch.iter().map(|ticket| ticket.bytes().len()).sum();
            let written = Depth { messages: batch.len(), bytes };
            let texts: Vec<String> =
                batch.drain(..).map(|ticket| String::from_utf8_lossy(&ticket.bytes()[2..]).into_owned()).collect();
            assert_eq!(texts, naive.queued, "all of them, in order");
            naive.queued.clear();
            outbox.visit(&cx, written, &mut batch, 64);
        }

        fn check(&self) {
            let rooms = self.gateway.rooms();
            assert_eq!(rooms.registry.len(), self.naive.len());
            assert_eq!(rooms.binder.len(), self.naive.values().map(|naive| naive.events.len()).sum::<usize>());
            let users: BTreeSet<_> = self.naive.values().filter_map(|naive| naive.user).collect();
            assert_eq!(rooms.binder.users(), users.len());
            let queued: usize = self.naive.values().map(|naive| naive.queued.len()).sum();
            assert_eq!(rooms.registry.depths().total.messages, queued);
        }
    }

    #[test]
    fn random_steps_leave_no_difference_to_a_naive_model() {
        for seed in [1, 0x5eed, u64::MAX] {
            let mut world =
                World { gateway: gateway(), held: BTreeMap::new(), naive: BTreeMap::new(), dice: Dice(seed), next: 0 };
            for step in 0..STEPS {
                match world.dice.below(16) {
                    0..3 => world.connect(),
                    3..8 => world.bind(),
                    8..10 => world.end(),
                    10..13 => world.push(step),
                    13 => world.drop_user(),
                    _ => world.write(),
                }
                world.check();
            }
            while !world.held.is_empty() {
                world.end();
            }
            world.check();
            assert_eq!(world.gateway.rooms().binder.users(), 0, "seed {seed}");
        }
    }
}

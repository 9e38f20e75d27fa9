//! Push, drop and drain: what the doors of callers and the library share.

mod audit;
mod drain;
mod error;
mod operating;
mod paced;
mod revoke;
mod sent;
mod total;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, debug_span};

use crate::auth::{PushAuthorizer, PushScope, TokenAuthenticator};
use crate::binder::{Binder, Receivers};
use crate::config::Config;
use crate::delivery::{Delivery, Ticket};
use crate::flusher::Flusher;
use crate::mailbox::{Flush, Mailbox, Offered, Taken};
use crate::message::{Event, Field, InvalidPush, MessageId, Names, Push, Target, UserId};
use crate::metrics::{Door, Metrics};
use crate::outcome::{Level, Outcome};
use crate::registry::Registry;
use crate::replays::{Made, Replays};
use crate::revocations::Revocations;
use crate::sessions::Sessions;
use crate::shares::{Payer, Share, Shares};

pub(crate) use audit::{Audit, Denial};
pub(crate) use drain::{Drain, Drained, Readiness};
pub(crate) use error::AdminError;
pub use error::PushError;
pub(crate) use error::whole_seconds;
pub(crate) use operating::Reload;
pub(crate) use revoke::Revocation;
pub(crate) use sent::{Follow, Sent};
pub(crate) use total::Total;

use error::result_label;

/// A running gateway, for the program that embeds it. Cloning is a reference count.
///
/// ```
/// # async fn example(gateway: pushgate::Gateway) -> Result<(), pushgate::PushError> {
/// let push = pushgate::Push::new("ann", "mail", "you have mail")?;
/// let outcome = gateway.push(&push).await?;
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
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) flusher: Arc<Flusher>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) names: Arc<Names>,
    pub(crate) token_authenticator: Arc<dyn TokenAuthenticator>,
    pub(crate) push_authorizer: Arc<dyn PushAuthorizer>,
    pub(crate) audit: Audit,
    /// The certificates of each address that speaks TLS.
    pub(crate) certificates: Vec<Arc<dyn Reload>>,
    /// What was pushed under an idempotency key.
    pub(crate) replays: Replays,
    /// Which tokens are not good any more.
    pub(crate) revocations: Arc<Revocations>,
    /// Pushes that may still wait for more than acceptance.
    pub(crate) waiting: Arc<Shares>,
    /// The bound of all that is queued and kept.
    pub(crate) total: Total,
    /// Whether clients should come, and the drain of an operator.
    pub(crate) drain: Drain,
    /// Cancelled when the gateway begins to stop.
    pub(crate) stopping: CancellationToken,
    /// The pushes in hand, requests and the tasks of streams, which a shutdown waits for.
    pub(crate) pushes: TaskTracker,
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

    /// Pushes one message to every connection bound to its user and event. Never waits for a client, but may wait for the
    /// outcome of another push: the one that is being made under the same idempotency key.
    ///
    /// # Errors
    /// Refuses a message over the config's `message_bytes_max`, and an idempotency key that stands for another push.
    pub async fn push(&self, push: &Push) -> Result<Outcome, PushError> {
        Ok(self.send_from(Door::Library, None, push, Follow::Nobody).await?.into_outcome())
    }

    /// Pushes one message and waits until every connection that took it has got it as far as `level`, or will not, but
    /// not past `until`: the outcome then says what is known so far.
    ///
    /// # Errors
    /// As for [`Gateway::push`]; and refuses any once `waiting_pushes_max` are waiting.
    pub async fn push_and_wait(&self, push: &Push, level: Level, until: Instant) -> Result<Outcome, PushError> {
        let sent = self.send_from(Door::Library, None, push, Follow::Each).await?;
        Ok(sent.settled(level, until).await)
    }

    /// Closes a user's connections that are bound to the event, all of them without one, and says how many. What is
    /// already queued for them is written first. When this returns, no push matches them any more.
    pub async fn drop_user(&self, user_id: &UserId, event: Option<&Event>) -> u64 {
        let evicted = self.0.binder.evict(user_id, event);
        let told = evicted.iter().filter(|mailbox| mailbox.drop_receiver()).count();
        self.0.sessions.end_dropped(user_id);
        debug!(told, "drop");
        told as u64
    }

    /// A push by a door, for a caller with a scope; the embedding program needs none. Followed as far as the caller asks.
    pub(crate) async fn send_from(
        &self,
        door: Door,
        scope: Option<&PushScope>,
        push: &Push,
        follow: Follow,
    ) -> Result<Sent, PushError> {
        let started_at = Instant::now();
        let span = debug_span!("push", event = push.event().as_str(), caller = scope.map(PushScope::name));
        let result = match push.idempotency_key() {
            // Waits for nothing: what is known later is waited for at what was sent.
            None => span.in_scope(|| self.deliver(scope, push, follow, started_at)),
            // Boxed, so that pushes without a key need not carry the room for it.
            Some(key) => Box::pin(self.deliver_once(scope, push, key, follow, started_at).instrument(span)).await,
        };
        if let Err(error) = &result {
            self.0.audit.failed(error, door, scope);
        }
        let metrics = &self.0.metrics;
        metrics.push_seconds.observe(started_at.elapsed().as_secs_f64());
        metrics.pushed(door, result_label(result.as_ref().map(Sent::taken)));
        result
    }

    /// A drop by a door, for a caller with a scope.
    pub(crate) async fn drop_from(
        &self,
        scope: &PushScope,
        user_id: &UserId,
        event: Option<&Event>,
    ) -> Result<u64, PushError> {
        if !scope.allows(Some(user_id), event) {
            let error = PushError::PermissionDenied;
            self.0.audit.failed(&error, Door::Grpc, Some(scope));
            return Err(error);
        }
        Ok(self.drop_user(user_id, event).await)
    }

    fn deliver(
        &self,
        scope: Option<&PushScope>,
        push: &Push,
        follow: Follow,
        accepted_at: Instant,
    ) -> Result<Sent, PushError> {
        self.admit(scope, push)?;
        // Taken before anything is sent: a push that is refused must have done nothing.
        let waiting = self.may_wait(scope, follow)?;
        Ok(sent(self.fan_out(push, self.0.names.message_id(), follow, accepted_at), waiting))
    }

    /// The same under a key, where the push may be made already, or another may be making it.
    async fn deliver_once(
        &self,
        scope: Option<&PushScope>,
        push: &Push,
        key: &str,
        follow: Follow,
        accepted_at: Instant,
    ) -> Result<Sent, PushError> {
        self.admit(scope, push)?;
        let waiting = self.may_wait(scope, follow)?;
        // Followed even if nobody asks now: whoever repeats it may ask.
        let make = async { self.fan_out(push, self.0.names.message_id(), Follow::Each, accepted_at) };
        let caller = scope.map(PushScope::name).unwrap_or_default();
        let made = self.0.replays.once(caller, key, push, accepted_at, make).await;
        Ok(sent(made.map_err(|differs| PushError::KeyReused { differs })?, waiting))
    }

    /// What must hold before anything is done.
    fn admit(&self, scope: Option<&PushScope>, push: &Push) -> Result<(), PushError> {
        if scope.is_some_and(|scope| !scope.allows(push.user_id(), Some(push.event()))) {
            return Err(PushError::PermissionDenied);
        }
        let limit_bytes = self.0.config.message_bytes_max;
        if push.payload().as_bytes().len() > limit_bytes {
            return Err(InvalidPush::TooLong { field: Field::Message, limit_bytes }.into());
        }
        // Last, so that only what would be sent counts.
        if let Some(scope) = scope {
            scope.spend(Instant::now()).map_err(|retry_after| PushError::RateLimited { retry_after })?;
        }
        Ok(())
    }

    fn may_wait(&self, scope: Option<&PushScope>, follow: Follow) -> Result<Option<Share>, PushError> {
        match follow {
            Follow::Nobody => Ok(None),
            Follow::Each => {
                let payer = scope.map_or(Payer::Library, |scope| scope.payer().clone());
                let mut place = self.0.waiting.share(payer);
                place.take(1).map_err(|_| PushError::TooManyWaiting)?;
                Ok(Some(place))
            }
        }
    }

    fn receivers(&self, push: &Push) -> Receivers {
        let mut receivers = self.bound(push);
        receivers.retain(|mailbox| push.is_for(mailbox.id()));
        receivers
    }

    fn bound(&self, push: &Push) -> Receivers {
        match push.target() {
            Target::User(user_id) => self.0.binder.receivers(user_id, push.event()),
            Target::Everyone => self.0.binder.receivers_of_all(push.event()),
        }
    }

    fn fan_out(&self, push: &Push, message_id: MessageId, follow: Follow, accepted_at: Instant) -> Made {
        let mut receivers = self.receivers(push);
        let is_held = receivers.is_empty() && self.hold(push, message_id, accepted_at, &mut receivers);
        let (delivery, outcome) = self.prepare(push, message_id, &receivers, follow, accepted_at, Duration::ZERO);
        let mut counts = Counts { outcome, displaced: 0 };
        counts.outcome.held = u64::from(is_held);
        if let Some(delivery) = &delivery {
            let fans = if receivers.len() <= NARROW_MAX { Fans::Narrow } else { Fans::Wide };
            let bytes = push.payload().as_bytes().len();
            for (place, mailbox) in receivers.iter().enumerate() {
                self.make_room(bytes, Some(mailbox));
                self.flush(mailbox, counts.offer(mailbox, delivery.ticket(place)), fans);
            }
            if counts.outcome.held > 0 {
                let ended = delivery.was_offered(counts.outcome.matched == 0);
                self.0.metrics.forgotten.inc_by(u64::from(ended.lost));
                if let Some(user_id) = push.user_id().filter(|_| ended.passes_on) {
                    self.0.sessions.pass_on(user_id, delivery.ticket(usize::MAX));
                }
            }
        }
        self.count(&counts);
        Made { outcome: counts.outcome, receipt: delivery.and_then(|delivery| delivery.receipt()) }
    }

    /// Has a message written whose receiver's task sleeps.
    fn flush(&self, mailbox: &Arc<Mailbox>, flush: Flush, fans: Fans) {
        match (flush, fans) {
            (Flush::None, _) => {}
            (Flush::Now, Fans::Narrow) => self.0.flusher.flush_now(mailbox),
            (Flush::Now | Flush::Soon, _) => self.0.flusher.flush_soon(mailbox.clone()),
        }
    }

    /// Keeps a message that is still worth something later, for a user who has no connection now, and says whether it did.
    /// If one was bound meanwhile, it is among the receivers then.
    fn hold(&self, push: &Push, message_id: MessageId, accepted_at: Instant, receivers: &mut Receivers) -> bool {
        let Target::User(user_id) = push.target() else { return false };
        if push.ttl().is_none() || push.is_for_now() || push.is_for_one() || !self.bound(push).is_empty() {
            return false;
        }
        let keep = self.0.sessions.keep();
        self.make_room(push.payload().as_bytes().len(), None);
        let ticket = Arc::new(self.delivery(push, message_id, accepted_at)).ticket(0);
        if ticket.is_expired() || keep.hold(user_id, ticket).is_err() {
            return false;
        }
        // A connection that was bound since has looked for what is held before this was.
        *receivers = self.receivers(push);
        if !receivers.is_empty() && keep.withdraw(user_id, message_id).is_some() {
            return false;
        }
        receivers.clear();
        true
    }

    /// The message in the form that mailboxes take, if there is anyone to take it, and an outcome to count into.
    fn prepare(
        &self,
        push: &Push,
        message_id: MessageId,
        receivers: &Receivers,
        follow: Follow,
        accepted_at: Instant,
        pace: Duration,
    ) -> (Option<Arc<Delivery>>, Outcome) {
        let outcome = Outcome::count(message_id, Level::Accepted, Vec::new());
        if receivers.is_empty() {
            return (None, outcome);
        }
        let mut delivery = self.delivery(push, message_id, accepted_at).offered_for(pace);
        if follow == Follow::Each {
            delivery = delivery.followed(receivers.iter().map(|mailbox| mailbox.id()));
        }
        (Some(Arc::new(delivery)), outcome)
    }

    fn delivery(&self, push: &Push, message_id: MessageId, accepted_at: Instant) -> Delivery {
        let policy = push.slow_reader_policy().unwrap_or_else(|| self.0.config.slow_reader_policy(push.event()));
        Delivery::new(message_id, push, policy, accepted_at)
    }

    fn count(&self, counts: &Counts) {
        let Counts { outcome, displaced } = counts;
        if outcome.matched == 0 && outcome.held == 0 {
            // Nobody was offered anything.
            return;
        }
        let metrics = &self.0.metrics;
        metrics.matched.inc_by(outcome.matched);
        metrics.accepted.inc_by(outcome.accepted);
        metrics.dropped(&outcome.drops);
        metrics.held.inc_by(outcome.held);
        metrics.displaced.inc_by(*displaced as u64);
    }
}

fn sent(made: Made, waiting: Option<Share>) -> Sent {
    let Outcome { message_id, matched, accepted, replayed, .. } = made.outcome;
    debug!(id = %message_id, matched, accepted, replayed, "pushed");
    Sent::new(made, waiting)
}

/// What a push has done so far.
struct Counts {
    outcome: Outcome,
    /// Messages that were accepted before and had to go for it.
    displaced: usize,
}

/// How many receivers a push has, as far as it matters for who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fans {
    /// So few that the push writes to them itself.
    Narrow,
    /// The flusher writes.
    Wide,
}

/// Receivers to whom a push writes itself. To more, it would keep its caller waiting.
const NARROW_MAX: usize = 8;

impl Counts {
    /// Offers one receiver its share, and counts what it did.
    fn offer(&mut self, mailbox: &Mailbox, ticket: Ticket) -> Flush {
        let Offered { taken, displaced, flush } = mailbox.offer(ticket);
        match taken {
            Taken::Queued => self.outcome.accepted += 1,
            Taken::Held => self.outcome.held += 1,
            Taken::Refused(reason) => self.outcome.drops.add(reason),
        }
        self.outcome.matched += u64::from(taken != Taken::Held);
        self.displaced += displaced;
        flush
    }
}

#[cfg(test)]
mod model;

//! Push and drop: what both push doors and the library share.

use std::num::NonZeroU32;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, debug_span};

use crate::auth::{PushAuthorizer, PushScope, ReloadError, TokenAuthenticator};
use crate::binder::{Binder, Receivers};
use crate::config::Config;
use crate::delivery::{Delivery, Receipt, Ticket};
use crate::flusher::Flusher;
use crate::mailbox::{Flush, Mailbox, Offered, Taken};
use crate::message::{Event, Field, InvalidPush, MessageId, Names, Push, Target, UserId};
use crate::metrics::{Door, Format, Metrics, PushResult, Task, set};
use crate::outcome::{Level, Outcome};
use crate::registry::Registry;
use crate::replays::{Made, Replays};
use crate::sessions::Sessions;
use crate::shares::{Payer, Share, Shares};

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
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) flusher: Arc<Flusher>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) names: Arc<Names>,
    pub(crate) token_authenticator: Arc<dyn TokenAuthenticator>,
    pub(crate) push_authorizer: Arc<dyn PushAuthorizer>,
    /// What was pushed under an idempotency key.
    pub(crate) replays: Replays,
    /// Pushes that may still wait for more than acceptance.
    pub(crate) waiting: Arc<Shares>,
    /// Whether the gateway is about to stop, and nobody new should come.
    pub(crate) leaving: AtomicBool,
    /// Cancelled when the gateway begins to stop.
    pub(crate) stopping: CancellationToken,
    /// The pushes in hand, requests and the tasks of streams, which a shutdown waits for.
    pub(crate) pushes: TaskTracker,
}

/// Why a push or drop was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// The user id, event or message is not valid.
    #[error(transparent)]
    Invalid(#[from] InvalidPush),
    /// Another push was made under this idempotency key within the config's `idempotency_window`. This one was not sent.
    #[error("this idempotency key was used for a push with another {differs}")]
    KeyReused {
        /// The first part in which the two differ.
        differs: Field,
    },
    /// The caller may not push to this user or event.
    #[error("the API key may not push to this user or event")]
    PermissionDenied,
    /// A broadcast at this pace would not be done in time. It was not sent.
    #[error("at this pace a broadcast to {matched} connections takes longer than the call has left")]
    TooSlow {
        /// How many connections it matched.
        matched: usize,
    },
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
    /// Refuses a message over the config's `message_bytes_max`, and an idempotency key that stands for another push.
    pub fn push(&self, push: &Push) -> Result<Outcome, PushError> {
        self.push_from(Door::Library, None, push)
    }

    /// Pushes one message and waits until every connection that took it has got it as far as `level`, or will not, but
    /// not past `until`: the outcome then says what is known so far.
    ///
    /// # Errors
    /// As for [`Gateway::push`]; and refuses any once `waiting_pushes_max` are waiting.
    pub async fn push_and_wait(&self, push: &Push, level: Level, until: Instant) -> Result<Outcome, PushError> {
        let sent = self.send_from(Door::Library, None, push, Follow::Each)?;
        Ok(sent.settled(level, until).await)
    }

    /// Closes a user's connections that are bound to the event, all of them without one, and says how many. What is
    /// already queued for them is written first. When this returns, no push matches them any more.
    pub fn drop_user(&self, user_id: &UserId, event: Option<&Event>) -> u64 {
        let evicted = self.0.binder.evict(user_id, event);
        let told = evicted.iter().filter(|mailbox| mailbox.drop_receiver()).count();
        self.0.sessions.end_dropped(user_id);
        debug!(told, "drop");
        told as u64
    }

    /// Whether new clients and callers should come here.
    pub(crate) fn is_ready(&self) -> bool {
        !self.0.leaving.load(Ordering::Relaxed) && !self.0.registry.is_draining()
    }

    /// From here on nobody new should come, but whoever comes is served.
    pub(crate) fn leave(&self) {
        self.0.leaving.store(true, Ordering::Relaxed);
    }

    /// How many WebSocket connections are open, bound or not.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.registry.len()
    }

    /// Reads tokens and push keys again, each by itself. Open connections stay as they are. Returns what could not be
    /// read again and goes on with what it had; empty when all is well.
    pub async fn reload(&self) -> Vec<ReloadError> {
        let tokens = self.reloaded(self.0.token_authenticator.reload()).await;
        let push_keys = self.reloaded(self.0.push_authorizer.reload()).await;
        [tokens.err(), push_keys.err()].into_iter().flatten().collect()
    }

    /// A check that panics has not been read again, and whoever asks for that can ask once more.
    async fn reloaded(&self, reload: impl Future<Output = Result<(), ReloadError>>) -> Result<(), ReloadError> {
        AssertUnwindSafe(reload).catch_unwind().await.unwrap_or_else(|_| {
            self.0.metrics.task_panicked(Task::Reload);
            Err(ReloadError::Other("the check panicked".into()))
        })
    }

    /// All metrics as text. What can be counted when asked is counted now, not kept in step by hand.
    pub(crate) fn scrape(&self, format: Format) -> String {
        let Rooms { metrics, registry, binder, sessions, waiting, replays, .. } = &*self.0;
        let depths = registry.depths();
        set(&metrics.connections, depths.connections);
        set(&metrics.bindings, binder.len());
        set(&metrics.users, binder.users());
        set(&metrics.outbox_messages, depths.total.messages);
        set(&metrics.outbox_bytes, depths.total.bytes);
        set(&metrics.outbox_messages_fullest, depths.messages_max);
        set(&metrics.outbox_bytes_fullest, depths.bytes_max);
        set(&metrics.waiting_pushes, waiting.taken());
        let (keys, bytes) = replays.usage();
        set(&metrics.idempotency_keys, keys);
        set(&metrics.idempotency_bytes, bytes);
        set(&metrics.sessions_away, sessions.away());
        let kept = sessions.keep().usage();
        set(&metrics.journal_messages, kept.messages);
        set(&metrics.journal_bytes, kept.bytes);
        metrics.encode(format)
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

    /// A broadcast that offers the message to at most so many connections a second. Refused with nothing sent if that
    /// cannot be done by `until`.
    pub(crate) async fn broadcast_paced(
        &self,
        scope: Option<&PushScope>,
        push: &Push,
        per_second: NonZeroU32,
        until: Instant,
    ) -> Result<Sent, PushError> {
        self.admit(scope, push)?;
        let accepted_at = Instant::now();
        let receivers = self.receivers(push);
        let due = |place: usize| accepted_at + Duration::from_secs_f64(place as f64 / f64::from(per_second.get()));
        if due(receivers.len()) > until {
            return Err(PushError::TooSlow { matched: receivers.len() });
        }
        let waiting = self.may_wait(scope, Follow::Each)?;
        let message_id = self.0.names.message_id();
        let pace = due(receivers.len()) - accepted_at;
        let (delivery, outcome) = self.prepare(push, message_id, &receivers, Follow::Each, accepted_at, pace);
        // A caller who leaves half way leaves counts that add up.
        let mut tally = Counted { gateway: self, counts: Counts { outcome, displaced: 0 } };
        if let Some(delivery) = &delivery {
            for (place, mailbox) in receivers.iter().enumerate() {
                if due(place) > Instant::now() {
                    tokio::time::sleep_until(due(place).into()).await;
                }
                self.flush(mailbox, tally.counts.offer(mailbox, delivery.ticket(place)), Fans::Wide);
            }
        }
        let receipt = delivery.and_then(|delivery| delivery.receipt());
        Ok(Sent { outcome: tally.counts.outcome.clone(), receipt, _waiting: waiting })
    }

    /// A drop by a door, for a caller with a scope.
    pub(crate) fn drop_from(
        &self,
        scope: &PushScope,
        user_id: &UserId,
        event: Option<&Event>,
    ) -> Result<u64, PushError> {
        if !scope.allows(Some(user_id), event) {
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
        let caller = scope.map(PushScope::name);
        let span = debug_span!("push", event = push.event().as_str(), caller);
        let _entered = span.enter();
        self.admit(scope, push)?;
        // Taken before anything is sent: a push that is refused must have done nothing.
        let waiting = self.may_wait(scope, follow)?;
        let Made { outcome, receipt } = match push.idempotency_key() {
            None => self.fan_out(push, follow, accepted_at),
            Some(key) => {
                // Followed even if nobody asks now: whoever repeats it may ask.
                let make = || self.fan_out(push, Follow::Each, accepted_at);
                let made = self.0.replays.once(caller.unwrap_or_default(), key, push, accepted_at, make);
                made.map_err(|differs| PushError::KeyReused { differs })?
            }
        };
        let sent = Sent { outcome, receipt, _waiting: waiting };
        let Outcome { message_id, matched, accepted, replayed, .. } = sent.outcome;
        debug!(id = %message_id, matched, accepted, replayed, "pushed");
        Ok(sent)
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

    fn fan_out(&self, push: &Push, follow: Follow, accepted_at: Instant) -> Made {
        let mut receivers = self.receivers(push);
        let message_id = self.0.names.message_id();
        let is_held = receivers.is_empty() && self.hold(push, message_id, accepted_at, &mut receivers);
        let (delivery, outcome) = self.prepare(push, message_id, &receivers, follow, accepted_at, Duration::ZERO);
        let mut counts = Counts { outcome, displaced: 0 };
        counts.outcome.held = u64::from(is_held);
        if let Some(delivery) = &delivery {
            let fans = if receivers.len() <= NARROW_MAX { Fans::Narrow } else { Fans::Wide };
            for (place, mailbox) in receivers.iter().enumerate() {
                self.flush(mailbox, counts.offer(mailbox, delivery.ticket(place)), fans);
            }
            // Passed on to whoever connects next, so only what is for them too.
            let user_id = push.user_id().filter(|_| counts.outcome.matched == 0 && push.is_for_any());
            if delivery.was_offered(user_id.is_some())
                && let Some(user_id) = user_id
            {
                self.0.sessions.pass_on(user_id, delivery.ticket(usize::MAX));
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

/// A broadcast on its way. Dropped, it counts what was done, also when its caller has left.
struct Counted<'a> {
    gateway: &'a Gateway,
    counts: Counts,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.gateway.count(&self.counts);
        self.gateway.0.metrics.pushed(Door::Grpc, result_label(Ok(&self.counts.outcome)));
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
    /// As it was when the mailboxes had taken it.
    pub(crate) outcome: Outcome,
    receipt: Option<Arc<Receipt>>,
    /// One of `waiting_pushes_max`, where it may be waited for.
    _waiting: Option<Share>,
}

impl Sent {
    /// What became of it by now.
    pub(crate) fn now(&self, level: Level) -> Outcome {
        let Outcome { message_id, replayed, .. } = self.outcome;
        match &self.receipt {
            Some(receipt) => Outcome { replayed, ..Outcome::count(message_id, level, receipt.outcomes()) },
            None => Outcome { level, ..self.outcome.clone() },
        }
    }

    /// Whether nothing more will become of it that is followed.
    pub(crate) fn is_settled(&self) -> bool {
        self.receipt.as_ref().is_none_or(|receipt| receipt.is_settled(Level::Acked))
    }

    /// What became of it once every receiver is settled at this level, or at `until` as far as it is known then.
    pub(crate) async fn settled(&self, level: Level, until: Instant) -> Outcome {
        if let Some(receipt) = &self.receipt {
            let _in_time = tokio::time::timeout_at(until.into(), receipt.settled(level)).await;
        }
        self.now(level)
    }
}

fn result_label(result: Result<&Outcome, &PushError>) -> PushResult {
    match result {
        Ok(Outcome { matched: 0, held: 0, .. }) => PushResult::Unmatched,
        Ok(Outcome { matched: 0, .. }) => PushResult::Held,
        Ok(Outcome { accepted: 0, .. }) => PushResult::Dropped,
        Ok(_) => PushResult::Accepted,
        Err(PushError::Invalid(InvalidPush::TooLong { .. })) => PushResult::TooLarge,
        Err(PushError::Invalid(InvalidPush::Empty { .. }) | PushError::KeyReused { .. }) => PushResult::Invalid,
        Err(PushError::PermissionDenied) => PushResult::PermissionDenied,
        Err(PushError::TooManyWaiting) => PushResult::Overloaded,
        Err(PushError::TooSlow { .. }) => PushResult::TimedOut,
    }
}

#[cfg(test)]
mod model;

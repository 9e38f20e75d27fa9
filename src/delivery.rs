//! One message on its way to its receivers: shared by all of them, and followed on each as far as somebody asked.

mod holders;
mod receipt;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::message::{ConnectionId, Event, MessageId, Payload, Priority, Push, SlowReaderPolicy};
use crate::outcome::{ConnectionOutcome, DropReason, Progress};
use crate::sync::{Mutex, MutexGuard};

use holders::Holders;
use receipt::WaitsFor;

pub(crate) use holders::{Ended, LetGo};
pub(crate) use receipt::Receipt;

/// How long a message with a time to live of zero may be on its way: its receiver needs a moment to write it.
const A_MOMENT: Duration = Duration::from_secs(1);

/// One message, shared by the mailboxes of all its receivers.
pub(crate) struct Delivery {
    message_id: MessageId,
    event: Event,
    payload: Bytes,
    is_text: bool,
    /// The same message as the session protocol words it, behind the number that each session gives it. Made when the
    /// first session is written to.
    session_tail: OnceLock<Bytes>,
    accepted_at: Instant,
    /// From when on it is no longer worth writing.
    expires_at: Option<Instant>,
    /// Whether it is for those who can take it now: nothing of it is kept for a client that is away.
    is_for_now: bool,
    priority: Priority,
    policy: SlowReaderPolicy,
    collapse_key: Option<Box<str>>,
    /// A std mutex: held for a few instructions, and no other lock is taken under it.
    holders: Mutex<Holders>,
    /// Present when somebody wants to know more than that it was accepted.
    receipt: Option<Arc<Receipt>>,
}

/// Prints nothing of the message itself.
impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("message_id", &self.message_id)
            .field("event", &self.event)
            .field("payload_bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}

impl Delivery {
    pub(crate) fn new(message_id: MessageId, push: &Push, policy: SlowReaderPolicy, accepted_at: Instant) -> Self {
        Self {
            message_id,
            event: push.event().clone(),
            payload: push.payload().to_bytes(),
            is_text: matches!(push.payload(), Payload::Text(_)),
            session_tail: OnceLock::new(),
            accepted_at,
            expires_at: push.ttl().and_then(|ttl| accepted_at.checked_add(if ttl.is_zero() { A_MOMENT } else { ttl })),
            is_for_now: push.is_for_now(),
            priority: push.priority(),
            policy,
            collapse_key: push.collapse_key().map(Into::into),
            // A message without a time to live is worth nothing to whoever connects next, and what is for some connections
            // only is not for the others.
            holders: Mutex::new(Holders::new(push.user_id().is_some() && push.ttl().is_some() && push.is_for_any())),
            receipt: None,
        }
    }

    /// The same, offered to one receiver after the other for so long: what is for now is for each one's turn.
    pub(crate) fn offered_for(mut self, pace: Duration) -> Self {
        if self.is_for_now {
            self.expires_at = self.expires_at.and_then(|expires_at| expires_at.checked_add(pace));
        }
        self
    }

    /// The same, followed on each of the receivers.
    pub(crate) fn followed(mut self, receivers: impl Iterator<Item = ConnectionId>) -> Self {
        self.receipt = Some(Arc::new(Receipt::new(receivers)));
        self
    }

    /// Where it is written down how far it got, when it is followed.
    pub(crate) fn receipt(&self) -> Option<Arc<Receipt>> {
        self.receipt.clone()
    }

    /// Notes that the message was offered to all receivers. `is_only_held` says that none of them has a connection.
    pub(crate) fn was_offered(&self, is_only_held: bool) -> Ended {
        self.holders().was_offered(is_only_held && !self.is_over())
    }

    fn is_over(&self) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= Instant::now())
    }

    fn holders(&self) -> MutexGuard<'_, Holders> {
        // Nothing under this lock can panic half way.
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What one receiver's mailbox is offered.
    pub(crate) fn ticket(self: &Arc<Self>, place: usize) -> Ticket {
        Ticket { delivery: self.clone(), place, is_late: false, is_held: false }
    }

    /// Whether it can take the place of an older message, and a newer one its place.
    fn supersedes(&self) -> bool {
        self.policy == SlowReaderPolicy::Conflate || self.collapse_key.is_some()
    }
}

/// One receiver's share of a delivery. Dropped without having been written, it says that the message was lost there:
/// whatever way a connection or a session ends, whoever waits is told.
#[derive(Debug)]
pub(crate) struct Ticket {
    delivery: Arc<Delivery>,
    place: usize,
    is_late: bool,
    /// Whether it counts among the holders of the message.
    is_held: bool,
}

impl Ticket {
    /// Makes it anyone's of the user's. What becomes of it is not followed any more: the receiver it was for is not the
    /// one that will have it.
    pub(crate) fn for_anyone(mut self) -> Self {
        self.place = usize::MAX;
        self
    }

    /// Marks it as kept for a client that was away when the message was pushed. It takes no room from newer ones: it
    /// counted elsewhere until now, and a client that has only just come is not a slow one.
    pub(crate) fn late(mut self) -> Self {
        self.is_late = true;
        self
    }

    pub(crate) fn set_late(&mut self) {
        self.is_late = true;
    }

    pub(crate) fn is_late(&self) -> bool {
        self.is_late
    }

    pub(crate) fn message_id(&self) -> MessageId {
        self.delivery.message_id
    }

    pub(crate) fn event(&self) -> &Event {
        &self.delivery.event
    }

    /// What the client is to see.
    pub(crate) fn payload(&self) -> &Bytes {
        &self.delivery.payload
    }

    pub(crate) fn is_text(&self) -> bool {
        self.delivery.is_text
    }

    /// The message as the session protocol words it, made by the first who asks.
    pub(crate) fn session_tail(&self, word: impl FnOnce(&Self) -> Bytes) -> &Bytes {
        self.delivery.session_tail.get_or_init(|| word(self))
    }

    pub(crate) fn priority(&self) -> Priority {
        self.delivery.priority
    }

    /// About how many bytes of memory the message takes, though others may share them.
    pub(crate) fn memory(&self) -> usize {
        let Delivery { event, payload, session_tail, collapse_key, .. } = &*self.delivery;
        let texts = event.as_str().len() + collapse_key.as_ref().map_or(0, |key| key.len());
        size_of::<Delivery>() + payload.len() + session_tail.get().map_or(0, Bytes::len) + texts
    }

    /// What happens to it where the queue is full.
    pub(crate) fn policy(&self) -> SlowReaderPolicy {
        self.delivery.policy
    }

    /// Whether the message has a collapse key, so that it takes the place of one with the same.
    pub(crate) fn collapses(&self) -> bool {
        self.delivery.collapse_key.is_some()
    }

    /// Whether a newer message of the same event takes this one's place: by its collapse key, or in a full queue by being
    /// conflated where neither has one.
    pub(crate) fn is_superseded_by(&self, newer: &Self) -> bool {
        let (older, newer) = (&self.delivery, &newer.delivery);
        older.supersedes()
            && newer.supersedes()
            && older.event == newer.event
            && older.collapse_key == newer.collapse_key
    }

    /// The key by which it takes the place of messages of its event, and they its place.
    pub(crate) fn collapse_key(&self) -> Option<&str> {
        self.delivery.collapse_key.as_deref()
    }

    pub(crate) fn accepted_at(&self) -> Instant {
        self.delivery.accepted_at
    }

    /// When it is no longer worth writing.
    pub(crate) fn expires_at(&self) -> Option<Instant> {
        self.delivery.expires_at
    }

    /// Whether the message is no longer worth writing.
    pub(crate) fn is_expired(&self) -> bool {
        self.delivery.is_over()
    }

    /// Whether nothing of the message is to be kept for a client that is away.
    pub(crate) fn is_for_now(&self) -> bool {
        self.delivery.is_for_now
    }

    /// The last byte is with the kernel, for a client that can say no more than that. Returns how long that took.
    pub(crate) fn written(self, at: Instant) -> Duration {
        let after = self.age(at);
        self.note(|outcome| {
            outcome.progress = Progress::Written { after };
            outcome.cannot_ack = true;
            Some(WaitsFor::Nothing)
        });
        after
    }

    /// The last byte is with the kernel, for a client that will acknowledge it. Returns how long that took.
    pub(crate) fn sent(&mut self, at: Instant) -> Duration {
        let after = self.age(at);
        if std::mem::take(&mut self.is_held) {
            self.delivery.holders().sent();
        }
        self.note(|outcome| match outcome.progress {
            Progress::Accepted | Progress::Held => {
                outcome.progress = Progress::Written { after };
                Some(WaitsFor::Ack)
            }
            // Sent once more, to a client that came back.
            _ => None,
        });
        after
    }

    /// The client has it. Returns how long that took.
    pub(crate) fn acked(self, at: Instant) -> Duration {
        self.into_remains().acked(at)
    }

    /// The client's session is away, and keeps the message for its return.
    pub(crate) fn held(&mut self) {
        if !std::mem::replace(&mut self.is_held, true) {
            self.delivery.holders().hold();
        }
        self.note(|outcome| {
            outcome.progress = Progress::Held;
            Some(WaitsFor::Nothing)
        });
    }

    /// The session that keeps it is over, and its client never had it. Returns who answers for it now.
    pub(crate) fn let_go(&mut self) -> LetGo {
        if !std::mem::take(&mut self.is_held) {
            return LetGo::Lost;
        }
        match self.delivery.holders().let_go() {
            LetGo::PassOn if self.is_expired() => LetGo::Lost,
            let_go => let_go,
        }
    }

    /// What is left of it once it was sent and its content is given up: enough to tell that it was acknowledged.
    pub(crate) fn into_remains(self) -> Remains {
        let receipt = self.delivery.receipt.clone();
        let remains = Remains { receipt, place: self.place, accepted_at: self.delivery.accepted_at };
        // Its outcome is told by the remains from here on.
        let mut this = self;
        this.place = usize::MAX;
        remains
    }

    /// It will never be written, for a reason of its own.
    pub(crate) fn lost(self, reason: DropReason) {
        self.give_up(reason);
    }

    /// The mailbox did not take it.
    pub(crate) fn refused(self, reason: DropReason) {
        self.note(|outcome| {
            outcome.progress = Progress::Dropped(reason);
            Some(WaitsFor::Nothing)
        });
    }

    /// Notes how many messages were queued before this one.
    pub(crate) fn behind(&self, messages: usize) {
        if let Some(receipt) = &self.delivery.receipt {
            receipt.behind(self.place, messages);
        }
    }

    fn give_up(&self, reason: DropReason) {
        self.note(|outcome| match outcome.progress {
            Progress::Accepted | Progress::Held => {
                outcome.progress = Progress::Lost(reason);
                Some(WaitsFor::Nothing)
            }
            // It was written, and no more than that will ever be known.
            Progress::Written { .. } => Some(WaitsFor::Nothing),
            Progress::Dropped(_) | Progress::Acked { .. } | Progress::Lost(_) => None,
        });
    }

    fn age(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.delivery.accepted_at)
    }

    fn note(&self, step: impl FnOnce(&mut ConnectionOutcome) -> Option<WaitsFor>) {
        if let Some(receipt) = &self.delivery.receipt {
            receipt.note(self.place, step);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.is_held {
            self.delivery.holders().release();
        }
        self.give_up(DropReason::Closed);
    }
}

/// A message that was sent to a session's client and whose content is not kept any more. Acknowledgement does not need it.
#[derive(Debug)]
pub(crate) struct Remains {
    receipt: Option<Arc<Receipt>>,
    place: usize,
    accepted_at: Instant,
}

impl Remains {
    /// The client has the message. Returns how long that took.
    pub(crate) fn acked(self, at: Instant) -> Duration {
        let after = at.saturating_duration_since(self.accepted_at);
        self.note(|outcome| {
            let written_after = if let Progress::Written { after } = outcome.progress { after } else { after };
            outcome.progress = Progress::Acked { written_after, after };
            Some(WaitsFor::Nothing)
        });
        after
    }

    fn note(&self, step: impl FnOnce(&mut ConnectionOutcome) -> Option<WaitsFor>) {
        if let Some(receipt) = &self.receipt {
            receipt.note(self.place, step);
        }
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        // It was written, and no more than that will ever be known.
        self.note(|outcome| matches!(outcome.progress, Progress::Written { .. }).then_some(WaitsFor::Nothing));
    }
}

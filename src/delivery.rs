//! One message on its way to its receivers: encoded once, and followed on each of them as far as somebody asked.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::Notify;

use crate::message::{ConnectionId, Event, Payload, Priority, Push, SlowReaderPolicy};
use crate::outcome::{ConnectionOutcome, DropReason, Progress};

/// One message, shared by the outboxes of all its receivers.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// The WebSocket frame, header and payload.
    bytes: Bytes,
    accepted_at: Instant,
    /// From when on it is no longer worth writing.
    expires_at: Option<Instant>,
    priority: Priority,
    policy: SlowReaderPolicy,
    /// Kept only where a later message may want to know them.
    event: Option<Event>,
    collapse_key: Option<Box<str>>,
    /// Present when somebody wants to know more than that it was accepted.
    receipt: Option<Arc<Receipt>>,
}

/// How far one message got on each of its receivers. Outlives the message itself.
#[derive(Debug)]
pub(crate) struct Receipt {
    state: Mutex<ReceiptState>,
    settled: Notify,
}

#[derive(Debug)]
struct ReceiptState {
    /// One for each receiver, in the order in which they were offered the message.
    outcomes: Vec<ConnectionOutcome>,
    /// How many are accepted and neither written nor lost yet.
    pending: usize,
}

impl Delivery {
    /// Encodes the frame: the allocation of a push, whatever the number of receivers.
    pub(crate) fn new(push: &Push, policy: SlowReaderPolicy, accepted_at: Instant) -> Self {
        let supersedes = policy == SlowReaderPolicy::Conflate || push.collapse_key().is_some();
        Self {
            bytes: encode(push.payload()),
            accepted_at,
            expires_at: push.ttl().and_then(|ttl| accepted_at.checked_add(ttl)),
            priority: push.priority(),
            policy,
            event: supersedes.then(|| push.event().clone()),
            collapse_key: push.collapse_key().map(Into::into),
            receipt: None,
        }
    }

    /// The same, followed on each of the receivers.
    pub(crate) fn followed(mut self, receivers: impl Iterator<Item = ConnectionId>) -> Self {
        let outcomes: Vec<_> = receivers.map(ConnectionOutcome::accepted).collect();
        let pending = outcomes.len();
        let state = Mutex::new(ReceiptState { outcomes, pending });
        self.receipt = Some(Arc::new(Receipt { state, settled: Notify::new() }));
        self
    }

    /// Where it is written down how far it got, when it is followed.
    pub(crate) fn receipt(&self) -> Option<Arc<Receipt>> {
        self.receipt.clone()
    }

    /// What one receiver's outbox is offered.
    pub(crate) fn ticket(self: &Arc<Self>, place: usize) -> Ticket {
        Ticket { delivery: self.clone(), place }
    }
}

impl Receipt {
    /// Waits until each receiver has the message or has lost it.
    pub(crate) async fn settled(&self) {
        loop {
            let settled = self.settled.notified();
            if self.state().pending == 0 {
                return;
            }
            settled.await;
        }
    }

    /// How far the message got on each receiver by now.
    pub(crate) fn outcomes(&self) -> Vec<ConnectionOutcome> {
        self.state().outcomes.clone()
    }

    fn state(&self) -> MutexGuard<'_, ReceiptState> {
        // A panic under this lock could only be the place that is out of bounds, and then nothing was changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Settles one receiver, the first time.
    fn settle(&self, place: usize, progress: Progress) {
        let mut state = self.state();
        let Some(outcome) = state.outcomes.get_mut(place) else { return };
        if outcome.progress != Progress::Accepted {
            return;
        }
        outcome.progress = progress;
        state.pending -= 1;
        let is_last = state.pending == 0;
        drop(state);
        if is_last {
            self.settled.notify_waiters();
        }
    }
}

/// One receiver's share of a delivery. Dropped without having been written, it says that the message was lost there:
/// whatever way a connection ends, whoever waits is told.
#[derive(Debug)]
pub(crate) struct Ticket {
    delivery: Arc<Delivery>,
    place: usize,
}

impl Ticket {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.delivery.bytes
    }

    pub(crate) fn priority(&self) -> Priority {
        self.delivery.priority
    }

    /// What happens to it where the outbox is full.
    pub(crate) fn policy(&self) -> SlowReaderPolicy {
        self.delivery.policy
    }

    /// Whether the message has a collapse key, so that it takes the place of one with the same.
    pub(crate) fn collapses(&self) -> bool {
        self.delivery.collapse_key.is_some()
    }

    /// Whether a newer message of the same event takes this one's place: by its collapse key, or in a full outbox by being
    /// conflated where neither has one.
    pub(crate) fn is_superseded_by(&self, newer: &Self) -> bool {
        let (older, newer) = (&self.delivery, &newer.delivery);
        older.event.is_some() && older.event == newer.event && older.collapse_key == newer.collapse_key
    }

    /// Whether the message is no longer worth writing.
    pub(crate) fn is_expired(&self) -> bool {
        self.delivery.expires_at.is_some_and(|expires_at| expires_at <= Instant::now())
    }

    /// The last byte is with the kernel. Says how long that took.
    pub(crate) fn written(self, at: Instant) -> Duration {
        let after = at.saturating_duration_since(self.delivery.accepted_at);
        self.settle(Progress::Written { after });
        after
    }

    /// It will never be written, for a reason of its own.
    pub(crate) fn lost(self, reason: DropReason) {
        self.settle(Progress::Lost(reason));
    }

    /// The outbox did not take it.
    pub(crate) fn refused(self, reason: DropReason) {
        self.settle(Progress::Dropped(reason));
    }

    /// Notes how many messages were queued before this one.
    pub(crate) fn behind(&self, messages: usize) {
        if let Some(receipt) = &self.delivery.receipt
            && let Some(outcome) = receipt.state().outcomes.get_mut(self.place)
        {
            outcome.queued_before = messages;
        }
    }

    fn settle(&self, progress: Progress) {
        if let Some(receipt) = &self.delivery.receipt {
            receipt.settle(self.place, progress);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.settle(Progress::Lost(DropReason::Closed));
    }
}

fn encode(payload: &Payload) -> Bytes {
    // RFC 6455 section 5.2: FIN and opcode, then the length in 7, 16 or 64 bits; a server does not mask.
    let opcode = match payload {
        Payload::Text(_) => 0x1,
        Payload::Binary(_) => 0x2,
    };
    let body = payload.as_bytes();
    let mut bytes = BytesMut::with_capacity(10 + body.len());
    bytes.put_u8(0x80 | opcode);
    match body.len() {
        length @ ..126 => bytes.put_u8(length as u8),
        length @ 126..=0xffff => {
            bytes.put_u8(126);
            bytes.put_u16(length as u16);
        }
        length => {
            bytes.put_u8(127);
            bytes.put_u64(length as u64);
        }
    }
    bytes.put_slice(body);
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Names;

    #[test]
    fn a_frame_is_the_payload_behind_the_shortest_header() {
        for (length, header) in [
            (1, vec![0x81, 1]),
            (125, vec![0x81, 125]),
            (126, vec![0x81, 126, 0, 126]),
            (65_535, vec![0x81, 126, 0xff, 0xff]),
            (65_536, vec![0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let text = "x".repeat(length);
            assert_eq!(encode(&Payload::from(&*text)), [header, text.into_bytes()].concat());
        }
        assert_eq!(&encode(&Payload::from(Bytes::from_static(&[7])))[..], [0x82, 1, 7]);
    }

    #[tokio::test]
    async fn whoever_waits_is_told_of_every_receiver_whatever_becomes_of_it() {
        let names = Names::new();
        let ids = [names.connection_id(), names.connection_id(), names.connection_id(), names.connection_id()];
        let push = Push::new("ann", "mail", "m").expect("valid").with_ttl(Duration::ZERO);
        let delivery = Delivery::new(&push, SlowReaderPolicy::Disconnect, Instant::now());
        let delivery = Arc::new(delivery.followed(ids.into_iter()));
        let [written, lost, expired, refused] = [0, 1, 2, 3].map(|place| delivery.ticket(place));
        let waiting = tokio::spawn({
            let receipt = delivery.receipt().expect("followed");
            async move { receipt.settled().await }
        });
        assert!(expired.is_expired());
        refused.refused(DropReason::QueueFull);
        written.written(Instant::now());
        expired.lost(DropReason::Expired);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "one is still on its way");
        drop(lost);
        waiting.await.expect("no panic");
        let progress: Vec<_> =
            delivery.receipt().expect("followed").outcomes().into_iter().map(|outcome| outcome.progress).collect();
        assert!(matches!(progress[0], Progress::Written { .. }));
        let rest = [
            Progress::Lost(DropReason::Closed),
            Progress::Lost(DropReason::Expired),
            Progress::Dropped(DropReason::QueueFull),
        ];
        assert_eq!(progress[1..], rest);
    }
}

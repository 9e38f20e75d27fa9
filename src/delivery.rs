//! One message on its way to its receivers: encoded once, and followed on each of them as far as somebody asked.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use tokio::sync::Notify;

use crate::message::{ConnectionId, Event, MessageId, Payload, Priority, Push, SlowReaderPolicy};
use crate::outcome::{ConnectionOutcome, DropReason, Level, Progress};
use crate::sync::{Mutex, MutexGuard};

/// How long a message with a time to live of nothing may be on its way: a connection's task needs a moment to write it.
const A_MOMENT: Duration = Duration::from_secs(1);

/// One message, shared by the outboxes of all its receivers.
pub(crate) struct Delivery {
    message_id: MessageId,
    event: Event,
    /// The WebSocket frame, header and payload.
    bytes: Bytes,
    /// Where in it the payload begins.
    payload_at: usize,
    /// The same message as the session protocol tells it, behind the number that each session gives it. Made when the
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
    /// Whether only sessions that are away have it, so that the last to give it up must not let it be lost.
    is_left_behind: AtomicBool,
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
    entries: Vec<Entry>,
    /// How many wait to be written, or lost.
    unwritten: usize,
    /// How many wait to be acknowledged, or to be given up; those that wait to be written too.
    unacked: usize,
}

#[derive(Clone, Debug)]
struct Entry {
    outcome: ConnectionOutcome,
    waits_for: WaitsFor,
}

/// What may still happen to a message on one receiver, for those who wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitsFor {
    Write,
    Ack,
    /// It is settled, or nobody knows when the client will be back.
    Nothing,
}

/// Prints nothing of the message itself: a journal of an embedder's may log what it keeps.
impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = self.payload().len();
        f.debug_struct("Delivery")
            .field("message_id", &self.message_id)
            .field("event", &self.event)
            .field("payload_bytes", &length)
            .finish_non_exhaustive()
    }
}

impl Delivery {
    /// Encodes the frame: the allocation of a push, whatever the number of receivers.
    pub(crate) fn new(message_id: MessageId, push: &Push, policy: SlowReaderPolicy, accepted_at: Instant) -> Self {
        let bytes = encode(push.payload());
        Self {
            message_id,
            event: push.event().clone(),
            payload_at: bytes.len() - push.payload().as_bytes().len(),
            bytes,
            session_tail: OnceLock::new(),
            accepted_at,
            expires_at: push.ttl().and_then(|ttl| accepted_at.checked_add(if ttl.is_zero() { A_MOMENT } else { ttl })),
            is_for_now: push.is_for_now(),
            priority: push.priority(),
            policy,
            collapse_key: push.collapse_key().map(Into::into),
            is_left_behind: AtomicBool::new(false),
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
        let entries: Vec<_> = receivers
            .map(|id| Entry { outcome: ConnectionOutcome::accepted(id), waits_for: WaitsFor::Write })
            .collect();
        let state = Mutex::new(ReceiptState { unwritten: entries.len(), unacked: entries.len(), entries });
        self.receipt = Some(Arc::new(Receipt { state, settled: Notify::new() }));
        self
    }

    /// Where it is written down how far it got, when it is followed.
    pub(crate) fn receipt(&self) -> Option<Arc<Receipt>> {
        self.receipt.clone()
    }

    /// Notes that no connection has it, and only sessions that are away keep it. Worth noting only for a message with a
    /// time to live, which is worth something to whoever connects next.
    pub(crate) fn leave_behind(&self) {
        self.is_left_behind.store(self.expires_at.is_some(), Ordering::Relaxed);
    }

    /// What one receiver's outbox is offered.
    pub(crate) fn ticket(self: &Arc<Self>, place: usize) -> Ticket {
        Ticket { delivery: self.clone(), place, is_late: false }
    }

    fn payload(&self) -> &[u8] {
        &self.bytes[self.payload_at..]
    }

    fn is_text(&self) -> bool {
        self.bytes[0] & 0x0f == OPCODE_TEXT
    }

    /// Whether it can take the place of an older message, and a newer one its.
    fn supersedes(&self) -> bool {
        self.policy == SlowReaderPolicy::Conflate || self.collapse_key.is_some()
    }

    fn session_tail(&self) -> Bytes {
        self.session_tail.get_or_init(|| session_tail(self)).clone()
    }
}

impl Receipt {
    /// Waits until each receiver has got the message as far as this level, or will not get it there.
    pub(crate) async fn settled(&self, level: Level) {
        loop {
            let settled = self.settled.notified();
            if self.is_settled(level) {
                return;
            }
            settled.await;
        }
    }

    /// Whether no receiver can get it as far as this level any more that has not got it there yet.
    pub(crate) fn is_settled(&self, level: Level) -> bool {
        self.state().pending(level) == 0
    }

    /// How far the message got on each receiver by now.
    pub(crate) fn outcomes(&self) -> Vec<ConnectionOutcome> {
        self.state().entries.iter().map(|entry| entry.outcome.clone()).collect()
    }

    /// About how many bytes of memory it takes.
    pub(crate) fn memory(&self) -> usize {
        size_of::<Self>() + self.state().entries.capacity() * size_of::<Entry>()
    }

    fn state(&self) -> MutexGuard<'_, ReceiptState> {
        // A panic under this lock could only be the place that is out of bounds, and then nothing was changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a step of one receiver, and tells whoever waits if it was the last one they waited for.
    fn note(&self, place: usize, step: impl FnOnce(&mut ConnectionOutcome) -> Option<WaitsFor>) {
        let mut state = self.state();
        let Some(entry) = state.entries.get_mut(place) else { return };
        let Some(now) = step(&mut entry.outcome) else { return };
        let before = entry.waits_for;
        // What is held is not waited for, and stays so when its client comes back.
        let now = if before == WaitsFor::Nothing { before } else { now };
        entry.waits_for = now;
        let written = before == WaitsFor::Write && now != WaitsFor::Write;
        let ended = before != WaitsFor::Nothing && now == WaitsFor::Nothing;
        state.unwritten -= usize::from(written);
        state.unacked -= usize::from(ended);
        let tell = (written && state.unwritten == 0) || (ended && state.unacked == 0);
        drop(state);
        if tell {
            self.settled.notify_waiters();
        }
    }
}

impl ReceiptState {
    fn pending(&self, level: Level) -> usize {
        match level {
            Level::Accepted => 0,
            Level::Written => self.unwritten,
            Level::Acked => self.unacked,
        }
    }
}

/// One receiver's share of a delivery. Dropped without having been written, it says that the message was lost there:
/// whatever way a connection or a session ends, whoever waits is told.
#[derive(Debug)]
pub(crate) struct Ticket {
    delivery: Arc<Delivery>,
    place: usize,
    is_late: bool,
}

impl Ticket {
    /// Makes it anyone's of the user's. What becomes of it is not followed any more: the receiver it was for is not the one
    /// that will have it.
    pub(crate) fn for_anyone(mut self) -> Self {
        self.place = usize::MAX;
        self
    }

    /// Marks it as kept for a client that was away when the message was pushed: it takes no room from newer ones, since
    /// the journal's bounds held for it, and a client that has only just come is not a slow one.
    pub(crate) fn late(mut self) -> Self {
        self.is_late = true;
        self
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

    /// The frame that a legacy client gets.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.delivery.bytes
    }

    pub(crate) fn payload(&self) -> Payload {
        let payload = self.delivery.payload();
        if self.delivery.is_text() {
            Payload::Text(String::from_utf8_lossy(payload).into_owned())
        } else {
            Payload::Binary(self.delivery.bytes.slice(self.delivery.payload_at..))
        }
    }

    /// What a session's frame has behind the number: the rest of the JSON object.
    pub(crate) fn session_tail(&self) -> Bytes {
        self.delivery.session_tail()
    }

    pub(crate) fn priority(&self) -> Priority {
        self.delivery.priority
    }

    /// About how many bytes of memory the message takes, though others may share them.
    pub(crate) fn memory(&self) -> usize {
        let Delivery { event, bytes, session_tail, collapse_key, .. } = &*self.delivery;
        let texts = event.as_str().len() + collapse_key.as_ref().map_or(0, |key| key.len());
        size_of::<Delivery>() + bytes.len() + session_tail.get().map_or(0, Bytes::len) + texts
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
        older.supersedes()
            && newer.supersedes()
            && older.event == newer.event
            && older.collapse_key == newer.collapse_key
    }

    /// By what it takes the place of messages of its event, and they its.
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
        self.delivery.expires_at.is_some_and(|expires_at| expires_at <= Instant::now())
    }

    /// Whether nothing of the message is to be kept for a client that is away.
    pub(crate) fn is_for_now(&self) -> bool {
        self.delivery.is_for_now
    }

    /// The last byte is with the kernel, for a client that can say no more than that. Says how long that took.
    pub(crate) fn written(self, at: Instant) -> Duration {
        let after = self.age(at);
        self.note(|outcome| {
            outcome.progress = Progress::Written { after };
            outcome.cannot_ack = true;
            Some(WaitsFor::Nothing)
        });
        after
    }

    /// Whether the message would be lost with this session, though it is still worth something to the user: no connection
    /// ever had it, and no other session has it.
    pub(crate) fn would_be_lost(&self) -> bool {
        let is_last = Arc::strong_count(&self.delivery) == 1;
        is_last && !self.is_expired() && self.delivery.is_left_behind.swap(false, Ordering::Relaxed)
    }

    /// The same for a client that will acknowledge it.
    pub(crate) fn sent(&self, at: Instant) -> Duration {
        let after = self.age(at);
        self.delivery.is_left_behind.store(false, Ordering::Relaxed);
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

    /// The client has it. Says how long that took.
    pub(crate) fn acked(self, at: Instant) -> Duration {
        let after = self.age(at);
        self.note(|outcome| {
            let written_after = if let Progress::Written { after } = outcome.progress { after } else { after };
            outcome.progress = Progress::Acked { written_after, after };
            Some(WaitsFor::Nothing)
        });
        after
    }

    /// The client's session is away, and the message is kept for it.
    pub(crate) fn held(&self) {
        self.note(|outcome| {
            outcome.progress = Progress::Held;
            Some(WaitsFor::Nothing)
        });
    }

    /// It will never be written, for a reason of its own.
    pub(crate) fn lost(self, reason: DropReason) {
        self.give_up(reason);
    }

    /// The outbox did not take it.
    pub(crate) fn refused(self, reason: DropReason) {
        self.note(|outcome| {
            outcome.progress = Progress::Dropped(reason);
            Some(WaitsFor::Nothing)
        });
    }

    /// Notes how many messages were queued before this one.
    pub(crate) fn behind(&self, messages: usize) {
        if let Some(receipt) = &self.delivery.receipt
            && let Some(entry) = receipt.state().entries.get_mut(self.place)
        {
            entry.outcome.queued_before = messages;
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
        self.give_up(DropReason::Closed);
    }
}

/// The JSON of a push frame from behind `"seq":N,` to its end.
fn session_tail(delivery: &Delivery) -> Bytes {
    #[derive(Serialize)]
    struct Tail<'a> {
        id: String,
        event: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        message: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        binary: Option<String>,
    }
    let payload = delivery.payload();
    let message = std::str::from_utf8(payload).ok().filter(|_| delivery.is_text());
    let tail = Tail {
        id: delivery.message_id.to_string(),
        event: delivery.event.as_str(),
        message,
        binary: message.is_none().then(|| BASE64_STANDARD.encode(payload)),
    };
    let mut json = Vec::with_capacity(payload.len() + 96);
    serde_json::to_writer(&mut json, &tail).expect("strings are always JSON");
    // Without the brace, which stands before the number.
    Bytes::from(json).slice(1..)
}

/// RFC 6455 section 5.2.
const OPCODE_TEXT: u8 = 0x1;
const OPCODE_BINARY: u8 = 0x2;

/// The longest header of a frame from a server.
pub(crate) const HEADER_BYTES_MAX: usize = 10;

/// Appends the header of a text frame that is sent in parts of this many bytes together.
pub(crate) fn text_header(length: usize, into: &mut impl BufMut) {
    header(OPCODE_TEXT, length, into);
}

fn header(opcode: u8, length: usize, into: &mut impl BufMut) {
    // RFC 6455 section 5.2: FIN and opcode, then the length in 7, 16 or 64 bits; a server does not mask.
    into.put_u8(0x80 | opcode);
    match length {
        ..126 => into.put_u8(length as u8),
        126..=0xffff => {
            into.put_u8(126);
            into.put_u16(length as u16);
        }
        _ => {
            into.put_u8(127);
            into.put_u64(length as u64);
        }
    }
}

fn encode(payload: &Payload) -> Bytes {
    let opcode = match payload {
        Payload::Text(_) => OPCODE_TEXT,
        Payload::Binary(_) => OPCODE_BINARY,
    };
    let body = payload.as_bytes();
    let mut bytes = BytesMut::with_capacity(HEADER_BYTES_MAX + body.len());
    header(opcode, body.len(), &mut bytes);
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

    #[test]
    fn a_message_on_its_way_does_not_print_what_it_says() {
        let push = Push::new("ann", "mail", "secret").expect("valid");
        let delivery = Delivery::new(Names::new().message_id(), &push, SlowReaderPolicy::Disconnect, Instant::now());
        let ticket = Arc::new(delivery).ticket(0);
        let _tail = ticket.session_tail();
        let printed = format!("{ticket:?}");
        assert!(printed.contains("payload_bytes: 6") && !printed.contains("secret"), "{printed}");
    }

    #[tokio::test]
    async fn whoever_waits_is_told_of_every_receiver_whatever_becomes_of_it() {
        let names = Names::new();
        let ids = [names.connection_id(), names.connection_id(), names.connection_id(), names.connection_id()];
        let push = Push::new("ann", "mail", "m").expect("valid").with_ttl(Duration::from_nanos(1));
        let delivery = Delivery::new(names.message_id(), &push, SlowReaderPolicy::Disconnect, Instant::now());
        let delivery = Arc::new(delivery.followed(ids.into_iter()));
        let [written, lost, expired, refused] = [0, 1, 2, 3].map(|place| delivery.ticket(place));
        let waiting = tokio::spawn({
            let receipt = delivery.receipt().expect("followed");
            async move { receipt.settled(Level::Written).await }
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

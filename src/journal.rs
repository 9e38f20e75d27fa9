//! What is kept for clients that come back: the trait behind which it is kept, and what it keeps.

mod memory;
#[cfg(all(test, not(feature = "shuttle")))]
mod model;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;

use crate::delivery::{Delivery, Ticket};
use crate::message::{ConnectionId, Event, InvalidPush, MessageId, Payload, Priority, Push, SlowReaderPolicy, UserId};
use crate::outcome::DropReason;

pub use memory::MemoryJournal;

/// Where messages are kept for clients that come back.
///
/// Two kinds of messages are: those that a session was sent and did not acknowledge yet, or missed while it was away;
/// and those with a time to live that nobody was bound to get. Every message is owned by whoever has it at the
/// moment; a journal that lets go of one says why, with [`Kept::give_up`].
///
/// The gateway may hold the lock of one outbox while it calls the methods that are not `async`, so they must neither
/// wait nor call back. A call to one that is `async` may be dropped before it is done, when the client goes: what it has
/// not handed over by then must still be kept.
///
/// One that outlives the process stores [`Kept::stored`] and comes back with [`Kept::restored`], for example around a
/// [`MemoryJournal`]. It hands out the [`Kept`] it was given as long as it has it, since whoever waits for its outcome waits
/// for that one. Sessions themselves do not outlive the process so far: what is held for a user does.
#[async_trait]
pub trait Journal: Send + Sync + fmt::Debug + 'static {
    /// Keeps messages of one session, in ascending order of their numbers, all above those that are kept already.
    ///
    /// Where the bounds leave no room, the session's own oldest messages go for them, and none of them in vain.
    fn append(&self, session: &SessionKey, messages: &mut dyn Iterator<Item = Kept>) -> Appended;

    /// Lets go of a session's messages up to this number, and hands them over. Its client has them; or the session is
    /// over, and the number is `u64::MAX`.
    fn acknowledge(&self, session: &SessionKey, seq: u64) -> Vec<Kept>;

    /// Hands over everything that is kept for a session, oldest first, and keeps none of it.
    async fn take(&self, session: &SessionKey) -> Vec<Kept>;

    /// Keeps a message for a user of whom no connection is bound to its event.
    ///
    /// # Errors
    /// Hands it back where the bounds leave no room.
    fn hold(&self, user_id: &UserId, message: Kept) -> Result<(), Kept>;

    /// Hands back one message that is held, if it was not released yet. Of this and [`Journal::release`], which other
    /// threads may call at the same time, only one may hand it over.
    fn withdraw(&self, user_id: &UserId, message_id: MessageId) -> Option<Kept>;

    /// Whether anything is held for a user, so that a bind need not ask further. May say yes without reason, but not
    /// no once [`Journal::hold`] has returned.
    fn holds(&self, user_id: &UserId) -> bool;

    /// Hands over what is held for a user's event, oldest first, and keeps none of it.
    ///
    /// The client that is bound to the event is sent nothing until then, and is closed with 4408 after the config's
    /// `bind_timeout`.
    async fn release(&self, user_id: &UserId, event: &Event) -> Vec<Kept>;

    /// Lets go of what has been kept for longer than it may, and says how many messages never reached a client.
    fn sweep(&self, now: Instant) -> usize;

    /// How much is kept.
    fn usage(&self) -> Usage;
}

/// A session as journals know it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// Whose it is.
    pub user_id: UserId,
    /// Which one it is, over all gateways and restarts.
    pub epoch: ConnectionId,
}

/// What became of messages that were to be kept.
#[derive(Debug, Default)]
pub struct Appended {
    /// Those that there was no room for.
    pub refused: Vec<Kept>,
    /// How many messages that were kept before had to go for them, of those that never reached the client.
    pub lost: usize,
}

/// How much a journal keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Messages, each counted once for every session it is kept for.
    pub messages: usize,
    /// Bytes of them, see [`Kept::bytes`].
    pub bytes: usize,
}

/// What a journal may keep.
#[derive(Clone, Copy, Debug)]
pub struct JournalBounds {
    /// Messages of one user, over all of its sessions.
    pub messages_per_user_max: usize,
    /// Bytes of one user's messages.
    pub bytes_per_user_max: usize,
    /// Bytes in all.
    pub bytes_max: usize,
    /// How long a message is kept.
    pub age: Duration,
}

/// One message in a form that outlives the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The gateway's name for the message.
    pub message_id: MessageId,
    /// The session's number for it; 0 while it has none.
    pub seq: u64,
    /// The event it belongs to.
    pub event: Event,
    /// What the client is to see.
    pub payload: Payload,
    /// Which messages it overtakes.
    pub priority: Priority,
    /// By what a newer message of its event takes its place.
    pub collapse_key: Option<String>,
    /// Since when it is kept.
    pub kept_at: SystemTime,
    /// When it is no longer worth delivering.
    pub expires_at: Option<SystemTime>,
    /// Whether it was sent to its client, who has not acknowledged it.
    pub is_sent: bool,
}

/// One message that is kept. Whoever waits for its outcome is told when it is let go of.
#[derive(Debug)]
pub struct Kept {
    ticket: Ticket,
    seq: u64,
    kept_at: Instant,
    /// Taken when it changes hands: what the message takes grows when the first session is written to.
    bytes: usize,
    is_sent: bool,
}

impl Kept {
    /// What a message takes beside itself: its place in a queue, which has up to twice the places it needs.
    const OVERHEAD_BYTES: usize = 2 * size_of::<Self>();

    pub(crate) fn new(ticket: Ticket, seq: u64) -> Self {
        let bytes = Self::OVERHEAD_BYTES + ticket.memory();
        Self { ticket, seq, kept_at: Instant::now(), bytes, is_sent: false }
    }

    /// Makes a message again from what was stored of it. Nobody waits for its outcome.
    ///
    /// # Errors
    /// Refuses a payload or collapse key that no push can have.
    pub fn restored(stored: Stored) -> Result<Self, InvalidPush> {
        let Stored { message_id, seq, event, payload, priority, collapse_key, kept_at, expires_at, is_sent } = stored;
        let (now, wall_clock) = (Instant::now(), SystemTime::now());
        let age = wall_clock.duration_since(kept_at).unwrap_or_default();
        // As if it was accepted then: what is pushed from now on is newer.
        let kept_at = now.checked_sub(age).unwrap_or(now);
        let mut push = Push::to_everyone(event.as_str(), payload)?.with_priority(priority);
        if let Some(key) = collapse_key {
            push = push.with_collapse_key(key)?;
        }
        if let Some(expires_at) = expires_at {
            // None at all would be for now, not over.
            let left = expires_at.duration_since(wall_clock).unwrap_or_default();
            push = push.with_ttl(left.saturating_add(now - kept_at).max(Duration::from_nanos(1)));
        }
        let delivery = Delivery::new(message_id, &push, SlowReaderPolicy::default(), kept_at);
        Ok(Self { kept_at, is_sent, ..Self::new(Arc::new(delivery).ticket(0), seq) })
    }

    /// What there is to store of it.
    #[must_use]
    pub fn stored(&self) -> Stored {
        let (now, wall_clock) = (Instant::now(), SystemTime::now());
        let expires_at = self.expires_at().and_then(|at| wall_clock.checked_add(at.saturating_duration_since(now)));
        Stored {
            message_id: self.message_id(),
            seq: self.seq,
            event: self.event().clone(),
            payload: self.payload(),
            priority: self.ticket.priority(),
            collapse_key: self.ticket.collapse_key().map(str::to_owned),
            kept_at: wall_clock.checked_sub(now.saturating_duration_since(self.kept_at)).unwrap_or(wall_clock),
            expires_at,
            is_sent: self.is_sent,
        }
    }

    /// The session's number for it; 0 while it has none.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The gateway's name for the message.
    #[must_use]
    pub fn message_id(&self) -> MessageId {
        self.ticket.message_id()
    }

    /// The event it belongs to.
    #[must_use]
    pub fn event(&self) -> &Event {
        self.ticket.event()
    }

    /// What the client is to see.
    #[must_use]
    pub fn payload(&self) -> Payload {
        self.ticket.payload()
    }

    /// How many bytes of the bounds it takes, about as many as of memory: the message as it was pushed, the JSON that a
    /// session is sent once there is any, and about 300 bytes beside them. What several sessions share counts for each.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Since when it is kept.
    #[must_use]
    pub fn kept_at(&self) -> Instant {
        self.kept_at
    }

    /// When it is no longer worth delivering.
    #[must_use]
    pub fn expires_at(&self) -> Option<Instant> {
        self.ticket.expires_at()
    }

    /// Whether it was sent to its client, who has not acknowledged it.
    #[must_use]
    pub fn is_sent(&self) -> bool {
        self.is_sent
    }

    /// Lets go of it.
    pub fn give_up(self, reason: DropReason) {
        self.ticket.lost(reason);
    }

    /// The same message without a number, for the user as a whole.
    pub(crate) fn for_anyone(self) -> Self {
        Self::new(self.ticket.for_anyone(), 0)
    }

    /// Marks it as on its way to a client that was away.
    pub(crate) fn late(mut self) -> Self {
        self.ticket = self.ticket.late();
        self
    }

    pub(crate) fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    pub(crate) fn into_ticket(self) -> Ticket {
        self.ticket
    }

    /// The last byte is with the kernel. Says how long that took, the first time.
    pub(crate) fn sent(&mut self, at: Instant) -> Option<Duration> {
        let after = self.ticket.sent(at);
        self.bytes = Self::OVERHEAD_BYTES + self.ticket.memory();
        (!std::mem::replace(&mut self.is_sent, true)).then_some(after)
    }
}

//! What is kept for clients that come back: the trait behind which it is kept, and what it keeps.

mod memory;
#[cfg(all(test, not(feature = "shuttle")))]
mod model;

use std::fmt;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use crate::delivery::Ticket;
use crate::message::{ConnectionId, Event, MessageId, Payload, UserId};
use crate::outcome::DropReason;

pub(crate) use memory::MemoryJournal;

/// Where messages are kept for clients that come back.
///
/// Two kinds of messages are: those that a session was sent and did not acknowledge yet, or missed while it was away;
/// and those with a time to live whose user had no connection at all. Every message is owned by whoever has it at the
/// moment; a journal that lets go of one says why, with [`Kept::give_up`].
///
/// The gateway may hold the lock of one outbox while it calls the methods that are not `async`, so they must neither
/// wait nor call back. A call to one that is `async` may be dropped before it is done, when the client goes: what it has
/// not handed over by then must still be kept.
///
/// Sessions themselves, and whoever waits for an outcome, live in the gateway's process, and a [`Kept`] cannot be made
/// from what was stored elsewhere: so far a journal can keep messages in another way, but not over a restart.
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

    /// Keeps a message for a user without a connection.
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
    /// Bytes of them.
    pub bytes: usize,
}

/// What a journal may keep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) messages_per_user_max: usize,
    pub(crate) bytes_per_user_max: usize,
    pub(crate) bytes_max: usize,
    pub(crate) age: Duration,
}

/// One message that is kept. Whoever waits for its outcome is told when it is let go of.
#[derive(Debug)]
pub struct Kept {
    ticket: Ticket,
    seq: u64,
    kept_at: Instant,
    is_sent: bool,
}

impl Kept {
    pub(crate) fn new(ticket: Ticket, seq: u64) -> Self {
        Self { ticket, seq, kept_at: Instant::now(), is_sent: false }
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

    /// How many bytes of the bounds it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.ticket.bytes().len()
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
        Self::new(self.ticket, 0)
    }

    /// The same on its way to a client that was away.
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
        (!std::mem::replace(&mut self.is_sent, true)).then_some(after)
    }
}

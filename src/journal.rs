//! What must outlive the process: the trait that is told of it, and what it is told. In memory, the mailboxes themselves are
//! the journal, and nothing here is called.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use async_trait::async_trait;
use tracing::error;

use crate::delivery::{Delivery, Ticket};
use crate::message::{ConnectionId, Event, InvalidPush, MessageId, Payload, Priority, Push, SlowReaderPolicy, UserId};
use crate::metrics::{Metrics, Task};

/// A store that outlives the gateway: what it is told survives a restart, and sessions go on after it.
///
/// Records of one user come in the order in which they happened. [`Recovered::apply`] folds them into what
/// [`Journal::load`] is to return, so that a store may as well be a log that is only ever appended to.
#[async_trait]
pub trait Journal: Send + Sync + std::fmt::Debug + 'static {
    /// Notes what happened. The gateway may hold the lock of a mailbox meanwhile, so this must neither wait nor call back:
    /// append to a buffer, and write it in groups elsewhere.
    fn record(&self, user_id: &UserId, record: Record);

    /// Everything that is to be kept from before. Called once, before the gateway takes its first connection.
    ///
    /// # Errors
    /// When it cannot be read. The gateway does not start then.
    async fn load(&self) -> Result<Recovered, Box<dyn std::error::Error + Send + Sync>>;
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Record {
    /// A message waits for a user of whom no connection is bound to its event.
    Held(Stored),
    /// A message waits for its user no more: a connection has it, or it was given up.
    Released(MessageId),
    /// A session began, or is bound to other events now.
    Session {
        /// Which one.
        epoch: ConnectionId,
        /// The secret by which its client comes back.
        resume: String,
        /// The events that it is bound to.
        events: Vec<Event>,
    },
    /// A session accepted a message. It has no number yet if the session has a connection.
    Accepted {
        /// Which session.
        epoch: ConnectionId,
        /// The message.
        message: Stored,
    },
    /// A session gave a message its number, to send it.
    Numbered {
        /// Which session.
        epoch: ConnectionId,
        /// The message.
        message_id: MessageId,
        /// Its number.
        seq: u64,
    },
    /// A session dropped messages before they had numbers. Its client is told of as many that are lost.
    Skipped {
        /// Which session.
        epoch: ConnectionId,
        /// How many.
        messages: u64,
    },
    /// A session's client can have the messages up to this number.
    Written {
        /// Which session.
        epoch: ConnectionId,
        /// The last number that was handed to the kernel.
        seq: u64,
    },
    /// A session's client has the messages up to this number.
    Acked {
        /// Which session.
        epoch: ConnectionId,
        /// The last number that it acknowledged.
        seq: u64,
    },
    /// A session does not keep a message any more.
    GivenUp {
        /// Which session.
        epoch: ConnectionId,
        /// The message.
        message_id: MessageId,
    },
    /// A session is over.
    Ended {
        /// Which one.
        epoch: ConnectionId,
    },
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
    /// The key by which a newer message of its event takes its place.
    pub collapse_key: Option<String>,
    /// When it was accepted.
    pub accepted_at: SystemTime,
    /// When it is no longer worth delivering.
    pub expires_at: Option<SystemTime>,
}

/// What a journal has kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Messages that wait for their users, oldest first.
    pub held: Vec<(UserId, Stored)>,
    /// Sessions that may come back.
    pub sessions: Vec<StoredSession>,
}

/// A session in a form that outlives the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSession {
    /// Whose it is.
    pub user_id: UserId,
    /// Which one it is, over all gateways and restarts.
    pub epoch: ConnectionId,
    /// The secret by which its client comes back.
    pub resume: String,
    /// The events that it is bound to.
    pub events: Vec<Event>,
    /// The last number that was given to a message.
    pub last: u64,
    /// The last number that its client can have.
    pub written: u64,
    /// How many messages were dropped since without a number.
    pub skipped: u64,
    /// The messages its client may still need: those with numbers, in ascending order, then those without.
    pub messages: Vec<Stored>,
}

impl Recovered {
    /// Adds one record, the next of its user.
    pub fn apply(&mut self, user_id: &UserId, record: Record) {
        match record {
            Record::Held(message) => self.held.push((user_id.clone(), message)),
            Record::Released(message_id) => self.held.retain(|(_, message)| message.message_id != message_id),
            Record::Session { epoch, resume, events } => match self.session(epoch) {
                Some(session) => session.events = events,
                None => self.sessions.push(StoredSession {
                    user_id: user_id.clone(),
                    epoch,
                    resume,
                    events,
                    last: 0,
                    written: 0,
                    skipped: 0,
                    messages: Vec::new(),
                }),
            },
            Record::Accepted { epoch, message } => {
                if let Some(session) = self.session(epoch) {
                    session.accept(message);
                }
            }
            Record::Numbered { epoch, message_id, seq } => {
                if let Some(session) = self.session(epoch)
                    && let Some(at) = session.messages.iter().position(|message| message.message_id == message_id)
                {
                    let message = session.messages.remove(at);
                    session.accept(Stored { seq, ..message });
                }
            }
            Record::Skipped { epoch, messages } => {
                self.session(epoch).into_iter().for_each(|session| session.skipped += messages);
            }
            Record::Written { epoch, seq } => {
                self.session(epoch).into_iter().for_each(|session| session.written = session.written.max(seq));
            }
            Record::Acked { epoch, seq } => {
                if let Some(session) = self.session(epoch) {
                    session.messages.retain(|message| message.seq == 0 || message.seq > seq);
                }
            }
            Record::GivenUp { epoch, message_id } => {
                if let Some(session) = self.session(epoch) {
                    session.messages.retain(|message| message.message_id != message_id);
                }
            }
            Record::Ended { epoch } => self.sessions.retain(|session| session.epoch != epoch),
        }
    }

    fn session(&mut self, epoch: ConnectionId) -> Option<&mut StoredSession> {
        self.sessions.iter_mut().find(|session| session.epoch == epoch)
    }
}

impl StoredSession {
    fn accept(&mut self, message: Stored) {
        if message.seq == 0 {
            return self.messages.push(message);
        }
        if message.seq > self.last {
            (self.last, self.skipped) = (message.seq, 0);
        }
        let place = self.messages.partition_point(|known| known.seq != 0 && known.seq < message.seq);
        self.messages.insert(place, message);
    }
}

impl Stored {
    /// What there is to store of a message with this number.
    pub(crate) fn of(ticket: &Ticket, seq: u64) -> Self {
        let (now, wall_clock) = (Instant::now(), SystemTime::now());
        let age = now.saturating_duration_since(ticket.accepted_at());
        let left = |at: Instant| wall_clock.checked_add(at.saturating_duration_since(now));
        let payload = if ticket.is_text() {
            Payload::Text(String::from_utf8_lossy(ticket.payload()).into_owned())
        } else {
            Payload::Binary(ticket.payload().clone())
        };
        Self {
            message_id: ticket.message_id(),
            seq,
            event: ticket.event().clone(),
            payload,
            priority: ticket.priority(),
            collapse_key: ticket.collapse_key().map(str::to_owned),
            accepted_at: wall_clock.checked_sub(age).unwrap_or(wall_clock),
            expires_at: ticket.expires_at().and_then(left),
        }
    }

    /// Makes a message again. Nobody waits for its outcome.
    ///
    /// # Errors
    /// Refuses a payload or collapse key that no push can have.
    pub(crate) fn restored(self) -> Result<Ticket, InvalidPush> {
        let Self { message_id, event, payload, priority, collapse_key, accepted_at, expires_at, .. } = self;
        let (now, wall_clock) = (Instant::now(), SystemTime::now());
        // As if it was accepted then: what is pushed from now on is newer.
        let age = wall_clock.duration_since(accepted_at).unwrap_or_default();
        let accepted_at = now.checked_sub(age).unwrap_or(now);
        let mut push = Push::to_everyone(event.as_str(), payload)?.with_priority(priority);
        if let Some(key) = collapse_key {
            push = push.with_collapse_key(key)?;
        }
        if let Some(expires_at) = expires_at {
            let left = expires_at.duration_since(wall_clock).unwrap_or_default();
            // No time at all would mean "for now", not "over".
            push = push.with_ttl(left.saturating_add(now - accepted_at).max(std::time::Duration::from_nanos(1)));
        }
        let delivery = Delivery::new(message_id, &push, SlowReaderPolicy::default(), accepted_at);
        Ok(Arc::new(delivery).ticket(0))
    }
}

/// Tells the journal, if there is one. It may be an embedding program's: a panic in it goes no further, or a message of one
/// user would take away the connection of another.
#[derive(Debug)]
pub(crate) struct Recorder {
    journal: Option<Arc<dyn Journal>>,
    metrics: Arc<Metrics>,
}

impl Recorder {
    pub(crate) fn new(journal: Option<Arc<dyn Journal>>, metrics: Arc<Metrics>) -> Self {
        Self { journal, metrics }
    }

    /// Whether anything outlives the process.
    pub(crate) fn is_durable(&self) -> bool {
        self.journal.is_some()
    }

    /// Records what `make` makes, if anybody wants it.
    pub(crate) fn record(&self, user_id: &UserId, make: impl FnOnce() -> Record) {
        let Some(journal) = &self.journal else { return };
        let record = make();
        if panic::catch_unwind(AssertUnwindSafe(|| journal.record(user_id, record))).is_err() {
            self.metrics.task_panicked(Task::Journal);
            error!("the journal panicked");
        }
    }

    /// What is kept from before.
    pub(crate) async fn load(&self) -> Result<Recovered, Box<dyn std::error::Error + Send + Sync>> {
        match &self.journal {
            Some(journal) => journal.load().await,
            None => Ok(Recovered::default()),
        }
    }
}

//! The core types of a push, valid by construction: its target, its payload and its delivery options.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

/// A user id, as returned by the token check: an opaque string of 1 to [`UserId::BYTES_MAX`] bytes.
///
/// Cloning it only increments a reference count.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(Arc<str>);

/// The topic that a client subscribes to: an opaque string of 1 to [`Event::BYTES_MAX`] bytes.
///
/// Cloning it only increments a reference count.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Event(Arc<str>);

impl UserId {
    /// The maximum length of a user id, in bytes. It leaves room for legacy deployments, where the token *is* the user
    /// id.
    pub const BYTES_MAX: usize = 4096;

    /// Checks the length of a user id.
    ///
    /// # Errors
    /// Refuses an empty user id and one longer than [`UserId::BYTES_MAX`].
    pub fn new(user_id: impl Into<Arc<str>>) -> Result<Self, InvalidPush> {
        bounded(user_id.into(), Field::UserId, Self::BYTES_MAX).map(Self)
    }

    /// The user id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Event {
    /// The maximum length of an event, in bytes.
    pub const BYTES_MAX: usize = 1024;

    /// Checks the length of an event.
    ///
    /// # Errors
    /// Refuses an empty event and one longer than [`Event::BYTES_MAX`].
    pub fn new(event: impl Into<Arc<str>>) -> Result<Self, InvalidPush> {
        bounded(event.into(), Field::Event, Self::BYTES_MAX).map(Self)
    }

    /// The event as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn bounded(text: Arc<str>, field: Field, limit_bytes: usize) -> Result<Arc<str>, InvalidPush> {
    if text.is_empty() {
        Err(InvalidPush::Empty { field })
    } else if text.len() > limit_bytes {
        Err(InvalidPush::TooLong { field, limit_bytes })
    } else {
        Ok(text)
    }
}

/// Prints only the length, because the user id is a secret where the token is the user id.
impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserId({} bytes)", self.0.len())
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({:?})", &*self.0)
    }
}

impl std::borrow::Borrow<str> for UserId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Event {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The message that a client receives, as the whole content of one WebSocket message.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Payload {
    /// Delivered as a text frame.
    Text(String),
    /// Delivered as a binary frame.
    Binary(Bytes),
}

impl Payload {
    /// The bytes that the client receives.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }
}

impl Payload {
    /// The same bytes, to be shared.
    pub(crate) fn to_bytes(&self) -> Bytes {
        match self {
            Self::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            Self::Binary(bytes) => bytes.clone(),
        }
    }
}

/// Prints only the length, so that message bodies never reach a log.
impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Text(_) => "Text",
            Self::Binary(_) => "Binary",
        };
        write!(f, "{kind}({} bytes)", self.as_bytes().len())
    }
}

impl From<String> for Payload {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Payload {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self::Binary(bytes)
    }
}

/// The recipients of a push. In either case, only connections bound to its event receive it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// All connections of one user.
    User(UserId),
    /// The connections of every user: a broadcast.
    Everyone,
}

/// One message for one event, addressed to one user or to everyone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    target: Target,
    event: Event,
    payload: Payload,
    ttl: Option<Duration>,
    priority: Priority,
    collapse_key: Option<String>,
    slow_reader_policy: Option<SlowReaderPolicy>,
    only: Option<ConnectionId>,
    excluded: Vec<ConnectionId>,
    idempotency_key: Option<String>,
}

impl Push {
    /// The maximum length of a collapse key and of an idempotency key, in bytes.
    pub const KEY_BYTES_MAX: usize = 256;

    /// A push to one user.
    ///
    /// # Errors
    /// Refuses an empty user id, event or payload, and a user id or event over its limit. The gateway's
    /// `message_bytes_max` is checked later, when the message is pushed.
    pub fn new(
        user_id: impl Into<Arc<str>>,
        event: impl Into<Arc<str>>,
        payload: impl Into<Payload>,
    ) -> Result<Self, InvalidPush> {
        Self::to(Target::User(UserId::new(user_id)?), event, payload)
    }

    /// A push to everyone.
    ///
    /// # Errors
    /// As for [`Push::new`].
    pub fn to_everyone(event: impl Into<Arc<str>>, payload: impl Into<Payload>) -> Result<Self, InvalidPush> {
        Self::to(Target::Everyone, event, payload)
    }

    /// A push to the given target.
    ///
    /// # Errors
    /// As for [`Push::new`].
    pub fn to(target: Target, event: impl Into<Arc<str>>, payload: impl Into<Payload>) -> Result<Self, InvalidPush> {
        let event = Event::new(event)?;
        let payload = payload.into();
        if payload.as_bytes().is_empty() {
            return Err(InvalidPush::Empty { field: Field::Message });
        }
        Ok(Self {
            target,
            event,
            payload,
            ttl: None,
            priority: Priority::Normal,
            collapse_key: None,
            slow_reader_policy: None,
            only: None,
            excluded: Vec::new(),
            idempotency_key: None,
        })
    }

    /// Sets the payload, which may be empty here.
    #[cfg(feature = "inside")]
    pub(crate) fn with_any_payload(mut self, payload: Payload) -> Self {
        self.payload = payload;
        self
    }

    /// Sets the time to live. A connection that could not be written to within this time does not get the message. With
    /// a time to live of zero, only a client that is connected and takes the message within one second gets it, and
    /// nothing is kept for anybody else.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Sets the priority. The message overtakes messages of a lower priority in the same outbox.
    #[must_use]
    pub fn with_priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Sets the collapse key. On each connection, the message replaces an older queued message of the same event with
    /// the same key.
    ///
    /// # Errors
    /// Refuses an empty key and one over [`Push::KEY_BYTES_MAX`].
    pub fn with_collapse_key(mut self, key: impl Into<String>) -> Result<Self, InvalidPush> {
        self.collapse_key = Some(self::key(key.into(), Field::CollapseKey)?);
        Ok(self)
    }

    /// Sets the idempotency key, so that a caller in doubt can send the push again. Within the config's
    /// `idempotency_window` the push is made only once, and a repeat returns the outcome of the first. A different push
    /// under the same key is refused.
    ///
    /// # Errors
    /// Refuses an empty key and one over [`Push::KEY_BYTES_MAX`].
    pub fn with_idempotency_key(mut self, key: impl Into<String>) -> Result<Self, InvalidPush> {
        self.idempotency_key = Some(self::key(key.into(), Field::IdempotencyKey)?);
        Ok(self)
    }

    /// Sets what happens when an outbox is full. Overrides the config's policy for the event.
    #[must_use]
    pub fn with_slow_reader_policy(mut self, policy: SlowReaderPolicy) -> Self {
        self.slow_reader_policy = Some(policy);
        self
    }

    /// Restricts the push to this connection, which must be bound to the user and event.
    #[must_use]
    pub fn only_to(mut self, connection_id: ConnectionId) -> Self {
        self.only = Some(connection_id);
        self
    }

    /// Excludes these connections.
    #[must_use]
    pub fn excluding(mut self, connection_ids: impl IntoIterator<Item = ConnectionId>) -> Self {
        self.excluded.extend(connection_ids);
        self
    }

    /// The time to live, if it has one.
    #[must_use]
    pub fn ttl(&self) -> Option<Duration> {
        self.ttl
    }

    /// Whether its time to live is zero, so that only clients that can take it now get it.
    pub(crate) fn is_for_now(&self) -> bool {
        self.ttl.is_some_and(|ttl| ttl.is_zero())
    }

    /// The priority.
    #[must_use]
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// The collapse key, if it has one. A newer message with the same key replaces this one.
    #[must_use]
    pub fn collapse_key(&self) -> Option<&str> {
        self.collapse_key.as_deref()
    }

    /// The idempotency key, if it has one. The push is made only once under it.
    #[must_use]
    pub fn idempotency_key(&self) -> Option<&str> {
        self.idempotency_key.as_deref()
    }

    /// What happens when an outbox is full, if the push itself sets this.
    #[must_use]
    pub fn slow_reader_policy(&self) -> Option<SlowReaderPolicy> {
        self.slow_reader_policy
    }

    /// Whether this connection, already known to be bound to the user and event, may receive it.
    pub(crate) fn is_for(&self, connection_id: ConnectionId) -> bool {
        self.only.is_none_or(|only| only == connection_id) && !self.excluded.contains(&connection_id)
    }

    /// The only connection that may receive it, if it is restricted to one.
    pub(crate) fn only(&self) -> Option<ConnectionId> {
        self.only
    }

    /// The excluded connections, as they were named.
    pub(crate) fn excluded(&self) -> &[ConnectionId] {
        &self.excluded
    }

    /// The excluded connections, without duplicates and in a fixed order.
    pub(crate) fn excluded_in_order(&self) -> BTreeSet<ConnectionId> {
        self.excluded.iter().copied().collect()
    }

    /// Whether it is restricted to one connection.
    pub(crate) fn is_for_one(&self) -> bool {
        self.only.is_some()
    }

    /// Whether every connection of its target may receive it.
    pub(crate) fn is_for_any(&self) -> bool {
        self.only.is_none() && self.excluded.is_empty()
    }

    /// The target.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The user it is for, or `None` for a broadcast.
    #[must_use]
    pub fn user_id(&self) -> Option<&UserId> {
        match &self.target {
            Target::User(user_id) => Some(user_id),
            Target::Everyone => None,
        }
    }

    /// The event it belongs to.
    #[must_use]
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// The message that the client receives.
    #[must_use]
    pub fn payload(&self) -> &Payload {
        &self.payload
    }
}

fn key(key: String, field: Field) -> Result<String, InvalidPush> {
    let limit_bytes = Push::KEY_BYTES_MAX;
    if key.is_empty() {
        Err(InvalidPush::Empty { field })
    } else if key.len() > limit_bytes {
        Err(InvalidPush::TooLong { field, limit_bytes })
    } else {
        Ok(key)
    }
}

/// A part of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Field {
    /// The user id.
    UserId,
    /// The event.
    Event,
    /// The message.
    Message,
    /// The collapse key.
    CollapseKey,
    /// The idempotency key.
    IdempotencyKey,
    /// The time to live.
    Ttl,
    /// The priority.
    Priority,
    /// The slow-reader policy.
    SlowReaderPolicy,
    /// The only connection that may receive it.
    ConnectionId,
    /// The connections that must not receive it.
    ExcludedConnectionIds,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UserId => "user id",
            Self::Event => "event",
            Self::Message => "message",
            Self::CollapseKey => "collapse key",
            Self::IdempotencyKey => "idempotency key",
            Self::Ttl => "time to live",
            Self::Priority => "priority",
            Self::SlowReaderPolicy => "slow-reader policy",
            Self::ConnectionId => "connection id",
            Self::ExcludedConnectionIds => "list of excluded connections",
        })
    }
}

/// Why a user id, an event or a push was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPush {
    /// A required field is empty.
    #[error("the {field} is empty")]
    Empty {
        /// The field.
        field: Field,
    },
    /// A field is over its limit.
    #[error("the {field} is over the limit of {limit_bytes} bytes")]
    TooLong {
        /// The field.
        field: Field,
        /// The limit, in bytes.
        limit_bytes: usize,
    },
}

/// The order of messages in one outbox. Messages of the same priority keep their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// After all other messages.
    Bulk,
    /// The default priority.
    #[default]
    Normal,
    /// Before all other messages.
    High,
}

/// What happens when a message meets a full outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SlowReaderPolicy {
    /// Closes the connection with 4429. A client can notice a close and reconnect, but a legacy client cannot notice a
    /// gap.
    #[default]
    Disconnect,
    /// Drops this message.
    DropNewest,
    /// Drops the oldest messages of the lowest priority until this one fits. Never drops a message of a higher priority
    /// than this one.
    DropOldest,
    /// Drops the queued messages that this one supersedes. With a collapse key, these are the messages with the same
    /// key. Without one, they are the messages of the same event that have no collapse key and the `Conflate` policy.
    /// If that does not free enough room, the oldest messages are dropped as with `DropOldest`.
    Conflate,
}

/// A connection's id, unique across all gateways and restarts. It consists of a random number drawn at process start
/// and a number that the process uses only once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(Id);

/// A message's id, unique across all gateways and restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageId(Id);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Id {
    process: u64,
    number: u64,
}

impl Id {
    /// The longest text of one: 16 digits, a dash, 16 digits.
    const TEXT_BYTES_MAX: usize = 33;
}

/// Writes the text in one piece, because each answer has one: with the formatter's own numbers it takes twice as long.
impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digit = |number: u64, place: u32| b"0123456789abcdef"[(number >> (4 * place) & 0xf) as usize];
        let mut text = SmallVec::<[u8; Self::TEXT_BYTES_MAX]>::new();
        text.extend((0..16).rev().map(|place| digit(self.process, place)));
        text.push(b'-');
        let digits = self.number.checked_ilog2().unwrap_or(0) / 4 + 1;
        text.extend((0..digits).rev().map(|place| digit(self.number, place)));
        f.write_str(str::from_utf8(&text).map_err(|_not_ascii| fmt::Error)?)
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ConnectionId {
    /// Assigns the connection to one of `parts` parts, always the same one. Each part gets about as many connections.
    pub(crate) fn spread(self, parts: usize) -> usize {
        usize::try_from(self.0.number).unwrap_or_default() % parts
    }
}

/// The text is not a [`ConnectionId`] as its `Display` writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a connection id")]
pub struct InvalidConnectionId;

impl std::str::FromStr for ConnectionId {
    type Err = InvalidConnectionId;

    fn from_str(text: &str) -> Result<Self, InvalidConnectionId> {
        Id::read(text).map(Self).ok_or(InvalidConnectionId)
    }
}

/// The text is not a [`MessageId`] as its `Display` writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message id")]
pub struct InvalidMessageId;

impl std::str::FromStr for MessageId {
    type Err = InvalidMessageId;

    fn from_str(text: &str) -> Result<Self, InvalidMessageId> {
        Id::read(text).map(Self).ok_or(InvalidMessageId)
    }
}

impl Id {
    fn read(text: &str) -> Option<Self> {
        let number = |text: &str| {
            let is_number = text.bytes().all(|b| b.is_ascii_hexdigit());
            is_number.then(|| u64::from_str_radix(text, 16).ok()).flatten()
        };
        let (process, rest) = text.split_at_checked(16)?;
        Some(Self { process: number(process)?, number: number(rest.strip_prefix('-')?)? })
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The secret with which a client resumes its session.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ResumeToken(u128);

impl ResumeToken {
    pub(crate) fn draw() -> Result<Self, getrandom::Error> {
        let mut random = [0; 16];
        getrandom::fill(&mut random)?;
        Ok(Self(u128::from_be_bytes(random)))
    }

    /// Reads what `Display` wrote; `None` for anything else.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let is_written_so = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        is_written_so.then(|| u128::from_str_radix(text, 16).ok().map(Self)).flatten()
    }
}

impl fmt::Display for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Prints nothing of it: it is a secret.
impl fmt::Debug for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResumeToken(..)")
    }
}

/// Generates the unique ids of connections, messages and requests.
#[derive(Debug)]
pub(crate) struct Names {
    process: u64,
    next: AtomicU64,
}

impl Names {
    /// Draws the process's random number.
    pub(crate) fn new() -> Self {
        // The standard library draws its hasher keys from the system's randomness. That is enough to tell processes
        // apart. Ids are not secrets, so no random number crate is needed.
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
        Self { process: random, next: AtomicU64::new(1) }
    }

    pub(crate) fn connection_id(&self) -> ConnectionId {
        ConnectionId(self.id())
    }

    pub(crate) fn message_id(&self) -> MessageId {
        MessageId(self.id())
    }

    /// An id for a request whose caller sent none.
    pub(crate) fn request_id(&self) -> impl fmt::Display + use<> {
        self.id()
    }

    fn id(&self) -> Id {
        Id { process: self.process, number: self.next.fetch_add(1, Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_written_in_16_digits_and_as_many_as_its_number_needs() {
        for process in [0, 0xf, 0x0123_4567_89ab_cdef, u64::MAX] {
            for number in [0, 1, 0xf, 0x10, 0xfff, u64::MAX] {
                let id = Id { process, number };
                assert_eq!(id.to_string(), format!("{process:016x}-{number:x}"));
            }
        }
    }

    #[test]
    fn each_limit_holds_on_both_sides() {
        assert!(UserId::new("u".repeat(UserId::BYTES_MAX)).is_ok());
        let refused = UserId::new("u".repeat(UserId::BYTES_MAX + 1));
        assert_eq!(refused, Err(InvalidPush::TooLong { field: Field::UserId, limit_bytes: UserId::BYTES_MAX }));
        assert!(Event::new("e".repeat(Event::BYTES_MAX)).is_ok());
        assert!(Event::new("e".repeat(Event::BYTES_MAX + 1)).is_err());
        assert_eq!(UserId::new(""), Err(InvalidPush::Empty { field: Field::UserId }));
        assert_eq!(Event::new(""), Err(InvalidPush::Empty { field: Field::Event }));
        assert_eq!(Push::new("ann", "mail", ""), Err(InvalidPush::Empty { field: Field::Message }));
    }

    #[test]
    fn debug_output_holds_neither_user_nor_body() {
        let push = Push::new("s3cret-token", "mail", "s3cret-body").expect("valid");
        assert!(!format!("{push:?}").contains("s3cret"));
    }

    #[test]
    fn the_id_of_a_connection_or_message_reads_back() {
        let id = Names::new().connection_id();
        assert_eq!(id.to_string().parse(), Ok(id));
        let id = Names::new().message_id();
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in
            ["", "-", "1-1", "0123456789abcdef", "0123456789abcdef-", "0123456789abcdef-+1", "0123456789abcdeg-1"]
        {
            assert_eq!(bad.parse::<ConnectionId>(), Err(InvalidConnectionId), "{bad}");
            assert_eq!(bad.parse::<MessageId>(), Err(InvalidMessageId), "{bad}");
        }
    }

    #[test]
    fn ids_differ_between_and_within_processes() {
        let (one, other) = (Names::new(), Names::new());
        assert_ne!(one.connection_id(), one.connection_id());
        assert_ne!(one.message_id().to_string(), other.message_id().to_string());
    }
}

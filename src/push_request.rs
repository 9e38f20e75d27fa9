//! A push as the API's `PushRequest`: reads it, and writes it out again. Says which field is wrong, not how a caller is told.

use std::time::Duration;

use crate::message::{ConnectionId, Field, InvalidPush, Priority, Push, SlowReaderPolicy, Target, UserId};
use crate::outcome::Level;
use crate::proto;
use crate::proto::push_request::Payload;

/// What a valid request asks for.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) push: Push,
    /// The level that the answer waits for.
    pub(crate) wait_for: Level,
    /// Whether the answer lists each connection.
    pub(crate) per_connection: bool,
}

/// Connections that one request may name to leave out.
pub(crate) const EXCLUDED_MAX: usize = 100;

/// The longest duration by protobuf's rules, in seconds: about 10,000 years.
const DURATION_SECONDS_MAX: u64 = 315_576_000_000;

/// Why a request is not a push.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidRequest {
    #[error(transparent)]
    Push(#[from] InvalidPush),
    /// A number that names nothing, most likely from a caller that is newer than this gateway.
    #[error("the value is not one that this gateway knows")]
    Unknown { field: &'static str },
    #[error("the text is not a connection id")]
    NotAConnection { field: &'static str },
    #[error("more connections are excluded than the limit of {excluded_max}")]
    TooManyExcluded { excluded_max: usize },
    #[error(transparent)]
    Ttl(#[from] InvalidDuration),
}

/// Why a duration is not one by protobuf's own rules, which are on the message `google.protobuf.Duration`, or is negative,
/// which no field of the API takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidDuration {
    #[error("the duration has more than {DURATION_SECONDS_MAX} seconds")]
    TooManySeconds,
    #[error("the duration has more than 999999999 nanos")]
    TooManyNanos,
    #[error("the seconds and nanos of the duration have different signs")]
    SignsDiffer,
    #[error("the duration is negative")]
    Negative,
}

impl InvalidRequest {
    /// The field that is wrong, as the API calls it.
    pub(crate) fn field(&self) -> &'static str {
        match self {
            Self::Push(InvalidPush::Empty { field } | InvalidPush::TooLong { field, .. }) => name(*field),
            Self::Unknown { field } | Self::NotAConnection { field } => field,
            Self::TooManyExcluded { .. } => name(Field::ExcludedConnectionIds),
            Self::Ttl(_) => name(Field::Ttl),
        }
    }
}

/// What the API calls a part of a push.
pub(crate) fn name(field: Field) -> &'static str {
    match field {
        Field::UserId => "user_id",
        Field::Event => "event",
        Field::Message => "message",
        Field::CollapseKey => "collapse_key",
        Field::IdempotencyKey => "idempotency_key",
        Field::Ttl => "ttl",
        Field::Priority => "priority",
        Field::SlowReaderPolicy => "slow_reader_policy",
        Field::ConnectionId => "connection_id",
        Field::ExcludedConnectionIds => "exclude_connection_ids",
    }
}

/// Reads a push to one user.
pub(crate) fn read(request: proto::PushRequest) -> Result<Read, InvalidRequest> {
    read_for(|user_id| UserId::new(user_id).map(Target::User), EXCLUDED_MAX, request)
}

/// Reads a push to everyone.
pub(crate) fn read_broadcast(request: proto::BroadcastRequest) -> Result<Read, InvalidRequest> {
    read_for(|_| Ok(Target::Everyone), EXCLUDED_MAX, of_broadcast(request))
}

/// A broadcast as the push to nobody in particular that it is.
fn of_broadcast(request: proto::BroadcastRequest) -> proto::PushRequest {
    proto::PushRequest {
        event: request.event,
        payload: request.payload.map(|payload| match payload {
            proto::broadcast_request::Payload::Message(text) => Payload::Message(text),
            proto::broadcast_request::Payload::Binary(bytes) => Payload::Binary(bytes),
        }),
        wait_for: request.wait_for,
        ttl: request.ttl,
        exclude_connection_ids: request.exclude_connection_ids,
        priority: request.priority,
        collapse_key: request.collapse_key,
        slow_reader_policy: request.slow_reader_policy,
        ..proto::PushRequest::default()
    }
}

fn read_for(
    target: impl FnOnce(String) -> Result<Target, InvalidPush>,
    excluded_max: usize,
    request: proto::PushRequest,
) -> Result<Read, InvalidRequest> {
    let (target, event) = (target(request.user_id)?, request.event);
    let mut push = match request.payload {
        Some(Payload::Message(text)) => Push::to(target, event, text),
        Some(Payload::Binary(bytes)) => Push::to(target, event, bytes),
        None => Push::to(target, event, ""),
    }?;
    if !request.idempotency_key.is_empty() {
        push = push.with_idempotency_key(request.idempotency_key)?;
    }
    let wait_for = match proto::Level::try_from(request.wait_for) {
        Ok(proto::Level::Unspecified | proto::Level::Accepted) => Level::Accepted,
        Ok(proto::Level::Written) => Level::Written,
        Ok(proto::Level::Acked) => Level::Acked,
        Err(_) => return Err(InvalidRequest::Unknown { field: "wait_for" }),
    };
    if let Some(ttl) = request.ttl {
        push = push.with_ttl(duration(ttl)?);
    }
    if !request.connection_id.is_empty() {
        push = push.only_to(connection_id(&request.connection_id, "connection_id")?);
    }
    if request.exclude_connection_ids.len() > excluded_max {
        return Err(InvalidRequest::TooManyExcluded { excluded_max });
    }
    let excluded = request.exclude_connection_ids.iter().map(|id| connection_id(id, "exclude_connection_ids"));
    push = push.excluding(excluded.collect::<Result<Vec<_>, _>>()?);
    push = match proto::Priority::try_from(request.priority) {
        Ok(proto::Priority::Unspecified | proto::Priority::Normal) => push,
        Ok(proto::Priority::Bulk) => push.with_priority(Priority::Bulk),
        Ok(proto::Priority::High) => push.with_priority(Priority::High),
        Err(_) => return Err(InvalidRequest::Unknown { field: "priority" }),
    };
    if !request.collapse_key.is_empty() {
        push = push.with_collapse_key(request.collapse_key)?;
    }
    push = match proto::SlowReaderPolicy::try_from(request.slow_reader_policy) {
        Ok(proto::SlowReaderPolicy::Unspecified) => push,
        Ok(proto::SlowReaderPolicy::Disconnect) => push.with_slow_reader_policy(SlowReaderPolicy::Disconnect),
        Ok(proto::SlowReaderPolicy::DropNewest) => push.with_slow_reader_policy(SlowReaderPolicy::DropNewest),
        Ok(proto::SlowReaderPolicy::DropOldest) => push.with_slow_reader_policy(SlowReaderPolicy::DropOldest),
        Ok(proto::SlowReaderPolicy::Conflate) => push.with_slow_reader_policy(SlowReaderPolicy::Conflate),
        Err(_) => return Err(InvalidRequest::Unknown { field: "slow_reader_policy" }),
    };
    Ok(Read { push, wait_for, per_connection: request.per_connection })
}

fn duration(given: prost_types::Duration) -> Result<Duration, InvalidDuration> {
    let prost_types::Duration { seconds, nanos } = given;
    if seconds.unsigned_abs() > DURATION_SECONDS_MAX {
        Err(InvalidDuration::TooManySeconds)
    } else if nanos.unsigned_abs() > 999_999_999 {
        Err(InvalidDuration::TooManyNanos)
    } else if seconds.signum() * i64::from(nanos.signum()) < 0 {
        Err(InvalidDuration::SignsDiffer)
    } else if seconds < 0 || nanos < 0 {
        Err(InvalidDuration::Negative)
    } else {
        Ok(Duration::new(seconds.unsigned_abs(), nanos.unsigned_abs()))
    }
}

fn connection_id(text: &str, field: &'static str) -> Result<ConnectionId, InvalidRequest> {
    text.parse().map_err(|_| InvalidRequest::NotAConnection { field })
}

/// Writes out all that a push says, and leaves open what its caller waits for. A push to everyone names no user. A time to
/// live past 10,000 years, protobuf's longest duration, is written as that.
impl From<&Push> for proto::PushRequest {
    fn from(push: &Push) -> Self {
        let ttl = push.ttl().map(|ttl| ttl.min(Duration::from_secs(DURATION_SECONDS_MAX)));
        Self {
            user_id: push.user_id().map(|user_id| user_id.as_str().to_owned()).unwrap_or_default(),
            event: push.event().as_str().to_owned(),
            payload: Some(match push.payload() {
                crate::message::Payload::Text(text) => Payload::Message(text.clone()),
                crate::message::Payload::Binary(bytes) => Payload::Binary(bytes.clone()),
            }),
            ttl: ttl.and_then(|ttl| prost_types::Duration::try_from(ttl).ok()),
            connection_id: push.only().map(|id| id.to_string()).unwrap_or_default(),
            exclude_connection_ids: push.excluded().iter().map(ConnectionId::to_string).collect(),
            priority: priority(push.priority()).into(),
            collapse_key: push.collapse_key().unwrap_or_default().to_owned(),
            slow_reader_policy: push.slow_reader_policy().map_or(0, |policy| slow_reader_policy(policy).into()),
            idempotency_key: push.idempotency_key().unwrap_or_default().to_owned(),
            wait_for: proto::Level::Unspecified.into(),
            per_connection: false,
        }
    }
}

fn priority(priority: Priority) -> proto::Priority {
    match priority {
        Priority::Bulk => proto::Priority::Bulk,
        Priority::Normal => proto::Priority::Normal,
        Priority::High => proto::Priority::High,
    }
}

fn slow_reader_policy(policy: SlowReaderPolicy) -> proto::SlowReaderPolicy {
    match policy {
        SlowReaderPolicy::Disconnect => proto::SlowReaderPolicy::Disconnect,
        SlowReaderPolicy::DropNewest => proto::SlowReaderPolicy::DropNewest,
        SlowReaderPolicy::DropOldest => proto::SlowReaderPolicy::DropOldest,
        SlowReaderPolicy::Conflate => proto::SlowReaderPolicy::Conflate,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::message::Names;

    /// Reads a push that another gateway wrote: it may be for everyone, and its ingress has checked the limits.
    fn read_again(request: proto::PushRequest) -> Result<Push, InvalidRequest> {
        let target = |user_id: String| {
            if user_id.is_empty() { Ok(Target::Everyone) } else { UserId::new(user_id).map(Target::User) }
        };
        read_for(target, usize::MAX, request).map(|read| read.push)
    }

    fn payload() -> impl Strategy<Value = crate::message::Payload> {
        prop_oneof![
            ".{1,40}".prop_map(crate::message::Payload::from),
            prop::collection::vec(any::<u8>(), 1..40).prop_map(|bytes| bytes::Bytes::from(bytes).into()),
        ]
    }

    fn ttl() -> impl Strategy<Value = Duration> {
        let whole = (0..=DURATION_SECONDS_MAX).prop_map(Duration::from_secs);
        let fine = (0..100u64, 0..1_000_000_000u32).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos));
        prop_oneof![Just(Duration::ZERO), whole, fine]
    }

    prop_compose! {
        fn push()(
            user_id in prop::option::of(".{1,40}"),
            event in ".{1,40}",
            payload in payload(),
            ttl in prop::option::of(ttl()),
            priority in prop::sample::select(vec![Priority::Bulk, Priority::Normal, Priority::High]),
            policy in prop::option::of(prop::sample::select(vec![
                SlowReaderPolicy::Disconnect,
                SlowReaderPolicy::DropNewest,
                SlowReaderPolicy::DropOldest,
                SlowReaderPolicy::Conflate,
            ])),
            (collapse_key, idempotency_key) in (prop::option::of(".{1,40}"), prop::option::of(".{1,40}")),
            (is_for_one, excluded) in (any::<bool>(), 0..150usize),
        ) -> Push {
            let names = Names::new();
            let target = user_id.map_or(Target::Everyone, |user_id| Target::User(UserId::new(user_id).expect("valid")));
            let mut push = Push::to(target, event, payload).expect("valid").with_priority(priority);
            if let Some(ttl) = ttl {
                push = push.with_ttl(ttl);
            }
            if let Some(policy) = policy {
                push = push.with_slow_reader_policy(policy);
            }
            if let Some(key) = collapse_key {
                push = push.with_collapse_key(key).expect("valid");
            }
            if let Some(key) = idempotency_key {
                push = push.with_idempotency_key(key).expect("valid");
            }
            if is_for_one {
                push = push.only_to(names.connection_id());
            }
            push.excluding((0..excluded).map(|_| names.connection_id()))
        }
    }

    proptest! {
        #[test]
        fn a_push_that_was_written_reads_back_as_it_was(push in push()) {
            let bytes = proto::PushRequest::from(&push).encode_to_vec();
            let request = proto::PushRequest::decode(&*bytes).expect("just encoded");
            prop_assert_eq!(read_again(request), Ok(push));
        }

        #[test]
        fn the_doors_read_what_was_written_within_their_limits(push in push()) {
            let request = proto::PushRequest::from(&push);
            match (push.user_id(), push.excluded().len()) {
                (None, _) => {
                    let empty = InvalidPush::Empty { field: Field::UserId };
                    prop_assert_eq!(read(request).map(|read| read.push), Err(empty.into()));
                }
                (Some(_), excluded) if excluded > EXCLUDED_MAX => {
                    let too_many = InvalidRequest::TooManyExcluded { excluded_max: EXCLUDED_MAX };
                    prop_assert_eq!(read(request).map(|read| read.push), Err(too_many));
                }
                (Some(_), _) => prop_assert_eq!(read(request).map(|read| read.push), Ok(push)),
            }
        }
    }

    #[test]
    fn a_time_to_live_past_the_longest_duration_is_written_as_the_longest() {
        let push = Push::new("ann", "mail", "m").expect("valid");
        for ttl in [Duration::from_secs(DURATION_SECONDS_MAX), Duration::new(DURATION_SECONDS_MAX, 1), Duration::MAX] {
            let written = proto::PushRequest::from(&push.clone().with_ttl(ttl));
            let read = read_again(written).expect("within protobuf's limit");
            assert_eq!(read.ttl(), Some(Duration::from_secs(DURATION_SECONDS_MAX)));
        }
    }
}

//! What the doors of callers share between the API's messages and the gateway: who calls, a push and its outcome in words,
//! and what was wrong.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tonic::{Code, Request, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::auth::PushScope;
use crate::gateway::{AdminError, Follow, Gateway, PushError, Sent};
use crate::message::{Field, InvalidPush};
use crate::metrics::{Door, PushResult};
use crate::outcome::{ConnectionOutcome, DropReason, Drops, Level, Outcome, Progress};
use crate::proto;
use crate::proto::push_result::Result as ResultOf;
use crate::push_request::{InvalidRequest, Read, name, read};

/// Who calls, as it was found before the door was reached.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(super) scope: PushScope,
    /// Until when an answer may wait: a little less than the call has left.
    wait_until: Instant,
    place: Place,
}

impl Caller {
    pub(crate) fn new(scope: PushScope, wait_until: Instant, place: Place) -> Self {
        Self { scope, wait_until, place }
    }

    /// Says until when it may wait, and gives its place back: whoever only waits holds up nobody.
    pub(super) fn into_wait(self) -> Instant {
        drop(self.place);
        self.wait_until
    }
}

/// Who makes a gRPC call, and what it says.
pub(super) fn called<T>(request: Request<T>) -> Result<(Caller, T), Status> {
    let (_, mut extensions, message) = request.into_parts();
    // Refused rather than let through: a path to a door past the stack would be a hole.
    let caller = extensions.remove().ok_or_else(|| Status::unauthenticated("not authorized"))?;
    Ok((caller, message))
}

/// One of `push_concurrency_max`, and the request's share of `request_bodies_bytes_max`, which the door holds while it works
/// on the push. Shared only so that a request can carry it.
#[derive(Clone)]
pub(crate) struct Place(#[expect(dead_code, reason = "held, not read")] Arc<dyn Any + Send + Sync>);

impl Place {
    pub(crate) fn new(held: impl Any + Send + Sync) -> Self {
        Self(Arc::new(held))
    }
}

/// Makes one push and says who took it. Reads the request first, so that the future need not carry it beside the push.
pub(super) fn send(
    gateway: &Gateway,
    door: Door,
    scope: &PushScope,
    request: proto::PushRequest,
) -> impl Future<Output = Result<Asked, Wrong>> {
    let request = read(request).inspect_err(|_| gateway.rooms().metrics.pushed(door, PushResult::Invalid));
    async move {
        let Read { push, wait_for, per_connection } = request?;
        let waits = wait_for != Level::Accepted;
        let follow = if waits || per_connection { Follow::Each } else { Follow::Nobody };
        let sent = gateway.send_from(door, Some(scope), &push, follow).await?;
        Ok(Asked { sent, wait_for, per_connection })
    }
}

/// Makes the pushes of a batch, all before any is waited for, and says what became of each.
pub(super) async fn batch(
    gateway: &Gateway,
    door: Door,
    caller: Caller,
    request: proto::PushBatchRequest,
) -> Result<proto::PushBatchResponse, Wrong> {
    if request.pushes.is_empty() {
        return Err(Wrong::field("pushes", "there is no push in the batch".to_owned()));
    }
    check_count(request.pushes.len(), gateway.rooms().config.batch_pushes_max)?;
    let mut results = Vec::with_capacity(request.pushes.len());
    let mut waiting = Vec::new();
    for push in request.pushes {
        results.push(match send(gateway, door, &caller.scope, push).await {
            Ok(asked) if asked.is_followed() => {
                waiting.push((results.len(), asked));
                proto::PushResult::default()
            }
            Ok(asked) => asked.accepted().await.into(),
            Err(wrong) => wrong.into(),
        });
    }
    let until = caller.into_wait();
    for (place, asked) in waiting {
        results[place] = asked.answer(until).await.into();
    }
    Ok(proto::PushBatchResponse { results })
}

/// Whether a batch may have so many pushes.
pub(super) fn check_count(pushes: usize, limit: usize) -> Result<(), Wrong> {
    if pushes <= limit {
        return Ok(());
    }
    Err(Wrong::field("pushes", format!("{pushes} pushes are over the limit of {limit}")))
}

/// A push that was made, and what its caller asked to be told.
pub(super) struct Asked {
    pub(super) sent: Sent,
    pub(super) wait_for: Level,
    pub(super) per_connection: bool,
}

impl Asked {
    /// Whether more is known of it after a while.
    fn is_followed(&self) -> bool {
        self.wait_for != Level::Accepted || self.per_connection
    }

    /// Who took it.
    pub(super) async fn accepted(&self) -> proto::PushResponse {
        write(&self.sent.accepted().await, self.per_connection)
    }

    /// What became of it up to this level.
    pub(super) async fn settled(&self, level: Level, until: Instant) -> proto::PushResponse {
        write(&self.sent.settled(level, until).await, self.per_connection)
    }

    /// What became of it, as far as the caller waits for it.
    pub(super) async fn answer(&self, until: Instant) -> proto::PushResponse {
        match self.wait_for {
            Level::Accepted => self.accepted().await,
            level => self.settled(level, until).await,
        }
    }
}

fn write(outcome: &Outcome, per_connection: bool) -> proto::PushResponse {
    let (told, omitted) =
        if per_connection { (&outcome.connections[..], outcome.connections_omitted) } else { (&[][..], 0) };
    let if_followed_to = |level, count| if outcome.level.includes(level) { count } else { 0 };
    proto::PushResponse {
        message_id: outcome.message_id.to_string(),
        level: level(outcome.level).into(),
        matched: outcome.matched,
        accepted: outcome.accepted,
        dropped: outcome.dropped(),
        drops: counts(&outcome.drops),
        written: if_followed_to(Level::Written, outcome.written),
        losses: if outcome.level.includes(Level::Written) { counts(&outcome.losses) } else { Vec::new() },
        connections: told.iter().take(Outcome::CONNECTIONS_LISTED_MAX).map(connection).collect(),
        connections_omitted: omitted + told.len().saturating_sub(Outcome::CONNECTIONS_LISTED_MAX) as u64,
        replayed: outcome.replayed,
        held: outcome.held,
        acked: if_followed_to(Level::Acked, outcome.acked),
        cannot_ack: if_followed_to(Level::Acked, outcome.cannot_ack),
    }
}

fn level(level: Level) -> proto::Level {
    match level {
        Level::Accepted => proto::Level::Accepted,
        Level::Written => proto::Level::Written,
        Level::Acked => proto::Level::Acked,
    }
}

fn reason(reason: DropReason) -> proto::DropReason {
    match reason {
        DropReason::QueueFull => proto::DropReason::QueueFull,
        DropReason::Closed => proto::DropReason::Closed,
        DropReason::Expired => proto::DropReason::Expired,
        DropReason::Superseded => proto::DropReason::Superseded,
    }
}

fn counts(drops: &Drops) -> Vec<proto::DropCount> {
    let occurred = drops.by_reason().into_iter().filter(|(_, count)| *count > 0);
    occurred.map(|(why, count)| proto::DropCount { reason: reason(why).into(), count }).collect()
}

fn connection(outcome: &ConnectionOutcome) -> proto::ConnectionOutcome {
    let mut told = proto::ConnectionOutcome {
        connection_id: outcome.connection_id.to_string(),
        queued_before: outcome.queued_before as u64,
        cannot_ack: outcome.cannot_ack,
        ..proto::ConnectionOutcome::default()
    };
    let duration = |after: Duration| prost_types::Duration::try_from(after).ok();
    match outcome.progress {
        Progress::Dropped(why) => told.set_reason(reason(why)),
        Progress::Held => told.held = true,
        Progress::Accepted => told.set_level(proto::Level::Accepted),
        Progress::Written { after } => {
            told.set_level(proto::Level::Written);
            told.written_after = duration(after);
        }
        Progress::Acked { written_after, after } => {
            told.set_level(proto::Level::Acked);
            (told.written_after, told.acked_after) = (duration(written_after), duration(after));
        }
        Progress::Lost(why) => {
            told.set_level(proto::Level::Accepted);
            told.set_reason(reason(why));
        }
    }
    told
}

impl From<proto::PushResponse> for proto::PushResult {
    fn from(outcome: proto::PushResponse) -> Self {
        Self { result: Some(ResultOf::Outcome(outcome)) }
    }
}

impl From<Wrong> for proto::PushResult {
    fn from(wrong: Wrong) -> Self {
        Self { result: Some(ResultOf::Error(wrong.into())) }
    }
}

/// What was wrong with a request, before it becomes a status or a batch item's error.
pub(super) struct Wrong {
    pub(super) code: Code,
    problem: String,
    field: Cow<'static, str>,
    pub(super) kind: Kind,
    /// When the caller may push again, if that is what was wrong.
    pub(super) retry_after: Option<Duration>,
}

/// What a door tells apart that has one code in gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A part is over its limit.
    TooLong,
    /// The idempotency key stands for another push.
    KeyReused,
    Other,
}

impl Wrong {
    pub(super) fn field(field: impl Into<Cow<'static, str>>, problem: String) -> Self {
        Self { code: Code::InvalidArgument, problem, field: field.into(), kind: Kind::Other, retry_after: None }
    }

    fn no_field(code: Code, problem: String) -> Self {
        Self { code, ..Self::field("", problem) }
    }
}

impl From<InvalidRequest> for Wrong {
    fn from(error: InvalidRequest) -> Self {
        match error {
            InvalidRequest::Push(invalid) => invalid.into(),
            InvalidRequest::Unknown { .. }
            | InvalidRequest::NotAConnection { .. }
            | InvalidRequest::TooManyExcluded { .. }
            | InvalidRequest::Ttl(_) => Self::field(error.field(), error.to_string()),
        }
    }
}

impl From<InvalidPush> for Wrong {
    fn from(error: InvalidPush) -> Self {
        let (InvalidPush::Empty { field } | InvalidPush::TooLong { field, .. }) = error;
        let kind = if matches!(error, InvalidPush::TooLong { .. }) { Kind::TooLong } else { Kind::Other };
        Self { kind, ..Self::field(name(field), error.to_string()) }
    }
}

impl From<PushError> for Wrong {
    fn from(error: PushError) -> Self {
        match error {
            PushError::Invalid(invalid) => invalid.into(),
            PushError::KeyReused { differs } => {
                let problem = format!("this idempotency key was used for a push with another {}", name(differs));
                Self { kind: Kind::KeyReused, ..Self::field(name(Field::IdempotencyKey), problem) }
            }
            PushError::PermissionDenied => Self::no_field(Code::PermissionDenied, error.to_string()),
            PushError::TooSlow { .. } => Self::no_field(Code::DeadlineExceeded, error.to_string()),
            PushError::RateLimited { retry_after } => {
                Self { retry_after: Some(retry_after), ..Self::no_field(Code::ResourceExhausted, error.to_string()) }
            }
            PushError::TooManyWaiting => Self::no_field(Code::ResourceExhausted, error.to_string()),
        }
    }
}

impl From<AdminError> for Wrong {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Stopping => Self::no_field(Code::Unavailable, error.to_string()),
            AdminError::Full(_) => Self::no_field(Code::ResourceExhausted, error.to_string()),
        }
    }
}

impl From<Wrong> for Status {
    fn from(wrong: Wrong) -> Self {
        if let Some(wait) = wrong.retry_after {
            Self::with_error_details(wrong.code, wrong.problem, ErrorDetails::with_retry_info(Some(wait)))
        } else if wrong.field.is_empty() {
            Self::new(wrong.code, wrong.problem)
        } else {
            let details = ErrorDetails::with_bad_request_violation(wrong.field, &wrong.problem);
            Self::with_error_details(wrong.code, wrong.problem, details)
        }
    }
}

impl From<Wrong> for proto::PushError {
    fn from(wrong: Wrong) -> Self {
        Self { code: wrong.code.into(), message: wrong.problem, field: wrong.field.into_owned() }
    }
}

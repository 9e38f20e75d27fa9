//! The gRPC door: `pushgate.v1.PushService`.

use std::num::NonZeroU32;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

use crate::auth::PushScope;
use crate::doors::Refusal;
use crate::gateway::{Follow, Gateway, PushError, Sent};
use crate::message::{
    ConnectionId, ConnectionOutcome, DropReason, Drops, Event, Field, InvalidPush, Level, Outcome, Priority, Progress,
    Push, SlowReaderPolicy, Target, UserId,
};
use crate::metrics::{Door, PushResult};
use crate::proto;
use crate::proto::push_request::Payload;
use crate::proto::push_result::Result as ResultOf;
use crate::proto::push_service_server::{PushService, PushServiceServer};

/// The service behind the generated server.
#[derive(Clone)]
pub(crate) struct PushDoor {
    gateway: Gateway,
}

impl PushDoor {
    /// The service, with room for the largest request and for an answer to it.
    pub(crate) fn server(gateway: Gateway) -> PushServiceServer<Self> {
        let request_bytes_max = gateway.rooms().config.request_bytes_max;
        PushServiceServer::new(Self { gateway }).max_decoding_message_size(request_bytes_max)
    }

    /// Makes one push and says who took it.
    fn send(&self, scope: &PushScope, request: proto::PushRequest) -> Result<Asked, Wrong> {
        let request = read(request).inspect_err(|_| self.invalid())?;
        let waits = request.wait_for > Level::Accepted;
        let follow = if waits || request.per_connection { Follow::Each } else { Follow::Nobody };
        let sent = self.gateway.send_from(Door::Grpc, Some(scope), &request.push, follow)?;
        Ok(Asked { sent, waits, per_connection: request.per_connection })
    }

    fn invalid(&self) {
        self.gateway.rooms().metrics.pushed(Door::Grpc, PushResult::Invalid);
    }
}

/// A push that was made, and what its caller asked to be told.
struct Asked {
    sent: Sent,
    waits: bool,
    per_connection: bool,
}

impl Asked {
    /// Who took it.
    fn accepted(&self) -> proto::PushResponse {
        write(&self.sent.now(Level::Accepted), self.per_connection)
    }

    /// What became of it, as far as the caller waits for it.
    async fn answer(&self, until: Instant) -> proto::PushResponse {
        if self.waits { write(&self.sent.settled(until).await, self.per_connection) } else { self.accepted() }
    }
}

/// Until when an answer may wait, as the layer before this door found it: a little less than the call has left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitUntil(pub(crate) Instant);

#[tonic::async_trait]
impl PushService for PushDoor {
    async fn push(&self, request: Request<proto::PushRequest>) -> Result<Response<proto::PushResponse>, Status> {
        let (caller, request) = called(request)?;
        let asked = self.send(&caller.scope, request)?;
        Ok(Response::new(asked.answer(caller.wait_until).await))
    }

    async fn push_batch(
        &self,
        request: Request<proto::PushBatchRequest>,
    ) -> Result<Response<proto::PushBatchResponse>, Status> {
        let (caller, request) = called(request)?;
        let limit = self.gateway.rooms().config.batch_pushes_max;
        if request.pushes.is_empty() {
            return Err(Wrong::field("pushes", "there is no push in the batch".to_owned()).into());
        }
        if request.pushes.len() > limit {
            let problem = format!("{} pushes are over the limit of {limit}", request.pushes.len());
            return Err(Wrong::field("pushes", problem).into());
        }
        // All are sent before any is waited for.
        let sent: Vec<_> = request.pushes.into_iter().map(|push| self.send(&caller.scope, push)).collect();
        let mut results = Vec::with_capacity(sent.len());
        for asked in sent {
            results.push(match asked {
                Ok(asked) => asked.answer(caller.wait_until).await.into(),
                Err(wrong) => wrong.into(),
            });
        }
        Ok(Response::new(proto::PushBatchResponse { results }))
    }

    async fn broadcast(
        &self,
        request: Request<proto::BroadcastRequest>,
    ) -> Result<Response<proto::BroadcastResponse>, Status> {
        let (caller, request) = called(request)?;
        let per_second = NonZeroU32::new(request.connections_per_second);
        let read = read_for(|_| Ok(Target::Everyone), of_broadcast(request)).inspect_err(|_| self.invalid())?;
        let follow = if read.wait_for > Level::Accepted { Follow::Each } else { Follow::Nobody };
        let sent = match per_second {
            None => self.gateway.send_from(Door::Grpc, Some(&caller.scope), &read.push, follow),
            Some(pace) => self.gateway.broadcast_paced(Some(&caller.scope), &read.push, pace, caller.wait_until).await,
        };
        let asked = Asked { sent: sent.map_err(Wrong::from)?, waits: follow == Follow::Each, per_connection: false };
        Ok(Response::new(proto::BroadcastResponse { outcome: Some(asked.answer(caller.wait_until).await) }))
    }

    type PushStreamStream = ReceiverStream<Result<proto::PushStreamResponse, Status>>;

    async fn push_stream(
        &self,
        request: Request<Streaming<proto::PushStreamRequest>>,
    ) -> Result<Response<Self::PushStreamStream>, Status> {
        let (caller, messages) = called(request)?;
        let (results, answers) = mpsc::channel(STREAM_RESULTS_MAX);
        let rooms = self.gateway.rooms();
        let stream = PushStreaming { door: self.clone(), scope: caller.scope, results };
        rooms.streams.spawn(stream.run(messages));
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn drop(&self, request: Request<proto::DropRequest>) -> Result<Response<proto::DropResponse>, Status> {
        let (caller, request) = called(request)?;
        let user_id = UserId::new(request.user_id).map_err(Wrong::from)?;
        let event = match request.event.as_str() {
            "" => None,
            event => Some(Event::new(event).map_err(Wrong::from)?),
        };
        let closed = self.gateway.drop_from(&caller.scope, &user_id, event.as_ref()).map_err(Wrong::from)?;
        Ok(Response::new(proto::DropResponse { closed }))
    }
}

/// Results of one stream that wait to be read. Past it, and past [`STREAM_WAITING_MAX`], the stream is not read either,
/// and HTTP/2 flow control tells the caller.
const STREAM_RESULTS_MAX: usize = 64;

/// Messages of one stream that wait for a second result.
const STREAM_WAITING_MAX: usize = 1024;

/// The longest correlation id, in bytes.
const CORRELATION_ID_BYTES_MAX: usize = 256;

/// One stream of pushes.
struct PushStreaming {
    door: PushDoor,
    scope: PushScope,
    results: mpsc::Sender<Result<proto::PushStreamResponse, Status>>,
}

/// The stream's caller is gone, and nobody is left to tell.
struct Gone;

impl PushStreaming {
    /// Pushes and answers until the caller is done or gone, or the gateway stops.
    async fn run(self, messages: Streaming<proto::PushStreamRequest>) {
        // Nobody to tell if this fails: the caller is gone.
        let _told = self.serve(messages).await;
    }

    async fn serve(&self, mut messages: Streaming<proto::PushStreamRequest>) -> Result<(), Gone> {
        let stopping = self.door.gateway.rooms().stopping.clone();
        let mut waiting = FuturesUnordered::new();
        let end = loop {
            tokio::select! {
                // Results first: a caller that is told is a caller that can go on.
                biased;
                Some(response) = waiting.next() => self.tell(response).await?,
                () = stopping.cancelled() => break Err(status(Refusal::Draining)),
                message = messages.message(), if waiting.len() < STREAM_WAITING_MAX => match message {
                    Ok(Some(message)) => waiting.extend(self.push(message).await?),
                    Ok(None) => break Ok(()),
                    // tonic's word for a message over the limit; unary calls have it mapped in the stack.
                    Err(error) if error.code() == Code::OutOfRange => break Err(status(Refusal::TooLarge {
                        limit_bytes: self.door.gateway.rooms().config.request_bytes_max,
                    })),
                    Err(error) => break Err(error),
                },
            }
        };
        while let Some(response) = waiting.next().await {
            self.tell(response).await?;
        }
        match end {
            Ok(()) => Ok(()),
            Err(status) => self.results.send(Err(status)).await.map_err(|_| Gone),
        }
    }

    /// Pushes one message and tells its first result; returns the second one where there will be one.
    async fn push(
        &self,
        message: proto::PushStreamRequest,
    ) -> Result<Option<impl Future<Output = proto::PushStreamResponse> + use<>>, Gone> {
        let correlation_id = message.correlation_id;
        let sent = if correlation_id.len() > CORRELATION_ID_BYTES_MAX {
            let problem = format!("the correlation id is over the limit of {CORRELATION_ID_BYTES_MAX} bytes");
            Err(Wrong::field("correlation_id", problem))
        } else {
            self.door.send(&self.scope, message.push.unwrap_or_default())
        };
        let asked = match sent {
            Ok(asked) => asked,
            Err(wrong) => {
                // A correlation id over its limit is not sent back whole.
                let correlation_id = correlation_id.chars().take(CORRELATION_ID_BYTES_MAX / 4).collect();
                let response = proto::PushStreamResponse { correlation_id, result: Some(wrong.into()), r#final: true };
                return self.tell(response).await.map(|()| None);
            }
        };
        let accepted = asked.accepted();
        let is_final = !asked.waits || accepted.accepted == 0;
        let response = proto::PushStreamResponse {
            correlation_id: correlation_id.clone(),
            result: Some(accepted.into()),
            r#final: is_final,
        };
        self.tell(response).await?;
        let until = Instant::now() + self.door.gateway.rooms().config.request_timeout;
        let second = async move {
            let result = Some(asked.answer(until).await.into());
            proto::PushStreamResponse { correlation_id, result, r#final: true }
        };
        Ok((!is_final).then_some(second))
    }

    async fn tell(&self, response: proto::PushStreamResponse) -> Result<(), Gone> {
        self.results.send(Ok(response)).await.map_err(|_| Gone)
    }
}

/// Who calls, as the layer before this door found it.
struct Caller {
    scope: PushScope,
    wait_until: Instant,
}

fn called<T>(request: Request<T>) -> Result<(Caller, T), Status> {
    let (_, extensions, message) = request.into_parts();
    match (extensions.get::<PushScope>().cloned(), extensions.get::<WaitUntil>().copied()) {
        (Some(scope), Some(WaitUntil(wait_until))) => Ok((Caller { scope, wait_until }, message)),
        // Refused rather than let through: a path to this door past the layer would be a hole.
        _ => Err(Status::unauthenticated("not authorized")),
    }
}

/// A valid request.
struct Read {
    push: Push,
    wait_for: Level,
    per_connection: bool,
}

/// Connections that one push may name to leave out.
const EXCLUDED_MAX: usize = 100;

/// Connections that one answer tells of by themselves.
const CONNECTIONS_TOLD_MAX: usize = 1000;

fn read(request: proto::PushRequest) -> Result<Read, Wrong> {
    read_for(|user_id| UserId::new(user_id).map(Target::User), request)
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
    request: proto::PushRequest,
) -> Result<Read, Wrong> {
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
        Err(_) => return Err(unknown("wait_for")),
    };
    if let Some(ttl) = request.ttl {
        let ttl = ttl.try_into().map_err(|_| Wrong::field("ttl", "the time to live is negative".to_owned()))?;
        push = push.with_ttl(ttl);
    }
    if !request.connection_id.is_empty() {
        push = push.only_to(connection_id(&request.connection_id, "connection_id")?);
    }
    if request.exclude_connection_ids.len() > EXCLUDED_MAX {
        let problem = format!("more connections are excluded than the limit of {EXCLUDED_MAX}");
        return Err(Wrong::field("exclude_connection_ids", problem));
    }
    let excluded = request.exclude_connection_ids.iter().map(|id| connection_id(id, "exclude_connection_ids"));
    push = push.excluding(excluded.collect::<Result<Vec<_>, _>>()?);
    push = match proto::Priority::try_from(request.priority) {
        Ok(proto::Priority::Unspecified | proto::Priority::Normal) => push,
        Ok(proto::Priority::Bulk) => push.with_priority(Priority::Bulk),
        Ok(proto::Priority::High) => push.with_priority(Priority::High),
        Err(_) => return Err(unknown("priority")),
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
        Err(_) => return Err(unknown("slow_reader_policy")),
    };
    Ok(Read { push, wait_for, per_connection: request.per_connection })
}

/// A number that names nothing, most likely from a caller that is newer than this gateway.
fn unknown(field: &'static str) -> Wrong {
    Wrong::field(field, "the value is not one that this gateway knows".to_owned())
}

fn connection_id(text: &str, field: &'static str) -> Result<ConnectionId, Wrong> {
    text.parse().map_err(|_| Wrong::field(field, "the text is not a connection id".to_owned()))
}

fn write(outcome: &Outcome, per_connection: bool) -> proto::PushResponse {
    let told = if per_connection { &outcome.connections[..] } else { &[] };
    proto::PushResponse {
        message_id: outcome.message_id.to_string(),
        level: level(outcome.level).into(),
        matched: outcome.matched,
        accepted: outcome.accepted,
        dropped: outcome.dropped(),
        drops: counts(&outcome.drops),
        written: if outcome.level >= Level::Written { outcome.written } else { 0 },
        losses: if outcome.level >= Level::Written { counts(&outcome.losses) } else { Vec::new() },
        connections: told.iter().take(CONNECTIONS_TOLD_MAX).map(connection).collect(),
        connections_omitted: told.len().saturating_sub(CONNECTIONS_TOLD_MAX) as u64,
        replayed: outcome.replayed,
    }
}

fn level(level: Level) -> proto::Level {
    match level {
        Level::Accepted => proto::Level::Accepted,
        Level::Written => proto::Level::Written,
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
    let (level, why, written_after) = match outcome.progress {
        Progress::Dropped(why) => (proto::Level::Unspecified, reason(why), None),
        Progress::Accepted => (proto::Level::Accepted, proto::DropReason::Unspecified, None),
        Progress::Written { after } => {
            (proto::Level::Written, proto::DropReason::Unspecified, prost_types::Duration::try_from(after).ok())
        }
        Progress::Lost(why) => (proto::Level::Accepted, reason(why), None),
    };
    proto::ConnectionOutcome {
        connection_id: outcome.connection_id.to_string(),
        level: level.into(),
        reason: why.into(),
        queued_before: outcome.queued_before as u64,
        written_after,
    }
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
struct Wrong {
    code: Code,
    problem: String,
    field: &'static str,
}

impl Wrong {
    fn field(field: &'static str, problem: String) -> Self {
        Self { code: Code::InvalidArgument, problem, field }
    }
}

impl From<InvalidPush> for Wrong {
    fn from(error: InvalidPush) -> Self {
        let (InvalidPush::Empty { field } | InvalidPush::TooLong { field, .. }) = error;
        let name = match field {
            Field::UserId => "user_id",
            Field::Event => "event",
            Field::Message => "message",
            Field::CollapseKey => "collapse_key",
            Field::IdempotencyKey => "idempotency_key",
        };
        Self::field(name, error.to_string())
    }
}

impl From<PushError> for Wrong {
    fn from(error: PushError) -> Self {
        match error {
            PushError::Invalid(invalid) => invalid.into(),
            PushError::PermissionDenied => Self { code: Code::PermissionDenied, problem: error.to_string(), field: "" },
            PushError::TooSlow { .. } => Self { code: Code::DeadlineExceeded, problem: error.to_string(), field: "" },
            PushError::TooManyWaiting => Self { code: Code::ResourceExhausted, problem: error.to_string(), field: "" },
        }
    }
}

impl From<Wrong> for Status {
    fn from(wrong: Wrong) -> Self {
        if wrong.field.is_empty() {
            Self::new(wrong.code, wrong.problem)
        } else {
            let details = ErrorDetails::with_bad_request_violation(wrong.field, &wrong.problem);
            Self::with_error_details(wrong.code, wrong.problem, details)
        }
    }
}

impl From<Wrong> for proto::PushError {
    fn from(wrong: Wrong) -> Self {
        Self { code: wrong.code.into(), message: wrong.problem, field: wrong.field.to_owned() }
    }
}

/// Turns a request away in this door's words.
pub(crate) fn refuse(gateway: &Gateway, refusal: Refusal) -> Status {
    gateway.rooms().metrics.pushed(Door::Grpc, refusal.into());
    status(refusal)
}

/// A refusal as a status, also for a body that turns out to be over its limit.
pub(crate) fn status(refusal: Refusal) -> Status {
    let code = match refusal {
        Refusal::Unauthenticated => Code::Unauthenticated,
        Refusal::CheckUnavailable | Refusal::Draining => Code::Unavailable,
        Refusal::Overloaded | Refusal::TooLarge { .. } => Code::ResourceExhausted,
        Refusal::TimedOut => Code::DeadlineExceeded,
    };
    Status::new(code, refusal.to_string())
}

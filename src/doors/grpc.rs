//! The gRPC door: `pushgate.v1.PushService`.

use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::auth::PushScope;
use crate::doors::Refusal;
use crate::gateway::{Gateway, PushError};
use crate::message::{Event, Field, InvalidPush, Outcome, Push, UserId};
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

    fn push_one(&self, scope: &PushScope, request: proto::PushRequest) -> Result<proto::PushResponse, Wrong> {
        let invalid = |wrong| {
            self.gateway.rooms().metrics.pushed(Door::Grpc, PushResult::Invalid);
            wrong
        };
        let push = read(request).map_err(|error| invalid(Wrong::from(error)))?;
        Ok(write(&self.gateway.push_from(Door::Grpc, Some(scope), &push)?))
    }
}

#[tonic::async_trait]
impl PushService for PushDoor {
    async fn push(&self, request: Request<proto::PushRequest>) -> Result<Response<proto::PushResponse>, Status> {
        let (scope, request) = scoped(request)?;
        Ok(Response::new(self.push_one(&scope, request)?))
    }

    async fn push_batch(
        &self,
        request: Request<proto::PushBatchRequest>,
    ) -> Result<Response<proto::PushBatchResponse>, Status> {
        let (scope, request) = scoped(request)?;
        let limit = self.gateway.rooms().config.batch_pushes_max;
        if request.pushes.is_empty() {
            return Err(Wrong::field("pushes", "there is no push in the batch".to_owned()).into());
        }
        if request.pushes.len() > limit {
            let problem = format!("{} pushes are over the limit of {limit}", request.pushes.len());
            return Err(Wrong::field("pushes", problem).into());
        }
        let results = request
            .pushes
            .into_iter()
            .map(|push| {
                let result = match self.push_one(&scope, push) {
                    Ok(outcome) => ResultOf::Outcome(outcome),
                    Err(wrong) => ResultOf::Error(wrong.into()),
                };
                proto::PushResult { result: Some(result) }
            })
            .collect();
        Ok(Response::new(proto::PushBatchResponse { results }))
    }

    async fn drop(&self, request: Request<proto::DropRequest>) -> Result<Response<proto::DropResponse>, Status> {
        let (scope, request) = scoped(request)?;
        let user_id = UserId::new(request.user_id).map_err(Wrong::from)?;
        let event = match request.event.as_str() {
            "" => None,
            event => Some(Event::new(event).map_err(Wrong::from)?),
        };
        let closed = self.gateway.drop_from(&scope, &user_id, event.as_ref()).map_err(Wrong::from)?;
        Ok(Response::new(proto::DropResponse { closed }))
    }
}

/// The request, and what its caller may push to as the layer before this door found it.
fn scoped<T>(request: Request<T>) -> Result<(PushScope, T), Status> {
    let (_, extensions, message) = request.into_parts();
    let scope = extensions.get::<PushScope>().cloned();
    // Refused rather than let through: a path to this door past the layer would be a hole.
    scope.map(|scope| (scope, message)).ok_or_else(|| Status::unauthenticated("not authorized"))
}

fn read(request: proto::PushRequest) -> Result<Push, InvalidPush> {
    let (user_id, event) = (request.user_id, request.event);
    match request.payload {
        Some(Payload::Message(text)) => Push::new(user_id, event, text),
        Some(Payload::Binary(bytes)) => Push::new(user_id, event, bytes),
        None => Push::new(user_id, event, ""),
    }
}

fn write(outcome: &Outcome) -> proto::PushResponse {
    let counts =
        [(proto::DropReason::QueueFull, outcome.drops.queue_full), (proto::DropReason::Closed, outcome.drops.closed)];
    proto::PushResponse {
        message_id: outcome.message_id.to_string(),
        level: proto::Level::Accepted.into(),
        matched: outcome.matched,
        accepted: outcome.accepted,
        dropped: outcome.dropped(),
        drops: counts
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| proto::DropCount { reason: reason.into(), count })
            .collect(),
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
        };
        Self::field(name, error.to_string())
    }
}

impl From<PushError> for Wrong {
    fn from(error: PushError) -> Self {
        match error {
            PushError::Invalid(invalid) => invalid.into(),
            PushError::PermissionDenied => Self { code: Code::PermissionDenied, problem: error.to_string(), field: "" },
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

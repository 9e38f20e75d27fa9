//! The gRPC door: `pushgate.v1.PushService`.

mod stream;

use std::num::NonZeroU32;
use std::time::Instant;

use tonic::{Code, Request, Response, Status, Streaming};

use crate::auth::PushScope;
use crate::doors::Refusal;
use crate::doors::api::{Wrong, read, read_broadcast, write};
use crate::gateway::{Follow, Gateway, Sent};
use crate::message::{Event, UserId};
use crate::metrics::{Door, PushResult};
use crate::outcome::Level;
use crate::proto;
use crate::proto::push_service_server::{PushService, PushServiceServer};

use stream::{PushStreaming, Results};

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
        let read = read_broadcast(request).inspect_err(|_| self.invalid())?;
        let follow = if read.wait_for > Level::Accepted { Follow::Each } else { Follow::Nobody };
        let sent = match per_second {
            None => self.gateway.send_from(Door::Grpc, Some(&caller.scope), &read.push, follow),
            Some(pace) => self.gateway.broadcast_paced(Some(&caller.scope), &read.push, pace, caller.wait_until).await,
        };
        let asked = Asked { sent: sent.map_err(Wrong::from)?, waits: follow == Follow::Each, per_connection: false };
        Ok(Response::new(proto::BroadcastResponse { outcome: Some(asked.answer(caller.wait_until).await) }))
    }

    type PushStreamStream = Results;

    async fn push_stream(
        &self,
        request: Request<Streaming<proto::PushStreamRequest>>,
    ) -> Result<Response<Self::PushStreamStream>, Status> {
        let (caller, messages) = called(request)?;
        let (stream, results) = PushStreaming::new(self.clone(), caller.scope);
        self.gateway.rooms().streams.spawn(stream.run(messages));
        Ok(Response::new(results))
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

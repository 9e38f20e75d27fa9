//! The gRPC door: `pushgate.v1.PushService`.

mod stream;

use std::num::NonZeroU32;

use tonic::{Code, Request, Response, Status, Streaming};

use crate::auth::PushScope;
use crate::doors::Refusal;
use crate::doors::api::{Asked, Caller, Wrong, batch, read_broadcast, send};
use crate::gateway::{Follow, Gateway};
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

    fn send(&self, scope: &PushScope, request: proto::PushRequest) -> Result<Asked, Wrong> {
        send(&self.gateway, Door::Grpc, scope, request)
    }

    fn invalid(&self) {
        self.gateway.rooms().metrics.pushed(Door::Grpc, PushResult::Invalid);
    }
}

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
        Ok(Response::new(batch(&self.gateway, Door::Grpc, &caller, request).await?))
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
        let asked = Asked { sent: sent.map_err(Wrong::from)?, wait_for: read.wait_for, per_connection: false };
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

fn called<T>(request: Request<T>) -> Result<(Caller, T), Status> {
    let (_, extensions, message) = request.into_parts();
    // Refused rather than let through: a path to this door past the layer would be a hole.
    let caller = Caller::noted(&extensions).ok_or_else(|| Status::unauthenticated("not authorized"))?;
    Ok((caller, message))
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

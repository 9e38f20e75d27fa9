//! The gRPC door: `pushgate.v1.PushService`.

mod batch;
mod stream;

use std::num::NonZeroU32;

use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, StatusCode, Version};
use tonic::codec::CompressionEncoding;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::auth::PushScope;
use crate::doors::api::{Asked, Wrong, batch, called, send};
use crate::doors::{Body, Refusal, empty, text};
use crate::gateway::{Follow, Gateway};
use crate::message::{Event, UserId};
use crate::metrics::{Door, PushResult};
use crate::outcome::Level;
use crate::proto;
use crate::proto::push_service_server::{PushService, PushServiceServer};
use crate::push_request::read_broadcast;

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
        PushServiceServer::new(Self { gateway })
            .max_decoding_message_size(request_bytes_max)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd)
    }

    fn send(&self, scope: &PushScope, request: proto::PushRequest) -> impl Future<Output = Result<Asked, Wrong>> {
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
        let asked = self.send(&caller.scope, request).await?;
        Ok(Response::new(asked.answer(caller.into_wait()).await))
    }

    async fn push_batch(
        &self,
        request: Request<proto::PushBatchRequest>,
    ) -> Result<Response<proto::PushBatchResponse>, Status> {
        let (caller, request) = called(request)?;
        Ok(Response::new(batch(&self.gateway, Door::Grpc, caller, request).await?))
    }

    async fn broadcast(
        &self,
        request: Request<proto::BroadcastRequest>,
    ) -> Result<Response<proto::BroadcastResponse>, Status> {
        let (caller, request) = called(request)?;
        let per_second = NonZeroU32::new(request.connections_per_second);
        let read = read_broadcast(request).map_err(Wrong::from).inspect_err(|_| self.invalid())?;
        let follow = if read.wait_for != Level::Accepted { Follow::Each } else { Follow::Nobody };
        let scope = caller.scope.clone();
        let (sent, until) = match per_second {
            None => (self.gateway.send_from(Door::Grpc, Some(&scope), &read.push, follow).await, caller.into_wait()),
            Some(pace) => {
                let until = caller.into_wait();
                (self.gateway.broadcast_paced(Some(&scope), &read.push, pace, until).await, until)
            }
        };
        let asked = Asked { sent: sent.map_err(Wrong::from)?, wait_for: read.wait_for, per_connection: false };
        Ok(Response::new(proto::BroadcastResponse { outcome: Some(asked.answer(until).await) }))
    }

    type PushStreamStream = Results;

    async fn push_stream(
        &self,
        request: Request<Streaming<proto::PushStreamRequest>>,
    ) -> Result<Response<Self::PushStreamStream>, Status> {
        let (caller, messages) = called(request)?;
        let (stream, results) = PushStreaming::new(self.clone(), caller.scope);
        self.gateway.rooms().pushes.spawn(stream.run(messages));
        Ok(Response::new(results))
    }

    async fn drop(&self, request: Request<proto::DropRequest>) -> Result<Response<proto::DropResponse>, Status> {
        let (caller, request) = called(request)?;
        let user_id = UserId::new(request.user_id).map_err(Wrong::from)?;
        let event = match request.event.as_str() {
            "" => None,
            event => Some(Event::new(event).map_err(Wrong::from)?),
        };
        let closed = self.gateway.drop_from(&caller.scope, &user_id, event.as_ref()).await.map_err(Wrong::from)?;
        Ok(Response::new(proto::DropResponse { closed }))
    }
}

/// The answer to what comes to a gRPC path and is no gRPC call. A web page can send it without asking first, so that
/// nothing may be done for it.
pub(crate) fn not_a_call<B>(request: &http::Request<B>) -> Option<http::Response<Body>> {
    if request.method() != Method::POST {
        let mut response = empty(StatusCode::METHOD_NOT_ALLOWED);
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return Some(response);
    }
    let kinds: Vec<_> = request.headers().get_all(CONTENT_TYPE).iter().collect();
    let is_grpc = match kinds[..] {
        [kind] => kind.to_str().is_ok_and(|kind| is_grpc(kind.split(';').next().unwrap_or_default().trim())),
        _ => false,
    };
    if !is_grpc {
        return Some(text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "a gRPC call has the content type application/grpc\n"));
    }
    // Below it there are no trailers to tell the status in.
    let is_http2 = request.version() == Version::HTTP_2;
    (!is_http2).then(|| text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "gRPC needs HTTP/2\n"))
}

fn is_grpc(kind: &str) -> bool {
    ["application/grpc", "application/grpc+proto"].iter().any(|known| known.eq_ignore_ascii_case(kind))
}

/// Whether this is tonic's word for a message over the limit: as its length is told, or once so much of it is inflated.
pub(crate) fn is_too_large(status: &Status) -> bool {
    let is_inflated = || status.message().starts_with("Error decompressing: size limit");
    status.code() == Code::OutOfRange || (status.code() == Code::ResourceExhausted && is_inflated())
}

/// Turns a request away in this door's words.
pub(crate) fn refuse(gateway: &Gateway, refusal: Refusal) -> Status {
    gateway.rooms().metrics.pushed(Door::Grpc, refusal.into());
    status(refusal)
}

/// A refusal as a status, also for a body that turns out to be over its limit.
pub(crate) fn status(refusal: Refusal) -> Status {
    Status::new(refusal.code(), refusal.to_string())
}

//! The floor for gRPC: tonic's `Push` without a gateway behind it, as a baseline for measuring the gateway's.
//!
//! A client binds one user, and a push writes one frame to that user's socket. Bytes that the socket does not accept at
//! once are lost. The server has no limits, no timeouts and no checks: **it is a baseline for measurements, not a server
//! for real use.** It prints two addresses: for WebSocket clients, and for pushes.
//!
//! ```sh
//! cargo run --release --example floor_grpc 127.0.0.1:12346 127.0.0.1:12347
//! pushgate bench --url ws://127.0.0.1:12346/ws --push-url http://127.0.0.1:12347 --door grpc --to many
//! ```

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use pushgate::proto::push_request::Payload;
use pushgate::proto::push_service_server::{PushService, PushServiceServer};
use pushgate::proto::{
    BroadcastRequest, BroadcastResponse, DropRequest, DropResponse, PushBatchRequest, PushBatchResponse, PushRequest,
    PushResponse, PushStreamRequest, PushStreamResponse,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tonic::{Request, Response, Status, Streaming};

/// As in RFC 6455 section 1.3: `pushgate bench` sends only that section's key.
const SWITCHING: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// RFC 6455 section 5.2.
const TEXT: u8 = 0x1;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

#[derive(Clone, Default)]
struct Floor {
    /// The socket of each user.
    bound: Arc<Mutex<HashMap<String, Arc<OwnedWriteHalf>>>>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let _stays_as_it_is = rlimit::increase_nofile_limit(u64::MAX);
    let address = |at| std::env::args().nth(at).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let (clients, callers) = (TcpListener::bind(address(1)).await?, TcpListener::bind(address(2)).await?);
    println!("floor is up on {} {}", clients.local_addr()?, callers.local_addr()?);
    let floor = Floor::default();
    loop {
        tokio::select! {
            accepted = clients.accept() => drop(tokio::spawn(floor.clone().client(accepted?.0))),
            accepted = callers.accept() => drop(tokio::spawn(floor.clone().caller(accepted?.0))),
        }
    }
}

impl Floor {
    async fn caller(self, stream: TcpStream) {
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let service = TowerToHyperService::new(PushServiceServer::new(self));
        let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        if let Err(error) = http2.serve_connection(TokioIo::new(stream), service).await {
            eprintln!("a caller's connection ended: {error}");
        }
    }

    /// Answers the upgrade, then the client's bind and its pings, until the client ends the connection.
    async fn client(self, mut stream: TcpStream) -> Option<()> {
        stream.set_nodelay(true).ok()?;
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            bytes.push(stream.read_u8().await.ok()?);
        }
        stream.write_all(SWITCHING).await.ok()?;
        let (mut client, socket) = stream.into_split();
        let socket = Arc::new(socket);
        while let Some((opcode, payload)) = read_frame(&mut client).await {
            match opcode {
                TEXT => {
                    let bind: serde_json::Value = serde_json::from_slice(&payload).ok()?;
                    self.bound().insert(bind["token"].as_str()?.to_owned(), socket.clone());
                }
                PING => drop(socket.try_write(&frame(PONG, &payload))),
                _ => break,
            }
        }
        self.bound().retain(|_, bound| !Arc::ptr_eq(bound, &socket));
        None
    }

    fn bound(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<OwnedWriteHalf>>> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a masked frame of up to 125 bytes.
async fn read_frame(client: &mut OwnedReadHalf) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 6];
    client.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; usize::from(head[1] & 0x7F)];
    client.read_exact(&mut payload).await.ok()?;
    payload.iter_mut().zip(head[2..].iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Some((head[0] & 0x0F, payload))
}

/// Builds a frame as a server sends it.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    match length {
        ..126 => [&[0x80 | opcode, length as u8], payload].concat(),
        _ => [&[0x80 | opcode, 126][..], &length.to_be_bytes(), payload].concat(),
    }
}

#[tonic::async_trait]
impl PushService for Floor {
    async fn push(&self, request: Request<PushRequest>) -> Result<Response<PushResponse>, Status> {
        let PushRequest { user_id, payload: Some(Payload::Message(message)), .. } = request.into_inner() else {
            return Err(Status::invalid_argument("a text message is wanted"));
        };
        let stream = self.bound().get(&user_id).cloned();
        let sent = stream.is_some_and(|stream| {
            let frame = frame(TEXT, message.as_bytes());
            stream.try_write(&frame).is_ok_and(|written| written == frame.len())
        });
        let sent = u64::from(sent);
        Ok(Response::new(PushResponse { matched: sent, accepted: sent, ..PushResponse::default() }))
    }

    async fn push_batch(&self, _: Request<PushBatchRequest>) -> Result<Response<PushBatchResponse>, Status> {
        Err(Status::unimplemented("the floor has only Push"))
    }

    type PushStreamStream = tokio_stream::Empty<Result<PushStreamResponse, Status>>;

    async fn push_stream(
        &self,
        _: Request<Streaming<PushStreamRequest>>,
    ) -> Result<Response<Self::PushStreamStream>, Status> {
        Err(Status::unimplemented("the floor has only Push"))
    }

    async fn broadcast(&self, _: Request<BroadcastRequest>) -> Result<Response<BroadcastResponse>, Status> {
        Err(Status::unimplemented("the floor has only Push"))
    }

    async fn drop(&self, _: Request<DropRequest>) -> Result<Response<DropResponse>, Status> {
        Err(Status::unimplemented("the floor has only Push"))
    }
}

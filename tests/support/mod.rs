//! A gateway in the test's own process, with clients and callers for it. Every wait ends, either with the expected
//! event or with a panic after [`PATIENCE`].

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

pub mod certificates;
pub mod schema;
pub mod session;
pub mod signer;
pub mod tls;
pub mod transcript;

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use pushgate::proto::push_request::Payload;
use pushgate::proto::push_service_client::PushServiceClient;
use pushgate::proto::{DropRequest, PushRequest, PushResponse};
use pushgate::{Config, Gateway, Report, Server, ServerBuilder};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tonic::transport::Channel;

/// Far longer than anything here takes, so that only a hang reaches it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for a future, at most [`PATIENCE`].
#[track_caller]
pub fn soon<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(PATIENCE, future).await {
            Ok(output) => output,
            Err(_) => panic!("nothing happened in {PATIENCE:?}, waited for at {caller}"),
        }
    }
}

pub struct TestGateway {
    pub clients: SocketAddr,
    pub control: SocketAddr,
    pub gateway: Gateway,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<Report>>,
}

impl TestGateway {
    pub async fn start() -> Self {
        Self::with(|_| ()).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::built(change, |builder| builder).await
    }

    pub async fn built(change: impl FnOnce(&mut Config), plug_in: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Self {
        // Tests with keys look at the metrics too.
        let mut config = Config { listen: ([127, 0, 0, 1], 0).into(), open_metrics: true, ..Config::default() };
        change(&mut config);
        let server = plug_in(Server::builder(config)).bind().await.unwrap();
        let (stop, stopped) = oneshot::channel();
        Self {
            clients: server.local_addr(),
            control: server.control_addr(),
            gateway: server.gateway(),
            stop: Some(stop),
            running: Some(tokio::spawn(server.run(async { stopped.await.unwrap_or_default() }))),
        }
    }

    /// Starts the shutdown without waiting for it.
    pub fn begin_stop(&mut self) {
        self.stop.take();
    }

    /// Starts the shutdown if needed and waits for its end.
    pub async fn stop(mut self) -> Report {
        self.begin_stop();
        soon(self.running.take().unwrap()).await.unwrap()
    }

    pub async fn connect(&self) -> Client {
        Client::connect(self.clients).await
    }

    /// Connects and binds a client. It is bound when this returns.
    pub async fn bind(&self, token: &str, event: &str) -> Client {
        let mut client = self.connect().await;
        self.bind_also(&mut client, token, event).await;
        client
    }

    /// Binds a client once more. A legacy client gets no answer, so this watches the gateway's count of binds.
    pub async fn bind_also(&self, client: &mut Client, token: &str, event: &str) {
        let before = self.metric("pushgate_binds_total").await;
        client.send_bind(token, event).await;
        self.until("pushgate_binds_total", |binds| binds > before).await;
    }

    pub fn json(&self) -> JsonCaller {
        JsonCaller { address: self.control, path: "/push".to_owned(), key: None, accept: None, stream: None }
    }

    pub async fn grpc(&self) -> GrpcCaller {
        GrpcCaller::connect(self.control).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        http(self.control, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await
    }

    /// The value of a sample of `/metrics`, by its full name including labels. 0 if it does not exist yet.
    pub async fn metric(&self, sample: &str) -> u64 {
        let text = self.get("/metrics").await.body;
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// Waits until a sample has an expected value.
    #[track_caller]
    pub fn until(&self, sample: &str, expected: impl Fn(u64) -> bool) -> impl Future<Output = ()> {
        soon(async move {
            while !expected(self.metric(sample).await) {
                tokio::task::yield_now().await;
            }
        })
    }

    /// Waits until a connection has ended for this reason.
    #[track_caller]
    pub fn until_closed(&self, reason: &str) -> impl Future<Output = ()> {
        let sample = format!("pushgate_closes_total{{reason=\"{reason}\"}}");
        async move { self.until(&sample, |closes| closes > 0).await }
    }

    /// Waits until no connection and no binding is left.
    #[track_caller]
    pub fn until_empty(&self) -> impl Future<Output = ()> {
        let (connections, bindings) =
            (self.until("pushgate_connections", |n| n == 0), self.until("pushgate_bindings", |n| n == 0));
        async {
            connections.await;
            bindings.await;
        }
    }
}

pub struct Client<S = TcpStream> {
    pub socket: WebSocketStream<S>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::connect_from(([127, 0, 0, 1], 0).into(), address).await
    }

    pub async fn connect_from(source: SocketAddr, address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(source).unwrap();
        Self::over(socket, address).await
    }

    /// Connects over a given socket, which may have special options.
    pub async fn over(socket: TcpSocket, address: SocketAddr) -> Self {
        let stream = soon(socket.connect(address)).await.unwrap();
        let (socket, _) = soon(tokio_tungstenite::client_async(format!("ws://{address}/ws"), stream)).await.unwrap();
        Self { socket }
    }

    /// Resets the connection without a close frame.
    pub fn reset(self) {
        let stream = self.socket.into_inner();
        stream.set_zero_linger().unwrap();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub async fn send_bind(&mut self, token: &str, event: &str) {
        let bind = serde_json::json!({ "token": token, "event": event });
        self.send(Message::text(bind.to_string())).await;
    }

    pub async fn send(&mut self, message: Message) {
        soon(self.socket.send(message)).await.unwrap();
    }

    /// The next message other than a ping or pong.
    #[track_caller]
    pub fn next(&mut self) -> impl Future<Output = Message> {
        soon(async {
            loop {
                match self.socket.next().await.expect("the connection ended").unwrap() {
                    Message::Ping(_) | Message::Pong(_) => {}
                    message => return message,
                }
            }
        })
    }

    #[track_caller]
    pub fn next_text(&mut self) -> impl Future<Output = String> {
        let next = self.next();
        async {
            match next.await {
                Message::Text(text) => text.to_string(),
                other => panic!("expected a text, got {other:?}"),
            }
        }
    }

    /// The close frame, which must be the next message. Then reads to the end of the stream.
    #[track_caller]
    pub fn closed(&mut self) -> impl Future<Output = (u16, String)> {
        soon(async {
            let frame = match self.next().await {
                Message::Close(Some(frame)) => frame,
                other => panic!("expected a close frame, got {other:?}"),
            };
            while let Some(Ok(_)) = self.socket.next().await {}
            (frame.code.into(), frame.reason.to_string())
        })
    }
}

/// An HTTP response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// Sends one raw request on its own connection and reads the response.
pub async fn http(address: SocketAddr, request: &str) -> Answer {
    let mut stream = soon(TcpStream::connect(address)).await.unwrap();
    soon(stream.write_all(request.as_bytes())).await.unwrap();
    read_answer(&mut stream).await
}

/// Reads the next response on a connection.
pub async fn read_answer<S: AsyncRead + Unpin>(stream: &mut S) -> Answer {
    // Reads byte by byte, so that the bytes after the response stay in the stream.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(stream.read_u8()).await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut answer = Answer { status, head, body: String::new() };
    let length: usize = answer.header("content-length").unwrap_or("0").parse().unwrap();
    let mut body = vec![0; length];
    soon(stream.read_exact(&mut body)).await.unwrap();
    answer.body = String::from_utf8(body).unwrap();
    answer
}

/// A legacy caller with one keep-alive connection.
pub struct JsonCaller {
    address: SocketAddr,
    path: String,
    key: Option<String>,
    accept: Option<&'static str>,
    stream: Option<TcpStream>,
}

impl JsonCaller {
    pub fn key(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }

    /// Sets the `accept` header, which can ask for the full outcome.
    pub fn accept(mut self, kind: &'static str) -> Self {
        self.accept = Some(kind);
        self
    }

    pub fn path(mut self, path: &str) -> Self {
        self.path = path.to_owned();
        self
    }

    pub async fn post(&mut self, body: impl AsRef<[u8]>) -> Answer {
        let (path, body) = (&self.path, body.as_ref());
        let key = self.key.as_ref().map(|key| format!("x-api-key: {key}\r\n")).unwrap_or_default();
        let accept = self.accept.map(|kind| format!("accept: {kind}\r\n")).unwrap_or_default();
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\n{key}{accept}content-length: {}\r\n\r\n", body.len());
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(soon(TcpStream::connect(self.address)).await.unwrap()),
        };
        soon(stream.write_all(&[head.as_bytes(), body].concat())).await.unwrap();
        read_answer(stream).await
    }

    /// Pushes and returns the number of clients in the answer.
    pub async fn push(&mut self, user_id: &str, event: &str, message: &str) -> u64 {
        let push = serde_json::json!({ "userId": user_id, "event": event, "message": message });
        let answer = self.post(push.to_string()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let count = answer.body.strip_prefix("message sent to ").and_then(|rest| rest.strip_suffix(" clients"));
        count.unwrap_or_else(|| panic!("{answer:?}")).parse().unwrap()
    }
}

#[derive(Clone)]
pub struct GrpcCaller {
    pub client: PushServiceClient<Channel>,
}

impl GrpcCaller {
    pub async fn connect(address: SocketAddr) -> Self {
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self { client: PushServiceClient::new(channel) }
    }

    pub async fn push(&mut self, user_id: &str, event: &str, message: &str) -> PushResponse {
        self.try_push(push_request(user_id, event, message)).await.unwrap()
    }

    pub async fn try_push(&mut self, push: PushRequest) -> Result<PushResponse, tonic::Status> {
        soon(self.client.push(push)).await.map(tonic::Response::into_inner)
    }

    pub async fn drop_user(&mut self, user_id: &str, event: &str) -> u64 {
        let drop = DropRequest { user_id: user_id.to_owned(), event: event.to_owned() };
        soon(self.client.drop(drop)).await.unwrap().into_inner().closed
    }
}

pub fn push_request(user_id: &str, event: &str, message: &str) -> PushRequest {
    PushRequest {
        user_id: user_id.to_owned(),
        event: event.to_owned(),
        payload: Some(Payload::Message(message.to_owned())),
        ..PushRequest::default()
    }
}

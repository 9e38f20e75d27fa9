//! A client of the session protocol. Checks every frame in either direction against the published schema.

use std::future::Future;
use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::schema::{check_client, check_server};
use super::{Client, soon};

pub struct SessionClient {
    socket: WebSocketStream<TcpStream>,
}

/// What a client needs to resume its session.
#[derive(Clone, Debug)]
pub struct Place {
    pub resume: String,
    pub epoch: String,
    pub seq: u64,
}

impl SessionClient {
    /// Connects and reads the welcome.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::over(TcpSocket::new_v4().unwrap(), address).await
    }

    pub async fn over(socket: TcpSocket, address: SocketAddr) -> Self {
        let mut client = Self::open(socket, address).await;
        assert_eq!(client.next().await["type"], "welcome");
        client
    }

    /// Connects, but does not read the welcome.
    pub async fn open(socket: TcpSocket, address: SocketAddr) -> Self {
        let stream = soon(socket.connect(address)).await.unwrap();
        let mut request = format!("ws://{address}/ws").into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "chat, pushgate.v1.json".parse().unwrap());
        let (socket, response) = soon(tokio_tungstenite::client_async(request, stream)).await.unwrap();
        assert_eq!(response.headers()["sec-websocket-protocol"], "pushgate.v1.json");
        Self { socket }
    }

    /// Sends a frame that must match the schema.
    pub async fn say(&mut self, frame: Value) {
        check_client(&frame);
        self.send(Message::text(frame.to_string())).await;
    }

    /// Sends any message.
    pub async fn send(&mut self, message: Message) {
        self.try_send(message).await.unwrap();
    }

    /// Sends any message to a gateway that may have closed the connection.
    pub async fn try_send(&mut self, message: Message) -> Result<(), Error> {
        soon(self.socket.send(message)).await
    }

    /// Binds and returns the answer.
    pub async fn bind(&mut self, token: &str, event: &str) -> Value {
        self.say(json!({ "type": "bind", "token": token, "event": event })).await;
        self.next().await
    }

    /// Binds to resume a session and returns the answer.
    pub async fn resume(&mut self, token: &str, event: &str, place: &Place) -> Value {
        let resume = json!({ "token": place.resume, "seq": place.seq });
        self.say(json!({ "type": "bind", "token": token, "event": event, "resume": resume })).await;
        self.next().await
    }

    pub async fn ack(&mut self, seq: u64) {
        self.say(json!({ "type": "ack", "seq": seq })).await;
    }

    /// The next frame.
    #[track_caller]
    pub fn next(&mut self) -> impl Future<Output = Value> {
        let next = self.next_message();
        async {
            match next.await {
                Some(Message::Text(text)) => {
                    let frame = serde_json::from_str(&text).unwrap();
                    check_server(&frame);
                    frame
                }
                other => panic!("expected a frame, got {other:?}"),
            }
        }
    }

    /// The next message other than a ping or pong. `None` once the connection has ended.
    #[track_caller]
    pub fn next_message(&mut self) -> impl Future<Output = Option<Message>> {
        soon(async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(message)) => return Some(message),
                    Some(Err(_)) | None => return None,
                }
            }
        })
    }

    /// The next frame, which must be a push with this number and message.
    #[track_caller]
    pub fn expect_push(&mut self, seq: u64, message: &str) -> impl Future<Output = Value> {
        let (next, message) = (self.next(), message.to_owned());
        async move {
            let frame = next.await;
            let is_expected = frame["type"] == "push" && frame["seq"] == seq && frame["message"] == *message;
            assert!(is_expected, "expected push {seq} {message:?}, got {frame}");
            frame
        }
    }

    /// The close frame, which must be the next message.
    #[track_caller]
    pub fn closed(&mut self) -> impl Future<Output = (u16, String)> {
        let next = self.next_message();
        async {
            match next.await {
                Some(Message::Close(Some(CloseFrame { code, reason }))) => (code.into(), reason.to_string()),
                other => panic!("expected a close frame, got {other:?}"),
            }
        }
    }

    /// Resets the connection without a close frame.
    pub fn reset(self) {
        Client { socket: self.socket }.reset();
    }
}

impl Place {
    /// The place of a session, from the answer to its bind.
    pub fn of(bound: &Value) -> Self {
        let text = |key: &str| bound[key].as_str().unwrap_or_else(|| panic!("{bound}")).to_owned();
        Self { resume: text("resume"), epoch: text("epoch"), seq: bound["seq"].as_u64().unwrap() }
    }

    pub fn at(&self, seq: u64) -> Self {
        Self { seq, ..self.clone() }
    }
}

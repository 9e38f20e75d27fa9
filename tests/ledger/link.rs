//! One connection of a client. Checks that the frames of the session protocol arrive in an allowed order.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message, Utf8Bytes};

use crate::body::Body;
use crate::book::{Book, Name};
use crate::support::schema::{check_client, check_server};
use crate::support::{Client, soon};

/// One frame in this many is checked against the schema. Checking all frames would take most of the time.
const FRAMES_PER_CHECK: usize = 64;

/// A client that hears nothing for so long says something.
const SILENCE: Duration = Duration::from_secs(2);

/// The next WebSocket message, or the end of the stream. A reset can be lost on a lossy link. The client learns of it when
/// it speaks.
pub(crate) async fn heard(socket: &mut WebSocketStream<TcpStream>) -> Option<Result<Message, Error>> {
    loop {
        if let Ok(next) = tokio::time::timeout(SILENCE, socket.next()).await {
            return next;
        }
        let _sent = socket.send(Message::Ping(Bytes::new())).await;
    }
}

/// Something that arrived on the connection.
#[derive(Debug)]
pub(crate) enum Came {
    /// A push that arrived in order and was recorded in the book.
    Push(Body),
    Gap,
    Pong,
    /// Another answer.
    Answer,
    Ended(Option<u16>),
}

/// The answer to the first bind.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) epoch: String,
    pub(crate) resume: String,
    pub(crate) seq: u64,
    pub(crate) recovered: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Frame<'a> {
    r#type: Cow<'a, str>,
    seq: Option<u64>,
    id: Option<Cow<'a, str>>,
    message: Option<Cow<'a, str>>,
    binary: Option<Cow<'a, str>>,
    from: Option<u64>,
    to: Option<u64>,
    epoch: Option<Cow<'a, str>>,
    resume: Option<Cow<'a, str>>,
    recovered: Option<bool>,
}

/// A parsed frame. Pushes and gaps belong to the session, and all other frames to the connection.
enum Told {
    Push { seq: u64, id: Name, body: Body },
    Gap { from: u64, to: u64 },
    Other(Came),
}

pub(crate) struct Link {
    socket: WebSocketStream<TcpStream>,
    /// The number that must come next.
    next: u64,
    /// The number up to which nothing may be missing, because the gateway said so.
    recovered_to: u64,
    frames: usize,
    is_going_away: bool,
    is_over: bool,
}

impl Link {
    /// Connects. With `takes_little`, the client has a small buffer and asks for small packets. Otherwise a socket on
    /// this machine accepts some megabytes before it blocks.
    pub(crate) async fn open(from: SocketAddr, address: SocketAddr, takes_little: bool) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        if takes_little {
            socket.set_recv_buffer_size(4096).unwrap();
            SockRef::from(&socket).set_tcp_mss(536).unwrap();
        }
        socket.bind(from).unwrap();
        let stream = soon(socket.connect(address)).await.unwrap();
        let mut request = format!("ws://{address}/ws").into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "pushgate.v1.json".parse().unwrap());
        let (socket, _) = soon(tokio_tungstenite::client_async(request, stream)).await.unwrap();
        Self { socket, next: 0, recovered_to: 0, frames: 0, is_going_away: false, is_over: false }
    }

    /// Sends a frame. Ignores errors, because the next read notices a connection that has ended.
    pub(crate) async fn say(&mut self, frame: Value) {
        check_client(&frame);
        let _sent = soon(self.socket.send(Message::text(frame.to_string()))).await;
    }

    pub(crate) async fn ack(&mut self, book: &mut Book, seq: u64) {
        book.ack(seq);
        // Formats the frame by hand, because there are millions of them.
        let _sent = soon(self.socket.send(Message::text(format!(r#"{{"type":"ack","seq":{seq}}}"#)))).await;
    }

    /// Reads the answer to the first bind. Only the welcome may come before it. `None` if the connection has ended.
    pub(crate) async fn bound(&mut self) -> Option<Bound> {
        loop {
            let text = self.next_text().await.ok()?;
            let frame: Value = serde_json::from_str(&text).unwrap();
            check_server(&frame);
            if frame["type"] == "welcome" {
                continue;
            }
            assert_eq!(frame["type"], "bound", "{frame}");
            let frame: Frame<'_> = serde_json::from_str(&text).unwrap();
            let (epoch, resume) = (frame.epoch.unwrap().into_owned(), frame.resume.unwrap().into_owned());
            let (seq, recovered) = (frame.seq.unwrap(), frame.recovered);
            self.next = seq + 1;
            return Some(Bound { epoch, resume, seq, recovered });
        }
    }

    /// Sets that nothing may be missing from the claimed number up to this one.
    pub(crate) fn is_recovered_to(&mut self, seq: u64) {
        self.recovered_to = seq;
    }

    /// Reads the next frame and records it in the book.
    pub(crate) async fn read(&mut self, book: &mut Book) -> Came {
        match self.told().await {
            Told::Push { seq, id, body } => {
                book.push(seq, id, body);
                Came::Push(body)
            }
            Told::Gap { from, to } => {
                for seq in from..=to {
                    if seq <= self.recovered_to {
                        let over = matches!(book.seen(seq), Some(crate::book::Seen::Push { body, .. }) if body.has_ttl);
                        assert!(over, "number {seq} is missing from a session that was called recovered");
                    }
                    book.gap(seq);
                }
                Came::Gap
            }
            Told::Other(came) => came,
        }
    }

    /// Reads a replaced connection to its end.
    pub(crate) async fn read_late(mut self, book: &mut Book) {
        loop {
            match self.told().await {
                Told::Push { seq, id, body } => book.late.push((seq, id, body)),
                Told::Other(Came::Ended(_)) => return,
                Told::Gap { .. } | Told::Other(_) => {}
            }
        }
    }

    /// Reads the next frame, which must arrive in order.
    async fn told(&mut self) -> Told {
        let text = match self.next_text().await {
            Ok(text) => text,
            Err(code) => return Told::Other(Came::Ended(code)),
        };
        self.frames += 1;
        if self.frames.is_multiple_of(FRAMES_PER_CHECK) {
            check_server(&serde_json::from_str(&text).unwrap());
        }
        let frame: Frame<'_> = serde_json::from_str(&text).unwrap();
        let is_sessions = matches!(&*frame.r#type, "push" | "gap");
        assert!(is_sessions || !self.is_going_away, "behind goaway: {text}");
        match &*frame.r#type {
            "push" => {
                let seq = frame.seq.unwrap();
                assert_eq!(seq, self.next, "the numbers come in order: {text}");
                self.next += 1;
                let body = match (&frame.message, &frame.binary) {
                    (Some(message), None) => Body::read(message),
                    (None, Some(binary)) => {
                        Body::read(std::str::from_utf8(&BASE64_STANDARD.decode(&**binary).unwrap()).unwrap())
                    }
                    _ => panic!("{text}"),
                };
                Told::Push { seq, id: Name::of(&frame.id.unwrap()), body }
            }
            "gap" => {
                let (from, to) = (frame.from.unwrap(), frame.to.unwrap());
                assert!(from == self.next && to >= from, "{} comes next, not {text}", self.next);
                self.next = to + 1;
                Told::Gap { from, to }
            }
            "goaway" => {
                self.is_going_away = true;
                Told::Other(Came::Answer)
            }
            "pong" => Told::Other(Came::Pong),
            "bound" | "unbound" => Told::Other(Came::Answer),
            _ => panic!("{text}"),
        }
    }

    /// Reads the next text, or returns the close code of a connection that has ended.
    async fn next_text(&mut self) -> Result<Utf8Bytes, Option<u16>> {
        let mut code = None;
        soon(async {
            loop {
                match heard(&mut self.socket).await {
                    Some(Ok(Message::Text(text))) => {
                        assert!(!self.is_over, "behind the close frame: {text}");
                        return Ok(text);
                    }
                    Some(Ok(Message::Close(frame))) => {
                        self.is_over = true;
                        code = frame.map(|frame| frame.code.into());
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Err(code),
                }
            }
        })
        .await
    }

    /// Sends a close frame.
    pub(crate) async fn close(&mut self, code: Option<u16>) {
        let frame = code.map(|code| CloseFrame { code: code.into(), reason: Utf8Bytes::default() });
        let _sent = soon(self.socket.send(Message::Close(frame))).await;
    }

    pub(crate) fn reset(self) {
        Client { socket: self.socket }.reset();
    }

    pub(crate) async fn bind(&mut self, token: &str, event: &str, resume: Option<(&str, u64)>) {
        let mut bind = json!({ "type": "bind", "token": token, "event": event });
        if let Some((token, seq)) = resume {
            bind["resume"] = json!({ "token": token, "seq": seq });
        }
        self.say(bind).await;
    }
}

//! One connection of a client: the frames of the session protocol, in the order in which the protocol allows them.

use std::borrow::Cow;
use std::net::SocketAddr;

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
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::body::Body;
use crate::book::{Book, Name};
use crate::support::schema::{check_client, check_server};
use crate::support::{Client, soon};

/// The schema is held against one frame in so many: it would take most of the time else.
const FRAMES_PER_CHECK: usize = 64;

/// What came.
#[derive(Debug)]
pub(crate) enum Came {
    /// A push in its turn, by now in the book.
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

/// A frame that is the session's and not the connection's.
enum Told {
    Push { seq: u64, id: Name, body: Body },
    Gap { from: u64, to: u64 },
    Other(Came),
}

pub(crate) struct Link {
    socket: WebSocketStream<TcpStream>,
    /// The number that comes next.
    next: u64,
    /// Up to where nothing can be missing, since the gateway said so.
    recovered_to: u64,
    frames: usize,
    is_going_away: bool,
    is_over: bool,
}

impl Link {
    /// Connects. A client that takes little has a small buffer, and asks for small packets: without that, a socket on this
    /// machine takes some megabytes before it blocks.
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

    /// Says something. A connection that is over is noticed when it is read.
    pub(crate) async fn say(&mut self, frame: Value) {
        check_client(&frame);
        let _sent = soon(self.socket.send(Message::text(frame.to_string()))).await;
    }

    pub(crate) async fn ack(&mut self, book: &mut Book, seq: u64) {
        book.ack(seq);
        // Said by hand: there are millions.
        let _sent = soon(self.socket.send(Message::text(format!(r#"{{"type":"ack","seq":{seq}}}"#)))).await;
    }

    /// The answer to a bind, which nothing comes before but the welcome; `None` if the connection is over.
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

    /// From the claimed number up to this one nothing may be missing.
    pub(crate) fn is_recovered_to(&mut self, seq: u64) {
        self.recovered_to = seq;
    }

    /// The next thing that comes, entered in the book.
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

    /// Reads a connection that was given up to its end.
    pub(crate) async fn read_late(mut self, book: &mut Book) {
        loop {
            match self.told().await {
                Told::Push { seq, id, body } => book.late.push((seq, id, body)),
                Told::Other(Came::Ended(_)) => return,
                Told::Gap { .. } | Told::Other(_) => {}
            }
        }
    }

    /// The next frame, which must be the one whose turn it is.
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

    /// The next text, or the close code of a connection that is over.
    async fn next_text(&mut self) -> Result<Utf8Bytes, Option<u16>> {
        let mut code = None;
        loop {
            match soon(self.socket.next()).await {
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

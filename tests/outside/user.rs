//! The user that the examples push to, on a plain WebSocket.

use std::net::TcpStream;

use tokio_tungstenite::tungstenite::{self, Bytes, Message, WebSocket};

use crate::process::{GatewayProcess, PATIENCE};

/// A client that is bound.
pub(crate) struct User {
    socket: WebSocket<TcpStream>,
}

impl User {
    /// Binds the user `ann` to the event `mail`, with her name as the token.
    #[track_caller]
    pub(crate) fn ann(gateway: &GatewayProcess) -> Self {
        Self::with("ann", gateway)
    }

    /// Binds to the event `mail` with this token.
    #[track_caller]
    pub(crate) fn with(token: &str, gateway: &GatewayProcess) -> Self {
        let stream = TcpStream::connect(gateway.clients).expect("the gateway listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout that is not zero");
        let url = format!("ws://{}/ws", gateway.clients);
        let (mut socket, _) = tungstenite::client(url, stream).expect("a WebSocket");
        socket.send(Message::text(format!(r#"{{"token": "{token}", "event": "mail"}}"#))).expect("sent");
        // A gateway says nothing to a bind, but what comes behind it is not looked at before the bind is done.
        socket.send(Message::Ping(Bytes::from_static(b"bound?"))).expect("sent");
        let pong = socket.read().expect("the gateway answers");
        assert_eq!(pong, Message::Pong(Bytes::from_static(b"bound?")));
        Self { socket }
    }

    /// The next message.
    #[track_caller]
    pub(crate) fn next(&mut self) -> String {
        let message = self.socket.read().expect("a message in time");
        message.into_text().expect("a text message").to_string()
    }
}

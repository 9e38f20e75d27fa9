//! A minimal WebSocket client. The cost of a WebSocket library must not be part of a measurement of the gateway.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// Connects, upgrades with these additional header lines and sends one text message.
pub(crate) async fn connect(address: SocketAddr, headers: &str, text: &str) -> TcpStream {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    upgrade(stream, headers, text).await
}

/// The same over a stream that is connected.
pub(crate) async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, headers: &str, text: &str) -> S {
    let upgrade = format!(
        "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    );
    stream.write_all(upgrade.as_bytes()).await.unwrap();
    // TLS may hold back what was written.
    stream.flush().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    // A final text frame, masked with a zero key.
    let mut frame = vec![0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0];
    frame.extend(text.as_bytes());
    stream.write_all(&frame).await.unwrap();
    stream.flush().await.unwrap();
    stream
}

//! What carries a connection: a stream of bytes that can be given up.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// A stream that a connection can go over.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Has the stream reset when it is dropped, so that the kernel forgets at once what the peer has not read. Closed
    /// otherwise, it would keep it, and offer it to the peer for minutes.
    fn reset_when_dropped(&self) {}
}

impl Transport for TcpStream {
    fn reset_when_dropped(&self) {
        // A kernel that refuses closes as ever, and its own timeouts hold.
        let _closes_as_ever = self.set_zero_linger();
    }
}

/// What it holds goes with it.
impl Transport for UnixStream {}

#[cfg(test)]
impl Transport for tokio::io::DuplexStream {}

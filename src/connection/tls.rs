//! A TLS stream as what carries a connection. Only the connection's own task writes to it, since each record needs the
//! state of the session.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use super::transport::Transport;

/// The bytes that are encrypted before the kernel has them: one record, RFC 8446 section 5.1. They count as written, and
/// can no longer expire or be overtaken, so they are as few as can be without more records.
const ENCRYPTED_BYTES_MAX: usize = 16 * 1024;

/// A server's side of TLS.
#[derive(Debug)]
pub(crate) struct TlsTransport<S>(TlsStream<S>);

impl<S: Transport> TlsTransport<S> {
    /// Takes a stream whose handshake is done.
    pub(crate) fn new(mut stream: TlsStream<S>) -> Self {
        stream.get_mut().1.set_buffer_limit(Some(ENCRYPTED_BYTES_MAX));
        Self(stream)
    }

    /// Ready when the kernel has everything that is encrypted. The library would encrypt more before that.
    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.0.get_ref().1.wants_write() { Pin::new(&mut self.0).poll_flush(cx) } else { Poll::Ready(Ok(())) }
    }
}

impl<S: Transport> Transport for TlsTransport<S> {
    type Shared = Self;

    fn share(self) -> Self {
        self
    }

    fn is_for_http2(&self) -> bool {
        self.0.get_ref().1.alpn_protocol() == Some(b"h2")
    }

    fn reset_when_dropped(&self) {
        self.0.get_ref().0.reset_when_dropped();
    }
}

impl<S: Transport> AsyncRead for TlsTransport<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<S: Transport> AsyncWrite for TlsTransport<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_drained(cx))?;
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_drained(cx))?;
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

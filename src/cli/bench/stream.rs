//! A client's connection, plain or over TLS. Nothing here waits.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;

use mio::net::TcpStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, StreamOwned};

/// What a client needs to speak TLS.
#[derive(Clone)]
pub(super) struct Secured {
    pub(super) config: Arc<ClientConfig>,
    pub(super) name: ServerName<'static>,
}

pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    pub(super) fn new(stream: TcpStream, secured: Option<&Secured>) -> io::Result<Self> {
        let Some(Secured { config, name }) = secured else { return Ok(Self::Plain(stream)) };
        let connection = ClientConnection::new(config.clone(), name.clone()).map_err(io::Error::other)?;
        Ok(Self::Tls(Box::new(StreamOwned::new(connection, stream))))
    }

    pub(super) fn tcp(&mut self) -> &mut TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => &mut stream.sock,
        }
    }

    /// Writes a few bytes, for which the socket has room. What comes before the end of a handshake is written by the
    /// reads that follow.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let stream = match self {
            Self::Plain(stream) => return stream.write_all(bytes),
            Self::Tls(stream) => stream,
        };
        stream.conn.writer().write_all(bytes)?;
        while stream.conn.wants_write() {
            match stream.conn.write_tls(&mut stream.sock) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                written => written?,
            };
        }
        Ok(())
    }

    /// Whether a read of fewer bytes than asked for has emptied the socket. A TLS record ends a read, and another may
    /// follow.
    pub(super) fn is_emptied_by_a_short_read(&self) -> bool {
        matches!(self, Self::Plain(_))
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

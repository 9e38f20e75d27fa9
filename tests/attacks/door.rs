//! One address of the attacked gateway, which may speak TLS.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::tls::Speaks;
use crate::support::{Client, GrpcCaller, soon};

pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

pub(crate) type Stream = Box<dyn Io>;

#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    speaks: Option<Speaks>,
}

impl Door {
    pub(crate) fn new(address: SocketAddr, speaks: Option<Speaks>) -> Self {
        Self { address, speaks }
    }

    /// A TCP connection, without TLS in any case.
    pub(crate) async fn tcp(&self, source: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(source).unwrap();
        soon(socket.connect(self.address)).await.unwrap()
    }

    pub(crate) async fn open(&self, source: SocketAddr) -> Stream {
        let stream = self.tcp(source).await;
        match &self.speaks {
            Some(speaks) => Box::new(speaks.over(stream).await.unwrap()),
            None => Box::new(stream),
        }
    }

    /// A WebSocket that has not bound yet.
    pub(crate) async fn client(&self, source: SocketAddr) -> Client<Stream> {
        let stream = self.open(source).await;
        let (socket, _) = soon(tokio_tungstenite::client_async("ws://localhost/ws", stream)).await.unwrap();
        Client { socket }
    }

    pub(crate) async fn grpc(&self) -> GrpcCaller {
        match &self.speaks {
            Some(speaks) => GrpcCaller { client: speaks.grpc(self.address).await.unwrap() },
            None => GrpcCaller::connect(self.address).await,
        }
    }

    /// The answer to a raw request, `None` if there is none.
    pub(crate) async fn ask(&self, request: &str) -> Option<String> {
        let mut stream = self.open(([127, 0, 0, 1], 0).into()).await;
        stream.write_all(request.as_bytes()).await.ok()?;
        stream.flush().await.ok()?;
        let mut answer = Vec::new();
        // TLS may end without a farewell.
        let _ended = soon(stream.read_to_end(&mut answer)).await;
        String::from_utf8(answer).ok().filter(|answer| !answer.is_empty())
    }
}

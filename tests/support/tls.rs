//! Clients that reach a gateway over TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use pushgate::proto::push_service_client::PushServiceClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::certificates::{Authority, Files};
use super::{Answer, Client, read_answer, soon};

/// How a client speaks TLS.
#[derive(Clone)]
pub struct Speaks {
    ca_pem: String,
    versions: Vec<&'static SupportedProtocolVersion>,
    alpn: Vec<Vec<u8>>,
    own: Option<(String, String)>,
    pub host: String,
}

impl Speaks {
    /// Trusts this authority and asks for `localhost`.
    pub fn with(authority: &Authority) -> Self {
        Self {
            ca_pem: authority.ca_pem(),
            versions: vec![&TLS13, &TLS12],
            alpn: Vec::new(),
            own: None,
            host: "localhost".to_owned(),
        }
    }

    pub fn only_1_2(mut self) -> Self {
        self.versions = vec![&TLS12];
        self
    }

    pub fn alpn(mut self, protocol: &str) -> Self {
        self.alpn = vec![protocol.as_bytes().to_vec()];
        self
    }

    pub fn host(mut self, host: &str) -> Self {
        self.host = host.to_owned();
        self
    }

    /// Shows this certificate.
    pub fn shows(mut self, files: &Files) -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap();
        self.own = Some((read(&files.certificate), read(&files.key)));
        self
    }

    fn connector(&self) -> TlsConnector {
        let certificates = |pem: &str| CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect();
        let mut roots = RootCertStore::empty();
        let of_authority: Vec<CertificateDer<'static>> = certificates(&self.ca_pem);
        roots.add_parsable_certificates(of_authority);
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&self.versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match &self.own {
            Some((certificate, key)) => {
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(certificates(certificate), key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols.clone_from(&self.alpn);
        TlsConnector::from(Arc::new(config))
    }

    /// Makes two requests, each on its own connection, and returns how the handshake of the second went.
    pub async fn comes_back(&self, address: SocketAddr) -> HandshakeKind {
        let connector = self.connector();
        let mut kind = None;
        for _ in 0..2 {
            let mut stream = self.connect_with(&connector, address).await.unwrap();
            soon(stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await.unwrap();
            soon(stream.flush()).await.unwrap();
            read_answer(&mut stream).await;
            kind = stream.get_ref().1.handshake_kind();
        }
        kind.unwrap()
    }

    /// Connects and makes the handshake.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        self.connect_with(&self.connector(), address).await
    }

    /// Makes the handshake on a TCP connection.
    pub async fn over(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(self.host.clone()).unwrap();
        soon(self.connector().connect(name, stream)).await
    }

    async fn connect_with(&self, connector: &TlsConnector, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let stream = soon(TcpStream::connect(address)).await?;
        let name = ServerName::try_from(self.host.clone()).unwrap();
        soon(connector.connect(name, stream)).await
    }

    pub async fn get(&self, address: SocketAddr, path: &str) -> io::Result<Answer> {
        self.ask(address, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await
    }

    /// How a gateway refuses this client. With TLS 1.3, a client that has no good certificate learns of that when it first
    /// reads.
    pub async fn refusal(&self, address: SocketAddr) -> io::Error {
        match self.connect(address).await {
            Ok(mut stream) => soon(stream.read_u8()).await.unwrap_err(),
            Err(error) => error,
        }
    }

    /// Sends one raw request.
    pub async fn ask(&self, address: SocketAddr, request: &str) -> io::Result<Answer> {
        let mut stream = self.connect(address).await?;
        soon(stream.write_all(request.as_bytes())).await?;
        // What was written may be held back until then.
        soon(stream.flush()).await?;
        Ok(read_answer(&mut stream).await)
    }

    /// A WebSocket client that has not bound yet.
    pub async fn websocket(&self, address: SocketAddr) -> Client<TlsStream<TcpStream>> {
        let stream = self.connect(address).await.unwrap();
        let url = format!("wss://{address}/ws");
        let (socket, _) = soon(tokio_tungstenite::client_async(url, stream)).await.unwrap();
        Client { socket }
    }

    pub async fn grpc(&self, address: SocketAddr) -> Result<PushServiceClient<Channel>, tonic::transport::Error> {
        let mut tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.ca_pem)).domain_name(&self.host);
        if let Some((certificate, key)) = &self.own {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap();
        soon(endpoint.connect()).await.map(PushServiceClient::new)
    }
}

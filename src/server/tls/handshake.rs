//! TLS handshakes of one address: made, counted by how they ended, and told in the log.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{Error, InvalidMessage};
use tokio_rustls::server::TlsStream;
use tracing::{Level, debug, enabled};

use crate::metrics::{HandshakeLabels, HandshakeResult, InSnakeCase, Listener, Metrics};
use crate::seldom::Seldom;

use super::Tls;
use super::certificate::Facts;

/// The handshakes of one address.
pub(in crate::server) struct Handshakes {
    tls: Arc<Tls>,
    metrics: Arc<Metrics>,
    listener: Listener,
    /// Anybody can make handshakes fail.
    failed: Seldom,
}

impl Handshakes {
    pub(in crate::server) fn new(tls: Arc<Tls>, metrics: Arc<Metrics>) -> Self {
        Self { listener: tls.listener, tls, metrics, failed: Seldom::default() }
    }

    pub(in crate::server) fn tls(&self) -> &Arc<Tls> {
        &self.tls
    }

    /// Makes a handshake. Returns `None` if it fails, or if `given_up` is ready first, which says why.
    pub(in crate::server) async fn shake<S>(
        &self,
        stream: S,
        peer: SocketAddr,
        given_up: impl Future<Output = HandshakeResult>,
    ) -> Option<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let shaken = tokio::select! {
            shaken = TlsAcceptor::from(self.tls.current()).accept(stream) => shaken,
            result = given_up => {
                self.failed(peer, result, &"the gateway gave it up");
                return None;
            }
        };
        match shaken {
            Ok(stream) => {
                self.count(HandshakeResult::Done);
                Some(stream)
            }
            Err(error) => {
                self.failed(peer, result(&error), &error);
                None
            }
        }
    }

    fn count(&self, result: HandshakeResult) {
        self.metrics.tls_handshakes.of(&HandshakeLabels { listener: self.listener, result }).inc();
    }

    fn failed(&self, peer: SocketAddr, result: HandshakeResult, error: &dyn Display) {
        self.count(result);
        if !enabled!(Level::DEBUG) {
            return;
        }
        let Some(left_out) = self.failed.due(Instant::now()) else { return };
        let what = match result {
            HandshakeResult::NotTls => "a peer did not speak TLS, as this address does",
            _ => "a TLS handshake failed",
        };
        let (listener, result) = (InSnakeCase(self.listener), InSnakeCase(result));
        debug!(%peer, %listener, %result, %error, left_out, "{what}");
    }
}

/// The names that the peer's certificate is made out to, URIs and DNS names. Empty if none was asked for.
pub(in crate::server) fn names<S>(stream: &TlsStream<S>) -> Arc<[String]> {
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let facts = certificate.and_then(|certificate| Facts::of(certificate).ok());
    facts.map(|facts| facts.uris.into_iter().chain(facts.dns_names).collect()).unwrap_or_default()
}

/// How a handshake ended that failed with this error.
fn result(error: &io::Error) -> HandshakeResult {
    let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<Error>()) else {
        return HandshakeResult::PeerLeft;
    };
    match error {
        Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
            HandshakeResult::NotTls
        }
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => HandshakeResult::NothingInCommon,
        Error::NoCertificatesPresented => HandshakeResult::NoCertificate,
        Error::InvalidCertificate(_) => HandshakeResult::BadCertificate,
        Error::AlertReceived(_) => HandshakeResult::RefusedByPeer,
        _ => HandshakeResult::Malformed,
    }
}

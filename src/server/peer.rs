//! Who is at the other end of an HTTP connection.

use std::net::SocketAddr;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// The names of the certificate that the peer has presented. Empty if it was asked for none.
    pub(super) certificate_names: Arc<[String]>,
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        Self { address, certificate_names: Arc::default() }
    }
}

//! The target of a run: the server's address, the users, and who receives each push.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tonic::transport::ClientTlsConfig;

use super::stream::Secured;
use super::{Door, Order, Shape};

/// TLS for the callers.
pub(super) struct PushTls {
    /// With the name in it that the certificate must have.
    pub(super) grpc_url: String,
    pub(super) for_grpc: ClientTlsConfig,
    pub(super) for_json: Secured,
}

pub(super) struct Target {
    pub(super) push_address: SocketAddr,
    /// With a push URL of `https`, what its callers need for TLS.
    pub(super) push_tls: Option<PushTls>,
    pub(super) push_path: String,
    /// An API key, if the server requires one.
    pub(super) key: Option<String>,
    pub(super) door: Door,
    pub(super) shape: Shape,
    pub(super) order: Order,
    pub(super) user: String,
    pub(super) event: String,
    pub(super) connections: usize,
    /// The percentage of clients that do not read.
    pub(super) stalled: u32,
    pub(super) turn: AtomicU64,
}

impl Target {
    /// The user of a client, which is also its token.
    pub(super) fn user_of(&self, client: usize) -> String {
        match self.shape {
            Shape::Many => format!("{}-{client}", self.user),
            Shape::One | Shape::Broadcast => self.user.clone(),
        }
    }

    /// Chooses the client whose user gets the next push.
    pub(super) fn next(&self) -> usize {
        let turn = self.turn.fetch_add(1, Relaxed);
        let number = match self.order {
            Order::Turn => turn,
            Order::Random => scatter(turn),
        };
        usize::try_from(number % self.connections.max(1) as u64).unwrap_or_default()
    }

    /// The number of clients that should receive a push to this client's user.
    pub(super) fn receivers(&self, client: usize) -> u64 {
        match self.shape {
            Shape::Many => u64::from(!is_stalled(client, self.stalled)),
            Shape::One | Shape::Broadcast => self.reading() as u64,
        }
    }

    pub(super) fn reading(&self) -> usize {
        let stalled = self.connections * self.stalled as usize / 100;
        self.connections - stalled
    }
}

/// Whether a client is among the `percent` percent that do not read. They are spread evenly over all clients.
pub(super) fn is_stalled(client: usize, percent: u32) -> bool {
    let percent = percent as usize;
    client * percent / 100 != (client + 1) * percent / 100
}

/// splitmix64: gives the same numbers in every run, in no visible order.
fn scatter(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

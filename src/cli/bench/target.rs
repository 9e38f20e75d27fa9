//! What a run pushes to: where the server is, which users there are, and who is to get what.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Door, Order, Shape};

pub(super) struct Target {
    pub(super) push_address: SocketAddr,
    pub(super) push_path: String,
    /// An API key, where the server asks for one.
    pub(super) key: Option<String>,
    pub(super) door: Door,
    pub(super) shape: Shape,
    pub(super) order: Order,
    pub(super) user: String,
    pub(super) event: String,
    pub(super) connections: usize,
    /// How many of a hundred clients do not read.
    pub(super) stalled: u32,
    pub(super) turn: AtomicU64,
}

impl Target {
    /// The user of a client, who is also its token.
    pub(super) fn user_of(&self, client: usize) -> String {
        match self.shape {
            Shape::Many => format!("{}-{client}", self.user),
            Shape::One | Shape::Broadcast => self.user.clone(),
        }
    }

    /// The client whose user gets the next push.
    pub(super) fn next(&self) -> usize {
        let turn = self.turn.fetch_add(1, Relaxed);
        let number = match self.order {
            Order::Turn => turn,
            Order::Random => scatter(turn),
        };
        usize::try_from(number % self.connections.max(1) as u64).unwrap_or_default()
    }

    /// How many clients have to receive a push to that client's user.
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

/// Whether a client is one of so many of a hundred that do not read, which are spread evenly.
pub(super) fn is_stalled(client: usize, percent: u32) -> bool {
    let percent = percent as usize;
    client * percent / 100 != (client + 1) * percent / 100
}

/// splitmix64: the same numbers in every run, and no order in them.
fn scatter(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

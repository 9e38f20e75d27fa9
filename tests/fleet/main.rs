//! Thousands of session clients, and gateways that are restarted, killed, or left alone for a long time: the real program,
//! and HAProxy. Ignored by default, because each test takes a minute; the README has the commands for the full size.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/process.rs"]
mod process;
#[path = "../outside/readme.rs"]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod readme;
#[path = "../support/mod.rs"]
mod support;
#[path = "../outside/tools.rs"]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod tools;

mod crowd;
mod killed;
mod pushing;
mod rolling;
mod soak;

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};

/// One at a time, or they would be measured together.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().await
}

/// The event that all clients are bound to.
const EVENT: &str = "fleet";

/// The user and token of a client.
fn user(number: usize) -> String {
    format!("user-{number}")
}

/// A number from the environment, which makes a test longer or larger.
fn size(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// An address for a gateway that is started again. Of a loopback address of its own, so that no outgoing connection of
/// this machine takes the port meanwhile.
fn address(host: u8) -> SocketAddr {
    let any_port = SocketAddr::from(([127, 0, 3, host], 0));
    TcpListener::bind(any_port).and_then(|listener| listener.local_addr()).expect("a free port")
}

/// Waits, without a limit that a slow machine could reach before it fails for another reason.
async fn until(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(patience, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "not in {patience:?}: {what}");
}

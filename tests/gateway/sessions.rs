//! The session protocol: a session has numbers, acknowledgements and gaps, and outlives its connections.

mod ends;
mod fair;
mod held;
mod numbers;
mod resume;
mod tokens;

use std::time::Duration;

use pushgate::Config;
use pushgate::proto::{Level, PushRequest, PushResponse};
use serde_json::json;
use tokio::net::TcpSocket;

use crate::support::session::{Place, SessionClient};
use crate::support::{GrpcCaller, PATIENCE, TestGateway};

async fn client(gateway: &TestGateway) -> SessionClient {
    SessionClient::connect(gateway.clients).await
}

/// A client whose kernel takes little.
async fn slow_client(gateway: &TestGateway) -> SessionClient {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    SessionClient::over(socket, gateway.clients).await
}

/// A client with a session of ann's mail, and where it stands.
async fn bound(gateway: &TestGateway) -> (SessionClient, Place) {
    let mut client = client(gateway).await;
    let bound = client.bind("ann", "mail").await;
    assert_eq!((&bound["type"], &bound["event"], &bound["seq"]), (&json!("bound"), &json!("mail"), &json!(0)));
    (client, Place::of(&bound))
}

fn acked(push: PushRequest) -> PushRequest {
    PushRequest { wait_for: Level::Acked.into(), per_connection: true, ..push }
}

fn lasting(push: PushRequest) -> PushRequest {
    PushRequest { ttl: Some(prost_types::Duration { seconds: 3600, nanos: 0 }), ..push }
}

fn counts(response: &PushResponse) -> (u64, u64, u64) {
    assert_eq!(response.matched, response.accepted + response.dropped);
    (response.matched, response.accepted, response.held)
}

/// Leaves the session by a reset, and waits until the gateway has noticed.
async fn leave(gateway: &TestGateway, client: SessionClient) {
    let before = gateway.metric("pushgate_sessions_away").await;
    client.reset();
    gateway.until("pushgate_sessions_away", |away| away > before).await;
}

async fn push(grpc: &mut GrpcCaller, message: &str) -> (u64, u64, u64) {
    counts(&grpc.push("ann", "mail", message).await)
}

/// What the gateway took and what it says became of it.
async fn books(gateway: &TestGateway) -> (u64, u64) {
    let (mut taken, mut told) = (0, 0);
    for name in ["push_accepted", "messages_held"] {
        taken += gateway.metric(&format!("pushgate_{name}_total")).await;
    }
    for name in ["written", "expired", "displaced", "forgotten"] {
        told += gateway.metric(&format!("pushgate_messages_{name}_total")).await;
    }
    for reason in ["client_closed", "queue_full", "reset"] {
        told += gateway.metric(&format!("pushgate_messages_undelivered_total{{reason=\"{reason}\"}}")).await;
    }
    (taken, told)
}

/// Messages that no socket takes whole.
fn large(config: &mut Config) {
    config.message_bytes_max = 1 << 22;
    config.request_bytes_max = 1 << 23;
    config.outbox_bytes_max = 1 << 30;
    config.journal_bytes_max = 1 << 30;
    config.journal_total_bytes_max = 1 << 30;
    config.write_timeout = PATIENCE;
    config.close_timeout = Duration::from_millis(100);
}

//! A journal of an embedding program's own, which outlives the gateway.

use std::error::Error;
use std::sync::{Arc, Mutex};

use pushgate::proto::{Priority, PushRequest};
use pushgate::{Journal, Record, Recovered, UserId};
use serde_json::json;

use crate::support::session::{Place, SessionClient};
use crate::support::{TestGateway, push_request};

/// What would be a file: every record, in order.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<Vec<(UserId, Record)>>>);

#[async_trait::async_trait]
impl Journal for Disk {
    fn record(&self, user_id: &UserId, record: Record) {
        self.0.lock().unwrap().push((user_id.clone(), record));
    }

    async fn load(&self) -> Result<Recovered, Box<dyn Error + Send + Sync>> {
        Ok(self.recovered())
    }
}

impl Disk {
    fn recovered(&self) -> Recovered {
        let mut recovered = Recovered::default();
        for (user_id, record) in &*self.0.lock().unwrap() {
            recovered.apply(user_id, record.clone());
        }
        recovered
    }

    /// What would be on the disk if the power had gone now.
    fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(self.0.lock().unwrap().clone())))
    }

    async fn start(&self) -> TestGateway {
        let disk = self.clone();
        TestGateway::built(|_| (), |builder| builder.journal(disk)).await
    }
}

fn lasting(message: &str) -> PushRequest {
    let ttl = Some(prost_types::Duration { seconds: 3600, nanos: 0 });
    PushRequest { ttl, ..push_request("ann", "mail", message) }
}

#[tokio::test]
async fn what_is_held_for_a_user_survives_the_gateway() {
    let disk = Disk::default();
    let gateway = disk.start().await;
    let mut grpc = gateway.grpc().await;
    let mut ids = Vec::new();
    for (message, key, priority) in [
        ("replaced", "weather", Priority::Normal),
        ("bulk", "", Priority::Bulk),
        ("newer", "weather", Priority::Normal),
    ] {
        let push = PushRequest { collapse_key: key.to_owned(), priority: priority.into(), ..lasting(message) };
        let response = grpc.try_push(push).await.unwrap();
        assert_eq!(response.held, 1);
        ids.push(response.message_id);
    }
    drop(grpc);
    gateway.stop().await;
    let gateway = disk.start().await;
    assert_eq!(gateway.metric("pushgate_journal_messages").await, 3);
    let mut phone = SessionClient::connect(gateway.clients).await;
    phone.bind("ann", "mail").await;
    // Priority, collapse key and name are what they were.
    assert_eq!(phone.next().await, json!({ "type": "gap", "from": 1, "to": 1 }), "replaced");
    assert_eq!(phone.expect_push(2, "newer").await["id"], ids[2]);
    phone.expect_push(3, "bulk").await;
    assert!(disk.recovered().held.is_empty());
}

#[tokio::test]
async fn a_session_goes_on_after_a_restart_with_what_its_client_did_not_get_or_acknowledge() {
    let disk = Disk::default();
    let gateway = disk.start().await;
    let mut phone = SessionClient::connect(gateway.clients).await;
    let place = Place::of(&phone.bind("ann", "mail").await);
    phone.bind("ann", "chat").await;
    let mut grpc = gateway.grpc().await;
    for (seq, message) in [(1, "one"), (2, "two"), (3, "three")] {
        grpc.push("ann", "mail", message).await;
        phone.expect_push(seq, message).await;
    }
    phone.ack(1).await;
    gateway.until("pushgate_messages_acked_total", |acked| acked == 1).await;
    phone.reset();
    gateway.until("pushgate_sessions_away", |away| away == 1).await;
    assert_eq!(grpc.push("ann", "chat", "four").await.held, 1);
    // The power goes, and with it everything that only the process knew.
    let gateway = disk.copy().start().await;
    assert_eq!(gateway.metric("pushgate_sessions_away").await, 1);
    let mut grpc = gateway.grpc().await;
    assert_eq!(grpc.push("ann", "chat", "five").await.held, 1, "the new process holds for it too");
    let mut phone = SessionClient::connect(gateway.clients).await;
    let back = phone.resume("ann", "mail", &place.at(2)).await;
    assert_eq!((&back["recovered"], &back["epoch"]), (&json!(true), &json!(place.epoch)));
    for (seq, message) in [(3, "three"), (4, "four"), (5, "five")] {
        phone.expect_push(seq, message).await;
    }
    assert_eq!(grpc.push("ann", "chat", "six").await.accepted, 1);
    phone.expect_push(6, "six").await;
}

#[tokio::test]
async fn a_session_is_told_of_what_was_dropped_before_the_power_went() {
    let disk = Disk::default();
    let gateway = disk.start().await;
    let mut phone = SessionClient::connect(gateway.clients).await;
    let place = Place::of(&phone.bind("ann", "mail").await);
    phone.reset();
    gateway.until("pushgate_sessions_away", |away| away == 1).await;
    let mut grpc = gateway.grpc().await;
    let now = PushRequest { ttl: Some(prost_types::Duration::default()), ..push_request("ann", "mail", "for now") };
    assert_eq!(grpc.try_push(now).await.unwrap().dropped, 1);
    let gateway = disk.copy().start().await;
    let mut phone = SessionClient::connect(gateway.clients).await;
    assert_eq!(phone.resume("ann", "mail", &place).await["recovered"], false);
    assert_eq!(phone.next().await, json!({ "type": "gap", "from": 1, "to": 1 }));
}

#[tokio::test]
async fn a_restart_in_order_is_no_end_of_a_session_that_outlives_the_process() {
    let disk = Disk::default();
    let gateway = disk.start().await;
    let mut phone = SessionClient::connect(gateway.clients).await;
    let place = Place::of(&phone.bind("ann", "mail").await);
    let stopped = tokio::spawn(gateway.stop());
    assert_eq!(phone.next().await["type"], "goaway");
    assert_eq!(phone.closed().await.0, 1012);
    stopped.await.unwrap();
    let gateway = disk.start().await;
    let mut phone = SessionClient::connect(gateway.clients).await;
    assert_eq!(phone.resume("ann", "mail", &place).await["recovered"], true);
    assert_eq!(gateway.gateway.drop_user(&UserId::new("ann").unwrap(), None).await, 1);
    assert_eq!(phone.closed().await.0, 4409);
    gateway.until("pushgate_connections", |open| open == 0).await;
    assert_eq!(disk.recovered(), Recovered::default(), "one that was dropped is over");
}

/// A disk that cannot be read.
#[derive(Debug)]
struct Unreadable;

#[async_trait::async_trait]
impl Journal for Unreadable {
    fn record(&self, _user_id: &UserId, _record: Record) {}

    async fn load(&self) -> Result<Recovered, Box<dyn Error + Send + Sync>> {
        Err("the disk is gone".into())
    }
}

#[tokio::test]
async fn a_journal_that_cannot_be_read_is_no_reason_to_begin_with_nothing() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let builder = pushgate::Server::builder(pushgate::Config::default()).listener(listener).journal(Unreadable);
    let error = builder.bind().await.unwrap_err();
    assert_eq!(error.to_string(), "cannot load the journal");
    assert_eq!(error.source().unwrap().to_string(), "the disk is gone");
}

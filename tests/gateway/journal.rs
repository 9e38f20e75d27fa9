//! A journal of an embedding program's own, which outlives the gateway.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pushgate::proto::{Priority, PushRequest};
use pushgate::{
    Appended, Event, Journal, JournalBounds, Kept, MemoryJournal, MessageId, SessionKey, Stored, Usage, UserId,
};
use serde_json::json;

use crate::support::session::SessionClient;
use crate::support::{TestGateway, push_request};

const BOUNDS: JournalBounds = JournalBounds {
    messages_per_user_max: 10,
    bytes_per_user_max: 1 << 20,
    bytes_max: 1 << 20,
    age: Duration::from_secs(3600),
};

/// What would be a disk: messages that are held for users, by their names.
type Disk = Arc<Mutex<BTreeMap<String, (UserId, Stored)>>>;

/// The journal in memory, with what is held for users on the disk too.
#[derive(Debug)]
struct Durable {
    memory: MemoryJournal,
    disk: Disk,
}

impl Durable {
    fn open(disk: &Disk) -> Self {
        let memory = MemoryJournal::new(BOUNDS);
        for (user_id, stored) in disk.lock().unwrap().values() {
            memory.hold(user_id, Kept::restored(stored.clone()).unwrap()).unwrap();
        }
        Self { memory, disk: disk.clone() }
    }

    fn forget(&self, message_id: MessageId) {
        self.disk.lock().unwrap().remove(&message_id.to_string());
    }
}

#[async_trait::async_trait]
impl Journal for Durable {
    fn append(&self, session: &SessionKey, messages: &mut dyn Iterator<Item = Kept>) -> Appended {
        self.memory.append(session, messages)
    }

    fn acknowledge(&self, session: &SessionKey, seq: u64) -> Vec<Kept> {
        self.memory.acknowledge(session, seq)
    }

    async fn take(&self, session: &SessionKey) -> Vec<Kept> {
        self.memory.take(session).await
    }

    fn hold(&self, user_id: &UserId, message: Kept) -> Result<(), Kept> {
        let stored = message.stored();
        self.memory.hold(user_id, message)?;
        self.disk.lock().unwrap().insert(stored.message_id.to_string(), (user_id.clone(), stored));
        Ok(())
    }

    fn withdraw(&self, user_id: &UserId, message_id: MessageId) -> Option<Kept> {
        self.forget(message_id);
        self.memory.withdraw(user_id, message_id)
    }

    fn holds(&self, user_id: &UserId) -> bool {
        self.memory.holds(user_id)
    }

    async fn release(&self, user_id: &UserId, event: &Event) -> Vec<Kept> {
        let released = self.memory.release(user_id, event).await;
        released.iter().for_each(|message| self.forget(message.message_id()));
        released
    }

    fn sweep(&self, now: Instant) -> usize {
        self.memory.sweep(now)
    }

    fn usage(&self) -> Usage {
        self.memory.usage()
    }
}

#[tokio::test]
async fn what_a_durable_journal_holds_for_a_user_survives_the_gateway() {
    let disk = Disk::default();
    let start = || TestGateway::built(|_| (), |builder| builder.journal(Durable::open(&disk)));
    let gateway = start().await;
    let mut grpc = gateway.grpc().await;
    let mut ids = Vec::new();
    for (message, key, priority) in [
        ("replaced", "weather", Priority::Normal),
        ("bulk", "", Priority::Bulk),
        ("newer", "weather", Priority::Normal),
    ] {
        let push = PushRequest {
            ttl: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
            collapse_key: key.to_owned(),
            priority: priority.into(),
            ..push_request("ann", "mail", message)
        };
        let response = grpc.try_push(push).await.unwrap();
        assert_eq!(response.held, 1);
        ids.push(response.message_id);
    }
    drop(grpc);
    gateway.stop().await;
    let gateway = start().await;
    assert_eq!(gateway.metric("pushgate_journal_messages").await, 3);
    let mut phone = SessionClient::connect(gateway.clients).await;
    phone.bind("ann", "mail").await;
    // Priority, collapse key and name are what they were.
    assert_eq!(phone.next().await, json!({ "type": "gap", "from": 1, "to": 1 }), "replaced");
    assert_eq!(phone.expect_push(2, "newer").await["id"], ids[2]);
    phone.expect_push(3, "bulk").await;
    assert!(disk.lock().unwrap().is_empty());
}

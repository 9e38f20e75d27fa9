//! A journal of an embedding program's own, which outlives the gateway.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pushgate::proto::{Priority, PushRequest};
use pushgate::{
    Appended, Config, Event, Journal, JournalBounds, Kept, MemoryJournal, MessageId, SessionKey, Stored, Usage, UserId,
};
use serde_json::json;
use tokio::sync::Semaphore;

use crate::support::session::{Place, SessionClient};
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
    /// What a release takes one of before it looks, and one of before it answers.
    gate: Arc<Semaphore>,
}

impl Durable {
    fn open(disk: &Disk) -> Self {
        let memory = MemoryJournal::new(BOUNDS);
        for (user_id, stored) in disk.lock().unwrap().values() {
            memory.hold(user_id, Kept::restored(stored.clone()).unwrap()).unwrap();
        }
        Self { memory, disk: disk.clone(), gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)) }
    }

    fn slow(gate: &Arc<Semaphore>) -> Self {
        Self { gate: gate.clone(), ..Self::open(&Disk::default()) }
    }

    async fn pass_gate(&self) {
        self.gate.acquire().await.unwrap().forget();
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
        self.pass_gate().await;
        let released = self.memory.release(user_id, event).await;
        self.pass_gate().await;
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

fn lasting(message: &str) -> PushRequest {
    let ttl = Some(prost_types::Duration { seconds: 3600, nanos: 0 });
    PushRequest { ttl, ..push_request("ann", "mail", message) }
}

/// A gateway whose journal is slow, with a message that is held for ann, and another since her client asked for the bind.
async fn slow_gateway(gate: &Arc<Semaphore>, change: impl FnOnce(&mut Config)) -> TestGateway {
    let gateway = TestGateway::built(change, |builder| builder.journal(Durable::slow(gate))).await;
    assert_eq!(gateway.grpc().await.try_push(lasting("first")).await.unwrap().held, 1);
    gateway
}

/// Lets the journal look, waits until it has, and has one more message held.
async fn held_meanwhile(gateway: &TestGateway, gate: &Semaphore) {
    gate.add_permits(1);
    gateway.until("pushgate_journal_messages", |kept| kept == 0).await;
    assert_eq!(gateway.grpc().await.try_push(lasting("second")).await.unwrap().held, 1);
    // The first look is answered, and the second begins.
    gate.add_permits(1);
    gateway.until("pushgate_binds_total", |binds| binds > 0).await;
}

#[tokio::test]
async fn what_was_held_comes_before_newer_messages_however_slow_the_journal_is() {
    for is_session in [false, true] {
        let gate = Arc::new(Semaphore::new(0));
        let gateway = slow_gateway(&gate, |_| ()).await;
        let (mut legacy, mut session) = (gateway.connect().await, SessionClient::connect(gateway.clients).await);
        if is_session {
            session.say(json!({ "type": "bind", "token": "ann", "event": "mail" })).await;
        } else {
            legacy.send_bind("ann", "mail").await;
        }
        held_meanwhile(&gateway, &gate).await;
        let mut grpc = gateway.grpc().await;
        assert_eq!(grpc.push("ann", "mail", "third").await.accepted, 1);
        let high = PushRequest { priority: Priority::High.into(), ..push_request("ann", "mail", "urgent") };
        assert_eq!(grpc.try_push(high).await.unwrap().accepted, 1);
        gate.add_permits(2);
        let expected = ["urgent", "first", "second", "third"];
        if is_session {
            assert_eq!(session.next().await["type"], "bound");
            for (seq, message) in (1..).zip(expected) {
                session.expect_push(seq, message).await;
            }
        } else {
            for message in expected {
                assert_eq!(legacy.next_text().await, message);
            }
        }
    }
}

#[tokio::test]
async fn what_a_session_left_in_the_journal_comes_with_its_return_whichever_event_that_names() {
    let gate = Arc::new(Semaphore::new(0));
    let gateway = slow_gateway(&gate, |_| ()).await;
    let mut phone = SessionClient::connect(gateway.clients).await;
    phone.say(json!({ "type": "bind", "token": "ann", "event": "mail" })).await;
    held_meanwhile(&gateway, &gate).await;
    let place = Place::of(&phone.next().await);
    phone.reset();
    gateway.until("pushgate_sessions_away", |away| away == 1).await;
    gate.add_permits(100);
    let mut phone = SessionClient::connect(gateway.clients).await;
    assert_eq!(phone.resume("ann", "chat", &place).await["recovered"], true);
    phone.expect_push(1, "first").await;
    phone.expect_push(2, "second").await;
}

#[tokio::test]
async fn a_journal_that_does_not_answer_in_time_keeps_what_it_holds_and_the_bind_is_over() {
    let gate = Arc::new(Semaphore::new(0));
    let gateway = slow_gateway(&gate, |config| config.bind_timeout = Duration::from_secs(2)).await;
    let mut phone = gateway.connect().await;
    phone.send_bind("ann", "mail").await;
    held_meanwhile(&gateway, &gate).await;
    assert_eq!(phone.closed().await.0, 4408);
    gate.add_permits(100);
    let mut phone = gateway.bind("ann", "mail").await;
    assert_eq!((phone.next_text().await, phone.next_text().await), ("first".to_owned(), "second".to_owned()));
}

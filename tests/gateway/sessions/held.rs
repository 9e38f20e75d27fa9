//! Messages that wait for a user, or pass from a session that is over to whoever of the user's comes.

use std::time::{Duration, Instant};

use pushgate::proto::{DropReason, PushRequest};
use serde_json::json;

use super::{acked, bound, client, counts, lasting, leave, push};
use crate::support::{TestGateway, push_request};

#[tokio::test]
async fn a_message_with_a_time_to_live_waits_for_a_user_without_a_connection() {
    let gateway = TestGateway::start().await;
    let mut grpc = gateway.grpc().await;
    let soon_over = Duration::from_millis(500);
    assert_eq!(push(&mut grpc, "not worth keeping").await, (0, 0, 0));
    for message in ["first", "second"] {
        let response = grpc.try_push(lasting(push_request("ann", "mail", message))).await.unwrap();
        assert_eq!(counts(&response), (0, 0, 1));
    }
    let over = PushRequest { ttl: soon_over.try_into().ok(), ..push_request("ann", "mail", "over") };
    assert_eq!(grpc.try_push(over).await.unwrap().held, 1);
    let held_by = Instant::now();
    grpc.try_push(lasting(push_request("ann", "chat", "another event"))).await.unwrap();
    gateway.until("pushgate_journal_messages", |kept| kept == 4 && held_by.elapsed() > soon_over).await;
    let mut phone = client(&gateway).await;
    assert_eq!(phone.bind("ann", "mail").await["type"], "bound");
    phone.expect_push(1, "first").await;
    phone.expect_push(2, "second").await;
    assert_eq!(phone.next().await, json!({ "type": "gap", "from": 3, "to": 3 }), "its time was over");
    let mut legacy = gateway.bind("ann", "chat").await;
    assert_eq!(legacy.next_text().await, "another event", "a legacy client gets what waited too");
    assert_eq!(gateway.metric("pushgate_journal_messages").await, 2, "those not acknowledged");
}

#[tokio::test]
async fn a_message_that_only_a_session_had_is_passed_on_when_the_session_is_over() {
    let gateway = TestGateway::with(|config| config.journal_age = Duration::from_secs(1)).await;
    let (phone, _) = bound(&gateway).await;
    let (other, _) = bound(&gateway).await;
    let mut grpc = gateway.grpc().await;
    leave(&gateway, phone).await;
    leave(&gateway, other).await;
    let key = "once".to_owned();
    let once = PushRequest { idempotency_key: key, ..acked(lasting(push_request("ann", "mail", "lasting"))) };
    assert_eq!(grpc.try_push(once.clone()).await.unwrap().held, 2);
    assert_eq!(push(&mut grpc, "not lasting").await, (0, 0, 2));
    // The program was started anew and knows nothing of its session.
    let (mut phone, _) = bound(&gateway).await;
    phone.expect_push(1, "lasting").await;
    phone.ack(1).await;
    gateway.until("pushgate_messages_acked_total", |acked| acked == 1).await;
    let told = grpc.try_push(once).await.unwrap();
    assert_eq!((told.held, told.acked), (1, 0), "those it was for never had it: {told:?}");
    gateway.until("pushgate_messages_forgotten_total", |forgotten| forgotten == 3).await;
    assert_eq!(push(&mut grpc, "last").await, (1, 1, 0));
    phone.expect_push(2, "last").await;
}

#[tokio::test]
async fn a_message_for_one_session_or_not_for_a_connection_is_not_passed_on_to_it() {
    let gateway = TestGateway::with(|config| config.journal_age = Duration::from_secs(1)).await;
    let (phone, place) = bound(&gateway).await;
    let (mut other, place_of_other) = bound(&gateway).await;
    let mut grpc = gateway.grpc().await;
    leave(&gateway, phone).await;
    let for_one = PushRequest { connection_id: place.epoch, ..lasting(push_request("ann", "mail", "for one")) };
    let not_for_other = PushRequest {
        exclude_connection_ids: vec![place_of_other.epoch],
        ..lasting(push_request("ann", "mail", "not for the other"))
    };
    for push in [for_one, not_for_other] {
        assert_eq!(counts(&grpc.try_push(push).await.unwrap()), (0, 0, 1));
    }
    gateway.until("pushgate_messages_forgotten_total", |forgotten| forgotten == 2).await;
    assert_eq!(push(&mut grpc, "last").await, (1, 1, 0));
    other.expect_push(1, "last").await;
}

#[tokio::test]
async fn nothing_is_kept_of_a_message_that_is_for_now() {
    let gateway = TestGateway::start().await;
    let mut grpc = gateway.grpc().await;
    let now = |text: &str| PushRequest {
        ttl: Some(prost_types::Duration::default()),
        ..acked(push_request("ann", "mail", text))
    };
    assert_eq!(counts(&grpc.try_push(now("nobody is bound")).await.unwrap()), (0, 0, 0));
    let (phone, place) = bound(&gateway).await;
    leave(&gateway, phone).await;
    let response = grpc.try_push(now("the session is away")).await.unwrap();
    assert_eq!((counts(&response), response.drops[0].reason()), ((1, 0, 0), DropReason::Expired));
    assert_eq!(gateway.metric("pushgate_journal_messages").await, 0);
    let mut phone = client(&gateway).await;
    let bound = phone.resume("ann", "mail", &place).await;
    assert_eq!(bound["recovered"], false);
    assert_eq!(phone.next().await, json!({ "type": "gap", "from": 1, "to": 1 }));
    // Written and not acknowledged, it is not sent again.
    let mut waiting = grpc.clone();
    let waits = tokio::spawn(async move { waiting.try_push(now("not again")).await.unwrap() });
    phone.expect_push(2, "not again").await;
    leave(&gateway, phone).await;
    let mut phone = client(&gateway).await;
    phone.resume("ann", "mail", &place.at(1)).await;
    assert_eq!(phone.next().await, json!({ "type": "gap", "from": 2, "to": 2 }));
    let response = waits.await.unwrap();
    assert_eq!((response.written, response.acked), (1, 0));
}

#[tokio::test]
async fn more_messages_may_wait_for_a_user_than_an_outbox_holds() {
    let gateway = TestGateway::with(|config| config.outbox_messages_max = 2).await;
    let mut grpc = gateway.grpc().await;
    for event in ["mail", "chat"] {
        for message in ["one", "two", "three"] {
            let response = grpc.try_push(lasting(push_request("ann", event, message))).await.unwrap();
            assert_eq!(counts(&response), (0, 0, 1));
        }
    }
    let mut legacy = gateway.bind("ann", "mail").await;
    let mut phone = client(&gateway).await;
    phone.bind("ann", "chat").await;
    for (seq, message) in [(1, "one"), (2, "two"), (3, "three")] {
        assert_eq!(legacy.next_text().await, message);
        phone.expect_push(seq, message).await;
    }
}

#[tokio::test]
async fn what_waits_for_a_user_survives_a_bind_that_is_refused() {
    let gateway = TestGateway::with(|config| config.connections_per_user_max = 1).await;
    let mut other = client(&gateway).await;
    other.bind("ann", "chat").await;
    let mut grpc = gateway.grpc().await;
    grpc.try_push(lasting(push_request("ann", "mail", "waits"))).await.unwrap();
    let mut refused = client(&gateway).await;
    assert_eq!(refused.bind("ann", "mail").await["code"], "too_many_connections");
    assert_eq!(refused.closed().await.0, 4429);
    other.bind("ann", "mail").await;
    other.expect_push(1, "waits").await;
}

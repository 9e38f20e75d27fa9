//! What a session is told, and what it may ask: numbers, gaps, acknowledgements, errors.

use std::time::Duration;

use pushgate::proto::{Level, PushRequest, SlowReaderPolicy, push_request::Payload};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::{acked, bound, client, push, slow_client};
use crate::support::{PATIENCE, TestGateway, push_request, soon};

#[tokio::test]
async fn every_message_has_a_number_an_id_and_its_event() {
    let gateway = TestGateway::start().await;
    let (mut client, place) = bound(&gateway).await;
    let also = client.bind("ann", "chat").await;
    assert_eq!((&also["event"], &also["epoch"], &also["seq"]), (&json!("chat"), &json!(place.epoch), &json!(0)));
    let mut grpc = gateway.grpc().await;
    let sent = grpc.push("ann", "mail", "line\nquote\" \u{1f600}").await;
    let frame = client.expect_push(1, "line\nquote\" \u{1f600}").await;
    assert_eq!(frame["id"], sent.message_id);
    assert_eq!(frame["event"], "mail");
    let binary = Payload::Binary(vec![0, 255, 7].into());
    grpc.try_push(PushRequest { payload: Some(binary), ..push_request("ann", "chat", "") }).await.unwrap();
    let frame = client.next().await;
    assert_eq!((&frame["seq"], &frame["binary"], &frame["event"]), (&json!(2), &json!("AP8H"), &json!("chat")));
    assert_eq!(gateway.json().push("ann", "mail", "by the other door").await, 1);
    client.expect_push(3, "by the other door").await;
    let long = "x".repeat(70_000);
    grpc.push("ann", "mail", &long).await;
    client.expect_push(4, &long).await;
}

#[tokio::test]
async fn an_acknowledged_push_says_so_and_a_legacy_client_is_marked() {
    let gateway = TestGateway::start().await;
    let (mut phone, _) = bound(&gateway).await;
    let mut legacy = gateway.bind("ann", "mail").await;
    let mut grpc = gateway.grpc().await;
    let mut waiting = grpc.clone();
    let wait = tokio::spawn(async move { waiting.try_push(acked(push_request("ann", "mail", "first"))).await });
    phone.expect_push(1, "first").await;
    assert_eq!(legacy.next_text().await, "first");
    push(&mut grpc, "second").await;
    phone.expect_push(2, "second").await;
    assert!(!wait.is_finished(), "nobody has acknowledged");
    phone.ack(2).await;
    let response = soon(wait).await.unwrap().unwrap();
    assert_eq!((response.level(), response.written, response.acked, response.cannot_ack), (Level::Acked, 2, 1, 1));
    for connection in &response.connections {
        assert_eq!(connection.acked_after.is_some(), connection.level() == Level::Acked);
        assert_eq!(connection.cannot_ack, connection.level() == Level::Written);
        assert!(connection.written_after.is_some());
    }
    gateway.until("pushgate_messages_acked_total", |messages| messages == 2).await;
    assert_eq!(gateway.metric("pushgate_journal_messages").await, 0, "what is acknowledged is not kept");
}

#[tokio::test]
async fn a_wait_for_an_acknowledgement_ends_with_the_deadline_and_says_what_is_known() {
    let gateway = TestGateway::start().await;
    let (mut phone, _) = bound(&gateway).await;
    let mut request = tonic::Request::new(acked(push_request("ann", "mail", "m")));
    request.set_timeout(Duration::from_millis(300));
    let response = soon(gateway.grpc().await.client.push(request)).await.unwrap().into_inner();
    assert_eq!((response.level(), response.written, response.acked, response.cannot_ack), (Level::Acked, 1, 0, 0));
    phone.expect_push(1, "m").await;
}

#[tokio::test]
async fn a_wait_ends_when_the_session_is_over_without_an_acknowledgement() {
    let gateway = TestGateway::start().await;
    let (mut phone, _) = bound(&gateway).await;
    let mut grpc = gateway.grpc().await;
    let wait = tokio::spawn(async move { grpc.try_push(acked(push_request("ann", "mail", "m"))).await });
    phone.expect_push(1, "m").await;
    phone.send(Message::Close(Some(CloseFrame { code: 1000.into(), reason: "".into() }))).await;
    let response = soon(wait).await.unwrap().unwrap();
    assert_eq!((response.written, response.acked), (1, 0));
    gateway.until_empty().await;
    assert_eq!(gateway.metric("pushgate_sessions_away").await, 0, "a client that says goodbye does not come back");
    assert_eq!(gateway.metric("pushgate_journal_messages").await, 0);
}

#[tokio::test]
async fn a_dropped_message_is_told_as_a_gap() {
    let gateway = TestGateway::with(|config| {
        config.outbox_messages_max = 4;
        config.outbox_bytes_max = 1 << 30;
        config.message_bytes_max = 1 << 22;
        config.request_bytes_max = 1 << 23;
        config.write_timeout = PATIENCE;
    })
    .await;
    let mut slow = slow_client(&gateway).await;
    slow.bind("ann", "mail").await;
    let mut grpc = gateway.grpc().await;
    let policy = SlowReaderPolicy::DropNewest.into();
    let (mut sent, mut dropped) = (0, 0);
    while dropped < 3 {
        let fill = push_request("ann", "mail", &"m".repeat(1 << 22));
        let response = grpc.try_push(PushRequest { slow_reader_policy: policy, ..fill }).await.unwrap();
        (sent, dropped) = (sent + response.accepted, dropped + response.dropped);
    }
    let (mut received, mut lost, mut last) = (0, 0, 0);
    while received < sent || lost < dropped {
        let frame = slow.next().await;
        if frame["type"] == "gap" {
            assert_eq!(frame["from"], last + 1);
            last = frame["to"].as_u64().unwrap();
            lost += last + 1 - frame["from"].as_u64().unwrap();
        } else {
            assert_eq!(frame["seq"], last + 1);
            (received, last) = (received + 1, last + 1);
        }
    }
    assert_eq!((received, lost), (sent, dropped));
}

#[tokio::test]
async fn requests_that_are_not_granted_are_answered_with_a_code() {
    let gateway = TestGateway::with(|config| config.events_per_connection_max = 2).await;
    let (mut phone, place) = bound(&gateway).await;
    let code = |frame: Value| {
        assert_eq!(frame["type"], "error");
        assert!(!frame["message"].as_str().unwrap().is_empty());
        frame["code"].as_str().unwrap().to_owned()
    };
    for (asked, expected) in [
        ("[]", "not_understood"),
        ("{", "not_understood"),
        (r#"{"type":7}"#, "not_understood"),
        (r#"{"type":"ack","seq":"1"}"#, "not_understood"),
        (r#"{"type":"dance"}"#, "unknown_type"),
        (r#"{"type":"bind","event":"mail"}"#, "incomplete"),
        (r#"{"type":"bind","token":"ann","event":""}"#, "incomplete"),
        (r#"{"type":"bind","token":"ann","event":"mail","resume":{"token":"t"}}"#, "incomplete"),
        (r#"{"type":"bind","token":"ann","event":"mail","resume":{"seq":0}}"#, "incomplete"),
        (r#"{"type":"bind","token":"ann","event":"mail","resume":{"token":"t","seq":"0"}}"#, "not_understood"),
        (r#"{"type":"bind","token":"bob","event":"chat"}"#, "other_user"),
        (r#"{"type":"refresh","token":"bob"}"#, "other_user"),
        (r#"{"type":"ack","seq":1}"#, "bad_ack"),
        (r#"{"type":"unbind","event":"mail"}"#, "last_event"),
    ] {
        phone.send(Message::text(asked)).await;
        assert_eq!(code(phone.next().await), expected, "{asked}");
    }
    let refused = phone.resume("ann", "mail", &place).await;
    assert_eq!((code(refused.clone()), &refused["event"]), ("already_bound".to_owned(), &json!("mail")));
    assert_eq!(phone.bind("ann", "chat").await["type"], "bound");
    let refused = phone.bind("ann", "news").await;
    assert_eq!((code(refused.clone()), &refused["event"]), ("too_many_events".to_owned(), &json!("news")));
    phone.say(json!({ "type": "unbind", "event": "mail" })).await;
    assert_eq!(phone.next().await, json!({ "type": "unbound", "event": "mail" }));
    phone.say(json!({ "type": "unbind", "event": "never bound" })).await;
    assert_eq!(phone.next().await["type"], "unbound");
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 0);
    phone.say(json!({ "type": "ping" })).await;
    assert_eq!(phone.next().await, json!({ "type": "pong" }));
    assert_eq!(gateway.json().push("ann", "chat", "m").await, 1, "none of this ended the connection");
    phone.expect_push(1, "m").await;
}

#[tokio::test]
async fn before_the_bind_little_is_granted_and_a_refused_bind_ends_the_connection() {
    let gateway = TestGateway::start().await;
    let mut phone = client(&gateway).await;
    for asked in [json!({ "type": "ack", "seq": 0 }), json!({ "type": "unbind", "event": "e" })] {
        phone.say(asked.clone()).await;
        let refused = phone.next().await;
        assert_eq!((&refused["code"], &refused["event"]), (&json!("not_bound"), &asked["event"]));
    }
    phone.say(json!({ "type": "ping" })).await;
    assert_eq!(phone.next().await["type"], "pong");
    phone.send(Message::text("{}")).await;
    assert_eq!(phone.next().await["code"], "not_understood");
    assert_eq!(phone.closed().await.0, 4400);
}

#[tokio::test]
async fn a_client_that_asks_and_does_not_read_is_held_back() {
    let gateway = TestGateway::with(|config| config.write_timeout = Duration::from_millis(500)).await;
    let mut deaf = slow_client(&gateway).await;
    deaf.bind("ann", "mail").await;
    let asking = async {
        // The answer is as long as the question.
        let unbind = json!({ "type": "unbind", "event": "e".repeat(1024) }).to_string();
        while deaf.try_send(Message::text(unbind.clone())).await.is_ok() {}
    };
    // Its requests are not read any more once its answers pile up, and then it is closed for taking no byte.
    soon(asking).await;
    gateway.until_closed("write_timeout").await;
}

//! How sessions end: dropped, closed for good, or with the gateway.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::{acked, books, bound, client, large, leave, push, slow_client};
use crate::support::{PATIENCE, TestGateway, push_request, soon};

#[tokio::test]
async fn what_a_session_is_not_replayed_before_it_is_over_is_counted() {
    let gateway = TestGateway::with(|config| {
        config.journal_bytes_max = 1 << 30;
        config.write_timeout = Duration::from_secs(2);
    })
    .await;
    let (phone, place) = bound(&gateway).await;
    leave(&gateway, phone).await;
    let mut grpc = gateway.grpc().await;
    // More than one batch, so that some are in hand and some are not.
    for _ in 0..200 {
        assert_eq!(push(&mut grpc, &"m".repeat(1 << 16)).await, (0, 0, 1));
    }
    let mut deaf = slow_client(&gateway).await;
    assert_eq!(deaf.resume("ann", "mail", &place).await["recovered"], true);
    assert_eq!(grpc.drop_user("ann", "").await, 1);
    gateway.until_closed("dropped").await;
    let written = gateway.metric("pushgate_messages_written_total").await;
    let undelivered = gateway.metric("pushgate_messages_undelivered_total{reason=\"dropped\"}").await;
    assert_eq!(written + undelivered, 200, "{written} were written");
}

#[tokio::test]
async fn a_drop_ends_sessions_that_are_away_too() {
    let gateway = TestGateway::start().await;
    let (phone, place) = bound(&gateway).await;
    let (mut here, _) = bound(&gateway).await;
    let mut grpc = gateway.grpc().await;
    leave(&gateway, phone).await;
    assert_eq!(push(&mut grpc, "kept").await, (1, 1, 1));
    here.expect_push(1, "kept").await;
    assert_eq!(grpc.drop_user("ann", "").await, 1, "one connection was closed");
    assert_eq!(here.closed().await.0, 4409);
    assert_eq!(push(&mut grpc, "m").await, (0, 0, 0));
    assert_eq!(gateway.metric("pushgate_sessions_away").await, 0, "it takes no room from those that may come back");
    here.reset();
    gateway.until("pushgate_journal_messages", |kept| kept == 0).await;
    let mut phone = client(&gateway).await;
    assert_eq!(phone.resume("ann", "mail", &place).await["recovered"], false);
}

#[tokio::test]
async fn a_client_that_is_dropped_may_acknowledge_what_it_gets_last_until_it_has_closed() {
    for acknowledges in [true, false] {
        let gateway = TestGateway::with(|config| {
            config.outbox_bytes_max = 1 << 30;
            config.message_bytes_max = 1 << 20;
            config.journal_bytes_max = 1 << 30;
            config.write_timeout = PATIENCE;
            config.request_timeout = PATIENCE;
            config.close_timeout = PATIENCE;
        })
        .await;
        let mut slow = slow_client(&gateway).await;
        slow.bind("ann", "mail").await;
        let mut grpc = gateway.grpc().await;
        let mut accepted = 0;
        while gateway.metric("pushgate_outbox_messages").await < 4 {
            assert_eq!(push(&mut grpc, &"m".repeat(1 << 20)).await, (1, 1, 0));
            accepted += 1;
        }
        let mut waiting = grpc.clone();
        let wait = tokio::spawn(async move { waiting.try_push(acked(push_request("ann", "mail", "last"))).await });
        gateway.until("pushgate_push_accepted_total", |pushes| pushes == accepted + 1).await;
        assert_eq!(grpc.drop_user("ann", "").await, 1);
        assert_eq!(push(&mut grpc, "nobody").await, (0, 0, 0), "the drop unbinds at once");
        let code = loop {
            match slow.next_message().await {
                Some(Message::Text(text)) if acknowledges => {
                    let frame: Value = serde_json::from_str(&text).unwrap();
                    slow.ack(frame["seq"].as_u64().unwrap()).await;
                }
                Some(Message::Text(_)) => {}
                Some(Message::Close(frame)) => break u16::from(frame.unwrap().code),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(code, 4409);
        assert!(slow.next_message().await.is_none());
        let response = soon(wait).await.unwrap().unwrap();
        assert_eq!((response.written, response.acked), (1, u64::from(acknowledges)));
        gateway.until_empty().await;
        assert_eq!(gateway.metric("pushgate_journal_messages").await, 0, "what was not is kept for nobody");
    }
}

#[tokio::test]
async fn a_client_that_closes_while_it_is_dropped_is_written_nothing_behind_the_answer() {
    const MESSAGES: u64 = 300;
    let gateway = TestGateway::with(|config| {
        config.outbox_bytes_max = 1 << 30;
        config.write_timeout = PATIENCE;
        config.close_timeout = PATIENCE;
    })
    .await;
    let mut slow = slow_client(&gateway).await;
    slow.bind("ann", "mail").await;
    let mut grpc = gateway.grpc().await;
    for _ in 0..MESSAGES {
        assert_eq!(push(&mut grpc, &"m".repeat(1 << 16)).await, (1, 1, 0));
    }
    assert_eq!(grpc.drop_user("ann", "").await, 1);
    slow.send(Message::Close(None)).await;
    let mut received = 0;
    while let Some(Message::Text(_)) = slow.next_message().await {
        received += 1;
    }
    drop(slow);
    gateway.until_closed("dropped").await;
    assert_eq!(gateway.metric("pushgate_messages_written_total").await, received);
    let undelivered = gateway.metric("pushgate_messages_undelivered_total{reason=\"dropped\"}").await;
    assert_eq!(received + undelivered, MESSAGES);
    assert!(undelivered > 0);
}

#[tokio::test]
async fn what_was_held_and_not_yet_sent_when_the_client_says_goodbye_is_counted_as_undelivered() {
    let gateway = TestGateway::with(large).await;
    let (phone, place) = bound(&gateway).await;
    let mut grpc = gateway.grpc().await;
    leave(&gateway, phone).await;
    for _ in 0..8 {
        assert_eq!(push(&mut grpc, &"m".repeat(1 << 22)).await, (0, 0, 1));
    }
    let mut slow = slow_client(&gateway).await;
    slow.resume("ann", "mail", &place).await;
    slow.send(Message::Close(Some(CloseFrame { code: 1000.into(), reason: "".into() }))).await;
    gateway.until_empty().await;
    assert_eq!(gateway.metric("pushgate_journal_messages").await, 0);
    let undelivered = gateway.metric("pushgate_messages_undelivered_total{reason=\"client_closed\"}").await;
    assert!(undelivered > 0);
    assert_eq!(books(&gateway).await, (8, 8));
}

#[tokio::test]
async fn a_shutdown_writes_what_is_queued_and_says_when_to_come_back() {
    let mut gateway = TestGateway::with(|config| config.reconnect_spread = Duration::from_secs(3)).await;
    let (mut phone, _) = bound(&gateway).await;
    let mut legacy = gateway.bind("ann", "mail").await;
    gateway.json().push("ann", "mail", "last").await;
    gateway.begin_stop();
    let mut frames = Vec::new();
    let closed = loop {
        match phone.next_message().await {
            Some(Message::Text(text)) => frames.push(serde_json::from_str::<Value>(&text).unwrap()),
            Some(Message::Close(frame)) => break frame.unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(u16::from(closed.code), 1012);
    let kinds: Vec<_> = frames.iter().map(|frame| frame["type"].as_str().unwrap()).collect();
    assert!(kinds == ["push", "goaway"] || kinds == ["goaway", "push"], "{kinds:?}");
    let goaway = frames.iter().find(|frame| frame["type"] == "goaway").unwrap();
    assert!(goaway["retry_after_ms"].as_u64().unwrap() <= 3000);
    assert_eq!(legacy.next_text().await, "last");
    assert_eq!(legacy.closed().await.0, 1001);
    drop((phone, legacy));
    gateway.stop().await;
}

#[tokio::test]
async fn a_session_whose_connection_is_old_enough_goes_on_over_another_without_a_gap() {
    let gateway = TestGateway::with(|config| config.connection_age_max = Duration::from_secs(2)).await;
    let (mut phone, place) = bound(&gateway).await;
    let mut grpc = gateway.grpc().await;
    let mut last = 0;
    loop {
        push(&mut grpc, "m").await;
        let frame = phone.next().await;
        if frame["type"] == "goaway" {
            break;
        }
        last += 1;
        assert_eq!(frame["seq"], last, "{frame}");
        phone.ack(last).await;
    }
    assert_eq!(phone.closed().await.0, 1012);
    drop(phone);
    let mut phone = client(&gateway).await;
    assert_eq!(phone.resume("ann", "mail", &place.at(last)).await["recovered"], true);
    phone.expect_push(last + 1, "m").await;
    gateway.until_closed("aged").await;
}

#[tokio::test]
async fn what_is_acknowledged_behind_goaway_counts() {
    let mut gateway = TestGateway::start().await;
    let (mut phone, _) = bound(&gateway).await;
    let handle = gateway.gateway.clone();
    let wait = tokio::spawn(async move {
        let push = pushgate::Push::new("ann", "mail", "last").unwrap();
        handle.push_and_wait(&push, pushgate::Level::Acked, Instant::now() + PATIENCE).await
    });
    phone.expect_push(1, "last").await;
    gateway.begin_stop();
    assert_eq!(phone.next().await["type"], "goaway");
    phone.ack(1).await;
    assert_eq!(phone.closed().await.0, 1012);
    let outcome = soon(wait).await.unwrap().unwrap();
    assert_eq!((outcome.written, outcome.acked), (1, 1));
    drop(phone);
    gateway.stop().await;
}

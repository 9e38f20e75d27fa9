//! Sessions that lose their connection: what they get when they come back, and what they are told is missing.

use std::time::Duration;

use pushgate::proto::{DropReason, PushRequest};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::{acked, books, bound, client, counts, large, leave, push, slow_client};
use crate::support::session::Place;
use crate::support::{PATIENCE, TestGateway, push_request, soon};

#[tokio::test]
async fn what_a_session_missed_is_replayed_in_order_and_told_as_recovered() {
    let gateway = TestGateway::start().await;
    let (mut phone, place) = bound(&gateway).await;
    phone.bind("ann", "chat").await;
    let mut grpc = gateway.grpc().await;
    for (seq, message) in [(1, "one"), (2, "two"), (3, "three")] {
        push(&mut grpc, message).await;
        phone.expect_push(seq, message).await;
    }
    leave(&gateway, phone).await;
    assert_eq!(push(&mut grpc, "four").await, (0, 0, 1), "held for the session");
    assert_eq!(counts(&grpc.push("ann", "chat", "five").await), (0, 0, 1));
    let told = grpc.try_push(PushRequest { per_connection: true, ..push_request("ann", "mail", "six") }).await.unwrap();
    assert!(told.connections[0].held);
    // The client has seen two of three when its connection broke.
    let mut phone = client(&gateway).await;
    let back = phone.resume("ann", "mail", &place.at(2)).await;
    assert_eq!((&back["recovered"], &back["epoch"], &back["seq"]), (&json!(true), &json!(place.epoch), &json!(2)));
    for (seq, message) in [(3, "three"), (4, "four"), (5, "five"), (6, "six")] {
        phone.expect_push(seq, message).await;
    }
    assert_eq!(push(&mut grpc, "seven").await, (1, 1, 0));
    phone.expect_push(7, "seven").await;
    assert_eq!(counts(&grpc.push("ann", "chat", "eight").await), (1, 1, 0), "its other event is bound again too");
    phone.expect_push(8, "eight").await;
    assert_eq!(gateway.metric("pushgate_resumes_total{result=\"recovered\"}").await, 1);
    assert_eq!(gateway.metric("pushgate_messages_held_total").await, 3);
}

#[tokio::test]
async fn a_push_that_waits_is_told_of_what_a_resumed_session_did_with_it() {
    let gateway = TestGateway::with(|config| config.request_timeout = PATIENCE).await;
    let (mut phone, place) = bound(&gateway).await;
    let mut grpc = gateway.grpc().await;
    let wait = tokio::spawn(async move { grpc.try_push(acked(push_request("ann", "mail", "m"))).await });
    phone.expect_push(1, "m").await;
    leave(&gateway, phone).await;
    assert!(!wait.is_finished());
    let mut phone = client(&gateway).await;
    // That it has seen number 1 is as good as an acknowledgement.
    phone.resume("ann", "mail", &place.at(1)).await;
    assert_eq!(soon(wait).await.unwrap().unwrap().acked, 1);
}

#[tokio::test]
async fn what_came_on_an_earlier_connection_may_be_acknowledged_and_what_never_came_may_not() {
    let gateway = TestGateway::with(large).await;
    let (mut phone, place) = bound(&gateway).await;
    let mut grpc = gateway.grpc().await;
    let large = "m".repeat(1 << 22);
    push(&mut grpc, &large).await;
    phone.expect_push(1, &large).await;
    leave(&gateway, phone).await;
    push(&mut grpc, &large).await;
    // A client that reads little, so that nothing is written whole on this connection.
    let mut phone = slow_client(&gateway).await;
    phone.resume("ann", "mail", &place).await;
    phone.ack(2).await;
    phone.ack(1).await;
    phone.expect_push(1, &large).await;
    // Said before what waits behind the message that is being written.
    assert_eq!(phone.next().await["code"], "bad_ack", "of number 2, and of that alone");
    phone.expect_push(2, &large).await;
    phone.ack(2).await;
    phone.say(json!({ "type": "ping" })).await;
    assert_eq!(phone.next().await["type"], "pong");
}

#[tokio::test]
async fn what_did_not_fit_in_the_journal_is_told_as_a_gap_of_the_same_session() {
    let gateway = TestGateway::with(|config| config.journal_messages_max = 2).await;
    let (phone, place) = bound(&gateway).await;
    let mut grpc = gateway.grpc().await;
    leave(&gateway, phone).await;
    for message in ["one", "two", "three", "four"] {
        assert_eq!(push(&mut grpc, message).await, (0, 0, 1));
    }
    assert_eq!(gateway.metric("pushgate_messages_forgotten_total").await, 2);
    let mut phone = client(&gateway).await;
    let back = phone.resume("ann", "mail", &place).await;
    assert_eq!((&back["recovered"], &back["epoch"]), (&json!(false), &json!(place.epoch)));
    assert_eq!(phone.next().await, json!({ "type": "gap", "from": 1, "to": 2 }));
    phone.expect_push(3, "three").await;
    phone.expect_push(4, "four").await;
    assert_eq!(gateway.metric("pushgate_resumes_total{result=\"gap\"}").await, 1);
}

#[tokio::test]
async fn a_message_too_large_for_the_journal_is_dropped_and_told_to_both_sides() {
    let gateway = TestGateway::with(|config| config.journal_bytes_max = 500).await;
    let (phone, place) = bound(&gateway).await;
    let mut grpc = gateway.grpc().await;
    leave(&gateway, phone).await;
    assert_eq!(push(&mut grpc, "small").await, (0, 0, 1));
    let dropped = grpc.push("ann", "mail", &"x".repeat(500)).await;
    assert_eq!((counts(&dropped), dropped.drops[0].reason()), ((1, 0, 0), DropReason::QueueFull));
    let mut phone = client(&gateway).await;
    assert_eq!(phone.resume("ann", "mail", &place).await["recovered"], false);
    phone.expect_push(1, "small").await;
    assert_eq!(phone.next().await, json!({ "type": "gap", "from": 2, "to": 2 }));
}

#[tokio::test]
async fn a_session_that_is_not_known_begins_anew_and_says_so() {
    let gateway = TestGateway::start().await;
    let (phone, place) = bound(&gateway).await;
    leave(&gateway, phone).await;
    let stranger = Place { resume: "0".repeat(32), ..place.clone() };
    let nonsense = Place { resume: "nonsense".to_owned(), ..place.clone() };
    let ahead = place.at(1);
    for place in [stranger, nonsense, ahead] {
        let mut phone = client(&gateway).await;
        let begun = phone.resume("ann", "mail", &place).await;
        assert_eq!((&begun["type"], &begun["recovered"], &begun["seq"]), (&json!("bound"), &json!(false), &json!(0)));
        assert_ne!(begun["epoch"], place.epoch);
    }
    let (phone, place) = bound(&gateway).await;
    leave(&gateway, phone).await;
    let mut bob = client(&gateway).await;
    let begun = bob.resume("bob", "mail", &place).await;
    assert_eq!(begun["recovered"], false, "another user's session is as good as none");
    let mut ann = client(&gateway).await;
    assert_eq!(ann.resume("ann", "mail", &place).await["recovered"], true, "and is still there for its own user");
}

#[tokio::test]
async fn a_session_is_taken_over_from_a_connection_that_is_still_open() {
    let gateway = TestGateway::start().await;
    let (mut old, place) = bound(&gateway).await;
    let mut grpc = gateway.grpc().await;
    push(&mut grpc, "one").await;
    old.expect_push(1, "one").await;
    let mut new = client(&gateway).await;
    let back = new.resume("ann", "mail", &place).await;
    assert_eq!((&back["recovered"], &back["epoch"]), (&json!(true), &json!(place.epoch)));
    new.expect_push(1, "one").await;
    assert_eq!(old.closed().await.0, 4409);
    assert_eq!(push(&mut grpc, "two").await, (1, 1, 0));
    new.expect_push(2, "two").await;
}

#[tokio::test]
async fn a_session_away_for_too_long_is_over() {
    let gateway = TestGateway::with(|config| config.journal_age = Duration::from_millis(200)).await;
    let (phone, place) = bound(&gateway).await;
    let mut grpc = gateway.grpc().await;
    phone.reset();
    gateway.until("pushgate_connections", |n| n == 0).await;
    push(&mut grpc, "m").await;
    gateway.until("pushgate_sessions_away", |away| away == 0).await;
    gateway.until_empty().await;
    assert_eq!(push(&mut grpc, "nobody").await, (0, 0, 0));
    let mut phone = client(&gateway).await;
    assert_eq!(phone.resume("ann", "mail", &place).await["recovered"], false);
}

#[tokio::test]
async fn sessions_that_are_away_are_bounded_by_user_and_in_all() {
    let gateway = TestGateway::with(|config| {
        config.sessions_away_per_user_max = 1;
        config.sessions_away_max = 2;
    })
    .await;
    let mut places = Vec::new();
    for user in ["ann", "ann", "bob", "eve"] {
        let mut phone = client(&gateway).await;
        places.push((user, Place::of(&phone.bind(user, "mail").await)));
        let closed = gateway.metric("pushgate_connections").await;
        phone.reset();
        gateway.until("pushgate_connections", |open| open < closed).await;
    }
    gateway.until("pushgate_sessions_away", |away| away == 2).await;
    let (mut recovered, mut phones) = (Vec::new(), Vec::new());
    for (user, place) in &places {
        let mut phone = client(&gateway).await;
        recovered.push(phone.resume(user, "mail", place).await["recovered"] == true);
        phones.push(phone);
    }
    assert_eq!(recovered, [false, false, true, true]);
}

#[tokio::test]
async fn a_slow_session_is_closed_and_gets_what_it_missed_when_it_comes_back() {
    let gateway = TestGateway::with(|config| {
        config.outbox_messages_max = 3;
        config.outbox_bytes_max = 1 << 30;
        config.message_bytes_max = 1 << 20;
        config.journal_bytes_max = 1 << 30;
        config.write_timeout = PATIENCE;
        config.close_timeout = PATIENCE;
    })
    .await;
    let mut slow = slow_client(&gateway).await;
    let place = Place::of(&slow.bind("ann", "mail").await);
    let mut grpc = gateway.grpc().await;
    let mut sent = 0;
    loop {
        let response = grpc.push("ann", "mail", &format!("{sent:04}{}", "m".repeat(1 << 19))).await;
        if response.accepted == 0 {
            break;
        }
        sent += 1;
    }
    // Not to wait for until the gateway has given up the old connection, in which a message is stuck.
    let mut phone = client(&gateway).await;
    let back = phone.resume("ann", "mail", &place).await;
    assert_eq!(back["recovered"], false, "the one that was dropped is missing");
    let (mut received, mut lost) = (0, 0);
    for seq in 1..=sent + 1 {
        let frame = phone.next().await;
        if frame["type"] == "gap" {
            assert_eq!(frame, json!({ "type": "gap", "from": seq, "to": seq }));
            lost += 1;
        } else {
            assert_eq!(
                (&frame["seq"], &frame["message"].as_str().unwrap()[..4]),
                (&json!(seq), &*format!("{received:04}"))
            );
            phone.ack(seq).await;
            received += 1;
        }
    }
    assert_eq!((received, lost), (sent, 1));
}

#[tokio::test]
async fn a_session_leaves_between_two_messages_and_a_message_that_is_stuck_is_never_received_from_there() {
    for reads_in_time in [true, false] {
        let gateway = TestGateway::with(|config| {
            large(config);
            config.outbox_messages_max = 3;
            config.close_timeout = if reads_in_time { PATIENCE } else { Duration::from_millis(100) };
        })
        .await;
        let mut slow = slow_client(&gateway).await;
        let place = Place::of(&slow.bind("ann", "mail").await);
        let mut grpc = gateway.grpc().await;
        let mut accepted = 0;
        while push(&mut grpc, &"m".repeat(1 << 22)).await.1 == 1 {
            accepted += 1;
        }
        if !reads_in_time {
            gateway.until("pushgate_sessions_away", |away| away == 1).await;
        }
        let mut last = 0;
        let end = loop {
            match slow.next_message().await {
                Some(Message::Text(text)) => {
                    last = serde_json::from_str::<Value>(&text).unwrap()["seq"].as_u64().unwrap();
                }
                end => break end,
            }
        };
        if reads_in_time {
            assert!(matches!(end, Some(Message::Close(Some(frame))) if u16::from(frame.code) == 4429));
        } else {
            assert!(end.is_none(), "no close frame fits into the middle of a message");
        }
        let written = gateway.metric("pushgate_messages_written_total").await;
        assert_eq!(last, written, "the client has what the gateway says it has");
        let mut phone = client(&gateway).await;
        phone.resume("ann", "mail", &place.at(last)).await;
        let mut acked = last;
        while acked < accepted + 1 {
            let frame = phone.next().await;
            acked = frame["seq"].as_u64().or(frame["to"].as_u64()).unwrap();
        }
        phone.ack(acked).await;
        gateway.until("pushgate_messages_acked_total", |messages| messages == accepted).await;
        assert_eq!(books(&gateway).await, (accepted, accepted));
    }
}

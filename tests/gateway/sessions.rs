//! The session protocol: numbers, acknowledgements, gaps, and sessions that outlive their connections.

use std::time::{Duration, Instant, SystemTime};

use pushgate::proto::{DropReason, Level, PushRequest, PushResponse, SlowReaderPolicy, push_request::Payload};
use pushgate::{BindAttempt, Config, Identity, TokenAuthenticator, TokenError, UserId};
use serde_json::{Value, json};
use tokio::net::TcpSocket;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::support::session::{Place, SessionClient};
use crate::support::{GrpcCaller, PATIENCE, TestGateway, push_request, soon};

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
    phone.expect_push(2, &large).await;
    assert_eq!(phone.next().await["code"], "bad_ack", "of number 2, and of that alone");
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
        while gateway.metric("pushgate_outbox_messages").await < 4 {
            assert_eq!(push(&mut grpc, &"m".repeat(1 << 20)).await, (1, 1, 0));
        }
        let mut waiting = grpc.clone();
        let wait = tokio::spawn(async move { waiting.try_push(acked(push_request("ann", "mail", "last"))).await });
        gateway.until("pushgate_outbox_messages", |queued| queued >= 5).await;
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
async fn a_message_with_a_time_to_live_waits_for_a_user_without_a_connection() {
    let gateway = TestGateway::start().await;
    let mut grpc = gateway.grpc().await;
    let soon_over = Some(prost_types::Duration { seconds: 0, nanos: 1_000_000 });
    assert_eq!(push(&mut grpc, "not worth keeping").await, (0, 0, 0));
    for message in ["first", "second"] {
        let response = grpc.try_push(lasting(push_request("ann", "mail", message))).await.unwrap();
        assert_eq!(counts(&response), (0, 0, 1));
    }
    let over = PushRequest { ttl: soon_over, ..push_request("ann", "mail", "over") };
    assert_eq!(grpc.try_push(over).await.unwrap().held, 1);
    grpc.try_push(lasting(push_request("ann", "chat", "another event"))).await.unwrap();
    gateway.until("pushgate_journal_messages", |kept| kept == 4).await;
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
        // A number that was not written cannot be claimed.
        let mut liar = client(&gateway).await;
        liar.bind("ann", "other").await;
        liar.ack(1).await;
        assert_eq!(liar.next().await["code"], "bad_ack");
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

/// Tokens are `user:milliseconds that are left`, or `user:refused`.
struct Expiring;

#[async_trait::async_trait]
impl TokenAuthenticator for Expiring {
    async fn authenticate(&self, attempt: &BindAttempt<'_>) -> Result<Identity, TokenError> {
        let (user, left) = attempt.token.expose().split_once(':').ok_or(TokenError::Refused)?;
        let left = left.parse().map_err(|_| TokenError::Refused)?;
        if attempt.event.as_str() == "secret" && left == 60_001 {
            return Err(TokenError::NotAllowed);
        }
        let identity = Identity::new(UserId::new(user).unwrap());
        Ok(identity.expiring_at(SystemTime::now() + Duration::from_millis(left)))
    }
}

async fn expiring(change: impl FnOnce(&mut Config)) -> TestGateway {
    TestGateway::built(change, |builder| builder.token_authenticator(Expiring)).await
}

#[tokio::test]
async fn a_token_that_is_over_closes_and_one_that_is_refreshed_does_not() {
    let gateway = expiring(|config| config.bind_timeout = Duration::from_secs(1)).await;
    let mut phone = client(&gateway).await;
    let bound = phone.bind("ann:500", "mail").await;
    assert!((1..=500).contains(&bound["expires_in_ms"].as_u64().unwrap()), "{bound}");
    phone.say(json!({ "type": "refresh", "token": "ann:refused" })).await;
    assert_eq!(phone.next().await["code"], "token_refused");
    phone.say(json!({ "type": "refresh", "token": "bob:60000" })).await;
    assert_eq!(phone.next().await["code"], "other_user");
    phone.say(json!({ "type": "refresh", "token": "ann:60000" })).await;
    let refreshed = phone.next().await;
    assert!((50_000..=60_000).contains(&refreshed["expires_in_ms"].as_u64().unwrap()), "{refreshed}");
    let mut late = client(&gateway).await;
    let place = Place::of(&late.bind("ann:300", "mail").await);
    let mut legacy = gateway.bind("ann:300", "mail").await;
    assert_eq!(late.closed().await, (4410, "token expired".to_owned()));
    assert_eq!(legacy.closed().await, (4410, "token expired".to_owned()));
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 1, "one is connected, one is away");
    phone.expect_push(1, "m").await;
    let mut late = client(&gateway).await;
    assert_eq!(late.resume("ann:60000", "mail", &place).await["recovered"], true);
    late.expect_push(1, "m").await;
}

#[tokio::test]
async fn each_event_is_good_as_long_as_the_token_that_was_shown_for_it() {
    let gateway = expiring(|config| config.bind_timeout = Duration::from_secs(1)).await;
    let left = |bound: Value| bound["expires_in_ms"].as_u64().unwrap();
    let mut renews = client(&gateway).await;
    assert!(left(renews.bind("ann:500", "mail").await) <= 500);
    assert!(left(renews.bind("ann:60000", "mail").await) > 50_000);
    let mut unbinds = client(&gateway).await;
    assert!(left(unbinds.bind("ann:60000", "mail").await) > 50_000);
    assert!(left(unbinds.bind("ann:500", "chat").await) <= 500);
    unbinds.say(json!({ "type": "unbind", "event": "chat" })).await;
    assert_eq!(unbinds.next().await["type"], "unbound");
    let mut legacy = gateway.bind("ann:500", "mail").await;
    gateway.bind_also(&mut legacy, "ann:60000", "mail").await;
    let mut legacy_that_ends = gateway.bind("ann:500", "mail").await;
    gateway.bind_also(&mut legacy_that_ends, "ann:60000", "chat").await;
    let mut ends = client(&gateway).await;
    ends.bind("ann:500", "mail").await;
    assert!(left(ends.bind("ann:60000", "chat").await) <= 500, "a token for one event says nothing of another");
    assert_eq!(ends.closed().await.0, 4410);
    assert_eq!(legacy_that_ends.closed().await.0, 4410);
    // Theirs would have been over before.
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 3);
    renews.expect_push(1, "m").await;
    unbinds.expect_push(1, "m").await;
    assert_eq!(legacy.next_text().await, "m");
}

/// Says yes when so many ask at one time.
struct Together(tokio::sync::Barrier);

#[async_trait::async_trait]
impl TokenAuthenticator for Together {
    async fn authenticate(&self, attempt: &BindAttempt<'_>) -> Result<Identity, TokenError> {
        if attempt.token.expose() == "together" {
            self.0.wait().await;
        }
        Ok(Identity::new(UserId::new("ann").unwrap()))
    }
}

#[tokio::test]
async fn a_token_is_checked_for_several_events_at_one_time() {
    let together = Together(tokio::sync::Barrier::new(8));
    let gateway = TestGateway::built(|_| (), |builder| builder.token_authenticator(together)).await;
    let mut phone = client(&gateway).await;
    for event in 0..16 {
        phone.bind("alone", &event.to_string()).await;
    }
    phone.say(json!({ "type": "refresh", "token": "together" })).await;
    assert_eq!(phone.next().await, json!({ "type": "refreshed" }));
}

#[tokio::test]
async fn a_session_does_not_come_back_to_an_event_that_its_token_no_longer_allows() {
    let gateway = expiring(|_| ()).await;
    let mut phone = client(&gateway).await;
    let place = Place::of(&phone.bind("ann:60000", "mail").await);
    phone.bind("ann:60000", "secret").await;
    leave(&gateway, phone).await;
    let mut phone = client(&gateway).await;
    assert_eq!(phone.resume("ann:60001", "mail", &place).await["recovered"], false);
    assert_eq!(gateway.json().push("ann", "secret", "m").await, 0);
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 1);
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

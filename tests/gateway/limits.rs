//! The limits of one user, of one address and of all together, with what happens past them.

use pushgate::{SlowReaderPolicy, UserConnectionsPolicy};
use tokio::net::TcpSocket;

use crate::support::session::{Place, SessionClient};
use crate::support::{Answer, Client, PATIENCE, TestGateway, http};

const MADE_ROOM: &str = "closed to make room for a newer connection of this user";

async fn with_room_for(connections: usize) -> TestGateway {
    TestGateway::with(|config| {
        config.connections_per_user_max = connections;
        config.connections_per_user_policy = UserConnectionsPolicy::CloseOldest;
    })
    .await
}

#[tokio::test]
async fn the_oldest_connection_of_a_user_makes_room_and_gets_what_was_queued_for_it() {
    let gateway = with_room_for(2).await;
    let mut first = gateway.bind("ann", "mail").await;
    let mut second = gateway.bind("ann", "mail").await;
    let mut other = gateway.bind("bob", "mail").await;
    assert_eq!(gateway.json().push("ann", "mail", "one").await, 2);
    let mut third = gateway.bind("ann", "mail").await;
    assert_eq!(first.next_text().await, "one");
    assert_eq!(first.closed().await, (4409, MADE_ROOM.to_owned()));
    gateway.until_closed("made_room").await;
    assert_eq!(gateway.json().push("ann", "mail", "two").await, 2);
    for (client, messages) in [(&mut second, &["one", "two"][..]), (&mut third, &["two"])] {
        for message in messages {
            assert_eq!(client.next_text().await, *message);
        }
    }
    assert_eq!(gateway.json().push("bob", "mail", "for bob").await, 1);
    assert_eq!(other.next_text().await, "for bob");
}

#[tokio::test]
async fn a_session_that_made_room_is_over() {
    let gateway = with_room_for(1).await;
    let mut first = SessionClient::connect(gateway.clients).await;
    let place = Place::of(&first.bind("ann", "mail").await);
    let mut second = SessionClient::connect(gateway.clients).await;
    second.bind("ann", "mail").await;
    assert_eq!(first.closed().await, (4409, MADE_ROOM.to_owned()));
    gateway.until_closed("made_room").await;
    assert_eq!(gateway.metric("pushgate_sessions_away").await, 0);
    let mut back = SessionClient::connect(gateway.clients).await;
    let bound = back.resume("ann", "mail", &place).await;
    assert_eq!(bound["recovered"], false, "{bound}");
    assert_eq!(second.closed().await, (4409, MADE_ROOM.to_owned()));
}

#[tokio::test]
async fn a_session_comes_back_when_its_user_is_full_and_the_oldest_connection_goes() {
    let gateway = with_room_for(1).await;
    let mut first = SessionClient::connect(gateway.clients).await;
    let place = Place::of(&first.bind("ann", "mail").await);
    first.reset();
    gateway.until_closed("reset").await;
    let mut second = gateway.bind("ann", "mail").await;
    let mut back = SessionClient::connect(gateway.clients).await;
    let bound = back.resume("ann", "mail", &place).await;
    assert_eq!(bound["recovered"], true, "{bound}");
    assert_eq!(second.closed().await, (4409, MADE_ROOM.to_owned()));
}

async fn upgrade(gateway: &TestGateway) -> Answer {
    let request = "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    http(gateway.clients, request).await
}

#[tokio::test]
async fn an_address_that_upgrades_too_often_is_sent_away_for_a_while_and_others_are_not() {
    let gateway = TestGateway::with(|config| config.upgrades_per_address_per_second_max = 1).await;
    // Ten seconds' worth may come at once, and no more are answered than time has passed since.
    let mut refused = None;
    for _ in 0..100 {
        let answer = upgrade(&gateway).await;
        if answer.status != 101 {
            refused = Some(answer);
            break;
        }
    }
    let answer = refused.expect("a hundred are too many");
    let told = "too many upgrades from this address, the limit is 1 a second";
    assert_eq!((answer.status, &*answer.body, answer.header("retry-after")), (429, told, Some("5")));
    let result = |result: &str| format!("pushgate_upgrades_total{{result=\"{result}\"}}");
    assert!(gateway.metric(&result("accepted")).await >= 10);
    assert_eq!(gateway.metric(&result("too_fast_from_address")).await, 1);
    let mut elsewhere = Client::connect_from(([127, 0, 0, 2], 0).into(), gateway.clients).await;
    elsewhere.send_bind("ann", "mail").await;
    gateway.until("pushgate_bindings", |bindings| bindings == 1).await;
}

/// A client's socket for which the kernel holds little.
fn small_socket() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket
}

const MESSAGE: usize = 100_000;
const TOTAL: usize = 2 * 1024 * 1024;

/// With room for two outboxes, and many more clients.
async fn crowded(policy: SlowReaderPolicy) -> TestGateway {
    TestGateway::with(|config| {
        config.queued_total_bytes_max = TOTAL;
        config.slow_reader_policy = policy;
        config.socket_send_bytes_max = 4096;
        config.write_timeout = PATIENCE;
        config.pong_timeout = PATIENCE;
    })
    .await
}

async fn made_room(gateway: &TestGateway, by: &str) -> u64 {
    gateway.metric(&format!("pushgate_made_room_total{{by=\"{by}\"}}")).await
}

#[tokio::test]
async fn when_all_is_full_clients_that_do_not_read_are_closed_and_those_that_do_lose_nothing() {
    const STALLED: usize = 8;
    let gateway = crowded(SlowReaderPolicy::Disconnect).await;
    let mut stalled = Vec::new();
    for number in 0..STALLED {
        let mut client = Client::over(small_socket(), gateway.clients).await;
        gateway.bind_also(&mut client, &format!("stalled-{number}"), "mail").await;
        stalled.push(client);
    }
    let mut reader = gateway.bind("ann", "mail").await;
    let mut grpc = gateway.grpc().await;
    for round in 0..9 {
        let message = format!("{round:04}{}", "m".repeat(MESSAGE));
        for number in 0..STALLED {
            let outcome = grpc.push(&format!("stalled-{number}"), "mail", &message).await;
            assert_eq!(outcome.matched, outcome.accepted + outcome.dropped);
        }
        assert_eq!(grpc.push("ann", "mail", &message).await.accepted, 1);
        assert_eq!(reader.next_text().await, message);
        gateway.until("pushgate_queued_total_bytes", |bytes| bytes <= TOTAL as u64).await;
    }
    assert_eq!(gateway.metric("pushgate_queued_total_bytes_max").await, TOTAL as u64);
    let closed = made_room(&gateway, "closing").await;
    assert!((1..STALLED as u64).contains(&closed), "{closed} closed: no more than had to be");
    gateway.until("pushgate_closes_total{reason=\"queue_full\"}", |closes| closes == closed).await;
    let books = ["push_matched_total", "push_accepted_total"].map(|name| format!("pushgate_{name}"));
    let [matched, accepted] = [gateway.metric(&books[0]).await, gateway.metric(&books[1]).await];
    let mut dropped = 0;
    for reason in ["queue_full", "closed"] {
        dropped += gateway.metric(&format!("pushgate_push_dropped_total{{reason=\"{reason}\"}}")).await;
    }
    assert_eq!(matched, accepted + dropped);
}

#[tokio::test]
async fn when_all_is_full_sessions_that_drop_are_told_of_the_gap_and_stay() {
    const MESSAGES: u64 = 20;
    let gateway = crowded(SlowReaderPolicy::DropOldest).await;
    let mut stalled = Vec::new();
    for user in ["ann", "bob", "eve"] {
        let mut client = SessionClient::over(small_socket(), gateway.clients).await;
        client.bind(user, "mail").await;
        stalled.push(client);
    }
    let mut grpc = gateway.grpc().await;
    // Each within its own outbox, and together too much.
    for _ in 0..MESSAGES / 2 {
        for user in ["ann", "bob", "eve"] {
            assert_eq!(grpc.push(user, "mail", &"m".repeat(MESSAGE)).await.accepted, 1);
        }
    }
    assert!(made_room(&gateway, "dropping").await > 0);
    assert!(gateway.metric("pushgate_queued_total_bytes").await <= TOTAL as u64);
    let mut missing = 0;
    for client in &mut stalled {
        let mut seen = 0;
        while seen < MESSAGES / 2 {
            let frame = client.next().await;
            let number = |key: &str| frame[key].as_u64().unwrap();
            match frame["type"].as_str().unwrap() {
                "push" => {
                    seen += 1;
                    assert_eq!(number("seq"), seen);
                }
                "gap" => {
                    assert_eq!(number("from"), seen + 1);
                    missing += number("to") - seen;
                    seen = number("to");
                }
                other => panic!("{other}"),
            }
        }
    }
    assert_eq!(missing, made_room(&gateway, "dropping").await);
    assert_eq!(gateway.metric("pushgate_connections").await, 3);
}

/// What a small message takes is not its own few bytes.
#[tokio::test]
async fn tiny_messages_count_with_what_they_take() {
    let gateway = crowded(SlowReaderPolicy::Disconnect).await;
    let mut client = Client::over(small_socket(), gateway.clients).await;
    gateway.bind_also(&mut client, "ann", "mail").await;
    let mut grpc = gateway.grpc().await;
    // More than the kernel takes, so that the rest waits.
    grpc.push("ann", "mail", &"m".repeat(MESSAGE)).await;
    grpc.push("ann", "mail", &"m".repeat(MESSAGE)).await;
    let before = gateway.metric("pushgate_queued_total_bytes").await;
    for _ in 0..160 {
        grpc.push("ann", "mail", "m").await;
    }
    let grown = gateway.metric("pushgate_queued_total_bytes").await - before;
    assert!((36_864..=45_056).contains(&grown), "{grown}");
}

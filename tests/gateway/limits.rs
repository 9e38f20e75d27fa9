//! The limits of one user and of one address, with what happens past them.

use pushgate::UserConnectionsPolicy;

use crate::support::session::{Place, SessionClient};
use crate::support::{Answer, Client, TestGateway, http};

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

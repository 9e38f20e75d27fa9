//! The fair room under attack: those who stay away to fill what is kept lose to each other, and nobody else loses anything.

use serde_json::json;

use super::{client, counts, leave};
use crate::support::session::{Place, SessionClient};
use crate::support::{GrpcCaller, TestGateway};

const SILENT: usize = 100;
const ROUNDS: usize = 4;

/// What ann gets while she is away.
const MISSED: u64 = 3;

async fn go_away(gateway: &TestGateway, user: &str) -> Place {
    let mut phone = client(gateway).await;
    let place = Place::of(&phone.bind(user, "mail").await);
    leave(gateway, phone).await;
    place
}

/// More for each of the silent than is kept for one.
async fn flood(grpc: &mut GrpcCaller) {
    for number in 0..SILENT {
        let outcome = grpc.push(&format!("silent-{number}"), "mail", &"m".repeat(60_000)).await;
        assert_eq!(counts(&outcome), (0, 0, 1), "kept for a while, at the cost of the silent");
    }
}

#[tokio::test]
async fn a_hundred_silent_sessions_that_fill_every_bound_take_nothing_from_those_who_come_and_go() {
    let gateway = TestGateway::with(|config| {
        config.journal_bytes_max = 100_000;
        config.journal_total_bytes_max = 2_000_000;
        config.sessions_away_max = SILENT + 1;
    })
    .await;
    let mut grpc = gateway.grpc().await;
    for number in 0..SILENT {
        go_away(&gateway, &format!("silent-{number}")).await;
    }
    let mut reader = gateway.bind("bob", "mail").await;
    let (mut phone, mut seen) = (client(&gateway).await, 0);
    let place = Place::of(&phone.bind("ann", "mail").await);
    for round in 0..ROUNDS {
        leave(&gateway, phone).await;
        for number in 0..MISSED {
            flood(&mut grpc).await;
            grpc.push("ann", "mail", &format!("{round}-{number}")).await;
            assert_eq!(counts(&grpc.push("bob", "mail", "now").await), (1, 1, 0));
            assert_eq!(reader.next_text().await, "now");
        }
        phone = client(&gateway).await;
        let back = phone.resume("ann", "mail", &place.at(seen)).await;
        assert_eq!(back["recovered"], json!(true), "round {round}: {back}");
        for number in 0..MISSED {
            seen += 1;
            phone.expect_push(seen, &format!("{round}-{number}")).await;
        }
        phone.ack(seen).await;
    }
    let kept = gateway.metric("pushgate_journal_bytes").await;
    assert!((1_800_000..=2_000_000).contains(&kept), "{kept} bytes are kept");
    let forgotten = gateway.metric("pushgate_messages_forgotten_total").await;
    assert!(forgotten >= (SILENT * (ROUNDS - 1)) as u64, "{forgotten} of the silent were forgotten");
}

/// A further session does not come at the cost of one that has just left either.
#[tokio::test]
async fn silent_sessions_of_one_user_end_before_those_of_others() {
    let gateway = TestGateway::with(|config| {
        config.sessions_away_per_user_max = 4;
        config.sessions_away_max = 8;
    })
    .await;
    let place = go_away(&gateway, "ann").await;
    for _ in 0..20 {
        let mut phone = client(&gateway).await;
        phone.bind("eve", "mail").await;
        let open = gateway.metric("pushgate_connections").await;
        phone.reset();
        gateway.until("pushgate_connections", |now| now < open).await;
    }
    let mut phone: SessionClient = client(&gateway).await;
    assert_eq!(phone.resume("ann", "mail", &place).await["recovered"], json!(true));
}

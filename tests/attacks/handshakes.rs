//! Connections that never become clients: half-open, dripping, or gone again at once.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::floods::{UPGRADE, bind};
use crate::{Setup, World, drip_until_ended, source};

/// A head that is not finished.
const HALF: &[u8] = b"GET /ws HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\n";

/// The first bytes of a TLS record with a ClientHello.
const HALF_TLS: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

async fn on_the_way_to_a_client(world: &World) {
    let mut attackers = JoinSet::new();
    // Whole handshakes take the CPU of whoever makes them, in a build without optimisation above all.
    for number in 0..if world.is_tls { 50 } else { 200 } {
        let (upgrade, control) = (world.clients.clone(), world.control.clone());
        attackers.spawn(async move { drip_until_ended(upgrade.open(source(number)).await, HALF.to_vec(), b"").await });
        let head = b"POST /push HTTP/1.1\r\nx-drip: ".to_vec();
        // Few enough to leave callers their places: those who come too late for one are cut sooner.
        if number < 40 {
            attackers.spawn(async move { drip_until_ended(control.open(source(number)).await, head, b"a").await });
        }
        let clients = world.clients.clone();
        let head = b"GET /ws HTTP/1.1\r\nx-drip: ".to_vec();
        attackers.spawn(async move { drip_until_ended(clients.open(source(number)).await, head, b"a").await });
        let clients = world.clients.clone();
        attackers
            .spawn(async move { drip_until_ended(clients.open(source(number)).await, UPGRADE.to_vec(), b"").await });
    }
    world.honest_people_notice_nothing_and_are_rid_of("half-open upgrades, dripping heads, no bind", attackers).await;
}

/// Connections that come and go without a pause: at once, after the upgrade, and after the bind.
async fn churn(world: &World, token: &str) {
    let mut attackers = JoinSet::new();
    for (number, begin) in [vec![], UPGRADE.to_vec(), [UPGRADE, &bind(token)].concat()].into_iter().enumerate() {
        for _ in 0..4 {
            let (clients, begin) = (world.clients.clone(), begin.clone());
            attackers.spawn(async move {
                loop {
                    let mut stream = clients.open(source(number)).await;
                    let _cut = stream.write_all(&begin).await;
                    drop(stream);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            });
        }
    }
    world.honest_people_notice_nothing("connections that come and go").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn who_never_becomes_a_client_is_sent_away() {
    let world = World::start(&[]).await;
    on_the_way_to_a_client(&world).await;
    churn(&world, "eve").await;
    world.nothing_was_lost().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn who_never_becomes_a_client_over_tls_is_sent_away() {
    let world = World::with(Setup { tls: true, ..Setup::default() }).await;
    let mut attackers = JoinSet::new();
    for number in 0..300 {
        let clients = world.clients.clone();
        attackers.spawn(async move {
            let stream = clients.tcp(source(number)).await;
            drip_until_ended(Box::new(stream), HALF_TLS.to_vec(), b"\0").await;
        });
    }
    world.honest_people_notice_nothing_and_are_rid_of("half-open and dripping handshakes", attackers).await;
    on_the_way_to_a_client(&world).await;
    world.nothing_was_lost().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn all_files_of_one_address_leave_the_other_what_it_needs() {
    let world = World::with(Setup { files: Some(2500), ..Setup::default() }).await;
    for (attack, door) in [("all files, by clients", &world.clients), ("all files, by callers", &world.control)] {
        let mut attackers = JoinSet::new();
        for number in 0..3000 {
            let stream = door.tcp(source(number)).await;
            attackers.spawn(drip_until_ended(Box::new(stream), vec![], b""));
        }
        world.honest_people_notice_nothing_and_are_rid_of(attack, attackers).await;
    }
    for listener in ["clients", "control"] {
        assert_eq!(world.metric(&format!("pushgate_accept_errors_total{{listener=\"{listener}\"}}")).await, 0);
    }
    world.nothing_was_lost().await;
}

//! Places: connections and waits that somebody holds and does nothing with.

use std::sync::Arc;
use std::time::Duration;

use pushgate::proto::{Level, PushRequest};
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

use crate::door::Door;
use crate::support::push_request;
use crate::support::session::SessionClient;
use crate::{World, source};

/// Keeps this many silent connections to an address, for ever: one that is cut is opened again.
fn silent(count: usize, to: &Door) -> JoinSet<()> {
    let mut attackers = JoinSet::new();
    for number in 0..count {
        let to = to.clone();
        attackers.spawn(async move {
            loop {
                let mut stream = to.tcp(source(number)).await;
                let _cut = stream.read(&mut [0]).await;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
    }
    attackers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn silent_connections_on_either_address_leave_both_usable() {
    let world = World::start(&[]).await;
    for (attack, to) in
        [("silent connections of clients", &world.clients), ("silent connections of callers", &world.control)]
    {
        let _attackers = silent(2600, to);
        world.honest_people_notice_nothing(attack).await;
    }
    world.nothing_was_lost().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn http2_connections_that_answer_pings_and_ask_nothing_hold_no_place() {
    let world = World::start(&[]).await;
    let mut attackers = JoinSet::new();
    for number in 0..1500 {
        let stream = world.control.tcp(source(number)).await;
        attackers.spawn(async move {
            if let Ok((_requests, connection)) = h2::client::handshake(stream).await {
                let _ended = connection.await;
            }
        });
    }
    world.honest_people_notice_nothing("HTTP/2 connections that ask nothing").await;
    world.nothing_was_lost().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn pushes_that_wait_for_a_silent_client_hold_no_place_of_others() {
    let world = World::start(&[("push_concurrency_max", "64")]).await;
    let mut silent = SessionClient::connect(world.gateway.clients).await;
    assert_eq!(silent.bind("silent", "mail").await["type"], "bound");
    let mut callers = Vec::new();
    for _ in 0..8 {
        callers.push(world.control.grpc().await);
    }
    let callers = Arc::new(callers);
    let mut attackers = JoinSet::new();
    for number in 0..1024 {
        let mut caller = callers[number % callers.len()].clone();
        attackers.spawn(async move {
            let acked = PushRequest { wait_for: Level::Acked.into(), ..push_request("silent", "mail", "m") };
            while caller.try_push(acked.clone()).await.is_ok() {}
        });
    }
    world.honest_people_notice_nothing("pushes that wait for a silent client").await;
    drop(attackers);
    world.nothing_was_lost().await;
}

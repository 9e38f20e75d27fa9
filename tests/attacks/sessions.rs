//! What is remembered for somebody: idempotency keys, and messages for sessions that are silent, slow or away.

use std::time::Duration;

use pushgate::proto::{PushBatchRequest, PushRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::floods::{session_bind, session_upgrade, websocket};
use crate::support::push_request;
use crate::{World, source};

const MIB: usize = 1024 * 1024;

/// Pushes batches of these, without a pause.
async fn push(world: &World, make: impl Fn(usize) -> PushRequest + Clone + Send + 'static) -> JoinSet<()> {
    let mut attackers = JoinSet::new();
    for caller in 0..2 {
        let (mut grpc, make) = (world.control.grpc().await, make.clone());
        attackers.spawn(async move {
            for round in (caller..).step_by(2) {
                let pushes = (0..50).map(|number| make(50 * round + number)).collect();
                // Some are refused, because there is no room.
                let _answer = grpc.client.push_batch(PushBatchRequest { pushes }).await;
            }
        });
    }
    attackers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn idempotency_keys_and_batches_without_end_take_no_more_than_they_may() {
    let world = World::start(&[]).await;
    let attackers = push(&world, |number| PushRequest {
        idempotency_key: format!("{number:0>256}"),
        ..push_request("nobody", "mail", "m")
    })
    .await;
    world.honest_people_notice_nothing("idempotency keys, in batches").await;
    drop(attackers);
    assert!(world.metric("pushgate_idempotency_bytes").await <= 16 * MIB as u64);
    let mut full = JoinSet::new();
    for _ in 0..4 {
        let mut grpc = world.control.grpc().await;
        full.spawn(async move {
            loop {
                let pushes = vec![push_request("nobody", "mail", "m"); 1000];
                let _answer = grpc.client.push_batch(PushBatchRequest { pushes }).await;
            }
        });
    }
    world.honest_people_notice_nothing("batches of 1,000").await;
    drop(full);
    world.nothing_was_lost().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn sessions_that_acknowledge_nothing_late_or_never_take_no_more_than_they_may() {
    let world = World::start(&[("journal_bytes_max", "1MiB"), ("write_timeout", "3s")]).await;
    let mut sessions = JoinSet::new();
    for number in 0..100 {
        let mut stream = world.clients.open(source(number)).await;
        let bind = session_bind(&format!("silent {number}"));
        stream.write_all(&[session_upgrade(), bind].concat()).await.unwrap();
        sessions.spawn(async move {
            let mut bytes = vec![0; 64 * 1024];
            // A third reads and acknowledges one message in a while, a third reads only, a third leaves and stays away.
            for seq in 1.. {
                match number % 3 {
                    0 if seq % 20 == 0 => {
                        let ack = format!(r#"{{"type":"ack","seq":{}}}"#, seq / 20);
                        _ = stream.write_all(&websocket(0x81, ack.as_bytes())).await;
                    }
                    2 if seq == 10 => return,
                    _ => {}
                }
                let read = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut bytes)).await;
                if let Ok(Ok(0) | Err(_)) = read {
                    return;
                }
            }
        });
    }
    let message = "m".repeat(8 * 1024);
    let attackers =
        push(&world, move |number| push_request(&format!("silent {}", number % 100), "mail", &message)).await;
    world.honest_people_notice_nothing("sessions that are silent, slow to acknowledge, or away").await;
    drop(attackers);
    let kept = world.metric("pushgate_journal_bytes").await;
    // Each push adds its message before it makes room: so many may be in hand at this moment, by `push_concurrency_max`.
    let in_hand = 256 * 9 * 1024;
    assert!(kept <= 16 * MIB as u64 + in_hand, "{kept} bytes are kept");
    world.nothing_was_lost().await;
}

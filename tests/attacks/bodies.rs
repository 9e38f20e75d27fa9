//! Requests that are large, slow or nonsense.

use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, Version};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::{World, connect_from};

const MIB: usize = 1024 * 1024;

async fn http2(world: &World, number: usize) -> SendRequest<Bytes> {
    let stream = connect_from(number, world.gateway.control).await;
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    requests.ready().await.unwrap()
}

fn push(world: &World) -> Request<()> {
    let request = Request::builder().method(Method::POST).version(Version::HTTP_2);
    request.uri(format!("http://{}/push", world.gateway.control)).body(()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn slow_bodies_hold_no_place_of_others() {
    let world = World::start(&[("push_concurrency_max", "64")]).await;
    let mut attackers = JoinSet::new();
    for number in 0..5 {
        let mut requests = http2(&world, number).await;
        for _ in 0..206 {
            let (_answer, mut body) = requests.send_request(push(&world), false).unwrap();
            attackers.spawn(async move {
                while body.send_data(Bytes::from_static(b" "), false).is_ok() {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            });
        }
    }
    world.honest_people_notice_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn unfinished_bodies_take_no_more_memory_than_they_may() {
    let world = World::start(&[("request_bodies_bytes_max", "67108864")]).await;
    let before = world.memory();
    let mut attackers = JoinSet::new();
    for number in 0..300 {
        let mut stream = connect_from(number, world.gateway.control).await;
        attackers.spawn(async move {
            let head = format!("POST /push HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 4 * MIB);
            let _cut = stream.write_all(&[head.as_bytes(), &vec![b' '; 4 * MIB - 1]].concat()).await;
            // Held open until the attack is over.
            std::future::pending::<()>().await;
        });
    }
    world.honest_people_notice_nothing().await;
    // Each byte once in hyper's read buffer and once in the body.
    world.grew_by_at_most(before, 160 * MIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn json_under_a_key_that_nobody_knows_costs_nothing() {
    let world = World::start(&[]).await;
    let before = world.memory();
    let body = format!(r#"{{"unknown":[{}{{}}]}}"#, "{},".repeat(4 * MIB / 3 - 20));
    let mut attackers = JoinSet::new();
    for number in 0..8 {
        let (mut stream, body) = (connect_from(number, world.gateway.control).await, body.clone());
        attackers.spawn(async move {
            let length = body.len();
            let head = format!(
                "POST /push HTTP/1.1\r\nhost: x\r\naccept: application/json\r\ncontent-length: {length}\r\n\r\n"
            );
            for _ in 0..10 {
                if stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await.is_err() {
                    return;
                }
                let answer = crate::support::read_answer(&mut stream).await;
                assert_eq!(answer.status, 400, "{answer:?}");
            }
        });
    }
    world.honest_people_notice_nothing().await;
    attackers.join_all().await;
    world.grew_by_at_most(before, 100 * MIB);
}

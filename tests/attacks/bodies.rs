//! Requests that are large, slow or nonsense.

use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use flate2::write::GzEncoder;
use h2::client::SendRequest;
use http::{Method, Request, Version};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::support::{read_answer, soon};
use crate::{World, source};

const MIB: usize = 1024 * 1024;

async fn http2(world: &World, number: usize) -> SendRequest<Bytes> {
    let stream = world.control.open(source(number)).await;
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
    world.honest_people_notice_nothing("dripping bodies").await;
    drop(attackers);
    world.nothing_was_lost().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn unfinished_bodies_take_no_more_memory_than_they_may() {
    let world = World::start(&[("request_bodies_bytes_max", "64MiB"), ("control_http_connections_max", "400")]).await;
    let before = world.memory("VmRSS:");
    let mut attackers = JoinSet::new();
    for number in 0..300 {
        let mut stream = world.control.open(source(number)).await;
        attackers.spawn(async move {
            let head = format!("POST /push HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 4 * MIB);
            let _cut = stream.write_all(&[head.as_bytes(), &vec![b' '; 4 * MIB - 1]].concat()).await;
            // Held open until the attack is over.
            std::future::pending::<()>().await;
        });
    }
    world.honest_people_notice_nothing("bodies without their last byte").await;
    // Each byte once in hyper's read buffer and once in the body.
    world.grew_by_at_most(before, 160 * MIB);
    drop(attackers);
    world.nothing_was_lost().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn json_that_is_made_to_cost_is_refused_and_costs_little() {
    let world = World::start(&[]).await;
    let before = world.memory("VmRSS:");
    let value = |value: String| format!(r#"{{"userId":{value},"event":"mail","message":"m"}}"#);
    let bombs = [
        format!(r#"{{"unknown":[{}{{}}]}}"#, "{},".repeat(4 * MIB / 3 - 20)),
        "[".repeat(3 * MIB),
        format!(r#"{{"unknown":{}"#, r#"{"a":"#.repeat(MIB / 2)),
        value("9".repeat(3 * MIB)),
        value(format!("1e{}", "9".repeat(3 * MIB))),
        value(format!("\"{}", "\\u0041".repeat(MIB / 2))),
        format!("{{{}}}", r#""userId":"","#.repeat(MIB / 4)),
    ];
    let mut attackers = JoinSet::new();
    for (number, body) in bombs.into_iter().enumerate() {
        let mut stream = world.control.open(source(number)).await;
        attackers.spawn(async move {
            let length = body.len();
            let head = format!(
                "POST /push HTTP/1.1\r\nhost: x\r\naccept: application/json\r\ncontent-length: {length}\r\n\r\n"
            );
            for _ in 0..5 {
                if stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await.is_err() {
                    return;
                }
                let answer = read_answer(&mut stream).await;
                // What the bombs take together may be more than one caller may have in hand.
                match answer.status {
                    400 => {}
                    503 => return,
                    _ => panic!("{answer:?}"),
                }
            }
        });
    }
    world.honest_people_notice_nothing("JSON bombs in bodies").await;
    soon(attackers.join_all()).await;
    world.grew_by_at_most(before, 100 * MIB);
    world.nothing_was_lost().await;
}

/// A gRPC message that says to be compressed.
fn compressed(bytes: &[u8]) -> Bytes {
    [&[1][..], &(bytes.len() as u32).to_be_bytes(), bytes].concat().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn what_grows_when_it_is_decompressed_is_refused_as_it_grows() {
    let world = World::start(&[]).await;
    let before = world.memory("VmRSS:");
    let zeros = vec![0; 256 * MIB];
    let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&zeros).unwrap();
    let bombs = [("gzip", gzip.finish().unwrap()), ("zstd", zstd::bulk::compress(&zeros, 1).unwrap())];
    drop(zeros);
    let mut attackers = JoinSet::new();
    for (number, (encoding, bomb)) in bombs.into_iter().enumerate() {
        println!("256 MiB are {} KiB of {encoding}", bomb.len() >> 10);
        let bomb = compressed(&bomb);
        assert!(bomb.len() < MIB);
        for caller in 0..4 {
            let (mut requests, bomb) = (http2(&world, 10 * number + caller).await, bomb.clone());
            let uri = format!("http://{}/pushgate.v1.PushService/Push", world.control.address);
            attackers.spawn(async move {
                for _ in 0..5 {
                    let request = Request::post(&uri).version(Version::HTTP_2);
                    let request = request.header("content-type", "application/grpc").header("grpc-encoding", encoding);
                    let (answer, mut body) = requests.send_request(request.body(()).unwrap(), false).unwrap();
                    let _refused_before_its_end = body.send_data(bomb.clone(), true);
                    let answer = answer.await.unwrap();
                    let mut status = answer.headers().get("grpc-status").cloned();
                    if status.is_none() {
                        status = answer.into_body().trailers().await.unwrap().unwrap().get("grpc-status").cloned();
                    }
                    // RESOURCE_EXHAUSTED or OUT_OF_RANGE, as tonic words it.
                    assert!(matches!(status.as_ref().unwrap().as_bytes(), b"8" | b"11"), "{status:?}");
                    requests = requests.ready().await.unwrap();
                }
            });
        }
    }
    world.honest_people_notice_nothing("bombs of gzip and zstd").await;
    soon(attackers.join_all()).await;
    world.grew_by_at_most(before, 100 * MIB);
    world.nothing_was_lost().await;
}

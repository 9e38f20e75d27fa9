//! Frames without end that carry nothing: each is cheap to send, and was answered for as long as it came.

use crate::{World, connect_from, send_until_ended};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

const ATTACKERS: usize = 8;

/// An upgrade, and a client's frame with a mask of zeros.
const UPGRADE: &[u8] = b"GET /ws HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                         sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";

fn websocket(first: u8, body: &[u8]) -> Vec<u8> {
    [&[first, 0x80 | body.len() as u8, 0, 0, 0, 0], body].concat()
}

fn http2(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[0, 0, body.len() as u8, kind, 0, 0, 0, 0, 0], body].concat()
}

/// Attackers that begin like this and then send that, until each of them is cut.
async fn flood(world: &World, to: std::net::SocketAddr, begin: &[u8], frame: &[u8]) {
    let mut attackers = JoinSet::new();
    for number in 0..ATTACKERS {
        let mut stream = connect_from(number, to).await;
        stream.write_all(begin).await.unwrap();
        attackers.spawn(send_until_ended(stream, frame.repeat(500)));
    }
    world.honest_people_notice_nothing().await;
    attackers.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn websocket_frames_without_end_are_cut() {
    let world = World::start(&[]).await;
    let bind = websocket(0x81, br#"{"token":"eve","event":"mail"}"#);
    let refused = websocket(0x81, br#"{"type":"bind","token":"mallory","event":"mail"}"#);
    let session = String::from_utf8(UPGRADE.to_vec())
        .unwrap()
        .replace("sec-websocket-version", "sec-websocket-protocol: pushgate.v1.json\r\nsec-websocket-version");
    let bind_session = websocket(0x81, br#"{"type":"bind","token":"eve","event":"mail"}"#);
    let clients = world.gateway.clients;
    let started = [UPGRADE, &bind].concat();
    flood(&world, clients, &started, &websocket(0x89, b"")).await;
    flood(&world, clients, &[&started[..], &websocket(0x01, b"")].concat(), &websocket(0x00, b"")).await;
    flood(&world, clients, &[session.as_bytes(), &bind_session].concat(), &refused).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn http2_frames_that_carry_no_request_are_cut() {
    let world = World::start(&[]).await;
    let preface = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &http2(0x4, b"")].concat();
    let window = 1u32.to_be_bytes();
    for frame in [http2(0x4, b""), http2(0x6, b"pingping"), http2(0x8, &window), http2(0xfa, b"unknown")] {
        flood(&world, world.gateway.control, &preface, &frame).await;
    }
}

//! HTTP/2 frames that carry no request, or take it back. They are written by hand, because no client library would.

use tokio::task::JoinSet;

use crate::{Setup, World, send_until_ended, source};

const ATTACKERS: usize = 8;
const END_HEADERS: u8 = 0x4;

fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), body].concat()
}

/// `POST http://x/push`, as HPACK without a table (RFC 7541, section 6.2.2).
fn post() -> Vec<u8> {
    [&[0x83, 0x86, 0x04, 5][..], b"/push", &[0x01, 1], b"x"].concat()
}

/// Frames that open many streams in turn, each with what follows it.
fn streams(follows: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    let open = |stream| [frame(1, END_HEADERS, stream, &post()), follows(stream)].concat();
    (0..20_000).flat_map(|number| open(2 * number + 1)).collect()
}

async fn flood(world: &World, attack: &str, begin: &[u8], flood: &[u8]) {
    let preface = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, b""), begin].concat();
    let mut attackers = JoinSet::new();
    for number in 0..ATTACKERS {
        let stream = world.control.open(source(number)).await;
        attackers.spawn(send_until_ended(stream, preface.clone(), flood.to_vec()));
    }
    world.honest_people_notice_nothing_and_are_rid_of(attack, attackers).await;
}

async fn all(world: &World) {
    for (attack, kind, body) in [
        ("SETTINGS", 4, &b""[..]),
        ("HTTP/2 pings", 6, b"pingping"),
        ("window updates", 8, &1u32.to_be_bytes()),
        ("frames of no known kind", 0xfa, b"unknown"),
    ] {
        flood(world, attack, b"", &frame(kind, 0, 0, body).repeat(500)).await;
    }
    let open = frame(1, END_HEADERS, 1, &post());
    flood(world, "empty DATA", &open, &frame(0, 0, 1, b"").repeat(500)).await;
    let header = [&[0x00, 4][..], b"name", &[5], b"value"].concat();
    let unfinished = frame(1, 0, 1, &post());
    flood(world, "CONTINUATION", &unfinished, &frame(9, 0, 1, &header).repeat(500)).await;
    flood(world, "rapid reset", b"", &streams(|stream| frame(3, 0, stream, &8u32.to_be_bytes()))).await;
    flood(world, "resets provoked", b"", &streams(|stream| frame(8, 0, stream, &0u32.to_be_bytes()))).await;
    // One header of 4,000 bytes in the table, and then a request that names it a thousand times.
    let value = [&[0x40, 4][..], b"bomb", &[0x7f, 0xa1, 0x1e], &[b'b'; 4000]].concat();
    let bomb = [post(), value, vec![0xbe; 1000]].concat();
    let bombs: Vec<u8> = (0..500).flat_map(|number| frame(1, END_HEADERS | 1, 2 * number + 1, &bomb)).collect();
    flood(world, "HPACK bombs", b"", &bombs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn http2_frames_that_carry_no_request_are_cut() {
    let world = World::start(&[]).await;
    all(&world).await;
    world.nothing_was_lost().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn http2_frames_that_carry_no_request_over_tls_are_cut() {
    let world = World::with(Setup { tls: true, ..Setup::default() }).await;
    all(&world).await;
    world.nothing_was_lost().await;
}

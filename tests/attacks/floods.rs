//! WebSocket frames without end, or with false claims: each is cheap to send.

use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::support::soon;
use crate::{Setup, World, send_until_ended, source};

const ATTACKERS: usize = 8;

/// An upgrade. The frames have a mask of zeros.
pub(crate) const UPGRADE: &[u8] = b"GET /ws HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                                    sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";

pub(crate) fn session_upgrade() -> Vec<u8> {
    let upgrade = std::str::from_utf8(UPGRADE).unwrap();
    let protocol = "sec-websocket-protocol: pushgate.v1.json\r\nsec-websocket-version";
    upgrade.replace("sec-websocket-version", protocol).into_bytes()
}

/// A frame of any length.
pub(crate) fn websocket(first: u8, body: &[u8]) -> Vec<u8> {
    let length = match body.len() {
        short @ ..126 => vec![0x80 | short as u8],
        long => [&[0xfe][..], &(long as u16).to_be_bytes()].concat(),
    };
    [&[first], &length[..], &[0; 4], body].concat()
}

pub(crate) fn bind(token: &str) -> Vec<u8> {
    websocket(0x81, format!(r#"{{"token":"{token}","event":"mail"}}"#).as_bytes())
}

pub(crate) fn session_bind(token: &str) -> Vec<u8> {
    websocket(0x81, format!(r#"{{"type":"bind","token":"{token}","event":"mail"}}"#).as_bytes())
}

/// Attackers that begin like this and then send that, until each of them is cut.
async fn flood(world: &World, attack: &str, begin: &[u8], frame: &[u8]) {
    let mut attackers = JoinSet::new();
    for number in 0..ATTACKERS {
        let stream = world.clients.open(source(number)).await;
        attackers.spawn(send_until_ended(stream, begin.to_vec(), frame.repeat(500)));
    }
    world.honest_people_notice_nothing_and_are_rid_of(attack, attackers).await;
}

async fn frames_without_end(world: &World) {
    let started = [UPGRADE, &bind("eve")].concat();
    let session = [session_upgrade(), session_bind("eve")].concat();
    flood(world, "pings", &started, &websocket(0x89, b"")).await;
    // A hundred thousand and more, if it were for the attackers.
    let unfinished = [&started[..], &websocket(0x01, b"x")].concat();
    flood(world, "fragments of a byte", &unfinished, &websocket(0x00, b"x")).await;
    flood(world, "empty fragments", &unfinished, &websocket(0x00, b"")).await;
    flood(world, "binds of another user", &session, &session_bind("mallory")).await;
    flood(world, "acknowledgements of nothing", &session, &websocket(0x81, br#"{"type":"ack","seq":0}"#)).await;
}

/// A frame's header that claims more than comes, up to 2^63 - 1 bytes and, against the RFC, 2^64 - 1.
async fn claims(world: &World) {
    let mut attackers = JoinSet::new();
    for (number, claim) in
        [u64::MAX, i64::MAX as u64, 16 << 20, (16 << 10) - 1].into_iter().cycle().take(400).enumerate()
    {
        let header = [&[0x82, 0xff][..], &claim.to_be_bytes(), &[0; 4]].concat();
        let stream = world.clients.open(source(number)).await;
        // The last claim is allowed, and is given up at the deadline for a bind.
        attackers.spawn(crate::drip_until_ended(stream, [UPGRADE, &header].concat(), b""));
    }
    world.honest_people_notice_nothing_and_are_rid_of("claims of long frames", attackers).await;
}

/// Pings with as much as one may carry, of which no answer is read.
async fn pings_unread(world: &World) {
    let mut attackers = JoinSet::new();
    for number in 0..100 {
        let mut stream = world.clients.open(source(number)).await;
        let started = [UPGRADE, &bind("eve")].concat();
        let flood = websocket(0x89, &[b'p'; 125]).repeat(100);
        attackers.spawn(soon(async move {
            let mut is_open = stream.write_all(&started).await.is_ok();
            while is_open {
                is_open = stream.write_all(&flood).await.is_ok();
            }
        }));
    }
    world.honest_people_notice_nothing_and_are_rid_of("pings of a peer that never reads", attackers).await;
}

/// JSON that is made to cost, in the first frame and in a session's.
async fn nonsense(world: &World) {
    let mut attackers = JoinSet::new();
    let bombs: [Vec<u8>; 4] = [
        b"[".repeat(16_000),
        [b"{\"token\":".to_vec(), b"9".repeat(15_000)].concat(),
        [b"{".to_vec(), b"\"token\":\"eve\",".repeat(1000), b"\"event\":\"mail\"}".to_vec()].concat(),
        [b"{\"token\":\"".to_vec(), br"\u0041".repeat(2500), b"\",\"event\":\"\\ud800\"}".to_vec()].concat(),
    ];
    for (number, bomb) in bombs.iter().cycle().take(16).enumerate() {
        let begin = if number % 2 == 0 { UPGRADE.to_vec() } else { session_upgrade() };
        let stream = world.clients.open(source(number)).await;
        attackers.spawn(send_until_ended(stream, begin, websocket(0x81, bomb)));
    }
    world.honest_people_notice_nothing_and_are_rid_of("JSON bombs in frames", attackers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn websocket_frames_without_end_are_cut() {
    let world = World::start(&[("write_timeout", "3s"), ("client_frames_per_second_max", "10")]).await;
    frames_without_end(&world).await;
    claims(&world).await;
    pings_unread(&world).await;
    nonsense(&world).await;
    world.nothing_was_lost().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn websocket_frames_without_end_over_tls_are_cut() {
    let world = World::with(Setup { tls: true, settings: &[("write_timeout", "3s")], ..Setup::default() }).await;
    frames_without_end(&world).await;
    pings_unread(&world).await;
    world.nothing_was_lost().await;
}

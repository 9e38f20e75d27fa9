//! What a push allocates, counted by the allocator: gateway, caller and clients share one thread, and the clients allocate
//! nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../benches/support/mod.rs"]
mod socket;
#[path = "support/mod.rs"]
mod support;

use pushgate::{Gateway, Push};
use support::{TestGateway, soon};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

const MESSAGE: &str = "a message like many others";
/// A header of two bytes, and the message.
const FRAME_BYTES: usize = 2 + MESSAGE.len();
const FEW: usize = 8;
const MANY: usize = 200;
const PUSHES: usize = 50;
/// Less than one for each receiver of either push.
const ALLOCATIONS_MAX: u64 = 4;

/// Opens connections of one user, and returns once all are bound and have read what is theirs.
async fn bound(gateway: &TestGateway, user: &str, count: usize) -> Vec<TcpStream> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let bind = format!(r#"{{"token":"{user}","event":"mail"}}"#);
        clients.push(socket::connect(gateway.clients, "", &bind).await);
    }
    let push = Push::new(user, "mail", MESSAGE).unwrap();
    let mut unread = 0;
    let all_are_bound = async {
        loop {
            let accepted = usize::try_from(gateway.gateway.push(&push).await.unwrap().accepted).unwrap();
            unread += accepted * FRAME_BYTES;
            if accepted == count {
                break;
            }
            tokio::task::yield_now().await;
        }
        // Whoever was bound earlier got more messages. All together got this much.
        let mut buffer = [0; 4096];
        while unread > 0 {
            for client in &clients {
                unread -= client.try_read(&mut buffer).unwrap_or(0);
            }
            tokio::task::yield_now().await;
        }
    };
    soon(all_are_bound).await;
    clients
}

/// Pushes again and again, each time until the last client has the message. Returns how many allocations most of the
/// pushes made.
fn allocations(runtime: &Runtime, gateway: &Gateway, user: &str, clients: &mut [TcpStream]) -> u64 {
    let push = Push::new(user, "mail", MESSAGE).unwrap();
    let mut once = || {
        runtime.block_on(async {
            assert_eq!(gateway.push(&push).await.unwrap().accepted, clients.len() as u64);
            let mut frame = [0; FRAME_BYTES];
            for client in clients.iter_mut() {
                client.read_exact(&mut frame).await.unwrap();
            }
        });
    };
    let mut counts: Vec<_> = (0..PUSHES).map(|_| allocation_counter::measure(&mut once).count_total).collect();
    counts.sort_unstable();
    counts[PUSHES / 2]
}

#[test]
fn a_push_allocates_a_few_times_however_many_receivers_it_has() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let gateway = runtime.block_on(TestGateway::start());
    let [few, many] = [("ann", FEW), ("bob", MANY)].map(|(user, count)| {
        let mut clients = runtime.block_on(bound(&gateway, user, count));
        allocations(&runtime, &gateway.gateway, user, &mut clients)
    });
    for count in [few, many] {
        // The message, its payload, and the count of who shares that; the last only if it is shared for a moment.
        assert!((1..=ALLOCATIONS_MAX).contains(&count), "{few} to {FEW} receivers, {many} to {MANY}");
    }
    runtime.block_on(gateway.stop());
}

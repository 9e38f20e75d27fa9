//! Answers and messages that nobody reads.

use std::time::Duration;

use http::{Request, Version};
use pushgate::proto::{PushRequest, PushStreamRequest};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use crate::honest::CLIENTS;
use crate::support::{Client, GrpcCaller, push_request, soon};
use crate::{World, source};

const MIB: usize = 1024 * 1024;

/// What the kernel holds for all TCP sockets, in bytes. Each page is there for sender and receiver.
fn kernel_memory() -> usize {
    let stat = std::fs::read_to_string("/proc/net/sockstat").unwrap();
    let tcp = stat.lines().find(|line| line.starts_with("TCP:")).unwrap();
    tcp.rsplit(' ').next().unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn answers_that_nobody_reads_take_little_memory_and_end() {
    let world = World::start(&[("http_header_timeout", "2s")]).await;
    let before = world.memory("VmRSS:");
    let mut attackers = JoinSet::new();
    for number in 0..20 {
        let stream = world.control.open(source(number)).await;
        let address = world.gateway.control;
        attackers.spawn(async move {
            let mut builder = h2::client::Builder::new();
            let (requests, connection) =
                builder.initial_window_size(0).handshake::<_, bytes::Bytes>(stream).await.unwrap();
            let ended = tokio::spawn(connection);
            let mut requests = requests.ready().await.unwrap();
            let mut answers = Vec::new();
            for _ in 0..1000 {
                let request = Request::get(format!("http://{address}/metrics")).version(Version::HTTP_2).body(());
                match requests.send_request(request.unwrap(), true) {
                    Ok((answer, _)) => answers.push(answer),
                    Err(_) => break,
                }
                match requests.ready().await {
                    Ok(ready) => requests = ready,
                    Err(_) => break,
                }
            }
            // Held open until the gateway ends it.
            let _ended = ended.await;
        });
    }
    world.honest_people_notice_nothing_and_are_rid_of("answers that nobody reads", attackers).await;
    world.grew_by_at_most(before, 64 * MIB);
    world.nothing_was_lost().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn results_of_streams_that_nobody_reads_take_little_memory_and_no_place_of_others() {
    let world = World::start(&[]).await;
    let before = world.memory("VmRSS:");
    let mut attackers = JoinSet::new();
    for _ in 0..8 {
        let mut grpc = world.control.grpc().await;
        attackers.spawn(async move {
            let (pushes, requests) = tokio::sync::mpsc::channel(1);
            let push =
                PushStreamRequest { correlation_id: "c".repeat(200), push: Some(push_request("nobody", "mail", "m")) };
            let send = async move { while pushes.send(push.clone()).await.is_ok() {} };
            // The results are not read while there is anybody to send to.
            let (_results, ()) = tokio::join!(grpc.client.push_stream(ReceiverStream::new(requests)), send);
        });
    }
    // A stream may be silent for any time, so they are not ended. They are not read any further either.
    world.honest_people_notice_nothing("results of streams that nobody reads").await;
    drop(attackers);
    world.grew_by_at_most(before, 64 * MIB);
    world.nothing_was_lost().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn the_kernel_holds_little_of_what_slow_readers_do_not_read_and_lets_go_of_it() {
    // Half of all clients.
    const READERS: usize = CLIENTS;
    let settings = [
        ("outbox_bytes_max", "1MiB"),
        ("message_bytes_max", "256KiB"),
        ("write_timeout", "3s"),
        ("close_timeout", "1s"),
        ("socket_timeout", "3s"),
    ];
    let world = World::start(&settings).await;
    let before = kernel_memory();
    let mut stuck = Vec::new();
    for number in 0..READERS {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 3, 1 + (number / 1000) as u8], 0).into()).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut client = Client::over(socket, world.gateway.clients).await;
        client.send_bind("stuck", "mail").await;
        stuck.push(client);
    }
    let mut grpc = world.control.grpc().await;
    let message = "m".repeat(200_000);
    let fill = PushRequest { ..push_request("stuck", "mail", &message) };
    for _ in 0..10 {
        grpc.try_push(fill.clone()).await.unwrap();
    }
    let held = kernel_memory().saturating_sub(before);
    println!("the kernel holds {} KiB of each", held / READERS / 1024);
    assert!(held <= READERS * 300 * 1024, "{held}");
    world.honest_people_notice_nothing("half of all clients do not read").await;
    // Given up, and nothing of them left: not even what the kernel had not sent. The clients' own sockets are still open, and
    // each keeps a page or two.
    soon(async {
        while kernel_memory().saturating_sub(before) > READERS * 16 * 1024 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    drop(stuck);
    world.nothing_was_lost().await;
}

/// Half of the clients do not read, and each may have a whole outbox: without a bound on all of them together, a GiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn half_of_all_clients_not_reading_take_no_more_memory_together_than_they_may() {
    const PAIRS: usize = 500;
    const TOTAL: usize = 64 * MIB;
    // Whoever falls behind a little keeps less than a step, which is not counted.
    const UNCOUNTED: usize = 2 * PAIRS * 8 * 1024;
    // One that is closed has until `close_timeout` to take the rest of the message that it has begun.
    const CLOSING: usize = PAIRS * MESSAGE;
    const MESSAGE: usize = 200_000;
    let total = TOTAL.to_string();
    let settings = [("queued_total_bytes_max", &*total), ("outbox_bytes_max", "2MiB"), ("message_bytes_max", "256KiB")];
    let world = World::start(&settings).await;
    let mut stuck = Vec::new();
    let mut reading = JoinSet::new();
    let (mut grpc, rounds) = (GrpcCaller::connect(world.gateway.control).await, 12);
    for number in 0..PAIRS {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut client = Client::over(socket, world.gateway.clients).await;
        client.send_bind(&format!("stuck-{number}"), "mail").await;
        stuck.push(client);
        let mut client = Client::connect(world.gateway.clients).await;
        client.send_bind("reader", "mail").await;
        reading.spawn(async move {
            for round in 0..rounds {
                assert_eq!(client.next_text().await, format!("honest {round}"));
            }
        });
    }
    let before = world.memory("VmRSS:");
    for round in 0..rounds {
        for number in 0..PAIRS {
            // A text of its own for each, so that what is counted is what is held.
            let message = format!("{number:08}{}", "m".repeat(MESSAGE));
            grpc.try_push(push_request(&format!("stuck-{number}"), "mail", &message)).await.unwrap();
        }
        grpc.try_push(push_request("reader", "mail", &format!("honest {round}"))).await.unwrap();
        world.grew_by_at_most(before, TOTAL + UNCOUNTED + CLOSING + 16 * MIB);
    }
    world.honest_people_notice_nothing("half of all clients not reading, up to the bound of all queues").await;
    soon(reading.join_all()).await;
    drop(stuck);
    world.nothing_was_lost().await;
}

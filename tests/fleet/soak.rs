//! A gateway under the same load for a long time: its memory stays as it is, and its descriptors come back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::crowd::{Crowd, Sum};
use crate::process::{GatewayProcess, pushgate};
use crate::pushing::Pushing;
use crate::support::Client;
use crate::{alone, size, until, user};

/// Sessions that stay.
const STEADY: usize = 1000;
/// Sessions that reset their connection and come back for what they missed.
const RESTLESS: usize = 500;
/// Legacy clients that come, get messages, and go.
const VISITORS: usize = 200;
const PUSHES_PER_SECOND: usize = 600;

/// Shorter than a tenth of the time, so that as many sessions end from then on as begin.
const JOURNAL_AGE: &str = "5s";

const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute, or as many as PUSHGATE_SOAK_MINUTES says"]
async fn memory_stays_and_descriptors_come_back_under_a_load_that_does_not_change() {
    let _alone = alone().await;
    let minutes = size("PUSHGATE_SOAK_MINUTES", 1);
    let mut command = pushgate();
    command.env("PUSHGATE_JOURNAL_AGE", JOURNAL_AGE);
    let gateway = Arc::new(tokio::task::block_in_place(|| GatewayProcess::start_as(&mut command)));
    let (id, clients) = (gateway.process.id(), gateway.clients);
    let before = descriptors(id);
    let begun = Instant::now();
    let steady = Crowd::come(clients, STEADY, None).await;
    let restless = Crowd::come(clients, RESTLESS, Some(5)).await;
    let mut visitors = JoinSet::new();
    for number in 0..VISITORS {
        visitors.spawn(visit_again_and_again(clients, number));
    }
    // The users of all clients are the first of the steady ones.
    let pushing = Pushing::start(&[clients], STEADY, PUSHES_PER_SECOND, None);

    let tenth = Duration::from_secs(60) * minutes as u32 / 10;
    let mut tenths = Vec::new();
    for number in 1..=10 {
        tenths.push(resident(id, (begun + tenth * number).saturating_duration_since(Instant::now())).await);
    }
    // The first two tenths are for the gateway to have all that it keeps. One tenth beside another differs by more than a
    // leak would be, because what lies in outboxes depends on what else the machine does: so half of them beside the other.
    let (earlier, later) = tenths[2..].split_at((tenths.len() - 2) / 2);
    let mean = |tenths: &[u64]| tenths.iter().sum::<u64>() as f64 / tenths.len() as f64;
    let drift = mean(later) / mean(earlier) - 1.0;

    let pushed = pushing.stop().await;
    visitors.shutdown().await;
    let mut stories = restless.leave().await;
    stories.extend(steady.go(&pushed.promised, PATIENCE).await);
    let sum = Sum::of(&stories);
    println!(
        "{minutes} minutes, {} pushes, {} received by sessions, {} resumed, {} begun anew, {} numbers told as lost, closes \
         {:?}, {} refused",
        pushed.pushes, sum.received, sum.resumed, sum.begun_anew, sum.gaps, sum.closes, sum.refused
    );
    println!(
        "resident KiB in each tenth of the time: {:?}",
        tenths.iter().map(|bytes| bytes >> 10).collect::<Vec<_>>()
    );
    println!("drift from the tenths 3 to 6 to the tenths 7 to 10: {:+.2} %", 100.0 * drift);
    until("the descriptors are as many as before", PATIENCE, || descriptors(id) <= before).await;
    println!("descriptors: {before} before the clients, {} after them", descriptors(id));
    assert_eq!((pushed.errors, sum.refused), (0, 0));
    // In a minute the allocator has not seen all that it will.
    assert!(minutes < 30 || drift <= 0.01, "{drift}");
}

/// The mean of the resident memory over this time, in bytes.
async fn resident(process: u32, time: Duration) -> u64 {
    let end = Instant::now() + time;
    let (mut sum, mut samples) = (0, 0);
    while samples == 0 || Instant::now() < end {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        sum += line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024;
        samples += 1;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    sum / samples
}

fn descriptors(process: u32) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}

/// A legacy client that takes some messages, closes or resets, and comes again.
async fn visit_again_and_again(address: std::net::SocketAddr, number: usize) {
    for visit in 0.. {
        let source = ([127, 0, 2, 1 + (visit % 100) as u8], 0).into();
        let mut client = Client::connect_from(source, address).await;
        client.send_bind(&user(number), crate::EVENT).await;
        for _ in 0..1 + (visit + number) % 3 {
            client.next_text().await;
        }
        if visit % 2 == 0 {
            client.reset();
        } else {
            client.send(Message::Close(None)).await;
            while let Some(Ok(_)) = futures_util::StreamExt::next(&mut client.socket).await {}
        }
    }
}

//! A gateway that is killed under load and started again.

use std::time::{Duration, Instant};

use crate::crowd::{Crowd, Sum};
use crate::process::{GatewayProcess, pushgate};
use crate::pushing::Pushing;
use crate::{address, alone, size};

const PATIENCE: Duration = Duration::from_secs(120);

const KILLS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half a minute"]
async fn after_a_kill_all_clients_are_back_and_were_told_of_every_message_that_is_lost() {
    let _alone = alone().await;
    let clients = size("PUSHGATE_FLEET_CLIENTS", 1000);
    let address = address(1);
    let start = || tokio::task::block_in_place(|| GatewayProcess::start_at(&mut pushgate(), &address.to_string()));
    let mut gateway = start();
    let crowd = Crowd::come(address, clients, None).await;
    let pushing = Pushing::start(&[address], clients, 1000, None);
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_secs(3)).await;
        gateway.signal("KILL");
        let killed = Instant::now();
        tokio::task::block_in_place(|| gateway.wait());
        gateway = start();
        crowd.all_bound(PATIENCE).await;
        println!("{clients} clients are back {:.1} s after the kill", killed.elapsed().as_secs_f64());
    }
    let pushed = pushing.stop().await;
    let stories = crowd.go(&pushed.promised, PATIENCE).await;
    let sum = Sum::of(&stories);
    let promised: usize = pushed.promised.iter().map(Vec::len).sum();
    let with = |count: fn(&crate::crowd::Story, &[u64]) -> usize| -> usize {
        stories.iter().map(|story| count(story, &pushed.promised[story.number])).sum()
    };
    let (lost, silently_lost) = (with(crate::crowd::Story::lost), with(crate::crowd::Story::silently_lost));
    println!(
        "{} pushes, {promised} accepted, {} errors told to callers; {} received, {lost} lost with the kills and told by \
         {} new epochs, {silently_lost} lost silently; {:?}",
        pushed.pushes, pushed.errors, sum.distinct, sum.begun_anew, sum.closes
    );
    assert_eq!(silently_lost, 0);
    assert_eq!(sum.begun_anew, (KILLS * clients) as u64, "each client was told each time");
    assert_eq!(sum.received, sum.distinct, "none came twice");
}

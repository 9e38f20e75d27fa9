//! Measures the memory of an idle connection: how much the gateway's resident set grows per connection between 1,000
//! and 9,000 bound connections, for legacy clients and for sessions.
//!
//! ```sh
//! cargo bench --bench idle
//! PUSHGATE_OTHER=../other/target/release/pushgate cargo bench --bench idle
//! ```
//!
//! The second command compares with another build, alternating between the two in one run. Needs Linux's `/proc` and an
//! open file for each connection.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]

#[path = "../tests/support/process.rs"]
mod process;
mod support;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use futures_util::StreamExt;
use process::{GatewayProcess, pushgate};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const FEW: usize = 1_000;
const MANY: usize = 9_000;
const ROUNDS: usize = 3;
/// The number of connections being opened at the same time.
const AT_ONCE: usize = 32;

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Legacy,
    Session,
}

fn main() {
    let other = std::env::var_os("PUSHGATE_OTHER").map(PathBuf::from);
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    println!("bytes of memory per idle bound connection, from {FEW} to {MANY}, medians of {ROUNDS} rounds");
    for protocol in [Protocol::Legacy, Protocol::Session] {
        let (mut ours, mut others) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(runtime.block_on(measure(pushgate(), protocol)));
            if let Some(other) = &other {
                others.push(runtime.block_on(measure(Command::new(other), protocol)));
            }
        }
        print!("  {:<10} {:>6.0}", format!("{protocol:?}").to_lowercase(), median(&mut ours));
        if others.is_empty() {
            println!();
        } else {
            let other = median(&mut others);
            println!("  other build {other:>6.0}  ratio {:.2}", median(&mut ours) / other);
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn measure(mut command: Command, protocol: Protocol) -> f64 {
    // The clients do not answer pings, so the gateway must not send any.
    let gateway = GatewayProcess::start_as(command.env("PUSHGATE_PING_INTERVAL", "1h"));
    let mut clients = Vec::new();
    bind(&gateway, &mut clients, FEW, protocol).await;
    let few = resident_bytes(gateway.process.id());
    bind(&gateway, &mut clients, MANY, protocol).await;
    let many = resident_bytes(gateway.process.id());
    (many - few) / (MANY - FEW) as f64
}

/// Opens connections until `count` are bound, each for a different user.
async fn bind(gateway: &GatewayProcess, clients: &mut Vec<TcpStream>, count: usize, protocol: Protocol) {
    let opened = futures_util::stream::iter(clients.len()..count)
        .map(|number| match protocol {
            Protocol::Legacy => {
                let bind = format!(r#"{{"token":"user-{number}","event":"mail"}}"#);
                (String::new(), bind)
            }
            Protocol::Session => {
                let bind = format!(r#"{{"type":"bind","token":"user-{number}","event":"mail"}}"#);
                ("sec-websocket-protocol: pushgate.v1.json\r\n".to_owned(), bind)
            }
        })
        .map(|(headers, bind)| async move { support::connect(gateway.clients, &headers, &bind).await })
        .buffer_unordered(AT_ONCE);
    clients.extend(opened.collect::<Vec<_>>().await);
    while bindings(gateway).await < count {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn bindings(gateway: &GatewayProcess) -> usize {
    let mut stream = TcpStream::connect(gateway.control).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.lines().find_map(|line| line.strip_prefix("pushgate_bindings ")).unwrap().parse().unwrap()
}

fn resident_bytes(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("Linux's /proc is needed");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<f64>().unwrap() * 1024.0
}

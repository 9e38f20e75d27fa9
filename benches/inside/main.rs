//! Measures the rooms from inside, without sockets and without a peer: what the binder costs, what a connection costs where
//! a million of them are in one process, and what a second worker brings.
//!
//! ```sh
//! cargo bench --locked --features inside --bench inside
//! cargo bench --locked --features inside --bench inside -- --json
//! cargo bench --locked --features inside --bench inside -- binder workers
//! ```
//!
//! Each part runs in a process of its own. Needs Linux's `/proc`, and 4 GiB of memory for the million connections.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]

mod binder;
mod connections;
mod workers;

use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::FutureExt;
use pushgate::{Config, Gateway, Outcome, Push};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};

/// A part by its name, and how it is measured.
type Part = (&'static str, fn() -> Vec<Figure>);

const PARTS: [Part; 3] =
    [("binder", binder::measure), ("connections", connections::measure), ("workers", workers::measure)];

/// Marks a process that measures one part and prints it for the process that started it.
const MEASURES: &str = "PUSHGATE_INSIDE_PART";

/// One measured value.
#[derive(Serialize, Deserialize)]
struct Figure {
    name: String,
    value: f64,
    unit: String,
    /// What it should be, in words.
    target: Option<String>,
}

/// Makes a push that has no idempotency key, which waits for nothing.
fn pushed(gateway: &Gateway, push: &Push) -> Outcome {
    gateway.push(push).now_or_never().unwrap().unwrap()
}

fn figure(name: impl Into<String>, value: f64, unit: &str) -> Figure {
    Figure { name: name.into(), value, unit: unit.to_owned(), target: None }
}

impl Figure {
    fn should_be(mut self, target: &str) -> Self {
        self.target = Some(target.to_owned());
        self
    }
}

fn main() {
    if let Ok(part) = std::env::var(MEASURES) {
        let (_, measure) = PARTS.into_iter().find(|(name, _)| *name == part).unwrap();
        println!("{}", serde_json::to_string(&measure()).unwrap());
        // Nobody waits for a million connections to be closed one by one.
        std::process::exit(0);
    }
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let is_json = arguments.iter().any(|argument| argument == "--json");
    let names: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_selected = |part: &str| names.is_empty() || names.iter().any(|name| *name == part);
    let mut report = serde_json::Map::new();
    for (part, _) in PARTS.into_iter().filter(|(part, _)| is_selected(part)) {
        let figures = figures_of(part);
        if is_json {
            report.insert(part.to_owned(), serde_json::to_value(figures).unwrap());
            continue;
        }
        println!("{part}");
        for Figure { name, value, unit, target } in figures {
            let target = target.map(|target| format!("  ({target})")).unwrap_or_default();
            let decimals = if value < 10.0 { 2 } else { 0 };
            println!("  {name:<58} {value:>12.decimals$} {unit}{target}");
        }
    }
    if is_json {
        println!("{:#}", serde_json::Value::from(report));
    }
}

/// Measures one part in a process of its own, so that the memory of one is not used again by the next.
fn figures_of(part: &str) -> Vec<Figure> {
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program).env(MEASURES, part).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{part} failed");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A gateway that listens on free ports and has no reason to close a client or to ping it.
fn config() -> Config {
    let hour = Duration::from_secs(3600);
    Config {
        listen: ([127, 0, 0, 1], 0).into(),
        connections_max: 1 << 24,
        connections_per_address_max: 0,
        connections_per_user_max: 0,
        ping_interval: hour,
        ..Config::default()
    }
}

fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// The CPU time of this thread or of the whole process: what else the machine does takes nothing from it.
fn cpu_time(clock: ClockId) -> Duration {
    Duration::try_from(clock_gettime(clock)).unwrap()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Small, fast and the same on every machine: xorshift64*.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
    }
}

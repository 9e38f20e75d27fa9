//! Produces the figures of the README. Compares the gateway with the floor server of `examples/floor.rs`, alternating
//! between the two, each measured by `pushgate bench`.
//!
//! ```sh
//! cargo bench --locked --bench report
//! cargo bench --locked --bench report -- --quick
//! cargo bench --locked --bench report -- row4 row6
//! ```
//!
//! Prints a table in Markdown. The first command also writes `benches/report.json` and `benches/report.svg`. Needs
//! Linux's `/proc` and 20,000 open files.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]

#[path = "../../tests/support/process.rs"]
mod process;
mod rows;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use process::{GatewayProcess, Process, pushgate};
use rows::{ROWS, Row, Server, Value};

/// The number of rounds of a full run. The ratio is the median of the ratios of all rounds, because the two runs of one
/// round share the same load on the machine.
const ROUNDS: usize = 5;
/// A row that is measured for longer than this has fewer rounds.
const LONG_SECONDS: f64 = 10.0;

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let names: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_selected = |row: &&Row| names.is_empty() || names.iter().any(|name| *name == row.name);
    let rows: Vec<_> = ROWS.iter().filter(is_selected).collect();
    assert!(!rows.is_empty(), "no such row: {names:?}");
    let bench = Bench { quick, floors: floors() };
    println!("| what | | gateway | beside | ratio | target | |\n|---|---|---|---|---|---|---|");
    let mut results = Vec::new();
    for row in rows {
        results.extend(bench.row(row));
    }
    if !quick && names.is_empty() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/report.json");
        std::fs::write(file, format!("{:#}\n", serde_json::Value::from(results))).unwrap();
    }
}

/// Builds the floor servers and returns the folder of their programs.
fn floors() -> std::path::PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--quiet", "--release", "--locked", "--example", "floor", "--example", "floor_grpc"])
        .status();
    assert!(built.is_ok_and(|status| status.success()), "the floor server cannot be built");
    let program = Path::new(env!("CARGO_BIN_EXE_pushgate"));
    program.with_file_name("examples")
}

struct Bench {
    quick: bool,
    floors: std::path::PathBuf,
}

impl Bench {
    fn row(&self, row: &Row) -> Vec<serde_json::Value> {
        let rounds = match (self.quick, row.seconds > LONG_SECONDS) {
            (true, _) => 1,
            (_, true) => 3,
            _ => ROUNDS,
        };
        let mut runs = Vec::new();
        for _ in 0..rounds {
            let ours = self.run(Server::Gateway, row, row.arguments);
            let other = row.other.map(|(server, arguments)| self.run(server, row, arguments));
            runs.push((ours, other));
        }
        row.values.iter().map(|value| print_row(row, value, &runs)).collect()
    }

    /// Starts a server, runs `pushgate bench` against it and returns its report.
    fn run(&self, server: Server, row: &Row, arguments: &str) -> serde_json::Value {
        let mut push_url = None;
        let (process, address) = match server {
            Server::Gateway => {
                let gateway = GatewayProcess::start_as(
                    pushgate()
                        // Clients may be slow because everything shares one machine. They must not be closed for that.
                        .env("PUSHGATE_OUTBOX_MESSAGES_MAX", "1000000")
                        .env("PUSHGATE_OUTBOX_BYTES_MAX", if row.name == "row11" { "1MiB" } else { "1000000000" }),
                );
                (gateway.process, gateway.clients)
            }
            Server::Floor => {
                let process = Process::start(Command::new(self.floors.join("floor")).arg("127.0.0.1:0"));
                let address = addresses(&process)[0];
                (process, address)
            }
            Server::FloorGrpc => {
                let process = Process::start(&mut Command::new(self.floors.join("floor_grpc")));
                let addresses = addresses(&process);
                push_url = Some(format!("http://{}", addresses[1]));
                (process, addresses[0])
            }
        };
        let seconds = match self.quick {
            true if row.seconds > LONG_SECONDS => row.seconds / 2.0,
            true => row.seconds.min(1.0),
            false => row.seconds,
        };
        let mut command = pushgate();
        command.args(["bench", "--json", "--url", &format!("ws://{address}/ws"), "--pid", &process.id().to_string()]);
        command.args(push_url.iter().flat_map(|url| ["--push-url", url]));
        command.args(arguments.split_whitespace()).args(["--duration", &format!("{}ms", seconds * 1000.0)]);
        if row.name == "row9" && server == Server::Gateway && !self.quick {
            command.arg("--plot").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/report.svg"));
        }
        let output = command.output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error} in {printed}"))
    }
}

/// The addresses that a floor server says it is up on.
fn addresses(process: &Process) -> Vec<SocketAddr> {
    let line = process.stdout_line("floor is up on ");
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Prints one line of the table and returns its values.
fn print_row(row: &Row, value: &Value, runs: &[(serde_json::Value, Option<serde_json::Value>)]) -> serde_json::Value {
    let read = |run: &serde_json::Value| run.pointer(value.pointer)?.as_f64().map(value.of);
    let ours = median(runs.iter().filter_map(|(ours, _)| read(ours)));
    let other = median(runs.iter().filter_map(|(_, other)| read(other.as_ref()?)));
    let ratio = median(runs.iter().filter_map(|(ours, other)| Some(read(ours)? / read(other.as_ref()?)?)));
    let lost = |run: &serde_json::Value| run.pointer("/deliveries/lost").and_then(serde_json::Value::as_u64);
    let lost: u64 = runs.iter().filter_map(|(ours, _)| lost(ours)).sum();
    let text = |number: Option<f64>| match number {
        None => String::new(),
        Some(number) if number < 100.0 => format!("{number:.2}"),
        Some(number) => format!("{number:.0}"),
    };
    let (title, name, target) = (row.title, value.name, value.target);
    let is_met = target.is_met(ours, ratio);
    let verdict = if is_met { "met" } else { "missed" };
    let note = if lost > 0 { format!(" ({lost} lost)") } else { String::new() };
    println!("| {title} | {name} | {}{note} | {} | {} | {target} | {verdict} |", text(ours), text(other), text(ratio));
    serde_json::json!({
        "row": row.name, "title": title, "value": name, "arguments": row.arguments, "rounds": runs.len(),
        "gateway": ours, "beside": other, "ratio": ratio, "lost": lost, "target": target.to_string(), "is_met": is_met,
    })
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<_> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

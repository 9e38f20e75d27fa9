//! The fuzzing client of Autobahn|Testsuite with the gateway's own connections, which send back what they get, and with
//! tokio-tungstenite alone beside them.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::process::Process;
use crate::tools::{Project, tool};

#[expect(dead_code, reason = "its main function is for people")]
#[path = "../../examples/echo.rs"]
mod echo;

/// The suite sends some hundred megabytes, which both sides mask byte by byte.
const VERY_LONG: Duration = Duration::from_secs(1200);

/// The names under which the two are in the report.
const GATEWAY: &str = "pushgate";
const BARE: &str = "tokio-tungstenite";

fn serve<F>(runtime: &Runtime, server: fn(TcpListener) -> F) -> SocketAddr
where
    F: Future<Output = Result<(), Box<dyn Error>>> + 'static,
{
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
    let address = listener.local_addr().expect("an address");
    let handle = runtime.handle().clone();
    std::thread::spawn(move || handle.block_on(server(listener)).expect("serves"));
    address
}

#[test]
#[ignore = "needs Autobahn|Testsuite, and takes some minutes"]
fn outside_compression_the_suite_finds_nothing_wrong_nor_lenient() {
    let runtime = Runtime::new().expect("a runtime");
    let server = |agent: &str, address: SocketAddr| json!({"agent": agent, "url": format!("ws://{address}")});
    let servers = [server(GATEWAY, serve(&runtime, echo::echo)), server(BARE, serve(&runtime, echo::bare))];
    let project = Project::new();
    // The gateway offers no compression, which 12 and 13 are about.
    let spec = json!({"outdir": "report", "servers": servers, "cases": ["*"], "exclude-cases": ["12.*", "13.*"]});
    project.write("spec.json", &spec.to_string());
    let mut wstest = tool("wstest/bin/wstest");
    Process::start(wstest.args(["-m", "fuzzingclient", "-s", "spec.json"]).current_dir(project.path()))
        .succeed(VERY_LONG);
    let report = std::fs::read(project.path().join("report/index.json")).expect("a report");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    let (mut counts, mut wrong) = (BTreeMap::<_, usize>::new(), Vec::new());
    for agent in [GATEWAY, BARE] {
        for (case, result) in report[agent].as_object().expect("results") {
            for kind in ["behavior", "behaviorClose"] {
                let found = result[kind].as_str().expect("a word");
                *counts.entry((agent, kind, found.to_owned())).or_default() += 1;
                if agent == GATEWAY && !["OK", "INFORMATIONAL"].contains(&found) {
                    wrong.push(format!("{case} {kind}: {found}"));
                }
            }
        }
    }
    for ((agent, kind, found), count) in &counts {
        println!("{agent:<18} {kind:<14} {found:<14} {count:>4}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let cases = report[GATEWAY].as_object().map_or(0, serde_json::Map::len);
    assert_eq!(cases, 301, "the suite has other cases than it had");
}

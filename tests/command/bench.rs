//! `pushgate bench` against a gateway: by every door and to everyone it counts what it sent, and what arrives is all of
//! it. No time is asserted.

use serde_json::Value;

use crate::process::GatewayProcess;
use crate::{pushgate, run, stderr, stdout};

/// A short run.
fn bench(gateway: &GatewayProcess, more: &str) -> Value {
    let mut command = command(gateway, more);
    let printed = stdout(&command.args(["--json", "--duration", "300ms"]).output().unwrap());
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error} in {printed}"))
}

fn command(gateway: &GatewayProcess, more: &str) -> std::process::Command {
    let url = format!("ws://{}/ws", gateway.clients);
    let mut command = pushgate(&["bench", "--url", &url]);
    command.args(more.split_whitespace());
    command
}

#[test]
fn by_every_door_and_to_everyone_all_that_was_pushed_arrives() {
    let gateway = GatewayProcess::start([""; 0]);
    for door in ["json", "grpc", "batch --batch 10", "stream"] {
        for to in ["one", "many", "many --order random", "broadcast"] {
            if to == "broadcast" && door != "grpc" {
                continue;
            }
            for pace in ["--callers 2", "--rate 200"] {
                let case = format!("--door {door} --to {to} {pace} --connections 10 --warm-up 50ms");
                let report = bench(&gateway, &case);
                let count =
                    |path: &str| report.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path}"));
                let (pushes, received) = (count("/pushes"), count("/deliveries/received"));
                assert!(pushes > 0 && count("/failures") == 0, "{case}: {report}");
                assert_eq!(received, count("/deliveries/expected"), "{case}: {report}");
                assert_eq!(received, count("/deliveries/accepted"), "{case}: {report}");
                assert_eq!(count("/deliveries/lost"), 0, "{case}: {report}");
                let each = if to.starts_with("many") { 1 } else { 10 };
                assert_eq!(received, pushes * each, "{case}: {report}");
                if pace.starts_with("--rate") {
                    // As many as were due, whatever the gateway did.
                    assert_eq!(pushes, 60, "{case}: {report}");
                }
            }
        }
    }
}

#[test]
fn the_object_has_times_in_order_and_what_the_server_took() {
    let gateway = GatewayProcess::start([""; 0]);
    let folder = tempfile::tempdir().unwrap();
    let plot = folder.path().join("plot.svg");
    let report = bench(&gateway, &format!("--connections 40 --stalled 10 --plot {}", plot.display()));
    for times in ["push_call_us", "push_to_receipt_us"] {
        let times = ["p50", "p90", "p99", "p99.9", "max"].map(|name| report[times][name].as_f64().unwrap());
        assert!(times[0] > 0.0 && times.is_sorted(), "{report}");
    }
    assert_eq!((report["connections"].as_u64(), report["reading"].as_u64()), (Some(40), Some(36)));
    let svg = std::fs::read_to_string(&plot).unwrap();
    assert!(svg.starts_with("<svg ") && svg.contains("push to receipt") && svg.contains("percentile"), "{svg}");
    if cfg!(target_os = "linux") {
        assert_eq!(report["server"]["pid"], gateway.process.id(), "found by the port");
        assert!(report["server"]["cpu_us_per_push"].is_number(), "{report}");
        assert!(report["server"]["resident_bytes_per_connection"].is_number(), "{report}");
    }
}

#[test]
fn held_clients_are_bound_by_either_protocol_and_get_nothing() {
    let gateway = GatewayProcess::start([""; 0]);
    for protocol in ["", "--session"] {
        let report = bench(&gateway, &format!("--hold --to many --connections 50 {protocol}"));
        assert_eq!((report["pushes"].as_u64(), report["connections_ended"].as_u64()), (Some(0), Some(0)), "{report}");
        assert!(report["server"].is_null() || report["server"]["idle_cpu_us_per_connection_second"].is_number());
    }
    let metrics = crate::get(&gateway, "/metrics");
    assert!(metrics.contains("pushgate_binds_total 100\n"), "{metrics}");
}

#[test]
fn an_interrupt_ends_it_with_the_table_of_what_was_measured() {
    let gateway = GatewayProcess::start([""; 0]);
    let mut bench = crate::process::Process::start(command(&gateway, "--connections 5").args(["--duration", "1h"]));
    while !crate::get(&gateway, "/metrics").contains("pushgate_bindings 5\n") {}
    // It may still be on its way to its first push.
    while crate::get(&gateway, "/metrics").contains("pushgate_push_seconds_count 0\n") {}
    bench.signal("INT");
    assert!(bench.wait().success(), "{}", bench.stderr());
    let table = bench.stdout();
    assert!(table.contains("5 bound") && table.contains("interrupted: "), "{table}");
}

#[test]
fn what_cannot_be_measured_is_said_in_words() {
    for (arguments, said) in [
        (&["--to", "broadcast"][..], "`--to broadcast` needs `--door grpc`"),
        (&["--order", "random"], "`--order` chooses among users"),
        (&["--memory-from", "200"], "`--memory-from` must be less than `--connections`"),
        (&["--rate", "0"], "must be a number of pushes a second"),
        (&["--duration", "0s"], "must be more than 0"),
        (&["--connections", "0"], "0 is not in 1.."),
        (&["--bytes", "3"], "3 is not in 19.."),
        (&["--stalled", "100"], "100 is not in 0.."),
        (&["--hold", "--rate", "5"], "cannot be used with"),
        (&["--session"], "--hold"),
    ] {
        let output = run(&[&["bench"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(stderr(&output).contains(said), "{said} in {output:?}");
    }
    for (arguments, said) in [
        (&["--connections", "9999999"][..], "or run several of this command"),
        (&["--url", "http://127.0.0.1/ws"], "must begin with ws://"),
        (&["--url", "ws://127.0.0.1:1/ws"], "client 1 of 12 was not bound: "),
        (&["--pid", "2147483647"], "cannot read what process 2147483647 uses"),
    ] {
        let output = run(&[&["bench"], arguments].concat());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(stderr(&output).contains(said), "{said} in {output:?}");
    }
    let gateway = GatewayProcess::start([""; 0]);
    let url = format!("ws://{}/nowhere", gateway.clients);
    let nowhere = run(&["bench", "--url", &url]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(stderr(&nowhere).contains("the upgrade was answered HTTP/1.1 404"), "{nowhere:?}");
}

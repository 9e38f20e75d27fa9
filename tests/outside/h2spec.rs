//! h2spec with the control address: every case of HTTP/2 and HPACK, but for those in `h2spec.expected`.

use std::collections::{BTreeMap, BTreeSet};

use crate::certificates::Authority;
use crate::process::{GatewayProcess, Process, pushgate};
use crate::tools::{LONG, root, tool};

const YEAR: i32 = 2090;

/// The cases that fail on a kind of address, as `package/number`: always, or sometimes.
fn expected(address: &str, how: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("tests/outside/h2spec.expected")).expect("the list");
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let words = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
    words.filter(|words| words[..2] == [address, how]).map(|words| words[2].to_owned()).collect()
}

#[track_caller]
fn check(address: &str, failed: &BTreeSet<String>) {
    let (always, sometimes) = (expected(address, "always"), expected(address, "sometimes"));
    let failed: BTreeSet<_> = failed.difference(&sometimes).cloned().collect();
    assert_eq!(failed, always, "left are those that failed, right those that are expected to");
}

/// Runs every case, and returns those that failed or were skipped.
fn failed(gateway: &GatewayProcess, flags: &[&str]) -> BTreeSet<String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = folder.path().join("report.xml");
    let port = gateway.control.port().to_string();
    // The page has enough bytes for the cases about windows.
    let mut h2spec = tool("bin/h2spec");
    h2spec.args(["-h", "127.0.0.1", "-p", &port, "-P", "/", "--strict", "-o", "10", "-j"]).arg(&report).args(flags);
    Process::start(&mut h2spec).wait_for(LONG);
    let report = std::fs::read_to_string(report).expect("a report");
    let mut cases = BTreeMap::<&str, usize>::new();
    let mut failed = BTreeSet::new();
    for case in report.split("<testcase ").skip(1) {
        let package = case.split('"').nth(1).expect("a package");
        let number = cases.entry(package).or_default();
        *number += 1;
        if case.contains("<failure") || case.contains("<error") || case.contains("<skipped") {
            failed.insert(format!("{package}/{number}"));
        }
    }
    let count: usize = cases.values().sum();
    println!("{} of {count} cases passed", count - failed.len());
    assert!(count >= 146, "only {count} cases were run");
    failed
}

#[test]
#[ignore = "needs h2spec"]
fn over_tcp_the_control_address_speaks_http2_as_h2spec_has_it() {
    let gateway = GatewayProcess::start(["--control-listen", "127.0.0.1:0"]);
    check("tcp", &failed(&gateway, &[]));
}

#[test]
#[ignore = "needs h2spec"]
fn over_tls_the_control_address_speaks_http2_as_h2spec_has_it() {
    let authority = Authority::new("ca");
    let files = authority.issue("own", &["127.0.0.1"], YEAR);
    let mut command = pushgate();
    command.env("PUSHGATE_CONTROL_TLS_CERT_FILE", files.certificate).env("PUSHGATE_CONTROL_TLS_KEY_FILE", files.key);
    let gateway = GatewayProcess::start_as(command.args(["--control-listen", "127.0.0.1:0"]));
    check("tls", &failed(&gateway, &["--tls", "--insecure"]));
}

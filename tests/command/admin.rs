//! `drain`, `undrain` and `revoke`: what they print and exit with.

use crate::process::GatewayProcess;
use crate::{run, stderr};

fn says(arguments: &[&str], address: &str) -> (Option<i32>, String) {
    let output = run(&[arguments, &["--address", address]].concat());
    let said = if output.status.success() { String::from_utf8(output.stdout).unwrap() } else { stderr(&output) };
    (output.status.code(), said)
}

#[test]
fn a_gateway_is_drained_and_undrained() {
    let mut gateway = GatewayProcess::start([""; 0]);
    let address = gateway.control.to_string();
    let said = |arguments: &[&str]| says(arguments, &address);
    let ok = |line: &str| (Some(0), format!("{line}\n"));
    assert_eq!(said(&["undrain"]), ok("it was not draining, and has 0 connections open"));
    assert_eq!(said(&["drain", "--period", "1h"]), ok("draining: 0 connections to close over 1h"));
    assert_eq!(said(&["drain"]), ok("draining again: 0 connections to close over 0s"));
    assert_eq!(said(&["undrain"]), ok("undrained, with 0 connections open"));
    let (code, said) = said(&["drain", "--period", "2days"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("the gateway answered InvalidArgument: the period is not a time from 0 to 24"), "{said}");
    assert_eq!(run(&["drain", "--period", "soon"]).status.code(), Some(2));
    gateway.signal("TERM");
    gateway.wait();
    let log = gateway.stderr();
    let audit: Vec<_> = log.lines().filter(|line| line.contains("pushgate::audit")).collect();
    assert_eq!(audit.len(), 4, "{log}");
    assert!(audit[1].contains("act=\"drain\"") && audit[1].contains("caller=\"anyone\""), "{log}");
}

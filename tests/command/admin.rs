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

#[test]
fn tokens_are_revoked_and_the_user_is_in_no_log() {
    let mut gateway = GatewayProcess::start([""; 0]);
    let address = gateway.control.to_string();
    let said = |arguments: &[&str]| says(arguments, &address);
    let until = "2030-01-01T00:00:00Z";
    let (code, line) = said(&["revoke", "--user", "canary-user", "--expires-at", until]);
    assert_eq!(
        (code, line.as_str()),
        (Some(0), "revoked until 2030-01-01T00:00:30Z, closed 0 connections, ended 0 sessions without one\n")
    );
    assert_eq!(said(&["revoke", "--user", "canary-user", "--issued-before", "2026-01-01T00:00:00Z"]).0, Some(0));
    assert_eq!(said(&["revoke", "--token-id", "canary-token"]).0, Some(0));
    let (code, refused) = said(&["revoke", "--token-id", ""]);
    assert_eq!(code, Some(1));
    assert!(refused.contains("the gateway answered InvalidArgument: the token id is empty"), "{refused}");
    for wrong in [
        &["revoke"][..],
        &["revoke", "--user", "a", "--token-id", "b"],
        &["revoke", "--token-id", "b", "--issued-before", until],
        &["revoke", "--user", "a", "--issued-before", "now"],
    ] {
        assert_eq!(run(wrong).status.code(), Some(2), "{wrong:?}");
    }
    let mut phone = crate::pushgate(&["listen", "--token", "canary-user", "--event", "mail"]);
    phone.args(["--url", &format!("ws://{address}/ws")]);
    assert!(stderr(&phone.output().unwrap()).contains("4401"), "a token without an id or a time is its user's");
    gateway.signal("TERM");
    gateway.wait();
    let log = gateway.stderr();
    for (act, lines) in [("revoke_user", 2), ("revoke_token", 1)] {
        assert_eq!(log.lines().filter(|line| line.contains(&format!("act=\"{act}\""))).count(), lines, "{log}");
    }
    assert!(!log.contains("canary"), "{log}");
}

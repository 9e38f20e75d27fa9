//! The command on both sides of TLS.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Stdio;

use crate::certificates::{Authority, Files};
use crate::process::{GatewayProcess, Process};
use crate::{pushgate, run, stderr, stdout};

const YEAR: i32 = 2090;

fn path(file: &std::path::Path) -> &str {
    file.to_str().unwrap()
}

/// A gateway that speaks TLS on its only address, as `localhost`.
fn start(files: &Files) -> GatewayProcess {
    let mut command = pushgate(&[]);
    command.env("PUSHGATE_TLS_CERT_FILE", &files.certificate).env("PUSHGATE_TLS_KEY_FILE", &files.key);
    GatewayProcess::start_as(command.env("PUSHGATE_LOG", "debug"))
}

fn push(gateway: &GatewayProcess, message: &str, more: &[&str]) -> std::process::Output {
    let address = format!("https://localhost:{}", gateway.control.port());
    let mut arguments = vec!["push", "ann", "mail", message, "--address", &address];
    arguments.extend(more);
    run(&arguments)
}

#[test]
fn the_command_listens_and_pushes_over_tls_and_sighup_keeps_its_socket() {
    let authority = Authority::new("ca");
    let files = authority.issue("own", &["localhost"], YEAR);
    let gateway = start(&files);
    let ca_file = authority.ca_file();
    let trusting = ["--ca-file", path(&ca_file)];
    let url = format!("wss://localhost:{}/ws", gateway.clients.port());
    let mut listen = pushgate(&["listen", "--token", "ann", "--event", "mail", "--url", &url]);
    let mut listener = listen.args(trusting).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(listener.stdout.take().unwrap()).lines();
    let mut pushed = |message: &str| {
        // The listener may not have bound yet.
        while !stdout(&push(&gateway, message, &trusting)).starts_with("accepted by 1 of 1 connection,") {}
        assert_eq!(lines.next().unwrap().unwrap(), message);
    };
    pushed("hello");

    let another = Authority::new("another");
    let new = another.issue("new", &["localhost"], YEAR);
    std::fs::copy(&new.certificate, &files.certificate).unwrap();
    gateway.signal("HUP");
    let told = gateway.process.stderr_line("not reloaded, the previous content of this file stays in use");
    assert!(told.contains("own.key: this is not the key of the certificate in"), "{told}");
    pushed("with the old certificate");

    std::fs::copy(&new.key, &files.key).unwrap();
    gateway.signal("HUP");
    gateway.process.stderr_line("certificates reloaded");
    let refused = push(&gateway, "with the new certificate", &trusting);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("UnknownIssuer (name the CA of its certificate with --ca-file)"), "{refused:?}");
    let ca_file = another.ca_file();
    let trusting = ["--ca-file", path(&ca_file)];
    assert!(stdout(&push(&gateway, "still there", &trusting)).starts_with("accepted by 1 of 1 connection,"));
    assert_eq!(lines.next().unwrap().unwrap(), "still there");
    listener.kill().and_then(|()| listener.wait()).unwrap();
}

#[test]
fn the_command_shows_its_certificate_where_one_is_asked_for() {
    let (own, callers) = (Authority::new("own"), Authority::new("callers"));
    let files = own.issue("control", &["127.0.0.1"], YEAR);
    let gateway = GatewayProcess::start_as(
        pushgate(&["--control-listen", "127.0.0.1:0"])
            .env("PUSHGATE_CONTROL_TLS_CERT_FILE", &files.certificate)
            .env("PUSHGATE_CONTROL_TLS_KEY_FILE", &files.key)
            .env("PUSHGATE_CONTROL_TLS_CLIENT_CA_FILE", callers.ca_file()),
    );
    let (address, ca_file) = (format!("https://{}", gateway.control), own.ca_file());
    let arguments = ["push", "ann", "mail", "m", "--address", &address, "--ca-file", path(&ca_file)];
    let shown = callers.issue("caller", &["caller.internal"], YEAR);
    let mut push = pushgate(&arguments);
    push.arg("--cert-file").arg(&shown.certificate).arg("--key-file").arg(&shown.key);
    assert!(stdout(&push.output().unwrap()).starts_with("accepted by 0 of 0 connections,"));
    let refused = run(&arguments);
    assert_eq!(refused.status.code(), Some(1));
    let said = stderr(&refused);
    assert!(said.contains("(if it asks for a certificate, show one with --cert-file and --key-file)"), "{said}");
}

#[test]
fn a_benchmark_over_tls_pushes_by_every_door_and_all_of_it_arrives() {
    let authority = Authority::new("ca");
    let gateway = start(&authority.issue("own", &["localhost"], YEAR));
    let url = format!("wss://localhost:{}/ws", gateway.clients.port());
    let ca_file = authority.ca_file();
    let bench = |more: &[&str]| {
        let arguments = ["bench", "--url", &url, "--connections", "10", "--duration", "300ms", "--json"];
        run(&[&arguments[..], more].concat())
    };
    for door in ["json", "grpc", "batch", "stream"] {
        // Larger than a record of TLS.
        let output =
            bench(&["--ca-file", path(&ca_file), "--door", door, "--batch", "2", "--bytes", "20000", "--rate", "50"]);
        let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
        let count = |name: &str| report["deliveries"][name].as_u64().unwrap();
        assert!(count("expected") > 0 && report["failures"] == 0, "{door}: {report}");
        assert_eq!((count("received"), count("lost")), (count("expected"), 0), "{door}: {report}");
    }
    let distrusting = bench(&[]);
    assert_eq!(distrusting.status.code(), Some(1));
    let said = stderr(&distrusting);
    assert!(said.contains("was not bound: ") && said.contains("UnknownIssuer (name the CA"), "{said}");
}

#[test]
fn plain_http_at_a_tls_address_is_told_in_the_log_and_to_the_caller() {
    let authority = Authority::new("ca");
    let gateway = start(&authority.issue("own", &["localhost"], YEAR));
    let mut stream = TcpStream::connect(gateway.clients).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let told = gateway.process.stderr_line("a peer did not speak TLS, as this address does");
    assert!(told.contains("result=not_tls") && told.contains("listener=all"), "{told}");
    let refused = run(&["push", "ann", "mail", "m", "--address", &gateway.control.to_string()]);
    let said = stderr(&refused);
    assert!(said.contains("no answer from a gateway") && said.contains("begins with https://"), "{said}");
}

#[test]
fn the_hints_name_the_schemes_that_the_addresses_speak() {
    let authority = Authority::new("ca");
    let gateway = start(&authority.issue("own", &["localhost"], YEAR));
    let hint = gateway.process.stdout_line("pushgate listen");
    assert!(hint.contains(&format!("--url wss://{}/ws", gateway.clients)), "{hint}");
    let hint = gateway.process.stdout_line("pushgate push");
    assert!(hint.contains(&format!("--address https://{}", gateway.control)), "{hint}");
    gateway.process.stdout_line("--ca-file CA.pem");
}

#[test]
fn a_wrong_file_is_named_with_its_setting_and_its_source_beside_all_other_mistakes() {
    let authority = Authority::new("ca");
    let files = authority.issue("own", &["localhost"], YEAR);
    std::fs::write(&files.key, "-----BEGIN PRIVATE KEY-----\n").unwrap();
    for subcommand in ["check-config", "serve"] {
        let mut command = pushgate(&[subcommand, "--tokens-file", "/no/such/tokens"]);
        command.env("PUSHGATE_TLS_CERT_FILE", &files.certificate).env("PUSHGATE_TLS_KEY_FILE", &files.key);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        let said = stderr(&output);
        assert!(said.contains("tokens_file (flag --tokens-file): cannot read /no/such/tokens"), "{said}");
        let source = "tls_key_file (environment variable PUSHGATE_TLS_KEY_FILE): ";
        assert!(
            said.contains(source) && said.contains("own.key: line 1: this begins a PRIVATE KEY that does"),
            "{said}"
        );
    }
}

#[test]
fn a_file_of_the_callers_that_is_wrong_is_named() {
    let push = |flags: &[&str]| {
        let mut command = pushgate(&["push", "ann", "mail", "m", "--address", "https://127.0.0.1:1"]);
        Process::start(command.args(flags)).fail(crate::process::PATIENCE)
    };
    assert!(push(&["--ca-file", "/no/such.pem"]).contains("cannot read /no/such.pem"));
    let authority = Authority::new("ca");
    let key = authority.issue("own", &["localhost"], YEAR).key;
    assert!(push(&["--ca-file", path(&key)]).contains("own.key holds no certificate"));
    assert!(push(&["--cert-file", path(&key)]).contains("--key-file"), "one without the other");
}

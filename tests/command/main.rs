//! The `pushgate` command as a user runs it: the real program, its exit codes and its signals.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod admin;
mod bench;
mod calls;
#[path = "../support/certificates.rs"]
mod certificates;
mod jwt;
mod log;
#[path = "../support/process.rs"]
mod process;
mod security;
#[path = "../support/signer.rs"]
mod signer;
mod systemd;
mod tls;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

use process::GatewayProcess;

fn pushgate(arguments: &[&str]) -> Command {
    let mut command = process::pushgate();
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    pushgate(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// `pushgate listen`, killed when dropped, bound when this returns.
struct Listener {
    child: std::process::Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Listener {
    fn start(gateway: &GatewayProcess, token: &str, event: &str, more: &[&str]) -> Self {
        let before = binds(gateway);
        let url = format!("ws://{}/ws", gateway.clients);
        let mut command = pushgate(&["listen", "--token", token, "--event", event, "--url", &url]);
        let mut child = command.args(more).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        while binds(gateway) == before {
            assert_eq!(child.try_wait().unwrap(), None, "the listener ended");
        }
        Self { child, out }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line
    }

    /// Waits for its end, and returns its exit code and what it said of it.
    fn end(mut self) -> (Option<i32>, String) {
        let code = self.child.wait().unwrap().code();
        (code, std::io::read_to_string(self.child.stderr.take().unwrap()).unwrap())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ended_already = self.child.kill().and_then(|()| self.child.wait());
    }
}

fn get(gateway: &GatewayProcess, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(gateway.control).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    std::io::read_to_string(stream).unwrap()
}

fn binds(gateway: &GatewayProcess) -> String {
    let metrics = get(gateway, "/metrics");
    metrics.lines().find(|line| line.starts_with("pushgate_binds_total ")).unwrap().to_owned()
}

#[test]
fn push_drop_and_listen_talk_to_a_running_gateway() {
    let gateway = GatewayProcess::start([""; 0]);
    let address = format!("http://{}", gateway.control);
    let push = |message: &str| stdout(&run(&["push", "ann", "mail", message, "--address", &address]));
    assert!(push("nobody there").starts_with("accepted by 0 of 0 connections, message "));
    let mut counted = Listener::start(&gateway, "ann", "mail", &["--count", "1"]);
    let mut listener = Listener::start(&gateway, "ann", "mail", &[]);
    assert!(push("hello").starts_with("accepted by 2 of 2 connections, message "));
    assert_eq!((counted.line(), listener.line()), ("hello\n".to_owned(), "hello\n".to_owned()));
    assert_eq!(counted.end().0, Some(0));

    let mut from_stdin = pushgate(&["push", "ann", "mail", "-", "--address", &address]);
    let mut child = from_stdin.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"from stdin").unwrap();
    assert!(stdout(&child.wait_with_output().unwrap()).starts_with("accepted by 1 of"));
    assert_eq!(listener.line(), "from stdin\n");

    let without_scheme = gateway.control.to_string();
    assert_eq!(stdout(&run(&["drop", "ann", "chat", "--address", &without_scheme])), "closed 0 connections\n");
    assert_eq!(stdout(&run(&["drop", "ann", "--address", &address])), "closed 1 connection\n");
    let (code, said) = listener.end();
    assert_eq!(code, Some(1));
    assert!(said.contains("closed with 4409: dropped"), "{said}");
}

#[test]
fn errors_are_told_in_words_and_by_the_exit_code() {
    let gateway = GatewayProcess::start([""; 0]);
    let address = format!("http://{}", gateway.control);
    let refused = run(&["push", "", "mail", "m", "--address", &address]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("the gateway answered InvalidArgument: the user id is empty"));
    let control = gateway.control.to_string();
    let taken = run(&["serve", "--listen", &control]);
    assert_eq!(taken.status.code(), Some(1));
    assert!(stderr(&taken).contains(&format!("cannot listen on {control}\n  because: ")), "{taken:?}");
    drop(gateway);
    let gone = run(&["push", "ann", "mail", "m", "--address", &address]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(stderr(&gone).contains(&format!("cannot reach a gateway at {address}")));
    let nowhere = run(&["push", "ann", "mail", "m", "--address", "no where"]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(stderr(&nowhere).contains("not a gateway address: no where"));
}

#[test]
fn a_wrong_config_names_all_mistakes_and_exits_with_64() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pushgate.toml");
    std::fs::write(&file, "ping_interval = \"often\"\nbind_timout = \"1s\"\n").unwrap();
    let file = file.to_str().unwrap();
    for command in ["serve", "check-config", "print-config"] {
        let mut command = pushgate(&[command, "--config", file, "--listen", "0.0.0.0:1"]);
        let output = command.env("PUSHGATE_CONNECTIONS_MAX", "none").output().unwrap();
        assert_eq!(output.status.code(), Some(64));
        let text = stderr(&output);
        for expected in [
            &format!("ping_interval = \"often\" ({file}): must be a duration"),
            &format!("bind_timout = \"1s\" ({file}): is not a setting; did you mean bind_timeout?"),
            "connections_max = \"none\" (environment variable PUSHGATE_CONNECTIONS_MAX): must be a whole number",
            "listen = 0.0.0.0:1 (flag --listen): is not a loopback address",
            "set tokens_file",
            "insecure_token_is_user",
            "set push_keys_file",
            "insecure_open_push",
        ] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }
}

#[test]
fn check_config_finds_what_serve_would_stop_at() {
    assert_eq!(stdout(&run(&["check-config"])), "the configuration is valid\n");
    let long = format!("unix:/{}", "x".repeat(107));
    let too_long = run(&["check-config", "--listen", &long]);
    assert_eq!(too_long.status.code(), Some(64));
    assert!(stderr(&too_long).contains("at most 107 bytes"), "{too_long:?}");
    let missing = run(&["check-config", "--tokens-file", "/no/such/file"]);
    assert_eq!(missing.status.code(), Some(64));
    let told = "tokens_file (flag --tokens-file): cannot read /no/such/file\n  because: ";
    assert!(stderr(&missing).contains(told), "{missing:?}");
}

#[test]
fn print_config_prints_what_check_config_accepts() {
    let printed = stdout(&pushgate(&["print-config", "--ws-path", "/sockets"]).output().unwrap());
    assert!(printed.contains("ws_path = \"/sockets\" # flag --ws-path"), "{printed}");
    let last = printed.lines().last().unwrap();
    assert!(last.starts_with("# With every limit reached at once, the gateway takes up to "), "{last}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pushgate.toml");
    std::fs::write(&file, &printed).unwrap();
    assert!(run(&["check-config", "--config", file.to_str().unwrap()]).status.success());
}

#[test]
fn completions_and_the_manual_are_a_subcommand_away() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&run(&["completions", shell])).contains("check-config"), "{shell}");
    }
    assert!(stdout(&run(&["man"])).starts_with(".ie"));
}

#[test]
fn hangup_reads_tokens_again_and_loses_no_socket() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens.toml");
    std::fs::write(&tokens, "one = \"ann\"\n").unwrap();
    let gateway = GatewayProcess::start(["--tokens-file", tokens.to_str().unwrap()]);
    let address = format!("http://{}", gateway.control);
    let mut listener = Listener::start(&gateway, "one", "mail", &[]);
    std::fs::write(&tokens, "two = \"bob\"\n").unwrap();
    gateway.signal("HUP");
    gateway.process.stderr_line("reloaded");
    let _bob = Listener::start(&gateway, "two", "mail", &[]);
    assert!(stdout(&run(&["push", "ann", "mail", "still here", "--address", &address])).contains("1 of 1"));
    assert_eq!(listener.line(), "still here\n");
    std::fs::write(&tokens, "two").unwrap();
    gateway.signal("HUP");
    gateway.process.stderr_line("not reloaded");
}

#[test]
fn either_signal_stops_in_order_and_a_second_one_at_once() {
    for signal in ["TERM", "INT"] {
        let mut gateway = GatewayProcess::start([""; 0]);
        let listener = Listener::start(&gateway, "ann", "mail", &[]);
        gateway.signal(signal);
        let (_, said) = listener.end();
        assert!(said.contains("closed with 1001: going away"), "{said}");
        let (status, log) = (gateway.wait(), gateway.stderr());
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.contains("stopped, nothing was cut"), "{log}");
    }
    // A request that is never finished keeps the first signal's shutdown waiting.
    let mut gateway = GatewayProcess::start([""; 0]);
    let mut stream = std::net::TcpStream::connect(gateway.control).unwrap();
    let head = "POST /push HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    std::io::Read::read_exact(&mut stream, &mut [0; 25]).unwrap();
    gateway.signal("TERM");
    gateway.process.stderr_line("shutting down");
    gateway.signal("TERM");
    let (status, log) = (gateway.wait(), gateway.stderr());
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("second signal, stopping at once"), "{log}");
}

#[test]
fn a_second_signal_does_not_wait_for_the_delay() {
    let mut gateway = GatewayProcess::start_as(pushgate(&[]).env("PUSHGATE_SHUTDOWN_DELAY", "1h"));
    gateway.signal("TERM");
    gateway.process.stderr_line("not ready any more");
    assert!(get(&gateway, "/healthz").ends_with("ok\n"));
    assert!(get(&gateway, "/readyz").starts_with("HTTP/1.1 503 "));
    gateway.signal("TERM");
    assert_eq!(gateway.wait().code(), Some(1));
}

#[test]
fn a_log_at_its_most_talkative_names_request_and_trace_and_never_a_token_or_a_message() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys.toml");
    std::fs::write(&keys, "[[key]]\nname = \"ops\"\nkey = \"canary-key-canary-key\"\n").unwrap();
    let config = folder.path().join("pushgate.toml");
    std::fs::write(&config, "log = \"trace\"\ntoken_in_url = true\nopen_metrics = true\n").unwrap();
    let files = ["--config", config.to_str().unwrap(), "--push-keys-file", keys.to_str().unwrap()];
    let mut gateway = GatewayProcess::start(files);
    let mut listener = Listener::start(&gateway, "canary-token", "mail", &[]);
    let address = format!("http://{}", gateway.control);
    let key = "canary-key-canary-key";
    let push = run(&["push", "canary-token", "mail", "canary-body", "--address", &address, "--key", key]);
    assert!(stdout(&push).contains("1 of 1"));
    let body = r#"{"userId":"canary-token","event":"mail","message":"canary-body"}"#;
    let mut stream = std::net::TcpStream::connect(gateway.control).unwrap();
    write!(
        stream,
        "POST /push HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\nx-request-id: request-7\r\nconnection: close\r\n\
         traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    assert!(std::io::read_to_string(stream).unwrap().ends_with("message sent to 1 clients"));
    assert_eq!((listener.line(), listener.line()), ("canary-body\n".to_owned(), "canary-body\n".to_owned()));
    assert!(run(&["drop", "canary-token", "--address", &address, "--key", key]).status.success());
    listener.end();
    // In the upgrade, once as it must be and once as it is refused.
    for version in ["13", "12"] {
        let mut stream = std::net::TcpStream::connect(gateway.clients).unwrap();
        write!(
            stream,
            "GET /ws?token=canary-url HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: {version}\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
             authorization: Bearer canary-token\r\nsec-websocket-protocol: pushgate.token.Y2FuYXJ5LXRva2Vu\r\n\r\n"
        )
        .unwrap();
        let mut status = String::new();
        BufReader::new(stream).read_line(&mut status).unwrap();
        assert!(status.starts_with(if version == "13" { "HTTP/1.1 101 " } else { "HTTP/1.1 426 " }), "{status}");
    }
    let mut stranger = pushgate(&["push", "canary-token", "mail", "canary-body", "--address", &address]);
    assert!(stderr(&stranger.env("PUSHGATE_KEY", "canary-key").output().unwrap()).contains("Unauthenticated"));
    gateway.signal("TERM");
    gateway.wait();
    let log = gateway.stderr();
    let pushed = log.lines().find(|line| line.contains("pushed") && line.contains("door=\"json\"")).unwrap();
    for expected in [
        "request_id=\"request-7\"",
        "trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\"",
        "parent_id=\"00f067aa0ba902b7\"",
        "caller=\"ops\"",
    ] {
        assert!(pushed.contains(expected), "{expected} in {pushed}");
    }
    assert!(log.lines().any(|line| line.contains("connection ended") && line.contains("peer=127.0.0.1:")), "{log}");
    assert!(log.lines().any(|line| line.contains("pushed") && line.contains("door=\"grpc\"")), "{log}");
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains("token_in_url is on")), "{log}");
    for line in log.lines() {
        assert!(!line.contains("canary") && !line.contains("Y2FuYXJ5"), "{line}");
    }
}

#[test]
fn json_logs_are_an_object_a_line_and_nothing_else_is_printed() {
    let mut command = pushgate(&["serve", "--listen", "127.0.0.1:0"]);
    let mut child = command
        .env("PUSHGATE_LOG_FORMAT", "json")
        .env("PUSHGATE_STRANGE", "x")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut messages = Vec::new();
    while !messages.iter().any(|message| message == "listening") {
        let line = log.next().unwrap().unwrap();
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        messages.push(object["fields"]["message"].as_str().unwrap().to_owned());
    }
    assert!(messages.iter().any(|message| message.contains("is not a setting and is ignored")), "{messages:?}");
    child.kill().unwrap();
    assert!(child.wait_with_output().unwrap().stdout.is_empty());
}

#[test]
fn a_gateway_on_unix_sockets_is_reached_by_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let address = |name: &str| format!("unix:{}", folder.path().join(name).display());
    let (clients, control) = (address("clients"), address("control"));
    let mut serve = pushgate(&["serve", "--listen", &clients, "--control-listen", &control]);
    let mut gateway = process::Process::start(&mut serve);
    let line = gateway.stdout_line("pushgate is up.");
    assert!(line.contains(&clients) && line.contains(&control), "{line}");
    let push = run(&["push", "ann", "mail", "hello", "--address", &control]);
    assert!(stdout(&push).starts_with("accepted by 0 of 0 connections"), "{push:?}");
    gateway.signal("TERM");
    assert_eq!(gateway.wait().code(), Some(0));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the files of the sockets are gone");
}

#[test]
fn an_empty_variable_switches_no_guard_off() {
    for name in ["PUSHGATE_TOKENS_FILE", "PUSHGATE_PUSH_KEYS_FILE", "PUSHGATE_CONTROL_LISTEN", "PUSHGATE_CONFIG"] {
        let output = pushgate(&["check-config"]).env(name, "").output().unwrap();
        assert!(!output.status.success(), "{name}: {output:?}");
    }
}

#[test]
fn with_few_files_a_flood_of_one_address_leaves_the_other_at_full_service() {
    let mut serve = Command::new("sh");
    let program = process::pushgate().get_program().to_owned();
    serve.args(["-c", "ulimit -n 256; exec \"$0\" \"$@\""]).arg(program).args(["--control-listen", "127.0.0.1:0"]);
    let gateway = GatewayProcess::start_as(&mut serve);
    gateway.process.stderr_line("connection limits lowered");
    for flooded in [gateway.clients, gateway.control] {
        let silent: Vec<_> = (0..400).map(|_| std::net::TcpStream::connect(flooded).unwrap()).collect();
        assert!(get(&gateway, "/healthz").ends_with("ok\n"));
        let address = gateway.control.to_string();
        assert!(stdout(&run(&["push", "ann", "mail", "m", "--address", &address])).starts_with("accepted by"));
        let _bound = Listener::start(&gateway, "ann", "mail", &[]);
        drop(silent);
    }
    let metrics = get(&gateway, "/metrics");
    for listener in ["clients", "control"] {
        assert!(metrics.contains(&format!("pushgate_accept_errors_total{{listener=\"{listener}\"}} 0\n")), "{metrics}");
    }
}

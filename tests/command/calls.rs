//! What `push`, `drop` and `listen` say and exit with when it did not go well.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use crate::process::GatewayProcess;
use crate::{Listener, pushgate, run, stderr};

#[test]
fn what_broke_on_the_way_is_told_from_what_the_gateway_answered() {
    let gateway = GatewayProcess::start([""; 0]);
    let control = gateway.control;
    let push = |address: &str| {
        let output = run(&["push", "ann", "mail", "m", "--address", address]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        stderr(&output)
    };
    let tls = push(&format!("https://{control}"));
    assert!(tls.contains(&format!("cannot reach a gateway at https://{control}: ")), "{tls}");
    assert!(push(&format!("ws://{control}/ws")).contains("must be HOST:PORT, unix:/path or begin with http://"));
    for answer in [
        &b""[..],
        b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
        // The alert of a TLS server that was not greeted with TLS.
        b"\x15\x03\x03\x00\x02\x02\x46",
    ] {
        let said = push(&stranger(answer));
        assert!(said.contains("no answer from a gateway at "), "{said}");
    }
    let refused = run(&["drop", "", "--address", &control.to_string()]);
    assert!(stderr(&refused).contains("the gateway answered InvalidArgument: the user id is empty"), "{refused:?}");

    let listen = |url: &str| {
        let output = run(&["listen", "--token", "ann", "--event", "mail", "--url", url]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        stderr(&output)
    };
    assert!(listen(&format!("wss://{control}/ws")).contains("cannot reach a gateway at "));
    let nowhere = listen(&format!("ws://{control}/nowhere"));
    assert!(nowhere.contains("refused with 404 Not Found: not found"), "{nowhere}");
    drop(gateway);
    assert!(listen(&format!("ws://{control}/ws")).contains("cannot reach a gateway at "));
}

/// A server that is no gateway: it is greeted, answers this and no more, and reads what else there is.
fn stranger(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _greeted = stream.read(&mut [0; 1024]);
        stream.write_all(answer).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let _read = std::io::copy(&mut stream, &mut std::io::sink());
    });
    address.to_string()
}

#[test]
fn a_push_that_nobody_has_exits_with_3_where_that_is_a_failure() {
    let gateway = GatewayProcess::start([""; 0]);
    let address = gateway.control.to_string();
    let push = |more: &[&str]| {
        let output = pushgate(&["push", "ann", "mail", "m", "--address", &address]).args(more).output().unwrap();
        (output.status.code(), stderr(&output))
    };
    assert_eq!(push(&[]).0, Some(0));
    assert_eq!(push(&["--wait-for", "acked"]).0, Some(0));
    let (code, said) = push(&["--fail-if-none"]);
    assert_eq!((code, said.as_str()), (Some(3), "pushgate: no connection took the message\n"));
    assert_eq!(push(&["--fail-if-none", "--ttl", "10m"]).0, Some(0), "it is held");
    let mut listener = Listener::start(&gateway, "ann", "mail", &[]);
    assert_eq!(listener.line(), "m\n");
    assert_eq!(push(&["--fail-if-none"]).0, Some(0));
    assert_eq!(push(&["--fail-if-none", "--wait-for", "written"]).0, Some(0));
    let (code, said) = push(&["--fail-if-none", "--wait-for", "acked"]);
    assert_eq!((code, said.as_str()), (Some(3), "pushgate: no client acknowledged the message\n"));
}

#[test]
fn an_empty_key_is_no_key_and_an_empty_address_or_token_is_a_mistake() {
    let address = stranger(b"");
    let mut push = pushgate(&["push", "ann", "mail", "m", "--address", &address]);
    assert!(stderr(&push.env("PUSHGATE_KEY", "").output().unwrap()).contains("no answer from a gateway"));
    let gateway = GatewayProcess::start([""; 0]);
    let address = gateway.control.to_string();
    let with_key = run(&["push", "ann", "mail", "m", "--address", &address, "--key", ""]);
    assert_eq!(with_key.status.code(), Some(0), "{with_key:?}");
    for (name, arguments) in [
        ("PUSHGATE_ADDRESS", &["push", "ann", "mail", "m"][..]),
        ("PUSHGATE_TOKEN", &["listen", "--event", "mail"]),
        ("PUSHGATE_CONFIG", &["check-config"]),
    ] {
        let output = pushgate(arguments).env(name, "").output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(stderr(&output).contains("a value is required for '--"), "{output:?}");
    }
}

#[test]
fn the_help_says_what_exit_codes_mean_and_where_all_settings_are() {
    for command in [&["--help"][..], &["push", "--help"], &["drop", "--help"], &["man"]] {
        let output = run(command);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("Exit codes:"), "{command:?}: {text}");
        assert!(text.contains("nobody has the message"), "{command:?}: {text}");
    }
    for command in [&["--help"][..], &["serve", "--help"], &["check-config", "--help"], &["man"]] {
        let text = String::from_utf8(run(command).stdout).unwrap();
        assert!(text.contains("environment variable: PUSHGATE_ and its name in capitals"), "{command:?}: {text}");
    }
}

#[test]
fn the_hints_work_for_whoever_started_the_gateway() {
    let program = env!("CARGO_BIN_EXE_pushgate");
    let started = |settings: &[&str], path: Option<&std::path::Path>| {
        let mut command = pushgate(settings);
        if let Some(path) = path {
            command.env("PATH", path);
        }
        let gateway = GatewayProcess::start_as(&mut command);
        gateway.process.stdout_line("Interrupt to stop.");
        gateway.process.stdout()
    };
    let text = started(&[], None);
    assert!(text.contains(&format!("  {program} listen --token ann ")), "{text}");
    assert!(text.contains(&format!("  {program} push ann mail ")), "{text}");
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(program, folder.path().join("pushgate")).unwrap();
    assert!(started(&[], Some(folder.path())).contains("  pushgate listen --token ann "));
    let (tokens, keys) = (folder.path().join("tokens.toml"), folder.path().join("keys.toml"));
    std::fs::write(&tokens, "one = \"ann\"\n").unwrap();
    std::fs::write(&keys, "[[key]]\nname = \"ops\"\nkey = \"a-long-random-secret\"\n").unwrap();
    let (tokens, keys) = (tokens.to_str().unwrap(), keys.to_str().unwrap());
    let text = started(&["--tokens-file", tokens, "--push-keys-file", keys], None);
    for expected in [
        " listen --token TOKEN --event mail ",
        " push USER mail 'hello' --address http://",
        " --key KEY\n",
        "\"userId\":\"USER\"",
        &format!("TOKEN is one of the tokens in {tokens}, and USER is its user.\n"),
        &format!("KEY is one of the keys in {keys}.\n"),
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
}

#[test]
fn json_logs_hold_plain_values() {
    let mut command = pushgate(&["serve"]);
    command.env("PUSHGATE_LOG", "debug").env("PUSHGATE_LOG_FORMAT", "json");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut child =
        command.args(["--listen", &format!("127.0.0.1:{port}")]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut line = |message: &str| loop {
        let line: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        if line["fields"]["message"] == message {
            return line;
        }
    };
    line("listening");
    let body = r#"{"userId":"ann","event":"mail","message":"m"}"#;
    let mut caller = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(caller, "POST /push HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    assert_eq!(line("pushed")["span"]["event"], "mail");
    let (phone, _) = tokio_tungstenite::tungstenite::connect(format!("ws://127.0.0.1:{port}/ws")).unwrap();
    drop(phone);
    assert_eq!(line("connection ended")["fields"]["reason"], "reset");
    drop(caller);
    let terminated = std::process::Command::new("sh").args(["-c", &format!("kill -TERM {}", child.id())]).status();
    assert!(terminated.unwrap().success());
    assert_eq!(line("shutting down")["fields"]["grace"], "10s");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn each_kind_of_refusal_is_in_the_audit_log_without_a_secret() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys.toml");
    let entry = "[[key]]\nname = \"mailer\"\nkey = \"canary-key-canary-key\"\nmethods = [\"push\"]\n\
                 events = [\"mail\"]\nrate = 0.001\nburst = 1\n";
    std::fs::write(&keys, entry).unwrap();
    let mut gateway = GatewayProcess::start(["--push-keys-file", keys.to_str().unwrap()]);
    let address = gateway.control.to_string();
    let call = |args: &[&str], key: &[&str]| {
        let output = run(&[args, &["--address", &address], key].concat());
        output.status.success()
    };
    let (push, good) = (["push", "canary-user", "mail", "canary-body"], ["--key", "canary-key-canary-key"]);
    assert!(call(&push, &good));
    assert!(!call(&push, &good));
    assert!(!call(&["push", "canary-user", "chat", "canary-body"], &good));
    assert!(!call(&["drop", "canary-user"], &good));
    assert!(!call(&push, &["--key", "canary-other-canary"]));
    assert!(!call(&push, &[]));
    gateway.signal("TERM");
    gateway.wait();
    let log = gateway.stderr();
    for (reason, caller) in [
        ("rate", Some("mailer")),
        ("user_or_event", Some("mailer")),
        ("method", Some("mailer")),
        ("unknown_key", None),
        ("no_key", None),
    ] {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(&format!("reason=\"{reason}\""))).collect();
        let [line] = lines[..] else { panic!("{reason}: {log}") };
        assert!(line.contains("pushgate::audit") && line.contains("peer=127.0.0.1:"), "{line}");
        assert_eq!(line.contains("caller=\"mailer\""), caller.is_some(), "{line}");
    }
    assert!(!log.contains("canary"), "{log}");
}

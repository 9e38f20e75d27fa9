//! A log that nobody reads: the gateway serves, reloads and stops as if somebody did, and counts what was lost.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio_tungstenite::tungstenite::{self, Message};

use crate::process::{self, PATIENCE};

/// A gateway whose output nobody collects. Killed when dropped.
struct Unread {
    child: Child,
    address: SocketAddr,
}

impl Unread {
    /// Starts it, and waits until it serves.
    fn start(settings: &[&str], stdout: impl Into<Stdio>, stderr: impl Into<Stdio>) -> Self {
        // Nobody says which port it got.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = process::pushgate();
        command.args(["serve", "--listen", &address.to_string()]).args(settings);
        command.env("PUSHGATE_LOG", "debug").stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        Self::started(&mut command, address)
    }

    fn started(command: &mut Command, address: SocketAddr) -> Self {
        let child = command.spawn().unwrap();
        let mut gateway = Self { child, address };
        // The pipe's reading end, where it has one.
        drop(gateway.child.stderr.take());
        until("it serves", || {
            assert_eq!(gateway.child.try_wait().unwrap(), None, "it ended");
            TcpStream::connect(address).is_ok()
        });
        gateway
    }

    fn get(&self, path: &str) -> String {
        Caller::connect(self.address).get(path)
    }

    fn lost(&self) -> u64 {
        sample(&self.get("/metrics"), "pushgate_log_lines_lost_total")
    }

    fn push(&self) -> String {
        Caller::connect(self.address).push()
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.child.id())]).status();
        assert!(sent.unwrap().success());
    }

    fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        until("it ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ended_already = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// An HTTP connection that is kept.
struct Caller(BufReader<TcpStream>);

impl Caller {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    fn get(&mut self, path: &str) -> String {
        self.call(&format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"))
    }

    fn push(&mut self) -> String {
        let body = r#"{"userId":"ann","event":"mail","message":"m"}"#;
        self.call(&format!("POST /push HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
    }

    /// The body of the answer.
    fn call(&mut self, request: &str) -> String {
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
        let mut length = None;
        loop {
            let mut line = String::new();
            assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "no answer");
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = Some(value.trim().parse().unwrap());
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length.expect("a length")];
        self.0.read_exact(&mut body).unwrap();
        String::from_utf8(body).unwrap()
    }
}

fn sample(metrics: &str, name: &str) -> u64 {
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a client with this token is refused.
fn is_refused(address: SocketAddr, token: &str) -> bool {
    let (mut socket, _) = tungstenite::connect(format!("ws://{address}/ws")).unwrap();
    let bind = serde_json::json!({ "token": token, "event": "mail" });
    socket.send(Message::text(bind.to_string())).unwrap();
    socket.send(Message::Ping("there?".into())).unwrap();
    matches!(socket.read().unwrap(), Message::Close(Some(frame)) if u16::from(frame.code) == 4401)
}

/// Both ends of what the program may write to, as full as it gets.
fn full() -> (UnixStream, UnixStream) {
    let (reader, mut writer) = UnixStream::pair().unwrap();
    writer.set_nonblocking(true).unwrap();
    loop {
        match writer.write(&[b'-'; 4096]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    writer.write_all(b"\n").unwrap_err();
    writer.set_nonblocking(false).unwrap();
    (reader, writer)
}

fn stdio(writer: &UnixStream) -> Stdio {
    Stdio::from(OwnedFd::from(writer.try_clone().unwrap()))
}

#[test]
fn with_nobody_at_the_other_end_of_the_log_nothing_else_changes() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens.toml");
    fs::write(&tokens, "one = \"ann\"\ntwo = \"bob\"\n").unwrap();
    let mut gateway = Unread::start(&["--tokens-file", tokens.to_str().unwrap()], Stdio::null(), Stdio::piped());
    assert_eq!(gateway.push(), "message sent to 0 clients");
    assert!(!is_refused(gateway.address, "one"));
    fs::write(&tokens, "two = \"bob\"\n").unwrap();
    gateway.signal("HUP");
    until("the revoked token is refused", || is_refused(gateway.address, "one"));
    assert!(!is_refused(gateway.address, "two"));
    assert!(gateway.lost() > 0);
    let (mut phone, _) = tungstenite::connect(format!("ws://{}/ws", gateway.address)).unwrap();
    phone.send(Message::text(r#"{"token":"two","event":"mail"}"#)).unwrap();
    gateway.signal("TERM");
    let Message::Close(Some(frame)) = phone.read().unwrap() else { panic!("not closed") };
    assert_eq!(u16::from(frame.code), 1001);
    drop(phone);
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn on_a_full_disk_the_gateway_starts_serves_and_stops() {
    let full = || File::create("/dev/full").unwrap();
    let mut gateway = Unread::start(&[], full(), full());
    assert_eq!(gateway.get("/healthz"), "ok\n");
    assert_eq!(gateway.push(), "message sent to 0 clients");
    assert!(gateway.lost() > 0);
    gateway.signal("TERM");
    assert_eq!(gateway.wait().code(), Some(0));
}

/// The kernel signals whoever writes more, and who does not know that signal ends of it.
#[test]
fn where_a_log_file_may_not_grow_the_gateway_starts_serves_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| File::create(folder.path().join(name)).unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -f 0 && exec \"$@\"", "sh"]).arg(process::pushgate().get_program());
    command.args(["serve", "--listen", &address.to_string()]).env("PUSHGATE_LOG", "debug");
    command.stdin(Stdio::null()).stdout(file("out")).stderr(file("err"));
    let mut gateway = Unread::started(&mut command, address);
    assert_eq!(gateway.push(), "message sent to 0 clients");
    until("lines are lost", || gateway.lost() > 0);
    gateway.signal("TERM");
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn output_that_is_not_read_holds_nobody_up_and_the_loss_is_said_when_it_is_read_again() {
    for is_read_again in [false, true] {
        let (reader, writer) = full();
        let mut gateway = Unread::start(&[], stdio(&writer), stdio(&writer));
        drop(writer);
        let mut caller = Caller::connect(gateway.address);
        until("lines are lost", || {
            for _ in 0..100 {
                assert_eq!(caller.push(), "message sent to 0 clients");
            }
            gateway.lost() > 0
        });
        assert_eq!(gateway.get("/healthz"), "ok\n");
        if is_read_again {
            reader.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut lines = BufReader::new(&reader).lines();
            let mut next = |text: &str| lines.find(|line| line.as_ref().unwrap().contains(text)).unwrap().unwrap();
            assert!(next("log lines were lost lines=").contains(" WARN "));
            gateway.signal("TERM");
            next("stopped, nothing was cut");
        } else {
            gateway.signal("TERM");
        }
        assert_eq!(gateway.wait().code(), Some(0));
    }
}

#[test]
fn a_second_signal_and_a_wrong_start_end_the_process_while_nobody_reads() {
    let (_reader, writer) = full();
    let mut gateway = Unread::start(&[], stdio(&writer), stdio(&writer));
    let mut held = TcpStream::connect(gateway.address).unwrap();
    let head = "POST /push HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n";
    held.write_all(head.as_bytes()).unwrap();
    held.read_exact(&mut [0; 25]).unwrap();
    gateway.signal("TERM");
    until("it accepts nobody", || TcpStream::connect(gateway.address).is_err());
    gateway.signal("TERM");
    assert_eq!(gateway.wait().code(), Some(1));

    for (arguments, code) in [(["serve", "--listen", "nowhere"], 64), (["check-config", "--listen", "nowhere"], 64)] {
        let mut command = process::pushgate();
        let child = command.args(arguments).stdout(stdio(&writer)).stderr(stdio(&writer)).spawn().unwrap();
        let mut ended = Unread { child, address: gateway.address };
        assert_eq!(ended.wait().code(), Some(code));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_gateway_that_was_out_of_files_and_could_not_say_so_accepts_again() {
    let gateway = Unread::start(&[], Stdio::null(), Stdio::piped());
    let mut caller = Caller::connect(gateway.address);
    let id = gateway.child.id();
    let limit = |files: u64| {
        rlimit::prlimit(id.try_into().unwrap(), rlimit::Resource::NOFILE, Some((files, 1024)), None).unwrap();
    };
    assert_eq!(caller.get("/healthz"), "ok\n");
    limit(0);
    let mut waiting = Caller::connect(gateway.address);
    until("it is out of files", || {
        sample(&caller.get("/metrics"), "pushgate_accept_errors_total{listener=\"all\"}") > 0
    });
    limit(1024);
    assert_eq!(waiting.push(), "message sent to 0 clients");
}

#[test]
fn what_a_command_did_decides_its_exit_code_and_what_it_is_for_must_be_printed() {
    let full = || File::create("/dev/full").unwrap();
    let gateway = Unread::start(&[], Stdio::null(), Stdio::null());
    let address = gateway.address.to_string();
    let code = |arguments: &[&str]| {
        let mut command = process::pushgate();
        command.args(arguments).stdin(Stdio::null()).stdout(full()).stderr(full()).status().unwrap().code()
    };
    assert_eq!(code(&["push", "ann", "mail", "m", "--address", &address]), Some(0));
    assert_eq!(code(&["drop", "ann", "--address", &address]), Some(0));
    assert_eq!(code(&["push", "", "mail", "m", "--address", &address]), Some(1));
    assert_eq!(code(&["check-config"]), Some(0));
    for product in [&["print-config"][..], &["man"], &["completions", "bash"]] {
        assert_eq!(code(product), Some(1), "{product:?}");
    }
}

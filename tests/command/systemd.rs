//! What systemd is told over `NOTIFY_SOCKET`, by a test in its place.

use std::os::unix::net::UnixDatagram;

use crate::process::{GatewayProcess, PATIENCE};
use crate::{get, pushgate};

/// Where systemd listens.
struct Manager {
    socket: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, folder }
    }

    fn start(&self, environment: &[(&str, &str)]) -> GatewayProcess {
        let mut command = pushgate(&[]);
        command.env("NOTIFY_SOCKET", self.folder.path().join("notify")).envs(environment.iter().copied());
        GatewayProcess::start_as(&mut command)
    }

    fn next(&self) -> String {
        let mut message = [0; 256];
        let length = self.socket.recv(&mut message).unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap()
    }
}

#[test]
fn systemd_is_told_of_readiness_a_reload_and_the_stop() {
    let systemd = Manager::new();
    let mut gateway = systemd.start(&[]);
    assert_eq!(systemd.next(), "READY=1\n");
    gateway.signal("HUP");
    let reloading = systemd.next();
    let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").and_then(|rest| rest.strip_suffix('\n'));
    assert!(time.is_some_and(|time| time.parse::<u64>().is_ok()), "{reloading}");
    assert_eq!(systemd.next(), "READY=1\n");
    gateway.signal("TERM");
    assert_eq!(systemd.next(), "STOPPING=1\n");
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn systemd_is_told_of_a_reload_that_failed_and_of_a_stop_with_a_delay_at_once() {
    let systemd = Manager::new();
    let tokens = systemd.folder.path().join("tokens.toml");
    std::fs::write(&tokens, "one = \"ann\"\n").unwrap();
    let environment = [("PUSHGATE_TOKENS_FILE", tokens.to_str().unwrap()), ("PUSHGATE_SHUTDOWN_DELAY", "1h")];
    let gateway = systemd.start(&environment);
    assert_eq!(systemd.next(), "READY=1\n");
    std::fs::write(&tokens, "one").unwrap();
    gateway.signal("HUP");
    assert!(systemd.next().starts_with("RELOADING=1\n"));
    assert_eq!(systemd.next(), "READY=1\n", "what the file said before still holds");
    gateway.signal("TERM");
    assert_eq!(systemd.next(), "STOPPING=1\n");
}

#[test]
fn a_watchdog_is_told_that_the_gateway_lives_and_one_that_sleeps_holds_nobody_up() {
    let systemd = Manager::new();
    let mut gateway = systemd.start(&[("WATCHDOG_USEC", "1000")]);
    let mut told = vec![systemd.next(), systemd.next()];
    told.sort_unstable();
    assert_eq!(told, ["READY=1\n", "WATCHDOG=1\n"]);
    // From here on nobody reads, and the socket holds a few messages only.
    for _ in 0..100 {
        assert!(get(&gateway, "/healthz").ends_with("ok\n"));
    }
    gateway.signal("TERM");
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn a_notify_socket_that_is_not_there_is_none() {
    let mut gateway = GatewayProcess::start_as(pushgate(&[]).env("NOTIFY_SOCKET", "/no/such/socket"));
    assert!(get(&gateway, "/healthz").ends_with("ok\n"));
    gateway.signal("TERM");
    assert_eq!(gateway.wait().code(), Some(0));
}

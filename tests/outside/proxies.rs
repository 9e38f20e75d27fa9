//! nginx and HAProxy before the gateway, with connections to it that they keep and use again.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::process::{GatewayProcess, PATIENCE, Process};
use crate::tools::program;
use crate::user::User;

/// Shorter than a proxy keeps a connection.
const HEADER_TIMEOUT: Duration = Duration::from_millis(300);

/// A port that nobody has now. A proxy cannot say which one it got.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

fn nginx(folder: &Path, port: u16, gateway: SocketAddr) -> Command {
    let config = format!(
        "daemon off; master_process off; pid {folder}/pid; error_log stderr;
         events {{}}
         http {{
             access_log off;
             client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
             uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
             map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
             upstream gateway {{ server {gateway}; keepalive 4; }}
             server {{
                 listen 127.0.0.1:{port};
                 location / {{
                     proxy_pass http://gateway; proxy_http_version 1.1; proxy_next_upstream off;
                     proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
                 }}
             }}
         }}",
        folder = folder.display()
    );
    std::fs::write(folder.join("nginx.conf"), config).expect("written");
    let mut command = program("nginx");
    command.arg("-p").arg(folder).arg("-e").arg("stderr").arg("-c").arg(folder.join("nginx.conf"));
    command
}

fn haproxy(folder: &Path, port: u16, gateway: SocketAddr) -> Command {
    let config = format!(
        "defaults
             mode http
             timeout connect 5s
             timeout client 60s
             timeout server 60s
             timeout tunnel 60s
             http-reuse always
             retries 0
         listen gateway
             bind 127.0.0.1:{port}
             server gateway {gateway}\n"
    );
    std::fs::write(folder.join("haproxy.cfg"), config).expect("written");
    let mut command = program("haproxy");
    command.arg("-db").arg("-f").arg(folder.join("haproxy.cfg"));
    command
}

fn push(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the proxy listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout that is not zero");
    let body = r#"{"userId":"ann","event":"mail","message":"hello"}"#;
    let length = body.len();
    let head = format!("POST /push HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).expect("sent");
    let mut answer = String::new();
    BufReader::new(stream).read_to_string(&mut answer).expect("answered");
    answer
}

/// A connection on which nothing is said ends after the header timeout: the gateway's own clock.
fn header_timeout_passes(gateway: &GatewayProcess) {
    let mut silent = TcpStream::connect(gateway.clients).expect("the gateway listens");
    silent.set_read_timeout(Some(PATIENCE)).expect("a timeout that is not zero");
    let _ended = silent.read(&mut [0]).expect("closed");
}

/// Pushes through a proxy arrive on a WebSocket through it, also on connections that were idle for longer than a head may
/// take.
#[track_caller]
fn goes_through(proxy: fn(&Path, u16, SocketAddr) -> Command) {
    let timeout = format!("{}ms", HEADER_TIMEOUT.as_millis());
    let mut gateway = GatewayProcess::start_as(crate::process::pushgate().env("PUSHGATE_HTTP_HEADER_TIMEOUT", timeout));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let port = free_port();
    let _proxy = Process::start(&mut proxy(folder.path(), port, gateway.clients));
    let begun = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begun.elapsed() < PATIENCE, "the proxy does not listen");
        std::thread::yield_now();
    }
    gateway.clients = SocketAddr::from(([127, 0, 0, 1], port));
    let mut ann = User::ann(&gateway);
    gateway.clients = gateway.control;
    for _ in 0..4 {
        let answer = push(port);
        let mut lines = answer.as_bytes().lines().map_while(Result::ok);
        assert_eq!(lines.next().as_deref(), Some("HTTP/1.1 200 OK"), "{answer}");
        assert!(answer.contains("message sent to 1 clients"), "{answer}");
        assert_eq!(ann.next(), "hello");
        header_timeout_passes(&gateway);
        header_timeout_passes(&gateway);
    }
}

#[test]
#[ignore = "needs nginx"]
fn a_websocket_and_pushes_on_kept_connections_go_through_nginx() {
    goes_through(nginx);
}

#[test]
#[ignore = "needs HAProxy"]
fn a_websocket_and_pushes_on_kept_connections_go_through_haproxy() {
    goes_through(haproxy);
}

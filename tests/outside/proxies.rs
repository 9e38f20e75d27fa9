//! nginx and HAProxy before the gateway, with connections to it that they keep and use again.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

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
    nginx_with("", folder, port, gateway)
}

/// `more` is set for all requests.
fn nginx_with(more: &str, folder: &Path, port: u16, gateway: SocketAddr) -> Command {
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
                     {more}
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
    haproxy_with(["mode http", ""], folder, port, gateway)
}

/// With a mode or an option, and with a setting of the gateway as a server.
fn haproxy_with([mode, server]: [&str; 2], folder: &Path, port: u16, gateway: SocketAddr) -> Command {
    let config = format!(
        "defaults
             {mode}
             timeout connect 5s
             timeout client 60s
             timeout server 60s
             timeout tunnel 60s
             http-reuse always
             retries 0
         listen gateway
             bind 127.0.0.1:{port}
             server gateway {gateway} {server}\n"
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

/// Starts a proxy, and waits until it listens.
#[track_caller]
fn start(proxy: impl Fn(&Path, u16, SocketAddr) -> Command, folder: &Path, gateway: SocketAddr) -> (Process, u16) {
    let port = free_port();
    let process = Process::start(&mut proxy(folder, port, gateway));
    let begun = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begun.elapsed() < PATIENCE, "the proxy does not listen");
        std::thread::yield_now();
    }
    (process, port)
}

/// Asks for a WebSocket from an address of this machine, and returns the connection and the status line. The client says
/// that it comes from somewhere else.
fn upgrade_from(source: [u8; 4], port: u16) -> (TcpStream, String) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((source, 0)).into()).expect("an address of this machine");
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()).expect("the proxy listens");
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout that is not zero");
    let head = "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nx-forwarded-for: 6.6.6.6\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("sent");
    let mut status = String::new();
    BufReader::new(stream.try_clone().expect("a copy")).read_line(&mut status).expect("answered");
    (stream, status.trim_end().to_owned())
}

/// The gateway tells the clients behind a proxy apart by their own addresses.
#[track_caller]
fn tells_clients_apart(proxy_protocol: &str, proxy: impl Fn(&Path, u16, SocketAddr) -> Command) {
    let gateway = GatewayProcess::start_as(
        crate::process::pushgate()
            .env("PUSHGATE_LOG", "debug")
            .env("PUSHGATE_PROXIES_TRUSTED", "127.0.0.1")
            .env("PUSHGATE_PROXY_PROTOCOL", proxy_protocol)
            .env("PUSHGATE_CONNECTIONS_PER_ADDRESS_MAX", "1"),
    );
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (_proxy, port) = start(proxy, folder.path(), gateway.clients);
    let (first, status) = upgrade_from([127, 0, 0, 2], port);
    assert_eq!(status, "HTTP/1.1 101 Switching Protocols");
    assert_eq!(upgrade_from([127, 0, 0, 2], port).1, "HTTP/1.1 429 Too Many Requests");
    let (_second, status) = upgrade_from([127, 0, 0, 3], port);
    assert_eq!(status, "HTTP/1.1 101 Switching Protocols");
    drop(first);
    let line = gateway.process.stderr_line("connection{");
    assert!(line.contains("peer=127.0.0.2:"), "{line}");
}

/// Pushes through a proxy arrive on a WebSocket through it, also on connections that were idle for longer than a head may
/// take.
#[track_caller]
fn goes_through(proxy: fn(&Path, u16, SocketAddr) -> Command) {
    let timeout = format!("{}ms", HEADER_TIMEOUT.as_millis());
    let mut gateway = GatewayProcess::start_as(crate::process::pushgate().env("PUSHGATE_HTTP_HEADER_TIMEOUT", timeout));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (_proxy, port) = start(proxy, folder.path(), gateway.clients);
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

#[test]
#[ignore = "needs nginx"]
fn nginx_tells_the_address_of_the_client_in_x_forwarded_for() {
    let header = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;";
    tells_clients_apart("false", |folder, port, gateway| nginx_with(header, folder, port, gateway));
}

#[test]
#[ignore = "needs HAProxy"]
fn haproxy_tells_the_address_of_the_client_in_x_forwarded_for() {
    let mode = "mode http\n             option forwardfor";
    tells_clients_apart("false", |folder, port, gateway| haproxy_with([mode, ""], folder, port, gateway));
}

#[test]
#[ignore = "needs HAProxy"]
fn haproxy_tells_the_address_of_the_client_in_both_versions_of_the_proxy_protocol() {
    for version in ["send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id", "send-proxy"] {
        for mode in ["mode tcp", "mode http"] {
            tells_clients_apart("true", |folder, port, gateway| haproxy_with([mode, version], folder, port, gateway));
        }
    }
}

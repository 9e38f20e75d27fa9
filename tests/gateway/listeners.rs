//! What one address, one connection and one silence can take from others: places, times, heads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use pushgate::{Address, Config, PushAuthorizer, PushCredentials, PushRefused, PushScope, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::{Answer, Client, PATIENCE, TestGateway, http, read_answer, soon};

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
const MODULE: &str = "HEAD /pushgate.js HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

fn split(config: &mut Config) {
    config.control_listen = Some(([127, 0, 0, 1], 0).into());
}

async fn connect(address: SocketAddr) -> TcpStream {
    soon(TcpStream::connect(address)).await.unwrap()
}

async fn ask(stream: &mut TcpStream, request: &str) -> Answer {
    soon(stream.write_all(request.as_bytes())).await.unwrap();
    read_answer(stream).await
}

/// Waits for the end of a connection, and returns what came before it.
async fn end(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    match soon(stream.read_to_end(&mut rest)).await {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    rest
}

async fn silent(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.push(connect(address).await);
    }
    streams
}

/// A request that is in hand until it is finished.
async fn push_in_hand(address: SocketAddr) -> TcpStream {
    let mut stream = connect(address).await;
    let head = "POST /push HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";
    soon(stream.write_all(head.as_bytes())).await.unwrap();
    soon(stream.read_exact(&mut [0; 25])).await.unwrap();
    stream
}

#[tokio::test]
async fn silent_connections_on_one_address_take_nothing_from_the_other() {
    for flooded in ["clients", "control"] {
        let gateway = TestGateway::with(|config| {
            split(config);
            (config.http_connections_max, config.control_http_connections_max) = (20, 20);
            config.http_header_timeout = PATIENCE;
        })
        .await;
        let address = if flooded == "clients" { gateway.clients } else { gateway.control };
        let _silent = silent(address, 100).await;
        let evicted = format!("pushgate_http_evicted_total{{listener=\"{flooded}\"}}");
        gateway.until(&evicted, |evicted| evicted >= 80).await;
        assert_eq!(gateway.get("/healthz").await.status, 200);
        let mut phone = gateway.bind("ann", "mail").await;
        assert_eq!(gateway.json().push("ann", "mail", "one").await, 1);
        assert_eq!(gateway.grpc().await.push("ann", "mail", "two").await.accepted, 1);
        assert_eq!((phone.next_text().await, phone.next_text().await), ("one".to_owned(), "two".to_owned()));
        for listener in ["clients", "control"] {
            let refused = format!("pushgate_http_refused_total{{listener=\"{listener}\",reason=\"full\"}}");
            assert_eq!(gateway.metric(&refused).await, 0);
        }
        let other = if flooded == "clients" { "control" } else { "clients" };
        assert_eq!(gateway.metric(&format!("pushgate_http_evicted_total{{listener=\"{other}\"}}")).await, 0);
    }
}

#[tokio::test]
async fn when_the_places_are_full_the_longest_idle_goes_and_none_with_a_request_in_hand() {
    let gateway = TestGateway::with(|config| config.http_connections_max = 3).await;
    // Clients that have upgraded take no place.
    let _clients = (gateway.connect().await, gateway.connect().await, gateway.connect().await);
    let mut busy = push_in_hand(gateway.clients).await;
    let (mut first, mut second) = (connect(gateway.clients).await, connect(gateway.clients).await);
    for stream in [&mut second, &mut first] {
        assert_eq!(ask(stream, HEALTH).await.status, 200);
    }
    let mut third = connect(gateway.clients).await;
    assert_eq!(end(&mut second).await, b"", "idle for longer than the first");
    for stream in [&mut third, &mut first] {
        assert_eq!(ask(stream, HEALTH).await.status, 200);
    }
    drop((first, third));
    let mut also_busy = (push_in_hand(gateway.clients).await, push_in_hand(gateway.clients).await);
    let mut refused = connect(gateway.clients).await;
    let answer = read_answer(&mut refused).await;
    let told = "all places are taken by connections with a request in hand";
    assert_eq!((answer.status, &*answer.body, answer.header("retry-after")), (503, told, Some("5")));
    assert_eq!(end(&mut refused).await, b"");
    for stream in [&mut busy, &mut also_busy.0, &mut also_busy.1] {
        assert_eq!(ask(stream, "{}").await.status, 400);
    }
    assert_eq!(gateway.metric("pushgate_http_refused_total{listener=\"all\",reason=\"full\"}").await, 1);
}

#[tokio::test]
async fn one_address_has_no_more_than_its_share_of_the_places_and_control_has_no_such_share() {
    let gateway = TestGateway::with(|config| {
        split(config);
        config.http_connections_per_address_max = 2;
    })
    .await;
    let mut kept = silent(gateway.clients, 2).await;
    let mut refused = connect(gateway.clients).await;
    let answer = read_answer(&mut refused).await;
    let told = "this address has as many connections as it may have";
    assert_eq!((answer.status, &*answer.body, answer.header("retry-after")), (429, told, Some("5")));
    assert_eq!(end(&mut refused).await, b"");
    let full = "pushgate_http_refused_total{listener=\"clients\",reason=\"full_for_address\"}";
    assert_eq!(gateway.metric(full).await, 1);
    let _elsewhere = Client::connect_from(([127, 0, 0, 2], 0).into(), gateway.clients).await;
    let mut control = silent(gateway.control, 5).await;
    for stream in &mut control {
        assert_eq!(ask(stream, HEALTH).await.status, 200);
    }
    assert!(ask(&mut kept[0], "GET /ws HTTP/1.1\r\nhost: x\r\n\r\n").await.status == 426, "the first two stay");
}

/// Waits as long as a new connection may stay silent, some times over.
async fn header_timeouts(gateway: &TestGateway, count: usize) {
    for _ in 0..count {
        end(&mut connect(gateway.clients).await).await;
    }
}

#[tokio::test]
async fn an_idle_connection_outlives_the_time_that_a_head_may_take() {
    for change in [|_: &mut Config| (), split] {
        let gateway = TestGateway::with(|config| {
            change(config);
            config.http_header_timeout = Duration::from_millis(100);
            config.http_idle_timeout = PATIENCE;
        })
        .await;
        let (mut client, mut caller) = (connect(gateway.clients).await, connect(gateway.control).await);
        let no_upgrade = "GET /ws HTTP/1.1\r\nhost: x\r\n\r\n";
        for _ in 0..3 {
            assert_eq!(ask(&mut client, no_upgrade).await.status, 426);
            assert_eq!(ask(&mut caller, HEALTH).await.status, 200);
            header_timeouts(&gateway, 2).await;
        }
        // A head that has begun is another matter.
        for mut stream in [client, caller] {
            soon(stream.write_all(b"GET / HT")).await.unwrap();
            end(&mut stream).await;
        }
    }
}

#[tokio::test]
async fn a_connection_without_a_request_ends_after_its_idle_time() {
    let gateway = TestGateway::with(|config| {
        split(config);
        config.http_idle_timeout = Duration::from_millis(100);
        config.http_header_timeout = PATIENCE;
    })
    .await;
    let mut client = connect(gateway.clients).await;
    assert_eq!(ask(&mut client, "GET /ws HTTP/1.1\r\nhost: x\r\n\r\n").await.status, 426);
    assert_eq!(end(&mut client).await, b"");
    let mut caller = connect(gateway.control).await;
    assert_eq!(ask(&mut caller, HEALTH).await.status, 200);
    assert_eq!(end(&mut caller).await, b"");

    let stream = TokioIo::new(connect(gateway.control).await);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Empty<bytes::Bytes>>(TokioExecutor::new(), stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = || hyper::Request::get(format!("http://{}/healthz", gateway.control)).body(Empty::new()).unwrap();
    let answer = soon(sender.send_request(request())).await.unwrap();
    assert_eq!(soon(answer.into_body().collect()).await.unwrap().to_bytes(), "ok\n");
    soon(connection).await.unwrap().expect("told to go before it is closed");
}

#[tokio::test]
async fn a_stream_that_is_open_keeps_its_connection() {
    let gateway = TestGateway::with(|config| config.http_idle_timeout = Duration::from_millis(100)).await;
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", gateway.control)).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    let watched = soon(health.watch(HealthCheckRequest { service: String::new() })).await.unwrap();
    let mut statuses = watched.into_inner();
    assert_eq!(soon(statuses.message()).await.unwrap().unwrap().status, 1);
    for _ in 0..3 {
        let mut idle = connect(gateway.control).await;
        assert_eq!(ask(&mut idle, HEALTH).await.status, 200);
        end(&mut idle).await;
    }
    let stopping = tokio::spawn(gateway.stop());
    assert_eq!(soon(statuses.message()).await.unwrap().unwrap().status, 2, "the stream is still there");
    soon(stopping).await.unwrap();
}

#[tokio::test]
async fn the_limit_of_a_head_holds_on_both_sides() {
    let head = |bytes: usize| {
        let start = "GET /pushgate.js HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncookie: ";
        format!("{start}{}\r\n\r\n", "c".repeat(bytes - start.len() - 4))
    };
    for (limit, fits, over) in [(None, 32_000, 100_000), (Some(8192), 8000, 32_000), (Some(65_536), 65_000, 200_000)] {
        let gateway = TestGateway::with(|config| {
            split(config);
            config.http_head_bytes_max = limit.unwrap_or(config.http_head_bytes_max);
        })
        .await;
        for address in [gateway.clients, gateway.control] {
            assert_eq!(http(address, &head(fits)).await.status, 200, "{fits} of {limit:?}");
            assert_eq!(http(address, &head(over)).await.status, 431, "{over} of {limit:?}");
        }
    }
    let gateway = TestGateway::start().await;
    let many: String = (0..98).map(|number| format!("x-header-{number}: x\r\n")).collect();
    let request = |more: &str| format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{many}{more}\r\n");
    assert_eq!(http(gateway.control, &request("one-more: x\r\n")).await.status, 200);
    assert_eq!(http(gateway.control, &request("one-more: x\r\nand-one: x\r\n")).await.status, 431);
}

/// A push check that says when it was asked, and answers when it is told to.
struct Gate(Arc<[Semaphore; 2]>);

#[tonic::async_trait]
impl PushAuthorizer for Gate {
    async fn authorize(&self, _: &PushCredentials) -> Result<PushScope, PushRefused> {
        self.0[0].add_permits(1);
        let _open = self.0[1].acquire().await;
        Ok(PushScope::patterns("test", &["*"], &["*"]))
    }
}

#[tokio::test]
async fn a_caller_that_closes_its_side_after_the_request_is_answered() {
    for change in [|_: &mut Config| (), split] {
        let gate = Arc::new([Semaphore::new(0), Semaphore::new(0)]);
        let gateway = TestGateway::built(change, |builder| builder.push_authorizer(Gate(gate.clone()))).await;
        let mut phone = gateway.bind("ann", "mail").await;
        let body = r#"{"userId":"ann","event":"mail","message":"m"}"#;
        let push = format!("POST /push HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let mut caller = connect(gateway.control).await;
        soon(caller.write_all(push.as_bytes())).await.unwrap();
        soon(caller.shutdown()).await.unwrap();
        let _asked = soon(gate[0].acquire()).await.unwrap();
        // By the time that others are answered, the end of its side is seen.
        for _ in 0..3 {
            assert_eq!(gateway.get("/healthz").await.status, 200);
        }
        gate[1].add_permits(1);
        let answer = String::from_utf8(end(&mut caller).await).unwrap();
        assert!(answer.ends_with("message sent to 1 clients"), "{answer}");
        assert_eq!(phone.next_text().await, "m");

        let mut client = connect(gateway.clients).await;
        soon(client.write_all(MODULE.as_bytes())).await.unwrap();
        soon(client.shutdown()).await.unwrap();
        assert!(end(&mut client).await.starts_with(b"HTTP/1.1 200 OK\r\n"));
    }
}

#[tokio::test]
async fn a_peer_that_closes_its_side_without_a_whole_request_keeps_nothing() {
    let gateway = TestGateway::with(|config| {
        split(config);
        (config.http_header_timeout, config.http_idle_timeout) = (PATIENCE * 2, PATIENCE * 2);
    })
    .await;
    for address in [gateway.clients, gateway.control] {
        for start in ["", "GET /ws HTTP/1.1\r\nhost:", "POST /push HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"] {
            let mut stream = connect(address).await;
            soon(stream.write_all(start.as_bytes())).await.unwrap();
            soon(stream.shutdown()).await.unwrap();
            end(&mut stream).await;
        }
        let mut idle = connect(address).await;
        ask(&mut idle, HEALTH).await;
        soon(idle.shutdown()).await.unwrap();
        assert_eq!(end(&mut idle).await, b"");
    }
    // An upgraded client that closes its side is gone.
    let mut stream = connect(gateway.clients).await;
    let upgrade = "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    soon(stream.write_all(upgrade.as_bytes())).await.unwrap();
    soon(stream.shutdown()).await.unwrap();
    assert_eq!(read_answer(&mut stream).await.status, 101);
    end(&mut stream).await;
    gateway.until_empty().await;
}

#[tokio::test]
async fn probes_are_answered_on_the_address_of_clients_where_that_is_asked_for() {
    for (listen_health, status) in [(false, 404), (true, 200)] {
        let gateway = TestGateway::with(|config| {
            split(config);
            config.listen_health = listen_health;
        })
        .await;
        for path in ["/healthz", "/readyz"] {
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
            assert_eq!(http(gateway.clients, &request).await.status, status, "{path}");
            assert_eq!(http(gateway.control, &request).await.status, 200, "{path}");
        }
        assert_eq!(http(gateway.clients, "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.status, 404);
    }
}

#[tokio::test]
async fn a_request_says_once_which_host_it_is_for() {
    let gateway = TestGateway::with(split).await;
    let needs = "an HTTP/1.1 request needs a Host header\n";
    let twice = "a request must not have more than one Host header\n";
    let none = "the Host header is not a valid host\n";
    for (address, paths) in [
        (gateway.clients, &["/ws", "/pushgate.js", "/elsewhere"][..]),
        (gateway.control, &["/push", "/push/batch", "/healthz", "/readyz", "/metrics", "/", "/elsewhere"]),
        (gateway.control, &["/pushgate.v1.PushService/Push", "/grpc.health.v1.Health/Check"]),
    ] {
        for path in paths {
            for (version, hosts, wrong) in [
                ("1.1", "", Some(needs)),
                ("1.1", "host: x\r\nhost: x\r\n", Some(twice)),
                ("1.0", "host: x\r\nhost: x\r\n", Some(twice)),
                ("1.1", "host: a, b\r\n", Some(none)),
                ("1.1", "host: user@x\r\n", Some(none)),
                ("1.1", "host: x:65536\r\n", Some(none)),
                ("1.1", "host: [::1]:65536\r\n", Some(none)),
                ("1.1", "host: x:65535\r\n", None),
                ("1.1", "host: x:\r\n", None),
                ("1.1", "host: \r\n", None),
                ("1.1", "host: under_score.example:80\r\n", None),
                ("1.1", "host: [::1]:80\r\n", None),
                ("1.0", "", None),
            ] {
                let request = format!("GET {path} HTTP/{version}\r\nconnection: close\r\n{hosts}\r\n");
                let answer = http(address, &request).await;
                match wrong {
                    Some(wrong) => assert_eq!((answer.status, answer.body.as_str()), (400, wrong), "{request}"),
                    None => assert!(![needs, twice, none].contains(&answer.body.as_str()), "{request}"),
                }
            }
        }
    }
}

async fn ask_unix(path: &std::path::Path, request: &str) -> String {
    let mut stream = soon(tokio::net::UnixStream::connect(path)).await.unwrap();
    soon(stream.write_all(request.as_bytes())).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn a_unix_socket_serves_as_an_address_does_and_its_file_goes_with_the_gateway() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (clients, control) = (folder.path().join("clients"), folder.path().join("control"));
    // Nobody listens on this one any more.
    drop(std::os::unix::net::UnixListener::bind(&clients).unwrap());
    let config = Config {
        listen: Address::Unix(clients.clone()),
        control_listen: Some(Address::Unix(control.clone())),
        ..Config::default()
    };
    let server = Server::bind(config.clone()).await.unwrap();
    assert_eq!(server.address().to_string(), format!("unix:{}", clients.display()));
    assert_eq!(server.control_address(), &Address::Unix(control.clone()));
    assert_eq!(std::fs::metadata(&clients).unwrap().permissions().mode() & 0o777, 0o660);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(server.run(async { stopped.await.unwrap_or_default() }));

    let refused = Server::bind(config).await.unwrap_err();
    assert!(refused.to_string().starts_with("cannot listen on unix:"), "{refused}");
    let stream = soon(tokio::net::UnixStream::connect(&clients)).await.unwrap();
    let (mut socket, _) = soon(tokio_tungstenite::client_async("ws://x/ws", stream)).await.unwrap();
    let bind = r#"{"token":"ann","event":"mail"}"#;
    soon(futures_util::SinkExt::send(&mut socket, bind.into())).await.unwrap();
    let body = r#"{"userId":"ann","event":"mail","message":"m"}"#;
    let length = body.len();
    let push = format!("POST /push HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    soon(async { while !ask_unix(&control, &push).await.ends_with("message sent to 1 clients") {} }).await;
    let message = soon(futures_util::StreamExt::next(&mut socket)).await.unwrap().unwrap();
    assert_eq!(message.into_text().unwrap().as_str(), "m");
    drop(stop);
    drop(socket);
    soon(running).await.unwrap();
    assert!(!clients.exists() && !control.exists());

    std::fs::write(&clients, "a file of somebody's").unwrap();
    let config = Config { listen: Address::Unix(clients.clone()), ..Config::default() };
    assert!(Server::bind(config).await.is_err());
    assert_eq!(std::fs::read_to_string(&clients).unwrap(), "a file of somebody's");
}

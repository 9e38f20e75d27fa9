//! Who the client is behind proxies: by the head of its request, and by the PROXY protocol.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pushgate::{BindAttempt, Config, Identity, TokenAuthenticator, TokenError, UserId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::{PATIENCE, TestGateway, read_answer, soon};

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A bind in a masked frame, with a mask of zeros.
const BIND: &[u8] = b"\x81\x9e\0\0\0\0{\"token\":\"ann\",\"event\":\"mail\"}";

fn upgrade(more: &str) -> String {
    format!(
        "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{more}\r\n"
    )
}

/// A header of version 2 for a client at this IPv4 address.
fn v2(client: [u8; 4]) -> Vec<u8> {
    [V2, &[0x21, 0x11, 0, 12], &client, &[10, 0, 0, 1], &4711_u16.to_be_bytes(), &80_u16.to_be_bytes()].concat()
}

/// A token check that remembers where the tokens came from.
#[derive(Clone, Default)]
struct Peers(Arc<Mutex<Vec<SocketAddr>>>);

#[tonic::async_trait]
impl TokenAuthenticator for Peers {
    async fn authenticate(&self, attempt: &BindAttempt<'_>) -> Result<Identity, TokenError> {
        self.0.lock().unwrap().push(attempt.peer);
        Ok(Identity::new(UserId::new("ann").unwrap()))
    }
}

impl Peers {
    fn taken(&self) -> Vec<String> {
        self.0.lock().unwrap().drain(..).map(|peer| peer.to_string()).collect()
    }
}

fn behind(trusted: &'static str) -> impl Fn(&mut Config) {
    move |config| config.proxies_trusted = trusted.parse().unwrap()
}

fn with_proxy_protocol(config: &mut Config) {
    behind("127.0.0.1")(config);
    config.proxy_protocol = true;
}

/// A connection from this address of the machine.
async fn connect_from(source: [u8; 4], gateway: &TestGateway) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    soon(socket.connect(gateway.clients)).await.unwrap()
}

/// Opens a WebSocket, with these bytes before the request, and returns the status.
async fn open(gateway: &TestGateway, before: &[u8], more: &str) -> (u16, TcpStream) {
    let mut stream = connect_from([127, 0, 0, 1], gateway).await;
    soon(stream.write_all(&[before, upgrade(more).as_bytes(), BIND].concat())).await.unwrap();
    (read_answer(&mut stream).await.status, stream)
}

/// Waits for the end of a connection that is sent nothing.
async fn ends_without_a_byte(stream: &mut TcpStream) {
    let mut bytes = Vec::new();
    // A connection that is closed before everything on it was read is reset.
    let _reset = soon(stream.read_to_end(&mut bytes)).await;
    assert_eq!(bytes, b"");
}

async fn refused(gateway: &TestGateway, reason: &str) -> u64 {
    let listener = if gateway.clients == gateway.control { "all" } else { "clients" };
    let sample = format!("pushgate_http_refused_total{{listener=\"{listener}\",reason=\"{reason}\"}}");
    gateway.metric(&sample).await
}

#[tokio::test]
async fn the_token_check_sees_the_client_that_a_trusted_proxy_names() {
    let peers = Peers::default();
    let gateway =
        TestGateway::built(behind("127.0.0.0/8, 10.0.0.0/8"), |builder| builder.token_authenticator(peers.clone()))
            .await;
    for (at, (head, client)) in [
        ("x-forwarded-for: 6.6.6.6, 192.0.2.1, 10.0.0.2\r\n", "192.0.2.1:0"),
        ("forwarded: for=\"[2001:db8::1]:4711\"\r\n", "[2001:db8::1]:4711"),
    ]
    .into_iter()
    .enumerate()
    {
        let (status, _stream) = open(&gateway, b"", head).await;
        assert_eq!(status, 101);
        gateway.until("pushgate_binds_total", |binds| binds == at as u64 + 1).await;
        assert_eq!(peers.taken(), [client]);
    }
}

#[tokio::test]
async fn from_somebody_else_the_headers_say_nothing() {
    let peers = Peers::default();
    let gateway = TestGateway::built(behind("10.0.0.0/8"), |builder| builder.token_authenticator(peers.clone())).await;
    let (_, stream) = open(&gateway, b"", "x-forwarded-for: 192.0.2.1\r\nforwarded: for=192.0.2.1\r\n").await;
    gateway.until("pushgate_binds_total", |binds| binds == 1).await;
    assert_eq!(peers.taken(), [stream.local_addr().unwrap().to_string()]);
}

#[tokio::test]
async fn behind_a_trusted_proxy_each_client_has_its_own_share_of_connections() {
    let gateway = TestGateway::with(|config| {
        behind("127.0.0.1")(config);
        (config.connections_per_address_max, config.http_connections_per_address_max) = (1, 1);
    })
    .await;
    let (_, first) = open(&gateway, b"", "x-forwarded-for: 192.0.2.1\r\n").await;
    let (status, _) = open(&gateway, b"", "x-forwarded-for: 192.0.2.1\r\n").await;
    assert_eq!(status, 429);
    let (status, _second) = open(&gateway, b"", "x-forwarded-for: 192.0.2.2\r\n").await;
    assert_eq!(status, 101);
    drop(first);
    gateway.until("pushgate_connections", |connections| connections == 1).await;
    let (status, _third) = open(&gateway, b"", "x-forwarded-for: 192.0.2.1\r\n").await;
    assert_eq!(status, 101);
    let (_, _fourth) = open(&gateway, b"", "x-forwarded-for: 2001:db8::1\r\n").await;
    for (address, status) in [("2001:db8::2", 429), ("2001:db8:0:1::2", 101)] {
        let (answered, _) = open(&gateway, b"", &format!("x-forwarded-for: {address}\r\n")).await;
        assert_eq!(answered, status, "{address}: a network of 64 bits counts as one address");
    }
    assert_eq!(refused(&gateway, "full_for_address").await, 0, "the proxy itself has no limit");
}

#[tokio::test]
async fn the_proxy_protocol_names_the_client_in_both_versions() {
    let peers = Peers::default();
    let gateway = TestGateway::built(
        |config| {
            with_proxy_protocol(config);
            config.control_listen = Some(([127, 0, 0, 1], 0).into());
        },
        |builder| builder.token_authenticator(peers.clone()),
    )
    .await;
    for (at, (header, client)) in [
        (&b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 80\r\n"[..], "192.0.2.1:4711"),
        (b"PROXY TCP6 2001:db8::1 ::1 4711 80\r\n", "[2001:db8::1]:4711"),
        (&v2([192, 0, 2, 2]), "192.0.2.2:4711"),
    ]
    .into_iter()
    .enumerate()
    {
        let (status, _stream) = open(&gateway, header, "x-forwarded-for: 6.6.6.6\r\n").await;
        assert_eq!(status, 101);
        gateway.until("pushgate_binds_total", |binds| binds == at as u64 + 1).await;
        assert_eq!(peers.taken(), [client], "and its own header says nothing");
    }
    // A connection of the proxy's own, in whose requests it names the clients.
    let (_, _stream) = open(&gateway, b"PROXY UNKNOWN\r\n", "x-forwarded-for: 192.0.2.3\r\n").await;
    gateway.until("pushgate_binds_total", |binds| binds == 4).await;
    assert_eq!(peers.taken(), ["192.0.2.3:0"]);
}

#[tokio::test]
async fn the_proxy_protocol_is_taken_from_trusted_proxies_alone() {
    let gateway = TestGateway::with(|config| {
        with_proxy_protocol(config);
        config.control_listen = Some(([127, 0, 0, 1], 0).into());
    })
    .await;
    let mut elsewhere = connect_from([127, 0, 0, 2], &gateway).await;
    let _closed = soon(elsewhere.write_all(&[&v2([192, 0, 2, 1]), upgrade("").as_bytes()].concat())).await;
    ends_without_a_byte(&mut elsewhere).await;
    assert_eq!(refused(&gateway, "not_a_proxy").await, 1);
    assert_eq!(gateway.metric("pushgate_upgrades_total{result=\"accepted\"}").await, 0);
}

#[tokio::test]
async fn a_connection_without_a_header_in_time_is_closed_and_counted() {
    let gateway = TestGateway::with(|config| {
        with_proxy_protocol(config);
        config.control_listen = Some(([127, 0, 0, 1], 0).into());
        config.http_header_timeout = Duration::from_millis(100);
    })
    .await;
    let request = upgrade("");
    let bad: [&[u8]; 5] = [request.as_bytes(), b"", b"PROXY TCP4 192.0.2.1", &V2[..8], b"PROXY TCP4 1 2 3 4\r\n"];
    for (at, sent) in bad.into_iter().enumerate() {
        let mut stream = connect_from([127, 0, 0, 1], &gateway).await;
        soon(stream.write_all(sent)).await.unwrap();
        ends_without_a_byte(&mut stream).await;
        assert_eq!(refused(&gateway, "no_proxy_header").await, at as u64 + 1, "{sent:?}");
    }
    // A probe that only wants to know whether the port is open.
    let mut probe = connect_from([127, 0, 0, 1], &gateway).await;
    soon(probe.shutdown()).await.unwrap();
    ends_without_a_byte(&mut probe).await;
    assert_eq!(refused(&gateway, "no_proxy_header").await, bad.len() as u64);
    gateway.until("pushgate_http_connections{listener=\"clients\"}", |open| open == 0).await;
}

#[tokio::test]
async fn the_clients_behind_the_proxy_protocol_have_their_own_share_of_the_places() {
    let gateway = TestGateway::with(|config| {
        with_proxy_protocol(config);
        config.control_listen = Some(([127, 0, 0, 1], 0).into());
        config.http_connections_per_address_max = 1;
        config.http_header_timeout = PATIENCE;
    })
    .await;
    let _waiting = (connect_from([127, 0, 0, 1], &gateway).await, connect_from([127, 0, 0, 1], &gateway).await);
    let no_upgrade = b"GET /ws HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut kept = connect_from([127, 0, 0, 1], &gateway).await;
    soon(kept.write_all(&[&v2([192, 0, 2, 1])[..], no_upgrade].concat())).await.unwrap();
    assert_eq!(read_answer(&mut kept).await.status, 426);
    let mut one_more = connect_from([127, 0, 0, 1], &gateway).await;
    soon(one_more.write_all(&v2([192, 0, 2, 1]))).await.unwrap();
    assert_eq!(read_answer(&mut one_more).await.status, 429);
    assert_eq!(refused(&gateway, "full_for_address").await, 1);
    let mut other = connect_from([127, 0, 0, 1], &gateway).await;
    soon(other.write_all(&[&v2([192, 0, 2, 2])[..], no_upgrade].concat())).await.unwrap();
    assert_eq!(read_answer(&mut other).await.status, 426);
}

#[tokio::test]
async fn a_connection_that_waits_for_its_header_makes_room_and_does_not_delay_a_shutdown() {
    let gateway = TestGateway::with(|config| {
        with_proxy_protocol(config);
        config.control_listen = Some(([127, 0, 0, 1], 0).into());
        config.http_connections_max = 1;
        config.http_header_timeout = PATIENCE * 2;
        config.shutdown_grace = PATIENCE * 2;
    })
    .await;
    let mut first = connect_from([127, 0, 0, 1], &gateway).await;
    let mut second = connect_from([127, 0, 0, 1], &gateway).await;
    ends_without_a_byte(&mut first).await;
    assert_eq!(gateway.metric("pushgate_http_evicted_total{listener=\"clients\"}").await, 1);
    assert_eq!(gateway.stop().await.http_connections_cut, 0);
    ends_without_a_byte(&mut second).await;
}

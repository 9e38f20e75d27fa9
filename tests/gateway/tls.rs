//! TLS on both addresses: protocols, certificates, and handshakes that fail.

use std::net::SocketAddr;
use std::time::Duration;

use pushgate::{Server, ServerError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::rustls::HandshakeKind;

use crate::support::certificates::{Authority, Files};
use crate::support::tls::Speaks;
use crate::support::{Client, TestGateway, push_request, soon};

const YEAR: i32 = 2090;

/// 2090-01-01, in seconds since 1970.
const EXPIRES: u64 = 3_786_912_000;

/// A gateway whose clients come over TLS. Its control address is plain, so that tests can read the metrics.
async fn clients_over_tls(files: &Files, change: impl FnOnce(&mut pushgate::Config)) -> TestGateway {
    TestGateway::with(|config| {
        config.tls_cert_file = Some(files.certificate.clone());
        config.tls_key_file = Some(files.key.clone());
        config.control_listen = Some(([127, 0, 0, 1], 0).into());
        change(config);
    })
    .await
}

#[tokio::test]
async fn whoever_agrees_on_http2_and_speaks_http1_is_not_answered_in_http1() {
    let authority = Authority::new("ca");
    let files = authority.issue("own", &["localhost"], YEAR);
    let gateway = TestGateway::with(|config| {
        config.tls_cert_file = Some(files.certificate.clone());
        config.tls_key_file = Some(files.key.clone());
    })
    .await;
    let mut stream = Speaks::with(&authority).alpn("h2").connect(gateway.clients).await.unwrap();
    soon(stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n")).await.unwrap();
    soon(stream.flush()).await.unwrap();
    let mut answer = Vec::new();
    // The connection may just end.
    let _ended = soon(stream.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP/1"), "{answer:?}");
}

fn handshakes(result: &str) -> String {
    format!("pushgate_tls_handshakes_total{{listener=\"clients\",result=\"{result}\"}}")
}

fn reloads(result: &str) -> String {
    format!("pushgate_certificate_reloads_total{{listener=\"clients\",result=\"{result}\"}}")
}

/// The certificate that a client with these wishes is shown.
async fn certificate(speaks: &Speaks, address: SocketAddr) -> Vec<u8> {
    let stream = speaks.connect(address).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn one_address_serves_http_1_and_http_2_and_websockets_over_tls() {
    let authority = Authority::new("ca");
    let files = authority.issue("own", &["localhost"], YEAR);
    let gateway = TestGateway::with(|config| {
        config.tls_cert_file = Some(files.certificate.clone());
        config.tls_key_file = Some(files.key.clone());
    })
    .await;
    let speaks = Speaks::with(&authority);
    for speaks in [speaks.clone(), speaks.clone().only_1_2(), speaks.clone().alpn("http/1.1")] {
        let answer = speaks.get(gateway.clients, "/readyz").await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "ready\n"));
    }
    let mut phone = speaks.clone().only_1_2().websocket(gateway.clients).await;
    phone.send_bind("ann", "mail").await;
    phone.socket.get_mut().get_ref().0.set_nodelay(true).unwrap();
    let mut grpc = speaks.grpc(gateway.clients).await.unwrap();
    let mut desk = speaks.clone().alpn("http/1.1").websocket(gateway.clients).await;
    desk.send_bind("ann", "mail").await;
    let metrics = || async { speaks.get(gateway.clients, "/metrics").await.unwrap().body };
    soon(async { while !metrics().await.contains("pushgate_binds_total 2\n") {} }).await;
    let outcome = soon(grpc.push(push_request("ann", "mail", "hello"))).await.unwrap().into_inner();
    assert_eq!((outcome.matched, outcome.accepted), (2, 2));
    assert_eq!((phone.next_text().await, desk.next_text().await), ("hello".to_owned(), "hello".to_owned()));
    let shown = metrics().await;
    let expires = format!("pushgate_certificate_expires_seconds{{listener=\"all\"}} {EXPIRES}\n");
    assert!(shown.contains(&expires), "{shown}");
    assert_eq!(gateway.stop().await.connections_cut, 0);
}

#[tokio::test]
async fn the_control_address_has_a_certificate_of_its_own() {
    let authority = Authority::new("ca");
    let files = authority.issue("control", &["control.internal"], YEAR);
    let gateway = TestGateway::with(|config| {
        config.control_listen = Some(([127, 0, 0, 1], 0).into());
        config.control_tls_cert_file = Some(files.certificate.clone());
        config.control_tls_key_file = Some(files.key.clone());
    })
    .await;
    let mut phone = Client::connect(gateway.clients).await;
    let speaks = Speaks::with(&authority).host("control.internal");
    phone.send_bind("ann", "mail").await;
    let is_bound = || async { speaks.get(gateway.control, "/metrics").await.unwrap().body };
    soon(async { while !is_bound().await.contains("pushgate_binds_total 1\n") {} }).await;
    let mut grpc = speaks.grpc(gateway.control).await.unwrap();
    let outcome = soon(grpc.push(push_request("ann", "mail", "hello"))).await.unwrap().into_inner();
    assert_eq!(outcome.accepted, 1);
    assert_eq!(phone.next_text().await, "hello");
}

#[tokio::test]
async fn messages_of_any_size_arrive_whole_and_in_order_at_a_slow_reader() {
    let authority = Authority::new("ca");
    let files = authority.issue("own", &["localhost"], YEAR);
    let gateway = clients_over_tls(&files, |config| config.outbox_bytes_max = 64 << 20).await;
    let mut phone = Speaks::with(&authority).websocket(gateway.clients).await;
    phone.send_bind("ann", "mail").await;
    gateway.until("pushgate_binds_total", |binds| binds == 1).await;
    let messages: Vec<String> =
        (0..200).map(|number| format!("{number} {}", "x".repeat([0, 100, 16 * 1024, 100_000][number % 4]))).collect();
    let mut json = gateway.json();
    for message in &messages {
        assert_eq!(json.push("ann", "mail", message).await, 1);
    }
    assert!(gateway.metric("pushgate_outbox_messages").await > 0, "the kernel has not taken all of it");
    for message in &messages {
        assert_eq!(phone.next_text().await, *message);
    }
    gateway.until("pushgate_messages_written_total", |written| written == 200).await;
}

#[tokio::test]
async fn a_client_that_comes_back_goes_on_with_its_keys() {
    let authority = Authority::new("ca");
    let files = authority.issue("own", &["localhost"], YEAR);
    let gateway = clients_over_tls(&files, |_| ()).await;
    let speaks = Speaks::with(&authority);
    assert_eq!(speaks.comes_back(gateway.clients).await, HandshakeKind::Resumed);
    assert_eq!(speaks.only_1_2().comes_back(gateway.clients).await, HandshakeKind::Resumed);
}

#[tokio::test]
async fn the_page_names_the_scheme_of_clients_where_it_is_not_its_own() {
    let authority = Authority::new("ca");
    let gateway = clients_over_tls(&authority.issue("own", &["localhost"], YEAR), |_| ()).await;
    assert!(gateway.get("/").await.body.contains("\"scheme\":\"wss:\""));
}

#[tokio::test]
async fn clients_are_offered_no_http_2() {
    let authority = Authority::new("ca");
    let files = authority.issue("own", &["localhost"], YEAR);
    let gateway = clients_over_tls(&files, |_| ()).await;
    let error = Speaks::with(&authority).alpn("h2").connect(gateway.clients).await.unwrap_err();
    assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
    gateway.until(&handshakes("nothing_in_common"), |count| count == 1).await;
}

#[tokio::test]
async fn a_reload_changes_the_certificate_and_keeps_the_sockets() {
    let authority = Authority::new("ca");
    let files = authority.issue("own", &["localhost"], YEAR);
    let gateway = clients_over_tls(&files, |_| ()).await;
    let speaks = Speaks::with(&authority);
    let mut phone = speaks.websocket(gateway.clients).await;
    phone.send_bind("ann", "mail").await;
    gateway.until("pushgate_binds_total", |binds| binds == 1).await;
    let first = certificate(&speaks, gateway.clients).await;

    authority.issue("own", &["localhost"], YEAR + 1);
    assert!(gateway.gateway.reload().await.is_empty());
    let second = certificate(&speaks, gateway.clients).await;
    assert_ne!(first, second);
    let expires = "pushgate_certificate_expires_seconds{listener=\"clients\"}";
    assert_eq!(gateway.metric(expires).await, EXPIRES + 365 * 24 * 3600);
    assert_eq!(gateway.metric(&reloads("loaded")).await, 1);

    std::fs::write(&files.key, "not a key").unwrap();
    let errors: Vec<String> = gateway.gateway.reload().await.iter().map(ToString::to_string).collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("own.key: holds no private key"), "{errors:?}");
    assert_eq!(certificate(&speaks, gateway.clients).await, second);
    assert_eq!(gateway.metric(&reloads("failed")).await, 1);

    assert_eq!(gateway.json().push("ann", "mail", "still here").await, 1);
    assert_eq!(phone.next_text().await, "still here");
}

/// The files are links into a folder that is itself a link, as Kubernetes lays them out, and one step changes both.
#[tokio::test]
async fn a_certificate_is_taken_over_when_its_files_change_and_a_broken_one_is_counted_once() {
    let authority = Authority::new("ca");
    let folder = tempfile::tempdir().unwrap();
    let lay = |version: &str, files: &Files| {
        let place = folder.path().join(version);
        std::fs::create_dir(&place).unwrap();
        std::fs::copy(&files.certificate, place.join("tls.crt")).unwrap();
        std::fs::copy(&files.key, place.join("tls.key")).unwrap();
        std::os::unix::fs::symlink(version, folder.path().join("..new")).unwrap();
        std::fs::rename(folder.path().join("..new"), folder.path().join("..data")).unwrap();
    };
    let files = ["tls.crt", "tls.key"].map(|name| {
        std::os::unix::fs::symlink(format!("..data/{name}"), folder.path().join(name)).unwrap();
        folder.path().join(name)
    });
    lay("..1", &authority.issue("first", &["localhost"], YEAR));
    let [certificate_file, key] = files;
    let files = Files { certificate: certificate_file, key };
    let gateway = clients_over_tls(&files, |_| ()).await;
    let speaks = Speaks::with(&authority);
    let first = certificate(&speaks, gateway.clients).await;
    lay("..2", &authority.issue("second", &["localhost"], YEAR));
    gateway.until(&reloads("loaded"), |count| count == 1).await;
    let second = certificate(&speaks, gateway.clients).await;
    assert_ne!(first, second);
    let third = authority.issue("third", &["localhost"], YEAR);
    lay("..3", &Files { certificate: third.certificate.clone(), key: authority.issue("x", &["x"], YEAR).key });
    gateway.until(&reloads("failed"), |count| count == 1).await;
    assert_eq!(certificate(&speaks, gateway.clients).await, second);
    lay("..4", &third);
    gateway.until(&reloads("loaded"), |count| count == 2).await;
    assert_eq!(gateway.metric(&reloads("failed")).await, 1, "the same mistake is told once");
}

#[tokio::test]
async fn a_client_gets_the_certificate_of_the_host_it_asks_for() {
    let authority = Authority::new("ca");
    let own = authority.issue("own", &["localhost"], YEAR);
    let folder = authority.folder().join("more");
    std::fs::create_dir(&folder).unwrap();
    authority.issue("more/a", &["a.example.com", "b.example.com"], YEAR);
    authority.issue("more/wild", &["*.example.com"], YEAR);
    std::fs::write(folder.join("README"), "not a certificate").unwrap();
    let gateway = clients_over_tls(&own, |config| config.tls_cert_folder = Some(folder.clone())).await;
    let speaks = Speaks::with(&authority);
    let shown = |host: &str| {
        let speaks = speaks.clone().host(host);
        async move { certificate(&speaks, gateway.clients).await }
    };
    let a = shown("a.example.com").await;
    assert_eq!(shown("B.example.com").await, a);
    let wild = shown("c.example.com").await;
    let default = shown("localhost").await;
    assert!(wild != a && default != a && default != wild);
    for other in ["d.c.example.com", "example.com", "127.0.0.1"] {
        let error = speaks.clone().host(other).connect(gateway.clients).await.unwrap_err();
        assert!(error.to_string().contains("only valid for DnsName(\"localhost\")"), "{other}: {error}");
    }
}

#[tokio::test]
async fn without_a_certificate_beside_the_folder_the_first_of_it_is_the_default() {
    let authority = Authority::new("ca");
    let folder = authority.folder().join("all");
    std::fs::create_dir(&folder).unwrap();
    authority.issue("all/1", &["127.0.0.1"], YEAR);
    authority.issue("all/2", &["localhost"], YEAR);
    let gateway = TestGateway::with(|config| config.tls_cert_folder = Some(folder.clone())).await;
    for host in ["127.0.0.1", "localhost"] {
        Speaks::with(&authority).host(host).get(gateway.clients, "/readyz").await.unwrap();
    }
}

/// The ClientHello of a client that has all that is needed but a version after TLS 1.1: RFC 4346 section 7.4.1.2.
fn hello_of_tls_1_1() -> Vec<u8> {
    let mut body = vec![3, 2];
    body.extend([7; 32]);
    // No session, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, no compression.
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    // ecdsa_secp256r1_sha256, secp256r1, uncompressed points.
    body.extend([0, 22, 0, 13, 0, 4, 0, 2, 4, 3, 0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0]);
    let mut hello = vec![22, 3, 1, 0, body.len() as u8 + 4, 1, 0, 0, body.len() as u8];
    hello.extend(body);
    hello
}

#[tokio::test]
async fn what_is_not_tls_1_2_or_1_3_is_refused_and_counted() {
    let authority = Authority::new("ca");
    let gateway = clients_over_tls(&authority.issue("own", &["localhost"], YEAR), |_| ()).await;
    let answered = |bytes: Vec<u8>| async move {
        let mut stream = TcpStream::connect(gateway.clients).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut answer = Vec::new();
        soon(stream.read_to_end(&mut answer)).await.map(|_| answer)
    };
    let alert = answered(hello_of_tls_1_1()).await.unwrap();
    assert_eq!(alert[..1], [21], "an alert");
    assert_eq!(alert[5..], [2, 70], "protocol_version, RFC 8446 section 6");
    gateway.until(&handshakes("nothing_in_common"), |count| count == 1).await;
    // Whether its end or a reset is read depends on what the gateway had read by then.
    let _ended = answered(b"GET /ws HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()).await;
    gateway.until(&handshakes("not_tls"), |count| count == 1).await;
    let untrusting = Speaks::with(&Authority::new("another"));
    let error = untrusting.connect(gateway.clients).await.unwrap_err();
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    gateway.until(&handshakes("refused_by_peer"), |count| count == 1).await;
    drop(TcpStream::connect(gateway.clients).await.unwrap());
    gateway.until(&handshakes("peer_left"), |count| count == 1).await;
    assert_eq!(gateway.metric(&handshakes("done")).await, 0);
}

#[tokio::test]
async fn a_handshake_that_is_not_finished_ends_at_its_deadline() {
    let authority = Authority::new("ca");
    let files = authority.issue("own", &["localhost"], YEAR);
    let gateway = clients_over_tls(&files, |config| config.http_header_timeout = Duration::from_millis(200)).await;
    for begun in [&[][..], &hello_of_tls_1_1()[..20]] {
        let mut stream = TcpStream::connect(gateway.clients).await.unwrap();
        stream.write_all(begun).await.unwrap();
        assert_eq!(soon(stream.read(&mut [0; 16])).await.unwrap_or(0), 0);
    }
    gateway.until(&handshakes("timed_out"), |count| count == 2).await;
    gateway.until("pushgate_http_connections{listener=\"clients\"}", |count| count == 0).await;
}

#[tokio::test]
async fn a_handshake_has_a_place_and_gives_it_to_a_newcomer_first() {
    let authority = Authority::new("ca");
    let files = authority.issue("own", &["localhost"], YEAR);
    let gateway = clients_over_tls(&files, |config| config.http_connections_max = 1).await;
    let mut silent = TcpStream::connect(gateway.clients).await.unwrap();
    gateway.until("pushgate_http_connections{listener=\"clients\"}", |count| count == 1).await;
    let mut phone = Speaks::with(&authority).websocket(gateway.clients).await;
    assert_eq!(soon(silent.read(&mut [0; 16])).await.unwrap_or(0), 0);
    assert_eq!(gateway.metric(&handshakes("given_up")).await, 1);
    assert_eq!(gateway.metric("pushgate_http_evicted_total{listener=\"clients\"}").await, 1);
    phone.send_bind("ann", "mail").await;
    gateway.until("pushgate_binds_total", |binds| binds == 1).await;
}

#[tokio::test]
async fn a_handshake_does_not_delay_the_shutdown_for_its_whole_deadline() {
    let authority = Authority::new("ca");
    let files = authority.issue("own", &["localhost"], YEAR);
    let gateway = clients_over_tls(&files, |config| config.http_header_timeout = Duration::from_secs(3600)).await;
    let _silent = TcpStream::connect(gateway.clients).await.unwrap();
    gateway.until("pushgate_http_connections{listener=\"clients\"}", |count| count == 1).await;
    assert_eq!(gateway.stop().await.http_connections_cut, 0);
}

#[tokio::test]
async fn every_mistake_in_the_files_is_named_at_once() {
    let authority = Authority::new("ca");
    let (own, control) = (authority.issue("own", &["localhost"], YEAR), authority.issue("control", &["x"], YEAR));
    std::fs::write(&own.certificate, "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n").unwrap();
    let folder = authority.folder().join("more");
    std::fs::create_dir(&folder).unwrap();
    authority.issue("more/alone", &["y"], YEAR);
    std::fs::remove_file(folder.join("alone.key")).unwrap();
    let config = pushgate::Config {
        listen: ([127, 0, 0, 1], 0).into(),
        control_listen: Some(([127, 0, 0, 1], 0).into()),
        tls_cert_file: Some(own.certificate),
        tls_key_file: Some(authority.folder().join("missing.key")),
        tls_cert_folder: Some(folder),
        control_tls_cert_file: Some(control.certificate),
        control_tls_key_file: Some(own.key),
        ..pushgate::Config::default()
    };
    let error = Server::bind(config.clone()).await.unwrap_err();
    assert!(matches!(error, ServerError::Tls(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains("tls_key_file: cannot read ") && text.contains("missing.key: No such file"), "{text}");
    assert!(text.contains("tls_cert_folder: ") && text.contains("alone.crt: there is no .key file of this"), "{text}");
    assert!(text.contains("control_tls_key_file: ") && text.contains("not the key of the certificate in"), "{text}");
    assert_eq!(text.lines().count(), 4, "{text}");
    std::fs::copy(authority.folder().join("more/alone.crt"), authority.folder().join("missing.key")).unwrap();
    let text = Server::check_tls(&config).unwrap_err().to_string();
    assert!(text.contains("own.crt: line 1: this is not a certificate: "), "{text}");
    assert!(text.contains("missing.key: holds no private key; line 1 begins a CERTIFICATE"), "{text}");
}

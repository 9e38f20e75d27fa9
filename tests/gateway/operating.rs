//! What an operator looks at.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{TestGateway, http, soon};

#[tokio::test]
async fn a_probe_is_answered() {
    let gateway = TestGateway::start().await;
    for (path, body) in [("/healthz", "ok\n"), ("/readyz", "ready\n")] {
        let answer = gateway.get(path).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, body));
        let answer = http(gateway.control, &format!("POST {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")));
    }
    assert_eq!(gateway.get("/elsewhere").await.status, 404);
}

#[tokio::test]
async fn the_metrics_tell_what_happened() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    gateway.json().push("ann", "mail", "m").await;
    gateway.json().push("bob", "mail", "m").await;
    gateway.json().post("{}").await;
    gateway.grpc().await.push("ann", "mail", "m").await;
    for _ in 0..2 {
        phone.next_text().await;
    }
    gateway.until("pushgate_messages_written_total", |written| written == 2).await;
    for (sample, expected) in [
        ("pushgate_connections", 1),
        ("pushgate_bindings", 1),
        ("pushgate_users", 1),
        ("pushgate_outbox_messages", 0),
        ("pushgate_outbox_bytes", 0),
        ("pushgate_binds_total", 1),
        ("pushgate_upgrades_total{result=\"accepted\"}", 1),
        ("pushgate_pushes_total{door=\"json\",result=\"accepted\"}", 1),
        ("pushgate_pushes_total{door=\"json\",result=\"unmatched\"}", 1),
        ("pushgate_pushes_total{door=\"json\",result=\"invalid\"}", 1),
        ("pushgate_pushes_total{door=\"grpc\",result=\"accepted\"}", 1),
        ("pushgate_push_matched_total", 2),
        ("pushgate_push_accepted_total", 2),
        ("pushgate_push_seconds_count", 3),
        ("pushgate_delivery_seconds_count", 2),
    ] {
        assert_eq!(gateway.metric(sample).await, expected, "{sample}");
    }
    let answer = gateway.get("/metrics").await;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(answer.header("content-type"), Some(kind));
    assert!(answer.body.ends_with("# EOF\n"));
}

#[tokio::test]
async fn the_page_is_there_on_loopback_and_off_when_told() {
    let answer = TestGateway::start().await.get("/").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(answer.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    let elsewhere = |config: &mut pushgate::Config| config.control_listen = Some(([127, 0, 0, 2], 0).into());
    let split = TestGateway::with(elsewhere).await;
    let port = split.clients.port();
    let told = format!("\"wsAt\":{{\"host\":\"127.0.0.1\",\"port\":{port}}},\"wsPath\":\"/ws\",\"wsUrl\":null");
    assert!(split.get("/").await.body.contains(&told), "the page knows where clients connect to");
    let off = TestGateway::with(|config| config.page = pushgate::Page::Off).await;
    assert_eq!(off.get("/").await.status, 404);
}

#[tokio::test]
async fn the_client_module_and_its_types_are_served_on_both_addresses_to_every_origin() {
    let split = TestGateway::with(|config| config.control_listen = Some(([127, 0, 0, 1], 0).into())).await;
    let text = "export class Pushgate extends EventTarget {";
    for address in [split.clients, split.control] {
        for (path, kind) in
            [("/pushgate.js", "text/javascript; charset=utf-8"), ("/pushgate.d.ts", "text/plain; charset=utf-8")]
        {
            let ask = |method: &str, more: &str| {
                let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{more}\r\n");
                async move { http(address, &request).await }
            };
            let answer = ask("GET", "").await;
            assert_eq!((answer.status, answer.header("content-type")), (200, Some(kind)));
            assert!(answer.body.contains(text), "{path} on {address}");
            assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
            assert_eq!(answer.header("cache-control"), Some("no-cache"));

            let tag = answer.header("etag").unwrap();
            let again = ask("GET", &format!("if-none-match: \"other\", W/{tag}\r\n")).await;
            assert_eq!((again.status, again.body.as_str()), (304, ""));
            assert_eq!((again.header("etag"), again.header("access-control-allow-origin")), (Some(tag), Some("*")));
            assert_eq!(ask("GET", "if-none-match: \"other\"\r\n").await.status, 200);

            let refused = ask("POST", "content-length: 0\r\n").await;
            assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD")));
        }
    }
    let request = "HEAD /pushgate.js HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut stream = TcpStream::connect(split.clients).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = String::new();
    soon(stream.read_to_string(&mut head)).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
}

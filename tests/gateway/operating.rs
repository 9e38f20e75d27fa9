//! What an operator looks at.

use std::collections::BTreeSet;

use pushgate::proto::{Level, PushRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::session::{Place, SessionClient};
use crate::support::{Answer, TestGateway, http, push_request, soon};

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

impl TestGateway {
    /// What a scraper gets that sends these lines of a head.
    async fn scrape(&self, lines: &str) -> Answer {
        http(self.control, &format!("GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{lines}\r\n")).await
    }

    /// The names of all samples, labels included.
    async fn samples(&self) -> BTreeSet<String> {
        let text = self.get("/metrics").await.body;
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
    }
}

#[tokio::test]
async fn every_sample_is_there_before_it_counts() {
    let gateway = TestGateway::with(|config| config.outbox_messages_max = 1).await;
    let before = gateway.samples().await;
    for counter in [
        "pushgate_push_dropped_total{reason=\"queue_full\"}",
        "pushgate_messages_undelivered_total{reason=\"write_timeout\"}",
        "pushgate_messages_displaced_total",
        "pushgate_accept_errors_total{listener=\"all\"}",
        "pushgate_http_refused_total{listener=\"clients\",reason=\"full\"}",
        "pushgate_http_evicted_total{listener=\"control\"}",
        "pushgate_task_panics_total{task=\"accept\"}",
        "pushgate_pushes_total{door=\"grpc\",result=\"check_unavailable\"}",
        "pushgate_closes_total{reason=\"panicked\"}",
        "pushgate_upgrades_total{result=\"too_many_from_address\"}",
        "pushgate_resumes_total{result=\"gap\"}",
    ] {
        assert!(before.contains(counter), "{counter}");
        assert_eq!(gateway.metric(counter).await, 0, "{counter}");
    }
    let mut client = SessionClient::connect(gateway.clients).await;
    let place = Place::of(&client.bind("ann", "mail").await);
    gateway.grpc().await.push("ann", "mail", "m").await;
    client.reset();
    gateway.until_closed("reset").await;
    let mut client = SessionClient::connect(gateway.clients).await;
    client.resume("ann", "mail", &place).await;
    gateway.json().post("{}").await;
    gateway.get("/ws").await;
    gateway.json().push("bob", "mail", "m").await;
    gateway.grpc().await.drop_user("ann", "").await;
    gateway.until_closed("dropped").await;
    assert_eq!(gateway.samples().await, before);
}

#[tokio::test]
async fn a_scraper_gets_the_text_format_that_it_prefers() {
    let gateway = TestGateway::start().await;
    let open = gateway.scrape("accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n").await;
    assert_eq!(open.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    assert!(open.body.contains("# TYPE pushgate_binds counter\npushgate_binds_total 0\n"), "{}", open.body);
    assert!(open.body.ends_with("# EOF\n"));
    let lines = "accept: application/openmetrics-text;q=0.1\r\nAccept: Text/Plain; version=0.0.4\r\n";
    let plain = gateway.scrape(lines).await;
    assert_eq!(plain.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(plain.body.contains("# TYPE pushgate_binds_total counter\npushgate_binds_total 0\n"), "{}", plain.body);
    assert!(!plain.body.contains("# EOF") && !plain.body.contains("# UNIT"), "{}", plain.body);
    for answer in [open, plain] {
        assert_eq!(answer.header("vary"), Some("accept"));
    }
}

#[tokio::test]
async fn each_limit_is_told_beside_its_use() {
    let gateway = TestGateway::with(|config| {
        config.connections_max = 11;
        config.http_connections_max = 12;
        config.push_concurrency_max = 13;
        config.waiting_pushes_max = 14;
        config.idempotency_keys_max = 15;
        config.sessions_away_max = 16;
        config.journal_total_bytes_max = 17_000_000;
        config.outbox_messages_max = 18;
        config.outbox_bytes_max = 1_000_000;
    })
    .await;
    let mut client = SessionClient::connect(gateway.clients).await;
    client.bind("ann", "mail").await;
    // The client never acknowledges, so that this waits.
    let mut waiting = gateway.grpc().await;
    let waiting = tokio::spawn(async move {
        let push = push_request("ann", "mail", "m");
        waiting.try_push(PushRequest { wait_for: Level::Acked.into(), idempotency_key: "k".to_owned(), ..push }).await
    });
    gateway.until("pushgate_waiting_pushes", |pushes| pushes == 1).await;
    let version = concat!("pushgate_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}");
    for (sample, expected) in [
        ("pushgate_connections", 1),
        ("pushgate_connections_max", 11),
        // The waiting caller's, and the scraper's own.
        ("pushgate_http_connections{listener=\"all\"}", 2),
        ("pushgate_http_connections_max{listener=\"all\"}", 12),
        ("pushgate_push_concurrency_max", 13),
        ("pushgate_waiting_pushes", 1),
        ("pushgate_waiting_pushes_max", 14),
        ("pushgate_idempotency_keys", 1),
        ("pushgate_idempotency_keys_max", 15),
        ("pushgate_sessions_away", 0),
        ("pushgate_sessions_away_max", 16),
        ("pushgate_journal_bytes_max", 17_000_000),
        ("pushgate_outbox_messages_fullest_max", 18),
        ("pushgate_outbox_bytes_fullest", 0),
        ("pushgate_outbox_bytes_fullest_max", 1_000_000),
        (version, 1),
    ] {
        if sample.starts_with("pushgate_http_connections{") {
            // A scraper that left a moment ago may still be counted.
            gateway.until(sample, |connections| connections == expected).await;
        }
        assert_eq!(gateway.metric(sample).await, expected, "{sample}");
    }
    waiting.abort();
    gateway.until("pushgate_waiting_pushes", |pushes| pushes == 0).await;
    gateway.until("pushgate_push_concurrency", |requests| requests == 0).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_process_is_told_of_under_the_usual_names() {
    let text = TestGateway::start().await.get("/metrics").await.body;
    for name in [
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_max_fds",
        "process_virtual_memory_bytes",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
    ] {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).expect(name);
        assert!(value.parse::<f64>().unwrap() > 0.0 || name == "process_cpu_seconds_total", "{name} {value}");
    }
}

#[tokio::test]
async fn the_page_is_there_on_loopback_and_off_when_told() {
    let answer = TestGateway::start().await.get("/").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(answer.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    let elsewhere = |config: &mut pushgate::Config| config.control_listen = Some(([127, 0, 0, 2], 0).into());
    let split = TestGateway::with(elsewhere).await;
    let port = split.clients.port();
    let at = format!("{{\"host\":\"127.0.0.1\",\"port\":{port},\"scheme\":null}}");
    let told = format!("\"wsAt\":{at},\"wsPath\":\"/ws\",\"wsUrl\":null");
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

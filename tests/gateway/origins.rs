//! Which web pages may open a WebSocket.

use pushgate::Config;

use crate::support::{Answer, TestGateway, http};

async fn upgrade(gateway: &TestGateway, host: &str, more: &str) -> Answer {
    let request = format!(
        "GET /ws HTTP/1.1\r\nhost: {host}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{more}\r\n"
    );
    http(gateway.clients, &request).await
}

async fn status(gateway: &TestGateway, host: &str, origin: &str) -> u16 {
    upgrade(gateway, host, &format!("origin: {origin}\r\n")).await.status
}

/// Reachable from other machines, as far as the settings go.
fn open(config: &mut Config) {
    config.listen = ([0, 0, 0, 0], 0).into();
    (config.insecure_open_push, config.insecure_token_is_user) = (true, true);
}

#[tokio::test]
async fn a_page_of_another_origin_is_refused_before_the_upgrade_and_counted() {
    let gateway = TestGateway::with(|config| {
        config.origins_allowed = Some("https://app.example.com, *.example.org".parse().unwrap());
    })
    .await;
    for good in ["https://app.example.com", "HTTPS://APP.example.com:443", "http://a.example.org:8080"] {
        assert_eq!(status(&gateway, "x", good).await, 101, "{good}");
    }
    let refused = ["https://evil.example", "http://app.example.com", "https://x", "null", "", "a, b", "\u{e9}"];
    for bad in refused {
        let answer = upgrade(&gateway, "x", &format!("origin: {bad}\r\n")).await;
        let told = "pages of this origin may not connect, see the gateway's setting origins_allowed";
        assert_eq!((answer.status, &*answer.body), (403, told), "{bad}");
    }
    let twice = "origin: https://app.example.com\r\norigin: https://app.example.com\r\n";
    assert_eq!(upgrade(&gateway, "x", twice).await.status, 403);
    assert_eq!(upgrade(&gateway, "x", "").await.status, 101, "not a page");
    let counted = gateway.metric("pushgate_upgrades_total{result=\"origin_refused\"}").await;
    assert_eq!(counted, refused.len() as u64 + 1);
    assert_eq!(gateway.metric("pushgate_upgrades_total{result=\"accepted\"}").await, 4);
}

#[tokio::test]
async fn an_open_address_lets_pages_of_its_own_host_connect_and_a_loopback_address_any() {
    let gateway = TestGateway::with(open).await;
    for good in ["https://push.example.com", "http://push.example.com:8080"] {
        assert_eq!(status(&gateway, "push.example.com:12345", good).await, 101, "{good}");
    }
    for bad in ["https://example.com", "https://push.example.com.evil.example", "null"] {
        assert_eq!(status(&gateway, "push.example.com", bad).await, 403, "{bad}");
    }
    assert_eq!(upgrade(&gateway, "push.example.com", "").await.status, 101, "not a page");
    let gateway = TestGateway::start().await;
    for any in ["https://evil.example", "null"] {
        assert_eq!(status(&gateway, "x", any).await, 101, "{any}");
    }
}

#[tokio::test]
async fn a_star_allows_every_page() {
    let gateway = TestGateway::with(|config| {
        open(config);
        config.origins_allowed = Some("*".parse().unwrap());
    })
    .await;
    for any in ["https://evil.example", "null"] {
        assert_eq!(status(&gateway, "x", any).await, 101, "{any}");
    }
}

#[tokio::test]
async fn the_host_in_the_request_line_precedes_the_header() {
    let gateway = TestGateway::with(open).await;
    let request = |host: &str| {
        format!(
            "GET http://push.example.com/ws HTTP/1.1\r\nhost: {host}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
             origin: https://push.example.com\r\n\r\n"
        )
    };
    assert_eq!(http(gateway.clients, &request("evil.example")).await.status, 101);
}

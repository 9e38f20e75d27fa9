//! Clients whose tokens are JWTs.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jsonwebtoken::Algorithm;
use pushgate::{Config, JwtAlgorithm, JwtAlgorithms, NonEmpty};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::support::TestGateway;
use crate::support::session::{Place, SessionClient};
use crate::support::signer::{Signer, claims, jwks, now};

/// A gateway for tokens of this issuer, with no leeway.
async fn trusting(signer: &Signer, change: impl FnOnce(&mut Config)) -> TestGateway {
    let mut keys = tempfile::NamedTempFile::new().unwrap();
    keys.write_all(signer.public_pem().as_bytes()).unwrap();
    TestGateway::with(|config| {
        config.jwt_keys_file = Some(keys.path().into());
        config.jwt_leeway = Duration::ZERO;
        change(config);
    })
    .await
}

#[tokio::test]
async fn a_jwt_binds_its_user_and_others_are_refused() {
    let (signer, stranger) = (Signer::new(Algorithm::ES256), Signer::new(Algorithm::ES256));
    let gateway = trusting(&signer, |_| ()).await;
    let mut phone = gateway.bind(&signer.token(&claims(&json!({}))), "mail").await;
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 1);
    assert_eq!(phone.next_text().await, "m");
    for refused in [
        "ann".to_owned(),
        stranger.token(&claims(&json!({}))),
        signer.token(&claims(&json!({ "exp": now() - 1 }))),
        signer.token(&claims(&json!({ "exp": null }))),
    ] {
        let mut client = gateway.connect().await;
        client.send_bind(&refused, "mail").await;
        assert_eq!(client.closed().await, (4401, "token refused".to_owned()));
    }
    phone.send_bind(&signer.token(&claims(&json!({ "sub": "bob" }))), "mail").await;
    assert_eq!(phone.closed().await.0, 4403, "a token of another user");
}

#[tokio::test]
async fn a_jwt_binds_only_the_events_of_its_claim() {
    let signer = Signer::new(Algorithm::EdDSA);
    let gateway = trusting(&signer, |config| config.jwt_events_claim = NonEmpty::new("events")).await;
    let token = signer.token(&claims(&json!({ "events": ["mail", "chat.*"] })));
    let mut phone = gateway.bind(&token, "mail").await;
    gateway.bind_also(&mut phone, &token, "chat.7").await;
    phone.send_bind(&token, "log").await;
    assert_eq!(phone.closed().await, (4403, "not allowed to bind this event".to_owned()));

    let mut session = SessionClient::connect(gateway.clients).await;
    assert_eq!(session.bind(&token, "mail").await["type"], "bound");
    assert_eq!(session.bind(&token, "log").await["code"], "not_allowed");
    let narrower = signer.token(&claims(&json!({ "events": ["chat.*"] })));
    session.say(json!({ "type": "refresh", "token": narrower })).await;
    assert_eq!(session.next().await["code"], "not_allowed", "it does not allow what is bound");
}

#[tokio::test]
async fn a_jwt_that_expires_closes_and_one_that_is_refreshed_does_not() {
    let signer = Signer::new(Algorithm::ES256);
    let gateway = trusting(&signer, |config| config.bind_timeout = Duration::from_secs(1)).await;
    let token = |left: u64| signer.token(&claims(&json!({ "exp": now() + left })));
    let mut renewed = SessionClient::connect(gateway.clients).await;
    let bound = renewed.bind(&token(3), "mail").await;
    assert!((1..=3000).contains(&bound["expires_in_ms"].as_u64().unwrap()), "{bound}");
    renewed.say(json!({ "type": "refresh", "token": token(600) })).await;
    let refreshed = renewed.next().await;
    assert!(refreshed["expires_in_ms"].as_u64().unwrap() > 500_000, "{refreshed}");

    let mut ends = SessionClient::connect(gateway.clients).await;
    let place = Place::of(&ends.bind(&token(3), "mail").await);
    let mut legacy = gateway.bind(&token(3), "mail").await;
    assert_eq!(ends.closed().await, (4410, "token expired".to_owned()));
    assert_eq!(legacy.closed().await, (4410, "token expired".to_owned()));
    let mut back = SessionClient::connect(gateway.clients).await;
    assert_eq!(back.resume(&token(600), "mail", &place).await["recovered"], true);
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 2);
    renewed.expect_push(1, "m").await;
    back.expect_push(1, "m").await;
}

#[tokio::test]
async fn a_reload_changes_the_secret_of_jwts_and_loses_no_socket() {
    let (old, new) = (Signer::new(Algorithm::HS256), Signer::new(Algorithm::HS256));
    let mut keys = tempfile::NamedTempFile::new().unwrap();
    keys.write_all(old.secret().as_bytes()).unwrap();
    let gateway = TestGateway::with(|config| {
        config.jwt_keys_file = Some(keys.path().into());
        config.jwt_algorithms = JwtAlgorithms::new([JwtAlgorithm::Hs256]);
    })
    .await;
    let mut phone = gateway.bind(&old.token(&claims(&json!({}))), "mail").await;
    std::fs::write(keys.path(), new.secret()).unwrap();
    assert!(gateway.gateway.reload().await.is_empty());
    let mut late = gateway.connect().await;
    late.send_bind(&old.token(&claims(&json!({}))), "mail").await;
    assert_eq!(late.closed().await.0, 4401);
    let _new = gateway.bind(&new.token(&claims(&json!({}))), "mail").await;
    std::fs::write(keys.path(), "short").unwrap();
    let errors = gateway.gateway.reload().await;
    assert!(errors[0].to_string().contains("the secret has 5 bytes"), "{errors:?}");
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 2);
    assert_eq!(phone.next_text().await, "m");
}

/// A provider of keys that answers every request in one way.
struct Provider {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
    _serving: AbortOnDropHandle<()>,
}

impl Provider {
    async fn answering(answer: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/.well-known/jwks.json?tenant=1", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                seen.lock().unwrap().push(String::from_utf8(head).unwrap());
                // A gateway that has read enough goes away.
                let _gone = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self { url, requests, _serving: AbortOnDropHandle::new(serving) }
    }

    async fn publishing(document: &str) -> Self {
        let kind = "content-type: application/json";
        Self::answering(format!("HTTP/1.1 200 OK\r\n{kind}\r\nconnection: close\r\n\r\n{document}")).await
    }

    async fn gateway(&self) -> TestGateway {
        TestGateway::with(|config| config.jwt_jwks_url = NonEmpty::new(&self.url)).await
    }
}

#[tokio::test]
async fn keys_are_fetched_from_a_provider_and_an_operator_sees_how_old_they_are() {
    let (signer, stranger) = (Signer::new(Algorithm::ES256), Signer::new(Algorithm::ES256));
    let provider =
        Provider::publishing(&jwks(&[signer.jwk(&json!({ "kid": "a", "use": "sig", "alg": "ES256" }))])).await;
    let gateway = provider.gateway().await;
    let token =
        |signer: &Signer, kid: &str| signer.token_with(|header| header.kid = Some(kid.to_owned()), &claims(&json!({})));
    let mut phone = gateway.bind(&token(&signer, "a"), "mail").await;
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 1);
    assert_eq!(phone.next_text().await, "m");
    for (signer, kid) in [(&stranger, "a"), (&stranger, "b"), (&signer, "../a")] {
        let mut client = gateway.connect().await;
        client.send_bind(&token(signer, kid), "mail").await;
        assert_eq!(client.closed().await.0, 4401, "{kid}");
    }
    assert_eq!(gateway.metric("pushgate_jwks_fetches_total{result=\"fetched\"}").await, 1);
    assert!(gateway.metric("pushgate_jwks_age_seconds").await < 20);
    let requests = provider.requests.lock().unwrap().clone();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert!(requests[0].starts_with("GET /.well-known/jwks.json?tenant=1 HTTP/1.1\r\n"), "{requests:?}");
}

#[tokio::test]
async fn a_provider_that_gives_no_keys_has_clients_come_back_later() {
    let signer = Signer::new(Algorithm::ES256);
    let good = jwks(&[signer.jwk(&json!({}))]);
    let elsewhere = Provider::publishing(&good).await;
    let endless = " ".repeat(257 * 1024);
    for answer in [
        format!("HTTP/1.1 302 Found\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", elsewhere.url),
        "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(),
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{endless}{good}"),
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n<html>".to_owned(),
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"keys\":[]}".to_owned(),
        format!("HTTP/1.1 200 OK\r\ncontent-length: 9999\r\nconnection: close\r\n\r\n{good}"),
        "nonsense\r\n\r\n".to_owned(),
        String::new(),
    ] {
        let provider = Provider::answering(answer.clone()).await;
        let gateway = provider.gateway().await;
        let mut client = gateway.connect().await;
        client.send_bind(&signer.token(&claims(&json!({}))), "mail").await;
        assert_eq!(client.closed().await.0, 1013, "{answer:.80}");
        assert_eq!(gateway.metric("pushgate_jwks_fetches_total{result=\"failed\"}").await, 1, "{answer:.80}");
        let errors = gateway.gateway.reload().await;
        assert_eq!(errors.len(), 1, "{answer:.80}");
    }
    assert!(elsewhere.requests.lock().unwrap().is_empty(), "a redirect was followed");
}

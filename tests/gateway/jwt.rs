//! Clients whose tokens are JWTs.

use std::io::Write;
use std::time::Duration;

use jsonwebtoken::Algorithm;
use pushgate::{Config, JwtAlgorithm, JwtAlgorithms, NonEmpty};
use serde_json::json;

use crate::support::TestGateway;
use crate::support::session::{Place, SessionClient};
use crate::support::signer::{Signer, claims, now};

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

//! Callers whose tokens are JWTs.

use std::io::Write;
use std::time::Duration;

use jsonwebtoken::Algorithm;
use pushgate::proto::DropRequest;
use pushgate::{Config, NonEmpty, OneOf};
use serde_json::{Value, json};
use tonic::{Code, Request};

use crate::support::signer::{Signer, claims, jwks, now};
use crate::support::{TestGateway, http, push_request, soon};

const KEYS: &str = "[[key]]\nname = \"key\"\nkey = \"0123456789abcdef\"\n";

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// A gateway for callers with tokens of this issuer, with no leeway.
async fn trusting(signer: &Signer, change: impl FnOnce(&mut Config)) -> TestGateway {
    let keys = file(&signer.public_pem());
    TestGateway::with(|config| {
        config.push_jwt_keys_file = Some(keys.path().into());
        config.push_jwt_leeway = Duration::ZERO;
        change(config);
    })
    .await
}

/// Pushes as a caller who shows this.
async fn push(gateway: &TestGateway, shown: &str, user_id: &str, event: &str) -> (Code, String) {
    let mut request = Request::new(push_request(user_id, event, "m"));
    request.metadata_mut().insert("authorization", format!("Bearer {shown}").parse().unwrap());
    let pushed = soon(gateway.grpc().await.client.push(request)).await;
    pushed.map_or_else(|status| (status.code(), status.message().to_owned()), |_| (Code::Ok, String::new()))
}

fn with(signer: &Signer, more: &Value) -> String {
    signer.token(&claims(more))
}

#[tokio::test]
async fn a_callers_jwt_opens_both_doors_and_a_bad_one_is_refused_in_words() {
    let (signer, stranger) = (Signer::new(Algorithm::ES256), Signer::new(Algorithm::ES256));
    let gateway = trusting(&signer, |config| config.push_jwt_audience = Some(OneOf::new(["push"]))).await;
    let good = with(&signer, &json!({ "aud": "push" }));
    assert_eq!(push(&gateway, &good, "ann", "mail").await.0, Code::Ok);
    assert_eq!(gateway.json().key(&good).push("ann", "mail", "m").await, 0);
    let refused = "the token is refused; the gateway's log says why at level debug";
    for (shown, words) in [
        (with(&signer, &json!({ "aud": "push", "exp": now() - 1 })), "the token has expired"),
        (with(&stranger, &json!({ "aud": "push" })), refused),
        (with(&signer, &json!({ "aud": "other" })), refused),
        (with(&signer, &json!({ "aud": "push", "sub": "" })), refused),
        ("eyJhbGciOiJub25lIn0.e30.".to_owned(), refused),
        ("0123456789abcdef".to_owned(), "no API key, or one that is not known"),
    ] {
        assert_eq!(push(&gateway, &shown, "ann", "mail").await, (Code::Unauthenticated, words.to_owned()));
        let body = r#"{"userId":"ann","event":"mail","message":"m"}"#;
        let head = format!(
            "POST /push HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {shown}\r\ncontent-length: {}",
            body.len()
        );
        let answer = http(gateway.control, &format!("{head}\r\n\r\n{body}")).await;
        assert_eq!((answer.status, answer.body.as_str()), (401, ""), "as the legacy contract has it");
    }
}

#[tokio::test]
async fn a_callers_jwt_is_limited_by_the_claims_that_the_settings_name() {
    let signer = Signer::new(Algorithm::EdDSA);
    let gateway = trusting(&signer, |config| {
        config.push_jwt_name_claim = "azp".to_owned();
        config.push_jwt_users_claim = NonEmpty::new("users");
        config.push_jwt_events_claim = NonEmpty::new("events");
        config.push_jwt_methods_claim = NonEmpty::new("methods");
    })
    .await;
    let limited = json!({ "azp": "billing", "users": ["customer-*"], "events": "invoice.* mail", "methods": ["push"] });
    let token = with(&signer, &limited);
    assert_eq!(push(&gateway, &token, "customer-1", "invoice.paid").await.0, Code::Ok);
    assert_eq!(push(&gateway, &token, "customer-1", "mail").await.0, Code::Ok);
    assert_eq!(push(&gateway, &token, "ann", "mail").await.0, Code::PermissionDenied);
    assert_eq!(push(&gateway, &token, "customer-1", "chat").await.0, Code::PermissionDenied);
    let mut drop = Request::new(DropRequest { user_id: "customer-1".to_owned(), event: "mail".to_owned() });
    drop.metadata_mut().insert("x-api-key", token.parse().unwrap());
    let denied = soon(gateway.grpc().await.client.drop(drop)).await.unwrap_err();
    assert_eq!((denied.code(), denied.message()), (Code::PermissionDenied, "the API key may not call this method"));
    for (claim, code) in [
        ("users", Code::PermissionDenied),
        ("events", Code::PermissionDenied),
        ("methods", Code::PermissionDenied),
        ("azp", Code::Unauthenticated),
    ] {
        let mut without = limited.clone();
        without.as_object_mut().unwrap().remove(claim);
        assert_eq!(push(&gateway, &with(&signer, &without), "customer-1", "mail").await.0, code, "without {claim}");
        let mut wrong = limited.clone();
        wrong[claim] = json!({});
        assert_eq!(
            push(&gateway, &with(&signer, &wrong), "customer-1", "mail").await.0,
            Code::Unauthenticated,
            "{claim}"
        );
    }
}

#[tokio::test]
async fn keys_go_on_beside_jwts_and_both_are_read_again() {
    let (old, new) = (Signer::new(Algorithm::ES256), Signer::new(Algorithm::ES256));
    let (jwt_keys, keys) = (file(&old.public_pem()), file(KEYS));
    let gateway = TestGateway::with(|config| {
        config.push_jwt_keys_file = Some(jwt_keys.path().into());
        config.push_keys_file = Some(keys.path().into());
    })
    .await;
    let token = |signer: &Signer| with(signer, &json!({}));
    assert_eq!(push(&gateway, "0123456789abcdef", "ann", "mail").await.0, Code::Ok);
    assert_eq!(push(&gateway, &token(&old), "ann", "mail").await.0, Code::Ok);
    assert_eq!(gateway.json().post("{}").await.status, 401);
    std::fs::write(jwt_keys.path(), new.public_pem()).unwrap();
    std::fs::write(keys.path(), KEYS.replace("0123456789abcdef", "fedcba9876543210")).unwrap();
    assert!(gateway.gateway.reload().await.is_empty());
    assert_eq!(push(&gateway, &token(&old), "ann", "mail").await.0, Code::Unauthenticated);
    assert_eq!(push(&gateway, &token(&new), "ann", "mail").await.0, Code::Ok);
    assert_eq!(push(&gateway, "0123456789abcdef", "ann", "mail").await.0, Code::Unauthenticated);
    assert_eq!(push(&gateway, "fedcba9876543210", "ann", "mail").await.0, Code::Ok);
    std::fs::write(jwt_keys.path(), "short").unwrap();
    assert_eq!(gateway.gateway.reload().await.len(), 1);
    assert_eq!(push(&gateway, &token(&new), "ann", "mail").await.0, Code::Ok, "the previous keys stay in use");
}

#[tokio::test]
async fn keys_for_callers_come_from_a_provider_too_and_while_it_is_away_callers_are_told_so() {
    let signer = Signer::new(Algorithm::ES256);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let document = jwks(&[signer.jwk(&json!({}))]);
    let gateway = TestGateway::with(|config| config.push_jwt_jwks_url = NonEmpty::new(&url)).await;
    let (mut stream, _) = soon(listener.accept()).await.unwrap();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{document}", document.len());
    soon(tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes())).await.unwrap();
    assert_eq!(push(&gateway, &with(&signer, &json!({})), "ann", "mail").await.0, Code::Ok);
    assert_eq!(gateway.metric("pushgate_push_jwks_fetches_total{result=\"fetched\"}").await, 1);
    assert_eq!(gateway.metric("pushgate_jwks_fetches_total{result=\"fetched\"}").await, 0);

    drop(listener);
    let gateway = TestGateway::with(|config| config.push_jwt_jwks_url = NonEmpty::new(&url)).await;
    let (code, words) = push(&gateway, &with(&signer, &json!({})), "ann", "mail").await;
    assert_eq!((code, words.as_str()), (Code::Unavailable, "push check unavailable, try again later"));
}

//! What an embedding program's checks see, and how long they may take.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pushgate::{
    BindAttempt, Config, Identity, PushAuthorizer, PushCredentials, PushRefused, PushScope, TokenAuthenticator,
    TokenError, UserId,
};
use serde_json::json;
use tonic::{Code, Request};

use crate::early_tokens::connect;
use crate::support::session::SessionClient;
use crate::support::{TestGateway, http, push_request, soon};

/// The token is the user, for whoever shows its cookie; pushes are for team a.
struct Cookies;

#[async_trait]
impl TokenAuthenticator for Cookies {
    fn headers_wanted(&self) -> Vec<String> {
        vec!["cookie".to_owned()]
    }

    async fn authenticate(&self, attempt: &BindAttempt<'_>) -> Result<Identity, TokenError> {
        assert_eq!(attempt.headers.get("x-team"), None, "nobody asked for it");
        assert!(!format!("{attempt:?}").contains("s3cret"));
        match attempt.headers.get("cookie") {
            Some("s3cret") => Ok(Identity::new(UserId::new(attempt.token.expose()).unwrap())),
            _ => Err(TokenError::Refused),
        }
    }
}

#[async_trait]
impl PushAuthorizer for Cookies {
    fn headers_wanted(&self) -> Vec<String> {
        vec!["x-team".to_owned()]
    }

    async fn authorize(&self, credentials: &PushCredentials) -> Result<PushScope, PushRefused> {
        assert_eq!(credentials.headers.get("cookie"), None, "nobody asked for it");
        assert!(!format!("{credentials:?}").contains("blue"));
        match credentials.headers.get("x-team") {
            Some("blue") => Ok(PushScope::everything("blue")),
            _ => Err(PushRefused::Unauthenticated),
        }
    }
}

#[tokio::test]
async fn a_token_check_sees_the_headers_that_it_asks_for_at_every_bind() {
    let gateway = TestGateway::built(|_| (), |builder| builder.token_authenticator(Cookies)).await;
    let (mut phone, _) = connect(&gateway, "/ws", &[("cookie", "s3cret"), ("x-team", "blue")]).await;
    gateway.bind_also(&mut phone, "ann", "mail").await;
    gateway.bind_also(&mut phone, "ann", "chat").await;
    assert_eq!(gateway.json().push("ann", "chat", "m").await, 1);
    assert_eq!(phone.next_text().await, "m");
    let mut without = gateway.connect().await;
    without.send_bind("ann", "mail").await;
    assert_eq!(without.closed().await.0, 4401);
}

#[tokio::test]
async fn a_push_check_sees_the_headers_that_it_asks_for_at_both_doors() {
    let gateway = TestGateway::built(|_| (), |builder| builder.push_authorizer(Cookies)).await;
    let mut grpc = gateway.grpc().await;
    assert_eq!(grpc.try_push(push_request("ann", "mail", "m")).await.unwrap_err().code(), Code::Unauthenticated);
    let mut request = Request::new(push_request("ann", "mail", "m"));
    request.metadata_mut().insert("x-team", "blue".parse().unwrap());
    request.metadata_mut().insert("cookie", "c".parse().unwrap());
    assert_eq!(soon(grpc.client.push(request)).await.unwrap().into_inner().matched, 0);
    let body = r#"{"userId":"ann","event":"mail","message":"m"}"#;
    let length = body.len();
    for (team, status) in [("blue", 200), ("red", 401)] {
        let head = format!("POST /push HTTP/1.1\r\nhost: x\r\nX-Team: {team}\r\ncontent-length: {length}\r\n\r\n");
        assert_eq!(http(gateway.control, &format!("{head}{body}")).await.status, status, "{team}");
    }
}

/// Answers the first check, and no other.
#[derive(Default)]
struct Once(AtomicBool);

#[async_trait]
impl TokenAuthenticator for Once {
    async fn authenticate(&self, _: &BindAttempt<'_>) -> Result<Identity, TokenError> {
        if self.0.swap(true, Ordering::Relaxed) {
            std::future::pending().await
        } else {
            Ok(Identity::new(UserId::new("ann").unwrap()))
        }
    }
}

#[async_trait]
impl PushAuthorizer for Once {
    async fn authorize(&self, _: &PushCredentials) -> Result<PushScope, PushRefused> {
        std::future::pending().await
    }
}

fn short(config: &mut Config) {
    config.check_timeout = Duration::from_millis(50);
}

#[tokio::test]
async fn a_session_whose_next_check_takes_too_long_is_told_so_and_stays() {
    let gateway = TestGateway::built(short, |builder| builder.token_authenticator(Once::default())).await;
    let mut session = SessionClient::connect(gateway.clients).await;
    assert_eq!(session.bind("ann", "mail").await["type"], "bound");
    assert_eq!(session.bind("ann", "chat").await["code"], "check_unavailable");
    session.say(json!({ "type": "refresh", "token": "ann" })).await;
    assert_eq!(session.next().await["code"], "check_unavailable");
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 1);
    session.expect_push(1, "m").await;
    let mut late = SessionClient::connect(gateway.clients).await;
    assert_eq!(late.bind("ann", "mail").await["code"], "check_unavailable");
    assert_eq!(late.closed().await, (1013, "token check unavailable, try again later".to_owned()));
    assert_eq!(gateway.metric("pushgate_check_timeouts_total{check=\"token\"}").await, 3);
}

#[tokio::test]
async fn a_push_check_that_takes_too_long_is_unavailable_at_both_doors() {
    let gateway = TestGateway::built(short, |builder| builder.push_authorizer(Once::default())).await;
    let status = gateway.grpc().await.try_push(push_request("ann", "mail", "m")).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "push check unavailable, try again later"));
    let answer = gateway.json().post("{}").await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")));
    assert_eq!(gateway.metric("pushgate_check_timeouts_total{check=\"push\"}").await, 2);
}

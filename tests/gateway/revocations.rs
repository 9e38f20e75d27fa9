//! Tokens that are refused before they have expired.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use jsonwebtoken::Algorithm;
use pushgate::proto::revoke_request::Tokens;
use pushgate::proto::{RevokeRequest, RevokeResponse};
use pushgate::{BindAttempt, Config, Identity, TokenAuthenticator, TokenError, UserId};
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::admin::admin;
use crate::support::session::{Place, SessionClient};
use crate::support::signer::{Signer, claims, now};
use crate::support::{TestGateway, push_request, soon};

/// A gateway for tokens of this issuer.
async fn trusting(signer: &Signer, change: impl FnOnce(&mut Config)) -> TestGateway {
    let mut keys = tempfile::NamedTempFile::new().unwrap();
    keys.write_all(signer.public_pem().as_bytes()).unwrap();
    TestGateway::with(|config| {
        config.jwt_keys_file = Some(keys.path().into());
        change(config);
    })
    .await
}

fn of_user(user_id: &str) -> RevokeRequest {
    RevokeRequest { tokens: Some(Tokens::UserId(user_id.to_owned())), ..RevokeRequest::default() }
}

fn of_token(token_id: &str) -> RevokeRequest {
    RevokeRequest { tokens: Some(Tokens::TokenId(token_id.to_owned())), ..RevokeRequest::default() }
}

impl TestGateway {
    pub(crate) async fn revoke(&self, request: RevokeRequest) -> Result<RevokeResponse, Status> {
        soon(admin(self).await.revoke(request)).await.map(tonic::Response::into_inner)
    }

    async fn is_refused(&self, token: &str) -> bool {
        let mut session = SessionClient::connect(self.clients).await;
        let answer = session.bind(token, "mail").await;
        if answer["type"] == "bound" {
            return false;
        }
        assert_eq!(answer["code"], "token_refused", "{answer}");
        assert_eq!(session.closed().await, (4401, "token refused".to_owned()));
        true
    }
}

fn jwt(signer: &Signer, changes: &Value) -> String {
    signer.token(&claims(changes))
}

#[tokio::test]
async fn a_token_that_is_revoked_by_its_id_is_disconnected_and_refused_and_others_are_not() {
    let signer = Signer::new(Algorithm::ES256);
    let gateway = trusting(&signer, |_| ()).await;
    let (stolen, other) = (jwt(&signer, &json!({ "jti": "stolen" })), jwt(&signer, &json!({ "jti": "other" })));
    let mut thief = gateway.bind(&stolen, "mail").await;
    let mut session = SessionClient::connect(gateway.clients).await;
    session.bind(&stolen, "mail").await;
    let mut phone = gateway.bind(&other, "mail").await;
    let revoked = gateway.revoke(of_token("stolen")).await.unwrap();
    assert_eq!((revoked.closed, revoked.sessions_ended), (2, 0));
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 1, "no push matches them any more");
    assert_eq!(thief.closed().await, (4401, "token revoked".to_owned()));
    assert_eq!(session.closed().await, (4401, "token revoked".to_owned()));
    assert_eq!(phone.next_text().await, "m");
    assert!(gateway.is_refused(&stolen).await);
    assert!(!gateway.is_refused(&other).await);
    assert_eq!(gateway.metric("pushgate_revocations").await, 1);
    assert_eq!(gateway.metric("pushgate_revocation_refusals_total{reason=\"token\"}").await, 1);
    gateway.until("pushgate_closes_total{reason=\"token_revoked\"}", |closes| closes == 2).await;
    assert_eq!(gateway.revoke(of_token("stolen")).await.unwrap().closed, 0, "again does no harm");
}

#[tokio::test]
async fn the_tokens_of_a_user_are_revoked_that_were_issued_before_and_a_fresh_login_is_good() {
    let signer = Signer::new(Algorithm::ES256);
    let gateway = trusting(&signer, |_| ()).await;
    let issued = |iat: Option<u64>| jwt(&signer, &json!({ "iat": iat }));
    let mut old = gateway.bind(&issued(Some(now() - 60)), "mail").await;
    let mut unknown = gateway.bind(&issued(None), "mail").await;
    let mut fresh = gateway.bind(&issued(Some(now() - 20)), "mail").await;
    let mut bob = gateway.bind(&jwt(&signer, &json!({ "sub": "bob" })), "mail").await;
    let cut = SystemTime::now() - Duration::from_secs(40);
    let revoked = gateway.revoke(RevokeRequest { issued_before: Some(cut.into()), ..of_user("ann") }).await.unwrap();
    assert_eq!(revoked.closed, 2);
    assert_eq!((old.closed().await.0, unknown.closed().await.0), (4401, 4401));
    assert!(gateway.is_refused(&issued(Some(now() - 60))).await);
    assert!(gateway.is_refused(&issued(None)).await, "it may be older");
    assert!(gateway.is_refused(&issued(Some(now() + 600))).await, "an issue in the future is none");
    assert!(!gateway.is_refused(&issued(Some(now() - 20))).await);
    assert_eq!((gateway.json().push("ann", "mail", "m").await, gateway.json().push("bob", "mail", "m").await), (1, 1));
    assert_eq!((fresh.next_text().await, bob.next_text().await), ("m".to_owned(), "m".to_owned()));
    assert_eq!(gateway.metric("pushgate_revocation_refusals_total{reason=\"user\"}").await, 3);
    let revoked = gateway.revoke(of_user("ann")).await.unwrap();
    assert_eq!(fresh.closed().await.0, 4401, "by default, all that were issued until now");
    assert!(revoked.closed >= 1);
}

#[tokio::test]
async fn a_session_that_is_away_ends_with_its_token_and_what_is_held_for_the_user_stays() {
    let signer = Signer::new(Algorithm::ES256);
    let gateway = trusting(&signer, |_| ()).await;
    let stolen = jwt(&signer, &json!({ "jti": "stolen" }));
    let mut session = SessionClient::connect(gateway.clients).await;
    let place = Place::of(&session.bind(&stolen, "mail").await);
    session.reset();
    gateway.until("pushgate_sessions_away", |away| away == 1).await;
    let ttl = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let held = pushgate::proto::PushRequest { ttl, ..push_request("ann", "news", "for the user") };
    assert_eq!(gateway.grpc().await.try_push(held).await.unwrap().held, 1);
    assert_eq!(gateway.grpc().await.push("ann", "mail", "for the session").await.held, 1);
    let revoked = gateway.revoke(of_token("stolen")).await.unwrap();
    assert_eq!((revoked.closed, revoked.sessions_ended), (0, 1));
    assert_eq!(gateway.metric("pushgate_sessions_away").await, 0);
    let mut back = SessionClient::connect(gateway.clients).await;
    assert_eq!(back.resume(&stolen, "mail", &place).await["code"], "token_refused");
    let other = jwt(&signer, &json!({ "jti": "other" }));
    let mut back = SessionClient::connect(gateway.clients).await;
    assert_eq!(back.resume(&other, "news", &place).await["recovered"], false, "the session is over");
    back.expect_push(1, "for the user").await;
}

#[tokio::test]
async fn a_refresh_replaces_the_token_by_which_a_session_is_bound_and_a_revoked_one_does_not() {
    let signer = Signer::new(Algorithm::ES256);
    let gateway = trusting(&signer, |_| ()).await;
    let token = |id: &str| jwt(&signer, &json!({ "jti": id }));
    let mut session = SessionClient::connect(gateway.clients).await;
    session.bind(&token("first"), "mail").await;
    session.say(json!({ "type": "refresh", "token": token("second") })).await;
    assert_eq!(session.next().await["type"], "refreshed");
    assert_eq!(gateway.revoke(of_token("first")).await.unwrap().closed, 0);
    session.say(json!({ "type": "refresh", "token": token("first") })).await;
    assert_eq!(session.next().await["code"], "token_refused");
    assert_eq!(session.bind(&token("first"), "news").await["code"], "token_refused");
    assert_eq!(gateway.grpc().await.push("ann", "mail", "m").await.matched, 1, "it is bound by the second");
    session.expect_push(1, "m").await;
    assert_eq!(gateway.revoke(of_token("second")).await.unwrap().closed, 1);
    assert_eq!(session.closed().await.0, 4401);
}

/// A check that says when it is asked, and answers when it may.
#[derive(Clone, Default)]
struct Slow(Arc<(Notify, Notify)>);

#[async_trait]
impl TokenAuthenticator for Slow {
    async fn authenticate(&self, attempt: &BindAttempt<'_>) -> Result<Identity, TokenError> {
        self.0.0.notify_one();
        self.0.1.notified().await;
        Ok(Identity::new(UserId::new("ann").unwrap()).with_token_id(attempt.token.expose()))
    }
}

#[tokio::test]
async fn a_token_that_is_revoked_while_it_is_checked_does_not_bind() {
    let slow = Slow::default();
    let gateway = TestGateway::built(|_| (), |builder| builder.token_authenticator(slow.clone())).await;
    let mut client = gateway.connect().await;
    client.send_bind("stolen", "mail").await;
    soon(slow.0.0.notified()).await;
    gateway.revoke(of_token("stolen")).await.unwrap();
    slow.0.1.notify_one();
    assert_eq!(client.closed().await, (4401, "token refused".to_owned()));
    assert_eq!(gateway.metric("pushgate_binds_total").await, 0);
}

/// A check that never waits.
struct AnyId;

#[async_trait]
impl TokenAuthenticator for AnyId {
    async fn authenticate(&self, attempt: &BindAttempt<'_>) -> Result<Identity, TokenError> {
        Ok(Identity::new(UserId::new("ann").unwrap()).with_token_id(attempt.token.expose()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_binds_while_its_token_is_revoked_is_not_bound_afterwards() {
    let gateway = Arc::new(TestGateway::built(|_| (), |builder| builder.token_authenticator(AnyId)).await);
    let at_once = Arc::new(Semaphore::new(8));
    let mut races = Vec::new();
    for round in 0..100 {
        let (gateway, at_once) = (gateway.clone(), at_once.clone());
        races.push(tokio::spawn(async move {
            let _place = at_once.acquire().await.unwrap();
            let token = format!("token-{round}");
            let mut client = gateway.connect().await;
            let bind = client.send_bind(&token, "mail");
            let (revoked, ()) = tokio::join!(gateway.revoke(of_token(&token)), bind);
            revoked.unwrap();
            assert_eq!(client.closed().await.0, 4401);
        }));
    }
    for race in races {
        soon(race).await.unwrap();
    }
    assert_eq!(gateway.grpc().await.push("ann", "mail", "m").await.matched, 0);
}

#[tokio::test]
async fn when_there_is_no_room_for_a_revocation_it_is_an_error_and_nothing_is_done() {
    let signer = Signer::new(Algorithm::ES256);
    let gateway = trusting(&signer, |config| config.revocations_max = 1).await;
    let (first, second) = (jwt(&signer, &json!({ "jti": "first" })), jwt(&signer, &json!({ "jti": "second" })));
    let _phone = gateway.bind(&second, "mail").await;
    gateway.revoke(of_token("first")).await.unwrap();
    let status = gateway.revoke(of_token("second")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("revocations_max"), "{status:?}");
    assert!(gateway.is_refused(&first).await, "nothing is forgotten");
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 1);
}

#[tokio::test]
async fn a_revocation_is_kept_until_its_tokens_have_expired() {
    let gateway = TestGateway::with(|config| {
        config.revocation_age = Duration::from_secs(100);
        config.jwt_leeway = Duration::from_secs(7);
    })
    .await;
    let until = |revoked: RevokeResponse| SystemTime::try_from(revoked.until.unwrap()).unwrap();
    let before = SystemTime::now();
    let kept = until(gateway.revoke(of_user("ann")).await.unwrap());
    assert!((before..=SystemTime::now()).contains(&(kept - Duration::from_secs(100))), "revocation_age");
    let expires_at = SystemTime::UNIX_EPOCH + Duration::from_secs(now() + 1000);
    let kept = gateway.revoke(RevokeRequest { expires_at: Some(expires_at.into()), ..of_token("t") }).await.unwrap();
    assert_eq!(until(kept), expires_at + Duration::from_secs(7));
}

#[tokio::test]
async fn a_revocation_that_is_not_understood_names_the_field_and_does_nothing() {
    let gateway = TestGateway::start().await;
    let at = |seconds: u64| Some(prost_types::Timestamp { seconds: seconds as i64, nanos: 0 });
    for (request, field) in [
        (RevokeRequest::default(), "tokens"),
        (of_user(""), "user_id"),
        (of_token(""), "token_id"),
        (RevokeRequest { issued_before: at(now()), ..of_token("t") }, "issued_before"),
        (RevokeRequest { issued_before: at(now() * 1000), ..of_user("ann") }, "issued_before"),
        (RevokeRequest { expires_at: at(now() - 1), ..of_user("ann") }, "expires_at"),
        (RevokeRequest { expires_at: at(now() * 1000), ..of_user("ann") }, "expires_at"),
    ] {
        let status = gateway.revoke(request.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{request:?}");
        assert_eq!(status.get_error_details().bad_request().unwrap().field_violations[0].field, field, "{request:?}");
    }
    assert_eq!(gateway.metric("pushgate_revocations").await, 0);
}

//! Tokens that expire, are refreshed, or are not good for an event.

use std::time::{Duration, SystemTime};

use pushgate::{BindAttempt, Config, Identity, TokenAuthenticator, TokenError, UserId};
use serde_json::{Value, json};

use super::{client, leave};
use crate::support::TestGateway;
use crate::support::session::Place;

/// Tokens are `user:milliseconds that are left`, or `user:refused`.
struct Expiring;

#[async_trait::async_trait]
impl TokenAuthenticator for Expiring {
    async fn authenticate(&self, attempt: &BindAttempt<'_>) -> Result<Identity, TokenError> {
        let (user, left) = attempt.token.expose().split_once(':').ok_or(TokenError::Refused)?;
        let left = left.parse().map_err(|_| TokenError::Refused)?;
        if attempt.event.as_str() == "secret" && left == 60_001 {
            return Err(TokenError::NotAllowed);
        }
        let identity = Identity::new(UserId::new(user).unwrap());
        Ok(identity.expiring_at(SystemTime::now() + Duration::from_millis(left)))
    }
}

async fn expiring(change: impl FnOnce(&mut Config)) -> TestGateway {
    TestGateway::built(change, |builder| builder.token_authenticator(Expiring)).await
}

#[tokio::test]
async fn a_token_that_is_over_closes_and_one_that_is_refreshed_does_not() {
    let gateway = expiring(|config| config.bind_timeout = Duration::from_secs(1)).await;
    let mut phone = client(&gateway).await;
    let bound = phone.bind("ann:500", "mail").await;
    assert!((1..=500).contains(&bound["expires_in_ms"].as_u64().unwrap()), "{bound}");
    phone.say(json!({ "type": "refresh", "token": "ann:refused" })).await;
    assert_eq!(phone.next().await["code"], "token_refused");
    phone.say(json!({ "type": "refresh", "token": "bob:60000" })).await;
    assert_eq!(phone.next().await["code"], "other_user");
    phone.say(json!({ "type": "refresh", "token": "ann:60000" })).await;
    let refreshed = phone.next().await;
    assert!((50_000..=60_000).contains(&refreshed["expires_in_ms"].as_u64().unwrap()), "{refreshed}");
    let mut late = client(&gateway).await;
    let place = Place::of(&late.bind("ann:300", "mail").await);
    let mut legacy = gateway.bind("ann:300", "mail").await;
    assert_eq!(late.closed().await, (4410, "token expired".to_owned()));
    assert_eq!(legacy.closed().await, (4410, "token expired".to_owned()));
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 1, "one is connected, one is away");
    phone.expect_push(1, "m").await;
    let mut late = client(&gateway).await;
    assert_eq!(late.resume("ann:60000", "mail", &place).await["recovered"], true);
    late.expect_push(1, "m").await;
}

#[tokio::test]
async fn each_event_is_good_as_long_as_the_token_that_was_shown_for_it() {
    let gateway = expiring(|config| config.bind_timeout = Duration::from_secs(1)).await;
    let left = |bound: Value| bound["expires_in_ms"].as_u64().unwrap();
    let mut renews = client(&gateway).await;
    assert!(left(renews.bind("ann:500", "mail").await) <= 500);
    assert!(left(renews.bind("ann:60000", "mail").await) > 50_000);
    let mut unbinds = client(&gateway).await;
    assert!(left(unbinds.bind("ann:60000", "mail").await) > 50_000);
    assert!(left(unbinds.bind("ann:500", "chat").await) <= 500);
    unbinds.say(json!({ "type": "unbind", "event": "chat" })).await;
    assert_eq!(unbinds.next().await["type"], "unbound");
    let mut legacy = gateway.bind("ann:500", "mail").await;
    gateway.bind_also(&mut legacy, "ann:60000", "mail").await;
    let mut legacy_that_ends = gateway.bind("ann:500", "mail").await;
    gateway.bind_also(&mut legacy_that_ends, "ann:60000", "chat").await;
    let mut ends = client(&gateway).await;
    ends.bind("ann:500", "mail").await;
    assert!(left(ends.bind("ann:60000", "chat").await) <= 500, "a token for one event says nothing of another");
    assert_eq!(ends.closed().await.0, 4410);
    assert_eq!(legacy_that_ends.closed().await.0, 4410);
    // Theirs would have been over before.
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 3);
    renews.expect_push(1, "m").await;
    unbinds.expect_push(1, "m").await;
    assert_eq!(legacy.next_text().await, "m");
}

/// Says yes when so many ask at one time.
struct Together(tokio::sync::Barrier);

#[async_trait::async_trait]
impl TokenAuthenticator for Together {
    async fn authenticate(&self, attempt: &BindAttempt<'_>) -> Result<Identity, TokenError> {
        if attempt.token.expose() == "together" {
            self.0.wait().await;
        }
        Ok(Identity::new(UserId::new("ann").unwrap()))
    }
}

#[tokio::test]
async fn a_token_is_checked_for_several_events_at_one_time() {
    let together = Together(tokio::sync::Barrier::new(8));
    let gateway = TestGateway::built(|_| (), |builder| builder.token_authenticator(together)).await;
    let mut phone = client(&gateway).await;
    for event in 0..16 {
        phone.bind("alone", &event.to_string()).await;
    }
    phone.say(json!({ "type": "refresh", "token": "together" })).await;
    assert_eq!(phone.next().await, json!({ "type": "refreshed" }));
}

#[tokio::test]
async fn a_session_does_not_come_back_to_an_event_that_its_token_no_longer_allows() {
    let gateway = expiring(|_| ()).await;
    let mut phone = client(&gateway).await;
    let place = Place::of(&phone.bind("ann:60000", "mail").await);
    phone.bind("ann:60000", "secret").await;
    leave(&gateway, phone).await;
    let mut phone = client(&gateway).await;
    assert_eq!(phone.resume("ann:60001", "mail", &place).await["recovered"], false);
    assert_eq!(gateway.json().push("ann", "secret", "m").await, 0);
    assert_eq!(gateway.json().push("ann", "mail", "m").await, 1);
}

//! An embedding program's code that panics takes nobody else's service away, and is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pushgate::proto::PushStreamRequest;
use pushgate::{
    BindAttempt, Identity, Journal, PushAuthorizer, PushCredentials, PushRefused, PushScope, Record, Recovered,
    ReloadError, TokenAuthenticator, TokenError, UserId,
};

use crate::support::session::{Place, SessionClient};
use crate::support::{TestGateway, push_request, soon};

/// A journal that panics over whatever happens to bad.
#[derive(Debug)]
struct Broken;

#[async_trait::async_trait]
impl Journal for Broken {
    fn record(&self, user_id: &UserId, _record: Record) {
        assert_ne!(user_id.as_str(), "bad");
    }

    async fn load(&self) -> Result<Recovered, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Recovered::default())
    }
}

#[tokio::test]
async fn a_journal_that_panics_is_counted_and_takes_nothing_away() {
    let gateway = TestGateway::built(|_| (), |builder| builder.journal(Broken)).await;
    let mut phone = gateway.bind("ann", "mail").await;
    let mut session = SessionClient::connect(gateway.clients).await;
    let place = Place::of(&session.bind("bad", "mail").await);
    gateway.json().push("bad", "mail", "one").await;
    session.expect_push(1, "one").await;
    session.ack(1).await;
    gateway.until("pushgate_messages_acked_total", |acked| acked == 1).await;
    session.reset();
    gateway.until("pushgate_sessions_away", |away| away == 1).await;
    let mut grpc = gateway.grpc().await;
    assert_eq!(grpc.push("bad", "mail", "two").await.held, 1);
    let mut session = SessionClient::connect(gateway.clients).await;
    assert_eq!(session.resume("bad", "mail", &place.at(1)).await["recovered"], true);
    session.expect_push(2, "two").await;
    assert_eq!(gateway.json().push("ann", "mail", "still here").await, 1);
    assert_eq!(phone.next_text().await, "still here");
    assert!(gateway.metric("pushgate_task_panics_total{task=\"journal\"}").await > 0);
}

/// A check that lets everyone in, but panics over a push to bad.
struct Shaky;

#[async_trait::async_trait]
impl PushAuthorizer for Shaky {
    async fn authorize(&self, _credentials: &PushCredentials) -> Result<PushScope, PushRefused> {
        Ok(PushScope::custom("anyone", |user_id, _| {
            user_id.is_none_or(|user_id| user_id.as_str() != "bad" || panic!())
        }))
    }
}

/// A check that panics when it is read again for the first time.
#[derive(Default)]
struct Reloads(Arc<AtomicUsize>);

#[async_trait::async_trait]
impl TokenAuthenticator for Reloads {
    async fn authenticate(&self, _attempt: &BindAttempt<'_>) -> Result<Identity, TokenError> {
        Err(TokenError::Refused)
    }

    async fn reload(&self) -> Result<(), ReloadError> {
        assert_ne!(self.0.fetch_add(1, Ordering::Relaxed), 0);
        Ok(())
    }
}

#[tokio::test]
async fn a_push_stream_that_panics_does_not_end_as_if_all_were_well() {
    let gateway = TestGateway::built(|_| (), |builder| builder.push_authorizer(Shaky)).await;
    let mut grpc = gateway.grpc().await;
    let pushes = ["ann", "bad", "ann"]
        .map(|user| PushStreamRequest { correlation_id: user.to_owned(), push: Some(push_request(user, "mail", "m")) });
    let mut results = soon(grpc.client.push_stream(tokio_stream::iter(pushes))).await.unwrap().into_inner();
    assert_eq!(soon(results.message()).await.unwrap().unwrap().correlation_id, "ann");
    let status = soon(results.message()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Internal, "{status:?}");
    assert_eq!(gateway.metric("pushgate_task_panics_total{task=\"push_stream\"}").await, 1);
    assert_eq!(gateway.stop().await.http_connections_cut, 0, "a stop does not wait for it");
}

#[tokio::test]
async fn a_check_that_panics_when_it_is_read_again_is_an_error_and_can_be_asked_once_more() {
    let gateway = TestGateway::built(|_| (), |builder| builder.token_authenticator(Reloads::default())).await;
    let errors = gateway.gateway.reload().await;
    assert!(matches!(errors[..], [ReloadError::Other(_)]), "{errors:?}");
    assert_eq!(gateway.metric("pushgate_task_panics_total{task=\"reload\"}").await, 1);
    assert!(gateway.gateway.reload().await.is_empty());
}

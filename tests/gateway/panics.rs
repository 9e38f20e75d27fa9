//! An embedding program's code that panics takes nobody else's service away, and is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use pushgate::proto::{PushRequest, PushStreamRequest};
use pushgate::{
    Appended, BindAttempt, Event, Identity, Journal, JournalBounds, Kept, MemoryJournal, MessageId, PushAuthorizer,
    PushCredentials, PushRefused, PushScope, ReloadError, SessionKey, TokenAuthenticator, TokenError, Usage, UserId,
};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::session::{Place, SessionClient};
use crate::support::{TestGateway, push_request, soon};

const BOUNDS: JournalBounds = JournalBounds {
    messages_per_user_max: 10,
    bytes_per_user_max: 1 << 20,
    bytes_max: 1 << 20,
    age: Duration::from_secs(3600),
};

/// A journal that panics when it is swept, over a message of bad's, and when a session of bad's ends.
#[derive(Debug)]
struct Broken(MemoryJournal);

#[async_trait::async_trait]
impl Journal for Broken {
    fn append(&self, session: &SessionKey, messages: &mut dyn Iterator<Item = Kept>) -> Appended {
        assert!(session.user_id.as_str() != "bad" || messages.next().is_none());
        self.0.append(session, messages)
    }

    fn acknowledge(&self, session: &SessionKey, seq: u64) -> Vec<Kept> {
        assert_ne!(session.user_id.as_str(), "bad");
        self.0.acknowledge(session, seq)
    }

    async fn take(&self, session: &SessionKey) -> Vec<Kept> {
        self.0.take(session).await
    }

    fn hold(&self, user_id: &UserId, message: Kept) -> Result<(), Kept> {
        self.0.hold(user_id, message)
    }

    fn withdraw(&self, user_id: &UserId, message_id: MessageId) -> Option<Kept> {
        self.0.withdraw(user_id, message_id)
    }

    fn holds(&self, user_id: &UserId) -> bool {
        self.0.holds(user_id)
    }

    async fn release(&self, user_id: &UserId, event: &Event) -> Vec<Kept> {
        self.0.release(user_id, event).await
    }

    fn sweep(&self, _now: Instant) -> usize {
        panic!("swept")
    }

    fn usage(&self) -> Usage {
        self.0.usage()
    }
}

#[tokio::test]
async fn a_journal_that_panics_stops_no_ping_no_deadline_and_no_other_session_s_end() {
    let gateway = TestGateway::built(
        |config| {
            config.journal_age = Duration::from_millis(100);
            config.ping_interval = Duration::from_millis(200);
            config.bind_timeout = Duration::from_millis(200);
        },
        |builder| builder.journal(Broken(MemoryJournal::new(BOUNDS))),
    )
    .await;
    let sweeps = "pushgate_task_panics_total{task=\"journal\"}";
    gateway.until(sweeps, |panics| panics >= 2).await;
    assert_eq!(gateway.connect().await.closed().await.0, 4408);
    let mut phone = gateway.bind("ann", "mail").await;
    let ping = soon(phone.socket.next()).await.unwrap().unwrap();
    assert!(matches!(ping, Message::Ping(_)), "{ping:?}");
    for user in ["bad", "ann"] {
        let mut session = SessionClient::connect(gateway.clients).await;
        session.bind(user, "mail").await;
        session.reset();
        gateway.until_closed("reset").await;
    }
    gateway.until("pushgate_task_panics_total{task=\"sessions\"}", |panics| panics == 1).await;
    gateway.until("pushgate_sessions_away", |away| away == 0).await;
    assert_eq!(gateway.metric("pushgate_task_panics_total{task=\"clock\"}").await, 0);
    assert_eq!(gateway.json().push("ann", "mail", "still here").await, 1);
    assert_eq!(phone.next_text().await, "still here");
}

#[tokio::test]
async fn a_journal_that_panics_again_while_a_session_ends_of_its_panic_ends_no_more_than_that_session() {
    let gateway = TestGateway::built(|_| (), |builder| builder.journal(Broken(MemoryJournal::new(BOUNDS)))).await;
    let mut phone = gateway.bind("ann", "mail").await;
    let mut session = SessionClient::connect(gateway.clients).await;
    session.bind("bad", "mail").await;
    gateway.json().push("bad", "mail", "m").await;
    gateway.until_closed("panicked").await;
    assert_eq!(gateway.json().push("ann", "mail", "still here").await, 1);
    assert_eq!(phone.next_text().await, "still here");
}

/// A journal whose store goes away the second time that it is to hand over what is held: from then on it panics at whatever
/// it is asked.
#[derive(Debug)]
struct GoesAway {
    journal: MemoryJournal,
    releases: AtomicUsize,
}

impl GoesAway {
    fn journal(&self) -> &MemoryJournal {
        assert!(self.releases.load(Ordering::SeqCst) < 2, "the store is gone");
        &self.journal
    }
}

#[async_trait::async_trait]
impl Journal for GoesAway {
    fn append(&self, session: &SessionKey, messages: &mut dyn Iterator<Item = Kept>) -> Appended {
        self.journal().append(session, messages)
    }

    fn acknowledge(&self, session: &SessionKey, seq: u64) -> Vec<Kept> {
        self.journal().acknowledge(session, seq)
    }

    async fn take(&self, session: &SessionKey) -> Vec<Kept> {
        self.journal().take(session).await
    }

    fn hold(&self, user_id: &UserId, message: Kept) -> Result<(), Kept> {
        self.journal().hold(user_id, message)
    }

    fn withdraw(&self, user_id: &UserId, message_id: MessageId) -> Option<Kept> {
        self.journal().withdraw(user_id, message_id)
    }

    fn holds(&self, user_id: &UserId) -> bool {
        self.journal().holds(user_id)
    }

    async fn release(&self, user_id: &UserId, event: &Event) -> Vec<Kept> {
        self.releases.fetch_add(1, Ordering::SeqCst);
        self.journal().release(user_id, event).await
    }

    fn sweep(&self, now: Instant) -> usize {
        self.journal().sweep(now)
    }

    fn usage(&self) -> Usage {
        self.journal().usage()
    }
}

#[tokio::test]
async fn a_journal_that_goes_away_in_a_bind_ends_that_connection_and_not_the_process() {
    for is_resumed in [false, true] {
        let journal = GoesAway { journal: MemoryJournal::new(BOUNDS), releases: AtomicUsize::new(0) };
        let gateway = TestGateway::built(|_| (), |builder| builder.journal(journal)).await;
        let mut phone = gateway.bind("ann", "mail").await;
        let mut grpc = gateway.grpc().await;
        let mut session = SessionClient::connect(gateway.clients).await;
        let place = Place::of(&session.bind("bob", "mail").await);
        session.reset();
        gateway.until("pushgate_sessions_away", |away| away == 1).await;
        for event in ["chat", "news"] {
            let ttl = Some(prost_types::Duration { seconds: 600, nanos: 0 });
            let held = PushRequest { ttl, ..push_request("bob", event, "m") };
            assert_eq!(grpc.try_push(held).await.unwrap().held, 1);
        }
        let mut back = SessionClient::connect(gateway.clients).await;
        let mut bind = json!({ "type": "bind", "token": "bob", "event": "chat" });
        if is_resumed {
            bind["resume"] = json!({ "token": place.resume, "seq": place.seq });
        }
        back.say(bind).await;
        gateway.until("pushgate_connections", |connections| connections == 1).await;
        assert_eq!(gateway.json().push("ann", "mail", "still here").await, 1);
        assert_eq!(phone.next_text().await, "still here");
    }
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

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::time::{advance, sleep};

use super::super::{Client, Token};
use super::*;
use crate::message::{Event, UserId};
use crate::metrics::Format;

/// A service that takes a second, and is there or away. Token "odd" is one that it cannot deal with.
#[derive(Default)]
struct Slow {
    is_away: AtomicBool,
    asked: AtomicUsize,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
}

const TAKES: Duration = Duration::from_secs(1);

#[async_trait]
impl Service for Arc<Slow> {
    async fn ask(&self, question: &Question) -> Result<Answer, NoAnswer> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let at_once = self.at_once.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_at_once.fetch_max(at_once, Ordering::Relaxed);
        sleep(TAKES).await;
        self.at_once.fetch_sub(1, Ordering::Relaxed);
        match question.token.expose() {
            "odd" => Err(NoAnswer::Status(::http::StatusCode::BAD_REQUEST)),
            _ if self.is_away.load(Ordering::Relaxed) => Err(NoAnswer::Code(tonic::Code::Unavailable)),
            token => Ok(Ok(question::Grant { identity: Identity::new(UserId::new(token).unwrap()), events: None })),
        }
    }
}

struct World {
    service: Arc<Slow>,
    metrics: Arc<Metrics>,
    check: TokenCallback,
}

impl World {
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        change(&mut config);
        let (service, metrics) = (Arc::new(Slow::default()), Arc::new(Metrics::new()));
        let check = TokenCallback::asking(Arc::new(service.clone()), &config, &metrics);
        Self { service, metrics, check }
    }

    async fn bind(&self, token: &str, event: &str) -> Result<String, TokenError> {
        let (token, event) = (Token::new(token.to_owned()), Event::new(event).unwrap());
        let client = Client { peer: ([127, 0, 0, 1], 1).into(), shown: None };
        let identity = self.check.authenticate(&BindAttempt::new(&token, &event, &client)).await?;
        Ok(identity.user_id.as_str().to_owned())
    }

    fn asked(&self) -> usize {
        self.service.asked.load(Ordering::Relaxed)
    }

    #[track_caller]
    fn counted(&self, sample: &str) {
        let text = self.metrics.encode(Format::OpenMetrics);
        assert!(text.contains(&format!("pushgate_token_callback_{sample}\n")), "{sample} in {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn equal_questions_at_one_time_are_asked_once_and_the_answer_is_kept() {
    let world = World::new(|_| ());
    let binds = (0..100).map(|_| world.bind("ann", "mail"));
    let both = futures_util::future::join(futures_util::future::join_all(binds), world.bind("ann", "chat"));
    let (bound, _) = both.await;
    assert!(bound.iter().all(|bound| bound.as_deref() == Ok("ann")));
    assert_eq!(world.asked(), 2, "once for each event");
    assert_eq!(world.bind("ann", "mail").await.as_deref(), Ok("ann"));
    assert_eq!(world.asked(), 2);
    world.counted("cache_hits_total 1");
    world.check.reload().await.unwrap();
    assert_eq!(world.bind("ann", "mail").await.as_deref(), Ok("ann"));
    assert_eq!(world.asked(), 3, "a reload forgets what is kept");
    assert!(world.check.calls.in_flight().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_call_goes_on_for_those_who_still_wait_and_ends_with_the_last_of_them() {
    let world = World::new(|_| ());
    let half = TAKES / 2;
    let (left, stayed) = tokio::join!(tokio::time::timeout(half, world.bind("ann", "mail")), async {
        sleep(half / 2).await;
        world.bind("ann", "mail").await
    });
    assert!(left.is_err());
    assert_eq!((stayed.as_deref(), world.asked()), (Ok("ann"), 1));
    assert!(tokio::time::timeout(half, world.bind("bob", "mail")).await.is_err());
    assert!(world.check.calls.in_flight().is_empty());
    assert_eq!(world.bind("bob", "mail").await.as_deref(), Ok("bob"));
}

#[tokio::test(start_paused = true)]
async fn only_so_many_questions_are_on_their_way_and_whoever_waits_too_long_comes_back_later() {
    let world = World::new(|config| {
        config.token_callback_concurrency_max = 2;
        config.token_callback_timeout = TAKES * 2 + TAKES / 2;
    });
    let tokens: Vec<_> = (0..6).map(|number| number.to_string()).collect();
    let bound = futures_util::future::join_all(tokens.iter().map(|token| world.bind(token, "mail"))).await;
    assert_eq!(bound.iter().filter(|bound| bound.is_ok()).count(), 4, "{bound:?}");
    assert!(bound.iter().all(|bound| bound.is_ok() || *bound == Err(TokenError::Unavailable)));
    assert_eq!(world.service.most_at_once.load(Ordering::Relaxed), 2);
    world.counted("calls_total{result=\"granted\"} 4");
    world.counted("calls_total{result=\"timed_out\"} 2");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails_again_and_again_is_asked_now_and_then_until_it_is_back() {
    let world = World::new(|_| ());
    world.service.is_away.store(true, Ordering::Relaxed);
    for number in 0..20 {
        assert_eq!(world.bind(&number.to_string(), "mail").await, Err(TokenError::Unavailable));
    }
    assert_eq!(world.asked(), 5);
    world.counted("calls_total{result=\"failed\"} 5");
    world.counted("calls_total{result=\"circuit_open\"} 15");
    world.counted("circuit_open 1");
    world.service.is_away.store(false, Ordering::Relaxed);
    assert_eq!(world.bind("ann", "mail").await, Err(TokenError::Unavailable));
    advance(Duration::from_secs(1)).await;
    assert_eq!(world.bind("ann", "mail").await.as_deref(), Ok("ann"));
    assert_eq!(world.bind("bob", "mail").await.as_deref(), Ok("bob"));
    world.counted("circuit_open 0");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_the_service_cannot_deal_with_does_not_shut_out_others() {
    let world = World::new(|_| ());
    for _ in 0..20 {
        assert_eq!(world.bind("odd", "mail").await, Err(TokenError::Unavailable));
    }
    assert_eq!(world.bind("ann", "mail").await.as_deref(), Ok("ann"));
}

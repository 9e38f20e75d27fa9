//! When keys are fetched, with a clock that stands still until everyone waits.

use std::collections::VecDeque;
use std::sync::Mutex;

use async_trait::async_trait;
use http::StatusCode;
use serde_json::json;

use super::super::rules::Rules;
use super::super::tests::signer::{Signer, claims, jwks};
use super::super::{JwtAuthenticator, JwtProblem, Source};
use super::*;
use crate::config::Config;

/// A provider that answers what it is told to, each time in the same way after the last.
#[derive(Clone)]
struct Provider(Arc<Mutex<Answers>>);

struct Answers {
    next: VecDeque<Option<(String, Option<u64>)>>,
    fetches: usize,
    takes: Duration,
}

impl Provider {
    fn new(keys: &[&Signer]) -> Self {
        let provider = Self(Arc::new(Mutex::new(Answers {
            next: VecDeque::new(),
            fetches: 0,
            takes: Duration::from_millis(100),
        })));
        provider.publishes(keys, None);
        provider
    }

    /// From the next fetch on, it publishes these keys, the first of which has the `kid` 0.
    fn publishes(&self, keys: &[&Signer], max_age: Option<u64>) {
        let keys: Vec<_> =
            keys.iter().enumerate().map(|(kid, key)| key.jwk(&json!({ "kid": kid.to_string() }))).collect();
        self.answers(Some((jwks(&keys), max_age)));
    }

    fn answers(&self, answer: Option<(String, Option<u64>)>) {
        self.0.lock().expect("not poisoned").next = VecDeque::from([answer]);
    }

    fn fetches(&self) -> usize {
        self.0.lock().expect("not poisoned").fetches
    }
}

#[async_trait]
impl Fetch for Provider {
    async fn fetch(&self) -> Result<Document, FetchError> {
        let takes = self.0.lock().expect("not poisoned").takes;
        tokio::time::sleep(takes).await;
        let mut answers = self.0.lock().expect("not poisoned");
        answers.fetches += 1;
        match answers.next.front().cloned().flatten() {
            Some((content, max_age)) => {
                Ok(Document { content: content.into(), max_age: max_age.map(Duration::from_secs) })
            }
            None => Err(FetchError::Refused(StatusCode::BAD_GATEWAY)),
        }
    }
}

fn check_with(provider: &Provider) -> Arc<JwtAuthenticator> {
    let rules = Rules::new(&Config::default().jwt());
    let remote = Remote::start(provider.clone(), rules.algorithms().to_vec(), Side::Clients, None);
    Arc::new(JwtAuthenticator { rules, keys: Source::Remote(remote) })
}

fn token(signer: &Signer, kid: &str) -> String {
    signer.token_with(|header| header.kid = Some(kid.to_owned()), &claims(&json!({})))
}

fn key() -> Signer {
    Signer::new(Algorithm::ES256)
}

/// Time passes, with all that happens in it.
async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn the_first_tokens_wait_for_the_first_fetch_and_it_is_one() {
    let (old, provider) = (key(), Provider::new(&[]));
    provider.publishes(&[&old], None);
    let check = check_with(&provider);
    let checks: Vec<_> = (0..100)
        .map(|_| {
            let (check, token) = (check.clone(), token(&old, "0"));
            tokio::spawn(async move { check.check(&token).await.err() })
        })
        .collect();
    for checked in checks {
        assert_eq!(checked.await.expect("no panic"), None);
    }
    assert_eq!(provider.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_fetched_when_its_first_token_comes() {
    let (old, new) = (key(), key());
    let provider = Provider::new(&[&old]);
    let check = check_with(&provider);
    assert_eq!(check.check(&token(&old, "0")).await.err(), None);
    provider.publishes(&[&old, &new], None);
    pass(11).await;
    assert_eq!(check.check(&token(&new, "1")).await.err(), None);
    assert_eq!(provider.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn however_many_unknown_kids_come_there_is_one_fetch_in_ten_seconds() {
    let (own, strange) = (key(), key());
    let provider = Provider::new(&[&own]);
    let check = check_with(&provider);
    assert_eq!(check.check(&token(&own, "0")).await.err(), None);
    let started = Instant::now();
    let before = provider.fetches();
    for number in 0..600 {
        let checks = (0..3).map(|more| {
            let (check, token) = (check.clone(), token(&strange, &format!("{number}-{more}")));
            async move { check.check(&token).await.err() }
        });
        for problem in futures_util::future::join_all(checks).await {
            assert_eq!(problem, Some(JwtProblem::UnknownKid));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let most = usize::try_from(started.elapsed().as_secs() / INTERVAL_MIN.as_secs()).expect("small") + 1;
    let fetches = provider.fetches() - before;
    assert!((5..=most).contains(&fetches), "{fetches} fetches in {:?}", started.elapsed());
    let asked = Instant::now();
    assert_eq!(check.check(&token(&strange, "x")).await.err(), Some(JwtProblem::UnknownKid));
    pass(1).await;
    assert_eq!(check.check(&token(&own, "0")).await.err(), None);
    assert!(asked.elapsed() <= TIMEOUT, "what is known is answered at once");
}

#[tokio::test(start_paused = true)]
async fn keys_are_fetched_ahead_of_the_time_that_the_provider_gives() {
    for (max_age, every) in [(None, 600), (Some(400), 300), (Some(0), 10), (Some(1_000_000), 3600)] {
        let (old, new) = (key(), key());
        let provider = Provider::new(&[]);
        provider.publishes(&[&old], max_age);
        let check = check_with(&provider);
        pass(1).await;
        assert_eq!(provider.fetches(), 1, "{max_age:?}");
        provider.publishes(&[&new], max_age);
        pass(every - 2).await;
        assert_eq!(provider.fetches(), 1, "{max_age:?}");
        pass(3).await;
        assert_eq!(provider.fetches(), 2, "{max_age:?}");
        assert_eq!(check.check(&token(&new, "0")).await.err(), None, "{max_age:?}");
        assert_eq!(check.check(&token(&old, "0")).await.err(), Some(JwtProblem::Signature), "{max_age:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_good_keys_stay_while_the_provider_is_away_or_publishes_nonsense() {
    for answer in [None, Some(("<html>".to_owned(), None)), Some(("{\"keys\":[]}".to_owned(), None))] {
        let (own, new) = (key(), key());
        let provider = Provider::new(&[&own]);
        let check = check_with(&provider);
        pass(1).await;
        provider.answers(answer.clone());
        pass(24 * 3600).await;
        assert_eq!(check.check(&token(&own, "0")).await.err(), None, "{answer:?}");
        let a_minute_apart = provider.fetches();
        assert!((1000..1500).contains(&a_minute_apart), "{a_minute_apart}");
        assert_eq!(
            check.check(&token(&new, "1")).await.err(),
            Some(JwtProblem::KeysUnavailable),
            "it may be a new key"
        );
        provider.publishes(&[&own, &new], None);
        pass(61).await;
        assert_eq!(check.check(&token(&new, "1")).await.err(), None, "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_was_never_there_lets_nobody_in_until_it_comes() {
    let own = key();
    let provider = Provider::new(&[&own]);
    provider.answers(None);
    let check = check_with(&provider);
    assert_eq!(check.check(&token(&own, "0")).await.err(), Some(JwtProblem::KeysUnavailable));
    provider.publishes(&[&own], None);
    pass(11).await;
    assert_eq!(check.check(&token(&own, "0")).await.err(), None);
}

/// Panics at the first fetch.
struct Panics(Provider, std::sync::atomic::AtomicBool);

#[async_trait]
impl Fetch for Panics {
    async fn fetch(&self) -> Result<Document, FetchError> {
        assert!(self.1.swap(true, std::sync::atomic::Ordering::Relaxed), "the first time");
        self.0.fetch().await
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_panic_keys_are_fetched_again() {
    let own = key();
    let (rules, metrics) = (Rules::new(&Config::default().jwt()), Arc::new(Metrics::new()));
    let source = Panics(Provider::new(&[&own]), false.into());
    let keys = Source::Remote(Remote::start(source, rules.algorithms().to_vec(), Side::Clients, Some(metrics.clone())));
    let check = JwtAuthenticator { rules, keys };
    assert_eq!(check.check(&token(&own, "0")).await.err(), Some(JwtProblem::KeysUnavailable));
    pass(11).await;
    assert_eq!(check.check(&token(&own, "0")).await.err(), None);
    let text = metrics.encode(crate::metrics::Format::OpenMetrics);
    for sample in ["task_panics_total{task=\"reload\"} 1", "jwks_fetches_total{result=\"failed\"} 1"] {
        assert!(text.contains(sample), "{sample} in {text}");
    }
    pass(300).await;
    let text = metrics.encode(crate::metrics::Format::OpenMetrics);
    let age = text.lines().find_map(|line| line.strip_prefix("pushgate_jwks_age_seconds ")).expect("a sample");
    assert!((290..=302).contains(&age.parse::<u64>().expect("a number")), "{age}");
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_does_not_answer_keeps_nobody_waiting_for_longer_than_a_fetch() {
    let own = key();
    let provider = Provider::new(&[&own]);
    provider.0.lock().expect("not poisoned").takes = Duration::from_secs(3600);
    let (check, started) = (check_with(&provider), Instant::now());
    assert_eq!(check.check(&token(&own, "0")).await.err(), Some(JwtProblem::KeysUnavailable));
    assert!(started.elapsed() < Duration::from_secs(10), "a fetch may take 5 s");
}

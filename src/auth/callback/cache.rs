//! Answers that are kept for a while, in bounded number, and never beyond the expiry of their token.

use std::time::{Duration, SystemTime};

use quick_cache::sync;
use tokio::time::Instant;

use super::question::{Answer, Grant, Key, Question};

/// The longest time for which a refusal is kept: a user who has just signed up should not have to wait.
const REFUSED_AGE_MAX: Duration = Duration::from_secs(5);

/// Grants and refusals have room of their own: no number of bad tokens makes the gateway forget the good ones.
#[derive(Debug)]
pub(super) struct Cache {
    age: Duration,
    granted: sync::Cache<Key, Kept>,
    refused: sync::Cache<Key, Kept>,
}

#[derive(Clone, Debug)]
struct Kept {
    answer: Answer,
    until: Instant,
}

impl Cache {
    /// Keeps answers for this long, and so many of each kind.
    pub(super) fn new(age: Duration, entries_max: usize) -> Self {
        Self { age, granted: sync::Cache::new(entries_max), refused: sync::Cache::new(entries_max) }
    }

    /// The answer to a question, if it is known.
    pub(super) fn get(&self, question: &Question) -> Option<Answer> {
        if self.age.is_zero() {
            return None;
        }
        let now = Instant::now();
        let (all, event) = (question.key(), question.key_with_event());
        let kept = [&self.granted, &self.refused].into_iter().flat_map(|kept| [kept.get(&all), kept.get(&event)]);
        kept.flatten().find(|kept| now < kept.until).map(|kept| kept.answer)
    }

    pub(super) fn keep(&self, question: &Question, answer: &Answer) {
        let (cache, age) = match answer {
            Ok(Grant { identity, .. }) => (&self.granted, self.age.min(identity.expires_at.map_or(self.age, left))),
            Err(_) => (&self.refused, self.age.min(REFUSED_AGE_MAX)),
        };
        if age.is_zero() {
            return;
        }
        let is_for_all = matches!(answer, Ok(Grant { events: Some(_), .. }));
        let key = if is_for_all { question.key() } else { question.key_with_event() };
        cache.insert(key, Kept { answer: answer.clone(), until: Instant::now() + age });
    }

    pub(super) fn clear(&self) {
        self.granted.clear();
        self.refused.clear();
    }
}

fn left(expires_at: SystemTime) -> Duration {
    expires_at.duration_since(SystemTime::now()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::super::{Headers, Token};
    use super::super::question::Refused;
    use super::*;
    use crate::auth::Identity;
    use crate::message::{Event, UserId};

    fn question(token: &str, event: &str) -> Question {
        Question {
            token: Token::new(token.to_owned()),
            event: Event::new(event).expect("valid"),
            peer: [127, 0, 0, 1].into(),
            headers: Headers::default(),
        }
    }

    fn grant(events: Option<&str>, expires_in: Option<u64>) -> Answer {
        Ok(Grant {
            identity: Identity {
                expires_at: expires_in.map(|seconds| SystemTime::now() + Duration::from_secs(seconds)),
                ..Identity::new(UserId::new("ann").expect("valid"))
            },
            events: events.map(|pattern| vec![wildmatch::WildMatch::new(pattern)]),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_kept_for_its_event_or_for_all_and_not_beyond_the_token() {
        let cache = Cache::new(Duration::from_secs(60), 10);
        let (one, all, short) = (grant(None, None), grant(Some("*"), None), grant(None, Some(30)));
        cache.keep(&question("one", "mail"), &one);
        cache.keep(&question("all", "mail"), &all);
        cache.keep(&question("short", "mail"), &short);
        cache.keep(&question("over", "mail"), &grant(None, Some(0)));
        cache.keep(&question("bad", "mail"), &Err(Refused::Token));
        let get = |token: &str, event: &str| cache.get(&question(token, event));
        assert_eq!((get("one", "mail"), get("one", "chat")), (Some(one.clone()), None));
        assert_eq!((get("all", "mail"), get("all", "chat")), (Some(all.clone()), Some(all)));
        assert_eq!((get("short", "mail"), get("over", "mail")), (Some(short), None));
        assert_eq!((get("bad", "mail"), get("bad", "chat")), (Some(Err(Refused::Token)), None));
        tokio::time::advance(REFUSED_AGE_MAX).await;
        assert_eq!(get("bad", "mail"), None);
        tokio::time::advance(Duration::from_secs(25)).await;
        assert_eq!((get("short", "mail"), get("one", "mail")), (None, Some(one)));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(get("one", "mail"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn no_number_of_bad_tokens_displaces_a_good_one_and_the_number_is_bounded() {
        let cache = Cache::new(Duration::from_secs(60), 10);
        cache.keep(&question("good", "mail"), &grant(None, None));
        for number in 0..1000 {
            cache.keep(&question(&number.to_string(), "mail"), &Err(Refused::Token));
        }
        assert!(cache.get(&question("good", "mail")).is_some());
        assert!(cache.refused.len() <= 10, "{}", cache.refused.len());
        cache.clear();
        assert!(cache.get(&question("good", "mail")).is_none());
        let off = Cache::new(Duration::ZERO, 10);
        off.keep(&question("good", "mail"), &grant(None, None));
        assert!(off.get(&question("good", "mail")).is_none());
    }

    #[test]
    fn no_two_questions_have_one_key() {
        let with = |header: &str| {
            let mut question = question("t", "mail");
            let mut headers = http::HeaderMap::new();
            headers.insert("cookie", header.parse().expect("a value"));
            question.headers = Headers::of(&headers, &["cookie".to_owned()]);
            question
        };
        let questions = [question("t", "mail"), question("t", "mai"), question("tm", "ail"), with("a"), with("b")];
        let keys: std::collections::HashSet<_> =
            questions.iter().flat_map(|question| [question.key(), question.key_with_event()]).collect();
        assert_eq!(keys.len(), 2 * questions.len() - 1, "the first two differ in the event alone");
    }
}

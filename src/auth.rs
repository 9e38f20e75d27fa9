//! Who may bind and who may push: the two checks an embedder plugs in, and the stock ones.

mod push_keys;
mod token_file;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use wildmatch::WildMatch;

use crate::message::{Event, UserId};
use crate::shares::Payer;

pub use push_keys::PushKeys;
pub use token_file::TokenFile;

/// The token check: turns a client's token into a user, or refuses it.
///
/// The gateway calls it for every bind, also for those of a connection that is already bound. It may take its time
/// within `bind_timeout`; pushes go on meanwhile. A panic in it ends that one connection.
#[async_trait]
pub trait TokenAuthenticator: Send + Sync + 'static {
    /// Says whom the token stands for.
    ///
    /// # Errors
    /// Each error closes the connection with a code of its own, see [`TokenError`].
    async fn authenticate(&self, attempt: &BindAttempt<'_>) -> Result<Identity, TokenError>;

    /// Reads again whatever the check is made from. Open connections stay as they are.
    ///
    /// # Errors
    /// On an error the check must go on with what it had.
    async fn reload(&self) -> Result<(), ReloadError> {
        Ok(())
    }
}

/// What a client asks for when it binds.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct BindAttempt<'a> {
    /// The token it showed.
    pub token: &'a Token,
    /// The event it wants.
    pub event: &'a Event,
    /// Where it connects from. Behind a proxy, the proxy.
    pub peer: SocketAddr,
}

impl<'a> BindAttempt<'a> {
    pub(crate) fn new(token: &'a Token, event: &'a Event, peer: SocketAddr) -> Self {
        Self { token, event, peer }
    }
}

/// A secret that a client shows. Its `Debug` output does not hold it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    pub(crate) fn new(token: String) -> Self {
        Self(token)
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Whom a token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// The user that pushes will name.
    pub user_id: UserId,
    /// When the token is over. The connection is then closed with 4410, unless its client has shown another token of the
    /// same user for this event before: by binding it once more, or for all events with `refresh` in the session protocol.
    pub expires_at: Option<SystemTime>,
}

impl Identity {
    /// An identity with no more to it than a user.
    #[must_use]
    pub fn new(user_id: UserId) -> Self {
        Self { user_id, expires_at: None }
    }

    /// The same, until then.
    #[must_use]
    pub fn expiring_at(mut self, expires_at: SystemTime) -> Self {
        self.expires_at = Some(expires_at);
        self
    }
}

/// Why a bind was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The token is not good. Closes with 4401.
    #[error("token refused")]
    Refused,
    /// The token is good, but not for this event. Closes with 4403.
    #[error("not allowed to bind this event")]
    NotAllowed,
    /// The check itself could not be made, for example because a service behind it is away. Closes with 1013, which
    /// tells the client to try again later.
    #[error("token check unavailable")]
    Unavailable,
}

/// The push check: turns a caller's credentials into what it may push to, or refuses it.
///
/// The gateway calls it once for each request at either push door, before it reads the body.
#[async_trait]
pub trait PushAuthorizer: Send + Sync + 'static {
    /// Says what the caller may push to.
    ///
    /// # Errors
    /// Answers `401` and `UNAUTHENTICATED`, or `503` and `UNAVAILABLE` when the check could not be made.
    async fn authorize(&self, credentials: &PushCredentials) -> Result<PushScope, PushRefused>;

    /// Reads again whatever the check is made from.
    ///
    /// # Errors
    /// On an error the check must go on with what it had.
    async fn reload(&self) -> Result<(), ReloadError> {
        Ok(())
    }
}

/// What a caller at a push door shows.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PushCredentials {
    /// The API key, from `x-api-key: KEY` or, where that is missing or empty, `authorization: Bearer KEY`.
    pub api_key: Option<Token>,
    /// Where the caller connects from.
    pub peer: SocketAddr,
}

impl PushCredentials {
    pub(crate) fn new(api_key: Option<Token>, peer: SocketAddr) -> Self {
        Self { api_key, peer }
    }
}

/// What a caller may push to.
#[derive(Clone)]
pub struct PushScope {
    name: Arc<str>,
    rule: Rule,
    /// To whom is counted what callers share.
    payer: Payer,
}

#[derive(Clone)]
enum Rule {
    Everything,
    Patterns(Arc<Patterns>),
    Custom(Arc<CustomRule>),
}

type CustomRule = dyn Fn(Option<&UserId>, Option<&Event>) -> bool + Send + Sync;

struct Patterns {
    users: Vec<WildMatch>,
    events: Vec<WildMatch>,
}

impl PushScope {
    /// Every user and event. The name stands in logs.
    #[must_use]
    pub fn everything(name: &str) -> Self {
        Self::of(name, Rule::Everything)
    }

    /// Users and events that match a pattern each; `*` stands for any characters, `?` for one. The name stands in logs.
    #[must_use]
    pub fn patterns<S: AsRef<str>>(name: &str, users: &[S], events: &[S]) -> Self {
        let compile = |patterns: &[S]| patterns.iter().map(|pattern| WildMatch::new(pattern.as_ref())).collect();
        let patterns = Patterns { users: compile(users), events: compile(events) };
        Self::of(name, Rule::Patterns(Arc::new(patterns)))
    }

    /// Whatever the rule allows. The user is `None` for a broadcast, the event when the caller drops all of a user's
    /// connections.
    #[must_use]
    pub fn custom(name: &str, rule: impl Fn(Option<&UserId>, Option<&Event>) -> bool + Send + Sync + 'static) -> Self {
        Self::of(name, Rule::Custom(Arc::new(rule)))
    }

    fn of(name: &str, rule: Rule) -> Self {
        let name: Arc<str> = name.into();
        Self { payer: Payer::Key(name.clone()), name, rule }
    }

    /// The same, counted to somebody else than to its name.
    pub(crate) fn paid_by(self, payer: Payer) -> Self {
        Self { payer, ..self }
    }

    pub(crate) fn payer(&self) -> &Payer {
        &self.payer
    }

    /// The caller's name, for logs.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the caller may push to this user and event, or drop the user's connections.
    ///
    /// Without a user, or without an event, only a caller whose patterns match every one may.
    #[must_use]
    pub fn allows(&self, user_id: Option<&UserId>, event: Option<&Event>) -> bool {
        match &self.rule {
            Rule::Everything => true,
            Rule::Patterns(patterns) => {
                matches(&patterns.users, user_id.map(UserId::as_str))
                    && matches(&patterns.events, event.map(Event::as_str))
            }
            Rule::Custom(rule) => rule(user_id, event),
        }
    }
}

fn matches(patterns: &[WildMatch], text: Option<&str>) -> bool {
    patterns.iter().any(|pattern| match text {
        Some(text) => pattern.matches(text),
        None => pattern.pattern_chars().iter().all(|c| *c == '*'),
    })
}

impl fmt::Debug for PushScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PushScope").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why a caller was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushRefused {
    /// No credentials, or none that are known.
    #[error("no API key, or one that is not known")]
    Unauthenticated,
    /// The check itself could not be made.
    #[error("push check unavailable")]
    Unavailable,
}

/// Why a check could not be made from its source.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file could not be read.
    #[error("cannot read {}", .path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file does not say what it should. No secret is in the text.
    #[error("{}: {problem}", .path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and where.
        problem: String,
    },
    /// An embedder's own check failed.
    #[error("reload failed")]
    Other(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn read_file(path: &Path) -> Result<String, ReloadError> {
    std::fs::read_to_string(path).map_err(|source| ReloadError::Unreadable { path: path.to_owned(), source })
}

/// What is wrong with a TOML text, and on which line; toml's own rendering would quote the line, secrets and all.
fn describe(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    match line {
        Some(line) => format!("line {line}: {}", error.message()),
        None => error.message().to_owned(),
    }
}

/// For development: every token is good, and is the user. Refuses only a token that is too long for a user id.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenIsUser;

#[async_trait]
impl TokenAuthenticator for TokenIsUser {
    async fn authenticate(&self, attempt: &BindAttempt<'_>) -> Result<Identity, TokenError> {
        UserId::new(attempt.token.expose()).map(Identity::new).map_err(|_| TokenError::Refused)
    }
}

/// Every caller may push to everyone: for a gateway whose push doors only trusted callers can reach.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenPush;

#[async_trait]
impl PushAuthorizer for OpenPush {
    async fn authorize(&self, _credentials: &PushCredentials) -> Result<PushScope, PushRefused> {
        Ok(PushScope::everything("anyone"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_limit_users_and_events() {
        let scope = PushScope::patterns("billing", &["customer-*"], &["invoice.*", "receipt"]);
        let user = |name: &str| UserId::new(name).expect("valid");
        let event = |name: &str| Event::new(name).expect("valid");
        assert!(scope.allows(Some(&user("customer-7")), Some(&event("invoice.paid"))));
        assert!(scope.allows(Some(&user("customer-7")), Some(&event("receipt"))));
        assert!(!scope.allows(Some(&user("staff-7")), Some(&event("receipt"))));
        assert!(!scope.allows(Some(&user("customer-7")), Some(&event("receipts"))));
        assert!(!scope.allows(Some(&user("customer-7")), None), "all events are more than these events");
        assert!(!scope.allows(None, Some(&event("receipt"))), "everyone is more than these users");
        assert!(PushScope::patterns("ops", &["*"], &["receipt"]).allows(None, Some(&event("receipt"))));
        assert!(PushScope::patterns("ops", &["*"], &["*"]).allows(Some(&user("customer-7")), None));
    }

    #[test]
    fn debug_output_holds_no_token() {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let credentials = PushCredentials::new(Some(Token::new("s3cret".to_owned())), peer);
        assert!(!format!("{credentials:?}").contains("s3cret"));
    }
}

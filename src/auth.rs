//! Who may bind and who may push: the two check traits that an embedder can implement, and the built-in checks.

mod callback;
mod deadline;
mod headers;
mod https;
mod jwt;
mod method;
mod push_jwt;
mod push_keys;
mod rate;
mod token_file;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use wildmatch::WildMatch;

use crate::message::{Event, UserId};
use crate::revocations::Stamp;
use crate::shares::Payer;

pub(crate) use callback::TokenCallback;
pub(crate) use deadline::Deadline;
pub(crate) use method::Method;
pub(crate) use push_jwt::PushJwt;

pub use headers::Headers;
pub use jwt::{JwtAuthenticator, JwtGrant, JwtProblem};
pub use method::AdminAccess;
pub use push_keys::PushKeys;
pub use token_file::TokenFile;

use rate::Rate;

/// The token check: maps a client's token to a user, or refuses it.
///
/// The gateway calls it for every bind, including further binds of a connection that is already bound. A check may take
/// as long as `check_timeout` allows; pushes continue meanwhile. One that takes longer is given up, and counts as
/// [`TokenError::Unavailable`]. A panic in the check ends only that connection.
#[async_trait]
pub trait TokenAuthenticator: Send + Sync + 'static {
    /// Returns the identity behind the token.
    ///
    /// # Errors
    /// Each error closes the connection with its own code, see [`TokenError`].
    async fn authenticate(&self, attempt: &BindAttempt<'_>) -> Result<Identity, TokenError>;

    /// The names of the headers of the upgrade that the check looks at, such as `cookie`, in small letters. They are in
    /// [`BindAttempt::headers`]. Asked once, when the server is made. By default there are none, because what is asked
    /// for is kept in memory as long as the connection is open: a later bind is checked with the same headers.
    fn headers_wanted(&self) -> Vec<String> {
        Vec::new()
    }

    /// Reloads the data behind the check. Open connections are not affected.
    ///
    /// # Errors
    /// After an error the check must continue with its previous data.
    async fn reload(&self) -> Result<(), ReloadError> {
        Ok(())
    }
}

/// A client's request to bind.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct BindAttempt<'a> {
    /// The token that the client sent.
    pub token: &'a Token,
    /// The event that the client wants to bind.
    pub event: &'a Event,
    /// The address that the client connects from. Behind a proxy that is not in `proxies_trusted`, this is
    /// the proxy's address.
    pub peer: SocketAddr,
    /// The headers of the upgrade that [`TokenAuthenticator::headers_wanted`] names.
    pub headers: &'a Headers,
    /// The names of the certificate that the client presented: its URIs as they are written, then its DNS names in small
    /// letters. Empty unless the address that it connected to asks for certificates, which `listen` does not.
    pub certificate_names: &'a [String],
}

impl<'a> BindAttempt<'a> {
    pub(crate) fn new(token: &'a Token, event: &'a Event, client: &'a Client) -> Self {
        let (headers, certificate_names) = match client.shown.as_deref() {
            Some(Shown { headers, certificate_names }) => (headers, &**certificate_names),
            None => (&headers::NONE, &[][..]),
        };
        Self { token, event, peer: client.peer, headers, certificate_names }
    }
}

/// The client that a token check is about.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) peer: SocketAddr,
    /// `None` for most, so that it takes no memory of theirs.
    pub(crate) shown: Option<Arc<Shown>>,
}

/// What a client showed in its upgrade beside a token.
#[derive(Debug)]
pub(crate) struct Shown {
    headers: Headers,
    certificate_names: Arc<[String]>,
}

impl Shown {
    /// `None` if there is nothing that a check would look at.
    pub(crate) fn new(headers: Headers, certificate_names: Arc<[String]>) -> Option<Arc<Self>> {
        let is_something = !headers.is_empty() || !certificate_names.is_empty();
        is_something.then(|| Arc::new(Self { headers, certificate_names }))
    }
}

/// A secret that a client or caller sends. Its `Debug` output does not contain the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The maximum length of a client's token, in bytes. A bind with a longer one is not understood.
    pub const BYTES_MAX: usize = 16 * 1024;

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

/// The identity behind a token.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// The user that pushes address.
    pub user_id: UserId,
    /// When the token expires. The connection is then closed with 4410, unless the client has sent a newer token of the
    /// same user before. It can do so for one event by binding the event again, or for all events with `refresh` in the
    /// session protocol.
    pub expires_at: Option<SystemTime>,
    /// The id of the token, the `jti` of a JWT. A token without one is only revoked with all of its user's.
    pub token_id: Option<String>,
    /// When the token was issued, the `iat` of a JWT. When a user's tokens are revoked, one that does not say when it was
    /// issued counts as an old one.
    pub issued_at: Option<SystemTime>,
}

impl Identity {
    /// An identity that does not expire.
    #[must_use]
    pub fn new(user_id: UserId) -> Self {
        Self { user_id, expires_at: None, token_id: None, issued_at: None }
    }

    /// Sets the id by which the token can be revoked.
    #[must_use]
    pub fn with_token_id(mut self, token_id: impl Into<String>) -> Self {
        self.token_id = Some(token_id.into());
        self
    }

    /// Sets when the token was issued.
    #[must_use]
    pub fn issued_at(mut self, issued_at: SystemTime) -> Self {
        self.issued_at = Some(issued_at);
        self
    }

    /// What tells the token from others.
    pub(crate) fn stamp(&self) -> Stamp {
        Stamp::new(self.token_id.as_deref(), self.issued_at)
    }

    /// Sets when the token expires.
    #[must_use]
    pub fn expiring_at(mut self, expires_at: SystemTime) -> Self {
        self.expires_at = Some(expires_at);
        self
    }
}

/// Why a bind was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The token is not valid. Closes with 4401.
    #[error("token refused")]
    Refused,
    /// The token is valid, but not for this event. Closes with 4403.
    #[error("not allowed to bind this event")]
    NotAllowed,
    /// The check could not be made, for example because a service behind it is down. Closes with 1013, which tells the
    /// client to try again later.
    #[error("token check unavailable")]
    Unavailable,
}

/// The push check: maps a caller's credentials to what the caller may push to, or refuses the caller.
///
/// The gateway calls it once for each request, JSON or gRPC, before it reads the body. A check that takes longer than
/// `check_timeout` is given up, and counts as [`PushRefused::Unavailable`].
#[async_trait]
pub trait PushAuthorizer: Send + Sync + 'static {
    /// Returns what the caller may push to.
    ///
    /// # Errors
    /// The caller gets `401` or `UNAUTHENTICATED`, and `503` or `UNAVAILABLE` when the check could not be made.
    async fn authorize(&self, credentials: &PushCredentials) -> Result<PushScope, PushRefused>;

    /// The names of the request's headers that the check looks at, in small letters. They are in
    /// [`PushCredentials::headers`]. Asked once, when the server is made. By default there are none.
    fn headers_wanted(&self) -> Vec<String> {
        Vec::new()
    }

    /// Reloads the data behind the check.
    ///
    /// # Errors
    /// After an error the check must continue with its previous data.
    async fn reload(&self) -> Result<(), ReloadError> {
        Ok(())
    }
}

/// The credentials of a caller who pushes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PushCredentials {
    /// The API key, from `x-api-key: KEY` or, if that header is missing or empty, from `authorization: Bearer KEY`.
    pub api_key: Option<Token>,
    /// The names of the certificate that the caller presented, if `control_tls_client_ca_file` asks for one: its URIs as
    /// they are written, then its DNS names in small letters. The certificate is verified.
    pub certificate_names: Arc<[String]>,
    /// The address that the caller connects from.
    pub peer: SocketAddr,
    /// The headers of the request that [`PushAuthorizer::headers_wanted`] names.
    pub headers: Headers,
}

impl PushCredentials {
    pub(crate) fn new(api_key: Option<Token>, peer: SocketAddr) -> Self {
        Self { api_key, certificate_names: Arc::default(), peer, headers: Headers::default() }
    }

    pub(crate) fn with_certificate_names(self, certificate_names: Arc<[String]>) -> Self {
        Self { certificate_names, ..self }
    }

    pub(crate) fn with_headers(self, headers: Headers) -> Self {
        Self { headers, ..self }
    }

    /// Whether a check can tell the caller from others by more than its address.
    pub(crate) fn has_name(&self) -> bool {
        self.api_key.is_some() || !self.certificate_names.is_empty()
    }
}

/// What a caller may push to.
#[derive(Clone)]
pub struct PushScope {
    name: Arc<str>,
    rule: Rule,
    /// The payer whose share of common resources the caller uses.
    payer: Payer,
    /// Shared by all requests of the caller.
    rate: Option<Arc<Rate>>,
    /// The methods that the caller may call, all without a list.
    methods: Option<Arc<[Method]>>,
    /// What the caller may do with the `AdminService`.
    admin: Option<AdminAccess>,
    /// The address that the request came from, for the audit log.
    peer: Option<SocketAddr>,
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
    /// Allows every user and event. The name appears in logs.
    #[must_use]
    pub fn everything(name: &str) -> Self {
        Self::of(name, Rule::Everything)
    }

    /// Allows users that match one of `users` and events that match one of `events`. In a pattern, `*` matches any
    /// number of characters and `?` matches one. The name appears in logs.
    #[must_use]
    pub fn patterns<S: AsRef<str>>(name: &str, users: &[S], events: &[S]) -> Self {
        let compile = |patterns: &[S]| patterns.iter().map(|pattern| WildMatch::new(pattern.as_ref())).collect();
        Self::matching(name, compile(users), compile(events))
    }

    fn matching(name: &str, users: Vec<WildMatch>, events: Vec<WildMatch>) -> Self {
        Self::of(name, Rule::Patterns(Arc::new(Patterns { users, events })))
    }

    /// Allows what the rule allows. The user is `None` for a broadcast. The event is `None` when the caller drops all
    /// connections of a user. The name appears in logs.
    #[must_use]
    pub fn custom(name: &str, rule: impl Fn(Option<&UserId>, Option<&Event>) -> bool + Send + Sync + 'static) -> Self {
        Self::of(name, Rule::Custom(Arc::new(rule)))
    }

    fn of(name: &str, rule: Rule) -> Self {
        let name: Arc<str> = name.into();
        Self { payer: Payer::Key(name.clone()), name, rule, rate: None, methods: None, admin: None, peer: None }
    }

    pub(crate) fn called_from(self, peer: SocketAddr) -> Self {
        Self { peer: Some(peer), ..self }
    }

    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    fn only_with(self, methods: &[Method]) -> Self {
        Self { methods: Some(methods.into()), ..self }
    }

    /// Whether the caller may call this method at all.
    pub(crate) fn allows_method(&self, method: Method) -> bool {
        self.methods.as_ref().is_none_or(|methods| methods.contains(&method))
    }

    /// Lets the caller use the `AdminService` too. Without this it may not, whatever it may push to.
    #[must_use]
    pub fn with_admin(self, access: AdminAccess) -> Self {
        Self { admin: Some(access), ..self }
    }

    /// Whether the caller may do so much with the `AdminService`.
    pub(crate) fn allows_admin(&self, needed: AdminAccess) -> bool {
        self.admin.is_some_and(|access| access >= needed)
    }

    fn limited_to(self, rate: Option<Arc<Rate>>) -> Self {
        Self { rate, ..self }
    }

    /// Uses up one push of the caller's rate.
    ///
    /// # Errors
    /// How long it takes until the caller may push again.
    pub(crate) fn spend(&self, now: Instant) -> Result<(), Duration> {
        self.rate.as_ref().map_or(Ok(()), |rate| rate.spend(now))
    }

    /// Uses the share of this payer instead of the one for its name.
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
    /// A scope made of patterns allows a missing user only if a pattern matches every user. The same holds for a
    /// missing event.
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
    /// The caller sent no API key, or an unknown one, and presented no certificate that is known.
    #[error("no API key, or one that is not known")]
    Unauthenticated,
    /// The caller's token has expired.
    #[error("the token has expired")]
    TokenExpired,
    /// The caller's token is not good for another reason.
    #[error("the token is refused")]
    TokenRefused,
    /// The check could not be made.
    #[error("push check unavailable")]
    Unavailable,
}

/// Why the data behind a check could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file could not be read.
    #[error("cannot read {}", .path.display())]
    Unreadable {
        /// The path of the file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The file's content is not valid. The error text contains no secret.
    #[error("{}: {problem}", .path.display())]
    Malformed {
        /// The path of the file.
        path: PathBuf,
        /// The problem and its place in the file.
        problem: String,
    },
    /// An embedder's own check failed.
    #[error("reload failed")]
    Other(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn read_file(path: &Path) -> Result<String, ReloadError> {
    std::fs::read_to_string(path).map_err(|source| ReloadError::Unreadable { path: path.to_owned(), source })
}

/// Describes a TOML error with its line number. The `Display` of toml's error is not used, because it quotes the line,
/// which may hold a secret.
fn describe(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    match line {
        Some(line) => format!("line {line}: {}", error.message()),
        None => error.message().to_owned(),
    }
}

/// A token check for development. Every token is valid and is itself the user id. Refuses only a token that is empty or
/// too long for a user id.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenIsUser;

#[async_trait]
impl TokenAuthenticator for TokenIsUser {
    async fn authenticate(&self, attempt: &BindAttempt<'_>) -> Result<Identity, TokenError> {
        UserId::new(attempt.token.expose()).map(Identity::new).map_err(|_| TokenError::Refused)
    }
}

/// A push check that lets every caller push to everyone. Use it only if nobody but trusted callers can reach the
/// gateway's push API.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenPush;

#[async_trait]
impl PushAuthorizer for OpenPush {
    async fn authorize(&self, credentials: &PushCredentials) -> Result<PushScope, PushRefused> {
        Ok(PushScope::everything(credentials.certificate_names.first().map_or("anyone", String::as_str)))
    }
}

/// The same for a gateway whose control address only this machine can reach: callers may use the `AdminService` too.
pub(crate) struct OpenAdmin;

#[async_trait]
impl PushAuthorizer for OpenAdmin {
    async fn authorize(&self, credentials: &PushCredentials) -> Result<PushScope, PushRefused> {
        Ok(OpenPush.authorize(credentials).await?.with_admin(AdminAccess::Write))
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

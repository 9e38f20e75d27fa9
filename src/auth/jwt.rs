//! The token check for JWTs: who checks, with which keys. `keys` reads and finds keys, `fetch` and `remote` get them from a
//! provider, `rules` decides about a token.

mod fetch;
mod keys;
mod problem;
mod remote;
mod rules;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;

use super::{BindAttempt, Identity, ReloadError, TokenAuthenticator, TokenError};
use crate::config::{Config, JwtSettings};
use crate::metrics::{Metrics, Side};
use fetch::Address;
use keys::Keys;
use remote::Remote;
use rules::Rules;

pub use problem::JwtProblem;
pub use rules::JwtGrant;

/// A token check for JWTs, with the keys and rules that the settings name.
///
/// [`TokenAuthenticator::reload`] reads `jwt_keys_file`, or fetches `jwt_jwks_url`, again. If that fails, the previous keys
/// stay in use.
#[derive(Debug)]
pub struct JwtAuthenticator {
    rules: Rules,
    keys: Source,
}

#[derive(Debug)]
enum Source {
    File(KeysFile),
    Remote(Remote),
}

/// The keys of a file, as they were when it was last read.
#[derive(Debug)]
struct KeysFile {
    path: PathBuf,
    keys: RwLock<Arc<Keys>>,
}

impl JwtAuthenticator {
    /// The check that the settings describe. `None` if they name no keys for JWTs. With `jwt_jwks_url` it must be made in
    /// a tokio runtime, in which it fetches the keys.
    ///
    /// # Errors
    /// `jwt_keys_file` cannot be read, or holds no key that can be used. A `jwt_jwks_url` that cannot be fetched is no
    /// error: the provider may come back.
    pub fn from_config(config: &Config) -> Result<Option<Self>, ReloadError> {
        Self::open(&config.jwt(), Side::Clients, None)
    }

    /// The same for the tokens of callers, with the settings that begin with `push_jwt_`.
    ///
    /// # Errors
    /// As for [`JwtAuthenticator::from_config`].
    pub fn of_callers(config: &Config) -> Result<Option<Self>, ReloadError> {
        Self::open(&config.push_jwt(), Side::Callers, None)
    }

    pub(crate) fn open(
        settings: &JwtSettings<'_>,
        side: Side,
        metrics: Option<Arc<Metrics>>,
    ) -> Result<Option<Self>, ReloadError> {
        let rules = Rules::new(settings);
        let keys = if let Some(path) = settings.keys_file {
            let keys = RwLock::new(Arc::new(read(path, &rules)?));
            Source::File(KeysFile { path: path.to_owned(), keys })
        } else if let Some(url) = settings.jwks_url {
            let uri = url.as_str().parse().map_err(|error| ReloadError::Other(Box::new(error)))?;
            let address = Address::new(uri, side.jwks_setting())?;
            Source::Remote(Remote::start(address, rules.algorithms().to_vec(), side, metrics))
        } else {
            return Ok(None);
        };
        Ok(Some(Self { rules, keys }))
    }

    /// Checks a token, and tells what it grants, or what is wrong.
    ///
    /// # Errors
    /// Tells the first thing that is wrong with the token.
    pub async fn check(&self, token: &str) -> Result<JwtGrant, JwtProblem> {
        match &self.keys {
            Source::File(file) => self.rules.check(token, &file.current()),
            Source::Remote(remote) => {
                let known = remote.current();
                match self.check_with(token, &known) {
                    Err(JwtProblem::UnknownKid | JwtProblem::KeysUnavailable) => {
                        self.check_with(token, &remote.newer_than(&known).await)
                    }
                    checked => checked,
                }
            }
        }
    }

    /// Why the last fetch of `jwt_jwks_url` failed, if it did.
    #[must_use]
    pub fn fetch_failure(&self) -> Option<Arc<dyn Error + Send + Sync>> {
        match &self.keys {
            Source::File(_) => None,
            Source::Remote(remote) => remote.current().failure.map(|failure| failure as Arc<dyn Error + Send + Sync>),
        }
    }

    /// Checks a token with what is known of a provider's keys.
    fn check_with(&self, token: &str, known: &remote::State) -> Result<JwtGrant, JwtProblem> {
        let keys = known.keys.as_ref().ok_or(JwtProblem::KeysUnavailable)?;
        match self.rules.check(token, keys) {
            // Perhaps its key is among those that could not be fetched.
            Err(JwtProblem::UnknownKid) if known.failure.is_some() => Err(JwtProblem::KeysUnavailable),
            checked => checked,
        }
    }
}

#[async_trait]
impl TokenAuthenticator for JwtAuthenticator {
    async fn authenticate(&self, attempt: &BindAttempt<'_>) -> Result<Identity, TokenError> {
        match self.check(attempt.token.expose()).await {
            Ok(grant) if grant.allows(attempt.event) => Ok(grant.into_identity()),
            Ok(_) => Err(TokenError::NotAllowed),
            Err(JwtProblem::KeysUnavailable) => Err(TokenError::Unavailable),
            Err(problem) => {
                tracing::debug!(%problem, "token refused");
                Err(TokenError::Refused)
            }
        }
    }

    async fn reload(&self) -> Result<(), ReloadError> {
        match &self.keys {
            Source::File(file) => {
                let keys = read(&file.path, &self.rules)?;
                let count = keys.len();
                *file.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
                tracing::info!(path = %file.path.display(), keys = count, "keys for JWTs reloaded");
                Ok(())
            }
            Source::Remote(remote) => match remote.newer_than(&remote.current()).await.failure {
                Some(failure) => Err(ReloadError::Other(Box::new(failure))),
                None => Ok(()),
            },
        }
    }
}

impl KeysFile {
    fn current(&self) -> Arc<Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn read(path: &Path, rules: &Rules) -> Result<Keys, ReloadError> {
    let malformed = |problem: String| ReloadError::Malformed { path: path.to_owned(), problem };
    let content = std::fs::read(path).map_err(|source| ReloadError::Unreadable { path: path.to_owned(), source })?;
    let keys = Keys::of_file(&content, rules.algorithms()).map_err(malformed)?;
    for ignored in keys.ignored() {
        tracing::info!(path = %path.display(), reason = ignored, "a key is not used");
    }
    Ok(keys)
}

//! The token check for JWTs: who checks, with which keys. `keys` reads and finds keys, `rules` decides about a token.

mod keys;
mod problem;
mod rules;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;

use super::{BindAttempt, Identity, ReloadError, TokenAuthenticator, TokenError};
use crate::config::Config;
use keys::Keys;
use rules::Rules;

pub use problem::JwtProblem;
pub use rules::JwtGrant;

/// A token check for JWTs, with the keys and rules that the settings name.
///
/// [`TokenAuthenticator::reload`] reads `jwt_keys_file` again. If the file has an error, the previous keys stay in use.
#[derive(Debug)]
pub struct JwtAuthenticator {
    rules: Rules,
    keys: KeysFile,
}

/// The keys of a file, as they were when it was last read.
#[derive(Debug)]
struct KeysFile {
    path: PathBuf,
    keys: RwLock<Arc<Keys>>,
}

impl JwtAuthenticator {
    /// The check that the settings describe. `None` if they name no keys for JWTs.
    ///
    /// # Errors
    /// `jwt_keys_file` cannot be read, or holds no key that can be used.
    pub fn from_config(config: &Config) -> Result<Option<Self>, ReloadError> {
        let rules = Rules::new(config);
        let Some(path) = &config.jwt_keys_file else { return Ok(None) };
        let keys = read(path, &rules)?;
        Ok(Some(Self { keys: KeysFile { path: path.clone(), keys: RwLock::new(Arc::new(keys)) }, rules }))
    }

    /// Checks a token, and tells what it grants, or what is wrong.
    ///
    /// # Errors
    /// Tells the first thing that is wrong with the token.
    pub async fn check(&self, token: &str) -> Result<JwtGrant, JwtProblem> {
        self.rules.check(token, &self.keys.current())
    }
}

#[async_trait]
impl TokenAuthenticator for JwtAuthenticator {
    async fn authenticate(&self, attempt: &BindAttempt<'_>) -> Result<Identity, TokenError> {
        match self.check(attempt.token.expose()).await {
            Ok(grant) if grant.allows(attempt.event) => Ok(grant.into_identity()),
            Ok(_) => Err(TokenError::NotAllowed),
            Err(problem) => {
                tracing::debug!(%problem, "token refused");
                Err(TokenError::Refused)
            }
        }
    }

    async fn reload(&self) -> Result<(), ReloadError> {
        let keys = read(&self.keys.path, &self.rules)?;
        let count = keys.len();
        *self.keys.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        tracing::info!(path = %self.keys.path.display(), keys = count, "keys for JWTs reloaded");
        Ok(())
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

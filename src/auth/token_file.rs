//! Tokens from a TOML file of `token = "user"` lines.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;

use super::{BindAttempt, Identity, ReloadError, TokenAuthenticator, TokenError};
use crate::message::UserId;

/// A token check backed by a TOML file of `token = "user"` lines.
///
/// A user can have several tokens. [`TokenAuthenticator::reload`] reads the file again. If the file has an error, the
/// previous tokens stay in use. Open connections stay open, even if their token was removed.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    tokens: RwLock<Arc<Tokens>>,
}

struct Tokens(HashMap<String, UserId>);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({})", self.0.len())
    }
}

impl TokenFile {
    /// Reads the file.
    ///
    /// # Errors
    /// The file cannot be read, or one of its lines is not `token = "user"`.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, ReloadError> {
        let path = path.into();
        let tokens = read(&path)?;
        Ok(Self { path, tokens: RwLock::new(Arc::new(tokens)) })
    }

    /// The number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.current().0.len()
    }

    /// Whether the file holds no token, so that nobody can bind.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn current(&self) -> Arc<Tokens> {
        self.tokens.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl TokenAuthenticator for TokenFile {
    async fn authenticate(&self, attempt: &BindAttempt<'_>) -> Result<Identity, TokenError> {
        let tokens = self.current();
        tokens.0.get(attempt.token.expose()).cloned().map(Identity::new).ok_or(TokenError::Refused)
    }

    async fn reload(&self) -> Result<(), ReloadError> {
        let tokens = read(&self.path)?;
        let count = tokens.0.len();
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tokens);
        tracing::info!(path = %self.path.display(), tokens = count, "tokens reloaded");
        Ok(())
    }
}

fn read(path: &Path) -> Result<Tokens, ReloadError> {
    let text = super::read_file(path)?;
    let malformed = |problem: String| ReloadError::Malformed { path: path.to_owned(), problem };
    let table: toml::Table = toml::from_str(&text).map_err(|error| malformed(super::describe(&text, &error)))?;
    let mut tokens = HashMap::with_capacity(table.len());
    for (number, (token, user)) in table.into_iter().enumerate() {
        // Tokens are secrets, so an error names an entry by its position among the sorted keys, never by its token.
        let user = user
            .as_str()
            .ok_or_else(|| malformed(format!("entry {} is not of the form token = \"user\"", number + 1)))
            .and_then(|user| UserId::new(user).map_err(|error| malformed(format!("entry {}: {error}", number + 1))))?;
        if token.is_empty() {
            return Err(malformed(format!("entry {} has an empty token", number + 1)));
        }
        tokens.insert(token, user);
    }
    Ok(Tokens(tokens))
}

#[cfg(test)]
mod tests {
    use super::super::{Client, Token};
    use super::*;
    use crate::message::Event;

    async fn user_of(file: &TokenFile, token: &str) -> Result<String, TokenError> {
        let (token, event) = (Token::new(token.to_owned()), Event::new("mail").expect("valid"));
        let client = Client { peer: ([127, 0, 0, 1], 1).into(), shown: None };
        let attempt = BindAttempt::new(&token, &event, &client);
        file.authenticate(&attempt).await.map(|identity| identity.user_id.as_str().to_owned())
    }

    #[tokio::test]
    async fn a_reload_takes_effect_and_a_bad_one_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokens.toml");
        std::fs::write(&path, "t1 = \"ann\"\n\"t 2\" = \"ann\"\n").expect("written");
        let file = TokenFile::open(&path).expect("good file");
        assert_eq!(user_of(&file, "t1").await, Ok("ann".to_owned()));
        assert_eq!(user_of(&file, "t 2").await, Ok("ann".to_owned()));
        assert_eq!(user_of(&file, "t3").await, Err(TokenError::Refused));

        std::fs::write(&path, "t3 = \"bob\"\n").expect("written");
        file.reload().await.expect("good file");
        assert_eq!(user_of(&file, "t3").await, Ok("bob".to_owned()));
        assert_eq!(user_of(&file, "t1").await, Err(TokenError::Refused));

        std::fs::write(&path, "s3cret = 7\n").expect("written");
        let error = file.reload().await.expect_err("7 is not a user").to_string();
        assert!(error.contains("entry 1"), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
        assert_eq!(user_of(&file, "t3").await, Ok("bob".to_owned()));

        std::fs::write(&path, "s3cret = \"bob\nother = \"x\"").expect("written");
        let error = file.reload().await.expect_err("not TOML").to_string();
        assert!(error.contains("line 1"), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }
}

//! Push API keys from a TOML file.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use serde::Deserialize;
use subtle::ConstantTimeEq;

use super::{PushAuthorizer, PushCredentials, PushRefused, PushScope, ReloadError};

/// The minimum length of a key, in characters. 16 random characters out of 64 give 96 bits.
const KEY_CHARS_MIN: usize = 16;

/// A push check backed by a TOML file of API keys:
///
/// ```toml
/// [[key]]
/// name = "billing"             # appears in logs
/// key = "a-long-random-secret" # at least 16 letters, digits or ASCII punctuation
/// users = ["customer-*"]       # optional, default ["*"]
/// events = ["invoice.*"]       # optional, default ["*"]
/// ```
///
/// Several keys can be valid at once, so that keys can be rotated. [`PushAuthorizer::reload`] reads the file again. If
/// the file has an error, the previous keys stay in use.
#[derive(Debug)]
pub struct PushKeys {
    path: PathBuf,
    keys: RwLock<Arc<[Key]>>,
}

struct Key {
    secret: String,
    scope: PushScope,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.scope.fmt(f)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    key: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    key: String,
    #[serde(default = "any")]
    users: Vec<String>,
    #[serde(default = "any")]
    events: Vec<String>,
}

fn any() -> Vec<String> {
    vec!["*".to_owned()]
}

impl PushKeys {
    /// Reads the file.
    ///
    /// # Errors
    /// The file cannot be read, or its content is not valid.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, ReloadError> {
        let path = path.into();
        let keys = read(&path)?;
        Ok(Self { path, keys: RwLock::new(keys) })
    }

    fn current(&self) -> Arc<[Key]> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl PushAuthorizer for PushKeys {
    async fn authorize(&self, credentials: &PushCredentials) -> Result<PushScope, PushRefused> {
        let shown = credentials.api_key.as_ref().ok_or(PushRefused::Unauthenticated)?.expose().as_bytes();
        let keys = self.current();
        // Compares every key, each in constant time, so that the time taken reveals nothing about any key.
        let good = keys
            .iter()
            .fold(None, |good, key| if bool::from(key.secret.as_bytes().ct_eq(shown)) { Some(key) } else { good });
        good.map(|key| key.scope.clone()).ok_or(PushRefused::Unauthenticated)
    }

    async fn reload(&self) -> Result<(), ReloadError> {
        let keys = read(&self.path)?;
        let count = keys.len();
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        tracing::info!(path = %self.path.display(), keys = count, "push keys reloaded");
        Ok(())
    }
}

fn read(path: &Path) -> Result<Arc<[Key]>, ReloadError> {
    let text = super::read_file(path)?;
    let malformed = |problem: String| ReloadError::Malformed { path: path.to_owned(), problem };
    let file: File = toml::from_str(&text).map_err(|error| malformed(super::describe(&text, &error)))?;
    if file.key.is_empty() {
        return Err(malformed("there is no [[key]], so nobody could push".to_owned()));
    }
    for (number, entry) in file.key.iter().enumerate() {
        let earlier = &file.key[..number];
        if earlier.iter().any(|earlier| earlier.name == entry.name) {
            return Err(malformed(format!("the name {:?} is used twice", entry.name)));
        }
        if earlier.iter().any(|earlier| earlier.key == entry.key) {
            return Err(malformed(format!("the key of {:?} is used twice", entry.name)));
        }
    }
    file.key
        .into_iter()
        .map(|entry| {
            if !entry.key.bytes().all(|b| b.is_ascii_graphic()) {
                // A header can carry other characters, but some client or proxy would alter them on the way.
                return Err(malformed(format!(
                    "the key of {:?} has characters besides letters, digits and ASCII punctuation",
                    entry.name
                )));
            }
            if entry.key.chars().count() < KEY_CHARS_MIN {
                return Err(malformed(format!(
                    "the key of {:?} is shorter than {KEY_CHARS_MIN} characters",
                    entry.name
                )));
            }
            let scope = PushScope::patterns(&entry.name, &entry.users, &entry.events);
            Ok(Key { secret: entry.key, scope })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::Token;
    use super::*;

    async fn name_of(keys: &PushKeys, key: Option<&str>) -> Result<String, PushRefused> {
        let key = key.map(|key| Token::new(key.to_owned()));
        let credentials = PushCredentials::new(key, ([127, 0, 0, 1], 1).into());
        keys.authorize(&credentials).await.map(|scope| scope.name().to_owned())
    }

    #[tokio::test]
    async fn several_keys_are_good_at_once_and_a_reload_rotates_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys.toml");
        let old = "[[key]]\nname = \"old\"\nkey = \"0123456789abcdef\"\n";
        let new = "[[key]]\nname = \"new\"\nkey = \"fedcba9876543210\"\n";
        std::fs::write(&path, format!("{old}{new}")).expect("written");
        let keys = PushKeys::open(&path).expect("good file");
        assert_eq!(name_of(&keys, Some("0123456789abcdef")).await, Ok("old".to_owned()));
        assert_eq!(name_of(&keys, Some("fedcba9876543210")).await, Ok("new".to_owned()));
        assert_eq!(name_of(&keys, Some("fedcba987654321")).await, Err(PushRefused::Unauthenticated));
        assert_eq!(name_of(&keys, None).await, Err(PushRefused::Unauthenticated));
        std::fs::write(&path, new).expect("written");
        keys.reload().await.expect("good file");
        assert_eq!(name_of(&keys, Some("0123456789abcdef")).await, Err(PushRefused::Unauthenticated));
    }

    #[test]
    fn mistakes_are_named_and_secrets_are_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys.toml");
        for (text, expected) in [
            ("", "there is no [[key]]"),
            ("[[key]]\nname = \"a\"\nkey = \"s3cret\"", "the key of \"a\" is shorter than 16 characters"),
            ("[[key]]\nname = \"a\"\nkey = \"s3cret-s3cret-s3cret\"\nuser = []", "line 4"),
            ("[[key]]\nkey = \"s3cret-s3cret-s3cret\"", "name"),
            ("[[key]]\nname = \"a\"\nkey = \"s3cret s3cret-s3cret\"", "the key of \"a\" has characters besides"),
            (
                "[[key]]\nname = \"a\"\nkey = \"s3cret-s3cret-s3cret\"\n[[key]]\nname = \"a\"\nkey = \"s3cret-s3cret-s3cre2\"",
                "the name \"a\" is used twice",
            ),
            (
                "[[key]]\nname = \"a\"\nkey = \"s3cret-s3cret-s3cret\"\n[[key]]\nname = \"b\"\nkey = \"s3cret-s3cret-s3cret\"",
                "the key of \"b\" is used twice",
            ),
        ] {
            std::fs::write(&path, text).expect("written");
            let error = PushKeys::open(&path).expect_err(text).to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}

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
/// With `control_tls_client_ca_file`, an entry may name a certificate instead of a key. It is for callers that present one
/// which is made out to this URI or DNS name and show no key:
///
/// ```toml
/// [[key]]
/// name = "orders"
/// certificate = "spiffe://example.com/orders"
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
    shows: Shows,
    scope: PushScope,
}

/// What a caller shows.
#[derive(PartialEq, Eq)]
enum Shows {
    Secret(String),
    /// A certificate that is made out to this name.
    Certificate(String),
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
    key: Option<String>,
    certificate: Option<String>,
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
        let keys = self.current();
        let good = match &credentials.api_key {
            Some(shown) => with_secret(&keys, shown.expose().as_bytes()),
            None => keys.iter().find(|key| match &key.shows {
                Shows::Certificate(name) => credentials.certificate_names.contains(name),
                Shows::Secret(_) => false,
            }),
        };
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

/// Compares every key, each in constant time, so that the time taken reveals nothing about any key.
fn with_secret<'a>(keys: &'a [Key], shown: &[u8]) -> Option<&'a Key> {
    keys.iter().fold(None, |good, key| match &key.shows {
        Shows::Secret(secret) if bool::from(secret.as_bytes().ct_eq(shown)) => Some(key),
        _ => good,
    })
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
        if entry.key.is_some() && earlier.iter().any(|earlier| earlier.key == entry.key) {
            return Err(malformed(format!("the key of {:?} is used twice", entry.name)));
        }
        if entry.certificate.is_some() && earlier.iter().any(|earlier| earlier.certificate == entry.certificate) {
            return Err(malformed(format!("the certificate of {:?} is used twice", entry.name)));
        }
    }
    file.key
        .into_iter()
        .map(|entry| {
            let shows = match (entry.key, entry.certificate) {
                (Some(key), None) => secret(&entry.name, key),
                (None, Some(certificate)) => certificate_name(&entry.name, certificate),
                (Some(_), Some(_)) => {
                    Err(format!("{:?} has a key and a certificate, and must have one of them", entry.name))
                }
                (None, None) => Err(format!("{:?} has neither a key nor a certificate", entry.name)),
            };
            let scope = PushScope::patterns(&entry.name, &entry.users, &entry.events);
            Ok(Key { shows: shows.map_err(malformed)?, scope })
        })
        .collect()
}

fn secret(name: &str, key: String) -> Result<Shows, String> {
    if !key.bytes().all(|b| b.is_ascii_graphic()) {
        // A header can carry other characters, but some client or proxy would alter them on the way.
        return Err(format!("the key of {name:?} has characters besides letters, digits and ASCII punctuation"));
    }
    if key.chars().count() < KEY_CHARS_MIN {
        return Err(format!("the key of {name:?} is shorter than {KEY_CHARS_MIN} characters"));
    }
    Ok(Shows::Secret(key))
}

fn certificate_name(name: &str, certificate: String) -> Result<Shows, String> {
    if certificate.is_empty() || !certificate.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("the certificate of {name:?} is not a URI or DNS name"));
    }
    // A URI is compared as it is written, and a DNS name in small letters.
    let is_uri = certificate.contains(':');
    Ok(Shows::Certificate(if is_uri { certificate } else { certificate.to_ascii_lowercase() }))
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

    #[tokio::test]
    async fn a_certificate_is_known_by_each_of_its_names_and_a_key_that_is_shown_goes_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys.toml");
        let text = "[[key]]\nname = \"orders\"\ncertificate = \"spiffe://example.com/Orders\"\n\
                    [[key]]\nname = \"mail\"\ncertificate = \"Mail.internal\"\n\
                    [[key]]\nname = \"key\"\nkey = \"0123456789abcdef\"\n";
        std::fs::write(&path, text).expect("written");
        let keys = PushKeys::open(&path).expect("good file");
        let name_of = async |key: Option<&str>, names: &[&str]| {
            let credentials =
                PushCredentials::new(key.map(|key| Token::new(key.to_owned())), ([127, 0, 0, 1], 1).into())
                    .with_certificate_names(names.iter().map(|name| (*name).to_owned()).collect());
            keys.authorize(&credentials).await.map(|scope| scope.name().to_owned())
        };
        let refused = Err(PushRefused::Unauthenticated);
        assert_eq!(name_of(None, &["x", "spiffe://example.com/Orders"]).await, Ok("orders".to_owned()));
        assert_eq!(name_of(None, &["mail.internal"]).await, Ok("mail".to_owned()));
        assert_eq!(name_of(None, &["spiffe://example.com/orders"]).await, refused, "a path has two cases");
        assert_eq!(name_of(None, &["0123456789abcdef"]).await, refused, "a key is no name");
        assert_eq!(name_of(Some("0123456789abcdef"), &["mail.internal"]).await, Ok("key".to_owned()));
        assert_eq!(name_of(Some("mail.internal"), &["mail.internal"]).await, refused);
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
            ("[[key]]\nname = \"a\"", "\"a\" has neither a key nor a certificate"),
            (
                "[[key]]\nname = \"a\"\nkey = \"s3cret-s3cret-s3cret\"\ncertificate = \"x\"",
                "\"a\" has a key and a cert",
            ),
            ("[[key]]\nname = \"a\"\ncertificate = \"\"", "the certificate of \"a\" is not a URI or DNS name"),
            (
                "[[key]]\nname = \"a\"\ncertificate = \"x\"\n[[key]]\nname = \"b\"\ncertificate = \"x\"",
                "the certificate of \"b\" is used twice",
            ),
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

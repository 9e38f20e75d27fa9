//! Push API keys from a TOML file.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Deserializer, de};
use subtle::ConstantTimeEq;

use super::rate::{Limit, PerSecond, Rate};
use super::{AdminAccess, Method, PushAuthorizer, PushCredentials, PushRefused, PushScope, ReloadError};

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
/// methods = ["push", "batch"]  # optional, default all: also "stream", "broadcast" and "drop"
/// rate = 100                   # pushes per second, optional, default unlimited
/// burst = 500                  # pushes at once, optional, default ten seconds' worth
/// admin = "write"              # use of the AdminService, optional, default none: "read" or "write"
/// ```
///
/// An entry may have `key_sha256`, the SHA-256 of its key in hexadecimal, instead of the key.
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
/// the file has an error, the previous keys stay in use. What a key has used up of its rate is kept if its name, rate and
/// burst stay the same.
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
    /// A key with this hash. A plain SHA-256 is enough, because nobody can try all keys that are long and random.
    Secret(KeyHash),
    /// A certificate that is made out to this name.
    Certificate(String),
}

/// The SHA-256 of a key.
#[derive(Clone, Copy, PartialEq, Eq)]
struct KeyHash([u8; 32]);

impl KeyHash {
    fn of(key: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, key).as_ref());
        Self(hash)
    }

    fn read(text: &str) -> Option<Self> {
        let mut hash = [0; 32];
        if text.len() != 2 * hash.len() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        for (place, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * place..2 * place + 2], 16).ok()?;
        }
        Some(Self(hash))
    }
}

impl<'de> Deserialize<'de> for KeyHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::read(&text).ok_or_else(|| de::Error::custom("key_sha256 is not 64 hexadecimal digits"))
    }
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
    key_sha256: Option<KeyHash>,
    certificate: Option<String>,
    #[serde(default = "any")]
    users: Vec<String>,
    #[serde(default = "any")]
    events: Vec<String>,
    #[serde(default = "all")]
    methods: Vec<Method>,
    rate: Option<PerSecond>,
    burst: Option<NonZeroU32>,
    admin: Option<AdminAccess>,
}

fn all() -> Vec<Method> {
    Method::ALL.to_vec()
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
        let keys = read(&path, &[])?;
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
        let keys = read(&self.path, &self.current())?;
        let count = keys.len();
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        tracing::info!(path = %self.path.display(), keys = count, "push keys reloaded");
        Ok(())
    }
}

/// Compares the hash of every key, each in constant time, so that the time taken reveals nothing about any key.
fn with_secret<'a>(keys: &'a [Key], shown: &[u8]) -> Option<&'a Key> {
    let shown = KeyHash::of(shown);
    keys.iter().fold(None, |good, key| match &key.shows {
        Shows::Secret(hash) if bool::from(hash.0.ct_eq(&shown.0)) => Some(key),
        _ => good,
    })
}

/// Reads the file. Keys that were there before go on with what they have left of their rate.
fn read(path: &Path, previous: &[Key]) -> Result<Arc<[Key]>, ReloadError> {
    let text = super::read_file(path)?;
    let malformed = |problem: String| ReloadError::Malformed { path: path.to_owned(), problem };
    let file: File = toml::from_str(&text).map_err(|error| malformed(super::describe(&text, &error)))?;
    if file.key.is_empty() {
        return Err(malformed("there is no [[key]], so nobody could push".to_owned()));
    }
    let mut keys: Vec<Key> = Vec::with_capacity(file.key.len());
    for entry in file.key {
        let key = read_entry(entry, previous).map_err(malformed)?;
        let name = key.scope.name();
        if keys.iter().any(|earlier| earlier.scope.name() == name) {
            return Err(malformed(format!("the name {name:?} is used twice")));
        }
        if keys.iter().any(|earlier| earlier.shows == key.shows) {
            let what = match key.shows {
                Shows::Secret(_) => "key",
                Shows::Certificate(_) => "certificate",
            };
            return Err(malformed(format!("the {what} of {name:?} is used twice")));
        }
        keys.push(key);
    }
    Ok(keys.into())
}

fn read_entry(entry: Entry, previous: &[Key]) -> Result<Key, String> {
    let name = &entry.name;
    let shows = match (entry.key, entry.key_sha256, entry.certificate) {
        (Some(key), None, None) => secret(name, &key)?,
        (None, Some(hash), None) => Shows::Secret(hash),
        (None, None, Some(certificate)) => certificate_name(name, certificate)?,
        (Some(_), Some(_), _) => return Err(format!("{name:?} has a key and a key_sha256, and must have one of them")),
        (_, _, Some(_)) => return Err(format!("{name:?} has a key and a certificate, and must have one of them")),
        (None, None, None) => return Err(format!("{name:?} has neither a key nor a certificate")),
    };
    let limit = match (entry.rate, entry.burst) {
        (Some(per_second), burst) => Some(Limit::new(per_second, burst)),
        (None, Some(_)) => return Err(format!("{name:?} has a burst and no rate")),
        (None, None) => None,
    };
    let rate = limit.map(|limit| {
        let earlier = previous.iter().find(|key| key.scope.name() == name).and_then(|key| key.scope.rate.clone());
        earlier.filter(|rate| rate.limit() == limit).unwrap_or_else(|| Arc::new(Rate::new(limit)))
    });
    let scope = PushScope::patterns(name, &entry.users, &entry.events).only_with(&entry.methods).limited_to(rate);
    let scope = match entry.admin {
        Some(access) => scope.with_admin(access),
        None => scope,
    };
    Ok(Key { shows, scope })
}

fn secret(name: &str, key: &str) -> Result<Shows, String> {
    if !key.bytes().all(|b| b.is_ascii_graphic()) {
        // A header can carry other characters, but some client or proxy would alter them on the way.
        return Err(format!("the key of {name:?} has characters besides letters, digits and ASCII punctuation"));
    }
    if key.chars().count() < KEY_CHARS_MIN {
        return Err(format!("the key of {name:?} is shorter than {KEY_CHARS_MIN} characters"));
    }
    Ok(Shows::Secret(KeyHash::of(key.as_bytes())))
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
    use std::time::{Duration, Instant};

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

    #[tokio::test]
    async fn a_reload_keeps_what_a_key_has_used_up_of_its_rate_unless_the_rate_is_another() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys.toml");
        let write = |burst: u32| {
            let text = format!("[[key]]\nname = \"a\"\nkey = \"0123456789abcdef\"\nrate = 0.5\nburst = {burst}\n");
            std::fs::write(&path, text).expect("written");
        };
        write(1);
        let keys = PushKeys::open(&path).expect("good file");
        let key = || Some(Token::new("0123456789abcdef".to_owned()));
        let now = Instant::now();
        let spend = async || {
            let credentials = PushCredentials::new(key(), ([127, 0, 0, 1], 1).into());
            keys.authorize(&credentials).await.expect("a good key").spend(now)
        };
        assert_eq!((spend().await, spend().await), (Ok(()), Err(Duration::from_secs(2))));
        keys.reload().await.expect("good file");
        assert_eq!(spend().await, Err(Duration::from_secs(2)));
        write(2);
        keys.reload().await.expect("good file");
        assert_eq!(spend().await, Ok(()));
    }

    #[tokio::test]
    async fn a_key_that_stands_as_its_hash_is_good_and_the_hash_itself_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys.toml");
        // printf 0123456789abcdef | sha256sum
        let hash = "9f9f5111f7b27a781f1f1ddde5ebc2dd2b796bfc7365c9c28b548e564176929f";
        for hash in [hash.to_owned(), hash.to_uppercase()] {
            std::fs::write(&path, format!("[[key]]\nname = \"a\"\nkey_sha256 = \"{hash}\"\n")).expect("written");
            let keys = PushKeys::open(&path).expect("good file");
            assert_eq!(name_of(&keys, Some("0123456789abcdef")).await, Ok("a".to_owned()));
            assert_eq!(name_of(&keys, Some(&hash)).await, Err(PushRefused::Unauthenticated));
        }
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
            ("[[key]]\nname = \"a\"\nkey = \"s3cret-s3cret-s3cret\"\nrate = 0", "line 4: the rate is not a number"),
            ("[[key]]\nname = \"a\"\nkey = \"s3cret-s3cret-s3cret\"\nburst = 1", "\"a\" has a burst and no rate"),
            ("[[key]]\nname = \"a\"\nkey = \"s3cret-s3cret-s3cret\"\nmethods = [\"pull\"]", "line 4: unknown variant"),
            ("[[key]]\nname = \"a\"\nkey = \"s3cret-s3cret-s3cret\"\nadmin = \"root\"", "line 4: unknown variant"),
            ("[[key]]\nname = \"a\"", "\"a\" has neither a key nor a certificate"),
            (
                "[[key]]\nname = \"a\"\nkey = \"s3cret-s3cret-s3cret\"\ncertificate = \"x\"",
                "\"a\" has a key and a cert",
            ),
            ("[[key]]\nname = \"a\"\nkey_sha256 = \"s3cret\"", "line 3: key_sha256 is not 64 hexadecimal digits"),
            (
                "[[key]]\nname = \"a\"\nkey = \"0123456789abcdef\"\n[[key]]\nname = \"b\"\n\
                 key_sha256 = \"9f9f5111f7b27a781f1f1ddde5ebc2dd2b796bfc7365c9c28b548e564176929f\"",
                "the key of \"b\" is used twice",
            ),
            (
                "[[key]]\nname = \"a\"\nkey = \"0123456789abcdef\"\n\
                 key_sha256 = \"9f9f5111f7b27a781f1f1ddde5ebc2dd2b796bfc7365c9c28b548e564176929f\"",
                "\"a\" has a key and a key_sha256",
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

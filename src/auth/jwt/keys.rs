//! The keys that check JWTs: reads them from a file or a JWKS document, and finds those for a token.

mod jwks;
mod pem;
#[cfg(test)]
mod tests;

use std::fmt;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};

/// The maximum number of keys. A token without a `kid` may be checked with each of them.
const KEYS_MAX: usize = 64;

/// RSA keys that the library checks with, in bits. NIST SP 800-131A allows no smaller ones.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// What a file must hold if tokens are signed with a secret.
const SECRET_EXPECTED: &str = "jwt_algorithms names HMAC, so this must be the secret, or a JWKS document of secrets";

/// Keys, with what each of them may check.
#[derive(Debug)]
pub(super) struct Keys {
    keys: Vec<Key>,
    /// Why other keys of the same file or document are not used.
    ignored: Vec<String>,
}

struct Key {
    kid: Option<String>,
    algorithms: Vec<Algorithm>,
    decoding: DecodingKey,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).field("algorithms", &self.algorithms).finish_non_exhaustive()
    }
}

/// Why there is no key for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoKey {
    UnknownKid,
    OtherAlgorithms,
}

impl Keys {
    /// Reads a file of keys for these algorithms. An error says what is wrong and where, without quoting the file.
    pub(super) fn of_file(content: &[u8], allowed: &[Algorithm]) -> Result<Self, String> {
        let text = std::str::from_utf8(content).map(str::trim).ok();
        let is_hmac = allowed.iter().any(|algorithm| algorithm.family() == AlgorithmFamily::Hmac);
        match text {
            Some("") => Err("it is empty".to_owned()),
            Some(text) if text.starts_with(['{', '[']) => {
                // Not trimmed, so that the lines are those of the file.
                Self::of_jwks(content, allowed)
            }
            Some(text) if text.contains("-----BEGIN ") => {
                if is_hmac {
                    return Err(format!("line 1: it holds a key in PEM; {SECRET_EXPECTED}"));
                }
                let keys = pem::read(std::str::from_utf8(content).unwrap_or(text), allowed)?;
                Self::some(keys, Vec::new())
            }
            _ if is_hmac => {
                let end = content.iter().rposition(|byte| !b"\r\n".contains(byte)).map_or(0, |last| last + 1);
                Self::some(vec![Key::secret(&content[..end], allowed)?], Vec::new())
            }
            _ => Err("line 1: it is neither a key in PEM nor a JWKS document; if it is the secret of tokens that are signed \
                      with HMAC, set jwt_algorithms = \"HS256\""
                .to_owned()),
        }
    }

    /// Reads a JWKS document, or a single JWK. Keys that cannot be used are left out.
    pub(super) fn of_jwks(content: &[u8], allowed: &[Algorithm]) -> Result<Self, String> {
        let (keys, ignored) = jwks::read(content, allowed)?;
        Self::some(keys, ignored)
    }

    fn some(keys: Vec<Key>, ignored: Vec<String>) -> Result<Self, String> {
        if keys.is_empty() && ignored.is_empty() {
            return Err("it holds no key".to_owned());
        }
        if keys.is_empty() {
            return Err(format!("it holds no key that can be used: {}", ignored.join("; ")));
        }
        if keys.len() > KEYS_MAX {
            return Err(format!("it holds {} keys; at most {KEYS_MAX} can be used", keys.len()));
        }
        Ok(Self { keys, ignored })
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Why other keys are not used, one text for each.
    pub(super) fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// The keys that may have signed a token. A key without a `kid` may have signed any token.
    pub(super) fn find<'a>(&'a self, kid: Option<&str>, algorithm: Algorithm) -> Result<Vec<&'a DecodingKey>, NoKey> {
        let is_known = kid.is_some() && self.keys.iter().any(|key| key.kid.as_deref() == kid);
        let may_be = |key: &&Key| match kid {
            None => true,
            Some(_) if is_known => key.kid.as_deref() == kid,
            Some(_) => key.kid.is_none(),
        };
        let candidates: Vec<_> = self.keys.iter().filter(may_be).collect();
        if candidates.is_empty() {
            return Err(NoKey::UnknownKid);
        }
        let fitting: Vec<_> =
            candidates.into_iter().filter(|key| key.algorithms.contains(&algorithm)).map(|key| &key.decoding).collect();
        if fitting.is_empty() { Err(NoKey::OtherAlgorithms) } else { Ok(fitting) }
    }
}

impl Key {
    /// A key for those of the allowed algorithms that it fits. An error says why it fits none.
    fn new(kid: Option<String>, decoding: DecodingKey, allowed: &[Algorithm]) -> Result<Self, String> {
        let mut algorithms = fitting(&decoding)?;
        let names: Vec<_> = algorithms.iter().map(|algorithm| format!("{algorithm:?}")).collect();
        algorithms.retain(|algorithm| allowed.contains(algorithm));
        if algorithms.is_empty() {
            return Err(format!("it is for {}, which jwt_algorithms does not allow", names.join(", ")));
        }
        Ok(Self { kid, algorithms, decoding })
    }

    /// A secret must be as long as the hash of each allowed algorithm (RFC 7518, section 3.2).
    fn secret(secret: &[u8], allowed: &[Algorithm]) -> Result<Self, String> {
        let decoding = DecodingKey::from_secret(secret).map_err(|_| "it is empty".to_owned())?;
        for (algorithm, bytes) in [(Algorithm::HS512, 64), (Algorithm::HS384, 48), (Algorithm::HS256, 32)] {
            if allowed.contains(&algorithm) && secret.len() < bytes {
                let is = secret.len();
                return Err(format!(
                    "the secret has {is} bytes; {algorithm:?} needs at least {bytes} (RFC 7518, section 3.2)"
                ));
            }
        }
        Self::new(None, decoding, allowed)
    }
}

/// The algorithms that a key can check, or why it can check none.
fn fitting(decoding: &DecodingKey) -> Result<Vec<Algorithm>, String> {
    const UNUSABLE: &str = "it is not a key of RSA, of the curves P-256 or P-384, or of Ed25519";
    if decoding.family() == AlgorithmFamily::Hmac {
        return Ok(AlgorithmFamily::Hmac.algorithms().to_vec());
    }
    let jwk = Jwk::from_decoding_key(decoding, None).map_err(|_| UNUSABLE.to_owned())?;
    match jwk.algorithm {
        AlgorithmParameters::RSA(_) => {
            let bits = jwks::rsa_bits(&jwk);
            if !RSA_BITS.contains(&bits) {
                let (min, max) = (RSA_BITS.start(), RSA_BITS.end());
                return Err(format!("it is an RSA key of {bits} bits; between {min} and {max} are needed"));
            }
            Ok(AlgorithmFamily::Rsa.algorithms().to_vec())
        }
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Ok(vec![Algorithm::ES256]),
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => Ok(vec![Algorithm::ES384]),
        AlgorithmParameters::OctetKeyPair(_) => Ok(vec![Algorithm::EdDSA]),
        _ => Err(UNUSABLE.to_owned()),
    }
}

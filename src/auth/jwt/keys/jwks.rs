//! JWKS documents (RFC 7517), as identity providers publish them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use serde_json::Value;

use super::Key;

/// Reads a JWKS document or a single JWK: the keys that can be used, and why the others cannot.
pub(super) fn read(content: &[u8], allowed: &[Algorithm]) -> Result<(Vec<Key>, Vec<String>), String> {
    // The error of a syntax that is wrong has no value in it, which for a secret it must not.
    let document: Value = serde_json::from_slice(content)
        .map_err(|error| format!("line {}: it is not valid JSON, at column {}", error.line(), error.column()))?;
    let entries = match &document {
        Value::Object(fields) if fields.contains_key("kty") => std::slice::from_ref(&document),
        _ => document
            .get("keys")
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .ok_or("line 1: it is not a JWKS document: it has no list of keys")?,
    };
    let (mut keys, mut ignored) = (Vec::new(), Vec::new());
    for (number, entry) in entries.iter().enumerate() {
        match key(entry, allowed) {
            Ok(key) => keys.push(key),
            Err(reason) => {
                let kid = entry
                    .get("kid")
                    .and_then(Value::as_str)
                    .map(|kid| format!(" ({:?})", kid.chars().take(64).collect::<String>()))
                    .unwrap_or_default();
                ignored.push(format!("key {}{kid}: {reason}", number + 1));
            }
        }
    }
    Ok((keys, ignored))
}

fn key(entry: &Value, allowed: &[Algorithm]) -> Result<Key, String> {
    // Its error is not shown, because it may hold values.
    let jwk: Jwk = serde::Deserialize::deserialize(entry).map_err(|_| "it is not a JWK".to_owned())?;
    let common = &jwk.common;
    let is_for_signing = common.public_key_use.as_ref().is_none_or(|purpose| *purpose == PublicKeyUse::Signature);
    let may_verify = common.key_operations.as_ref().is_none_or(|may| may.contains(&KeyOperations::Verify));
    if !is_for_signing || !may_verify {
        return Err("it is not for signatures".to_owned());
    }
    if entry.get("d").is_some() {
        return Err("it is a private key; a gateway only needs the public one".to_owned());
    }
    let decoding = DecodingKey::from_jwk(&jwk).map_err(|_| "its kind is not supported".to_owned())?;
    let named = match common.key_algorithm {
        None => None,
        Some(named) => Some(Algorithm::try_from(named).map_err(|_| "its algorithm is not supported".to_owned())?),
    };
    let allowed: Vec<_> =
        allowed.iter().copied().filter(|allowed| named.is_none_or(|named| named == *allowed)).collect();
    if let (Some(named), true) = (named, allowed.is_empty()) {
        return Err(format!("it is for {named:?}, which jwt_algorithms does not allow"));
    }
    if decoding.family() == AlgorithmFamily::Hmac {
        let secret = decoding.try_get_as_bytes().map_err(|_| "it is not a secret".to_owned())?;
        return Ok(Key { kid: common.key_id.clone(), ..Key::secret(secret, &allowed)? });
    }
    Key::new(common.key_id.clone(), decoding, &allowed)
}

/// The length of an RSA key's modulus. 0 if it is no RSA key.
pub(super) fn rsa_bits(jwk: &Jwk) -> usize {
    let AlgorithmParameters::RSA(key) = &jwk.algorithm else { return 0 };
    let modulus = URL_SAFE_NO_PAD.decode(&key.n).unwrap_or_default();
    let first = modulus.iter().position(|byte| *byte != 0).unwrap_or(modulus.len());
    let significant = &modulus[first..];
    significant.len() * 8 - significant.first().map_or(0, |byte| byte.leading_zeros() as usize)
}

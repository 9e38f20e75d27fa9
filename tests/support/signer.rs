//! An issuer of JWTs, as its tokens and its published keys look.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test binary uses a part of it")]

use std::time::SystemTime;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

/// One key of an issuer.
pub struct Signer {
    pub algorithm: Algorithm,
    pub key: EncodingKey,
    private_der: Vec<u8>,
    public_der: Vec<u8>,
}

impl Signer {
    /// A new key for this algorithm.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::ES256 => Self::ec(algorithm, &ECDSA_P256_SHA256_FIXED_SIGNING),
            Algorithm::ES384 => Self::ec(algorithm, &ECDSA_P384_SHA384_FIXED_SIGNING),
            Algorithm::EdDSA => {
                let der = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).unwrap();
                let pair = Ed25519KeyPair::from_pkcs8(der.as_ref()).unwrap();
                let key = EncodingKey::from_ed_der(der.as_ref());
                Self::of(algorithm, key, der.as_ref(), pair.public_key().as_der().unwrap().as_ref())
            }
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
                let mut secret = [0; 64];
                aws_lc_rs::rand::fill(&mut secret).unwrap();
                let secret = STANDARD.encode(secret);
                let key = EncodingKey::from_secret(secret.as_bytes()).unwrap();
                Self::of(algorithm, key, secret.as_bytes(), &[])
            }
            _ => {
                let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
                let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
                let key = EncodingKey::from_rsa_pem(pem("PRIVATE KEY", der.as_ref()).as_bytes()).unwrap();
                Self::of(algorithm, key, der.as_ref(), pair.public_key().as_der().unwrap().as_ref())
            }
        }
    }

    fn ec(algorithm: Algorithm, curve: &'static EcdsaSigningAlgorithm) -> Self {
        let der = EcdsaKeyPair::generate_pkcs8(curve, &SystemRandom::new()).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(curve, der.as_ref()).unwrap();
        let key = EncodingKey::from_ec_der(der.as_ref());
        Self::of(algorithm, key, der.as_ref(), pair.public_key().as_der().unwrap().as_ref())
    }

    fn of(algorithm: Algorithm, key: EncodingKey, private_der: &[u8], public_der: &[u8]) -> Self {
        Self { algorithm, key, private_der: private_der.to_vec(), public_der: public_der.to_vec() }
    }

    /// Signs with another algorithm of the same kind of key.
    pub fn by(&self, algorithm: Algorithm) -> Self {
        Self { algorithm, ..Self::of(algorithm, self.key.clone(), &self.private_der, &self.public_der) }
    }

    /// A token with these claims, and without a `kid`.
    pub fn token(&self, claims: &Value) -> String {
        self.token_with(|_| (), claims)
    }

    /// A token whose header is changed.
    pub fn token_with(&self, change: impl FnOnce(&mut Header), claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        change(&mut header);
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }

    /// The secret of HMAC.
    pub fn secret(&self) -> &str {
        std::str::from_utf8(&self.private_der).unwrap()
    }

    pub fn public_pem(&self) -> String {
        pem("PUBLIC KEY", &self.public_der)
    }

    pub fn private_pem(&self) -> String {
        pem("PRIVATE KEY", &self.private_der)
    }

    /// The public key as a JWK that has these fields and nothing else beside those of the key itself.
    pub fn jwk(&self, fields: &Value) -> Value {
        let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&self.key, self.algorithm).unwrap()).unwrap();
        let entries = jwk.as_object_mut().unwrap();
        entries.remove("alg");
        entries.extend(fields.as_object().unwrap().clone());
        jwk
    }
}

/// A JWKS document.
pub fn jwks(keys: &[Value]) -> String {
    serde_json::to_string_pretty(&json!({ "keys": keys })).unwrap()
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// The claims of a token of ann's that is good for ten minutes, with changes. A claim that is null is left out.
pub fn claims(changes: &Value) -> Value {
    let mut claims = json!({ "sub": "ann", "exp": now() + 600 });
    let entries = claims.as_object_mut().unwrap();
    entries.extend(changes.as_object().unwrap().clone());
    entries.retain(|_, value| !value.is_null());
    claims
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

//! Files and documents of keys, as people and providers write them.

use jsonwebtoken::Algorithm;
use serde_json::json;

use super::super::tests::rsa;
use super::super::tests::signer::{Signer, jwks};
use super::*;

const PUBLIC: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

const SHORT_RSA: &str = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDrToXkzacxLptLFp14yhi5peVO
ZY4UoG6Rn6B/T8oh0+MbI/PydyjGT8TWQtX2MzFJmuwld2Lxpm9JZTUlall4+3go
niAghXJLwLVZ+WzOqfM89OwqY88mUuFnCwv5rzqbfJcvNQvew8+94mgHfCzG3YiJ
daiNx9nPwyfVL7gloQIDAQAB
-----END PUBLIC KEY-----
";

const P521: &str = "-----BEGIN PUBLIC KEY-----
MIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQBTzvzXpKIXl5HU48tcuAh8LwSUwds
3NO+wVXhjWaXqxEy0IUscDFXnY07IdAhLOT6y7shoL4g5KYFtAnLeDb+8lwASv8Z
zQRWdPtrR+8abBVxMtVwpXoyCfpYbgHyquEI+KCuRKVHuLuJmSCgTRdC/T6pU7BV
/xLGpWrKM3EOdE22gdc=
-----END PUBLIC KEY-----
";

fn mistake(content: &str, allowed: &[Algorithm]) -> String {
    Keys::of_file(content.as_bytes(), allowed).expect_err("no keys")
}

fn algorithms(keys: &Keys, kid: &str) -> Vec<Algorithm> {
    PUBLIC.into_iter().filter(|algorithm| keys.find(Some(kid), *algorithm).is_ok()).collect()
}

#[test]
fn a_file_may_hold_several_keys_in_pem_with_words_between_them() {
    let (ec, ed) = (Signer::new(Algorithm::ES384), Signer::new(Algorithm::EdDSA));
    let text =
        format!("\u{feff}# since May\r\n{}\nthe old one:\n{}{}", rsa().public_pem(), ec.public_pem(), ed.public_pem());
    let keys = Keys::of_file(text.as_bytes(), &PUBLIC).expect("good keys");
    assert_eq!(keys.len(), 3);
    assert_eq!(keys.find(None, Algorithm::PS512).map(|keys| keys.len()), Ok(1));
    assert_eq!(keys.find(None, Algorithm::ES384).map(|keys| keys.len()), Ok(1));
    assert_eq!(keys.find(None, Algorithm::ES256).err(), Some(NoKey::OtherAlgorithms));
}

#[test]
fn a_mistake_in_pem_is_named_with_its_line() {
    let good = Signer::new(Algorithm::ES256).public_pem();
    let line = good.lines().count() + 1;
    let torn = rsa().public_pem().replace("-----END PUBLIC KEY-----", "");
    for (bad, expected) in [
        (SHORT_RSA.to_owned(), "it is an RSA key of 1024 bits; between 2048 and 8192 are needed"),
        (P521.to_owned(), "it is not a key of RSA, of the curves P-256 or P-384"),
        (torn, "PUBLIC KEY begins here, and has no end"),
        (rsa().private_pem(), "it is a private key; a gateway only needs the public one"),
        (SHORT_RSA.replace("PUBLIC KEY", "CERTIFICATE"), "it is a certificate; take the key out of it"),
        (SHORT_RSA.replace("PUBLIC KEY", "PGP MESSAGE"), "PGP MESSAGE is not a public key"),
        (SHORT_RSA.replace("MIGf", "\u{e4}\u{e4}"), "PUBLIC KEY is not a public key"),
    ] {
        let told = mistake(&format!("{good}{bad}"), &PUBLIC);
        assert!(told.starts_with(&format!("line {line}: ")) && told.contains(expected), "{told}");
    }
    let told = mistake(&good, &[Algorithm::RS256]);
    assert_eq!(told, "line 1: it is for ES256, which jwt_algorithms does not allow");
}

#[test]
fn a_file_that_is_something_else_says_what_is_expected() {
    assert_eq!(mistake("", &PUBLIC), "it is empty");
    assert_eq!(mistake(" \n", &PUBLIC), "it is empty");
    assert!(mistake("s3cret-s3cret-s3cret-s3cret-s3cret", &PUBLIC).contains("set jwt_algorithms = \"HS256\""));
    assert_eq!(mistake("{\n\"keys\": [\n}", &PUBLIC), "line 3: it is not valid JSON, at column 1");
    for other in ["{}", "[]", "{\"keys\": {}}"] {
        assert_eq!(mistake(other, &PUBLIC), "line 1: it is not a JWKS document: it has no list of keys", "{other}");
    }
    assert_eq!(mistake("{\"keys\": []}", &PUBLIC), "it holds no key");
    let many = vec![rsa().jwk(&json!({})); 65];
    assert_eq!(mistake(&jwks(&many), &PUBLIC), "it holds 65 keys; at most 64 can be used");
    assert_eq!(Keys::of_file(jwks(&many[..64]).as_bytes(), &PUBLIC).map(|keys| keys.len()), Ok(64));
}

#[test]
fn a_secret_is_the_file_without_the_end_of_its_line_and_long_enough() {
    let secret = "0123456789abcdef0123456789abcdef";
    for content in [secret.to_owned(), format!("{secret}\n"), format!("{secret}\r\n")] {
        let keys = Keys::of_file(content.as_bytes(), &[Algorithm::HS256]).expect("a secret");
        let found = keys.find(None, Algorithm::HS256).expect("a key");
        assert_eq!(found[0].try_get_as_bytes().expect("a secret"), secret.as_bytes());
    }
    let short = mistake(&secret[1..], &[Algorithm::HS256]);
    assert_eq!(short, "the secret has 31 bytes; HS256 needs at least 32 (RFC 7518, section 3.2)");
    let short = mistake(secret, &[Algorithm::HS256, Algorithm::HS512]);
    assert_eq!(short, "the secret has 32 bytes; HS512 needs at least 64 (RFC 7518, section 3.2)");
    let binary = [0xff_u8; 32];
    assert!(Keys::of_file(&binary, &[Algorithm::HS256]).is_ok(), "a secret need not be text");
}

#[test]
fn a_document_of_secrets_needs_hmac_and_one_of_public_keys_does_not_have_it() {
    let hmac = Signer::new(Algorithm::HS256);
    let secrets = jwks(&[hmac.jwk(&json!({ "kid": "a" }))]);
    let keys = Keys::of_file(secrets.as_bytes(), &[Algorithm::HS256]).expect("a secret");
    let found = keys.find(Some("a"), Algorithm::HS256).expect("a key");
    assert_eq!(found[0].try_get_as_bytes().expect("a secret"), hmac.secret().as_bytes());
    let told = mistake(&secrets, &PUBLIC);
    assert!(
        told.contains("key 1 (\"a\"): it is for HS256, HS384, HS512, which jwt_algorithms does not allow"),
        "{told}"
    );
    let told = mistake(&jwks(&[rsa().jwk(&json!({ "kid": "a" }))]), &[Algorithm::HS256]);
    assert!(told.contains("jwt_algorithms does not allow"), "{told}");
    let short = mistake("{\"kty\":\"oct\",\"k\":\"czNjcmV0\"}", &[Algorithm::HS256]);
    assert!(short.contains("the secret has 6 bytes") && !short.contains("czNjcmV0"), "{short}");
}

/// The fields of a certificate, as providers publish them beside a key. They are not looked at.
fn certificate() -> serde_json::Value {
    json!({ "x5c": ["MIIDBzCCAe+gAwIBAgIJVGl0bGU="], "x5t": "rMxRVdY8gX5dA3oS6B9zZ0m0f0A" })
}

#[test]
fn the_documents_of_providers_can_be_read() {
    let with = |fields: serde_json::Value, more: &serde_json::Value| {
        let mut fields = fields;
        fields.as_object_mut().expect("fields").extend(more.as_object().expect("fields").clone());
        rsa().jwk(&fields)
    };
    let none = json!({});
    // Auth0: two keys of which the second comes next.
    let auth0 = jwks(&[
        with(
            json!({ "use": "sig", "alg": "RS256", "kid": "NjVBRjY5MDlCMUIwNzU4RTA2QzZFMDQ4QzQ2MDAyQjVDNjk1RTM2Qg" }),
            &certificate(),
        ),
        with(json!({ "use": "sig", "alg": "RS256", "kid": "wQ7nTz0Pj3vDq4xC8kR2m" }), &certificate()),
    ]);
    // Keycloak: a key for encryption beside the one for signatures, and an Ed25519 one.
    let keycloak = jwks(&[
        with(json!({ "use": "enc", "alg": "RSA-OAEP", "kid": "for-encryption", "x5t#S256": "abc" }), &certificate()),
        with(json!({ "use": "sig", "alg": "RS256", "kid": "for-signatures", "x5t#S256": "abc" }), &certificate()),
        Signer::new(Algorithm::EdDSA).jwk(&json!({ "use": "sig", "alg": "EdDSA", "kid": "ed" })),
    ]);
    // Google, and AWS Cognito.
    let google = jwks(&[with(
        json!({ "use": "sig", "alg": "RS256", "kid": "763f7c4cd26a1eb2b1b39a88f4434d1f4d9a368b" }),
        &none,
    )]);
    let cognito = jwks(&[with(json!({ "use": "sig", "alg": "RS256", "kid": "1234example=" }), &none)]);
    // Microsoft: no alg.
    let entra = jwks(&[with(
        json!({ "use": "sig", "kid": "entra", "issuer": "https://login.example/{tenantid}/v2.0" }),
        &certificate(),
    )]);
    // Apple-like: an EC key, and kinds that nobody here knows.
    let others = jwks(&[
        Signer::new(Algorithm::ES256).jwk(&json!({ "use": "sig", "alg": "ES256", "kid": "ec" })),
        json!({ "kty": "EC", "crv": "secp256k1", "kid": "k1", "x": "AAAA", "y": "AAAA" }),
        json!({ "kty": "EC", "crv": "P-521", "kid": "521", "x": "AAAA", "y": "AAAA" }),
        json!({ "kty": "OKP", "crv": "X25519", "kid": "x", "x": "AAAA" }),
        json!({ "kty": "AKP", "alg": "ML-DSA-44", "kid": "new", "pub": "AAAA" }),
        rsa().jwk(&json!({ "kid": "by-ops", "key_ops": ["verify"] })),
        rsa().jwk(&json!({ "kid": "by-other-ops", "key_ops": ["encrypt", "wrapKey"] })),
        rsa().jwk(&json!({ "kid": "private", "d": "AAAA" })),
        json!({ "kty": "RSA", "kid": "empty", "n": "", "e": "" }),
        json!("not a key"),
        json!(null),
    ]);
    let all_rsa = &PUBLIC[..6];
    for (document, kid, expected, ignored) in [
        (&auth0, "NjVBRjY5MDlCMUIwNzU4RTA2QzZFMDQ4QzQ2MDAyQjVDNjk1RTM2Qg", &PUBLIC[..1], 0),
        (&auth0, "wQ7nTz0Pj3vDq4xC8kR2m", &PUBLIC[..1], 0),
        (&keycloak, "for-signatures", &PUBLIC[..1], 1),
        (&keycloak, "for-encryption", &[], 1),
        (&keycloak, "ed", &PUBLIC[8..], 1),
        (&google, "763f7c4cd26a1eb2b1b39a88f4434d1f4d9a368b", &PUBLIC[..1], 0),
        (&cognito, "1234example=", &PUBLIC[..1], 0),
        (&entra, "entra", all_rsa, 0),
        (&others, "ec", &PUBLIC[6..7], 9),
        (&others, "by-ops", all_rsa, 9),
        (&others, "by-other-ops", &[], 9),
        (&others, "private", &[], 9),
    ] {
        let keys = Keys::of_jwks(document.as_bytes(), &PUBLIC).expect("a document");
        assert_eq!(algorithms(&keys, kid), expected, "{kid}");
        assert_eq!(keys.ignored().len(), ignored, "{:?}", keys.ignored());
    }
}

#[test]
fn a_document_without_any_key_that_can_be_used_says_why() {
    let told = mistake(&jwks(&[rsa().jwk(&json!({ "use": "enc", "kid": "e" })), json!({ "kty": "AKP" })]), &PUBLIC);
    assert_eq!(
        told,
        "it holds no key that can be used: key 1 (\"e\"): it is not for signatures; key 2: its kind is not supported"
    );
}

//! Tokens, good and bad, and how the check takes them.

use std::io::Write;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::super::{BindAttempt, Client, Token, TokenAuthenticator, TokenError};
use super::*;
use crate::config::{JwtAlgorithm, JwtAlgorithms, NonEmpty, OneOf};
use crate::message::Event;

#[path = "../../../tests/support/signer.rs"]
pub(super) mod signer;

use signer::{Signer, claims, jwks, now};

/// The key of most tests, made once.
pub(super) fn rsa() -> &'static Signer {
    static RSA: OnceLock<Signer> = OnceLock::new();
    RSA.get_or_init(|| Signer::new(Algorithm::RS256))
}

fn file(content: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(content.as_bytes()).expect("written");
    file
}

fn checks(content: &str, change: impl FnOnce(&mut Config)) -> JwtAuthenticator {
    let file = file(content);
    let mut config = Config { jwt_keys_file: Some(file.path().into()), ..Config::default() };
    change(&mut config);
    assert_eq!(config.validate(), Ok(()));
    JwtAuthenticator::from_config(&config).expect("good keys").expect("keys are set")
}

async fn problem(check: &JwtAuthenticator, token: &str) -> Option<JwtProblem> {
    check.check(token).await.err()
}

/// A token from a header and claims that no library would sign, with a signature of any kind.
fn forged(header: &Value, claims: &Value, signature: &str) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{signature}", part(header), part(claims))
}

#[tokio::test]
async fn each_algorithm_is_checked_with_its_key_and_no_other() {
    use Algorithm::{ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512};
    let hmac = |config: &mut Config| {
        let algorithms = [JwtAlgorithm::Hs256, JwtAlgorithm::Hs384, JwtAlgorithm::Hs512];
        config.jwt_algorithms = JwtAlgorithms::new(algorithms);
    };
    let other = Signer::new(RS256);
    for algorithm in [RS256, RS384, RS512, PS256, PS384, PS512] {
        let check = checks(&rsa().public_pem(), |_| ());
        assert_eq!(problem(&check, &rsa().by(algorithm).token(&claims(&json!({})))).await, None, "{algorithm:?}");
        let strange = other.by(algorithm).token(&claims(&json!({})));
        assert_eq!(problem(&check, &strange).await, Some(JwtProblem::Signature), "{algorithm:?}");
    }
    for algorithm in [ES256, ES384, EdDSA, HS256, HS384, HS512] {
        let (own, strange) = (Signer::new(algorithm), Signer::new(algorithm));
        let check = if algorithm.family() == jsonwebtoken::AlgorithmFamily::Hmac {
            checks(own.secret(), hmac)
        } else {
            checks(&own.public_pem(), |_| ())
        };
        assert_eq!(problem(&check, &own.token(&claims(&json!({})))).await, None, "{algorithm:?}");
        let strange = strange.token(&claims(&json!({})));
        assert_eq!(problem(&check, &strange).await, Some(JwtProblem::Signature), "{algorithm:?}");
    }
}

#[tokio::test]
async fn a_token_that_is_not_signed_is_refused() {
    let check = checks(&rsa().public_pem(), |_| ());
    for alg in ["none", "None", "NONE", "nOnE"] {
        for signature in ["", "AAAA"] {
            let token = forged(&json!({ "alg": alg, "typ": "JWT" }), &claims(&json!({})), signature);
            assert_eq!(problem(&check, &token).await, Some(JwtProblem::Unsigned), "{alg}");
        }
    }
    let good = rsa().token(&claims(&json!({})));
    let (unsigned, _) = good.rsplit_once('.').expect("three parts");
    assert_eq!(problem(&check, &format!("{unsigned}.")).await, Some(JwtProblem::Signature));
    assert_eq!(problem(&check, unsigned).await, Some(JwtProblem::NotAJwt));
}

#[tokio::test]
async fn a_public_key_is_no_secret_for_hmac() {
    let public = rsa().public_pem();
    let check = checks(&public, |_| ());
    for secret in [public.as_str(), public.trim_end(), &public.replace('\n', "")] {
        let key = EncodingKey::from_secret(secret.as_bytes()).expect("not empty");
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(&json!({})), &key).expect("signed");
        assert_eq!(problem(&check, &token).await, Some(JwtProblem::AlgorithmNotAllowed("HS256")));
    }
    // The other way round: where tokens are signed with a secret, a public key is not taken for one.
    let file = file(&public);
    let algorithms = JwtAlgorithms::new([JwtAlgorithm::Hs256]);
    let config = Config { jwt_keys_file: Some(file.path().into()), jwt_algorithms: algorithms, ..Config::default() };
    let error = JwtAuthenticator::from_config(&config).expect_err("no secret").to_string();
    assert!(error.contains("line 1: it holds a key in PEM; jwt_algorithms names HMAC"), "{error}");
}

#[tokio::test]
async fn only_what_the_settings_allow_is_checked() {
    let check = checks(&rsa().public_pem(), |config| {
        config.jwt_algorithms = JwtAlgorithms::new([JwtAlgorithm::Rs512, JwtAlgorithm::EdDsa]);
    });
    let by = |algorithm| rsa().by(algorithm).token(&claims(&json!({})));
    assert_eq!(problem(&check, &by(Algorithm::RS512)).await, None);
    assert_eq!(problem(&check, &by(Algorithm::RS256)).await, Some(JwtProblem::AlgorithmNotAllowed("RS256")));
    let ed = Signer::new(Algorithm::EdDSA).token(&claims(&json!({})));
    assert_eq!(problem(&check, &ed).await, Some(JwtProblem::NoKeyForAlgorithm("EdDSA")));
}

#[tokio::test]
async fn a_key_that_the_token_brings_along_is_not_used() {
    let check = checks(&rsa().public_pem(), |_| ());
    let thief = Signer::new(Algorithm::RS256);
    let brought = thief.token_with(
        |header| {
            header.jwk = serde_json::from_value(thief.jwk(&json!({}))).expect("a JWK");
            header.jku = Some("https://thief.example/jwks.json".to_owned());
            header.x5u = Some("https://thief.example/cert.pem".to_owned());
        },
        &claims(&json!({})),
    );
    assert_eq!(problem(&check, &brought).await, Some(JwtProblem::Signature));
}

#[tokio::test]
async fn a_kid_chooses_among_the_keys_and_is_nothing_but_a_name() {
    let (one, two) = (Signer::new(Algorithm::ES256), Signer::new(Algorithm::ES256));
    let document = jwks(&[one.jwk(&json!({ "kid": "one" })), two.jwk(&json!({ "kid": "two" }))]);
    let check = checks(&document, |_| ());
    let with =
        |signer: &Signer, kid: &str| signer.token_with(|header| header.kid = Some(kid.to_owned()), &claims(&json!({})));
    assert_eq!(problem(&check, &with(&one, "one")).await, None);
    assert_eq!(problem(&check, &with(&two, "two")).await, None);
    assert_eq!(problem(&check, &with(&two, "one")).await, Some(JwtProblem::Signature));
    assert_eq!(problem(&check, &two.token(&claims(&json!({})))).await, None, "without a kid, each key may be meant");
    let path = std::env::current_exe().expect("a path").display().to_string();
    for kid in ["three", "", "ONE", "../../../../dev/null", &path, "' OR '1'='1", "one\0", "https://thief.example/"] {
        assert_eq!(problem(&check, &with(&one, kid)).await, Some(JwtProblem::UnknownKid), "{kid:?}");
    }
    let number = forged(&json!({ "alg": "ES256", "kid": 1 }), &claims(&json!({})), "AAAA");
    assert_eq!(problem(&check, &number).await, Some(JwtProblem::NotAJwt));
    // A key in PEM has no kid, and issuers name theirs all the same.
    let check = checks(&one.public_pem(), |_| ());
    assert_eq!(problem(&check, &with(&one, "one")).await, None);
}

#[tokio::test]
async fn a_changed_token_is_refused() {
    let check = checks(&rsa().public_pem(), |_| ());
    let token = rsa().token(&claims(&json!({})));
    let parts: Vec<_> = token.split('.').collect();
    let payload = URL_SAFE_NO_PAD.encode(claims(&json!({ "sub": "root" })).to_string());
    let changed = format!("{}.{payload}.{}", parts[0], parts[2]);
    assert_eq!(problem(&check, &changed).await, Some(JwtProblem::Signature));
    for not_a_jwt in [
        "",
        ".",
        "..",
        "...",
        "ann",
        "a.b.c",
        &format!("{token}."),
        &format!(" {token}"),
        &format!("{token}="),
        &token.replacen('.', "..", 1),
        &"x".repeat(Token::BYTES_MAX),
        &format!("{}.{}.AAAA", "A".repeat(8000), "A".repeat(8000)),
        &format!("{}.e30.AAAA", URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"RS256\",\"x\":{}", "[".repeat(10_000)))),
    ] {
        assert_eq!(problem(&check, not_a_jwt).await, Some(JwtProblem::NotAJwt), "{not_a_jwt:.80}");
    }
    let filled = |bytes: usize| rsa().token(&claims(&json!({ "groups": "g".repeat(bytes) })));
    assert_eq!(problem(&check, &filled(11_000)).await, None);
    assert_eq!(problem(&check, &filled(13_000)).await, Some(JwtProblem::TooLong));
    assert_eq!(problem(&check, &"x.".repeat(1 << 20)).await, Some(JwtProblem::TooLong));
    assert_eq!(problem(&check, "a.b.c.d.e").await, Some(JwtProblem::Encrypted));
    for alg in ["ES512", "ES256K", "RSA-OAEP", "dir", ""] {
        let token = forged(&json!({ "alg": alg }), &claims(&json!({})), "AAAA");
        assert_eq!(problem(&check, &token).await, Some(JwtProblem::UnsupportedAlgorithm), "{alg}");
    }
    // An extension that must be understood, and is not.
    let critical = rsa().token_with(|header| header.crit = Some(vec!["exp".to_owned()]), &claims(&json!({})));
    assert_eq!(problem(&check, &critical).await, Some(JwtProblem::NotAJwt));
}

proptest::proptest! {
    #[test]
    fn no_character_of_a_token_can_be_changed(place: proptest::sample::Index, to in "[A-Za-z0-9_.=+/ -]") {
        static SIGNER: OnceLock<(JwtAuthenticator, String)> = OnceLock::new();
        let (check, token) = SIGNER.get_or_init(|| {
            let signer = Signer::new(Algorithm::ES256);
            (checks(&signer.public_pem(), |_| ()), signer.token(&claims(&json!({}))))
        });
        let place = place.index(token.len());
        let changed = format!("{}{to}{}", &token[..place], &token[place + 1..]);
        let checked = futures_util::FutureExt::now_or_never(check.check(&changed)).expect("a file's keys are at hand");
        proptest::prop_assert_eq!(checked.is_ok(), changed == *token);
    }
}

#[tokio::test]
async fn a_token_is_good_between_its_times_and_the_leeway_around_them() {
    let check = checks(&rsa().public_pem(), |_| ());
    let millisecond_exp = (now() + 600) * 1000;
    for (changes, expected) in [
        (json!({ "exp": now() - 20 }), None),
        (json!({ "exp": now() - 40 }), Some(JwtProblem::Expired)),
        (json!({ "exp": 0 }), Some(JwtProblem::Expired)),
        (json!({ "nbf": now() + 20 }), None),
        (json!({ "nbf": now() + 60 }), Some(JwtProblem::NotYetValid)),
        (json!({ "exp": null }), Some(JwtProblem::MissingClaim("exp"))),
        (json!({ "exp": (now() + 600).to_string() }), Some(JwtProblem::MissingClaim("exp"))),
        (json!({ "exp": -1 }), Some(JwtProblem::MissingClaim("exp"))),
        (json!({ "exp": [now() + 600] }), Some(JwtProblem::NotAJwt)),
        (json!({ "nbf": "soon" }), Some(JwtProblem::MalformedClaim("nbf"))),
        (json!({ "exp": millisecond_exp }), Some(JwtProblem::ExpNotSeconds)),
        (json!({ "exp": u64::MAX }), Some(JwtProblem::ExpNotSeconds)),
        (json!({ "exp": 253_402_300_799_u64 }), None),
    ] {
        assert_eq!(problem(&check, &rsa().token(&claims(&changes))).await, expected, "{changes}");
    }
    let exp = now() + 600;
    let grant = check.check(&rsa().token(&claims(&json!({ "exp": exp as f64 + 0.5 })))).await.expect("good");
    let expected = SystemTime::UNIX_EPOCH + Duration::from_secs(exp + 30) + Duration::from_millis(500);
    assert_eq!(grant.expires_at(), expected, "the leeway counts for the end too");
}

#[tokio::test]
async fn issuer_and_audience_must_be_those_of_the_settings() {
    let limited = checks(&rsa().public_pem(), |config| {
        config.jwt_issuer = Some(OneOf::new(["https://issuer/"]));
        config.jwt_audience = Some(OneOf::new(["push", "chat"]));
    });
    let free = checks(&rsa().public_pem(), |_| ());
    let both = |iss: &str, aud: Value| json!({ "iss": iss, "aud": aud });
    for (changes, with_limits, without) in [
        (both("https://issuer/", json!("push")), None, Some(JwtProblem::AudienceNotSet)),
        (both("https://issuer/", json!(["other", "chat"])), None, Some(JwtProblem::AudienceNotSet)),
        (both("https://issuer", json!("push")), Some(JwtProblem::Issuer), Some(JwtProblem::AudienceNotSet)),
        (both("https://issuer/", json!("other")), Some(JwtProblem::Audience), Some(JwtProblem::AudienceNotSet)),
        (both("https://issuer/", json!([])), Some(JwtProblem::Audience), Some(JwtProblem::AudienceNotSet)),
        (
            both("https://issuer/", json!({ "push": 1 })),
            Some(JwtProblem::MissingClaim("aud")),
            Some(JwtProblem::MalformedClaim("aud")),
        ),
        (both("https://issuer/", json!(null)), Some(JwtProblem::MissingClaim("aud")), None),
        (json!({ "aud": "push" }), Some(JwtProblem::MissingClaim("iss")), Some(JwtProblem::AudienceNotSet)),
        (json!({ "iss": 7, "aud": "push" }), Some(JwtProblem::MissingClaim("iss")), Some(JwtProblem::AudienceNotSet)),
    ] {
        let token = rsa().token(&claims(&changes));
        assert_eq!(problem(&limited, &token).await, with_limits, "{changes}");
        assert_eq!(problem(&free, &token).await, without, "{changes}");
    }
}

#[tokio::test]
async fn the_user_is_the_claim_that_the_settings_name() {
    let check = checks(&rsa().public_pem(), |config| config.jwt_user_claim = "https://x/user".to_owned());
    let user = async |value: Value| {
        let grant = check.check(&rsa().token(&claims(&json!({ "https://x/user": value })))).await;
        grant.map(|grant| grant.user_id().as_str().to_owned())
    };
    assert_eq!(user(json!("bob")).await, Ok("bob".to_owned()));
    assert_eq!(user(json!(4711)).await, Ok("4711".to_owned()));
    assert_eq!(user(json!(null)).await, Err(JwtProblem::NoUser));
    for not_a_user in [json!(""), json!("x".repeat(4097)), json!(1.5), json!(true), json!(["bob"]), json!({})] {
        assert_eq!(user(not_a_user.clone()).await, Err(JwtProblem::NotAUser), "{not_a_user}");
    }
}

#[tokio::test]
async fn a_token_binds_only_the_events_that_its_claim_allows() {
    let limited = checks(&rsa().public_pem(), |config| config.jwt_events_claim = NonEmpty::new("events"));
    let free = checks(&rsa().public_pem(), |_| ());
    let bound = async |check: &JwtAuthenticator, changes: Value, event: &str| {
        let (token, event) = (Token::new(rsa().token(&claims(&changes))), Event::new(event).expect("valid"));
        let client = Client { peer: ([127, 0, 0, 1], 1).into(), shown: None };
        check.authenticate(&BindAttempt::new(&token, &event, &client)).await.map(drop)
    };
    for (events, event, expected) in [
        (json!(["mail", "chat.*"]), "mail", Ok(())),
        (json!(["mail", "chat.*"]), "chat.room-7", Ok(())),
        (json!(["mail", "chat.*"]), "mail.inbox", Err(TokenError::NotAllowed)),
        (json!(["a b"]), "a b", Ok(())),
        (json!("mail chat.*"), "chat.7", Ok(())),
        (json!("mail chat.*"), "log", Err(TokenError::NotAllowed)),
        (json!("*"), "log", Ok(())),
        (json!([]), "mail", Err(TokenError::NotAllowed)),
        (json!(""), "mail", Err(TokenError::NotAllowed)),
        (json!(null), "mail", Err(TokenError::NotAllowed)),
        (json!([7]), "mail", Err(TokenError::Refused)),
        (json!(true), "mail", Err(TokenError::Refused)),
    ] {
        assert_eq!(bound(&limited, json!({ "events": events }), event).await, expected, "{events} {event}");
        assert_eq!(bound(&free, json!({ "events": events }), event).await, Ok(()), "{events} {event}");
    }
}

#[tokio::test]
async fn a_reload_takes_effect_and_a_bad_one_does_not() {
    let (old, new) = (Signer::new(Algorithm::ES256), Signer::new(Algorithm::ES256));
    let file = file(&old.public_pem());
    let config = Config { jwt_keys_file: Some(file.path().into()), ..Config::default() };
    let check = JwtAuthenticator::from_config(&config).expect("good keys").expect("keys are set");
    let (old_token, new_token) = (old.token(&claims(&json!({}))), new.token(&claims(&json!({}))));
    assert_eq!(problem(&check, &new_token).await, Some(JwtProblem::Signature));
    std::fs::write(file.path(), old.public_pem() + &new.public_pem()).expect("written");
    check.reload().await.expect("good keys");
    assert_eq!((problem(&check, &old_token).await, problem(&check, &new_token).await), (None, None));
    std::fs::write(file.path(), new.public_pem()).expect("written");
    check.reload().await.expect("good keys");
    assert_eq!(problem(&check, &old_token).await, Some(JwtProblem::Signature));
    std::fs::write(file.path(), "gone").expect("written");
    check.reload().await.expect_err("no keys");
    std::fs::remove_file(file.path()).expect("removed");
    check.reload().await.expect_err("no file");
    assert_eq!(problem(&check, &new_token).await, None);
}

#[test]
fn debug_output_holds_no_secret() {
    let secret = "s3cret-s3cret-s3cret-s3cret-s3cret";
    let check = checks(secret, |config| config.jwt_algorithms = JwtAlgorithms::new([JwtAlgorithm::Hs256]));
    let (text, bytes) = (format!("{check:?}"), format!("{:?}", secret.as_bytes()));
    assert!(!text.contains("s3cret") && !text.contains(bytes.trim_matches(['[', ']'])), "{text}");
}

//! A token as it comes, and claims that the provider has signed: whoever it names is the one that is let in.

#![no_main]

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use jsonwebtoken::{EncodingKey, Header};
use libfuzzer_sys::fuzz_target;
use pushgate::{Config, JwtAlgorithm, JwtAlgorithms, JwtAuthenticator};
use serde_json::Value;
use tokio::runtime::Builder;

const SECRET: &str = "the secret of nobody but this fuzz target";

const LEEWAY: Duration = Duration::from_secs(30);

fn check(token: &str) -> Option<pushgate::JwtGrant> {
    static CHECK: OnceLock<JwtAuthenticator> = OnceLock::new();
    let check = CHECK.get_or_init(|| {
        let keys = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(keys.path(), SECRET).expect("written");
        let config = Config {
            jwt_keys_file: Some(keys.path().into()),
            jwt_algorithms: JwtAlgorithms::new([JwtAlgorithm::Hs256]),
            jwt_leeway: LEEWAY,
            ..Config::default()
        };
        JwtAuthenticator::from_config(&config).expect("a secret").expect("keys are set")
    });
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(check.check(token)).ok()
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // Nobody who does not know the secret is let in.
    assert!(check(text).is_none(), "forged");
    let Ok(claims) = serde_json::from_str::<Value>(text) else { return };
    let key = EncodingKey::from_secret(SECRET.as_bytes()).expect("a secret");
    let token = jsonwebtoken::encode(&Header::default(), &claims, &key).expect("JSON can be signed");
    if let Some(grant) = check(&token) {
        let named = claims["sub"].as_str().map_or_else(|| claims["sub"].to_string(), str::to_owned);
        assert_eq!(named, grant.user_id().as_str());
        assert!(grant.expires_at() > SystemTime::now(), "{claims}");
    }
});

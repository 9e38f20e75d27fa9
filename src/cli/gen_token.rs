//! `pushgate gen-token`: signs JWTs for tests, and for deployments that have no other issuer.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use jsonwebtoken::{Algorithm, AlgorithmFamily, EncodingKey, Header};
use pushgate::{Config, JwtAlgorithm};
use serde_json::{Map, Value};

use super::{Outcome, Settings};

#[derive(Args)]
pub(super) struct GenToken {
    /// The user whose token it is
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    user: String,
    /// A pattern of events that the token may bind, if jwt_events_claim is set; repeat the flag for several
    #[arg(long = "event", value_name = "PATTERN")]
    events: Vec<String>,
    /// How long the token is good
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    expires_in: Duration,
    /// The file of the private key (PEM, PKCS #8) or secret that signs it [default: jwt_keys_file, if it is a secret]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The algorithm [default: the first of jwt_algorithms that the key is for]
    #[arg(long, value_name = "NAME", value_parser = algorithm)]
    algorithm: Option<JwtAlgorithm>,
    /// The kid of the key, if the gateway knows several
    #[arg(long, value_name = "KID")]
    kid: Option<String>,
    /// A further claim; the value is JSON, or else taken as text
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = claim)]
    claims: Vec<(String, Value)>,
    #[command(flatten)]
    settings: Settings,
}

impl GenToken {
    pub(super) fn run(mut self) -> Outcome {
        let config = std::mem::take(&mut self.settings).load()?.config;
        let algorithms = match self.algorithm {
            Some(algorithm) => vec![algorithm],
            None => config.jwt_algorithms.as_slice().to_vec(),
        };
        let are_hmac = algorithms.iter().all(|algorithm| algorithm.is_hmac());
        let file = match (&self.key, &config.jwt_keys_file) {
            (Some(file), _) => file,
            (None, Some(file)) if are_hmac => file,
            (None, Some(_)) => return Err("what signs tokens is not in jwt_keys_file, which has public keys; give the private key with --key FILE".into()),
            (None, None) => return Err("there is nothing to sign with: give a private key or a secret with --key FILE, or set jwt_keys_file to a secret".into()),
        };
        let content = std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        let claims = self.claims(&config)?;
        let token = self.sign(&claims, &content, &algorithms, file)?;
        super::print::product(format!("{token}\n").as_bytes())
    }

    fn claims(&self, config: &Config) -> Result<Map<String, Value>, String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut claims = Map::new();
        claims.insert(config.jwt_user_claim.clone(), self.user.clone().into());
        claims.insert("iat".to_owned(), now.as_secs().into());
        claims.insert("exp".to_owned(), now.saturating_add(self.expires_in).as_secs().into());
        for (name, values) in [("iss", &config.jwt_issuer), ("aud", &config.jwt_audience)] {
            if let Some(first) = values.as_ref().and_then(|values| values.as_slice().first()) {
                claims.insert(name.to_owned(), first.clone().into());
            }
        }
        match &config.jwt_events_claim {
            Some(_) if self.events.is_empty() => {
                return Err("jwt_events_claim is set, so a token without --event PATTERN could bind nothing".to_owned());
            }
            Some(claim) => {
                claims.insert(claim.as_str().to_owned(), self.events.clone().into());
            }
            None if !self.events.is_empty() => {
                return Err("a token is not limited to events, because jwt_events_claim is not set".to_owned());
            }
            None => {}
        }
        claims.extend(self.claims.iter().cloned());
        Ok(claims)
    }

    /// Signs with the first of the algorithms that the key is for.
    fn sign(
        &self,
        claims: &Map<String, Value>,
        content: &[u8],
        algorithms: &[JwtAlgorithm],
        file: &Path,
    ) -> Result<String, String> {
        for algorithm in algorithms {
            let Ok(algorithm) = algorithm.name().parse() else { continue };
            let Some(key) = key(content, algorithm) else { continue };
            let header = Header { kid: self.kid.clone(), ..Header::new(algorithm) };
            if let Ok(token) = jsonwebtoken::encode(&header, claims, &key) {
                return Ok(token);
            }
        }
        let names: Vec<_> = algorithms.iter().map(|algorithm| algorithm.name()).collect();
        let (file, names) = (file.display(), names.join(", "));
        if content.windows(14).any(|window| window == b"EC PRIVATE KEY") {
            return Err(format!("{file} is not in PKCS #8; make it so: openssl pkcs8 -topk8 -nocrypt -in {file}"));
        }
        Err(format!("{file} has no key that signs with {names}; --algorithm NAME chooses another algorithm"))
    }
}

/// The key of a file, if it can be one for this algorithm.
fn key(content: &[u8], algorithm: Algorithm) -> Option<EncodingKey> {
    match algorithm.family() {
        AlgorithmFamily::Rsa => EncodingKey::from_rsa_pem(content).ok(),
        AlgorithmFamily::Ec => EncodingKey::from_ec_pem(content).ok(),
        AlgorithmFamily::Ed => EncodingKey::from_ed_pem(content).ok(),
        AlgorithmFamily::Hmac => {
            let secret = content.trim_ascii_end();
            let is_another = secret.starts_with(b"{") || secret.starts_with(b"-----BEGIN ");
            EncodingKey::from_secret(secret).ok().filter(|_| !is_another)
        }
    }
}

fn algorithm(name: &str) -> Result<JwtAlgorithm, String> {
    JwtAlgorithm::named(name).ok_or_else(|| "there is no such algorithm".to_owned())
}

fn claim(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("it must be NAME=VALUE")?;
    Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

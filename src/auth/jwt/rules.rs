//! What a JWT must fulfil, and what it then grants.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, Header, Validation};
use serde_json::{Map, Value};
use wildmatch::WildMatch;

use super::super::{Identity, Method, PushScope, Token};
use super::keys::{Keys, NoKey};
use super::problem::JwtProblem;
use crate::config::{JwtAlgorithm, JwtSettings};
use crate::message::{Event, UserId};

/// The last second of the year 9999. A later `exp` is a mistake, usually one of units.
const EXP_MAX: u64 = 253_402_300_799;

/// What the settings ask of a token.
#[derive(Debug)]
pub(super) struct Rules {
    algorithms: Vec<Algorithm>,
    /// Without its algorithm, which is each token's own.
    validation: Validation,
    user_claim: String,
    users_claim: Option<String>,
    events_claim: Option<String>,
    methods_claim: Option<String>,
    leeway: Duration,
}

/// What a valid JWT grants.
#[derive(Clone, Debug, PartialEq)]
pub struct JwtGrant {
    user_id: UserId,
    /// Of a caller: whom it may push to, and how.
    users: Option<Vec<WildMatch>>,
    events: Option<Vec<WildMatch>>,
    methods: Option<Vec<String>>,
    expires_at: SystemTime,
    token_id: Option<String>,
    issued_at: Option<SystemTime>,
}

impl JwtGrant {
    /// Who the client is.
    #[must_use]
    pub fn user_id(&self) -> &UserId {
        &self.user_id
    }

    /// When the bindings end: `exp` and `jwt_leeway`.
    #[must_use]
    pub fn expires_at(&self) -> SystemTime {
        self.expires_at
    }

    /// The `jti`, by which the token can be revoked, if it has one.
    #[must_use]
    pub fn token_id(&self) -> Option<&str> {
        self.token_id.as_deref()
    }

    /// The `iat`, if it has one that can be right: a number, and not in the future by more than `jwt_leeway`.
    #[must_use]
    pub fn issued_at(&self) -> Option<SystemTime> {
        self.issued_at
    }

    /// The patterns of the events that the client may bind. `None` for all events.
    #[must_use]
    pub fn events(&self) -> Option<Vec<String>> {
        self.events.as_ref().map(|patterns| patterns.iter().map(WildMatch::pattern).collect())
    }

    /// Whether the client may bind this event.
    #[must_use]
    pub fn allows(&self, event: &Event) -> bool {
        let events = self.events.as_ref();
        events.is_none_or(|patterns| patterns.iter().any(|pattern| pattern.matches(event.as_str())))
    }

    pub(super) fn into_identity(self) -> Identity {
        let Self { user_id, expires_at, token_id, issued_at, .. } = self;
        Identity { token_id, issued_at, ..Identity::new(user_id).expiring_at(expires_at) }
    }

    /// What a caller may do.
    pub(in super::super) fn into_scope(self) -> PushScope {
        let any = || vec![WildMatch::new("*")];
        let scope =
            PushScope::matching(self.user_id.as_str(), self.users.unwrap_or_else(any), self.events.unwrap_or_else(any));
        match self.methods {
            None => scope,
            // A later version may have more methods.
            Some(names) => scope.only_with(&names.iter().filter_map(|name| Method::named(name)).collect::<Vec<_>>()),
        }
    }
}

impl Rules {
    pub(super) fn new(settings: &JwtSettings<'_>) -> Self {
        let mut validation = Validation::default();
        let mut required = HashSet::from(["exp".to_owned()]);
        validation.leeway = settings.leeway.as_secs();
        validation.validate_nbf = true;
        if let Some(issuers) = settings.issuer {
            validation.set_issuer(issuers.as_slice());
            required.insert("iss".to_owned());
        }
        if let Some(audiences) = settings.audience {
            validation.set_audience(audiences.as_slice());
            required.insert("aud".to_owned());
        }
        validation.required_spec_claims = required;
        Self {
            algorithms: settings.algorithms.as_slice().iter().copied().map(of_setting).collect(),
            validation,
            user_claim: settings.subject.1.to_owned(),
            users_claim: settings.users_claim.map(|claim| claim.as_str().to_owned()),
            events_claim: settings.events_claim.map(|claim| claim.as_str().to_owned()),
            methods_claim: settings.methods_claim.map(|claim| claim.as_str().to_owned()),
            leeway: settings.leeway,
        }
    }

    pub(super) fn algorithms(&self) -> &[Algorithm] {
        &self.algorithms
    }

    pub(super) fn check(&self, token: &str, keys: &Keys) -> Result<JwtGrant, JwtProblem> {
        let header = header(token)?;
        let name = name(header.alg);
        if !self.algorithms.contains(&header.alg) {
            return Err(JwtProblem::AlgorithmNotAllowed(name));
        }
        let keys = keys.find(header.kid.as_deref(), header.alg).map_err(|none| match none {
            NoKey::UnknownKid => JwtProblem::UnknownKid,
            NoKey::OtherAlgorithms => JwtProblem::NoKeyForAlgorithm(name),
        })?;
        // Nothing but the algorithm that the key was found for, whatever else is allowed.
        let validation = Validation { algorithms: vec![header.alg], ..self.validation.clone() };
        let mut result = Err(JwtProblem::Signature);
        for key in keys {
            result = jsonwebtoken::decode(token, key, &validation).map(|data| data.claims).map_err(JwtProblem::from);
            if result != Err(JwtProblem::Signature) {
                break;
            }
        }
        match result {
            Ok(claims) => self.grant(&claims),
            Err(JwtProblem::Audience) if validation.aud.is_none() => Err(JwtProblem::AudienceNotSet),
            Err(problem) => Err(problem),
        }
    }

    fn grant(&self, claims: &Map<String, Value>) -> Result<JwtGrant, JwtProblem> {
        let user_id = user_id(claims.get(&self.user_claim).ok_or(JwtProblem::NoUser)?)?;
        // A claim that is not there grants nothing.
        let limit = |claim: &Option<String>, problem: JwtProblem| match claim {
            None => Ok(None),
            Some(claim) => claims.get(claim).map_or(Some(Vec::new()), texts).map(Some).ok_or(problem),
        };
        let token_id = claims.get("jti").and_then(Value::as_str).map(str::to_owned);
        // One in the future, or in milliseconds, would escape every revocation of its user.
        let issued_at = issued_at(claims).filter(|at| *at <= SystemTime::now() + self.leeway);
        let patterns = |texts: Vec<String>| texts.iter().map(|text| WildMatch::new(text)).collect();
        let users = limit(&self.users_claim, JwtProblem::NotUsers)?.map(patterns);
        let events = limit(&self.events_claim, JwtProblem::NotEvents)?.map(patterns);
        let methods = limit(&self.methods_claim, JwtProblem::NotMethods)?;
        let expires_at = expires_at(claims)? + self.leeway;
        Ok(JwtGrant { user_id, users, events, methods, expires_at, token_id, issued_at })
    }
}

/// Reads the header, or tells what the token is instead of a JWT that could be checked.
fn header(token: &str) -> Result<Header, JwtProblem> {
    if token.len() > Token::BYTES_MAX {
        return Err(JwtProblem::TooLong);
    }
    match token.split('.').count() {
        3 => {}
        5 => return Err(JwtProblem::Encrypted),
        _ => return Err(JwtProblem::NotAJwt),
    }
    jsonwebtoken::decode_header(token).map_err(|_| unreadable(token).unwrap_or(JwtProblem::NotAJwt))
}

fn unreadable(token: &str) -> Option<JwtProblem> {
    let header: Map<String, Value> =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').next()?).ok()?).ok()?;
    let algorithm = header.get("alg")?.as_str()?;
    if algorithm.eq_ignore_ascii_case("none") {
        return Some(JwtProblem::Unsigned);
    }
    algorithm.parse::<Algorithm>().is_err().then_some(JwtProblem::UnsupportedAlgorithm)
}

fn user_id(claim: &Value) -> Result<UserId, JwtProblem> {
    let text = match claim {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_i64() || number.is_u64() => number.to_string(),
        _ => return Err(JwtProblem::NotAUser),
    };
    UserId::new(text).map_err(|_| JwtProblem::NotAUser)
}

/// A list of texts, or a text of them with spaces between.
fn texts(claim: &Value) -> Option<Vec<String>> {
    match claim {
        Value::String(text) => Some(text.split_ascii_whitespace().map(ToOwned::to_owned).collect()),
        Value::Array(texts) => texts.iter().map(|text| text.as_str().map(ToOwned::to_owned)).collect(),
        _ => None,
    }
}

fn expires_at(claims: &Map<String, Value>) -> Result<SystemTime, JwtProblem> {
    let claim = claims.get("exp").ok_or(JwtProblem::MissingClaim("exp"))?;
    let exp = claim.as_f64().ok_or(JwtProblem::MalformedClaim("exp"))?;
    let exp = Duration::try_from_secs_f64(exp).map_err(|_| JwtProblem::ExpNotSeconds)?;
    if exp.as_secs() > EXP_MAX {
        return Err(JwtProblem::ExpNotSeconds);
    }
    Ok(SystemTime::UNIX_EPOCH + exp)
}

fn issued_at(claims: &Map<String, Value>) -> Option<SystemTime> {
    let iat = Duration::try_from_secs_f64(claims.get("iat")?.as_f64()?).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(iat)
}

/// The library's algorithm for one of the settings.
fn of_setting(algorithm: JwtAlgorithm) -> Algorithm {
    match algorithm {
        JwtAlgorithm::Hs256 => Algorithm::HS256,
        JwtAlgorithm::Hs384 => Algorithm::HS384,
        JwtAlgorithm::Hs512 => Algorithm::HS512,
        JwtAlgorithm::Rs256 => Algorithm::RS256,
        JwtAlgorithm::Rs384 => Algorithm::RS384,
        JwtAlgorithm::Rs512 => Algorithm::RS512,
        JwtAlgorithm::Ps256 => Algorithm::PS256,
        JwtAlgorithm::Ps384 => Algorithm::PS384,
        JwtAlgorithm::Ps512 => Algorithm::PS512,
        JwtAlgorithm::Es256 => Algorithm::ES256,
        JwtAlgorithm::Es384 => Algorithm::ES384,
        JwtAlgorithm::EdDsa => Algorithm::EdDSA,
    }
}

/// The name of the library's algorithm.
fn name(algorithm: Algorithm) -> &'static str {
    JwtAlgorithm::named(&format!("{algorithm:?}")).map_or("an unknown algorithm", JwtAlgorithm::name)
}

//! The kinds of settings for tokens that are JWTs, and which settings of the token check go together.

use std::fmt;
use std::path::Path;

use super::value::{Value, quoted};
use super::{Config, Mistake};

/// An algorithm that signs JWTs, by its name in RFC 7518 and RFC 8037.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum JwtAlgorithm {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

impl JwtAlgorithm {
    /// Every algorithm with its name.
    const ALL: [(Self, &str); 12] = [
        (Self::Hs256, "HS256"),
        (Self::Hs384, "HS384"),
        (Self::Hs512, "HS512"),
        (Self::Rs256, "RS256"),
        (Self::Rs384, "RS384"),
        (Self::Rs512, "RS512"),
        (Self::Ps256, "PS256"),
        (Self::Ps384, "PS384"),
        (Self::Ps512, "PS512"),
        (Self::Es256, "ES256"),
        (Self::Es384, "ES384"),
        (Self::EdDsa, "EdDSA"),
    ];

    /// Finds an algorithm by its name, in any letter case.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| known.eq_ignore_ascii_case(name)).map(|(algorithm, _)| *algorithm)
    }

    /// The name in a JWT's header.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(known, _)| *known == self).map_or("", |(_, name)| name)
    }

    /// Whether it signs with a secret that also checks, and not with a pair of keys.
    #[must_use]
    pub fn is_hmac(self) -> bool {
        matches!(self, Self::Hs256 | Self::Hs384 | Self::Hs512)
    }
}

/// The algorithms that may sign a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtAlgorithms(Vec<JwtAlgorithm>);

impl JwtAlgorithms {
    /// Allows these algorithms. [`Config::validate`] refuses HMAC beside others.
    pub fn new(algorithms: impl IntoIterator<Item = JwtAlgorithm>) -> Self {
        Self(algorithms.into_iter().collect())
    }

    /// The algorithms, in the order in which they were given.
    #[must_use]
    pub fn as_slice(&self) -> &[JwtAlgorithm] {
        &self.0
    }

    fn are_of_one_kind(&self) -> bool {
        let Some(first) = self.0.first() else { return false };
        self.0.iter().all(|algorithm| algorithm.is_hmac() == first.is_hmac())
    }
}

impl Default for JwtAlgorithms {
    /// All that sign with a pair of keys.
    fn default() -> Self {
        let all = JwtAlgorithm::ALL.iter().map(|(algorithm, _)| *algorithm);
        Self(all.filter(|algorithm| !algorithm.is_hmac()).collect())
    }
}

impl fmt::Display for JwtAlgorithms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|algorithm| algorithm.name()).collect();
        f.write_str(&names.join(", "))
    }
}

impl Value for JwtAlgorithms {
    fn from_toml(raw: &toml::Value) -> Result<Self, String> {
        let named: Option<Vec<_>> = raw.as_str().and_then(|text| elements(text).map(JwtAlgorithm::named).collect());
        named.filter(|named| !named.is_empty()).map(Self).ok_or_else(|| {
            let all: Vec<_> = JwtAlgorithm::ALL.iter().map(|(_, name)| *name).collect();
            format!(
                "must be a list of algorithms, such as \"RS256, ES256\", from {}; none is never allowed",
                all.join(", ")
            )
        })
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}

/// Values of which one must match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneOf(Vec<String>);

impl OneOf {
    /// Accepts these values.
    pub fn new<S: Into<String>>(values: impl IntoIterator<Item = S>) -> Self {
        Self(values.into_iter().map(Into::into).collect())
    }

    /// The values, in the order in which they were given.
    #[must_use]
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

impl Value for OneOf {
    const GUARDS: bool = true;

    fn from_toml(raw: &toml::Value) -> Result<Self, String> {
        let values: Vec<_> = raw.as_str().into_iter().flat_map(elements).map(ToOwned::to_owned).collect();
        if values.is_empty() {
            Err("must be a text, or several separated by commas".to_owned())
        } else {
            Ok(Self(values))
        }
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.0.join(", ")))
    }
}

/// A text that limits something, so that it must not be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NonEmpty(String);

impl NonEmpty {
    /// `None` for an empty text.
    pub fn new(text: impl Into<String>) -> Option<Self> {
        Some(Self(text.into())).filter(|text| !text.0.trim().is_empty())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Value for NonEmpty {
    const GUARDS: bool = true;

    fn from_toml(raw: &toml::Value) -> Result<Self, String> {
        raw.as_str().and_then(Self::new).ok_or_else(|| "must be a text that is not empty".to_owned())
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.0))
    }
}

/// The elements of a list that is separated by commas.
pub(super) fn elements(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|element| !element.is_empty())
}

impl Config {
    /// The settings that say what checks tokens, and are set.
    fn token_checks(&self) -> Vec<&'static str> {
        [
            ("tokens_file", self.tokens_file.is_some()),
            ("jwt_keys_file", self.jwt_keys_file.is_some()),
            ("jwt_jwks_url", self.jwt_jwks_url.is_some()),
            ("token_callback_url", self.token_callback_url.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, is_set)| is_set.then_some(name))
        .collect()
    }

    /// Whether the settings have tokens checked.
    pub(super) fn checks_tokens(&self) -> bool {
        !self.token_checks().is_empty()
    }

    /// The mistakes in how tokens are checked.
    pub(super) fn token_mistakes(&self) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        let mut mistake = |name: &str, expected: &str| {
            mistakes.push(Mistake::new(name, self.show(name).unwrap_or_default(), expected));
        };
        let checks = self.token_checks();
        if let [first, others @ ..] = &checks[..] {
            for other in others {
                let expected =
                    format!("cannot be set together with {first}: tokens are checked in one way; leave one out");
                mistake(other, &expected);
            }
        }
        if self.push_jwt_keys_file.is_some() && self.push_jwt_jwks_url.is_some() {
            mistake("push_jwt_jwks_url", "cannot be set together with push_jwt_keys_file; leave one out");
        }
        mistakes.extend([self.jwt(), self.push_jwt()].iter().flat_map(|settings| self.jwt_mistakes(settings)));
        mistakes
    }

    /// The settings for clients' tokens.
    pub(crate) fn jwt(&self) -> JwtSettings<'_> {
        JwtSettings {
            prefix: "jwt_",
            keys_file: self.jwt_keys_file.as_deref(),
            jwks_url: self.jwt_jwks_url.as_ref(),
            algorithms: &self.jwt_algorithms,
            issuer: self.jwt_issuer.as_ref(),
            audience: self.jwt_audience.as_ref(),
            subject: ("user_claim", &self.jwt_user_claim),
            users_claim: None,
            events_claim: self.jwt_events_claim.as_ref(),
            methods_claim: None,
            leeway: self.jwt_leeway,
        }
    }

    /// The settings for callers' tokens.
    pub(crate) fn push_jwt(&self) -> JwtSettings<'_> {
        JwtSettings {
            prefix: "push_jwt_",
            keys_file: self.push_jwt_keys_file.as_deref(),
            jwks_url: self.push_jwt_jwks_url.as_ref(),
            algorithms: &self.push_jwt_algorithms,
            issuer: self.push_jwt_issuer.as_ref(),
            audience: self.push_jwt_audience.as_ref(),
            subject: ("name_claim", &self.push_jwt_name_claim),
            users_claim: self.push_jwt_users_claim.as_ref(),
            events_claim: self.push_jwt_events_claim.as_ref(),
            methods_claim: self.push_jwt_methods_claim.as_ref(),
            leeway: self.push_jwt_leeway,
        }
    }

    /// The mistakes in how the tokens of one side are checked.
    fn jwt_mistakes(&self, settings: &JwtSettings<'_>) -> Vec<Mistake> {
        let prefix = settings.prefix;
        let mut mistakes = Vec::new();
        let mut mistake = |name: &str, expected: &str| {
            let name = format!("{prefix}{name}");
            mistakes.push(Mistake::new(&name, self.show(&name).unwrap_or_default(), expected));
        };
        if !settings.algorithms.are_of_one_kind() {
            let expected = "must not have HS256, HS384 or HS512 beside others: whoever knows a public key could sign \
                            tokens with it as if it were a secret";
            mistake("algorithms", expected);
        }
        let (subject, claim) = settings.subject;
        if claim.is_empty() {
            mistake(subject, "must not be empty; leave it out for sub");
        }
        // Beyond this, what was added to `exp` would no longer be a difference of clocks.
        if settings.leeway > std::time::Duration::from_secs(3600) {
            mistake("leeway", "must be at most 1h");
        }
        if let Some(url) = settings.jwks_url {
            if !is_trustworthy(url.as_str()) {
                let expected = "must be an https:// address without user or fragment, or http:// on a loopback address: \
                                whoever could change the answer on its way could sign tokens";
                mistake("jwks_url", expected);
            }
            if settings.algorithms.0.iter().any(|algorithm| algorithm.is_hmac()) {
                mistake(
                    "algorithms",
                    &format!("must not have HMAC with {prefix}jwks_url: what is published is not a secret"),
                );
            }
        }
        if !settings.is_on() {
            for (name, is_set) in [
                ("issuer", settings.issuer.is_some()),
                ("audience", settings.audience.is_some()),
                ("users_claim", settings.users_claim.is_some()),
                ("events_claim", settings.events_claim.is_some()),
                ("methods_claim", settings.methods_claim.is_some()),
            ] {
                if is_set {
                    let expected =
                        format!("limits nothing, because no JWT is checked; set {prefix}keys_file or {prefix}jwks_url");
                    mistake(name, &expected);
                }
            }
        }
        mistakes
    }
}

/// The settings for the JWTs of one side: of clients, or of callers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JwtSettings<'a> {
    /// What the names of the settings begin with.
    pub(crate) prefix: &'static str,
    pub(crate) keys_file: Option<&'a Path>,
    pub(crate) jwks_url: Option<&'a NonEmpty>,
    pub(crate) algorithms: &'a JwtAlgorithms,
    pub(crate) issuer: Option<&'a OneOf>,
    pub(crate) audience: Option<&'a OneOf>,
    /// The setting of the claim that says who somebody is, and that claim.
    pub(crate) subject: (&'static str, &'a str),
    pub(crate) users_claim: Option<&'a NonEmpty>,
    pub(crate) events_claim: Option<&'a NonEmpty>,
    pub(crate) methods_claim: Option<&'a NonEmpty>,
    pub(crate) leeway: std::time::Duration,
}

impl JwtSettings<'_> {
    /// Whether there are keys to check tokens with.
    pub(crate) fn is_on(&self) -> bool {
        self.keys_file.is_some() || self.jwks_url.is_some()
    }
}

/// Whether nobody on the way can change what is fetched from there.
fn is_trustworthy(text: &str) -> bool {
    let Ok(url) = text.parse::<http::Uri>() else { return false };
    let has_good_scheme = match url.scheme_str() {
        Some("https") => true,
        Some("http") => is_loopback(&url),
        _ => false,
    };
    has_good_scheme && url.host().is_some_and(|host| !host.is_empty()) && !text.contains(['@', '#'])
}

/// Whether an address is one of this machine.
pub(super) fn is_loopback(url: &http::Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistaken(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::default();
        change(&mut config);
        config.validate().err().map(|invalid| invalid.to_string()).unwrap_or_default()
    }

    #[test]
    fn tokens_are_checked_in_one_way() {
        assert_eq!(mistaken(|config| config.jwt_keys_file = Some("/keys.pem".into())), "");
        let text = mistaken(|config| {
            config.tokens_file = Some("/tokens".into());
            config.jwt_keys_file = Some("/keys.pem".into());
        });
        assert!(text.contains("jwt_keys_file = \"/keys.pem\": cannot be set together with tokens_file"), "{text}");
    }

    #[test]
    fn hmac_is_not_mixed_with_public_keys() {
        use JwtAlgorithm::{Es256, Hs256, Hs512, Rs256};
        for (algorithms, is_good) in
            [(vec![Hs256, Hs512], true), (vec![Rs256, Es256], true), (vec![Hs256, Rs256], false), (vec![], false)]
        {
            let text = mistaken(|config| config.jwt_algorithms = JwtAlgorithms::new(algorithms.clone()));
            assert_eq!(text.is_empty(), is_good, "{algorithms:?}: {text}");
        }
    }

    #[test]
    fn only_known_algorithms_can_be_named_and_none_is_not_one() {
        let read = |text: &str| JwtAlgorithms::from_toml(&toml::Value::String(text.to_owned()));
        let several = JwtAlgorithms::new([JwtAlgorithm::Rs256, JwtAlgorithm::EdDsa]);
        assert_eq!(read(" RS256,eddsa, "), Ok(several.clone()));
        assert_eq!(several.to_toml().as_deref(), Some("\"RS256, EdDSA\""));
        for wrong in ["", ",", "none", "RS256, none", "RS256 ES256", "ES512"] {
            let told = read(wrong).expect_err(wrong);
            assert!(told.contains("none is never allowed"), "{told}");
        }
    }

    #[test]
    fn keys_are_fetched_only_over_a_way_that_nobody_can_change() {
        let with = |url: &str| mistaken(|config| config.jwt_jwks_url = NonEmpty::new(url));
        for good in [
            "https://id.example.com/.well-known/jwks.json",
            "https://id.example.com:8443/certs?a=b",
            "http://127.0.0.1:8080/certs",
            "http://[::1]/certs",
            "http://localhost/certs",
        ] {
            assert_eq!(with(good), "", "{good}");
        }
        for bad in [
            "id.example.com/jwks.json",
            "/jwks.json",
            "file:///etc/keys",
            "http://id.example.com/jwks.json",
            "http://127.0.0.1.example.com/jwks.json",
            "http://localhost@example.com/jwks.json",
            "https://ann:secret@id.example.com/jwks.json",
            "https://id.example.com/jwks.json#keys",
            "https:///jwks.json",
        ] {
            assert!(with(bad).contains("must be an https:// address"), "{bad}");
        }
        let text = mistaken(|config| {
            config.jwt_jwks_url = NonEmpty::new("https://id.example.com/");
            config.jwt_keys_file = Some("/keys.pem".into());
            config.jwt_algorithms = JwtAlgorithms::new([JwtAlgorithm::Hs256]);
        });
        assert!(text.contains("cannot be set together with jwt_keys_file"), "{text}");
        assert!(text.contains("what is published is not a secret"), "{text}");
    }

    #[test]
    fn the_settings_of_callers_have_the_rules_of_those_of_clients_and_their_own_names() {
        let text = mistaken(|config| {
            config.push_jwt_keys_file = Some("/keys.pem".into());
            config.push_jwt_jwks_url = NonEmpty::new("http://id.example.com/");
            config.push_jwt_algorithms = JwtAlgorithms::new([JwtAlgorithm::Hs256, JwtAlgorithm::Rs256]);
            config.push_jwt_name_claim.clear();
            config.push_jwt_leeway = std::time::Duration::from_secs(3601);
        });
        for line in [
            "push_jwt_jwks_url = \"http://id.example.com/\": cannot be set together with push_jwt_keys_file",
            "push_jwt_jwks_url = \"http://id.example.com/\": must be an https:// address",
            "push_jwt_algorithms = \"HS256, RS256\": must not have HS256",
            "push_jwt_name_claim = \"\": must not be empty",
            "push_jwt_leeway = \"1h 1s\": must be at most 1h",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        let text = mistaken(|config| {
            config.push_jwt_issuer = Some(OneOf::new(["a"]));
            config.push_jwt_users_claim = NonEmpty::new("users");
            config.push_jwt_methods_claim = NonEmpty::new("methods");
        });
        for name in ["push_jwt_issuer", "push_jwt_users_claim", "push_jwt_methods_claim"] {
            assert!(text.contains(&format!("{name} = ")), "{name} in {text}");
        }
        assert!(text.contains("limits nothing, because no JWT is checked; set push_jwt_keys_file"), "{text}");
        assert_eq!(mistaken(|config| config.push_jwt_leeway = std::time::Duration::from_secs(3600)), "");
    }

    #[test]
    fn a_limit_for_jwts_without_keys_is_a_mistake() {
        let text = mistaken(|config| {
            config.jwt_issuer = Some(OneOf::new(["https://a"]));
            config.jwt_audience = Some(OneOf::new(["b", "c"]));
            config.jwt_events_claim = NonEmpty::new("events");
        });
        for line in [
            "jwt_issuer = \"https://a\": limits nothing",
            "jwt_audience = \"b, c\": limits nothing",
            "jwt_events_claim = \"events\": limits nothing",
        ] {
            assert!(text.contains(line), "{text}");
        }
        let text = mistaken(|config| {
            config.jwt_leeway = std::time::Duration::from_secs(3601);
            config.jwt_user_claim.clear();
        });
        assert!(text.contains("jwt_leeway = \"1h 1s\": must be at most 1h"), "{text}");
        assert!(text.contains("jwt_user_claim = \"\": must not be empty"), "{text}");
    }
}

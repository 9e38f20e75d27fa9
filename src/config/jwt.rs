//! The kinds of settings for tokens that are JWTs, and which settings of the token check go together.

use std::fmt;

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
        if !self.jwt_algorithms.are_of_one_kind() {
            let expected = "must not have HS256, HS384 or HS512 beside others: whoever knows a public key could sign \
                            tokens with it as if it were a secret";
            mistake("jwt_algorithms", expected);
        }
        if self.jwt_user_claim.is_empty() {
            mistake("jwt_user_claim", "must not be empty; leave it out for sub");
        }
        // Beyond this, what was added to `exp` would no longer be a difference of clocks.
        if self.jwt_leeway > std::time::Duration::from_secs(3600) {
            mistake("jwt_leeway", "must be at most 1h");
        }
        if let Some(url) = &self.jwt_jwks_url {
            if !is_trustworthy(url.as_str()) {
                let expected = "must be an https:// address without user or fragment, or http:// on a loopback address: \
                                whoever could change the answer on its way could sign tokens";
                mistake("jwt_jwks_url", expected);
            }
            if self.jwt_algorithms.0.iter().any(|algorithm| algorithm.is_hmac()) {
                mistake("jwt_algorithms", "must not have HMAC with jwt_jwks_url: what is published is not a secret");
            }
        }
        if self.jwt_keys_file.is_none() && self.jwt_jwks_url.is_none() {
            for (name, is_set) in [
                ("jwt_issuer", self.jwt_issuer.is_some()),
                ("jwt_audience", self.jwt_audience.is_some()),
                ("jwt_events_claim", self.jwt_events_claim.is_some()),
            ] {
                if is_set {
                    mistake(name, "limits nothing, because no JWT is checked; set jwt_keys_file or jwt_jwks_url");
                }
            }
        }
        mistakes
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

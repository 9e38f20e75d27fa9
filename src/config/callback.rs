//! The settings of a service that checks tokens, `token_callback_url`, and which of them go together.

use http::uri::{PathAndQuery, Scheme};
use http::{HeaderName, Uri};

use super::jwt::elements;
use super::value::{Value, quoted};
use super::{Config, Mistake};

/// Names of headers, in small letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderNames(Vec<String>);

impl HeaderNames {
    /// `None` if there is none, or one of them cannot be the name of a header.
    pub fn new<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Option<Self> {
        let named = |name: S| HeaderName::try_from(name.as_ref()).ok().map(|name| name.as_str().to_owned());
        let names: Option<Vec<_>> = names.into_iter().map(named).collect();
        names.filter(|names| !names.is_empty()).map(Self)
    }

    /// The names, in the order in which they were given.
    #[must_use]
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

impl Value for HeaderNames {
    fn from_toml(raw: &toml::Value) -> Result<Self, String> {
        let names = raw.as_str().and_then(|text| Self::new(elements(text)));
        names.ok_or_else(|| "must be a list of names of headers, such as \"cookie, x-tenant\"".to_owned())
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.0.join(", ")))
    }
}

/// Who is asked about tokens, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Callback {
    /// By a POST to this address.
    Http { uri: Uri, is_tls: bool },
    /// By gRPC at this address, whose scheme is that of HTTP.
    Grpc { uri: Uri, is_tls: bool },
}

impl Callback {
    fn read(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        if text.contains(['@', '#']) || uri.host().is_none_or(str::is_empty) {
            return None;
        }
        let has_path = uri.path_and_query().is_some_and(|path| *path != PathAndQuery::from_static("/"));
        match uri.scheme_str()? {
            "http" => Some(Self::Http { uri, is_tls: false }),
            "https" => Some(Self::Http { uri, is_tls: true }),
            // The service's name is the path.
            scheme @ ("grpc" | "grpcs") if !has_path && uri.port().is_some() => {
                let is_tls = scheme == "grpcs";
                let mut parts = uri.clone().into_parts();
                parts.scheme = Some(if is_tls { Scheme::HTTPS } else { Scheme::HTTP });
                parts.path_and_query = Some(PathAndQuery::from_static("/"));
                Some(Self::Grpc { uri: Uri::from_parts(parts).ok()?, is_tls })
            }
            _ => None,
        }
    }

    fn is_tls(&self) -> bool {
        let (Self::Http { is_tls, .. } | Self::Grpc { is_tls, .. }) = self;
        *is_tls
    }

    fn uri(&self) -> &Uri {
        let (Self::Http { uri, .. } | Self::Grpc { uri, .. }) = self;
        uri
    }
}

impl Config {
    /// Who is asked about tokens. `None` also for an address that is not valid.
    pub(crate) fn callback(&self) -> Option<Callback> {
        self.token_callback_url.as_ref().and_then(|url| Callback::read(url.as_str()))
    }

    /// Whether tokens leave this machine without TLS.
    pub(crate) fn callback_is_readable(&self) -> bool {
        self.callback().is_some_and(|callback| !callback.is_tls() && !super::jwt::is_loopback(callback.uri()))
    }

    /// The mistakes in how a service is asked about tokens.
    pub(super) fn callback_mistakes(&self) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        let mut require = |holds: bool, name: &str, expected: &str| {
            if !holds {
                mistakes.push(Mistake::new(name, self.show(name).unwrap_or_default(), expected));
            }
        };
        let (url, callback) = (&self.token_callback_url, self.callback());
        require(
            url.is_none() || callback.is_some(),
            "token_callback_url",
            "must be an http:// or https:// address, or a grpc:// or grpcs:// address with a host and a port alone; without \
             user or fragment",
        );
        let is_tls = callback.as_ref().is_some_and(Callback::is_tls);
        require(
            self.token_callback_ca_file.is_none() || is_tls,
            "token_callback_ca_file",
            "has no use without a token_callback_url that begins with https:// or grpcs://",
        );
        require(
            self.token_callback_headers.is_none() || url.is_some(),
            "token_callback_headers",
            "has no use without token_callback_url",
        );
        let timeout = self.token_callback_timeout;
        require(
            timeout >= std::time::Duration::from_millis(1) && (url.is_none() || timeout <= self.check_timeout),
            "token_callback_timeout",
            "must be between 1ms and check_timeout",
        );
        require(
            self.token_callback_cache_age <= std::time::Duration::from_secs(3600),
            "token_callback_cache_age",
            "must be at most 1h: a token that is withdrawn stays good for as long",
        );
        mistakes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::NonEmpty;
    use super::super::validate::tests::mistaken;
    use super::*;

    fn at(url: &str) -> impl Fn(&mut Config) {
        let url = NonEmpty::new(url);
        move |config| config.token_callback_url = url.clone()
    }

    #[test]
    fn a_service_is_asked_by_http_or_by_grpc_at_a_host_and_port() {
        for good in [
            "http://127.0.0.1:8080/check",
            "https://id.example.com/tokens/check?tenant=1",
            "http://[::1]/",
            "grpc://127.0.0.1:50051",
            "grpcs://id.example.com:443/",
        ] {
            assert!(mistaken(at(good)).is_empty(), "{good}");
        }
        for bad in [
            "id.example.com/check",
            "/check",
            "unix:/run/check",
            "https:///check",
            "https://ann:secret@id.example.com/check",
            "https://id.example.com/check#there",
            "grpc://127.0.0.1",
            "grpc://127.0.0.1:50051/pushgate.v1.TokenCheckService",
            "ftp://id.example.com:21",
        ] {
            assert_eq!(mistaken(at(bad)), ["token_callback_url"], "{bad}");
        }
        let callback = Callback::read("grpcs://id.example.com:443").expect("valid");
        assert_eq!(callback, Callback::Grpc { uri: Uri::from_static("https://id.example.com:443/"), is_tls: true });
    }

    #[test]
    fn the_settings_of_a_service_have_limits_and_a_use() {
        let hour = Duration::from_secs(3600);
        let with = |change: fn(&mut Config)| {
            mistaken(|config| {
                at("http://10.0.0.1:80/")(config);
                change(config);
            })
        };
        assert!(with(|config| config.token_callback_timeout = config.check_timeout).is_empty());
        assert_eq!(with(|config| config.token_callback_timeout = Duration::ZERO), ["token_callback_timeout"]);
        let longer = with(|config| config.token_callback_timeout = config.check_timeout + Duration::from_millis(1));
        assert_eq!(longer, ["token_callback_timeout"]);
        assert!(mistaken(|config| config.token_callback_cache_age = hour).is_empty());
        let longer = hour + Duration::from_nanos(1);
        assert_eq!(mistaken(|config| config.token_callback_cache_age = longer), ["token_callback_cache_age"]);
        assert_eq!(with(|config| config.token_callback_ca_file = Some("/ca".into())), ["token_callback_ca_file"]);
        let headers = HeaderNames::new(["Cookie"]);
        assert_eq!(headers.as_ref().map(HeaderNames::as_slice), Some(&["cookie".to_owned()][..]));
        assert_eq!(mistaken(|config| config.token_callback_headers = headers), ["token_callback_headers"]);
        assert_eq!(with(|config| config.tokens_file = Some("/tokens".into())), ["token_callback_url"]);
        assert_eq!(HeaderNames::new(["not a name"]), None);
    }

    #[test]
    fn tokens_that_leave_the_machine_without_tls_are_noticed() {
        for (url, is_readable) in [
            ("http://127.0.0.1:1/", false),
            ("grpc://localhost:1", false),
            ("https://10.0.0.1/", false),
            ("http://10.0.0.1/", true),
            ("grpc://10.0.0.1:1", true),
        ] {
            let mut config = Config::default();
            at(url)(&mut config);
            assert_eq!(config.callback_is_readable(), is_readable, "{url}");
        }
    }
}

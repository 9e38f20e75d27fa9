//! Origins of web pages, as RFC 6454 writes them, and the list of those that may connect.

use std::fmt;
use std::str::FromStr;

use http::uri::Authority;

/// Far longer than an origin with the longest name that a host can have, and short enough for a line of the log.
const ORIGIN_BYTES_MAX: usize = 512;

/// Where a web page is from, in the form that browsers send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A page without an origin of its own, such as a local file or a sandboxed frame.
    Null,
    Page(PageOrigin),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PageOrigin {
    scheme: String,
    host: String,
    /// Always set where the scheme has a default.
    port: Option<u16>,
}

impl Origin {
    /// Reads the value of an `Origin` header. `None` if it is not exactly one origin.
    pub(crate) fn read(text: &str) -> Option<Self> {
        if text == "null" {
            return Some(Self::Null);
        }
        let (scheme, authority) = text.split_once("://").filter(|_| text.len() <= ORIGIN_BYTES_MAX)?;
        PageOrigin::new(scheme, authority).map(Self::Page)
    }

    /// Whether the page is from this host, on any port and over any scheme. A proxy that ends TLS or maps ports in between
    /// changes both, and the page is still the same host's.
    pub(crate) fn is_of_host(&self, host: &str) -> bool {
        let host = Authority::try_from(host).ok();
        matches!((self, host), (Self::Page(page), Some(host)) if page.host.eq_ignore_ascii_case(host.host()))
    }
}

impl PageOrigin {
    fn new(scheme: &str, authority: &str) -> Option<Self> {
        let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
        let parsed = Authority::try_from(authority).ok().filter(|_| is_scheme && !authority.contains('@'))?;
        let (scheme, host) = (scheme.to_ascii_lowercase(), parsed.host().to_ascii_lowercase());
        let port = match authority[parsed.host().len()..].strip_prefix(':') {
            None => default_port(&scheme),
            Some(port) => Some(port.parse().ok()?),
        };
        (!host.is_empty()).then_some(Self { scheme, host, port })
    }
}

/// RFC 6454 section 4: an origin without a port has the default one of its scheme.
fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Page(page) => page.fmt(f),
        }
    }
}

impl fmt::Display for PageOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        match self.port {
            Some(port) if default_port(&self.scheme) != Some(port) => write!(f, ":{port}"),
            _ => Ok(()),
        }
    }
}

/// The origins whose pages may open a WebSocket. Parsed from a text such as
/// `"https://app.example.com, https://*.example.com, *.example.org"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origins(Vec<Allowed>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Allowed {
    /// `*`
    All,
    /// `null`, or one origin.
    Exact(Origin),
    /// `*.example.com`, over any scheme and on any port.
    Below { domain: String },
    /// `https://*.example.com`, with the host of the origin as the domain.
    BelowOrigin(PageOrigin),
}

impl Origins {
    pub(crate) fn contains(&self, origin: &Origin) -> bool {
        self.0.iter().any(|allowed| allowed.matches(origin))
    }
}

impl Allowed {
    fn read(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::All);
        }
        // The domain is read as a host with any scheme, so that the same characters are valid in both.
        let (scheme, host) = text.split_once("://").unwrap_or(("any", text));
        let has_scheme = text.contains("://");
        let allowed = match host.strip_prefix("*.") {
            Some(domain) if has_scheme => Self::BelowOrigin(PageOrigin::new(scheme, domain)?),
            Some(domain) => match PageOrigin::new(scheme, domain)? {
                PageOrigin { host: domain, port: None, .. } => Self::Below { domain },
                _ => return None,
            },
            None => Self::Exact(Origin::read(text)?),
        };
        let is_no_domain = |host: &str| host.contains('*') || host.contains('[') || host.starts_with('.');
        match &allowed {
            Self::Below { domain } if is_no_domain(domain) => None,
            Self::BelowOrigin(page) if is_no_domain(&page.host) => None,
            Self::Exact(Origin::Page(page)) if page.host.contains('*') => None,
            _ => Some(allowed),
        }
    }

    fn matches(&self, origin: &Origin) -> bool {
        match (self, origin) {
            (Self::All, _) => true,
            (Self::Exact(allowed), origin) => allowed == origin,
            (Self::Below { domain }, Origin::Page(page)) => is_below(&page.host, domain),
            (Self::BelowOrigin(allowed), Origin::Page(page)) => {
                page.scheme == allowed.scheme && page.port == allowed.port && is_below(&page.host, &allowed.host)
            }
            (Self::Below { .. } | Self::BelowOrigin(_), Origin::Null) => false,
        }
    }
}

/// Whether the host is a subdomain, at any depth. The domain itself is not.
fn is_below(host: &str, domain: &str) -> bool {
    host.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.')).is_some_and(|rest| !rest.is_empty())
}

impl fmt::Display for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, allowed) in self.0.iter().enumerate() {
            f.write_str(if at == 0 { "" } else { ", " })?;
            match allowed {
                Allowed::All => f.write_str("*")?,
                Allowed::Exact(origin) => origin.fmt(f)?,
                Allowed::Below { domain } => write!(f, "*.{domain}")?,
                Allowed::BelowOrigin(page) => f.write_str(&page.to_string().replacen("://", "://*.", 1))?,
            }
        }
        Ok(())
    }
}

impl FromStr for Origins {
    /// The entry that is not valid.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let entries = text.split(',').map(str::trim);
        entries.map(|entry| Allowed::read(entry).ok_or_else(|| entry.to_owned())).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(list: &str, origin: &str) -> bool {
        list.parse::<Origins>().expect(list).contains(&Origin::read(origin).expect(origin))
    }

    #[test]
    fn an_exact_origin_is_compared_by_scheme_host_and_port_in_any_letter_case() {
        let list = "https://app.example.com, http://localhost:3000, capacitor://localhost, https://[::1]";
        for good in [
            "https://app.example.com",
            "https://app.example.com:443",
            "HTTPS://App.Example.COM",
            "http://localhost:3000",
            "capacitor://localhost",
            "https://[::1]:443",
        ] {
            assert!(allows(list, good), "{good}");
        }
        for bad in [
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://app.example.com.evil.org",
            "https://evil-app.example.com",
            "http://localhost",
            "capacitor://localhost:80",
            "null",
        ] {
            assert!(!allows(list, bad), "{bad}");
        }
        assert!(allows("HTTPS://App.Example.com:443", "https://app.example.com"));
    }

    #[test]
    fn a_star_and_a_dot_stand_for_subdomains_and_not_for_the_domain_itself() {
        for good in ["https://a.example.com", "http://a.b.example.com:81", "https://A.EXAMPLE.com"] {
            assert!(allows("*.example.com", good), "{good}");
        }
        for bad in ["https://example.com", "https://evilexample.com", "https://a.example.com.evil.org", "null"] {
            assert!(!allows("*.example.com", bad), "{bad}");
        }
        let with_scheme = "https://*.example.com";
        assert!(allows(with_scheme, "https://a.example.com"));
        for bad in ["http://a.example.com", "https://a.example.com:81", "https://example.com"] {
            assert!(!allows(with_scheme, bad), "{bad}");
        }
        assert!(allows("https://*.example.com:81", "https://a.example.com:81"));
    }

    #[test]
    fn null_is_allowed_only_by_its_name_and_by_the_star_that_allows_all() {
        assert!(allows("null", "null") && allows("*", "null") && allows("*", "https://anywhere.org"));
        assert!(!allows("null", "https://null"));
    }

    #[test]
    fn what_is_not_one_origin_is_none() {
        for bad in [
            "",
            "example.com",
            "https://",
            "https://a/",
            "https://a.org/path",
            "https://ann@a.org",
            "https://a.org:",
            "https://a.org:99999",
            "https://a.org https://b.org",
            "https://a.org, https://b.org",
            "://a.org",
            "ht tp://a.org",
            "NULL",
        ] {
            assert_eq!(Origin::read(bad), None, "{bad}");
        }
        assert_eq!(Origin::read(&format!("https://{}", "a".repeat(ORIGIN_BYTES_MAX))), None);
    }

    #[test]
    fn a_list_with_something_else_names_the_entry_and_a_good_one_reads_back_the_same() {
        for bad in [
            "example.com",
            "https://*",
            "*.",
            "*.*.example.com",
            "*.example.com:81",
            "https://a*.example.com",
            "https://example.com/",
            "*.[::1]",
            "https://*..example.com",
        ] {
            assert_eq!(format!("*, {bad}").parse::<Origins>(), Err(bad.to_owned()));
        }
        let list = "https://a.org, https://b.org:81, *.c.org, https://*.d.org:81, null, *";
        assert_eq!(list.parse::<Origins>().expect("valid").to_string(), list);
    }

    #[test]
    fn the_host_is_the_same_whatever_the_port_and_the_scheme() {
        let is_of = |origin: &str, host: &str| Origin::read(origin).expect(origin).is_of_host(host);
        assert!(is_of("https://push.example.com", "push.example.com"));
        assert!(is_of("http://push.example.com:81", "PUSH.example.com:12345"));
        assert!(is_of("http://[::1]:81", "[::1]:12345"));
        for (origin, host) in [
            ("https://push.example.com", "example.com"),
            ("https://push.example.com", "push.example.com.evil.org"),
            ("https://push.example.com", ""),
            ("null", "null"),
        ] {
            assert!(!is_of(origin, host), "{origin} {host}");
        }
    }
}

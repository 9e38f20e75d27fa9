//! Who sent a request that came through proxies, by what the proxies wrote into its head.

use std::net::{IpAddr, SocketAddr};

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName};

use crate::config::Networks;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of the client behind trusted proxies. That of the peer, unless the peer is one of them.
///
/// Each proxy adds the address it was called from on the right, so the list is read from there. The first address that
/// is not a trusted proxy's is the client's: whatever is to the left of it, the client may have made up. What cannot be
/// read ends the list.
///
/// A proxy writes one of the two headers, and passes on what a client wrote into the other. If both are there and do not
/// agree, neither can be believed.
pub(super) fn client(peer: SocketAddr, headers: &HeaderMap, trusted: &Networks) -> SocketAddr {
    if !trusted.contains(peer.ip()) {
        return peer;
    }
    let forwarded = headers.contains_key(FORWARDED).then(|| walk(peer, elements(headers), trusted));
    let x_forwarded_for = headers.contains_key(&X_FORWARDED_FOR).then(|| walk(peer, addresses(headers), trusted));
    match (forwarded, x_forwarded_for) {
        (None, None) => peer,
        (Some(client), None) | (None, Some(client)) => client,
        (Some(one), Some(other)) if one.ip() != other.ip() => peer,
        // Only `Forwarded` has ports by its standard.
        (Some(client), Some(_)) => client,
    }
}

/// Goes from the peer to the left, as long as each address is a trusted proxy's.
fn walk(peer: SocketAddr, hops: impl Iterator<Item = Option<SocketAddr>>, trusted: &Networks) -> SocketAddr {
    let mut nearest = peer;
    for hop in hops {
        let Some(hop) = hop else { break };
        nearest = hop;
        if !trusted.contains(hop.ip()) {
            break;
        }
    }
    nearest
}

/// The entries of `X-Forwarded-For`, from the right. `None` for one that is not an address.
fn addresses(headers: &HeaderMap) -> impl Iterator<Item = Option<SocketAddr>> {
    lines(headers, &X_FORWARDED_FOR).flat_map(|line| line.unwrap_or("?").rsplit(',').map(|entry| address(entry.trim())))
}

/// The entries of `Forwarded`, RFC 7239 section 4, from the right. `None` for one without a single address.
fn elements(headers: &HeaderMap) -> impl Iterator<Item = Option<SocketAddr>> {
    lines(headers, &FORWARDED).flat_map(|line| {
        let elements: Vec<_> = split(line.unwrap_or("?"), b',').map(element).collect();
        elements.into_iter().rev()
    })
}

/// The lines of a header from the last one on. `None` for one that is not ASCII.
fn lines<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = Option<&'a str>> {
    headers.get_all(name).iter().rev().map(|line| line.to_str().ok())
}

/// Reads one element. All of its names and values must be sound, because a client that leaves a quoted string open would otherwise
/// hide what a proxy adds behind it.
fn element(text: &str) -> Option<SocketAddr> {
    let mut node = None;
    for pair in split(text, b';').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').filter(|(name, _)| is_name(name))?;
        let value = unquoted(value)?;
        if name.eq_ignore_ascii_case("for") && node.replace(value).is_some() {
            return None;
        }
    }
    address(node?)
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// What is in a quoted string, escapes included, or a value without quotes as it is. `None` for anything between the two.
fn unquoted(value: &str) -> Option<&str> {
    let Some(quoted) = value.strip_prefix('"') else { return (!value.contains('"')).then_some(value) };
    let mut is_escaped = false;
    let end = quoted.find(|letter| {
        let is_end = letter == '"' && !is_escaped;
        is_escaped = letter == '\\' && !is_escaped;
        is_end
    })?;
    (end + 1 == quoted.len()).then(|| &quoted[..end])
}

/// Splits at a separator that is not in a quoted string, RFC 9110 section 5.6.4.
fn split(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(move |letter: char| {
        let is_separator = !is_quoted && letter == char::from(separator);
        is_quoted ^= letter == '"' && !is_escaped;
        is_escaped = is_quoted && letter == '\\' && !is_escaped;
        is_separator
    })
}

/// Reads an address with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`,
/// `[2001:db8::1]:80`. Without one, the port is 0.
fn address(text: &str) -> Option<SocketAddr> {
    let in_brackets = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = match in_brackets {
        Some(address) => address.parse().ok().map(IpAddr::V6),
        None => text.parse().ok(),
    };
    address.map(|address| SocketAddr::new(address, 0)).or_else(|| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    const PROXY: &str = "10.0.0.1:4000";

    fn client_of(peer: &str, lines: &[(&'static str, &str)]) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).expect("a header"));
        }
        let trusted = "10.0.0.0/8, 2001:db8:a::/48".parse().expect("valid");
        client(peer.parse().expect("an address"), &headers, &trusted).to_string()
    }

    #[test]
    fn the_client_is_the_rightmost_address_that_is_no_proxy() {
        for (list, client) in [
            ("192.0.2.1", "192.0.2.1:0"),
            ("192.0.2.1:55, 10.0.0.2", "192.0.2.1:55"),
            ("6.6.6.6, 192.0.2.1", "192.0.2.1:0"),
            ("6.6.6.6, 192.0.2.1, 10.0.0.3, 10.0.0.2", "192.0.2.1:0"),
            ("10.0.0.3, 10.0.0.2", "10.0.0.3:0"),
            ("2001:db8::1", "[2001:db8::1]:0"),
            ("[2001:db8::1]:80, 2001:db8:a::2", "[2001:db8::1]:80"),
            ("[2001:db8::1]", "[2001:db8::1]:0"),
        ] {
            assert_eq!(client_of(PROXY, &[("x-forwarded-for", list)]), client, "{list}");
        }
        let two_lines = [("x-forwarded-for", "6.6.6.6, 192.0.2.1"), ("x-forwarded-for", "10.0.0.2")];
        assert_eq!(client_of(PROXY, &two_lines), "192.0.2.1:0");
    }

    #[test]
    fn what_cannot_be_read_ends_the_list_at_the_nearest_proxy_that_is_known() {
        for (list, client) in [
            ("", PROXY),
            ("unknown", PROXY),
            ("192.0.2.1, x", PROXY),
            ("192.0.2.1,", PROXY),
            ("192.0.2.1, , 10.0.0.2", "10.0.0.2:0"),
            ("192.0.2.1, unknown, 10.0.0.2", "10.0.0.2:0"),
            ("192.0.2.1, 10.0.0.2:99999", PROXY),
            ("192.0.2.1, [10.0.0.2]", PROXY),
            ("192.0.2.1, \u{e9}", PROXY),
        ] {
            assert_eq!(client_of(PROXY, &[("x-forwarded-for", list)]), client, "{list}");
        }
        assert_eq!(client_of(PROXY, &[("x-forwarded-for", "192.0.2.1"), ("x-forwarded-for", "\u{e9}")]), PROXY);
    }

    #[test]
    fn who_is_no_proxy_may_say_what_it_likes() {
        for name in ["x-forwarded-for", "forwarded"] {
            let peer = "192.0.2.9:4000";
            assert_eq!(client_of(peer, &[(name, "10.0.0.5"), (name, "for=10.0.0.5")]), peer);
        }
    }

    #[test]
    fn forwarded_is_read_as_its_standard_has_it() {
        for (list, client) in [
            ("for=192.0.2.1", "192.0.2.1:0"),
            ("For=\"192.0.2.1:47011\";proto=https;by=203.0.113.43", "192.0.2.1:47011"),
            ("proto=http; for=\"[2001:db8::1]:80\" , for=10.0.0.2", "[2001:db8::1]:80"),
            ("for=6.6.6.6, for=192.0.2.1, for=10.0.0.2;by=\"a, b; for=7.7.7.7\"", "192.0.2.1:0"),
            ("for=192.0.2.1, by=\"\\\", for=6.6.6.6\";for=10.0.0.2", "192.0.2.1:0"),
            ("for=192.0.2.1, for=_hidden, for=10.0.0.2", "10.0.0.2:0"),
            ("for=192.0.2.1, for=unknown", PROXY),
            ("for=192.0.2.1;for=10.0.0.2", PROXY),
            ("for=192.0.2.1, proto=http", PROXY),
            ("for=\"192.0.2.1", PROXY),
            ("by=\"x, for=192.0.2.1", PROXY),
            ("for=6.6.6.6;by=\", for=192.0.2.1", PROXY),
            ("for=6.6.6.6;by=\", for=\"192.0.2.1:80\"", PROXY),
            ("for=6.6.6.6;by=\"\\, for=\"192.0.2.1:80\"", PROXY),
            ("for=192.0.2.1;by=\"a\"b", PROXY),
            ("for=6.6.6.6;\",for=\"192.0.2.1:80\"", PROXY),
            ("for=192.0.2.1;", "192.0.2.1:0"),
            ("192.0.2.1", PROXY),
        ] {
            assert_eq!(client_of(PROXY, &[("forwarded", list)]), client, "{list}");
        }
    }

    #[test]
    fn two_headers_that_do_not_agree_are_not_believed() {
        let both = |forwarded, x| client_of(PROXY, &[("forwarded", forwarded), ("x-forwarded-for", x)]);
        assert_eq!(both("for=6.6.6.6", "192.0.2.1"), PROXY);
        assert_eq!(both("for=192.0.2.1", "6.6.6.6"), PROXY);
        assert_eq!(both("for=\"192.0.2.1:80\"", "192.0.2.1"), "192.0.2.1:80");
    }

    proptest! {
        /// Whatever a client writes into the head, the address that the proxy adds is the one that counts, or else the
        /// proxy's own.
        #[test]
        fn a_client_cannot_pass_for_another(
            any in "[ -~]{0,40}",
            parts in proptest::collection::vec(
                select(vec!["for=", "6.6.6.6", "10.0.0.9", ";", "by=", "\"", "\\", ",", " ", "x", "[", "]"]),
                0..12,
            ),
        ) {
            for written in [any, parts.concat()] {
                let x = format!("{written}, 192.0.2.1");
                prop_assert_eq!(client_of(PROXY, &[("x-forwarded-for", &x)]), "192.0.2.1:0");
                for added in [", for=192.0.2.1", ",for=\"192.0.2.1\"", ", for=\"192.0.2.1\", for=\"10.0.0.2\""] {
                    let standard = format!("{written}{added}");
                    let client = client_of(PROXY, &[("forwarded", &standard)]);
                    let known = ["192.0.2.1:0", "10.0.0.2:0", PROXY];
                    prop_assert!(known.contains(&&*client), "{standard}: {client}");
                }
            }
        }
    }
}

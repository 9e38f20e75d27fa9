//! What the push doors read from a request's head.

use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::auth::Token;
use crate::doors::listed;

static X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The API key, from `x-api-key: KEY` or `authorization: Bearer KEY`: the first that there is, on however many lines. An
/// empty one is none.
pub(in crate::server) fn api_key(headers: &HeaderMap) -> Option<Token> {
    let lines = |name: &HeaderName| headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    let bearers = lines(&AUTHORIZATION).filter_map(|line| {
        let (scheme, key) = line.trim_start().split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key)
    });
    let mut keys = lines(&X_API_KEY).chain(bearers).map(str::trim).filter(|key| !key.is_empty());
    keys.next().map(|key| Token::new(key.to_owned()))
}

/// Whether the body is anything else than what it says, compressed for example.
pub(super) fn is_encoded(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(CONTENT_ENCODING).iter();
    lines.any(|line| line.to_str().is_err())
        || listed(headers, &CONTENT_ENCODING).any(|coding| !coding.eq_ignore_ascii_case("identity"))
}

pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The `grpc-timeout` header: up to eight digits and a unit. `None` for one that is not valid.
pub(super) fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// The trace id and the parent's span id of a W3C Trace Context `traceparent`; `None` for one that is not valid, which
/// by section 3.2 is as good as none.
pub(super) fn traceparent(value: &[u8]) -> Option<(&str, &str)> {
    let text = std::str::from_utf8(value).ok()?;
    let (version, trace_id, parent_id, rest) = (text.get(..2)?, text.get(3..35)?, text.get(36..52)?, text.get(52..)?);
    let hex = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let nonzero = |part: &str| part.bytes().any(|b| b != b'0');
    let dashes = [2, 35].iter().all(|at| value[*at] == b'-') && rest.starts_with('-');
    // Version 00 ends after two digits of flags; a later one may go on behind another dash.
    let ends = rest.len() == 3 || (version != "00" && rest.as_bytes().get(3) == Some(&b'-'));
    let digits = hex(version) && hex(trace_id) && hex(parent_id) && hex(rest.get(1..3)?);
    let valid = dashes && ends && digits && version != "ff" && nonzero(trace_id) && nonzero(parent_id);
    valid.then_some((trace_id, parent_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_taken_only_when_valid() {
        let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let parent_id = "00f067aa0ba902b7";
        let good = format!("00-{trace_id}-{parent_id}-01");
        assert_eq!(traceparent(good.as_bytes()), Some((trace_id, parent_id)));
        assert!(traceparent(format!("01-{trace_id}-{parent_id}-01-more").as_bytes()).is_some(), "a later version");
        for bad in [
            String::new(),
            good[..50].to_owned(),
            format!("{good}-more"),
            format!("ff-{trace_id}-{parent_id}-01"),
            format!("00-{}-{parent_id}-01", "0".repeat(32)),
            format!("00-{trace_id}-{}-01", "0".repeat(16)),
            good.to_uppercase(),
            good.replace('-', "_"),
        ] {
            assert_eq!(traceparent(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_grpc_timeout_is_digits_and_a_unit() {
        let read = |text: &'static str| grpc_timeout(&HeaderValue::from_static(text));
        assert_eq!(read("5S"), Some(Duration::from_secs(5)));
        assert_eq!(read("100m"), Some(Duration::from_millis(100)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "S", "5", "5s", "-5S", "123456789S", "5 S"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_key_comes_as_bearer_or_as_x_api_key() {
        let key = |name: &'static str, value: &'static str| {
            let headers = HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))]);
            api_key(&headers).map(|key| key.expose().to_owned())
        };
        assert_eq!(key("x-api-key", "k"), Some("k".to_owned()));
        assert_eq!(key("authorization", "Bearer k"), Some("k".to_owned()));
        assert_eq!(key("authorization", "bearer k"), Some("k".to_owned()));
        assert_eq!(key("authorization", "Basic k"), None);
    }
}

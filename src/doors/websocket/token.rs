//! The token that a client may show in its upgrade, in place of one in its first bind.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderMap, Uri};

use crate::auth::Token;
use crate::config::Config;
use crate::dialect::TOKEN_BYTES_MAX;
use crate::doors::listed;

/// What stands before a token that is offered as a subprotocol. Browsers let pages choose subprotocols, and no other
/// header. An offer is never accepted by the gateway, so it does not come back in the answer.
const SUBPROTOCOL: &str = "pushgate.token.";

/// The key of a token in the query of the URL.
const QUERY_KEY: &str = "token";

/// Why a token in an upgrade cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadToken {
    #[error("the subprotocol {SUBPROTOCOL} is not followed by a token in base64url without padding")]
    NotBase64Url,
    #[error("the token is longer than {TOKEN_BYTES_MAX} bytes")]
    TooLong,
}

/// The token of an upgrade, from the first of these places that has one: `authorization: Bearer TOKEN`, the subprotocol
/// `pushgate.token.TOKEN` in base64url, and the query, if the settings allow it there. An empty one is none.
pub(super) fn token(headers: &HeaderMap, uri: &Uri, config: &Config) -> Result<Option<Token>, BadToken> {
    let token = match bearer(headers) {
        Some(token) => Some(token),
        None => subprotocol(headers)?.or_else(|| if config.token_in_url { query(uri) } else { None }),
    };
    match token {
        Some(token) if token.len() > TOKEN_BYTES_MAX => Err(BadToken::TooLong),
        token => Ok(token.map(Token::new)),
    }
}

fn bearer(headers: &HeaderMap) -> Option<String> {
    let lines = headers.get_all(AUTHORIZATION).iter().filter_map(|line| line.to_str().ok());
    let mut tokens = lines.filter_map(|line| {
        let (scheme, token) = line.trim_start().split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
    });
    tokens.next().map(ToOwned::to_owned)
}

fn subprotocol(headers: &HeaderMap) -> Result<Option<String>, BadToken> {
    let mut encoded = listed(headers, &SEC_WEBSOCKET_PROTOCOL).filter_map(|offer| offer.strip_prefix(SUBPROTOCOL));
    let Some(encoded) = encoded.next() else { return Ok(None) };
    let decoded = BASE64_URL_SAFE_NO_PAD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    decoded.filter(|token| !token.is_empty()).map(Some).ok_or(BadToken::NotBase64Url)
}

fn query(uri: &Uri) -> Option<String> {
    let mut pairs = form_urlencoded::parse(uri.query()?.as_bytes());
    let (_, token) = pairs.find(|(key, token)| key == QUERY_KEY && !token.is_empty())?;
    Some(token.into_owned())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    /// The token of an upgrade with these headers, where URLs may have one or not.
    fn read(lines: &[(&'static str, &str)], uri: &str, token_in_url: bool) -> Result<Option<String>, BadToken> {
        let lines = lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a header")));
        let config = Config { token_in_url, ..Config::default() };
        let token = token(&lines.collect(), &uri.parse().expect("a URI"), &config)?;
        Ok(token.map(|token| token.expose().to_owned()))
    }

    fn found(token: &str) -> Result<Option<String>, BadToken> {
        Ok(Some(token.to_owned()))
    }

    #[test]
    fn a_token_comes_as_bearer_or_as_a_subprotocol_and_bearer_is_looked_at_first() {
        let bearer = ("authorization", "bearer a.b-c");
        // "über/?" in base64url.
        let offer = ("sec-websocket-protocol", "pushgate.v1.json, pushgate.token.w7xiZXIvPw");
        assert_eq!(read(&[bearer], "/ws", false), found("a.b-c"));
        assert_eq!(read(&[offer], "/ws", false), found("\u{fc}ber/?"));
        assert_eq!(read(&[offer, bearer], "/ws", false), found("a.b-c"));
        assert_eq!(read(&[("authorization", "Basic YTpi"), offer], "/ws", false), found("\u{fc}ber/?"));
        assert_eq!(read(&[("authorization", "Bearer ")], "/ws", false), Ok(None));
    }

    #[test]
    fn a_subprotocol_that_is_no_token_is_an_error() {
        for bad in ["", "w7xiZXIvPw==", "a+b/", "!", "_w"] {
            let offer = format!("pushgate.token.{bad}");
            assert_eq!(read(&[("sec-websocket-protocol", &offer)], "/ws", false), Err(BadToken::NotBase64Url), "{bad}");
        }
        let long = format!("Bearer {}", "t".repeat(TOKEN_BYTES_MAX + 1));
        assert_eq!(read(&[("authorization", &long)], "/ws", false), Err(BadToken::TooLong));
    }

    #[test]
    fn a_token_in_the_url_counts_only_where_it_is_allowed() {
        let uri = "/ws?x=1&token=a%2Bb+c&token=d";
        assert_eq!(read(&[], uri, false), Ok(None));
        assert_eq!(read(&[], uri, true), found("a+b c"));
        assert_eq!(read(&[("authorization", "Bearer t")], uri, true), found("t"));
        assert_eq!(read(&[], "/ws?token=&tokens=a", true), Ok(None));
    }
}

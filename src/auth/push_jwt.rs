//! The push check for callers whose tokens are JWTs, beside those with keys.

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{
    JwtAuthenticator, JwtProblem, PushAuthorizer, PushCredentials, PushKeys, PushRefused, PushScope, ReloadError,
};

/// A push check for JWTs. What does not look like one is left to the keys, if there are any.
#[derive(Debug)]
pub(crate) struct PushJwt {
    jwt: JwtAuthenticator,
    keys: Option<PushKeys>,
}

impl PushJwt {
    pub(crate) fn new(jwt: JwtAuthenticator, keys: Option<PushKeys>) -> Self {
        Self { jwt, keys }
    }
}

#[async_trait]
impl PushAuthorizer for PushJwt {
    async fn authorize(&self, credentials: &PushCredentials) -> Result<PushScope, PushRefused> {
        match (&credentials.api_key, &self.keys) {
            (Some(shown), _) if looks_like_jwt(shown.expose()) => {
                self.jwt.check(shown.expose()).await.map(super::JwtGrant::into_scope).map_err(|problem| {
                    tracing::debug!(problem = problem.of_caller(), "token of a caller refused");
                    match problem {
                        JwtProblem::KeysUnavailable => PushRefused::Unavailable,
                        JwtProblem::Expired => PushRefused::TokenExpired,
                        _ => PushRefused::TokenRefused,
                    }
                })
            }
            (_, Some(keys)) => keys.authorize(credentials).await,
            (_, None) => Err(PushRefused::Unauthenticated),
        }
    }

    async fn reload(&self) -> Result<(), ReloadError> {
        // Both are read, whichever of them has a mistake.
        let tokens = super::TokenAuthenticator::reload(&self.jwt).await;
        let keys = match &self.keys {
            Some(keys) => keys.reload().await,
            None => Ok(()),
        };
        tokens.and(keys)
    }
}

/// Whether this begins with a JSON object in base64url, and has as many dots as a JWT, signed or encrypted. No key that
/// somebody has drawn at random does.
fn looks_like_jwt(text: &str) -> bool {
    let head = text.split('.').next().unwrap_or_default();
    matches!(text.matches('.').count(), 2 | 4)
        && URL_SAFE_NO_PAD.decode(head).is_ok_and(|head| head.trim_ascii_start().starts_with(b"{"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jwt_is_told_from_a_key_by_its_head() {
        let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        for (text, is_one) in [
            (format!("{head}.e30."), true),
            (format!("{head}.e30.c2ln"), true),
            (format!("{head}.a.b.c.d"), true),
            (format!("{head}.e30"), false),
            (head, false),
            ("0123456789abcdef".to_owned(), false),
            ("with.two.dots".to_owned(), false),
            ("..".to_owned(), false),
        ] {
            assert_eq!(looks_like_jwt(&text), is_one, "{text}");
        }
    }
}

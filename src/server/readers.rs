//! Who may read what the gateway tells about itself: its metrics, its API by reflection, and the page that tries it.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use tokio::sync::Semaphore;
use tonic::{Code, Status};

use crate::auth::Token;
use crate::doors::{Body, grpc, text, try_later};
use crate::gateway::{Denial, Gateway};
use crate::metrics::{ReadRefusal, ReadRefusedLabels};

use super::callers::{Callers, NotACaller};
use super::peer::Peer;
use super::stack::api_key;

/// How many checks are made at a time. Apart from those of pushes, so that metrics can be read when pushes take all places.
const CHECKS_MAX: usize = 64;

/// Asks readers for what callers are asked for. Without keys, the push check lets everyone read.
pub(super) struct Readers {
    gateway: Gateway,
    callers: Arc<Callers>,
    checks: Semaphore,
}

impl Readers {
    pub(super) fn new(gateway: Gateway, callers: Arc<Callers>) -> Self {
        Self { gateway, callers, checks: Semaphore::new(CHECKS_MAX) }
    }

    /// Refuses a request that shows no key.
    pub(super) async fn check<B>(&self, request: &Request<B>, peer: &Peer) -> Result<(), Response<Body>> {
        let Err(reason) = self.authorize(request, peer).await else { return Ok(()) };
        let metrics = &self.gateway.rooms().metrics;
        metrics.reads_refused.of(&ReadRefusedLabels { reason }).inc();
        Err(if grpc::not_a_call(request).is_none() { grpc_answer(reason) } else { http_answer(reason) })
    }

    async fn authorize<B>(&self, request: &Request<B>, peer: &Peer) -> Result<(), ReadRefusal> {
        let _place = self.checks.try_acquire().map_err(|_| ReadRefusal::Overloaded)?;
        let headers = request.headers();
        let key = api_key(headers).or_else(|| basic_key(headers));
        let denial = match self.callers.check(key, headers, peer).await {
            Ok(_) => return Ok(()),
            Err(NotACaller::CheckUnavailable) => return Err(ReadRefusal::CheckUnavailable),
            Err(NotACaller::Denied(denial)) => denial,
        };
        self.gateway.rooms().audit.denied_to_read(denial, request.uri().path(), peer.address);
        Err(match denial {
            Denial::ExpiredToken => ReadRefusal::ExpiredToken,
            Denial::BadToken => ReadRefusal::BadToken,
            Denial::NoKey => ReadRefusal::NoKey,
            _ => ReadRefusal::UnknownKey,
        })
    }
}

/// The key of a browser, which can only be asked for a name and a password: the password, whatever the name.
fn basic_key(headers: &HeaderMap) -> Option<Token> {
    let (scheme, encoded) = headers.get(AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
    let decoded = STANDARD.decode(encoded.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    let (_, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    (!password.is_empty()).then(|| Token::new(password.to_owned()))
}

fn words(reason: ReadRefusal) -> &'static str {
    match reason {
        ReadRefusal::NoKey => "an API key is needed to read this",
        ReadRefusal::UnknownKey => "the API key is not known",
        ReadRefusal::ExpiredToken => "the token has expired",
        ReadRefusal::BadToken => "the token is refused; the gateway's log says why at level debug",
        ReadRefusal::CheckUnavailable => "push check unavailable, try again later",
        ReadRefusal::Overloaded => "overloaded, try again later",
    }
}

fn grpc_answer(reason: ReadRefusal) -> Response<Body> {
    let code = match reason {
        ReadRefusal::NoKey | ReadRefusal::UnknownKey | ReadRefusal::ExpiredToken | ReadRefusal::BadToken => {
            Code::Unauthenticated
        }
        ReadRefusal::CheckUnavailable => Code::Unavailable,
        ReadRefusal::Overloaded => Code::ResourceExhausted,
    };
    Status::new(code, words(reason)).into_http()
}

fn http_answer(reason: ReadRefusal) -> Response<Body> {
    let line = format!("{}\n", words(reason));
    match reason {
        ReadRefusal::NoKey | ReadRefusal::UnknownKey | ReadRefusal::ExpiredToken | ReadRefusal::BadToken => {
            let mut response = text(StatusCode::UNAUTHORIZED, line);
            for scheme in ["Bearer realm=\"pushgate\"", "Basic realm=\"pushgate\", charset=\"UTF-8\""] {
                response.headers_mut().append(WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
            }
            response
        }
        ReadRefusal::CheckUnavailable | ReadRefusal::Overloaded => try_later(StatusCode::SERVICE_UNAVAILABLE, line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_browser_is_its_password() {
        let key = |value: &str| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::try_from(value).unwrap())]);
            basic_key(&headers).map(|key| key.expose().to_owned())
        };
        assert_eq!(key(&format!("Basic {}", STANDARD.encode("me:k:1"))), Some("k:1".to_owned()));
        assert_eq!(key(&format!("basic {}", STANDARD.encode(":k"))), Some("k".to_owned()));
        for none in ["k", "me:"].map(|text| format!("Basic {}", STANDARD.encode(text))) {
            assert_eq!(key(&none), None);
        }
        assert_eq!(key("Basic k:1"), None, "not base64");
        assert_eq!(key(&format!("Bearer {}", STANDARD.encode("me:k"))), None);
    }
}

//! Asks the push check who a caller is.

use http::HeaderMap;

use crate::auth::{Deadline, Headers, PushCredentials, PushRefused, PushScope, Token};
use crate::gateway::{Denial, Gateway};
use crate::metrics::Check;
use crate::shares::Payer;

use super::peer::Peer;

/// The push check, and what it is told.
pub(super) struct Callers {
    gateway: Gateway,
    deadline: Deadline,
    /// The headers that the check looks at.
    headers_wanted: Vec<String>,
}

/// Why somebody is no caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotACaller {
    Denied(Denial),
    CheckUnavailable,
}

impl Callers {
    pub(super) fn new(gateway: &Gateway) -> Self {
        let rooms = gateway.rooms();
        Self {
            gateway: gateway.clone(),
            deadline: Deadline::new(Check::Push, rooms.config.check_timeout, rooms.metrics.clone()),
            headers_wanted: rooms.push_authorizer.headers_wanted(),
        }
    }

    /// Returns what whoever shows this key may do.
    pub(super) async fn check(
        &self,
        key: Option<Token>,
        headers: &HeaderMap,
        peer: &Peer,
    ) -> Result<PushScope, NotACaller> {
        let credentials = PushCredentials::new(key, peer.address)
            .with_certificate_names(peer.certificate_names.clone())
            .with_headers(Headers::of(headers, &self.headers_wanted));
        let check = self.gateway.rooms().push_authorizer.authorize(&credentials);
        let denial = match self.deadline.hold(check).await.ok_or(NotACaller::CheckUnavailable)? {
            Ok(scope) if credentials.has_name() => return Ok(scope.called_from(peer.address)),
            Ok(scope) => {
                let payer = Payer::Address(peer.address.ip().to_canonical());
                return Ok(scope.called_from(peer.address).paid_by(payer));
            }
            Err(PushRefused::Unavailable) => {
                self.deadline.unavailable("the check says so");
                return Err(NotACaller::CheckUnavailable);
            }
            Err(PushRefused::TokenExpired) => Denial::ExpiredToken,
            Err(PushRefused::TokenRefused) => Denial::BadToken,
            Err(PushRefused::Unauthenticated) if credentials.api_key.is_some() => Denial::UnknownKey,
            Err(PushRefused::Unauthenticated) => Denial::NoKey,
        };
        Err(NotACaller::Denied(denial))
    }
}

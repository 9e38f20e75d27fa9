//! Why a request to upgrade is refused: the answer, the metric and the log line of each reason.

use std::net::SocketAddr;
use std::time::Instant;

use http::header::{ALLOW, CONNECTION, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderValue, Response, StatusCode};
use tracing::warn;

use crate::config::Origin;
use crate::doors::{Body, text, try_later};
use crate::metrics::{InSnakeCase, UpgradeResult};
use crate::registry::AdmitError;
use crate::seldom::Seldom;

use super::token::BadToken;

/// Why there is no upgrade.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("not a WebSocket upgrade: {0}")]
    Malformed(#[from] Malformed),
    #[error("not a valid upgrade: {0}")]
    Token(#[from] BadToken),
    /// `None` if the header is not one origin.
    #[error("pages of this origin may not connect, see the gateway's setting origins_allowed")]
    Origin(Option<Origin>),
    #[error("too many upgrades from this address, the limit is {limit} a second")]
    TooFastFromAddress { limit: u32 },
    #[error(transparent)]
    NotAdmitted(#[from] AdmitError),
}

/// Why a request is not a valid WebSocket upgrade, by RFC 6455 section 4.2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("the method is not GET")]
    Method,
    #[error("the HTTP version is not 1.1")]
    HttpVersion,
    #[error("no Connection header lists upgrade")]
    Connection,
    #[error("no Upgrade header lists websocket")]
    Upgrade,
    #[error("there is no Sec-WebSocket-Version header, or not one of 13 alone")]
    Version,
    #[error("there is no Sec-WebSocket-Key header, or not one of 16 bytes in base64 alone")]
    Key,
}

impl Refusal {
    pub(super) fn result(&self) -> UpgradeResult {
        match self {
            Self::Malformed(_) | Self::Token(_) => UpgradeResult::Malformed,
            Self::Origin(_) => UpgradeResult::OriginRefused,
            Self::TooFastFromAddress { .. } => UpgradeResult::TooFastFromAddress,
            Self::NotAdmitted(AdmitError::TooMany { .. }) => UpgradeResult::TooMany,
            Self::NotAdmitted(AdmitError::TooManyFromAddress { .. }) => UpgradeResult::TooManyFromAddress,
            Self::NotAdmitted(AdmitError::Draining) => UpgradeResult::Draining,
        }
    }

    pub(super) fn answer(&self) -> Response<Body> {
        match self {
            Self::Malformed(malformed) => malformed.answer(self.to_string()),
            Self::Token(_) => text(StatusCode::BAD_REQUEST, self.to_string()),
            Self::Origin(_) => text(StatusCode::FORBIDDEN, self.to_string()),
            Self::NotAdmitted(AdmitError::TooMany { .. } | AdmitError::Draining) => {
                try_later(StatusCode::SERVICE_UNAVAILABLE, self.to_string())
            }
            Self::TooFastFromAddress { .. } | Self::NotAdmitted(AdmitError::TooManyFromAddress { .. }) => {
                try_later(StatusCode::TOO_MANY_REQUESTS, self.to_string())
            }
        }
    }
}

impl Malformed {
    fn answer(self, why: String) -> Response<Body> {
        let status = match self {
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::HttpVersion | Self::Connection | Self::Upgrade | Self::Version => StatusCode::UPGRADE_REQUIRED,
            Self::Key => StatusCode::BAD_REQUEST,
        };
        let mut response = text(status, why);
        let headers = response.headers_mut();
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET"));
        }
        if status == StatusCode::UPGRADE_REQUIRED {
            // RFC 9110 section 7.8 and RFC 6455 section 4.4 require the response to name what the server supports.
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        response
    }
}

/// Logs refusals that an operator can do something about, at most one of each kind a second.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    origin: Seldom,
    too_fast_from_address: Seldom,
    too_many: Seldom,
    too_many_from_address: Seldom,
}

impl Refusals {
    pub(super) fn log(&self, refusal: &Refusal, peer: SocketAddr) {
        let seldom = match refusal {
            Refusal::Malformed(_) | Refusal::Token(_) | Refusal::NotAdmitted(AdmitError::Draining) => return,
            Refusal::Origin(_) => &self.origin,
            Refusal::TooFastFromAddress { .. } => &self.too_fast_from_address,
            Refusal::NotAdmitted(AdmitError::TooMany { .. }) => &self.too_many,
            Refusal::NotAdmitted(AdmitError::TooManyFromAddress { .. }) => &self.too_many_from_address,
        };
        let Some(left_out) = seldom.due(Instant::now()) else { return };
        let result = InSnakeCase(refusal.result());
        match refusal {
            Refusal::Origin(Some(origin)) => warn!(%peer, %origin, %result, left_out, "upgrade refused: {refusal}"),
            _ => warn!(%peer, %result, left_out, "upgrade refused: {refusal}"),
        }
    }
}

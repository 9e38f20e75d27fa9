//! The door of operators: `pushgate.v1.AdminService`. Who may call what is checked before it.

use std::time::{Duration, SystemTime};

use tonic::{Request, Response, Status};

use crate::doors::api::{Wrong, called};
use crate::gateway::{Drained, Gateway, Revocation};
use crate::message::UserId;
use crate::proto;
use crate::proto::admin_service_server::{AdminService, AdminServiceServer};
use crate::proto::revoke_request::Tokens;
use crate::revocations::Revoked;

/// The longest period of a drain, as of the setting.
const PERIOD_MAX: Duration = Duration::from_secs(86_400);

/// The farthest time ahead that a revocation may name.
const AHEAD_MAX: Duration = Duration::from_secs(10 * 366 * 86_400);

/// The service behind the generated server.
#[derive(Clone)]
pub(crate) struct AdminDoor {
    gateway: Gateway,
}

impl AdminDoor {
    /// The service, with room for the largest request.
    pub(crate) fn server(gateway: Gateway) -> AdminServiceServer<Self> {
        let request_bytes_max = gateway.rooms().config.request_bytes_max;
        AdminServiceServer::new(Self { gateway }).max_decoding_message_size(request_bytes_max)
    }
}

#[tonic::async_trait]
impl AdminService for AdminDoor {
    async fn drain(&self, request: Request<proto::DrainRequest>) -> Result<Response<proto::DrainResponse>, Status> {
        let (caller, request) = called(request)?;
        let period = match request.period {
            None => self.gateway.rooms().config.drain_period,
            Some(period) => self::period(period)?,
        };
        let Drained { was_draining, connections } =
            self.gateway.drain_from(&caller.scope, period).await.map_err(Wrong::from)?;
        let period = prost_types::Duration::try_from(period).ok();
        Ok(Response::new(proto::DrainResponse { connections, period, was_draining }))
    }

    async fn undrain(
        &self,
        request: Request<proto::UndrainRequest>,
    ) -> Result<Response<proto::UndrainResponse>, Status> {
        let (caller, proto::UndrainRequest {}) = called(request)?;
        let Drained { was_draining, connections } =
            self.gateway.undrain_from(&caller.scope).await.map_err(Wrong::from)?;
        Ok(Response::new(proto::UndrainResponse { was_draining, connections }))
    }

    async fn revoke(&self, request: Request<proto::RevokeRequest>) -> Result<Response<proto::RevokeResponse>, Status> {
        let (caller, request) = called(request)?;
        let now = SystemTime::now();
        let expires_at = request.expires_at.map(|at| time("expires_at", at, now)).transpose()?;
        if expires_at.is_some_and(|at| at <= now) {
            let problem = "expires_at is past: such tokens are refused without a revocation";
            return Err(Wrong::field("expires_at", problem.to_owned()).into());
        }
        let revoked = revoked(request, now)?;
        let Revocation { closed, sessions_ended, until } =
            self.gateway.revoke_from(&caller.scope, revoked, expires_at).await.map_err(Wrong::from)?;
        Ok(Response::new(proto::RevokeResponse { closed, sessions_ended, until: Some(until.into()) }))
    }
}

/// Which tokens are meant.
fn revoked(request: proto::RevokeRequest, now: SystemTime) -> Result<Revoked, Wrong> {
    let issued_before = request.issued_before.map(|at| time("issued_before", at, now)).transpose()?;
    match (request.tokens, issued_before) {
        (None, _) => Err(Wrong::field("tokens", "there is neither a user_id nor a token_id".to_owned())),
        (Some(Tokens::UserId(user_id)), issued_before) => {
            Ok(Revoked::User { user_id: UserId::new(user_id)?, issued_before: issued_before.unwrap_or(now) })
        }
        (Some(Tokens::TokenId(_)), Some(_)) => {
            Err(Wrong::field("issued_before", "issued_before has no use with a token_id".to_owned()))
        }
        (Some(Tokens::TokenId(token_id)), None) if token_id.is_empty() => {
            Err(Wrong::field("token_id", "the token id is empty".to_owned()))
        }
        (Some(Tokens::TokenId(token_id)), None) => Ok(Revoked::token(&token_id)),
    }
}

/// A point in time that is not absurd, so that a mistake of units is noticed.
fn time(field: &'static str, at: prost_types::Timestamp, now: SystemTime) -> Result<SystemTime, Wrong> {
    let at = SystemTime::try_from(at).ok().filter(|at| (SystemTime::UNIX_EPOCH..=now + AHEAD_MAX).contains(at));
    at.ok_or_else(|| Wrong::field(field, format!("{field} is not a time from 1970 to ten years from now")))
}

fn period(period: prost_types::Duration) -> Result<Duration, Wrong> {
    let period = Duration::try_from(period).ok().filter(|period| *period <= PERIOD_MAX);
    period.ok_or_else(|| Wrong::field("period", "the period is not a time from 0 to 24 hours".to_owned()))
}

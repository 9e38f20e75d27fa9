//! The door of operators: `pushgate.v1.AdminService`. Who may call what is checked before it.

use std::time::Duration;

use tonic::{Request, Response, Status};

use crate::doors::api::{Wrong, called};
use crate::gateway::{Drained, Gateway};
use crate::proto;
use crate::proto::admin_service_server::{AdminService, AdminServiceServer};

/// The longest period of a drain, as of the setting.
const PERIOD_MAX: Duration = Duration::from_secs(86_400);

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
}

fn period(period: prost_types::Duration) -> Result<Duration, Wrong> {
    let period = Duration::try_from(period).ok().filter(|period| *period <= PERIOD_MAX);
    period.ok_or_else(|| Wrong::field("period", "the period is not a time from 0 to 24 hours".to_owned()))
}

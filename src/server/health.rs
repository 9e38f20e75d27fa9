//! `grpc.health.v1`: the status of each service, for single checks and for watches.

use std::pin::Pin;

use futures_util::{Stream, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health as HealthApi;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::gateway::Readiness;
use crate::proto;

/// The services that it knows; the empty name is the gateway as a whole.
const NAMES: [&str; 3] = ["", proto::push_service_server::SERVICE_NAME, proto::admin_service_server::SERVICE_NAME];

/// All services serve while the gateway is ready. Clones share the view of it.
#[derive(Clone)]
pub(super) struct Health(watch::Receiver<Readiness>);

impl Health {
    pub(super) fn new(readiness: watch::Receiver<Readiness>) -> Self {
        Self(readiness)
    }
}

fn status_of(service: &str, readiness: Readiness) -> Option<ServingStatus> {
    let status = if readiness == Readiness::Ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    NAMES.contains(&service).then_some(status)
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl HealthApi for Health {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let status = status_of(&request.get_ref().service, *self.0.borrow());
        status.map(|status| Response::new(response(status))).ok_or_else(|| Status::not_found("no such service"))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let watching = self.0.clone();
        let responses = stream::unfold((watching, None), move |(mut readiness, last_sent)| {
            let service = service.clone();
            async move {
                loop {
                    let now = *readiness.borrow_and_update();
                    let status = status_of(&service, now).unwrap_or(ServingStatus::ServiceUnknown);
                    if last_sent != Some(status) {
                        return Some((Ok(response(status)), (readiness, Some(status))));
                    }
                    if now == Readiness::Over {
                        return None;
                    }
                    readiness.changed().await.ok()?;
                }
            }
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

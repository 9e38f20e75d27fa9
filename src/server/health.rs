//! `grpc.health.v1`: the status of each service, for single checks and for watches.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health as HealthApi;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// The statuses of all services. Clones share them.
#[derive(Clone)]
pub(super) struct Health(Arc<watch::Sender<Statuses>>);

#[derive(Default)]
struct Statuses {
    by_service: HashMap<&'static str, ServingStatus>,
    /// Whether watches end after the current status.
    is_over: bool,
}

impl Statuses {
    fn of(&self, service: &str) -> Option<ServingStatus> {
        self.by_service.get(service).copied()
    }
}

impl Health {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::default()))
    }

    /// Sets the status of a service and notifies its watches.
    pub(super) fn set_service_status(&self, service: &'static str, status: ServingStatus) {
        self.0.send_modify(|statuses| {
            statuses.by_service.insert(service, status);
        });
    }

    /// Ends every watch after it has sent the current status.
    pub(super) fn end_watches(&self) {
        self.0.send_modify(|statuses| statuses.is_over = true);
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl HealthApi for Health {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let status = self.0.borrow().of(&request.get_ref().service);
        status.map(|status| Response::new(response(status))).ok_or_else(|| Status::not_found("no such service"))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let watching = (self.0.subscribe(), None);
        let responses = stream::unfold(watching, move |(mut statuses, last_sent)| {
            let service = service.clone();
            async move {
                loop {
                    let (status, is_over) = {
                        let statuses = statuses.borrow_and_update();
                        // A service that is unknown now may be added later, so the watch continues.
                        (statuses.of(&service).unwrap_or(ServingStatus::ServiceUnknown), statuses.is_over)
                    };
                    if last_sent != Some(status) {
                        return Some((Ok(response(status)), (statuses, Some(status))));
                    }
                    if is_over {
                        return None;
                    }
                    statuses.changed().await.ok()?;
                }
            }
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

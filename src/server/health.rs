//! `grpc.health.v1`: what is served, asked once or watched.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health as HealthApi;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// The statuses of all services. A clone is the same statuses.
#[derive(Clone)]
pub(super) struct Health(Arc<watch::Sender<Statuses>>);

#[derive(Default)]
struct Statuses {
    by_service: HashMap<&'static str, ServingStatus>,
    /// Whether whoever watches has been told all there is.
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

    /// Sets a service's status, and tells whoever watches it.
    pub(super) fn set_service_status(&self, service: &'static str, status: ServingStatus) {
        self.0.send_modify(|statuses| {
            statuses.by_service.insert(service, status);
        });
    }

    /// Ends every watch, once each has been told the status it watches.
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
        let told = stream::unfold(watching, move |(mut statuses, told)| {
            let service = service.clone();
            async move {
                loop {
                    let (status, is_over) = {
                        let statuses = statuses.borrow_and_update();
                        // A service that is not known now may be later, so the watch goes on.
                        (statuses.of(&service).unwrap_or(ServingStatus::ServiceUnknown), statuses.is_over)
                    };
                    if told != Some(status) {
                        return Some((Ok(response(status)), (statuses, Some(status))));
                    }
                    if is_over {
                        return None;
                    }
                    statuses.changed().await.ok()?;
                }
            }
        });
        Ok(Response::new(Box::pin(told)))
    }
}

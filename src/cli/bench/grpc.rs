//! Pushes over gRPC: `Push`, `PushBatch`, `PushStream` and `Broadcast`.

use std::sync::Arc;

use pushgate::proto::push_request::Payload;
use pushgate::proto::push_result::Result as ResultOf;
use pushgate::proto::push_service_client::PushServiceClient;
use pushgate::proto::{BroadcastRequest, PushBatchRequest, PushRequest, PushStreamRequest, broadcast_request};
use tokio::sync::Semaphore;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::calls::{Call, Calls};
use super::clock::{Timer, now};
use super::target::Target;
use super::wire::{Part, message};

#[derive(Clone)]
pub(super) struct Caller {
    client: PushServiceClient<Channel>,
    key: Option<MetadataValue<Ascii>>,
}

impl Caller {
    pub(super) async fn connect(target: &Target) -> Result<Self, String> {
        let key =
            target.key.as_ref().map(|key| MetadataValue::try_from(key).map_err(|_| "the key is not a header value"));
        // The README recommends these window sizes, so that a stream of small answers is not cut.
        let url = match &target.push_tls {
            Some(tls) => tls.grpc_url.clone(),
            None => format!("http://{}", target.push_address),
        };
        let mut endpoint = Endpoint::from_shared(url)
            .map_err(|error| error.to_string())?
            .initial_stream_window_size(64 * 1024)
            .initial_connection_window_size(1024 * 1024)
            .tcp_nodelay(true);
        if let Some(tls) = &target.push_tls {
            endpoint = endpoint.tls_config(tls.for_grpc.clone()).map_err(|error| crate::cli::chain(&error))?;
        }
        let channel = endpoint.connect().await.map_err(|error| crate::cli::chain(&error))?;
        Ok(Self { client: PushServiceClient::new(channel), key: key.transpose()? })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(key) = &self.key {
            request.metadata_mut().insert("x-api-key", key.clone());
        }
        request
    }

    pub(super) async fn push(&mut self, push: PushRequest) -> Result<u64, String> {
        let request = self.request(push);
        self.client.push(request).await.map(|answer| answer.into_inner().accepted).map_err(|status| describe(&status))
    }

    pub(super) async fn broadcast(&mut self, event: &str, message: String) -> Result<u64, String> {
        let payload = Some(broadcast_request::Payload::Message(message));
        let request =
            self.request(BroadcastRequest { event: event.to_owned(), payload, ..BroadcastRequest::default() });
        let answer = self.client.broadcast(request).await.map_err(|status| describe(&status))?;
        Ok(answer.into_inner().outcome.unwrap_or_default().accepted)
    }

    /// Makes one call with all pushes. Returns a result for each push, in order.
    pub(super) async fn batch(&mut self, pushes: Vec<PushRequest>) -> Result<Vec<Result<u64, String>>, String> {
        let request = self.request(PushBatchRequest { pushes });
        let answer = self.client.push_batch(request).await.map_err(|status| describe(&status))?;
        Ok(answer.into_inner().results.into_iter().map(|result| outcome(result.result)).collect())
    }

    /// Pushes over one stream until the schedule is over and every result has arrived, with at most `in_flight` pushes
    /// at the same time.
    pub(super) async fn stream(mut self, call: Arc<Call>, in_flight: usize, timer: Timer) -> Calls {
        let places = Arc::new(Semaphore::new(in_flight));
        let (target, schedule) = (call.target.clone(), call.schedule.clone());
        let sending = (call.clone(), places.clone(), timer);
        let messages = futures_util::stream::unfold(sending, |(call, places, mut timer)| async move {
            places.acquire().await.ok()?.forget();
            let at = call.schedule.next(&mut timer).await?;
            let client = call.target.next();
            // The correlation id carries what is needed to count the result.
            let correlation_id = format!("{at:x}-{client:x}");
            let push = Some(push(&call.target, client, call.part, at, call.bytes));
            Some((PushStreamRequest { correlation_id, push }, (call, places, timer)))
        });
        let mut calls = Calls::new();
        let request = self.request(messages);
        let mut results = match self.client.push_stream(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                calls.failed(&describe(&status));
                return calls;
            }
        };
        loop {
            match results.message().await {
                Ok(Some(response)) => {
                    let number = |text: &str| u64::from_str_radix(text, 16).unwrap_or_default();
                    let (at, client) = response.correlation_id.split_once('-').unwrap_or_default();
                    let client = usize::try_from(number(client)).unwrap_or_default();
                    calls.latency(now().saturating_sub(number(at)));
                    let outcome = outcome(response.result.and_then(|result| result.result));
                    calls.done(outcome, target.receivers(client), &schedule);
                    places.add_permits(1);
                }
                Ok(None) => return calls,
                Err(status) => {
                    calls.failed(&describe(&status));
                    return calls;
                }
            }
        }
    }
}

/// Builds a push to a client's user.
pub(super) fn push(target: &Target, client: usize, part: Part, at: u64, bytes: usize) -> PushRequest {
    PushRequest {
        user_id: target.user_of(client),
        event: target.event.clone(),
        payload: Some(Payload::Message(message(part, at, bytes))),
        ..PushRequest::default()
    }
}

fn outcome(result: Option<ResultOf>) -> Result<u64, String> {
    match result {
        Some(ResultOf::Outcome(outcome)) => Ok(outcome.accepted),
        Some(ResultOf::Error(error)) => Err(error.message),
        None => Err("a result without an outcome".to_owned()),
    }
}

fn describe(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

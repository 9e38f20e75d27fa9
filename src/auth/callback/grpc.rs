//! Asks about a token by gRPC: `pushgate.v1.TokenCheckService`.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use http::Uri;
use tokio_rustls::rustls::RootCertStore;
use tonic::Code;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use super::super::https;
use super::super::{Identity, ReloadError};
use super::question::{Answer, Grant, NoAnswer, Question, Refused, patterns, user};
use super::{ANSWER_BYTES_MAX, Service};
use crate::proto::token_check_service_client::TokenCheckServiceClient;
use crate::proto::{CheckTokenRequest, HeaderValues};

/// How often a quiet connection is tried, so that a dead one is noticed before a client needs it.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// A service that speaks gRPC, over one connection.
pub(super) struct Grpc {
    client: TokenCheckServiceClient<Channel>,
}

impl Grpc {
    pub(super) fn new(uri: Uri, is_tls: bool, roots: RootCertStore) -> Result<Self, ReloadError> {
        let wrong = |error: tonic::transport::Error| ReloadError::Other(Box::new(error));
        let mut endpoint = Endpoint::from(uri)
            .user_agent(https::USER_AGENT)
            .map_err(wrong)?
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        if is_tls {
            endpoint = endpoint.tls_config(ClientTlsConfig::new().trust_anchors(roots.roots)).map_err(wrong)?;
        }
        let client = TokenCheckServiceClient::new(endpoint.connect_lazy());
        Ok(Self { client: client.max_decoding_message_size(ANSWER_BYTES_MAX) })
    }
}

#[async_trait]
impl Service for Grpc {
    async fn ask(&self, question: &Question) -> Result<Answer, NoAnswer> {
        let mut request = CheckTokenRequest {
            token: question.token.expose().to_owned(),
            event: question.event.as_str().to_owned(),
            peer: question.peer.to_string(),
            ..CheckTokenRequest::default()
        };
        for (name, value) in question.headers.iter() {
            let HeaderValues { values } = request.headers.entry(name.to_owned()).or_default();
            values.push(value.to_owned());
        }
        // Cloning is a reference count.
        let response = match self.client.clone().check_token(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => {
                return match status.code() {
                    Code::Unauthenticated => Ok(Err(Refused::Token)),
                    Code::PermissionDenied => Ok(Err(Refused::Event)),
                    code => Err(NoAnswer::Code(code)),
                };
            }
        };
        let time = |time: Option<prost_types::Timestamp>| {
            let malformed = NoAnswer::Malformed("expires_at or issued_at is not a valid time");
            time.map(SystemTime::try_from).transpose().map_err(|_| malformed)
        };
        let identity = Identity {
            expires_at: time(response.expires_at)?,
            token_id: Some(response.token_id).filter(|token_id| !token_id.is_empty()),
            issued_at: time(response.issued_at)?,
            ..user(response.user_id)?
        };
        Ok(Ok(Grant { identity, events: response.events.as_ref().map(|events| patterns(&events.patterns)) }))
    }
}

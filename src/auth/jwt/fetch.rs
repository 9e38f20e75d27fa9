//! Fetches the keys of `jwt_jwks_url`: bounded in bytes and time, and from nowhere else than that address.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, HeaderMap, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use tokio_rustls::rustls::RootCertStore;

use super::super::ReloadError;
use super::super::https::{self, HttpClient};

/// Bytes of a document. Those of large providers have a few KiB, most of it certificates.
const DOCUMENT_BYTES_MAX: usize = 256 * 1024;

/// How long a fetch may take in all. A check that waits for it ends at `check_timeout` if that is earlier.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// A document as the provider sent it.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) content: Bytes,
    /// How long the provider says that it stays good.
    pub(super) max_age: Option<Duration>,
}

/// Why a document could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("there was no complete answer within {}", humantime::format_duration(TIMEOUT))]
    TimedOut,
    #[error("the provider cannot be reached")]
    Unreachable(#[source] hyper_util::client::legacy::Error),
    #[error("the provider answered {0}; redirects are not followed")]
    Redirected(StatusCode),
    #[error("the provider answered {0}")]
    Refused(StatusCode),
    #[error("the document cannot be read, or has more than {DOCUMENT_BYTES_MAX} bytes")]
    Unreadable(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the document cannot be used: {0}")]
    Unusable(String),
    #[error("a panic, which is a bug")]
    Panicked,
}

/// Where documents come from.
#[async_trait]
pub(super) trait Fetch: Send + Sync + 'static {
    async fn fetch(&self) -> Result<Document, FetchError>;
}

/// The address of a document.
pub(super) struct Address {
    uri: Uri,
    client: HttpClient<Empty<Bytes>>,
}

impl Address {
    /// Trusts the certificate authorities of the system, or those in `SSL_CERT_FILE`. `setting` is whose address it is.
    pub(super) fn new(uri: Uri, setting: &str) -> Result<Self, ReloadError> {
        // Of http, `Config::validate` has allowed nothing but loopback addresses.
        let is_tls = uri.scheme_str() == Some("https");
        let roots = if is_tls { https::roots(None, setting)? } else { RootCertStore::empty() };
        // Fetches are minutes apart, so that a connection that is kept would mostly be a dead one.
        Ok(Self { uri, client: https::client(roots, 0)? })
    }
}

#[async_trait]
impl Fetch for Address {
    async fn fetch(&self) -> Result<Document, FetchError> {
        tokio::time::timeout(TIMEOUT, self.get()).await.unwrap_or(Err(FetchError::TimedOut))
    }
}

impl Address {
    async fn get(&self) -> Result<Document, FetchError> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.insert(ACCEPT, http::HeaderValue::from_static("application/jwk-set+json, application/json"));
        headers.insert(USER_AGENT, http::HeaderValue::from_static(https::USER_AGENT));
        let response = self.client.request(request).await.map_err(FetchError::Unreachable)?;
        match response.status() {
            StatusCode::OK => {}
            status if status.is_redirection() => return Err(FetchError::Redirected(status)),
            status => return Err(FetchError::Refused(status)),
        }
        let max_age = max_age(response.headers());
        let body = Limited::new(response.into_body(), DOCUMENT_BYTES_MAX).collect().await;
        Ok(Document { content: body.map_err(FetchError::Unreadable)?.to_bytes(), max_age })
    }
}

fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let directives = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut directives = directives.flat_map(|value| value.split(','));
    let seconds = directives.find_map(|directive| directive.trim().strip_prefix("max-age=")?.parse().ok())?;
    Some(Duration::from_secs(seconds))
}

//! Fetches the keys of `jwt_jwks_url`: bounded in bytes and time, and from nowhere else than that address.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, HeaderMap, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Bytes of a document. Those of large providers have a few KiB, most of it certificates.
const DOCUMENT_BYTES_MAX: usize = 256 * 1024;

/// How long a fetch may take in all. Shorter than `bind_timeout`, so that a client that waits for it gets an answer.
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
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

impl Address {
    /// Trusts the certificate authorities of the system, or those in `SSL_CERT_FILE`.
    pub(super) fn new(uri: Uri) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let mut roots = RootCertStore::empty();
        if uri.scheme_str() == Some("https") {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                return Err(
                    "this system has no certificate authorities to trust for jwt_jwks_url; install ca-certificates, \
                            or name a file of them in the environment variable SSL_CERT_FILE"
                        .into(),
                );
            }
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // Of http, `Config::validate` has allowed nothing but loopback addresses.
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        // Fetches are minutes apart, so that a connection that is kept would mostly be a dead one.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Ok(Self { uri, client })
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
        let agent = concat!("pushgate/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, http::HeaderValue::from_static(agent));
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

//! The client side of HTTP: whom it trusts, and a client that goes to one address and follows no redirect.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Body;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::ReloadError;

/// What the gateway calls itself.
pub(super) const USER_AGENT: &str = concat!("pushgate/", env!("CARGO_PKG_VERSION"));

/// How long a connection without a request is kept. Shorter than servers usually keep theirs.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) type HttpClient<B> = Client<HttpsConnector<HttpConnector>, B>;

/// The certificate authorities of this file or, without one, of the system, or those in `SSL_CERT_FILE`. `setting` is what
/// they are needed for.
pub(super) fn roots(ca_file: Option<&Path>, setting: &str) -> Result<RootCertStore, ReloadError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = ca_file else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            let problem = format!(
                "this system has no certificate authorities to trust for {setting}; install ca-certificates, or name a \
                 file of them in the environment variable SSL_CERT_FILE"
            );
            return Err(ReloadError::Other(problem.into()));
        }
        return Ok(roots);
    };
    let malformed = |problem: String| ReloadError::Malformed { path: path.to_owned(), problem };
    let text = super::read_file(path)?;
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let certificate = certificate.map_err(|error| malformed(format!("not valid PEM: {error}")))?;
        roots.add(certificate).map_err(|error| malformed(format!("not a certificate that can be used: {error}")))?;
    }
    if roots.is_empty() { Err(malformed("it holds no certificate".to_owned())) } else { Ok(roots) }
}

/// A client for HTTP/1, with or without TLS, that keeps so many connections for later requests.
pub(super) fn client<B>(roots: RootCertStore, idle_max: usize) -> Result<HttpClient<B>, ReloadError>
where
    B: Body + Send + 'static,
    B::Data: Send,
{
    let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| ReloadError::Other(Box::new(error)))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_max_idle_per_host(idle_max).pool_idle_timeout(IDLE_TIMEOUT).pool_timer(TokioTimer::new());
    Ok(builder.build(connector))
}

/// What is behind an error, such as a certificate that is not trusted.
pub(super) fn causes(error: &dyn Error) -> String {
    let mut causes = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        causes.push(error.to_string());
        cause = error.source();
    }
    causes.join(": ")
}

//! The connection of `push`, `drop` and the commands of operators to a running gateway.

use std::error::Error;
use std::time::Duration;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use http::uri::Scheme;
use pushgate::proto::admin_service_client::AdminServiceClient;
use pushgate::proto::push_service_client::PushServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, TimeoutExpired};

use super::tls::Tls;

/// The time limit of connecting to the gateway, and of the call after it.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The gateway's address and an API key.
#[derive(Args)]
pub(super) struct Remote {
    /// The gateway's control address, as a URL, HOST:PORT or unix:/path
    #[arg(long, value_name = "URL", env = "PUSHGATE_ADDRESS", default_value = "http://127.0.0.1:12345",
        value_parser = NonEmptyStringValueParser::new())]
    address: String,
    /// An API key, if the gateway requires one; an empty one counts as none
    #[arg(long, value_name = "KEY", env = "PUSHGATE_KEY", hide_env_values = true)]
    key: Option<String>,
    #[command(flatten)]
    tls: Tls,
}

impl Remote {
    /// Makes one call of the `PushService`.
    pub(super) fn call<T, F>(
        self,
        call: impl FnOnce(PushServiceClient<Channel>, Caller) -> F,
    ) -> Result<T, Box<dyn Error>>
    where
        F: Future<Output = Result<T, Status>>,
    {
        self.connect(|channel, caller| call(PushServiceClient::new(channel), caller))
    }

    /// Makes one call of the `AdminService`.
    pub(super) fn admin<T, F>(
        self,
        call: impl FnOnce(AdminServiceClient<Channel>, Caller) -> F,
    ) -> Result<T, Box<dyn Error>>
    where
        F: Future<Output = Result<T, Status>>,
    {
        self.connect(|channel, caller| call(AdminServiceClient::new(channel), caller))
    }

    /// Connects and makes one call, on a runtime of its own. Each of the two may take [`PATIENCE`].
    fn connect<T, F>(self, call: impl FnOnce(Channel, Caller) -> F) -> Result<T, Box<dyn Error>>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let key = self.key.filter(|key| !key.is_empty());
        let key = key.map(|key| MetadataValue::try_from(key).map_err(|_| "the key is not a header value"));
        let caller = Caller { key: key.transpose()? };
        let address = self.address;
        let url = url(&address)?;
        let mut endpoint = Endpoint::from_shared(url)
            .map_err(|error| format!("not a gateway address: {address}: {error}"))?
            .connect_timeout(PATIENCE);
        let is_tls = endpoint.uri().scheme() == Some(&Scheme::HTTPS);
        if is_tls {
            endpoint = endpoint.tls_config(self.tls.for_grpc()?)?;
        }
        // A server tells either by an alert, but the connection may break before that is read.
        let guess = if is_tls && self.tls.shows_nothing() {
            " (if it asks for a certificate, show one with --cert-file and --key-file)"
        } else if is_tls || address.starts_with("unix:") {
            ""
        } else {
            " (if it speaks TLS, its address begins with https://)"
        };
        super::serve::runtime()?.block_on(async {
            let channel = endpoint.connect().await.map_err(|error| {
                format!("cannot reach a gateway at {address}: {}", explained(&super::chain(&error)))
            })?;
            call(channel, caller).await.map_err(|status| describe(&address, guess, &status).into())
        })
    }
}

/// The address as a URL.
fn url(address: &str) -> Result<String, String> {
    match address.split_once("://") {
        _ if address.starts_with("unix:") => Ok(address.to_owned()),
        None => Ok(format!("http://{address}")),
        Some((scheme, _)) if ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) => {
            Ok(address.to_owned())
        }
        Some(_) => Err(format!(
            "not a gateway address: {address}: must be HOST:PORT, unix:/path or begin with http:// or https://"
        )),
    }
}

/// Adds what to do about an error of TLS.
pub(super) fn explained(error: &str) -> String {
    let advice = if error.contains("UnknownIssuer") {
        " (name the CA of its certificate with --ca-file)"
    } else if error.contains("CaUsedAsEndEntity") {
        " (its certificate is that of a CA; one made by itself needs basicConstraints=CA:FALSE)"
    } else {
        ""
    };
    format!("{error}{advice}")
}

/// The credentials of the caller.
pub(super) struct Caller {
    key: Option<MetadataValue<Ascii>>,
}

impl Caller {
    pub(super) fn request<T>(self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(PATIENCE);
        if let Some(key) = self.key {
            request.metadata_mut().insert("x-api-key", key);
        }
        request
    }
}

/// Describes a failed call. An error that the gateway returned reads differently from a failure to reach it.
fn describe(address: &str, guess: &str, status: &Status) -> String {
    // A status that the server sent has no local cause.
    let Some(cause) = status.source() else {
        let (code, message) = (status.code(), status.message());
        // These are tonic's texts for a response that is not gRPC.
        let is_grpc = !message.starts_with("grpc-status header missing") && !message.contains("missing grpc-status");
        return if is_grpc {
            format!("the gateway answered {code:?}: {message}")
        } else {
            format!("the server at {address} is not a gateway: {message}")
        };
    };
    if is_timeout(cause) {
        return format!("no answer from a gateway at {address} within {}", humantime::format_duration(PATIENCE));
    }
    let text = super::chain(cause);
    format!("no answer from a gateway at {address}{guess}: {}", explained(&text))
}

fn is_timeout(error: &(dyn Error + 'static)) -> bool {
    error.is::<TimeoutExpired>() || error.source().is_some_and(is_timeout)
}

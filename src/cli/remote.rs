//! A running gateway, as `push` and `drop` reach it.

use std::error::Error;
use std::time::Duration;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use pushgate::proto::push_service_client::PushServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, TimeoutExpired};

/// How long a call may take, and the way to the gateway before it.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Where the gateway is, and the key to its push doors.
#[derive(Args)]
pub(super) struct Remote {
    /// The gateway's control address, as a URL, HOST:PORT or unix:/path
    #[arg(long, value_name = "URL", env = "PUSHGATE_ADDRESS", default_value = "http://127.0.0.1:12345",
        value_parser = NonEmptyStringValueParser::new())]
    address: String,
    /// An API key, where the gateway asks for one; an empty one is none
    #[arg(long, value_name = "KEY", env = "PUSHGATE_KEY", hide_env_values = true)]
    key: Option<String>,
}

impl Remote {
    /// Makes one call on a runtime of its own, within ten seconds.
    pub(super) fn call<T, F>(
        self,
        call: impl FnOnce(PushServiceClient<Channel>, Caller) -> F,
    ) -> Result<T, Box<dyn Error>>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let key = self.key.filter(|key| !key.is_empty());
        let key = key.map(|key| MetadataValue::try_from(key).map_err(|_| "the key is not a header value"));
        let caller = Caller { key: key.transpose()? };
        let address = self.address;
        let url = url(&address)?;
        let endpoint = Endpoint::from_shared(url)
            .map_err(|error| format!("no address of a gateway: {address}: {error}"))?
            .connect_timeout(PATIENCE);
        super::serve::runtime()?.block_on(async {
            let channel = endpoint
                .connect()
                .await
                .map_err(|error| format!("cannot reach a gateway at {address}: {}", super::chain(&error)))?;
            call(PushServiceClient::new(channel), caller).await.map_err(|status| described(&address, &status).into())
        })
    }
}

/// The address as a URL.
fn url(address: &str) -> Result<String, String> {
    match address.split_once("://") {
        _ if address.starts_with("unix:") => Ok(address.to_owned()),
        None => Ok(format!("http://{address}")),
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("http") => Ok(address.to_owned()),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => Err(format!(
            "cannot reach a gateway at {address}: this command does not speak TLS; give the address of the gateway \
             itself, as http://{rest}"
        )),
        Some(_) => {
            Err(format!("no address of a gateway: {address}: must be HOST:PORT, unix:/path or begin with http://"))
        }
    }
}

/// Who calls.
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

/// What the gateway answered, told from what broke on the way to it.
fn described(address: &str, status: &Status) -> String {
    // A status that came from the other side has no cause on this one.
    let Some(cause) = status.source() else {
        let (code, message) = (status.code(), status.message());
        // tonic's words for an answer that is not one of gRPC.
        let is_grpc = !message.starts_with("grpc-status header missing") && !message.contains("missing grpc-status");
        return if is_grpc {
            format!("the gateway answered {code:?}: {message}")
        } else {
            format!("what answered at {address} is no gateway: {message}")
        };
    };
    if is_timeout(cause) {
        return format!("no answer from a gateway at {address} within {}", humantime::format_duration(PATIENCE));
    }
    let text = super::chain(cause);
    // Whoever speaks HTTP/1 or TLS sends bytes that make no frame.
    let guess = if text.contains("frame with invalid size") { " (is it HTTP/2 without TLS?)" } else { "" };
    format!("no answer from a gateway at {address}{guess}: {text}")
}

fn is_timeout(error: &(dyn Error + 'static)) -> bool {
    error.is::<TimeoutExpired>() || error.source().is_some_and(is_timeout)
}

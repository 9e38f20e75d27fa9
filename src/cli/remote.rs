//! A running gateway, as `push` and `drop` reach it.

use std::error::Error;
use std::time::Duration;

use clap::Args;
use pushgate::proto::push_service_client::PushServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// Where the gateway is, and the key to its push doors.
#[derive(Args)]
pub(super) struct Remote {
    /// The gateway's control address, as a URL or HOST:PORT
    #[arg(long, value_name = "URL", env = "PUSHGATE_ADDRESS", default_value = "http://127.0.0.1:12345")]
    address: String,
    /// An API key, where the gateway asks for one
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
        let key = self.key.map(|key| MetadataValue::try_from(key).map_err(|_| "the key is not a header value"));
        let caller = Caller { key: key.transpose()? };
        let scheme = if self.address.contains("://") { "" } else { "http://" };
        let endpoint = Endpoint::from_shared(format!("{scheme}{}", self.address))
            .map_err(|error| format!("no address of a gateway: {}: {error}", self.address))?
            .connect_timeout(Duration::from_secs(10));
        super::serve::runtime()?.block_on(async {
            let channel = endpoint
                .connect()
                .await
                .map_err(|error| format!("cannot reach a gateway at {}: {}", self.address, super::chain(&error)))?;
            call(PushServiceClient::new(channel), caller).await.map_err(|status| described(&status).into())
        })
    }
}

/// Who calls.
pub(super) struct Caller {
    key: Option<MetadataValue<Ascii>>,
}

impl Caller {
    pub(super) fn request<T>(self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(Duration::from_secs(10));
        if let Some(key) = self.key {
            request.metadata_mut().insert("x-api-key", key);
        }
        request
    }
}

fn described(status: &Status) -> String {
    format!("the gateway answered {:?}: {}", status.code(), status.message())
}

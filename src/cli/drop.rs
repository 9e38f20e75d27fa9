//! `pushgate drop`

use clap::Args;
use pushgate::proto::DropRequest;

use super::Outcome;
use super::remote::Remote;

#[derive(Args)]
pub(super) struct Drop {
    /// The user whose connections to close
    user: String,
    /// Close only connections bound to this event; without it, close all connections of the user
    event: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

impl Drop {
    pub(super) fn run(self) -> Outcome {
        let drop = DropRequest { user_id: self.user, event: self.event.unwrap_or_default() };
        let response = self
            .remote
            .call(|mut client, caller| async move { Ok(client.drop(caller.request(drop)).await?.into_inner()) })?;
        let connections = if response.closed == 1 { "connection" } else { "connections" };
        super::print::result(&format!("closed {} {connections}", response.closed));
        Ok(())
    }
}

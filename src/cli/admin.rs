//! `pushgate drain` and `pushgate undrain`: what an operator does with a running gateway.

use std::time::Duration;

use clap::Args;
use pushgate::proto::{DrainRequest, UndrainRequest};

use super::Outcome;
use super::remote::Remote;

#[derive(Args)]
pub(super) struct Drain {
    /// The time over which the connections are closed, such as 1m [default: the gateway's drain_period]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    period: Option<Duration>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Args)]
pub(super) struct Undrain {
    #[command(flatten)]
    remote: Remote,
}

impl Drain {
    pub(super) fn run(self) -> Outcome {
        let period = self.period.map(prost_types::Duration::try_from).transpose()?;
        let drain = DrainRequest { period };
        let response = self
            .remote
            .admin(|mut client, caller| async move { Ok(client.drain(caller.request(drain)).await?.into_inner()) })?;
        let period = response.period.and_then(|period| Duration::try_from(period).ok()).unwrap_or_default();
        let (connections, period) = (connections(response.connections), humantime::format_duration(period));
        let again = if response.was_draining { "draining again" } else { "draining" };
        super::print::result(&format!("{again}: {connections} to close over {period}"));
        Ok(())
    }
}

impl Undrain {
    pub(super) fn run(self) -> Outcome {
        let response = self.remote.admin(|mut client, caller| async move {
            Ok(client.undrain(caller.request(UndrainRequest {})).await?.into_inner())
        })?;
        let open = connections(response.connections);
        super::print::result(&if response.was_draining {
            format!("undrained, with {open} open")
        } else {
            format!("it was not draining, and has {open} open")
        });
        Ok(())
    }
}

fn connections(count: u64) -> String {
    format!("{count} {}", if count == 1 { "connection" } else { "connections" })
}

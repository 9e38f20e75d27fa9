//! `pushgate drain`, `pushgate undrain` and `pushgate revoke`: what an operator does with a running gateway.

use std::time::{Duration, SystemTime};

use clap::Args;
use pushgate::proto::revoke_request::Tokens;
use pushgate::proto::{DrainRequest, RevokeRequest, UndrainRequest};

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

#[derive(Args)]
pub(super) struct Revoke {
    #[command(flatten)]
    tokens: Which,
    /// With --user: the time before which the tokens were issued, such as 2027-01-01T12:00:00Z [default: now]
    #[arg(long, value_name = "TIME", conflicts_with = "token_id", value_parser = humantime::parse_rfc3339_weak)]
    issued_before: Option<SystemTime>,
    /// When the last of the tokens expires [default: the gateway's revocation_age from now]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    expires_at: Option<SystemTime>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// Revoke the tokens of this user
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Revoke the token with this id, the jti of a JWT
    #[arg(long, value_name = "ID")]
    token_id: Option<String>,
}

impl Revoke {
    pub(super) fn run(self) -> Outcome {
        let tokens = self.tokens.user.map(Tokens::UserId).or(self.tokens.token_id.map(Tokens::TokenId));
        let (issued_before, expires_at) = (self.issued_before.map(Into::into), self.expires_at.map(Into::into));
        let revoke = RevokeRequest { tokens, issued_before, expires_at };
        let response = self
            .remote
            .admin(|mut client, caller| async move { Ok(client.revoke(caller.request(revoke)).await?.into_inner()) })?;
        let until = response.until.and_then(|until| SystemTime::try_from(until).ok()).unwrap_or(SystemTime::UNIX_EPOCH);
        let until = humantime::format_rfc3339_seconds(until);
        let (closed, sessions) = (connections(response.closed), response.sessions_ended);
        let sessions = format!("{sessions} {}", if sessions == 1 { "session" } else { "sessions" });
        super::print::result(&format!("revoked until {until}, closed {closed}, ended {sessions} without one"));
        Ok(())
    }
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

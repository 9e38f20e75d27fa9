//! `pushgate push`

use std::error::Error;
use std::fmt;
use std::io::Read;
use std::time::Duration;

use clap::{Args, ValueEnum};
use pushgate::proto::{DropCount, DropReason, Level, PushRequest, PushResponse, push_request::Payload};

use super::Outcome;
use super::remote::Remote;

#[derive(Args)]
pub(super) struct Push {
    /// The user to push to
    user: String,
    /// The event to push
    event: String,
    /// The message; `-` reads it from standard input
    message: String,
    /// How far to follow the message before the command returns
    #[arg(long, value_enum, default_value_t = WaitFor::Accepted)]
    wait_for: WaitFor,
    /// Keep the message this long for clients that are not connected, such as 10m
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// Exit with 3 when nobody has the message: no connection took it and nothing is held; with `--wait-for written`,
    /// it was written to no connection; with `--wait-for acked`, no client acknowledged it
    #[arg(long)]
    fail_if_none: bool,
    #[command(flatten)]
    remote: Remote,
}

/// The error of `--fail-if-none`.
#[derive(Debug)]
pub(super) struct NoReceiver(&'static str);

impl fmt::Display for NoReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Error for NoReceiver {}

#[derive(Clone, Copy, ValueEnum)]
enum WaitFor {
    /// The message is in the connections' outboxes
    Accepted,
    /// The message was handed to the kernel
    Written,
    /// All clients that can acknowledge have acknowledged the message
    Acked,
}

impl Push {
    pub(super) fn run(self) -> Outcome {
        let mut message = self.message;
        if message == "-" {
            message.clear();
            std::io::stdin().read_to_string(&mut message)?;
        }
        let wait_for = match self.wait_for {
            WaitFor::Accepted => Level::Accepted,
            WaitFor::Written => Level::Written,
            WaitFor::Acked => Level::Acked,
        };
        let push = PushRequest {
            user_id: self.user,
            event: self.event,
            payload: Some(Payload::Message(message)),
            wait_for: wait_for.into(),
            ttl: self.ttl.map(|ttl| ttl.try_into().map_err(|_| "the ttl is too long")).transpose()?,
            ..PushRequest::default()
        };
        let response = self
            .remote
            .call(|mut client, caller| async move { Ok(client.push(caller.request(push)).await?.into_inner()) })?;
        super::print::result(&summary(&response));
        let none = if self.fail_if_none { no_receiver(&response, wait_for) } else { None };
        none.map_or(Ok(()), |none| Err(none.into()))
    }
}

/// The error if the message reached the requested level on no connection.
fn no_receiver(response: &PushResponse, wait_for: Level) -> Option<NoReceiver> {
    let (count, none) = match wait_for {
        Level::Acked => (response.acked, "no client acknowledged the message"),
        Level::Written => (response.written, "the message was written to no connection"),
        _ => (response.accepted + response.held, "no connection took the message"),
    };
    (count == 0).then_some(NoReceiver(none))
}

fn summary(response: &PushResponse) -> String {
    let connections = if response.matched == 1 { "connection" } else { "connections" };
    let mut text = format!(
        "accepted by {} of {} {connections}, message {}",
        response.accepted, response.matched, response.message_id
    );
    text.push_str(&counts("dropped by", &response.drops));
    if response.level() >= Level::Written {
        text.push_str(&format!(", written to {}", response.written));
        text.push_str(&counts("lost by", &response.losses));
    }
    if response.level() == Level::Acked {
        text.push_str(&format!(", acknowledged by {}", response.acked));
        if response.cannot_ack > 0 {
            text.push_str(&format!(", {} cannot", response.cannot_ack));
        }
    }
    if response.held > 0 {
        text.push_str(&format!(", held for {}", response.held));
    }
    text
}

fn counts(what: &str, drops: &[DropCount]) -> String {
    let mut text = String::new();
    for drop in drops {
        let reason = match drop.reason() {
            DropReason::QueueFull => "queue full",
            DropReason::Closed => "closed",
            DropReason::Expired => "expired",
            DropReason::Superseded => "superseded",
            DropReason::Unspecified => "unknown reason",
        };
        text.push_str(&format!(", {what} {} ({reason})", drop.count));
    }
    text
}

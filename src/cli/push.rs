//! `pushgate push`

use std::io::Read;

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
    /// How far to follow the message before answering
    #[arg(long, value_enum, default_value_t = WaitFor::Accepted)]
    wait_for: WaitFor,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Clone, Copy, ValueEnum)]
enum WaitFor {
    /// It is in the connections' outboxes
    Accepted,
    /// It was handed to the kernel
    Written,
    /// The clients that can said that they have it
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
            ..PushRequest::default()
        };
        let response = self
            .remote
            .call(|mut client, caller| async move { Ok(client.push(caller.request(push)).await?.into_inner()) })?;
        super::print::result(&told(&response));
        Ok(())
    }
}

fn told(response: &PushResponse) -> String {
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

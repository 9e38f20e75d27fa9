//! `pushgate push`

use std::io::Read;

use clap::Args;
use pushgate::proto::{DropReason, PushRequest, PushResponse, push_request::Payload};

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
    #[command(flatten)]
    remote: Remote,
}

impl Push {
    pub(super) fn run(self) -> Outcome {
        let mut message = self.message;
        if message == "-" {
            message.clear();
            std::io::stdin().read_to_string(&mut message)?;
        }
        let push = PushRequest { user_id: self.user, event: self.event, payload: Some(Payload::Message(message)) };
        let response = self
            .remote
            .call(|mut client, caller| async move { Ok(client.push(caller.request(push)).await?.into_inner()) })?;
        println!("{}", told(&response));
        Ok(())
    }
}

fn told(response: &PushResponse) -> String {
    let connections = if response.matched == 1 { "connection" } else { "connections" };
    let mut text = format!(
        "accepted by {} of {} {connections}, message {}",
        response.accepted, response.matched, response.message_id
    );
    for drop in &response.drops {
        let reason = match drop.reason() {
            DropReason::QueueFull => "queue full",
            DropReason::Closed => "closing",
            DropReason::Unspecified => "unknown reason",
        };
        text.push_str(&format!(", dropped by {} ({reason})", drop.count));
    }
    text
}

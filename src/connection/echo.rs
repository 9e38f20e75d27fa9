//! A connection that is not bound, and whose client gets back what it sends.

use std::future::poll_fn;
use std::task::Poll;

use bytes::Bytes;

use crate::mailbox::Mailbox;
use crate::message::Payload;

use super::Connection;
use super::link::{Input, NEVER};
use super::transport::Transport;

impl<S: Transport> Connection<S> {
    /// Runs it to its end. `offer` queues a message in the connection's own mailbox.
    pub(crate) async fn echo(self, offer: impl Fn(&Mailbox, Payload)) {
        let mut link = self.link;
        link.bind_deadline = NEVER;
        let reason = loop {
            match link.input().await {
                Input::Data(data) => {
                    // Behind the answers to pings that came before it.
                    link.mailbox().hold_back();
                    offer(link.mailbox(), payload(data, link.socket.is_text));
                    // Before anything else is read, which may be what ends the connection.
                    let delivered = poll_fn(|cx| Poll::Ready(link.poll_deliver(cx))).await;
                    if let Poll::Ready(reason) = delivered {
                        break reason;
                    }
                }
                Input::Checked(_) => unreachable!("no token is checked"),
                Input::End(reason) => break reason,
            }
        };
        link.close(reason, None).await;
    }
}

fn payload(data: Bytes, is_text: bool) -> Payload {
    if is_text {
        Payload::Text(String::from_utf8(data.into()).expect("tungstenite has checked it"))
    } else {
        Payload::Binary(data)
    }
}

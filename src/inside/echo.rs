//! A server that sends back what its clients send, for conformance suites: the handshake is tungstenite's, and everything
//! after it is a connection like all others.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::net::TcpListener;

use crate::connection::{Arrival, Protocol};
use crate::delivery::Delivery;
use crate::mailbox::{Flush, Mailbox, Offered, Taken};
use crate::message::{Payload, Push};

use super::Inside;

impl Inside {
    /// Serves until the listener fails.
    ///
    /// # Errors
    /// What the listener said.
    pub async fn echo(self: Arc<Self>, listener: TcpListener) -> io::Result<()> {
        loop {
            let (stream, peer) = listener.accept().await?;
            let inside = self.clone();
            tokio::spawn(async move {
                // Its clients say nothing before they are answered, so that nothing is read ahead here.
                let Ok(websocket) = tokio_tungstenite::accept_async(stream).await else { return };
                let Ok(registration) = inside.gateway.rooms().registry.admit(peer) else { return };
                let arrival = Arrival {
                    protocol: Protocol::Legacy,
                    token: None,
                    shown: None,
                    registration,
                    shared: inside.shared.clone(),
                };
                let connection = arrival.connect(websocket.into_inner(), &[]);
                connection.echo(|mailbox, payload| inside.offer(mailbox, payload)).await;
            });
        }
    }

    /// Queues a message for one receiver.
    fn offer(&self, mailbox: &Mailbox, payload: Payload) {
        let rooms = self.gateway.rooms();
        let push = Push::new("echo", "echo", Bytes::from_static(b"-")).expect("not empty").with_any_payload(payload);
        let delivery = Delivery::new(rooms.names.message_id(), &push, rooms.config.slow_reader_policy, Instant::now());
        let Offered { taken, flush, .. } = mailbox.offer(Arc::new(delivery).ticket(0));
        assert!(!matches!(taken, Taken::Refused(_)), "the suite sends more than may be queued");
        if flush != Flush::None {
            mailbox.flush(|_| ());
        }
    }
}

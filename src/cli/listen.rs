//! `pushgate listen`

use std::io::{self, Write};

use clap::Args;
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

use super::Outcome;

#[derive(Args)]
pub(super) struct Listen {
    /// The token to bind with
    #[arg(long, value_name = "TOKEN", env = "PUSHGATE_TOKEN", hide_env_values = true)]
    token: String,
    /// The event to bind; give it again for more
    #[arg(long = "event", value_name = "EVENT", required = true)]
    events: Vec<String>,
    /// End after this many messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// The gateway's WebSocket door
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:12345/ws")]
    url: String,
}

impl Listen {
    pub(super) fn run(self) -> Outcome {
        super::serve::runtime()?.block_on(self.listen())
    }

    async fn listen(self) -> Outcome {
        let connected = tokio_tungstenite::connect_async(&self.url).await;
        let (mut socket, _) = connected.map_err(|error| format!("cannot reach a gateway at {}: {error}", self.url))?;
        for event in &self.events {
            let bind = serde_json::json!({ "token": self.token, "event": event });
            socket.send(Message::text(bind.to_string())).await?;
        }
        super::print::complain(&format!("listening to {}, interrupt to end", self.events.join(", ")));
        let mut left = self.count;
        while left != Some(0) {
            let message = tokio::select! {
                message = socket.next() => message,
                interrupted = tokio::signal::ctrl_c() => {
                    interrupted?;
                    break;
                }
            };
            match message {
                Some(Ok(Message::Text(text))) => print(text.as_bytes())?,
                Some(Ok(Message::Binary(bytes))) => print(&bytes)?,
                Some(Ok(Message::Close(Some(frame)))) => {
                    return Err(format!("the gateway closed with {}: {}", frame.code, frame.reason).into());
                }
                Some(Ok(Message::Close(None))) | None => return Err("the gateway closed".into()),
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(error.into()),
            }
            left = left.map(|left| left - 1);
        }
        socket.close(None).await?;
        Ok(())
    }
}

fn print(message: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(message)?;
    out.write_all(b"\n")?;
    out.flush()
}

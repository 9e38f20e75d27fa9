//! `pushgate listen`

use std::io::{self, Write};

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use futures_util::{SinkExt, StreamExt};
use humantime::format_duration;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{Connector, connect_async_tls_with_config};

use super::Outcome;
use super::remote::{PATIENCE, explained};
use super::tls::Tls;

#[derive(Args)]
pub(super) struct Listen {
    /// The token to bind with
    #[arg(long, value_name = "TOKEN", env = "PUSHGATE_TOKEN", hide_env_values = true,
        value_parser = NonEmptyStringValueParser::new())]
    token: String,
    /// The event to bind; repeat the flag to bind several
    #[arg(long = "event", value_name = "EVENT", required = true)]
    events: Vec<String>,
    /// Exit after this many messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// The gateway's WebSocket URL
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:12345/ws")]
    url: String,
    #[command(flatten)]
    tls: Tls,
}

impl Listen {
    pub(super) fn run(self) -> Outcome {
        super::serve::runtime()?.block_on(self.listen())
    }

    async fn listen(self) -> Outcome {
        let is_tls = self.url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("wss://"));
        let connector = if is_tls { Connector::Rustls(self.tls.for_websocket()?) } else { Connector::Plain };
        let connecting = connect_async_tls_with_config(&self.url, None, false, Some(connector));
        let connected = tokio::time::timeout(PATIENCE, connecting).await;
        let (mut socket, _) = connected
            .map_err(|_| format!("no answer from a gateway at {} within {}", self.url, format_duration(PATIENCE)))?
            .map_err(|error| unreachable(&self.url, &error))?;
        for event in &self.events {
            let bind = serde_json::json!({ "token": self.token, "event": event });
            socket.send(Message::text(bind.to_string())).await?;
        }
        super::print::complain(&format!("listening to {}, interrupt to stop", self.events.join(", ")));
        let mut left = self.count;
        while left != Some(0) {
            let message = tokio::select! {
                message = socket.next() => message,
                interrupted = tokio::signal::ctrl_c() => {
                    interrupted?;
                    break;
                }
            };
            let printed = match message {
                Some(Ok(Message::Text(text))) => print(text.as_bytes()),
                Some(Ok(Message::Binary(bytes))) => print(&bytes),
                Some(Ok(Message::Close(Some(frame)))) => {
                    return Err(format!("the gateway closed with {}: {}", frame.code, frame.reason).into());
                }
                Some(Ok(Message::Close(None))) | None => return Err("the gateway closed".into()),
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(format!("the connection to the gateway broke: {error}").into()),
            };
            match printed {
                // The reader, such as `head`, wants no more.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
                printed => printed?,
            }
            left = left.map(|left| left - 1);
        }
        socket.close(None).await?;
        Ok(())
    }
}

/// Describes why there is no connection. A refusal by the server reads differently from a failure to reach it.
fn unreachable(url: &str, error: &WsError) -> String {
    match error {
        WsError::Http(answer) => {
            let body = answer.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
            format!("the server at {url} refused with {}: {}", answer.status(), body.trim())
        }
        _ => format!("cannot reach a gateway at {url}: {}", explained(&error.to_string())),
    }
}

fn print(message: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(message)?;
    out.write_all(b"\n")?;
    out.flush()
}

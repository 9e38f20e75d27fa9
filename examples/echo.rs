//! Sends back what its clients send, for conformance suites such as Autobahn|Testsuite: over the gateway's own
//! connections, or with `--bare` as tokio-tungstenite does it alone.
//!
//! ```sh
//! cargo run --locked --features inside --example echo -- 127.0.0.1:9001
//! cargo run --locked --features inside --example echo -- 127.0.0.1:9002 --bare
//! ```

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, TryStreamExt};
use pushgate::Config;
use pushgate::inside::Inside;
use tokio::net::TcpListener;

/// As large as the largest message of the suite.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:9001".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("echo is up on {}", listener.local_addr()?);
    match arguments.next().as_deref() {
        Some("--bare") => bare(listener).await,
        _ => echo(listener).await,
    }
}

/// Serves until the listener fails.
pub(crate) async fn echo(listener: TcpListener) -> Result<(), Box<dyn Error>> {
    let minute = Duration::from_secs(60);
    let config = Config {
        listen: ([127, 0, 0, 1], 0).into(),
        // The suite sends as much as it wants to, and no ping of the gateway's is among what it expects.
        client_message_bytes_max: MESSAGE_BYTES_MAX,
        client_frame_bytes_max: MESSAGE_BYTES_MAX,
        client_frames_per_second_max: 1_000_000,
        client_pings_per_second_max: 1_000_000,
        client_message_fragments_max: 1 << 24,
        outbox_bytes_max: 4 * MESSAGE_BYTES_MAX,
        outbox_messages_max: 100_000,
        ping_interval: 10 * minute,
        write_timeout: minute,
        ..Config::default()
    };
    Arc::new(Inside::start(config).await?).echo(listener).await?;
    Ok(())
}

/// The same without the gateway.
pub(crate) async fn bare(listener: TcpListener) -> Result<(), Box<dyn Error>> {
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let mut websocket = tokio_tungstenite::accept_async(stream).await?;
            while let Some(message) = websocket.try_next().await? {
                if message.is_text() || message.is_binary() {
                    websocket.send(message).await?;
                }
            }
            Ok::<_, tokio_tungstenite::tungstenite::Error>(())
        });
    }
}

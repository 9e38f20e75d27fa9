//! One stream of pushes: messages in, results out, until the caller is done or gone, or the gateway stops.

use std::pin::pin;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::auth::PushScope;
use crate::doors::Refusal;
use crate::doors::api::{Asked, Wrong};
use crate::outcome::Level;
use crate::proto;

use super::{PushDoor, status};

/// The results of a stream, as tonic sends them.
pub(crate) type Results = ReceiverStream<Result<proto::PushStreamResponse, Status>>;

/// Results of one stream that wait to be read. Past it, and past [`STREAM_WAITING_MAX`], the stream is not read either,
/// and HTTP/2 flow control tells the caller.
const STREAM_RESULTS_MAX: usize = 64;

/// Messages of one stream that wait for a further result.
const STREAM_WAITING_MAX: usize = 1024;

/// The longest correlation id, in bytes.
const CORRELATION_ID_BYTES_MAX: usize = 256;

/// One stream of pushes.
pub(super) struct PushStreaming {
    door: PushDoor,
    scope: PushScope,
    results: mpsc::Sender<Result<proto::PushStreamResponse, Status>>,
}

/// The stream's caller is gone, and nobody is left to tell.
struct Gone;

impl PushStreaming {
    /// A stream for one caller, and what it will be answered.
    pub(super) fn new(door: PushDoor, scope: PushScope) -> (Self, Results) {
        let (results, answers) = mpsc::channel(STREAM_RESULTS_MAX);
        (Self { door, scope, results }, ReceiverStream::new(answers))
    }

    /// Pushes and answers until the caller is done or gone, or the gateway stops.
    pub(super) async fn run(self, messages: Streaming<proto::PushStreamRequest>) {
        // Nobody to tell if this fails: the caller is gone.
        let _told = self.serve(messages).await;
    }

    async fn serve(&self, mut messages: Streaming<proto::PushStreamRequest>) -> Result<(), Gone> {
        // One future for the stream's whole life: a new one for each message would take its lock twice.
        let mut stopped = pin!(self.door.gateway.rooms().stopping.cancelled());
        let mut waiting = FuturesUnordered::new();
        let end = loop {
            tokio::select! {
                // Results first: a caller that is told is a caller that can go on.
                biased;
                Some((response, next)) = waiting.next() => {
                    self.tell(response).await?;
                    let next: Option<Next> = next;
                    waiting.extend(next.map(Next::told));
                }
                () = &mut stopped => break Err(status(Refusal::Draining)),
                message = messages.message(), if waiting.len() < STREAM_WAITING_MAX => match message {
                    Ok(Some(message)) => waiting.extend(self.push(message).await?.map(Next::told)),
                    Ok(None) => break Ok(()),
                    // tonic's word for a message over the limit; unary calls have it mapped in the stack.
                    Err(error) if error.code() == Code::OutOfRange => break Err(status(Refusal::TooLarge {
                        limit_bytes: self.door.gateway.rooms().config.request_bytes_max,
                    })),
                    Err(error) => break Err(error),
                },
            }
        };
        while let Some((response, next)) = waiting.next().await {
            self.tell(response).await?;
            waiting.extend(next.map(Next::told));
        }
        match end {
            Ok(()) => Ok(()),
            Err(status) => self.results.send(Err(status)).await.map_err(|_| Gone),
        }
    }

    /// Pushes one message and tells its first result; returns what is to be told next, where there is more.
    async fn push(&self, message: proto::PushStreamRequest) -> Result<Option<Next>, Gone> {
        let correlation_id = message.correlation_id;
        let sent = if correlation_id.len() > CORRELATION_ID_BYTES_MAX {
            let problem = format!("the correlation id is over the limit of {CORRELATION_ID_BYTES_MAX} bytes");
            Err(Wrong::field("correlation_id", problem))
        } else {
            self.door.send(&self.scope, message.push.unwrap_or_default())
        };
        let asked = match sent {
            Ok(asked) => asked,
            Err(wrong) => {
                // A correlation id over its limit is not sent back whole.
                let correlation_id = correlation_id.chars().take(CORRELATION_ID_BYTES_MAX / 4).collect();
                let response = proto::PushStreamResponse { correlation_id, result: Some(wrong.into()), r#final: true };
                return self.tell(response).await.map(|()| None);
            }
        };
        let accepted = asked.accepted();
        let is_final = asked.wait_for == Level::Accepted || accepted.accepted == 0;
        let result = Some(accepted.into());
        if is_final {
            return self.tell(proto::PushStreamResponse { correlation_id, result, r#final: true }).await.map(|()| None);
        }
        let first = proto::PushStreamResponse { correlation_id: correlation_id.clone(), result, r#final: false };
        self.tell(first).await?;
        let until = Instant::now() + self.door.gateway.rooms().config.request_timeout;
        Ok(Some(Next { correlation_id, asked, level: Level::Written, until }))
    }

    async fn tell(&self, response: proto::PushStreamResponse) -> Result<(), Gone> {
        self.results.send(Ok(response)).await.map_err(|_| Gone)
    }
}

/// A message that its caller wants to know more of.
struct Next {
    correlation_id: String,
    asked: Asked,
    /// What is waited for now.
    level: Level,
    until: Instant,
}

impl Next {
    /// The result once the message has got this far everywhere, and what comes after it.
    async fn told(self) -> (proto::PushStreamResponse, Option<Self>) {
        let outcome = self.asked.settled(self.level, self.until).await;
        let sent = &self.asked.sent;
        let is_final = self.level == self.asked.wait_for || Instant::now() >= self.until || sent.is_settled();
        let response = proto::PushStreamResponse {
            correlation_id: self.correlation_id.clone(),
            result: Some(outcome.into()),
            r#final: is_final,
        };
        (response, (!is_final).then_some(Self { level: Level::Acked, ..self }))
    }
}

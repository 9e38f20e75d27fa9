//! One stream of pushes: messages in, results out, until the caller is done or gone, or the gateway stops.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::time::Instant;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::auth::PushScope;
use crate::doors::Refusal;
use crate::doors::api::{Asked, Wrong};
use crate::metrics::Task;
use crate::outcome::Level;
use crate::proto;

use super::{PushDoor, is_too_large, status};

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
        if AssertUnwindSafe(self.serve(messages)).catch_unwind().await.is_err() {
            self.door.gateway.rooms().metrics.task_panicked(Task::PushStream);
            // Without a status it would look like a good end, and what has no result yet like done.
            let status = Status::internal("the stream broke off, what has no result may have been sent or not");
            let _told = self.results.send(Err(status)).await;
        }
    }

    /// An error is of no use to anybody: the caller is gone.
    async fn serve(&self, mut messages: Streaming<proto::PushStreamRequest>) -> Result<(), Gone> {
        let Self { door, scope, results } = self;
        let rooms = door.gateway.rooms();
        // One future for the stream's whole life: a new one for each message would take its lock twice.
        let mut stopped = pin!(rooms.stopping.cancelled());
        let mut results = Untold { results: results.clone(), ready: VecDeque::new(), waiting: FuturesUnordered::new() };
        let end = loop {
            let has_room = results.has_room();
            tokio::select! {
                // Results first: a caller that is told is a caller that can go on.
                biased;
                went_on = results.go_on() => went_on?,
                () = &mut stopped => break Err(status(Refusal::Draining)),
                message = messages.message(), if has_room => match message {
                    Ok(Some(message)) => push(door, scope, message, &mut results).await?,
                    Ok(None) => break Ok(()),
                    // Unary calls have it mapped in the stack.
                    Err(error) if is_too_large(&error) => {
                        break Err(status(Refusal::TooLarge { limit_bytes: rooms.config.request_bytes_max }));
                    }
                    Err(error) => break Err(error),
                },
            }
        };
        while !results.is_empty() {
            results.go_on().await?;
        }
        match end {
            Ok(()) => Ok(()),
            Err(status) => results.results.send(Err(status)).await.map_err(|_| Gone),
        }
    }
}

/// Pushes one message and tells its first result. While that waits for another push with the same key, the stream's
/// further messages wait behind it, so that they keep their order, and its other results are told.
async fn push(
    door: &PushDoor,
    scope: &PushScope,
    message: proto::PushStreamRequest,
    results: &mut Untold,
) -> Result<(), Gone> {
    let correlation_id = message.correlation_id;
    let sent = if correlation_id.len() > CORRELATION_ID_BYTES_MAX {
        let problem = format!("the correlation id is over the limit of {CORRELATION_ID_BYTES_MAX} bytes");
        Err(Wrong::field("correlation_id", problem))
    } else {
        results.go_on_until(door.send(scope, message.push.unwrap_or_default())).await?
    };
    let asked = match sent {
        Ok(asked) => asked,
        Err(wrong) => {
            // A correlation id over its limit is not sent back whole.
            let correlation_id = correlation_id.chars().take(CORRELATION_ID_BYTES_MAX / 4).collect();
            return results.tell(proto::PushStreamResponse {
                correlation_id,
                result: Some(wrong.into()),
                r#final: true,
            });
        }
    };
    let accepted = asked.accepted().await;
    let is_final = asked.wait_for == Level::Accepted || accepted.accepted == 0;
    let result = Some(accepted.into());
    if is_final {
        return results.tell(proto::PushStreamResponse { correlation_id, result, r#final: true });
    }
    results.tell(proto::PushStreamResponse { correlation_id: correlation_id.clone(), result, r#final: false })?;
    let until = Instant::now() + door.gateway.rooms().config.request_timeout;
    results.wait_for(Next { correlation_id, asked, level: Level::Written, until });
    Ok(())
}

/// The results of a stream that its caller was not told yet. What is waited for ends at its deadline, whether the caller
/// reads its results or not: else a caller that does not read would keep its places among the waiting pushes.
struct Untold {
    results: mpsc::Sender<Result<proto::PushStreamResponse, Status>>,
    /// Those that the caller has no room for, oldest first. At most two for each message that waits.
    ready: VecDeque<proto::PushStreamResponse>,
    waiting: FuturesUnordered<BoxFuture<'static, (proto::PushStreamResponse, Option<Next>)>>,
}

impl Untold {
    /// Whether the caller may send a further message.
    fn has_room(&self) -> bool {
        self.ready.is_empty() && self.waiting.len() < STREAM_WAITING_MAX
    }

    fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.waiting.is_empty()
    }

    fn tell(&mut self, response: proto::PushStreamResponse) -> Result<(), Gone> {
        if !self.ready.is_empty() {
            self.ready.push_back(response);
            return Ok(());
        }
        match self.results.try_send(Ok(response)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(response)) => {
                self.ready.extend(response);
                Ok(())
            }
            Err(TrySendError::Closed(_)) => Err(Gone),
        }
    }

    fn wait_for(&mut self, next: Next) {
        self.waiting.push(Box::pin(next.told()));
    }

    /// Waits for something else, and goes on telling meanwhile.
    async fn go_on_until<T>(&mut self, something: impl Future<Output = T>) -> Result<T, Gone> {
        let mut something = pin!(something);
        loop {
            tokio::select! {
                biased;
                done = &mut something => return Ok(done),
                went_on = self.go_on() => went_on?,
            }
        }
    }

    /// Tells a result that there is room for now, or takes one that is known now. Waits for ever when there are none.
    async fn go_on(&mut self) -> Result<(), Gone> {
        let Self { results, ready, waiting } = self;
        let (response, next) = tokio::select! {
            permit = results.reserve(), if !ready.is_empty() => {
                let permit = permit.map_err(|_| Gone)?;
                if let Some(response) = ready.pop_front() {
                    permit.send(Ok(response));
                }
                return Ok(());
            }
            Some(known) = waiting.next() => known,
            else => std::future::pending().await,
        };
        if let Some(next) = next {
            self.wait_for(next);
        }
        self.tell(response)
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

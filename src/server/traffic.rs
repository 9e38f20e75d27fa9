//! Tracks the traffic of one HTTP connection: who must act next and since when. The server uses this for deadlines that
//! hyper does not keep.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use crate::doors::Body;

use super::http2_frames::{CALM_DOWN, Http2Frames, Protocol, TooManyFrames};

/// How long the server waits for the rest of an HTTP/1 head during shutdown or after an idle timeout.
pub(super) const LAST_HEAD: Duration = Duration::from_secs(1);

/// The maximum number of keyless requests in hand on one connection, that is, requests that need no API key. Each can
/// cost an answer of some ten thousand bytes that its caller does not read. A prober or a scraper has one or two in
/// hand.
pub(super) const KEYLESS_MAX: usize = 32;

/// The timeouts of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// The time limit for the rest of a head, for the first head of a new connection, and for a peer to read the next
    /// byte of an answer.
    pub(super) head: Duration,
    /// The time limit without a request in hand.
    pub(super) idle: Duration,
}

/// What must happen to a connection whose deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// The connection was idle for too long. It must be closed without losing a request that is on its way.
    Finish,
    /// The peer made the server wait for too long. The connection must be cut.
    Cut(&'static str),
}

/// The state of one connection, shared by its stream, its requests and its listener.
#[derive(Debug)]
pub(super) struct Traffic {
    state: Mutex<State>,
    evicted: CancellationToken,
}

#[derive(Debug)]
struct State {
    is_http2: bool,
    /// Whether no further requests are accepted.
    is_finishing: bool,
    /// Whether the peer has ever made a request.
    has_requested: bool,
    /// The number of requests in hand: hyper does not have their whole answer yet.
    in_hand: usize,
    /// The number of requests in hand that need no API key.
    keyless: usize,
    /// When the last request in hand ended, or the connection began.
    idle_since: Instant,
    /// When the server began to wait for the current head. A new connection starts with this wait.
    head_since: Option<Instant>,
    /// Since when the peer has not read any of the bytes waiting to be written.
    blocked_since: Option<Instant>,
    /// The number of complete answers that HTTP/2 cannot send because the peer grants no window. Answers of unknown
    /// size do not count, because a stream may be silent for any time.
    unread: usize,
    /// When `unread` was last 0 or last decreased.
    unread_since: Instant,
    /// The permit that an evicted connection holds until it is closed.
    leaving: Option<OwnedSemaphorePermit>,
}

impl Traffic {
    pub(super) fn new() -> Arc<Self> {
        let now = Instant::now();
        let state = State {
            is_http2: false,
            is_finishing: false,
            has_requested: false,
            in_hand: 0,
            keyless: 0,
            idle_since: now,
            head_since: Some(now),
            blocked_since: None,
            unread: 0,
            unread_since: now,
            leaving: None,
        };
        Arc::new(Self { state: Mutex::new(state), evicted: CancellationToken::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a request. It is in hand until the returned guard is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> InHand {
        let mut state = self.lock();
        state.in_hand += 1;
        state.has_requested = true;
        state.head_since = None;
        InHand { traffic: self.clone(), is_answered: false, is_keyless: false }
    }

    /// Returns whether the peer has ever made a request, and since when no request is in hand, regardless of what else
    /// the peer sends.
    pub(super) fn seen(&self) -> (bool, Option<Instant>) {
        let state = self.lock();
        (state.has_requested, (state.in_hand == 0).then_some(state.idle_since))
    }

    /// Tells the connection to close because its place was given to another. The permit is released once it is closed.
    pub(super) fn evict(&self, leaving: Option<OwnedSemaphorePermit>) {
        self.lock().leaving = leaving;
        self.evicted.cancel();
    }

    #[cfg(test)]
    pub(super) fn is_evicted(&self) -> bool {
        self.evicted.is_cancelled()
    }

    /// Waits until the connection is evicted, and takes the permit.
    pub(super) async fn evicted(&self) -> Option<OwnedSemaphorePermit> {
        self.evicted.cancelled().await;
        self.lock().leaving.take()
    }

    /// Ends the acceptance of requests. The server waits only briefly for a request that has begun.
    pub(super) fn finishing(&self) {
        let mut state = self.lock();
        state.is_finishing = true;
        state.head_since.get_or_insert_with(Instant::now);
    }

    /// Waits for a deadline to pass. Recomputes the deadline each time it is polled, which is after each poll of the
    /// connection.
    pub(super) fn poll_due(&self, timeouts: Timeouts, mut alarm: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<Due> {
        loop {
            let now = Instant::now();
            let at = match self.lock().due(timeouts) {
                Some((at, due)) if at <= now => return Poll::Ready(due),
                Some((at, _)) => at,
                // While a request is in hand, there is no deadline. Nothing wakes this task when the request ends, so
                // it checks again after the idle timeout.
                None => now + timeouts.idle,
            };
            if at < alarm.deadline() || alarm.is_elapsed() {
                alarm.as_mut().reset(at);
            }
            ready!(alarm.as_mut().poll(cx));
        }
    }

    /// Records that the peer sent bytes outside HTTP/2.
    fn note_read(&self) {
        let mut state = self.lock();
        if state.in_hand == 0 {
            state.head_since.get_or_insert_with(Instant::now);
        }
    }

    /// Records that the connection speaks HTTP/2. There is no wait for a head then, because hyper gets each head whole
    /// and pings detect a dead peer.
    fn note_http2(&self) {
        let mut state = self.lock();
        state.is_http2 = true;
        state.head_since = None;
    }

    /// Records the result of a write or flush. A TLS stream takes bytes before the kernel does, and flushes them later.
    fn note_write<T>(&self, result: &Poll<io::Result<T>>) {
        let mut state = self.lock();
        if result.is_pending() {
            state.blocked_since.get_or_insert_with(Instant::now);
        } else {
            state.blocked_since = None;
        }
    }
}

impl State {
    fn due(&self, timeouts: Timeouts) -> Option<(Instant, Due)> {
        if let Some(since) = self.blocked_since {
            return Some((since + timeouts.head, Due::Cut("no byte of the answer read in time")));
        }
        if self.unread > 0 {
            return Some((self.unread_since + timeouts.head, Due::Cut("no byte of the answers read in time")));
        }
        if self.in_hand > 0 {
            return None;
        }
        Some(match self.head_since {
            // A peer that sends its head slowly must not delay the shutdown.
            Some(since) if self.is_finishing && !self.is_http2 => {
                (since + timeouts.head.min(LAST_HEAD), Due::Cut("no request in time"))
            }
            Some(since) => (since + timeouts.head, Due::Cut("no request in time")),
            None => (self.idle_since + timeouts.idle, Due::Finish),
        })
    }
}

/// A guard for a request in hand.
pub(super) struct InHand {
    traffic: Arc<Traffic>,
    /// Whether the answer is complete and waits for the peer.
    is_answered: bool,
    /// Whether the request counts as keyless.
    is_keyless: bool,
}

impl InHand {
    /// Counts the request as keyless. Returns `false` if the connection already has [`KEYLESS_MAX`] of them in hand.
    pub(super) fn count_keyless(&mut self) -> bool {
        let mut state = self.traffic.lock();
        if state.keyless == KEYLESS_MAX {
            return false;
        }
        state.keyless += 1;
        self.is_keyless = true;
        true
    }

    /// Records that the whole answer is ready.
    fn note_answered(&mut self) {
        self.is_answered = true;
        let mut state = self.traffic.lock();
        if state.unread == 0 {
            state.unread_since = Instant::now();
        }
        state.unread += 1;
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        let mut state = self.traffic.lock();
        let now = Instant::now();
        state.in_hand -= 1;
        state.keyless -= usize::from(self.is_keyless);
        state.idle_since = now;
        if self.is_answered {
            state.unread -= 1;
            state.unread_since = now;
        }
        // The wait for the next head starts now at the earliest, because the answer may not have been sent yet.
        if let Some(since) = &mut state.head_since {
            *since = now;
        }
    }
}

/// The body of an answer. Its request is in hand until hyper has the whole body.
pub(super) struct TrackedBody {
    body: Body,
    _in_hand: InHand,
}

impl TrackedBody {
    pub(super) fn new(body: Body, mut in_hand: InHand) -> Self {
        if hyper::body::Body::size_hint(&body).exact().is_some_and(|bytes| bytes > 0) {
            in_hand.note_answered();
        }
        Self { body, _in_hand: in_hand }
    }
}

impl hyper::body::Body for TrackedBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream whose traffic is tracked.
pub(super) struct TrackedStream<S> {
    stream: S,
    traffic: Arc<Traffic>,
    frames: Http2Frames,
    /// Set once the peer was told to calm down.
    leaving: Option<Leaving>,
}

/// The last phase of a connection whose peer was told to calm down. What the peer still sends is read and thrown away.
/// Closing a socket with unread bytes would reset the connection, and the peer might not see the reason.
struct Leaving {
    time: Pin<Box<Sleep>>,
    /// The number of bytes read so far.
    bytes: usize,
}

/// The limits of this phase.
const LEAVING_TIME: Duration = Duration::from_secs(1);
const LEAVING_BYTES: usize = 1024 * 1024;

impl<S> TrackedStream<S> {
    pub(super) fn new(stream: S, traffic: Arc<Traffic>) -> Self {
        Self { stream, traffic, frames: Http2Frames::new(std::time::Instant::now()), leaving: None }
    }

    pub(super) fn into_stream(self) -> S {
        self.stream
    }

    /// Records the bytes that the peer sent.
    fn note_read(&mut self, bytes: &[u8]) -> Result<(), TooManyFrames> {
        let before = self.frames.protocol();
        self.frames.read(bytes)?;
        match self.frames.protocol() {
            Protocol::Http2 if before == Protocol::Http2 => {}
            Protocol::Http2 => self.traffic.note_http2(),
            Protocol::Unknown | Protocol::Http1 => self.traffic.note_read(),
        }
        Ok(())
    }

    /// Records the result of writing these slices.
    fn note_write(&mut self, slices: &[io::IoSlice<'_>], result: &Poll<io::Result<usize>>) {
        self.traffic.note_write(result);
        let Poll::Ready(Ok(mut left)) = *result else { return };
        for slice in slices {
            let written = left.min(slice.len());
            self.frames.note_sent(&slice[..written]);
            left -= written;
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TrackedStream<S> {
    /// Sends GOAWAY with ENHANCE_YOUR_CALM and shuts down the sending side. Returns whether both succeeded. Does not
    /// wait for a peer that does not read, and does not interrupt a partly written frame.
    fn send_calm_down(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.frames.can_insert_frame() {
            return false;
        }
        let mut stream = Pin::new(&mut self.stream);
        let written = stream.as_mut().poll_write(cx, &CALM_DOWN);
        matches!(written, Poll::Ready(Ok(count)) if count == CALM_DOWN.len())
            && stream.as_mut().poll_flush(cx).is_ready()
            && stream.poll_shutdown(cx).is_ready()
    }

    /// Ready when the peer has closed the connection or a limit of the last phase is reached.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(leaving) = &mut self.leaving else { return Poll::Ready(()) };
        let mut scratch = [0; 4096];
        while leaving.bytes < LEAVING_BYTES {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => leaving.bytes += buffer.filled().len(),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return leaving.time.as_mut().poll(cx),
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TrackedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.leaving.is_none() {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
            if buffer.filled().len() == before || self.note_read(&buffer.filled()[before..]).is_ok() {
                return Poll::Ready(Ok(()));
            }
            buffer.set_filled(before);
            if self.send_calm_down(cx) {
                self.leaving = Some(Leaving { time: Box::pin(tokio::time::sleep(LEAVING_TIME)), bytes: 0 });
            }
        }
        ready!(self.poll_left(cx));
        Poll::Ready(Err(io::Error::other(TooManyFrames)))
    }
}

/// Discards what hyper still writes after the sending side was shut down.
impl<S: AsyncWrite + Unpin> AsyncWrite for TrackedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.leaving.is_some() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note_write(&[io::IoSlice::new(bytes)], &result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.leaving.is_some() {
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.note_write(slices, &result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        if self.leaving.is_none() {
            self.traffic.note_write(&result);
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const SETTINGS: [u8; 9] = [0, 0, 0, 0x4, 0, 0, 0, 0, 0];

    /// Lets a peer flood the server with SETTINGS. The server sends `answer` once. Returns the server's error and
    /// everything that the peer received.
    async fn answered_to_a_flood(room: usize, answer: &[u8]) -> (io::Error, Vec<u8>) {
        let (mut peer, stream) = duplex(room);
        let mut tracked = TrackedStream::new(stream, Traffic::new());
        let flood = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &SETTINGS.repeat(3000)].concat();
        let flooding = async move {
            let _cut = peer.write_all(&flood).await;
            let mut answers = Vec::new();
            let _ended = peer.read_to_end(&mut answers).await;
            answers
        };
        let serving = async move {
            let mut scratch = [0; 1024];
            let mut answer = Some(answer);
            loop {
                match tracked.read(&mut scratch).await {
                    Ok(count) => assert!(count > 0),
                    Err(error) => break error,
                }
                if tracked.frames.protocol() == Protocol::Http2
                    && let Some(answer) = answer.take()
                {
                    tracked.write_all(answer).await.expect("there is room for it");
                }
            }
        };
        tokio::join!(serving, flooding)
    }

    /// Takes bytes that nobody reads, as a TLS stream does for one record.
    struct TakesAndKeeps;

    impl AsyncWrite for TakesAndKeeps {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_cut_though_the_stream_takes_bytes_for_it() {
        let traffic = Traffic::new();
        drop(traffic.begin());
        let mut stream = TrackedStream::new(TakesAndKeeps, traffic.clone());
        stream.write_all(b"answer").await.expect("taken");
        assert!(stream.flush().now_or_never().is_none());
        let timeouts = Timeouts { head: Duration::from_millis(1), idle: Duration::from_secs(3600) };
        let mut alarm = std::pin::pin!(tokio::time::sleep(timeouts.head));
        let due = std::future::poll_fn(|cx| traffic.poll_due(timeouts, alarm.as_mut(), cx));
        let due = tokio::time::timeout(Duration::from_secs(20), due).await.expect("long before it is idle");
        assert_eq!(due, Due::Cut("no byte of the answer read in time"));
    }

    #[tokio::test]
    async fn a_flooding_peer_is_told_to_calm_down_and_then_disconnected() {
        let (error, answers) = answered_to_a_flood(64 * 1024, &SETTINGS).await;
        assert_eq!(error.to_string(), TooManyFrames.to_string());
        assert_eq!(answers, [&SETTINGS[..], &CALM_DOWN].concat());
    }

    #[tokio::test]
    async fn a_partly_written_frame_is_not_interrupted() {
        let begun = [&SETTINGS[..], &[0, 0, 200, 0, 0, 0, 0, 0, 1, 7]].concat();
        let (error, answers) = answered_to_a_flood(64 * 1024, &begun).await;
        assert_eq!(error.to_string(), TooManyFrames.to_string());
        assert_eq!(answers, begun);
    }

    #[tokio::test]
    async fn the_server_does_not_wait_for_a_peer_that_does_not_read() {
        let whole = [&SETTINGS[..], &[0, 0, 238, 0, 0, 0, 0, 0, 1], &[7; 238]].concat();
        let (error, answers) = answered_to_a_flood(whole.len(), &whole).await;
        assert_eq!(error.to_string(), TooManyFrames.to_string());
        assert_eq!(answers, whole);
    }
}

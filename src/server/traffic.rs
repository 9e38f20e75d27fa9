//! What goes over one HTTP connection: whose turn it is and since when, for the deadlines that hyper does not keep.

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

/// How long an HTTP/1 head that has begun is waited for once no further request is wanted.
const LAST_HEAD: Duration = Duration::from_secs(1);

/// Requests of one connection in hand at one time that anybody may make. Each may be an answer of some ten thousand bytes
/// that its caller does not read; a prober or a scraper has one or two.
pub(super) const KEYLESS_MAX: usize = 32;

/// How long a connection may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// For a head that has begun, for a new connection to begin one, and for a peer to take a byte of an answer.
    pub(super) head: Duration,
    /// Without a request in hand.
    pub(super) idle: Duration,
}

/// What a connection has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// It was idle for long enough: to be closed without losing a request that is on its way.
    Finish,
    /// The peer keeps it waiting.
    Cut(&'static str),
}

/// The state of one connection, seen by its stream, its requests and its listener.
#[derive(Debug)]
pub(super) struct Traffic {
    state: Mutex<State>,
    evicted: CancellationToken,
}

#[derive(Debug)]
struct State {
    is_http2: bool,
    /// Whether no further request is wanted.
    is_finishing: bool,
    /// Whether there was a request ever.
    has_asked: bool,
    /// Requests begun whose answers hyper does not have whole yet.
    in_hand: usize,
    /// Those of them that need no key.
    keyless: usize,
    /// When the last of them ended, or the connection began.
    idle_since: Instant,
    /// When the head that is being waited for began. A new connection owes one.
    head_since: Option<Instant>,
    /// Since when the peer takes nothing of what waits to be written.
    blocked_since: Option<Instant>,
    /// Answers that are there whole and that HTTP/2 has no room for, because the peer gives none. Not those without a known
    /// size: a stream may be quiet for as long as it likes.
    unread: usize,
    /// When there were none last, or one less.
    unread_since: Instant,
    /// What an evicted connection holds until it has gone.
    leaving: Option<OwnedSemaphorePermit>,
}

impl Traffic {
    pub(super) fn new() -> Arc<Self> {
        let now = Instant::now();
        let state = State {
            is_http2: false,
            is_finishing: false,
            has_asked: false,
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

    /// A request is in hand until what this returns is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> InHand {
        let mut state = self.lock();
        state.in_hand += 1;
        state.has_asked = true;
        state.head_since = None;
        InHand { traffic: self.clone(), is_answered: false, is_keyless: false }
    }

    /// Whether there was a request ever, and since when none is in hand, whatever else the peer sends.
    pub(super) fn seen(&self) -> (bool, Option<Instant>) {
        let state = self.lock();
        (state.has_asked, (state.in_hand == 0).then_some(state.idle_since))
    }

    /// Tells the connection that its place is another's. The permit is given back once the connection has gone.
    pub(super) fn evict(&self, leaving: Option<OwnedSemaphorePermit>) {
        self.lock().leaving = leaving;
        self.evicted.cancel();
    }

    #[cfg(test)]
    pub(super) fn is_evicted(&self) -> bool {
        self.evicted.is_cancelled()
    }

    pub(super) async fn evicted(&self) -> Option<OwnedSemaphorePermit> {
        self.evicted.cancelled().await;
        self.lock().leaving.take()
    }

    /// No further request is wanted: one that does not come soon is not waited for.
    pub(super) fn finishing(&self) {
        let mut state = self.lock();
        state.is_finishing = true;
        state.head_since.get_or_insert_with(Instant::now);
    }

    /// Waits for a deadline to pass. Looks anew each time it is polled, which is after each poll of the connection.
    pub(super) fn poll_due(&self, timeouts: Timeouts, mut alarm: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<Due> {
        loop {
            let now = Instant::now();
            let at = match self.lock().due(timeouts) {
                Some((at, due)) if at <= now => return Poll::Ready(due),
                Some((at, _)) => at,
                // The end of a request is nobody's to tell, and until then there is no deadline.
                None => now + timeouts.idle,
            };
            if at < alarm.deadline() || alarm.is_elapsed() {
                alarm.as_mut().reset(at);
            }
            ready!(alarm.as_mut().poll(cx));
        }
    }

    fn read(&self) {
        let mut state = self.lock();
        if state.in_hand == 0 {
            state.head_since.get_or_insert_with(Instant::now);
        }
    }

    /// HTTP/2 has begun. Its streams begin and end whole, and pings find a dead peer.
    fn is_http2(&self) {
        let mut state = self.lock();
        state.is_http2 = true;
        state.head_since = None;
    }

    fn wrote(&self, result: &Poll<io::Result<usize>>) {
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
            return Some((since + timeouts.head, Due::Cut("no byte of the answer taken in time")));
        }
        if self.unread > 0 {
            return Some((self.unread_since + timeouts.head, Due::Cut("no byte of the answers taken in time")));
        }
        if self.in_hand > 0 {
            return None;
        }
        Some(match self.head_since {
            // A stop is not held up by a head that drips.
            Some(since) if self.is_finishing && !self.is_http2 => {
                (since + timeouts.head.min(LAST_HEAD), Due::Cut("no request in time"))
            }
            Some(since) => (since + timeouts.head, Due::Cut("no request in time")),
            None => (self.idle_since + timeouts.idle, Due::Finish),
        })
    }
}

/// A request in hand.
pub(super) struct InHand {
    traffic: Arc<Traffic>,
    /// Whether its whole answer waits for the peer.
    is_answered: bool,
    /// Whether it counts as one that needs no key.
    is_keyless: bool,
}

impl InHand {
    /// Counts it as one that needs no key. Says whether there may be one more.
    pub(super) fn keyless(&mut self) -> bool {
        let mut state = self.traffic.lock();
        if state.keyless == KEYLESS_MAX {
            return false;
        }
        state.keyless += 1;
        self.is_keyless = true;
        true
    }

    /// The whole answer is there.
    fn answered(&mut self) {
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
        // What waits for a head waits from now on: the answer may not be on its way yet.
        if let Some(since) = &mut state.head_since {
            *since = now;
        }
    }
}

/// An answer's body, whose request is in hand until hyper has all of it.
pub(super) struct Answered {
    body: Body,
    _in_hand: InHand,
}

impl Answered {
    pub(super) fn new(body: Body, mut in_hand: InHand) -> Self {
        if hyper::body::Body::size_hint(&body).exact().is_some_and(|bytes| bytes > 0) {
            in_hand.answered();
        }
        Self { body, _in_hand: in_hand }
    }
}

impl hyper::body::Body for Answered {
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

/// A stream whose traffic is noted.
pub(super) struct Noted<S> {
    stream: S,
    traffic: Arc<Traffic>,
    frames: Http2Frames,
    /// Once the peer was told to calm down.
    leaving: Option<Leaving>,
}

/// What is still read of a peer that was told to calm down, and thrown away: a connection closed on unread bytes is reset,
/// and the peer might not get to see why.
struct Leaving {
    time: Pin<Box<Sleep>>,
    bytes: usize,
}

/// How much that is at most.
const LEAVING_TIME: Duration = Duration::from_secs(1);
const LEAVING_BYTES: usize = 1024 * 1024;

impl<S> Noted<S> {
    pub(super) fn new(stream: S, traffic: Arc<Traffic>) -> Self {
        Self { stream, traffic, frames: Http2Frames::new(std::time::Instant::now()), leaving: None }
    }

    pub(super) fn into_stream(self) -> S {
        self.stream
    }

    fn look(&mut self, bytes: &[u8]) -> Result<(), TooManyFrames> {
        let before = self.frames.protocol();
        self.frames.read(bytes)?;
        match self.frames.protocol() {
            Protocol::Http2 if before == Protocol::Http2 => {}
            Protocol::Http2 => self.traffic.is_http2(),
            Protocol::Unknown | Protocol::Http1 => self.traffic.read(),
        }
        Ok(())
    }

    fn wrote(&mut self, slices: &[io::IoSlice<'_>], result: &Poll<io::Result<usize>>) {
        self.traffic.wrote(result);
        let Poll::Ready(Ok(mut left)) = *result else { return };
        for slice in slices {
            let written = left.min(slice.len());
            self.frames.wrote(&slice[..written]);
            left -= written;
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Noted<S> {
    /// Tells the peer to calm down, and that nothing more will come. Says whether that could be done: a peer that does not
    /// read is not waited for, and a frame that is partly written is not broken into.
    fn calm_down(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.frames.may_add() {
            return false;
        }
        let mut stream = Pin::new(&mut self.stream);
        let written = stream.as_mut().poll_write(cx, &CALM_DOWN);
        matches!(written, Poll::Ready(Ok(count)) if count == CALM_DOWN.len())
            && stream.as_mut().poll_flush(cx).is_ready()
            && stream.poll_shutdown(cx).is_ready()
    }

    /// Ready when the peer has gone or may send no more.
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

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Noted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.leaving.is_none() {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
            if buffer.filled().len() == before || self.look(&buffer.filled()[before..]).is_ok() {
                return Poll::Ready(Ok(()));
            }
            buffer.set_filled(before);
            if self.calm_down(cx) {
                self.leaving = Some(Leaving { time: Box::pin(tokio::time::sleep(LEAVING_TIME)), bytes: 0 });
            }
        }
        ready!(self.poll_left(cx));
        Poll::Ready(Err(io::Error::other(TooManyFrames)))
    }
}

/// Once the peer was told that nothing more will come, what hyper still writes goes nowhere.
impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.leaving.is_some() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(&[io::IoSlice::new(bytes)], &result);
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
        self.wrote(slices, &result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const SETTINGS: [u8; 9] = [0, 0, 0, 0x4, 0, 0, 0, 0, 0];

    /// What a peer gets that sends settings without end, which are answered with this until it is cut.
    async fn answered_to_a_flood(room: usize, answer: &[u8]) -> (io::Error, Vec<u8>) {
        let (mut peer, stream) = duplex(room);
        let mut noted = Noted::new(stream, Traffic::new());
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
                match noted.read(&mut scratch).await {
                    Ok(count) => assert!(count > 0),
                    Err(error) => break error,
                }
                if noted.frames.protocol() == Protocol::Http2
                    && let Some(answer) = answer.take()
                {
                    noted.write_all(answer).await.expect("there is room for it");
                }
            }
        };
        tokio::join!(serving, flooding)
    }

    #[tokio::test]
    async fn a_peer_that_floods_is_told_to_calm_down_and_then_left() {
        let (error, answers) = answered_to_a_flood(64 * 1024, &SETTINGS).await;
        assert_eq!(error.to_string(), TooManyFrames.to_string());
        assert_eq!(answers, [&SETTINGS[..], &CALM_DOWN].concat());
    }

    #[tokio::test]
    async fn a_frame_that_is_partly_written_is_not_broken_into() {
        let begun = [&SETTINGS[..], &[0, 0, 200, 0, 0, 0, 0, 0, 1, 7]].concat();
        let (error, answers) = answered_to_a_flood(64 * 1024, &begun).await;
        assert_eq!(error.to_string(), TooManyFrames.to_string());
        assert_eq!(answers, begun);
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_not_waited_for() {
        let whole = [&SETTINGS[..], &[0, 0, 238, 0, 0, 0, 0, 0, 1], &[7; 238]].concat();
        let (error, answers) = answered_to_a_flood(whole.len(), &whole).await;
        assert_eq!(error.to_string(), TooManyFrames.to_string());
        assert_eq!(answers, whole);
    }
}

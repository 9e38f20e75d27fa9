//! A connection's stream in memory whose other end is in a test's hand: it says what comes, and how much is taken.

use std::io::{self, ErrorKind::WouldBlock, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::Transport;
use crate::mailbox::WriteNow;

/// Both ends of one stream: what a gateway's connection reads and writes, and what its client does.
#[derive(Clone, Debug)]
pub struct Pipe(Arc<Ends>);

#[derive(Debug, Default)]
struct Ends(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// What the client has sent and the connection has not read.
    unread: Vec<u8>,
    /// What the connection has written and the client has not looked at.
    written: Vec<u8>,
    /// How many bytes more the connection may write.
    room: usize,
    end: Option<End>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// How the client's side ended.
#[derive(Clone, Copy, Debug)]
enum End {
    Closed,
    Reset,
}

impl Default for Pipe {
    /// A stream that takes all that is written.
    fn default() -> Self {
        Self(Arc::new(Ends(Mutex::new(State { room: usize::MAX, ..State::default() }))))
    }
}

impl Pipe {
    /// Has the client send these bytes.
    pub fn send(&self, bytes: &[u8]) {
        let mut state = self.0.state();
        if state.end.is_none() {
            state.unread.extend_from_slice(bytes);
            state.wake_reader();
        }
    }

    /// Has the client send nothing more, and take whatever comes.
    pub fn close(&self) {
        self.end(End::Closed);
    }

    /// Has both directions fail.
    pub fn reset(&self) {
        self.end(End::Reset);
    }

    /// Lets the connection write so many bytes from now on, and then has it wait.
    pub fn set_room(&self, bytes: usize) {
        let mut state = self.0.state();
        state.room = bytes;
        state.wake_writer();
    }

    /// What the connection has written since the last call.
    #[must_use]
    pub fn take_written(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.state().written)
    }

    fn end(&self, end: End) {
        let mut state = self.0.state();
        state.end = Some(end);
        state.wake_reader();
        state.wake_writer();
    }
}

impl Ends {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wake_reader(&mut self) {
        self.reader.take().into_iter().for_each(Waker::wake);
    }

    fn wake_writer(&mut self) {
        self.writer.take().into_iter().for_each(Waker::wake);
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if let Some(End::Reset) = self.end {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let mut count = 0;
        for slice in slices {
            let taken = slice.len().min(self.room);
            self.written.extend_from_slice(&slice[..taken]);
            self.room -= if self.room == usize::MAX { 0 } else { taken };
            count += taken;
        }
        if count == 0 && slices.iter().any(|slice| !slice.is_empty()) { Err(WouldBlock.into()) } else { Ok(count) }
    }
}

impl WriteNow for Ends {
    fn write_now(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.state().write(slices)
    }
}

impl Transport for Pipe {
    type Shared = Self;

    fn share(self) -> Self {
        self
    }

    fn direct(&self) -> Option<Arc<dyn WriteNow>> {
        Some(self.0.clone())
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.state();
        match state.end {
            Some(End::Reset) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            None if state.unread.is_empty() => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(End::Closed) | None => {
                let count = state.unread.len().min(buffer.remaining());
                buffer.put_slice(&state.unread[..count]);
                state.unread.drain(..count);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.state();
        match state.write(slices) {
            Err(error) if error.kind() == WouldBlock => {
                state.writer = Some(cx.waker().clone());
                Poll::Pending
            }
            done => Poll::Ready(done),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

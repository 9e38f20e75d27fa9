//! What carries a connection: a stream of bytes that can be given up, and shared with others who write to it.

use std::io::{self, ErrorKind::WouldBlock, IoSlice, Read};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::mailbox::WriteNow;

/// A stream that a connection can go over.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The stream once it is shared.
    type Shared: Transport;

    /// Makes it one that others may write to, if it can be written to without waiting and without its own state.
    fn share(self) -> Self::Shared;

    /// The stream for others to write to, if it is shared.
    fn direct(&self) -> Option<Arc<dyn WriteNow>> {
        None
    }

    /// Whether the peer has agreed to speak HTTP/2, and nothing else, over it.
    fn is_for_http2(&self) -> bool {
        false
    }

    /// Has the stream reset when it is dropped, so that the kernel forgets at once what the peer has not read. Closed
    /// otherwise, it would keep it, and offer it to the peer for minutes.
    fn reset_when_dropped(&self) {}

    /// Writes as much of this as the kernel takes at once, for one that is about to be dropped.
    fn tell(&self, _last_words: &[u8]) {}
}

/// A socket of the kernel's to which anybody may write. Only one at a time does: see `mailbox`.
#[derive(Debug)]
pub(crate) struct SharedSocket<S>(Arc<S>);

/// Slices of so few bytes are copied together: the kernel takes one buffer in less time than it needs for a list of two.
const JOINED_BYTES_MAX: usize = 512;

fn join<'a>(slices: &[IoSlice<'_>], buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let mut joined = 0;
    for slice in slices {
        let end = joined + slice.len();
        buffer.get_mut(joined..end)?.copy_from_slice(slice);
        joined = end;
    }
    Some(&buffer[..joined])
}

macro_rules! sockets {
    ($($socket:ty => $reset:expr;)+) => {
        $(
            impl Transport for $socket {
                type Shared = SharedSocket<Self>;

                fn share(self) -> Self::Shared {
                    SharedSocket(Arc::new(self))
                }

                fn reset_when_dropped(&self) {
                    $reset(self);
                }

                fn tell(&self, last_words: &[u8]) {
                    // Past tokio, which does not know yet whether a new socket takes anything.
                    let _none_or_not_all = SockRef::from(self).send(last_words);
                }
            }

            impl Transport for SharedSocket<$socket> {
                type Shared = Self;

                fn share(self) -> Self {
                    self
                }

                fn direct(&self) -> Option<Arc<dyn WriteNow>> {
                    Some(self.0.clone())
                }

                fn reset_when_dropped(&self) {
                    self.0.reset_when_dropped();
                }
            }

            impl WriteNow for $socket {
                fn write_now(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
                    let mut buffer = [0; JOINED_BYTES_MAX];
                    match join(slices, &mut buffer) {
                        Some(joined) => self.try_write(joined),
                        None => self.try_write_vectored(slices),
                    }
                }
            }

            impl AsyncRead for SharedSocket<$socket> {
                fn poll_read(
                    self: Pin<&mut Self>,
                    cx: &mut Context<'_>,
                    buffer: &mut ReadBuf<'_>,
                ) -> Poll<io::Result<()>> {
                    loop {
                        ready!(self.0.poll_read_ready(cx))?;
                        let mut count = 0;
                        let result = self.0.try_io(Interest::READABLE, || {
                            let unfilled = buffer.initialize_unfilled();
                            count = (&*SockRef::from(&*self.0)).read(unfilled)?;
                            // Fewer bytes than there was room for are all there were. Said to tokio, it saves the next
                            // read, which would find nothing.
                            if (1..unfilled.len()).contains(&count) { Err(WouldBlock.into()) } else { Ok(()) }
                        });
                        match result {
                            Err(error) if error.kind() == WouldBlock && count == 0 => {}
                            Err(error) if error.kind() != WouldBlock => return Poll::Ready(Err(error)),
                            _ => {
                                buffer.advance(count);
                                return Poll::Ready(Ok(()));
                            }
                        }
                    }
                }
            }

            impl AsyncWrite for SharedSocket<$socket> {
                fn poll_write(
                    self: Pin<&mut Self>,
                    cx: &mut Context<'_>,
                    bytes: &[u8],
                ) -> Poll<io::Result<usize>> {
                    self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
                }

                fn poll_write_vectored(
                    self: Pin<&mut Self>,
                    cx: &mut Context<'_>,
                    slices: &[IoSlice<'_>],
                ) -> Poll<io::Result<usize>> {
                    loop {
                        match self.0.write_now(slices) {
                            Err(error) if error.kind() == WouldBlock => {}
                            done => return Poll::Ready(done),
                        }
                        ready!(self.0.poll_write_ready(cx))?;
                    }
                }

                fn is_write_vectored(&self) -> bool {
                    true
                }

                fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                    Poll::Ready(Ok(()))
                }

                fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                    Poll::Ready(SockRef::from(&*self.0).shutdown(Shutdown::Write))
                }
            }
        )+
    };
}

sockets! {
    // A kernel that refuses closes as usual, and its own timeouts hold.
    TcpStream => |socket: &TcpStream| drop(socket.set_zero_linger());
    // What it holds goes with it.
    UnixStream => |_: &UnixStream| ();
}

#[cfg(test)]
impl Transport for tokio::io::DuplexStream {
    type Shared = Self;

    fn share(self) -> Self {
        self
    }
}

//! Request bodies, whose bytes are counted to their caller as they come: whole ones, and streams of messages.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use tonic::Status;

use crate::doors::{Refusal, grpc};
use crate::gateway::Gateway;
use crate::shares::Share;

/// Reads a whole body, and takes for it as it comes.
pub(super) async fn read(mut body: Incoming, limit_bytes: usize, share: &mut Share) -> Result<Bytes, Refusal> {
    // Copied, so that a body in tiny pieces takes no more than its bytes.
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        // Trailers are passed over. h2 drops pseudo-headers in them where RFC 9113 section 8.1 has it refuse the request, and
        // does not tell of them.
        let Ok(data) = frame.map_err(|_| Refusal::BrokenOff)?.into_data() else { continue };
        if data.len() > limit_bytes - whole.len() {
            return Err(Refusal::TooLarge { limit_bytes });
        }
        if whole.is_empty() && body.is_end_stream() {
            // It came in one piece, as most do: it is in memory already, and nobody waits for more of it.
            return Ok(data);
        }
        share.take(data.len()).map_err(|_| Refusal::TooManyBytes)?;
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// The body of a stream of gRPC messages. The bytes of a large message count while it comes: one that is there whole is
/// decoded at once, and nobody waits for more of it.
pub(super) struct Messages {
    body: Incoming,
    share: Share,
    gateway: Gateway,
    unfinished: Unfinished,
}

impl Messages {
    pub(super) fn new(body: Incoming, share: Share, gateway: Gateway) -> Self {
        Self { body, share, gateway, unfinished: Unfinished::default() }
    }
}

impl Body for Messages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(Status::from_error(error.into())))),
            None => return Poll::Ready(None),
        };
        if let Some(data) = frame.data_ref()
            && this.share.hold(this.unfinished.read(data)).is_err()
        {
            return Poll::Ready(Some(Err(grpc::refuse(&this.gateway, Refusal::TooManyBytes))));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// A gRPC message's head: whether it is compressed, and its length.
const HEAD_BYTES: usize = 5;

/// A message of so many bytes ends with the next DATA frame, and a stream is not ended for it.
const SMALL_BYTES: usize = 16 * 1024;

/// The last message of a stream, as far as it has come.
#[derive(Debug, Default)]
struct Unfinished {
    head: [u8; HEAD_BYTES],
    /// Bytes of it, head and all.
    come: usize,
}

impl Unfinished {
    /// Reads on, and says how many bytes have come of a large message that is not there whole.
    fn read(&mut self, mut bytes: &[u8]) -> usize {
        while !bytes.is_empty() {
            let wanted = self.length().unwrap_or(HEAD_BYTES) - self.come;
            let taken = bytes.len().min(wanted);
            if self.come < HEAD_BYTES {
                self.head[self.come..self.come + taken].copy_from_slice(&bytes[..taken]);
            }
            self.come += taken;
            bytes = &bytes[taken..];
            if self.length() == Some(self.come) {
                self.come = 0;
            }
        }
        let is_large = self.length().is_some_and(|length| length > HEAD_BYTES + SMALL_BYTES);
        if is_large { self.come - HEAD_BYTES } else { 0 }
    }

    /// How long it is, head and all, once that is known.
    fn length(&self) -> Option<usize> {
        let [_, length @ ..] = self.head;
        (self.come >= HEAD_BYTES).then_some(HEAD_BYTES + u32::from_be_bytes(length) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_come_of_a_large_message_counts_until_it_is_whole() {
        let lengths = [0, 70_000, 1, 16_384, 0, 16_385, 300];
        let message = |length: u32| [&[0][..], &length.to_be_bytes(), &vec![7; length as usize]].concat();
        let stream = lengths.map(message).concat();
        let mut large = Vec::new();
        let mut begin = 0;
        for length in lengths {
            let end = begin + HEAD_BYTES + length as usize;
            if length > 16_384 {
                large.push((begin + HEAD_BYTES, end));
            }
            begin = end;
        }
        for cut in [1, 4, 7, 1000, 16_384, stream.len()] {
            let mut unfinished = Unfinished::default();
            let mut at = 0;
            for part in stream.chunks(cut) {
                at += part.len();
                let coming = large.iter().find(|(begin, end)| (*begin..*end).contains(&at));
                assert_eq!(unfinished.read(part), coming.map_or(0, |(begin, _)| at - begin), "{cut} {at}");
            }
        }
    }
}

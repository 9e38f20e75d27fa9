//! The frames that a connection's task has in hand to write, in order, the first perhaps written in part.

use std::collections::VecDeque;
use std::io::IoSlice;

use smallvec::SmallVec;

use crate::delivery::Ticket;
use crate::dialect::{Content, Frame};

/// Frames written with one system call. Linux takes at most 1024 slices (`IOV_MAX`), and past a few dozen the call's own
/// cost no longer shows.
pub(crate) const FRAMES_MAX: usize = 64;

/// Bytes in hand past which no further frame is taken. As much as a socket takes at once, and little enough that what waits
/// for a client that does not read stays in its queue, where the slow-reader policy reaches it.
pub(super) const BYTES_MAX: usize = 256 * 1024;

/// The slices of one write: two for each frame.
pub(crate) type Slices<'a> = SmallVec<[IoSlice<'a>; 2 * FRAMES_MAX]>;

/// Frames in hand. In a box that is there only with frames in it, because most connections have none in hand: their
/// messages are written by whoever pushes.
#[derive(Debug, Default)]
pub(crate) struct Line(Option<Box<Frames>>);

#[derive(Debug, Default)]
struct Frames {
    queue: VecDeque<Frame>,
    /// Bytes of the first frame that are already written.
    offset: usize,
}

impl Line {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |frames| frames.queue.len())
    }

    /// Bytes of its frames, those that are already written included.
    pub(super) fn bytes(&self) -> usize {
        self.frames().map(Frame::len).sum()
    }

    /// Whether a frame is written in part.
    pub(crate) fn is_begun(&self) -> bool {
        self.offset() > 0
    }

    /// Bytes of the first frame that are already written.
    pub(crate) fn offset(&self) -> usize {
        self.0.as_ref().map_or(0, |frames| frames.offset)
    }

    pub(super) fn frames(&self) -> impl Iterator<Item = &Frame> {
        self.0.iter().flat_map(|frames| &frames.queue)
    }

    pub(super) fn push(&mut self, frame: Frame) {
        self.0.get_or_insert_default().queue.push_back(frame);
    }

    /// Puts a frame before all others of which so many bytes are written.
    pub(super) fn go_on_with(&mut self, frame: Frame, offset: usize) {
        let frames = self.0.get_or_insert_default();
        frames.queue.push_front(frame);
        frames.offset = offset;
    }

    /// Adds a frame of the gateway's own.
    pub(crate) fn say(&mut self, text: String) {
        self.push(Frame::own(text));
    }

    /// How many frames of the gateway's own wait.
    pub(crate) fn own(&self) -> usize {
        self.frames().filter(|frame| frame.is_own()).count()
    }

    /// The bytes of the first frames, for one write.
    pub(crate) fn slices(&self, frames_max: usize) -> Slices<'_> {
        self.frames().take(frames_max.min(FRAMES_MAX)).flat_map(Frame::parts).collect()
    }

    /// Notes that so many bytes were written, and hands over each frame that is written whole.
    pub(crate) fn wrote(&mut self, count: usize, mut whole: impl FnMut(Content)) {
        let Some(frames) = &mut self.0 else { return };
        frames.offset += count;
        while let Some(front) = frames.queue.front()
            && frames.offset >= front.len()
        {
            frames.offset -= front.len();
            frames.queue.pop_front().into_iter().for_each(|frame| whole(frame.content));
        }
        if frames.queue.is_empty() {
            self.0 = None;
        }
    }

    /// Gives up messages and gaps. What is written in part stays, and so does what the gateway says of its own.
    pub(crate) fn give_up(&mut self) {
        self.retain(Frame::is_own);
    }

    /// Gives up everything but what is written in part.
    pub(crate) fn silence(&mut self) {
        self.retain(|_| false);
    }

    fn retain(&mut self, stays: impl Fn(&Frame) -> bool) {
        let mut is_begun = self.is_begun();
        let Some(frames) = &mut self.0 else { return };
        frames.queue.retain(|frame| std::mem::take(&mut is_begun) || stays(frame));
        if frames.queue.is_empty() {
            self.0 = None;
        }
    }

    /// The session takes its messages back, since the connection ends. One that is written in part stays here without
    /// its message.
    pub(super) fn take_back(&mut self) {
        self.retain(Frame::is_own);
        if let Some(front) = self.0.as_mut().and_then(|frames| frames.queue.front_mut())
            && matches!(front.content, Content::Numbered { .. })
        {
            front.content = Content::Taken;
        }
    }

    /// Whether the stream ends within a message that the session took back: its rest must not follow, or the client would
    /// have what its sender may be told is lost.
    pub(crate) fn is_torn(&self) -> bool {
        self.is_begun() && self.frames().next().is_some_and(|front| matches!(front.content, Content::Taken))
    }

    /// Removes the messages that are no longer worth writing, unless they are written in part. A session is told of a
    /// number in its place.
    pub(super) fn expire(&mut self, mut over: impl FnMut(Expired)) {
        let from = usize::from(self.is_begun());
        if !self.frames().skip(from).any(Frame::is_expired) {
            return;
        }
        let Some(frames) = &mut self.0 else { return };
        for frame in frames.queue.iter_mut().skip(from).filter(|frame| frame.is_expired()) {
            match std::mem::replace(&mut frame.content, Content::Taken) {
                Content::Message(ticket) => over(Expired::Message(ticket)),
                Content::Numbered { seq, .. } => {
                    over(Expired::Numbered(seq));
                    *frame = Frame::gap(seq, seq);
                }
                content => frame.content = content,
            }
        }
        let mut at = 0;
        frames.queue.retain(|frame| {
            at += 1;
            at <= from || !matches!(frame.content, Content::Taken)
        });
        if frames.queue.is_empty() {
            self.0 = None;
        }
    }
}

/// A message in hand that is no longer worth writing.
pub(super) enum Expired {
    Message(Ticket),
    Numbered(u64),
}

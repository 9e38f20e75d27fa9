//! The frames that a connection's task has in hand to write, in order, the first perhaps written in part.

use std::collections::VecDeque;
use std::io::IoSlice;

use smallvec::SmallVec;

use crate::delivery::Ticket;
use crate::dialect::{Content, Frame};

/// Frames written with one system call. Linux takes at most 1024 slices (`IOV_MAX`), and past a few dozen the call's own
/// cost no longer shows.
pub(crate) const FRAMES_MAX: usize = 64;

/// The slices of one write: two for each frame.
pub(crate) type Slices<'a> = SmallVec<[IoSlice<'a>; 2 * FRAMES_MAX]>;

/// Frames in hand.
#[derive(Debug, Default)]
pub(crate) struct Line {
    pub(super) frames: VecDeque<Frame>,
    /// Bytes of the first frame that are already written.
    pub(super) offset: usize,
}

impl Line {
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// How many frames more it may hold.
    pub(super) fn room(&self) -> usize {
        FRAMES_MAX.saturating_sub(self.frames.len())
    }

    /// Whether a frame is written in part.
    pub(crate) fn is_begun(&self) -> bool {
        self.offset > 0
    }

    /// Bytes of the first frame that are already written.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    /// Adds a frame of the gateway's own.
    pub(crate) fn say(&mut self, text: String) {
        self.frames.push_back(Frame::own(text));
    }

    /// How many frames of the gateway's own wait.
    pub(crate) fn own(&self) -> usize {
        self.frames.iter().filter(|frame| frame.is_own()).count()
    }

    /// The bytes of the first frames, for one write.
    pub(crate) fn slices(&self, frames_max: usize) -> Slices<'_> {
        self.frames.iter().take(frames_max.min(FRAMES_MAX)).flat_map(Frame::parts).collect()
    }

    /// Notes that so many bytes were written, and hands over each frame that is written whole.
    pub(crate) fn wrote(&mut self, count: usize, mut whole: impl FnMut(Content)) {
        self.offset += count;
        while let Some(front) = self.frames.front()
            && self.offset >= front.len()
        {
            self.offset -= front.len();
            self.frames.pop_front().into_iter().for_each(|frame| whole(frame.content));
        }
        if self.frames.is_empty() {
            // A connection writes here seldom: mostly its messages are written by whoever pushes.
            self.frames = VecDeque::new();
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
        self.frames.retain(|frame| std::mem::take(&mut is_begun) || stays(frame));
    }

    /// The session takes its messages back, since the connection ends. One that is written in part stays here without
    /// its message.
    pub(super) fn take_back(&mut self) {
        self.retain(Frame::is_own);
        if let Some(front) = self.frames.front_mut()
            && matches!(front.content, Content::Numbered { .. })
        {
            front.content = Content::Taken;
        }
    }

    /// Whether the stream ends within a message that the session took back: its rest must not follow, or the client would
    /// have what its sender may be told is lost.
    pub(crate) fn is_torn(&self) -> bool {
        self.is_begun() && self.frames.front().is_some_and(|front| matches!(front.content, Content::Taken))
    }

    /// Removes the messages that are no longer worth writing, unless they are written in part. A session is told of a
    /// number in its place.
    pub(super) fn expire(&mut self, mut over: impl FnMut(Expired)) {
        let from = usize::from(self.is_begun());
        if !self.frames.iter().skip(from).any(Frame::is_expired) {
            return;
        }
        for frame in self.frames.iter_mut().skip(from).filter(|frame| frame.is_expired()) {
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
        self.frames.retain(|frame| {
            at += 1;
            at <= from || !matches!(frame.content, Content::Taken)
        });
    }
}

/// A message in hand that is no longer worth writing.
pub(super) enum Expired {
    Message(Ticket),
    Numbered(u64),
}

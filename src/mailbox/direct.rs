//! Writing past the connection's task: while the task sleeps with nothing in hand, whoever has a message for the receiver
//! writes it. That saves waking a task for each message.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::dialect::{Content, Frame};

use super::log::Elsewhere;
use super::{Attached, Flush, Mailbox, Whereabouts};

/// A receiver that was written to longer ago is not in a burst, so that nothing is gained by waiting for more messages.
const QUIET: Duration = Duration::from_micros(200);

/// Frames written with one system call past the task.
const FRAMES_MAX: usize = 16;

/// Writes of one flush. A receiver that has more by then is its task's.
const WRITES_MAX: usize = 4;

/// A socket that can be written to without waiting.
pub(crate) trait WriteNow: Debug + Send + Sync {
    /// Writes as much as the kernel takes now.
    ///
    /// # Errors
    /// `WouldBlock` when it takes nothing.
    fn write_now(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
}

impl Attached {
    /// Promises that the caller will flush.
    pub(super) fn promise(&mut self, now: Instant) -> Flush {
        self.is_promised = true;
        let now = now.saturating_duration_since(self.handle.since()).as_nanos() as u64;
        let was = std::mem::replace(&mut self.flushed_at, now);
        if was == 0 || now.saturating_sub(was) >= QUIET.as_nanos() as u64 { Flush::Now } else { Flush::Soon }
    }
}

/// A frame taken to be written, with the number told before it.
type TakenFrame = (Frame, u64);

impl Mailbox {
    /// Writes what is queued, unless the connection's task is at it. What the socket does not take is left to the task.
    pub(crate) fn flush(&self, mut delivered: impl FnMut(Duration)) {
        let mut written: SmallVec<[_; FRAMES_MAX]> = SmallVec::new();
        for round in 0..=WRITES_MAX {
            let is_done = self.flush_once(round, &mut written, &mut delivered);
            // Each message tells whoever waits for it, which is not for under the lock.
            let now = Instant::now();
            written.drain(..).for_each(|ticket: crate::delivery::Ticket| delivered(ticket.written(now)));
            if is_done {
                return;
            }
        }
    }

    /// One write. Returns whether that was all.
    fn flush_once(
        &self,
        round: usize,
        written: &mut SmallVec<[crate::delivery::Ticket; FRAMES_MAX]>,
        delivered: &mut impl FnMut(Duration),
    ) -> bool {
        let mut guard = self.state();
        let state = &mut *guard;
        let Whereabouts::Attached(attached) = &mut state.at else { return true };
        attached.is_promised = false;
        let may_write = attached.is_idle && attached.handle.stopped().is_none();
        let Some(socket) = attached.direct.clone().filter(|_| may_write) else { return true };
        if state.queue.is_empty() {
            return true;
        }
        if round == WRITES_MAX {
            attached.hand_over();
            return true;
        }
        let mut frames: SmallVec<[TakenFrame; FRAMES_MAX]> = SmallVec::new();
        while frames.len() < FRAMES_MAX {
            let told = state.log.as_ref().map_or(0, |log| log.told());
            let Some(frame) = state.next_frame() else { break };
            frames.push((frame, told));
        }
        if frames.iter().any(|(frame, _)| frame.is_expired()) {
            // Seldom, and the task knows how to.
            state.put_back(frames.into_iter());
            let Whereabouts::Attached(attached) = &mut state.at else { return true };
            attached.hand_over();
            return true;
        }
        let slices: SmallVec<[IoSlice<'_>; 2 * FRAMES_MAX]> =
            frames.iter().flat_map(|(frame, _)| frame.parts()).collect();
        // An error is found again by the task, which ends the connection for it.
        let mut count = socket.write_now(&slices).unwrap_or(0);
        drop(slices);
        let whole = frames.iter().take_while(|(frame, _)| {
            let is_whole = frame.len() <= count;
            count -= if is_whole { frame.len() } else { 0 };
            is_whole
        });
        let whole = whole.count();
        let mut rest = frames.drain(..);
        let mut last = 0;
        for (frame, _) in rest.by_ref().take(whole) {
            match frame.content {
                Content::Message(ticket) => {
                    state.queue.depth -= super::Depth::of(&ticket);
                    written.push(ticket);
                }
                Content::Numbered { seq, .. } | Content::Gap { to: seq } => last = seq,
                Content::Own | Content::Taken => {}
            }
        }
        let mut settles = None;
        if let (Some(log), 1..) = (&mut state.log, last) {
            let done = log.wrote(last, Instant::now(), Elsewhere::Yes, delivered);
            state.queue.depth -= done;
            settles = Some(log.account().clone());
        }
        let mut rest = rest.peekable();
        let is_all = rest.peek().is_none();
        if !is_all {
            if count > 0
                && let Some((frame, _)) = rest.next()
            {
                state.begun = Some(Box::new((frame, count)));
            }
            state.put_back(rest);
            let Whereabouts::Attached(attached) = &mut state.at else { return true };
            attached.hand_over();
        }
        state.queue.shrink();
        drop(guard);
        if let Some(account) = settles {
            account.settle();
        }
        !is_all
    }
}

impl super::State {
    /// Puts back what was taken and not begun.
    fn put_back(&mut self, frames: impl DoubleEndedIterator<Item = TakenFrame>) {
        for (frame, told) in frames.rev() {
            match (frame.content, &mut self.log) {
                (Content::Message(ticket), _) => self.queue.unpop(ticket),
                (Content::Numbered { .. } | Content::Gap { .. }, Some(log)) => log.untold(told),
                _ => {}
            }
        }
    }
}

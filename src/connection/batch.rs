//! The frames that one connection has in hand to write: legacy clients get the shared frame as it is, session clients one
//! with a number of their own in front.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use bytes::Bytes;
use smallvec::SmallVec;

use crate::delivery::{HEADER_BYTES_MAX, Ticket, text_header};
use crate::journal::{Journal, Kept, SessionKey};
use crate::outbox::{Depth, Numbered, Outbox, Stop, shrink};
use crate::outcome::DropReason;

/// Frames written with one system call. Linux takes at most 1024 slices (`IOV_MAX`); past a few dozen the call's own cost
/// no longer shows.
pub(super) const BATCH_MAX: usize = 64;

/// The slices of one write: a session's frame is two.
pub(super) type Slices<'a> = SmallVec<[IoSlice<'a>; BATCH_MAX]>;

pub(super) enum Batch {
    Legacy(VecDeque<Ticket>),
    /// In a box, so that legacy connections do not carry its size.
    Session(Box<SessionBatch>),
}

#[derive(Default)]
pub(super) struct SessionBatch {
    frames: VecDeque<Frame>,
    /// What the outbox gave and is not encoded yet.
    fresh: VecDeque<Numbered>,
    /// What was written and is to be kept until it is acknowledged, and for whom and where.
    sent: Vec<Kept>,
    keeper: Option<(SessionKey, Arc<dyn Journal>)>,
    /// The last number that the client can have: it was written whole, message or gap, here or on a connection before.
    written: u64,
}

/// One frame of a session.
struct Frame {
    head: Head,
    tail: Bytes,
    what: What,
}

/// What a frame tells.
enum What {
    Message(Kept),
    /// That messages are lost, up to this number.
    Gap(u64),
    /// Something of the gateway's own.
    Said,
    /// A message that the session took back.
    Taken,
}

/// What is taken off the outbox's books with this message: nothing if it is sent once more.
fn done_with(message: &Kept) -> Depth {
    if message.is_sent() { Depth::default() } else { Depth::of(message.ticket()) }
}

/// `{"type":"push","seq":` and `,` with the longest number between them.
const PUSH_HEAD_BYTES_MAX: usize = PUSH_HEAD.len() + 20 + 1;
const PUSH_HEAD: &str = r#"{"type":"push","seq":"#;

/// What stands before the shared part of a frame. In place, so that a delivered message costs no allocation.
struct Head {
    bytes: [u8; HEADER_BYTES_MAX + PUSH_HEAD_BYTES_MAX],
    length: u8,
}

impl Head {
    /// The header of a frame that says this much.
    fn of_text(length: usize) -> Self {
        let mut head = Self { bytes: [0; _], length: 0 };
        let mut rest = &mut head.bytes[..];
        text_header(length, &mut rest);
        let left = rest.len();
        head.length = (head.bytes.len() - left) as u8;
        head
    }

    fn of_push(seq: u64, tail: usize) -> Self {
        let mut digits = [0; 20];
        let mut at = digits.len();
        let mut rest = seq;
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        let digits = &digits[at..];
        let mut head = Self::of_text(PUSH_HEAD.len() + digits.len() + 1 + tail);
        head.append(PUSH_HEAD.as_bytes());
        head.append(digits);
        head.append(b",");
        head
    }

    fn append(&mut self, bytes: &[u8]) {
        let from = usize::from(self.length);
        self.bytes[from..from + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len() as u8;
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl Frame {
    fn said(text: String) -> Self {
        Self { head: Head::of_text(text.len()), tail: text.into(), what: What::Said }
    }

    fn gap(from: u64, to: u64) -> Self {
        Self { what: What::Gap(to), ..Self::said(format!(r#"{{"type":"gap","from":{from},"to":{to}}}"#)) }
    }

    fn push(message: Kept) -> Self {
        let tail = message.ticket().session_tail();
        let head = Head::of_push(message.seq(), tail.len());
        Self { head, tail, what: What::Message(message) }
    }

    fn length(&self) -> usize {
        self.head.as_bytes().len() + self.tail.len()
    }

    fn is_expired(&self) -> bool {
        matches!(&self.what, What::Message(message) if message.ticket().is_expired())
    }

    fn is_said(&self) -> bool {
        matches!(self.what, What::Said)
    }

    /// Takes the message out of it, and leaves `what` in its place.
    fn take_message(&mut self, what: What) -> Option<Kept> {
        if !matches!(self.what, What::Message(_)) {
            return None;
        }
        match std::mem::replace(&mut self.what, what) {
            What::Message(message) => Some(message),
            What::Gap(_) | What::Said | What::Taken => None,
        }
    }
}

impl From<Numbered> for Frame {
    fn from(numbered: Numbered) -> Self {
        match numbered {
            Numbered::Message(message) => Self::push(message),
            Numbered::Gap { from, to } => Self::gap(from, to),
        }
    }
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        match self {
            Self::Legacy(tickets) => tickets.len(),
            Self::Session(batch) => batch.frames.len(),
        }
    }

    /// Bytes of the frame in front.
    pub(super) fn front_length(&self) -> Option<usize> {
        match self {
            Self::Legacy(tickets) => tickets.front().map(|ticket| ticket.bytes().len()),
            Self::Session(batch) => batch.frames.front().map(Frame::length),
        }
    }

    /// Visits the outbox, and takes from it as much as fits if `takes`.
    pub(super) fn visit(&mut self, outbox: &Outbox, cx: &Context<'_>, done: Depth, takes: bool) -> Option<Stop> {
        let room = if takes { BATCH_MAX.saturating_sub(self.len()) } else { 0 };
        match self {
            Self::Legacy(tickets) => outbox.visit(cx, done, tickets, room),
            Self::Session(batch) => {
                let stop = outbox.visit_numbered(cx, done, &mut batch.fresh, room);
                batch.frames.extend(batch.fresh.drain(..).map(Frame::from));
                stop
            }
        }
    }

    /// The bytes of the first frames, for one write.
    pub(super) fn slices(&self, frames_max: usize) -> Slices<'_> {
        match self {
            Self::Legacy(tickets) => {
                tickets.iter().take(frames_max.min(BATCH_MAX)).map(|ticket| IoSlice::new(ticket.bytes())).collect()
            }
            Self::Session(batch) => {
                let frames = batch.frames.iter().take(frames_max.min(BATCH_MAX / 2));
                frames.flat_map(|frame| [IoSlice::new(frame.head.as_bytes()), IoSlice::new(&frame.tail)]).collect()
            }
        }
    }

    /// The frame in front is with the kernel.
    pub(super) fn wrote_front(&mut self, now: Instant, done: &mut Depth, delivered: &mut impl FnMut(Duration)) {
        match self {
            Self::Legacy(tickets) => {
                let Some(ticket) = tickets.pop_front() else { return };
                *done += Depth::of(&ticket);
                delivered(ticket.written(now));
            }
            Self::Session(batch) => {
                let Some(Frame { what, .. }) = batch.frames.pop_front() else { return };
                match what {
                    What::Message(mut message) => {
                        *done += done_with(&message);
                        message.sent(now).into_iter().for_each(delivered);
                        batch.written = batch.written.max(message.seq());
                        batch.sent.push(message);
                    }
                    What::Gap(to) => batch.written = batch.written.max(to),
                    What::Said | What::Taken => {}
                }
            }
        }
    }

    /// Gives back memory that only a busy moment needed.
    pub(super) fn shrink(&mut self) {
        match self {
            Self::Legacy(tickets) => shrink(tickets),
            Self::Session(batch) => {
                shrink(&mut batch.frames);
                shrink(&mut batch.fresh);
            }
        }
    }

    /// Gives up the messages past their time to live, the first `begun` frames apart, and says how many. A session is
    /// told in their place that they are lost.
    pub(super) fn expire(&mut self, begun: usize, done: &mut Depth) -> usize {
        let mut expired = 0;
        match self {
            Self::Legacy(tickets) => {
                if !tickets.iter().skip(begun).any(Ticket::is_expired) {
                    return 0;
                }
                for at in (begun..tickets.len()).rev() {
                    if tickets[at].is_expired()
                        && let Some(ticket) = tickets.remove(at)
                    {
                        *done += Depth::of(&ticket);
                        ticket.lost(DropReason::Expired);
                        expired += 1;
                    }
                }
            }
            Self::Session(batch) => {
                for frame in batch.frames.iter_mut().skip(begun).filter(|frame| frame.is_expired()) {
                    let Some(message) = frame.take_message(What::Taken) else { continue };
                    *done += done_with(&message);
                    *frame = Frame::gap(message.seq(), message.seq());
                    expired += usize::from(!message.is_sent());
                    message.give_up(DropReason::Expired);
                }
            }
        }
        expired
    }

    /// Gives up the messages, the first `begun` frames apart. What the gateway says of its own stays.
    pub(super) fn give_up(&mut self, begun: usize) {
        match self {
            Self::Legacy(tickets) => tickets.truncate(begun),
            Self::Session(batch) => batch.retain(begun, Frame::is_said),
        }
    }

    /// Gives up everything but the first `begun` frames.
    pub(super) fn silence(&mut self, begun: usize) {
        match self {
            Self::Legacy(tickets) => tickets.truncate(begun),
            Self::Session(batch) => batch.frames.truncate(begun),
        }
    }

    /// Queues a frame of the gateway's own. Only a session's client is told anything.
    pub(super) fn say(&mut self, text: String) {
        if let Self::Session(batch) = self {
            batch.frames.push_back(Frame::said(text));
        }
    }

    /// How many frames of the gateway's own wait.
    pub(super) fn said(&self) -> usize {
        match self {
            Self::Legacy(_) => 0,
            Self::Session(batch) => batch.frames.iter().filter(|frame| frame.is_said()).count(),
        }
    }

    /// From here on what is written is kept for this session until it is acknowledged. `written` is the last number that
    /// its client can have by now.
    pub(super) fn keep_sent_for(&mut self, key: SessionKey, journal: Arc<dyn Journal>, written: u64) {
        if let Self::Session(batch) = self {
            batch.keeper = Some((key, journal));
            batch.written = written;
        }
    }

    /// The last number that the session's client can have.
    pub(super) fn written(&self) -> u64 {
        match self {
            Self::Legacy(_) => 0,
            Self::Session(batch) => batch.written,
        }
    }

    /// Whether the frame in front is one whose message the session took back.
    pub(super) fn is_front_taken(&self) -> bool {
        match self {
            Self::Legacy(_) => false,
            Self::Session(batch) => batch.frames.front().is_some_and(|frame| matches!(frame.what, What::Taken)),
        }
    }

    /// Keeps what was written since the last call.
    pub(super) fn keep_sent(&mut self) {
        let Self::Session(batch) = self else { return };
        if batch.sent.is_empty() {
            return;
        }
        match &batch.keeper {
            Some((key, journal)) => {
                // What there is no room for is written all the same, and only missing if the client has to come back for it.
                let _appended = journal.append(key, &mut batch.sent.drain(..));
            }
            None => batch.sent.clear(),
        }
    }

    /// The messages in hand that are not written whole, for a session that leaves this connection. The first `begun`
    /// frames stay without them.
    pub(super) fn take_messages(&mut self, begun: usize) -> Vec<Kept> {
        let Self::Session(batch) = self else { return Vec::new() };
        let taken = batch.frames.iter_mut().filter_map(|frame| frame.take_message(What::Taken)).collect();
        batch.retain(begun, Frame::is_said);
        taken
    }
}

impl SessionBatch {
    fn retain(&mut self, begun: usize, stays: impl Fn(&Frame) -> bool) {
        let mut at = 0;
        self.frames.retain(|frame| {
            at += 1;
            at <= begun || stays(frame)
        });
    }
}

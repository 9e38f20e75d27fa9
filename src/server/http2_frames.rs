//! A rate limit on the HTTP/2 control frames of one connection. It parses frame heads independently of hyper, which
//! answers any number of pings and settings.

use std::time::Instant;

use crate::allowance::Allowance;

/// The connection preface, RFC 9113 section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The length of a frame's head, RFC 9113 section 4.1.
const HEAD_BYTES: usize = 9;

/// Frame types and a flag, RFC 9113 section 6.
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;

/// GOAWAY with ENHANCE_YOUR_CALM, RFC 9113 sections 6.8 and 7. It names the highest possible stream, because any
/// request may have been processed.
pub(super) const CALM_DOWN: [u8; 17] = [0, 0, 8, 0x7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0xb];

/// The allowed rate of control frames, that is, frames that carry no request: SETTINGS, PING, WINDOW_UPDATE, PRIORITY,
/// RST_STREAM, unknown types, and DATA without data. Frames that honest traffic causes are allowed in addition. A
/// caller that only keeps its connection alive sends a few per minute.
const FRAMES_PER_SECOND: u32 = 200;

/// The control frames allowed for each request: its reset, its window updates, and a ping to measure the round trip.
const FRAMES_PER_REQUEST: f32 = 4.0;

/// The control frames allowed for each DATA frame of a request's body.
const FRAMES_PER_DATA: f32 = 2.0;

/// The bytes of answers that allow one control frame, because callers send window updates and libraries ping to measure
/// the round trip. This is more than the answer to a ping, so that a ping does not earn the next one.
const BYTES_PER_FRAME: f32 = 128.0;

/// Watches the frames of one connection, which may or may not speak HTTP/2.
#[derive(Debug)]
pub(super) struct Http2Frames {
    state: State,
    /// The frames that go to the caller.
    sent: Heads,
    allowance: Allowance,
}

/// The protocol of a connection, as detected from its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Unknown,
    Http1,
    /// The preface and the head of a frame have arrived.
    Http2,
}

/// The caller exceeds its rate of control frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more HTTP/2 frames than its requests and answers explain")]
pub(super) struct TooManyFrames;

#[derive(Debug)]
enum State {
    /// This many bytes of the preface have arrived.
    Preface(usize),
    Frames(Heads),
    /// Not HTTP/2.
    Other,
}

impl Http2Frames {
    pub(super) fn new(now: Instant) -> Self {
        let allowance = Allowance::new(FRAMES_PER_SECOND, now);
        Self { state: State::Preface(0), sent: Heads::default(), allowance }
    }

    /// The protocol, as far as it is known.
    pub(super) fn protocol(&self) -> Protocol {
        match &self.state {
            State::Other => Protocol::Http1,
            State::Frames(heads) if heads.has_begun => Protocol::Http2,
            State::Preface(_) | State::Frames(_) => Protocol::Unknown,
        }
    }

    /// Parses the next bytes from the caller.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), TooManyFrames> {
        if let State::Preface(seen) = &mut self.state {
            let taken = bytes.len().min(PREFACE.len() - *seen);
            if bytes[..taken] != PREFACE[*seen..*seen + taken] {
                self.state = State::Other;
                return Ok(());
            }
            *seen += taken;
            bytes = &bytes[taken..];
            if *seen == PREFACE.len() {
                self.state = State::Frames(Heads::default());
            }
        }
        let mut control = 0;
        if let State::Frames(heads) = &mut self.state {
            heads.read(bytes, |kind, length| match kind {
                HEADERS => self.allowance.earn(FRAMES_PER_REQUEST),
                DATA if length > 0 => self.allowance.earn(FRAMES_PER_DATA),
                _ => control += 1,
            });
        }
        let is_allowed = control == 0 || self.allowance.spend(control, Instant::now());
        is_allowed.then_some(()).ok_or(TooManyFrames)
    }

    /// Records bytes that were sent to the caller.
    pub(super) fn note_sent(&mut self, bytes: &[u8]) {
        self.allowance.earn(bytes.len() as f32 / BYTES_PER_FRAME);
        if !matches!(self.state, State::Other) {
            self.sent.read(bytes, |_, _| {});
        }
    }

    /// Whether a frame can be inserted into the bytes that go to the caller. hyper must have sent its SETTINGS and must
    /// not be in the middle of a frame or a header section.
    pub(super) fn can_insert_frame(&self) -> bool {
        self.protocol() == Protocol::Http2 && self.sent.is_between()
    }
}

/// Finds the heads of the frames in one direction.
#[derive(Debug, Default)]
struct Heads {
    /// Whether a complete head has been seen.
    has_begun: bool,
    head: [u8; HEAD_BYTES],
    /// The bytes of the current head seen so far.
    seen: usize,
    /// The bytes of the current payload still to come.
    payload: usize,
    /// Whether a header section continues in the next frame, so that no other frame may come between.
    continues: bool,
}

impl Heads {
    /// Parses the next bytes and calls `begins` with the kind and the length of each new frame.
    fn read(&mut self, mut bytes: &[u8], mut begins: impl FnMut(u8, usize)) {
        while !bytes.is_empty() {
            let taken = if self.payload > 0 {
                let taken = bytes.len().min(self.payload);
                self.payload -= taken;
                taken
            } else {
                let taken = bytes.len().min(HEAD_BYTES - self.seen);
                self.head[self.seen..self.seen + taken].copy_from_slice(&bytes[..taken]);
                self.seen += taken;
                if self.seen == HEAD_BYTES {
                    self.begin(&mut begins);
                }
                taken
            };
            bytes = &bytes[taken..];
        }
    }

    fn begin(&mut self, begins: &mut impl FnMut(u8, usize)) {
        let [high, middle, low, kind, flags, ..] = self.head;
        self.has_begun = true;
        self.seen = 0;
        self.payload = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        self.continues = matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS == 0;
        begins(kind, self.payload);
    }

    /// Whether the stream is between two frames, so that another frame can be inserted. Never true before the first
    /// frame.
    fn is_between(&self) -> bool {
        self.has_begun && self.seen == 0 && self.payload == 0 && !self.continues
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: u8 = 0x6;

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let mut frame = vec![(length >> 16) as u8, (length >> 8) as u8, length as u8, kind, 0, 0, 0, 0, 1];
        frame.resize(HEAD_BYTES + length, 0);
        frame
    }

    #[test]
    fn http2_has_begun_with_the_head_of_a_frame() {
        let mut frames = begun();
        assert_eq!(frames.read(&frame(0x4, 6)[..8]), Ok(()));
        assert_eq!(frames.protocol(), Protocol::Unknown);
        assert_eq!(frames.read(&frame(0x4, 6)[8..]), Ok(()));
        assert_eq!(frames.protocol(), Protocol::Http2);
    }

    fn begun() -> Http2Frames {
        let mut frames = Http2Frames::new(Instant::now());
        assert_eq!(frames.read(PREFACE), Ok(()));
        frames
    }

    #[test]
    fn control_frames_are_limited_however_their_bytes_are_split() {
        for kind in [PING, 0x4, 0x8, 0x2, 0xfa] {
            for cut in [1, 7, 4096] {
                let mut frames = begun();
                let flood = frame(kind, 8).repeat(FRAMES_PER_SECOND as usize * 20);
                assert!(flood.chunks(cut).any(|part| frames.read(part).is_err()), "{kind} {cut}");
            }
        }
        let mut frames = begun();
        assert!(frames.read(&frame(DATA, 0).repeat(FRAMES_PER_SECOND as usize * 20)).is_err());
    }

    #[test]
    fn a_frame_is_inserted_only_between_two_complete_ones() {
        let mut frames = begun();
        assert_eq!(frames.read(&frame(0x4, 0)), Ok(()));
        assert!(!frames.can_insert_frame(), "SETTINGS come first");
        for byte in frame(0x4, 6) {
            assert!(!frames.can_insert_frame());
            frames.note_sent(&[byte]);
        }
        assert!(frames.can_insert_frame());
        // `frame` sets no flags, so END_HEADERS is missing.
        frames.note_sent(&frame(HEADERS, 10));
        assert!(!frames.can_insert_frame(), "the header section goes on");
        let mut last = frame(CONTINUATION, 10);
        last[4] = END_HEADERS;
        frames.note_sent(&last);
        assert!(frames.can_insert_frame());
        frames.note_sent(&frame(DATA, 100)[..50]);
        assert!(!frames.can_insert_frame());
    }

    #[test]
    fn requests_their_bodies_and_answers_allow_the_control_frames_they_cause() {
        let mut frames = begun();
        for _ in 0..100_000 {
            let request = [frame(HEADERS, 60), frame(DATA, 100), frame(PING, 8), frame(0x8, 4), frame(0x3, 4)].concat();
            assert_eq!(frames.read(&request), Ok(()));
        }
        for _ in 0..100_000 {
            frames.note_sent(&frame(DATA, 4096 - HEAD_BYTES));
            assert_eq!(frames.read(&frame(0x8, 4).repeat(8)), Ok(()));
        }
    }

    #[test]
    fn other_protocols_are_not_limited() {
        let mut frames = Http2Frames::new(Instant::now());
        assert_eq!(frames.read(b"PRI"), Ok(()));
        assert_eq!(frames.protocol(), Protocol::Unknown);
        assert_eq!(frames.read(b" is no method of ours\r\n"), Ok(()));
        assert_eq!(frames.read(&[0; 100_000]), Ok(()));
        assert_eq!(frames.protocol(), Protocol::Http1);
    }
}

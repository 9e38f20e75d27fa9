//! The heads of the HTTP/2 frames that a caller sends, read beside hyper, which answers pings and settings without end.

use std::time::Instant;

use crate::allowance::Allowance;

/// RFC 9113 section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// RFC 9113 section 4.1.
const HEAD_BYTES: usize = 9;

/// RFC 9113 section 6.
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;

/// Frames that carry no request (SETTINGS, PING, WINDOW_UPDATE, PRIORITY, RST_STREAM, unknown ones, DATA without data),
/// beside those that honest traffic explains. A caller that only keeps its connection alive sends a few in a minute.
const FRAMES_PER_SECOND: u32 = 200;

/// What a request explains: its reset, its window, a ping that measures the way.
const FRAMES_PER_REQUEST: f32 = 4.0;

/// What a part of a request's body explains.
const FRAMES_PER_DATA: f32 = 2.0;

/// So many bytes of answers explain one: windows are given back, and libraries ping to measure the way. More than the
/// answer to a ping, so that a ping does not explain the next one.
const BYTES_PER_FRAME: f32 = 128.0;

/// Watches one connection, HTTP/2 or not.
#[derive(Debug)]
pub(super) struct Http2Frames {
    state: State,
    /// Whether the head of a first frame has come.
    has_begun: bool,
    allowance: Allowance,
}

/// What a connection's first bytes say of its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Unknown,
    Http1,
    /// The preface and the head of a frame have come.
    Http2,
}

/// The caller is over its rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more HTTP/2 frames than its requests and answers explain")]
pub(super) struct TooManyFrames;

#[derive(Debug)]
enum State {
    /// So many bytes of the preface have come.
    Preface(usize),
    /// So many bytes of a frame's head have come.
    Head([u8; HEAD_BYTES], usize),
    /// So many bytes of a frame's payload are to come.
    Payload(usize),
    /// Not HTTP/2.
    Other,
}

impl Http2Frames {
    pub(super) fn new(now: Instant) -> Self {
        Self { state: State::Preface(0), has_begun: false, allowance: Allowance::new(FRAMES_PER_SECOND, now) }
    }

    /// What the connection speaks, as far as it is known.
    pub(super) fn protocol(&self) -> Protocol {
        match self.state {
            State::Other => Protocol::Http1,
            _ if self.has_begun => Protocol::Http2,
            _ => Protocol::Unknown,
        }
    }

    /// Reads on.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), TooManyFrames> {
        let mut control = 0;
        while !bytes.is_empty() {
            let taken = match &mut self.state {
                State::Other => break,
                State::Preface(seen) => {
                    let taken = bytes.len().min(PREFACE.len() - *seen);
                    if bytes[..taken] != PREFACE[*seen..*seen + taken] {
                        self.state = State::Other;
                        break;
                    }
                    *seen += taken;
                    if *seen == PREFACE.len() {
                        self.state = State::Head([0; HEAD_BYTES], 0);
                    }
                    taken
                }
                State::Head(head, seen) => {
                    let taken = bytes.len().min(HEAD_BYTES - *seen);
                    head[*seen..*seen + taken].copy_from_slice(&bytes[..taken]);
                    *seen += taken;
                    if *seen == HEAD_BYTES {
                        let head = *head;
                        control += u32::from(self.begin(head));
                    }
                    taken
                }
                State::Payload(left) => {
                    let taken = bytes.len().min(*left);
                    *left -= taken;
                    if *left == 0 {
                        self.state = State::Head([0; HEAD_BYTES], 0);
                    }
                    taken
                }
            };
            bytes = &bytes[taken..];
        }
        let is_allowed = control == 0 || self.allowance.spend(control, Instant::now());
        is_allowed.then_some(()).ok_or(TooManyFrames)
    }

    /// Bytes of answers went to the caller.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.allowance.earn(bytes as f32 / BYTES_PER_FRAME);
    }

    /// A frame begins. Says whether it is one that has to be explained.
    fn begin(&mut self, head: [u8; HEAD_BYTES]) -> bool {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        self.has_begun = true;
        self.state = if length == 0 { State::Head([0; HEAD_BYTES], 0) } else { State::Payload(length) };
        match head[3] {
            HEADERS => self.allowance.earn(FRAMES_PER_REQUEST),
            DATA if length > 0 => self.allowance.earn(FRAMES_PER_DATA),
            _ => return true,
        }
        false
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
    fn frames_that_carry_nothing_are_bounded_however_they_are_cut() {
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
    fn requests_their_bodies_and_answers_explain_what_comes_with_them() {
        let mut frames = begun();
        for _ in 0..100_000 {
            let request = [frame(HEADERS, 60), frame(DATA, 100), frame(PING, 8), frame(0x8, 4), frame(0x3, 4)].concat();
            assert_eq!(frames.read(&request), Ok(()));
        }
        for _ in 0..100_000 {
            frames.wrote(4096);
            assert_eq!(frames.read(&frame(0x8, 4).repeat(8)), Ok(()));
        }
    }

    #[test]
    fn what_is_not_http2_is_not_looked_at() {
        let mut frames = Http2Frames::new(Instant::now());
        assert_eq!(frames.read(b"PRI"), Ok(()));
        assert_eq!(frames.protocol(), Protocol::Unknown);
        assert_eq!(frames.read(b" is no method of ours\r\n"), Ok(()));
        assert_eq!(frames.read(&[0; 100_000]), Ok(()));
        assert_eq!(frames.protocol(), Protocol::Http1);
    }
}

//! A minimal WebSocket codec for the benchmark's clients: it writes masked frames, and reads unmasked frames of which
//! it parses only the beginning. Also builds and parses the benchmark's messages.

/// The first bytes of every message of a run.
const MARK: &[u8] = b"pg";

/// The minimum length of a message, in bytes: the mark, the part, and a time in sixteen hexadecimal digits. Only these
/// bytes are parsed.
pub(super) const MESSAGE_BYTES_MIN: usize = MARK.len() + 1 + 16;

/// The part of a run that a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Checks whether a client is bound.
    Probe,
    WarmUp,
    Measured,
}

impl Part {
    fn letter(self) -> char {
        match self {
            Self::Probe => 'p',
            Self::WarmUp => 'w',
            Self::Measured => 'm',
        }
    }
}

/// Builds a message of this many bytes that carries its scheduled time.
pub(super) fn message(part: Part, at: u64, bytes: usize) -> String {
    let letter = part.letter();
    let mut text = format!("pg{letter}{at:016x}");
    while text.len() < bytes {
        text.push('.');
    }
    text
}

/// Parses the beginning of a message.
fn read(message: &[u8]) -> Option<(Part, u64)> {
    let (letter, time) = message.strip_prefix(MARK)?.split_first()?;
    let part = match letter {
        b'p' => Part::Probe,
        b'w' => Part::WarmUp,
        b'm' => Part::Measured,
        _ => return None,
    };
    let time = std::str::from_utf8(time.get(..16)?).ok()?;
    Some((part, u64::from_str_radix(time, 16).ok()?))
}

/// Builds a text frame as a client sends it, masked with a zero key.
pub(super) fn text(payload: &[u8]) -> Vec<u8> {
    frame(0x81, payload)
}

pub(super) fn ping(payload: &[u8]) -> Vec<u8> {
    frame(0x89, payload)
}

fn pong(payload: &[u8]) -> Vec<u8> {
    frame(0x8A, payload)
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match u16::try_from(payload.len()) {
        Ok(short @ 0..126) => frame.push(0x80 | short as u8),
        Ok(medium) => {
            frame.push(0x80 | 126);
            frame.extend(medium.to_be_bytes());
        }
        Err(_) => {
            frame.push(0x80 | 127);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// An event in the frames that a client receives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Message(Part, u64),
    /// A message that does not belong to this run.
    Other,
    /// A ping, with the frame that answers it.
    Ping(Vec<u8>),
    Pong,
    /// A close frame, with its code and reason.
    Close(u16, String),
}

/// The maximum number of payload bytes to keep: all of a control frame, or the beginning of a message.
const KEPT: usize = 125;

/// Parses frames from bytes as they arrive. Holds no memory between two frames.
#[derive(Default)]
pub(super) struct Frames {
    /// The header and kept payload of an incomplete frame.
    begun: Vec<u8>,
    /// The number of further payload bytes to ignore.
    skip: u64,
}

impl Frames {
    /// Parses the next bytes and passes each event to `hear`.
    pub(super) fn take(&mut self, mut bytes: &[u8], mut hear: impl FnMut(Heard)) {
        loop {
            let skipped = self.skip.min(bytes.len() as u64);
            self.skip -= skipped;
            bytes = &bytes[usize::try_from(skipped).unwrap_or(bytes.len())..];
            if bytes.is_empty() {
                return;
            }
            let before = self.begun.len();
            let joined;
            let frame = if before == 0 {
                bytes
            } else {
                self.begun.extend_from_slice(&bytes[..bytes.len().min(KEPT + 10)]);
                joined = std::mem::take(&mut self.begun);
                &joined[..]
            };
            let Some(head) = Head::read(frame).filter(|head| frame.len() >= head.bytes + head.kept()) else {
                // These bytes are shorter than a header with its kept payload, so all of them are stored.
                self.begun = frame.to_vec();
                return;
            };
            let end = head.bytes + head.kept();
            if let Some(heard) = head.heard(&frame[head.bytes..end]) {
                hear(heard);
            }
            self.skip = head.payload - head.kept() as u64;
            bytes = &bytes[end - before..];
        }
    }
}

/// The header of a frame.
struct Head {
    opcode: u8,
    bytes: usize,
    payload: u64,
}

impl Head {
    fn read(frame: &[u8]) -> Option<Self> {
        let [first, second] = *frame.first_chunk()?;
        let (bytes, payload) = match second & 0x7F {
            126 => (4, u64::from(u16::from_be_bytes(*frame.get(2..)?.first_chunk()?))),
            127 => (10, u64::from_be_bytes(*frame.get(2..)?.first_chunk()?)),
            short => (2, u64::from(short)),
        };
        Some(Self { opcode: first & 0x0F, bytes, payload })
    }

    fn kept(&self) -> usize {
        usize::try_from(self.payload).map_or(KEPT, |payload| payload.min(KEPT))
    }

    fn heard(&self, kept: &[u8]) -> Option<Heard> {
        Some(match self.opcode {
            1 | 2 => read(kept).map_or(Heard::Other, |(part, at)| Heard::Message(part, at)),
            8 => {
                let (code, reason) = kept.split_first_chunk().unwrap_or((&[0x03, 0xED], &[]));
                Heard::Close(u16::from_be_bytes(*code), String::from_utf8_lossy(reason).into_owned())
            }
            9 => Heard::Ping(pong(kept)),
            10 => Heard::Pong,
            // A continuation of a message whose beginning was already reported.
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a frame as a server sends it.
    fn unmasked(first: u8, payload: &[u8]) -> Vec<u8> {
        let masked = frame(first, payload);
        let head = masked.len() - payload.len() - 4;
        let mut frame = masked[..head].to_vec();
        frame[1] &= 0x7F;
        frame.extend(payload);
        frame
    }

    #[test]
    fn frames_are_read_however_their_bytes_are_cut() {
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for (at, length) in [(1, 0), (2, 125), (3, 126), (4, 300), (5, 70_000), (6, 127)] {
            bytes.extend(unmasked(0x81, message(Part::Measured, at, length).as_bytes()));
            expected.push(Heard::Message(Part::Measured, at));
        }
        bytes.extend(unmasked(0x89, b"hi"));
        expected.push(Heard::Ping(pong(b"hi")));
        bytes.extend(unmasked(0x8A, b""));
        expected.push(Heard::Pong);
        bytes.extend(unmasked(0x81, b"what is this"));
        expected.push(Heard::Other);
        bytes.extend(unmasked(0x88, b"\x03\xE8bye"));
        expected.push(Heard::Close(1000, "bye".to_owned()));
        for cut in [1, 2, 3, 7, 100, 128, 1000, 65_536, bytes.len()] {
            let (mut frames, mut heard) = (Frames::default(), Vec::new());
            for piece in bytes.chunks(cut) {
                frames.take(piece, |one| heard.push(one));
            }
            assert_eq!(heard, expected, "in pieces of {cut}");
        }
    }
}

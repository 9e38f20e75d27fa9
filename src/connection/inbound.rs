//! The frames that a client sends, read beside tungstenite: it tells of whole messages only, and a client that sends
//! fragments or pings without end, a message that does not end, or text that is none, must be noticed too.

/// Finds the frames in what a client sends, however it is cut into reads. Small, because every idle connection has one.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    place: Place,
    /// The masking key, turned so that its first byte is for the next one of the payload.
    mask: [u8; 4],
    text: Text,
    /// Whether the message is text.
    is_text: bool,
    /// Whether the frame is a control frame.
    is_control: bool,
    /// The frame's length as far as it is read; within the payload, what is still to come of it. One over 4 GiB is counted
    /// as 4 GiB: tungstenite refuses it by its head.
    length: u32,
    /// Whether a message in fragments has begun, and its last fragment has not.
    is_fragmented: bool,
    /// Whether a message, or a control frame between two, has ended since anybody asked.
    has_ended: bool,
    /// Fragments of the message that is being read.
    fragments: u32,
}

/// What began in the bytes of one read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Begun {
    /// Frames of all kinds.
    pub(super) frames: u32,
    /// Pings among them.
    pub(super) pings: u32,
    /// Fragments that a message had by then, of the message that had the most.
    pub(super) fragments_most: u32,
}

/// RFC 6455 section 5.2.
const OPCODE_CONTINUATION: u8 = 0x0;
const OPCODE_TEXT: u8 = 0x1;
const OPCODE_PING: u8 = 0x9;

/// Where in a frame the next byte belongs, RFC 6455 section 5.2.
#[derive(Clone, Copy, Debug, Default)]
enum Place {
    #[default]
    First,
    Second,
    Length {
        left: u8,
        least: u32,
        has_mask: bool,
    },
    Mask {
        left: u8,
    },
    Payload,
}

/// What is wrong with a frame, before its end is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The length is not written in the fewest bytes, which RFC 6455 section 5.2 demands.
    NotMinimal,
    /// No continuation makes the text UTF-8. Said at the first wrong byte, as RFC 6455 section 8.1 allows: a client that
    /// sends a long text learns of it while it still sends.
    NotUtf8,
}

/// Text as it comes, without that of it which was found to be UTF-8.
#[derive(Clone, Copy, Debug, Default)]
struct Text {
    /// The character that has begun and not ended: at most three bytes.
    begun: [u8; 3],
    length: u8,
}

/// Text is looked at in parts of so many bytes, without taking memory for it.
const PART_BYTES: usize = 256;

impl Text {
    /// Takes in the next bytes of a text, masked as they came.
    fn read(&mut self, masked: &[u8], mask: [u8; 4]) -> Result<(), Broken> {
        // Whole keys in each part but the last, so that every part begins with the first byte of the key.
        for masked in masked.chunks(PART_BYTES) {
            let mut part = [0; 3 + PART_BYTES];
            let begun = usize::from(self.length);
            let part = &mut part[..begun + masked.len()];
            part[..begun].copy_from_slice(&self.begun[..begun]);
            for ((byte, masked), key) in part[begun..].iter_mut().zip(masked).zip(mask.iter().cycle()) {
                *byte = masked ^ key;
            }
            let rest = match std::str::from_utf8(part) {
                Ok(_) => &[],
                Err(error) if error.error_len().is_none() => &part[error.valid_up_to()..],
                Err(_) => return Err(Broken::NotUtf8),
            };
            self.begun[..rest.len()].copy_from_slice(rest);
            self.length = rest.len() as u8;
        }
        Ok(())
    }
}

impl Inbound {
    /// Reads on, and says what began.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<Begun, Broken> {
        let mut begun = Begun::default();
        while let Some((byte, rest)) = bytes.split_first() {
            if let Place::Payload = self.place {
                let (payload, rest) = bytes.split_at(bytes.len().min(self.length as usize));
                if self.is_text && !self.is_control {
                    self.text.read(payload, self.mask)?;
                    self.mask.rotate_left(payload.len() % 4);
                }
                bytes = rest;
                self.length -= payload.len() as u32;
                self.begin_payload();
                continue;
            }
            if let Place::First = self.place {
                self.begin_frame(*byte, &mut begun);
            }
            self.read_head(*byte)?;
            bytes = rest;
        }
        Ok(begun)
    }

    /// Whether every message that began has been read to its end.
    pub(super) fn is_between_messages(&self) -> bool {
        matches!(self.place, Place::First) && !self.is_fragmented
    }

    /// Whether the bytes were between two messages at any time since the last call: what is unfinished now began later.
    pub(super) fn take_has_ended(&mut self) -> bool {
        std::mem::take(&mut self.has_ended)
    }

    fn begin_frame(&mut self, byte: u8, begun: &mut Begun) {
        begun.frames += 1;
        let (is_final, opcode) = (byte & 0x80 != 0, byte & 0x0f);
        begun.pings += u32::from(opcode == OPCODE_PING);
        // Control frames may come between fragments, and are whole themselves.
        self.is_control = opcode & 0x08 != 0;
        if !self.is_control {
            self.is_fragmented = !is_final;
            let is_first = opcode != OPCODE_CONTINUATION;
            if is_first {
                (self.is_text, self.text) = (opcode == OPCODE_TEXT, Text::default());
            }
            let before = if is_first { 0 } else { self.fragments };
            self.fragments = before.saturating_add(1);
            begun.fragments_most = begun.fragments_most.max(self.fragments);
        }
    }

    fn read_head(&mut self, byte: u8) -> Result<(), Broken> {
        match self.place {
            Place::First => self.place = Place::Second,
            Place::Second => {
                let has_mask = byte & 0x80 != 0;
                self.length = 0;
                match byte & 0x7f {
                    126 => self.place = Place::Length { left: 2, least: 126, has_mask },
                    127 => self.place = Place::Length { left: 8, least: 65_536, has_mask },
                    length => {
                        self.length = length.into();
                        self.begin_mask(has_mask);
                    }
                }
            }
            Place::Length { left, least, has_mask } => {
                self.length = self.length.saturating_mul(256).saturating_add(byte.into());
                match left - 1 {
                    0 if self.length < least => return Err(Broken::NotMinimal),
                    0 => self.begin_mask(has_mask),
                    left => self.place = Place::Length { left, least, has_mask },
                }
            }
            Place::Mask { left } => {
                self.mask[usize::from(4 - left)] = byte;
                match left {
                    1 => self.begin_payload(),
                    left => self.place = Place::Mask { left: left - 1 },
                }
            }
            Place::Payload => {}
        }
        Ok(())
    }

    fn begin_mask(&mut self, has_mask: bool) {
        if has_mask {
            self.place = Place::Mask { left: 4 };
        } else {
            self.mask = [0; 4];
            self.begin_payload();
        }
    }

    fn begin_payload(&mut self) {
        self.place = if self.length == 0 { Place::First } else { Place::Payload };
        self.has_ended |= self.is_between_messages();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A masked frame as a client sends it.
    fn frame(length: usize) -> Vec<u8> {
        let mut frame = vec![0x82];
        match length {
            0..=125 => frame.push(0x80 | length as u8),
            126..=65_535 => {
                frame.push(0x80 | 126);
                frame.extend((length as u16).to_be_bytes());
            }
            _ => {
                frame.push(0x80 | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend([0xff; 4]);
        frame.resize(frame.len() + length, 0x7e);
        frame
    }

    #[test]
    fn a_message_in_fragments_ends_with_its_last_one_whatever_comes_between() {
        let (first, ping, last) = ([0x01, 0x80, 1, 2, 3, 4], [0x89, 0x80, 1, 2, 3, 4], [0x80, 0x80, 1, 2, 3, 4]);
        let mut inbound = Inbound::default();
        assert!(inbound.is_between_messages());
        for (bytes, is_between) in [(&first[..], false), (&ping, false), (&last[..3], false), (&last[3..], true)] {
            inbound.read(bytes).expect("minimal");
            assert_eq!(inbound.is_between_messages(), is_between, "after {bytes:?}");
        }
    }

    #[test]
    fn fragments_are_counted_for_each_message_and_pings_are_none() {
        let (first, ping, next) = ([0x01, 0x80, 1, 2, 3, 4], [0x89, 0x80, 1, 2, 3, 4], [0x00, 0x80, 1, 2, 3, 4]);
        let (last, whole) = ([0x80, 0x80, 1, 2, 3, 4], [0x82, 0x80, 1, 2, 3, 4]);
        let mut inbound = Inbound::default();
        let begun = inbound.read(&[first, ping, next, last].concat());
        assert_eq!(begun, Ok(Begun { frames: 4, pings: 1, fragments_most: 3 }));
        assert_eq!(inbound.read(&whole), Ok(Begun { frames: 1, pings: 0, fragments_most: 1 }), "another message");
    }

    #[test]
    fn what_is_unfinished_began_later_if_anything_has_ended_meanwhile() {
        let (whole, begun) = ([0x82, 0x80, 1, 2, 3, 4], [0x82]);
        let mut inbound = Inbound::default();
        for (bytes, has_ended) in
            [(&whole[..], true), (&begun, false), (&whole[1..], true), (&begun, false), (&[0x80], false)]
        {
            inbound.read(bytes).expect("minimal");
            assert_eq!(inbound.take_has_ended(), has_ended, "after {bytes:?}");
        }
        inbound.read(&[&whole[2..], &begun].concat()).expect("minimal");
        assert!(!inbound.is_between_messages() && inbound.take_has_ended());
    }

    proptest! {
        #[test]
        fn every_frame_is_counted_once_however_the_bytes_are_cut(
            lengths in proptest::collection::vec(prop_oneof![0..130usize, 65_500..65_600usize], 0..12),
            cut in 1..4096usize,
        ) {
            let bytes: Vec<u8> = lengths.iter().flat_map(|length| frame(*length)).collect();
            let mut inbound = Inbound::default();
            let counted: u32 = bytes.chunks(cut).map(|part| inbound.read(part).expect("minimal").frames).sum();
            prop_assert_eq!(counted as usize, lengths.len());
        }
    }

    /// A message of text in one frame, with a key that has no two bytes alike.
    fn text(bytes: &[u8]) -> Vec<u8> {
        let key = [0x12, 0x34, 0x56, 0x78];
        let masked = bytes.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key);
        [0x81, 0x80 | bytes.len() as u8].into_iter().chain(key).chain(masked).collect()
    }

    proptest! {
        #[test]
        fn text_is_refused_at_the_byte_that_makes_it_none_however_it_is_cut(
            good in "\\PC{0,20}",
            more in proptest::collection::vec(any::<u8>(), 0..8),
            cut in 1..9usize,
        ) {
            let bytes = [good.as_bytes(), &more].concat();
            let wrong = std::str::from_utf8(&bytes).err().and_then(|error| {
                let first = error.valid_up_to();
                error.error_len().map(|length| first..first + length + 1)
            });
            let mut inbound = Inbound::default();
            let mut read = 0;
            let broken = text(&bytes).chunks(cut).find_map(|part| {
                read += part.len();
                inbound.read(part).err()
            });
            prop_assert_eq!(broken, wrong.clone().map(|_| Broken::NotUtf8));
            if let Some(wrong) = wrong {
                prop_assert!((6 + wrong.start..6 + wrong.end + cut).contains(&read), "{} of {:?}", read, wrong);
            }
        }
    }

    #[test]
    fn a_character_may_begin_in_one_fragment_and_end_in_the_next_with_a_ping_between() {
        let mut inbound = Inbound::default();
        let fragment = |head: u8, byte: u8| [head, 0x81, 0, 0, 0, 0, byte];
        for frame in [fragment(0x01, 0xc3), fragment(0x89, 0xff), fragment(0x80, 0xa4), fragment(0x82, 0xff)] {
            assert_eq!(inbound.read(&frame).map(|begun| begun.frames), Ok(1), "{frame:?}");
        }
        inbound.read(&fragment(0x01, 0xc3)).expect("begun");
        assert_eq!(inbound.read(&fragment(0x80, 0xc3)), Err(Broken::NotUtf8));
    }

    #[test]
    fn a_length_in_more_bytes_than_it_needs_is_refused() {
        for head in
            [&[0x82, 0x80 | 126, 0, 125, 0, 0, 0, 0][..], &[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0]]
        {
            assert_eq!(Inbound::default().read(head), Err(Broken::NotMinimal));
        }
        let begun = Inbound::default().read(&[0x82, 0x80 | 126, 0, 126, 0, 0, 0, 0]);
        assert_eq!(begun.map(|begun| begun.frames), Ok(1));
    }
}

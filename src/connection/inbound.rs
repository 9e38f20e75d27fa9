//! The heads of the frames that a client sends, read beside tungstenite: it tells of whole messages only, and a client
//! that sends fragments or pings without end must be noticed too.

/// Finds the frames in what a client sends, however it is cut into reads. Small, because every idle connection has one.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    place: Place,
    /// The frame's length as far as it is read; within the payload, what is still to come of it. One over 4 GiB is counted
    /// as 4 GiB: tungstenite refuses it by its head.
    length: u32,
    /// Whether a message in fragments has begun, and its last fragment has not.
    is_fragmented: bool,
}

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

/// The length of a frame is not written in the fewest bytes, which RFC 6455 section 5.2 demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotMinimal;

impl Inbound {
    /// Reads on, and says how many frames began.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<u32, NotMinimal> {
        let mut frames = 0;
        while let Some((byte, rest)) = bytes.split_first() {
            if let Place::Payload = self.place {
                let skipped = bytes.len().min(self.length as usize);
                bytes = &bytes[skipped..];
                self.length -= skipped as u32;
                self.begin_payload();
                continue;
            }
            if let Place::First = self.place {
                frames += 1;
                // Control frames may come between fragments, and are whole themselves.
                let (is_final, is_control) = (byte & 0x80 != 0, byte & 0x08 != 0);
                self.is_fragmented = if is_control { self.is_fragmented } else { !is_final };
            }
            self.read_head(*byte)?;
            bytes = rest;
        }
        Ok(frames)
    }

    /// Whether every message that began has been read to its end.
    pub(super) fn is_between_messages(&self) -> bool {
        matches!(self.place, Place::First) && !self.is_fragmented
    }

    fn read_head(&mut self, byte: u8) -> Result<(), NotMinimal> {
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
                    0 if self.length < least => return Err(NotMinimal),
                    0 => self.begin_mask(has_mask),
                    left => self.place = Place::Length { left, least, has_mask },
                }
            }
            Place::Mask { left: 1 } => self.begin_payload(),
            Place::Mask { left } => self.place = Place::Mask { left: left - 1 },
            Place::Payload => {}
        }
        Ok(())
    }

    fn begin_mask(&mut self, has_mask: bool) {
        if has_mask {
            self.place = Place::Mask { left: 4 };
        } else {
            self.begin_payload();
        }
    }

    fn begin_payload(&mut self) {
        self.place = if self.length == 0 { Place::First } else { Place::Payload };
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

    proptest! {
        #[test]
        fn every_frame_is_counted_once_however_the_bytes_are_cut(
            lengths in proptest::collection::vec(prop_oneof![0..130usize, 65_500..65_600usize], 0..12),
            cut in 1..4096usize,
        ) {
            let bytes: Vec<u8> = lengths.iter().flat_map(|length| frame(*length)).collect();
            let mut inbound = Inbound::default();
            let counted: u32 = bytes.chunks(cut).map(|part| inbound.read(part).expect("minimal")).sum();
            prop_assert_eq!(counted as usize, lengths.len());
        }
    }

    #[test]
    fn a_length_in_more_bytes_than_it_needs_is_refused() {
        for head in
            [&[0x82, 0x80 | 126, 0, 125, 0, 0, 0, 0][..], &[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0]]
        {
            assert_eq!(Inbound::default().read(head), Err(NotMinimal));
        }
        assert_eq!(Inbound::default().read(&[0x82, 0x80 | 126, 0, 126, 0, 0, 0, 0]), Ok(1));
    }
}

//! The body of a message. It identifies the push, so that received messages can be compared with the answers.

/// The push that a message belongs to, as stated in its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Body {
    /// Unique among all pushes of a run. Each pusher sends its pushes in ascending order.
    pub(crate) number: u32,
    pub(crate) user: usize,
    pub(crate) has_ttl: bool,
}

impl Body {
    pub(crate) fn write(self, padding: usize) -> String {
        let Self { number, user, has_ttl } = self;
        format!("{number} {user} {} {}", u8::from(has_ttl), "x".repeat(padding))
    }

    pub(crate) fn read(text: &str) -> Self {
        let mut words = text.splitn(4, ' ');
        let mut next = || words.next().and_then(|word| word.parse::<u32>().ok()).unwrap_or_else(|| panic!("{text:?}"));
        let (number, user) = (next(), next() as usize);
        Self { number, user, has_ttl: next() == 1 }
    }
}

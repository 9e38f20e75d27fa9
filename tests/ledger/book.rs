//! A client's record of one session: every sequence number that it received, over all connections of the session.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use crate::body::Body;

/// A hash of an id from the gateway, small enough to keep millions of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Name(u64);

impl Name {
    pub(crate) fn of(name: &str) -> Self {
        assert!((1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic()), "{name:?}");
        Self(BuildHasherDefault::<DefaultHasher>::default().hash_one(name))
    }
}

/// What the gateway sent for a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Push { id: Name, body: Body },
    Gap,
}

/// How a session ended, from the view of its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The client never resumed it, or the gateway no longer knew it.
    Lost,
    /// The client read everything up to the last message and acknowledged it.
    Complete,
}

#[derive(Debug)]
pub(crate) struct Book {
    pub(crate) user: usize,
    pub(crate) epoch: Name,
    pub(crate) seen: Vec<Seen>,
    /// The highest number that the client acknowledged.
    pub(crate) acked: u64,
    pub(crate) ending: Ending,
    /// Messages that arrived on an older connection after a newer one had asked for the session.
    pub(crate) late: Vec<(u64, Name, Body)>,
}

impl Book {
    pub(crate) fn new(user: usize, epoch: Name) -> Self {
        Self { user, epoch, seen: Vec::new(), acked: 0, ending: Ending::Lost, late: Vec::new() }
    }

    /// The last number that the client received.
    pub(crate) fn last(&self) -> u64 {
        self.seen.len() as u64
    }

    pub(crate) fn seen(&self, seq: u64) -> Option<Seen> {
        self.seen.get(usize::try_from(seq).ok()?.checked_sub(1)?).copied()
    }

    /// Records a push that arrived in order. A repeated push must have the same id and body as before, and a number
    /// that was a gap must not become a push.
    pub(crate) fn push(&mut self, seq: u64, id: Name, body: Body) {
        assert_eq!(body.user, self.user, "{body:?} is another user's");
        let push = Seen::Push { id, body };
        match self.seen(seq) {
            None => {
                assert_eq!(seq, self.last() + 1, "no number is left out");
                self.seen.push(push);
            }
            Some(before) => assert_eq!(before, push, "number {seq} was something else before"),
        }
    }

    /// Records a lost number that arrived in order. It may have been a push on an earlier connection.
    pub(crate) fn gap(&mut self, seq: u64) {
        if self.seen(seq).is_none() {
            assert_eq!(seq, self.last() + 1, "no number is left out");
            self.seen.push(Seen::Gap);
        }
    }

    pub(crate) fn ack(&mut self, seq: u64) {
        self.acked = self.acked.max(seq);
    }

    /// The messages that the client received, with their numbers.
    pub(crate) fn received(&self) -> impl Iterator<Item = (u64, Name, Body)> {
        (1..).zip(&self.seen).filter_map(|(seq, seen)| match *seen {
            Seen::Push { id, body } => Some((seq, id, body)),
            Seen::Gap => None,
        })
    }

    pub(crate) fn gaps(&self) -> usize {
        self.seen.iter().filter(|seen| **seen == Seen::Gap).count()
    }

    /// Checks that late messages agree with those that arrived in order.
    pub(crate) fn check_late(&self) {
        for (seq, id, body) in &self.late {
            if let Some(Seen::Push { id: before, .. }) = self.seen(*seq) {
                assert_eq!(before, *id, "number {seq} of {body:?} has two names");
            }
        }
    }
}

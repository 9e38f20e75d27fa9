//! What becomes of a session's messages when its connection goes, while it is away, and when it comes back or ends.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::delivery::Ticket;
use crate::journal::{Record, Stored};
use crate::message::Event;
use crate::outcome::DropReason;

use super::super::keep::Usage;
use super::{Entry, GivenUp, Log, NeverSent, OVERHEAD_BYTES, REMAINS_BYTES, Resumed};

impl Log {
    /// Takes over what outlived the process, for a session that is away.
    pub(in crate::mailbox) fn restore(&mut self, last: u64, written: u64, skipped: u64, messages: Vec<(u64, Ticket)>) {
        (self.last, self.written, self.lost) = (last, written, skipped);
        for (seq, ticket) in messages {
            let seq = if seq == 0 { self.next_number() } else { seq };
            self.last = self.last.max(seq);
            self.add(seq, ticket, seq <= written);
        }
    }

    /// Keeps a message for the session's return.
    ///
    /// # Errors
    /// Hands back one that is larger than everything that may be kept. Its number is skipped.
    pub(in crate::mailbox) fn hold(&mut self, mut ticket: Ticket) -> Result<(), Ticket> {
        if !self.account.could_hold(OVERHEAD_BYTES + ticket.memory()) {
            self.skip(1);
            return Err(ticket);
        }
        let seq = self.next_number();
        self.record(|| Record::Accepted { epoch: self.epoch, message: Stored::of(&ticket, seq) });
        ticket.held();
        self.add(seq, ticket, false);
        Ok(())
    }

    /// The connection is gone: from here on everything is kept for the session's return. Hands back what is for now alone
    /// or larger than everything that may be kept.
    pub(in crate::mailbox) fn detach(&mut self, queue: VecDeque<Ticket>) -> Vec<GivenUp> {
        for ticket in queue {
            let (seq, message_id) = (self.next_number(), ticket.message_id());
            self.record(|| Record::Numbered { epoch: self.epoch, message_id, seq });
            let kept_at = ticket.accepted_at();
            self.entries.push_back(Entry { seq, ticket, is_sent: false, kept_at, charged: 0 });
        }
        // Nothing is in a writer's hand any more.
        self.told = self.sent;
        let mut given_up = Vec::new();
        for mut entry in std::mem::take(&mut self.entries) {
            let is_held = entry.charged > 0;
            let fits = is_held || self.account.could_hold(OVERHEAD_BYTES + entry.ticket.memory());
            let reason = match entry.is_sent {
                false if entry.ticket.is_for_now() => Some(DropReason::Expired),
                false if !fits => Some(DropReason::QueueFull),
                _ => None,
            };
            if let Some(reason) = reason {
                self.forget(&entry);
                given_up.push((entry.ticket, reason));
                continue;
            }
            if !is_held {
                entry.kept_at = Instant::now();
                self.charge(&mut entry);
            }
            self.entries.push_back(entry);
        }
        given_up
    }

    /// Takes a message off the books that is not among the entries any more.
    pub(super) fn forget(&mut self, entry: &Entry) {
        if entry.charged > 0 {
            self.refund(Usage { messages: 1, bytes: entry.charged });
        }
        self.given_up(&entry.ticket);
    }

    /// Goes on behind the last number that the client has. What is not worth sending any more is handed to `given_up`.
    ///
    /// # Errors
    /// When that number was never written.
    pub(in crate::mailbox) fn attach(
        &mut self,
        seq: u64,
        now: Instant,
        acked: &mut impl FnMut(Duration),
        given_up: &mut Vec<GivenUp>,
    ) -> Result<Resumed, NeverSent> {
        self.acknowledge(seq, now, acked)?;
        // What is left of the others are numbers that the client is told as lost.
        self.refund(Usage { messages: 0, bytes: self.remains.len() * REMAINS_BYTES });
        self.remains.clear();
        let lost = self.drop_worthless(given_up);
        self.entries.iter_mut().for_each(|entry| entry.ticket.set_late());
        (self.told, self.sent, self.elsewhere) = (seq, seq, 0);
        let is_recovered = self.lost == 0 && self.entries.len() as u64 == self.last - seq;
        let late = self.entries.iter().filter(|entry| !entry.is_sent).count() as u32;
        Ok(Resumed { is_recovered, lost, late })
    }

    /// Gives up what has expired, and what a newer message has taken the place of unless the client may have it already.
    /// Returns how many of those the client never had.
    fn drop_worthless(&mut self, given_up: &mut Vec<GivenUp>) -> usize {
        let mut taken: HashSet<(Event, Box<str>)> = HashSet::new();
        let mut lost = 0;
        for entry in std::mem::take(&mut self.entries).into_iter().rev() {
            let key = entry.ticket.collapse_key().map(|key| (entry.ticket.event().clone(), key.into()));
            let is_superseded = key.is_some_and(|key| !taken.insert(key));
            let reason = if entry.ticket.is_expired() || entry.ticket.is_for_now() {
                DropReason::Expired
            } else if is_superseded && !entry.is_sent {
                DropReason::Superseded
            } else {
                self.entries.push_front(entry);
                continue;
            };
            lost += usize::from(!entry.is_sent);
            self.forget(&entry);
            given_up.push((entry.ticket, reason));
        }
        lost
    }

    /// The session is over. Hands over what its client never had; what it had is not followed any further.
    pub(in crate::mailbox) fn end(&mut self) -> Vec<Ticket> {
        self.refund(self.usage);
        self.record(|| Record::Ended { epoch: self.epoch });
        self.remains.clear();
        let entries = std::mem::take(&mut self.entries);
        entries.into_iter().filter(|entry| !entry.is_sent).map(|entry| entry.ticket).collect()
    }
}

//! The numbers that a session's messages get in the order in which they are sent, over all of its connections. A number
//! that is skipped is a message that was lost, and is told.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use crate::delivery::Ticket;
use crate::journal::{Appended, Journal, Kept, SessionKey};
use crate::message::Event;
use crate::outcome::DropReason;

/// What a session's connection has to send.
#[derive(Debug)]
pub(crate) enum Numbered {
    /// A message with its number.
    Message(Kept),
    /// Numbers whose messages are lost, first and last.
    Gap { from: u64, to: u64 },
}

/// A session that goes on.
#[derive(Debug)]
pub(crate) struct Resumed {
    /// Whether nothing is missing from the client's number on.
    pub(crate) is_recovered: bool,
    /// What the client has, by its own word.
    pub(crate) acknowledged: Vec<Kept>,
    /// How many messages that the client never had were given up: they expired or were superseded meanwhile.
    pub(crate) lost: usize,
    /// How many messages that the client never had are sent now.
    pub(crate) late: usize,
}

#[derive(Debug)]
pub(super) struct Numbering {
    key: SessionKey,
    journal: Arc<dyn Journal>,
    /// The last number that was given out.
    last: u64,
    /// The last number that this connection was handed to send.
    told: u64,
    /// The last number that any connection wrote before it ended.
    written: u64,
    /// Messages that were lost before they had a number.
    lost: u64,
    /// What the client missed, to be sent before what is queued.
    replay: VecDeque<Kept>,
    is_away: bool,
}

impl Numbering {
    pub(super) fn new(key: SessionKey, journal: Arc<dyn Journal>) -> Self {
        Self { key, journal, last: 0, told: 0, written: 0, lost: 0, replay: VecDeque::new(), is_away: false }
    }

    pub(super) fn is_away(&self) -> bool {
        self.is_away
    }

    pub(super) fn told(&self) -> u64 {
        self.told
    }

    pub(super) fn written(&self) -> u64 {
        self.written
    }

    pub(super) fn lose(&mut self, messages: usize) {
        self.lost += messages as u64;
    }

    fn next(&mut self) -> u64 {
        self.last += self.lost + 1;
        self.lost = 0;
        self.last
    }

    /// Moves what is to be sent next into the batch, at most `room` entries.
    pub(super) fn number(&mut self, queue: &mut VecDeque<Ticket>, batch: &mut VecDeque<Numbered>, room: usize) {
        let full = batch.len() + room;
        while batch.len() < full {
            let message = if let Some(message) = self.replay.pop_front() {
                message
            } else if self.lost > 0 || self.told < self.last {
                self.last += std::mem::take(&mut self.lost);
                batch.push_back(Numbered::Gap { from: self.told + 1, to: self.last });
                self.told = self.last;
                continue;
            } else if let Some(ticket) = queue.pop_front() {
                Kept::new(ticket, self.next())
            } else {
                return;
            };
            let seq = message.seq();
            if seq > self.told + 1 {
                batch.push_back(Numbered::Gap { from: self.told + 1, to: seq - 1 });
            }
            self.told = seq;
            batch.push_back(Numbered::Message(message));
        }
    }

    /// Keeps a message for the session's return. Hands it back if there is no room for it, and says how many others had
    /// to go for it that never reached the client.
    pub(super) fn keep(&mut self, ticket: Ticket) -> (Option<Kept>, usize) {
        ticket.held();
        let message = Kept::new(ticket, self.next());
        let Appended { mut refused, lost } = self.journal.append(&self.key, &mut std::iter::once(message));
        (refused.pop(), lost)
    }

    /// Keeps what is on its way for the session's return, and hands back what was for now alone.
    pub(super) fn leave(&mut self, in_hand: Vec<Kept>, queue: VecDeque<Ticket>, written: u64) -> (Appended, Vec<Kept>) {
        self.is_away = true;
        self.written = self.written.max(written);
        let replay = std::mem::take(&mut self.replay);
        let queued: Vec<Kept> = queue.into_iter().map(|ticket| Kept::new(ticket, self.next())).collect();
        let messages = in_hand.into_iter().chain(replay).chain(queued);
        let (for_now, messages): (Vec<_>, Vec<_>) =
            messages.partition(|message| message.ticket().is_for_now() && !message.is_sent());
        (self.journal.append(&self.key, &mut messages.into_iter()), for_now)
    }

    pub(super) fn come_back(&mut self) {
        self.is_away = false;
    }

    pub(super) fn resume(&mut self, seq: u64, kept: Vec<Kept>) -> Result<Resumed, Vec<Kept>> {
        if seq > self.written {
            return Err(kept);
        }
        let (acknowledged, missed): (Vec<_>, Vec<_>) = kept.into_iter().partition(|message| message.seq() <= seq);
        let lost;
        let worth;
        (worth, lost) = worth_sending(missed);
        self.replay = worth.into_iter().map(Kept::late).collect();
        self.told = seq;
        let is_recovered = self.lost == 0 && self.replay.len() as u64 == self.last - seq;
        let late = self.replay.iter().filter(|message| !message.is_sent()).count();
        Ok(Resumed { is_recovered, acknowledged, lost, late })
    }
}

/// Gives up what has expired, and what a newer message has taken the place of, unless the client may have it already.
/// Says how many of those the client never had.
fn worth_sending(missed: Vec<Kept>) -> (VecDeque<Kept>, usize) {
    let mut taken: HashSet<(Event, Box<str>)> = HashSet::new();
    let mut lost = 0;
    let mut worth = VecDeque::with_capacity(missed.len());
    for message in missed.into_iter().rev() {
        let key = message.ticket().collapse_key().map(|key| (message.event().clone(), key.into()));
        let is_superseded = key.is_some_and(|key| !taken.insert(key));
        let reason = if message.ticket().is_expired() || message.ticket().is_for_now() {
            DropReason::Expired
        } else if is_superseded && !message.is_sent() {
            DropReason::Superseded
        } else {
            worth.push_front(message);
            continue;
        };
        lost += usize::from(!message.is_sent());
        message.give_up(reason);
    }
    (worth, lost)
}

//! A session's numbered messages, from the time they get their numbers until they are acknowledged. A number that is
//! skipped is a message that was lost, and the client is told.

mod away;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::delivery::{Remains, Ticket};
use crate::dialect::Frame;
use crate::journal::{Record, Stored};
use crate::message::ConnectionId;
use crate::outcome::DropReason;

use super::keep::{Account, Oldest, Usage, WasSent};
use super::queue::{Depth, Queue};

/// What a message takes beside itself: its place in a queue, which has up to twice the places it needs.
const OVERHEAD_BYTES: usize = 2 * size_of::<Entry>() + 160;

/// What is left of a message that was sent and given up.
const REMAINS_BYTES: usize = 2 * size_of::<(u64, Instant, Remains)>();

/// One numbered message.
#[derive(Debug)]
struct Entry {
    seq: u64,
    ticket: Ticket,
    /// Whether the client can have it.
    is_sent: bool,
    /// Since when it is kept, once it is.
    kept_at: Instant,
    /// Bytes for which the account is charged; 0 while a connection has the message in hand for the first time, when it
    /// counts as queued.
    charged: usize,
}

/// What became of a session that goes on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resumed {
    /// Whether nothing is missing from the client's number on.
    pub(crate) is_recovered: bool,
    /// How many messages that the client never had were given up: they expired or were superseded meanwhile.
    pub(super) lost: usize,
    /// How many messages that the client never had are sent now.
    pub(super) late: u32,
}

/// A client names a number that it cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NeverSent;

/// A message that is given up and told outside of the lock.
pub(super) type GivenUp = (Ticket, DropReason);

#[derive(Debug)]
pub(super) struct Log {
    account: Arc<Account>,
    epoch: ConnectionId,
    /// The last number that was given out.
    last: u64,
    /// The last number that this connection was handed to write.
    told: u64,
    /// The last number that this connection has written.
    sent: u64,
    /// The last number that the client can have, from this connection or one before.
    written: u64,
    /// Messages that were lost before they had a number.
    lost: u64,
    /// Numbers that were written past the connection's task since it was last told.
    elsewhere: u32,
    entries: VecDeque<Entry>,
    /// Messages that were sent and whose content is given up, all before the entries, and since when they are kept.
    remains: VecDeque<(u64, Instant, Remains)>,
    usage: Usage,
}

impl Log {
    pub(super) fn new(account: Arc<Account>, epoch: ConnectionId) -> Self {
        Self {
            account,
            epoch,
            last: 0,
            told: 0,
            sent: 0,
            written: 0,
            lost: 0,
            elsewhere: 0,
            entries: VecDeque::new(),
            remains: VecDeque::new(),
            usage: Usage::default(),
        }
    }

    pub(super) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    /// The last number that the connection was handed to write, 0 before the first.
    pub(super) fn told(&self) -> u64 {
        self.told
    }

    pub(super) fn take_elsewhere(&mut self) -> u32 {
        std::mem::take(&mut self.elsewhere)
    }

    fn record(&self, make: impl FnOnce() -> Record) {
        self.account.record(make);
    }

    /// Notes that a message was accepted that has no number yet.
    pub(super) fn accepted(&self, ticket: &Ticket) {
        self.record(|| Record::Accepted { epoch: self.epoch, message: Stored::of(ticket, 0) });
    }

    /// Notes that a message that has no number is given up.
    pub(super) fn given_up(&self, ticket: &Ticket) {
        let message_id = ticket.message_id();
        self.record(|| Record::GivenUp { epoch: self.epoch, message_id });
    }

    /// Skips a number for each of these messages, which were not taken or had to go.
    pub(super) fn skip(&mut self, messages: usize) {
        self.lost += messages as u64;
        if messages > 0 {
            self.record(|| Record::Skipped { epoch: self.epoch, messages: messages as u64 });
        }
    }

    fn next_number(&mut self) -> u64 {
        self.last += std::mem::take(&mut self.lost) + 1;
        self.last
    }

    fn add(&mut self, seq: u64, ticket: Ticket, is_sent: bool) {
        let mut entry = Entry { seq, ticket, is_sent, kept_at: Instant::now(), charged: 0 };
        self.charge(&mut entry);
        self.entries.push_back(entry);
    }

    /// Charges the account for what the message takes now.
    fn charge(&mut self, entry: &mut Entry) {
        let bytes = OVERHEAD_BYTES + entry.ticket.memory();
        let added = Usage { messages: usize::from(entry.charged == 0), bytes: bytes.saturating_sub(entry.charged) };
        // A message never takes less than it did before.
        entry.charged += added.bytes;
        self.usage += added;
        self.account.charge(added);
    }

    fn refund(&mut self, usage: Usage) {
        self.usage -= usage;
        self.account.refund(usage);
    }

    /// The next frame for the client: what it missed, a gap, or the next of the queue with a new number.
    pub(super) fn next_frame(&mut self, queue: &mut Queue) -> Option<Frame> {
        let at = self.entries.partition_point(|entry| entry.seq <= self.told);
        if at == self.entries.len() {
            if self.lost > 0 || self.told < self.last {
                self.last += std::mem::take(&mut self.lost);
                return Some(self.gap_before(self.last + 1));
            }
            let ticket = queue.pop()?;
            let (seq, message_id) = (self.next_number(), ticket.message_id());
            self.record(|| Record::Numbered { epoch: self.epoch, message_id, seq });
            let kept_at = ticket.accepted_at();
            self.entries.push_back(Entry { seq, ticket, is_sent: false, kept_at, charged: 0 });
        }
        let Entry { seq, ticket, .. } = &self.entries[at];
        if *seq > self.told + 1 {
            return Some(self.gap_before(*seq));
        }
        self.told = *seq;
        Some(Frame::numbered(*seq, ticket))
    }

    fn gap_before(&mut self, seq: u64) -> Frame {
        let frame = Frame::gap(self.told + 1, seq - 1);
        self.told = seq - 1;
        frame
    }

    /// Takes back frames that were handed out and not begun.
    pub(super) fn untold(&mut self, told: u64) {
        self.told = told;
    }

    /// The client can have everything up to this number. Returns what is off the queue's books with it. `elsewhere` is
    /// set where the connection's own task did not write it.
    pub(super) fn wrote(
        &mut self,
        seq: u64,
        now: Instant,
        elsewhere: Elsewhere,
        mut delivered: impl FnMut(Duration),
    ) -> Depth {
        if elsewhere == Elsewhere::Yes {
            self.elsewhere += u32::try_from(seq.saturating_sub(self.sent)).unwrap_or(u32::MAX);
        }
        let from = self.entries.partition_point(|entry| entry.seq <= self.sent);
        let mut entries = std::mem::take(&mut self.entries);
        let mut done = Depth::default();
        for entry in entries.range_mut(from..).take_while(|entry| entry.seq <= seq) {
            if !entry.is_sent {
                done += Depth::of(&entry.ticket);
                delivered(entry.ticket.sent(now));
                entry.is_sent = true;
            }
            if entry.charged == 0 {
                entry.kept_at = now;
            }
            // What it takes has grown: its JSON is made now.
            self.charge(entry);
        }
        self.entries = entries;
        self.sent = self.sent.max(seq);
        if seq > self.written {
            self.written = seq;
            self.record(|| Record::Written { epoch: self.epoch, seq });
        }
        done
    }

    /// The client has everything up to this number.
    pub(super) fn acknowledge(
        &mut self,
        seq: u64,
        now: Instant,
        acked: &mut impl FnMut(Duration),
    ) -> Result<(), NeverSent> {
        if seq > self.written {
            return Err(NeverSent);
        }
        let mut freed = Usage::default();
        let count = self.remains.partition_point(|(known, ..)| *known <= seq);
        for (.., remains) in self.remains.drain(..count) {
            freed.bytes += REMAINS_BYTES;
            acked(remains.acked(now));
        }
        let count = self.entries.partition_point(|entry| entry.seq <= seq);
        for entry in self.entries.drain(..count) {
            freed += Usage { messages: usize::from(entry.charged > 0), bytes: entry.charged };
            acked(entry.ticket.acked(now));
        }
        if freed != Usage::default() {
            self.refund(freed);
            self.record(|| Record::Acked { epoch: self.epoch, seq });
        }
        if self.entries.is_empty() && self.remains.is_empty() {
            // A session mostly has nothing that is not acknowledged.
            (self.entries, self.remains) = (VecDeque::new(), VecDeque::new());
        }
        Ok(())
    }

    /// Removes a message that expired in the writer's hand. Returns it with whether the client may have it already.
    pub(super) fn remove(&mut self, seq: u64) -> Option<(Ticket, bool)> {
        let at = self.entries.binary_search_by_key(&seq, |entry| entry.seq).ok()?;
        let entry = self.entries.remove(at)?;
        self.forget(&entry);
        Some((entry.ticket, entry.is_sent))
    }

    /// Makes room: gives up the oldest message that no writer has in hand. One that was sent leaves what its acknowledgement
    /// needs; when only such are left, the oldest of those goes.
    pub(super) fn give_up_oldest(&mut self) -> Option<Oldest> {
        // What a writer has in hand was told and is not sent yet.
        let can_go =
            self.entries.front().is_some_and(|front| front.charged > 0 && (front.is_sent || front.seq > self.told));
        if !can_go {
            self.remains.pop_front()?;
            self.refund(Usage { messages: 0, bytes: REMAINS_BYTES });
            return Some(Oldest::Remains);
        }
        let entry = self.entries.pop_front()?;
        self.forget(&entry);
        if !entry.is_sent {
            return Some(Oldest::Unsent(entry.ticket));
        }
        if entry.seq > self.told {
            // It was to be sent once more, and its number is told as lost.
            return Some(Oldest::Sent);
        }
        let kept = Usage { messages: 0, bytes: REMAINS_BYTES };
        self.usage += kept;
        self.account.charge(kept);
        self.remains.push_back((entry.seq, entry.kept_at, entry.ticket.into_remains()));
        Some(Oldest::Sent)
    }

    /// Gives up what is kept for longer than `age`, or has expired before it was sent. The oldest are in front; one that
    /// is over before its turn is found when it would be sent.
    pub(super) fn sweep(&mut self, now: Instant, age: Duration, given_up: &mut Vec<(GivenUp, WasSent)>) {
        let is_old = |at: Instant| now.saturating_duration_since(at) >= age;
        while self.remains.front().is_some_and(|(_, kept_at, _)| is_old(*kept_at)) {
            self.remains.pop_front();
            self.refund(Usage { messages: 0, bytes: REMAINS_BYTES });
        }
        while let Some(front) = self.entries.front() {
            let has_expired = !front.is_sent && front.ticket.expires_at().is_some_and(|at| at <= now);
            let is_in_hand = front.charged == 0 || (!front.is_sent && front.seq <= self.told);
            if is_in_hand || !(has_expired || is_old(front.kept_at)) {
                return;
            }
            if let Some(entry) = self.entries.pop_front() {
                self.forget(&entry);
                let was_sent = if entry.is_sent { WasSent::Yes } else { WasSent::No };
                given_up.push(((entry.ticket, DropReason::Expired), was_sent));
            }
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.account.refund(self.usage);
    }
}

/// Whether something other than the connection's own task wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Elsewhere {
    No,
    Yes,
}

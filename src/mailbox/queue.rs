//! The messages that wait for one receiver, by priority, and what becomes of them where there is no room.

use std::collections::VecDeque;
use std::ops::{AddAssign, SubAssign};

use crate::delivery::Ticket;
use crate::message::SlowReaderPolicy;
use crate::outcome::DropReason;

/// How much one receiver may have queued, counting what the writer has in hand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capacity {
    pub(crate) messages_max: usize,
    pub(crate) bytes_max: usize,
}

/// How much one receiver has queued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Depth {
    pub(crate) messages: u32,
    pub(crate) bytes: usize,
    /// Messages that were kept for a client, on their way to it for the first time. The other two leave them out.
    pub(crate) late: u32,
}

/// About how many bytes of memory a queued message takes beside its own.
pub(crate) const MESSAGE_OVERHEAD_BYTES: usize = 256;

impl Depth {
    /// About how many bytes of memory it takes, were no message shared.
    pub(crate) fn memory(self) -> usize {
        self.bytes + self.messages as usize * MESSAGE_OVERHEAD_BYTES
    }

    /// What one message adds.
    pub(crate) fn of(ticket: &Ticket) -> Self {
        if ticket.is_late() {
            Self { late: 1, ..Self::default() }
        } else {
            Self { messages: 1, bytes: ticket.payload().len(), late: 0 }
        }
    }
}

impl AddAssign for Depth {
    fn add_assign(&mut self, other: Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.late += other.late;
    }
}

impl SubAssign for Depth {
    fn sub_assign(&mut self, other: Self) {
        self.messages -= other.messages;
        self.bytes -= other.bytes;
        self.late -= other.late;
    }
}

/// Why a message was not queued.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) ticket: Ticket,
    pub(super) reason: DropReason,
    /// Whether the slow-reader policy wants the connection closed for it.
    pub(super) closes: bool,
}

impl Refused {
    pub(super) fn new(ticket: Ticket, reason: DropReason) -> Self {
        Self { ticket, reason, closes: false }
    }
}

/// One receiver's queue. Until the first message it holds no heap memory, and empty next to none.
#[derive(Debug, Default)]
pub(super) struct Queue {
    tickets: VecDeque<Ticket>,
    /// What is queued, and what was taken from the queue and not yet written.
    pub(super) depth: Depth,
}

/// Messages that are to leave a queue.
#[derive(Debug, Default)]
struct Leaving {
    places: Vec<(usize, DropReason)>,
    depth: Depth,
}

impl Leaving {
    fn add(&mut self, place: usize, ticket: &Ticket, reason: DropReason) {
        self.places.push((place, reason));
        self.depth += Depth::of(ticket);
    }
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.tickets.is_empty()
    }

    /// Queues a message, and moves those that have to go for it to `out`.
    pub(super) fn push(
        &mut self,
        ticket: Ticket,
        capacity: Capacity,
        out: &mut Vec<(Ticket, DropReason)>,
    ) -> Result<(), Refused> {
        if self.has_newer_than_late(&ticket) {
            return Err(Refused::new(ticket, DropReason::Superseded));
        }
        let mut leaving = self.leaving_for(&ticket, capacity);
        if !self.has_room_without(&leaving, &ticket, capacity) {
            let closes = ticket.policy() == SlowReaderPolicy::Disconnect;
            return Err(Refused { ticket, reason: DropReason::QueueFull, closes });
        }
        leaving.places.sort_unstable_by_key(|(place, _)| *place);
        for (place, reason) in leaving.places.into_iter().rev() {
            if let Some(ticket) = self.tickets.remove(place) {
                self.depth -= Depth::of(&ticket);
                out.push((ticket, reason));
            }
        }
        ticket.behind((self.depth.messages + self.depth.late) as usize);
        self.depth += Depth::of(&ticket);
        let place = self.place_for(&ticket);
        self.tickets.insert(place, ticket);
        Ok(())
    }

    /// Takes the next message. It counts until it is written.
    pub(super) fn pop(&mut self) -> Option<Ticket> {
        self.tickets.pop_front()
    }

    /// Puts back the message that was taken last.
    pub(super) fn unpop(&mut self, ticket: Ticket) {
        self.tickets.push_front(ticket);
    }

    /// What is to happen to the message that matters least, if any can be taken out.
    pub(super) fn policy(&self) -> Option<SlowReaderPolicy> {
        self.oldest_of_least_priority().map(|place| self.tickets[place].policy())
    }

    /// Takes out the oldest message of the least priority, off the books too. Late ones do not count, and stay.
    pub(super) fn take_oldest(&mut self) -> Option<Ticket> {
        let place = self.oldest_of_least_priority()?;
        self.take(place)
    }

    /// Takes out the newest message of the least priority, off the books too.
    pub(super) fn take_newest(&mut self) -> Option<Ticket> {
        let place = self.tickets.iter().rposition(|ticket| !ticket.is_late())?;
        self.take(place)
    }

    /// Takes out all that is queued, off the books too. What writers have in hand stays on them.
    pub(super) fn take_queued(&mut self) -> VecDeque<Ticket> {
        let queued = std::mem::take(&mut self.tickets);
        for ticket in &queued {
            self.depth -= Depth::of(ticket);
        }
        queued
    }

    fn take(&mut self, place: usize) -> Option<Ticket> {
        let ticket = self.tickets.remove(place)?;
        self.depth -= Depth::of(&ticket);
        Some(ticket)
    }

    fn oldest_of_least_priority(&self) -> Option<usize> {
        let last = self.tickets.iter().rposition(|ticket| !ticket.is_late())?;
        let least = self.tickets[last].priority();
        let start = self.tickets.partition_point(|queued| queued.priority() > least);
        (start..=last).find(|place| !self.tickets[*place].is_late())
    }

    /// Takes everything, off the books too.
    pub(super) fn take_all(&mut self) -> VecDeque<Ticket> {
        self.depth = Depth::default();
        std::mem::take(&mut self.tickets)
    }

    /// Gives back memory that only a busy moment needed. A quiet receiver keeps what the next message needs, so that its
    /// messages cost no allocation each.
    pub(super) fn shrink(&mut self) {
        const KEPT: usize = 4;
        if self.tickets.is_empty() && self.tickets.capacity() > KEPT {
            self.tickets = VecDeque::new();
        }
    }

    /// The queue is kept in order of priority, so a message's place is found by bisection; mostly it is the end. A late
    /// one goes before those that were accepted after it.
    fn place_for(&self, ticket: &Ticket) -> usize {
        let end = self.tickets.partition_point(|queued| queued.priority() >= ticket.priority());
        if !ticket.is_late() {
            return end;
        }
        let start = self.tickets.partition_point(|queued| queued.priority() > ticket.priority());
        let mut newer = self.tickets.range(start..end);
        newer.position(|queued| queued.accepted_at() > ticket.accepted_at()).map_or(end, |at| start + at)
    }

    /// Whether a message that comes late was superseded by one that was accepted after it.
    fn has_newer_than_late(&self, ticket: &Ticket) -> bool {
        let takes_its_place =
            |queued: &Ticket| queued.accepted_at() > ticket.accepted_at() && ticket.is_superseded_by(queued);
        ticket.is_late() && ticket.collapses() && self.tickets.iter().any(takes_its_place)
    }

    /// Which messages leave for a newer one, and why. Only a plan: a message that is refused in the end must not have
    /// cost another.
    fn leaving_for(&self, newer: &Ticket, capacity: Capacity) -> Leaving {
        let mut leaving = Leaving::default();
        let conflates = newer.policy() == SlowReaderPolicy::Conflate;
        if newer.collapses() || (conflates && !self.has_room_without(&leaving, newer, capacity)) {
            for (place, queued) in self.tickets.iter().enumerate() {
                if queued.is_superseded_by(newer) {
                    leaving.add(place, queued, DropReason::Superseded);
                }
            }
        }
        if matches!(newer.policy(), SlowReaderPolicy::DropOldest | SlowReaderPolicy::Conflate) {
            self.plan_room(&mut leaving, newer, capacity);
        }
        leaving
    }

    /// Adds the oldest messages of the least priority until there is room, none of a higher priority than the newer's.
    fn plan_room(&self, leaving: &mut Leaving, newer: &Ticket, capacity: Capacity) {
        let superseded = leaving.places.len();
        let mut end = self.tickets.len();
        while let Some(least) = end.checked_sub(1).map(|last| self.tickets[last].priority()) {
            if least > newer.priority() {
                return;
            }
            let start = self.tickets.partition_point(|queued| queued.priority() > least);
            for place in start..end {
                if self.has_room_without(leaving, newer, capacity) {
                    return;
                }
                // The superseded ones were added in order of place.
                let is_leaving = leaving.places[..superseded].binary_search_by_key(&place, |(taken, _)| *taken).is_ok();
                // A late one makes no room.
                if !is_leaving && !self.tickets[place].is_late() {
                    leaving.add(place, &self.tickets[place], DropReason::QueueFull);
                }
            }
            end = start;
        }
    }

    fn has_room_without(&self, leaving: &Leaving, ticket: &Ticket, capacity: Capacity) -> bool {
        let (depth, out) = (self.depth, leaving.depth);
        ticket.is_late()
            || (((depth.messages - out.messages) as usize) < capacity.messages_max
                && depth.bytes - out.bytes + ticket.payload().len() <= capacity.bytes_max)
    }
}

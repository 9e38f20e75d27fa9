//! One connection's bounded queue of messages: a push offers and never waits, the connection's task takes.

mod numbering;

use std::collections::VecDeque;
use std::ops::{AddAssign, SubAssign};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Waker};

use crate::delivery::Ticket;
use crate::journal::{Journal, Kept, SessionKey};
use crate::message::{ConnectionId, SlowReaderPolicy};
use crate::outcome::DropReason;
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering};

use numbering::Numbering;
pub(crate) use numbering::{Numbered, Resumed};

/// How much one outbox holds, counting what the writer has taken but not yet written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capacity {
    pub(crate) messages_max: usize,
    pub(crate) bytes_max: usize,
}

/// What became of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offered {
    pub(crate) taken: Taken,
    /// How many messages that were accepted before had to go for it.
    pub(crate) displaced: usize,
    /// How many messages that were held before had to go for it.
    pub(crate) forgotten: usize,
}

/// Whether an outbox took a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Queued,
    /// Its session is away, and keeps it for its return.
    Held,
    Refused(DropReason),
}

/// Why the gateway, not the peer, ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The outbox was full; what is queued is given up.
    QueueFull,
    /// An operator or service dropped it; what is queued is written first.
    Dropped,
    /// The session goes on over another connection.
    Replaced,
    /// The gateway shuts down; what is queued is written first.
    GoingAway,
    /// The shutdown grace is over; everything is given up at once.
    Cut,
    /// The connection's own task has ended it.
    Ended,
}

/// How full an outbox is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Depth {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    /// Messages that were kept for a client, on their way to it for the first time. They are in neither of the others.
    pub(crate) late: usize,
}

impl Depth {
    /// What one message adds.
    pub(crate) fn of(ticket: &Ticket) -> Self {
        if ticket.is_late() {
            Self { late: 1, ..Self::default() }
        } else {
            Self { messages: 1, bytes: ticket.bytes().len(), late: 0 }
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

/// One connection's queue. Until the first message it holds no heap memory, and empty next to none.
#[derive(Debug)]
pub(crate) struct Outbox {
    id: ConnectionId,
    capacity: Capacity,
    /// The tick at which the task wants to be woken; `u64::MAX` for never. See [`Outbox::wake_if_due`].
    alarm: AtomicU64,
    /// A std mutex: held for a few instructions, never over an await.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Ticket>,
    depth: Depth,
    stop: Option<Stop>,
    /// Present while the task sleeps; taken by whoever wakes it, so that a busy task is not woken again.
    waker: Option<Waker>,
    /// Whether a message is reason enough to wake the task. It is not while the socket takes no more.
    wants_messages: bool,
    /// Present when the outbox is a session's.
    numbering: Option<Box<Numbering>>,
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

impl State {
    /// Arranges for the task to be woken.
    fn sleep(&mut self, cx: &Context<'_>, room: usize) {
        self.wants_messages = room > 0;
        if self.waker.is_none() {
            // A connection keeps to one task, so a waker that is still here is the right one.
            self.waker = Some(cx.waker().clone());
        }
    }

    fn numbering_if_away(&mut self) -> Option<&mut Numbering> {
        if self.stop.is_some() {
            return None;
        }
        self.numbering.as_deref_mut().filter(|numbering| numbering.is_away())
    }

    fn queue(
        &mut self,
        ticket: Ticket,
        capacity: Capacity,
        out: &mut Vec<(Ticket, DropReason)>,
    ) -> Result<(), (Ticket, DropReason)> {
        if self.stop.is_some() {
            return Err((ticket, DropReason::Closed));
        }
        if self.has_newer_than_late(&ticket) {
            return Err((ticket, DropReason::Superseded));
        }
        let mut leaving = self.leaving_for(&ticket, capacity);
        if !self.has_room_without(&leaving, &ticket, capacity) {
            if ticket.policy() == SlowReaderPolicy::Disconnect {
                self.stop = Some(Stop::QueueFull);
            }
            return Err((ticket, DropReason::QueueFull));
        }
        leaving.places.sort_unstable_by_key(|(place, _)| *place);
        for (place, reason) in leaving.places.into_iter().rev() {
            self.remove(place, reason, out);
        }
        ticket.behind(self.depth.messages + self.depth.late);
        self.depth += Depth::of(&ticket);
        let place = self.place_for(&ticket);
        self.queue.insert(place, ticket);
        Ok(())
    }

    /// The queue is kept in order of priority, so a message's place is found by bisection; mostly it is the end. A late one
    /// goes before those that were accepted after it.
    fn place_for(&self, ticket: &Ticket) -> usize {
        let end = self.queue.partition_point(|queued| queued.priority() >= ticket.priority());
        if !ticket.is_late() {
            return end;
        }
        let start = self.queue.partition_point(|queued| queued.priority() > ticket.priority());
        let mut newer = self.queue.range(start..end);
        newer.position(|queued| queued.accepted_at() > ticket.accepted_at()).map_or(end, |at| start + at)
    }

    /// Whether a message is late for one that was accepted after it and takes its place.
    fn has_newer_than_late(&self, ticket: &Ticket) -> bool {
        let takes_its_place =
            |queued: &Ticket| queued.accepted_at() > ticket.accepted_at() && ticket.is_superseded_by(queued);
        ticket.is_late() && ticket.collapses() && self.queue.iter().any(takes_its_place)
    }

    /// Which messages leave for a newer one, and why. Only planned: a message that is refused in the end must not have
    /// cost another.
    fn leaving_for(&self, newer: &Ticket, capacity: Capacity) -> Leaving {
        let mut leaving = Leaving::default();
        let conflates = newer.policy() == SlowReaderPolicy::Conflate;
        if newer.collapses() || (conflates && !self.has_room_without(&leaving, newer, capacity)) {
            for place in 0..self.queue.len() {
                if self.queue[place].is_superseded_by(newer) {
                    leaving.add(place, &self.queue[place], DropReason::Superseded);
                }
            }
        }
        if conflates || newer.policy() == SlowReaderPolicy::DropOldest {
            self.plan_room(&mut leaving, newer, capacity);
        }
        leaving
    }

    /// Adds the oldest messages of the least priority until there is room, none of a higher priority than the newer's.
    fn plan_room(&self, leaving: &mut Leaving, newer: &Ticket, capacity: Capacity) {
        let superseded = leaving.places.len();
        let mut end = self.queue.len();
        while let Some(least) = end.checked_sub(1).map(|last| self.queue[last].priority()) {
            if least > newer.priority() {
                return;
            }
            let start = self.queue.partition_point(|queued| queued.priority() > least);
            for place in start..end {
                if self.has_room_without(leaving, newer, capacity) {
                    return;
                }
                // The superseded ones were added in order of place.
                let is_leaving = leaving.places[..superseded].binary_search_by_key(&place, |(taken, _)| *taken).is_ok();
                // A late one makes no room.
                if !is_leaving && !self.queue[place].is_late() {
                    leaving.add(place, &self.queue[place], DropReason::QueueFull);
                }
            }
            end = start;
        }
    }

    fn has_room_without(&self, leaving: &Leaving, ticket: &Ticket, capacity: Capacity) -> bool {
        let (depth, out) = (self.depth, leaving.depth);
        ticket.is_late()
            || (depth.messages - out.messages < capacity.messages_max
                && depth.bytes - out.bytes + ticket.bytes().len() <= capacity.bytes_max)
    }

    fn remove(&mut self, place: usize, reason: DropReason, out: &mut Vec<(Ticket, DropReason)>) {
        if let Some(ticket) = self.queue.remove(place) {
            self.depth -= Depth::of(&ticket);
            out.push((ticket, reason));
        }
    }
}

impl Outbox {
    pub(crate) fn new(id: ConnectionId, capacity: Capacity) -> Self {
        Self { id, capacity, alarm: AtomicU64::new(u64::MAX), state: Mutex::default() }
    }

    pub(crate) fn id(&self) -> ConnectionId {
        self.id
    }

    /// Queues a message behind those of its priority that were accepted before it, or says why not. Never waits.
    pub(crate) fn offer(&self, ticket: Ticket) -> Offered {
        let mut out = Vec::new();
        // A late one was accepted before, and is told in its turn.
        let is_expired = !ticket.is_late() && ticket.is_expired();
        let mut state = self.state();
        let is_over = is_expired || (ticket.is_for_now() && state.numbering_if_away().is_some());
        if let Some(numbering) = state.numbering_if_away().filter(|_| !is_over) {
            let (refused, forgotten) = numbering.keep(ticket);
            drop(state);
            let taken = match refused {
                None => Taken::Held,
                Some(message) => {
                    message.into_ticket().refused(DropReason::QueueFull);
                    Taken::Refused(DropReason::QueueFull)
                }
            };
            return Offered { taken, displaced: 0, forgotten };
        }
        let queued =
            if is_over { Err((ticket, DropReason::Expired)) } else { state.queue(ticket, self.capacity, &mut out) };
        if let Some(numbering) = &mut state.numbering {
            numbering.lose(out.len() + usize::from(queued.is_err()));
        }
        if queued.is_err() || state.wants_messages {
            wake(state);
        } else {
            drop(state);
        }
        // Each message tells whoever waits for it, which is not for under the lock.
        let displaced = out.len();
        for (ticket, reason) in out {
            ticket.lost(reason);
        }
        let taken = match queued {
            Ok(()) => Taken::Queued,
            Err((ticket, reason)) => {
                ticket.refused(reason);
                Taken::Refused(reason)
            }
        };
        Offered { taken, displaced, forgotten: 0 }
    }

    /// Tells the connection to end. Says whether this call was the one that did; `Cut` overrides an earlier reason. A
    /// session that is away has no connection to be told, and will not come back.
    pub(crate) fn stop(&self, stop: Stop) -> bool {
        let mut state = self.state();
        // A session that was about to go on elsewhere, or later, has lost its bindings to the drop, and must not.
        let would_go_on = state.numbering.is_some() && matches!(state.stop, Some(Stop::Replaced | Stop::QueueFull));
        let first = state.stop.is_none() || (stop == Stop::Dropped && would_go_on);
        let is_away = state.numbering_if_away().is_some();
        if is_away && stop == Stop::Replaced {
            // It has left in the meantime, and may come back.
            return false;
        }
        // One that waits for its slow client is not to wait any longer.
        let is_wanted = stop == Stop::Replaced && state.stop == Some(Stop::QueueFull);
        if first || is_wanted || stop == Stop::Cut {
            state.stop = Some(stop);
            wake(state);
        }
        first && !is_away
    }

    /// Why the connection is to end, if it was told to.
    pub(crate) fn told_to_stop(&self) -> Option<Stop> {
        self.state().stop
    }

    /// The task's one visit: takes `done` off the books, moves at most `room` messages into `batch` in order, tells
    /// whether the connection must stop, and arranges to be woken when any of that changes.
    pub(crate) fn visit(
        &self,
        cx: &Context<'_>,
        done: Depth,
        batch: &mut VecDeque<Ticket>,
        room: usize,
    ) -> Option<Stop> {
        let mut state = self.state();
        state.depth -= done;
        if batch.is_empty() && state.queue.len() <= room {
            std::mem::swap(batch, &mut state.queue);
        } else {
            let count = state.queue.len().min(room);
            batch.extend(state.queue.drain(..count));
        }
        shrink(&mut state.queue);
        state.sleep(cx, room);
        state.stop
    }

    /// The same visit for a connection of the session protocol: what it takes is numbered, and what was lost is told.
    pub(crate) fn visit_numbered(
        &self,
        cx: &Context<'_>,
        done: Depth,
        batch: &mut VecDeque<Numbered>,
        room: usize,
    ) -> Option<Stop> {
        let mut state = self.state();
        state.depth -= done;
        let State { queue, numbering, .. } = &mut *state;
        if let Some(numbering) = numbering {
            numbering.number(queue, batch, room);
        }
        shrink(&mut state.queue);
        state.sleep(cx, room);
        state.stop
    }

    /// Makes the outbox a session's, before anything was offered to it.
    pub(crate) fn begin_session(&self, key: SessionKey, journal: Arc<dyn Journal>) {
        self.state().numbering = Some(Box::new(Numbering::new(key, journal)));
    }

    /// The session's connection is gone: from here on messages are kept for its return, beginning with those that were
    /// accepted and not written, `in_hand` first. `written` is the last number that its client can have. Says how many of
    /// the messages are not kept: there was no room for them, or they were for now alone.
    ///
    /// # Errors
    /// Hands back what was in hand if the session is not to come back.
    pub(crate) fn leave(&self, in_hand: Vec<Kept>, written: u64) -> Result<usize, Vec<Kept>> {
        let mut state = self.state();
        let may_come_back = matches!(state.stop, None | Some(Stop::QueueFull | Stop::Replaced));
        let State { queue, numbering: Some(numbering), .. } = &mut *state else { return Err(in_hand) };
        if !may_come_back {
            return Err(in_hand);
        }
        let (appended, for_now) = numbering.leave(in_hand, std::mem::take(queue), written);
        (state.stop, state.waker, state.wants_messages) = (None, None, false);
        state.depth = Depth::default();
        drop(state);
        let refused = appended.refused.iter().filter(|message| !message.is_sent()).count();
        let lost = appended.lost + refused + for_now.len();
        for message in for_now {
            message.give_up(DropReason::Expired);
        }
        for message in appended.refused {
            message.give_up(DropReason::QueueFull);
        }
        Ok(lost)
    }

    /// Whether it is the outbox of a session without a connection.
    pub(crate) fn is_away(&self) -> bool {
        self.state().numbering.as_ref().is_some_and(|numbering| numbering.is_away())
    }

    /// The session is about to get another connection: from here on messages are queued again. Says whether it may: not
    /// if it was dropped meanwhile.
    pub(crate) fn come_back(&self) -> bool {
        let mut state = self.state();
        let may = state.stop.is_none();
        if let Some(numbering) = &mut state.numbering {
            numbering.come_back();
        }
        may
    }

    /// Goes on behind the last number that the client has, with what was kept from there on.
    ///
    /// # Errors
    /// Hands back what was kept if the client claims a number that was never written.
    pub(crate) fn resume(&self, seq: u64, kept: Vec<Kept>) -> Result<Resumed, Vec<Kept>> {
        let mut state = self.state();
        let Some(numbering) = &mut state.numbering else { return Err(kept) };
        let resumed = numbering.resume(seq, kept)?;
        state.depth.late += resumed.late;
        Ok(resumed)
    }

    /// The last number that the connection was handed to send, 0 before the first.
    pub(crate) fn seq(&self) -> u64 {
        self.state().numbering.as_ref().map_or(0, |numbering| numbering.told())
    }

    /// The last number that the session's client can have from the connections before.
    pub(crate) fn written(&self) -> u64 {
        self.state().numbering.as_ref().map_or(0, |numbering| numbering.written())
    }

    /// Gives up what is queued and refuses what comes, for a connection that has ended. Says how many messages were
    /// accepted and never written; `done` is what the last visit did not yet report.
    pub(crate) fn close(&self, done: Depth) -> usize {
        let mut state = self.state();
        state.stop.get_or_insert(Stop::Ended);
        state.waker = None;
        let given_up = std::mem::take(&mut state.queue);
        state.depth -= done;
        let Depth { messages, late, .. } = std::mem::take(&mut state.depth);
        // Each message tells whoever waits for it that it is lost, which is not for under the lock.
        drop(state);
        drop(given_up);
        messages + late
    }

    /// Sets the tick at which the task wants to be woken.
    pub(crate) fn set_alarm(&self, tick: u64) {
        self.alarm.store(tick, Ordering::Relaxed);
    }

    /// Wakes the task if its alarm is due. A sweep over all connections stands in for a timer in each.
    pub(crate) fn wake_if_due(&self, now_tick: u64) {
        let alarm = self.alarm.load(Ordering::Relaxed);
        // Exchanged, not stored: the task may be setting the next alarm at this moment, and that one must stand.
        let ours = || self.alarm.compare_exchange(alarm, u64::MAX, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if alarm <= now_tick && ours() {
            wake(self.state());
        }
    }

    pub(crate) fn depth(&self) -> Depth {
        self.state().depth
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic under this lock leaves counters at worst one frame off, and one connection is no reason to stop
        // serving the rest.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps an idle connection from holding the memory of its busiest moment, but lets it keep what the next message needs,
/// so that a quiet connection's messages cost no allocation each.
pub(crate) fn shrink<T>(queue: &mut VecDeque<T>) {
    const KEPT: usize = 4;
    if queue.is_empty() && queue.capacity() > KEPT {
        *queue = VecDeque::new();
    }
}

/// Wakes outside the lock, so that the task does not run into it.
fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use std::time::{Duration, Instant};

    use super::*;
    use crate::delivery::Delivery;
    use crate::journal::{JournalBounds, MemoryJournal};
    use crate::message::{Names, Priority, Push, UserId};
    use crate::outcome::Progress;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn outbox(messages_max: usize, bytes_max: usize) -> Outbox {
        Outbox::new(Names::new().connection_id(), Capacity { messages_max, bytes_max })
    }

    fn push(text: &str) -> Push {
        Push::new("ann", "mail", text).expect("valid")
    }

    fn ticket(push: &Push) -> Ticket {
        let policy = push.slow_reader_policy().unwrap_or_default();
        Arc::new(Delivery::new(Names::new().message_id(), push, policy, Instant::now())).ticket(0)
    }

    fn message(text: &str) -> Ticket {
        ticket(&push(text))
    }

    fn offer(outbox: &Outbox, ticket: Ticket) -> Result<(), DropReason> {
        match outbox.offer(ticket).taken {
            Taken::Queued | Taken::Held => Ok(()),
            Taken::Refused(reason) => Err(reason),
        }
    }

    /// Everything that is queued, as text.
    fn taken(outbox: &Outbox) -> Vec<String> {
        let mut batch = VecDeque::new();
        outbox.visit(&Context::from_waker(Waker::noop()), Depth::default(), &mut batch, usize::MAX);
        batch.iter().map(|ticket| String::from_utf8_lossy(&ticket.bytes()[2..]).into_owned()).collect()
    }

    #[test]
    fn the_message_limit_holds_on_both_sides() {
        let outbox = outbox(2, 1_000);
        assert_eq!(offer(&outbox, message("one")), Ok(()));
        assert_eq!(offer(&outbox, message("two")), Ok(()));
        assert_eq!(offer(&outbox, message("three")), Err(DropReason::QueueFull));
        assert_eq!(offer(&outbox, message("four")), Err(DropReason::Closed));
    }

    #[test]
    fn the_byte_limit_holds_on_both_sides() {
        let outbox = outbox(10, 10);
        assert_eq!(offer(&outbox, message("12345678")), Ok(()), "8 bytes and a header of 2 fit in 10");
        assert_eq!(offer(&outbox, message("1")), Err(DropReason::QueueFull));
    }

    #[test]
    fn what_was_kept_for_a_client_that_has_only_just_come_takes_no_room() {
        let outbox = outbox(2, 20);
        for text in ["kept 1", "kept 2", "kept 3"] {
            assert_eq!(offer(&outbox, message(text).late()), Ok(()));
        }
        let oldest = push("new 1").with_slow_reader_policy(SlowReaderPolicy::DropOldest);
        assert_eq!(offer(&outbox, ticket(&oldest)), Ok(()));
        assert_eq!(offer(&outbox, message("new 2")), Ok(()));
        assert_eq!(outbox.depth(), Depth { messages: 2, bytes: 14, late: 3 });
        assert_eq!(offer(&outbox, message("new 3")), Err(DropReason::QueueFull));
        assert_eq!(taken(&outbox), ["kept 1", "kept 2", "kept 3", "new 1", "new 2"]);
        assert_eq!(outbox.close(Depth::default()), 5);
    }

    #[test]
    fn what_was_kept_goes_before_what_was_accepted_after_it_and_never_takes_its_place() {
        let outbox = outbox(9, 1_000);
        let at_once = |text: &str, key: Option<&str>| {
            let push = push(text);
            ticket(&match key {
                Some(key) => push.with_collapse_key(key).expect("valid"),
                None => push,
            })
        };
        let [kept_1, keyed, kept_2] = [("kept 1", None), ("keyed, kept", Some("key")), ("kept 2", None)]
            .map(|(text, key)| at_once(text, key).late());
        let high = ticket(&push("high").with_priority(Priority::High));
        for newer in [at_once("new 1", None), at_once("keyed, new", Some("key")), high] {
            assert_eq!(offer(&outbox, newer), Ok(()));
        }
        assert_eq!(offer(&outbox, kept_2), Ok(()));
        assert_eq!(offer(&outbox, keyed), Err(DropReason::Superseded));
        assert_eq!(offer(&outbox, kept_1), Ok(()));
        assert_eq!(offer(&outbox, at_once("new 2", None)), Ok(()));
        assert_eq!(taken(&outbox), ["high", "kept 1", "kept 2", "new 1", "keyed, new", "new 2"]);
    }

    #[test]
    fn what_the_writer_holds_still_counts_until_it_is_written() {
        let outbox = outbox(2, 1_000);
        let mut batch = VecDeque::new();
        let waker = Waker::noop();
        let cx = Context::from_waker(waker);
        offer(&outbox, message("one")).expect("room");
        offer(&outbox, message("two")).expect("room");
        assert_eq!(outbox.visit(&cx, Depth::default(), &mut batch, 8), None);
        assert_eq!(batch.len(), 2);
        assert_eq!(outbox.depth().messages, 2);
        let written = Depth { messages: 1, bytes: batch[0].bytes().len(), late: 0 };
        batch.pop_front();
        outbox.visit(&cx, written, &mut batch, 8);
        assert_eq!(offer(&outbox, message("three")), Ok(()));
        assert_eq!(offer(&outbox, message("four")), Err(DropReason::QueueFull));
        assert_eq!(outbox.close(Depth::default()), 2, "two and three were accepted and never written");
    }

    #[test]
    fn a_sleeping_task_is_woken_once_and_a_blocked_one_not_for_frames() {
        let outbox = outbox(10, 1_000);
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let cx = Context::from_waker(&waker);
        let mut batch = VecDeque::new();
        outbox.visit(&cx, Depth::default(), &mut batch, 8);
        offer(&outbox, message("one")).expect("room");
        offer(&outbox, message("two")).expect("room");
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        outbox.visit(&cx, Depth::default(), &mut batch, 0);
        offer(&outbox, message("three")).expect("room");
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(outbox.stop(Stop::Dropped));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
        assert!(!outbox.stop(Stop::GoingAway), "it was already told to end");
        assert_eq!(outbox.visit(&cx, Depth::default(), &mut batch, 8), Some(Stop::Dropped));
    }

    #[test]
    fn what_a_journal_without_room_refuses_is_lost_only_if_it_never_was_sent() {
        let bounds =
            JournalBounds { messages_per_user_max: 1, bytes_per_user_max: 1000, bytes_max: 1000, age: Duration::MAX };
        let journal = Arc::new(MemoryJournal::new(bounds));
        let user_id = UserId::new("ann").expect("not empty");
        let key = |outbox: &Outbox| SessionKey { user_id: user_id.clone(), epoch: outbox.id() };
        let (outbox, other) = (outbox(10, 1_000), outbox(10, 1_000));
        outbox.begin_session(key(&outbox), journal.clone());
        journal.append(&key(&other), &mut std::iter::once(Kept::new(message("takes all the room"), 1)));
        for text in ["sent", "in hand"] {
            offer(&outbox, message(text)).expect("room");
        }
        let mut batch = VecDeque::new();
        outbox.visit_numbered(&Context::from_waker(Waker::noop()), Depth::default(), &mut batch, 8);
        let in_hand = batch.into_iter().map(|numbered| match numbered {
            Numbered::Message(message) => message,
            Numbered::Gap { .. } => panic!("nothing is lost yet"),
        });
        let mut in_hand: Vec<Kept> = in_hand.collect();
        in_hand[0].sent(Instant::now());
        offer(&outbox, message("queued")).expect("room");
        assert_eq!(outbox.leave(in_hand, 1).ok(), Some(2), "that in hand and that in the queue");
    }

    #[test]
    fn what_is_for_now_is_not_kept_when_its_session_leaves_and_is_told_as_lost() {
        let bounds =
            JournalBounds { messages_per_user_max: 9, bytes_per_user_max: 9000, bytes_max: 9000, age: Duration::MAX };
        let journal = Arc::new(MemoryJournal::new(bounds));
        let outbox = outbox(10, 1_000);
        let key = SessionKey { user_id: UserId::new("ann").expect("not empty"), epoch: outbox.id() };
        outbox.begin_session(key.clone(), journal.clone());
        let now = push("for now").with_ttl(Duration::ZERO);
        let delivery = Delivery::new(Names::new().message_id(), &now, SlowReaderPolicy::Disconnect, Instant::now());
        let delivery = Arc::new(delivery.followed([outbox.id(); 3].into_iter()));
        let mut batch = VecDeque::new();
        offer(&outbox, delivery.ticket(0)).expect("room");
        outbox.visit_numbered(&Context::from_waker(Waker::noop()), Depth::default(), &mut batch, 8);
        let Some(Numbered::Message(in_hand)) = batch.pop_front() else { panic!("nothing is lost yet") };
        offer(&outbox, delivery.ticket(1)).expect("room");
        offer(&outbox, message("for later")).expect("room");
        assert_eq!(outbox.leave(vec![in_hand], 0).ok(), Some(2));
        assert_eq!(offer(&outbox, delivery.ticket(2)), Err(DropReason::Expired));
        let progress: Vec<_> =
            delivery.receipt().expect("followed").outcomes().into_iter().map(|outcome| outcome.progress).collect();
        let lost = Progress::Lost(DropReason::Expired);
        assert_eq!(progress, [lost, lost, Progress::Dropped(DropReason::Expired)]);
        let kept: Vec<u64> = journal.acknowledge(&key, u64::MAX).iter().map(Kept::seq).collect();
        assert_eq!(kept, [3], "the others are numbers that are told as a gap");
    }

    #[test]
    fn an_alarm_wakes_when_due_and_not_before() {
        let outbox = outbox(10, 1_000);
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        outbox.visit(&Context::from_waker(&waker), Depth::default(), &mut VecDeque::new(), 8);
        outbox.set_alarm(5);
        outbox.wake_if_due(4);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
        outbox.wake_if_due(5);
        outbox.wake_if_due(6);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn high_overtakes_and_bulk_is_overtaken_and_each_keeps_its_order() {
        let outbox = outbox(10, 1_000);
        for (text, priority) in [
            ("bulk 1", Priority::Bulk),
            ("normal 1", Priority::Normal),
            ("high 1", Priority::High),
            ("bulk 2", Priority::Bulk),
            ("high 2", Priority::High),
            ("normal 2", Priority::Normal),
        ] {
            assert_eq!(offer(&outbox, ticket(&push(text).with_priority(priority))), Ok(()));
        }
        assert_eq!(taken(&outbox), ["high 1", "high 2", "normal 1", "normal 2", "bulk 1", "bulk 2"]);
    }

    #[test]
    fn a_newer_message_takes_the_place_of_one_with_its_collapse_key_alone() {
        let outbox = outbox(10, 1_000);
        for (text, key) in [("a 1", Some("a")), ("b 1", Some("b")), ("none", None), ("a 2", Some("a"))] {
            let push = push(text);
            let push = match key {
                Some(key) => push.with_collapse_key(key).expect("valid"),
                None => push,
            };
            assert_eq!(offer(&outbox, ticket(&push)), Ok(()));
        }
        assert_eq!(outbox.depth().messages, 3);
        assert_eq!(taken(&outbox), ["b 1", "none", "a 2"]);
    }

    #[test]
    fn each_policy_does_what_it_says_in_a_full_outbox() {
        use SlowReaderPolicy::{Conflate, Disconnect, DropNewest, DropOldest};
        let cases: [(SlowReaderPolicy, Result<(), DropReason>, &[&str]); 4] = [
            (Disconnect, Err(DropReason::QueueFull), &["one", "two"]),
            (DropNewest, Err(DropReason::QueueFull), &["one", "two"]),
            (DropOldest, Ok(()), &["two", "three"]),
            (Conflate, Ok(()), &["three"]),
        ];
        for (policy, offered, left) in cases {
            let outbox = outbox(2, 1_000);
            for text in ["one", "two"] {
                assert_eq!(offer(&outbox, ticket(&push(text).with_slow_reader_policy(policy))), Ok(()));
            }
            assert_eq!(offer(&outbox, ticket(&push("three").with_slow_reader_policy(policy))), offered, "{policy:?}");
            assert_eq!(taken(&outbox), left, "{policy:?}");
            let again = offer(&outbox, message("four"));
            assert_eq!(again == Err(DropReason::Closed), policy == Disconnect, "only one policy closes");
        }
    }

    #[test]
    fn room_is_made_from_the_least_priority_and_never_from_a_higher_one_or_in_vain() {
        let outbox = outbox(3, 40);
        for (text, priority) in [("high", Priority::High), ("bulk 1", Priority::Bulk), ("bulk 2", Priority::Bulk)] {
            assert_eq!(offer(&outbox, ticket(&push(text).with_priority(priority))), Ok(()));
        }
        let oldest = |text: &str, priority| {
            let push = push(text).with_priority(priority).with_slow_reader_policy(SlowReaderPolicy::DropOldest);
            offer(&outbox, ticket(&push))
        };
        assert_eq!(oldest("normal", Priority::Normal), Ok(()));
        assert_eq!(outbox.depth().messages, 3);
        let too_large = "x".repeat(36);
        assert_eq!(oldest(&too_large, Priority::Normal), Err(DropReason::QueueFull), "the high one would have to go");
        let too_large = push(&too_large).with_collapse_key("key").expect("valid");
        let keyed = push("keyed").with_collapse_key("key").expect("valid").with_priority(Priority::Bulk);
        let keyed = keyed.with_slow_reader_policy(SlowReaderPolicy::DropOldest);
        assert_eq!(offer(&outbox, ticket(&keyed)), Ok(()), "in place of the other bulk message");
        let refused = too_large.with_slow_reader_policy(SlowReaderPolicy::DropNewest);
        assert_eq!(offer(&outbox, ticket(&refused)), Err(DropReason::QueueFull));
        assert_eq!(taken(&outbox), ["high", "normal", "keyed"], "a refused message costs no other");
    }
}

//! The journal in memory against a naive model of the same, in random lives.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use proptest::collection::vec;
use proptest::prelude::*;

use super::{Journal, JournalBounds, Kept, MemoryJournal, SessionKey, Stored};
use crate::delivery::Delivery;
use crate::message::{ConnectionId, Event, MessageId, Names, Priority, Push, SlowReaderPolicy, UserId};
use crate::outcome::{DropReason, Progress};

/// About what a message of one byte takes. Others take up to a few times that.
const MESSAGE_BYTES: usize = 310;

const BOUNDS: JournalBounds = JournalBounds {
    messages_per_user_max: 5,
    bytes_per_user_max: 6 * MESSAGE_BYTES,
    bytes_max: 15 * MESSAGE_BYTES,
    age: Duration::from_secs(100),
};

/// What the time to live of a message is, where it has one.
const TTL: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
enum Step {
    Append { user: usize, session: usize, lengths: Vec<usize>, is_sent: bool },
    Acknowledge { user: usize, session: usize, back: u64 },
    Take { user: usize, session: usize },
    Hold { user: usize, event: usize, length: usize },
    Withdraw { user: usize },
    Release { user: usize, event: usize },
    Sweep { at_secs: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let (user, session, event, length) = (0..3_usize, 0..2_usize, 0..2_usize, 1..3 * MESSAGE_BYTES);
    prop_oneof![
        6 => (user.clone(), session.clone(), vec(length.clone(), 1..4), any::<bool>())
            .prop_map(|(user, session, lengths, is_sent)| Step::Append { user, session, lengths, is_sent }),
        3 => (user.clone(), session.clone(), 0..4_u64)
            .prop_map(|(user, session, back)| Step::Acknowledge { user, session, back }),
        1 => (user.clone(), session).prop_map(|(user, session)| Step::Take { user, session }),
        4 => (user.clone(), event.clone(), length).prop_map(|(user, event, length)| Step::Hold { user, event, length }),
        1 => user.clone().prop_map(|user| Step::Withdraw { user }),
        2 => (user, event).prop_map(|(user, event)| Step::Release { user, event }),
        1 => prop_oneof![Just(0_u64), Just(11), Just(101)].prop_map(|at_secs| Step::Sweep { at_secs }),
    ]
}

/// A message as the naive model has it: its id, its number, its event, its bytes, whether it was sent and expires.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    id: MessageId,
    seq: u64,
    event: usize,
    bytes: usize,
    is_sent: bool,
    expires: bool,
}

#[derive(Default)]
struct Naive {
    /// Each user's sessions, and under `None` what is held for the user.
    shelves: BTreeMap<(usize, Option<usize>), Vec<Entry>>,
}

impl Naive {
    fn has_room(&self, user: usize, bytes: usize) -> bool {
        let of_user: Vec<_> = self.shelves.iter().filter(|((u, _), _)| *u == user).flat_map(|(_, log)| log).collect();
        let in_all: usize = self.shelves.values().flatten().map(|entry| entry.bytes).sum();
        of_user.len() < BOUNDS.messages_per_user_max
            && of_user.iter().map(|entry| entry.bytes).sum::<usize>() + bytes <= BOUNDS.bytes_per_user_max
            && in_all + bytes <= BOUNDS.bytes_max
    }

    fn shelf(&mut self, user: usize, session: Option<usize>) -> &mut Vec<Entry> {
        self.shelves.entry((user, session)).or_default()
    }
}

struct World {
    names: Names,
    journal: MemoryJournal,
    naive: Naive,
    users: Vec<UserId>,
    events: Vec<Event>,
    sessions: Vec<Vec<SessionKey>>,
    next_seq: BTreeMap<(usize, usize), u64>,
    start: Instant,
}

impl World {
    fn new() -> Self {
        let names = Names::new();
        let users: Vec<_> = ["ann", "bob", "eve"].map(|user| UserId::new(user).expect("valid")).into();
        let key = |user: &UserId| SessionKey { user_id: user.clone(), epoch: names.connection_id() };
        let sessions = users.iter().map(|user| (0..2).map(|_| key(user)).collect()).collect();
        let events = ["mail", "chat"].map(|event| Event::new(event).expect("valid")).into();
        let (journal, start) = (MemoryJournal::new(BOUNDS), Instant::now());
        Self { names, journal, naive: Naive::default(), users, events, sessions, next_seq: BTreeMap::new(), start }
    }

    fn message(&self, event: usize, length: usize, seq: u64, expires: bool) -> (Kept, Entry) {
        let push = Push::new("ann", self.events[event].as_str(), "x".repeat(length)).expect("valid");
        let push = if expires { push.with_ttl(TTL) } else { push };
        let delivery = Delivery::new(self.names.message_id(), &push, SlowReaderPolicy::default(), self.start);
        let kept = Kept::new(Arc::new(delivery).ticket(0), seq);
        let (id, bytes) = (kept.message_id(), kept.bytes());
        (kept, Entry { id, seq, event, bytes, is_sent: false, expires })
    }

    fn walk(&mut self, step: &Step) {
        match step {
            Step::Append { user, session, lengths, is_sent } => self.append(*user, *session, lengths, *is_sent),
            Step::Acknowledge { user, session, back } => {
                let seq = self.next_seq.get(&(*user, *session)).copied().unwrap_or_default().saturating_sub(*back);
                let acknowledged = self.journal.acknowledge(&self.sessions[*user][*session], seq);
                let log = self.naive.shelf(*user, Some(*session));
                let expected: Vec<Entry> = log.extract_if(.., |entry| entry.seq <= seq).collect();
                assert_same(&acknowledged, &expected);
            }
            Step::Take { user, session } => {
                let taken = self.journal.take(&self.sessions[*user][*session]).now_or_never().expect("at once");
                assert_same(&taken, &std::mem::take(self.naive.shelf(*user, Some(*session))));
            }
            Step::Hold { user, event, length } => {
                let (kept, entry) = self.message(*event, *length, 0, true);
                let has_room = self.naive.has_room(*user, entry.bytes);
                assert_eq!(self.journal.hold(&self.users[*user], kept).is_ok(), has_room);
                if has_room {
                    self.naive.shelf(*user, None).push(entry);
                }
            }
            Step::Withdraw { user } => {
                let (stranger, _) = self.message(0, 1, 0, false);
                assert!(self.journal.withdraw(&self.users[*user], stranger.message_id()).is_none());
                if let Some(latest) = self.naive.shelf(*user, None).pop() {
                    let withdrawn = self.journal.withdraw(&self.users[*user], latest.id).expect("it is held");
                    assert_same(&[withdrawn], &[latest]);
                }
            }
            Step::Release { user, event } => {
                let released =
                    self.journal.release(&self.users[*user], &self.events[*event]).now_or_never().expect("at once");
                let held = self.naive.shelf(*user, None);
                let expected: Vec<Entry> = held.extract_if(.., |entry| entry.event == *event).collect();
                assert_same(&released, &expected);
            }
            Step::Sweep { at_secs } => self.sweep(*at_secs),
        }
    }

    fn append(&mut self, user: usize, session: usize, lengths: &[usize], is_sent: bool) {
        let (mut messages, mut refused, mut lost) = (Vec::new(), Vec::new(), 0);
        for length in lengths {
            let seq = self.next_seq.entry((user, session)).or_default();
            *seq += 1;
            let seq = *seq;
            let (mut kept, mut entry) = self.message(0, *length, seq, false);
            if is_sent {
                kept.sent(Instant::now());
                entry.is_sent = true;
            }
            messages.push(kept);
            let before = self.naive.shelf(user, Some(session)).clone();
            while !self.naive.has_room(user, entry.bytes) && !self.naive.shelf(user, Some(session)).is_empty() {
                self.naive.shelf(user, Some(session)).remove(0);
            }
            if self.naive.has_room(user, entry.bytes) {
                let gone = before.len() - self.naive.shelf(user, Some(session)).len();
                lost += before[..gone].iter().filter(|oldest| !oldest.is_sent).count();
                self.naive.shelf(user, Some(session)).push(entry);
            } else {
                *self.naive.shelf(user, Some(session)) = before;
                refused.push(entry);
            }
        }
        let appended = self.journal.append(&self.sessions[user][session], &mut messages.into_iter());
        assert_same(&appended.refused, &refused);
        assert_eq!(appended.lost, lost);
    }

    fn sweep(&mut self, at_secs: u64) {
        // A little later than the messages were made, so that each is either over or not.
        let now = self.start + Duration::from_secs(at_secs) + Duration::from_millis(500);
        let is_old = at_secs >= BOUNDS.age.as_secs();
        let is_over = |entry: &Entry| is_old || (entry.expires && at_secs >= TTL.as_secs());
        let mut lost = 0;
        for log in self.naive.shelves.values_mut() {
            lost += log.extract_if(.., |entry| is_over(entry)).filter(|entry| !entry.is_sent).count();
        }
        assert_eq!(self.journal.sweep(now), lost);
    }

    fn check(&self) {
        let usage = self.journal.usage();
        let kept: Vec<_> = self.naive.shelves.values().flatten().collect();
        assert_eq!((usage.messages, usage.bytes), (kept.len(), kept.iter().map(|entry| entry.bytes).sum()));
        assert!(usage.bytes <= BOUNDS.bytes_max);
        for (number, user) in self.users.iter().enumerate() {
            let held = self.naive.shelves.get(&(number, None)).is_some_and(|held| !held.is_empty());
            assert_eq!(self.journal.holds(user), held);
        }
    }
}

#[track_caller]
fn assert_same(kept: &[Kept], expected: &[Entry]) {
    let kept: Vec<_> = kept.iter().map(|kept| (kept.seq(), kept.message_id(), kept.is_sent())).collect();
    let expected: Vec<_> = expected.iter().map(|entry| (entry.seq, entry.id, entry.is_sent)).collect();
    assert_eq!(kept, expected);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_steps_leave_no_difference_to_a_naive_journal(steps in vec(step(), 1..120)) {
        let mut world = World::new();
        for step in &steps {
            world.walk(step);
            world.check();
        }
    }
}

#[test]
fn a_journal_that_lets_go_of_a_message_that_waits_tells_whoever_waits_for_it() {
    let names = Names::new();
    let journal = MemoryJournal::new(JournalBounds { messages_per_user_max: 1, ..BOUNDS });
    let id: ConnectionId = names.connection_id();
    let key = SessionKey { user_id: UserId::new("ann").expect("valid"), epoch: id };
    let push = Push::new("ann", "mail", "m").expect("valid");
    let delivery = Delivery::new(names.message_id(), &push, SlowReaderPolicy::default(), Instant::now());
    let delivery = Arc::new(delivery.followed([id, id].into_iter()));
    for (place, seq) in [(0, 1), (1, 2)] {
        let ticket = delivery.ticket(place);
        ticket.held();
        journal.append(&key, &mut std::iter::once(Kept::new(ticket, seq)));
    }
    let progress: Vec<_> =
        delivery.receipt().expect("followed").outcomes().iter().map(|outcome| outcome.progress).collect();
    assert_eq!(progress, [Progress::Lost(DropReason::QueueFull), Progress::Held]);
}

#[test]
fn a_message_is_the_same_when_it_is_restored_from_what_was_stored() {
    let payload = bytes::Bytes::from_static(&[0, 255]);
    for expires in [true, false] {
        let push = Push::new("ann", "mail", payload.clone()).expect("valid").with_priority(Priority::High);
        let mut push = push.with_collapse_key("key").expect("valid");
        if expires {
            push = push.with_ttl(TTL);
        }
        let delivery = Delivery::new(Names::new().message_id(), &push, SlowReaderPolicy::default(), Instant::now());
        let mut kept = Kept::new(Arc::new(delivery).ticket(0), 7);
        kept.sent(Instant::now());
        let stored = kept.stored();
        let again = Kept::restored(stored.clone()).expect("valid").stored();
        let off =
            |one: SystemTime, other: SystemTime| one.duration_since(other).unwrap_or_else(|error| error.duration());
        assert!(off(stored.kept_at, again.kept_at) < Duration::from_secs(1));
        assert_eq!(stored.expires_at.is_some(), expires);
        assert!(stored.expires_at.zip(again.expires_at).is_none_or(|(one, other)| off(one, other) < TTL / 10));
        assert_eq!((stored.payload.as_bytes(), stored.seq, stored.is_sent), (&payload[..], 7, true));
        assert_eq!(Stored { kept_at: stored.kept_at, expires_at: stored.expires_at, ..again }, stored);
    }
}

//! The rooms where threads meet, in thousands of orders in which they may: `cargo test --features shuttle --lib models`.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use shuttle::future::block_on;
use shuttle::thread;

use crate::binder::{BindLimits, Binder, Bindings};
use crate::delivery::{Delivery, Ticket};
use crate::journal::{Journal, JournalBounds, Kept, MemoryJournal, SessionKey};
use crate::message::{ConnectionId, MessageId, Names, Push, SlowReaderPolicy, UserId};
use crate::metrics::Metrics;
use crate::outbox::{Capacity, Depth, Numbered, Outbox, Stop, Taken};
use crate::outcome::{Level, Outcome, Progress};
use crate::sessions::{Limits, Session, Sessions};

const ORDERS: usize = 3_000;

/// Tries a scenario in many orders. A failure prints what replays it.
fn in_many_orders(scenario: impl Fn() + Send + Sync + 'static) {
    shuttle::check_random(scenario, ORDERS);
}

fn capacity(messages_max: usize) -> Capacity {
    Capacity { messages_max, bytes_max: 1 << 20 }
}

fn push(number: usize) -> Push {
    Push::new("ann", "mail", format!("{number}")).expect("valid")
}

fn delivery(names: &Names, push: &Push) -> Delivery {
    let policy = push.slow_reader_policy().unwrap_or(SlowReaderPolicy::DropNewest);
    Delivery::new(names.message_id(), push, policy, Instant::now())
}

fn journal() -> Arc<MemoryJournal> {
    let age = Duration::from_secs(3600);
    Arc::new(MemoryJournal::new(JournalBounds {
        messages_per_user_max: 3,
        bytes_per_user_max: 1 << 20,
        bytes_max: 1 << 20,
        age,
    }))
}

/// Sleeps until the outbox has something for the task, as a connection does.
fn next(outbox: &Outbox, done: &mut Depth) -> (VecDeque<Ticket>, Option<Stop>) {
    block_on(poll_fn(|cx| {
        let mut batch = VecDeque::new();
        let stop = outbox.visit(cx, std::mem::take(done), &mut batch, 2);
        if batch.is_empty() && stop.is_none() { Poll::Pending } else { Poll::Ready((batch, stop)) }
    }))
}

#[test]
fn every_message_offered_is_written_or_refused_or_lost_and_whoever_waits_is_told() {
    in_many_orders(|| {
        let names = Arc::new(Names::new());
        let outbox = Arc::new(Outbox::new(names.connection_id(), capacity(2)));
        let pushers: Vec<_> = (0..2)
            .map(|pusher| {
                let (outbox, names) = (outbox.clone(), names.clone());
                thread::spawn(move || {
                    let mut receipts = Vec::new();
                    for number in 0..2 {
                        let push = push(pusher * 10 + number).with_slow_reader_policy(SlowReaderPolicy::DropOldest);
                        let delivery = delivery(&names, &push).followed(std::iter::once(outbox.id()));
                        let delivery = Arc::new(delivery);
                        outbox.offer(delivery.ticket(0));
                        receipts.push(delivery.receipt().expect("followed"));
                    }
                    // Ends in every order, or shuttle finds a deadlock: whatever became of them is told.
                    for receipt in &receipts {
                        block_on(receipt.settled(Level::Written));
                    }
                    receipts
                })
            })
            .collect();
        let stopper = {
            let outbox = outbox.clone();
            thread::spawn(move || {
                outbox.stop(Stop::Dropped);
            })
        };
        let (mut written, mut done) = (0, Depth::default());
        loop {
            let (batch, stop) = next(&outbox, &mut done);
            for ticket in batch {
                done += Depth::of(&ticket);
                ticket.written(Instant::now());
                written += 1;
            }
            if stop.is_some() {
                break;
            }
        }
        outbox.close(done);
        stopper.join().expect("no panic");
        let mut counted = 0;
        for pusher in pushers {
            for receipt in pusher.join().expect("no panic") {
                let outcome = &receipt.outcomes()[0];
                assert!(!matches!(outcome.progress, Progress::Accepted | Progress::Held), "{outcome:?}");
                counted += usize::from(matches!(outcome.progress, Progress::Written { .. }));
            }
        }
        assert_eq!(counted, written);
        assert_eq!(outbox.depth(), Depth::default());
    });
}

#[test]
fn written_and_acknowledged_are_told_once_and_in_that_order_whoever_comes_between() {
    in_many_orders(|| {
        let names = Names::new();
        let ids: Vec<ConnectionId> = (0..3).map(|_| names.connection_id()).collect();
        let delivery = Arc::new(delivery(&names, &push(1)).followed(ids.into_iter()));
        let receipt = delivery.receipt().expect("followed");
        let waiters: Vec<_> = [Level::Written, Level::Acked]
            .map(|level| {
                let receipt = receipt.clone();
                thread::spawn(move || {
                    block_on(receipt.settled(level));
                    let outcome = Outcome::count(Names::new().message_id(), level, receipt.outcomes());
                    assert_eq!(outcome.matched, outcome.accepted + outcome.dropped());
                    assert_eq!(outcome.written + outcome.lost(), 3, "all are settled at {level:?}");
                    if level == Level::Acked {
                        assert_eq!((outcome.acked, outcome.cannot_ack, outcome.lost()), (1, 1, 1));
                    }
                })
            })
            .into_iter()
            .collect();
        let [acks, legacy, lost] = [0, 1, 2].map(|place| delivery.ticket(place));
        let steps = [
            thread::spawn(move || {
                acks.sent(Instant::now());
                acks.sent(Instant::now());
                acks.acked(Instant::now());
            }),
            thread::spawn(move || {
                legacy.written(Instant::now());
            }),
            thread::spawn(move || drop(lost)),
        ];
        for thread in steps.into_iter().chain(waiters) {
            thread.join().expect("no panic");
        }
    });
}

/// What a session's client has been told, over all of its connections.
#[derive(Default)]
struct Told {
    numbers: BTreeMap<u64, Option<MessageId>>,
    last: u64,
}

impl Told {
    /// Takes what the connection has to send, as far as it goes, and keeps it as sent.
    fn take(&mut self, outbox: &Outbox, journal: &MemoryJournal, key: &SessionKey) {
        let waker = std::task::Waker::noop();
        let (mut batch, mut done) = (VecDeque::new(), Depth::default());
        loop {
            outbox.visit_numbered(&std::task::Context::from_waker(waker), std::mem::take(&mut done), &mut batch, 2);
            if batch.is_empty() {
                return;
            }
            for numbered in batch.drain(..) {
                match numbered {
                    Numbered::Message(mut message) => {
                        assert_eq!(message.seq(), self.last + 1, "no silent gap");
                        self.last = message.seq();
                        let told = self.numbers.insert(message.seq(), Some(message.message_id()));
                        assert!(told.is_none_or(|told| told == Some(message.message_id())), "the same number twice");
                        if !message.is_sent() {
                            done += Depth::of(message.ticket());
                        }
                        message.sent(Instant::now());
                        journal.append(key, &mut std::iter::once(message));
                    }
                    Numbered::Gap { from, to } => {
                        assert_eq!(from, self.last + 1);
                        self.last = to;
                        self.numbers.extend((from..=to).map(|number| (number, None)));
                    }
                }
            }
        }
    }
}

#[test]
fn a_session_that_leaves_and_comes_back_among_pushes_is_told_of_each_of_them() {
    in_many_orders(|| {
        let (names, journal) = (Arc::new(Names::new()), journal());
        let outbox = Arc::new(Outbox::new(names.connection_id(), capacity(2)));
        let user_id = UserId::new("ann").expect("valid");
        let key = SessionKey { user_id, epoch: outbox.id() };
        outbox.begin_session(key.clone(), journal.clone());
        let pushers: Vec<_> = (0..2)
            .map(|pusher| {
                let (outbox, names) = (outbox.clone(), names.clone());
                thread::spawn(move || {
                    let mut taken = Vec::new();
                    for number in 0..2 {
                        let ticket = Arc::new(delivery(&names, &push(pusher * 10 + number))).ticket(0);
                        let message_id = ticket.message_id();
                        if !matches!(outbox.offer(ticket).taken, Taken::Refused(_)) {
                            taken.push(message_id);
                        }
                    }
                    taken
                })
            })
            .collect();
        let mut told = Told::default();
        for _ in 0..2 {
            told.take(&outbox, &journal, &key);
            outbox.leave(Vec::new(), told.last).expect("nobody ends it");
            thread::yield_now();
            assert!(outbox.come_back());
            let kept = block_on(journal.take(&key));
            // The client has lost the last one that it was sent.
            told.last = told.last.saturating_sub(1);
            outbox.resume(told.last, kept).expect("it was told that much");
        }
        let taken: Vec<MessageId> = pushers.into_iter().flat_map(|pusher| pusher.join().expect("no panic")).collect();
        told.take(&outbox, &journal, &key);
        let delivered: Vec<MessageId> = told.numbers.values().flatten().copied().collect();
        let gaps = told.numbers.len() - delivered.len();
        assert_eq!(told.numbers.len(), 4, "each push has a number of its own");
        let missing = taken.iter().filter(|message_id| !delivered.contains(message_id)).count();
        assert_eq!(missing + (4 - taken.len()), gaps, "what is not delivered is in a gap, and the other way round");
    });
}

/// Ann's sessions, each of a connection that is bound to her mail.
struct Home {
    names: Names,
    sessions: Arc<Sessions>,
    binder: Arc<Binder>,
    user_id: UserId,
}

impl Home {
    fn new() -> Self {
        let limits = Limits { away_max: 4, away_per_user_max: 4, age: Duration::from_secs(3600) };
        let sessions = Arc::new(Sessions::new(limits, journal(), Arc::new(Metrics::new())));
        let user_id = UserId::new("ann").expect("valid");
        Self { names: Names::new(), sessions, binder: Arc::new(Binder::default()), user_id }
    }

    fn session(&self) -> (Arc<Outbox>, Session, Bindings) {
        let outbox = Arc::new(Outbox::new(self.names.connection_id(), capacity(2)));
        let session = self.sessions.begin(&outbox, &self.user_id).expect("random numbers");
        let limits = BindLimits { connections_per_user_max: 0, events_per_connection_max: 1 };
        let bindings = self.binder.bind(&outbox, self.user_id.clone(), push(0).event().clone(), limits);
        (outbox, session, bindings.expect("no limit"))
    }
}

#[test]
fn two_connections_that_claim_one_session_get_it_one_after_the_other() {
    in_many_orders(|| {
        let home = Home::new();
        let Home { sessions, binder, user_id, .. } = &home;
        let (outbox, session, bindings) = home.session();
        let token = session.token();
        let old = thread::spawn(move || {
            // The first connection notices after a while that it is to go.
            block_on(poll_fn(|cx| {
                let stop = outbox.visit_numbered(cx, Depth::default(), &mut VecDeque::new(), 2);
                if stop.is_some() { Poll::Ready(()) } else { Poll::Pending }
            }));
            assert!(session.leave(bindings, Vec::new(), 0));
        });
        let claims: Vec<_> = (0..2)
            .map(|_| {
                let (sessions, user_id) = (sessions.clone(), user_id.clone());
                thread::spawn(move || {
                    let claimed = block_on(sessions.claim(token, &user_id)).expect("it is known all the time");
                    let goes_on = claimed.go_on(0).expect("no limit").expect("from the beginning");
                    assert!(goes_on.session.leave(goes_on.bindings, Vec::new(), 0));
                })
            })
            .collect();
        old.join().expect("no panic");
        for claim in claims {
            claim.join().expect("no panic");
        }
        assert_eq!((sessions.away(), binder.len()), (1, 1));
    });
}

#[test]
fn a_session_that_leaves_while_its_user_is_dropped_is_over() {
    in_many_orders(|| {
        let home = Home::new();
        let Home { sessions, binder, user_id, .. } = &home;
        let (outbox, session, bindings) = home.session();
        let token = session.token();
        let leaves = thread::spawn(move || {
            session.leave(bindings, Vec::new(), 0);
        });
        let claims = thread::spawn({
            let (sessions, user_id) = (sessions.clone(), user_id.clone());
            move || {
                let claimed = block_on(sessions.claim(token, &user_id));
                claimed.and_then(|claimed| claimed.go_on(0).expect("no limit"))
            }
        });
        for outbox in binder.evict(user_id, None) {
            outbox.stop(Stop::Dropped);
        }
        sessions.end_dropped(user_id);
        leaves.join().expect("no panic");
        if let Some(goes_on) = claims.join().expect("no panic") {
            // Its connection finds out at its first look.
            assert!(!goes_on.session.leave(goes_on.bindings, Vec::new(), 0));
        }
        assert_eq!((sessions.away(), binder.len(), binder.users()), (0, 0, 0));
        assert_eq!(outbox.told_to_stop(), Some(Stop::Dropped));
    });
}

#[test]
fn what_two_sessions_had_that_end_at_one_time_is_passed_on_by_one_of_them() {
    in_many_orders(|| {
        let home = Home::new();
        let Home { names, sessions, user_id, .. } = &home;
        let away: Vec<_> = (0..2)
            .map(|_| {
                let (outbox, session, bindings) = home.session();
                let token = session.token();
                assert!(session.leave(bindings, Vec::new(), 0));
                (outbox, token)
            })
            .collect();
        let lasting = push(1).with_ttl(Duration::from_secs(3600));
        let delivery = delivery(names, &lasting).followed(away.iter().map(|(outbox, _)| outbox.id()));
        let delivery = Arc::new(delivery);
        for (place, (outbox, _)) in away.iter().enumerate() {
            assert_eq!(outbox.offer(delivery.ticket(place)).taken, Taken::Held);
        }
        delivery.leave_behind();
        drop(delivery);
        let ends: Vec<_> = away
            .into_iter()
            .map(|(_, token)| {
                let (sessions, user_id) = (sessions.clone(), user_id.clone());
                thread::spawn(move || block_on(sessions.claim(token, &user_id)).expect("it is away").end())
            })
            .collect();
        for thread in ends {
            thread.join().expect("no panic");
        }
        assert_eq!(sessions.journal().usage().messages, 1, "held for the user");
    });
}

#[test]
fn a_message_held_while_its_user_binds_is_taken_by_one_of_the_two() {
    in_many_orders(|| {
        let (names, journal) = (Names::new(), journal());
        let user_id = UserId::new("ann").expect("valid");
        let push = push(1).with_ttl(Duration::from_secs(3600));
        let event = push.event().clone();
        let message = Kept::new(Arc::new(delivery(&names, &push)).ticket(0), 0);
        let message_id = message.message_id();
        let releases: Vec<_> = (0..2)
            .map(|_| {
                let (journal, user_id, event) = (journal.clone(), user_id.clone(), event.clone());
                thread::spawn(move || block_on(journal.release(&user_id, &event)).len())
            })
            .collect();
        journal.hold(&user_id, message).expect("room");
        let withdrawn = usize::from(journal.withdraw(&user_id, message_id).is_some());
        let released: usize = releases.into_iter().map(|release| release.join().expect("no panic")).sum();
        assert_eq!(withdrawn + released, 1);
        assert!(!journal.holds(&user_id));
    });
}

/// Pushes as the gateway does, to those who are bound or else to the journal.
fn push_or_hold(home: &Home, push: &Push) {
    let receivers = || home.binder.receivers(&home.user_id, push.event());
    let delivery = Arc::new(delivery(&home.names, push));
    let mut bound = receivers();
    if bound.is_empty() {
        let journal = home.sessions.journal();
        let message = Kept::new(delivery.ticket(0), 0);
        let message_id = message.message_id();
        journal.hold(&home.user_id, message).expect("room");
        bound = receivers();
        if bound.is_empty() || journal.withdraw(&home.user_id, message_id).is_none() {
            return;
        }
    }
    for outbox in bound {
        outbox.offer(delivery.ticket(0));
    }
}

#[test]
fn what_was_held_comes_before_what_was_pushed_since_the_bind() {
    in_many_orders(|| {
        let home = Arc::new(Home::new());
        let Home { names, sessions, binder, user_id, .. } = &*home;
        let pushes: Vec<Push> = (1..=3).map(|number| push(number).with_ttl(Duration::from_secs(3600))).collect();
        let event = pushes[0].event().clone();
        let pusher = thread::spawn({
            let home = home.clone();
            move || pushes.iter().for_each(|push| push_or_hold(&home, push))
        });
        // As a connection binds: what is held, the binding, and what was held meanwhile; nothing is taken before that.
        let outbox = Arc::new(Outbox::new(names.connection_id(), capacity(4)));
        let look = || {
            for message in block_on(sessions.journal().release(user_id, &event)) {
                outbox.offer(message.into_ticket().late());
            }
        };
        let held = block_on(sessions.journal().release(user_id, &event));
        let limits = BindLimits { connections_per_user_max: 0, events_per_connection_max: 1 };
        let _bindings = binder.bind(&outbox, user_id.clone(), event.clone(), limits).expect("no limit");
        for message in held {
            outbox.offer(message.into_ticket().late());
        }
        look();
        let (mut batch, mut done) = (VecDeque::new(), Depth::default());
        let mut take = || {
            outbox.visit(&std::task::Context::from_waker(std::task::Waker::noop()), done, &mut batch, usize::MAX);
            done = Depth::default();
        };
        take();
        pusher.join().expect("no panic");
        take();
        let order: Vec<&[u8]> = batch.iter().map(|ticket| &ticket.bytes()[2..]).collect();
        assert_eq!(order, [b"1", b"2", b"3"]);
        assert!(!sessions.journal().holds(user_id));
    });
}

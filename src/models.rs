//! Models of the places where threads meet, run under shuttle in thousands of schedules:
//! `cargo test --features shuttle --lib models`.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use shuttle::future::block_on;
use shuttle::thread;

use crate::binder::{BindLimits, Binder, Bindings};
use crate::config::UserConnectionsPolicy;
use crate::delivery::{Delivery, Ticket};
use crate::dialect::Content;
use crate::handle::{Handle, Stop};
use crate::journal::Recorder;
use crate::mailbox::{
    Bounds, Capacity, Claim, Departure, Depth, Flush, Keep, Line, Mailbox, Outboxes, STEP_BYTES, Taken, Visit, Wants,
    WriteNow,
};
use crate::message::{ConnectionId, Names, Push, SlowReaderPolicy, UserId};
use crate::metrics::Metrics;
use crate::outcome::{Level, Outcome, Progress};
use crate::sessions::{Attached, Limits, Sessions};
use crate::sync::{AtomicUsize, Mutex, Ordering};

const SCHEDULES: usize = 3_000;
const AGE: Duration = Duration::from_secs(3600);

/// Runs a scenario in many schedules. A failure prints what replays it.
fn in_many_schedules(scenario: impl Fn() + Send + Sync + 'static) {
    shuttle::check_random(scenario, SCHEDULES);
}

fn capacity(messages_max: usize) -> Arc<Outboxes> {
    Outboxes::new(Capacity { messages_max, bytes_max: 1 << 20 })
}

fn push(number: usize) -> Push {
    Push::new("ann", "mail", format!("{number}")).expect("valid")
}

fn lasting(number: usize) -> Push {
    push(number).with_ttl(AGE)
}

fn delivery(names: &Names, push: &Push) -> Delivery {
    let policy = push.slow_reader_policy().unwrap_or(SlowReaderPolicy::DropNewest);
    Delivery::new(names.message_id(), push, policy, Instant::now())
}

fn ticket(names: &Names, push: &Push) -> Ticket {
    Arc::new(delivery(names, push)).ticket(0)
}

fn handle(names: &Names) -> Arc<Handle> {
    Arc::new(Handle::new(names.connection_id(), (Ipv4Addr::LOCALHOST, 0).into()))
}

fn keep(messages_per_user_max: usize, bytes_max: usize) -> Arc<Keep> {
    let metrics = Arc::new(Metrics::new());
    let bounds = Bounds { messages_per_user_max, bytes_per_user_max: 1 << 20, bytes_max, age: AGE };
    Keep::new(bounds, Recorder::new(None, metrics.clone()), metrics)
}

/// A socket. The first write past the task is a short one, so that the task finds a frame that is written in part.
#[derive(Debug)]
struct Wire {
    bytes: Mutex<Vec<u8>>,
    short_writes: AtomicUsize,
}

impl Wire {
    fn new() -> Arc<Self> {
        Arc::new(Self { bytes: Mutex::default(), short_writes: AtomicUsize::new(1) })
    }

    fn write(&self, bytes: &[u8]) {
        self.bytes.lock().expect("no panic").extend(bytes);
    }

    /// The texts of the frames that are written whole.
    fn texts(&self) -> Vec<String> {
        let bytes = self.bytes.lock().expect("no panic");
        let (mut rest, mut texts) = (&bytes[..], Vec::new());
        while let [0x81, length, body @ ..] = rest
            && *length < 126
            && body.len() >= usize::from(*length)
        {
            let (text, next) = body.split_at(usize::from(*length));
            texts.push(String::from_utf8(text.to_vec()).expect("a text frame"));
            rest = next;
        }
        texts
    }
}

impl WriteNow for Wire {
    fn write_now(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
        let is_short = self.short_writes.swap(0, Ordering::SeqCst) > 0;
        let count = if is_short { bytes.len().min(2) } else { bytes.len() };
        self.write(&bytes[..count]);
        Ok(count)
    }
}

/// The task of a connection, as far as its mailbox is concerned.
struct Task {
    mailbox: Arc<Mailbox>,
    wire: Arc<Wire>,
    line: Line,
    done: Depth,
}

impl Task {
    fn new(mailbox: &Arc<Mailbox>, wire: &Arc<Wire>) -> Self {
        Self { mailbox: mailbox.clone(), wire: wire.clone(), line: Line::default(), done: Depth::default() }
    }

    fn visit(&mut self, cx: &Context<'_>) -> Visit {
        let wants = Wants::Messages { is_busy: false };
        self.mailbox.visit(cx, &mut self.line, std::mem::take(&mut self.done), wants)
    }

    fn write(&mut self) {
        let bytes: Vec<u8> = self.line.slices(usize::MAX).iter().flat_map(|slice| slice.to_vec()).collect();
        let bytes = &bytes[self.line.offset()..];
        self.wire.write(bytes);
        let mut last = 0;
        self.line.wrote(bytes.len(), |content| match content {
            Content::Message(ticket) => {
                self.done += Depth::of(&ticket);
                ticket.written(Instant::now());
            }
            Content::Numbered { seq, .. } | Content::Gap { to: seq } => last = seq,
            Content::Own | Content::Taken => {}
        });
        if last > 0 {
            self.mailbox.wrote(last, Instant::now(), |_| {});
        }
    }

    /// Sleeps until there is something to do, and does it. Returns whether the connection is to stop.
    fn turn(&mut self) -> Option<Stop> {
        let stop = block_on(poll_fn(|cx| {
            let visit = self.visit(cx);
            if self.line.is_empty() && visit.stop.is_none() { Poll::Pending } else { Poll::Ready(visit.stop) }
        }));
        self.write();
        stop
    }

    /// Writes what there is to write now.
    fn catch_up(&mut self) {
        loop {
            self.visit(&Context::from_waker(Waker::noop()));
            if self.line.is_empty() {
                return;
            }
            self.write();
        }
    }
}

/// Offers as the gateway does, which writes for a sleeping task.
fn offer(mailbox: &Mailbox, ticket: Ticket) -> Taken {
    let offered = mailbox.offer(ticket);
    if offered.flush != Flush::None {
        mailbox.flush(|_| {});
    }
    offered.taken
}

/// Whoever has the most makes room while others push to it and its task writes: whatever goes is told, and what is counted
/// for all receivers is what each has.
#[test]
fn a_receiver_that_makes_room_for_others_tells_of_what_it_gave_up_and_leaves_no_count_behind() {
    in_many_schedules(|| {
        let names = Arc::new(Names::new());
        let (handle, wire, outboxes) = (handle(&names), Wire::new(), capacity(4));
        let mailbox = Arc::new(Mailbox::new(handle.clone(), outboxes.clone()));
        mailbox.share(Some(wire.clone()));
        let pusher = {
            let (mailbox, names) = (mailbox.clone(), names.clone());
            thread::spawn(move || {
                let policies =
                    [SlowReaderPolicy::DropOldest, SlowReaderPolicy::DropNewest, SlowReaderPolicy::Disconnect];
                let receipts = policies.map(|policy| {
                    let text = "m".repeat(STEP_BYTES);
                    let push = Push::new("ann", "mail", text).expect("valid").with_slow_reader_policy(policy);
                    let delivery = Arc::new(delivery(&names, &push).followed(std::iter::once(mailbox.id())));
                    offer(&mailbox, delivery.ticket(0));
                    delivery.receipt().expect("followed")
                });
                for receipt in &receipts {
                    block_on(receipt.settled(Level::Written));
                }
            })
        };
        let giver = {
            let (mailbox, outboxes) = (mailbox.clone(), outboxes.clone());
            thread::spawn(move || {
                for _ in 0..2 {
                    assert!(outboxes.bytes() <= 3 * STEP_BYTES);
                    mailbox.give_way();
                }
                handle.stop(Stop::Dropped);
            })
        };
        let mut task = Task::new(&mailbox, &wire);
        while task.turn().is_none() {}
        mailbox.close(task.done);
        giver.join().expect("no panic");
        pusher.join().expect("no panic");
        assert_eq!((mailbox.depth(), outboxes.bytes()), (Depth::default(), 0));
    });
}

#[test]
fn every_message_offered_is_written_or_refused_or_lost_and_whoever_waits_is_told() {
    in_many_schedules(|| {
        let names = Arc::new(Names::new());
        let (handle, wire) = (handle(&names), Wire::new());
        let mailbox = Arc::new(Mailbox::new(handle.clone(), capacity(2)));
        mailbox.share(Some(wire.clone()));
        let pushers: Vec<_> = (0..2)
            .map(|pusher| {
                let (mailbox, names) = (mailbox.clone(), names.clone());
                thread::spawn(move || {
                    let mut receipts = Vec::new();
                    for number in 0..2 {
                        let push = push(pusher * 10 + number).with_slow_reader_policy(SlowReaderPolicy::DropOldest);
                        let delivery = Arc::new(delivery(&names, &push).followed(std::iter::once(mailbox.id())));
                        offer(&mailbox, delivery.ticket(0));
                        receipts.push(delivery.receipt().expect("followed"));
                    }
                    // Ends in every schedule, or shuttle finds a deadlock: whatever became of them is told.
                    for receipt in &receipts {
                        block_on(receipt.settled(Level::Written));
                    }
                    receipts
                })
            })
            .collect();
        let stopper = thread::spawn(move || handle.stop(Stop::Dropped));
        let mut task = Task::new(&mailbox, &wire);
        while task.turn().is_none() {}
        // Told to stop, it writes what it has in hand; the rest is lost.
        mailbox.close(task.done);
        assert!(stopper.join().expect("no panic"));
        let receipts = pushers.into_iter().flat_map(|pusher| pusher.join().expect("no panic"));
        let outcomes: Vec<_> = receipts.map(|receipt| receipt.outcomes().remove(0)).collect();
        let is_open = |outcome: &_| matches!(outcome, Progress::Accepted | Progress::Held);
        assert!(!outcomes.iter().any(|outcome| is_open(&outcome.progress)), "{outcomes:?}");
        let written = outcomes.iter().filter(|outcome| matches!(outcome.progress, Progress::Written { .. })).count();
        let texts = wire.texts();
        assert_eq!(texts.len(), written, "{texts:?} {outcomes:?}");
        assert_eq!(mailbox.depth(), Depth::default());
        for pair in [["0", "1"], ["10", "11"]] {
            let places = pair.map(|number| texts.iter().position(|text| text == number));
            assert!(places[1].is_none() || places[0] < places[1], "out of order: {texts:?}");
        }
    });
}

#[test]
fn a_message_that_finds_its_receiver_asleep_is_written_without_a_further_one() {
    in_many_schedules(|| {
        let names = Arc::new(Names::new());
        let (handle, wire) = (handle(&names), Wire::new());
        let mailbox = Arc::new(Mailbox::new(handle.clone(), capacity(4)));
        mailbox.share(Some(wire.clone()));
        let task = thread::spawn({
            let (mailbox, wire) = (mailbox.clone(), wire.clone());
            move || {
                let mut task = Task::new(&mailbox, &wire);
                while task.turn().is_none() {}
                mailbox.close(task.done);
            }
        });
        let pushers: Vec<_> = (0..2)
            .map(|number| {
                let (mailbox, names) = (mailbox.clone(), names.clone());
                thread::spawn(move || {
                    let delivery = Arc::new(delivery(&names, &push(number)).followed(std::iter::once(mailbox.id())));
                    offer(&mailbox, delivery.ticket(0));
                    // Nothing else wakes the task: a promise to flush that nobody keeps is a deadlock here.
                    block_on(delivery.receipt().expect("followed").settled(Level::Written));
                })
            })
            .collect();
        for pusher in pushers {
            pusher.join().expect("no panic");
        }
        assert_eq!(wire.texts().len(), 2);
        handle.stop(Stop::Dropped);
        task.join().expect("no panic");
    });
}

#[test]
fn written_and_acknowledged_are_told_once_and_in_that_order_whoever_comes_between() {
    in_many_schedules(|| {
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
        let [mut acks, legacy, lost] = [0, 1, 2].map(|place| delivery.ticket(place));
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

/// What a session's client was told, over all of its connections.
#[derive(Default)]
struct Told {
    /// The message of each number; `None` for one that is lost.
    numbers: BTreeMap<u64, Option<String>>,
    last: u64,
}

impl Told {
    fn read(&mut self, wire: &Wire) {
        for text in wire.texts() {
            let frame: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            if frame["type"] == "gap" {
                let (from, to) = (frame["from"].as_u64(), frame["to"].as_u64());
                assert_eq!(from, Some(self.last + 1), "{text}");
                self.last = to.expect("a number");
                self.numbers.extend((from.expect("a number")..=self.last).map(|number| (number, None)));
                continue;
            }
            assert_eq!(frame["seq"].as_u64(), Some(self.last + 1), "no silent gap: {text}");
            self.last += 1;
            let message = frame["message"].as_str().unwrap_or_else(|| panic!("{text}")).to_owned();
            let before = self.numbers.insert(self.last, Some(message.clone())).flatten();
            assert!(before.is_none_or(|before| before == message), "the same number for another message");
        }
    }
}

#[test]
fn a_session_that_leaves_and_comes_back_among_pushes_is_told_of_each_of_them() {
    in_many_schedules(|| {
        let (names, keep) = (Arc::new(Names::new()), keep(3, 1 << 20));
        let mut wire = Wire::new();
        let mailbox = Arc::new(Mailbox::new(handle(&names), capacity(2)));
        mailbox.begin_session(&keep, &UserId::new("ann").expect("valid"));
        mailbox.share(Some(wire.clone()));
        let pushers: Vec<_> = (0..2)
            .map(|pusher| {
                let (mailbox, names) = (mailbox.clone(), names.clone());
                thread::spawn(move || {
                    let mut taken = Vec::new();
                    for number in 0..2 {
                        let push = push(pusher * 10 + number);
                        if !matches!(offer(&mailbox, ticket(&names, &push)), Taken::Refused(_)) {
                            taken.push((pusher * 10 + number).to_string());
                        }
                    }
                    taken
                })
            })
            .collect();
        let mut told = Told::default();
        for _ in 0..2 {
            let mut task = Task::new(&mailbox, &wire);
            task.catch_up();
            assert!(matches!(mailbox.detach(&mut task.line), Departure::MayComeBack { .. }));
            assert!(mailbox.put_away(Instant::now()));
            told.read(&wire);
            thread::yield_now();
            assert_eq!(mailbox.claim(), Claim::Granted);
            // The client has lost the last one that it was sent.
            told.last = told.last.saturating_sub(1);
            wire = Wire::new();
            let attached = mailbox.attach(&handle(&names), Some(wire.clone()), told.last, |_| {});
            attached.expect("it was told that much").expect("nobody drops it");
        }
        let taken: Vec<String> = pushers.into_iter().flat_map(|pusher| pusher.join().expect("no panic")).collect();
        Task::new(&mailbox, &wire).catch_up();
        told.read(&wire);
        let delivered: Vec<_> = told.numbers.values().flatten().collect();
        let gaps = told.numbers.len() - delivered.len();
        assert_eq!(told.numbers.len(), 4, "each push has a number of its own");
        let missing = taken.iter().filter(|message| !delivered.contains(message)).count();
        assert_eq!(missing + (4 - taken.len()), gaps, "what is not delivered is in a gap, and the other way round");
    });
}

/// Ann's sessions, each of a connection that is bound to her mail.
struct Home {
    names: Arc<Names>,
    sessions: Arc<Sessions>,
    binder: Arc<Binder>,
    metrics: Arc<Metrics>,
    user_id: UserId,
}

const BINDS: BindLimits = BindLimits {
    connections_per_user_max: 0,
    connections_per_user_policy: UserConnectionsPolicy::RejectNew,
    events_per_connection_max: 1,
};

impl Home {
    fn new() -> Self {
        let outboxes = capacity(4);
        let limits = Limits { away_max: 4, away_per_user_max: 4, age: AGE, binds: BINDS, outboxes };
        let binder = Arc::new(Binder::default());
        let metrics = Arc::new(Metrics::new());
        let sessions = Arc::new(Sessions::new(limits, keep(3, 1 << 20), binder.clone(), metrics.clone()));
        let user_id = UserId::new("ann").expect("valid");
        Self { names: Arc::new(Names::new()), sessions, binder, metrics, user_id }
    }

    fn connection(&self) -> (Arc<Handle>, Arc<Mailbox>) {
        let handle = handle(&self.names);
        (handle.clone(), Arc::new(Mailbox::new(handle, capacity(4))))
    }

    fn bind(&self, mailbox: &Arc<Mailbox>) -> Bindings {
        self.binder.bind(mailbox, &self.user_id, push(0).event())
    }

    fn session(&self) -> (Arc<Handle>, Attached, Bindings) {
        let (handle, mailbox) = self.connection();
        let session = self.sessions.begin(&mailbox, &self.user_id).expect("random numbers");
        (handle, session, self.bind(&mailbox))
    }

    fn drop_user(&self) {
        for mailbox in self.binder.evict(&self.user_id, None).iter() {
            mailbox.drop_receiver();
        }
        self.sessions.end_dropped(&self.user_id);
    }
}

fn leave(session: Attached, bindings: Bindings) -> bool {
    session.leave(bindings, &mut Line::default())
}

#[test]
fn two_connections_that_claim_one_session_get_it_one_after_the_other() {
    in_many_schedules(|| {
        let home = Home::new();
        let (old, session, bindings) = home.session();
        let (token, mailbox) = (session.token(), session.mailbox().clone());
        let old = thread::spawn(move || {
            // The first connection notices after a while that it is to go.
            let mut task = Task::new(&mailbox, &Wire::new());
            assert_eq!(task.turn(), Some(Stop::Replaced));
            assert_eq!(old.stopped(), Some(Stop::Replaced));
            assert!(leave(session, bindings));
        });
        let claims: Vec<_> = (0..2)
            .map(|_| {
                let (sessions, user_id, names) = (home.sessions.clone(), home.user_id.clone(), home.names.clone());
                thread::spawn(move || {
                    let claimed = block_on(sessions.claim(token, &user_id)).expect("it is known all the time");
                    let returned = claimed.go_on(&handle(&names), None, 0).expect("no limit");
                    let returned = returned.expect("from the beginning");
                    assert!(leave(returned.session, returned.bindings));
                })
            })
            .collect();
        old.join().expect("no panic");
        for claim in claims {
            claim.join().expect("no panic");
        }
        assert_eq!((home.sessions.away(), home.binder.len()), (1, 1));
    });
}

#[test]
fn a_session_that_leaves_while_its_user_is_dropped_is_over() {
    in_many_schedules(|| {
        let home = Home::new();
        let (_, session, bindings) = home.session();
        let (token, mailbox) = (session.token(), session.mailbox().clone());
        let leaves = thread::spawn(move || {
            leave(session, bindings);
        });
        let claims = thread::spawn({
            let (sessions, user_id, names) = (home.sessions.clone(), home.user_id.clone(), home.names.clone());
            move || {
                let claimed = block_on(sessions.claim(token, &user_id));
                claimed.and_then(|claimed| claimed.go_on(&handle(&names), None, 0).expect("no limit"))
            }
        });
        home.drop_user();
        leaves.join().expect("no panic");
        if let Some(returned) = claims.join().expect("no panic") {
            // Its connection finds out at its first visit.
            assert!(!leave(returned.session, returned.bindings));
        }
        assert_eq!((home.sessions.away(), home.binder.len(), home.binder.users()), (0, 0, 0));
        assert!(!matches!(offer(&mailbox, ticket(&home.names, &push(1))), Taken::Held));
    });
}

#[test]
fn what_two_sessions_had_that_end_at_one_time_is_passed_on_by_one_of_them() {
    in_many_schedules(|| {
        let home = Home::new();
        let away: Vec<_> = (0..2)
            .map(|_| {
                let (_, session, bindings) = home.session();
                let (token, mailbox) = (session.token(), session.mailbox().clone());
                assert!(leave(session, bindings));
                (token, mailbox)
            })
            .collect();
        let ids = away.iter().map(|(_, mailbox)| mailbox.id());
        let delivery = Arc::new(delivery(&home.names, &lasting(1)).followed(ids));
        let ends: Vec<_> = away
            .iter()
            .enumerate()
            .map(|(place, (token, mailbox))| {
                assert_eq!(offer(mailbox, delivery.ticket(place)), Taken::Held);
                let (sessions, user_id, token) = (home.sessions.clone(), home.user_id.clone(), *token);
                thread::spawn(move || block_on(sessions.claim(token, &user_id)).expect("it is away").end())
            })
            .collect();
        // The push goes on meanwhile, and is the last holder in some schedules.
        let ended = delivery.was_offered(true);
        home.metrics.forgotten.inc_by(u64::from(ended.lost));
        if ended.passes_on {
            home.sessions.pass_on(&home.user_id, delivery.ticket(usize::MAX));
        }
        for thread in ends {
            thread.join().expect("no panic");
        }
        assert_eq!(home.sessions.keep().usage().messages, 1, "held for the user");
        assert_eq!(home.metrics.forgotten.get(), 1, "of two copies");
    });
}

#[test]
fn a_message_held_while_its_user_binds_is_taken_by_one_of_the_two() {
    in_many_schedules(|| {
        let (names, keep, push) = (Names::new(), keep(3, 1 << 20), lasting(1));
        let user_id = UserId::new("ann").expect("valid");
        let ticket = ticket(&names, &push);
        let message_id = ticket.message_id();
        let releases: Vec<_> = (0..2)
            .map(|_| {
                let (keep, user_id, event) = (keep.clone(), user_id.clone(), push.event().clone());
                thread::spawn(move || keep.release(&user_id, &event).len())
            })
            .collect();
        assert!(keep.hold(&user_id, ticket).is_ok());
        let withdrawn = usize::from(keep.withdraw(&user_id, message_id).is_some());
        let released: usize = releases.into_iter().map(|release| release.join().expect("no panic")).sum();
        assert_eq!(withdrawn + released, 1);
        assert!(!keep.holds(&user_id));
    });
}

#[test]
fn when_two_users_fill_the_room_at_one_time_it_is_made_and_all_locks_are_let_go() {
    in_many_schedules(|| {
        let (names, keep) = (Arc::new(Names::new()), keep(2, 1_500));
        let users: Vec<_> = ["ann", "bob"]
            .map(|user| {
                let (names, keep) = (names.clone(), keep.clone());
                thread::spawn(move || {
                    let user_id = UserId::new(user).expect("valid");
                    let mailbox = Arc::new(Mailbox::new(handle(&names), capacity(4)));
                    mailbox.begin_session(&keep, &user_id);
                    assert!(matches!(mailbox.detach(&mut Line::default()), Departure::MayComeBack { .. }));
                    for number in 0..3 {
                        offer(&mailbox, ticket(&names, &lasting(number)));
                    }
                    let _held = keep.hold(&user_id, ticket(&names, &lasting(3)));
                    assert!(keep.usage().bytes <= 3 * 1_500, "each may have one too much for a moment");
                    (mailbox, user_id)
                })
            })
            .into_iter()
            .map(|user| user.join().expect("no panic"))
            .collect();
        assert!(keep.usage().bytes <= 1_500, "{:?}", keep.usage());
        for (mailbox, user_id) in users {
            mailbox.end_away();
            keep.release(&user_id, push(0).event());
        }
        assert_eq!(keep.usage(), Default::default());
    });
}

/// Pushes as the gateway does: to those who are bound, or else it is held.
fn push_or_hold(home: &Home, push: &Push) {
    let receivers = || home.binder.receivers(&home.user_id, push.event());
    let delivery = Arc::new(delivery(&home.names, push));
    let mut bound = receivers();
    if bound.is_empty() {
        let ticket = delivery.ticket(0);
        let message_id = ticket.message_id();
        assert!(home.sessions.keep().hold(&home.user_id, ticket).is_ok());
        bound = receivers();
        if bound.is_empty() || home.sessions.keep().withdraw(&home.user_id, message_id).is_none() {
            return;
        }
    }
    for mailbox in bound.iter() {
        offer(mailbox, delivery.ticket(0));
    }
}

#[test]
fn what_was_held_comes_before_what_was_pushed_since_the_bind() {
    in_many_schedules(|| {
        let home = Arc::new(Home::new());
        let pusher = thread::spawn({
            let home = home.clone();
            move || (1..=3).for_each(|number| push_or_hold(&home, &lasting(number)))
        });
        let (_, mailbox) = home.connection();
        let wire = Wire::new();
        mailbox.share(Some(wire.clone()));
        // As a connection binds: its task is awake, so that nobody else writes before it has looked for what is held.
        let bindings = home.bind(&mailbox);
        home.sessions.release(&bindings, &mailbox);
        let mut task = Task::new(&mailbox, &wire);
        task.catch_up();
        pusher.join().expect("no panic");
        task.catch_up();
        assert_eq!(wire.texts(), ["1", "2", "3"]);
        assert!(!home.sessions.keep().holds(&home.user_id));
    });
}

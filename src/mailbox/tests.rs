use std::io::{self, IoSlice};
use std::net::Ipv4Addr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex as StdMutex};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use super::*;
use crate::delivery::Delivery;
use crate::dialect::Content;
use crate::journal::Recorder;
use crate::message::{Names, Priority, Push, SlowReaderPolicy, UserId};
use crate::metrics::Metrics;
use crate::outcome::Progress;
use crate::sync::Ordering;

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Wakes {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

const IDLE: Wants = Wants::Messages { is_busy: false };

/// A connection that several tests look at from several sides.
struct Connection {
    handle: Arc<Handle>,
    mailbox: Arc<Mailbox>,
    line: Line,
    wakes: Arc<Wakes>,
}

impl Connection {
    fn new(messages_max: usize, bytes_max: usize) -> Self {
        let handle = Arc::new(Handle::new(Names::new().connection_id(), (Ipv4Addr::LOCALHOST, 0).into()));
        let mailbox = Arc::new(Mailbox::new(handle.clone(), Outboxes::new(Capacity { messages_max, bytes_max })));
        Self { handle, mailbox, line: Line::default(), wakes: Arc::default() }
    }

    fn visit(&mut self, done: Depth, wants: Wants) -> Visit {
        let waker = Waker::from(self.wakes.clone());
        self.mailbox.visit(&Context::from_waker(&waker), &mut self.line, done, wants)
    }

    /// Takes and writes everything, as text or as the numbers of a gap.
    fn written(&mut self) -> Vec<String> {
        self.visit(Depth::default(), IDLE);
        let (mut texts, mut done, mut last) = (Vec::new(), Depth::default(), 0);
        let frames: Vec<_> = self.line.frames().map(text).collect();
        self.line.wrote(usize::MAX >> 1, |content| match content {
            Content::Message(ticket) => {
                done += Depth::of(&ticket);
                ticket.written(Instant::now());
            }
            Content::Numbered { seq, .. } | Content::Gap { to: seq } => last = seq,
            Content::Own | Content::Taken => {}
        });
        texts.extend(frames);
        if last > 0 {
            self.mailbox.wrote(last, Instant::now(), |_| ());
        }
        self.visit(done, IDLE);
        texts
    }
}

/// What a frame tells, without what differs from run to run.
fn text(frame: &Frame) -> String {
    let [head, body] = frame.parts().map(|part| String::from_utf8_lossy(&part).into_owned());
    match &frame.content {
        Content::Message(_) => body,
        Content::Numbered { seq, .. } => {
            assert!(head.contains(&seq.to_string()), "{head}");
            let message = body.split("\"message\":\"").nth(1).and_then(|rest| rest.split('"').next());
            format!("{seq} {}", message.unwrap_or_default())
        }
        Content::Gap { .. } => body,
        Content::Own | Content::Taken => "own".to_owned(),
    }
}

fn push(text: &str) -> Push {
    Push::new("ann", "mail", text).expect("valid")
}

fn delivery(push: &Push) -> Delivery {
    let policy = push.slow_reader_policy().unwrap_or_default();
    Delivery::new(Names::new().message_id(), push, policy, Instant::now())
}

fn ticket(push: &Push) -> Ticket {
    Arc::new(delivery(push)).ticket(0)
}

fn message(text: &str) -> Ticket {
    ticket(&push(text))
}

fn offer(mailbox: &Mailbox, ticket: Ticket) -> Result<(), DropReason> {
    match mailbox.offer(ticket).taken {
        Taken::Queued | Taken::Held => Ok(()),
        Taken::Refused(reason) => Err(reason),
    }
}

#[test]
fn the_message_limit_holds_on_both_sides() {
    let Connection { mailbox, handle, .. } = Connection::new(2, 1_000);
    assert_eq!(offer(&mailbox, message("one")), Ok(()));
    assert_eq!(offer(&mailbox, message("two")), Ok(()));
    assert_eq!(offer(&mailbox, message("three")), Err(DropReason::QueueFull));
    assert_eq!(handle.stopped(), Some(Stop::QueueFull));
    assert_eq!(offer(&mailbox, message("four")), Err(DropReason::Closed));
}

#[test]
fn the_byte_limit_holds_on_both_sides() {
    let Connection { mailbox, .. } = Connection::new(10, 10);
    assert_eq!(offer(&mailbox, message("1234567890")), Ok(()));
    assert_eq!(offer(&mailbox, message("1")), Err(DropReason::QueueFull));
}

#[test]
fn what_was_kept_for_a_client_that_has_only_just_come_takes_no_room() {
    let mut connection = Connection::new(2, 10);
    let mailbox = connection.mailbox.clone();
    for text in ["kept 1", "kept 2", "kept 3"] {
        assert_eq!(offer(&mailbox, message(text).late()), Ok(()));
    }
    let oldest = push("new 1").with_slow_reader_policy(SlowReaderPolicy::DropOldest);
    assert_eq!(offer(&mailbox, ticket(&oldest)), Ok(()));
    assert_eq!(offer(&mailbox, message("new 2")), Ok(()));
    assert_eq!(mailbox.depth(), Depth { messages: 2, bytes: 10, late: 3 });
    assert_eq!(offer(&mailbox, message("new 3")), Err(DropReason::QueueFull));
    assert_eq!(connection.written(), ["kept 1", "kept 2", "kept 3", "new 1", "new 2"]);
    assert_eq!(mailbox.close(Depth::default()), 0);
}

#[test]
fn what_was_kept_goes_before_what_was_accepted_after_it_and_never_takes_its_place() {
    let mut connection = Connection::new(9, 1_000);
    let mailbox = connection.mailbox.clone();
    let at_once = |text: &str, key: Option<&str>| {
        let push = push(text);
        ticket(&match key {
            Some(key) => push.with_collapse_key(key).expect("valid"),
            None => push,
        })
    };
    let [kept_1, keyed, kept_2] =
        [("kept 1", None), ("keyed, kept", Some("key")), ("kept 2", None)].map(|(text, key)| at_once(text, key).late());
    let high = ticket(&push("high").with_priority(Priority::High));
    for newer in [at_once("new 1", None), at_once("keyed, new", Some("key")), high] {
        assert_eq!(offer(&mailbox, newer), Ok(()));
    }
    assert_eq!(offer(&mailbox, kept_2), Ok(()));
    assert_eq!(offer(&mailbox, keyed), Err(DropReason::Superseded));
    assert_eq!(offer(&mailbox, kept_1), Ok(()));
    assert_eq!(offer(&mailbox, at_once("new 2", None)), Ok(()));
    assert_eq!(connection.written(), ["high", "kept 1", "kept 2", "new 1", "keyed, new", "new 2"]);
}

#[test]
fn the_writer_takes_a_quarter_of_a_mebibyte_in_hand_and_what_waits_behind_it_stays_queued() {
    let mut connection = Connection::new(100, usize::MAX);
    let large = "x".repeat(100 * 1024);
    for _ in 0..10 {
        offer(&connection.mailbox, message(&large)).expect("room");
    }
    connection.visit(Depth::default(), IDLE);
    assert_eq!(connection.line.len(), 3);
    connection.line.wrote(large.len() + 100, |_| ());
    connection.visit(Depth::default(), IDLE);
    assert_eq!(connection.line.len(), 3, "one was written, and another taken");
}

#[test]
fn what_the_writer_holds_still_counts_until_it_is_written() {
    let mut connection = Connection::new(2, 1_000);
    let mailbox = connection.mailbox.clone();
    offer(&mailbox, message("one")).expect("room");
    offer(&mailbox, message("two")).expect("room");
    assert_eq!(connection.visit(Depth::default(), IDLE).stop, None);
    assert_eq!(connection.line.len(), 2);
    assert_eq!(mailbox.depth().messages, 2);
    let mut done = Depth::default();
    connection.line.wrote(5, |content| {
        let Content::Message(ticket) = content else { panic!("no session") };
        done += Depth::of(&ticket);
    });
    connection.visit(done, IDLE);
    assert_eq!(offer(&mailbox, message("three")), Ok(()));
    assert_eq!(offer(&mailbox, message("four")), Err(DropReason::QueueFull));
    assert_eq!(mailbox.close(Depth::default()), 2, "two and three were accepted and never written");
}

#[test]
fn a_sleeping_task_is_woken_once_and_a_blocked_one_not_for_messages() {
    let mut connection = Connection::new(10, 1_000);
    let (mailbox, wakes) = (connection.mailbox.clone(), connection.wakes.clone());
    connection.visit(Depth::default(), IDLE);
    offer(&mailbox, message("one")).expect("room");
    offer(&mailbox, message("two")).expect("room");
    assert_eq!(wakes.count(), 1);
    connection.visit(Depth::default(), Wants::Nothing);
    offer(&mailbox, message("three")).expect("room");
    assert_eq!(wakes.count(), 1);
    assert!(mailbox.drop_receiver());
    assert_eq!(wakes.count(), 2);
    assert!(!connection.handle.stop(Stop::GoingAway), "it was already told to end");
    assert_eq!(connection.visit(Depth::default(), IDLE).stop, Some(Stop::Dropped));
}

#[test]
fn high_overtakes_and_bulk_is_overtaken_and_each_keeps_its_order() {
    let mut connection = Connection::new(10, 1_000);
    for (text, priority) in [
        ("bulk 1", Priority::Bulk),
        ("normal 1", Priority::Normal),
        ("high 1", Priority::High),
        ("bulk 2", Priority::Bulk),
        ("high 2", Priority::High),
        ("normal 2", Priority::Normal),
    ] {
        assert_eq!(offer(&connection.mailbox, ticket(&push(text).with_priority(priority))), Ok(()));
    }
    assert_eq!(connection.written(), ["high 1", "high 2", "normal 1", "normal 2", "bulk 1", "bulk 2"]);
}

#[test]
fn a_newer_message_takes_the_place_of_one_with_its_collapse_key_alone() {
    let mut connection = Connection::new(10, 1_000);
    for (text, key) in [("a 1", Some("a")), ("b 1", Some("b")), ("none", None), ("a 2", Some("a"))] {
        let push = push(text);
        let push = match key {
            Some(key) => push.with_collapse_key(key).expect("valid"),
            None => push,
        };
        assert_eq!(offer(&connection.mailbox, ticket(&push)), Ok(()));
    }
    assert_eq!(connection.mailbox.depth().messages, 3);
    assert_eq!(connection.written(), ["b 1", "none", "a 2"]);
}

#[test]
fn each_policy_does_what_it_says_in_a_full_queue() {
    use SlowReaderPolicy::{Conflate, Disconnect, DropNewest, DropOldest};
    let cases: [(SlowReaderPolicy, Result<(), DropReason>, &[&str]); 4] = [
        (Disconnect, Err(DropReason::QueueFull), &["one", "two"]),
        (DropNewest, Err(DropReason::QueueFull), &["one", "two"]),
        (DropOldest, Ok(()), &["two", "three"]),
        (Conflate, Ok(()), &["three"]),
    ];
    for (policy, offered, left) in cases {
        let mut connection = Connection::new(2, 1_000);
        let mailbox = connection.mailbox.clone();
        for text in ["one", "two"] {
            assert_eq!(offer(&mailbox, ticket(&push(text).with_slow_reader_policy(policy))), Ok(()));
        }
        assert_eq!(offer(&mailbox, ticket(&push("three").with_slow_reader_policy(policy))), offered, "{policy:?}");
        assert_eq!(connection.written(), left, "{policy:?}");
        let again = offer(&mailbox, message("four"));
        assert_eq!(again == Err(DropReason::Closed), policy == Disconnect, "only one policy closes");
    }
}

#[test]
fn room_is_made_from_the_least_priority_and_never_from_a_higher_one_or_in_vain() {
    let mut connection = Connection::new(3, 34);
    let mailbox = connection.mailbox.clone();
    for (text, priority) in [("high", Priority::High), ("bulk 1", Priority::Bulk), ("bulk 2", Priority::Bulk)] {
        assert_eq!(offer(&mailbox, ticket(&push(text).with_priority(priority))), Ok(()));
    }
    let oldest = |text: &str, priority| {
        let push = push(text).with_priority(priority).with_slow_reader_policy(SlowReaderPolicy::DropOldest);
        offer(&mailbox, ticket(&push))
    };
    assert_eq!(oldest("normal", Priority::Normal), Ok(()));
    assert_eq!(mailbox.depth().messages, 3);
    let too_large = "x".repeat(32);
    assert_eq!(oldest(&too_large, Priority::Normal), Err(DropReason::QueueFull), "the high one would have to go");
    let too_large = push(&too_large).with_collapse_key("key").expect("valid");
    let keyed = push("keyed").with_collapse_key("key").expect("valid").with_priority(Priority::Bulk);
    let keyed = keyed.with_slow_reader_policy(SlowReaderPolicy::DropOldest);
    assert_eq!(offer(&mailbox, ticket(&keyed)), Ok(()), "in place of the other bulk message");
    let refused = too_large.with_slow_reader_policy(SlowReaderPolicy::DropNewest);
    assert_eq!(offer(&mailbox, ticket(&refused)), Err(DropReason::QueueFull));
    assert_eq!(connection.written(), ["high", "normal", "keyed"], "a refused message costs no other");
}

/// A socket that takes so many bytes, and then blocks.
#[derive(Debug, Default)]
struct Pipe {
    room: AtomicUsize,
    bytes: StdMutex<Vec<u8>>,
    writes: AtomicUsize,
}

impl Pipe {
    fn of(room: usize) -> Arc<Self> {
        Arc::new(Self { room: AtomicUsize::new(room), ..Self::default() })
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("no panic")).into_owned()
    }
}

impl WriteNow for Pipe {
    fn write_now(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
        let count = bytes.len().min(self.room.load(Ordering::Relaxed));
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.room.fetch_sub(count, Ordering::Relaxed);
        self.bytes.lock().expect("no panic").extend(&bytes[..count]);
        Ok(count)
    }
}

#[test]
fn while_the_task_sleeps_a_message_is_written_without_it_and_the_task_is_left_what_is_over() {
    let mut connection = Connection::new(10, 1_000);
    let (mailbox, wakes, pipe) = (connection.mailbox.clone(), connection.wakes.clone(), Pipe::of(8));
    mailbox.share(Some(pipe.clone()));
    assert_eq!(mailbox.offer(message("x")).flush, Flush::None, "its task has not looked yet");
    assert_eq!(connection.written(), ["x"]);
    assert_eq!(mailbox.offer(message("one")).flush, Flush::Now);
    assert_eq!(mailbox.offer(message("two")).flush, Flush::None, "the first is promised a flush");
    let mut delivered = 0;
    mailbox.flush(|_| delivered += 1);
    assert_eq!((delivered, wakes.count()), (1, 1));
    assert_eq!(pipe.text(), "\u{fffd}\u{3}one\u{fffd}\u{3}t", "with the header of the second, its first byte");
    assert_eq!(mailbox.offer(message("three")).flush, Flush::None, "the task has something in hand");
    mailbox.flush(|_| panic!("not while the task has something in hand"));
    assert_eq!(connection.visit(Depth::default(), IDLE).stop, None);
    assert_eq!((connection.line.len(), connection.line.offset()), (2, 3));
    assert_eq!(mailbox.depth().messages, 2);
}

#[test]
fn nobody_writes_to_a_connection_that_is_to_end_or_has_something_else_to_say() {
    let mut connection = Connection::new(10, 1_000);
    let (mailbox, pipe) = (connection.mailbox.clone(), Pipe::of(1_000));
    mailbox.share(Some(pipe.clone()));
    connection.visit(Depth::default(), Wants::Messages { is_busy: true });
    assert_eq!(mailbox.offer(message("one")).flush, Flush::None);
    connection.line = Line::default();
    connection.visit(Depth::default(), IDLE);
    connection.line = Line::default();
    connection.visit(Depth::default(), IDLE);
    assert_ne!(mailbox.offer(message("two")).flush, Flush::None);
    mailbox.hold_back();
    mailbox.flush(|_| panic!("held back"));
    connection.line = Line::default();
    connection.visit(Depth::default(), IDLE);
    connection.line = Line::default();
    connection.visit(Depth::default(), IDLE);
    assert_ne!(mailbox.offer(message("three")).flush, Flush::None);
    connection.handle.stop(Stop::GoingAway);
    mailbox.flush(|_| panic!("stopped"));
    assert_eq!(pipe.text(), "");
}

/// A session of ann's mail on a connection.
struct Home {
    keep: Arc<Keep>,
    user_id: UserId,
    connection: Connection,
}

impl Home {
    fn new(messages_max: usize, bytes_max: usize) -> Self {
        let metrics = Arc::new(Metrics::new());
        let age = Duration::from_secs(3600);
        let bounds = Bounds {
            messages_per_user_max: messages_max,
            bytes_per_user_max: bytes_max,
            bytes_max: 2 * bytes_max,
            age,
        };
        let keep = Keep::new(bounds, Recorder::new(None, metrics.clone()), metrics);
        let user_id = UserId::new("ann").expect("valid");
        let connection = session(&keep, &user_id);
        Self { keep, user_id, connection }
    }

    fn detach(&mut self) -> usize {
        match self.connection.mailbox.detach(&mut self.connection.line) {
            Departure::MayComeBack { lost } => {
                assert!(self.connection.mailbox.put_away(Instant::now()));
                lost
            }
            Departure::Over => panic!("nobody ends it"),
        }
    }

    /// Goes on over another connection. Returns how many messages count as acknowledged with it.
    fn attach(&mut self, seq: u64) -> (Resumed, usize) {
        let mailbox = self.connection.mailbox.clone();
        assert_eq!(mailbox.claim(), Claim::Granted);
        let handle = Arc::new(Handle::new(Names::new().connection_id(), (Ipv4Addr::LOCALHOST, 0).into()));
        let mut acked = 0;
        let resumed = mailbox.attach(&handle, None, seq, |_| acked += 1).expect("written").expect("not dropped").0;
        self.connection = Connection { handle, mailbox, line: Line::default(), wakes: Arc::default() };
        (resumed, acked)
    }
}

fn session(keep: &Arc<Keep>, user_id: &UserId) -> Connection {
    let connection = Connection::new(100, 1 << 20);
    connection.mailbox.begin_session(keep, user_id);
    connection
}

#[test]
fn a_session_goes_on_with_the_same_numbers_and_says_which_are_lost() {
    let mut home = Home::new(100, 1 << 20);
    let mailbox = home.connection.mailbox.clone();
    for text in ["one", "two", "three"] {
        offer(&mailbox, message(text)).expect("room");
    }
    assert_eq!(home.connection.written(), ["1 one", "2 two", "3 three"]);
    assert_eq!(home.detach(), 0);
    offer(&mailbox, message("four")).expect("kept");
    let over = ticket(&push("over").with_ttl(Duration::from_nanos(1)));
    assert_eq!(offer(&mailbox, over), Err(DropReason::Expired));
    offer(&mailbox, message("six")).expect("kept");
    let (resumed, acked) = home.attach(1);
    assert!(!resumed.is_recovered);
    assert_eq!(acked, 1, "that it has number 1 is as good as an acknowledgement");
    assert_eq!(home.connection.written(), ["2 two", "3 three", "4 four", r#"{"type":"gap","from":5,"to":5}"#, "6 six"]);
    let mut acked = 0;
    mailbox.acknowledge(6, |_| acked += 1).expect("written");
    assert_eq!((acked, home.keep.usage().messages, home.keep.usage().bytes), (4, 0, 0));
    assert!(mailbox.acknowledge(7, |_| ()).is_err(), "it was never written");
}

#[test]
fn what_is_for_now_is_not_kept_when_its_session_leaves_and_is_told_as_lost() {
    let mut home = Home::new(9, 9_000);
    let mailbox = home.connection.mailbox.clone();
    let now = push("for now").with_ttl(Duration::ZERO);
    let delivery = Arc::new(delivery(&now).followed([mailbox.id(); 3].into_iter()));
    offer(&mailbox, delivery.ticket(0)).expect("room");
    home.connection.visit(Depth::default(), IDLE);
    offer(&mailbox, delivery.ticket(1)).expect("room");
    offer(&mailbox, message("for later")).expect("room");
    assert_eq!(home.detach(), 2, "that in hand and that in the queue");
    assert_eq!(offer(&mailbox, delivery.ticket(2)), Err(DropReason::Expired));
    let progress: Vec<_> =
        delivery.receipt().expect("followed").outcomes().into_iter().map(|outcome| outcome.progress).collect();
    let lost = Progress::Lost(DropReason::Expired);
    assert_eq!(progress, [lost, lost, Progress::Dropped(DropReason::Expired)]);
    assert_eq!(home.keep.usage().messages, 1);
    home.attach(0);
    let gap = |at: u64| format!(r#"{{"type":"gap","from":{at},"to":{at}}}"#);
    assert_eq!(home.connection.written()[1..], ["3 for later".to_owned(), gap(4)]);
}

#[test]
fn what_was_received_is_told_as_acknowledged_though_there_was_no_room_to_keep_it() {
    let mut home = Home::new(2, 1 << 20);
    let mailbox = home.connection.mailbox.clone();
    let delivery = Arc::new(delivery(&push("m")).followed(vec![mailbox.id(); 9].into_iter()));
    for place in 0..9 {
        offer(&mailbox, delivery.ticket(place)).expect("room");
    }
    assert_eq!(home.connection.written().len(), 9);
    assert_eq!(home.keep.usage().messages, 2, "the bound of what is kept holds");
    let mut acked = 0;
    mailbox.acknowledge(9, |_| acked += 1).expect("written");
    assert_eq!((acked, home.keep.usage().bytes), (9, 0));
    let outcomes = delivery.receipt().expect("followed").outcomes();
    assert!(outcomes.iter().all(|outcome| matches!(outcome.progress, Progress::Acked { .. })), "{outcomes:?}");
}

#[test]
fn what_a_client_did_not_receive_is_never_told_as_acknowledged() {
    let mut home = Home::new(1, 1 << 20);
    let mailbox = home.connection.mailbox.clone();
    let delivery = Arc::new(delivery(&push("m")).followed(vec![mailbox.id(); 3].into_iter()));
    for place in 0..3 {
        offer(&mailbox, delivery.ticket(place)).expect("room");
    }
    assert_eq!(home.connection.written().len(), 3);
    home.detach();
    // The kernel had all three, and the client has none: of two only what their acknowledgement needs was left.
    home.attach(0);
    assert_eq!(home.connection.written(), [r#"{"type":"gap","from":1,"to":2}"#, "3 m"]);
    mailbox.acknowledge(3, |_| ()).expect("written");
    let progress = delivery.receipt().expect("followed").outcomes().into_iter().map(|outcome| outcome.progress);
    let acked: Vec<_> = progress.map(|progress| matches!(progress, Progress::Acked { .. })).collect();
    assert_eq!(acked, [false, false, true]);
}

#[test]
fn a_silent_session_costs_another_of_its_user_no_more_than_a_fair_share() {
    let mut home = Home::new(10, 1 << 20);
    let silent = session(&home.keep, &home.user_id);
    assert!(matches!(silent.mailbox.detach(&mut Line::default()), Departure::MayComeBack { .. }));
    for _ in 0..10 {
        offer(&silent.mailbox, message("m")).expect("kept");
    }
    home.detach();
    for _ in 0..8 {
        offer(&home.connection.mailbox, message("m")).expect("kept");
    }
    assert_eq!((silent.mailbox.kept().messages, home.connection.mailbox.kept().messages), (5, 5));
}

#[test]
fn of_all_users_the_one_that_keeps_the_most_pays_for_a_stranger() {
    let home = Home::new(1_000, 40_000);
    let silent: Vec<_> = (0..3)
        .map(|number| {
            let user_id = UserId::new(format!("silent {number}")).expect("valid");
            let connection = session(&home.keep, &user_id);
            assert!(matches!(connection.mailbox.detach(&mut Line::default()), Departure::MayComeBack { .. }));
            connection
        })
        .collect();
    for connection in &silent {
        for _ in 0..100 {
            offer(&connection.mailbox, message("m")).expect("kept");
        }
    }
    let before = home.keep.usage().bytes;
    let mut stranger = Home { connection: session(&home.keep, &home.user_id), ..home };
    stranger.detach();
    for _ in 0..20 {
        offer(&stranger.connection.mailbox, message("m")).expect("kept");
    }
    assert_eq!(stranger.connection.mailbox.kept().messages, 20, "{before} bytes were kept before");
    assert!(stranger.keep.usage().bytes <= 80_000);
    // Held for a user that keeps nothing yet, the same.
    let bob = UserId::new("bob").expect("valid");
    for _ in 0..20 {
        assert!(stranger.keep.hold(&bob, message("m")).is_ok());
    }
    assert_eq!(stranger.keep.release(&bob, message("m").event()).len(), 20);
    // One that would be the fullest itself is told that there is no room.
    let mut held = 0;
    while stranger.keep.hold(&bob, message("m")).is_ok() {
        held += 1;
        assert!(held < 1_000);
    }
    assert_eq!(stranger.keep.release(&bob, message("m").event()).len(), held, "what was told as held is");
}

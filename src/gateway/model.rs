//! Random binds, ends, pushes and drops against a naive model of the same.

use super::*;
use crate::auth::{OpenPush, TokenIsUser};
use crate::binder::{BindLimits, Bindings};
use crate::config::UserConnectionsPolicy;
use crate::dialect::Content;
use crate::journal::Recorder;
use crate::mailbox::{Bounds, Capacity, Depth, Keep, Line, Outboxes, Wants};
use crate::outcome::Drops;
use crate::registry::{Limits, Registration};
use crate::replays;
use crate::sessions;
use std::collections::{BTreeMap, BTreeSet};
use std::task::{Context, Waker};

use futures_util::FutureExt;

const STEPS: usize = 10_000;
const OUTBOX_MESSAGES: usize = 4;
const CONNECTIONS_MAX: usize = 24;
const USER_MAX: usize = 6;
const EVENTS_MAX: usize = 3;

const LIMITS: BindLimits = BindLimits {
    connections_per_user_max: USER_MAX,
    connections_per_user_policy: UserConnectionsPolicy::RejectNew,
    events_per_connection_max: EVENTS_MAX,
};

fn gateway() -> Gateway {
    let names = Arc::new(Names::new());
    let limits = Limits {
        connections_max: CONNECTIONS_MAX,
        connections_per_address_max: 0,
        age_max: None,
        outboxes: Outboxes::new(Capacity { messages_max: OUTBOX_MESSAGES, bytes_max: 1 << 20 }),
    };
    let metrics = Arc::new(Metrics::new());
    let bounds = Bounds { messages_per_user_max: 1, bytes_per_user_max: 1, bytes_max: 1, age: Duration::from_secs(1) };
    let away = sessions::Limits {
        away_max: 1,
        away_per_user_max: 1,
        age: Duration::from_secs(1),
        binds: LIMITS,
        outboxes: limits.outboxes.clone(),
    };
    let binder = Arc::new(Binder::default());
    let keep = Keep::new(bounds, Recorder::new(None, metrics.clone()), metrics.clone());
    let replays = replays::Limits { window: Duration::from_secs(1), keys_max: 1, bytes_max: 1 };
    Gateway::new(Rooms {
        config: Arc::new(Config::default()),
        binder: binder.clone(),
        registry: Arc::new(Registry::new(limits, names.clone(), Duration::from_secs(1))),
        sessions: Arc::new(Sessions::new(away, keep, binder, metrics.clone())),
        flusher: Arc::new(Flusher::new(1, metrics.clone())),
        names,
        token_authenticator: Arc::new(TokenIsUser),
        push_authorizer: Arc::new(OpenPush),
        audit: super::Audit::default(),
        certificates: Vec::new(),
        replays: Replays::new(replays, metrics.clone()),
        metrics,
        waiting: Shares::new(1),
        total: super::Total::new(usize::MAX),
        drain: Drain::default(),
        revocations: Arc::new(Revocations::new(1)),
        stopping: CancellationToken::new(),
        pushes: TaskTracker::new(),
    })
}

/// A connection as its task holds it, without a socket.
struct Held {
    bindings: Option<Bindings>,
    registration: Registration,
}

/// The same connection as the naive model has it.
#[derive(Default)]
struct Naive {
    user: Option<u8>,
    events: BTreeSet<u8>,
    queued: Vec<String>,
    stopped: bool,
}

/// Small, fast and the same on every machine: xorshift64*.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
    }
}

fn user(number: u8) -> UserId {
    UserId::new(format!("user {number}")).expect("not empty")
}

fn event(number: u8) -> Event {
    Event::new(format!("event {number}")).expect("not empty")
}

/// What is done here waits for nothing.
fn at_once<T>(done: impl Future<Output = T>) -> T {
    done.now_or_never().expect("it waits for nothing")
}

struct World {
    gateway: Gateway,
    held: BTreeMap<usize, Held>,
    naive: BTreeMap<usize, Naive>,
    dice: Dice,
    next: usize,
}

impl World {
    fn any(&mut self) -> Option<usize> {
        let count = self.held.len();
        if count == 0 { None } else { self.held.keys().nth(self.dice.below(count)).copied() }
    }

    fn connect(&mut self) {
        let admitted = self.gateway.rooms().registry.admit(([127, 0, 0, 1], 0).into());
        assert_eq!(admitted.is_ok(), self.naive.len() < CONNECTIONS_MAX);
        if let Ok(registration) = admitted {
            self.held.insert(self.next, Held { bindings: None, registration });
            self.naive.insert(self.next, Naive::default());
            self.next += 1;
        }
    }

    fn bind(&mut self) {
        let Some(key) = self.any() else { return };
        let (user_number, event_number) = (self.dice.below(5) as u8, self.dice.below(4) as u8);
        let of_user = self.naive.values().filter(|naive| naive.user == Some(user_number)).count();
        let held = self.held.get_mut(&key).expect("picked from it");
        let naive = self.naive.get_mut(&key).expect("the same keys");
        if naive.stopped {
            return;
        }
        let bound = match &mut held.bindings {
            None => {
                let (binder, mailbox) = (&self.gateway.rooms().binder, held.registration.mailbox());
                let seat = binder.seat(&user(user_number), LIMITS);
                assert_eq!(seat.is_ok(), of_user < USER_MAX);
                seat.map(|seat| {
                    naive.user = Some(user_number);
                    let mut bindings = binder.bind(mailbox, &user(user_number), &event(event_number));
                    bindings.take_seat(seat);
                    held.bindings = Some(bindings);
                })
            }
            Some(bindings) => {
                let bound = bindings.add(&event(event_number), crate::binder::Validity::default(), LIMITS);
                let fits = naive.events.len() < EVENTS_MAX || naive.events.contains(&event_number);
                assert_eq!(bound.is_ok(), fits);
                bound
            }
        };
        if bound.is_ok() {
            naive.events.insert(event_number);
        }
    }

    /// The connection's task ends: by a reset, a close frame, a drop; to the rooms it is all the same.
    fn end(&mut self) {
        let Some(key) = self.any() else { return };
        let naive = self.naive.remove(&key).expect("the same keys");
        let held = self.held.remove(&key).expect("picked from it");
        assert_eq!(held.registration.mailbox().close(Depth::default()), naive.queued.len());
    }

    fn push(&mut self, step: usize) {
        let (user_number, event_number) = (self.dice.below(5) as u8, self.dice.below(4) as u8);
        let message = format!("message {step}");
        let push = Push::new(user(user_number).as_str(), event(event_number).as_str(), &*message).expect("valid");
        let outcome = at_once(self.gateway.push(&push)).expect("valid");
        let mut expected = (0, 0, Drops::default());
        for naive in self.naive.values_mut() {
            if naive.user != Some(user_number) || !naive.events.contains(&event_number) {
                continue;
            }
            expected.0 += 1;
            if naive.stopped {
                expected.2.closed += 1;
            } else if naive.queued.len() == OUTBOX_MESSAGES {
                naive.stopped = true;
                expected.2.queue_full += 1;
            } else {
                naive.queued.push(message.clone());
                expected.1 += 1;
            }
        }
        assert_eq!((outcome.matched, outcome.accepted, outcome.drops), expected);
        assert_eq!(outcome.matched, outcome.accepted + outcome.dropped());
    }

    fn drop_user(&mut self) {
        let user_number = self.dice.below(5) as u8;
        let event_number = Some(self.dice.below(5) as u8).filter(|number| *number < 4);
        let told = at_once(self.gateway.drop_user(&user(user_number), event_number.map(event).as_ref()));
        let mut expected = 0;
        for naive in self.naive.values_mut() {
            let bound = naive.user == Some(user_number) && !naive.events.is_empty();
            if bound && event_number.is_none_or(|number| naive.events.contains(&number)) {
                expected += u64::from(!naive.stopped);
                naive.stopped = true;
                naive.events.clear();
            }
        }
        assert_eq!(told, expected);
    }

    /// The connection's task runs, and its client takes everything.
    fn write(&mut self) {
        let Some(key) = self.any() else { return };
        let mailbox = self.held[&key].registration.mailbox().clone();
        let naive = self.naive.get_mut(&key).expect("the same keys");
        let cx = Context::from_waker(Waker::noop());
        let mut line = Line::default();
        let visit = mailbox.visit(&cx, &mut line, Depth::default(), Wants::Messages { is_busy: false });
        assert_eq!(visit.stop.is_some(), naive.stopped);
        let (mut written, mut texts) = (Depth::default(), Vec::new());
        line.wrote(usize::MAX, |content| {
            let Content::Message(ticket) = content else { panic!("no session") };
            written += Depth::of(&ticket);
            texts.push(String::from_utf8_lossy(ticket.payload()).into_owned());
        });
        assert_eq!(texts, naive.queued, "all of them, in order");
        naive.queued.clear();
        mailbox.visit(&cx, &mut line, written, Wants::Messages { is_busy: false });
    }

    fn check(&self) {
        let rooms = self.gateway.rooms();
        assert_eq!(rooms.registry.len(), self.naive.len());
        assert_eq!(rooms.binder.len(), self.naive.values().map(|naive| naive.events.len()).sum::<usize>());
        let users: BTreeSet<_> = self.naive.values().filter_map(|naive| naive.user).collect();
        assert_eq!(rooms.binder.users(), users.len());
        let queued: usize = self.naive.values().map(|naive| naive.queued.len()).sum();
        assert_eq!(rooms.registry.depths().messages, queued);
    }
}

#[test]
fn random_steps_leave_no_difference_to_a_naive_model() {
    for seed in [1, 0x5eed, u64::MAX] {
        let mut world =
            World { gateway: gateway(), held: BTreeMap::new(), naive: BTreeMap::new(), dice: Dice(seed), next: 0 };
        for step in 0..STEPS {
            match world.dice.below(16) {
                0..3 => world.connect(),
                3..8 => world.bind(),
                8..10 => world.end(),
                10..13 => world.push(step),
                13 => world.drop_user(),
                _ => world.write(),
            }
            world.check();
        }
        while !world.held.is_empty() {
            world.end();
        }
        world.check();
        assert_eq!(world.gateway.rooms().binder.users(), 0, "seed {seed}");
    }
}

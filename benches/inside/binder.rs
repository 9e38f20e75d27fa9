//! What the binder costs, with a million users in it.

use std::hint::black_box;
use std::time::Duration;

use pushgate::inside::{Held, Inside, Receiver};
use pushgate::{Event, Push, UserId};
use rustix::time::ClockId;

use super::{Dice, Figure, config, cpu_time, figure, median, one_thread, pushed};

const USERS: usize = 1_000_000;
const EVENTS: [&str; 3] = ["mail", "chat", "news"];
/// Lookups of one round.
const LOOKUPS: usize = 256_000;
/// Lookups between two looks at the clock: few enough to be made beforehand and still be in a cache.
const AT_ONCE: usize = 128;
const ROUNDS: usize = 9;

pub(super) fn measure() -> Vec<Figure> {
    let mut figures = Vec::new();
    for events in [1, EVENTS.len()] {
        let runtime = one_thread();
        let inside = runtime.block_on(Inside::start(config())).unwrap();
        let receivers: Vec<_> = (0..USERS).map(|_| inside.receiver()).collect();
        let mut held = Vec::with_capacity(USERS);
        let halves = receivers.split_at(USERS / 2);
        bind(&inside, halves.0, &mut held, events);
        let counted = allocation_counter::measure(|| bind(&inside, halves.1, &mut held, events));
        let bindings = (USERS / 2 * events) as f64;
        let heap = counted.bytes_current as f64 / bindings;
        let in_place = size_of::<Held>() as f64 / events as f64;
        let of = format!("of {USERS} users with {events} each");
        figures.push(figure(format!("heap a binding, {of}"), heap, "bytes").should_be("at most 150"));
        figures.push(figure("  and in the connection's own memory", in_place, "bytes"));
        if events == EVENTS.len() {
            times(&inside, &mut figures);
        }
    }
    figures
}

/// Binds each receiver to a user of its own.
fn bind(inside: &Inside, receivers: &[Receiver], held: &mut Vec<Held>, events: usize) {
    for receiver in receivers {
        // Made anew for each, as a door does.
        let events = EVENTS.into_iter().take(events).map(|event| Event::new(event).unwrap());
        held.push(inside.bind(receiver, &user_id(held.len()), events).unwrap());
    }
}

fn user_id(number: usize) -> UserId {
    UserId::new(format!("user-{number}")).unwrap()
}

fn times(inside: &Inside, figures: &mut Vec<Figure>) {
    let event = Event::new(EVENTS[1]).unwrap();
    let mut dice = Dice(0x5eed);
    let missing = nanoseconds(
        || user_id(USERS + dice.below(USERS)),
        |user_id| assert_eq!(inside.matched(black_box(user_id), &event), 0),
    );
    let known =
        nanoseconds(|| user_id(dice.below(USERS)), |user_id| assert_eq!(inside.matched(black_box(user_id), &event), 1));
    let push = nanoseconds(
        || Push::new(format!("user-{}", USERS + dice.below(USERS)), EVENTS[1], "hello").unwrap(),
        |push| assert_eq!(pushed(inside.gateway(), black_box(push)).matched, 0),
    );
    figures.push(figure("a lookup of a missing user", missing, "ns").should_be("at most 200"));
    figures.push(figure("a lookup of a user with one receiver", known, "ns"));
    figures.push(figure("a push to a missing user, with outcome and metrics", push, "ns").should_be("at most 200"));
}

/// The median CPU time that `step` takes for one of what `make` makes just before, as a door does.
fn nanoseconds<T>(mut make: impl FnMut() -> T, mut step: impl FnMut(&T)) -> f64 {
    let round = |_| {
        let mut took = Duration::ZERO;
        for _ in 0..LOOKUPS / AT_ONCE {
            let made: Vec<_> = (0..AT_ONCE).map(|_| make()).collect();
            let before = cpu_time(ClockId::ThreadCPUTime);
            made.iter().for_each(&mut step);
            took += cpu_time(ClockId::ThreadCPUTime) - before;
        }
        took.as_nanos() as f64 / LOOKUPS as f64
    };
    median((0..ROUNDS).map(round).collect())
}

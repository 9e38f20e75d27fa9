//! What the binder costs, with a million users in it.

use std::hint::black_box;

use pushgate::inside::{Held, Inside, Receiver};
use pushgate::{Event, Push, UserId};
use rustix::time::ClockId;

use super::{Dice, Figure, config, cpu_time, figure, median, one_thread};

const USERS: usize = 1_000_000;
const EVENTS: [&str; 3] = ["mail", "chat", "news"];
/// Lookups of one round.
const LOOKUPS: usize = 200_000;
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
    let known: Vec<_> = (0..LOOKUPS).map(|_| user_id(dice.below(USERS))).collect();
    let missing: Vec<_> = (0..LOOKUPS).map(|_| user_id(USERS + dice.below(USERS))).collect();
    let pushes: Vec<_> =
        missing.iter().map(|user_id| Push::new(user_id.as_str(), EVENTS[1], "hello").unwrap()).collect();
    let lookup = |users: &[UserId], expected: usize| {
        nanoseconds(users, |user_id| assert_eq!(inside.matched(black_box(user_id), &event), expected))
    };
    figures.push(figure("a lookup of a missing user", lookup(&missing, 0), "ns").should_be("at most 200"));
    figures.push(figure("a lookup of a user with one receiver", lookup(&known, 1), "ns"));
    let push = nanoseconds(&pushes, |push| assert_eq!(inside.gateway().push(black_box(push)).unwrap().matched, 0));
    figures.push(figure("a push to a missing user, with outcome and metrics", push, "ns").should_be("at most 200"));
}

/// The median CPU time that `step` takes for one of these.
fn nanoseconds<T>(all: &[T], mut step: impl FnMut(&T)) -> f64 {
    let round = |_| {
        let before = cpu_time(ClockId::ThreadCPUTime);
        all.iter().for_each(&mut step);
        (cpu_time(ClockId::ThreadCPUTime) - before).as_nanos() as f64 / all.len() as f64
    };
    median((0..ROUNDS).map(round).collect())
}

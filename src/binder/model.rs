//! Random binds, unbinds, evictions and departures against a naive model of the same.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::handle::Handle;
use crate::mailbox::{Capacity, Outboxes};
use crate::message::{ConnectionId, Names};

const SEATS_MAX: usize = 30;
const EVENTS_MAX: usize = 4;
const LIMITS: BindLimits = BindLimits {
    connections_per_user_max: SEATS_MAX,
    connections_per_user_policy: UserConnectionsPolicy::RejectNew,
    events_per_connection_max: EVENTS_MAX,
};
const CAPACITY: Capacity = Capacity { messages_max: 1, bytes_max: 1 };

#[derive(Clone, Copy, Debug)]
enum Step {
    Seat { user: u8 },
    Bind { user: u8, event: u8 },
    Add { receiver: u8, event: u8 },
    Remove { receiver: u8, event: u8 },
    Evict { user: u8, event: Option<u8> },
    DropBindings { receiver: u8 },
    DropSeat { seat: u8 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Most go to one user, who then has an index and loses it again.
    let user = || prop_oneof![4 => Just(0_u8), 1 => 1..4_u8];
    let event = || 0..6_u8;
    let step = prop_oneof![
        4 => user().prop_map(|user| Step::Seat { user }),
        8 => (user(), event()).prop_map(|(user, event)| Step::Bind { user, event }),
        8 => (any::<u8>(), event()).prop_map(|(receiver, event)| Step::Add { receiver, event }),
        4 => (any::<u8>(), event()).prop_map(|(receiver, event)| Step::Remove { receiver, event }),
        1 => (user(), prop::option::of(event())).prop_map(|(user, event)| Step::Evict { user, event }),
        4 => any::<u8>().prop_map(|receiver| Step::DropBindings { receiver }),
        2 => any::<u8>().prop_map(|seat| Step::DropSeat { seat }),
    ];
    prop::collection::vec(step, 0..200)
}

/// A receiver as the naive model has it.
#[derive(Debug)]
struct Naive {
    id: ConnectionId,
    user: u8,
    /// What its bindings say, evicted or not.
    events: BTreeSet<u8>,
    is_evicted: bool,
}

struct World {
    binder: Arc<Binder>,
    names: Names,
    receivers: Vec<(Bindings, Naive)>,
    seats: Vec<(Seat, u8)>,
}

fn mailbox(names: &Names) -> Arc<Mailbox> {
    let handle = Handle::new(names.connection_id(), (Ipv4Addr::LOCALHOST, 0).into());
    Arc::new(Mailbox::new(Arc::new(handle), Outboxes::new(CAPACITY)))
}

fn user_id(number: u8) -> UserId {
    UserId::new(format!("user {number}")).expect("not empty")
}

fn event(number: u8) -> Event {
    Event::new(format!("event {number}")).expect("not empty")
}

fn ids(mailboxes: &[Arc<Mailbox>]) -> Vec<ConnectionId> {
    let mut ids: Vec<_> = mailboxes.iter().map(|mailbox| mailbox.id()).collect();
    ids.sort();
    ids
}

impl World {
    fn bound(&self) -> impl Iterator<Item = &Naive> {
        self.receivers.iter().map(|(_, naive)| naive).filter(|naive| !naive.is_evicted)
    }

    /// The receivers that are bound to the event, of this user or of all.
    fn expected(&self, user: Option<u8>, event: u8) -> Vec<ConnectionId> {
        let of_user = self.bound().filter(|naive| user.is_none_or(|user| naive.user == user));
        of_user.filter(|naive| naive.events.contains(&event)).map(|naive| naive.id).collect()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Seat { user } => {
                let taken = self.seats.iter().filter(|(_, of)| *of == user).count();
                match self.binder.seat(&user_id(user), LIMITS) {
                    Ok(seat) => self.seats.push((seat, user)),
                    Err(error) => assert_eq!(error, BindError::TooManyConnections { limit: taken }),
                }
                assert_eq!(self.seats.iter().filter(|(_, of)| *of == user).count(), (taken + 1).min(SEATS_MAX));
            }
            Step::Bind { user, event: number } => {
                let mailbox = mailbox(&self.names);
                let bindings = self.binder.bind(&mailbox, &user_id(user), &event(number));
                let naive = Naive { id: mailbox.id(), user, events: BTreeSet::from([number]), is_evicted: false };
                self.receivers.push((bindings, naive));
            }
            Step::Add { receiver, event: number } => {
                let Some((bindings, naive)) = pick(&mut self.receivers, receiver) else { return };
                let fits = naive.events.len() < EVENTS_MAX || naive.events.contains(&number);
                let added = bindings.add(&event(number), super::Validity::default(), LIMITS);
                assert_eq!(added, if fits { Ok(()) } else { Err(BindError::TooManyEvents { limit: EVENTS_MAX }) });
                if fits && !naive.is_evicted {
                    naive.events.insert(number);
                }
            }
            Step::Remove { receiver, event: number } => {
                let Some((bindings, naive)) = pick(&mut self.receivers, receiver) else { return };
                let is_last = naive.events.len() == 1 && naive.events.contains(&number);
                assert_eq!(bindings.remove(&event(number)), !is_last);
                if !is_last {
                    naive.events.remove(&number);
                }
            }
            Step::Evict { user, event: number } => {
                let evicted = self.binder.evict(&user_id(user), number.map(event).as_ref());
                let mut expected = Vec::new();
                for (_, naive) in &mut self.receivers {
                    let is_bound = naive.user == user && number.is_none_or(|number| naive.events.contains(&number));
                    if is_bound && !naive.is_evicted {
                        naive.is_evicted = true;
                        expected.push(naive.id);
                    }
                }
                assert_eq!(ids(&evicted), expected);
            }
            Step::DropBindings { receiver } => {
                if !self.receivers.is_empty() {
                    self.receivers.remove(usize::from(receiver) % self.receivers.len());
                }
            }
            Step::DropSeat { seat } => {
                if !self.seats.is_empty() {
                    self.seats.remove(usize::from(seat) % self.seats.len());
                }
            }
        }
    }

    fn check(&self) {
        for number in 0..6 {
            assert_eq!(ids(&self.binder.receivers_of_all(&event(number))), self.expected(None, number));
            for user in 0..4 {
                let receivers = self.binder.receivers(&user_id(user), &event(number));
                assert_eq!(ids(&receivers), self.expected(Some(user), number));
            }
        }
        for (bindings, naive) in &self.receivers {
            let names: BTreeSet<_> = bindings.events().cloned().collect();
            assert_eq!(names, naive.events.iter().copied().map(event).collect());
        }
        assert_eq!(self.binder.len(), self.bound().map(|naive| naive.events.len()).sum::<usize>());
        let users: BTreeSet<_> =
            self.bound().map(|naive| naive.user).chain(self.seats.iter().map(|(_, of)| *of)).collect();
        assert_eq!(self.binder.users(), users.len());
    }
}

fn pick<T>(from: &mut [T], number: u8) -> Option<&mut T> {
    let place = usize::from(number).checked_rem(from.len())?;
    from.get_mut(place)
}

proptest! {
    #[test]
    fn every_order_of_steps_reaches_whom_a_naive_model_reaches(steps in steps()) {
        let binder = Arc::new(Binder::default());
        let mut world =
            World { binder: binder.clone(), names: Names::new(), receivers: Vec::new(), seats: Vec::new() };
        for step in steps {
            world.step(step);
            world.check();
        }
        drop(world);
        prop_assert_eq!((binder.len(), binder.users()), (0, 0), "all goes with its last holder");
        let names: usize = binder.shards.iter().map(|shard| shard.index().events()).sum();
        prop_assert_eq!(names, 0, "and so do the names of events");
    }
}

/// What the model is too small for: with a search for each, so many would take minutes to go.
#[test]
fn thousands_of_bindings_of_one_user_and_one_event_go_without_a_search_each() {
    const MANY: usize = 20_000;
    let (binder, names, ann) = (Arc::new(Binder::default()), Names::new(), user_id(0));
    let mut held = Vec::new();
    for number in 0..MANY {
        let own = Event::new(format!("only of {number}")).expect("not empty");
        held.push(binder.bind(&mailbox(&names), &ann, &event(0)));
        held.push(binder.bind(&mailbox(&names), &ann, &own));
    }
    assert_eq!(binder.receivers(&ann, &event(0)).len(), MANY);
    assert_eq!(binder.receivers_of_all(&event(0)).len(), MANY);
    let started_at = Instant::now();
    held.into_iter().for_each(drop);
    assert!(started_at.elapsed() < Duration::from_secs(5), "a fraction of a second, where nothing is searched");
    assert_eq!((binder.len(), binder.users()), (0, 0));
}

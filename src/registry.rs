//! Every open connection: admission under the limits, listing, and the sweep that keeps their time.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;

use crate::handle::{Handle, Stop};
use crate::mailbox::{Mailbox, Outboxes, Ranked};
use crate::message::{ConnectionId, Names};
use crate::subscriber::subscriber;

/// Connections looked at before the lock is given to whoever waits for it.
const SWEEP_CHUNK: usize = 1024;

/// How often a drain looks at all connections. Short enough that the clients told at one look are few, and long enough
/// that the looks cost little with a million connections.
const DRAIN_STEP: Duration = Duration::from_millis(200);

/// All open connections of this process.
#[derive(Debug)]
pub(crate) struct Registry {
    limits: Limits,
    names: Arc<Names>,
    clock: Clock,
    /// Draws from a connection's id how much of the age it may have it gets: nothing is kept for it in the connection.
    dither: RandomState,
    /// A std mutex of its own beside the binder's: connections come and go here without a push noticing, and no code
    /// holds both.
    connections: Mutex<Connections>,
    /// While set, nobody else is admitted. Written under the lock, so that whoever was admitted before is told to stop.
    draining: AtomicBool,
}

/// What the registry admits.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Connections in all.
    pub(crate) connections_max: usize,
    /// Connections from one address; 0 for no limit.
    pub(crate) connections_per_address_max: usize,
    /// How long a connection may stay open.
    pub(crate) age_max: Option<Duration>,
    /// What receivers may have queued.
    pub(crate) outboxes: Arc<Outboxes>,
}

#[derive(Debug, Default)]
struct Connections {
    open: Slab<Open>,
    /// Kept only while a limit per address is set.
    per_address: HashMap<IpAddr, usize>,
}

/// One open connection.
#[derive(Debug)]
struct Open {
    handle: Arc<Handle>,
    /// What it has coming. A connection that goes on with a session has the session's.
    mailbox: Arc<Mailbox>,
}

/// Why a connection was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AdmitError {
    #[error("the gateway is at its limit of {limit} connections")]
    TooMany { limit: usize },
    #[error("too many connections from this address, the limit is {limit}")]
    TooManyFromAddress { limit: usize },
    #[error("the gateway is draining")]
    Draining,
}

/// How much is queued, over all connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Depths {
    pub(crate) connections: usize,
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    /// Messages where the most are queued.
    pub(crate) messages_max: usize,
    /// Bytes where the most are queued.
    pub(crate) bytes_max: usize,
}

impl Registry {
    /// `tick` is how finely the deadlines of connections are kept.
    pub(crate) fn new(limits: Limits, names: Arc<Names>, tick: Duration) -> Self {
        Self {
            limits,
            names,
            clock: Clock { tick, start: Instant::now(), now: AtomicU64::new(0) },
            dither: RandomState::new(),
            connections: Mutex::default(),
            draining: AtomicBool::new(false),
        }
    }

    /// Admits one more connection, and names it.
    ///
    /// # Errors
    /// Refuses over a limit, and while draining.
    pub(crate) fn admit(self: &Arc<Self>, peer: SocketAddr) -> Result<Registration, AdmitError> {
        let mut connections = self.connections();
        if self.is_draining() {
            return Err(AdmitError::Draining);
        }
        let limit = self.limits.connections_max;
        if connections.open.len() >= limit {
            return Err(AdmitError::TooMany { limit });
        }
        let limit = self.limits.connections_per_address_max;
        if limit != 0 {
            let from_address = connections.per_address.entry(subscriber(peer.ip())).or_default();
            if *from_address >= limit {
                return Err(AdmitError::TooManyFromAddress { limit });
            }
            *from_address += 1;
        }
        let handle = Arc::new(Handle::new(self.names.connection_id(), peer));
        let mailbox = Arc::new(Mailbox::new(handle.clone(), self.limits.outboxes.clone()));
        let place = connections.open.insert(Open { handle: handle.clone(), mailbox: mailbox.clone() });
        Ok(Registration { registry: self.clone(), handle, mailbox, place })
    }

    /// How many connections are open.
    pub(crate) fn len(&self) -> usize {
        self.connections().open.len()
    }

    /// Admits nobody else from now on.
    pub(crate) fn drain(&self) {
        let _connections = self.connections();
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Admits clients again.
    pub(crate) fn undrain(&self) {
        let _connections = self.connections();
        self.draining.store(false, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Tells every connection to end, and says how many were told.
    pub(crate) fn stop_all(&self, stop: Stop) -> usize {
        let mut told = 0;
        self.for_each(|open| told += usize::from(open.handle.stop(stop)));
        told
    }

    /// Tells every connection to go for a while: its session may come back.
    pub(crate) fn send_away(&self) {
        self.stop_all(Stop::SentAway);
    }

    /// The same, in random order and spread evenly over the period.
    pub(crate) async fn send_away_over(&self, period: Duration) {
        self.stop_over(period, Stop::SentAway).await;
    }

    /// Tells the open connections to end, in random order and spread evenly over `period`. Ends early once none is open.
    ///
    /// Each look tells a connection with the same chance as the look's share of the time that was left. So nothing is
    /// kept for a connection: no list of an order, and no time of its own.
    pub(crate) async fn stop_over(&self, period: Duration, stop: Stop) {
        let mut looked_at = Instant::now();
        let end = looked_at + period;
        while looked_at < end && self.len() > 0 {
            tokio::time::sleep_until(end.min(looked_at + DRAIN_STEP)).await;
            let now = Instant::now();
            self.stop_share(now - looked_at, end - looked_at, stop);
            looked_at = now;
        }
    }

    /// Tells as large a share of the connections to end as `passed` is of `left`, drawn at random.
    fn stop_share(&self, passed: Duration, left: Duration, stop: Stop) {
        // Its keys differ at each look, so that a connection is drawn anew. Much cheaper than the system's random numbers.
        let draw = RandomState::new();
        // A cast to an integer saturates, so that a look that comes late, after the end, tells everybody.
        let below = (passed.as_secs_f64() / left.as_secs_f64() * u64::MAX as f64) as u64;
        self.for_each(|open| {
            if draw.hash_one(open.handle.id()) <= below {
                open.handle.stop(stop);
            }
        });
    }

    /// How much is queued right now.
    pub(crate) fn depths(&self) -> Depths {
        let mut depths = Depths::default();
        self.for_each(|open| {
            let depth = open.mailbox.depth();
            depths.connections += 1;
            depths.messages += (depth.messages + depth.late) as usize;
            depths.bytes += depth.bytes;
            depths.messages_max = depths.messages_max.max(depth.messages as usize);
            depths.bytes_max = depths.bytes_max.max(depth.bytes);
        });
        depths
    }

    /// What receivers have queued in all.
    pub(crate) fn outboxes(&self) -> &Outboxes {
        &self.limits.outboxes
    }

    /// The receivers whose queues take so many bytes or more, each with how many.
    pub(crate) fn fullest(&self, bytes_min: usize) -> Vec<Ranked<Mailbox>> {
        let mut fullest = Vec::new();
        self.for_each(|open| {
            let bytes = open.mailbox.depth().memory();
            if bytes >= bytes_min {
                fullest.push(Ranked { bytes, of: open.mailbox.clone() });
            }
        });
        fullest
    }

    /// Moves the clock on and wakes the connections whose alarm is due, for ever. One interval for all connections:
    /// a timer in each would cost memory and a lock on the runtime's timer wheel.
    pub(crate) async fn keep_time(&self) {
        let mut interval = tokio::time::interval(self.clock.tick);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let now = self.clock.set();
            self.for_each(|open| open.handle.wake_if_due(now));
            if let Some(age_max) = self.limits.age_max {
                self.stop_aged(age_max, std::time::Instant::now());
            }
        }
    }

    /// Tells the connections to end that were open for their share of the age, which is three quarters to all of it.
    fn stop_aged(&self, age_max: Duration, now: std::time::Instant) {
        let (early, late) = (age_max * 3 / 4, age_max / 4);
        self.for_each(|open| {
            let age = now.saturating_duration_since(open.handle.since());
            if age >= early {
                let share = self.dither.hash_one(open.handle.id()) as f64 / u64::MAX as f64;
                if age >= early + late.mul_f64(share) {
                    open.handle.stop(Stop::Aged);
                }
            }
        });
    }

    fn for_each(&self, mut visit: impl FnMut(&Open)) {
        let mut from = 0;
        loop {
            let connections = self.connections();
            let capacity = connections.open.capacity();
            let to = capacity.min(from + SWEEP_CHUNK);
            for place in from..to {
                if let Some(open) = connections.open.get(place) {
                    visit(open);
                }
            }
            if to == capacity {
                return;
            }
            from = to;
        }
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        // A panic in a few map steps can only be running out of memory; the other connections are still good.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A coarse clock: ticks since the gateway started. Deadlines are kept to within one tick.
#[derive(Debug)]
pub(crate) struct Clock {
    tick: Duration,
    start: Instant,
    now: AtomicU64,
}

impl Clock {
    pub(crate) fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// The first tick that is sure to be `wait` or more from now.
    pub(crate) fn after(&self, wait: Duration) -> u64 {
        let ticks = wait.as_nanos().div_ceil(self.tick.as_nanos());
        self.now().saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX)).saturating_add(1)
    }

    fn set(&self) -> u64 {
        let now = u64::try_from(self.start.elapsed().as_nanos() / self.tick.as_nanos()).unwrap_or(u64::MAX);
        self.now.store(now, Ordering::Relaxed);
        now
    }
}

/// One connection's place in the registry. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Registration {
    registry: Arc<Registry>,
    handle: Arc<Handle>,
    mailbox: Arc<Mailbox>,
    place: usize,
}

impl Registration {
    pub(crate) fn id(&self) -> ConnectionId {
        self.handle.id()
    }

    pub(crate) fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }

    /// What the connection has coming.
    pub(crate) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.registry.clock
    }

    /// The connection goes on with a session's mailbox in place of its own.
    pub(crate) fn go_on_with(&mut self, mailbox: Arc<Mailbox>) {
        self.registry.connections().open[self.place].mailbox = mailbox.clone();
        self.mailbox = mailbox;
    }

    /// The mailbox is the session's alone from here on, and this connection has nothing coming until it is closed.
    pub(crate) fn leave_mailbox(&mut self) {
        let outboxes = self.registry.limits.outboxes.clone();
        let left = Mailbox::left_by(self.mailbox.id(), self.handle.clone(), outboxes);
        self.go_on_with(Arc::new(left));
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut connections = self.registry.connections();
        connections.open.remove(self.place);
        if connections.open.is_empty() {
            connections.open.shrink_to_fit();
        }
        let subscriber = subscriber(self.handle.peer().ip());
        if let Some(from_address) = connections.per_address.get_mut(&subscriber) {
            *from_address -= 1;
            if *from_address == 0 {
                connections.per_address.remove(&subscriber);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::Capacity;

    const CONNECTIONS: usize = 10_000;
    const PERIOD: Duration = Duration::from_secs(60);

    fn registry() -> Arc<Registry> {
        let outboxes = Outboxes::new(Capacity { messages_max: 1, bytes_max: 1 });
        let limits = Limits { connections_max: CONNECTIONS, connections_per_address_max: 0, age_max: None, outboxes };
        Arc::new(Registry::new(limits, Arc::new(Names::new()), Duration::from_secs(1)))
    }

    fn filled(registry: &Arc<Registry>) -> Vec<Registration> {
        let admit = |_| registry.admit(([127, 0, 0, 1], 1).into()).expect("room for it");
        (0..CONNECTIONS).map(admit).collect()
    }

    fn told(registrations: &[Registration]) -> usize {
        registrations.iter().filter(|registration| registration.handle().stopped().is_some()).count()
    }

    /// The time is the test's own, and late at every third look, as on a busy machine.
    #[test]
    fn a_drain_tells_all_connections_in_random_order_and_evenly_over_its_period() {
        let registry = registry();
        let registrations = filled(&registry);
        let (mut passed, mut before) = (Duration::ZERO, 0);
        for tenth in 1..=10 {
            let mut looks = (1..).map(|look| if look % 3 == 0 { DRAIN_STEP * 4 } else { DRAIN_STEP });
            while passed < PERIOD * tenth / 10 {
                let step = looks.next().expect("without end").min(PERIOD * tenth / 10 - passed);
                registry.stop_share(step, PERIOD - passed, Stop::GoingAway);
                passed += step;
            }
            let now = told(&registrations);
            // A tenth is 1,000, and 300 is ten times its standard deviation.
            assert!((700..1300).contains(&(now - before)), "{} told in tenth {tenth}", now - before);
            before = now;
            if tenth == 5 {
                let early = told(&registrations[..CONNECTIONS / 2]);
                assert!((2000..3000).contains(&early), "{early} of {now} told were among the first to come");
            }
        }
        assert_eq!(before, CONNECTIONS, "at the end of the period all are told");
    }

    #[test]
    fn connections_that_came_together_age_evenly_over_the_last_quarter_of_their_age() {
        let registry = registry();
        let registrations = filled(&registry);
        let came = registrations[CONNECTIONS - 1].handle().since();
        let begun = registrations[0].handle().since();
        registry.stop_aged(PERIOD, begun + PERIOD * 3 / 4 - Duration::from_nanos(1));
        assert_eq!(told(&registrations), 0);
        let mut before = 0;
        for tenth in 1..=10 {
            registry.stop_aged(PERIOD, came + PERIOD * (30 + tenth) / 40);
            let now = told(&registrations);
            assert!((700..1300).contains(&(now - before)), "{} told in tenth {tenth}", now - before);
            before = now;
        }
        assert_eq!(before, CONNECTIONS, "none is older than the age");
    }

    #[test]
    fn a_look_that_comes_after_the_end_of_the_drain_tells_everybody() {
        let registry = registry();
        let registrations = filled(&registry);
        registry.stop_share(PERIOD * 2, PERIOD, Stop::GoingAway);
        assert_eq!(told(&registrations), CONNECTIONS);
    }
}

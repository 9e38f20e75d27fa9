//! Every open connection by id: admission under the limits, listing, and the sweep that keeps their time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;

use crate::message::{ConnectionId, Names};
use crate::outbox::{Capacity, Depth, Outbox, Stop};

/// Connections looked at before the lock is given to whoever waits for it.
const SWEEP_CHUNK: usize = 1024;

/// All open connections of this process.
#[derive(Debug)]
pub(crate) struct Registry {
    limits: Limits,
    names: Arc<Names>,
    clock: Clock,
    /// A std mutex of its own beside the binder's: connections come and go here without a push noticing, and no code
    /// holds both.
    connections: Mutex<Connections>,
    /// Once set, nobody else is admitted. Written under the lock, so that whoever was admitted before is told to stop.
    draining: AtomicBool,
}

/// What the registry admits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections in all.
    pub(crate) connections_max: usize,
    /// Connections from one address; 0 for no limit.
    pub(crate) connections_per_address_max: usize,
    /// What each connection's outbox holds.
    pub(crate) outbox: Capacity,
}

#[derive(Debug, Default)]
struct Connections {
    open: Slab<Arc<Outbox>>,
    /// Kept only while a limit per address is set.
    per_address: HashMap<IpAddr, usize>,
}

/// Why a connection was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AdmitError {
    #[error("the gateway is at its limit of {limit} connections")]
    TooMany { limit: usize },
    #[error("too many connections from this address, the limit is {limit}")]
    TooManyFromAddress { limit: usize },
    #[error("the gateway is shutting down")]
    Draining,
}

/// How full the outboxes are, over all connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Depths {
    pub(crate) connections: usize,
    pub(crate) total: Depth,
    /// Messages in the fullest outbox.
    pub(crate) messages_max: usize,
    /// Bytes in the one that holds the most.
    pub(crate) bytes_max: usize,
}

impl Registry {
    /// `tick` is how finely the deadlines of connections are kept.
    pub(crate) fn new(limits: Limits, names: Arc<Names>, tick: Duration) -> Self {
        Self {
            limits,
            names,
            clock: Clock { tick, start: Instant::now(), now: AtomicU64::new(0) },
            connections: Mutex::default(),
            draining: AtomicBool::new(false),
        }
    }

    /// Admits one more connection, and names it.
    ///
    /// # Errors
    /// Refuses over a limit, and while draining.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Registration, AdmitError> {
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
            let from_address = connections.per_address.entry(address).or_default();
            if *from_address >= limit {
                return Err(AdmitError::TooManyFromAddress { limit });
            }
            *from_address += 1;
        }
        let outbox = Arc::new(Outbox::new(self.names.connection_id(), self.limits.outbox));
        let place = connections.open.insert(outbox.clone());
        Ok(Registration { registry: self.clone(), outbox, address, place })
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

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Tells every connection to end, and says how many were told.
    pub(crate) fn stop_all(&self, stop: Stop) -> usize {
        let mut told = 0;
        self.for_each(|outbox| told += usize::from(outbox.stop(stop)));
        told
    }

    /// How full the outboxes are right now.
    pub(crate) fn depths(&self) -> Depths {
        let mut depths = Depths::default();
        self.for_each(|outbox| {
            let depth = outbox.depth();
            depths.connections += 1;
            depths.total.messages += depth.messages + depth.late;
            depths.total.bytes += depth.bytes;
            depths.messages_max = depths.messages_max.max(depth.messages);
            depths.bytes_max = depths.bytes_max.max(depth.bytes);
        });
        depths
    }

    /// Moves the clock on and wakes the connections whose alarm is due, for ever. One interval for all connections:
    /// a timer in each would cost memory and a lock on the runtime's timer wheel.
    pub(crate) async fn keep_time(&self) {
        let mut interval = tokio::time::interval(self.clock.tick);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let now = self.clock.set();
            self.for_each(|outbox| outbox.wake_if_due(now));
        }
    }

    fn for_each(&self, mut visit: impl FnMut(&Outbox)) {
        let mut from = 0;
        loop {
            let connections = self.connections();
            let capacity = connections.open.capacity();
            let to = capacity.min(from + SWEEP_CHUNK);
            for place in from..to {
                if let Some(outbox) = connections.open.get(place) {
                    visit(outbox);
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
    outbox: Arc<Outbox>,
    address: IpAddr,
    place: usize,
}

impl Registration {
    pub(crate) fn id(&self) -> ConnectionId {
        self.outbox.id()
    }

    pub(crate) fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.registry.clock
    }

    /// Takes the outbox of a session that goes on over this connection, in place of the connection's own.
    pub(crate) fn adopt(&mut self, outbox: Arc<Outbox>) {
        let mut connections = self.registry.connections();
        // Under the lock that `stop_all` takes too, so that a shutdown is told to the one or to the other.
        if let Some(stop @ (Stop::GoingAway | Stop::Cut)) = self.outbox.told_to_stop() {
            outbox.stop(stop);
        }
        connections.open[self.place] = outbox.clone();
        drop(connections);
        self.outbox = outbox;
    }

    /// Leaves the outbox to its session, and goes on with an empty one until the connection is closed.
    pub(crate) fn part_with_outbox(&mut self) {
        let Registry { names, limits, .. } = &*self.registry;
        self.adopt(Arc::new(Outbox::new(names.connection_id(), limits.outbox)));
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut connections = self.registry.connections();
        connections.open.remove(self.place);
        if connections.open.is_empty() {
            connections.open.shrink_to_fit();
        }
        if let Some(from_address) = connections.per_address.get_mut(&self.address) {
            *from_address -= 1;
            if *from_address == 0 {
                connections.per_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::net::Ipv4Addr;
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn a_connection_that_goes_on_with_a_session_has_not_missed_the_shutdown() {
        for stop in [Stop::GoingAway, Stop::Cut] {
            let capacity = Capacity { messages_max: 1, bytes_max: 1 };
            let limits = Limits { connections_max: 1, connections_per_address_max: 0, outbox: capacity };
            let names = Arc::new(Names::new());
            let registry = Arc::new(Registry::new(limits, names.clone(), Duration::from_secs(1)));
            let mut registration = registry.admit(Ipv4Addr::LOCALHOST.into()).expect("room");
            assert_eq!(registry.stop_all(stop), 1);
            // The check of its token was done at the same moment, and comes first.
            registration.adopt(Arc::new(Outbox::new(names.connection_id(), capacity)));
            let cx = Context::from_waker(Waker::noop());
            let seen = registration.outbox().visit(&cx, Depth::default(), &mut VecDeque::new(), 1);
            assert_eq!(seen, Some(stop));
        }
    }
}

//! The places of one listener: how many connections that speak HTTP it keeps, and which of them goes when they are full.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::traffic::Traffic;

/// Connections that one arrival looks at to find one that is idle. More than one is needed only while many have made
/// requests since they were looked at last.
const LOOKS_MAX: usize = 32;

/// A listener's places. Nothing of them is shared with another listener.
pub(super) struct Places {
    limit: usize,
    /// 0 for no limit.
    per_address_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    next_id: u64,
    by_id: HashMap<u64, Occupant>,
    /// By when each was seen active last. It may have been active since, never the other way round, so that the first
    /// one whose time is still right has been idle for longest.
    by_time: BTreeSet<(Instant, u64)>,
    by_address: HashMap<IpAddr, usize>,
}

struct Occupant {
    traffic: Arc<Traffic>,
    address: IpAddr,
    seen_active: Instant,
}

/// A taken place, free again when this is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    id: u64,
}

/// How a connection came to its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Free,
    /// The connection that was idle for longest is told to go.
    Evicted,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// All are taken by connections with a request in hand.
    Full,
    FullForAddress,
}

impl Places {
    pub(super) fn new(limit: usize, per_address_max: usize) -> Arc<Self> {
        Arc::new(Self { limit, per_address_max, taken: Mutex::default() })
    }

    /// Takes a place for a connection from this address, if need be from the one that has been idle for longest.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr, traffic: Arc<Traffic>) -> Result<(Place, Found), NoPlace> {
        let mut taken = self.lock();
        let from_address = taken.by_address.get(&address).copied().unwrap_or(0);
        if self.per_address_max > 0 && from_address >= self.per_address_max {
            return Err(NoPlace::FullForAddress);
        }
        let found = if taken.by_id.len() < self.limit {
            Found::Free
        } else {
            taken.evict().ok_or(NoPlace::Full)?;
            Found::Evicted
        };
        let id = taken.add(Occupant { traffic, address, seen_active: Instant::now() });
        Ok((Place { places: self.clone(), id }, found))
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// How many places are taken.
    pub(super) fn taken(&self) -> usize {
        self.lock().by_id.len()
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn add(&mut self, occupant: Occupant) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.by_time.insert((occupant.seen_active, id));
        *self.by_address.entry(occupant.address).or_default() += 1;
        self.by_id.insert(id, occupant);
        id
    }

    fn remove(&mut self, id: u64) -> Option<Occupant> {
        let occupant = self.by_id.remove(&id)?;
        self.by_time.remove(&(occupant.seen_active, id));
        if let Some(count) = self.by_address.get_mut(&occupant.address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&occupant.address);
            }
        }
        Some(occupant)
    }

    /// Tells the connection that has been idle for longest to go. `None` when none that was looked at is idle.
    fn evict(&mut self) -> Option<()> {
        for _ in 0..LOOKS_MAX {
            let (seen_active, id) = *self.by_time.first()?;
            let occupant = self.by_id.get_mut(&id)?;
            let idle_since = occupant.traffic.idle_since();
            if idle_since.is_some_and(|since| since <= seen_active) {
                self.remove(id)?.traffic.evict();
                return Some(());
            }
            occupant.seen_active = idle_since.unwrap_or_else(Instant::now);
            let seen_active = occupant.seen_active;
            self.by_time.pop_first();
            self.by_time.insert((seen_active, id));
        }
        None
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // One that was evicted has no place any more.
        let _evicted_before = self.places.lock().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn the_one_that_is_idle_for_longest_goes_and_one_with_a_request_stays() {
        let places = Places::new(3, 0);
        let traffic: [Arc<Traffic>; 5] = std::array::from_fn(|_| Traffic::new());
        let take = |at: usize| places.take(HERE, traffic[at].clone());
        let _taken = (take(0), take(1), take(2));
        let in_hand = traffic[0].begin();
        drop(traffic[1].begin());
        assert_eq!(take(3).map(|(_, found)| found), Ok(Found::Evicted));
        let evicted: Vec<bool> = traffic.iter().map(|traffic| traffic.is_evicted()).collect();
        assert_eq!(evicted, [false, false, true, false, false]);
        drop(in_hand);
    }

    #[test]
    fn a_place_is_free_again_and_one_that_was_evicted_frees_no_other() {
        let places = Places::new(1, 0);
        let (first, _) = places.take(HERE, Traffic::new()).expect("free");
        let second = places.take(HERE, Traffic::new()).expect("the first is idle");
        assert_eq!(second.1, Found::Evicted);
        drop(first);
        let traffic = Traffic::new();
        let third = places.take(HERE, traffic.clone()).expect("the second is idle");
        assert_eq!(third.1, Found::Evicted);
        let in_hand = traffic.begin();
        assert_eq!(places.take(HERE, Traffic::new()).err(), Some(NoPlace::Full));
        drop((in_hand, third));
        assert_eq!(places.take(HERE, Traffic::new()).map(|(_, found)| found), Ok(Found::Free));
        assert!(places.lock().by_time.is_empty() && places.lock().by_address.is_empty());
    }

    #[test]
    fn an_address_has_its_share() {
        let places = Places::new(3, 1);
        let first = places.take(HERE, Traffic::new()).expect("free");
        assert_eq!(places.take(HERE, Traffic::new()).err(), Some(NoPlace::FullForAddress));
        assert!(places.take([127, 0, 0, 2].into(), Traffic::new()).is_ok());
        drop(first);
        assert!(places.take(HERE, Traffic::new()).is_ok());
    }
}

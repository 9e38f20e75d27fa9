//! The connection limit of one listener. Each HTTP connection takes one of its places, and when all are taken, an idle
//! connection is evicted.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::subscriber::subscriber;

use super::traffic::Traffic;

/// The maximum number of connections that one arrival checks to find an idle one. More than one check is needed only if
/// connections have made requests since their last check.
const CHECKS_MAX: usize = 32;

/// The maximum number of evicted connections that still have their files. An arrival past this limit waits, so that a
/// burst of arrivals never holds many more files than there are places.
const LEAVING_MAX: usize = 16;

/// The places of one listener. Listeners share no places.
pub(super) struct Places {
    limit: usize,
    /// 0 for no limit.
    per_address_max: usize,
    taken: Mutex<Taken>,
    leaving: Arc<Semaphore>,
}

#[derive(Default)]
struct Taken {
    next_id: u64,
    by_id: HashMap<u64, Occupant>,
    by_address: HashMap<IpAddr, BTreeSet<Rank>>,
    /// Every address once, ordered by how many places it has.
    by_count: BTreeSet<(usize, IpAddr)>,
}

/// The order in which the connections of an address are evicted: first those that never made a request, then those idle
/// for longest. A rank is as of the last check of the connection. Since then the rank can only have become worse,
/// because the connection made a request. So the first connection whose rank is still right is the one to evict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    has_requested: bool,
    seen_active: Instant,
    id: u64,
}

struct Occupant {
    traffic: Arc<Traffic>,
    address: IpAddr,
    rank: Rank,
}

/// A taken place. Dropping it frees the place.
pub(super) struct Place {
    places: Arc<Places>,
    id: u64,
}

/// What a peer that takes a place counts as in the limit of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CountsAs {
    Client(IpAddr),
    /// A trusted proxy. It has connections for many clients, so the limit of an address does not apply.
    Proxy(IpAddr),
}

impl CountsAs {
    /// The address that it counts as.
    fn address(self) -> IpAddr {
        match self {
            Self::Client(address) | Self::Proxy(address) => subscriber(address),
        }
    }
}

/// How a place was found for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Free,
    /// An idle connection was evicted to make room.
    Evicted,
}

/// Why no place was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// All places are taken by connections with a request in hand.
    Full,
    FullForAddress,
}

impl Places {
    pub(super) fn new(limit: usize, per_address_max: usize) -> Arc<Self> {
        let leaving = Arc::new(Semaphore::new(LEAVING_MAX));
        Arc::new(Self { limit, per_address_max, taken: Mutex::default(), leaving })
    }

    /// Takes a place for a connection of this peer. If all places are taken, evicts an idle connection of the
    /// address with the most places, so that whoever floods a listener pays for it. Among these, a connection that
    /// never made a request goes first, then the one idle for longest. Waits while [`LEAVING_MAX`] evicted connections
    /// have not closed yet.
    pub(super) async fn take(
        self: &Arc<Self>,
        peer: CountsAs,
        traffic: Arc<Traffic>,
    ) -> Result<(Place, Found), NoPlace> {
        let leaving = if self.taken() < self.limit { None } else { self.leaving.clone().acquire_owned().await.ok() };
        let mut taken = self.lock();
        self.check(peer, &taken)?;
        let found = if taken.by_id.len() < self.limit {
            Found::Free
        } else {
            taken.evict(leaving).ok_or(NoPlace::Full)?;
            Found::Evicted
        };
        let id = taken.add(traffic, peer.address());
        Ok((Place { places: self.clone(), id }, found))
    }

    fn check(&self, peer: CountsAs, taken: &Taken) -> Result<(), NoPlace> {
        let CountsAs::Client(_) = peer else { return Ok(()) };
        let from_address = taken.by_address.get(&peer.address()).map_or(0, BTreeSet::len);
        if self.per_address_max > 0 && from_address >= self.per_address_max {
            return Err(NoPlace::FullForAddress);
        }
        Ok(())
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// The number of taken places.
    pub(super) fn taken(&self) -> usize {
        self.lock().by_id.len()
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Gives the place to the peer that turned out to be behind a proxy.
    pub(super) fn pass_to(&self, peer: CountsAs) -> Result<(), NoPlace> {
        let mut taken = self.places.lock();
        self.places.check(peer, &taken)?;
        // An evicted connection no longer has a place.
        if let Some(occupant) = taken.remove(self.id) {
            taken.insert(self.id, Occupant { address: peer.address(), ..occupant });
        }
        Ok(())
    }
}

impl Taken {
    fn add(&mut self, traffic: Arc<Traffic>, address: IpAddr) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let rank = Rank { has_requested: false, seen_active: Instant::now(), id };
        self.insert(id, Occupant { traffic, address, rank });
        id
    }

    fn insert(&mut self, id: u64, occupant: Occupant) {
        self.change(occupant.address, |ranks| ranks.insert(occupant.rank));
        self.by_id.insert(id, occupant);
    }

    fn remove(&mut self, id: u64) -> Option<Occupant> {
        let occupant = self.by_id.remove(&id)?;
        self.change(occupant.address, |ranks| ranks.remove(&occupant.rank));
        Some(occupant)
    }

    /// Changes the ranks of an address and updates `by_count`.
    fn change(&mut self, address: IpAddr, change: impl FnOnce(&mut BTreeSet<Rank>) -> bool) {
        let ranks = self.by_address.entry(address).or_default();
        let before = ranks.len();
        change(ranks);
        let count = ranks.len();
        if count == 0 {
            self.by_address.remove(&address);
        }
        if count != before {
            self.by_count.remove(&(before, address));
            if count > 0 {
                self.by_count.insert((count, address));
            }
        }
    }

    /// Evicts a connection. Returns `None` if none of the checked connections is idle.
    fn evict(&mut self, mut leaving: Option<OwnedSemaphorePermit>) -> Option<()> {
        let mut checks = 0;
        let addresses: Vec<IpAddr> = self.by_count.iter().rev().take(CHECKS_MAX).map(|(_, address)| *address).collect();
        for address in addresses {
            let of_address = self.by_address.get(&address).map_or(0, BTreeSet::len);
            // The first pass over the connections updates their ranks, the second finds the first of them.
            for _ in 0..2 * of_address {
                if checks == CHECKS_MAX {
                    return None;
                }
                checks += 1;
                if self.evict_from(address, &mut leaving)? {
                    return Some(());
                }
            }
        }
        None
    }

    /// Checks the connection of an address that is first in the eviction order. Returns whether it was evicted.
    fn evict_from(&mut self, address: IpAddr, leaving: &mut Option<OwnedSemaphorePermit>) -> Option<bool> {
        let rank = *self.by_address.get(&address)?.first()?;
        let occupant = self.by_id.get_mut(&rank.id)?;
        let (has_requested, idle_since) = occupant.traffic.seen();
        let now = Rank { has_requested, seen_active: idle_since.unwrap_or_else(Instant::now), id: rank.id };
        if idle_since.is_some() && now <= rank {
            self.remove(rank.id)?.traffic.evict(leaving.take());
            return Some(true);
        }
        occupant.rank = now;
        let ranks = self.by_address.get_mut(&address)?;
        ranks.remove(&rank);
        ranks.insert(now);
        Some(false)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // An evicted connection no longer has a place.
        let _evicted_before = self.places.lock().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const HERE: CountsAs = CountsAs::Client(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));

    #[tokio::test]
    async fn the_connection_idle_for_longest_is_evicted_and_one_with_a_request_stays() {
        let places = Places::new(3, 0);
        let traffic: [Arc<Traffic>; 5] = std::array::from_fn(|_| Traffic::new());
        let take = |at: usize| places.take(HERE, traffic[at].clone());
        let _taken = (take(0).await, take(1).await, take(2).await);
        let in_hand = traffic[0].begin();
        drop(traffic[1].begin());
        assert_eq!(take(3).await.map(|(_, found)| found), Ok(Found::Evicted));
        let evicted: Vec<bool> = traffic.iter().map(|traffic| traffic.is_evicted()).collect();
        assert_eq!(evicted, [false, false, true, false, false]);
        drop(in_hand);
    }

    #[tokio::test]
    async fn a_dropped_place_is_free_again_and_an_evicted_one_frees_no_other() {
        let places = Places::new(1, 0);
        let (first, _) = places.take(HERE, Traffic::new()).await.expect("free");
        let second = places.take(HERE, Traffic::new()).await.expect("the first is idle");
        assert_eq!(second.1, Found::Evicted);
        drop(first);
        let traffic = Traffic::new();
        let third = places.take(HERE, traffic.clone()).await.expect("the second is idle");
        assert_eq!(third.1, Found::Evicted);
        let in_hand = traffic.begin();
        assert_eq!(places.take(HERE, Traffic::new()).await.err(), Some(NoPlace::Full));
        drop((in_hand, third));
        assert_eq!(places.take(HERE, Traffic::new()).await.map(|(_, found)| found), Ok(Found::Free));
        let taken = places.lock();
        assert!(taken.by_id.is_empty() && taken.by_address.is_empty() && taken.by_count.is_empty());
    }

    #[tokio::test]
    async fn the_address_with_the_most_places_loses_one_first_of_a_connection_that_made_no_request() {
        let places = Places::new(4, 0);
        let traffic: [Arc<Traffic>; 6] = std::array::from_fn(|_| Traffic::new());
        let take = |at: usize, address: [u8; 4]| places.take(CountsAs::Client(address.into()), traffic[at].clone());
        let _honest = take(0, [127, 0, 0, 9]).await;
        let flood = [127, 0, 0, 1];
        let _flood = (take(1, flood).await, take(2, flood).await, take(3, flood).await);
        drop(traffic[1].begin());
        let one_more = take(4, flood).await.expect("one of its own goes");
        let evicted = || traffic.iter().map(|traffic| traffic.is_evicted()).collect::<Vec<_>>();
        assert_eq!(evicted(), [false, false, true, false, false, false], "idle for longest is the honest one");
        let honest_too = take(5, [127, 0, 0, 9]).await.expect("one of the others' goes");
        assert_eq!((one_more.1, honest_too.1), (Found::Evicted, Found::Evicted));
        assert!(!traffic[0].is_evicted() && traffic[3].is_evicted(), "and not the one that made a request");
    }

    #[tokio::test]
    async fn an_idle_connection_is_found_even_if_all_have_made_requests_since_they_were_accepted() {
        let places = Places::new(3, 0);
        let traffic: [Arc<Traffic>; 3] = std::array::from_fn(|_| Traffic::new());
        let mut taken = Vec::new();
        for traffic in &traffic {
            taken.push(places.take(HERE, traffic.clone()).await);
        }
        let _in_hand = traffic[0].begin();
        drop(traffic[2].begin());
        drop(traffic[1].begin());
        assert_eq!(places.take(HERE, Traffic::new()).await.map(|(_, found)| found), Ok(Found::Evicted));
        assert!(traffic[2].is_evicted(), "idle for longer");
    }

    #[tokio::test]
    async fn an_address_has_its_own_limit() {
        let places = Places::new(3, 1);
        let first = places.take(HERE, Traffic::new()).await.expect("free");
        assert_eq!(places.take(HERE, Traffic::new()).await.err(), Some(NoPlace::FullForAddress));
        assert!(places.take(CountsAs::Client([127, 0, 0, 2].into()), Traffic::new()).await.is_ok());
        drop(first);
        assert!(places.take(HERE, Traffic::new()).await.is_ok());
    }

    #[tokio::test]
    async fn a_proxy_has_no_limit_of_an_address_and_the_clients_behind_it_have() {
        let places = Places::new(4, 1);
        let proxy = CountsAs::Proxy([10, 0, 0, 1].into());
        let mut taken = Vec::new();
        for _ in 0..3 {
            taken.push(places.take(proxy, Traffic::new()).await.expect("free").0);
        }
        assert_eq!(taken[0].pass_to(HERE), Ok(()));
        assert_eq!(taken[1].pass_to(HERE), Err(NoPlace::FullForAddress));
        assert_eq!(taken[2].pass_to(CountsAs::Proxy([127, 0, 0, 1].into())), Ok(()));
        taken.clear();
        let taken = places.lock();
        assert!(taken.by_id.is_empty() && taken.by_address.is_empty() && taken.by_count.is_empty());
    }

    #[tokio::test]
    async fn an_arrival_waits_while_many_evicted_connections_still_have_their_files() {
        let places = Places::new(1, 0);
        let mut traffic: Vec<_> = (0..=LEAVING_MAX).map(|_| Traffic::new()).collect();
        let mut taken = Vec::new();
        for traffic in &traffic {
            taken.push(places.take(HERE, traffic.clone()).await.expect("the one before is idle"));
        }
        let mut one_more = Box::pin(places.take(HERE, Traffic::new()));
        assert!((&mut one_more).now_or_never().is_none());
        traffic.swap_remove(0);
        assert_eq!(one_more.await.map(|(_, found)| found), Ok(Found::Evicted));
    }
}

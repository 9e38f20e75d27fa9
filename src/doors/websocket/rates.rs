//! How often each address may ask for an upgrade.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::allowance::{Allowance, BURST};

/// Addresses that are remembered at one time: twice this, for a few MiB. Past it, those that came least recently are
/// forgotten early, and may come as if they never had.
const ADDRESSES_MAX: usize = 65_536;

/// The allowances of the addresses that came lately.
#[derive(Debug)]
pub(super) struct Rates {
    /// 0 for no limit.
    per_second: u32,
    known: Mutex<Known>,
}

/// An address that has not come for [`BURST`] has its whole allowance again, and needs none here. So every allowance is
/// forgotten after once to twice that time, without looking at each.
#[derive(Debug)]
struct Known {
    recent: HashMap<IpAddr, Allowance>,
    older: HashMap<IpAddr, Allowance>,
    since: Instant,
}

impl Rates {
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        let known = Known { recent: HashMap::new(), older: HashMap::new(), since: now };
        Self { per_second, known: Mutex::new(known) }
    }

    /// Counts an upgrade of this address, unless it has had too many. One that is refused does not count.
    pub(super) fn allows(&self, address: IpAddr, now: Instant) -> bool {
        if self.per_second == 0 {
            return true;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let age = now.saturating_duration_since(known.since);
        if age >= BURST || known.recent.len() >= ADDRESSES_MAX {
            known.older = std::mem::take(&mut known.recent);
            if age >= 2 * BURST {
                known.older = HashMap::new();
            }
            known.since = now;
        }
        let Known { recent, older, .. } = &mut *known;
        let allowance = recent
            .entry(address)
            .or_insert_with(|| older.remove(&address).unwrap_or_else(|| Allowance::new(self.per_second, now)));
        allowance.try_spend(1, now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ANN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const BOB: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    /// How many of these are allowed at one time.
    fn allowed(rates: &Rates, address: IpAddr, now: Instant) -> usize {
        (0..100).filter(|_| rates.allows(address, now)).count()
    }

    #[test]
    fn each_address_has_a_rate_and_a_burst_of_its_own_and_refusals_cost_nothing() {
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let rates = Rates::new(2, start);
        assert_eq!(allowed(&rates, ANN, start), 20);
        assert_eq!(allowed(&rates, BOB, start), 20);
        for second in 1..60 {
            assert_eq!(allowed(&rates, ANN, after(second)), 2, "second {second}");
        }
        assert_eq!(allowed(&rates, BOB, after(60)), 20);
        assert_eq!(allowed(&Rates::new(0, start), ANN, start), 100, "no limit");
    }

    #[test]
    fn addresses_that_are_gone_are_forgotten() {
        let start = Instant::now();
        let rates = Rates::new(1, start);
        for number in 0..1000_u32 {
            assert!(rates.allows(IpAddr::V4(number.into()), start));
        }
        for rounds in 1..3 {
            rates.allows(ANN, start + rounds * BURST);
        }
        let known = rates.known.lock().expect("sound");
        assert_eq!(known.recent.len() + known.older.len(), 1);
    }

    #[test]
    fn no_number_of_addresses_takes_more_than_its_room() {
        let start = Instant::now();
        let rates = Rates::new(1, start);
        for number in 0..(3 * ADDRESSES_MAX as u32) {
            rates.allows(IpAddr::V4(number.into()), start);
        }
        let known = rates.known.lock().expect("sound");
        assert!(known.recent.len() <= ADDRESSES_MAX && known.older.len() <= ADDRESSES_MAX);
    }
}

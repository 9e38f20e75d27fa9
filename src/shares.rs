//! A resource that all callers share. The total is limited, and each caller may use at most half of it, so that no
//! caller can lock out the others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The total of the resource and who uses how much of it.
#[derive(Debug)]
pub(crate) struct Shares {
    max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_payer: HashMap<Payer, usize>,
}

/// The party whose share is used.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Payer {
    /// A caller with an API key, by the name of its scope.
    Key(Arc<str>),
    /// A caller without an API key, by its address.
    Address(IpAddr),
    /// The embedding program. It may use all of the resource, not just half.
    Library,
}

/// The resource is used up, or the caller's share of it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exhausted;

/// The amount that one request or push uses. Dropping it gives the amount back.
#[derive(Debug)]
pub(crate) struct Share {
    shares: Arc<Shares>,
    payer: Payer,
    taken: usize,
}

impl Shares {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, taken: Mutex::default() })
    }

    /// A share for this payer, empty at first.
    pub(crate) fn share(self: &Arc<Self>, payer: Payer) -> Share {
        Share { shares: self.clone(), payer, taken: 0 }
    }

    /// The amount in use by all payers.
    pub(crate) fn taken(&self) -> usize {
        self.lock().all
    }

    fn limit_for(&self, payer: &Payer) -> usize {
        match payer {
            Payer::Library => self.max,
            Payer::Key(_) | Payer::Address(_) => self.max.div_ceil(2),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // A poisoned lock is safe to use: it guards only counts, and no panic can leave one half changed.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Takes `more` in addition.
    pub(crate) fn take(&mut self, more: usize) -> Result<(), Exhausted> {
        if more == 0 {
            return Ok(());
        }
        let mut taken = self.shares.lock();
        let own = taken.by_payer.get(&self.payer).copied().unwrap_or_default();
        let limit = self.shares.limit_for(&self.payer);
        if own.saturating_add(more) > limit || taken.all.saturating_add(more) > self.shares.max {
            return Err(Exhausted);
        }
        taken.all += more;
        match taken.by_payer.get_mut(&self.payer) {
            Some(own) => *own += more,
            None => drop(taken.by_payer.insert(self.payer.clone(), more)),
        }
        self.taken += more;
        Ok(())
    }

    /// Takes more or gives some back, so that the share is exactly `amount`.
    pub(crate) fn hold(&mut self, amount: usize) -> Result<(), Exhausted> {
        self.give_back(self.taken.saturating_sub(amount));
        self.take(amount.saturating_sub(self.taken))
    }

    fn give_back(&mut self, less: usize) {
        if less == 0 {
            return;
        }
        self.taken -= less;
        let mut taken = self.shares.lock();
        taken.all -= less;
        if let Some(own) = taken.by_payer.get_mut(&self.payer) {
            *own -= less;
            if *own == 0 {
                taken.by_payer.remove(&self.payer);
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back(self.taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_gets_at_most_half_and_all_that_is_given_back_is_free_again() {
        let shares = Shares::new(100);
        let key = |name: &str| shares.share(Payer::Key(name.into()));
        let (mut first, mut second) = (key("a"), key("a"));
        assert_eq!((first.take(30), second.take(20)), (Ok(()), Ok(())));
        assert_eq!(second.take(1), Err(Exhausted), "half is taken by a");
        let mut other = key("b");
        assert_eq!(other.take(50), Ok(()));
        assert_eq!(key("c").take(1), Err(Exhausted), "all is taken");
        drop(first);
        assert_eq!((second.take(30), second.take(1)), (Ok(()), Err(Exhausted)));
        drop((second, other));
        let taken = shares.lock();
        assert_eq!((taken.all, taken.by_payer.len()), (0, 0));
    }

    #[test]
    fn a_share_grows_and_shrinks() {
        let shares = Shares::new(100);
        let mut share = shares.share(Payer::Key("a".into()));
        for (amount, held, taken) in [(30, Ok(()), 30), (50, Ok(()), 50), (51, Err(Exhausted), 50), (7, Ok(()), 7)] {
            assert_eq!((share.hold(amount), shares.taken()), (held, taken));
        }
        assert_eq!((share.hold(0), shares.taken(), shares.lock().by_payer.len()), (Ok(()), 0, 0));
    }

    #[test]
    fn any_caller_may_take_a_total_of_one_and_the_library_may_take_all() {
        let shares = Shares::new(1);
        assert_eq!(shares.share(Payer::Key("a".into())).take(1), Ok(()));
        let shares = Shares::new(10);
        assert_eq!(shares.share(Payer::Library).take(10), Ok(()));
    }
}

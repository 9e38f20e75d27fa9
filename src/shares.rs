//! Something that all callers use up together: bounded over all, and for each of them to half of that, so that no one caller
//! keeps out the others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What there is, and who has it.
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

/// To whom something is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Payer {
    /// A caller with a key, by the name of its scope.
    Key(Arc<str>),
    /// One without.
    Address(IpAddr),
    /// The embedding program, which shares with nobody.
    Library,
}

/// There is nothing left, or nothing left for this caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoneLeft;

/// What one request or push has. Dropped, it is given back.
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

    /// Nothing yet, for this payer.
    pub(crate) fn share(self: &Arc<Self>, payer: Payer) -> Share {
        Share { shares: self.clone(), payer, taken: 0 }
    }

    /// How much is taken by now.
    pub(crate) fn taken(&self) -> usize {
        self.lock().all
    }

    fn most_for(&self, payer: &Payer) -> usize {
        match payer {
            Payer::Library => self.max,
            Payer::Key(_) | Payer::Address(_) => self.max.div_ceil(2),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Counts alone, each changed whole.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Takes so much more.
    pub(crate) fn take(&mut self, more: usize) -> Result<(), NoneLeft> {
        if more == 0 {
            return Ok(());
        }
        let mut taken = self.shares.lock();
        let own = taken.by_payer.get(&self.payer).copied().unwrap_or_default();
        let most = self.shares.most_for(&self.payer);
        if own.saturating_add(more) > most || taken.all.saturating_add(more) > self.shares.max {
            return Err(NoneLeft);
        }
        taken.all += more;
        match taken.by_payer.get_mut(&self.payer) {
            Some(own) => *own += more,
            None => drop(taken.by_payer.insert(self.payer.clone(), more)),
        }
        self.taken += more;
        Ok(())
    }

    /// Takes more or gives back, so as to have just so much.
    pub(crate) fn hold(&mut self, much: usize) -> Result<(), NoneLeft> {
        self.give_back(self.taken.saturating_sub(much));
        self.take(much.saturating_sub(self.taken))
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
    fn one_caller_has_half_and_what_is_given_back_is_all_there_again() {
        let shares = Shares::new(100);
        let key = |name: &str| shares.share(Payer::Key(name.into()));
        let (mut first, mut second) = (key("a"), key("a"));
        assert_eq!((first.take(30), second.take(20)), (Ok(()), Ok(())));
        assert_eq!(second.take(1), Err(NoneLeft), "half is taken by a");
        let mut other = key("b");
        assert_eq!(other.take(50), Ok(()));
        assert_eq!(key("c").take(1), Err(NoneLeft), "all is taken");
        drop(first);
        assert_eq!((second.take(30), second.take(1)), (Ok(()), Err(NoneLeft)));
        drop((second, other));
        let taken = shares.lock();
        assert_eq!((taken.all, taken.by_payer.len()), (0, 0));
    }

    #[test]
    fn what_is_held_grows_and_shrinks() {
        let shares = Shares::new(100);
        let mut share = shares.share(Payer::Key("a".into()));
        for (much, held, taken) in [(30, Ok(()), 30), (50, Ok(()), 50), (51, Err(NoneLeft), 50), (7, Ok(()), 7)] {
            assert_eq!((share.hold(much), shares.taken()), (held, taken));
        }
        assert_eq!((share.hold(0), shares.taken(), shares.lock().by_payer.len()), (Ok(()), 0, 0));
    }

    #[test]
    fn the_only_place_is_anybodys_and_the_library_may_have_all() {
        let shares = Shares::new(1);
        assert_eq!(shares.share(Payer::Key("a".into())).take(1), Ok(()));
        let shares = Shares::new(10);
        assert_eq!(shares.share(Payer::Library).take(10), Ok(()));
    }
}

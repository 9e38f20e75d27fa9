//! Which user keeps the most, known well enough to make room and no better.

use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::Ordering;

use super::super::ranked::Ranked;
use super::Account;

/// How old the ranks may be of those who did nothing to make the room short.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// Accounts by how many bytes they had when they were ranked. Whoever adds when all is full is ranked again, and all are once a
/// second, so that to find the fullest costs no look at everyone.
#[derive(Debug, Default)]
pub(super) struct Ranking {
    heap: BinaryHeap<Ranked<Account>>,
    ranked_at: Option<Instant>,
}

impl Ranking {
    /// Ranks all anew if the ranks are old.
    pub(super) fn refresh(&mut self, accounts: impl FnOnce() -> Vec<Arc<Account>>) {
        if self.heap.is_empty() || self.ranked_at.is_none_or(|at| at.elapsed() >= FRESH_FOR) {
            self.heap.clear();
            accounts().iter().for_each(|account| self.rank(account));
            self.ranked_at = Some(Instant::now());
        }
    }

    /// Ranks one account by what it has now.
    pub(super) fn rank(&mut self, account: &Arc<Account>) {
        let bytes = account.usage.get().bytes;
        account.rank.store(bytes, Ordering::Relaxed);
        if bytes > 0 {
            self.heap.push(Ranked { bytes, of: account.clone() });
        }
    }

    /// Takes out the account that has the most. What changed since it was ranked is noticed on the way.
    pub(super) fn highest(&mut self) -> Option<Arc<Account>> {
        while let Some(Ranked { bytes, of: account }) = self.heap.pop() {
            if account.rank.load(Ordering::Relaxed) != bytes {
                // It was ranked again, and has another entry.
                continue;
            }
            if account.usage.get().bytes >= bytes {
                return Some(account);
            }
            self.rank(&account);
        }
        None
    }
}

//! A set of mailboxes that grows, shrinks and is gone through at the cost of what is in it.

use std::sync::Arc;

use hashbrown::HashTable;

use crate::mailbox::Mailbox;

/// A table of fewer places is never shrunk.
const PLACES_MIN: usize = 64;

/// Mailboxes, each once, known by their addresses: to find one, no other memory than the table is read.
#[derive(Debug, Default)]
pub(super) struct Mailboxes(HashTable<Arc<Mailbox>>);

impl Mailboxes {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Mailbox>> {
        self.0.iter()
    }

    pub(super) fn contains(&self, mailbox: &Arc<Mailbox>) -> bool {
        self.0.find(spread(mailbox), |known| Arc::ptr_eq(known, mailbox)).is_some()
    }

    /// Adds a mailbox, and says whether it is new.
    pub(super) fn insert(&mut self, mailbox: Arc<Mailbox>) -> bool {
        if self.contains(&mailbox) {
            return false;
        }
        self.0.insert_unique(spread(&mailbox), mailbox, spread);
        true
    }

    /// Takes a mailbox out, and says whether it was in.
    pub(super) fn remove(&mut self, mailbox: &Arc<Mailbox>) -> bool {
        let Ok(entry) = self.0.find_entry(spread(mailbox), |known| Arc::ptr_eq(known, mailbox)) else { return false };
        entry.remove();
        self.shrink();
        true
    }

    /// Takes out those that `stays` is false for.
    pub(super) fn retain(&mut self, mut stays: impl FnMut(&Arc<Mailbox>) -> bool) {
        self.0.retain(|mailbox| stays(mailbox));
        self.shrink();
    }

    /// Gives back the places of a table that is next to empty. Half of what it keeps is free, so that it does not grow
    /// again at once.
    fn shrink(&mut self) {
        if self.0.capacity() > PLACES_MIN && self.0.len() < self.0.capacity() / 8 {
            self.0.shrink_to(self.0.len() * 2, spread);
        }
    }

    pub(super) fn into_vec(self) -> Vec<Arc<Mailbox>> {
        self.0.into_iter().collect()
    }
}

/// The hash of a mailbox. No client chooses an address, so it needs no secret, only all of its bits in all of the hash: the
/// last steps of SplitMix64.
fn spread(mailbox: &Arc<Mailbox>) -> u64 {
    let mut hash = Arc::as_ptr(mailbox).addr() as u64;
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

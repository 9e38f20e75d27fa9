//! The mailboxes that one push goes to, in memory that is used again.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::Arc;

use crate::mailbox::Mailbox;

/// A list with room for more is freed, so that a thread keeps no more than 32 KiB after a large broadcast.
const KEPT_MAX: usize = 4096;

thread_local! {
    /// The list that this thread used last.
    static SPARE: Cell<Vec<Arc<Mailbox>>> = const { Cell::new(Vec::new()) };
}

/// The mailboxes that one push goes to. Dropped, it leaves its memory to the thread's next push, so that a push allocates
/// nothing for its receivers, however many they are.
#[derive(Debug)]
pub(crate) struct Receivers(Vec<Arc<Mailbox>>);

impl Receivers {
    pub(super) fn none() -> Self {
        Self(SPARE.try_with(Cell::take).unwrap_or_default())
    }

    pub(super) fn extend<'a>(&mut self, mailboxes: impl IntoIterator<Item = &'a Arc<Mailbox>>) {
        self.0.extend(mailboxes.into_iter().cloned());
    }

    pub(super) fn reserve(&mut self, count: usize) {
        self.0.reserve(count);
    }

    /// Leaves only those that `stays` is true for.
    pub(crate) fn retain(&mut self, mut stays: impl FnMut(&Mailbox) -> bool) {
        self.0.retain(|mailbox| stays(mailbox));
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

impl Deref for Receivers {
    type Target = [Arc<Mailbox>];

    fn deref(&self) -> &[Arc<Mailbox>] {
        &self.0
    }
}

impl Drop for Receivers {
    fn drop(&mut self) {
        let mut list = std::mem::take(&mut self.0);
        list.clear();
        if (1..=KEPT_MAX).contains(&list.capacity()) {
            // A thread that is ending needs none.
            let _is_over = SPARE.try_with(|spare| spare.set(list));
        }
    }
}

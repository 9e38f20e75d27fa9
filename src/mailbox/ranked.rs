//! Something by how many bytes it had when it was ranked.

use std::cmp::Ordering;
use std::sync::Arc;

/// The more bytes, the higher.
#[derive(Debug)]
pub(crate) struct Ranked<T> {
    pub(crate) bytes: usize,
    pub(crate) of: Arc<T>,
}

impl<T> PartialEq for Ranked<T> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl<T> Eq for Ranked<T> {}

impl<T> PartialOrd for Ranked<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Ranked<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.bytes.cmp(&other.bytes)
    }
}

//! The receipt of one message: each receiver notes on it how far the message got, and whoever asked waits at it.

use std::sync::PoisonError;

use tokio::sync::Notify;

use crate::message::ConnectionId;
use crate::outcome::{ConnectionOutcome, Level};
use crate::sync::{Mutex, MutexGuard};

/// How far one message got on each of its receivers. Outlives the message itself.
#[derive(Debug)]
pub(crate) struct Receipt {
    state: Mutex<ReceiptState>,
    settled: Notify,
}

#[derive(Debug)]
struct ReceiptState {
    /// One for each receiver, in the order in which they were offered the message.
    entries: Vec<Entry>,
    /// How many wait to be written, or lost.
    unwritten: usize,
    /// How many wait to be acknowledged, or to be given up; those that wait to be written too.
    unacked: usize,
}

#[derive(Clone, Debug)]
struct Entry {
    outcome: ConnectionOutcome,
    waits_for: WaitsFor,
}

/// What may still happen to a message on one receiver, for those who wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitsFor {
    Write,
    Ack,
    /// It is settled, or nobody knows when the client will be back.
    Nothing,
}

impl Receipt {
    /// Of a message that is about to be offered to these receivers.
    pub(super) fn new(receivers: impl Iterator<Item = ConnectionId>) -> Self {
        let entries: Vec<_> = receivers
            .map(|id| Entry { outcome: ConnectionOutcome::accepted(id), waits_for: WaitsFor::Write })
            .collect();
        let state = Mutex::new(ReceiptState { unwritten: entries.len(), unacked: entries.len(), entries });
        Self { state, settled: Notify::new() }
    }

    /// Waits until each receiver has got the message as far as this level, or will not get it there.
    pub(crate) async fn settled(&self, level: Level) {
        loop {
            let settled = self.settled.notified();
            if self.is_settled(level) {
                return;
            }
            settled.await;
        }
    }

    /// Whether no receiver can get it as far as this level any more that has not got it there yet.
    pub(crate) fn is_settled(&self, level: Level) -> bool {
        self.state().pending(level) == 0
    }

    /// How far the message got on each receiver by now.
    pub(crate) fn outcomes(&self) -> Vec<ConnectionOutcome> {
        self.state().entries.iter().map(|entry| entry.outcome.clone()).collect()
    }

    /// About how many bytes of memory it takes.
    pub(crate) fn memory(&self) -> usize {
        size_of::<Self>() + self.state().entries.capacity() * size_of::<Entry>()
    }

    fn state(&self) -> MutexGuard<'_, ReceiptState> {
        // A panic under this lock could only be the place that is out of bounds, and then nothing was changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how many messages were queued before this one on one receiver.
    pub(super) fn behind(&self, place: usize, messages: usize) {
        if let Some(entry) = self.state().entries.get_mut(place) {
            entry.outcome.queued_before = messages;
        }
    }

    /// Notes a step of one receiver, and tells whoever waits if it was the last one they waited for.
    pub(super) fn note(&self, place: usize, step: impl FnOnce(&mut ConnectionOutcome) -> Option<WaitsFor>) {
        let mut state = self.state();
        let Some(entry) = state.entries.get_mut(place) else { return };
        let Some(now) = step(&mut entry.outcome) else { return };
        let before = entry.waits_for;
        // What is held is not waited for, and stays so when its client comes back.
        let now = if before == WaitsFor::Nothing { before } else { now };
        entry.waits_for = now;
        let written = before == WaitsFor::Write && now != WaitsFor::Write;
        let ended = before != WaitsFor::Nothing && now == WaitsFor::Nothing;
        state.unwritten -= usize::from(written);
        state.unacked -= usize::from(ended);
        let tell = (written && state.unwritten == 0) || (ended && state.unacked == 0);
        drop(state);
        if tell {
            self.settled.notify_waiters();
        }
    }
}

impl ReceiptState {
    fn pending(&self, level: Level) -> usize {
        match level {
            Level::Accepted => 0,
            Level::Written => self.unwritten,
            Level::Acked => self.unacked,
        }
    }
}

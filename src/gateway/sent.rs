//! A push that was made, for whoever asks what became of it.

use std::time::Instant;

use crate::outcome::{Level, Outcome};
use crate::replays::Made;
use crate::shares::Share;

/// Whether each receiver is followed past acceptance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Follow {
    /// Nobody asks, so nothing is kept.
    Nobody,
    /// Each by itself.
    Each,
}

/// A push that was made, and what of it is still followed.
pub(crate) struct Sent {
    made: Made,
    /// One of `waiting_pushes_max`, where it may be waited for.
    _waiting: Option<Share>,
}

impl Sent {
    pub(super) fn new(made: Made, waiting: Option<Share>) -> Self {
        Self { made, _waiting: waiting }
    }

    /// Who took it here, as it was when the mailboxes had taken it.
    pub(super) fn taken(&self) -> &Outcome {
        &self.made.outcome
    }

    /// The same, for a caller who asks no more.
    pub(crate) fn into_outcome(self) -> Outcome {
        self.made.outcome
    }

    /// Who took it, and of each receiver that is followed what is known by now. What takes it elsewhere would be waited for
    /// here.
    pub(crate) async fn accepted(&self) -> Outcome {
        self.now(Level::Accepted)
    }

    /// What became of it once every receiver is settled at this level, or at `until` as far as it is known then.
    pub(crate) async fn settled(&self, level: Level, until: Instant) -> Outcome {
        if let Some(receipt) = &self.made.receipt {
            let _in_time = tokio::time::timeout_at(until.into(), receipt.settled(level)).await;
        }
        self.now(level)
    }

    /// Whether nothing more will become of it that is followed.
    pub(crate) fn is_settled(&self) -> bool {
        self.made.receipt.as_ref().is_none_or(|receipt| receipt.is_settled(Level::Acked))
    }

    fn now(&self, level: Level) -> Outcome {
        let Made { outcome, receipt } = &self.made;
        match receipt {
            Some(receipt) => {
                let Outcome { message_id, replayed, .. } = *outcome;
                Outcome { replayed, ..Outcome::count(message_id, level, receipt.outcomes()) }
            }
            None => Outcome { level, ..outcome.clone() },
        }
    }
}

//! Why a push is refused, and how a push is counted.

use std::time::Duration;

use crate::message::{Field, InvalidPush};
use crate::metrics::PushResult;
use crate::outcome::Outcome;
use crate::revocations;

/// Why a push or drop was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// The user id, event or message is not valid.
    #[error(transparent)]
    Invalid(#[from] InvalidPush),
    /// Another push was made under this idempotency key within the config's `idempotency_window`. This one was not sent.
    #[error("this idempotency key was used for a push with another {differs}")]
    KeyReused {
        /// The first part in which the two differ.
        differs: Field,
    },
    /// The caller may not push to this user or event.
    #[error("the API key may not push to this user or event")]
    PermissionDenied,
    /// A broadcast at this pace would not be done in time. It was not sent.
    #[error("at this pace a broadcast to {matched} connections takes longer than the call has left")]
    TooSlow {
        /// How many connections it matched.
        matched: usize,
    },
    /// The caller's key has used up its rate. The push was not sent.
    #[error("the API key is over its rate, try again in {} s", whole_seconds(*.retry_after))]
    RateLimited {
        /// When the next push is allowed.
        retry_after: Duration,
    },
    /// `waiting_pushes_max` pushes are waiting for more than acceptance already. This one was not sent.
    #[error("too many pushes are waiting, try again later or do not wait")]
    TooManyWaiting,
}

/// Why something that an operator asked for was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AdminError {
    #[error("the gateway is shutting down")]
    Stopping,
    #[error(transparent)]
    Full(#[from] revocations::Full),
}

/// A time to wait in the seconds of `Retry-After`, rounded up.
pub(crate) fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

pub(super) fn result_label(result: Result<&Outcome, &PushError>) -> PushResult {
    match result {
        Ok(Outcome { matched: 0, held: 0, .. }) => PushResult::Unmatched,
        Ok(Outcome { matched: 0, .. }) => PushResult::Held,
        Ok(Outcome { accepted: 0, .. }) => PushResult::Dropped,
        Ok(_) => PushResult::Accepted,
        Err(PushError::Invalid(InvalidPush::TooLong { .. })) => PushResult::TooLarge,
        Err(PushError::Invalid(InvalidPush::Empty { .. }) | PushError::KeyReused { .. }) => PushResult::Invalid,
        Err(PushError::PermissionDenied) => PushResult::PermissionDenied,
        Err(PushError::RateLimited { .. }) => PushResult::RateLimited,
        Err(PushError::TooManyWaiting) => PushResult::Overloaded,
        Err(PushError::TooSlow { .. }) => PushResult::TimedOut,
    }
}

//! What the server and its operator ask of a gateway: what it counts, to read its secrets again.

use std::panic::AssertUnwindSafe;
use std::time::SystemTime;

use futures_util::FutureExt;

use crate::auth::ReloadError;
use crate::metrics::{Format, Task, set};

use super::{Gateway, Rooms};

/// What is read again together with tokens and push keys.
pub(crate) trait Reload: Send + Sync {
    /// Reads the files again. Returns what is wrong with them; what was there before then stays in use.
    fn reload(&self) -> Vec<ReloadError>;
}

impl Gateway {
    /// How many WebSocket connections are open, bound or not.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.registry.len()
    }

    /// Reads tokens, push keys and certificates again, each by itself. Open connections stay as they are. Returns what could not be
    /// read again and goes on with what it had; empty when all is well.
    pub async fn reload(&self) -> Vec<ReloadError> {
        let tokens = self.reloaded(self.0.token_authenticator.reload()).await;
        let push_keys = self.reloaded(self.0.push_authorizer.reload()).await;
        let certificates = self.0.certificates.iter().flat_map(|certificates| certificates.reload());
        [tokens.err(), push_keys.err()].into_iter().flatten().chain(certificates).collect()
    }

    /// A check that panics has not been read again, and whoever asks for that can ask once more.
    async fn reloaded(&self, reload: impl Future<Output = Result<(), ReloadError>>) -> Result<(), ReloadError> {
        AssertUnwindSafe(reload).catch_unwind().await.unwrap_or_else(|_| {
            self.0.metrics.task_panicked(Task::Reload);
            Err(ReloadError::Other("the check panicked".into()))
        })
    }

    /// All metrics as text. What can be counted when asked is counted now, not kept in step by hand.
    pub(crate) fn scrape(&self, format: Format) -> String {
        let Rooms { metrics, registry, binder, sessions, waiting, replays, revocations, .. } = &*self.0;
        let depths = registry.depths();
        set(&metrics.connections, depths.connections);
        set(&metrics.bindings, binder.len());
        set(&metrics.users, binder.users());
        set(&metrics.outbox_messages, depths.messages);
        set(&metrics.outbox_bytes, depths.bytes);
        set(&metrics.outbox_messages_fullest, depths.messages_max);
        set(&metrics.outbox_bytes_fullest, depths.bytes_max);
        set(&metrics.waiting_pushes, waiting.taken());
        let (keys, bytes) = replays.usage();
        set(&metrics.idempotency_keys, keys);
        set(&metrics.idempotency_bytes, bytes);
        set(&metrics.revocations, revocations.in_force(SystemTime::now()));
        set(&metrics.sessions_away, sessions.away());
        let kept = sessions.keep().usage();
        set(&metrics.journal_messages, kept.messages);
        set(&metrics.journal_bytes, kept.bytes);
        set(&metrics.queued_total_bytes, self.total_bytes());
        metrics.encode(format)
    }
}

//! Revocation: tokens that have not expired are refused from now on, and whoever is bound by one is disconnected.

use std::time::SystemTime;

use crate::auth::PushScope;
use crate::revocations::Revoked;

use super::{AdminError, Audit, Gateway};

/// What a revocation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Revocation {
    /// Connections that were told to close.
    pub(crate) closed: u64,
    /// Sessions without a connection that were ended.
    pub(crate) sessions_ended: u64,
    /// Until when it is kept.
    pub(crate) until: SystemTime,
}

impl Gateway {
    /// Refuses these tokens until they have expired, and ends the connections and sessions that are bound by them.
    pub(crate) async fn revoke_from(
        &self,
        scope: &PushScope,
        revoked: Revoked,
        expires_at: Option<SystemTime>,
    ) -> Result<Revocation, AdminError> {
        let act = match revoked {
            Revoked::Token(_) => "revoke_token",
            Revoked::User { .. } => "revoke_user",
        };
        let revocation = self.revoke(revoked, expires_at).await;
        Audit::operated(act, scope, revocation.map(|revocation| revocation.closed));
        revocation
    }

    async fn revoke(&self, revoked: Revoked, expires_at: Option<SystemTime>) -> Result<Revocation, AdminError> {
        let (config, now) = (&self.0.config, SystemTime::now());
        let until = match expires_at {
            // A token is taken for so long after its time.
            Some(expires_at) => expires_at + config.jwt_leeway,
            None => now + config.revocation_age,
        };
        // Before the look at who is bound: whoever binds from here on asks again once it is bound.
        let until = self.0.revocations.add(&revoked, until, now)?;
        let gateway = self.clone();
        // On a thread of its own, because to find a token takes a look at every connection.
        let look = tokio::task::spawn_blocking(move || gateway.end_revoked(&revoked));
        let (closed, sessions_ended) =
            look.await.expect("the look is neither cancelled nor panics, or the call must fail too");
        Ok(Revocation { closed, sessions_ended, until })
    }

    fn end_revoked(&self, revoked: &Revoked) -> (u64, u64) {
        let (mut closed, mut sessions_ended) = (0, 0);
        for (user_id, mailbox) in self.0.binder.evict_revoked(revoked) {
            let was_away = mailbox.is_away();
            closed += u64::from(mailbox.revoke_receiver());
            if was_away {
                sessions_ended += 1;
                self.0.sessions.end_dropped(&user_id);
            }
        }
        (closed, sessions_ended)
    }
}

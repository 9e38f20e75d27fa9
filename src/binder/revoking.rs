//! Finds and unbinds the receivers that are bound by a token which was revoked.

use std::sync::Arc;

use crate::mailbox::Mailbox;
use crate::message::UserId;
use crate::revocations::Revoked;

use super::shard::Shard;
use super::user::User;
use super::{Binder, Mailboxes};

impl Binder {
    /// Unbinds the receivers that are bound by a revoked token from everything, and returns each once with its user. To
    /// find a token takes a look at all receivers.
    pub(crate) fn evict_revoked(&self, revoked: &Revoked) -> Vec<(UserId, Arc<Mailbox>)> {
        match revoked {
            Revoked::User { user_id, .. } => {
                let (shard, key) = self.place(user_id);
                let receivers = shard.index().user(key).map(receivers_of).unwrap_or_default();
                self.evict_of(receivers, revoked)
            }
            Revoked::Token(_) => {
                let in_shard = |shard: &Shard| {
                    let receivers: Vec<_> = shard.index().all_users().flat_map(receivers_of).collect();
                    self.evict_of(receivers, revoked)
                };
                self.shards.iter().flat_map(in_shard).collect()
            }
        }
    }

    /// Looks into the mailboxes with the shard released, as the lock order has it.
    fn evict_of(&self, mut receivers: Vec<(UserId, Arc<Mailbox>)>, revoked: &Revoked) -> Vec<(UserId, Arc<Mailbox>)> {
        receivers.retain(|(_, mailbox)| mailbox.is_bound_by(revoked));
        for (user_id, mailbox) in &receivers {
            let (shard, key) = self.place(user_id);
            shard.index().evict(key, |_, bound| Arc::ptr_eq(bound, mailbox));
        }
        receivers
    }
}

fn receivers_of(user: &User) -> Vec<(UserId, Arc<Mailbox>)> {
    let mut mailboxes = Mailboxes::default();
    user.add_mailboxes(&mut mailboxes);
    mailboxes.into_vec().into_iter().map(|mailbox| (user.id.clone(), mailbox)).collect()
}

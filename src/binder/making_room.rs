//! Makes room for a user's newest connection: the oldest ones are closed.

use std::sync::PoisonError;

use crate::handle::Stop;
use crate::message::UserId;

use super::{Binder, Mailboxes};

impl Binder {
    /// Closes the user's oldest connections until those that stay are no more than the limit.
    pub(super) fn make_room(&self, user_id: &UserId, limit: usize) {
        // One after the other, so that two newcomers do not take the same connection for the one that goes.
        let _room = self.making_room.lock().unwrap_or_else(PoisonError::into_inner);
        let (seats, mailboxes) = {
            let (shard, key) = self.place(user_id);
            let index = shard.index();
            let Some(user) = index.user(key) else { return };
            let mut mailboxes = Mailboxes::default();
            user.add_mailboxes(&mut mailboxes);
            (user.seats, mailboxes)
        };
        let (leaving, mut staying): (Vec<_>, Vec<_>) =
            mailboxes.iter().filter_map(|mailbox| mailbox.connection()).partition(|handle| handle.stopped().is_some());
        staying.sort_by_key(|handle| handle.since());
        let mut over = seats.saturating_sub(leaving.len() + limit);
        for handle in staying {
            if over == 0 {
                return;
            }
            // One that was told to stop since then leaves too.
            handle.stop(Stop::MadeRoom);
            over -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use crate::binder::{BindError, BindLimits, Bindings, Seat};
    use crate::config::UserConnectionsPolicy;
    use crate::handle::Handle;
    use crate::mailbox::{Capacity, Mailbox, Outboxes};
    use crate::message::{Event, Names};

    use super::*;

    struct Connection {
        handle: Arc<Handle>,
        _bindings: Bindings,
        _seat: Seat,
    }

    fn connect(binder: &Arc<Binder>, names: &Names, limits: BindLimits) -> Result<Connection, BindError> {
        let (user_id, event) = (UserId::new("ann").expect("not empty"), Event::new("mail").expect("not empty"));
        let handle = Arc::new(Handle::new(names.connection_id(), (Ipv4Addr::LOCALHOST, 0).into()));
        let mailbox = Arc::new(Mailbox::new(handle.clone(), Outboxes::new(Capacity { messages_max: 1, bytes_max: 1 })));
        let seat = binder.seat(&user_id, limits)?;
        Ok(Connection { handle, _bindings: binder.bind(&mailbox, &user_id, &event), _seat: seat })
    }

    fn stops(connections: &[Connection]) -> Vec<Option<Stop>> {
        connections.iter().map(|connection| connection.handle.stopped()).collect()
    }

    fn limits(connections_per_user_policy: UserConnectionsPolicy) -> BindLimits {
        BindLimits { connections_per_user_max: 2, connections_per_user_policy, events_per_connection_max: 1 }
    }

    #[test]
    fn each_newcomer_closes_the_oldest_that_stays() {
        let (binder, names) = (Arc::new(Binder::default()), Names::new());
        let limits = limits(UserConnectionsPolicy::CloseOldest);
        let mut connections = Vec::new();
        for _ in 0..4 {
            connections.push(connect(&binder, &names, limits).expect("room is made"));
        }
        assert_eq!(stops(&connections), [Some(Stop::MadeRoom), Some(Stop::MadeRoom), None, None]);
    }

    #[test]
    fn one_that_leaves_anyway_is_room_enough() {
        let (binder, names) = (Arc::new(Binder::default()), Names::new());
        let limits = limits(UserConnectionsPolicy::CloseOldest);
        let mut connections: Vec<_> =
            (0..2).map(|_| connect(&binder, &names, limits).expect("there is room")).collect();
        connections[1].handle.stop(Stop::QueueFull);
        connections.push(connect(&binder, &names, limits).expect("room is made"));
        assert_eq!(stops(&connections), [None, Some(Stop::QueueFull), None]);
        connections.push(connect(&binder, &names, limits).expect("room is made"));
        assert_eq!(stops(&connections)[0], Some(Stop::MadeRoom));
        connections.drain(..2);
        connections.push(connect(&binder, &names, limits).expect("room is made"));
        assert_eq!(stops(&connections), [Some(Stop::MadeRoom), None, None]);
    }

    #[test]
    fn by_the_other_policy_all_stay_and_the_newcomer_is_refused() {
        let (binder, names) = (Arc::new(Binder::default()), Names::new());
        let limits = limits(UserConnectionsPolicy::RejectNew);
        let connections: Vec<_> = (0..2).map(|_| connect(&binder, &names, limits).expect("there is room")).collect();
        let refused = connect(&binder, &names, limits).err();
        assert_eq!(refused, Some(BindError::TooManyConnections { limit: 2 }));
        assert_eq!(stops(&connections), [None, None]);
    }
}

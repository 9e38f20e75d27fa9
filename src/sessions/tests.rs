use futures_util::FutureExt;

use super::*;
use crate::config::UserConnectionsPolicy;
use crate::delivery::Delivery;
use crate::handle::{Handle, Stop};
use crate::journal::Recorder;
use crate::mailbox::{Bounds, Capacity, Line};
use crate::message::{Event, Names, Push, SlowReaderPolicy};

const AGE: Duration = Duration::from_secs(3600);

/// A session of ann's mail on a connection.
struct World {
    sessions: Arc<Sessions>,
    binder: Arc<Binder>,
    handle: Arc<Handle>,
    mailbox: Arc<Mailbox>,
    user_id: UserId,
    event: Event,
}

impl World {
    fn new() -> (Self, Attached, Bindings) {
        let metrics = Arc::new(Metrics::new());
        let bounds = Bounds { messages_per_user_max: 8, bytes_per_user_max: 10_000, bytes_max: 10_000, age: AGE };
        let keep = Keep::new(bounds, Recorder::new(None, metrics.clone()), metrics.clone());
        let outboxes = Outboxes::new(Capacity { messages_max: 8, bytes_max: 1000 });
        let binds = BindLimits {
            connections_per_user_max: 0,
            connections_per_user_policy: UserConnectionsPolicy::RejectNew,
            events_per_connection_max: 1,
        };
        let limits = Limits { away_max: 4, away_per_user_max: 4, age: AGE, binds, outboxes: outboxes.clone() };
        let binder = Arc::new(Binder::default());
        let sessions = Arc::new(Sessions::new(limits, keep, binder.clone(), metrics));
        let handle = Arc::new(Handle::new(Names::new().connection_id(), ([127, 0, 0, 1], 0).into()));
        let mailbox = Arc::new(Mailbox::new(handle.clone(), outboxes));
        let (user_id, event) = (UserId::new("ann").expect("valid"), Event::new("mail").expect("valid"));
        let session = sessions.begin(&mailbox, &user_id).expect("random numbers");
        let bindings = binder.bind(&mailbox, &user_id, &event);
        (Self { sessions, binder, handle, mailbox, user_id, event }, session, bindings)
    }

    /// As the gateway drops a user.
    fn drop_user(&self) -> usize {
        let evicted = self.binder.evict(&self.user_id, None);
        evicted.iter().filter(|mailbox| mailbox.drop_receiver()).count()
    }
}

#[test]
fn a_session_that_is_dropped_on_its_way_to_another_connection_does_not_go_on_without_its_bindings() {
    for stop in Stop::FOR_A_WHILE {
        let (world, session, bindings) = World::new();
        let token = session.token();
        assert!(world.handle.stop(stop));
        assert_eq!(world.drop_user(), 1);
        assert!(!session.leave(bindings, &mut Line::default()), "{stop:?}");
        let claimed = world.sessions.claim(token, &world.user_id).now_or_never().expect("nothing to wait for");
        assert!(claimed.is_none(), "{stop:?}: it would be bound to {:?}, and no push would reach it", world.event);
    }
}

#[test]
fn what_only_a_session_had_is_passed_on_too_when_the_session_ends_while_it_is_claimed() {
    for is_dropped in [false, true] {
        let (world, session, bindings) = World::new();
        let token = session.token();
        assert!(session.leave(bindings, &mut Line::default()));
        let push = Push::new("ann", "mail", "lasting").expect("valid").with_ttl(AGE);
        let delivery = Delivery::new(Names::new().message_id(), &push, SlowReaderPolicy::default(), Instant::now());
        let delivery = Arc::new(delivery);
        assert_eq!(world.mailbox.offer(delivery.ticket(0)).taken, Taken::Held);
        assert!(!delivery.was_offered(true).passes_on, "a session has it");
        let claimed = world.sessions.claim(token, &world.user_id).now_or_never().expect("nothing to wait for");
        let claimed = claimed.expect("it is away");
        if is_dropped {
            assert_eq!(world.drop_user(), 0, "no connection has it");
            drop(claimed);
        } else {
            // As one whose token does not allow all its events any more.
            claimed.end();
        }
        assert!(world.sessions.keep().holds(&world.user_id), "{is_dropped}");
    }
}

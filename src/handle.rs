//! One open connection as the rest of the gateway holds it: a name, a way to stop it, and a way to wake its task.

use std::net::{IpAddr, SocketAddr};
use std::sync::PoisonError;
use std::task::{Context, Waker};
use std::time::Instant;

use crate::message::ConnectionId;
use crate::sync::{AtomicU8, AtomicU64, Mutex, MutexGuard, Ordering};

/// Why the gateway, not the peer, ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The outbox was full. What is queued is given up.
    QueueFull,
    /// An operator or service dropped it. What is queued is written first.
    Dropped,
    /// A token by which it is bound was revoked. What is queued is given up.
    Revoked,
    /// The session goes on over another connection.
    Replaced,
    /// The user's newest connection takes its place. What is queued is written first.
    MadeRoom,
    /// It was open for long enough. Its session goes on over another connection; without one, what is queued is written
    /// first.
    Aged,
    /// The gateway shuts down. What is queued is written first.
    GoingAway,
    /// An operator drains the gateway, which lives on. What is queued is written first, and the session may come back.
    SentAway,
    /// The shutdown grace is over. Everything is given up at once.
    Cut,
    /// The connection's own task has ended it.
    Ended,
}

impl Stop {
    const ALL: [Self; 10] = [
        Self::QueueFull,
        Self::Dropped,
        Self::Revoked,
        Self::Replaced,
        Self::MadeRoom,
        Self::Aged,
        Self::GoingAway,
        Self::SentAway,
        Self::Cut,
        Self::Ended,
    ];

    /// Those after which a session may come back over another connection.
    pub(crate) const FOR_A_WHILE: [Self; 4] = [Self::QueueFull, Self::Replaced, Self::Aged, Self::SentAway];

    /// Whether a connection that was told `earlier` is told this too.
    fn outranks(self, earlier: Self) -> bool {
        // A session that waits for its slow client does not wait any longer once it is wanted elsewhere.
        self == Self::Cut
            || (self == Self::Revoked && !matches!(earlier, Self::Cut | Self::Ended | Self::Revoked))
            || (self == Self::Replaced && matches!(earlier, Self::QueueFull | Self::Aged | Self::SentAway))
    }
}

/// A connection that is not told to stop.
const RUNNING: u8 = u8::MAX;

/// One open connection. Its task sleeps here; whoever has something for the task wakes it.
#[derive(Debug)]
pub(crate) struct Handle {
    id: ConnectionId,
    /// Without the rest of a [`SocketAddr`], which is half as much again.
    peer: (IpAddr, u16),
    since: Instant,
    /// The [`Stop`] the connection was told, by its place in [`Stop::ALL`]. An atomic, because every message looks at it.
    stop: AtomicU8,
    /// The tick at which the task wants to be woken; `u64::MAX` for never. See [`Handle::wake_if_due`].
    alarm: AtomicU64,
    /// Present while the task sleeps. Whoever wakes the task takes it, so that a busy task is not woken again.
    waker: Mutex<Option<Waker>>,
}

impl Handle {
    pub(crate) fn new(id: ConnectionId, peer: SocketAddr) -> Self {
        Self {
            id,
            peer: (peer.ip(), peer.port()),
            since: Instant::now(),
            stop: AtomicU8::new(RUNNING),
            alarm: AtomicU64::new(u64::MAX),
            waker: Mutex::new(None),
        }
    }

    pub(crate) fn id(&self) -> ConnectionId {
        self.id
    }

    /// The address the client came from.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer.into()
    }

    /// When the connection was admitted.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// Tells the connection to end. Returns whether this call was the first to do so.
    pub(crate) fn stop(&self, stop: Stop) -> bool {
        let is_first = self.replace(None, stop);
        if is_first || self.stopped().is_some_and(|earlier| stop.outranks(earlier) && self.replace(Some(earlier), stop))
        {
            self.wake();
        }
        is_first
    }

    /// Tells a connection to end for good that was about to end for a while: its session must not come back. Returns
    /// whether it was.
    pub(crate) fn stop_for_good(&self, stop: Stop) -> bool {
        let is_replaced = Stop::FOR_A_WHILE.iter().any(|now| self.replace(Some(*now), stop));
        if is_replaced {
            self.wake();
        }
        is_replaced
    }

    fn replace(&self, now: Option<Stop>, stop: Stop) -> bool {
        let code = |stop: Stop| Stop::ALL.iter().position(|known| *known == stop).map_or(RUNNING, |at| at as u8);
        let now = now.map_or(RUNNING, code);
        self.stop.compare_exchange(now, code(stop), Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Why the connection is to end, if it was told to.
    pub(crate) fn stopped(&self) -> Option<Stop> {
        let code = self.stop.load(Ordering::SeqCst);
        Stop::ALL.get(usize::from(code)).copied()
    }

    /// Arranges for the task to be woken, and tells it whether to stop.
    pub(crate) fn sleep(&self, cx: &Context<'_>) -> Option<Stop> {
        // A connection keeps to one task, so a waker that is still here is the right one.
        self.waker().get_or_insert_with(|| cx.waker().clone());
        self.stopped()
    }

    /// Wakes the task if it sleeps.
    pub(crate) fn wake(&self) {
        let waker = self.waker().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Sets the tick at which the task wants to be woken.
    pub(crate) fn set_alarm(&self, tick: u64) {
        self.alarm.store(tick, Ordering::Relaxed);
    }

    /// Wakes the task if its alarm is due. A sweep over all connections replaces a timer in each.
    pub(crate) fn wake_if_due(&self, now_tick: u64) {
        let alarm = self.alarm.load(Ordering::Relaxed);
        // Exchanged, not stored: the task may be setting the next alarm at this moment, and that one must stand.
        let ours = || self.alarm.compare_exchange(alarm, u64::MAX, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if alarm <= now_tick && ours() {
            self.wake();
        }
    }

    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        // Nothing under this lock can panic half way.
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;
    use crate::message::Names;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn handle() -> Handle {
        Handle::new(Names::new().connection_id(), (Ipv4Addr::LOCALHOST, 0).into())
    }

    fn sleep(handle: &Handle, wakes: &Arc<Wakes>) -> Option<Stop> {
        handle.sleep(&Context::from_waker(&Waker::from(wakes.clone())))
    }

    #[test]
    fn an_alarm_wakes_when_due_and_not_before() {
        let (handle, wakes) = (handle(), Arc::new(Wakes::default()));
        assert_eq!(sleep(&handle, &wakes), None);
        handle.set_alarm(5);
        handle.wake_if_due(4);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
        handle.wake_if_due(5);
        handle.wake_if_due(6);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn the_first_reason_to_stop_holds_unless_a_later_one_outranks_it() {
        use Stop::{Aged, Cut, Dropped, GoingAway, MadeRoom, QueueFull, Replaced, Revoked, SentAway};
        for (first, second, holds) in [
            (QueueFull, Dropped, QueueFull),
            (QueueFull, Replaced, Replaced),
            (Replaced, QueueFull, Replaced),
            (Aged, Replaced, Replaced),
            (SentAway, Replaced, Replaced),
            (Aged, GoingAway, Aged),
            (MadeRoom, Replaced, MadeRoom),
            (GoingAway, Dropped, GoingAway),
            (Dropped, Cut, Cut),
            (Dropped, Revoked, Revoked),
            (Revoked, Dropped, Revoked),
        ] {
            let (handle, wakes) = (handle(), Arc::new(Wakes::default()));
            sleep(&handle, &wakes);
            assert!(handle.stop(first));
            assert!(!handle.stop(second), "only the first call is told that it was the first");
            assert_eq!(sleep(&handle, &wakes), Some(holds));
            assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        }
    }

    #[test]
    fn only_a_stop_that_a_session_would_survive_is_replaced_by_one_for_good() {
        for first in Stop::ALL {
            let is_replaced = Stop::FOR_A_WHILE.contains(&first);
            let handle = handle();
            handle.stop(first);
            assert_eq!(handle.stop_for_good(Stop::Dropped), is_replaced);
            assert_eq!(handle.stopped(), Some(if is_replaced { Stop::Dropped } else { first }));
        }
        let handle = handle();
        assert!(!handle.stop_for_good(Stop::Dropped), "it runs");
    }
}

//! Broadcasts at a pace: offers the message to so many connections a second, and counts what was done even when its caller
//! leaves half way.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::auth::PushScope;
use crate::binder::Receivers;
use crate::message::{MessageId, Push};
use crate::metrics::Door;
use crate::replays::Made;

use super::{Counts, Fans, Follow, Gateway, PushError, Sent, result_label};

impl Gateway {
    /// A broadcast that offers the message to at most so many connections a second. Refused with nothing sent if that
    /// cannot be done by `until`.
    pub(crate) async fn broadcast_paced(
        &self,
        scope: Option<&PushScope>,
        push: &Push,
        per_second: NonZeroU32,
        until: Instant,
    ) -> Result<Sent, PushError> {
        self.admit(scope, push).inspect_err(|error| self.0.audit.failed(error, Door::Grpc, scope))?;
        let pace = Pace { starts_at: Instant::now(), per_second };
        let receivers = self.receivers(push);
        if pace.due(receivers.len()) > until {
            return Err(PushError::TooSlow { matched: receivers.len() });
        }
        let waiting = self.may_wait(scope, Follow::Each)?;
        let message_id = self.0.names.message_id();
        Ok(Sent::new(self.fan_out_paced(push, message_id, &receivers, pace).await, waiting))
    }

    async fn fan_out_paced(&self, push: &Push, message_id: MessageId, receivers: &Receivers, pace: Pace) -> Made {
        let takes = pace.due(receivers.len()) - pace.starts_at;
        let (delivery, outcome) = self.prepare(push, message_id, receivers, Follow::Each, pace.starts_at, takes);
        // A caller who leaves half way leaves counts that add up.
        let mut tally = Counted { gateway: self, counts: Counts { outcome, displaced: 0 } };
        if let Some(delivery) = &delivery {
            for (place, mailbox) in receivers.iter().enumerate() {
                if pace.due(place) > Instant::now() {
                    tokio::time::sleep_until(pace.due(place).into()).await;
                }
                self.make_room(push.payload().as_bytes().len(), Some(mailbox));
                self.flush(mailbox, tally.counts.offer(mailbox, delivery.ticket(place)), Fans::Wide);
            }
        }
        let receipt = delivery.and_then(|delivery| delivery.receipt());
        Made { outcome: tally.counts.outcome.clone(), receipt }
    }
}

/// When each receiver has its turn.
#[derive(Clone, Copy)]
struct Pace {
    starts_at: Instant,
    per_second: NonZeroU32,
}

impl Pace {
    fn due(self, place: usize) -> Instant {
        self.starts_at + Duration::from_secs_f64(place as f64 / f64::from(self.per_second.get()))
    }
}

/// A broadcast on its way. Dropped, it counts what was done, also when its caller has left.
struct Counted<'a> {
    gateway: &'a Gateway,
    counts: Counts,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.gateway.count(&self.counts);
        self.gateway.0.metrics.pushed(Door::Grpc, result_label(Ok(&self.counts.outcome)));
    }
}

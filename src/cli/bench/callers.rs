//! The callers of a run, by each door.

use std::io;
use std::sync::Arc;

use super::calls::{Call, Calls};
use super::clock::{Timer, now};
use super::target::Target;
use super::wire::{Part, message};
use super::{Door, Shape, grpc, json};

/// A caller. Each JSON caller has its own connection, and all gRPC callers share one.
pub(super) enum Caller {
    Json(json::Caller),
    Grpc(grpc::Caller),
}

impl Caller {
    /// Connects this many callers.
    pub(super) async fn several(target: &Target, count: usize) -> Result<Vec<Self>, String> {
        let mut callers = Vec::with_capacity(count);
        if target.door == Door::Json {
            for _ in 0..count {
                let connected = json::Caller::connect(target).await;
                callers.push(Self::Json(connected.map_err(|error| error.to_string())?));
            }
        } else {
            let caller = grpc::Caller::connect(target).await?;
            callers.extend(std::iter::repeat_with(|| Self::Grpc(caller.clone())).take(count));
        }
        Ok(callers)
    }

    /// Makes calls until the schedule is over.
    pub(super) async fn run(mut self, call: Arc<Call>) -> (Self, Calls) {
        let mut calls = Calls::new();
        let Ok(mut timer) = Timer::new() else {
            calls.failed("no timer: too many open files");
            return (self, calls);
        };
        while let Some(at) = call.schedule.next(&mut timer).await {
            if let Err(error) = self.call(&call, at, &mut calls).await {
                calls.failed(&format!("the connection of a caller broke: {error}"));
                match json::Caller::connect(&call.target).await {
                    Ok(caller) => self = Self::Json(caller),
                    Err(_) => break,
                }
            }
        }
        (self, calls)
    }

    async fn call(&mut self, call: &Call, at: u64, calls: &mut Calls) -> io::Result<()> {
        let target = &*call.target;
        if target.door == Door::Batch
            && let Self::Grpc(caller) = self
        {
            let clients: Vec<_> = (0..call.batch).map(|_| target.next()).collect();
            let pushes = clients.iter().map(|client| grpc::push(target, *client, call.part, at, call.bytes)).collect();
            let answer = caller.batch(pushes).await;
            calls.latency(now().saturating_sub(at));
            match answer {
                Ok(results) => {
                    for (outcome, client) in results.into_iter().zip(clients) {
                        calls.done(outcome, target.receivers(client), &call.schedule);
                    }
                }
                Err(why) => calls.failed(&why),
            }
            return Ok(());
        }
        let client = target.next();
        let outcome = self.push(target, client, call.part, at, call.bytes).await?;
        calls.latency(now().saturating_sub(at));
        calls.done(outcome, target.receivers(client), &call.schedule);
        Ok(())
    }

    /// Makes one push to a client's user, or to everyone if the shape is a broadcast.
    pub(super) async fn push(
        &mut self,
        target: &Target,
        client: usize,
        part: Part,
        at: u64,
        bytes: usize,
    ) -> io::Result<Result<u64, String>> {
        match self {
            Self::Json(caller) => caller.push(&target.user_of(client), &target.event, &message(part, at, bytes)).await,
            Self::Grpc(caller) if target.shape == Shape::Broadcast => {
                Ok(caller.broadcast(&target.event, message(part, at, bytes)).await)
            }
            Self::Grpc(caller) => Ok(caller.push(grpc::push(target, client, part, at, bytes)).await),
        }
    }
}

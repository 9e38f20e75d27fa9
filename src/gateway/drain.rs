//! Readiness, and the drain that an operator begins and ends: all clients are sent away while the process stays up.

use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use crate::auth::PushScope;

use super::{AdminError, Audit, Gateway};

/// Whether new clients and callers should come here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    Ready,
    /// An operator drains the gateway, and may undrain it.
    Draining,
    /// The gateway is about to stop, or stops.
    Stopping,
    /// Whoever watches has been told, and watches no longer.
    Over,
}

/// The readiness, and the task of a drain that is in progress.
#[derive(Debug)]
pub(crate) struct Drain {
    /// Changed together with the registry, under its lock: a drain or its end must not undo a stop.
    readiness: watch::Sender<Readiness>,
    /// Held over a whole change, so that a drain and its end do not mix.
    task: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl Default for Drain {
    fn default() -> Self {
        Self { readiness: watch::Sender::new(Readiness::Ready), task: Mutex::new(None) }
    }
}

/// What a drain, or its end, found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drained {
    pub(crate) was_draining: bool,
    /// Connections that are open.
    pub(crate) connections: u64,
}

impl Drain {
    /// Stops telling connections to go. When this returns, no more are told.
    async fn stop_task(task: &mut Option<AbortOnDropHandle<()>>) {
        if let Some(task) = task.take() {
            task.abort();
            let _aborted = task.await;
        }
    }
}

impl Gateway {
    /// Whether new clients and callers should come here, and whoever wants to hear of changes.
    pub(crate) fn readiness(&self) -> watch::Receiver<Readiness> {
        self.0.drain.readiness.subscribe()
    }

    /// From here on nobody new should come, but whoever comes is served.
    pub(crate) fn leave(&self) {
        self.0.drain.readiness.send_replace(Readiness::Stopping);
    }

    /// Ends every watch of the readiness once it has told the last.
    pub(crate) fn end_watches(&self) {
        self.0.drain.readiness.send_replace(Readiness::Over);
    }

    /// Ends the task of an operator's drain, because a stop sends the clients away in its own time.
    pub(crate) async fn take_over_drain(&self) {
        Drain::stop_task(&mut *self.0.drain.task.lock().await).await;
    }

    /// Lets nobody in, and sends all clients away over the period. Their sessions may come back.
    pub(crate) async fn drain_from(&self, scope: &PushScope, period: Duration) -> Result<Drained, AdminError> {
        let drained = self.drain(period).await;
        Audit::operated("drain", scope, drained.map(|drained| drained.connections));
        drained
    }

    /// Ends a drain, and lets clients in again.
    pub(crate) async fn undrain_from(&self, scope: &PushScope) -> Result<Drained, AdminError> {
        let drained = self.undrain().await;
        Audit::operated("undrain", scope, drained.map(|drained| drained.connections));
        drained
    }

    async fn drain(&self, period: Duration) -> Result<Drained, AdminError> {
        let registry = &self.0.registry;
        let mut task = self.0.drain.task.lock().await;
        Drain::stop_task(&mut task).await;
        let was_draining = self.change_readiness(Readiness::Draining, || registry.drain())?;
        let connections = registry.len() as u64;
        info!(connections, period = %humantime::format_duration(period), "draining");
        if period.is_zero() {
            registry.send_away();
        } else {
            let registry = registry.clone();
            let drain = async move { registry.send_away_over(period).await };
            *task = Some(AbortOnDropHandle::new(tokio::spawn(drain)));
        }
        Ok(Drained { was_draining, connections })
    }

    async fn undrain(&self) -> Result<Drained, AdminError> {
        let registry = &self.0.registry;
        let mut task = self.0.drain.task.lock().await;
        Drain::stop_task(&mut task).await;
        let was_draining = self.change_readiness(Readiness::Ready, || registry.undrain())?;
        let connections = registry.len() as u64;
        info!(connections, was_draining, "undrained");
        Ok(Drained { was_draining, connections })
    }

    /// Changes the readiness, and the registry with it, unless the gateway stops. Returns whether it was draining.
    fn change_readiness(&self, to: Readiness, change: impl FnOnce()) -> Result<bool, AdminError> {
        let mut before = Readiness::Ready;
        self.0.drain.readiness.send_if_modified(|readiness| {
            before = *readiness;
            let may_change = matches!(before, Readiness::Ready | Readiness::Draining);
            if may_change {
                change();
                *readiness = to;
            }
            may_change && before != to
        });
        match before {
            Readiness::Ready => Ok(false),
            Readiness::Draining => Ok(true),
            Readiness::Stopping | Readiness::Over => Err(AdminError::Stopping),
        }
    }
}

//! The audit log of the control side: who was refused, and why, and what operators did. Never holds a key, a user id or a
//! message.

use std::net::SocketAddr;
use std::time::Instant;

use tracing::info;

use crate::auth::PushScope;
use crate::metrics::Door;
use crate::seldom::Seldom;

use super::{AdminError, PushError};

/// Writes a line for a refusal, at most one a second for each reason; and a line for each act of an operator.
#[derive(Debug, Default)]
pub(crate) struct Audit([Seldom; 8]);

/// Why a caller was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denial {
    NoKey,
    UnknownKey,
    ExpiredToken,
    BadToken,
    Method,
    UserOrEvent,
    Rate,
    Admin,
}

impl Denial {
    fn of(error: &PushError) -> Option<Self> {
        match error {
            PushError::PermissionDenied => Some(Self::UserOrEvent),
            PushError::RateLimited { .. } => Some(Self::Rate),
            PushError::Invalid(_)
            | PushError::KeyReused { .. }
            | PushError::TooSlow { .. }
            | PushError::TooManyWaiting => None,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::NoKey => "no_key",
            Self::UnknownKey => "unknown_key",
            Self::ExpiredToken => "expired_token",
            Self::BadToken => "bad_token",
            Self::Method => "method",
            Self::UserOrEvent => "user_or_event",
            Self::Rate => "rate",
            Self::Admin => "admin",
        }
    }
}

impl Audit {
    /// Notes that a caller was refused. One that is not known has no name.
    pub(crate) fn denied(&self, denial: Denial, door: Door, caller: Option<&str>, peer: Option<SocketAddr>) {
        if let Some(left_out) = self.0[denial as usize].due(Instant::now()) {
            let peer = peer.map(tracing::field::display);
            let reason = denial.label();
            info!(target: "pushgate::audit", reason, ?door, caller, peer, left_out, "refused");
        }
    }

    /// Notes that somebody was refused to read this path of the gateway's own.
    pub(crate) fn denied_to_read(&self, denial: Denial, path: &str, peer: SocketAddr) {
        if let Some(left_out) = self.0[denial as usize].due(Instant::now()) {
            let reason = denial.label();
            info!(target: "pushgate::audit", reason, path, %peer, left_out, "refused");
        }
    }

    /// Notes what an operator had done, or tried to.
    pub(crate) fn operated(act: &'static str, scope: &PushScope, result: Result<u64, AdminError>) {
        let (caller, peer) = (scope.name(), scope.peer().map(tracing::field::display));
        match result {
            Ok(connections) => info!(target: "pushgate::audit", act, caller, peer, connections, "done"),
            Err(error) => info!(target: "pushgate::audit", act, caller, peer, %error, "not done"),
        }
    }

    /// Notes an error of the gateway if it is a refusal of the caller.
    pub(super) fn failed(&self, error: &PushError, door: Door, scope: Option<&PushScope>) {
        if let (Some(denial), Some(scope)) = (Denial::of(error), scope) {
            self.denied(denial, door, Some(scope.name()), scope.peer());
        }
    }
}

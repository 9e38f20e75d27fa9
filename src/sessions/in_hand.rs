//! Who has a session in hand: the connection it is attached to, and whoever has claimed it for another.

use std::sync::Arc;

use crate::binder::{BindError, Bindings, Validity};
use crate::handle::Handle;
use crate::journal::Record;
use crate::mailbox::{Departure, Line, Mailbox, Resumed, WriteNow};
use crate::message::{ConnectionId, Event};

use super::{ResumeToken, Session, Sessions};

/// A session that has a connection. Dropped without [`Attached::leave`], it is over.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(super) sessions: Arc<Sessions>,
    pub(super) session: Arc<Session>,
    pub(super) has_left: bool,
}

impl Attached {
    pub(crate) fn token(&self) -> ResumeToken {
        self.session.token
    }

    pub(crate) fn epoch(&self) -> ConnectionId {
        self.session.mailbox.id()
    }

    pub(crate) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.session.mailbox
    }

    /// Notes what the session is bound to now.
    pub(crate) fn bound(&self, bindings: &Bindings) {
        self.sessions.keep.recorder().record(&self.session.user_id, || Record::Session {
            epoch: self.epoch(),
            resume: self.session.token.to_string(),
            events: bindings.events().cloned().collect(),
        });
    }

    /// The session is over, and nobody can go on with it. Until it is dropped, its client may acknowledge what it got.
    pub(crate) fn end(&self) {
        self.sessions.remove(self.session.token);
    }

    /// Whether the session goes on when the gateway stops.
    pub(crate) fn outlives_the_process(&self) -> bool {
        self.sessions.keep.recorder().is_durable()
    }

    /// The connection is gone, and the session may come back. `line` is what was on its way to the client. Returns whether
    /// it may; else the session is over, and the mailbox is still the connection's.
    pub(crate) fn leave(mut self, mut bindings: Bindings, line: &mut Line) -> bool {
        // Its place among the user's connections is free before anybody can come back for the session.
        bindings.leave_seat();
        match self.session.mailbox.detach(line) {
            Departure::Over => return false,
            Departure::MayComeBack { lost } => {
                self.sessions.metrics.forgotten.inc_by(lost as u64);
            }
        }
        self.has_left = true;
        *self.session.bindings() = Some(Box::new(bindings));
        self.sessions.put_away(&self.session);
        true
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if !self.has_left {
            self.end();
        }
    }
}

/// A session between two connections. Dropped before [`Claimed::go_on`], it is away again.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(super) sessions: Arc<Sessions>,
    pub(super) session: Arc<Session>,
    pub(super) bindings: Option<Bindings>,
}

/// A session with its new connection.
pub(crate) struct Returned {
    pub(crate) session: Attached,
    pub(crate) bindings: Bindings,
    pub(crate) is_recovered: bool,
}

impl Claimed {
    /// The events that are bound.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.bindings.iter().flat_map(|bindings| bindings.events().cloned()).collect()
    }

    /// This token is good for all its events.
    pub(crate) fn renew(&mut self, validity: Validity) {
        if let Some(bindings) = &mut self.bindings {
            bindings.renew(validity);
        }
    }

    /// Goes on behind the last number that the client has. `None` if the session cannot: it was dropped meanwhile, or the
    /// client claims a number that it was never sent.
    ///
    /// # Errors
    /// Refuses a connection over the user's limit, and the session stays away.
    pub(crate) fn go_on(
        mut self,
        handle: &Arc<Handle>,
        socket: Option<Arc<dyn WriteNow>>,
        seq: u64,
    ) -> Result<Option<Returned>, BindError> {
        let sessions = self.sessions.clone();
        let seat = sessions.binder.seat(&self.session.user_id, sessions.limits.binds)?;
        let attached = self.session.mailbox.attach(handle, socket, seq, |after| sessions.metrics.acknowledged(after));
        let Ok(Some((Resumed { is_recovered, .. }, lost))) = attached else {
            self.end();
            return Ok(None);
        };
        sessions.metrics.forgotten.inc_by(lost as u64);
        // Whoever waits for the session is to find it on its connection.
        sessions.changed.notify_waiters();
        let Some(mut bindings) = self.bindings.take() else { return Ok(None) };
        bindings.take_seat(seat);
        let session = Attached { sessions, session: self.session.clone(), has_left: false };
        Ok(Some(Returned { session, bindings, is_recovered }))
    }

    /// Ends the session: it is not to go on.
    pub(crate) fn end(mut self) {
        drop(self.bindings.take());
        self.sessions.remove(self.session.token);
        self.sessions.end(&self.session);
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        let Some(bindings) = self.bindings.take() else { return };
        *self.session.bindings() = Some(Box::new(bindings));
        self.sessions.put_away(&self.session);
    }
}

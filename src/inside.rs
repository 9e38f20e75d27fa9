//! The rooms without sockets, for benches, fuzz targets and conformance suites alone: no part of the library's interface,
//! and free to change.

mod echo;
mod pipe;
mod readers;

use std::io::{self, IoSlice};
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::auth::Deadline;
use crate::binder::{BindLimits, Bindings, Validity};
use crate::config::{Config, UserConnectionsPolicy};
use crate::connection::{self, Arrival, Protocol, Shared, Transport};
use crate::gateway::Gateway;
use crate::handle::Handle;
use crate::mailbox::{Capacity, Mailbox, Outboxes, WriteNow};
use crate::message::{Event, UserId};
use crate::metrics::Check;
use crate::server::{Server, ServerError};

/// No limit of the gateway's own comes in the way of a measurement.
const LIMITS: BindLimits = BindLimits {
    connections_per_user_max: 0,
    connections_per_user_policy: UserConnectionsPolicy::RejectNew,
    events_per_connection_max: usize::MAX,
};

pub use crate::server::guest::{Guest, invite};
pub use pipe::Pipe;
pub use readers::{Asks, legacy_frame, proxy_header, session_frame};

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// Bind requests in, messages out.
    Legacy,
    /// `pushgate.v1.json`.
    Session,
}

/// A running gateway, and its rooms.
pub struct Inside {
    gateway: Gateway,
    shared: Arc<Shared>,
}

/// A receiver without a connection.
#[derive(Debug)]
pub struct Receiver(Arc<Mailbox>);

/// What one connection holds of the binder.
#[derive(Debug)]
pub struct Held {
    _bindings: Bindings,
}

impl std::fmt::Debug for Inside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inside").field("gateway", &self.gateway).finish_non_exhaustive()
    }
}

impl Inside {
    /// Starts a gateway on this runtime. It runs until the runtime ends.
    ///
    /// # Errors
    /// As for [`Server::bind`].
    pub async fn start(config: Config) -> Result<Self, ServerError> {
        let server = Server::bind(config).await?;
        let gateway = server.gateway();
        tokio::spawn(server.run(std::future::pending()));
        let rooms = gateway.rooms();
        let shared = Arc::new(Shared {
            metrics: rooms.metrics.clone(),
            config: rooms.config.clone(),
            token_authenticator: rooms.token_authenticator.clone(),
            check_deadline: Deadline::new(Check::Token, rooms.config.check_timeout, rooms.metrics.clone()),
            sessions: rooms.sessions.clone(),
            revocations: rooms.revocations.clone(),
        });
        Ok(Self { gateway, shared })
    }

    /// The gateway itself.
    #[must_use]
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// Opens a legacy connection in memory, whose client sends this and nothing more. `None` if the registry refuses it.
    #[must_use]
    pub fn connect(&self, sends: Box<[u8]>) -> Option<MemorySocket> {
        let socket = MemorySocket(Arc::new(Memory { unread: Mutex::new(Some(sends)), written: AtomicU64::new(0) }));
        self.connect_over(socket.clone(), Protocol::Legacy)?;
        Some(socket)
    }

    /// Opens a connection over a pipe, whose other end is the caller's. `None` if the registry refuses it.
    #[must_use]
    pub fn connect_pipe(&self, speaks: Speaks) -> Option<Pipe> {
        let protocol = match speaks {
            Speaks::Legacy => Protocol::Legacy,
            Speaks::Session => Protocol::Session,
        };
        let pipe = Pipe::default();
        self.connect_over(pipe.clone(), protocol)?;
        Some(pipe)
    }

    fn connect_over<S: Transport>(&self, stream: S, protocol: Protocol) -> Option<()> {
        let registration = self.gateway.rooms().registry.admit((Ipv4Addr::LOCALHOST, 0).into()).ok()?;
        let arrival = Arrival { protocol, token: None, shown: None, registration, shared: self.shared.clone() };
        tokio::spawn(arrival.connect(stream, &[]).run());
        Some(())
    }

    /// Makes a receiver that nobody writes for.
    #[must_use]
    pub fn receiver(&self) -> Receiver {
        let handle = Handle::new(self.gateway.rooms().names.connection_id(), (Ipv4Addr::LOCALHOST, 0).into());
        let outboxes = Outboxes::new(Capacity { messages_max: 1, bytes_max: 1 });
        Receiver(Arc::new(Mailbox::new(Arc::new(handle), outboxes)))
    }

    /// Binds a receiver to events of a user. `None` without an event.
    #[must_use]
    pub fn bind(&self, receiver: &Receiver, user_id: &UserId, events: impl IntoIterator<Item = Event>) -> Option<Held> {
        let binder = &self.gateway.rooms().binder;
        let mut events = events.into_iter();
        let seat = binder.seat(user_id, LIMITS).ok()?;
        let mut bindings = binder.bind(&receiver.0, user_id, &events.next()?);
        bindings.take_seat(seat);
        events.try_for_each(|event| bindings.add(&event, Validity::default(), LIMITS)).ok()?;
        Some(Held { _bindings: bindings })
    }

    /// How many receivers the binder finds for a user's event.
    #[must_use]
    pub fn matched(&self, user_id: &UserId, event: &Event) -> usize {
        self.gateway.rooms().binder.receivers(user_id, event).len()
    }

    /// How many connections are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.gateway.rooms().registry.len()
    }

    /// How many sessions have no connection.
    #[must_use]
    pub fn sessions_away(&self) -> usize {
        self.gateway.rooms().sessions.away()
    }

    /// How many bindings there are.
    #[must_use]
    pub fn bindings(&self) -> usize {
        self.gateway.rooms().binder.len()
    }

    /// What a connection in memory consists of, in bytes.
    #[must_use]
    pub fn sizes() -> Vec<(&'static str, usize)> {
        /// The two counts of an `Arc`.
        const COUNTS: usize = 2 * size_of::<usize>();
        let mut sizes = connection::sizes::<MemorySocket>().to_vec();
        sizes.extend([
            ("handle", COUNTS + size_of::<Handle>()),
            ("mailbox", COUNTS + size_of::<Mailbox>()),
            ("socket in memory", COUNTS + size_of::<Memory>()),
        ]);
        sizes
    }
}

/// A connection's stream in memory: hands over what its client sends, then says nothing more, and takes all that is
/// written.
#[derive(Clone, Debug)]
pub struct MemorySocket(Arc<Memory>);

#[derive(Debug)]
struct Memory {
    unread: Mutex<Option<Box<[u8]>>>,
    written: AtomicU64,
}

impl MemorySocket {
    /// Bytes that were written to it.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.0.written.load(Ordering::Relaxed)
    }
}

impl WriteNow for Memory {
    fn write_now(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let count = slices.iter().map(|slice| slice.len()).sum();
        self.written.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl Transport for MemorySocket {
    type Shared = Self;

    fn share(self) -> Self {
        self
    }

    fn direct(&self) -> Option<Arc<dyn WriteNow>> {
        Some(self.0.clone())
    }
}

impl AsyncRead for MemorySocket {
    fn poll_read(self: Pin<&mut Self>, _cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut unread = self.0.unread.lock().unwrap_or_else(PoisonError::into_inner);
        match unread.take() {
            // A client that fits no buffer is the mistake of the bench.
            Some(bytes) if bytes.len() <= buffer.remaining() => {
                buffer.put_slice(&bytes);
                Poll::Ready(Ok(()))
            }
            Some(_) => Poll::Ready(Err(io::ErrorKind::FileTooLarge.into())),
            // No waker: nothing more will come.
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for MemorySocket {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.0.write_now(&[IoSlice::new(bytes)]))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(self.0.write_now(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

//! A push gateway: clients hold a WebSocket open and bind it to a user with a token, services push to that user by gRPC
//! or JSON, and learn what became of the message.
//!
//! The `pushgate` command is this library with a command line around it. A tokio program embeds the same gateway:
//!
//! ```
//! use pushgate::{BindAttempt, Config, Identity, Push, Server, TokenAuthenticator, TokenError, UserId};
//!
//! struct Sessions;
//!
//! #[async_trait::async_trait]
//! impl TokenAuthenticator for Sessions {
//!     async fn authenticate(&self, attempt: &BindAttempt<'_>) -> Result<Identity, TokenError> {
//!         match attempt.token.expose() {
//!             "a session of ann's" => Ok(Identity::new(UserId::new("ann").expect("not empty"))),
//!             _ => Err(TokenError::Refused),
//!         }
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let server = Server::builder(Config::default()).listener(listener).token_authenticator(Sessions).bind().await?;
//! let gateway = server.gateway();
//! let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
//! let running = tokio::spawn(server.run(async { stopped.await.unwrap_or_default() }));
//!
//! let outcome = gateway.push(&Push::new("ann", "mail", "you have mail")?).await?;
//! assert_eq!(outcome.matched, 0, "ann has not connected yet");
//!
//! drop(stop);
//! running.await?;
//! # Ok(())
//! # }
//! ```
//!
//! An own push check is plugged in beside the token check, with [`ServerBuilder::push_authorizer`]:
//!
//! ```
//! use pushgate::{PushAuthorizer, PushCredentials, PushRefused, PushScope};
//!
//! struct Internal;
//!
//! #[async_trait::async_trait]
//! impl PushAuthorizer for Internal {
//!     async fn authorize(&self, credentials: &PushCredentials) -> Result<PushScope, PushRefused> {
//!         match credentials.api_key.as_ref().map(|key| key.expose()) {
//!             Some("the billing service's secret") => Ok(PushScope::patterns("billing", &["*"], &["invoice.*"])),
//!             _ => Err(PushRefused::Unauthenticated),
//!         }
//!     }
//! }
//! ```
//!
//! # The rooms
//!
//! Each file or folder of `src` is a room: it does one thing, and its first line says which. Imports point down this list
//! only, and a test checks them.
//!
//! | room | what happens there |
//! |---|---|
//! | `main`, `cli` | The command line. Uses the library as any embedding program would. |
//! | `server` | Binds listeners, routes requests, supervises tasks, stops in order. Builds every other room. |
//! | `doors` | Decode a request, call one operation, encode the answer: `websocket`, `json`, `grpc`, `admin`. |
//! | `gateway` | Push, broadcast, drop, drain: what the push doors and the admin door share. |
//! | `connection` | The task of one socket: bind in time, then read, write, ping, stop. |
//! | `sessions` | Every session by its resume token: begin, leave, claim, return, end. |
//! | `binder` | The index of bindings: which mailboxes a user's event reaches. |
//! | `registry` | Every open connection by its id: admission, limits, alarms, drain. |
//! | `flusher` | Writes for the receivers of large fan-outs, many in one turn. |
//! | `replays` | What was pushed under an idempotency key already. |
//! | `mailbox` | All that one receiver has coming, under one lock; `keep` bounds what is kept for those who are away. |
//! | `journal` | What must outlive the process: a trait for embedding programs. |
//! | `dialect` | How each protocol words a message. All wire text of the session protocol is in `dialect/session`. |
//! | `handle` | One open connection as the others see it: its name, its stop, its alarm, its waker. |
//! | `delivery` | One message on its way to its receivers, and the receipt on which each notes how far it got. |
//! | `auth` | The token check and the push check: two traits, and the stock ones. |
//!
//! Below them are the leaves, free to all: `config` (settings and limits), `message` (the nouns), `outcome` (what became of a
//! push), `push_request` (a push as the API words it, read and written), `close` (why connections end), `metrics`,
//! `allowance` (the rate of one peer), `seldom` (how often one thing is
//! logged), `revocations` (which tokens are not good any more), `shares` (what all callers use up together), `subscriber` (whose an
//! address is), `legacy` (the JSON of the service that
//! pushgate replaces), `sync` (the locks, which shuttle can schedule).
//!
//! ## One push
//!
//! A door (`doors/json`, `doors/grpc`) gets the request through the stack in `server/stack`, which identifies the caller.
//! It decodes the request into a [`Push`] and calls `gateway`, which asks the `binder` for the mailboxes, makes one
//! `delivery`, and offers each mailbox a ticket of it (`Mailbox::offer`). The mailbox queues the ticket or refuses it, and
//! says whether somebody has to write it. Where the connection's task sleeps with nothing in hand, the gateway writes for a
//! few receivers at once (`mailbox/direct`), and has the `flusher` write for many. In all other cases the connection's task
//! does (`Mailbox::visit`). The door encodes the [`Outcome`].
//!
//! A message of a legacy connection is done when it is written. A message of a session is done when it is acknowledged:
//! `mailbox/log` numbers it as it is taken to be written, and keeps it.
//!
//! ## One acknowledgement
//!
//! `connection` reads it, `dialect/session` decodes it, `Mailbox::acknowledge` takes everything up to its number out of the
//! log and notes each on its receipt. Whoever waits for it in `gateway` wakes up.
//!
//! ## One departure
//!
//! The connection's task ends and calls `Sessions`' `Attached::leave`. `Mailbox::detach` numbers what is queued and takes
//! back what was in hand; from that step on the log keeps what is offered. `sessions` then lists the session as away. The
//! bindings stay in the binder, so that pushes go on reaching the mailbox.
//!
//! ## One return
//!
//! `connection/binding` checks the token and claims the session (`Sessions::claim`), from another connection if need be:
//! that one is told to stop and leaves as above. `Mailbox::attach` takes the client's last number as an acknowledgement and
//! moves the session to the new connection, which writes the rest of the log and then the queue. No message moves from one
//! store to another on the way.
//!
//! # Words
//!
//! *Receiver*: a legacy connection, or a session over all its connections. *Ticket*: one receiver's share of a delivery.
//! *Line*: the frames that a connection's task has in hand. *Offer*, *take*, *write*, *acknowledge*: the steps of a message.
//!
//! A message that does not arrive is *refused* (the mailbox did not take it; the outcome counts it as dropped) or *lost* (it
//! was taken, and then *given up*); [`DropReason`] says why. It is *displaced* when a newer message took its place in a full
//! queue. What a session lost is told to its client as a *gap* in the numbers. What is *kept*
//! is what a session may still need, or what is *held* for a user without a connection; `messages_forgotten` counts what was
//! kept and given up.
//!
//! # Lock order
//!
//! A thread that holds one of these takes only those further right.
//!
//! - `sessions` (by token) → a session's bindings → `binder` shard
//! - `sessions` (by token) → `mailbox` → `handle` waker, or receipt
//! - the readiness of a gateway → `registry`
//! - `binder` making room → `binder` shard; then, with the shard released, `mailbox`
//! - `keep` ranking → `keep` shard → account
//! - `keep` ranking → account; then, with the account released, `mailbox`
//! - `gateway` total → `registry` → `mailbox`; `gateway` total → `keep` ranking
//!
//! Nobody settles an account (`Account::settle`) with a mailbox locked, since that may lock any other mailbox. No lock is
//! held over an await, and the only system call under one is the write of a mailbox that does not wait.

mod allowance;
mod auth;
mod binder;
mod close;
mod config;
mod connection;
mod delivery;
mod dialect;
mod doors;
mod flusher;
mod gateway;
mod handle;
#[cfg(feature = "inside")]
#[doc(hidden)]
pub mod inside;
mod journal;
mod legacy;
mod mailbox;
mod message;
mod metrics;
#[cfg(all(test, feature = "shuttle"))]
mod models;
mod outcome;
mod push_request;
mod registry;
mod replays;
mod revocations;
#[cfg(test)]
mod rooms;
mod seldom;
mod server;
mod sessions;
mod shares;
mod subscriber;
mod sync;

pub use auth::{
    AdminAccess, BindAttempt, Headers, Identity, JwtAuthenticator, JwtGrant, JwtProblem, OpenPush, PushAuthorizer,
    PushCredentials, PushKeys, PushRefused, PushScope, ReloadError, Token, TokenAuthenticator, TokenError, TokenFile,
    TokenIsUser,
};
pub use config::{
    Address, Config, EventPolicies, HeaderNames, Invalid, JwtAlgorithm, JwtAlgorithms, Loaded, LogFormat, Mistake,
    Networks, NonEmpty, OneOf, Origins, Page, Source, UserConnectionsPolicy,
};
pub use gateway::{Gateway, PushError};
pub use journal::{Journal, Record, Recovered, Stored, StoredSession};
pub use message::{
    ConnectionId, Event, Field, InvalidConnectionId, InvalidMessageId, InvalidPush, MessageId, Payload, Priority, Push,
    SlowReaderPolicy, Target, UserId,
};
pub use outcome::{ConnectionOutcome, DropReason, Drops, Level, Outcome, Progress};
pub use server::{InvalidTls, Report, Server, ServerBuilder, ServerError, TlsMistake};

/// The gRPC API, generated from `proto/pushgate/v1`: messages, client and server.
pub mod proto {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

    tonic::include_proto!("pushgate.v1");

    /// The encoded descriptors of the API, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

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
//! let outcome = gateway.push(&Push::new("ann", "mail", "you have mail")?)?;
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
//! A push comes in by a door (`doors/json`, `doors/grpc`) behind one tower stack (`server/stack`). The door decodes it,
//! by way of the API's messages (`doors/api`), into the nouns of `message` and calls `gateway`, which asks the `binder`
//! who is bound and offers the message, now a `delivery`, to each one's `outbox`; under an idempotency key, `replays`
//! knows whether that was done already. The door encodes the `outcome`. Later, in the task of each `connection`, the
//! outbox is emptied into the socket.
//!
//! A client comes in by `doors/websocket`, which has the `registry` admit it and hands the socket to a `connection`:
//! bind in time, then read, write, ping, stop. Whatever ends it, dropping its guards unbinds it.
//!
//! A client of the session protocol has more: its outbox numbers what it takes, what was sent is kept in the `journal`
//! until it is acknowledged, and when its connection ends, `sessions` keeps outbox and bindings for its return. Pushes go
//! to the same outbox meanwhile, which hands them to the journal.
//!
//! `config` holds every setting and limit, `allowance` the rate of one peer, `shares` what all callers use up together,
//! `auth` the two checks, `metrics` what is counted, `close` why connections end, `legacy` the JSON of the service that
//! pushgate replaces, `sync` the locks that shuttle can schedule. `server` binds, routes, supervises and stops; it alone
//! knows every room. Imports point down that list only.

mod allowance;
mod auth;
mod binder;
mod close;
mod config;
mod connection;
mod delivery;
mod doors;
mod gateway;
mod journal;
mod legacy;
mod message;
mod metrics;
#[cfg(all(test, feature = "shuttle"))]
mod models;
mod outbox;
mod outcome;
mod registry;
mod replays;
mod server;
mod sessions;
mod shares;
mod sync;

pub use auth::{
    BindAttempt, Identity, OpenPush, PushAuthorizer, PushCredentials, PushKeys, PushRefused, PushScope, ReloadError,
    Token, TokenAuthenticator, TokenError, TokenFile, TokenIsUser,
};
pub use config::{Address, Config, EventPolicies, Invalid, Loaded, LogFormat, Mistake, Page, Source};
pub use gateway::{Gateway, PushError};
pub use journal::{Appended, Journal, JournalBounds, Kept, MemoryJournal, SessionKey, Stored, Usage};
pub use message::{
    ConnectionId, Event, Field, InvalidConnectionId, InvalidMessageId, InvalidPush, MessageId, Payload, Priority, Push,
    SlowReaderPolicy, Target, UserId,
};
pub use outcome::{ConnectionOutcome, DropReason, Drops, Level, Outcome, Progress};
pub use server::{Report, Server, ServerBuilder, ServerError};

/// The gRPC API, generated from `proto/pushgate/v1`: messages, client and server.
pub mod proto {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

    tonic::include_proto!("pushgate.v1");

    /// The encoded descriptors of the API, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

#[cfg(test)]
mod rooms {
    use std::path::Path;

    /// Which rooms a room may know. Whatever is not here is a leaf, free to all, and knows only leaves.
    const ARROWS: [(&str, &[&str]); 14] = [
        ("delivery", &[]),
        ("journal", &["delivery"]),
        ("outbox", &["delivery", "journal"]),
        ("auth", &[]),
        ("binder", &["outbox"]),
        ("registry", &["outbox"]),
        ("sessions", &["binder", "journal", "outbox"]),
        ("connection", &["auth", "binder", "delivery", "journal", "outbox", "registry", "sessions"]),
        ("replays", &["delivery"]),
        ("gateway", &["auth", "binder", "delivery", "journal", "outbox", "registry", "replays", "sessions"]),
        ("doors/websocket", &["connection", "doors", "registry"]),
        ("doors/api", &["auth", "gateway"]),
        ("doors/json", &["auth", "doors", "gateway"]),
        ("doors/grpc", &["auth", "doors", "gateway"]),
    ];
    const LEAVES: [&str; 10] =
        ["allowance", "close", "config", "legacy", "message", "metrics", "outcome", "proto", "shares", "sync"];

    fn check(path: &Path, room: &str, wrong: &mut Vec<String>) {
        let allowed = ARROWS.iter().find(|(name, _)| *name == room).map_or(&[][..], |(_, allowed)| allowed);
        let text = std::fs::read_to_string(path).expect("a source file");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            let Some(import) = line.trim_start().strip_prefix("use crate::") else { continue };
            let target = import.split([':', ';', ' ']).next().unwrap_or_default();
            let own = room.split('/').next() == Some(target) && !room.contains('/');
            if !own && !allowed.contains(&target) && !LEAVES.contains(&target) {
                wrong.push(format!("{}:{}: {room} must not know {target}", path.display(), number + 1));
            }
        }
    }

    #[test]
    fn imports_point_down() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut wrong = Vec::new();
        let rooms = ARROWS.iter().map(|(room, _)| *room).chain(LEAVES.into_iter().filter(|leaf| *leaf != "proto"));
        for room in rooms {
            check(&source.join(format!("{room}.rs")), room, &mut wrong);
            for entry in std::fs::read_dir(source.join(room)).into_iter().flatten() {
                check(&entry.expect("a readable folder").path(), room, &mut wrong);
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

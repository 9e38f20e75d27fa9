//! A gateway on real sockets, in this process.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod admin;
mod auth;
mod callback;
mod checks;
mod connections;
mod doors;
mod early_tokens;
mod following;
mod grpc;
mod journal;
mod json;
mod jwt;
mod legacy;
mod limits;
mod listeners;
mod mtls;
mod operating;
mod origins;
mod panics;
mod parity;
mod proxies;
mod push_jwt;
mod revocations;
mod session_schema;
mod sessions;
mod shutdown;
mod tls;
mod transcripts;

//! A gateway on real sockets, in this process.

#[path = "../support/mod.rs"]
mod support;

mod auth;
mod connections;
mod grpc;
mod legacy;
mod operating;
mod parity;
mod shutdown;

//! The gateway's command as programs of other makers see it: grpcurl, buf, generated clients, a browser, proxies. They are
//! installed by `.ci/tools` and run with `cargo test --test outside -- --ignored`.

#[path = "../support/process.rs"]
mod process;

mod client;
mod clients;
mod grpcurl;
mod jwt;
mod metrics;
mod page;
mod proto;
mod proxies;
mod readme;
mod tools;
mod user;

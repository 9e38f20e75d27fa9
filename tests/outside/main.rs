//! The gateway's command as programs of other makers see it: grpcurl, buf, generated clients, a browser, proxies. They are
//! installed by `.ci/tools` and run with `cargo test --test outside -- --ignored`.

#[cfg(feature = "inside")]
mod autobahn;
mod callback;
#[path = "../support/certificates.rs"]
mod certificates;
mod client;
mod clients;
mod grpcurl;
mod h2spec;
#[cfg(feature = "inside")]
mod interop;
mod jwt;
mod metrics;
mod page;
#[path = "../support/process.rs"]
mod process;
mod proto;
mod proxies;
mod readme;
mod tls;
mod tools;
mod user;

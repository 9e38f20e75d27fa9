//! Measures the memory of an idle connection: how much the gateway's resident set grows per connection between 1,000
//! and 9,000 bound connections, for legacy clients and for sessions, each without TLS and over it. What rustls alone keeps
//! for an idle connection is measured in the same way, and the rows over TLS are told as multiples of it.
//!
//! ```sh
//! cargo bench --bench idle
//! PUSHGATE_OTHER=../other/target/release/pushgate cargo bench --bench idle
//! ```
//!
//! The second command compares with another build, alternating between the two in one run. Needs Linux's `/proc` and an
//! open file for each connection.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]

#[path = "../../tests/support/certificates.rs"]
mod certificates;
#[path = "../../tests/support/process.rs"]
mod process;
mod rustls_alone;
#[path = "../support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use certificates::{Authority, Files};
use futures_util::StreamExt;
use process::{GatewayProcess, pushgate};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// The gateway's own, since the rustls that it is compared with runs in this program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const FEW: usize = 1_000;
const MANY: usize = 9_000;
const ROUNDS: usize = 3;
/// The number of connections being opened at the same time.
const AT_ONCE: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Legacy,
    Session,
}

/// What the connections go over.
#[derive(Clone)]
enum Carrier {
    Plain,
    Tls(Arc<Tls>),
}

/// The server's certificate, and how its clients speak TLS.
struct Tls {
    files: Files,
    connector: TlsConnector,
}

/// A client's end. It is only kept open.
#[allow(dead_code, reason = "held, not read")]
enum Held {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

fn main() {
    rustls_alone::serve_if_asked();
    let other = std::env::var_os("PUSHGATE_OTHER").map(PathBuf::from);
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let authority = Authority::new("idle");
    let tls = Arc::new(Tls::of(&authority));
    println!("bytes of memory per idle bound connection, from {FEW} to {MANY}, medians of {ROUNDS} rounds");
    let mut alone: Vec<_> = (0..ROUNDS).map(|_| runtime.block_on(rustls_bytes(&tls))).collect();
    let alone = median(&mut alone);
    println!("  {:<22} {alone:>6.0}", "rustls alone");
    for carrier in [Carrier::Plain, Carrier::Tls(tls)] {
        for protocol in [Protocol::Legacy, Protocol::Session] {
            let (mut ours, mut others) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                ours.push(runtime.block_on(gateway_bytes(pushgate(), protocol, &carrier)));
                if let Some(other) = &other {
                    others.push(runtime.block_on(gateway_bytes(Command::new(other), protocol, &carrier)));
                }
            }
            let (over, ours) = (carrier.label(), median(&mut ours));
            print!("  {:<22} {ours:>6.0}", format!("{protocol:?}{over}").to_lowercase());
            if matches!(carrier, Carrier::Tls(_)) {
                print!("  times rustls alone {:.2}", ours / alone);
            }
            if !others.is_empty() {
                let other = median(&mut others);
                print!("  other build {other:>6.0}  ratio {:.2}", ours / other);
            }
            println!();
        }
    }
}

impl Tls {
    fn of(authority: &Authority) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.ca_pem().as_bytes()).unwrap()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        let connector = TlsConnector::from(Arc::new(config));
        Self { files: authority.issue("server", &["localhost"], 2100), connector }
    }
}

impl Carrier {
    fn label(&self) -> &'static str {
        if matches!(self, Self::Tls(_)) { " over TLS" } else { "" }
    }

    /// Connects, upgrades with these additional header lines and sends one text message.
    async fn connect(&self, address: SocketAddr, headers: &str, text: &str) -> Held {
        match self {
            Self::Plain => Held::Plain(support::connect(address, headers, text).await),
            Self::Tls(tls) => Held::Tls(Box::new(tls.connect(address, headers, text).await)),
        }
    }
}

impl Tls {
    async fn connect(&self, address: SocketAddr, headers: &str, text: &str) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let stream = self.connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
        support::upgrade(stream, headers, text).await
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn gateway_bytes(mut command: Command, protocol: Protocol, carrier: &Carrier) -> f64 {
    // The clients do not answer pings, so the gateway must not send any.
    command.env("PUSHGATE_PING_INTERVAL", "1h");
    command.env("PUSHGATE_CONTROL_LISTEN", "127.0.0.1:0");
    if let Carrier::Tls(tls) = carrier {
        command.env("PUSHGATE_TLS_CERT_FILE", &tls.files.certificate).env("PUSHGATE_TLS_KEY_FILE", &tls.files.key);
    }
    let gateway = GatewayProcess::start_as(&mut command);
    let mut clients = Vec::new();
    bind(&gateway, &mut clients, FEW, protocol, carrier).await;
    let few = resident_bytes(gateway.process.id());
    bind(&gateway, &mut clients, MANY, protocol, carrier).await;
    let many = resident_bytes(gateway.process.id());
    (many - few) / (MANY - FEW) as f64
}

/// Opens connections until `count` are bound, each for a different user.
async fn bind(gateway: &GatewayProcess, clients: &mut Vec<Held>, count: usize, protocol: Protocol, carrier: &Carrier) {
    let opened = futures_util::stream::iter(clients.len()..count)
        .map(|number| match protocol {
            Protocol::Legacy => {
                let bind = format!(r#"{{"token":"user-{number}","event":"mail"}}"#);
                (String::new(), bind)
            }
            Protocol::Session => {
                let bind = format!(r#"{{"type":"bind","token":"user-{number}","event":"mail"}}"#);
                ("sec-websocket-protocol: pushgate.v1.json\r\n".to_owned(), bind)
            }
        })
        .map(|(headers, bind)| async move { carrier.connect(gateway.clients, &headers, &bind).await })
        .buffer_unordered(AT_ONCE);
    clients.extend(opened.collect::<Vec<_>>().await);
    while bindings(gateway).await < count {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn rustls_bytes(tls: &Tls) -> f64 {
    let (process, address) = rustls_alone::start(&tls.files);
    let mut clients = Vec::new();
    let mut resident = Vec::new();
    for count in [FEW, MANY] {
        let opened = futures_util::stream::iter(clients.len()..count)
            .map(|number| async move {
                let mut stream = tls.connect(address, "", &format!(r#"{{"token":"user-{number}"}}"#)).await;
                stream.read_u8().await.unwrap();
                stream
            })
            .buffer_unordered(AT_ONCE);
        clients.extend(opened.collect::<Vec<_>>().await);
        resident.push(resident_bytes(process.id()));
    }
    (resident[1] - resident[0]) / (MANY - FEW) as f64
}

async fn bindings(gateway: &GatewayProcess) -> usize {
    let mut stream = TcpStream::connect(gateway.control).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.lines().find_map(|line| line.strip_prefix("pushgate_bindings ")).unwrap().parse().unwrap()
}

fn resident_bytes(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("Linux's /proc is needed");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<f64>().unwrap() * 1024.0
}

//! A server that does nothing but hold TLS connections, each as rustls' own type beside its socket. What it keeps for one is
//! what a gateway over TLS is compared with.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, Stream};

use crate::MANY;
use crate::certificates::Files;
use crate::process::Process;

/// The argument with which this bench is that server.
const ARGUMENT: &str = "--rustls-alone";

/// The line that the server writes once it listens, up to its address.
const LISTENS: &str = "rustls alone on ";

/// What answers a client's request, and the end of it.
const ANSWER: &[u8] = b"nothing\r\n\r\n";

/// Starts the server in a process of its own, and returns it with its address.
pub(crate) fn start(files: &Files) -> (Process, std::net::SocketAddr) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let process = Process::start(command.arg(ARGUMENT).args([&files.certificate, &files.key]));
    let line = process.stdout_line(LISTENS);
    (process, line.trim_start_matches(LISTENS).parse().unwrap())
}

/// Runs the server if this process was started as it, for ever.
pub(crate) fn serve_if_asked() {
    let mut arguments = std::env::args_os().skip_while(|argument| argument != ARGUMENT).skip(1);
    let (Some(certificate), Some(key)) = (arguments.next(), arguments.next()) else { return };
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let chain = CertificateDer::pem_file_iter(certificate).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    // The gateway's own settings.
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ticketer = aws_lc_rs::Ticketer::new().unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{LISTENS}{}", listener.local_addr().unwrap());
    // Made at once: a list that grows would leave holes in the memory.
    let mut held = Vec::with_capacity(MANY);
    for socket in listener.incoming() {
        let mut socket = socket.unwrap();
        // One connection after the other is made here, and each would wait for the client's late acknowledgements.
        socket.set_nodelay(true).unwrap();
        let mut connection = ServerConnection::new(config.clone()).unwrap();
        let mut stream = Stream::new(&mut connection, &mut socket);
        let (mut request, mut bytes) = (Vec::new(), [0; 512]);
        while !request.ends_with(b"\r\n\r\n") {
            let count = stream.read(&mut bytes).unwrap();
            request.extend(&bytes[..count]);
        }
        stream.write_all(ANSWER).unwrap();
        // The client's first message, and that it has come.
        let _count = stream.read(&mut bytes).unwrap();
        stream.write_all(b"!").unwrap();
        held.push((socket, connection));
    }
}

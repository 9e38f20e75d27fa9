//! Turns the files of an address into what a handshake needs, and finds every mistake in them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{
    ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier,
};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{Error, InconsistentKeys, RootCertStore, ServerConfig};

use super::TlsMistake;
use super::certificate::Facts;
use super::files::{Content, Pair, Snapshot};
use super::pem;

/// What is the same for all versions of an address's files.
#[derive(Debug)]
pub(super) struct Constants {
    provider: Arc<CryptoProvider>,
    /// The protocols to choose from, the preferred one first.
    alpn: Vec<Vec<u8>>,
    /// Lets clients that come back go on with the keys of their last connection. Holds nothing for each client, unlike
    /// a cache, which would be too small for all clients of a gateway.
    ticketer: Arc<dyn ProducesTickets>,
}

impl Constants {
    /// # Errors
    /// When the system has no random numbers.
    pub(super) fn new(alpn: &[&str]) -> Result<Self, Error> {
        Ok(Self {
            provider: Arc::new(aws_lc_rs::default_provider()),
            alpn: alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect(),
            ticketer: aws_lc_rs::Ticketer::new()?,
        })
    }
}

/// The files of an address, ready for use.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) config: Arc<ServerConfig>,
    /// How many certificates there are to choose from.
    pub(super) certificates: usize,
    /// When the first of the certificates expires, those of CAs included, since 1970.
    pub(super) expires: Duration,
    /// Whether one has expired already. It is used all the same: refusing all clients would be no better.
    pub(super) has_expired: bool,
}

/// Checks all files and takes them together.
///
/// # Errors
/// All mistakes at once.
pub(super) fn load(snapshot: Snapshot, constants: &Constants) -> Result<Loaded, Vec<TlsMistake>> {
    let mut mistakes = snapshot.mistakes;
    let mut certificates = Certificates { by_name: HashMap::new(), default: None };
    let (mut expires, mut has_expired) = (Duration::MAX, false);
    for pair in &snapshot.pairs {
        match read(pair, &constants.provider) {
            Ok((certified, facts)) => {
                expires = facts.iter().map(|facts| facts.expires).fold(expires, Duration::min);
                has_expired |= facts.iter().any(Facts::has_expired);
                certificates.add(certified, &facts);
            }
            Err(found) => mistakes.extend(found),
        }
    }
    let client_ca = snapshot.client_ca.as_ref().map(|content| verifier(content, constants));
    let verifier = client_ca.transpose().unwrap_or_else(|mistake| {
        mistakes.push(mistake);
        None
    });
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let builder = ServerConfig::builder_with_provider(constants.provider.clone())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .expect("aws-lc-rs has cipher suites for both versions");
    let verifies = verifier.is_some();
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols.clone_from(&constants.alpn);
    if verifies {
        // Who comes back with old keys would not be verified again, though its certificate may have expired by then.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    } else {
        config.ticketer = constants.ticketer.clone();
    }
    Ok(Loaded { config: Arc::new(config), certificates: snapshot.pairs.len(), expires, has_expired })
}

/// Accepts callers with a certificate of the CAs in a file.
fn verifier(content: &Content, constants: &Constants) -> Result<Arc<dyn ClientCertVerifier>, TlsMistake> {
    let mut roots = RootCertStore::empty();
    for (line, certificate) in pem::certificates(&content.text).map_err(|problem| content.mistake(problem))? {
        let added = roots.add(certificate);
        added.map_err(|error| content.mistake(format!("line {line}: this certificate cannot be used: {error}")))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), constants.provider.clone())
        .build()
        .map_err(|error| content.mistake(error.to_string()))
}

/// One certificate with its key, and what it and those above it say.
fn read(pair: &Pair, provider: &CryptoProvider) -> Result<(CertifiedKey, Vec<Facts>), Vec<TlsMistake>> {
    let chain = pem::certificates(&pair.certificate.text).and_then(|chain| {
        let facts = |(line, certificate): &(usize, _)| {
            Facts::of(certificate).map_err(|problem| format!("line {line}: {problem}"))
        };
        let facts = chain.iter().map(facts).collect::<Result<Vec<_>, _>>()?;
        Ok((chain.into_iter().map(|(_, certificate)| certificate).collect(), facts))
    });
    let key = pem::private_key(&pair.key.text).and_then(|key| {
        let loaded = provider.key_provider.load_private_key(key);
        loaded.map_err(|error| format!("this private key cannot be used: {error}"))
    });
    match (chain, key) {
        (Ok((chain, facts)), Ok(key)) => {
            let certified = CertifiedKey::new(chain, key);
            let problem = match certified.keys_match() {
                // aws-lc-rs tells the public half of every kind of key that it signs with.
                Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => return Ok((certified, facts)),
                Err(Error::InconsistentKeys(_)) => {
                    let certificate = pair.certificate.path().display();
                    return Err(vec![
                        pair.key.mistake(format!("this is not the key of the certificate in {certificate}")),
                    ]);
                }
                Err(error) => error.to_string(),
            };
            Err(vec![pair.certificate.mistake(format!("the first certificate cannot be used: {problem}"))])
        }
        (chain, key) => {
            let mistakes = [
                chain.err().map(|problem| pair.certificate.mistake(problem)),
                key.err().map(|problem| pair.key.mistake(problem)),
            ];
            Err(mistakes.into_iter().flatten().collect())
        }
    }
}

/// The certificates of an address, by whom they are made out to.
#[derive(Debug)]
struct Certificates {
    /// In small letters. A wildcard is there as it is written, `*.example.com`.
    by_name: HashMap<String, Arc<CertifiedKey>>,
    /// The first.
    default: Option<Arc<CertifiedKey>>,
}

impl Certificates {
    /// Adds a certificate. Of two with the same name, the first is used.
    fn add(&mut self, certified: CertifiedKey, facts: &[Facts]) {
        let certified = Arc::new(certified);
        for name in facts.first().map(|facts| facts.dns_names.as_slice()).unwrap_or_default() {
            self.by_name.entry(name.clone()).or_insert_with(|| certified.clone());
        }
        self.default.get_or_insert(certified);
    }

    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        // A wildcard stands for one label, RFC 9525 section 6.3.
        let wildcard = || self.by_name.get(&format!("*.{}", name.split_once('.')?.1));
        self.by_name.get(&name).or_else(wildcard)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        hello.server_name().and_then(|name| self.find(name)).or(self.default.as_ref()).cloned()
    }
}

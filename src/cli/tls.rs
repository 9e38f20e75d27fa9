//! The command's own side of TLS: whom it trusts, and what it shows.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::transport::{ClientTlsConfig, Identity};

/// The files for a gateway that is reached by `https://` or `wss://`.
#[derive(Args)]
pub(super) struct Tls {
    /// A PEM file of CA certificates to trust, instead of those that this machine trusts
    #[arg(long, value_name = "FILE", env = "PUSHGATE_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// A PEM file of a certificate to show to the gateway
    #[arg(long, value_name = "FILE", env = "PUSHGATE_CERT_FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// A PEM file of the private key of that certificate
    #[arg(long, value_name = "FILE", env = "PUSHGATE_KEY_FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
}

impl Tls {
    /// For gRPC.
    pub(super) fn for_grpc(&self) -> Result<ClientTlsConfig, Box<dyn Error>> {
        let config = ClientTlsConfig::new().trust_anchors(self.roots()?.roots);
        let Some((certificate, key)) = self.own() else { return Ok(config) };
        // Read here for the sake of the error, which would not name the file later.
        chain(certificate)?;
        private_key(key)?;
        Ok(config.identity(Identity::from_pem(read(certificate)?, read(key)?)))
    }

    /// For WebSockets.
    pub(super) fn for_websocket(&self) -> Result<Arc<ClientConfig>, Box<dyn Error>> {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?);
        Ok(Arc::new(match self.own() {
            Some((certificate, key)) => {
                builder.with_client_auth_cert(chain(certificate)?, private_key(key)?).map_err(|error| {
                    format!("{} cannot be shown with {}: {error}", certificate.display(), key.display())
                })?
            }
            None => builder.with_no_client_auth(),
        }))
    }

    pub(super) fn shows_nothing(&self) -> bool {
        self.own().is_none()
    }

    fn own(&self) -> Option<(&Path, &Path)> {
        self.cert_file.as_deref().zip(self.key_file.as_deref())
    }

    fn roots(&self) -> Result<RootCertStore, Box<dyn Error>> {
        let mut roots = RootCertStore::empty();
        match &self.ca_file {
            Some(path) => {
                for certificate in chain(path)? {
                    roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
                }
            }
            None => {
                // A machine may trust some that cannot be read. They are missed only where they are needed.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err("this machine has no CA certificates; name those to trust with --ca-file".into());
                }
            }
        }
        Ok(roots)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err(format!("{} holds no certificate", path.display())),
        chain => chain.map_err(|error| format!("{}: {error}", path.display())),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| format!("{}: {error}", path.display()))
}

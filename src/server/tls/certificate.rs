//! What the gateway reads of a certificate: until when it is good, and whom it names.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// What one certificate says.
#[derive(Debug)]
pub(super) struct Facts {
    /// When it expires, since 1970.
    pub(super) expires: Duration,
    /// The DNS names it is made out to, in small letters, maybe with `*` as the first label.
    pub(super) dns_names: Vec<String>,
    /// The URIs it is made out to, as they are written.
    pub(super) uris: Vec<String>,
}

impl Facts {
    /// Reads a certificate. Nothing is verified here.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let read = || {
            let parsed = CertificateInner::<Raw>::from_der(certificate)?;
            let certificate = parsed.tbs_certificate();
            let names = certificate.get_extension::<SubjectAltName>()?.map(|(_, names)| names.0).unwrap_or_default();
            let dns_names = names.iter().filter_map(|name| match name {
                GeneralName::DnsName(name) => Some(name.as_str().to_ascii_lowercase()),
                _ => None,
            });
            let uris = names.iter().filter_map(|name| match name {
                GeneralName::UniformResourceIdentifier(uri) => Some(uri.as_str().to_owned()),
                _ => None,
            });
            Ok(Self {
                expires: certificate.validity().not_after.to_unix_duration(),
                dns_names: dns_names.collect(),
                uris: uris.collect(),
            })
        };
        read().map_err(|error: x509_cert::der::Error| format!("this is not a certificate: {error}"))
    }

    /// Whether it is over.
    pub(super) fn has_expired(&self) -> bool {
        SystemTime::now().duration_since(UNIX_EPOCH).is_ok_and(|now| now >= self.expires)
    }
}

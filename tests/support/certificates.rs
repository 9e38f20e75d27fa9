//! Certificates that a test makes for itself, and their files.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType, date_time_ymd};
use tempfile::TempDir;

/// A certificate authority with a folder for its files.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// The files of one certificate.
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { issuer, folder: tempfile::tempdir().unwrap() };
        std::fs::write(authority.ca_file(), authority.issuer.pem()).unwrap();
        authority
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The certificate of the authority itself.
    pub fn ca_file(&self) -> PathBuf {
        self.folder().join("ca.pem")
    }

    pub fn ca_pem(&self) -> String {
        self.issuer.pem()
    }

    /// Issues a certificate to these names, and writes it and its key as `NAME.crt` and `NAME.key`. A name with a colon
    /// is a URI. The year is that of its end.
    pub fn issue(&self, name: &str, names: &[&str], year: i32) -> Files {
        let (certificate, key) = self.issued(names, year);
        let files = Files {
            certificate: self.folder().join(name).with_extension("crt"),
            key: self.folder().join(name).with_extension("key"),
        };
        std::fs::write(&files.certificate, certificate).unwrap();
        std::fs::write(&files.key, key).unwrap();
        files
    }

    fn issued(&self, names: &[&str], year: i32) -> (String, String) {
        let (uris, others): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| name.contains(':'));
        let others: Vec<String> = others.into_iter().map(str::to_owned).collect();
        let mut params = CertificateParams::new(others).unwrap();
        params.subject_alt_names.extend(uris.into_iter().map(|uri| SanType::URI(uri.try_into().unwrap())));
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

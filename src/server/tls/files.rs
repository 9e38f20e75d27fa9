//! The files of one address's certificates: which they are, and what is in them now.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::auth::ReloadError;
use crate::config::Config;

use super::TlsMistake;

/// The maximum size of a PEM file. A chain with its key takes about 10 KiB.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The maximum number of certificates in a folder. All their files are read every few seconds.
const CERTIFICATES_MAX: usize = 1000;

/// Where the certificates of one address are.
#[derive(Clone, Debug)]
pub(super) struct Files {
    /// The files of the certificate and its key.
    pair: Option<[Named; 2]>,
    folder: Option<Named>,
    /// The CAs of which callers must present a certificate.
    client_ca: Option<Named>,
}

/// A path, and the setting that it comes from.
#[derive(Clone, Debug)]
struct Named {
    setting: &'static str,
    path: PathBuf,
}

/// What the files held at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// The certificate for those who ask for none of the others comes first.
    pub(super) pairs: Vec<Pair>,
    pub(super) client_ca: Option<Content>,
    /// What could not be read.
    pub(super) mistakes: Vec<TlsMistake>,
}

/// A certificate and its key.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) certificate: Content,
    pub(super) key: Content,
}

/// One file.
#[derive(Debug)]
pub(super) struct Content {
    setting: &'static str,
    path: PathBuf,
    pub(super) text: String,
}

impl Content {
    pub(super) fn mistake(&self, problem: String) -> TlsMistake {
        malformed(self.setting, &self.path, problem)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn malformed(setting: &'static str, path: &Path, problem: String) -> TlsMistake {
    TlsMistake { setting, error: ReloadError::Malformed { path: path.to_owned(), problem } }
}

impl Files {
    /// Those of `listen`, if it speaks TLS.
    pub(super) fn of_listen(config: &Config) -> Option<Self> {
        let named = |setting, path: &Option<PathBuf>| Some(Named { setting, path: path.clone()? });
        let certificate = named("tls_cert_file", &config.tls_cert_file);
        let pair = certificate.zip(named("tls_key_file", &config.tls_key_file)).map(Into::into);
        let folder = named("tls_cert_folder", &config.tls_cert_folder);
        (pair.is_some() || folder.is_some()).then_some(Self { pair, folder, client_ca: None })
    }

    /// Those of `control_listen`, if it speaks TLS.
    pub(super) fn of_control(config: &Config) -> Option<Self> {
        let named = |setting, path: &Option<PathBuf>| Some(Named { setting, path: path.clone()? });
        let certificate = named("control_tls_cert_file", &config.control_tls_cert_file);
        let pair = certificate.zip(named("control_tls_key_file", &config.control_tls_key_file)).map(Into::into);
        let client_ca = named("control_tls_client_ca_file", &config.control_tls_client_ca_file);
        pair.map(|pair| Self { pair: Some(pair), folder: None, client_ca })
    }

    /// Reads all of them.
    pub(super) fn read(&self) -> Snapshot {
        let mut snapshot = Snapshot { pairs: Vec::new(), client_ca: None, mistakes: Vec::new() };
        if let Some([certificate, key]) = &self.pair {
            snapshot.read_pair(certificate, key);
        }
        if let Some(folder) = &self.folder {
            match pairs_in(folder) {
                Ok(pairs) => pairs.iter().for_each(|[certificate, key]| snapshot.read_pair(certificate, key)),
                Err(mistake) => snapshot.mistakes.push(mistake),
            }
        }
        if let Some(named) = &self.client_ca {
            match named.read() {
                Ok(content) => snapshot.client_ca = Some(content),
                Err(mistake) => snapshot.mistakes.push(mistake),
            }
        }
        snapshot
    }
}

impl Named {
    fn read(&self) -> Result<Content, TlsMistake> {
        let Self { setting, path } = self;
        match read(path) {
            Ok(text) => Ok(Content { setting, path: path.clone(), text }),
            Err(error) => Err(TlsMistake { setting, error }),
        }
    }
}

impl Snapshot {
    fn read_pair(&mut self, certificate: &Named, key: &Named) {
        let read = [certificate.read(), key.read()];
        match read {
            [Ok(certificate), Ok(key)] => self.pairs.push(Pair { certificate, key }),
            read => self.mistakes.extend(read.into_iter().filter_map(Result::err)),
        }
    }

    /// A number that differs when anything in the files does. Compared instead of times, which two versions of a file
    /// can share, and of contents, so that the private keys are not kept a second time.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let pairs = self.pairs.iter().flat_map(|pair| [&pair.certificate, &pair.key]);
        for content in pairs.chain(&self.client_ca) {
            (&content.path, &content.text).hash(&mut hasher);
        }
        for mistake in &self.mistakes {
            mistake.to_string().hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// The pairs of a folder, ordered by name.
fn pairs_in(folder: &Named) -> Result<Vec<[Named; 2]>, TlsMistake> {
    let Named { setting, path } = folder;
    let unreadable = |source| TlsMistake { setting, error: ReloadError::Unreadable { path: path.clone(), source } };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        paths.push(entry.map_err(unreadable)?.path());
    }
    paths.sort();
    let of_kind = |kind: &'static str| paths.iter().filter(move |path| path.extension().is_some_and(|end| end == kind));
    for (kind, partner) in [("crt", "key"), ("key", "crt")] {
        if let Some(alone) = of_kind(kind).find(|path| !paths.contains(&path.with_extension(partner))) {
            return Err(malformed(setting, alone, format!("there is no .{partner} file of this name beside it")));
        }
    }
    let pairs: Vec<_> = of_kind("crt")
        .map(|path| [path.clone(), path.with_extension("key")].map(|path| Named { setting, path }))
        .collect();
    match pairs.len() {
        0 => Err(malformed(setting, path, "there is no NAME.crt with a NAME.key in this folder".to_owned())),
        1..=CERTIFICATES_MAX => Ok(pairs),
        found => {
            let problem = format!("there are {found} certificates in this folder, more than {CERTIFICATES_MAX}");
            Err(malformed(setting, path, problem))
        }
    }
}

fn read(path: &Path) -> Result<String, ReloadError> {
    let unreadable = |source| ReloadError::Unreadable { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(unreadable(io::Error::other(format!("the file is larger than {FILE_BYTES_MAX} bytes"))));
    }
    // Comments may be in any encoding. What counts is in base64.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

//! TLS on one address: the certificates in use, read again when asked or when their files change.

mod certificate;
mod files;
mod handshake;
mod load;
mod pem;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio_rustls::rustls::ServerConfig;
use tracing::{error, info, warn};

use crate::auth::ReloadError;
use crate::config::Config;
use crate::gateway::Reload;
use crate::metrics::{
    CertificateReloadLabels, CertificateReloadResult, InSnakeCase, Listener, ListenerLabels, Metrics,
};

use super::route::Serves;

use files::{Files, Snapshot};
use load::{Constants, Loaded};

pub(super) use handshake::{Handshakes, names};

/// The time between two looks at the files. A change is taken over when two looks have found the same.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// One mistake in a file of a certificate or key.
#[derive(Debug)]
pub struct TlsMistake {
    setting: &'static str,
    error: ReloadError,
}

impl TlsMistake {
    /// The name of the setting that names the file.
    #[must_use]
    pub fn setting(&self) -> &'static str {
        self.setting
    }

    /// What is wrong with the file.
    #[must_use]
    pub fn error(&self) -> &ReloadError {
        &self.error
    }
}

impl fmt::Display for TlsMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.error)?;
        match std::error::Error::source(&self.error) {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

/// All mistakes in the files of certificates and keys, one per line.
#[derive(Debug)]
pub struct InvalidTls(Vec<TlsMistake>);

impl InvalidTls {
    /// The mistakes.
    #[must_use]
    pub fn mistakes(&self) -> &[TlsMistake] {
        &self.0
    }
}

impl fmt::Display for InvalidTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the files for TLS are wrong")?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl std::error::Error for InvalidTls {}

/// Reads the files of both addresses.
///
/// # Errors
/// All mistakes at once.
pub(super) fn check(config: &Config) -> Result<(), InvalidTls> {
    let constants = constants(Serves::All).map_err(|error| InvalidTls(vec![error]))?;
    let mut mistakes = Vec::new();
    for files in [Files::of_listen(config), Files::of_control(config)].into_iter().flatten() {
        mistakes.extend(load::load(files.read(), &constants).err().unwrap_or_default());
    }
    if mistakes.is_empty() { Ok(()) } else { Err(InvalidTls(mistakes)) }
}

fn constants(serves: Serves) -> Result<Constants, TlsMistake> {
    // Those that the address really serves, see `Http::serve`.
    let alpn: &[&str] = match serves {
        Serves::Clients => &["http/1.1"],
        Serves::All | Serves::Control => &["h2", "http/1.1"],
    };
    let setting = if serves == Serves::Control { "control_tls_cert_file" } else { "tls_cert_file" };
    Constants::new(alpn).map_err(|error| TlsMistake { setting, error: ReloadError::Other(Box::new(error)) })
}

/// The certificates of one address.
pub(super) struct Tls {
    files: Files,
    constants: Constants,
    current: RwLock<Arc<ServerConfig>>,
    looks: Mutex<Looks>,
    listener: Listener,
    expires: Gauge,
    reloaded: crate::metrics::Counter,
    failed: crate::metrics::Counter,
}

/// What was found in the files so far, as fingerprints.
#[derive(Debug)]
struct Looks {
    /// What was loaded last, or could not be.
    tried: u64,
    /// What the latest look found.
    seen: u64,
}

impl Looks {
    /// Whether to load what a look has found: something new that has stayed the same since the look before. Two files
    /// are seldom written in one step, and a new certificate is no mistake while its key is on its way.
    fn found(&mut self, fingerprint: u64) -> bool {
        let has_settled = fingerprint == self.seen;
        self.seen = fingerprint;
        has_settled && fingerprint != self.tried
    }
}

impl Tls {
    /// Reads the files of an address, if it has any.
    ///
    /// # Errors
    /// All mistakes at once.
    pub(super) fn open(serves: Serves, config: &Config, metrics: &Metrics) -> Result<Option<Arc<Self>>, InvalidTls> {
        let files = match serves {
            Serves::All | Serves::Clients => Files::of_listen(config),
            Serves::Control => Files::of_control(config),
        };
        let Some(files) = files else { return Ok(None) };
        let constants = constants(serves).map_err(|mistake| InvalidTls(vec![mistake]))?;
        let snapshot = files.read();
        let tried = snapshot.fingerprint();
        let loaded = load::load(snapshot, &constants).map_err(InvalidTls)?;
        let listener = serves.label();
        let result = |result| metrics.certificate_reloads.of(&CertificateReloadLabels { listener, result }).clone();
        let tls = Self {
            files,
            constants,
            current: RwLock::new(loaded.config.clone()),
            looks: Mutex::new(Looks { tried, seen: tried }),
            listener,
            expires: metrics.certificate_expires.get_or_create_owned(&ListenerLabels { listener }),
            reloaded: result(CertificateReloadResult::Loaded),
            failed: result(CertificateReloadResult::Failed),
        };
        tls.tell(&loaded);
        Ok(Some(Arc::new(tls)))
    }

    /// What the next handshake uses.
    fn current(&self) -> Arc<ServerConfig> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn looks(&self) -> MutexGuard<'_, Looks> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, loaded: &Loaded) {
        let expires = loaded.expires.as_secs();
        self.expires.set(i64::try_from(expires).unwrap_or(i64::MAX));
        if loaded.has_expired {
            warn!(listener = %InSnakeCase(self.listener), expires, "a certificate has expired, and is used all the same");
        }
    }

    /// Looks at the files again and again, and takes over what has changed.
    pub(super) async fn watch(self: &Arc<Self>) {
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let tls = self.clone();
            // Reading may take long, where the files are on another machine.
            if let Err(error) = tokio::task::spawn_blocking(move || tls.look()).await {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }

    fn look(&self) {
        let snapshot = self.files.read();
        let mut looks = self.looks();
        if looks.found(snapshot.fingerprint())
            && let Err(mistakes) = self.take_over(snapshot, &mut looks)
        {
            for mistake in &mistakes {
                error!(%mistake, "certificates not reloaded, the previous ones stay in use");
            }
        }
    }

    /// Uses what is in the files from the next handshake on. Connections that are open stay as they are.
    fn take_over(&self, snapshot: Snapshot, looks: &mut Looks) -> Result<(), Vec<TlsMistake>> {
        looks.tried = snapshot.fingerprint();
        let loaded = load::load(snapshot, &self.constants).inspect_err(|_| {
            self.failed.inc();
        })?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded.config.clone();
        self.reloaded.inc();
        let (certificates, expires) = (loaded.certificates, loaded.expires.as_secs());
        info!(listener = %InSnakeCase(self.listener), certificates, expires, "certificates reloaded");
        self.tell(&loaded);
        Ok(())
    }
}

impl Reload for Tls {
    fn reload(&self) -> Vec<ReloadError> {
        let taken = self.take_over(self.files.read(), &mut self.looks());
        taken.err().unwrap_or_default().into_iter().map(|mistake| mistake.error).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_taken_over_once_two_looks_have_found_the_same() {
        let mut looks = Looks { tried: 1, seen: 1 };
        let mut load = |fingerprint| {
            let found = looks.found(fingerprint);
            if found {
                looks.tried = fingerprint;
            }
            found
        };
        assert!(!load(1), "nothing new");
        assert!(!load(2) && !load(3), "still being written");
        assert!(load(3));
        assert!(!load(3), "good or bad, it was tried");
        assert!(!load(4) && !load(3), "written and undone");
    }
}

//! The hints printed at start: commands to try that match this gateway's configuration.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use pushgate::{Address, Config, Server};

/// The settings that the hints depend on.
pub(super) struct Hints {
    ws_path: String,
    push_path: String,
    /// What to use for a token, and where it comes from, if tokens are checked.
    token_source: Option<String>,
    push_keys_file: Option<PathBuf>,
    has_push_jwt: bool,
    /// Whether each of the two addresses speaks TLS.
    clients_tls: bool,
    control_tls: bool,
}

impl Hints {
    pub(super) fn new(config: &Config) -> Self {
        let clients_tls = config.tls_cert_file.is_some() || config.tls_cert_folder.is_some();
        let control_tls =
            if config.control_listen.is_some() { config.control_tls_cert_file.is_some() } else { clients_tls };
        Self {
            clients_tls,
            control_tls,
            ws_path: config.ws_path.clone(),
            push_path: config.push_path.clone(),
            token_source: token_source(config),
            push_keys_file: config.push_keys_file.clone(),
            has_push_jwt: config.push_jwt_keys_file.is_some() || config.push_jwt_jwks_url.is_some(),
        }
    }

    pub(super) fn text(&self, server: &Server) -> String {
        let Self { ws_path, push_path, token_source, push_keys_file, has_push_jwt, clients_tls, control_tls } = self;
        let addresses = [server.address(), server.control_address()];
        if addresses.iter().any(|address| matches!(address, Address::Unix(_))) {
            // No commands are suggested, because not every program can reach a Unix socket.
            let [clients, control] = addresses;
            return format!("pushgate is up. Clients: {clients}   Services: {control}\nInterrupt to stop.\n");
        }
        let (ws, http) = (if *clients_tls { "wss" } else { "ws" }, if *control_tls { "https" } else { "http" });
        let clients = format!("{ws}://{}", server.local_addr());
        let control = format!("{http}://{}", server.control_addr());
        let program = program();
        let (token, user) = if token_source.is_some() { ("TOKEN", "USER") } else { ("ann", "ann") };
        let (flag, header) = if push_keys_file.is_some() || *has_push_jwt {
            (" --key KEY", " -H 'x-api-key: KEY'")
        } else {
            Default::default()
        };
        let mut text = format!(
            "pushgate is up. Clients: {clients}{ws_path}   Services: {control} (gRPC and JSON)\n\
             Try, in another terminal:\n  \
               {program} listen --token {token} --event mail --url {clients}{ws_path}\n  \
               {program} push {user} mail 'hello' --address {control}{flag}\n  \
               curl -d '{{\"userId\":\"{user}\",\"event\":\"mail\",\"message\":\"hello\"}}'{header} {control}{push_path}\n"
        );
        if let Some(source) = token_source {
            text.push_str(&format!("TOKEN is {source}, and USER is its user.\n"));
        }
        match push_keys_file {
            Some(file) if *has_push_jwt => {
                text.push_str(&format!("KEY is a JWT, or one of the keys in {}.\n", file.display()));
            }
            Some(file) => text.push_str(&format!("KEY is one of the keys in {}.\n", file.display())),
            None if *has_push_jwt => text.push_str("KEY is a JWT.\n"),
            None => {}
        }
        if server.has_page() {
            text.push_str(&format!("Or open {control}/ in a browser.\n"));
        }
        if *clients_tls || *control_tls {
            text.push_str("The host must be one that the certificate is made out to. If this machine does not trust its CA, add\n");
            text.push_str("--ca-file CA.pem, and to curl --cacert CA.pem.\n");
        }
        text.push_str("Interrupt to stop.\n");
        text
    }
}

fn token_source(config: &Config) -> Option<String> {
    if let Some(file) = &config.tokens_file {
        return Some(format!("one of the tokens in {}", file.display()));
    }
    if let Some(url) = &config.token_callback_url {
        return Some(format!("one that {} takes", url.as_str()));
    }
    (config.jwt_keys_file.is_some() || config.jwt_jwks_url.is_some()).then(|| "a JWT".to_owned())
}

/// The shell command that starts this program: its name if it is on the PATH, otherwise its path.
fn program() -> String {
    let Some(own) = std::env::current_exe().ok().and_then(|path| path.canonicalize().ok()) else {
        return "pushgate".to_owned();
    };
    let is_own = |path: &Path| path.canonicalize().is_ok_and(|path| path == own);
    let started_as = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let names = [started_as.file_name(), Some(OsStr::new("pushgate"))];
    let on_path = names.into_iter().flatten().find(|name| find_on_path(name).is_some_and(|found| is_own(&found)));
    match on_path {
        Some(name) => quoted(&name.to_string_lossy()),
        None if started_as.components().count() > 1 && is_own(&started_as) => quoted(&started_as.to_string_lossy()),
        None => quoted(&own.to_string_lossy()),
    }
}

fn find_on_path(name: &OsStr) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Quotes a word for the shell if needed.
fn quoted(word: &str) -> String {
    let is_plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c));
    if is_plain { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

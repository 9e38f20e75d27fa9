//! Loads the settings. Flags override the environment, the environment overrides the file, and the file overrides the
//! defaults. All mistakes are reported at once.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use super::{Config, SETTINGS};

/// Where a setting's value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The setting was not set.
    Default,
    /// The config file.
    File(PathBuf),
    /// An environment variable, by name.
    Environment(String),
    /// A flag, by name.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// One mistake in the settings: the key, the value and what would be valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    name: String,
    value: String,
    expected: String,
    source: Source,
}

impl Mistake {
    pub(super) fn new(name: &str, value: String, expected: &str) -> Self {
        Self { name: name.to_owned(), value, expected: expected.to_owned(), source: Source::Default }
    }

    /// The name of the setting.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if !self.value.is_empty() {
            write!(f, " = {}", self.value)?;
        }
        if self.source != Source::Default {
            write!(f, " ({})", self.source)?;
        }
        write!(f, ": {}", self.expected)
    }
}

/// All mistakes in the settings, one per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(Vec<Mistake>);

impl Invalid {
    pub(super) fn unless_empty(mistakes: Vec<Mistake>) -> Result<(), Self> {
        if mistakes.is_empty() { Ok(()) } else { Err(Self(mistakes)) }
    }

    /// The mistakes, one for each wrong setting or unknown key.
    #[must_use]
    pub fn mistakes(&self) -> &[Mistake] {
        &self.0
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is wrong")?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl std::error::Error for Invalid {}

/// A valid configuration with the source of each value.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    sources: HashMap<&'static str, Source>,
    /// Environment variables that start with `PUSHGATE_` but are not a setting. They are not a mistake, because
    /// Kubernetes sets such variables for a service named pushgate.
    pub unknown_environment: Vec<String>,
}

/// Environment variables that the command reads and that are not settings.
const OTHER_VARIABLES: [&str; 7] = [
    "PUSHGATE_CONFIG",
    "PUSHGATE_ADDRESS",
    "PUSHGATE_KEY",
    "PUSHGATE_TOKEN",
    "PUSHGATE_CA_FILE",
    "PUSHGATE_CERT_FILE",
    "PUSHGATE_KEY_FILE",
];

impl Loaded {
    /// Reads the file, then the environment, then the flags. Each overrides the ones before.
    ///
    /// # Errors
    /// Reports all mistakes of all sources at once, each with the key, the value and what would be valid.
    pub fn new(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        flags: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Result<Self, Invalid> {
        let mut layers = Layers {
            loaded: Self { config: Config::default(), sources: HashMap::new(), unknown_environment: Vec::new() },
            mistakes: Vec::new(),
        };
        if let Some(path) = file {
            layers.file(path);
        }
        let mut environment: Vec<_> = environment
            .into_iter()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with("PUSHGATE_"))
            .collect();
        environment.sort();
        for (name, value) in environment {
            let setting = name["PUSHGATE_".len()..].to_lowercase();
            let known = SETTINGS.iter().any(|known| known.name == setting);
            if known {
                match value.into_string() {
                    Ok(value) => layers.set(&setting, &toml::Value::String(value), Source::Environment(name)),
                    Err(value) => {
                        let shown = toml::Value::String(value.to_string_lossy().into_owned());
                        layers.report(&setting, &shown, "must be UTF-8".to_owned(), Source::Environment(name));
                    }
                }
            } else if !OTHER_VARIABLES.contains(&name.as_str()) {
                layers.loaded.unknown_environment.push(name);
            }
        }
        for (name, value) in flags {
            let flag = format!("--{}", name.replace('_', "-"));
            layers.set(name, &toml::Value::String(value), Source::Flag(flag));
        }
        layers.finish()
    }

    /// Where the setting's value came from.
    #[must_use]
    pub fn source(&self, name: &str) -> &Source {
        self.sources.get(name).unwrap_or(&Source::Default)
    }

    /// The settings as a TOML file, with the documentation and the source of each.
    #[must_use]
    pub fn print(&self) -> String {
        let mut text = String::new();
        for setting in SETTINGS {
            for line in setting.doc.lines() {
                text.push_str(&format!("#{line}\n"));
            }
            let source = self.source(setting.name);
            match self.config.show(setting.name) {
                Some(value) => text.push_str(&format!("{} = {value} # {source}\n\n", setting.name)),
                None => text.push_str(&format!("# {} is not set\n\n", setting.name)),
            }
        }
        let gibibytes = self.config.memory_max() as f64 / f64::from(1 << 30);
        text.push_str(&format!(
            "# With every limit reached at once, the gateway takes up to {gibibytes:.1} GiB of memory.\n"
        ));
        text
    }
}

struct Layers {
    loaded: Loaded,
    mistakes: Vec<Mistake>,
}

impl Layers {
    fn file(&mut self, path: &Path) {
        let source = Source::File(path.to_owned());
        let mut report = |problem: String| {
            let mistake = Mistake::new("config", path.display().to_string(), &problem);
            self.mistakes.push(mistake);
        };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => return report(format!("cannot be read: {error}")),
        };
        let table: toml::Table = match toml::from_str(&text) {
            Ok(table) => table,
            Err(error) => return report(format!("is not TOML: {}", error.to_string().trim_end())),
        };
        for (name, value) in table {
            self.set(&name, &value, source.clone());
        }
    }

    fn set(&mut self, name: &str, raw: &toml::Value, source: Source) {
        let problem = match self.loaded.config.set(name, raw) {
            Some(Ok(())) => {
                let known = SETTINGS.iter().find(|setting| setting.name == name);
                self.loaded.sources.extend(known.map(|setting| (setting.name, source)));
                return;
            }
            Some(Err(expected)) => expected,
            None => match nearest(name) {
                Some(near) => format!("is not a setting; did you mean {near}?"),
                None => "is not a setting; `pushgate print-config` lists them all".to_owned(),
            },
        };
        self.report(name, raw, problem, source);
    }

    /// Adds a mistake. A mistake in one source stays a mistake even if a later source overrides the value.
    fn report(&mut self, name: &str, raw: &toml::Value, expected: String, source: Source) {
        self.mistakes.push(Mistake { name: name.to_owned(), value: super::value::show(raw), expected, source });
    }

    fn finish(mut self) -> Result<Loaded, Invalid> {
        if let Err(Invalid(found)) = self.loaded.config.validate() {
            let unread: Vec<String> = self.mistakes.iter().map(|mistake| mistake.name.clone()).collect();
            for mut mistake in found {
                // A setting that could not be read has its default value, so a second mistake would not help.
                if !unread.contains(&mistake.name) {
                    mistake.source = self.loaded.source(&mistake.name).clone();
                    self.mistakes.push(mistake);
                }
            }
        }
        Invalid::unless_empty(self.mistakes)?;
        Ok(self.loaded)
    }
}

/// The setting with the most similar name, at most two edits away.
fn nearest(name: &str) -> Option<&'static str> {
    let name = name.to_lowercase().replace('-', "_");
    SETTINGS
        .iter()
        .map(|setting| (strsim::levenshtein(&name, setting.name), setting.name))
        .filter(|(distance, _)| *distance <= 2)
        .min()
        .map(|(_, near)| near)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        file
    }

    #[test]
    fn flags_override_environment_overrides_file() {
        let file = file("ws_path = \"/file\"\npush_path = \"/file-push\"\nping_interval = \"5s\"\n");
        let variables = environment(&[("PUSHGATE_WS_PATH", "/env"), ("PUSHGATE_PUSH_PATH", "/env-push")]);
        let loaded = Loaded::new(Some(file.path()), variables, [("ws_path", "/flag".to_owned())]).expect("valid");
        assert_eq!(loaded.config.ws_path, "/flag");
        assert_eq!(loaded.config.push_path, "/env-push");
        assert_eq!(loaded.config.ping_interval, Duration::from_secs(5));
        assert_eq!(loaded.source("ws_path").to_string(), "flag --ws-path");
        assert_eq!(loaded.source("push_path").to_string(), "environment variable PUSHGATE_PUSH_PATH");
        assert_eq!(*loaded.source("listen"), Source::Default);
    }

    /// None of these is valid alone.
    const TLS_TOGETHER: [(&str, &str); 5] = [
        ("PUSHGATE_CONTROL_LISTEN", "127.0.0.1:4000"),
        ("PUSHGATE_CONTROL_TLS_CERT_FILE", "/some/file"),
        ("PUSHGATE_CONTROL_TLS_KEY_FILE", "/some/file"),
        ("PUSHGATE_TLS_CERT_FILE", "/some/file"),
        ("PUSHGATE_TLS_KEY_FILE", "/some/file"),
    ];

    #[test]
    fn every_setting_can_be_set_from_the_environment() {
        for setting in SETTINGS {
            let value = match setting.name {
                "listen" | "control_listen" => "127.0.0.1:4000",
                "ws_path" | "push_path" => "/somewhere",
                "page" => "on",
                "connection_age_max" => "7h",
                "public_ws_url" => "wss://push.example.com/ws",
                "origins_allowed" => "https://app.example.com, *.example.org",
                "proxies_trusted" => "10.0.0.0/8, 2001:db8::/32",
                "connections_per_user_policy" => "close_oldest",
                "log" => "debug",
                "log_format" => "json",
                "slow_reader_policy" => "drop_oldest",
                "slow_reader_policy_by_event" => "price.*=conflate, *=drop_newest",
                "tokens_file" | "push_keys_file" | "jwt_keys_file" | "push_jwt_keys_file" => "/some/file",
                "jwt_jwks_url" | "push_jwt_jwks_url" => "https://id.example.com/jwks.json",
                "token_callback_url" => "https://id.example.com/check",
                "token_callback_ca_file" => "/some/file",
                "token_callback_headers" => "cookie, x-tenant",
                "token_callback_timeout" => "3s",
                "jwt_algorithms" | "push_jwt_algorithms" => "RS256, EdDSA",
                "jwt_issuer" | "jwt_audience" | "push_jwt_issuer" | "push_jwt_audience" => "https://one, https://two",
                name if name.ends_with("_claim") => "https://claims/one",
                "request_bodies_bytes_max" | "queued_total_bytes_max" => "9000000",
                "listen_health" | "proxy_protocol" | "token_in_url" | "open_metrics" | "open_reflection" => "true",
                name if name.contains("tls_") => "/some/file",
                name if name.starts_with("insecure_") => "true",
                name if name.ends_with("_bytes_max") => "300KiB",
                name if name.ends_with("_max") => "300000",
                _ => "7s",
            };
            let variable = format!("PUSHGATE_{}", setting.name.to_uppercase());
            let limits_jwts = ["jwt_issuer", "jwt_audience", "jwt_events_claim"].contains(&setting.name);
            // Needed by another.
            let needed = match setting.name {
                "proxy_protocol" => Some(("proxies_trusted", "10.0.0.0/8".to_owned())),
                "token_callback_ca_file" | "token_callback_headers" => {
                    Some(("token_callback_url", "https://id.example.com/check".to_owned()))
                }
                "push_jwt_issuer"
                | "push_jwt_audience"
                | "push_jwt_users_claim"
                | "push_jwt_events_claim"
                | "push_jwt_methods_claim" => Some(("push_jwt_keys_file", "/some/file".to_owned())),
                _ => limits_jwts.then(|| ("jwt_keys_file", "/some/file".to_owned())),
            };
            let mut given = vec![(variable.as_str(), value)];
            if setting.name.contains("tls_") {
                given.extend(TLS_TOGETHER);
            }
            let loaded = Loaded::new(None, environment(&given), needed).expect(setting.name);
            let shown = loaded.config.show(setting.name).expect("set");
            assert_eq!(shown.trim_matches('"'), value, "{}", setting.name);
        }
    }

    #[test]
    fn what_is_printed_reads_back_the_same() {
        let variables = environment(&[("PUSHGATE_TOKENS_FILE", "/a \"b\\c\""), ("PUSHGATE_BIND_TIMEOUT", "90s")]);
        let loaded = Loaded::new(None, variables, []).expect("valid");
        let printed = file(&loaded.print());
        let again = Loaded::new(Some(printed.path()), [], []).expect("valid");
        assert_eq!(again.config, loaded.config);
    }

    #[test]
    fn all_mistakes_come_at_once_with_key_value_source_and_remedy() {
        let file = file("ping_intervall = \"5s\"\nconnections_max = -1\nping_interval = 5\n");
        let variables = environment(&[("PUSHGATE_LISTEN", "here"), ("PUSHGATE_SERVICE_HOST", "10.0.0.1")]);
        let text = Loaded::new(Some(file.path()), variables, []).expect_err("wrong").to_string();
        let path = file.path().display();
        assert!(text.contains(&format!("connections_max = -1 ({path}): must be a whole number, 0 or more")), "{text}");
        assert!(text.contains("is not a setting; did you mean ping_interval?"), "{text}");
        assert!(text.contains("must be a duration with its unit"), "{text}");
        assert!(
            text.contains("listen = \"here\" (environment variable PUSHGATE_LISTEN): must be an address"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 5, "{text}");
    }

    #[test]
    fn a_strange_variable_is_told_and_is_no_mistake() {
        let variables = environment(&[("PUSHGATE_PORT", "tcp://10.0.0.1:80"), ("PUSHGATE_KEY", "x")]);
        let loaded = Loaded::new(None, variables, []).expect("valid");
        assert_eq!(loaded.unknown_environment, ["PUSHGATE_PORT"]);
    }

    #[test]
    fn an_empty_text_switches_no_guard_off_whoever_says_it() {
        let told = "must not be empty: leave it out";
        let guarded = file(
            "tokens_file = \"/tokens\"\npush_keys_file = \"/keys\"\ncontrol_listen = \"127.0.0.1:1\"\n\
             origins_allowed = \"https://a.org\"\n",
        );
        let names =
            ["tokens_file", "push_keys_file", "control_listen", "jwt_audience", "jwt_events_claim", "origins_allowed"];
        for name in names {
            for empty in ["", " "] {
                let variable = format!("PUSHGATE_{}", name.to_uppercase());
                let text = Loaded::new(Some(guarded.path()), environment(&[(&variable, empty)]), []);
                let text = text.expect_err("a guard").to_string();
                assert!(text.contains(&format!("(environment variable {variable}): {told}")), "{text}");
                let text = Loaded::new(Some(guarded.path()), [], [(name, empty.to_owned())]);
                assert!(text.expect_err("a guard").to_string().contains(told), "{name} as a flag");
                let text = Loaded::new(Some(file(&format!("{name} = \"{empty}\"")).path()), [], []);
                assert!(text.expect_err("a guard").to_string().contains(told), "{name} in a file");
            }
        }
        let text = Loaded::new(None, environment(&[("PUSHGATE_LOG", ""), ("PUSHGATE_WS_PATH", "")]), []);
        assert_eq!(text.expect_err("empty").mistakes().len(), 2);
    }

    #[test]
    fn a_variable_of_a_setting_that_is_not_utf8_is_a_mistake() {
        use std::os::unix::ffi::OsStringExt;
        let variable = |name: &str| (OsString::from(name), OsString::from_vec(vec![b'/', 0xff]));
        let text = Loaded::new(None, [variable("PUSHGATE_TOKENS_FILE")], []).expect_err("not UTF-8").to_string();
        assert!(text.contains("(environment variable PUSHGATE_TOKENS_FILE): must be UTF-8"), "{text}");
        assert!(Loaded::new(None, [variable("PUSHGATE_STRANGE"), variable("OTHER")], []).is_ok());
    }

    #[test]
    fn an_address_may_be_written_as_people_do() {
        for (text, address) in [
            ("localhost:80", "127.0.0.1:80"),
            (":80", "[::]:80"),
            ("[::1]:80", "[::1]:80"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("unix:/run/x.sock", "unix:/run/x.sock"),
        ] {
            let open = environment(&[
                ("PUSHGATE_LISTEN", text),
                ("PUSHGATE_INSECURE_OPEN_PUSH", "true"),
                ("PUSHGATE_INSECURE_TOKEN_IS_USER", "true"),
            ]);
            let loaded = Loaded::new(None, open, []).expect(text);
            assert_eq!(loaded.config.listen.to_string(), address, "{text}");
            let again = Loaded::new(Some(file(&loaded.print()).path()), [], []).expect("valid");
            assert_eq!(again.config, loaded.config);
        }
        for wrong in [
            "localhost",
            ":",
            "localhost:x",
            "example.org:80",
            ":80:80",
            "80",
            "::1:80",
            ":65536",
            "unix:",
            "unix:relative",
        ] {
            let text = Loaded::new(None, environment(&[("PUSHGATE_LISTEN", wrong)]), []).expect_err(wrong).to_string();
            assert!(text.contains(":12345 for all interfaces, or unix:/path"), "{text}");
        }
        let text = Loaded::new(None, environment(&[("PUSHGATE_LISTEN", ":80")]), []).expect_err("open").to_string();
        assert!(text.contains("listen = [::]:80 (environment variable PUSHGATE_LISTEN): is not a loopback"), "{text}");
    }

    #[test]
    fn a_size_may_have_a_unit_and_reads_back_the_same() {
        let read = |text: &str| {
            let loaded = Loaded::new(None, environment(&[("PUSHGATE_JOURNAL_BYTES_MAX", text)]), [])?;
            let again = Loaded::new(Some(file(&loaded.print()).path()), [], [])?;
            assert_eq!(again.config, loaded.config);
            Ok::<_, Invalid>(loaded.config.journal_bytes_max)
        };
        for (text, bytes) in [
            ("512", 512),
            ("512B", 512),
            ("64KiB", 64 << 10),
            ("1 MiB", 1 << 20),
            ("1mib", 1 << 20),
            ("1MB", 1_000_000),
            ("3kB", 3000),
            ("1GiB", 1 << 30),
        ] {
            assert_eq!(read(text), Ok(bytes), "{text}");
        }
        for wrong in ["1M", "1.5MiB", "MiB", "-1", "+1KiB", "1 Mi B", "99999999999GiB", ""] {
            let text = read(wrong).expect_err(wrong).to_string();
            assert!(text.contains("or a size with its unit: kB, MB, GB, KiB, MiB or GiB"), "{text}");
        }
        let text = Loaded::new(None, environment(&[("PUSHGATE_CONNECTIONS_MAX", "1KiB")]), []);
        assert!(text.is_err(), "a number of connections is no size");
    }

    #[test]
    fn a_list_may_be_an_array_or_a_text_and_a_mistake_names_the_entry() {
        let read = |line: &str| Loaded::new(Some(file(line).path()), [], []).map(|loaded| loaded.config);
        let array = read("origins_allowed = [\"https://a.org\", \"*.b.org\"]").expect("valid");
        assert_eq!(array, read("origins_allowed = \"https://a.org, *.b.org\"").expect("valid"));
        for (line, told) in [
            ("origins_allowed = [\"https://a.org\", 1]", "must be a list of origins"),
            ("origins_allowed = []", "must be a list of origins"),
            ("origins_allowed = \"https://a.org, b.org\"", "\"b.org\" is none"),
            ("proxies_trusted = [\"10.0.0.0/8\", \"10.0.0.1/8\"]", "\"10.0.0.1/8\" is none"),
        ] {
            let text = read(line).expect_err(line).to_string();
            assert!(text.contains(told), "{text}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_or_not_toml_is_a_mistake() {
        let text = Loaded::new(Some(Path::new("/no/such/file")), [], []).expect_err("none").to_string();
        assert!(text.contains("cannot be read"), "{text}");
        let broken = file("listen = ");
        let text = Loaded::new(Some(broken.path()), [], []).expect_err("broken").to_string();
        assert!(text.contains("is not TOML"), "{text}");
    }
}

//! Reads and writes the value of each kind of setting, as it stands in a file, an environment variable or a flag.

use std::path::PathBuf;
use std::time::Duration;

use wildmatch::WildMatch;

use super::{Address, Networks, Origins};
use crate::message::{Event, SlowReaderPolicy};

/// When the gateway serves its test page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Page {
    /// Only on a loopback address.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines: one JSON object per line.
    Json,
}

/// What happens when a user who has as many connections as allowed binds one more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UserConnectionsPolicy {
    /// The new connection is closed.
    #[default]
    RejectNew,
    /// The connection that was opened first is closed.
    CloseOldest,
}

/// Slow-reader policies by event pattern. The first pattern that matches applies.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EventPolicies(Vec<(WildMatch, SlowReaderPolicy)>);

impl Eq for EventPolicies {}

impl EventPolicies {
    /// Builds the list from pairs of a pattern and its policy. In a pattern, `*` matches any number of characters and
    /// `?` matches one.
    pub fn new<S: AsRef<str>>(policies: impl IntoIterator<Item = (S, SlowReaderPolicy)>) -> Self {
        Self(policies.into_iter().map(|(pattern, policy)| (WildMatch::new(pattern.as_ref()), policy)).collect())
    }

    pub(crate) fn find(&self, event: &Event) -> Option<SlowReaderPolicy> {
        self.0.iter().find(|(pattern, _)| pattern.matches(event.as_str())).map(|(_, policy)| *policy)
    }
}

/// A kind of setting. An error states what the value must be.
pub(super) trait Value: Sized {
    /// Whether a setting of this kind protects something, or names a file that does. An empty text is then an error and
    /// does not mean "not set". Otherwise an empty environment variable would turn off a protection that the file asks
    /// for.
    const GUARDS: bool = false;

    fn from_toml(raw: &toml::Value) -> Result<Self, String>;
    fn to_toml(&self) -> Option<String>;
}

impl Value for Address {
    const GUARDS: bool = true;

    fn from_toml(raw: &toml::Value) -> Result<Self, String> {
        raw.as_str().and_then(Self::read).ok_or_else(|| {
            "must be an address and a port, such as 127.0.0.1:12345, localhost:12345, [::1]:12345, :12345 for all \
             interfaces, or unix:/path"
                .to_owned()
        })
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}

/// An empty text means "not set", so that an environment variable can undo a setting of the file. Settings that
/// [guard](Value::GUARDS) something refuse it.
impl<V: Value> Value for Option<V> {
    fn from_toml(raw: &toml::Value) -> Result<Self, String> {
        match raw.as_str().map(str::trim) {
            Some("") if V::GUARDS => Err("must not be empty: leave it out to go without it".to_owned()),
            Some("") => Ok(None),
            _ => V::from_toml(raw).map(Some),
        }
    }

    fn to_toml(&self) -> Option<String> {
        self.as_ref().and_then(Value::to_toml)
    }
}

impl Value for PathBuf {
    const GUARDS: bool = true;

    fn from_toml(raw: &toml::Value) -> Result<Self, String> {
        raw.as_str().map(Self::from).ok_or_else(|| "must be the path of a file".to_owned())
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.to_string_lossy()))
    }
}

impl Value for String {
    fn from_toml(raw: &toml::Value) -> Result<Self, String> {
        raw.as_str().map(ToOwned::to_owned).ok_or_else(|| "must be a text".to_owned())
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(self))
    }
}

impl Value for bool {
    fn from_toml(raw: &toml::Value) -> Result<Self, String> {
        raw.as_bool()
            .or_else(|| raw.as_str().and_then(|text| text.parse().ok()))
            .ok_or_else(|| "must be true or false".to_owned())
    }

    fn to_toml(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Value for usize {
    fn from_toml(raw: &toml::Value) -> Result<Self, String> {
        raw.as_integer()
            .and_then(|number| Self::try_from(number).ok())
            .or_else(|| raw.as_str().and_then(|text| text.parse().ok()))
            .ok_or_else(|| "must be a whole number, 0 or more".to_owned())
    }

    fn to_toml(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Value for u32 {
    fn from_toml(raw: &toml::Value) -> Result<Self, String> {
        let number = usize::from_toml(raw)?;
        Self::try_from(number).map_err(|_| format!("must be a whole number from 0 to {}", Self::MAX))
    }

    fn to_toml(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Value for Duration {
    fn from_toml(raw: &toml::Value) -> Result<Self, String> {
        raw.as_str()
            .and_then(|text| humantime::parse_duration(text).ok())
            .ok_or_else(|| "must be a duration with its unit, such as \"10s\" or \"500ms\"".to_owned())
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(&humantime::format_duration(*self).to_string()))
    }
}

impl Value for Page {
    fn from_toml(raw: &toml::Value) -> Result<Self, String> {
        match raw.as_str() {
            Some("auto") => Ok(Self::Auto),
            Some("on") => Ok(Self::On),
            Some("off") => Ok(Self::Off),
            _ => Err("must be \"auto\", \"on\" or \"off\"".to_owned()),
        }
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }))
    }
}

impl Value for LogFormat {
    fn from_toml(raw: &toml::Value) -> Result<Self, String> {
        match raw.as_str() {
            Some("text") => Ok(Self::Text),
            Some("json") => Ok(Self::Json),
            _ => Err("must be \"text\" or \"json\"".to_owned()),
        }
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(match self {
            Self::Text => "text",
            Self::Json => "json",
        }))
    }
}

impl Value for UserConnectionsPolicy {
    fn from_toml(raw: &toml::Value) -> Result<Self, String> {
        match raw.as_str() {
            Some("reject_new") => Ok(Self::RejectNew),
            Some("close_oldest") => Ok(Self::CloseOldest),
            _ => Err("must be \"reject_new\" or \"close_oldest\"".to_owned()),
        }
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(match self {
            Self::RejectNew => "reject_new",
            Self::CloseOldest => "close_oldest",
        }))
    }
}

/// The policies and their names.
const POLICIES: [(SlowReaderPolicy, &str); 4] = [
    (SlowReaderPolicy::Disconnect, "disconnect"),
    (SlowReaderPolicy::DropNewest, "drop_newest"),
    (SlowReaderPolicy::DropOldest, "drop_oldest"),
    (SlowReaderPolicy::Conflate, "conflate"),
];

fn policy(text: &str) -> Option<SlowReaderPolicy> {
    POLICIES.iter().find(|(_, name)| *name == text).map(|(policy, _)| *policy)
}

fn policy_name(policy: SlowReaderPolicy) -> &'static str {
    POLICIES.iter().find(|(named, _)| *named == policy).map_or("", |(_, name)| name)
}

impl Value for SlowReaderPolicy {
    fn from_toml(raw: &toml::Value) -> Result<Self, String> {
        raw.as_str()
            .and_then(policy)
            .ok_or_else(|| "must be \"disconnect\", \"drop_newest\", \"drop_oldest\" or \"conflate\"".to_owned())
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(policy_name(*self)))
    }
}

impl Value for EventPolicies {
    fn from_toml(raw: &toml::Value) -> Result<Self, String> {
        let read = |pair: &str| {
            let (pattern, name) = pair.split_once('=')?;
            Some((pattern.trim().to_owned(), policy(name.trim())?))
        };
        let pairs = raw.as_str().map(|text| text.split(',').filter(|pair| !pair.trim().is_empty()).map(read));
        pairs.and_then(|pairs| pairs.collect::<Option<Vec<_>>>()).map(Self::new).ok_or_else(|| {
            "must be a list of pattern=policy, such as \"price.*=conflate, log.*=drop_oldest\"".to_owned()
        })
    }

    fn to_toml(&self) -> Option<String> {
        let pairs: Vec<_> =
            self.0.iter().map(|(pattern, policy)| format!("{}={}", pattern.pattern(), policy_name(*policy))).collect();
        Some(quoted(&pairs.join(", ")))
    }
}

/// A list, as a text with commas or as an array of texts.
fn list(raw: &toml::Value) -> Option<String> {
    match raw {
        toml::Value::Array(entries) => {
            entries.iter().map(toml::Value::as_str).collect::<Option<Vec<_>>>().map(|entries| entries.join(","))
        }
        raw => raw.as_str().map(ToOwned::to_owned),
    }
}

impl Value for Origins {
    const GUARDS: bool = true;

    fn from_toml(raw: &toml::Value) -> Result<Self, String> {
        let expected =
            "must be a list of origins, such as \"https://app.example.com, *.example.com\", or \"*\" for all";
        let text = list(raw).filter(|text| !text.trim().is_empty()).ok_or(expected)?;
        text.parse().map_err(|wrong: String| format!("{expected}; {} is none", quoted(&wrong)))
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}

impl Value for Networks {
    fn from_toml(raw: &toml::Value) -> Result<Self, String> {
        let expected = "must be a list of addresses and networks, such as \"10.0.0.0/8, 2001:db8::/32, 192.0.2.7\"";
        let text = list(raw).ok_or(expected)?;
        text.parse().map_err(|wrong: String| format!("{expected}; {} is none", quoted(&wrong)))
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}

/// The units of a size, in bytes.
const UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("B", 1),
];

/// Converts a text with a number of bytes, with or without a unit, to a number. Leaves any other value as it is.
pub(super) fn size(raw: &toml::Value) -> Result<toml::Value, String> {
    let Some(text) = raw.as_str().map(str::trim) else { return Ok(raw.clone()) };
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = &text[digits.len()..];
    let unit = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, bytes)| *bytes);
    let count = digits.trim_end().parse().ok().filter(|_| !digits.starts_with('+'));
    let bytes = match (count, unit) {
        (Some(count), _) if digits.len() == text.len() => Some(count),
        (Some(count), Some(unit)) => u64::checked_mul(count, unit),
        _ => None,
    };
    bytes.and_then(|bytes| i64::try_from(bytes).ok()).map(toml::Value::Integer).ok_or_else(|| {
        "must be a number of bytes, 0 or more, or a size with its unit: kB, MB, GB, KiB, MiB or GiB, such as \"64KiB\"".to_owned()
    })
}

/// Writes a number of bytes in the largest unit that gives a whole number.
pub(super) fn show_size(bytes: String) -> String {
    let number = bytes.parse::<u64>().unwrap_or(0);
    let unit = UNITS[..3].iter().find(|(_, unit)| number > 0 && number.is_multiple_of(*unit));
    unit.map_or(bytes, |(name, unit)| quoted(&format!("{}{name}", number / unit)))
}

/// Writes a text as a TOML basic string.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Shows a value in an error message, in the form in which it was written.
pub(super) fn show(raw: &toml::Value) -> String {
    match raw {
        toml::Value::String(text) => quoted(text),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Boolean(truth) => truth.to_string(),
        toml::Value::Datetime(time) => time.to_string(),
        toml::Value::Array(_) => "[..]".to_owned(),
        toml::Value::Table(_) => "{..}".to_owned(),
    }
}

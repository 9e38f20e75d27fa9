//! `pushgate gen-key`: new secrets, as their files want them.

use std::fmt::Write;

use aws_lc_rs::digest::{SHA256, digest};
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

use super::Outcome;

/// Random bytes of a secret. In hexadecimal they are 64 characters, which is long enough for HS512.
const SECRET_BYTES: usize = 32;

#[derive(Args)]
pub(super) struct GenKey {
    #[command(subcommand)]
    purpose: Purpose,
}

#[derive(Subcommand)]
enum Purpose {
    /// Print a key for a service that pushes, as an entry of push_keys_file
    Push {
        /// The service's name, shown in logs
        #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// A pattern of users that the service may push to; repeat the flag for several [default: all]
        #[arg(long = "users", value_name = "PATTERN")]
        users: Vec<String>,
        /// A pattern of events that the service may push; repeat the flag for several [default: all]
        #[arg(long = "events", value_name = "PATTERN")]
        events: Vec<String>,
        /// Put the key's SHA-256 into the entry, and the key itself into a comment, to be taken out of the file
        #[arg(long)]
        hashed: bool,
    },
    /// Print a secret that signs and checks JWTs with HMAC, as the content of jwt_keys_file
    Jwt,
}

impl GenKey {
    pub(super) fn run(self) -> Outcome {
        let secret = secret()?;
        let text = match self.purpose {
            Purpose::Jwt => format!("{secret}\n"),
            Purpose::Push { name, users, events, hashed } => {
                let mut entry = String::new();
                if hashed {
                    writeln!(entry, "# the key, for the service alone; take this line out: {secret}")?;
                }
                writeln!(entry, "[[key]]\nname = {}", text(&name)?)?;
                if hashed {
                    writeln!(entry, "key_sha256 = \"{}\"", hex(digest(&SHA256, secret.as_bytes()).as_ref()))?;
                } else {
                    writeln!(entry, "key = \"{secret}\"")?;
                }
                for (field, patterns) in [("users", users), ("events", events)] {
                    if !patterns.is_empty() {
                        let patterns = patterns.iter().map(|pattern| text(pattern)).collect::<Result<Vec<_>, _>>()?;
                        writeln!(entry, "{field} = [{}]", patterns.join(", "))?;
                    }
                }
                entry
            }
        };
        super::print::product(text.as_bytes())
    }
}

fn secret() -> Result<String, getrandom::Error> {
    let mut bytes = [0; SECRET_BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A text in TOML. Without control characters, JSON writes it in the same way.
fn text(text: &str) -> Result<String, String> {
    if text.contains(char::is_control) {
        return Err(format!("{text:?} has a control character"));
    }
    Ok(serde_json::Value::from(text).to_string())
}

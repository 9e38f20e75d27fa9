//! `pushgate check-token`: what a gateway with these settings makes of a JWT.

use std::error::Error;
use std::io::{self, IsTerminal, Read};
use std::time::SystemTime;

use clap::Args;
use pushgate::{Config, Event, JwtAuthenticator, JwtGrant, JwtProblem};

use super::{InvalidFiles, Outcome, Settings};

/// Far longer than a token may be, and no more than one would want to read of a wrong file.
const INPUT_BYTES_MAX: u64 = 64 * 1024;

#[derive(Args)]
pub(super) struct CheckToken {
    /// Also check that the token may bind this event
    #[arg(long, value_name = "EVENT")]
    event: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

impl CheckToken {
    pub(super) fn run(self) -> Outcome {
        let config = self.settings.load()?.config;
        let event = self.event.map(Event::new).transpose()?;
        let token = read()?;
        let grant = super::serve::runtime()?.block_on(grant(&config, &token))?;
        if let Some(event) = &event
            && !grant.allows(event)
        {
            return Err(format!("the token may not bind {:?}, only {}", event.as_str(), events(&grant)).into());
        }
        super::print::product(describe(&grant).as_bytes())
    }
}

async fn grant(config: &Config, token: &str) -> Result<JwtGrant, Box<dyn Error>> {
    let check = JwtAuthenticator::from_config(config).map_err(|error| InvalidFiles(super::chain(&error)))?;
    let Some(check) = check else {
        let problem = "the settings do not check tokens as JWTs; set jwt_keys_file or jwt_jwks_url";
        return Err(Box::new(InvalidFiles(problem.to_owned())));
    };
    check.check(token).await.map_err(|problem| {
        let failure = check.fetch_failure().filter(|_| problem == JwtProblem::KeysUnavailable);
        let because = failure.map(|failure| format!("\n  because: {}", super::chain(&failure))).unwrap_or_default();
        format!("the token is refused: {problem}{because}").into()
    })
}

/// Reads the token from standard input, because others on the machine can see arguments and shells keep them.
fn read() -> Result<String, Box<dyn Error>> {
    if io::stdin().is_terminal() {
        super::print::complain("paste the token, and end the input with Ctrl-D");
    }
    let mut text = String::new();
    io::stdin().lock().take(INPUT_BYTES_MAX).read_to_string(&mut text)?;
    match text.trim() {
        "" => Err("there is no token on standard input".into()),
        token => Ok(token.to_owned()),
    }
}

fn describe(grant: &JwtGrant) -> String {
    let expires_at = humantime::format_rfc3339_seconds(grant.expires_at());
    let left = grant.expires_at().duration_since(SystemTime::now()).unwrap_or_default();
    let left = humantime::format_duration(std::time::Duration::from_secs(left.as_secs()));
    format!(
        "the token is good\nuser:    {}\nevents:  {}\nuntil:   {expires_at}, for {left}, with jwt_leeway\n",
        grant.user_id().as_str(),
        events(grant)
    )
}

fn events(grant: &JwtGrant) -> String {
    match grant.events() {
        None => "all".to_owned(),
        Some(patterns) if patterns.is_empty() => "none".to_owned(),
        Some(patterns) => patterns.join(", "),
    }
}

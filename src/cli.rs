//! The command line: the arguments and the help. Each subcommand has its own file.

mod admin;
mod bench;
mod check_token;
mod drop;
mod gen_key;
mod gen_token;
mod hints;
mod listen;
mod log;
mod print;
mod push;
mod remote;
mod serve;
mod systemd;
mod tls;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use pushgate::{Invalid, InvalidTls, JwtAuthenticator, Loaded, PushKeys, Server, ServerError, TokenFile};

/// The exit code for a wrong configuration, which a restart does not fix. It is `EX_USAGE` of sysexits.h.
const EXIT_CONFIG: u8 = 64;

/// The exit code of `push --fail-if-none` when nobody has the message.
const EXIT_NONE: u8 = 3;

/// The end of the help: how to give settings.
const SETTINGS_HELP: &str = "\
Settings: each has an environment variable: PUSHGATE_ and its name in capitals, such as PUSHGATE_PING_INTERVAL=60s.
`pushgate print-config` lists and explains all of them.";

/// The end of the help: the meaning of the exit codes.
const EXIT_CODES_HELP: &str = "\
Exit codes:
  0   success
  1   failure; standard error says whether the gateway refused or no gateway answered, or that a token is refused
  2   the arguments are wrong
  3   `push --fail-if-none`: nobody has the message
  64  the configuration is wrong";

/// A push gateway: clients keep a WebSocket open, and services push messages to them over gRPC or JSON and learn the
/// outcome of each message.
#[derive(Parser)]
#[command(name = "pushgate", version, args_conflicts_with_subcommands = true,
    after_help = format!("{SETTINGS_HELP}\n\n{EXIT_CODES_HELP}"))]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway (the default)
    #[command(after_help = SETTINGS_HELP)]
    Serve(Settings),
    /// Push a message to a user's event
    #[command(after_help = EXIT_CODES_HELP)]
    Push(push::Push),
    /// Close a user's connections
    #[command(after_help = EXIT_CODES_HELP)]
    Drop(drop::Drop),
    /// Send all clients away and let nobody in, until undrain; pushes are served
    #[command(after_help = EXIT_CODES_HELP)]
    Drain(admin::Drain),
    /// End a drain and let clients in again
    #[command(after_help = EXIT_CODES_HELP)]
    Undrain(admin::Undrain),
    /// Refuse tokens that have not expired yet, and close the connections that are bound by them
    #[command(after_help = EXIT_CODES_HELP)]
    Revoke(admin::Revoke),
    /// Bind as a client and print what arrives
    #[command(after_help = EXIT_CODES_HELP)]
    Listen(listen::Listen),
    /// Benchmark a running gateway: open clients, push to them and report the results
    #[command(after_help = bench::HELP)]
    Bench(Box<bench::Bench>),
    /// Make a key for a service that pushes, or a secret for JWTs
    GenKey(gen_key::GenKey),
    /// Sign a JWT for a user, with a secret or a private key
    #[command(after_help = SETTINGS_HELP)]
    GenToken(Box<gen_token::GenToken>),
    /// Check a JWT from standard input, and say what it grants or what is wrong with it
    #[command(after_help = SETTINGS_HELP)]
    CheckToken(check_token::CheckToken),
    /// Check the configuration and report every mistake
    #[command(after_help = SETTINGS_HELP)]
    CheckConfig(Settings),
    /// Print the settings in use, with the explanation and the source of each
    #[command(after_help = SETTINGS_HELP)]
    PrintConfig(Settings),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page
    Man,
}

/// The sources of the settings. Flags override `PUSHGATE_...` environment variables, which override the file.
#[derive(Args, Default)]
struct Settings {
    /// A TOML file of settings; `pushgate print-config` prints one
    #[arg(long, value_name = "FILE", env = "PUSHGATE_CONFIG")]
    config: Option<PathBuf>,
    /// The address that clients connect to [default: 127.0.0.1:12345]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// A separate, private address for everything except client connections
    #[arg(long, value_name = "ADDRESS")]
    control_listen: Option<String>,
    /// The path for WebSocket clients [default: /ws]
    #[arg(long, value_name = "PATH")]
    ws_path: Option<String>,
    /// The path for JSON pushes [default: /push]
    #[arg(long, value_name = "PATH")]
    push_path: Option<String>,
    /// A TOML file of token = "user" lines
    #[arg(long, value_name = "FILE")]
    tokens_file: Option<String>,
    /// A file of keys that check tokens which are JWTs
    #[arg(long, value_name = "FILE")]
    jwt_keys_file: Option<String>,
    /// The https address of a JWKS document of keys that check tokens which are JWTs
    #[arg(long, value_name = "URL")]
    jwt_jwks_url: Option<String>,
    /// The address of a service that checks tokens
    #[arg(long, value_name = "URL")]
    token_callback_url: Option<String>,
    /// A TOML file of push API keys
    #[arg(long, value_name = "FILE")]
    push_keys_file: Option<String>,
}

impl Settings {
    fn load(self) -> Result<Loaded, Invalid> {
        let flags = [
            ("listen", self.listen),
            ("control_listen", self.control_listen),
            ("ws_path", self.ws_path),
            ("push_path", self.push_path),
            ("tokens_file", self.tokens_file),
            ("jwt_keys_file", self.jwt_keys_file),
            ("jwt_jwks_url", self.jwt_jwks_url),
            ("token_callback_url", self.token_callback_url),
            ("push_keys_file", self.push_keys_file),
        ];
        let given = flags.into_iter().filter_map(|(name, value)| Some((name, value?)));
        Loaded::new(self.config.as_deref(), std::env::vars_os(), given)
    }
}

/// Runs the command that the arguments name.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command.unwrap_or(Command::Serve(cli.settings)) {
        Command::Serve(settings) => serve::run(settings),
        Command::Push(push) => push.run(),
        Command::Drop(drop) => drop.run(),
        Command::Drain(drain) => drain.run(),
        Command::Revoke(revoke) => revoke.run(),
        Command::Undrain(undrain) => undrain.run(),
        Command::Listen(listen) => listen.run(),
        Command::Bench(bench) => bench.run(),
        Command::GenKey(gen_key) => gen_key.run(),
        Command::GenToken(gen_token) => gen_token.run(),
        Command::CheckToken(check_token) => check_token.run(),
        Command::CheckConfig(settings) => check_config(settings),
        Command::PrintConfig(settings) => print_config(settings),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "pushgate", &mut script);
            print::product(&script)
        }
        Command::Man => man(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print::complain(&format!("pushgate: {}", chain(&*error)));
            if is_config(&*error) {
                ExitCode::from(EXIT_CONFIG)
            } else if error.is::<push::NoReceiver>() {
                ExitCode::from(EXIT_NONE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// The errors in files that the settings name.
#[derive(Debug)]
struct InvalidFiles(String);

impl std::fmt::Display for InvalidFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for InvalidFiles {}

/// Whether the error is in the settings or in a file that they name.
fn is_config(error: &(dyn Error + 'static)) -> bool {
    let in_server =
        matches!(error.downcast_ref(), Some(ServerError::Invalid(_) | ServerError::Auth(_) | ServerError::Tls(_)));
    in_server || error.is::<Invalid>() || error.is::<InvalidFiles>()
}

/// The result of a command. The error is boxed because it is only ever printed.
type Outcome = Result<(), Box<dyn Error>>;

/// Formats an error and its causes, one per line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let cause_text = error.to_string();
        // Some errors, such as tonic's, already end with the text of their cause.
        if !text.ends_with(&cause_text) {
            text.push_str("\n  because: ");
            text.push_str(&cause_text);
        }
        cause = error.source();
    }
    text
}

fn check_config(settings: Settings) -> Outcome {
    let loaded = settings.load()?;
    for name in &loaded.unknown_environment {
        print::complain(&format!("note: the environment variable {name} is not a setting and is ignored"));
    }
    check_files(&loaded)?;
    print::result("the configuration is valid");
    Ok(())
}

/// Reads the files that the settings name, and finds every mistake in them.
fn check_files(loaded: &Loaded) -> Result<(), InvalidFiles> {
    let tokens = loaded.config.tokens_file.as_ref().and_then(|path| TokenFile::open(path).err());
    let keys = loaded.config.push_keys_file.as_ref().and_then(|path| PushKeys::open(path).err());
    // Not with a `jwt_jwks_url`, which would be fetched.
    let jwt_keys =
        loaded.config.jwt_keys_file.as_ref().and_then(|_| JwtAuthenticator::from_config(&loaded.config).err());
    let push_jwt_keys =
        loaded.config.push_jwt_keys_file.as_ref().and_then(|_| JwtAuthenticator::of_callers(&loaded.config).err());
    let tls = Server::check_tls(&loaded.config).err();
    let tls = tls.iter().flat_map(InvalidTls::mistakes).map(|mistake| (mistake.setting(), mistake.error()));
    let files = [
        ("tokens_file", &tokens),
        ("jwt_keys_file", &jwt_keys),
        ("push_keys_file", &keys),
        ("push_jwt_keys_file", &push_jwt_keys),
    ];
    let errors: Vec<_> = files
        .into_iter()
        .filter_map(|(name, error)| Some((name, error.as_ref()?)))
        .chain(tls)
        .map(|(name, error)| format!("{name} ({}): {}", loaded.source(name), chain(error)))
        .collect();
    if errors.is_empty() { Ok(()) } else { Err(InvalidFiles(errors.join("\n"))) }
}

fn print_config(settings: Settings) -> Outcome {
    print::product(settings.load()?.print().as_bytes())
}

fn man() -> Outcome {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page)?;
    print::product(&page)
}

//! The command line: what there is to say, and one file for each thing to do.

mod bench;
mod drop;
mod hints;
mod listen;
mod log;
mod print;
mod push;
mod remote;
mod serve;
mod systemd;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use pushgate::{Invalid, Loaded, PushKeys, ServerError, TokenFile};

/// `EX_USAGE` of sysexits.h: the configuration is wrong, and starting again will not help.
const EXIT_CONFIG: u8 = 64;

/// Nobody has a message that somebody was to have.
const EXIT_NONE: u8 = 3;

/// How settings are given, at the end of the help.
const SETTINGS_HELP: &str = "\
Settings: each has an environment variable, PUSHGATE_ and its name in capitals, such as PUSHGATE_PING_INTERVAL=60s.
`pushgate print-config` lists all of them with what each is for.";

/// What the exit codes mean.
const EXIT_CODES_HELP: &str = "\
Exit codes:
  0   done
  1   failed; standard error says whether the gateway refused or no gateway answered
  2   the arguments are wrong
  3   `push --fail-if-none`: nobody has the message
  64  the configuration is wrong";

/// A push gateway: clients hold a WebSocket open, services push to them by gRPC or JSON, and learn what became of every
/// message.
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
    /// Bind as a client and print what arrives
    #[command(after_help = EXIT_CODES_HELP)]
    Listen(listen::Listen),
    /// Measure a running gateway: open clients, push, and say what came of it
    #[command(after_help = bench::HELP)]
    Bench(Box<bench::Bench>),
    /// Say what is wrong with the configuration, and nothing else
    #[command(after_help = SETTINGS_HELP)]
    CheckConfig(Settings),
    /// Print the settings in force, with what each is for and where it came from
    #[command(after_help = SETTINGS_HELP)]
    PrintConfig(Settings),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print the manual page
    Man,
}

/// Where the settings come from. Flags override `PUSHGATE_...` environment variables, which override the file.
#[derive(Args, Default)]
struct Settings {
    /// A TOML file of settings; `pushgate print-config` prints one
    #[arg(long, value_name = "FILE", env = "PUSHGATE_CONFIG")]
    config: Option<PathBuf>,
    /// The address that clients connect to [default: 127.0.0.1:12345]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// A second, private address for everything but clients
    #[arg(long, value_name = "ADDRESS")]
    control_listen: Option<String>,
    /// The path of the WebSocket door [default: /ws]
    #[arg(long, value_name = "PATH")]
    ws_path: Option<String>,
    /// The path of the JSON push door [default: /push]
    #[arg(long, value_name = "PATH")]
    push_path: Option<String>,
    /// A TOML file of token = "user" lines
    #[arg(long, value_name = "FILE")]
    tokens_file: Option<String>,
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
        Command::Listen(listen) => listen.run(),
        Command::Bench(bench) => bench.run(),
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
            } else if error.is::<push::NobodyHasIt>() {
                ExitCode::from(EXIT_NONE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// Files that the settings name and that are not as they should be.
#[derive(Debug)]
struct WrongFiles(String);

impl std::fmt::Display for WrongFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for WrongFiles {}

/// Whether the error is in the settings or in a file that they name.
fn is_config(error: &(dyn Error + 'static)) -> bool {
    let in_server = matches!(error.downcast_ref(), Some(ServerError::Invalid(_) | ServerError::Auth(_)));
    in_server || error.is::<Invalid>() || error.is::<WrongFiles>()
}

/// What a command ends with. Boxed: here an error is only ever printed.
type Outcome = Result<(), Box<dyn Error>>;

/// An error and all that caused it, on one line each.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let further = error.to_string();
        // tonic and others repeat their cause in their own text.
        if !text.ends_with(&further) {
            text.push_str("\n  because: ");
            text.push_str(&further);
        }
        cause = error.source();
    }
    text
}

fn check_config(settings: Settings) -> Outcome {
    let loaded = settings.load()?;
    for name in &loaded.unknown_environment {
        print::complain(&format!("note: the environment variable {name} is no setting and is ignored"));
    }
    let tokens = loaded.config.tokens_file.as_ref().and_then(|path| TokenFile::open(path).err());
    let keys = loaded.config.push_keys_file.as_ref().and_then(|path| PushKeys::open(path).err());
    let wrong: Vec<_> = [("tokens_file", tokens), ("push_keys_file", keys)]
        .into_iter()
        .filter_map(|(name, error)| Some(format!("{name} ({}): {}", loaded.source(name), chain(&error?))))
        .collect();
    if !wrong.is_empty() {
        return Err(Box::new(WrongFiles(wrong.join("\n"))));
    }
    print::result("the configuration is good");
    Ok(())
}

fn print_config(settings: Settings) -> Outcome {
    print::product(settings.load()?.print().as_bytes())
}

fn man() -> Outcome {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page)?;
    print::product(&page)
}

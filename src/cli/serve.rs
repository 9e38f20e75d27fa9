//! `pushgate serve`: the life of the process.

use std::io::{self, IsTerminal};

use pushgate::{Config, Gateway, LogFormat, Server};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

use super::{Outcome, Settings};

/// Files for what is neither a client nor a caller: listeners, logs, configuration, the runtime.
const FILES_APART: usize = 64;

pub(super) fn run(settings: Settings) -> Outcome {
    let loaded = settings.load()?;
    start_logging(&loaded.config);
    for name in &loaded.unknown_environment {
        warn!(name, "this environment variable is no setting and is ignored");
    }
    let mut config = loaded.config;
    fit_open_files(&mut config);
    runtime()?.block_on(serve(config))
}

pub(super) fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

async fn serve(config: Config) -> Outcome {
    let prints_hints = config.log_format == LogFormat::Text;
    let (ws_path, push_path) = (config.ws_path.clone(), config.push_path.clone());
    let keys = if config.push_keys_file.is_some() { " -H 'x-api-key: KEY'" } else { "" };
    // From here on a stop signal is ours to act on, not the end of the process.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let server = Server::bind(config).await?;
    let (clients, control) = (server.local_addr(), server.control_addr());
    info!(%clients, %control, "listening");
    if prints_hints {
        println!("pushgate is up. Clients: ws://{clients}{ws_path}   Services: http://{control} (gRPC and JSON)");
        println!("Try, in another terminal:");
        println!("  pushgate listen --token ann --event mail --url ws://{clients}{ws_path}");
        println!("  pushgate push ann mail 'hello' --address http://{control}");
        println!(
            "  curl -d '{{\"userId\":\"ann\",\"event\":\"mail\",\"message\":\"hello\"}}'{keys} http://{control}{push_path}"
        );
        if server.has_page() {
            println!("or open http://{control}/ in a browser. Interrupt to stop.");
        }
    }
    tokio::spawn(reload_on_hangup(server.gateway())?);
    let stop = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            eprintln!("pushgate: second signal, stopping at once");
            std::process::exit(1);
        });
    };
    let report = server.run(stop).await;
    if prints_hints && report.connections_cut > 0 {
        println!("pushgate stopped; {} connections were cut at the end of shutdown_grace", report.connections_cut);
    }
    Ok(())
}

/// Reads tokens and push keys again on each SIGHUP. A file with a mistake is logged, and what it said before holds.
fn reload_on_hangup(gateway: Gateway) -> io::Result<impl Future<Output = ()>> {
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        while hangup.recv().await.is_some() {
            let errors = gateway.reload().await;
            for error in &errors {
                error!(error = super::chain(error), "not reloaded, what this file said before still holds");
            }
            if errors.is_empty() {
                info!("reloaded");
            }
        }
    })
}

fn start_logging(config: &Config) {
    // Validated with the rest of the config, so this cannot fall back.
    let filter = EnvFilter::builder().parse_lossy(&config.log);
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match config.log_format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().init(),
    }
}

/// Raises the limit of open files as far as it goes, and lowers the limits of connections to what fits under it: a
/// client over a limit is told so, one over the number of files just hangs.
fn fit_open_files(config: &mut Config) {
    let files = match rlimit::increase_nofile_limit(rlimit::INFINITY) {
        Ok(files) => usize::try_from(files).unwrap_or(usize::MAX),
        Err(error) => return warn!(%error, "cannot raise the limit of open files"),
    };
    if config.connections_max.saturating_add(config.http_connections_max).saturating_add(FILES_APART) > files {
        config.http_connections_max = config.http_connections_max.min(files / 8).max(1);
        config.connections_max =
            config.connections_max.min(files.saturating_sub(config.http_connections_max + FILES_APART)).max(1);
        info!(
            files,
            connections_max = config.connections_max,
            http_connections_max = config.http_connections_max,
            "limits of connections lowered to what the limit of open files allows"
        );
    }
}

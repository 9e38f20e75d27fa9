//! `pushgate serve`: starts, runs and stops the gateway process.

use std::convert::Infallible;
use std::io;

use pushgate::{Config, Gateway, LogFormat, Server};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::hints::Hints;
use super::log::Log;
use super::print::Note;
use super::systemd::Systemd;
use super::{Outcome, Settings};

/// Open files reserved for everything but clients and callers: listeners, logs, configuration, the runtime.
const RESERVED_FILES: usize = 64;

pub(super) fn run(settings: Settings) -> Outcome {
    let loaded = settings.load()?;
    // The server reads them too, but says only what is wrong with the first.
    super::check_files(&loaded)?;
    let runtime = runtime()?;
    survive_full_files(&runtime)?;
    let log = Log::start(&loaded.config);
    for name in &loaded.unknown_environment {
        warn!(name, "this environment variable is not a setting and is ignored");
    }
    let mut config = loaded.config;
    fit_open_files(&mut config);
    let systemd = Systemd::new();
    let outcome = runtime.block_on(serve(config, &log, &systemd));
    systemd.finish();
    log.finish();
    outcome
}

/// Handles `SIGXFSZ`. The kernel sends it when the log file reaches the limit on file size, and by default it ends the
/// process. With a handler, the write only fails, as on a full disk.
fn survive_full_files(runtime: &Runtime) -> io::Result<()> {
    /// `SIGXFSZ`, which tokio does not know by name. The number is the same on all systems that this is built for.
    const FILE_SIZE_EXCEEDED: i32 = 25;
    let _entered = runtime.enter();
    // The handler stays installed after the `Signal` is dropped, and does nothing.
    signal(SignalKind::from_raw(FILE_SIZE_EXCEEDED)).map(drop)
}

pub(super) fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

async fn serve(config: Config, log: &Log, systemd: &Systemd) -> Outcome {
    let prints_hints = config.log_format == LogFormat::Text;
    let hints = Hints::new(&config);
    // From here on these signals no longer end the process.
    let mut stop_signals =
        StopSignals { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? };
    let hangup = signal(SignalKind::hangup())?;
    let counted = log.clone();
    let server = Server::builder(config).log_lines_lost(move || counted.lost()).bind().await?;
    info!(clients = %server.address(), control = %server.control_address(), "listening");
    if prints_hints {
        Note::to_stdout(hints.text(&server));
    }
    systemd.ready();
    let gateway = server.gateway();
    let (stop, stopped) = oneshot::channel::<()>();
    let second_signal = async {
        stop_signals.next().await;
        systemd.stopping();
        drop(stop);
        stop_signals.next().await;
    };
    let report = tokio::select! {
        report = server.run(async { stopped.await.unwrap_or_default() }) => report,
        // These run in this task, so that they cannot end before the gateway does.
        never = reload_on_hangup(hangup, &gateway, systemd) => match never {},
        never = systemd.keep_alive() => match never {},
        () = second_signal => {
            warn!("second signal, stopping at once");
            log.finish();
            std::process::exit(1);
        }
    };
    if prints_hints && report.connections_cut > 0 {
        let cut = report.connections_cut;
        Note::to_stdout(format!("pushgate stopped; {cut} connections were cut at the end of shutdown_grace\n")).wait();
    }
    Ok(())
}

/// The signals that stop the gateway.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Reloads tokens, push keys and certificates on each SIGHUP. If a file has an error, logs it; the previous content stays in use.
async fn reload_on_hangup(mut hangup: Signal, gateway: &Gateway, systemd: &Systemd) -> Infallible {
    while hangup.recv().await.is_some() {
        systemd.reloading();
        let errors = gateway.reload().await;
        systemd.ready();
        for error in &errors {
            error!(error = super::chain(error), "not reloaded, the previous content of this file stays in use");
        }
        if errors.is_empty() {
            info!("reloaded");
        }
    }
    std::future::pending().await
}

/// Raises the limit of open files to its maximum and lowers the connection limits to fit. A client past a connection
/// limit gets an answer, but a client past the limit of open files would just hang.
fn fit_open_files(config: &mut Config) {
    let files = match rlimit::increase_nofile_limit(rlimit::INFINITY) {
        Ok(files) => usize::try_from(files).unwrap_or(usize::MAX),
        Err(error) => return warn!(%error, "cannot raise the limit of open files"),
    };
    if files_needed(config) <= files {
        return;
    }
    config.http_connections_max = config.http_connections_max.min(files / 8).max(1);
    config.control_http_connections_max = config.control_http_connections_max.min(files / 16).max(1);
    let others = files_needed(config) - config.connections_max;
    config.connections_max = config.connections_max.min(files.saturating_sub(others)).max(1);
    info!(
        files,
        connections_max = config.connections_max,
        http_connections_max = config.http_connections_max,
        control_http_connections_max = config.control_http_connections_max,
        "connection limits lowered to fit the limit of open files"
    );
}

/// The number of open files with all connection limits reached, so that no kind of connection can use up another's
/// files.
fn files_needed(config: &Config) -> usize {
    let control = if config.control_listen.is_some() { config.control_http_connections_max } else { 0 };
    [config.connections_max, config.http_connections_max, control]
        .into_iter()
        .fold(RESERVED_FILES, usize::saturating_add)
}

//! `pushgate serve`: the life of the process.

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

/// Files for what is neither a client nor a caller: listeners, logs, configuration, the runtime.
const FILES_APART: usize = 64;

pub(super) fn run(settings: Settings) -> Outcome {
    let loaded = settings.load()?;
    let runtime = runtime()?;
    survive_full_files(&runtime)?;
    let log = Log::start(&loaded.config);
    for name in &loaded.unknown_environment {
        warn!(name, "this environment variable is no setting and is ignored");
    }
    let mut config = loaded.config;
    fit_open_files(&mut config);
    let systemd = Systemd::new();
    let outcome = runtime.block_on(serve(config, &log, &systemd));
    systemd.finish();
    log.finish();
    outcome
}

/// A log file that may not grow is an error of its write, as on a full disk. Left alone, the kernel's signal for it would
/// end the process at the first such line.
fn survive_full_files(runtime: &Runtime) -> io::Result<()> {
    /// `SIGXFSZ` where it is not known by name: the same number on all systems that this is built for.
    const FILE_SIZE_EXCEEDED: i32 = 25;
    let _entered = runtime.enter();
    // The handler stays when this is dropped, and does nothing.
    signal(SignalKind::from_raw(FILE_SIZE_EXCEEDED)).map(drop)
}

pub(super) fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

async fn serve(config: Config, log: &Log, systemd: &Systemd) -> Outcome {
    let prints_hints = config.log_format == LogFormat::Text;
    let hints = Hints::new(&config);
    // From here on these signals are ours to act on, not the end of the process.
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
        // In this task, as all that must not end before the gateway does.
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

/// Reads tokens and push keys again on each SIGHUP. A file with a mistake is logged, and what it said before holds.
async fn reload_on_hangup(mut hangup: Signal, gateway: &Gateway, systemd: &Systemd) -> Infallible {
    while hangup.recv().await.is_some() {
        systemd.reloading();
        let errors = gateway.reload().await;
        systemd.ready();
        for error in &errors {
            error!(error = super::chain(error), "not reloaded, what this file said before still holds");
        }
        if errors.is_empty() {
            info!("reloaded");
        }
    }
    std::future::pending().await
}

/// Raises the limit of open files as far as it goes, and lowers the limits of connections to what fits under it: a
/// client over a limit is told so, one over the number of files just hangs.
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
    let apart = files_needed(config) - config.connections_max;
    config.connections_max = config.connections_max.min(files.saturating_sub(apart)).max(1);
    info!(
        files,
        connections_max = config.connections_max,
        http_connections_max = config.http_connections_max,
        control_http_connections_max = config.control_http_connections_max,
        "limits of connections lowered to what the limit of open files allows"
    );
}

/// Files with all limits of connections reached, so that none of them can take what another was promised.
fn files_needed(config: &Config) -> usize {
    let control = if config.control_listen.is_some() { config.control_http_connections_max } else { 0 };
    [config.connections_max, config.http_connections_max, control].into_iter().fold(FILES_APART, usize::saturating_add)
}

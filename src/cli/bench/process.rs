//! The CPU time and memory of the server's process, if it runs on this machine.

use std::net::SocketAddr;
use std::time::Duration;

/// The resource usage of a process at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    /// The CPU time of all threads, in user and kernel mode.
    pub(super) processor: Duration,
    pub(super) resident_bytes: u64,
}

#[cfg(target_os = "linux")]
impl Usage {
    /// Reads `/proc/PID/stat`.
    pub(super) fn of(pid: i32) -> Result<Self, String> {
        let stat = procfs::process::Process::new(pid).and_then(|process| process.stat());
        let stat = stat.map_err(|error| format!("cannot read what process {pid} uses: {error}"))?;
        // Ticks are coarse, but the kernel adds them up without error, so their difference over a run is exact enough.
        let seconds = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
        Ok(Self { processor: Duration::from_secs_f64(seconds), resident_bytes: stat.rss * procfs::page_size() })
    }
}

#[cfg(not(target_os = "linux"))]
impl Usage {
    pub(super) fn of(pid: i32) -> Result<Self, String> {
        Err(format!("cannot read what process {pid} uses: that needs Linux's /proc"))
    }
}

/// The process that listens at this address, if it is on this machine and we may inspect it.
#[cfg(target_os = "linux")]
pub(super) fn listening(address: SocketAddr) -> Option<i32> {
    use procfs::process::FDTarget;
    let mut sockets = procfs::net::tcp().unwrap_or_default();
    sockets.extend(procfs::net::tcp6().unwrap_or_default());
    let matches_address = |local: SocketAddr| {
        local.port() == address.port() && (local.ip() == address.ip() || local.ip().is_unspecified())
    };
    let listener = sockets
        .iter()
        .find(|socket| socket.state == procfs::net::TcpState::Listen && matches_address(socket.local_address))?;
    let holds = |process: &procfs::process::Process| {
        let files = process.fd().ok()?;
        files
            .flatten()
            .any(|file| matches!(file.target, FDTarget::Socket(inode) if inode == listener.inode))
            .then_some(())
    };
    let process = procfs::process::all_processes().ok()?.flatten().find(|process| holds(process).is_some())?;
    Some(process.pid())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn listening(_address: SocketAddr) -> Option<i32> {
    None
}

//! The kernel's share of a connection: how much of what was written it holds, and for how long.

use socket2::SockRef;
use tokio::net::TcpListener;
use tracing::warn;

use crate::config::Config;

/// Bounds what the kernel holds of each connection that this listener accepts: they inherit its options. A kernel that
/// refuses one goes on with its own bound.
pub(super) fn bound_kernel(listener: &TcpListener, config: &Config) {
    let socket = SockRef::from(listener);
    if config.socket_send_bytes_max > 0 {
        told("SO_SNDBUF", socket.set_send_buffer_size(config.socket_send_bytes_max));
    }
    #[cfg(target_os = "linux")]
    {
        let unsent = u32::try_from(config.socket_unsent_bytes_max).unwrap_or(u32::MAX);
        told("TCP_NOTSENT_LOWAT", socket.set_tcp_notsent_lowat(unsent));
        told("TCP_USER_TIMEOUT", socket.set_tcp_user_timeout(Some(config.socket_timeout)));
    }
}

fn told(option: &str, result: std::io::Result<()>) {
    if let Err(error) = result {
        warn!(option, %error, "the kernel refuses a socket option");
    }
}

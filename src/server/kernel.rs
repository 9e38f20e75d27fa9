//! Socket options that limit how many unsent bytes the kernel buffers for a connection, and for how long.

use socket2::SockRef;
use tracing::warn;

use crate::config::Config;

use super::socket::Socket;

/// Limits what the kernel buffers for each connection accepted on this socket. Connections inherit the options of the
/// listener. If the kernel refuses an option, its own limit applies.
pub(super) fn bound(socket: &Socket, config: &Config) {
    let (options, is_tcp) = match socket {
        Socket::Tcp(listener) => (SockRef::from(listener), true),
        Socket::Unix(listener, _) => (SockRef::from(listener), false),
    };
    if config.socket_send_bytes_max > 0 {
        warn_on_error("SO_SNDBUF", options.set_send_buffer_size(config.socket_send_bytes_max));
    }
    if cfg!(target_os = "linux") && is_tcp {
        bound_tcp(&options, config);
    }
}

#[cfg(target_os = "linux")]
fn bound_tcp(options: &SockRef<'_>, config: &Config) {
    let unsent = u32::try_from(config.socket_unsent_bytes_max).unwrap_or(u32::MAX);
    warn_on_error("TCP_NOTSENT_LOWAT", options.set_tcp_notsent_lowat(unsent));
    warn_on_error("TCP_USER_TIMEOUT", options.set_tcp_user_timeout(Some(config.socket_timeout)));
}

#[cfg(not(target_os = "linux"))]
fn bound_tcp(_options: &SockRef<'_>, _config: &Config) {}

fn warn_on_error(option: &str, result: std::io::Result<()>) {
    if let Err(error) = result {
        warn!(option, %error, "the kernel refused a socket option");
    }
}

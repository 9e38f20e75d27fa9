//! The kernel's share of a connection: how much of what was written it holds, and for how long.

use socket2::SockRef;
use tracing::warn;

use crate::config::Config;

use super::socket::Socket;

/// Bounds what the kernel holds of each connection that is accepted on this socket: they inherit its options. A kernel that
/// refuses one goes on with its own bound.
pub(super) fn bound(socket: &Socket, config: &Config) {
    let (options, is_tcp) = match socket {
        Socket::Tcp(listener) => (SockRef::from(listener), true),
        Socket::Unix(listener, _) => (SockRef::from(listener), false),
    };
    if config.socket_send_bytes_max > 0 {
        told("SO_SNDBUF", options.set_send_buffer_size(config.socket_send_bytes_max));
    }
    if cfg!(target_os = "linux") && is_tcp {
        bound_tcp(&options, config);
    }
}

#[cfg(target_os = "linux")]
fn bound_tcp(options: &SockRef<'_>, config: &Config) {
    let unsent = u32::try_from(config.socket_unsent_bytes_max).unwrap_or(u32::MAX);
    told("TCP_NOTSENT_LOWAT", options.set_tcp_notsent_lowat(unsent));
    told("TCP_USER_TIMEOUT", options.set_tcp_user_timeout(Some(config.socket_timeout)));
}

#[cfg(not(target_os = "linux"))]
fn bound_tcp(_options: &SockRef<'_>, _config: &Config) {}

fn told(option: &str, result: std::io::Result<()>) {
    if let Err(error) = result {
        warn!(option, %error, "the kernel refuses a socket option");
    }
}

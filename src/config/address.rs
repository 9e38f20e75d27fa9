//! An address to listen on, and its text form.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::SocketAddr as UnixAddress;
use std::path::PathBuf;

/// An address that a gateway listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP address and port. Port 0 stands for any free port.
    Tcp(SocketAddr),
    /// A Unix socket, by the path of its file. Its peers have the address `127.0.0.1:0`.
    Unix(PathBuf),
}

impl Address {
    /// Parses `127.0.0.1:12345`, `localhost:12345`, `:12345` or `unix:/path`. No name is looked up. `localhost` is
    /// always 127.0.0.1, so that it means the same on every machine.
    pub(super) fn read(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return path.starts_with('/').then(|| Self::Unix(path.into()));
        }
        match text.rsplit_once(':')? {
            ("localhost", port) => Some((Ipv4Addr::LOCALHOST, port.parse().ok()?).into()),
            ("", port) => Some((Ipv6Addr::UNSPECIFIED, port.parse().ok()?).into()),
            _ => text.parse().ok().map(Self::Tcp),
        }
    }

    /// Whether the path of a Unix socket is short enough. The system stores it in a field of fixed size.
    pub(super) fn can_be_bound(&self) -> bool {
        match self {
            Self::Tcp(_) => true,
            Self::Unix(path) => UnixAddress::from_pathname(path).is_ok(),
        }
    }

    /// Whether only this machine can reach the address.
    pub(crate) fn is_loopback(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    /// Whether the address is the same each time the gateway listens, which port 0 is not.
    pub(super) fn is_fixed(&self) -> bool {
        !matches!(self, Self::Tcp(address) if address.port() == 0)
    }

    /// The IP address and port. For a Unix socket, those of its peers.
    pub(crate) fn ip_address(&self) -> SocketAddr {
        match self {
            Self::Tcp(address) => *address,
            Self::Unix(_) => UNIX_PEER,
        }
    }
}

/// The address used for a peer on a Unix socket. Such a peer has no address of its own, but is on this machine.
pub(crate) const UNIX_PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl<I: Into<IpAddr>> From<(I, u16)> for Address {
    fn from(address: (I, u16)) -> Self {
        Self::Tcp(address.into())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

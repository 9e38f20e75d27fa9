//! How much memory the limits may take together, so that an operator can choose a machine for them, or them for a machine.

use super::Config;

/// Bytes of the program with everything that it needs once: code, threads, counters, the pages that freed memory leaves.
const PROGRAM: u64 = 64 << 20;

/// Bytes of a quiet WebSocket connection with its place in the binder and the registry, and what TLS adds to any
/// connection: its keys, and a record in each direction.
const QUIET: u64 = 4 << 10;
const TLS: u64 = 44 << 10;

/// Bytes of a client's queue that are not counted as queued.
const UNCOUNTED: u64 = 4 << 10;

/// Bytes of an HTTP connection beside its buffers, and of one call on a connection of HTTP/2.
const HTTP: u64 = 16 << 10;
const CALL: u64 = 8 << 10;

/// Bytes of a push that is worked on and came at once, and of one that waits for its clients.
const PUSH: u64 = 64 << 10;
const WAITING: u64 = 1 << 10;

/// Bytes of a session that is away, beside what is kept for it.
const AWAY: u64 = 1 << 10;

impl Config {
    /// The memory in bytes that the gateway may take when every limit is reached at once. The README explains the sum.
    /// Not in it are the kernel's buffers of sockets and what an embedding program's own code needs.
    #[must_use]
    pub fn memory_max(&self) -> u64 {
        let tls = |is_on| if is_on { TLS } else { 0 };
        let clients_tls = tls(self.tls_cert_file.is_some() || self.tls_cert_folder.is_some());
        let control_tls = tls(self.control_tls_cert_file.is_some());
        let http1 = sum([HTTP, times(2, self.http_head_bytes_max)]);
        let http2 = sum([http1, Self::HTTP2_CONNECTION_WINDOW_BYTES.into(), times(CALL, self.http2_streams_max)]);
        let (clients_http, control_http) = match self.control_listen {
            Some(_) => (sum([http1, clients_tls]), sum([http2, control_tls])),
            None => (sum([http2, clients_tls]), 0),
        };
        let client = sum([QUIET, clients_tls, UNCOUNTED, times(2, self.client_message_bytes_max)]);
        sum([
            PROGRAM,
            times(client, self.connections_max),
            times(clients_http, self.http_connections_max),
            times(control_http, self.control_http_connections_max),
            // Each byte may be in the connection's buffer and in the body.
            times(2, self.request_bodies_bytes_max),
            times(PUSH, self.push_concurrency_max),
            times(WAITING, self.waiting_pushes_max),
            self.idempotency_bytes_max as u64,
            self.queued_total_bytes_max as u64,
            times(AWAY, self.sessions_away_max),
        ])
    }
}

fn sum<const N: usize>(parts: [u64; N]) -> u64 {
    parts.into_iter().fold(0, u64::saturating_add)
}

fn times(each: u64, count: usize) -> u64 {
    each.saturating_mul(count as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the sum grows by when a setting is changed.
    fn grows(change: impl FnOnce(&mut Config)) -> u64 {
        let mut config = Config { control_listen: Some(([127, 0, 0, 1], 0).into()), ..Config::default() };
        let before = config.memory_max();
        change(&mut config);
        config.memory_max() - before
    }

    #[test]
    fn each_limit_counts_as_often_as_what_it_bounds() {
        assert_eq!(grows(|config| config.client_message_bytes_max += 1), 200_000);
        assert_eq!(grows(|config| config.connections_max += 1), (4 << 10) + (4 << 10) + (64 << 10));
        assert_eq!(grows(|config| config.http_connections_max += 1), (16 << 10) + (64 << 10));
        assert_eq!(grows(|config| config.control_http_connections_max += 1), (80 << 10) + (1 << 20) + 1000 * (8 << 10));
        assert_eq!(grows(|config| config.tls_cert_folder = Some("tls".into())), (100_000 + 4096) * (44 << 10));
        assert_eq!(grows(|config| config.control_tls_cert_file = Some("pem".into())), 1024 * (44 << 10));
        assert_eq!(grows(|config| config.request_bodies_bytes_max += 1), 2);
        assert_eq!(grows(|config| config.idempotency_bytes_max += 1), 1);
        assert_eq!(grows(|config| config.queued_total_bytes_max += 1), 1);
        assert_eq!(grows(|config| config.connections_max = usize::MAX).leading_zeros(), 0);
    }

    #[test]
    fn without_a_second_address_the_first_one_speaks_http2() {
        let one = Config::default();
        let more = Config { http_connections_max: one.http_connections_max + 1, ..one.clone() };
        assert_eq!(more.memory_max() - one.memory_max(), (80 << 10) + (1 << 20) + 1000 * (8 << 10));
        let more = Config { control_http_connections_max: 2048, ..one.clone() };
        assert_eq!(more.memory_max(), one.memory_max());
    }
}

//! Connections that a listener closes before it serves them: told why where they speak plain HTTP, counted each, and logged
//! now and then.

use std::net::SocketAddr;
use std::time::Instant;

use tracing::warn;

use crate::config::RETRY_AFTER;
use crate::connection::Transport;
use crate::metrics::{Counter, Metrics, RefusedLabels, RefusedReason};
use crate::seldom::Seldom;

use super::places::NoPlace;
use super::route::Serves;
use super::tls::Handshakes;

/// The refusals of one listener.
pub(super) struct Refusals {
    serves: Serves,
    speaks_tls: bool,
    full: Kind,
    full_for_address: Kind,
    not_a_proxy: Kind,
    no_proxy_header: Kind,
}

struct Kind {
    counter: Counter,
    seldom: Seldom,
}

impl Refusals {
    pub(super) fn new(serves: Serves, metrics: &Metrics, handshakes: Option<&Handshakes>) -> Self {
        let listener = serves.label();
        let kind = |reason| Kind {
            counter: metrics.http_refused.of(&RefusedLabels { listener, reason }).clone(),
            seldom: Seldom::default(),
        };
        Self {
            serves,
            speaks_tls: handshakes.is_some(),
            full: kind(RefusedReason::Full),
            full_for_address: kind(RefusedReason::FullForAddress),
            not_a_proxy: kind(RefusedReason::NotAProxy),
            no_proxy_header: kind(RefusedReason::NoProxyHeader),
        }
    }

    /// There is no place for the connection. It has made no request yet, but a client that speaks plain HTTP takes the answer
    /// for that to the request that it makes. A TLS handshake would cost more than the refusal is to save.
    pub(super) fn no_place(&self, stream: &impl Transport, peer: SocketAddr, why: NoPlace) {
        let (kind, status, words) = match why {
            NoPlace::Full => {
                (&self.full, "503 Service Unavailable", "all places are taken by connections with a request in hand")
            }
            NoPlace::FullForAddress => {
                (&self.full_for_address, "429 Too Many Requests", "this address has as many connections as it may have")
            }
        };
        if !self.speaks_tls {
            let (length, seconds) = (words.len(), RETRY_AFTER.as_secs());
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {length}\r\n\
                 retry-after: {seconds}\r\nconnection: close\r\n\r\n{words}"
            );
            stream.tell(answer.as_bytes());
        }
        self.note(kind, peer, words);
    }

    /// The peer is not one of `proxies_trusted`, and only those may connect.
    pub(super) fn not_a_proxy(&self, peer: SocketAddr) {
        self.note(&self.not_a_proxy, peer, "proxy_protocol is on, and its address is not in proxies_trusted");
    }

    pub(super) fn no_proxy_header(&self, peer: SocketAddr, why: &str) {
        self.note(&self.no_proxy_header, peer, why);
    }

    /// At most one line a second for each kind, so that peers cannot flood the log.
    fn note(&self, kind: &Kind, peer: SocketAddr, why: &str) {
        kind.counter.inc();
        if let Some(left_out) = kind.seldom.due(Instant::now()) {
            warn!(%peer, listener = ?self.serves, left_out, "connection refused: {why}");
        }
    }
}

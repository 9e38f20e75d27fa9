//! Connections that a listener closes before it serves them: counted each, and logged now and then.

use std::net::SocketAddr;
use std::time::Instant;

use tracing::warn;

use crate::metrics::{Counter, Metrics, RefusedLabels, RefusedReason};
use crate::seldom::Seldom;

use super::places::NoPlace;
use super::route::Serves;

/// The refusals of one listener.
pub(super) struct Refusals {
    serves: Serves,
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
    pub(super) fn new(serves: Serves, metrics: &Metrics) -> Self {
        let listener = serves.label();
        let kind = |reason| Kind {
            counter: metrics.http_refused.of(&RefusedLabels { listener, reason }).clone(),
            seldom: Seldom::default(),
        };
        Self {
            serves,
            full: kind(RefusedReason::Full),
            full_for_address: kind(RefusedReason::FullForAddress),
            not_a_proxy: kind(RefusedReason::NotAProxy),
            no_proxy_header: kind(RefusedReason::NoProxyHeader),
        }
    }

    pub(super) fn no_place(&self, peer: SocketAddr, why: NoPlace) {
        match why {
            NoPlace::Full => self.note(&self.full, peer, "all places are taken by connections with a request in hand"),
            NoPlace::FullForAddress => {
                self.note(&self.full_for_address, peer, "its address has as many connections as it may have");
            }
        }
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

//! The test page: one HTML file, filled in with the addresses and paths of this server.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;

use crate::config::Config;

/// The Content-Security-Policy of the page. It allows the page's inline style and script, the client module, and
/// requests to the gateway. The WebSocket is not limited to `'self'`, because it may be on a different address than the
/// page.
pub(super) const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
     script-src 'self' 'unsafe-inline'; connect-src 'self' ws: wss:; img-src data:; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

/// The address of the WebSocket endpoint when it differs from that of the page. The host is `None` if the browser can
/// use the host of the page for both. The scheme is `None` unless the gateway speaks TLS, since a proxy may.
fn websocket_address(config: &Config, clients: SocketAddr, control: SocketAddr) -> serde_json::Value {
    let same_host = clients.ip() == control.ip() || clients.ip().is_unspecified();
    let host = (!same_host).then(|| match clients.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    });
    let scheme = match (config.listen_has_tls(), config.control_tls_cert_file.is_some()) {
        (true, _) => Some("wss:"),
        (false, true) => Some("ws:"),
        (false, false) => None,
    };
    serde_json::json!({ "scheme": scheme, "host": host, "port": clients.port() })
}

/// Builds the page, for clients that connect to `clients`, on a server that serves the page at `control`.
pub(super) fn page(config: &Config, clients: SocketAddr, control: SocketAddr) -> Bytes {
    let settings = serde_json::json!({
        "wsUrl": config.public_ws_url,
        "wsAt": (clients != control).then(|| websocket_address(config, clients, control)),
        "wsPath": config.ws_path,
        "pushPath": config.push_path,
    });
    // Escapes `<`, so that no JSON string can end the script element.
    include_str!("page.html")
        .replace("{\"told\":\"by the server\"}", &settings.to_string().replace('<', "\\u003c"))
        .into()
}

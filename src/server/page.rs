//! The page to try the gateway from: one HTML file, told the addresses and paths that this server has.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;

use crate::config::Config;

/// Everything the page may do: its own inline style and script, the client module, and requests to the gateway. The
/// WebSocket may be on another address than the page, so it is not held to `'self'`.
pub(super) const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
     script-src 'self' 'unsafe-inline'; connect-src 'self' ws: wss:; img-src data:; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

/// Where the WebSocket door is when it is not where the page is. The host that the browser knows the page by will do for it
/// too, unless that is bound to another.
fn apart(clients: SocketAddr, control: SocketAddr) -> serde_json::Value {
    let same_host = clients.ip() == control.ip() || clients.ip().is_unspecified();
    let host = (!same_host).then(|| match clients.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    });
    serde_json::json!({ "host": host, "port": clients.port() })
}

/// The page, for clients that connect to `clients`, on a server that serves the page at `control`.
pub(super) fn page(config: &Config, clients: SocketAddr, control: SocketAddr) -> Bytes {
    let told = serde_json::json!({
        "wsUrl": config.public_ws_url,
        "wsAt": (clients != control).then(|| apart(clients, control)),
        "wsPath": config.ws_path,
        "pushPath": config.push_path,
    });
    // `<` cannot end the script element from inside a JSON string that holds none.
    include_str!("page.html").replace("{\"told\":\"by the server\"}", &told.to_string().replace('<', "\\u003c")).into()
}

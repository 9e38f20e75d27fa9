//! The page to try the gateway from: one HTML file, told the addresses and paths that this server has.

use bytes::Bytes;

use crate::config::Config;

/// Everything the page may do: its own inline style and script, and requests to the gateway. The WebSocket may be on
/// another address than the page, so it is not held to `'self'`.
pub(super) const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
     connect-src 'self' ws: wss:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page, for clients that connect to `ws_port`.
pub(super) fn page(config: &Config, ws_port: u16) -> Bytes {
    // `<` cannot end the script element from inside a JSON string that holds none.
    let told = serde_json::json!({ "wsPort": ws_port, "wsPath": config.ws_path, "pushPath": config.push_path });
    include_str!("page.html").replace("{\"told\":\"by the server\"}", &told.to_string().replace('<', "\\u003c")).into()
}

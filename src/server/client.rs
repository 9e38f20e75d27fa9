//! Serves the client for browsers and Node.js: one ES module and its types.

use bytes::Bytes;
use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::Full;

use crate::config::{CLIENT_PATH, CLIENT_TYPES_PATH};
use crate::doors::{Body, empty, listed};

/// A file that never changes while the gateway runs.
pub(super) struct File {
    kind: HeaderValue,
    tag: HeaderValue,
    text: &'static str,
}

/// The module and its types. Both are built once, because every connection may request them.
pub(super) struct Client {
    module: File,
    types: File,
}

impl Client {
    pub(super) fn new() -> Self {
        Self {
            module: File::new("text/javascript; charset=utf-8", include_str!("client.js")),
            types: File::new("text/plain; charset=utf-8", include_str!("client.d.ts")),
        }
    }

    pub(super) fn file(&self, path: &str) -> Option<&File> {
        match path {
            CLIENT_PATH => Some(&self.module),
            CLIENT_TYPES_PATH => Some(&self.types),
            _ => None,
        }
    }
}

impl File {
    fn new(kind: &'static str, text: &'static str) -> Self {
        let tag = HeaderValue::from_str(&format!("\"{:016x}\"", fingerprint(text.as_bytes())));
        Self { kind: HeaderValue::from_static(kind), tag: tag.expect("quotes and hexadecimal digits"), text }
    }

    /// Answers with the file, or with 304 if the client already has it.
    pub(super) fn answer(&self, request_headers: &HeaderMap) -> Response<Body> {
        let tag = self.tag.to_str().expect("made from a string");
        let mut tags = listed(request_headers, &IF_NONE_MATCH);
        let is_known = tags.any(|known| known == "*" || known.trim_start_matches("W/") == tag);
        let mut response = if is_known {
            empty(StatusCode::NOT_MODIFIED)
        } else {
            let mut whole = Response::new(Body::new(Full::new(Bytes::from_static(self.text.as_bytes()))));
            whole.headers_mut().insert(CONTENT_TYPE, self.kind.clone());
            whole
        };
        let headers = response.headers_mut();
        // Browsers load a module of another origin only if CORS allows it. The module holds nothing secret.
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        // The browser must revalidate each time, so that a page uses the same version as its gateway.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(ETAG, self.tag.clone());
        response
    }
}

/// FNV-1a. It is the same in every build, so that two gateways behind one name use the same tag.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

//! What reads the bytes of strangers, one reader at a time and without a connection.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::BodyExt;

use crate::auth::{PushScope, Token};
use crate::dialect::{self, Dialect, Request, ServerFrame};
use crate::doors::api::{Caller, Place};
use crate::doors::json::{self, Mode};
use crate::server;

use super::Inside;

/// Reads a frame as a legacy client's: its token, empty for none, and its event. `None` where it is refused.
#[must_use]
pub fn legacy_frame(data: &[u8]) -> Option<(String, String)> {
    match dialect::Legacy.read(data) {
        Ok(Request::Bind { token, event, resume: None }) => {
            Some((token.as_ref().map(Token::expose).unwrap_or_default().to_owned(), event.as_str().to_owned()))
        }
        Ok(other) => unreachable!("a legacy client can only bind, not {other:?}"),
        Err(_) => None,
    }
}

/// Reads a frame as a client's of the session protocol: what it asks for, with nothing of a token in it.
///
/// # Errors
/// The frame that tells the client why it is refused.
pub fn session_frame(data: &[u8]) -> Result<String, String> {
    let request = dialect::Session.read(data);
    request.map(|request| format!("{request:?}")).map_err(|error| {
        let told = dialect::Session.word(&ServerFrame::error(error, None));
        told.expect("the session protocol has a word for every error")
    })
}

/// Reads the header of the PROXY protocol: the address it tells, and the bytes it has.
///
/// # Errors
/// Why there is none.
pub async fn proxy_header(mut bytes: &[u8]) -> Result<(Option<SocketAddr>, usize), String> {
    let sent = bytes.len();
    match server::read_proxy_header(&mut bytes).await {
        Ok(address) => Ok((address, sent - bytes.len())),
        Err(error) => Err(error.to_string()),
    }
}

/// What a caller of the JSON door asks for.
#[derive(Clone, Copy, Debug)]
pub enum Asks {
    /// One push, as the replaced service had it.
    Legacy,
    /// One push with its whole outcome.
    Full,
    /// Many of these.
    Batch,
}

impl Inside {
    /// Answers a body at the JSON door: the status and the body of the answer. No push of it waits.
    pub async fn json(&self, asks: Asks, body: Bytes) -> (u16, Bytes) {
        let mode = match asks {
            Asks::Legacy => Mode::Legacy,
            Asks::Full => Mode::Full,
            Asks::Batch => Mode::Batch,
        };
        let caller = Caller::new(PushScope::everything("inside"), Instant::now(), Place::new(()));
        let (head, body) = json::push(&self.gateway, mode, caller, body).await.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        (head.status.as_u16(), body)
    }
}

//! The dialect of the service that pushgate replaces: bind requests in, messages out, and not a word else.

use crate::auth::Token;
use crate::legacy;
use crate::message::Event;

use super::{Dialect, Request, RequestError, ServerFrame, TOKEN_BYTES_MAX};

/// The legacy protocol.
pub(crate) struct Legacy;

impl Dialect for Legacy {
    fn read(&self, data: &[u8]) -> Result<Request, RequestError> {
        let [token, event] = legacy::fields(data, ["token", "event"]).map_err(|_| RequestError::NotUnderstood)?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(RequestError::Incomplete);
        }
        let token = Some(token).filter(|token| !token.is_empty()).map(Token::new);
        let event = Event::new(event).map_err(|_| RequestError::Incomplete)?;
        Ok(Request::Bind { token, event, resume: None })
    }

    fn word(&self, _frame: &ServerFrame<'_>) -> Option<String> {
        None
    }

    fn has_sessions(&self) -> bool {
        false
    }
}

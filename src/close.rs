//! Why a connection ended: its close code, its text, its metric label and its log level, chosen in this one place.

use tracing::Level;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CloseReason {
    /// The client sent a close frame.
    ClientClosed,
    /// The connection was reset, or ended without a close frame.
    Reset,
    /// The client broke the WebSocket protocol.
    ProtocolError,
    /// A text frame was not UTF-8.
    NotUtf8,
    /// A frame or message was over its limit.
    TooBig,
    /// The client sent more frames than it may.
    TooManyFrames,
    /// A data frame was not a bind request.
    NotUnderstood,
    /// A bind request named no token, no event, or one over its limit.
    Incomplete,
    /// The token check refused the token.
    TokenRefused,
    /// The token check could not be made.
    CheckUnavailable,
    /// The token is good, but not for this event.
    NotAllowed,
    /// A second bind named another user.
    OtherUser,
    /// The client did not bind in time, or the token check took too long.
    BindTimeout,
    /// The user has too many connections.
    TooManyConnections,
    /// The connection has too many events.
    TooManyEvents,
    /// A ping was not answered in time.
    PongTimeout,
    /// The client took no byte in time.
    WriteTimeout,
    /// The outbox was full.
    QueueFull,
    /// An operator or service dropped it.
    Dropped,
    /// The session goes on over another connection.
    Replaced,
    /// The token's time is over.
    TokenExpired,
    /// The gateway shuts down.
    GoingAway,
    /// The same to a client of the session protocol, which was told when to come back.
    Drained,
    /// The shutdown grace was over.
    Cut,
    /// A panic, most likely in an embedder's token check.
    Panicked,
}

impl CloseReason {
    /// The close code and text that the client is sent; `None` where there is no one to send it to.
    pub(crate) fn frame(self) -> Option<(u16, &'static str)> {
        Some(match self {
            Self::ClientClosed | Self::Reset | Self::Cut | Self::Panicked => return None,
            Self::GoingAway => (1001, "going away"),
            Self::Drained => (1012, "shutting down, come back after the delay given"),
            Self::ProtocolError => (1002, "protocol error"),
            Self::NotUtf8 => (1007, "text is not UTF-8"),
            Self::TooManyFrames => (1008, "too many frames"),
            Self::TooBig => (1009, "message too big"),
            Self::CheckUnavailable => (1013, "token check unavailable, try again later"),
            Self::NotUnderstood => (4400, "not a JSON object with a token and an event, both strings"),
            Self::Incomplete => (4400, "token or event is empty or too long"),
            Self::TokenRefused => (4401, "token refused"),
            Self::NotAllowed => (4403, "not allowed to bind this event"),
            Self::OtherUser => (4403, "bound to another user"),
            Self::BindTimeout => (4408, "did not bind in time"),
            Self::Dropped => (4409, "dropped"),
            Self::Replaced => (4409, "replaced by a newer connection of the same session"),
            Self::TokenExpired => (4410, "token expired"),
            Self::TooManyConnections => (4429, "too many connections for this user"),
            Self::TooManyEvents => (4429, "too many events on this connection"),
            Self::PongTimeout => (4429, "too slow: ping not answered in time"),
            Self::WriteTimeout => (4429, "too slow: nothing read in time"),
            Self::QueueFull => (4429, "too slow: too many messages queued"),
        })
    }

    /// Whether what is queued is written before the close frame.
    pub(crate) fn flushes(self) -> bool {
        matches!(self, Self::Dropped | Self::GoingAway | Self::Drained)
    }

    /// What a client does is no more than `debug`, or clients could flood the log.
    pub(crate) fn level(self) -> Level {
        match self {
            Self::Panicked => Level::ERROR,
            Self::CheckUnavailable => Level::WARN,
            _ => Level::DEBUG,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every reason: one that is left out does not compile.
    fn every_reason() -> Vec<CloseReason> {
        macro_rules! every {
            ($($reason:ident)+) => {{
                let _is_listed = |reason| match reason { $(CloseReason::$reason)|+ => () };
                vec![$(CloseReason::$reason),+]
            }};
        }
        every!(
            ClientClosed Reset ProtocolError NotUtf8 TooManyFrames TooBig NotUnderstood Incomplete TokenRefused CheckUnavailable
            NotAllowed OtherUser BindTimeout TooManyConnections TooManyEvents PongTimeout WriteTimeout QueueFull Dropped
            Replaced TokenExpired GoingAway Drained Cut Panicked
        )
    }

    #[test]
    fn every_text_fits_in_a_control_frame_and_is_of_one_reason() {
        let frames: Vec<_> = every_reason().into_iter().filter_map(CloseReason::frame).collect();
        assert_eq!(frames.len(), every_reason().len() - 4, "all but those whose client is gone or was told");
        for (code, text) in &frames {
            assert!(!text.is_empty() && text.len() <= 123, "{code}: RFC 6455 section 5.5: 125 bytes less the code");
            assert!(matches!(code, 1001..=1013 | 4400..=4499), "{code}");
        }
        let texts: std::collections::BTreeSet<_> = frames.iter().collect();
        assert_eq!(texts.len(), frames.len());
    }

    #[test]
    fn every_code_is_in_the_tables_that_clients_read() {
        let (readme, page) = (include_str!("../README.md"), include_str!("../proto/session/pushgate.v1.json.md"));
        for reason in every_reason() {
            let Some((code, _)) = reason.frame() else { continue };
            let is_told = |table: &str| {
                table.lines().any(|line| {
                    let codes = line.strip_prefix("| ").and_then(|line| line.split(" | ").next()).unwrap_or_default();
                    codes.split(", ").any(|told| told == code.to_string())
                })
            };
            // A session alone is drained, a legacy client alone is closed without a word of when to come back.
            assert!(is_told(page), "{code} is not on the page");
            assert!(is_told(readme) || reason == CloseReason::Drained, "{code} is not in the README");
        }
    }
}

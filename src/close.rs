//! The reasons why a connection ended. The close code, close text, metric label and log level of each are chosen only
//! here.

use tracing::Level;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CloseReason {
    /// The client sent a close frame.
    ClientClosed,
    /// The connection was reset or ended without a close frame.
    Reset,
    /// The client broke the WebSocket protocol.
    ProtocolError,
    /// A text frame was not UTF-8.
    NotUtf8,
    /// A frame or message exceeded its size limit.
    TooBig,
    /// The client exceeded its frame rate.
    TooManyFrames,
    /// The client exceeded its ping rate.
    TooManyPings,
    /// A message came in too many fragments.
    TooManyFragments,
    /// The client did not finish a message in time.
    MessageTimeout,
    /// A data frame was not a bind request.
    NotUnderstood,
    /// A bind request had an empty or too long token or event.
    Incomplete,
    /// The token check refused the token.
    TokenRefused,
    /// The token check could not be made.
    CheckUnavailable,
    /// The token is valid, but not for this event.
    NotAllowed,
    /// A later bind named a different user.
    OtherUser,
    /// The client did not bind in time.
    BindTimeout,
    /// The user has too many connections.
    TooManyConnections,
    /// The connection has too many events.
    TooManyEvents,
    /// A ping was not answered in time.
    PongTimeout,
    /// The client read nothing within the write timeout.
    WriteTimeout,
    /// The outbox was full.
    QueueFull,
    /// An operator or service dropped the connection.
    Dropped,
    /// The session continues on another connection.
    Replaced,
    /// The user has too many connections, and this was the oldest.
    MadeRoom,
    /// The token expired.
    TokenExpired,
    /// The connection was open for as long as one may be.
    Aged,
    /// The token was revoked.
    TokenRevoked,
    /// The gateway is shutting down, or drained.
    GoingAway,
    /// The gateway is shutting down or drained, and this client of the session protocol was told when to reconnect.
    Drained,
    /// The connection was still open at the end of the shutdown grace period.
    Cut,
    /// A panic, most likely in an embedder's token check.
    Panicked,
}

impl CloseReason {
    /// The close code and text to send to the client, or `None` if no close frame can be sent.
    pub(crate) fn frame(self) -> Option<(u16, &'static str)> {
        Some(match self {
            Self::ClientClosed | Self::Reset | Self::Cut | Self::Panicked => return None,
            Self::GoingAway => (1001, "going away"),
            Self::Aged => (1012, "open for long enough, come back"),
            Self::Drained => (1012, "shutting down, come back after the delay given"),
            Self::ProtocolError => (1002, "protocol error"),
            Self::NotUtf8 => (1007, "text is not UTF-8"),
            Self::TooManyFrames => (1008, "too many frames"),
            Self::TooManyPings => (1008, "too many pings"),
            Self::TooManyFragments => (1008, "too many fragments in one message"),
            Self::MessageTimeout => (1008, "message not finished in time"),
            Self::TooBig => (1009, "message too big"),
            Self::CheckUnavailable => (1013, "token check unavailable, try again later"),
            Self::NotUnderstood => (4400, "not a JSON object with a token and an event, both strings"),
            Self::Incomplete => (4400, "token or event is empty or too long"),
            Self::TokenRefused => (4401, "token refused"),
            Self::TokenRevoked => (4401, "token revoked"),
            Self::NotAllowed => (4403, "not allowed to bind this event"),
            Self::OtherUser => (4403, "bound to another user"),
            Self::BindTimeout => (4408, "did not bind in time"),
            Self::Dropped => (4409, "dropped"),
            Self::Replaced => (4409, "replaced by a newer connection of the same session"),
            Self::MadeRoom => (4409, "closed to make room for a newer connection of this user"),
            Self::TokenExpired => (4410, "token expired"),
            Self::TooManyConnections => (4429, "too many connections for this user"),
            Self::TooManyEvents => (4429, "too many events on this connection"),
            Self::PongTimeout => (4429, "too slow: ping not answered in time"),
            Self::WriteTimeout => (4429, "too slow: nothing read in time"),
            Self::QueueFull => (4429, "too slow: too many messages queued"),
        })
    }

    /// Whether queued messages are written before the close frame.
    pub(crate) fn flushes(self) -> bool {
        matches!(self, Self::Dropped | Self::MadeRoom | Self::Aged | Self::GoingAway | Self::Drained)
    }

    /// The log level. Reasons that a client can cause are logged at `debug`, so that clients cannot flood the log.
    pub(crate) fn level(self) -> Level {
        match self {
            Self::Panicked => Level::ERROR,
            _ => Level::DEBUG,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every reason. The match does not compile if one is missing.
    fn every_reason() -> Vec<CloseReason> {
        macro_rules! every {
            ($($reason:ident)+) => {{
                let _is_listed = |reason| match reason { $(CloseReason::$reason)|+ => () };
                vec![$(CloseReason::$reason),+]
            }};
        }
        every!(
            ClientClosed Reset ProtocolError NotUtf8 TooManyFrames TooManyPings TooManyFragments MessageTimeout TooBig
            NotUnderstood Incomplete TokenRefused CheckUnavailable NotAllowed OtherUser BindTimeout TooManyConnections
            TooManyEvents PongTimeout WriteTimeout QueueFull Dropped Replaced MadeRoom TokenExpired Aged TokenRevoked
            GoingAway Drained Cut Panicked
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
            let is_listed = |table: &str| {
                table.lines().any(|line| {
                    let codes = line.strip_prefix("| ").and_then(|line| line.split(" | ").next()).unwrap_or_default();
                    codes.split(", ").any(|listed| listed == code.to_string())
                })
            };
            assert!(is_listed(page), "{code} is not on the page");
            assert!(is_listed(readme), "{code} is not in the README");
        }
    }
}

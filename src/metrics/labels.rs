//! What the samples of a metric are told apart by: each label is an enum, and its values are bounded. No label ever holds a
//! user, an event or a token.

use std::fmt::{self, Debug, Write};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use crate::close::CloseReason;
use crate::outcome::DropReason;
use crate::revocations::RevokedBy;

use super::counters::Labels;

/// The API that a push came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Door {
    Json,
    Grpc,
    /// The embedding program.
    Library,
}

/// The result of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PushResult {
    /// At least one outbox took the message.
    Accepted,
    /// No connection was bound.
    Unmatched,
    /// No connection was bound, and the message is kept for a later one.
    Held,
    /// Every connection that matched dropped the message.
    Dropped,
    Invalid,
    Unauthenticated,
    PermissionDenied,
    RateLimited,
    TooLarge,
    Overloaded,
    TimedOut,
    Draining,
    CheckUnavailable,
}

/// The result of a call of the `AdminService`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AdminResult {
    Done,
    Invalid,
    Unauthenticated,
    PermissionDenied,
    /// A limit is reached.
    Exhausted,
    /// The gateway is shutting down, or cannot check the caller.
    Unavailable,
    /// Anything else, such as a method that is not known.
    Failed,
}

/// The result of a request to upgrade to WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum UpgradeResult {
    Accepted,
    Malformed,
    OriginRefused,
    TooMany,
    TooManyFromAddress,
    TooFastFromAddress,
    Draining,
}

/// What an address serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Listener {
    /// Everything, because there is no separate control address.
    All,
    Clients,
    Control,
}

/// Why a TCP connection was closed before it was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RefusedReason {
    Full,
    FullForAddress,
    /// The PROXY protocol is expected, and the peer is not a trusted proxy.
    NotAProxy,
    /// The PROXY protocol is expected, and its header did not come in time or was not valid.
    NoProxyHeader,
}

/// Why a request to read what the gateway tells about itself was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ReadRefusal {
    NoKey,
    UnknownKey,
    ExpiredToken,
    BadToken,
    CheckUnavailable,
    /// Too many checks are in progress.
    Overloaded,
}

/// What whoever had the most gave up when all that is queued and kept was too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum MadeRoomBy {
    /// A connection, with all that was queued for it.
    Closing,
    /// One queued message.
    Dropping,
    /// One message that was kept.
    Forgetting,
}

/// How a TLS handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HandshakeResult {
    Done,
    /// What the peer sent first was not TLS.
    NotTls,
    /// The peer has no version, cipher suite or protocol that the gateway has too.
    NothingInCommon,
    /// The peer did not accept the gateway's certificate, or something else.
    RefusedByPeer,
    /// The peer presented no certificate, though it must.
    NoCertificate,
    /// The peer's certificate is of another CA, or has expired, or is not for clients.
    BadCertificate,
    /// The peer broke the rules of TLS.
    Malformed,
    /// The peer ended the connection.
    PeerLeft,
    TimedOut,
    /// The gateway needed the place for another connection, or stopped.
    GivenUp,
}

/// The result of reading changed certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CertificateReloadResult {
    Loaded,
    /// The files have mistakes, and the previous certificates stay in use.
    Failed,
}

/// The result of a bind that asked to resume a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ResumeResult {
    /// The session continues with all its messages.
    Recovered,
    /// The session continues, but some of its messages are lost.
    Gap,
    /// The session is no longer known.
    Unknown,
}

/// Whose tokens are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Clients,
    Callers,
}

impl Side {
    /// The setting that says where the keys for its tokens are published.
    pub(crate) fn jwks_setting(self) -> &'static str {
        match self {
            Self::Clients => "jwt_jwks_url",
            Self::Callers => "push_jwt_jwks_url",
        }
    }
}

/// The result of fetching the keys that check JWTs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FetchResult {
    Fetched,
    /// The keys could not be fetched, or none of them can be used.
    Failed,
}

/// The result of asking `token_callback_url` about a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CallbackResult {
    Granted,
    /// The token is not valid.
    Refused,
    /// The token is not valid for the event.
    NotAllowed,
    TimedOut,
    /// The service could not be reached, or answered something else.
    Failed,
    /// Too many calls were on their way for too long.
    NoPlace,
    /// The service had failed too often in a row, and was not asked.
    CircuitOpen,
}

/// A check that has a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Check {
    Token,
    Push,
}

/// A task whose panics are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    /// Accepting connections on one address.
    Accept,
    /// The clock that keeps the deadlines of all connections.
    Clock,
    /// Ending the sessions that were away for too long.
    Sessions,
    /// Recording in an embedding program's journal.
    Journal,
    /// Writing messages for many receivers at once.
    Flusher,
    /// Reloading tokens or push keys.
    Reload,
    /// Taking over certificates whose files have changed.
    Certificates,
    /// Answering one stream of pushes. Unlike the other tasks, it ends after a panic.
    PushStream,
}

/// A label enum with all its values.
trait Label: Sized + 'static {
    const ALL: &'static [Self];
}

/// Implements a label. Its values are the variant names in snake case, as is usual in Prometheus. Leaving out a variant
/// does not compile.
macro_rules! labelled {
    ($($label:ident: $($variant:ident)+;)+) => {
        $(
            impl Label for $label {
                const ALL: &'static [Self] = {
                    const fn is_listed(label: $label) -> bool {
                        match label { $($label::$variant)|+ => true }
                    }
                    let all = &[$($label::$variant),+];
                    assert!(is_listed(all[0]));
                    let mut place = 0;
                    while place < all.len() {
                        assert!(all[place] as usize == place, "in the order in which they are declared");
                        place += 1;
                    }
                    all
                };
            }

            impl EncodeLabelValue for $label {
                fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                    snake_case(self, encoder)
                }
            }
        )+
    };
}

labelled! {
    Listener: All Clients Control;
    RefusedReason: Full FullForAddress NotAProxy NoProxyHeader;
    ReadRefusal: NoKey UnknownKey ExpiredToken BadToken CheckUnavailable Overloaded;
    Door: Json Grpc Library;
    PushResult:
        Accepted Unmatched Held Dropped Invalid Unauthenticated PermissionDenied RateLimited TooLarge
        Overloaded TimedOut Draining CheckUnavailable;
    AdminResult: Done Invalid Unauthenticated PermissionDenied Exhausted Unavailable Failed;
    UpgradeResult: Accepted Malformed OriginRefused TooMany TooManyFromAddress TooFastFromAddress Draining;
    HandshakeResult: Done NotTls NothingInCommon RefusedByPeer NoCertificate BadCertificate Malformed PeerLeft TimedOut GivenUp;
    CertificateReloadResult: Loaded Failed;
    ResumeResult: Recovered Gap Unknown;
    FetchResult: Fetched Failed;
    Check: Token Push;
    RevokedBy: Token User;
    CallbackResult: Granted Refused NotAllowed TimedOut Failed NoPlace CircuitOpen;
    Task: Accept Clock Sessions Journal Flusher Reload Certificates PushStream;
    DropReason: QueueFull Closed Expired Superseded;
    MadeRoomBy: Closing Dropping Forgetting;
    CloseReason:
        ClientClosed Reset ProtocolError NotUtf8 TooBig TooManyFrames TooManyPings TooManyFragments MessageTimeout
        NotUnderstood Incomplete TokenRefused CheckUnavailable NotAllowed OtherUser BindTimeout TooManyConnections
        TooManyEvents PongTimeout WriteTimeout QueueFull Dropped Replaced MadeRoom TokenExpired Aged TokenRevoked GoingAway
        Drained Cut Panicked;
}

/// What the samples of one name are told apart by.
macro_rules! label_sets {
    ($($labels:ident: $($name:ident $label:ty),+;)+) => {
        $(
            #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
            pub(crate) struct $labels {
                $(pub(crate) $name: $label),+
            }

            impl Labels for $labels {
                const COUNT: usize = 1 $(* <$label>::ALL.len())+;

                fn at(place: usize) -> Self {
                    let mut step = Self::COUNT;
                    $(
                        step /= <$label>::ALL.len();
                        let $name = <$label>::ALL[place / step % <$label>::ALL.len()];
                    )+
                    Self { $($name),+ }
                }

                fn place(&self) -> usize {
                    let place = 0;
                    $(let place = place * <$label>::ALL.len() + self.$name as usize;)+
                    place
                }
            }
        )+
    };
}

label_sets! {
    ListenerLabels: listener Listener;
    RefusedLabels: listener Listener, reason RefusedReason;
    ReadRefusedLabels: reason ReadRefusal;
    HandshakeLabels: listener Listener, result HandshakeResult;
    CertificateReloadLabels: listener Listener, result CertificateReloadResult;
    TaskLabels: task Task;
    ResumeLabels: result ResumeResult;
    CloseLabels: reason CloseReason;
    PushLabels: door Door, result PushResult;
    AdminLabels: result AdminResult;
    DropLabels: reason DropReason;
    UpgradeLabels: result UpgradeResult;
    MadeRoomLabels: by MadeRoomBy;
    JwksLabels: result FetchResult;
    CheckLabels: check Check;
    RevokedLabels: reason RevokedBy;
    CallbackLabels: result CallbackResult;
}

/// Shows a label value in the log by the same word as in the metrics.
pub(crate) struct InSnakeCase<L>(pub(crate) L);

impl<L: Debug> fmt::Display for InSnakeCase<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        snake_case(&self.0, f)
    }
}

fn snake_case(variant: &impl Debug, encoder: &mut impl Write) -> fmt::Result {
    for (at, letter) in format!("{variant:?}").char_indices() {
        if at > 0 && letter.is_ascii_uppercase() {
            encoder.write_char('_')?;
        }
        encoder.write_char(letter.to_ascii_lowercase())?;
    }
    Ok(())
}
